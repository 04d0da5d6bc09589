"""Decoding against plain loops over samples and timesteps, and settling against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynvision_snn import readout
from dynvision_snn.errors import ReadoutError, TimingError
from dynvision_snn.presentation import Presentation
from dynvision_snn.readout import UNDECIDED

small = st.integers(0, 10_000)


def _random_membrane(seed: int, steps: int = 7, batch: int = 5, classes: int = 4) -> torch.Tensor:
    # Few distinct values, so that ties and all-equal rows occur.
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, (steps, batch, classes), generator=generator).float()


def _random_classes(seed: int, steps: int, batch: int) -> torch.Tensor:
    return torch.randint(-1, 3, (steps, batch), generator=torch.Generator().manual_seed(seed))


def _settling_by_definition(classes: list[int], onset: int, span: list[int], dt: float) -> float:
    """The first supervised timestep after which every later one holds the same class."""
    for step in span:
        later = {classes[t] for t in span if t >= step}
        if len(later) == 1:
            return math.nan if later == {UNDECIDED} else (step - onset) * dt
    return math.nan


@given(small)
def test_decode_takes_the_first_of_the_highest_classes_unless_all_are_equal(seed):
    membrane = _random_membrane(seed)
    decoded = readout.decode(membrane)
    for step, samples in enumerate(membrane.tolist()):
        for sample, values in enumerate(samples):
            expected = UNDECIDED if len(set(values)) == 1 else values.index(max(values))
            assert decoded[step, sample] == expected


def test_a_silent_readout_is_never_right_not_even_for_class_0_or_an_ignored_label():
    silent = readout.decode(torch.zeros(3, 4, 10))
    assert readout.accuracy(silent, torch.zeros(3, 4, dtype=torch.int64)) == 0
    # -1 as a label of its own, with another ignore_index, must not match an undecided readout.
    labels = torch.full((3, 4), UNDECIDED)
    assert readout.score(silent, labels, ignore_index=-100).correct.sum() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_membrane_that_is_not_finite_is_named_with_its_place(bad):
    membrane = torch.zeros(4, 3, 2)
    membrane[2, 1, 0] = bad
    with pytest.raises(ReadoutError, match=r"1 of 12 .* timestep 2 of sample 1"):
        readout.decode(membrane)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1), (4, 3, 0), (2, 4, 3, 2)])
def test_membranes_of_another_shape_are_refused(shape):
    with pytest.raises(ReadoutError, match="classes"):
        readout.decode(torch.zeros(shape))


@given(small, st.integers(1, 9))
def test_accuracy_counts_supervised_timesteps_alone(seed, split):
    decoded, answers = _random_classes(seed, 6, 10), _random_classes(seed + 1, 6, 10)
    right = supervised = 0
    for guess, answer in zip(decoded.flatten().tolist(), answers.flatten().tolist(), strict=True):
        supervised += answer != -1
        right += answer != -1 and guess == answer
    whole = readout.score(decoded, answers)
    assert readout.accuracy(decoded, answers).item() == pytest.approx(
        right / supervised if supervised else math.nan, nan_ok=True
    )
    halves = readout.score(decoded[:, :split], answers[:, :split]) + readout.score(
        decoded[:, split:], answers[:, split:]
    )
    assert halves.correct.equal(whole.correct)
    assert halves.counted.equal(whole.counted)


def test_accuracy_by_timestep_is_nan_where_nothing_is_asked():
    decoded = torch.tensor([[0, 1], [0, 1], [2, 2]])
    answers = torch.tensor([[-1, -1], [0, 0], [2, -1]])
    by_timestep = readout.accuracy_by_timestep(decoded, answers)
    assert by_timestep[0].isnan()
    assert by_timestep[1:].tolist() == [0.5, 1.0]


def test_scores_of_other_lengths_or_shapes_are_refused():
    long, short = (readout.score(*torch.zeros(2, steps, 2).long()) for steps in (4, 3))
    with pytest.raises(ReadoutError, match="4 and 3 timesteps"):
        long + short
    with pytest.raises(ReadoutError, match="expected \\[T, B\\] of both"):
        readout.score(torch.zeros(3, 2), torch.zeros(2, 3))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_every_timestep_is_asked_about_the_last_stimulus_or_the_first_to_come(stimuli):
    shown = [stimulus for stimulus in stimuli if stimulus]
    expected, last = [], next(iter(shown), 0)
    for stimulus in stimuli:
        last = stimulus or last
        expected.append(last)
    assert readout.stimulus_asked(torch.tensor(stimuli)).tolist() == expected


@given(
    small,
    st.lists(st.integers(0, 2), min_size=2, max_size=12),
    st.integers(0, 3),
    st.sampled_from([0.5, 1.0, 2.0]),
)
@pytest.mark.filterwarnings("ignore::dynvision_snn.errors.PresentationWarning")
def test_settling_time_is_what_its_definition_says(seed, pattern, reaction_steps, dt):
    p = Presentation(pattern, dt=dt, reaction_time=reaction_steps * dt)
    decoded = _random_classes(seed, p.n_timesteps, 6)
    times = readout.settling_time(decoded, p.onsets, p.supervised_mask, p.dt)
    assert times.shape == (len(p.onsets), 6)
    supervised = p.supervised_mask.tolist()
    for row, onset in enumerate(p.onsets):
        until = min((t for t in p.onsets if t > onset), default=p.n_timesteps)
        span = [t for t in range(onset, until) if supervised[t]]
        for sample in range(6):
            expected = _settling_by_definition(decoded[:, sample].tolist(), onset, span, dt)
            assert times[row, sample].item() == pytest.approx(expected, nan_ok=True)
            assert not times[row, sample] < p.reaction_time


def test_what_happens_outside_the_supervised_span_does_not_move_settling():
    p = Presentation("0011111000", dt=2.0, reaction_time=4.0)
    decoded = torch.full((10, 1), 3)
    decoded[:4] = 7
    decoded[7:] = 1
    settled = readout.settling_time(decoded, p.onsets, p.supervised_mask, p.dt)
    assert settled.tolist() == [[4.0]]


def test_each_stimulus_settles_on_its_own():
    p = Presentation("011220", dt=1.0)
    decoded = torch.tensor([[9], [5], [6], [7], [7], [0]])
    settled = readout.settling_time(decoded, p.onsets, p.supervised_mask, p.dt)
    assert settled.tolist() == [[1.0], [0.0]]


def test_settling_is_nan_where_nothing_is_supervised_or_the_end_is_undecided():
    mask = torch.tensor([False, True, True])
    decoded = torch.tensor([[1, 1], [1, 1], [1, UNDECIDED]])
    settled = readout.settling_time(decoded, [0], mask, dt=1.0)
    assert settled[0, 0] == 1.0
    assert settled[0, 1].isnan()
    nothing = readout.settling_time(decoded, [0], torch.zeros(3, dtype=torch.bool), dt=1.0)
    assert nothing.isnan().all()
    assert readout.settling_time(decoded, [], mask, dt=1.0).shape == (0, 2)


def test_settling_refuses_what_does_not_fit():
    decoded, mask = torch.zeros(4, 2).long(), torch.ones(4, dtype=torch.bool)
    with pytest.raises(ReadoutError, match="from 0 to 3"):
        readout.settling_time(decoded, [4], mask, dt=1.0)
    with pytest.raises(ReadoutError, match="ascending"):
        readout.settling_time(decoded, [2, 1], mask, dt=1.0)
    with pytest.raises(ReadoutError, match=r"\[T, B\] and \[T\]"):
        readout.settling_time(decoded, [0], mask[1:], dt=1.0)
    with pytest.raises(TimingError):
        readout.settling_time(decoded, [0], mask, dt=0.0)


def test_settling_has_nothing_to_settle_in_an_empty_batch():
    mask = torch.ones(4, dtype=torch.bool)
    assert readout.settling_time(torch.zeros(4, 0).long(), [0], mask, dt=1.0).shape == (1, 0)
