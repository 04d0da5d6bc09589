"""simulate(): against loops written out, what it keeps, and what it refuses."""

from __future__ import annotations

import gc
import json
import math
import weakref

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dynvision_snn as dvs
from dynvision_snn.decision import FirstSpike, MembraneMargin, SoftmaxConfidence
from dynvision_snn.errors import DataError, EnergyError, ReadoutError, WrapError
from dynvision_snn.moments import SETTLING, Moment
from dynvision_snn.provenance import Fingerprinting

FEATURES, CLASSES, DT = 6, 4, 1.0
ONE = dvs.Presentation("0011110", dt=DT, reaction_time=2.0)
TWO = dvs.Presentation("0110220", dt=DT, reaction_time=1.0)


def spiking():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(FEATURES, 9),
        snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True),
        nn.Linear(9, CLASSES),
        snn.Leaky(beta=0.8, threshold=0.4, init_hidden=True, output=True),
    )


def integrating():
    torch.manual_seed(1)
    return norse.SequentialState(
        nn.Linear(FEATURES, 9),
        norse.LIFCell(p=norse.LIFParameters(v_th=torch.tensor(0.1)), dt=DT / 1000),
        nn.Linear(9, CLASSES),
        norse.LICell(dt=DT / 1000),
    )


def analog():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(FEATURES, 9), nn.ReLU(), nn.Linear(9, CLASSES))


NETS = {"spiking": spiking, "integrating": integrating, "analog": analog}


def dataset(n=23, several=False, seed=3):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, n) if several else (n,)
    images = torch.rand(*shape, FEATURES, generator=generator)
    images = images * (torch.rand(images.shape, generator=generator) > 0.3)
    return images, torch.randint(CLASSES, shape, generator=generator)


def batches(images, labels, sizes, several=False):
    axis = 1 if several else 0
    return list(zip(images.split(sizes, axis), labels.split(sizes, axis), strict=True))


def simulated(name="spiking", presentation=ONE, sizes=(10, 10, 3), **kwargs):
    several = presentation.n_stimuli > 1
    images, labels = dataset(several=several)
    # Step by step: the same bits however a run is cut.
    model = dvs.wrap(NETS[name](), dt=DT, engine="step")
    loader = batches(images, labels, list(sizes), several)
    return dvs.simulate(model, loader, presentation, progress=False, **kwargs)


def membranes_by_hand(name, presentation):
    """One sample after the other, one timestep after the other: ``[T, N, classes]``."""
    images, labels = dataset(several=presentation.n_stimuli > 1)
    net, traces = NETS[name]().eval(), []
    n_samples = labels.shape[-1]
    with torch.no_grad():
        for sample in range(n_samples):
            state, rows = None, []
            for module in net.modules():
                if isinstance(module, snn.SpikingNeuron):
                    module.reset_mem()
            for shown in presentation.stimulus_at.tolist():
                if not shown:
                    x = torch.zeros(1, FEATURES)
                else:
                    x = (images[shown - 1] if images.ndim == 3 else images)[sample : sample + 1]
                if name == "integrating":
                    out, state = net(x, state)
                else:
                    out = net(x)
                rows.append((out[1] if isinstance(out, tuple) else out)[0])
            traces.append(torch.stack(rows))
    return torch.stack(traces, dim=1), labels


def answer_at(presentation, labels, sample, step):
    """The class of the stimulus shown, or shown last, or to be shown first."""
    shown = presentation.stimulus_at.tolist()
    past = [k for k in shown[: step + 1] if k]
    index = (past[-1] if past else next(k for k in shown if k)) - 1
    return int(labels[index, sample] if labels.ndim == 2 else labels[sample])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("presentation", [ONE, TWO], ids=["one", "two"])
