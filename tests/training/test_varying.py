"""Presentations that vary are functions of (seed, epoch, batch), and stay presentations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvision_snn.errors import PresentationError, TimingError
from dynvision_snn.presentation import Presentation
from dynvision_snn.varying import VaryingPresentation, draw_generator

BASE = Presentation("01120", dt=2.0, n_timesteps=20, reaction_time=2.0, idle_time=4.0)
PHASES = Presentation.from_phases([("off", 10, 0), ("on", 20, 1), ("off", 6, 0)], dt=2.0)

numbers = st.integers(min_value=0, max_value=2**31)


@given(seed=numbers, epoch=numbers, batch=numbers)
@settings(max_examples=50)
def test_draws_depend_on_seed_epoch_and_batch_alone(seed, epoch, batch):
    varying = VaryingPresentation(
        base=BASE, shuffle=True, duration=(20.0, 80.0), onset_jitter=10.0, reaction_time=(0.0, 6.0)
    )
    state = torch.get_rng_state()
    first = varying.at(seed, epoch, batch)
    torch.rand(3)
    assert varying.at(seed, epoch, batch) == first
    torch.set_rng_state(state)
    assert first.idle_time == BASE.idle_time
    assert 0 <= first.reaction_time <= 6
    onsets = len(first.onsets)
    assert 20 - 2 * onsets <= first.duration <= 80 + 2 + (10 + 2) * onsets
    assert set(first.stimulus_at.tolist()) == {0, 1, 2}


def test_epochs_batches_and_seeds_are_drawn_apart():
    varying = VaryingPresentation(base=BASE, duration=(20.0, 2000.0))
    places = [(s, e, b) for s in range(4) for e in range(4) for b in range(4)]
    assert len({varying.at(*place).n_timesteps for place in places}) > 50


def test_the_draws_of_a_duration_fill_its_range_evenly():
    varying = VaryingPresentation(base=Presentation("1", dt=1.0), duration=(10.0, 50.0))
    drawn = torch.tensor([varying.at(0, 0, batch).duration for batch in range(2000)])
    assert drawn.min() >= 10
    assert drawn.max() <= 50
    assert abs(float(drawn.mean()) - 30) < 1
    assert abs(float((drawn < 20).double().mean()) - 0.25) < 0.04


@pytest.mark.parametrize("base", [BASE, PHASES])
def test_shuffling_keeps_every_entry_at_its_length(base):
    drawn = VaryingPresentation(base=base, shuffle=True).at(1, 2, 3)
    assert drawn.n_timesteps == base.n_timesteps
    assert sorted(drawn.stimulus_at.tolist()) == sorted(base.stimulus_at.tolist())


def test_jitter_makes_onsets_late_and_takes_nothing_away():
    varying = VaryingPresentation(base=PHASES, onset_jitter=8.0)
    late = set()
    for batch in range(60):
        drawn = varying.at(0, 0, batch)
        (onset,) = drawn.onsets
        late.add(onset - PHASES.onsets[0])
        assert int(drawn.stimulus_mask.sum()) == int(PHASES.stimulus_mask.sum())
        assert drawn.n_timesteps - PHASES.n_timesteps == onset - PHASES.onsets[0]
    assert late == {0, 1, 2, 3, 4}


def test_a_duration_stretches_phases_in_proportion():
    drawn = VaryingPresentation(base=PHASES, duration=(72.0, 72.0)).at(0, 0, 0)
    assert drawn.n_timesteps == 36
    assert int(drawn.stimulus_mask.sum()) == 20


def test_what_does_not_vary_is_the_base():
    assert not VaryingPresentation(base=BASE).varies
    assert VaryingPresentation(base=BASE).at(0, 0, 0) == BASE
    assert VaryingPresentation(base=BASE, shuffle=True).varies


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        ({"duration": (40.0, 20.0)}, PresentationError, "shortest first"),
        ({"duration": (40.0,)}, PresentationError, "two times in ms"),
        ({"duration": (2.0, 20.0)}, PresentationError, "fewer than the 5 entries"),
        ({"reaction_time": (-1.0, 2.0)}, TimingError, "reaction_time"),
        ({"onset_jitter": float("inf")}, TimingError, "onset_jitter"),
    ],
)
def test_impossible_ranges_are_refused_when_built(wrong, error, told):
    with pytest.raises(error, match=told):
        VaryingPresentation(base=BASE, **wrong)


def test_generators_of_neighbours_are_unrelated():
    draws = torch.stack([torch.rand(1000, generator=draw_generator(0, 0, b)) for b in range(8)])
    correlation = torch.corrcoef(draws) - torch.eye(8)
    assert float(correlation.abs().max()) < 0.15
