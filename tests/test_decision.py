"""Evidence and causal decisions against plain loops over samples and timesteps."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynvision_snn.decision import (
    Decisions,
    FirstSpike,
    MembraneMargin,
    SoftmaxConfidence,
    SpikesAhead,
    decide,
)
from dynvision_snn.errors import ReadoutError, TimingError
from dynvision_snn.evidence import (
    Decoding,
    evidence,
    first_spike,
    gathering_of,
    running_mean,
    spike_count,
)
from dynvision_snn.readout import UNDECIDED, decode

STEPS, BATCH, CLASSES = 9, 4, 3
seeds = st.integers(0, 10_000)
onset_lists = st.lists(st.integers(0, STEPS - 1), unique=True, max_size=4).map(sorted)
RULES = [MembraneMargin(0.7), SoftmaxConfidence(0.6), FirstSpike(), SpikesAhead(1), SpikesAhead(2)]


def run(seed: int) -> tuple[Tensor, Tensor]:
    """Membranes, and sparse spikes of a graded height."""
    generator = torch.Generator().manual_seed(seed)
    membrane = torch.randn(STEPS, BATCH, CLASSES, generator=generator)
    spikes = 2.0 * (torch.rand(STEPS, BATCH, CLASSES, generator=generator) < 0.25)
    return membrane, spikes


def began(step: int, onsets: list[int]) -> int:
    return max([0, *(onset for onset in onsets if onset <= step)])


# -- evidence -------------------------------------------------------------------------------------


@given(seeds, onset_lists)
def test_evidence_gathers_from_the_last_onset_on(seed, onsets):
    membrane, spikes = run(seed)
    mean, count, first = (
        running_mean(membrane, onsets),
        spike_count(spikes, onsets),
        first_spike(spikes, onsets),
    )
    for step in range(STEPS):
        start = began(step, onsets)
        torch.testing.assert_close(mean[step], membrane[start : step + 1].mean(0))
        assert torch.equal(count[step], (spikes[start : step + 1] != 0).sum(0))
        for sample in range(BATCH):
            for cls in range(CLASSES):
                fired = [t for t in range(start, step + 1) if spikes[t, sample, cls]]
                expected = step + 1 - fired[0] if fired else 0
                assert first[step, sample, cls] == expected


def test_what_comes_before_an_onset_leaves_no_trace_however_large() -> None:
    membrane = torch.tensor([1e8, 1e8, 0.25, 0.75]).view(4, 1, 1)
    assert running_mean(membrane, [2]).flatten().tolist()[2:] == [0.25, 0.5]


def test_the_decodings_by_name() -> None:
    membrane, spikes = run(0)
    assert evidence("membrane", membrane) is membrane
    assert torch.equal(evidence("running_mean", membrane, None, [3]), running_mean(membrane, [3]))
    counted = evidence("spike_count", membrane, spikes, [3])
    assert torch.equal(counted, spike_count(spikes, [3]))
    assert torch.equal(evidence("first_spike", membrane, spikes), first_spike(spikes))
    with pytest.raises(ReadoutError, match="needs the readout's spikes"):
        evidence("spike_count", membrane)
    with pytest.raises(ReadoutError, match="Did you mean 'running_mean'"):
        evidence("runing_mean", membrane)  # type: ignore[arg-type]


def test_silence_decodes_to_no_class() -> None:
    silent = torch.zeros(STEPS, BATCH, CLASSES)
    for decoding in ("spike_count", "first_spike", "running_mean"):
        assert (decode(evidence(decoding, silent, silent)) == UNDECIDED).all()


# -- decisions ------------------------------------------------------------------------------------


def met_by_hand(rule: object, membrane: Tensor, spikes: Tensor) -> int:
    """The class decided for by one sample at the last of the timesteps since its onset."""
    v = sorted(membrane[-1].tolist(), reverse=True)
    best = int(membrane[-1].argmax())
    counts = [sum(spikes[:, c].ne(0).tolist()) for c in range(CLASSES)]
    match rule:
        case MembraneMargin(margin=margin):
            return best if v[0] - v[1] >= margin else UNDECIDED
        case SoftmaxConfidence(confidence=confidence):
            share = math.exp(v[0]) / sum(math.exp(value) for value in v)
            return best if share >= confidence else UNDECIDED
        case SpikesAhead(n=n):
            ahead = [
                c
                for c in range(CLASSES)
                if all(counts[c] - counts[o] >= n for o in range(CLASSES) if o != c)
            ]
            return ahead[0] if ahead else UNDECIDED
    times = [
        next((t for t in range(len(spikes)) if spikes[t, c]), math.inf) for c in range(CLASSES)
    ]
    tied = [c for c in range(CLASSES) if times[c] == min(times) < math.inf]
    most = max([counts[c] for c in tied], default=0)
    leaders = [c for c in tied if counts[c] == most]
    return leaders[0] if len(leaders) == 1 else UNDECIDED


@pytest.mark.parametrize("rule", RULES)
@given(seed=seeds, onsets=onset_lists, dt=st.floats(0.1, 5.0))
def test_a_decision_falls_at_the_first_timestep_at_which_the_rule_is_met(rule, seed, onsets, dt):
    membrane, spikes = run(seed)
    decisions = decide(rule, membrane, spikes, onsets, dt)
    never = [0] * len(onsets)
    for row, start in enumerate(onsets):
        stop = onsets[row + 1] if row + 1 < len(onsets) else STEPS
        for sample in range(BATCH):
            expected, time = UNDECIDED, math.nan
            for step in range(start, stop):
                seen = slice(start, step + 1)
                expected = met_by_hand(rule, membrane[seen, sample], spikes[seen, sample])
                if expected != UNDECIDED:
                    time = (step - start) * dt
                    break
            never[row] += expected == UNDECIDED
            assert decisions.classes[row, sample] == expected
            assert float(decisions.times[row, sample]) == pytest.approx(time, nan_ok=True)
    assert decisions.never.tolist() == [count / BATCH for count in never]


@pytest.mark.parametrize("rule", RULES)
@given(seed=seeds, cut=st.integers(1, STEPS))
def test_what_comes_later_changes_no_decision(rule, seed, cut):
    membrane, spikes = run(seed)
    whole = rule.decided(membrane, spikes, [2])[:cut]
    onsets = [2] if cut > 2 else []
    assert torch.equal(rule.decided(membrane[:cut], spikes[:cut], onsets), whole)


def test_a_tie_of_first_spikes_is_broken_by_the_next_spike_of_the_two() -> None:
    spikes = torch.tensor([[0.0, 1, 1], [1, 0, 0], [1, 0, 0], [0, 0, 1]]).unsqueeze(1)
    decisions = decide(FirstSpike(), spikes, spikes, [0], dt=1.0)
    assert (decisions.times.item(), decisions.classes.item()) == (3.0, 2)


def test_decisions_need_no_spikes_where_the_rule_does_not() -> None:
    membrane, _ = run(0)
    decide(MembraneMargin(0.1), membrane, None, [0], 1.0)
    for rule in (FirstSpike(), SpikesAhead(1)):
        with pytest.raises(ReadoutError, match=f"{type(rule).__name__} needs"):
            decide(rule, membrane, None, [0], 1.0)


def test_a_presentation_without_an_onset_has_no_decision() -> None:
    decisions = decide(FirstSpike(), *run(0), onsets=[], dt=1.0)
    assert isinstance(decisions, Decisions)
    assert decisions.times.shape == (0, BATCH)
    assert decisions.never.shape == (0,)


@pytest.mark.parametrize("onsets", [[STEPS], [-1], [3, 2], [1, 1]])
def test_onsets_outside_the_run_are_refused(onsets):
    membrane, spikes = run(0)
    with pytest.raises(ReadoutError, match=f"0 to {STEPS - 1}"):
        decide(FirstSpike(), membrane, spikes, onsets, 1.0)
    with pytest.raises(ReadoutError, match=f"0 to {STEPS - 1}"):
        running_mean(membrane, onsets)


def test_values_that_cannot_be_are_refused() -> None:
    membrane, spikes = run(0)
    with pytest.raises(ReadoutError, match="of both"):
        decide(FirstSpike(), membrane, spikes[:-1], [0], 1.0)
    with pytest.raises(TimingError, match="dt"):
        decide(FirstSpike(), membrane, spikes, [0], 0.0)
    for build in (
        lambda: MembraneMargin(0.0),
        lambda: MembraneMargin(math.inf),
        lambda: SoftmaxConfidence(0.0),
        lambda: SoftmaxConfidence(1.0),
        lambda: SpikesAhead(0),
        lambda: SpikesAhead(1.5),  # type: ignore[arg-type]
        lambda: SpikesAhead(True),
    ):
        with pytest.raises(ReadoutError, match="expected"):
            build()
    with pytest.raises(ReadoutError, match="classes"):
        spike_count(torch.zeros(3, 2))


# -- piece by piece -------------------------------------------------------------------------------

cuts = st.lists(st.integers(0, STEPS), max_size=4).map(lambda c: sorted([0, *c, STEPS]))


def pieces_of(stream, membrane: Tensor, spikes: Tensor, began: Tensor, cuts: list[int]) -> Tensor:
    return torch.cat(
        [
            stream(membrane[start:stop], spikes[start:stop], began[start:stop])
            for start, stop in pairwise(cuts)
            if stop > start
        ]
    )


@pytest.mark.parametrize("decoding", get_args(Decoding))
@given(seed=seeds, onsets=onset_lists, cuts=cuts)
def test_evidence_of_pieces_is_that_of_the_run_bit_for_bit(decoding, seed, onsets, cuts):
    membrane, spikes = run(seed)
    membrane = membrane * 1e3  # so that the order of a sum shows in its last bits
    began = torch.zeros(STEPS, dtype=torch.bool)
    began[onsets] = True
    got = pieces_of(gathering_of(decoding), membrane, spikes, began, cuts)
    assert torch.equal(got, evidence(decoding, membrane, spikes, onsets))


@pytest.mark.parametrize("rule", RULES)
@given(seed=seeds, own=st.lists(onset_lists, min_size=BATCH, max_size=BATCH), cuts=cuts)
def test_a_rule_over_pieces_decides_as_over_each_sample_alone(rule, seed, own, cuts):
    membrane, spikes = run(seed)
    began = torch.zeros(STEPS, BATCH, dtype=torch.bool)
    for sample, onsets in enumerate(own):
        began[onsets, sample] = True
    got = pieces_of(rule.following(), membrane, spikes, began, cuts)
    for sample, onsets in enumerate(own):
        one = slice(sample, sample + 1)
        alone = rule.decided(membrane[:, one], spikes[:, one], onsets)
        assert torch.equal(got[:, one], alone)


def test_the_streams_of_two_runs_share_nothing() -> None:
    spikes, never = torch.ones(2, 1, 2), torch.zeros(2, dtype=torch.bool)
    rule = SpikesAhead(1)
    spikes[:, :, 1] = 0
    for _ in range(2):
        assert rule.following()(spikes, spikes, never).tolist() == [[0], [0]]
        assert gathering_of("spike_count")(spikes, spikes, never)[-1, 0, 0] == 2
