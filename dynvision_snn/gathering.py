"""What remains of the batches of a simulation: right answers, and the moments of every sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dynvision_snn.decision import DecisionRule, decide
from dynvision_snn.energy import EnergyMeter, SampleEnergy
from dynvision_snn.loading import LoadedBatch
from dynvision_snn.moments import SETTLING, Moment
from dynvision_snn.presentation import Phase, Presentation
from dynvision_snn.presentation_batch import (
    AnyPresentation,
    PresentationBatch,
    n_onsets,
    onset_table,
)
from dynvision_snn.readout import Score, score, settling_time, supervised_spans
from dynvision_snn.recording import Recording

__all__ = ["SCORED_PHASES", "Gathered"]

SCORED_PHASES = (Phase.NULL, Phase.REACTION, Phase.SUPERVISED)
"""The phases in which answers are counted."""

Reached = tuple[Tensor, Tensor]
"""Times ``[onsets, B]`` in ms, and whether the answer was right then."""


class Gathered:
    """Adds up batches.

    Batches may differ in length and in their number of onsets; what is kept grows with them.

    Args:
        rules: decision rules by name.

    Attributes:
        correct, counted: right answers and answers by phase and timestep, int64
            ``[SCORED_PHASES, T]``.
        correct_last, counted_last: the same at the last supervised timestep of each sample,
            0-dim.
    """

    def __init__(self, rules: Mapping[str, DecisionRule]) -> None:
        self._rules = rules
        self._n_onsets = 0
        self.correct = self.counted = torch.zeros((len(SCORED_PHASES), 0), dtype=torch.int64)
        self.correct_last = self.counted_last = torch.zeros((), dtype=torch.int64)
        self._reached: dict[str, list[Reached]] = {name: [] for name in (SETTLING, *rules)}
        self._asked: list[Tensor] = []

    def add(
        self, loaded: LoadedBatch, decoded: Tensor, run: Recording, meter: EnergyMeter | None
    ) -> None:
        """One batch.

        Args:
            loaded: what was run.
            decoded: the class at every timestep, ``[T, B]``.
            run: the run; with rules, all of it.
            meter: keeps what samples cost until each moment.
        """
        answers, presentation = loaded.answers, loaded.presentation
        scores = [_score_in(phase, decoded, answers, presentation) for phase in SCORED_PHASES]
        device = decoded.device
        self.correct = _added(self.correct, torch.stack([s.correct for s in scores]))
        self.counted = _added(self.counted, torch.stack([s.counted for s in scores]))
        self._n_onsets = max(self._n_onsets, n_onsets(presentation))
        # A batch without an onset has one that none of its samples reaches: it counts as well.
        onsets = _rows(onset_table(presentation, loaded.n_samples), max(1, self._n_onsets), -1)
        reached = {name: _nothing(len(onsets), decoded) for name in self._reached}
        scored = torch.zeros(onsets.shape, dtype=torch.bool, device=device)
        for one, samples in _schedules(presentation, loaded.n_samples):
            # Each schedule by itself, without its padding.
            steps = slice(one.n_timesteps)
            seen, asked = decoded[steps, samples], answers[steps, samples]
            self._add_last(seen, asked, one)
            rows, due = slice(len(one.onsets)), _answers_from_onsets(asked, one)
            scored[rows, samples] = due != one.ignore_index
            for name, (times, right) in reached.items():
                if name == SETTLING:
                    found = _settled(seen, due, one)
                else:
                    found = _decided(self._rules[name], run, samples, due, one)
                times[rows, samples], right[rows, samples] = found
        self._asked.append(scored.cpu())
        for name, (times, right) in reached.items():
            if meter is not None:
                meter.mark(name, times, onsets)
            self._reached[name].append((times.cpu(), right.cpu()))

    def _add_last(self, seen: Tensor, asked: Tensor, one: Presentation) -> None:
        supervised = one.supervised_mask.nonzero().flatten().tolist()
        if supervised:
            last = slice(supervised[-1], supervised[-1] + 1)
            scored = score(seen[last], asked[last], one.ignore_index)
            self.correct_last = self.correct_last.to(seen.device) + scored.correct.sum()
            self.counted_last = self.counted_last.to(seen.device) + scored.counted.sum()

    def moment(self, name: str) -> Reached:
        """Times and right answers of all samples, ``[onsets, N]``."""
        times, right = zip(*self._reached[name], strict=True)
        return self._joined(times, torch.nan), self._joined(right, False)

    def moments(self, energy: SampleEnergy) -> dict[str, Moment]:
        """Every moment with its cost; none where nothing is ever shown."""
        if not self._n_onsets:
            return {}
        asked = self._joined(self._asked, False)
        described = {SETTLING: "", **{name: repr(rule) for name, rule in self._rules.items()}}
        return {
            name: Moment.of(energy, name, *self.moment(name), asked, described[name])
            for name in self._reached
        }

    def _joined(self, parts: Sequence[Tensor], missing: float) -> Tensor:
        """``[onsets, N]`` of batches that may have fewer onsets."""
        rows = [_rows(part, max(1, self._n_onsets), missing) for part in parts]
        return torch.cat(rows, dim=1)[: self._n_onsets]


def _added(total: Tensor, part: Tensor) -> Tensor:
    """The sum of ``[phases, T]`` counts; the shorter of them ends with zeros."""
    both = (total.to(part.device), part)
    longest = max(len(counts[0]) for counts in both)
    one, other = (functional.pad(counts, (0, longest - len(counts[0]))) for counts in both)
    return one + other


def _rows(table: Tensor, n_rows: int, missing: float) -> Tensor:
    """``[onsets, B]`` with rows of `missing` up to `n_rows`."""
    whole = table.new_full((n_rows, table.shape[1]), missing)
    whole[: len(table)] = table
    return whole


def _score_in(
    phase: Phase, decoded: Tensor, answers: Tensor, presentation: AnyPresentation
) -> Score:
    codes = presentation.phase_codes
    elsewhere = (codes if codes.ndim == 2 else codes[:, None]) != phase
    asked = answers.masked_fill(elsewhere.to(answers.device), presentation.ignore_index)
    return score(decoded, asked, presentation.ignore_index)


def _schedules(
    presentation: AnyPresentation, n_samples: int
) -> Iterator[tuple[Presentation, Tensor]]:
    """Every schedule of a batch, and the samples that have it."""
    if not isinstance(presentation, PresentationBatch):
        yield presentation, torch.arange(n_samples)
        return
    samples: dict[Presentation, list[int]] = {}
    for sample, one in enumerate(presentation):
        samples.setdefault(one, []).append(sample)
    for one, those in samples.items():
        yield one, torch.tensor(those)


def _nothing(rows: int, decoded: Tensor) -> Reached:
    shape = (rows, decoded.shape[1])
    times = torch.full(shape, torch.nan, dtype=torch.float64, device=decoded.device)
    return times, torch.zeros_like(times, dtype=torch.bool)


def _answers_from_onsets(answers: Tensor, one: Presentation) -> Tensor:
    """The right class from each onset to the next ``[onsets, B]``.

    It is that of the last supervised timestep, since labels may ignore the reaction time; of the
    onset itself where nothing is supervised.
    """
    spans = supervised_spans(one.onsets, one.supervised_mask)
    steps = [span[-1] if span else onset for onset, span in zip(one.onsets, spans, strict=True)]
    return answers[steps]


def _decided(
    rule: DecisionRule, run: Recording, samples: Tensor, due: Tensor, one: Presentation
) -> Reached:
    """From each onset of each sample: when it decided, and whether for the right class."""
    steps = slice(one.n_timesteps)
    spikes = None if run.spikes is None else run.spikes[steps, samples]
    decisions = decide(rule, run.membrane[steps, samples], spikes, one.onsets, one.dt)
    right = decisions.classes == due
    return decisions.times, right & ~decisions.times.isnan()


def _settled(decoded: Tensor, due: Tensor, one: Presentation) -> Reached:
    """From each onset of each sample: when it settled, and whether on the right class."""
    onsets, supervised = one.onsets, one.supervised_mask
    times = settling_time(decoded, onsets, supervised, one.dt)
    right = torch.zeros_like(times, dtype=torch.bool)
    for row, span in enumerate(supervised_spans(onsets, supervised)):
        if span:
            right[row] = decoded[span[-1]] == due[row]
    return times, right & ~times.isnan()