def test_accuracies_are_those_of_loops_written_out(name, presentation):
    membranes, labels = membranes_by_hand(name, presentation)
    supervised = presentation.supervised_mask.tolist()
    reaction = presentation.reaction_mask.tolist()
    n_timesteps, n_samples, _ = membranes.shape
    right = [[False] * n_samples for _ in range(n_timesteps)]
    for t in range(n_timesteps):
        for i in range(n_samples):
            scores = membranes[t, i]
            if float(scores.max()) > float(scores.min()):
                right[t][i] = int(scores.argmax()) == answer_at(presentation, labels, i, t)
    share = [sum(row) / n_samples for row in right]
    got = simulated(name, presentation)
    assert got.accuracy_by_timestep.tolist() == pytest.approx(share)

    def over(steps):
        picked = [share[t] for t in range(n_timesteps) if steps[t]]
        return sum(picked) / len(picked)

    assert got.accuracy == pytest.approx(over(supervised))
    last = max(t for t in range(n_timesteps) if supervised[t])
    assert got.accuracy_last == pytest.approx(share[last], rel=1e-12)
    rest = [not s and not r for s, r in zip(supervised, reaction, strict=True)]
    by_phase = {"null": over(rest), "reaction": over(reaction), "supervised": over(supervised)}
    assert got.accuracy_by_phase == pytest.approx(by_phase, rel=1e-12)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("presentation", [ONE, TWO], ids=["one", "two"])
def test_settling_and_decisions_are_those_of_loops_written_out(name, presentation):
    rule = MembraneMargin(0.05)
    got = simulated(name, presentation, rules={"margin": rule})
    membranes, labels = membranes_by_hand(name, presentation)
    onsets, supervised = presentation.onsets, presentation.supervised_mask.tolist()
    stops = [*onsets[1:], len(supervised)]
    for row, (onset, stop) in enumerate(zip(onsets, stops, strict=True)):
        span = [t for t in range(onset, stop) if supervised[t]]
        for i in range(membranes.shape[1]):
            classes = [
                -1 if float(m.max()) == float(m.min()) else int(m.argmax()) for m in membranes[:, i]
            ]
            settled = math.nan
            if classes[span[-1]] != -1:
                settled = next(
                    (t - onset) * DT
                    for t in span
                    if all(classes[u] == classes[span[-1]] for u in span if u >= t)
                )
            answer = answer_at(presentation, labels, i, onset)
            moment = got.moments[SETTLING]
            assert float(got.settling_times[row, i]) == pytest.approx(settled, nan_ok=True)
            assert float(moment.times[row, i]) == pytest.approx(settled, nan_ok=True)
            assert bool(moment.right[row, i]) == (
                not math.isnan(settled) and classes[span[-1]] == answer
            )
            leads = [m.sort(descending=True).values for m in membranes[:, i]]
            met = [t for t in range(onset, stop) if float(leads[t][0] - leads[t][1]) >= 0.05]
            moment = got.moments["margin"]
            assert moment.rule == repr(rule)
            expected = (met[0] - onset) * DT if met else math.nan
            assert float(moment.times[row, i]) == pytest.approx(expected, nan_ok=True)
            assert bool(moment.right[row, i]) == (bool(met) and classes[met[0]] == answer)


@pytest.mark.parametrize("name", NETS)
def test_the_budget_is_counted_by_hand_from_weights_and_inputs(name):
    """Every nonzero input of a Linear meets every nonzero weight of its column, once a timestep."""
    net, counts = NETS[name]().eval(), {"synops": 0.0, "dense": 0.0}

    def count(module, inputs, _):
        fan_out = (module.weight != 0).sum(0).double()
        counts["synops"] += float(((inputs[0] != 0).double() * fan_out).sum())
        counts["dense"] += module.weight.numel() * len(inputs[0])

    for module in net:
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count)
    images, labels = dataset()
    state = None
    with torch.no_grad():
        for shown in ONE.stimulus_at.tolist():
            x = images if shown else torch.zeros_like(images)
            if name == "integrating":
                _, state = net(x, state)
            else:
                net(x)
    total = simulated(name).budget.total
    assert total.synops_ac + total.synops_mac == pytest.approx(counts["synops"] / len(labels))
    assert total.synops_dense == pytest.approx(counts["dense"] / len(labels))


