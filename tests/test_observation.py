"""Observations: which layer, which timesteps of which run, in one layout; and hooks given back."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import (
    CLASSES,
    DT,
    FEATURES,
    HIDDEN,
    STYLES,
    LoopInsideBatchFirst,
    Style,
    leaky,
    sequential_init_hidden,
    sequential_state_lifted,
)
from torch import Tensor, nn

from dynvision_snn import Presentation, wrap
from dynvision_snn.errors import ObservationError
from dynvision_snn.observation import (
    Attachment,
    Listener,
    Observation,
    Rhythm,
    Run,
    watchable,
)

every_style = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
T, B, IDLE = 6, 3, 2


class Witness(Listener):
    """Keeps everything that it is told."""

    def __init__(self, *, fails_at_end: bool = False) -> None:
        self.observed: list[Observation] = []
        self.told: list[str] = []
        self.fails_at_end = fails_at_end

    def observe(self, observation: Observation) -> None:
        self.observed.append(observation)

    def begin_run(self, run: Run) -> None:
        self.told.append("begin")

    def end_run(self, run: Run) -> None:
        self.told.append("end")
        if self.fails_at_end:
            raise ValueError("cannot end")

    def abandon_run(self, run: Run) -> None:
        self.told.append("abandon")

    def of(self, name: str) -> list[Observation]:
        return [observation for observation in self.observed if observation.name == name]


class IdleWitness(Witness):
    hears_idle: ClassVar[bool] = True


class SynapseWitness(Witness):
    hears_synapses: ClassVar[bool] = True


def attach(host: nn.Module, listener: Listener, **options: Any) -> Attachment:
    return Attachment(host, listener, watchable(host), **options)


def images(batch: int = B) -> Tensor:
    return 2 * torch.rand(batch, FEATURES, generator=torch.Generator().manual_seed(0))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# -- timesteps ------------------------------------------------------------------------------------


@every_style
@pytest.mark.parametrize("idle", [0, IDLE])
def test_every_layer_is_observed_at_every_timestep_once(style: Style, idle: int):
    model = wrap(style.fresh(), dt=DT)
    without, hears = Witness(), IdleWitness()
    attachments = [attach(model, without), attach(model, hears)]
    model(images(), Presentation("011110", dt=DT, idle_time=idle * DT))
    layers = {layer.name for layer in model.layers() if layer.is_stateful}
    assert layers == {o.name for o in hears.observed if o.layer is not None and o.layer.is_stateful}
    for name in {o.name for o in hears.observed if o.output is not None}:
        for listener, first in ((without, 0), (hears, -idle)):
            steps = [t for o in listener.of(name) for t in range(o.t0, o.t1)]
            assert steps == list(range(first, T)), name
    for observation in hears.observed:
        if observation.output is not None:
            assert observation.output.shape[:2] == (observation.t1 - observation.t0, B)
    assert [a.closed for a in attachments] == [False, False]


@every_style
def test_observed_values_are_the_recorded_ones(style: Style):
    model = wrap(style.fresh().eval(), dt=DT)
    witness = Witness()
    attachment = attach(model, witness)
    names = [layer.name for layer in model.layers()]
    run = model(images().expand(T, B, FEATURES), record=names)
    for name in names:
        observed = torch.cat([o.output for o in witness.of(name)])
        assert torch.equal(observed, run.layers[name].output)
    attachment.close()


def test_a_run_says_its_phases_idle_steps_and_dt():
    model = wrap(sequential_init_hidden(), dt=DT)
    witness = IdleWitness()
    attachment = attach(model, witness)
    presentation = Presentation("001111", dt=DT, reaction_time=2.0, idle_time=IDLE * DT)
    first = model(images(), presentation)
    model(images(), presentation, state=first.state)
    runs = list(dict.fromkeys(o.run for o in witness.observed))
    assert witness.told == ["begin", "end"] * 2
    assert [run.idle_steps for run in runs] == [IDLE, 0]
    assert [run.start for run in runs] == [0, T]
    for run in runs:
        assert torch.equal(run.phases, presentation.phase_codes)
        assert (run.n_timesteps, run.dt, run.with_grad) == (T, DT, True)
    attachment.close()


def test_in_a_users_loop_calls_are_timesteps_until_a_run_begins():
    net = sequential_init_hidden()
    witness = Witness()
    attachment = attach(net, witness)
    for _ in range(3):
        net(images())
    attachment.begin_run(Run())
    net(images())
    assert [(o.t0, o.t1) for o in witness.of("1")] == [(0, 1), (1, 2), (2, 3), (0, 1)]
    assert len({o.run for o in witness.of("1")}) == 2


def test_a_bare_listener_on_the_inner_net_sees_every_call():
    model = wrap(sequential_init_hidden(), dt=DT)
    witness = Witness()
    attachment = attach(model.net, witness)
    for _ in range(2):
        model(images(), Presentation("011110", dt=DT, idle_time=IDLE * DT))
    assert [o.t0 for o in witness.of("1")] == list(range(2 * (T + IDLE)))
    assert witness.told == []
    attachment.close()


class SharesItsReadIn(nn.Module):
    """A Linear used twice on whole sequences, another twice at each timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.step = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.lif = leaky()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        currents = self.whole(x) + self.whole(x.flip(2))
        mem, spikes, membranes = self.lif.reset_mem(), [], []
        for current in currents:
            spk, mem = self.lif(self.step(current) + self.step(-current), mem)
            spikes.append(spk)
            membranes.append(mem)
        return torch.stack(spikes), torch.stack(membranes)


