"""What stands for a sequence while a forward with its own time loop is traced.

Such a forward asks a sequence for its sizes, and takes its timesteps one by one. A proxy of
``torch.fx`` knows neither; this one answers with the sizes of the run that is planned.
"""

from __future__ import annotations

import dis
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from dynvision_snn.engine.in_place import WritingProxy
from dynvision_snn.engine.samplewise import flattens_from, is_elementwise, passes_on
from dynvision_snn.engine.shapes import reshapes
from dynvision_snn.engine.values import computed


@dataclass(frozen=True, slots=True)
class OverTime:
    """Of a value that has all timesteps: its axes.

    Attributes:
        n_steps: T.
        n_samples: B.
        time_axis: where time is, 0 or 1; samples are on the other.
        features: the sizes of the axes behind; None where they are not known.
        like: a tensor of its device and dtype.
    """

    n_steps: int
    n_samples: int
    time_axis: int
    features: tuple[int, ...] | None
    like: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """All sizes.

        Raises:
            TraceError: where those behind time and samples are not known.
        """
        if self.features is None:
            raise TraceError("it asks for the shape of what it computed")
        leading = (self.n_steps, self.n_samples)
        return (*(leading if self.time_axis == 0 else leading[::-1]), *self.features)

    def swapped(self) -> OverTime:
        """With time and samples swapped."""
        return replace(self, time_axis=1 - self.time_axis)


class StepProxy(WritingProxy):
    """A proxy of a value at one timestep."""

    def __iter__(self) -> Iterator[Any]:
        """What is unpacked from it, ``spk, mem = ...``; as in fx, but looked up once per line."""
        frame = sys._getframe(1)
        n_unpacked = _n_unpacked(frame.f_code, frame.f_lasti)
        if n_unpacked is None:
            raise TraceError("it loops over what it computed")
        return iter([self[k] for k in range(n_unpacked)])  # type: ignore[index]

    def __len__(self) -> int:
        tracer: Any = self.tracer
        return int(tracer.length_of(self.node))


@lru_cache(maxsize=1024)
def _n_unpacked(code: CodeType, offset: int) -> int | None:
    """How many values the instruction at `offset` unpacks; None where it does something else."""
    for instruction in dis.get_instructions(code):
        if instruction.offset == offset and instruction.opname == "UNPACK_SEQUENCE":
            return int(instruction.argval)
    return None


class SizedProxy(WritingProxy):
    """A proxy that answers with the sizes of a tensor.

    Args:
        node: the value.
        tracer: the tracer of all.
        like: a tensor of its sizes, device and dtype.
    """

    def __init__(self, node: fx.Node, tracer: fx.Tracer, like: Tensor) -> None:
        super().__init__(node, tracer)
        self._like = like

    @property
    def shape(self) -> torch.Size:
        """Its sizes in the run that is planned."""
        return self._like.shape

    def size(self, dim: int | None = None) -> Any:
        """Its sizes in the run that is planned."""
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return len(self.shape)

    def dim(self) -> int:
        """The number of its axes."""
        return len(self.shape)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._like.device

    @property
    def dtype(self) -> torch.dtype:
        """What its entries are."""
        return self._like.dtype


