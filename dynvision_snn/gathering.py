"""What remains of the batches of a simulation: right answers, and the moments of every sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dynvision_snn.answering import SCORED_PHASES, Answering
from dynvision_snn.decision import DecisionRule
from dynvision_snn.energy import EnergyMeter, SampleEnergy
from dynvision_snn.evidence import Decoding
from dynvision_snn.loading import LoadedBatch
from dynvision_snn.moments import SETTLING, Moment
from dynvision_snn.presentation_batch import n_onsets, onset_table
from dynvision_snn.readout import Score
from dynvision_snn.recording import Recording

__all__ = ["Gathered"]

Reached = tuple[Tensor, Tensor]
"""Times ``[onsets, B]`` in ms, and whether the answer was right then."""


class Gathered:
    """Adds up batches.

    Batches may differ in length and in their number of onsets; what is kept grows with them.

    Args:
        rules: decision rules by name.
        decoding: what ranks the classes.
        by_timestep: whether right answers are kept by timestep; else their sums alone.

    Attributes:
        correct, counted: right answers and answers by phase and timestep, int64
            ``[SCORED_PHASES, T]``; T is 1 where they are not kept by timestep.
        correct_last, counted_last: the same at the last supervised timestep of each sample,
            0-dim.
    """

    def __init__(
        self,
        rules: Mapping[str, DecisionRule],
        *,
        decoding: Decoding = "membrane",
        by_timestep: bool = True,
    ) -> None:
        self._rules, self._decoding, self._by_timestep = rules, decoding, by_timestep
        self._n_onsets = 0
        self.correct = self.counted = torch.zeros((len(SCORED_PHASES), 0), dtype=torch.int64)
        self.correct_last = self.counted_last = torch.zeros((), dtype=torch.int64)
        self._reached: dict[str, list[Reached]] = {name: [] for name in (SETTLING, *rules)}
        self._asked: list[Tensor] = []

    def add(
        self, loaded: LoadedBatch, runs: Iterable[Recording], meter: EnergyMeter | None
    ) -> Recording:
        """One batch.

        Args:
            loaded: what is run.
            runs: the run, whole or in pieces that continue each other.
            meter: keeps what samples cost until each moment.

        Returns:
            The last piece.
        """
        presentation = loaded.presentation
        self._n_onsets = max(self._n_onsets, n_onsets(presentation))
        # A batch without an onset has one that none of its samples reaches: it counts as well.
        onsets = _rows(onset_table(presentation, loaded.n_samples), max(1, self._n_onsets), -1)
        answering = Answering(loaded, onsets, self._rules, self._decoding)
        length = presentation.n_timesteps if self._by_timestep else 1
        self.correct, self.counted = (
            _longer(counts, length, loaded.labels.device) for counts in (self.correct, self.counted)
        )
        for run in runs:
            self._add_scores(answering.add(run), run.start)
            if meter is not None:
                for name in self._reached:
                    meter.mark(name, answering.times(name), answering.onsets)
        last = answering.last
        self.correct_last = self.correct_last.to(last.correct.device) + last.correct.sum()
        self.counted_last = self.counted_last.to(last.counted.device) + last.counted.sum()
        asked = answering.asked.cpu()
        self._asked.append(asked)
        for name, reached in self._reached.items():
            times, right = answering.times(name).cpu(), answering.right(name).cpu()
            reached.append((times.masked_fill(~asked, torch.nan), right & asked))
        return run

    def _add_scores(self, scores: Sequence[Score], start: int) -> None:
        for total, of_phases in (
            (self.correct, [one.correct for one in scores]),
            (self.counted, [one.counted for one in scores]),
        ):
            counts = torch.stack(of_phases)
            if self._by_timestep:
                total[:, start : start + counts.shape[1]] += counts
            else:
                total += counts.sum(1, keepdim=True)

    def moment(self, name: str) -> Reached:
        """Times and right answers of all samples that are asked, ``[onsets, N]``."""
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


def _longer(counts: Tensor, n_timesteps: int, device: torch.device) -> Tensor:
    """``[phases, T]`` on a device, with zeros up to `n_timesteps` where it is shorter."""
    return functional.pad(counts.to(device), (0, max(0, n_timesteps - counts.shape[1])))


def _rows(table: Tensor, n_rows: int, missing: float) -> Tensor:
    """``[onsets, B]`` with rows of `missing` up to `n_rows`."""
    whole = table.new_full((n_rows, table.shape[1]), missing)
    whole[: len(table)] = table
    return whole