def test_a_synapse_layer_used_twice_is_observed_twice_at_the_same_timesteps():
    model = wrap(SharesItsReadIn(), dt=DT)
    witness = IdleWitness()
    attachment = attach(model, witness)
    model(images(), Presentation("011110", dt=DT, idle_time=IDLE * DT))
    assert [(o.t0, o.t1) for o in witness.of("whole")] == [(-IDLE, 0), (0, T)] * 2
    assert [o.t0 for o in witness.of("step")] == [t for t in range(-IDLE, T) for _ in range(2)]
    attachment.close()


def test_values_of_a_batch_first_model_are_time_first():
    net = LoopInsideBatchFirst()
    model = wrap(net, dt=DT)
    witness = Witness()
    attachment = attach(model, witness)
    x = torch.rand(T, B, FEATURES)
    model(x)
    (seen,) = witness.of("fc1")
    assert torch.equal(seen.inputs, x)
    assert seen.output.shape == (T, B, HIDDEN)
    attachment.close()


@given(
    n_timesteps=st.integers(1, 4),
    batch=st.integers(1, 4),
    units=st.lists(st.integers(1, 3), max_size=2),
)
def test_every_rhythm_gives_the_same_layout(n_timesteps, batch, units):
    values = torch.rand(n_timesteps, batch, *units)
    swapped = values.transpose(0, 1)
    assert torch.equal(Rhythm("step").time_first(values[0]), values[:1])
    assert torch.equal(Rhythm("whole").time_first(values), values)
    assert torch.equal(Rhythm("whole", time_axis=1).time_first(swapped), values)
    merged = Rhythm("merged")
    assert torch.equal(merged.time_first(values.flatten(0, 1), n_timesteps), values)
    merged = Rhythm("merged", time_axis=1)
    assert torch.equal(merged.time_first(swapped.flatten(0, 1), n_timesteps), values)


def test_a_part_of_an_observation_is_those_timesteps_of_everything_in_it():
    model = wrap(sequential_state_lifted(), dt=DT)
    witness = Witness()
    attachment = attach(model, witness)
    model(images().expand(T, B, FEATURES), record=["2"])
    (whole,) = witness.of("2")
    part = whole.part(2, 5)
    assert (part.t0, part.t1, part.name, part.run) == (2, 5, "2", whole.run)
    for one, other in ((part.inputs, whole.inputs), (part.output, whole.output)):
        assert torch.equal(one, other[2:5])
    attachment.close()


def test_recurrent_weights_hear_the_spikes_of_the_timestep_before():
    net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), STYLES["norse_list"].fresh().lif)
    witness = SynapseWitness()
    attachment = attach(net[1], witness)
    state, spikes, currents = None, [], []
    for _ in range(T):
        currents.append(100 * net[0](images()))
        z, state = net[1](currents[-1], state)
        spikes.append(z)
    heard = [o.presynaptic for o in witness.observed]
    for t, (given_input, recurrent) in enumerate(heard):
        assert torch.equal(given_input[0], currents[t])
        assert recurrent is None if t == 0 else torch.equal(recurrent[0], spikes[t - 1])
    assert sum(spike.sum() for spike in spikes) > 0
    attachment.close()


# -- runs that end badly --------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["step", "layer"])
def test_listeners_are_told_in_the_order_in_which_they_came(engine: str):
    """Losses that listen add to the graph what they hear, and its sums follow the order."""
    model = wrap(sequential_init_hidden(), dt=DT, engine=engine)
    told: list[int] = []

    class Numbered(Listener):
        def __init__(self, number: int) -> None:
            self.number = number

        def observe(self, observation: Observation) -> None:
            told.append(self.number)

    listeners = [Numbered(number) for number in range(12)]
    first_layer = [item for item in watchable(model) if item.layer is not None][:1]
    attachments = [Attachment(model, listener, first_layer) for listener in listeners]
    attachments.pop(3).close()
    model(images().expand(T, B, FEATURES))
    expected = [number for number in range(12) if number != 3]
    assert told == expected * (T if engine == "step" else 1)


