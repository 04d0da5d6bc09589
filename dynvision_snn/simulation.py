"""simulate(): data through a wrapped model in biological time, with its accuracy and its energy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from dynvision_snn.decision import DecisionRule, decide
from dynvision_snn.energy import EnergyBudget, EnergyMeter, SampleEnergy
from dynvision_snn.errors import DataError, WrapError
from dynvision_snn.model import TimedModel
from dynvision_snn.moments import SETTLING, Moment
from dynvision_snn.presentation import Phase, Presentation
from dynvision_snn.provenance import DataFingerprint, Fingerprinting, environment
from dynvision_snn.readout import (
    Score,
    decode,
    score,
    settling_time,
    stimulus_asked,
    supervised_spans,
)
from dynvision_snn.recording import Recording
from dynvision_snn.report.progress import track
from dynvision_snn.tracing import Trace, trace

_PLAIN = ("readout", "membrane_is", "n_parameters", "model_bytes", "environment")
"""Fields that JSON keeps as they are."""


@dataclass(frozen=True, eq=False)
class Simulation:
    """What a model did with a data set.

    Attributes:
        presentation: the schedule.
        correct_by_timestep, counted_by_timestep: right answers and answers at every timestep, about
            the stimulus shown (the last one shown during null input): int64 ``[T]``.
        settling_times: from each onset, of each sample, in ms: float64 ``[onsets, N]``; NaN where
            the answer never was supervised.
        moments: what was marked in every sample's run, with the energy spent until then:
            ``"settling"`` and each decision rule by name.
        budget: energy per sample, idle time apart.
        readout: the layer that was decoded; None where the model's output was.
        membrane_is: whether its membrane was taken ``"before"`` or ``"after"`` the reset.
        n_parameters: parameters of the model.
        model_bytes: memory of its parameters and buffers.
        data: which samples it saw.
        environment: versions of the packages that ran it, and the device.
        trace: the run of the loader's first sample.
    """

    presentation: Presentation
    correct_by_timestep: Tensor
    counted_by_timestep: Tensor
    settling_times: Tensor
    moments: Mapping[str, Moment]
    budget: EnergyBudget
    readout: str | None
    membrane_is: str | None
    n_parameters: int
    model_bytes: int
    data: DataFingerprint
    environment: Mapping[str, str]
    trace: Trace

    def __post_init__(self) -> None:
        n_timesteps = self.presentation.n_timesteps
        lengths = {
            "correct_by_timestep": len(self.correct_by_timestep),
            "counted_by_timestep": len(self.counted_by_timestep),
            "trace": len(self.trace.membrane),
            "budget": self.budget.n_timesteps,
        }
        odd = {name: length for name, length in lengths.items() if length != n_timesteps}
        if odd:
            raise DataError(
                f"A simulation of {n_timesteps} timesteps cannot have {odd} (timesteps of each)."
            )
        right, counted = self.correct_by_timestep, self.counted_by_timestep
        if bool((right < 0).any()) or bool((right > counted).any()):
            raise DataError("A simulation has more right answers than answers at some timestep.")
        shape = (len(self.presentation.onsets), self.data.n_samples)
        shapes = {"settling_times": tuple(self.settling_times.shape)} | {
            name: tuple(moment.times.shape) for name, moment in self.moments.items()
        }
        for name, found in shapes.items():
            if found != shape:
                raise DataError(
                    f"{name} of a simulation has shape {list(found)}; expected {list(shape)}: "
                    "onsets, samples."
                )

    @property
    def n_samples(self) -> int:
        """Samples simulated."""
        return self.data.n_samples

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
    def accuracy_by_phase(self) -> dict[str, float]:
        """Share of right answers over the timesteps of each phase; NaN where there is none."""
        codes = self.presentation.phase_codes
        shares = {}
        for phase in (Phase.NULL, Phase.REACTION, Phase.SUPERVISED):
            correct = self.correct_by_timestep[codes == phase].sum()
            shares[phase.name.lower()] = float(
                correct / self.counted_by_timestep[codes == phase].sum()
            )
        return shares

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
            "moments": {name: moment.to_dict() for name, moment in self.moments.items()},
            "budget": self.budget.to_dict(),
            "readout": self.readout,
            "membrane_is": self.membrane_is,
            "n_parameters": self.n_parameters,
            "model_bytes": self.model_bytes,
            "data": self.data.to_dict(),
            "environment": dict(self.environment),
            "trace": self.trace.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Simulation:
        """The simulation that `to_dict` wrote.

        Raises:
            DataError: if keys are missing or unknown, or lengths disagree.
            EnergyError, PresentationError: if its budget or presentation cannot be read.
        """
        expected = {field.name for field in fields(cls)}
        if values.keys() != expected:
            odd = sorted(values.keys() ^ expected)
            raise DataError(
                f"A simulation has the keys {', '.join(sorted(expected))}; missing or unknown: "
                f"{', '.join(map(str, odd))}."
            )
        times = [[torch.nan if t is None else t for t in row] for row in values["settling_times"]]
        return cls(
            presentation=Presentation.from_dict(values["presentation"]),
            correct_by_timestep=torch.tensor(values["correct_by_timestep"]),
            counted_by_timestep=torch.tensor(values["counted_by_timestep"]),
            settling_times=torch.tensor(times, dtype=torch.float64).reshape(len(times), -1),
            moments={name: Moment.from_dict(m) for name, m in values["moments"].items()},
            budget=EnergyBudget.from_dict(values["budget"]),
            data=DataFingerprint.from_dict(values["data"]),
            trace=Trace.from_dict(values["trace"]),
            **{key: values[key] for key in _PLAIN},
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Simulation) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # tensors inside

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
    rules: Mapping[str, DecisionRule] = MappingProxyType({}),
    per_sample: bool = True,
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
        rules: decision rules by name, for the time and energy until each sample's decision.
        per_sample: whether each sample's energy until it settles, and decides, is counted. It costs
            a float64 copy of what one layer receives at one timestep.
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
    if rules and not per_sample:
        raise DataError("rules need per_sample=True: what a decision costs is told of each sample.")
    if SETTLING in rules:
        raise DataError(f"no rule can be called {SETTLING!r}; give it another name.")
    device = _device(model)
    several = presentation.n_stimuli > 1
    gathered = _Gathered(presentation, rules)
    prints = Fingerprinting()
    first: tuple[Tensor, Tensor] | None = None
    with _evaluating(model), torch.inference_mode():
        with EnergyMeter(model, per_sample=per_sample) as meter:
            for batch in track(loader, title, shown=progress):
                images, labels = _pair(batch)
                prints.add(*((images.transpose(0, 1), labels.T) if several else (images, labels)))
                images, labels = images.to(device), labels.to(device)
                first = first or _first_sample(images, labels, several)
                run = model(images, presentation)
                gathered.add(run, labels, meter if per_sample else None)
        if first is None:
            raise DataError("the loader gave no batch; expected (images, labels) at least once.")
        example = trace(model, *first, presentation)
    times, _ = gathered.moment(SETTLING)
    return Simulation(
        presentation=presentation,
        correct_by_timestep=gathered.score.correct.cpu(),
        counted_by_timestep=gathered.score.counted.cpu(),
        settling_times=times,
        moments=gathered.moments(meter.sample_energy) if per_sample else {},
        budget=meter.budget(),
        readout=run.readout,
        membrane_is=run.membrane_is,
        n_parameters=sum(p.numel() for p in model.parameters()),
        model_bytes=sum(x.nbytes for x in (*model.parameters(), *model.buffers())),
        data=prints.result(),
        environment=environment(device),
        trace=example,
    )


class _Gathered:
    """What remains of the batches that ran: right answers, and the moments of every sample."""

    def __init__(self, presentation: Presentation, rules: Mapping[str, DecisionRule]) -> None:
        self._presentation, self._rules = presentation, rules
        self._asked = (stimulus_asked(presentation.stimulus_at) - 1).clamp(min=0)
        nothing = torch.zeros(presentation.n_timesteps, dtype=torch.int64)
        self.score = Score(nothing, nothing)
        self._reached: dict[str, list[tuple[Tensor, Tensor]]] = {
            name: [] for name in (SETTLING, *rules)
        }

    def add(self, run: Recording, labels: Tensor, meter: EnergyMeter | None) -> None:
        """One batch; a meter keeps what its samples cost until each moment."""
        presentation = self._presentation
        decoded = decode(run.membrane)
        several = presentation.n_stimuli > 1
        answers = labels[self._asked] if several else labels.expand(len(decoded), -1)
        scored = score(decoded, answers, presentation.ignore_index)
        self.score = scored + Score(
            self.score.correct.to(labels.device), self.score.counted.to(labels.device)
        )
        for name, parts in self._reached.items():
            if name == SETTLING:
                times, right = _settled(decoded, answers, presentation)
            else:
                times, right = _decided(self._rules[name], run, answers, presentation)
            if meter is not None and presentation.onsets:
                meter.mark(name, times, presentation.onsets)
            parts.append((times.cpu(), right.cpu()))

    def moment(self, name: str) -> tuple[Tensor, Tensor]:
        """Times and right answers of all samples, ``[onsets, N]``."""
        times, right = zip(*self._reached[name], strict=True)
        return torch.cat(times, dim=1), torch.cat(right, dim=1)

    def moments(self, energy: SampleEnergy) -> dict[str, Moment]:
        """Every moment with its cost; none where nothing is ever shown."""
        if not self._presentation.onsets:
            return {}
        described = {SETTLING: "", **{name: repr(rule) for name, rule in self._rules.items()}}
        return {
            name: Moment.of(energy, name, *self.moment(name), described[name])
            for name in self._reached
        }


def _decided(
    rule: DecisionRule, run: Recording, answers: Tensor, presentation: Presentation
) -> tuple[Tensor, Tensor]:
    """From each onset of each sample: when it decided, and whether for the right class."""
    onsets = presentation.onsets
    decisions = decide(rule, run.membrane, run.spikes, onsets, presentation.dt)
    return decisions.times, (decisions.classes == answers[list(onsets)]) & ~decisions.times.isnan()


def _settled(decoded: Tensor, answers: Tensor, presentation: Presentation) -> tuple[Tensor, Tensor]:
    """From each onset of each sample: when it settled, and whether on the right class."""
    onsets, supervised = presentation.onsets, presentation.supervised_mask
    times = settling_time(decoded, onsets, supervised, presentation.dt)
    right = torch.zeros_like(times, dtype=torch.bool)
    for row, span in enumerate(supervised_spans(onsets, supervised)):
        if span:
            right[row] = decoded[span[-1]] == answers[span[-1]]
    return times, right & ~times.isnan()


def _first_sample(images: Tensor, labels: Tensor, several: bool) -> tuple[Tensor, Tensor]:
    """A batch of one; a copy, since a loader may fill the same memory again."""
    if several:
        return images[:, :1].clone(), labels[:, :1].clone()
    return images[:1].clone(), labels[:1].clone()


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if (
        not isinstance(batch, tuple | list)
        or len(batch) != 2
        or not all(isinstance(part, Tensor) for part in batch)
    ):
        kinds = (
            f"{type(batch).__name__} of {', '.join(type(part).__name__ for part in batch)}"
            if isinstance(batch, tuple | list)
            else type(batch).__name__
        )
        raise DataError(f"the loader gave a {kinds}; expected pairs of tensors (images, labels).")
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