def test_energy_until_a_moment_is_that_of_a_run_that_ends_there():
    """The moment's counts, measured again in single runs cut off after its timestep."""
    p = dvs.Presentation("111111", dt=DT)  # the onset is the beginning
    got = simulated("spiking", p, rules={"sure": SoftmaxConfidence(0.3)})
    images, labels = dataset()
    moment = got.moments["sure"]
    assert 0 < moment.reached <= 1
    profile = "loihi"
    spent = []
    for i in range(len(labels)):
        if moment.times[0, i].isnan():
            assert moment.operations["spikes"][0, i].isnan()
            continue
        steps = int(moment.times[0, i] / DT) + 1
        cut = dvs.Presentation("1" * steps, dt=DT)
        alone = dvs.simulate(
            dvs.wrap(spiking(), dt=DT), [(images[i : i + 1], labels[i : i + 1])], cut
        ).budget
        assert float(moment.timesteps[0, i]) == steps
        for quantity in ("spikes", "neuron_updates", "synops_dense"):
            assert float(moment.operations[quantity][0, i]) == getattr(alone.total, quantity)
        both = moment.operations["synops_ac"][0, i] + moment.operations["synops_mac"][0, i]
        assert float(both) == alone.total.synops_ac + alone.total.synops_mac
        figures = dvs.hardware_profiles()[profile]
        active = moment.operations["neuron_updates_active"][0, i]
        updates = moment.operations["neuron_updates"][0, i]
        spent.append(
            float(
                figures.ac * moment.operations["synops_ac"][0, i]
                + figures.neuron_update_active * active
                + figures.neuron_update_inactive * (updates - active)
                + figures.spike * moment.operations["spikes"][0, i]
            )
        )
    assert moment.joules(profile) == pytest.approx(sum(spent) / len(spent))


@pytest.mark.parametrize("presentation", [ONE, TWO], ids=["one", "two"])
def test_batches_and_their_order_change_nothing(presentation):
    whole = simulated("spiking", presentation, sizes=(23,), rules={"first": FirstSpike()})
    parts = simulated("spiking", presentation, sizes=(1, 15, 7), rules={"first": FirstSpike()})
    assert whole.data == parts.data
    assert whole.accuracy_by_timestep.tolist() == parts.accuracy_by_timestep.tolist()
    for name in (SETTLING, "first"):
        for ours, theirs in (
            (whole.moments[name].times, parts.moments[name].times),
            (whole.moments[name].timesteps, parts.moments[name].timesteps),
        ):
            assert torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))
    ours, theirs = whole.budget.total, parts.budget.total
    for quantity in ("spikes", "synops_ac", "synops_mac", "neuron_updates"):
        assert getattr(ours, quantity) == pytest.approx(getattr(theirs, quantity))


def test_no_activation_is_kept_from_batch_to_batch():
    seen: list[weakref.ref] = []
    net = spiking()
    net[1].register_forward_hook(lambda module, inputs, output: seen.append(weakref.ref(output)))
    images, labels = dataset()
    alive = []

    def loader():
        for batch in batches(images, labels, 5):
            gc.collect()
            # The net's own state, which the next run resets, may hold its last output.
            alive.append(sum(ref() is not None for ref in seen))
            yield batch

    dvs.simulate(dvs.wrap(net, dt=DT), loader(), ONE, progress=False)
    assert len(seen) > 4 * ONE.n_timesteps
    assert max(alive) <= 2


def test_every_module_gets_its_own_mode_back_even_after_an_error():
    net = spiking()
    net.insert(2, nn.Dropout(0.5)).train()
    net[0].eval()
    modes = {name: module.training for name, module in net.named_modules()}
    seen = []
    net[1].register_forward_hook(lambda module, inputs, output: seen.append(net[2].training))
    model = dvs.wrap(net, dt=DT)
    dvs.simulate(model, [dataset()], ONE)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert not any(seen[-ONE.n_timesteps :])
    with pytest.raises(DataError):
        dvs.simulate(model, [dataset(), "nothing"], ONE)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert not any(p.requires_grad is False or p.is_inference() for p in model.parameters())


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        ([], "no batch"),
        (["text"], "expected pairs"),
        ([torch.rand(3, FEATURES)], "expected pairs"),
        ([(torch.rand(3, FEATURES),)], "expected pairs"),
        ([([1, 2], torch.tensor([0, 1]))], "expected pairs"),
        ([(torch.rand(3, FEATURES), torch.tensor([0, 1]))], None),
    ],
)
def test_a_loader_that_gives_something_else_is_refused(loader, reason):
    with pytest.raises(ValueError, match=reason):
        dvs.simulate(dvs.wrap(spiking(), dt=DT), loader, ONE)


