"""Presentations against a plain Python loop that follows the definitions timestep by timestep."""

from __future__ import annotations

import copy
import json
import math
import pickle
import warnings
from dataclasses import FrozenInstanceError, replace
from decimal import ROUND_CEILING, Decimal
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynvision_snn.errors import PresentationError, PresentationWarning, TimingError
from dynvision_snn.presentation import Phase, Presentation
from dynvision_snn.timing import ceil_steps

entries = st.lists(st.integers(0, 12), min_size=1, max_size=25)
decimal_dts = st.decimals(Decimal("0.01"), 10, places=2, allow_nan=False, allow_infinity=False)
decimal_times = st.decimals(0, 40, places=2, allow_nan=False, allow_infinity=False)


def quietly(function, *args, **kwargs):
    """A presentation whose warnings are not the point of the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PresentationWarning)
        return function(*args, **kwargs)


build = partial(quietly, Presentation)
build_phases = partial(quietly, Presentation.from_phases)


def loop_over(shown, reaction_steps):
    """Onsets, windows, supervised timesteps and phases, by the words of their definitions."""
    n = len(shown)
    onsets = [t for t in range(n) if shown[t] != 0 and (t == 0 or shown[t] != shown[t - 1])]
    reaction = [any(onset <= t < onset + reaction_steps for onset in onsets) for t in range(n)]
    supervised = [shown[t] != 0 and not reaction[t] for t in range(n)]
    phases = [
        Phase.REACTION if reaction[t] else Phase.SUPERVISED if supervised[t] else Phase.NULL
        for t in range(n)
    ]
    return onsets, reaction, supervised, phases


def check_follows_the_loop(p, shown, reaction_steps):
    onsets, reaction, supervised, phases = loop_over(shown, reaction_steps)
    assert p.n_timesteps == len(shown)
    assert p.reaction_steps == reaction_steps
    assert p.stimulus_at.tolist() == shown
    assert p.onsets == tuple(onsets)
    assert p.stimulus_mask.tolist() == [stimulus > 0 for stimulus in shown]
    assert p.reaction_mask.tolist() == reaction
    assert p.supervised_mask.tolist() == supervised
    assert p.phase_codes.tolist() == phases


@st.composite
def presentations(draw):
    """A presentation beside what it must show and the length of its windows."""
    pattern = draw(entries)
    extra = draw(st.none() | st.integers(0, 60))
    dt, reaction = draw(decimal_dts), draw(decimal_times)
    n = None if extra is None else len(pattern) + extra
    p = build(pattern, float(dt), reaction_time=float(reaction), n_timesteps=n)
    length = len(pattern) if n is None else n
    shown = [pattern[t * len(pattern) // length] for t in range(length)]
    return p, shown, int((reaction / dt).to_integral_value(ROUND_CEILING))


@given(presentations())
def test_masks_follow_the_definitions(drawn):
    check_follows_the_loop(*drawn)


def test_the_check_can_fail():
    p = Presentation("011", dt=1.0)
    with pytest.raises(AssertionError):
        check_follows_the_loop(p, [0, 1, 0], 0)
    with pytest.raises(AssertionError):
        check_follows_the_loop(p, [0, 1, 1], 1)


@given(presentations())
def test_every_timestep_is_in_one_phase_and_intervals_cover_the_run(drawn):
    p, shown, _ = drawn
    counts = torch.bincount(p.phase_codes.long(), minlength=len(Phase)).tolist()
    assert p.phase_codes.dtype == torch.int8
    assert counts[Phase.IDLE] == 0
    assert sum(counts) == p.n_timesteps
    assert counts[Phase.SUPERVISED] == int(p.supervised_mask.sum())
    assert not bool((p.supervised_mask & (p.reaction_mask | ~p.stimulus_mask)).any())
    intervals = p.intervals()
    assert intervals[0].start == 0
    assert intervals[-1].stop == p.duration
    for before, after in pairwise(intervals):
        assert before.stop == after.start
        assert before.phase != after.phase
    for phase in Phase:
        total = sum(stop - start for start, stop, kind in intervals if kind == phase)
        assert total == pytest.approx(counts[phase] * p.dt)
    shown_ms = sum(stop - start for start, stop, _ in p.stimulus_intervals())
    assert shown_ms == pytest.approx(sum(s > 0 for s in shown) * p.dt)


@given(entries, st.integers(1, 40))
def test_stretching_by_a_whole_factor_repeats_every_entry(pattern, factor):
    p = build(pattern, 1.0, n_timesteps=factor * len(pattern))
    assert p.stimulus_at.tolist() == [entry for entry in pattern for _ in range(factor)]
    assert p.entry_at.tolist() == [i for i in range(len(pattern)) for _ in range(factor)]


@given(entries, st.integers(0, 60))
def test_stretching_keeps_every_entry_and_its_share(pattern, extra):
    p = build(pattern, 1.0, n_timesteps=len(pattern) + extra)
    counts = torch.bincount(p.entry_at, minlength=len(pattern))
    assert int(counts.sum()) == p.n_timesteps
    assert int(counts.min()) >= 1
    assert int(counts.max() - counts.min()) <= 1


def test_the_reference_example():
    with pytest.warns(PresentationWarning) as caught:
        p = Presentation("1000111000", dt=2, reaction_time=6)
    assert p.reaction_steps == 3
    assert p.reaction_mask.nonzero().flatten().tolist() == [0, 1, 2, 4, 5, 6]
    assert not p.supervised_mask.any()
    short, nothing = (str(warning.message) for warning in caught)
    assert "timestep 0 (0 ms), 4 (8 ms)" in short
    assert "No timestep is supervised" in nothing
    assert {warning.filename for warning in caught} == {__file__}


def test_a_null_timestep_inside_a_window_is_reaction():
    with pytest.warns(PresentationWarning):
        p = Presentation("100", dt=1.0, reaction_time=2.0)
    assert p.phase_codes.tolist() == [Phase.REACTION, Phase.REACTION, Phase.NULL]


def test_a_new_stimulus_is_an_onset_without_a_gap():
    p = Presentation("01122", dt=1.0, reaction_time=1.0)
    assert p.onsets == (1, 3)
    assert p.supervised_mask.tolist() == [False, False, True, False, True]


def test_one_short_stimulus_warns_alone():
    with pytest.warns(PresentationWarning) as caught:
        Presentation("0100111", dt=1.0, reaction_time=1.0)
    (warning,) = caught
    assert "onset at timestep 1 (1 ms)." in str(warning.message)


def test_many_short_stimuli_are_counted_not_listed():
    with pytest.warns(PresentationWarning, match=r"and 40 more\."):
        Presentation("10" * 50 + "11", dt=1.0, reaction_time=1.0)


def test_a_blank_presentation_warns_and_shows_null_input():
    with pytest.warns(PresentationWarning, match="No timestep is supervised"):
        p = Presentation("000", dt=1.0, null_value=0.5)
    assert p.n_stimuli == 0
    assert torch.equal(p.present(torch.ones(2, 3)), torch.full((3, 2, 3), 0.5))
    assert torch.equal(p.targets(torch.tensor([4, 5])), torch.full((3, 2), -1))


def test_no_reaction_time_supervises_every_stimulus_timestep():
    p = Presentation("0110", dt=2.0)
    assert torch.equal(p.supervised_mask, p.stimulus_mask)
    assert not p.reaction_mask.any()


def test_a_window_longer_than_the_run_ends_with_it():
    p = build("01111", 1.0, reaction_time=1e9)
    assert p.reaction_mask.tolist() == [False, True, True, True, True]


def test_one_timestep():
    p = Presentation("1", dt=1.0)
    assert p.onsets == (0,)
    assert p.supervised_mask.tolist() == [True]


# Inputs and targets


@given(presentations(), st.integers(0, 3))
def test_inputs_and_targets_follow_the_loop(drawn, batch):
    p, shown, reaction_steps = drawn
    _, _, supervised, _ = loop_over(shown, reaction_steps)
    generator = torch.Generator().manual_seed(0)
    stimuli = torch.rand(max(p.n_stimuli, 1), batch, 2, 3, generator=generator)
    labels = torch.randint(10, (max(p.n_stimuli, 1), batch), generator=generator)
    inputs = p.present(stimuli if p.n_stimuli > 1 else stimuli[0])
    targets = p.targets(labels if p.n_stimuli > 1 else labels[0])
    assert inputs.shape == (p.n_timesteps, batch, 2, 3)
    assert targets.shape == (p.n_timesteps, batch)
    assert targets.dtype == torch.int64
    for t, stimulus in enumerate(shown):
        expected = stimuli[stimulus - 1] if stimulus else torch.zeros(batch, 2, 3)
        assert torch.equal(inputs[t], expected)
        target = labels[stimulus - 1] if supervised[t] else torch.full((batch,), -1)
        assert torch.equal(targets[t], target)


@given(presentations())
def test_lazy_inputs_are_the_presented_ones_and_few_objects(drawn):
    p, shown, _ = drawn
    images = torch.rand(p.n_stimuli, 2, 3) if p.n_stimuli > 1 else torch.rand(2, 3)
    lazily = list(p.inputs_at(images))
    assert torch.equal(torch.stack(lazily), p.present(images))
    assert len({id(shown_now) for shown_now in lazily}) == len(set(shown))


def test_one_stimulus_throughout_is_a_view():
    images = torch.rand(2, 3)
    inputs = Presentation("1", dt=1.0, n_timesteps=1000).present(images)
    assert inputs.shape == (1000, 2, 3)
    assert inputs.untyped_storage().data_ptr() == images.untyped_storage().data_ptr()
    (only,) = set(map(id, Presentation("111", dt=1.0).inputs_at(images)))
    assert only == id(images)


def test_null_input_is_built_once_and_apart_from_the_images():
    images = torch.ones(2, 3)
    first, _, last = Presentation("010", dt=1.0, null_value=-2.0).inputs_at(images)
    assert first is last
    assert first.tolist() == [[-2.0] * 3] * 2
    assert images.tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("throughout", ["1", "0110"])
def test_gradients_reach_the_images_from_every_timestep_that_shows_them(throughout):
    images = torch.rand(2, 3, requires_grad=True)
    p = Presentation(throughout, dt=1.0, n_timesteps=4)
    p.present(images).sum().backward()
    assert torch.equal(images.grad, torch.full((2, 3), float(p.stimulus_mask.sum())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_inputs_keep_their_dtype(dtype):
    images = torch.ones(2, 3, dtype=dtype)
    assert Presentation("01", dt=1.0).present(images).dtype == dtype


@pytest.mark.parametrize(
    ("null_value", "dtype"),
    [
        (0.5, torch.uint8),
        (-1.0, torch.uint8),
        (256.0, torch.uint8),
        (128.0, torch.int8),
        (2.0, torch.bool),
        (1e6, torch.float16),
    ],
)
def test_a_null_value_that_the_images_cannot_hold_is_refused(null_value, dtype):
    images = torch.ones(2, 3, dtype=dtype)
    with pytest.raises(PresentationError, match="null_value"):
        Presentation("01", dt=1.0, null_value=null_value).present(images)
    # Never shown, never needed.
    assert Presentation("11", dt=1.0, null_value=null_value).present(images).dtype == dtype


@pytest.mark.parametrize(
    ("null_value", "dtype"),
    [(255.0, torch.uint8), (-128.0, torch.int8), (1.0, torch.bool), (6e4, torch.float16)],
)
def test_a_null_value_that_the_images_can_hold_is_shown(null_value, dtype):
    shown = Presentation("01", dt=1.0, null_value=null_value).present(torch.ones(1, 1, dtype=dtype))
    assert float(shown[0, 0, 0]) == pytest.approx(null_value, rel=1e-3)


def test_masks_stay_on_the_cpu_and_inputs_follow_the_images():
    with torch.device("meta"):
        p = Presentation("0110", dt=1.0, reaction_time=1.0)
        assert p.supervised_mask.tolist() == [False, False, True, False]
    images = torch.empty(2, 3, device="meta")
    assert p.present(images).device.type == "meta"
    assert p.targets(torch.empty(2, dtype=torch.int64, device="meta")).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_inputs_and_targets_on_a_gpu_without_synchronising():
    p = Presentation("0012", dt=1.0)
    images = torch.rand(2, 3, 4)
    labels = torch.tensor([[1, 2, 3], [4, 5, 6]])
    on_gpu, labels_on_gpu = images.cuda(), labels.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        inputs, targets = p.present(on_gpu), p.targets(labels_on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(inputs.cpu(), p.present(images))
    assert torch.equal(targets.cpu(), p.targets(labels))


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([1.0, 2.0]),
        torch.tensor([1, 2], dtype=torch.int32),
        torch.tensor([True, False]),
        torch.tensor([[1, 2]]),
        torch.tensor(1),
        [1, 2],
    ],
)
def test_labels_that_are_no_class_per_sample_are_refused(labels):
    with pytest.raises(PresentationError, match="labels"):
        Presentation("01", dt=1.0).targets(labels)


@pytest.mark.parametrize("labels", [torch.tensor([1, 2]), torch.tensor([[[1], [2]]])])
def test_labels_of_several_stimuli_need_both_axes(labels):
    with pytest.raises(PresentationError, match="labels"):
        Presentation("12", dt=1.0).targets(labels)


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 2, 3), (2,)])
def test_a_stimulus_without_an_image_is_refused_at_once(shape):
    with pytest.raises(PresentationError, match=r"images have shape"):
        Presentation("0102", dt=1.0).inputs_at(torch.zeros(shape))


def test_images_without_a_batch_are_refused():
    with pytest.raises(PresentationError, match="the batch"):
        Presentation("01", dt=1.0).present(torch.tensor(1.0))
    with pytest.raises(PresentationError, match=r"torch\.Tensor"):
        Presentation("01", dt=1.0).present(np.ones((2, 3)))


def test_a_label_that_is_ignore_index_stays_ignored():
    p = Presentation("011", dt=1.0, ignore_index=-100)
    assert p.targets(torch.tensor([-100, 3])).tolist() == [[-100, -100], [-100, 3], [-100, 3]]


# Named phases


def test_phases_of_the_design_example():
    p = Presentation.from_phases(
        [("fixation", 100, 0), ("digit", 200, 1), ("delay", 50, 0)], dt=1.0, reaction_time=50
    )
    check_follows_the_loop(p, [0] * 100 + [1] * 200 + [0] * 50, 50)
    assert p.entry_at.tolist() == [0] * 100 + [1] * 200 + [2] * 50
    assert [phase.name for phase in p.phases] == ["fixation", "digit", "delay"]


@st.composite
def phase_lists(draw):
    dt = draw(st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0, 2.0, 3.0]))
    durations = draw(st.lists(st.floats(3.0, 60.0), min_size=1, max_size=8))
    stimuli = draw(st.lists(st.integers(0, 3), min_size=len(durations), max_size=len(durations)))
    named = [
        (f"phase {i}", duration, stimulus)
        for i, (duration, stimulus) in enumerate(zip(durations, stimuli, strict=True))
    ]
    return named, dt


@given(phase_lists())
def test_every_boundary_is_within_half_a_timestep_of_its_time(drawn):
    phases, dt = drawn
    p = build_phases(phases, dt)
    counts = torch.bincount(p.entry_at, minlength=len(phases))
    assert int(counts.min()) >= 1
    assert p.entry_at.tolist() == sorted(p.entry_at.tolist())
    end_ms = 0.0
    for i, (_, duration, stimulus) in enumerate(phases):
        end_ms += duration
        assert abs(int(counts[: i + 1].sum()) * dt - end_ms) <= dt / 2 * (1 + 1e-5)
        assert set(p.stimulus_at[p.entry_at == i].tolist()) == {stimulus}


@given(phase_lists(), st.sampled_from([0.0, 1.0, 5.0]))
def test_the_schedule_in_ms_does_not_depend_on_dt(drawn, reaction_time):
    """Sampled at the middle of a timestep, the coarse schedule is that of a much finer one."""
    phases, dt = drawn
    coarse = build_phases(phases, dt, reaction_time=reaction_time, idle_time=7.0)
    fine = quietly(coarse.at_dt, dt / 8)
    assert fine == build_phases(phases, dt / 8, reaction_time=reaction_time, idle_time=7.0)
    assert abs(fine.duration - coarse.duration) <= dt
    assert 0 <= coarse.idle_steps * dt - fine.idle_steps * fine.dt < dt
    ends = np.cumsum([duration for _, duration, _ in phases])
    for t in range(min(coarse.n_timesteps, fine.n_timesteps // 8)):
        middle = (t + 0.5) * dt
        if np.abs(ends - middle).min() > 0.2 * dt:
            assert coarse.entry_at[t] == fine.entry_at[8 * t + 4]


@given(
    dt=st.floats(0.05, 4.0),
    gap=st.floats(5, 60),
    shown=st.floats(30, 90),
    reaction_time=st.floats(0, 20),
    idle_time=st.floats(0, 50),
)
def test_every_part_of_a_schedule_keeps_its_ms_at_any_dt(dt, gap, shown, reaction_time, idle_time):
    p = build_phases(
        [("gap", gap, 0), ("one", shown, 1), ("two", shown, 2)],
        dt,
        reaction_time=reaction_time,
        idle_time=idle_time,
    )
    tolerance = dt / 2 * (1 + 1e-5)
    for onset, time in zip(p.onsets, (gap, gap + shown), strict=True):
        assert abs(onset * dt - time) <= tolerance
    rounded_up = dt * (1 + 1e-5)
    assert -1e-5 * dt <= p.idle_steps * dt - idle_time < rounded_up
    assert -1e-5 * dt <= int(p.reaction_mask.sum()) * dt / 2 - reaction_time < rounded_up
    supervised = int(p.supervised_mask.sum()) * dt
    assert abs(supervised - 2 * (shown - reaction_time)) <= 3 * rounded_up


@pytest.mark.parametrize(
    ("phases", "match"),
    [
        ([], "no phases"),
        (None, "phases are None"),
        ([("digit", 100)], "A phase is"),
        ([7], "A phase is"),
        ([("", 100, 1)], "name"),
        ([(1, 100, 1)], "name"),
        ([("digit", 100, -1)], "stimulus"),
        ([("digit", 100, 1.5)], "stimulus"),
        ([("blink", 0.4, 1), ("digit", 100, 1)], r"'blink' of 0\.4 ms"),
        ([("nothing", 0, 1)], "'nothing'"),
    ],
)
def test_phases_that_cannot_be_are_refused(phases, match):
    with pytest.raises(PresentationError, match=match):
        Presentation.from_phases(phases, dt=1.0)


@pytest.mark.parametrize("duration", [-1.0, math.nan, math.inf, "100"])
def test_phase_durations_that_are_none_are_refused(duration):
    with pytest.raises(TimingError, match="digit"):
        Presentation.from_phases([("digit", duration, 1)], dt=1.0)


def test_phases_do_not_stretch_and_stay_with_their_pattern():
    p = Presentation.from_phases([("null", 4, 0), ("digit", 6, 1)], dt=1.0)
    with pytest.raises(PresentationError, match="n_timesteps"):
        replace(p, n_timesteps=20)
    with pytest.raises(PresentationError, match="from_phases"):
        replace(p, pattern="10")


# Shuffling


@given(entries, st.integers(0, 2**32 - 1))
def test_shuffling_permutes_entries_by_the_generator_alone(pattern, seed):
    p = build(pattern, 1.0, n_timesteps=3 * len(pattern), reaction_time=1.0, idle_time=4.0)
    once = quietly(p.shuffled, torch.Generator().manual_seed(seed))
    again = quietly(p.shuffled, torch.Generator().manual_seed(seed))
    assert once == again
    assert sorted(once.pattern) == sorted(pattern)
    assert quietly(replace, once, pattern=p.pattern) == p
    whole = once.stimulus_at.view(-1, 3)
    assert bool((whole == whole[:, :1]).all())


def test_shuffling_reaches_every_order_equally():
    p = Presentation("012", dt=1.0)
    generator = torch.Generator().manual_seed(1)
    orders = [p.shuffled(generator).pattern for _ in range(600)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    # Binomial(600, 1/6): mean 100, standard deviation 9.1.
    assert min(counts) > 55
    assert max(counts) < 145


@given(phase_lists(), st.integers(0, 1000))
def test_shuffled_phases_keep_their_durations(drawn, seed):
    phases, dt = drawn
    p = build_phases(phases, dt, idle_time=3.0)
    shuffled = quietly(p.shuffled, torch.Generator().manual_seed(seed))
    assert sorted(shuffled.phases) == sorted(p.phases)
    assert shuffled.n_timesteps == p.n_timesteps
    for i, phase in enumerate(shuffled.phases):
        assert abs(int((shuffled.entry_at == i).sum()) * dt - phase.duration) < dt * (1 + 1e-5)


def test_shuffling_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    Presentation("0011", dt=1.0).shuffled(torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(PresentationError, match="generator"):
        Presentation("01", dt=1.0).shuffled(0)


# Construction


@pytest.mark.parametrize(
    "pattern",
    ["", [], "01a", "0 1", "1²", "-1", "0.1", [0, -1], [0.5], ["0"], 1011, None, [[0, 1]]],
)
def test_patterns_that_are_none_are_refused(pattern):
    with pytest.raises(PresentationError, match="pattern"):
        Presentation(pattern, dt=1.0)


@pytest.mark.parametrize(
    "pattern", [[0, 1, 1], (0, 1, 1), np.array([0, 1, 1]), torch.tensor([0, 1, 1])]
)
def test_a_sequence_is_the_same_as_its_string(pattern):
    p = Presentation(pattern, dt=1.0)
    assert p == Presentation("011", dt=1.0)
    assert all(type(entry) is int for entry in p.pattern)


@pytest.mark.parametrize(
    "bad",
    [
        {"n_timesteps": 2},
        {"n_timesteps": 0},
        {"n_timesteps": 4.0},
        {"n_timesteps": True},
        {"null_value": math.nan},
        {"null_value": math.inf},
        {"null_value": "0"},
        {"null_value": None},
        {"ignore_index": 0.5},
        {"ignore_index": None},
    ],
)
def test_arguments_that_cannot_be_are_refused_by_name(bad):
    (name,) = bad
    with pytest.raises(PresentationError, match=name):
        Presentation("011", dt=1.0, **bad)


@pytest.mark.parametrize("time", [-1.0, math.nan, math.inf, "6", None])
@pytest.mark.parametrize("name", ["dt", "reaction_time", "idle_time"])
def test_times_that_cannot_be_are_refused_by_name(name, time):
    with pytest.raises(TimingError, match=name):
        Presentation("011", **({"dt": 1.0} | {name: time}))
    with pytest.raises(TimingError, match="dt"):
        Presentation("011", dt=0)


@given(decimal_times, decimal_dts)
def test_idle_and_reaction_time_round_up(time, dt):
    p = build("01", float(dt), reaction_time=float(time), idle_time=float(time))
    exact = int((time / dt).to_integral_value(ROUND_CEILING))
    assert p.idle_steps == p.reaction_steps == exact


def test_idle_time_is_an_interval_before_zero():
    p = Presentation("01", dt=2.0, idle_time=5.0)
    assert p.duration == 4.0
    assert p.intervals()[0] == (-6.0, 0.0, Phase.IDLE)


def test_presentations_are_frozen_values():
    p = Presentation("0011", dt=2, reaction_time=2)
    longer = Presentation("0011", dt=2, reaction_time=2, n_timesteps=8)
    twin = Presentation([0, 0, 1, 1], dt=2.0, reaction_time=2.0, n_timesteps=4)
    assert p == twin
    assert hash(p) == hash(twin)
    assert p != longer
    assert {p: 1}[twin] == 1
    with pytest.raises(FrozenInstanceError):
        p.dt = 1.0


def test_writing_to_a_mask_changes_nothing():
    p = Presentation("0011", dt=2.0, reaction_time=2.0)
    names = ["stimulus_at", "entry_at", "phase_codes"]
    names += ["stimulus_mask", "reaction_mask", "supervised_mask"]
    before = {name: getattr(p, name).tolist() for name in names}
    for name in names:
        getattr(p, name).fill_(1)
    assert {name: getattr(p, name).tolist() for name in names} == before


def test_masks_first_seen_in_inference_mode_serve_autograd_later():
    with torch.inference_mode():
        p = Presentation("0011", dt=2.0)
        assert p.supervised_mask.any()
    weights = torch.ones(4, requires_grad=True)
    (weights * p.supervised_mask).sum().backward()
    assert weights.grad.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_are_equal(copied):
    p = Presentation("0012", dt=2.0, reaction_time=2.0, n_timesteps=9)
    twin = copied(p)
    assert twin == p
    assert torch.equal(twin.phase_codes, p.phase_codes)


# Writing down


@st.composite
def any_presentation(draw):
    settings = {
        "reaction_time": draw(st.sampled_from([0.0, 1.5, 6.0])),
        "idle_time": draw(st.sampled_from([0.0, 20.0])),
        "null_value": draw(st.floats(-1e3, 1e3)),
        "ignore_index": draw(st.integers(-100, 0)),
    }
    if draw(st.booleans()):
        phases, dt = draw(phase_lists())
        return build_phases(phases, dt, **settings)
    pattern = draw(entries)
    n = len(pattern) + draw(st.integers(0, 20))
    return build(pattern, draw(st.floats(0.01, 10)), n_timesteps=n, **settings)


@given(any_presentation())
def test_dict_json_and_repr_give_the_same_presentation_back(p):
    assert quietly(Presentation.from_dict, json.loads(json.dumps(p.to_dict()))) == p
    assert quietly(eval, repr(p), {"Presentation": Presentation}) == p
    assert "\n" not in p.describe()
    assert p.describe().count(" ms") >= 4


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"pattern": "01", "dt": 1.0, "reaction_tme": 2}, "Did you mean 'reaction_time'"),
        ({"pattern": "01"}, "'dt'"),
        ({"dt": 1.0}, "'pattern'"),
        ({"pattern": "01", "phases": [["a", 1, 1]], "dt": 1.0}, "beside phases"),
        ({"phases": [["a", 5, 1]], "dt": 1.0, "n_timesteps": 5}, "beside phases"),
    ],
)
def test_dicts_that_are_no_presentation_are_refused(settings, match):
    with pytest.raises(PresentationError, match=match):
        Presentation.from_dict(settings)


# Another dt


@given(entries, st.integers(1, 6), st.sampled_from([1, 2, 4, 5]))
def test_a_pattern_at_a_finer_dt_shows_the_same_at_the_same_time(pattern, stretch, finer):
    p = build(pattern, 2.0, n_timesteps=stretch * len(pattern), reaction_time=3.0, idle_time=9.0)
    fine = quietly(p.at_dt, 2.0 / finer)
    assert fine.duration == pytest.approx(p.duration)
    assert fine.reaction_steps == ceil_steps(3.0, 2.0 / finer)
    assert fine.stimulus_at.tolist() == p.stimulus_at.repeat_interleave(finer).tolist()
    assert quietly(fine.at_dt, 2.0) == p


def test_entries_shorter_than_a_timestep_are_refused():
    with pytest.raises(PresentationError, match="lasts 2 ms, less than a timestep of 4 ms"):
        Presentation("0110", dt=2.0).at_dt(4.0)
    p = Presentation.from_phases([("a", 2, 0), ("b", 10, 1)], dt=2.0)
    with pytest.raises(PresentationError, match="'a' of 2 ms"):
        p.at_dt(5.0)


@given(presentations(), st.integers(0, 60), st.integers(0, 60))
def test_a_part_of_a_long_run_is_made_without_the_rest(drawn, one, other):
    p = drawn[0]
    start, stop = sorted((min(one, p.n_timesteps), min(other, p.n_timesteps)))
    assert torch.equal(p.stimulus_between(start, stop), p.stimulus_at[start:stop])
    assert torch.equal(p.phases_between(start, stop), p.phase_codes[start:stop])
    images = torch.rand(max(1, p.n_stimuli), 2, 3)
    images = images if p.n_stimuli > 1 else images[0]
    whole = list(p.inputs_at(images))[start:stop]
    part = list(p.inputs_between(images, start, stop))
    assert len(part) == stop - start
    assert all(map(torch.equal, part, whole))


def test_a_presentation_holds_nothing_that_grows_with_its_timesteps():
    def held(n_timesteps):
        p = Presentation("0120", 1.0, n_timesteps=n_timesteps, reaction_time=20.0)
        _ = p.onsets, p.describe(), p.targets(torch.zeros(2, 3, dtype=torch.int64)), p.entry_at
        _ = p.phase_codes, list(p.inputs_at(torch.rand(2, 3, 5)))
        return len(pickle.dumps(p))

    # Larger numbers are written in a few bytes more.
    assert held(100_000) <= held(1000) + 100
