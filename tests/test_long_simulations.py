"""Simulations in chunks: the same results as of whole runs, in memory that does not grow."""

from __future__ import annotations

import gc
import json
import tracemalloc
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dynvision_snn as dvs
from dynvision_snn.answering import Answering
from dynvision_snn.decision import (
    FirstSpike,
    MembraneMargin,
    SoftmaxConfidence,
    SpikesAhead,
    decide,
)
from dynvision_snn.errors import ComparisonError, DataError, EnergyError
from dynvision_snn.evidence import evidence
from dynvision_snn.loading import LoadedBatch
from dynvision_snn.moments import SETTLING
from dynvision_snn.presentation_batch import onset_table
from dynvision_snn.readout import decode, settling_time
from dynvision_snn.recording import Recording, RunState
from tests.energy.test_meter_chunks import bytes_in
from tests.test_simulation import DT, ONE, TWO, batches, dataset, simulated, spiking

RULES = {
    "margin": MembraneMargin(0.05),
    "confident": SoftmaxConfidence(0.3),
    "first": FirstSpike(),
    "ahead": SpikesAhead(2),
}
SHARED = {"dt": DT, "reaction_time": 2.0, "idle_time": 3.0}
OWN = dvs.PresentationBatch(
    [dvs.Presentation(("0011110", "1111001110111", "01110111")[i % 3], **SHARED) for i in range(23)]
)


def plain(simulation):
    """All that it says but for spikes of one sample, which chunks do not keep."""
    said = json.loads(json.dumps(simulation.to_dict()))
    del said["trace"]["rasters"], said["trace"]["missing"]
    return said


@pytest.mark.parametrize("every", [1.0, 3.0, 4.0, 100.0])
@pytest.mark.parametrize(
    ("name", "presentation"),
    [("spiking", ONE), ("spiking", TWO), ("spiking", OWN), ("analog", TWO), ("integrating", OWN)],
    ids=["one", "two", "own", "analog", "integrating"],
)
def test_chunks_simulate_what_the_run_does(name, presentation, every):
    spikes = name == "spiking"
    rules = RULES if spikes else {k: RULES[k] for k in ("margin", "confident")}
    whole = simulated(name, presentation, rules=rules)
    pieces = simulated(name, presentation, rules=rules, every=every)
    assert plain(pieces) == plain(whole)
    assert all(0 < whole.moments[rule].reached <= 1 for rule in rules)


@pytest.mark.parametrize("decoding", ["running_mean", "spike_count", "first_spike"])
def test_what_is_decoded_by_chunks_is_the_evidence_of_whole_runs(decoding):
    pieces = simulated(presentation=ONE, decoding=decoding, every=2.0)
    assert plain(pieces) == plain(simulated(presentation=ONE, decoding=decoding))
    images, labels = dataset()
    run = dvs.wrap(spiking(), dt=DT)(images, ONE)
    decoded = decode(evidence(decoding, run.membrane, run.spikes, ONE.onsets))
    right = (decoded == labels).sum(1)
    assert pieces.correct_by_timestep.tolist() == right.tolist()
    assert pieces.decoding == decoding
    assert right.tolist() != simulated(presentation=ONE).correct_by_timestep.tolist()


def test_compare_runs_in_chunks_too():
    models = {"a": dvs.wrap(spiking(), dt=DT), "b": dvs.wrap(spiking(), dt=DT)}
    loader = batches(*dataset(), [10, 13])
    rules = {"margin": RULES["margin"]}
    whole = dvs.compare(models, loader, ONE, rules=rules, progress=False)
    pieces = dvs.compare(models, loader, ONE, rules=rules, every=3.0, progress=False)
    alone = dvs.simulate(models["a"], loader, ONE, rules=rules, every=3.0, progress=False)
    for name in models:
        assert plain(pieces.runs[name][0]) == plain(whole.runs[name][0])
    assert pieces.runs["a"][0] == alone
    assert pieces.rows() == whole.rows()