class SequenceProxy(SizedProxy):
    """A proxy of a value over time.

    Args:
        node: the value.
        tracer: the tracer of all.
        over_time: its axes.
        picked: makes the proxy of one timestep.
    """

    def __init__(
        self,
        node: fx.Node,
        tracer: fx.Tracer,
        over_time: OverTime,
        picked: Callable[[fx.Node, int], fx.Proxy],
    ) -> None:
        super().__init__(node, tracer, over_time.like)
        self._over_time = over_time
        self._picked = picked
        self._steps: dict[int, Any] = {}

    def __getitem__(self, key: Any) -> Any:
        """The value at one timestep."""
        keys = list(key) if isinstance(key, tuple) else [key]
        axis = self._over_time.time_axis
        if len(keys) <= axis or not all(is_all(each) for each in keys[:axis]):
            raise TraceError("it takes more than a timestep out of a sequence")
        t, others = keys[axis], keys[:axis] + keys[axis + 1 :]
        if isinstance(t, bool) or not isinstance(t, int):
            raise TraceError("it takes more than a timestep out of a sequence")
        step = self._at(t)
        return step if all(is_all(each) for each in others) else step[tuple(others)]

    def _at(self, t: int) -> Any:
        n_steps = self._over_time.n_steps
        if not -n_steps <= t < n_steps:
            raise IndexError(f"timestep {t} of {n_steps}")
        t %= n_steps
        if t not in self._steps:
            self._steps[t] = self._picked(self.node, t)
        return self._steps[t]

    def __iter__(self) -> Iterator[Any]:
        """The timesteps, one after the other."""
        return iter(self.unbind(0))

    def unbind(self, dim: int = 0) -> tuple[fx.Proxy, ...]:
        """The timesteps."""
        if dim != self._over_time.time_axis:
            raise TraceError("it takes the samples of a sequence one by one")
        return tuple(self._at(t) for t in range(self._over_time.n_steps))

    @property
    def shape(self) -> torch.Size:
        """Its sizes in the run that is planned."""
        return torch.Size(self._over_time.shape)


def is_all(key: Any) -> bool:
    """Whether an index takes all of an axis."""
    return isinstance(key, slice) and key == slice(None)


def axes_of(
    node: fx.Node, known: dict[fx.Node, OverTime], module: nn.Module | None
) -> OverTime | None:
    """The axes of what `node` yields; None where it is no sequence, or not known to be one.

    Args:
        node: an operation.
        known: the sequences that were there before.
        module: the module that computes it, if one does.
    """
    given = node.all_input_nodes
    if len(given) != 1 or given[0] not in known:
        return None
    source = known[given[0]]
    if module is None and (is_elementwise(node) or passes_on(node)):
        return source
    if node.args[:1] != (given[0],):
        return None
    if module is not None:
        return _through(module, source)
    return source.swapped() if swaps(node) else _with_other_features(node, source)


def _with_other_features(node: fx.Node, source: OverTime) -> OverTime | None:
    behind = reshapes(node) or (flattens_from(node) or 0) >= 2
    if source.features is None or not behind:
        return None
    like = torch.empty(source.shape, device="meta")
    shape: torch.Size = computed(node, {node.all_input_nodes[0]: like}, {}).shape
    return replace(source, features=shape[2:]) if shape[:2] == like.shape[:2] else None


def gives_other_features(node: fx.Node) -> bool:
    """Whether a node that yields a sequence reshapes one."""
    return reshapes(node) or flattens_from(node) is not None


def _through(module: nn.Module, source: OverTime) -> OverTime | None:
    if type(module) is nn.Linear:
        features = source.features
        if features is not None:
            features = (*features[:-1], module.out_features)
        return replace(source, features=features)
    return source if type(module) in (nn.Identity, nn.ReLU) else None


def swaps(node: fx.Node) -> bool:
    """Whether a node swaps the first two axes and leaves the others."""
    if node.kwargs:
        return False
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    axes = [*node.args[1:]]
    if name in ("transpose", "swapaxes", "swapdims"):
        return sorted(axes, key=str) == [0, 1]
    if name == "permute":
        flat = list(axes[0]) if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes
        return flat == [1, 0, *range(2, len(flat))]
    return False


def stacked_from(node: fx.Node) -> tuple[list[fx.Node], int] | None:
    """The values that ``torch.stack`` puts side by side, and on which axis."""
    if node.op != "call_function" or node.target is not torch.stack:
        return None
    given: dict[Any, Any] = dict(enumerate(node.args)) | dict(node.kwargs)
    values = given.pop(0, given.pop("tensors", None))
    axis = given.pop(1, given.pop("dim", 0))
    if given or axis not in (0, 1) or not isinstance(values, list | tuple):
        return None
    if not all(isinstance(value, fx.Node) for value in values):
        return None
    return list(values), axis


PICK = operator.getitem
"""What takes a timestep out of a sequence."""
