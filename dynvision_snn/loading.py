"""What a loader yields, arranged in time: inputs, and the right answer at every timestep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dynvision_snn.errors import DataError
from dynvision_snn.model import TimedModel
from dynvision_snn.presentation import Phase, split_labels
from dynvision_snn.presentation_batch import AnyPresentation, PresentationBatch, check_timed_inputs
from dynvision_snn.recording import Recording
from dynvision_snn.timing import format_steps

__all__ = [
    "LoadedBatch",
    "arrange",
    "check_answers",
    "device_of",
    "padded",
    "parts_of",
    "samples_in",
]


@dataclass(frozen=True, eq=False)
class LoadedBatch:
    """One batch of a loader.

    Attributes:
        inputs: images ``[B, *features]`` (``[K, B, *features]`` of K stimuli); or, with
            `time_axis` 0, the inputs of every timestep ``[T, B, *features]``.
        labels: ``[B]`` (``[K, B]`` of K stimuli); or, with `time_axis` 0, ``[B]`` or ``[T, B]``.
        presentation: what the timesteps are, of this batch.
        time_axis: 0 where the inputs have time themselves, else None; as a TimedModel takes it.
    """

    inputs: Tensor
    labels: Tensor
    presentation: AnyPresentation
    time_axis: int | None = None

    @property
    def n_samples(self) -> int:
        """B."""
        return self.labels.shape[-1]

    def to(self, device: torch.device) -> LoadedBatch:
        """The same on another device."""
        if self.inputs.device == self.labels.device == device:
            return self
        inputs = self.inputs.to(device, non_blocking=True)
        return replace(self, inputs=inputs, labels=self.labels.to(device, non_blocking=True))

    def runs(self, model: TimedModel, every: float | None = None) -> Iterator[Recording]:
        """Runs it through a model: one recording, or pieces of `every` ms that continue each other.

        Raises:
            PresentationError, TimingError, WrapError: as the model does.
        """
        if every is None:
            yield model(self.inputs, self.presentation, time_axis=self.time_axis)
        else:
            yield from model.chunks(
                self.inputs, self.presentation, every=every, time_axis=self.time_axis
            )

    def by_sample(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels with the batch first."""
        inputs, labels = self.inputs, self.labels
        if self._leads:
            inputs = inputs.transpose(0, 1)
        return inputs, labels if labels.ndim == 1 else labels.transpose(0, 1)

    def first(self) -> LoadedBatch:
        """A batch of its first sample; a copy, since a loader may fill the same memory again."""
        inputs = self.inputs[:, :1] if self._leads else self.inputs[:1]
        one = self.presentation
        return replace(
            self,
            inputs=inputs.clone(),
            labels=self.labels[..., :1].clone(),
            presentation=one[:1] if isinstance(one, PresentationBatch) else one,
        )

    @property
    def presentations(self) -> PresentationBatch:
        """One for each sample."""
        one = self.presentation
        if isinstance(one, PresentationBatch):
            return one
        return PresentationBatch([one] * self.n_samples)

    def lasting(self, n_timesteps: int) -> LoadedBatch:
        """The same with padding up to `n_timesteps`, which are no fewer than it has."""
        one = self.presentation
        if n_timesteps == one.n_timesteps:
            return self
        longer = PresentationBatch(self.presentations, n_timesteps, one.n_stimuli)
        if self.time_axis is None:
            return replace(self, presentation=longer)
        labels = self.labels
        if labels.ndim == 2:
            labels = padded(labels, n_timesteps, one.ignore_index)
        inputs = padded(self.inputs, n_timesteps, one.null_value)
        return replace(self, inputs=inputs, labels=labels, presentation=longer)

    @property
    def _leads(self) -> bool:
        """Whether an axis comes before the batch: time, or stimuli."""
        return self.time_axis == 0 or self.presentation.n_stimuli > 1

    @cached_property
    def answers(self) -> Tensor:
        """The right class at every timestep, int64 ``[T, B]``; ``ignore_index`` where none is.

        It is about the stimulus shown, during null input about the last one shown.
        """
        return self.answers_between(0, self.presentation.n_timesteps)

    def answers_between(self, start: int, stop: int) -> Tensor:
        """The `answers` at the timesteps ``start`` to ``stop``, without making the others."""
        labels, shape = self.labels, (stop - start, self.n_samples)
        if labels.ndim == 2 and self.time_axis == 0:
            answers = labels[start:stop]
        elif labels.ndim == 1:
            answers = labels.expand(shape)
        else:
            asked = (self.presentation.asked_between(start, stop) - 1).clamp(min=0)
            at = asked if asked.ndim == 2 else asked[:, None].expand(shape)
            answers = labels.gather(0, at.to(labels.device, non_blocking=True))
        padding = self.phases_between(start, stop) == Phase.PADDING
        return answers.masked_fill(padding, self.presentation.ignore_index)

    @property
    def labels_asked(self) -> Tensor:
        """The labels that are the answer at any timestep, one-dimensional."""
        if self.labels.ndim == 1:
            return self.labels
        if self.time_axis == 0:
            return self.answers.flatten()
        own = self.presentation
        ones = own if isinstance(own, PresentationBatch) else [own]
        asked = torch.tensor(
            [[k in one.asked for one in ones] for k in range(1, len(self.labels) + 1)]
        )
        # Where nothing is ever shown the answer is the first label.
        asked[0] |= ~asked.any(0)
        return self.labels[asked.expand(self.labels.shape).to(self.labels.device)]

    @property
    def targets(self) -> Tensor:
        """The answers at supervised timesteps, ``ignore_index`` at others: int64 ``[T, B]``."""
        elsewhere = self.phase_codes != Phase.SUPERVISED
        return self.answers.masked_fill(elsewhere, self.presentation.ignore_index)

    @cached_property
    def phase_codes(self) -> Tensor:
        """The `Phase` of each timestep, int8 ``[T, B]``, or ``[T, 1]`` where samples share it."""
        return self.phases_between(0, self.presentation.n_timesteps)

    def phases_between(self, start: int, stop: int) -> Tensor:
        """The `phase_codes` of the timesteps ``start`` to ``stop``, without making the others."""
        codes = self.presentation.phases_between(start, stop)
        codes = codes if codes.ndim == 2 else codes[:, None]
        return codes.to(self.labels.device, non_blocking=True)


