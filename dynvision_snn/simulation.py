"""simulate(): data through a wrapped model in biological time, with its accuracy and its energy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynvision_snn.energy import EnergyBudget, EnergyMeter
from dynvision_snn.errors import DataError, WrapError
from dynvision_snn.model import TimedModel
from dynvision_snn.presentation import Presentation
from dynvision_snn.readout import Score, decode, score, settling_time, stimulus_asked
from dynvision_snn.report.progress import track


@dataclass(frozen=True, eq=False)
class Simulation:
    """What a model did with a data set.

    Attributes:
        presentation: the schedule.
        correct_by_timestep, counted_by_timestep: right answers and answers at every timestep, about
            the stimulus shown (the last one shown during null input): int64 ``[T]``.
        settling_times: from each onset, of each sample, in ms: float64 ``[onsets, N]``; NaN where
            the answer never was supervised.
        budget: energy per sample, idle time apart.
        readout: the layer that was decoded; None where the model's output was.
        membrane_is: whether its membrane was taken ``"before"`` or ``"after"`` the reset.
        n_parameters: trainable numbers of the model.
    """

    presentation: Presentation
    correct_by_timestep: Tensor
    counted_by_timestep: Tensor
    settling_times: Tensor
    budget: EnergyBudget
    readout: str | None
    membrane_is: str | None
    n_parameters: int

    @property
    def n_samples(self) -> int:
        """Samples simulated."""
        return self.settling_times.shape[1]

    @property
    def accuracy(self) -> float:
        """Share of right answers over all supervised timesteps; NaN if there is none."""
        mask = self.presentation.supervised_mask
        correct, counted = (
            self.correct_by_timestep[mask].sum(),
            self.counted_by_timestep[mask].sum(),
        )
        return float(correct / counted)

    @property
    def accuracy_last(self) -> float:
        """Share of right answers at the last supervised timestep; NaN if there is none."""
        supervised = self.presentation.supervised_mask.nonzero()
        return float(self.accuracy_by_timestep[supervised[-1]]) if len(supervised) else torch.nan

    @property
    def accuracy_by_timestep(self) -> Tensor:
        """Share of right answers at every timestep, float64 ``[T]``."""
        return self.correct_by_timestep.double() / self.counted_by_timestep

    @property
    def settling_time(self) -> float:
        """Mean settling time in ms, over the onsets of all samples that settle; NaN if none."""
        return float(self.settling_times.nanmean())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-safe; NaN becomes None."""
        times = self.settling_times.tolist()
        return {
            "presentation": self.presentation.to_dict(),
            "correct_by_timestep": self.correct_by_timestep.tolist(),
            "counted_by_timestep": self.counted_by_timestep.tolist(),
            "settling_times": [[None if t != t else t for t in row] for row in times],
            "budget": self.budget.to_dict(),
            "readout": self.readout,
            "membrane_is": self.membrane_is,
            "n_parameters": self.n_parameters,
        }

    def __repr__(self) -> str:
        return (
            f"Simulation({self.n_samples} samples, accuracy {self.accuracy:.1%} (last supervised "
            f"timestep {self.accuracy_last:.1%}), settling time {self.settling_time:.1f} ms)"
        )


def simulate(
    model: TimedModel,
    loader: Iterable[tuple[Tensor, Tensor]],
    presentation: Presentation,
    *,
    progress: bool | None = None,
    title: str = "simulating",
) -> Simulation:
    """Streams data through a model, keeping no activation.

    The model is run in evaluation mode and under ``torch.inference_mode``; its training mode is put
    back.

    Args:
        model: a wrapped model.
        loader: batches of images ``[B, *features]`` and labels ``[B]`` (``[K, B, ...]`` and
            ``[K, B]`` for K stimuli), as a DataLoader yields.
        presentation: the schedule.
        progress: whether a progress bar is shown; by default on a terminal, if it takes long.
        title: what the bar says.

    Raises:
        WrapError: if the model is not wrapped.
        DataError: if the loader yields something else, or nothing.
        ReadoutError: if a membrane is NaN or infinite.
    """
    if not isinstance(model, TimedModel):
        raise WrapError(
            f"simulate takes a wrapped model; received a {type(model).__name__}. "
            "Wrap it first: dvs.wrap(net, dt=...)."
        )
    device = _device(model)
    asked = (stimulus_asked(presentation.stimulus_at) - 1).clamp(min=0)
    ignore = presentation.ignore_index
    onsets, supervised = presentation.onsets, presentation.supervised_mask
    total: Score | None = None
    times: list[Tensor] = []
    readout: tuple[str | None, str | None] = (None, None)
    with _evaluating(model), EnergyMeter(model) as meter, torch.inference_mode():
        for batch in track(loader, title, shown=progress):
            images, labels = (tensor.to(device) for tensor in _pair(batch))
            run = model(images, presentation)
            decoded = decode(run.membrane)
            answers = labels.expand(len(asked), -1) if labels.ndim == 1 else labels[asked]
            scored = score(decoded, answers, ignore)
            total = scored if total is None else total + scored
            times.append(settling_time(decoded, onsets, supervised, presentation.dt).cpu())
            readout = (run.readout, run.membrane_is)
    if total is None:
        raise DataError("the loader gave no batch; expected (images, labels) at least once.")
    return Simulation(
        presentation=presentation,
        correct_by_timestep=total.correct.cpu(),
        counted_by_timestep=total.counted.cpu(),
        settling_times=torch.cat(times, dim=1),
        budget=meter.budget(),
        readout=readout[0],
        membrane_is=readout[1],
        n_parameters=sum(p.numel() for p in model.parameters()),
    )


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(
            f"the loader gave a {type(batch).__name__}; expected pairs (images, labels)."
        )
    return batch[0], batch[1]


def _device(model: nn.Module) -> torch.device:
    for tensor in model.parameters():
        return tensor.device
    return torch.device("cpu")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's own mode is put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
