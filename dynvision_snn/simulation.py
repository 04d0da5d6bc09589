"""simulate(): data through a wrapped model in biological time, with its accuracy and its energy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from dynvision_snn.answering import SCORED_PHASES
from dynvision_snn.decision import DecisionRule
from dynvision_snn.energy import EnergyBudget, EnergyMeter
from dynvision_snn.errors import DataError, WrapError
from dynvision_snn.evidence import Decoding
from dynvision_snn.finite import check_parameters
from dynvision_snn.gathering import Gathered
from dynvision_snn.loading import LoadedBatch, check_answers, device_of
from dynvision_snn.model import TimedModel
from dynvision_snn.moments import SETTLING, Moment
from dynvision_snn.presentation import Presentation
from dynvision_snn.presentation_batch import (
    AnyPresentation,
    PresentationBatch,
    any_from_dict,
    n_onsets,
)
from dynvision_snn.provenance import DataFingerprint, Fingerprinting, environment
from dynvision_snn.report.progress import track
from dynvision_snn.sources import PresentationSource, loaded_batches
from dynvision_snn.timing import format_ms
from dynvision_snn.tracing import Trace, trace, untraced

_PLAIN = (
    "correct_last",
    "counted_last",
    "readout",
    "membrane_is",
    "decoding",
    "n_parameters",
    "model_bytes",
    "environment",
)
"""Fields that JSON keeps as they are."""


@dataclass(frozen=True, eq=False)
class Simulation:
    """What a model did with a data set.

    Attributes:
        presentation: the schedule, of all samples or of each.
        correct, counted: right answers and answers about the stimulus shown (the last one shown
            during null input), by phase (`SCORED_PHASES`) and timestep: int64 ``[phases, T]``, or
            ``[phases, 1]`` where they were not kept by timestep.
        correct_last, counted_last: the same at each sample's last supervised timestep.
        settling_times: from each onset, of each sample, in ms: float64 ``[onsets, N]``; NaN where
            the answer never was supervised, or its label is ignored.
        moments: what was marked in every sample's run, with the energy spent until then:
            ``"settling"`` and each decision rule by name.
        budget: energy per sample, idle time apart.
        readout: the layer that was decoded; None where the model's output was.
        membrane_is: whether its membrane was taken ``"before"`` or ``"after"`` the reset.
        decoding: what ranked the classes; see `evidence.evidence`.
        n_parameters: parameters of the model.
        model_bytes: memory of its parameters and buffers.
        data: which samples it saw.
        environment: versions of the packages that ran it, and the device.
        trace: the run of the loader's first sample; empty where nothing was kept by timestep.
    """

    presentation: AnyPresentation
    correct: Tensor
    counted: Tensor
    correct_last: int
    counted_last: int
    settling_times: Tensor
    moments: Mapping[str, Moment]
    budget: EnergyBudget
    readout: str | None
    membrane_is: str | None
    decoding: Decoding
    n_parameters: int
    model_bytes: int
    data: DataFingerprint
    environment: Mapping[str, str]
    trace: Trace

    def __post_init__(self) -> None:
        n_timesteps = self.presentation.n_timesteps
        kept = self.by_timestep
        expected = {
            "correct": n_timesteps if kept else 1,
            "counted": n_timesteps if kept else 1,
            "trace": n_timesteps if kept else 0,
            "budget": n_timesteps,
        }
        lengths = {
            "correct": self.correct.shape[-1],
            "counted": self.counted.shape[-1],
            "trace": len(self.trace.membrane),
            "budget": self.budget.n_timesteps,
        }
        odd = {name: length for name, length in lengths.items() if length != expected[name]}
        if odd:
            raise DataError(
                f"A simulation of {n_timesteps} timesteps ({format_ms(self.presentation.duration)})"
                f"{'' if kept else ', not kept by timestep,'} cannot have {odd} (timesteps of "
                "each)."
            )
        right, counted = self.correct, self.counted
        if bool((right < 0).any()) or bool((right > counted).any()):
            raise DataError("A simulation has more right answers than answers at some timestep.")
        shape = (n_onsets(self.presentation), self.data.n_samples)
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
    def by_timestep(self) -> bool:
        """Whether answers and counts were kept by timestep."""
        return self.budget.extent is None

    @property
    def n_samples(self) -> int:
        """Samples simulated."""
        return self.data.n_samples

    @property
    def accuracy(self) -> float:
        """Share of right answers over all supervised timesteps; NaN if there is none."""
        return self.accuracy_by_phase["supervised"]

    @property
    def accuracy_last(self) -> float:
        """Share of right answers at the last supervised timestep; NaN if there is none."""
        return self.correct_last / self.counted_last if self.counted_last else torch.nan

    @property
    def correct_by_timestep(self) -> Tensor:
        """Right answers at every timestep, int64 ``[T]``; see `accuracy_by_timestep`."""
        return self._over_time(self.correct)

    @property
    def counted_by_timestep(self) -> Tensor:
        """Answers at every timestep, int64 ``[T]``; see `accuracy_by_timestep`."""
        return self._over_time(self.counted)

    @property
    def accuracy_by_timestep(self) -> Tensor:
        """Share of right answers at every timestep, float64 ``[T]``.

        Raises:
            DataError: if answers were not kept by timestep.
        """
        return self.correct_by_timestep.double() / self.counted_by_timestep

    def _over_time(self, counts: Tensor) -> Tensor:
        if not self.by_timestep:
            raise DataError(
                "this simulation was not kept by timestep. Run it with by_timestep=True, or ask "
                "for accuracy and accuracy_by_phase."
            )
        return counts.sum(0)

    @property
    def accuracy_by_phase(self) -> dict[str, float]:
        """Share of right answers over the timesteps of each phase; NaN where there is none."""
        shares = (self.correct.sum(1).double() / self.counted.sum(1)).tolist()
        names = [phase.name.lower() for phase in SCORED_PHASES]
        return dict(zip(names, shares, strict=True))

    @property
    def settling_time(self) -> float:
        """Mean settling time in ms, over the onsets of all samples that settle; NaN if none."""
        return float(self.settling_times.nanmean())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-safe; NaN becomes None."""
        times = self.settling_times.tolist()
        return {
            "presentation": self.presentation.to_dict(),
            "correct": self.correct.tolist(),
            "counted": self.counted.tolist(),
            "correct_last": self.correct_last,
            "counted_last": self.counted_last,
            "settling_times": [[None if t != t else t for t in row] for row in times],
            "moments": {name: moment.to_dict() for name, moment in self.moments.items()},
            "budget": self.budget.to_dict(),
            "readout": self.readout,
            "membrane_is": self.membrane_is,
            "decoding": self.decoding,
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
        data = DataFingerprint.from_dict(values["data"])
        shape = (len(times), len(times[0]) if times else data.n_samples)
        return cls(
            presentation=any_from_dict(values["presentation"]),
            correct=torch.tensor(values["correct"]),
            counted=torch.tensor(values["counted"]),
            settling_times=torch.tensor(times, dtype=torch.float64).reshape(shape),
            moments={name: Moment.from_dict(m) for name, m in values["moments"].items()},
            budget=EnergyBudget.from_dict(values["budget"]),
            data=data,
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
    loader: Iterable[Any],
    presentation: PresentationSource = None,
    *,
    time_axis: int | None = None,
    every: float | None = None,
    by_timestep: bool = True,
    seed: int = 0,
    decoding: Decoding = "membrane",
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
        presentation: the schedule; a `PresentationBatch` with one for each sample of the whole
            loader, in its order; a function of the number of samples and a generator, which draws
            one, or one for each sample, anew for each batch (a `VaryingPresentation` is one); or
            None where the loader yields it as the third part of every batch.
        time_axis: where the loader's inputs have time themselves: 0 for ``[T, B, *features]``, 1
            for ``[B, T, *features]``, with labels ``[B]`` or one per timestep, their axes as those
            of the inputs. The presentation then says what the timesteps are, and shows nothing.
        every: runs each batch in chunks of this many ms (`TimedModel.chunks`), each of which is
            decoded, counted and forgotten, so that memory does not grow with the membranes of a
            long run. The results are those of the run taken whole; but the trace has no spikes.
        by_timestep: whether answers, counts and the trace are kept by timestep. If not, with
            `every`, nothing that is kept grows with the length of a run.
        seed: of presentations that are drawn; the same seed and batches give the same ones.
        decoding: what ranks the classes: the ``"membrane"`` at each timestep, its
            ``"running_mean"``, the ``"spike_count"`` or the ``"first_spike"`` since the last onset.
        rules: decision rules by name, for the time and energy until each sample's decision.
        per_sample: whether each sample's energy until it settles, and decides, is counted. It costs
            a float64 copy of what one layer receives at one timestep.
        progress: whether a progress bar is shown; by default on a terminal, if it takes long.
        title: what the bar says.

    Raises:
        WrapError: if the model is not wrapped.
        DataError: if the loader yields something else, or nothing; if a label is no class of the
            model, or the presentation's ignore_index is one.
        ReadoutError: if a membrane is NaN or infinite, or spikes are needed and the readout has
            none.
        ObservationError: if a parameter, or a running mean or variance, of the model is NaN.
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
    check_parameters(model.net)
    device = device_of(model)
    gathered = Gathered(rules, decoding=decoding, by_timestep=by_timestep)
    shown = _Shown(presentation)
    prints = Fingerprinting()
    first: LoadedBatch | None = None
    batches = track(loader, title, shown=progress)
    with _evaluating(model), torch.inference_mode():
        with EnergyMeter(model, per_sample=per_sample, by_timestep=by_timestep) as meter:
            for loaded in loaded_batches(batches, presentation, time_axis, seed=seed):
                loaded = shown.add(loaded)
                timed = loaded.time_axis is not None
                prints.add(*loaded.by_sample(), loaded.presentation, timed=timed)
                on_device = loaded.to(device)
                first = first or on_device.first()
                runs = on_device.runs(model, every)
                run = gathered.add(on_device, runs, meter if per_sample else None)
                check_answers(loaded, run.membrane.shape[-1])
        if first is None:
            raise DataError("the loader gave no batch; expected (images, labels) at least once.")
        whole = shown.whole()
        example = (
            trace(model, first.lasting(whole.n_timesteps), every)
            if by_timestep
            else untraced(first)
        )
    times, _ = gathered.moment(SETTLING)
    return Simulation(
        presentation=whole,
        correct=gathered.correct.cpu(),
        counted=gathered.counted.cpu(),
        correct_last=int(gathered.correct_last),
        counted_last=int(gathered.counted_last),
        settling_times=times,
        moments=gathered.moments(meter.sample_energy) if per_sample else {},
        budget=meter.budget(),
        readout=run.readout,
        membrane_is=run.membrane_is,
        decoding=decoding,
        n_parameters=sum(p.numel() for p in model.parameters()),
        model_bytes=sum(x.nbytes for x in (*model.parameters(), *model.buffers())),
        data=prints.result(),
        environment=environment(device),
        trace=example,
    )


class _Shown:
    """What all samples of a simulation were shown by.

    Args:
        source: what batches are shown by; kept as it is where it is a presentation itself.
    """

    def __init__(self, source: PresentationSource) -> None:
        self._known = source if isinstance(source, Presentation | PresentationBatch) else None
        self._ones: list[Presentation] = []
        self._n_timesteps = self._n_stimuli = 1

    def add(self, loaded: LoadedBatch) -> LoadedBatch:
        """One batch; with one presentation for each sample where they are not known beforehand.

        Raises:
            PresentationError, TimingError: if it cannot be in one simulation with those before.
        """
        if self._known is not None:
            return loaded
        own = loaded.presentations
        self._n_timesteps = max(self._n_timesteps, own.n_timesteps)
        self._n_stimuli = max(self._n_stimuli, own.n_stimuli)
        PresentationBatch([*self._ones[:1], *own])
        self._ones.extend(own)
        return replace(loaded, presentation=own)

    def whole(self) -> AnyPresentation:
        """Of all samples, in their order."""
        if self._known is not None:
            return self._known
        return PresentationBatch(self._ones, self._n_timesteps, self._n_stimuli)


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
