"""When each module of a model with its own time loop is called, told from a look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynvision_snn.engine.witness import Seen
from dynvision_snn.observation import Rhythm

# Sizes of the two axes before the features, in a look. All differ, so that axes can be told apart.
_SIZES = ((3, 2), (5, 4))


@dataclass(frozen=True, slots=True)
class Size:
    """The first two axes of an input, and which of them is time."""

    axes: tuple[int, int]
    time_axis: int

    @property
    def n_steps(self) -> int:
        """T."""
        return self.axes[self.time_axis]

    @property
    def n_samples(self) -> int:
        """B."""
        return self.axes[1 - self.time_axis]


def sizes_to_try(
    time_axis: int, n_timesteps: int | None = None, n_samples: int | None = None
) -> tuple[Size, ...]:
    """Two sizes to try; of `n_timesteps` or `n_samples` where the model insists on them."""
    if n_timesteps is None and n_samples is None:
        return tuple(Size(axes, time_axis) for axes in _SIZES)
    lengths = (3, 5, 7) if n_timesteps is None else (n_timesteps,)
    batches = (2, 3, 4) if n_samples is None else (n_samples,)
    tried = [(n, batch) for n in lengths for batch in batches if n != batch][:2]
    return tuple(Size(axes if time_axis == 0 else axes[::-1], time_axis) for axes in tried)


def fits(seen: Mapping[str, Seen], size: Size) -> bool:
    """Whether every neuron was called once at each timestep."""
    neurons = [item for item in seen.values() if item.is_stateful]
    if not neurons:
        return any(_rhythm(item, size) is not None for item in seen.values())
    return all(
        (rhythm := _rhythm(item, size)) is not None
        and rhythm.calls == 1
        and (rhythm.form == "step") is item.is_step_neuron
        for item in neurons
    )


def find_rhythms(runs: Sequence[tuple[Mapping[str, Seen], Size]]) -> dict[str, Rhythm]:
    """How each module is called, as far as all the runs agree."""
    names = dict.fromkeys(name for seen, _ in runs for name in seen)
    told = {
        name: {_rhythm(seen[name], size) if name in seen else None for seen, size in runs}
        for name in names
    }
    rhythms = {
        name: (found.pop() or Rhythm("unclear")) if len(found) == 1 else Rhythm("unclear")
        for name, found in told.items()
    }
    merged = [name for name, rhythm in rhythms.items() if rhythm.form == "merged"]
    if not merged:
        return rhythms
    # A model merges time and batch in one order throughout; its first merged layer shows it.
    seen, size = runs[0]
    time_axis = _merged_time_axis(seen[merged[0]], size)
    return rhythms | {name: Rhythm("merged", rhythms[name].calls, time_axis) for name in merged}


def _rhythm(item: Seen, size: Size) -> Rhythm | None:
    """How a module was called, given the true numbers of timesteps and samples."""
    n_steps, n_samples = size.n_steps, size.n_samples
    n_calls = len(item.calls)
    leads = {shape[:2] for shape in item.shapes}
    layer = item.layer
    if layer is not None and layer.traits.sequence:
        axis = layer.traits.time_axis
        expected = (n_steps, n_samples) if axis == 0 else (n_samples, n_steps)
        return Rhythm("whole", n_calls, axis) if leads == {expected} else None
    if n_calls % n_steps == 0 and all(lead[:1] == (n_samples,) for lead in leads):
        return Rhythm("step", n_calls // n_steps)
    if leads == {(n_steps, n_samples)}:
        return Rhythm("whole", n_calls, 0)
    if leads == {(n_samples, n_steps)}:
        return Rhythm("whole", n_calls, 1)
    if all(lead[:1] == (n_steps * n_samples,) for lead in leads):
        return Rhythm("merged", n_calls)
    return None


def _merged_time_axis(item: Seen, size: Size) -> int:
    """Whether time or batch comes first where both are merged into axis 0 of a layer's input.

    The look's inputs do not change along axis 0 and differ along axis 1; where they could not be
    made to differ, the order of the model's own axes is taken.
    """
    rows = item.calls[0].inputs
    assert rows is not None
    n_0, n_1 = size.axes
    by_axis_0 = rows.unflatten(0, (n_0, n_1))
    by_axis_1 = rows.unflatten(0, (n_1, n_0))
    keeps_order = bool((by_axis_0 == by_axis_0[:1]).all())
    swaps_order = bool((by_axis_1 == by_axis_1[:, :1]).all())
    return 1 - size.time_axis if swaps_order and not keeps_order else size.time_axis


def over_time(item: Seen, rhythm: Rhythm, n_steps: int) -> list[Tensor]:
    """Outputs and membranes of a layer over all its calls, time first."""
    if rhythm.form == "unclear":
        return []
    return [
        torch.cat([rhythm.time_first(value, n_steps) for value in column])
        for column in zip(*(called.yielded for called in item.calls), strict=True)
        if all(value is not None for value in column)
    ]