def padded(values: Tensor, n_timesteps: int, value: float) -> Tensor:
    """``[T, ...]`` followed by `value` up to `n_timesteps`."""
    whole = values.new_full((n_timesteps, *values.shape[1:]), value)
    whole[: len(values)] = values
    return whole


def device_of(model: nn.Module) -> torch.device:
    """Where a model's batches have to be: with its parameters; without any, on the CPU."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def samples_in(batch: Any, time_axis: int | None = None) -> int:
    """How many samples a batch holds, as a loader yields it; see `arrange`.

    Raises:
        DataError: for something else than tensors, or a batch without a sample.
    """
    _, labels, _ = parts_of(batch)
    if labels.ndim == 0:
        raise DataError("the loader gave a single label; expected one for each sample of a batch.")
    n_samples = labels.shape[0 if time_axis == 1 else -1]
    if not n_samples:
        raise DataError(
            f"the loader gave a batch without samples, labels of shape {list(labels.shape)}; "
            "expected one sample at least."
        )
    return n_samples


def check_answers(loaded: LoadedBatch, n_classes: int, *, wait: bool = True) -> None:
    """Refuses answers that no class can be: they would be counted as wrong, or not at all.

    Args:
        loaded: the batch.
        n_classes: of the model.
        wait: whether labels on a GPU are looked at, too, which waits for it.

    Raises:
        DataError: naming the label; or if the presentation's ignore_index is a class.
    """
    ignored = loaded.presentation.ignore_index
    if 0 <= ignored < n_classes:
        raise DataError(
            f"the presentation's ignore_index is {ignored}, which is one of the model's "
            f"{n_classes} classes: its samples would not be counted. Expected a value that is no "
            "class, such as -1."
        )
    if loaded.labels.is_cuda and not wait:
        return
    answers = loaded.labels_asked
    odd = answers[(answers != ignored) & ((answers < 0) | (answers >= n_classes))]
    if len(odd):
        raise DataError(
            f"the loader gave the label {int(odd[0])}; expected one of the model's {n_classes} "
            f"classes, 0 to {n_classes - 1}, or the presentation's ignore_index, {ignored}, where "
            "there is no answer."
        )


def arrange(batch: Any, presentation: AnyPresentation, time_axis: int | None = None) -> LoadedBatch:
    """One batch as a loader yields it, time first.

    Args:
        batch: a pair of inputs and labels.
        presentation: what the timesteps are, of this batch.
        time_axis: None for images, which the presentation shows; 0 or 1 for inputs that have time
            themselves, ``[T, B, *features]`` or ``[B, T, *features]``. Labels are then ``[B]``, or
            ``[T, B]`` or ``[B, T]`` like the inputs; they are looked at where the presentation is
            supervised.

    Raises:
        DataError: for something else than a pair of tensors, a batch without a sample, or labels
            that do not fit.
        PresentationError: for inputs or labels that do not fit the presentation.

    >>> from dynvision_snn.presentation import Presentation
    >>> pair = torch.rand(2, 3, 5), torch.tensor([[7, 7, 7], [8, 8, 9]])  # [B, T, ...]
    >>> loaded = arrange(pair, Presentation("011", dt=2.0), time_axis=1)
    >>> loaded.inputs.shape, loaded.targets.tolist()
    (torch.Size([3, 2, 5]), [[-1, -1], [7, 8], [7, 9]])
    """
    inputs, labels, _ = parts_of(batch)
    samples_in(batch, time_axis)
    if time_axis is None:
        stimuli = split_labels(labels, presentation.n_stimuli)
        _check_samples(inputs, 1 if presentation.n_stimuli > 1 else 0, len(stimuli[0]))
        return LoadedBatch(inputs, labels, presentation)
    if time_axis not in (0, 1):
        raise DataError(
            f"time_axis={time_axis!r}; expected 0 for inputs [T, B, ...], 1 for [B, T, ...], or "
            "None for images."
        )
    if inputs.ndim < 2:
        raise DataError(
            f"the loader gave inputs of shape {list(inputs.shape)}; expected time and batch axes."
        )
    if time_axis == 1:
        inputs = inputs.transpose(0, 1)
        labels = labels.transpose(0, 1) if labels.ndim == 2 else labels
    n_timesteps, n_samples = inputs.shape[:2]
    check_timed_inputs(presentation, n_timesteps, n_samples)
    if tuple(labels.shape) not in ((n_samples,), (n_timesteps, n_samples)):
        raise DataError(
            f"the loader gave labels of shape {list(labels.shape)} with "
            f"{format_steps(n_timesteps, presentation.dt)} of {n_samples} samples; expected one "
            f"label per sample [{n_samples}], or one per "
            "timestep and sample, with its axes as those of the inputs."
        )
    split_labels(labels.flatten(), 1)
    return LoadedBatch(inputs, labels, presentation, 0)


def _check_samples(inputs: Tensor, axis: int, n_labels: int) -> None:
    if inputs.ndim <= axis or inputs.shape[axis] != n_labels:
        raise DataError(
            f"the loader gave inputs of shape {list(inputs.shape)} with labels for {n_labels} "
            "samples; expected images [B, ...] and labels [B] (a stimulus axis before each for "
            "several stimuli). For inputs that have time themselves say time_axis=."
        )


def parts_of(batch: Any) -> tuple[Tensor, Tensor, Any]:
    """Inputs, labels, and what came with them, None if nothing did.

    Raises:
        DataError: for something else.
    """
    if (
        not isinstance(batch, tuple | list)
        or len(batch) not in (2, 3)
        or not all(isinstance(part, Tensor) for part in batch[:2])
    ):
        kinds = (
            f"{type(batch).__name__} of {', '.join(type(part).__name__ for part in batch)}"
            if isinstance(batch, tuple | list)
            else type(batch).__name__
        )
        raise DataError(
            f"the loader gave a {kinds}; expected pairs of tensors (inputs, labels), or these with "
            "their presentation."
        )
    inputs, labels, *own = batch
    return inputs, labels, own[0] if own else None