def test_a_failed_run_is_abandoned_and_the_next_starts_anew():
    model = wrap(sequential_init_hidden(), dt=DT)
    model(images().expand(T, B, FEATURES))
    witness = Witness()
    attachment = attach(model, witness)
    with pytest.raises(RuntimeError):
        model(torch.rand(T, B, FEATURES + 1))
    witness.observed.clear()
    model(images().expand(T, B, FEATURES))
    assert witness.told == ["begin", "abandon", "begin", "end"]
    assert [o.t0 for o in witness.of("1")] == list(range(T))
    attachment.close()


def test_a_listener_that_fails_does_not_keep_the_others_in_its_run():
    model = wrap(sequential_init_hidden(), dt=DT)
    listeners = [Witness(), Witness(fails_at_end=True), Witness()]
    attachments = [attach(model, listener) for listener in listeners]
    with pytest.raises(ValueError, match="cannot end"):
        model(images().expand(T, B, FEATURES))
    assert [listener.told for listener in listeners] == [["begin", "end"]] * 3
    for attachment in attachments:
        attachment.close()


class Skips(nn.Module):
    """Calls one of its neurons at some timesteps only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky(init_hidden=True)
        self.aside = leaky(init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        current = self.fc(x)
        if x.max() < 50:
            self.aside(current)
        return self.lif(current)


def test_a_neuron_that_is_skipped_at_some_timesteps_is_refused_by_name():
    model = wrap(Skips(), dt=DT, readout="lif")
    witness = Witness()
    attachment = attach(model, witness)
    x = images().repeat(T, 1, 1)
    model(x)
    x[2] = 100.0
    with pytest.raises(ObservationError, match=r"aside: 5"):
        model(x)
    assert witness.told == ["begin", "end", "begin", "abandon"]
    attachment.close()


def test_several_hosts_in_one_module_are_refused():
    pair = nn.ModuleList([wrap(sequential_init_hidden(), dt=DT) for _ in range(2)])
    with pytest.raises(ObservationError, match="several models"):
        watchable(pair)


def test_names_are_those_of_the_users_own_model():
    net = STYLES["nested_init_hidden"].fresh()
    bare = [watched.name for watched in watchable(net)]
    model = wrap(net, dt=DT)
    assert [watched.name for watched in watchable(model)] == bare
    assert [watched.name for watched in watchable(nn.ModuleDict({"inner": model}))] == bare


# -- hooks ----------------------------------------------------------------------------------------


def test_hooks_are_given_back_once():
    net = sequential_init_hidden()
    witness = SynapseWitness()
    foreign = net[1].register_forward_hook(lambda *_: None)
    before = hooks(net)
    attachment = attach(net, witness)
    assert hooks(net) > before
    assert not attachment.closed
    attachment.close()
    attachment.close()
    assert attachment.closed
    assert hooks(net) == before
    assert foreign.id in net[1]._forward_hooks
    net(images())
    assert witness.observed == []


def test_hooks_are_given_back_when_the_attachment_is_gone():
    net = sequential_init_hidden()
    witness = Witness()
    attachment = attach(net, witness)
    gone = weakref.ref(attachment)
    del attachment
    gc.collect()
    assert gone() is None
    assert hooks(net) == 0


def test_a_listener_that_is_gone_is_not_told():
    model = wrap(sequential_init_hidden(), dt=DT)
    witness = Witness()
    attachment = attach(model, witness)
    gone = weakref.ref(witness)
    del witness
    gc.collect()
    assert gone() is None
    model(images().expand(T, B, FEATURES))
    attachment.close()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_and_pickles_carry_inert_hooks(copied):
    net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU())
    witness = Witness()
    attachment = attach(net, witness)
    twin = copied(net)
    twin(images())
    assert witness.observed == []
    net(images())
    assert len(witness.observed) == 3
    attachment.close()


def test_a_copy_of_a_timed_model_is_told_to_nobody():
    model = wrap(sequential_init_hidden(), dt=DT)
    witness = Witness()
    attachment = attach(model, witness)
    copy.deepcopy(model)(images().expand(T, B, FEATURES))
    assert witness.told == []
    assert witness.observed == []
    attachment.close()


def test_our_hooks_see_the_run_and_not_the_look():
    model = wrap(sequential_init_hidden(), dt=DT)
    inner, outer = SynapseWitness(), SynapseWitness()
    attachments = [attach(model.net, inner), attach(model, outer)]
    model(images().expand(T, B, FEATURES))
    assert len(inner.of("1")) == len(outer.of("1")) == T
    for attachment in attachments:
        attachment.close()
    assert hooks(model) == 0
