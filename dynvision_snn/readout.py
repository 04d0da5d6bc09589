"""From membranes to answers: the class per timestep, its accuracy, and when it settles.

`decode` takes the membrane, or any other evidence that ranks the classes (see `evidence`). When an
answer is good enough to act on is the business of `decision`.

Pure functions of one batch. What they return adds up or concatenates over batches: `Score`s are
summed, settling times of several batches are joined along the batch axis.

A readout that holds the same value for every class has not answered; a network that never spiked
leaves its readout so. Its class is `UNDECIDED`, never equal to a label, so that silence does not
pass for the first class, by chance right as often as that class occurs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dynvision_snn.errors import ReadoutError
from dynvision_snn.evidence import check_onsets
from dynvision_snn.timing import check_dt, format_timestep

__all__ = [
    "UNDECIDED",
    "Score",
    "accuracy",
    "accuracy_by_timestep",
    "decode",
    "score",
    "settling_time",
    "stimulus_asked",
    "supervised_spans",
]

UNDECIDED = -1
"""The decoded class where all classes are equal."""


def decode(membrane: Tensor, start: int = 0, dt: float | None = None) -> Tensor:
    """The class with the highest membrane at every timestep.

    Args:
        membrane: ``[T, B, classes]``, before or after the reset as it was recorded; or anything
            else that ranks classes, such as spike counts.
        start: the timestep at which it begins, where it is a chunk of a run; for errors.
        dt: length of a timestep in ms, for errors; None where unknown.

    Returns:
        int64 ``[T, B]``. Of several classes at the top the first; `UNDECIDED` where all classes
        are exactly equal.

    Raises:
        ReadoutError: If the shape is another, there are fewer than two classes, or a value is NaN
            or infinite. Telling so waits for the device once per call.

    >>> decode(torch.tensor([[[0.0, 0.0, 0.0]], [[0.1, 0.7, 0.7]]])).tolist()
    [[-1], [1]]
    """
    if membrane.ndim != 3 or membrane.shape[-1] < 2:
        raise ReadoutError(
            f"The readout's membrane has shape {list(membrane.shape)}; expected "
            "[T, B, classes] with at least 2 classes."
        )
    finite = membrane.isfinite().all(dim=-1)
    if not bool(finite.all()):
        step, sample = (~finite).nonzero()[0].tolist()
        raise ReadoutError(
            f"The readout's membrane is not finite at {int((~finite).sum())} of {finite.numel()} "
            f"(timestep, sample) pairs, first at {format_timestep(start + step, dt)} of sample "
            f"{sample}: {membrane[step, sample].tolist()}. Such a run has no answer; look for a "
            "diverging "
            "state or weight (dt too long for a time constant, learning rate too high)."
        )
    top, decided = membrane.max(dim=-1)
    return decided.masked_fill(top == membrane.amin(dim=-1), UNDECIDED)


@dataclass(frozen=True, eq=False)
class Score:
    """Right answers by timestep, as counts, so that scores of batches can be added.

    Attributes:
        correct: Samples whose decoded class was the answer: int64 ``[T]``.
        counted: Samples that had an answer: int64 ``[T]``.
    """

    correct: Tensor
    counted: Tensor

    def __add__(self, other: Score) -> Score:
        if self.correct.shape != other.correct.shape:
            raise ReadoutError(
                f"Scores over {len(self.correct)} and {len(other.correct)} timesteps cannot be "
                "added; expected the same presentation in every batch."
            )
        return Score(self.correct + other.correct, self.counted + other.counted)

    @property
    def by_timestep(self) -> Tensor:
        """Accuracy at each timestep, 0 to 1: float64 ``[T]``, NaN where no sample had an answer."""
        return self.correct.double() / self.counted.double()

    @property
    def overall(self) -> Tensor:
        """Accuracy over all timesteps and samples that had an answer: float64, NaN if none had."""
        return self.correct.sum().double() / self.counted.sum().double()


def score(decoded: Tensor, answers: Tensor, ignore_index: int = -1) -> Score:
    """Right answers by timestep.

    Args:
        decoded: int64 ``[T, B]``, from `decode`.
        answers: int64 ``[T, B]``: the right class, or ``ignore_index`` where there is none. With
            ``Presentation.targets`` only supervised timesteps are scored.
        ignore_index: The answer that stands for none.

    Returns:
        Counts that add up over batches.

    Raises:
        ReadoutError: If the shapes differ or are not ``[T, B]``.

    >>> s = score(torch.tensor([[1, -1], [1, 2]]), torch.tensor([[1, 0], [1, -1]]))
    >>> s.correct.tolist(), s.counted.tolist(), s.overall.item()
    ([1, 1], [2, 1], 0.6666666666666666)
    """
    if decoded.ndim != 2 or decoded.shape != answers.shape:
        raise ReadoutError(
            f"Decoded classes have shape {list(decoded.shape)} and answers "
            f"{list(answers.shape)}; expected [T, B] of both."
        )
    has_answer = answers != ignore_index
    right = (decoded == answers) & (decoded != UNDECIDED) & has_answer
    return Score(right.sum(dim=1), has_answer.sum(dim=1))


def accuracy(decoded: Tensor, targets: Tensor, ignore_index: int = -1) -> Tensor:
    """The share of right answers over all supervised timesteps of all samples.

    Args:
        decoded: int64 ``[T, B]``, from `decode`.
        targets: int64 ``[T, B]``, ``ignore_index`` where a timestep is not supervised.
        ignore_index: The target that stands for none.

    Returns:
        float64 scalar from 0 to 1; NaN if no timestep is supervised.

    Raises:
        ReadoutError: If the shapes differ or are not ``[T, B]``.

    >>> accuracy(torch.tensor([[3], [7], [7]]), torch.tensor([[-1], [3], [7]])).item()
    0.5
    """
    return score(decoded, targets, ignore_index).overall


def accuracy_by_timestep(decoded: Tensor, answers: Tensor, ignore_index: int = -1) -> Tensor:
    """The share of right answers at each timestep.

    Args:
        decoded: int64 ``[T, B]``, from `decode`.
        answers: int64 ``[T, B]``; see `stimulus_asked` for one at every timestep.
        ignore_index: The answer that stands for none.

    Returns:
        float64 ``[T]`` from 0 to 1; NaN where no sample has an answer.

    Raises:
        ReadoutError: If the shapes differ or are not ``[T, B]``.

    >>> decoded, answers = torch.tensor([[0, 1], [1, 1]]), torch.tensor([[1, 1], [1, 1]])
    >>> accuracy_by_timestep(decoded, answers).tolist()
    [0.5, 1.0]
    """
    return score(decoded, answers, ignore_index).by_timestep


def stimulus_asked(stimulus_at: Tensor) -> Tensor:
    """Which stimulus an answer at each timestep is about, so that accuracy can be told at all.

    The stimulus shown; during null input the last one shown; before the first, the first, where
    only chance can be right.

    Args:
        stimulus_at: int64 ``[T]``, or ``[T, B]`` where each sample has its own: the stimulus shown
            at each timestep, 0 for null input.

    Returns:
        int64 of the same shape; all 0 if no stimulus is ever shown.

    Raises:
        ReadoutError: If the shape is another.

    >>> stimulus_asked(torch.tensor([0, 1, 1, 0, 2, 0])).tolist()
    [1, 1, 1, 1, 2, 2]
    """
    if stimulus_at.ndim not in (1, 2):
        raise ReadoutError(
            f"stimulus_at has shape {list(stimulus_at.shape)}; expected [T] or [T, B]: one "
            "stimulus index per timestep."
        )
    if stimulus_at.numel() == 0:
        return stimulus_at.clone()
    steps = torch.arange(len(stimulus_at), device=stimulus_at.device)
    shown = stimulus_at > 0
    columns = (-1, *(1,) * (stimulus_at.ndim - 1))
    last_shown = torch.where(shown, steps.reshape(columns), -1).cummax(0).values
    first_shown = shown.int().argmax(0)
    return stimulus_at.gather(0, torch.where(last_shown < 0, first_shown, last_shown))


def supervised_spans(onsets: Sequence[int], supervised_mask: Tensor) -> list[list[int]]:
    """The supervised timesteps of each onset: from it up to the next onset.

    Args:
        onsets: Timesteps at which a stimulus begins, ascending, as ``Presentation.onsets``.
        supervised_mask: bool ``[T]``, as ``Presentation.supervised_mask``.

    Returns:
        One list of timesteps per onset; empty where its stimulus is never supervised.

    Raises:
        ReadoutError: If an onset is outside the run, or they do not ascend.

    >>> supervised_spans([0, 4], torch.tensor([0, 0, 1, 1, 0, 1]).bool())
    [[2, 3], [5]]
    """
    n_timesteps = len(supervised_mask)
    check_onsets(onsets, n_timesteps)
    supervised = supervised_mask.nonzero().flatten().tolist()
    boundaries = [*onsets, n_timesteps]
    return [[t for t in supervised if start <= t < stop] for start, stop in pairwise(boundaries)]


def settling_time(
    decoded: Tensor, onsets: Sequence[int], supervised_mask: Tensor, dt: float
) -> Tensor:
    """From each onset to the first supervised timestep after which the class no longer changes.

    It is known in hindsight only, right or wrong answers alike, and never less than the reaction
    time. A class that still changes at the last supervised timestep of an onset settles there by
    definition: such values say "not before the end" and crowd at the span's length.

    Args:
        decoded: int64 ``[T, B]``, from `decode`.
        onsets: Timesteps at which a stimulus begins, ascending, as ``Presentation.onsets``.
        supervised_mask: bool ``[T]``, as ``Presentation.supervised_mask``. The span of an onset
            ends with its last supervised timestep before the next onset.
        dt: Length of one timestep in ms.

    Returns:
        float64 ``[onsets, B]`` in ms: the start of the timestep, counted from the onset. NaN where
        the stimulus is never supervised, and where the span ends `UNDECIDED`.

    Raises:
        ReadoutError: If the shapes do not fit or an onset is outside the run.
        TimingError: If ``dt`` is not a legal dt.

    >>> decoded = torch.tensor([[4, 4], [2, 4], [7, 4], [7, 4], [7, 9]])
    >>> mask = torch.tensor([False, True, True, True, True])
    >>> settling_time(decoded, [0], mask, dt=2.0).tolist()
    [[4.0, 8.0]]
    """
    timestep = check_dt(dt)
    if decoded.ndim != 2 or decoded.shape[:1] != supervised_mask.shape:
        raise ReadoutError(
            f"Decoded classes have shape {list(decoded.shape)} and the supervised mask "
            f"{list(supervised_mask.shape)}; expected [T, B] and [T]."
        )
    times = decoded.new_full((len(onsets), decoded.shape[1]), torch.nan, dtype=torch.float64)
    for row, span in enumerate(supervised_spans(onsets, supervised_mask)):
        if not span:
            continue
        answers = decoded[span]
        unchanged = (answers == answers[-1]).flip(0).cumprod(0).sum(0)
        # Not of decoded's own type: a long run's classes are kept in one that holds no timestep.
        steps = torch.tensor(span, device=decoded.device)
        since_onset = timestep * (steps - onsets[row]).double()
        settled = since_onset[len(span) - unchanged]
        times[row] = settled.masked_fill(answers[-1] == UNDECIDED, torch.nan)
    return times