def test_what_cannot_be_simulated_is_refused():
    with pytest.raises(WrapError, match="Wrap it first"):
        dvs.simulate(spiking(), [dataset()], ONE)
    images, labels = dataset()
    images[4, 0] = math.nan
    with pytest.raises(ReadoutError, match="not finite"):
        dvs.simulate(dvs.wrap(analog(), dt=DT), [(images, labels)], ONE)
    model = dvs.wrap(analog(), dt=DT)
    with pytest.raises(ReadoutError, match="needs the readout's spikes"):
        dvs.simulate(model, [dataset()], ONE, rules={"first": FirstSpike()})
    with pytest.raises(DataError, match="per_sample"):
        dvs.simulate(model, [dataset()], ONE, rules={"m": MembraneMargin(1.0)}, per_sample=False)
    with pytest.raises(DataError, match="another name"):
        dvs.simulate(model, [dataset()], ONE, rules={SETTLING: MembraneMargin(1.0)})


def test_nothing_is_told_of_moments_without_an_onset_or_without_samples_apart():
    with pytest.warns(dvs.errors.PresentationWarning):
        silent = dvs.Presentation("000", dt=DT)
    got = simulated("spiking", silent)
    assert got.moments == {}
    assert math.isnan(got.accuracy)
    assert math.isnan(got.settling_time)
    plain = simulated("spiking", per_sample=False)
    assert plain.moments == {}
    assert plain.settling_time == simulated("spiking").settling_time


def test_the_trace_is_the_run_of_the_first_sample():
    got = simulated("spiking")
    membranes, labels = membranes_by_hand("spiking", ONE)
    assert got.trace.labels == (int(labels[0]),)
    assert torch.allclose(got.trace.membrane, membranes[:, 0])
    run = dvs.wrap(spiking(), dt=DT)(dataset()[0][:1], ONE, record=["1"])
    expected = [tuple(event) for event in run.layers["1"].spikes[:, 0].nonzero().tolist()]
    assert expected
    assert list(got.trace.rasters["1"].spikes) == expected
    assert set(got.trace.rasters) == {"1", "3"}


@pytest.mark.parametrize("name", NETS)
def test_json_gives_an_equal_simulation(name):
    got = simulated(name, rules={"margin": MembraneMargin(5.0)})
    read = dvs.Simulation.from_dict(json.loads(json.dumps(got.to_dict(), allow_nan=False)))
    assert read == got
    assert read.accuracy == got.accuracy
    assert read.moments["margin"].joules("45nm-fp32") == pytest.approx(
        got.moments["margin"].joules("45nm-fp32"), nan_ok=True
    )
    assert read != simulated(name)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d.pop("budget"), DataError),
        (lambda d: d.update(more=1), DataError),
        (lambda d: d["settling_times"][0].pop(), DataError),
        (lambda d: d["trace"]["membrane"].pop(), DataError),
        (lambda d: d["budget"].update(schema=99), EnergyError),
        (lambda d: d["moments"]["settling"].pop("times"), DataError),
        (lambda d: d["moments"]["settling"]["timesteps"].append([1.0] * 23), DataError),
    ],
)
def test_changed_json_is_refused(change, error):
    values = json.loads(json.dumps(simulated("spiking").to_dict()))
    change(values)
    with pytest.raises(error):
        dvs.Simulation.from_dict(values)


def test_a_fingerprint_tells_samples_and_labels_apart_and_not_their_order():
    images, labels = dataset()

    def of(images, labels):
        fingerprint = Fingerprinting()
        fingerprint.add(images, labels)
        return fingerprint.result()

    order = torch.randperm(len(labels))
    assert of(images[order], labels[order]) == of(images, labels)
    assert of(images, labels.roll(1)) != of(images, labels)
    assert of(images + 1e-6, labels) != of(images, labels)
    assert of(images.double(), labels) != of(images, labels)
    with pytest.raises(DataError, match="with 3 labels"):
        Fingerprinting().add(images, labels[:3])
    with pytest.raises(DataError, match="no sample"):
        Fingerprinting().result()
    mixed = Fingerprinting()
    mixed.add(images, labels)
    with pytest.raises(DataError, match="the same of all"):
        mixed.add(images.double(), labels)


def test_a_moment_whose_shapes_disagree_is_refused():
    times, flags = torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool)
    for right, asked in ((flags[:, :2], flags), (flags, flags[:, :2])):
        with pytest.raises(DataError, match="onsets, N"):
            Moment(times, right, asked, {}, times)


def test_a_dataloader_serves_as_well_as_a_list():
    loader = DataLoader(TensorDataset(*dataset()), batch_size=8, shuffle=True)
    got = dvs.simulate(dvs.wrap(spiking(), dt=DT), loader, ONE)
    assert got.data == simulated("spiking").data
    assert got.accuracy == pytest.approx(simulated("spiking").accuracy)


