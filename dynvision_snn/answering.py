"""When the samples of a batch settle and decide, followed through a run piece by piece.

What is carried from one piece to the next are a few numbers for each sample and onset, so a run of
any length takes no more memory than its onsets and one piece. A run taken whole is one piece.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dynvision_snn.decision import DecisionRule
from dynvision_snn.evidence import Decoding, gathering_of
from dynvision_snn.loading import LoadedBatch
from dynvision_snn.moments import SETTLING
from dynvision_snn.presentation import Phase
from dynvision_snn.readout import UNDECIDED, Score, decode, score
from dynvision_snn.recording import Recording

__all__ = ["SCORED_PHASES", "Answering"]

SCORED_PHASES = (Phase.NULL, Phase.REACTION, Phase.SUPERVISED)
"""The phases in which answers are counted."""

_NEVER = torch.iinfo(torch.int64).max


class Answering:
    """The answers of one batch.

    Args:
        loaded: the batch.
        onsets: timesteps of each sample's onsets, ``[onsets, B]``, at least one row; -1 where a
            sample has fewer.
        rules: decision rules by name.
        decoding: what ranks the classes.

    Attributes:
        onsets: as given, on the batch's device.
    """

    def __init__(
        self,
        loaded: LoadedBatch,
        onsets: Tensor,
        rules: Mapping[str, DecisionRule],
        decoding: Decoding,
    ) -> None:
        self._loaded = loaded
        self.onsets = onsets.to(loaded.labels.device)
        none = torch.full_like(self.onsets, -1)
        self._evidence = gathering_of(decoding)
        self._following = {name: rule.following() for name, rule in rules.items()}
        # Timesteps and classes, -1 before there is one.
        self._steps = {name: none for name in (SETTLING, *rules)}
        self._classes = {name: none for name in (SETTLING, *rules)}
        self._due = torch.full_like(none, loaded.presentation.ignore_index)
        self._n_begun = torch.zeros_like(none[0])
        self._last_class, self._last_onset = none[0], none[0]
        self._last_answer = self._due[0]

    def add(self, run: Recording) -> list[Score]:
        """The next piece of the run; returns its scores by timestep, of each of `SCORED_PHASES`.

        Raises:
            ReadoutError: if a membrane is NaN or infinite, or spikes are needed and not there.
        """
        steps = run.steps
        answers = self._loaded.answers_between(steps.start, steps.stop)
        phases = self._loaded.phases_between(steps.start, steps.stop).expand(answers.shape)
        here = (self.onsets >= steps.start) & (self.onsets < steps.stop)
        place = (self.onsets - steps.start).clamp(0, run.n_timesteps - 1)
        began = torch.zeros_like(answers).scatter_add_(0, place, here.long()) > 0
        decoded = decode(self._evidence(run.membrane, run.spikes, began), run.start, run.dt)
        onset = self._n_begun + began.cumsum(0) - 1
        self._n_begun = onset[-1] + 1
        self._due = torch.where(here, answers.gather(0, place), self._due)
        self._follow_settling(decoded, answers, onset, phases == Phase.SUPERVISED, steps.start)
        running = (onset >= 0) & (phases != Phase.PADDING)
        for name, following in self._following.items():
            decided = following(run.membrane, run.spikes, began)
            self._follow_decision(name, decided, onset, running, steps.start)
        ignored = self._loaded.presentation.ignore_index
        return [
            score(decoded, answers.masked_fill(phases != phase, ignored), ignored)
            for phase in SCORED_PHASES
        ]

    def times(self, name: str) -> Tensor:
        """When each sample reached a moment, as far as known by now: ms ``[onsets, B]``, or NaN."""
        reached = self._classes[name] != UNDECIDED
        since = self._loaded.presentation.dt * (self._steps[name] - self.onsets).double()
        return since.masked_fill(~reached, torch.nan)

    def right(self, name: str) -> Tensor:
        """Whether the class at the moment is the answer; False where it was never reached."""
        classes = self._classes[name]
        return (classes == self._due) & (classes != UNDECIDED)

    @property
    def asked(self) -> Tensor:
        """Whether there is an answer to give from each onset, bool ``[onsets, B]``.

        The answer is that of the last supervised timestep before the next onset, since labels may
        ignore the reaction time; of the onset itself where none is supervised.
        """
        return self._due != self._loaded.presentation.ignore_index

    @property
    def last(self) -> Score:
        """Right answers at each sample's last supervised timestep."""
        ignored = self._loaded.presentation.ignore_index
        return score(self._last_class[None], self._last_answer[None], ignored)

    def _follow_settling(
        self, decoded: Tensor, answers: Tensor, onset: Tensor, supervised: Tensor, start: int
    ) -> None:
        places = torch.arange(len(decoded), device=decoded.device)[:, None].expand_as(decoded)
        latest = torch.where(supervised, places, -1).cummax(0).values
        before = torch.cat([torch.full_like(latest[:1], -1), latest[:-1]])
        # The class, and its onset, at the supervised timestep before.
        class_before, onset_before = (
            torch.where(before < 0, carried, values.gather(0, before.clamp(min=0)))
            for carried, values in ((self._last_class, decoded), (self._last_onset, onset))
        )
        changed = supervised & ((onset_before != onset) | (class_before != decoded))
        at = self._latest(changed, onset, places)
        self._take(SETTLING, at >= 0, at, decoded, start)
        supervised_at = self._latest(supervised, onset, places)
        due = answers.gather(0, supervised_at.clamp(min=0))
        self._due = torch.where(supervised_at >= 0, due, self._due)
        last = latest[-1:].clamp(min=0)
        self._last_class, self._last_onset, self._last_answer = (
            torch.where(latest[-1] < 0, carried, values.gather(0, last)[0])
            for carried, values in (
                (self._last_class, decoded),
                (self._last_onset, onset),
                (self._last_answer, answers),
            )
        )

    def _follow_decision(
        self, name: str, decided: Tensor, onset: Tensor, running: Tensor, start: int
    ) -> None:
        places = torch.arange(len(decided), device=decided.device)[:, None].expand_as(decided)
        met = running & (decided != UNDECIDED)
        first = torch.full_like(self.onsets, _NEVER).scatter_reduce_(
            0, onset.clamp(min=0), torch.where(met, places, _NEVER), "amin"
        )
        new = (first < _NEVER) & (self._classes[name] == UNDECIDED)
        self._take(name, new, first.clamp(max=len(decided) - 1), decided, start)

    def _latest(self, where: Tensor, onset: Tensor, places: Tensor) -> Tensor:
        """Of each onset the last place at which `where` holds, -1 if none: ``[onsets, B]``."""
        return torch.full_like(self.onsets, -1).scatter_reduce_(
            0, onset.clamp(min=0), torch.where(where, places, -1), "amax"
        )

    def _take(self, name: str, new: Tensor, at: Tensor, classes: Tensor, start: int) -> None:
        found = classes.gather(0, at.clamp(min=0))
        self._steps[name] = torch.where(new, at + start, self._steps[name])
        self._classes[name] = torch.where(new, found, self._classes[name])