# -- following, against the functions of whole runs -----------------------------------------------

STEPS, BATCH, CLASSES = 14, 3, 3
patterns = st.lists(st.integers(0, 2), min_size=STEPS, max_size=STEPS)


@pytest.mark.filterwarnings("ignore::dynvision_snn.errors.PresentationWarning")
@settings(deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(patterns, min_size=BATCH, max_size=BATCH),
    st.integers(0, 4),
    st.lists(st.integers(1, STEPS - 1), max_size=4, unique=True).map(sorted),
)
def test_moments_of_pieces_are_those_of_each_sample_alone(seed, several, reaction, cuts):
    generator = torch.Generator().manual_seed(seed)
    membrane = torch.randint(0, 3, (STEPS, BATCH, CLASSES), generator=generator).float()
    spikes = (torch.rand(STEPS, BATCH, CLASSES, generator=generator) < 0.2).float()
    ones = [dvs.Presentation(p, DT, reaction_time=reaction) for p in several]
    own = dvs.PresentationBatch(ones, n_stimuli=2)
    loaded = LoadedBatch(
        torch.zeros(2, BATCH, 1), torch.randint(0, 3, (2, BATCH), generator=generator), own
    )
    onsets = torch.cat([onset_table(own, BATCH), torch.full((1, BATCH), -1)])
    answering = Answering(loaded, onsets, RULES, "membrane")
    state = RunState((), {}, BATCH, 0)
    counted = 0
    ends = [0, *cuts, STEPS]
    for start, stop in pairwise(ends):
        part = slice(start, stop)
        run = Recording(membrane[part], spikes[part], {}, state, DT, None, None, start)
        counted += sum(int(score.counted.sum()) for score in answering.add(run))
    assert counted == STEPS * BATCH
    for sample, one in enumerate(ones):
        column = slice(sample, sample + 1)
        rows = slice(len(one.onsets))
        decoded = decode(membrane[:, column])
        settled = settling_time(decoded, one.onsets, one.supervised_mask, DT)
        got = answering.times(SETTLING)[rows, column]
        assert torch.equal(got.nan_to_num(-1), settled.nan_to_num(-1))
        for name, rule in RULES.items():
            alone = decide(rule, membrane[:, column], spikes[:, column], one.onsets, DT)
            got = answering.times(name)[rows, column]
            assert torch.equal(got.nan_to_num(-1), alone.times.nan_to_num(-1))
            due = [loaded.labels[one.stimulus_at[t] - 1, sample] for t in one.onsets]
            right = [c == d for c, d in zip(alone.classes[:, 0], due, strict=True)]
            assert answering.right(name)[rows, sample].tolist() == right
        assert answering.times(SETTLING)[len(one.onsets) :, sample].isnan().all()


# -- what is kept ---------------------------------------------------------------------------------


def test_without_timesteps_kept_all_else_is_said_the_same():
    rules = {"margin": RULES["margin"]}
    kept = simulated(presentation=TWO, rules=rules, every=3.0)
    alone = simulated(presentation=TWO, rules=rules, every=3.0, by_timestep=False)
    assert (alone.by_timestep, kept.by_timestep) == (False, True)
    for fact in ("accuracy", "accuracy_last", "accuracy_by_phase", "settling_time", "n_samples"):
        assert getattr(alone, fact) == getattr(kept, fact)
    assert alone.budget.layers == kept.budget.layers
    assert alone.budget.total == kept.budget.total
    assert {name: moment.to_dict() for name, moment in alone.moments.items()} == {
        name: moment.to_dict() for name, moment in kept.moments.items()
    }
    for refused in (lambda: alone.accuracy_by_timestep, lambda: alone.correct_by_timestep):
        with pytest.raises(DataError, match="by_timestep=True"):
            refused()
    with pytest.raises(EnergyError, match="by_timestep=True"):
        alone.budget.by_timestep("spikes")
    assert dvs.Simulation.from_dict(json.loads(json.dumps(alone.to_dict()))) == alone