@pytest.mark.parametrize("label", [CLASSES, 300, -1, -7])
def test_a_label_that_is_no_class_is_refused(label):
    images, labels = dataset()
    labels[5] = label
    model = dvs.wrap(spiking(), dt=DT)
    ignoring = dvs.Presentation("011", dt=DT, ignore_index=-100)
    with pytest.raises(DataError, match=rf"label {label}; .* {CLASSES} classes.* -100"):
        dvs.simulate(model, [(images, labels)], ignoring)
    ignoring = dvs.Presentation("011", dt=DT, ignore_index=label)
    counted = dvs.simulate(model, [(images, labels)], ignoring).counted_by_timestep
    assert counted.tolist() == [len(labels) - 1] * 3


@pytest.mark.parametrize("ignored", [0, CLASSES - 1])
def test_an_ignore_index_that_is_a_class_is_refused(ignored):
    model = dvs.wrap(spiking(), dt=DT)
    presentation = dvs.Presentation("011", dt=DT, ignore_index=ignored)
    with pytest.raises(DataError, match=rf"ignore_index is {ignored}, .* {CLASSES} classes"):
        dvs.simulate(model, [dataset()], presentation)


def test_samples_and_onsets_without_an_answer_are_no_wrong_answers_of_a_moment():
    images, labels = dataset()
    model, rules = dvs.wrap(spiking(), dt=DT), {"margin": MembraneMargin(0.05)}
    kept = labels.masked_fill(torch.arange(len(labels)) >= 8, -1)
    some = dvs.simulate(model, [(images, kept)], ONE, rules=rules)
    alone = dvs.simulate(model, [(images[:8], labels[:8])], ONE, rules=rules)
    short = dvs.Presentation("011", dt=DT)
    mixed = dvs.PresentationBatch([dvs.Presentation("0110110", dt=DT), short])
    pair = images[:2], labels[:2]
    onsets = dvs.simulate(model, [pair], mixed, rules=rules)
    for name in (SETTLING, "margin"):
        assert some.moments[name].accuracy == alone.moments[name].accuracy
        assert some.moments[name].reached == alone.moments[name].reached
        moment = onsets.moments[name]
        assert moment.asked.tolist() == [[True, True], [True, False]]
        assert moment.accuracy == pytest.approx(int(moment.right.sum()) / 3)
        assert moment.reached == pytest.approx(int((~moment.times.isnan()).sum()) / 3)
        assert Moment.from_dict(moment.to_dict()).accuracy == moment.accuracy


@pytest.mark.parametrize("every", [None, 3.0])
def test_samples_without_an_answer_are_in_no_mean_of_a_moment(every):
    """Times and joules are those of the other samples, simulated by themselves."""
    images, labels = dataset()
    model, rules = dvs.wrap(spiking(), dt=DT), {"margin": MembraneMargin(0.05)}
    kept = labels.masked_fill(torch.arange(len(labels)) % 3 == 0, -1)
    some = dvs.simulate(model, [(images, kept)], ONE, rules=rules, every=every)
    pair = images[kept >= 0], labels[kept >= 0]
    alone = dvs.simulate(model, [pair], ONE, rules=rules, every=every)
    every_one = dvs.simulate(model, [(images, labels)], ONE, rules=rules, every=every)
    assert some.settling_time == alone.settling_time != every_one.settling_time
    for name in (SETTLING, "margin"):
        mine, theirs = some.moments[name], alone.moments[name]
        assert mine.time == theirs.time
        assert mine.joules("loihi") == theirs.joules("loihi")
        assert mine.joules("loihi") != every_one.moments[name].joules("loihi")
        assert mine.times[:, kept < 0].isnan().all()
    with pytest.raises(DataError, match="nothing is asked"):
        Moment(mine.times.nan_to_num(0.0), mine.right, mine.asked, {}, mine.timesteps)


@pytest.mark.filterwarnings("ignore::dynvision_snn.errors.PresentationWarning")
def test_a_simulation_that_shows_nothing_is_read_back():
    got = simulated(presentation=dvs.Presentation("000", dt=DT))
    assert got.settling_times.shape == (0, 23)
    assert dvs.Simulation.from_dict(json.loads(json.dumps(got.to_dict()))) == got
