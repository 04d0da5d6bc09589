"""Values over time that are held once for each distinct input: shown once, computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The floats that one batch of timesteps may have on the CPU, per tensor, where layers are
# convolutions: more do not stay in cache, and their backward is then slower than timestep by
# timestep.
_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False, slots=True)
class Timed:
    """A value at each of T timesteps.

    Attributes:
        values: ``[K, B, ...]``, the distinct values.
        index: which of them each timestep has, int64 ``[T]`` on the CPU; None where each has its
            own (K = T).
    """

    values: Tensor
    index: Tensor | None = None

    @classmethod
    def of_steps(cls, steps: Tensor | Sequence[Tensor]) -> Timed:
        """From the inputs of every timestep, one object standing for one input."""
        if isinstance(steps, Tensor):
            return cls(steps)
        rows: dict[int, int] = {}
        distinct: list[Tensor] = []
        index = []
        for step in steps:
            if id(step) not in rows:
                rows[id(step)] = len(distinct)
                distinct.append(step)
            index.append(rows[id(step)])
        if len(distinct) == len(steps):
            return cls(torch.stack(distinct))
        stacked = distinct[0].unsqueeze(0) if len(distinct) == 1 else torch.stack(distinct)
        return cls(stacked, torch.tensor(index))

    def __len__(self) -> int:
        return self.values.shape[0] if self.index is None else len(self.index)

    def over_time(self) -> Tensor:
        """``[T, B, ...]``; a view where there is one distinct value."""
        if self.index is None:
            return self.values
        if self.values.shape[0] == 1:
            return self.values.expand(len(self.index), *self.values.shape[1:])
        return self.values[self.index.to(self.values.device, non_blocking=True)]

    def at(self, t: int) -> Tensor:
        """The value at timestep `t`, ``[B, ...]``."""
        return self.values[t if self.index is None else int(self.index[t])]

    def last(self) -> Tensor:
        """The value at the last timestep, which does not hold on to those before it."""
        return self.at(len(self) - 1).clone()


def merged(function: Callable[[Tensor], Tensor], timed: Timed, *, small: bool) -> Timed:
    """`function`, which takes samples one by one, on all distinct values as one batch.

    Args:
        function: takes and returns ``[N, ...]``.
        timed: ``[K, B, ...]``.
        small: whether to do so in batches that stay in cache.
    """
    values = timed.values
    n_distinct, batch = values.shape[:2]
    per_step = max(1, values[0].numel())
    size = max(1, _CHUNK // per_step) if small and values.device.type == "cpu" else n_distinct
    if size >= n_distinct:
        parts = [function(values.flatten(0, 1))]
    else:
        # Not by `split`: nothing may write into a view that it gives, as a ReLU in place would.
        cuts = range(0, n_distinct, size)
        parts = [function(values[cut : cut + size].flatten(0, 1)) for cut in cuts]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return Timed(whole.unflatten(0, (n_distinct, batch)), timed.index)


def aligned(timed: Sequence[Timed]) -> tuple[list[Tensor], Tensor | None]:
    """The values of several over the same distinct ones, and their common index.

    Where one has a single value for all timesteps it stays so, ``[1, B, ...]``.
    """
    several = [one for one in timed if one.values.shape[0] > 1]
    if not several:
        return [one.values for one in timed], timed[0].index
    first = several[0].index
    if all(_same(one.index, first) for one in several[1:]):
        return [one.values for one in timed], first
    return [one.over_time() if one in several else one.values for one in timed], None


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or torch.equal(one, other)


def map_timed(function: Callable[[Timed], Any], value: Any) -> Any:
    """`value` with every `Timed` in its containers replaced."""
    if isinstance(value, Timed):
        return function(value)
    if isinstance(value, dict):
        return {key: map_timed(function, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_timed(function, item) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(map_timed(function, item) for item in value)
    return value


def stacked(steps: Sequence[Any]) -> Any:
    """What was yielded at every timestep, as one value of the same containers; else as it is."""
    first = steps[0]
    if isinstance(first, Tensor) and all(step.shape == first.shape for step in steps):
        return Timed(torch.stack(list(steps)))
    if isinstance(first, Tensor | torch.Size):
        return PerStep(tuple(steps))
    if isinstance(first, dict):
        return {key: stacked([step[key] for step in steps]) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(stacked(list(column)) for column in zip(*steps, strict=True)))
    if isinstance(first, tuple | list):
        return type(first)(stacked(list(column)) for column in zip(*steps, strict=True))
    return PerStep(tuple(steps))


@dataclass(frozen=True, eq=False, slots=True)
class PerStep:
    """What is no tensor, or not of one shape, at each of T timesteps."""

    steps: tuple[Any, ...]


def at_step(value: Any, t: int) -> Any:
    """`value` as it is at timestep `t`."""
    if isinstance(value, Timed):
        return value.at(t)
    if isinstance(value, PerStep):
        return value.steps[t]
    if isinstance(value, dict):
        return {key: at_step(item, t) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(at_step(item, t) for item in value))
    if isinstance(value, tuple | list | slice):
        if isinstance(value, slice):
            return value
        return type(value)(at_step(item, t) for item in value)
    return value