def test_a_comparison_that_was_not_kept_by_timestep_shows_all_but_time(tmp_path):
    pytest.importorskip("matplotlib")
    rules = {"margin": RULES["margin"]}
    options = {"decoding": "spike_count", "rules": rules, "every": 3.0, "by_timestep": False}
    alone = simulated(presentation=ONE, **options)
    kept = simulated(presentation=ONE, **{**options, "by_timestep": True})
    comparison = dvs.Comparison({"streamed": alone, "kept": kept})
    figures = comparison.plot()
    assert {"accuracy", "energy", "pareto", "anytime", "membrane-kept"} <= figures.keys()
    assert not any(name.endswith("-streamed") for name in figures)
    only = dvs.Comparison({"streamed": alone})
    assert not {"accuracy", "time", "anytime"} & only.plot().keys()
    only.save(tmp_path / "streamed")
    assert dvs.comparison.load(tmp_path / "streamed") == only
    assert "the spike count of 3 since the onset" in " ".join(comparison.table().split())
    with pytest.raises(ComparisonError, match="by timestep"):
        dvs.Comparison({"one": [alone, kept]})


def long_run(n_timesteps, **kwargs):
    images, labels = dataset(4)
    presentation = dvs.Presentation("01", DT, n_timesteps=n_timesteps, reaction_time=2.0)
    model = dvs.wrap(spiking(), dt=DT)
    return model, lambda: dvs.simulate(
        model, [(images, labels)], presentation, every=50.0, progress=False, **kwargs
    )


@pytest.mark.parametrize("per_sample", [False, True])
def test_bytes_kept_of_a_timestep(per_sample):
    rules = {"margin": RULES["margin"]} if per_sample else {}

    def kept(n_timesteps, **kwargs):
        _, run = long_run(n_timesteps, per_sample=per_sample, rules=rules, **kwargs)
        return run()

    short, long = kept(200), kept(1000)
    series = sum(
        1 for layer in long.budget.counts for name in layer.series if name != "spikes"
    )  # spikes are active updates, in the same memory
    phases, classes = 3, 4
    # float64 by layer and phase, and how many samples there were; answers; float32 of one sample.
    each = 8 * phases * (series + 1) + 2 * 8 * phases + 4 * classes
    assert bytes_in(long) - bytes_in(short) == 800 * each
    assert bytes_in(kept(1000, by_timestep=False)) == bytes_in(kept(200, by_timestep=False))


def tensors_alive():
    # Not the compiler's own, which have no memory.
    real = (torch.Tensor, torch.nn.Parameter)
    return [found for found in gc.get_objects() if type(found) in real]


def alive_at_the_end(n_timesteps, **kwargs):
    """Bytes of all tensors alive at the last timestep of the run that were not before it."""
    model, run = long_run(n_timesteps, **kwargs)
    calls, alive = 0, 0

    def look(*called):
        nonlocal calls, alive
        calls += 1
        if calls == n_timesteps:
            storages = [tensor.untyped_storage() for tensor in tensors_alive()]
            sizes = {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in known}
            alive = sum(sizes.values())

    handle = model.net[0].register_forward_hook(look)
    gc.collect()
    before = tensors_alive()  # held, so that their memory is not given to others
    known = {tensor.untyped_storage().data_ptr() for tensor in before}
    run()
    handle.remove()
    return alive


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_no_tensor_that_grows_is_alive_while_a_long_run_streams():
    rules = {"margin": RULES["margin"], "first": RULES["first"]}
    short, long = (alive_at_the_end(n, by_timestep=False, rules=rules) for n in (200, 1000))
    assert long <= short + 4096
    # The same look sees what does grow.
    assert alive_at_the_end(1000, rules=rules) > long + 800 * 200


def test_python_holds_no_more_of_a_longer_run():
    def peak(n_timesteps):
        _, run = long_run(n_timesteps, by_timestep=False)
        run()
        gc.collect()
        tracemalloc.start()
        run()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(1000) <= 1.3 * peak(200)
