"""What a run shows: one input per timestep, made from images and a presentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynvision_snn.errors import WrapError
from dynvision_snn.presentation import Phase, null_like
from dynvision_snn.presentation_batch import (
    AnyPresentation,
    PresentationBatch,
    check_timed_inputs,
)
from dynvision_snn.timing import common_dt


@dataclass(frozen=True, eq=False, slots=True)
class Shown:
    """What a run, or a piece of it, shows: one input per timestep, after idle null input.

    Attributes:
        n_timesteps, idle_steps: T, and the timesteps before it.
        example: the input of one timestep, ``[B, *features]``.
        steps: the inputs of the T timesteps; a sequence holds one object for one stimulus.
        null: the input of the idle timesteps; None where there are none.
        phases: `Phase` code of the T timesteps; None where unknown.
        active, lengths: as in `Run`.
        start: how many timesteps of the same call came before.
        t0: which timestep of its run the first is, idle time apart.
    """

    n_timesteps: int
    idle_steps: int
    example: Tensor
    steps: Tensor | Sequence[Tensor]
    null: Tensor | None = None
    phases: Tensor | None = None
    active: Tensor | None = None
    lengths: Tensor | None = None
    start: int = 0
    t0: int = 0

    def stretches(self, n_steps: int) -> Iterator[Shown]:
        """The same run in stretches of at most `n_steps`, idle time before the first."""
        for t0 in range(0, self.n_timesteps, n_steps):
            steps = self.steps[t0 : t0 + n_steps]
            stretch = replace(self, n_timesteps=len(steps), steps=steps, t0=t0)
            yield stretch if t0 == 0 else replace(stretch, idle_steps=0, null=None)

    def whole(self) -> Tensor:
        """All of it as one ``[idle + T, B, *features]``."""
        idle = [] if self.null is None else [self.null] * self.idle_steps
        if not idle and isinstance(self.steps, Tensor):
            return self.steps
        return torch.stack([*idle, *self.steps])


@dataclass(frozen=True, eq=False, slots=True)
class Showing:
    """All that a call shows, checked; what a piece of it needs is made with the piece.

    Attributes:
        inputs: images, or where `timed` the inputs of every timestep, ``[T, B, *features]``.
        presentation: the schedule; None for inputs over time that go without one.
        timed: whether the inputs have time themselves.
        continued: whether the run goes on from another, and so has no idle time.
    """

    inputs: Tensor
    presentation: AnyPresentation | None
    timed: bool
    continued: bool

    @property
    def n_timesteps(self) -> int:
        """T."""
        return len(self.inputs) if self.presentation is None else self.presentation.n_timesteps

    def pieces(self, n_steps: int) -> Iterator[Shown]:
        """The call in pieces of at most `n_steps`, idle time before the first."""
        for start in range(0, self.n_timesteps, n_steps):
            yield self.piece(start, min(start + n_steps, self.n_timesteps))

    def piece(self, start: int, stop: int) -> Shown:
        """The timesteps ``start`` to ``stop``, after idle time where they are the first."""
        presentation, inputs = self.presentation, self.inputs
        if presentation is None:
            return Shown(stop - start, 0, inputs[0], inputs[start:stop], start=start)
        steps: Tensor | Sequence[Tensor]
        if self.timed:
            example, steps = inputs[0], inputs[start:stop]
        else:
            example = inputs if presentation.n_stimuli <= 1 else inputs[0]
            steps = list(presentation.inputs_between(inputs, start, stop))
        idle_steps = 0 if start or self.continued else presentation.idle_steps
        null = null_like(example, presentation.null_value) if idle_steps else None
        phases = presentation.phases_between(start, stop)
        alike = Shown(stop - start, idle_steps, example, steps, null, phases, start=start)
        if not isinstance(presentation, PresentationBatch):
            return alike
        lengths = presentation.lengths
        if bool((lengths == presentation.n_timesteps).all()):
            return alike
        device = example.device
        active = (phases != Phase.PADDING).to(device, non_blocking=True)
        return replace(alike, active=active, lengths=lengths.to(device, non_blocking=True))


def shown(
    dt: float,
    inputs: Tensor,
    presentation: AnyPresentation | None,
    time_axis: int | None,
    *,
    continued: bool,
) -> Showing:
    """What a model with timesteps of `dt` ms is to be shown.

    Args:
        dt: the model's.
        inputs: images, or inputs over time.
        presentation: the schedule.
        time_axis: where `inputs` have time, if a presentation is given that they follow.
        continued: whether the run goes on from another, and so has no idle time.

    Raises:
        TimingError: if the presentation's dt is not the model's.
        PresentationError: if the inputs do not fit the presentation.
        WrapError: if the inputs are no tensor, or empty.
    """
    if not isinstance(inputs, Tensor):
        raise WrapError(f"a TimedModel takes a torch.Tensor; received a {type(inputs).__name__}.")
    if time_axis not in (None, 0, 1):
        raise WrapError(
            f"time_axis={time_axis!r}; expected 0 for inputs [T, B, ...], 1 for [B, T, ...], or "
            "None for images that a presentation shows."
        )
    if inputs.ndim < 2 or 0 in inputs.shape[:2]:
        timed = presentation is None or time_axis is not None
        expected = "[T, B, *features]" if timed else "[B, *features]"
        raise WrapError(
            f"the inputs have shape {list(inputs.shape)}; expected {expected} with at least one "
            "timestep, sample and feature."
        )
    if time_axis == 1:
        inputs = inputs.transpose(0, 1)
    if presentation is not None:
        common_dt({"the model": dt, "the presentation": presentation.dt})
        if time_axis is not None:
            check_timed_inputs(presentation, *inputs.shape[:2])
    return Showing(inputs, presentation, time_axis is not None, continued)
