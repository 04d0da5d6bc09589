"""Every way of writing a model: found by looking once, and run as its own library would run it."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import norse.torch as norse
import pytest
import torch
from models import (
    CLASSES,
    DT,
    FEATURES,
    HIDDEN,
    STYLES,
    Amplify,
    ExplicitStates,
    GruStep,
    Style,
    leaky,
    reset_snntorch,
    sequential_init_hidden,
    sequential_state_lifted,
)
from torch import Tensor, nn
from torch.nn.utils import prune

import dynvision_snn as dvs
from dynvision_snn.engine.calling import arguments_of
from dynvision_snn.engine.witness import left_as_found
from dynvision_snn.errors import ObservationError, WrapError

# The reference: the library's own numbers, bit for bit.
wrap = partial(dvs.wrap, engine="step")

every_style = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
T, B = 9, 3


def inputs(n_timesteps: int = T, batch: int = B, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(n_timesteps, batch, FEATURES, generator=generator)


def gradients(net: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in net.parameters()]


# -- the library's own loop is the oracle ---------------------------------------------------------


@every_style
def test_equals_the_librarys_own_loop_bit_for_bit(style: Style):
    ours, theirs = style.fresh().eval(), style.fresh().eval()
    run = wrap(ours, dt=DT)(inputs())
    membrane, spikes = style.oracle(theirs, inputs())
    assert torch.equal(run.membrane, membrane)
    assert membrane.std() > 0
    assert (run.spikes is None) == (spikes is None)
    if spikes is not None:
        assert torch.equal(run.spikes, spikes)
        assert 0 < spikes.mean() < 1

    (run.membrane.square().mean()).backward()
    (membrane.square().mean()).backward()
    for ours_grad, theirs_grad in zip(gradients(ours), gradients(theirs), strict=True):
        assert (ours_grad is None) == (theirs_grad is None)
        # Equal up to the order in which autograd sums what reaches one membrane.
        assert ours_grad is None or torch.allclose(ours_grad, theirs_grad, rtol=1e-5, atol=1e-7)
    assert any(grad is not None and grad.any() for grad in gradients(ours))


@every_style
def test_finds_how_it_runs_and_what_is_decoded(style: Style):
    model = wrap(style.fresh(), dt=DT)
    run = model(inputs())
    assert run.readout == style.readout
    assert model._look.calling.stepping == style.stepping
    assert model._look.calling.time_axis == style.time_axis
    assert all(rhythm.form != "unclear" for rhythm in model._look.rhythms.values())


@every_style
def test_the_first_run_equals_the_second_and_is_no_other_than_without_a_look(style: Style):
    model = wrap(style.fresh().eval(), dt=DT)
    first = model(inputs())
    second = model(inputs())
    assert torch.equal(first.membrane, second.membrane)
    other = wrap(style.fresh().eval(), dt=DT)
    other(inputs(5, 2, seed=1))
    assert torch.equal(other(inputs()).membrane, first.membrane)


@every_style
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_looking_does_not_depend_on_the_batch(style: Style, batch: int):
    model = wrap(style.fresh().eval(), dt=DT)
    run = model(inputs(T, batch))
    assert torch.equal(run.membrane, style.oracle(style.fresh().eval(), inputs(T, batch))[0])
    assert run.readout == style.readout


@every_style
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_looking_at_blank_or_constant_images_finds_the_same(style: Style, value: float):
    model = wrap(style.fresh(), dt=DT)
    assert model(torch.full((T, B, FEATURES), value)).readout == style.readout


@every_style
def test_one_timestep(style: Style):
    model = wrap(style.fresh().eval(), dt=DT)
    run = model(inputs(1))
    assert torch.equal(run.membrane, style.oracle(style.fresh().eval(), inputs(1))[0])
    assert run.membrane.shape == (1, B, CLASSES)


# -- said by hand ---------------------------------------------------------------------------------


@every_style
def test_said_by_hand_is_the_same(style: Style):
    found = wrap(style.fresh().eval(), dt=DT)
    said = wrap(
        style.fresh().eval(),
        dt=DT,
        stepping=style.stepping,
        time_axis=style.time_axis if style.stepping == "sequence" else None,
        readout=style.readout,
    )
    assert torch.equal(found(inputs()).membrane, said(inputs()).membrane)


def test_a_readout_by_hand_is_decoded():
    model = wrap(ExplicitStates(), dt=DT, readout="lif1")
    run = model(inputs(), record=["lif1"])
    assert run.membrane.shape == (T, B, HIDDEN)
    assert torch.equal(run.membrane, run.layers["lif1"].membrane)


@pytest.mark.parametrize("name", ["explicit_states", "loop_inside", "loop_inside_batch_first"])
def test_the_output_itself_is_decoded_where_that_is_said(name):
    style = STYLES[name]
    model = wrap(style.fresh().eval(), dt=DT, readout="")
    run = model(inputs())
    membrane, spikes = style.oracle(style.fresh().eval(), inputs())
    first = membrane if name == "loop_inside_batch_first" else spikes
    assert torch.equal(run.membrane, first)
    assert (run.readout, run.spikes, run.membrane_is) == (None, None, None)
    run.membrane.sum().backward()


def test_an_output_that_cannot_be_decoded_cannot_be_said_to_be_the_readout():
    net = Returns(lambda spk1, mem1, spk2, mem2, out: out.sum(-1))
    with pytest.raises(WrapError, match=r"returned \[2\]"):
        wrap(net, dt=DT, readout="")(inputs())


def test_a_bare_layer_is_named_by_nothing_too():
    assert wrap(leaky(init_hidden=True), dt=DT, readout="")(inputs()).readout == ""


def test_the_output_of_a_recurrent_readout_is_decoded():
    model = wrap(GruStep(), dt=DT, readout="gru")
    assert model(inputs()).membrane.shape == (T, B, HIDDEN)


def test_a_readout_that_does_not_exist():
    with pytest.raises(WrapError, match=r"'lif3'.*Did you mean 'lif"):
        wrap(ExplicitStates(), dt=DT, readout="lif3")


def test_a_readout_that_is_never_reached():
    net = ExplicitStates()
    net.unused = leaky()
    with pytest.raises(WrapError, match=r"'unused' was not reached.*'lif1', 'lif2'"):
        wrap(net, dt=DT, readout="unused")(inputs())


@pytest.mark.parametrize(
    "options", [{"stepping": "sequences"}, {"time_axis": 2}, {"time_axis": "first"}]
)
def test_said_by_hand_wrongly(options: dict[str, Any]):
    with pytest.raises(WrapError):
        wrap(ExplicitStates(), dt=DT, **options)


def test_a_step_model_run_as_a_sequence_is_refused():
    with pytest.raises(WrapError, match="not called once at each timestep"):
        wrap(sequential_init_hidden(), dt=DT, stepping="sequence")(inputs())


def test_whole_sequence_layers_never_take_the_batch_for_time():
    with pytest.raises(WrapError, match="would take axis 0"):
        wrap(sequential_state_lifted(), dt=DT, stepping="step")(inputs())


class LiftedOneStep(nn.Module):
    """Whole-sequence layers, given one timestep at a time, with a time axis of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), norse.LIF()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        z, state = self.lif((100 * self.fc(x)).unsqueeze(0), state)
        return z[0], state


def test_whole_sequence_layers_can_be_stepped_one_timestep_at_a_time():
    net = LiftedOneStep()
    run = wrap(net, dt=DT, stepping="step", readout="lif")(inputs())
    state, spikes, membranes = None, [], []
    for x in inputs():
        z, state = net(x, state)
        spikes.append(z)
        membranes.append(state.v)
    assert torch.equal(run.spikes, torch.stack(spikes))
    assert torch.equal(run.membrane, torch.stack(membranes))


# -- the readout rule -----------------------------------------------------------------------------


class Returns(nn.Module):
    """Two layers of one size, and any choice of what is returned."""

    def __init__(self, choose: Any, **options: Any) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(FEATURES, CLASSES), leaky(**options)
        self.fc2, self.lif2 = nn.Linear(CLASSES, CLASSES, bias=False), leaky(**options)
        self.head = nn.Linear(CLASSES, CLASSES, bias=False)
        self.choose = choose

    def forward(self, x: Tensor) -> Any:
        spk1, mem1 = self.lif1(self.fc1(x))
        spk2, mem2 = self.lif2(self.fc2(spk1))
        return self.choose(spk1, mem1, spk2, mem2, self.head(spk2))


@pytest.mark.parametrize("threshold", [0.3, 1e9], ids=["firing", "silent"])
@pytest.mark.parametrize(
    ("choose", "readout"),
    [
        (lambda spk1, mem1, spk2, mem2, out: spk2, "lif2"),
        (lambda spk1, mem1, spk2, mem2, out: mem2, "lif2"),
        (lambda spk1, mem1, spk2, mem2, out: (spk1, mem1, spk2, mem2), "lif2"),
        (lambda spk1, mem1, spk2, mem2, out: {"membrane": mem2}, "lif2"),
        (lambda spk1, mem1, spk2, mem2, out: out, None),
        (lambda spk1, mem1, spk2, mem2, out: (out, spk2), None),
        (lambda spk1, mem1, spk2, mem2, out: (out.sum(), mem2), "lif2"),
    ],
)
def test_readout_is_the_last_layer_if_its_values_are_returned(choose, readout, threshold):
    model = wrap(Returns(choose, threshold=threshold), dt=DT)
    run = model(torch.zeros(T, B, FEATURES))
    assert run.readout == readout
    assert run.membrane.shape == (T, B, CLASSES)


@pytest.mark.parametrize("threshold", [0.3, 1e9], ids=["firing", "silent"])
def test_returning_an_earlier_layers_values_is_ambiguous(threshold):
    net = Returns(lambda spk1, mem1, spk2, mem2, out: spk1, threshold=threshold)
    with pytest.raises(WrapError, match=r"'lif1' yielded, but 'lif2'.*one of 'lif1', 'lif2'"):
        wrap(net, dt=DT)(inputs())
    assert wrap(net, dt=DT, readout="lif1")(inputs()).readout == "lif1"


def test_an_output_without_a_class_axis_is_refused_with_the_candidates():
    net = Returns(lambda spk1, mem1, spk2, mem2, out: out.sum(-1))
    with pytest.raises(WrapError, match=r"returned \[2\].*\[B, classes\].*'lif1', 'lif2'"):
        wrap(net, dt=DT)(inputs())


class MembraneOfTheModule(nn.Module):
    """Takes the membrane from the neuron, not from what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky(init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        self.lif(self.fc(x))
        return self.lif.mem


def test_a_membrane_taken_from_the_module_names_its_layer():
    assert wrap(MembraneOfTheModule(), dt=DT)(inputs()).readout == "lif"


def test_a_feedforward_net_decodes_its_output():
    net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    run = wrap(net, dt=DT)(inputs())
    assert run.readout is None
    assert torch.equal(run.membrane, torch.stack([net(x) for x in inputs()]))


# -- models that cannot be run, and why -----------------------------------------------------------


class StaticLoop(nn.Module):
    """The tutorials' loop over one static image."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.fc1, self.lif1 = nn.Linear(FEATURES, HIDDEN), leaky()
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), leaky()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spk_rec, mem_rec = [], []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec), torch.stack(mem_rec)


@pytest.mark.parametrize("num_steps", [2, 3, 4, 5, 9, 25])
def test_a_loop_over_one_static_image_is_refused_with_the_reason(num_steps):
    with pytest.raises(WrapError, match=rf"num_steps = {num_steps}.*cannot follow a presentation"):
        wrap(StaticLoop(num_steps), dt=DT)(inputs())


class FixedLoop(nn.Module):
    """A loop over a sequence, but of a number of timesteps of its own."""

    def __init__(self, num_steps: int = T) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem, spikes, membranes = self.lif.reset_mem(), [], []
        for step in range(self.num_steps):
            spk, mem = self.lif(self.fc(x[step]), mem)
            spikes.append(spk)
            membranes.append(mem)
        return torch.stack(spikes), torch.stack(membranes)


def test_a_loop_of_a_fixed_length_runs_at_this_length_and_at_no_other():
    net = FixedLoop()
    model = wrap(net, dt=DT)
    assert torch.equal(model(inputs()).membrane, net(inputs())[1])
    with pytest.raises(ObservationError, match=r"12 timesteps.*lif: 9"):
        model(inputs(12))
    with pytest.raises(WrapError, match="12 timesteps"):
        wrap(FixedLoop(), dt=DT)(inputs(12))


class FixedBatch(FixedLoop):
    """A loop over a sequence, of a number of samples of its own, and perhaps of timesteps."""

    def __init__(self, time_axis: int, num_steps: int | None) -> None:
        super().__init__()
        self.time_axis, self.num_steps = time_axis, num_steps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem, spikes, membranes = self.lif.reset_mem(), [], []
        for step in range(self.num_steps or x.size(self.time_axis)):
            spk, mem = self.lif(self.fc(x.select(self.time_axis, step).reshape(B, -1)), mem)
            spikes.append(spk)
            membranes.append(mem)
        return torch.stack(spikes, self.time_axis), torch.stack(membranes, self.time_axis)


@pytest.mark.parametrize(("time_axis", "num_steps"), [(0, None), (1, None), (0, T)])
def test_a_forward_of_a_fixed_batch_size_runs_at_this_size_and_at_no_other(time_axis, num_steps):
    net = FixedBatch(time_axis, num_steps)
    model = wrap(net, dt=DT)
    given = inputs() if time_axis == 0 else inputs().transpose(0, 1)
    membranes = net(given)[1]
    expected = membranes if time_axis == 0 else membranes.transpose(0, 1)
    assert torch.equal(model(inputs()).membrane, expected)
    with pytest.raises(RuntimeError, match=r"shape '\[3, -1\]' is invalid"):
        model(inputs(batch=4))


class FixedBatchStaticLoop(StaticLoop):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x.view(B, -1))


@pytest.mark.parametrize("num_steps", [2, 3, T])
def test_a_loop_over_one_static_image_of_a_fixed_batch_size_is_refused_too(num_steps):
    with pytest.raises(WrapError, match=rf"num_steps = {num_steps}.*cannot follow a presentation"):
        wrap(FixedBatchStaticLoop(num_steps), dt=DT)(inputs())


class Twice(nn.Module):
    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(FEATURES, CLASSES), nn.Linear(CLASSES, CLASSES)
        self.lif = leaky(init_hidden=True)
        self.last = nn.Identity() if alone else leaky(init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lif(self.fc2(self.lif(self.fc1(x)))))


@pytest.mark.parametrize("alone", [True, False])
def test_a_neuron_used_twice_within_a_timestep_is_refused_by_name(alone):
    with pytest.raises(WrapError, match=r"'lif' \(Leaky, 2 times\).*a module of its own"):
        wrap(Twice(alone=alone), dt=DT)(inputs())


class SometimesTwice(Twice):
    """Looks well behaved at the small values of a look."""

    def forward(self, x: Tensor) -> Tensor:
        spk = self.lif(self.fc1(x))
        return self.lif(self.fc2(spk)) if x.max() > 50 else spk


def test_a_neuron_used_twice_later_is_refused_by_name():
    model = wrap(SometimesTwice(alone=True), dt=DT, readout="lif")
    model(inputs())
    with pytest.raises(ObservationError, match=r"'lif'.*twice"):
        model(100 * inputs())


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(FEATURES, CLASSES), norse.LIFCell()),
        nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.GRUCell(CLASSES, CLASSES)),
    ],
    ids=["norse", "torch"],
)
def test_a_state_that_is_dropped_is_refused_by_name(net):
    with pytest.raises(WrapError, match=r"'1' \((LIFCell|GRUCell)\) is dropped"):
        wrap(net, dt=DT)(inputs())


class DropsInItsLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), norse.LIFCell()

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.lif(100 * self.fc(step))[0] for step in x])


def test_a_state_that_is_dropped_inside_a_loop_is_refused_by_name():
    with pytest.raises(WrapError, match=r"'lif' \(LIFCell\) is dropped"):
        wrap(DropsInItsLoop(), dt=DT)(inputs())


class ForgetsItsZeros(nn.Module):
    """snnTorch's neurons, whose state starts from zeros again at every timestep."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc, self.how = nn.Linear(FEATURES, CLASSES), how
        self.lif = leaky(init_hidden=how == "resets the module")

    def forward(self, x: Tensor, leftover: Any = None) -> Any:
        if self.how == "resets the module":
            self.lif.reset_mem()
            return self.lif(self.fc(x))
        if leftover is None:
            leftover = self.lif.reset_mem() if self.how == "resets" else torch.zeros(len(x), 4)
        return self.lif(self.fc(x), leftover)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("how", ["resets", "zeros", "resets the module"])
def test_a_state_that_starts_from_zeros_at_every_timestep_is_refused_by_name(how, value):
    with pytest.raises(WrapError, match=r"'lif' \(Leaky\) is dropped.*'leftover' looks like none"):
        wrap(ForgetsItsZeros(how), dt=DT)(torch.full((T, B, FEATURES), value))


class ForgetsInItsLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRUCell(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.gru(step, torch.zeros(len(step), CLASSES)) for step in x])


def test_zeros_at_every_timestep_of_a_loop_are_refused_by_name():
    with pytest.raises(WrapError, match=r"'gru' \(GRUCell\) is dropped"):
        wrap(ForgetsInItsLoop(), dt=DT)(inputs())


class TakesTheModulesOwn(nn.Module):
    """Passes on the very membrane that the neuron keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES, bias=False), leaky()

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.fc(x), self.lif.mem)[0]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_membrane_passed_back_from_the_module_is_kept(value):
    net = TakesTheModulesOwn()
    x = torch.full((T, B, FEATURES), value)
    run = wrap(net, dt=DT)(x)
    reset_snntorch(net)
    assert torch.equal(run.spikes, torch.stack([net(step) for step in x]))


class KeywordOnly(ExplicitStates):
    """States behind a ``*``, and behind an argument that is none."""

    def forward(self, x: Tensor, gain: float = 1.0, mem1: Any = None, *, mem2: Any = None) -> Any:
        return super().forward(gain * x, mem1, mem2)


def test_states_that_must_be_passed_by_name():
    ours, theirs = STYLES["explicit_states"].fresh(), STYLES["explicit_states"].fresh()
    net = KeywordOnly()
    net.load_state_dict(ours.state_dict())
    model = wrap(net, dt=DT)
    membrane, spikes = STYLES["explicit_states"].oracle(theirs, inputs())
    first = model(inputs()[:4])
    second = model(inputs()[4:], state=first.state)
    assert torch.equal(torch.cat([first.membrane, second.membrane]), membrane)
    assert torch.equal(model(inputs()).spikes, spikes)
    assert model._look.calling.by_name == 2


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return norse.functional.lif_feed_forward_step(self.fc(x), state)


def test_functional_neurons_are_refused_since_there_is_nothing_to_hook():
    with pytest.raises(WrapError, match=r"nothing to observe.*functional calls"):
        wrap(Functional(), dt=DT)


class ForgetsOne(ExplicitStates):
    def forward(self, x: Tensor, mem1: Any, mem2: Any) -> Any:
        spk, mem1, mem2 = super().forward(x, mem1, mem2)
        return spk, mem2


def test_states_that_are_taken_but_not_returned_are_refused():
    with pytest.raises(WrapError, match=r"\(mem1, mem2\) but returned a tuple of 2"):
        wrap(ForgetsOne(), dt=DT, stepping="step")(inputs())


class NeedsMore(ExplicitStates):
    def forward(self, x: Tensor, label: Tensor) -> Any:
        return super().forward(x, None, None)


def test_a_forward_that_needs_something_else_is_refused():
    with pytest.raises(WrapError, match="requires the argument 'label'"):
        wrap(NeedsMore(), dt=DT)(inputs())


class SwallowsState(nn.Module):
    """Keeps its neurons' state in an attribute, a list, a buffer, or its loop in a counter."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky()
        self.where, self.states, self.mem, self.t = where, [None], None, 0
        self.register_buffer("kept", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        current = self.fc(x)
        if self.where == "counter":
            self.t += 1
            return self.lif(current * self.t)[0]
        if self.where == "list":
            spk, self.states[0] = self.lif(current, self.states[0])
        elif self.where == "attribute":
            spk, self.mem = self.lif(current, self.mem)
        else:
            spk, self.kept = self.lif(current, self.kept if self.kept.numel() else None)
        return spk


@pytest.mark.parametrize(
    ("where", "name"),
    [("attribute", "mem"), ("list", "states"), ("buffer", "kept"), ("counter", "t")],
)
def test_state_that_no_run_could_reset_is_refused_by_name(where, name):
    net = SwallowsState(where)
    with pytest.raises(WrapError, match=f"keeps state of its own.*'{name}'"):
        wrap(net, dt=DT)(inputs())
    assert (net.states, net.mem, net.t, net.kept.numel()) == ([None], None, 0, 0)


class KeepsALog(nn.Module):
    """Writes attributes that it never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky(init_hidden=True)
        self.log: list[Tensor] = []
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.lif(self.fc(x))
        self.log.append(self.last)
        return self.last


def test_attributes_that_are_only_written_are_no_state():
    net = KeepsALog()
    wrap(net, dt=DT)(inputs())
    assert len(net.log) == T, "the look left entries of its own"


class Normed(nn.Module):
    """Weights and statistics that every forward writes, with sizes that a batch may have."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.utils.spectral_norm(nn.Linear(FEATURES, 2))
        self.fc2 = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3))
        self.norm, self.lif = nn.BatchNorm1d(3), leaky(init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.norm(self.fc2(self.fc1(x))))


def test_statistics_and_weights_are_no_state_and_are_left_as_found():
    net = Normed()
    values = {name: value.clone() for name, value in net.state_dict().items()}
    model = wrap(net, dt=DT)
    model(inputs()[:, :, :1].expand(T, B, FEATURES))
    assert net.norm.num_batches_tracked == T
    twin = Normed()
    twin.load_state_dict(values)
    for x in inputs()[:, :, :1].expand(T, B, FEATURES):
        twin(x)
    for name, value in net.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


@pytest.mark.parametrize("before", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("written", [0.0, math.nan, math.inf])
def test_buffers_are_left_as_found_and_not_written_without_need(before: float, written: float):
    """What was not written may be saved in a graph; NaN is no number that equals another."""
    module = nn.BatchNorm1d(2)
    module.running_mean.fill_(before)
    version = module.running_mean._version
    with left_as_found([module]):
        module.running_mean.data.fill_(written)
    assert torch.equal(module.running_mean.isnan(), torch.full((2,), before).isnan())
    assert math.isnan(before) or bool((module.running_mean == before).all())
    same = before == written or (math.isnan(before) and math.isnan(written))
    assert (module.running_mean._version == version) == same


class HandsOn(nn.Module):
    """A forward whose signature says nothing, as a compiled module's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = sequential_init_hidden()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def test_a_forward_that_hands_on_its_arguments():
    net = HandsOn()
    run = wrap(net, dt=DT)(inputs())
    assert run.readout == "inner.3"
    assert torch.equal(run.membrane, wrap(net.inner, dt=DT)(inputs()).membrane)


@pytest.mark.parametrize("part", [False, True], ids=["whole", "part"])
@pytest.mark.parametrize("name", ["sequential_init_hidden", "explicit_states", "gru_step"])
def test_a_compiled_module_goes_by_the_name_of_the_one_it_was_made_of(name, part):
    style = STYLES[name]
    plain, net = wrap(style.fresh(), dt=DT), style.fresh()
    if part:
        child, module = next(iter(net.named_children()))
        setattr(net, child, torch.compile(module, backend="eager"))
    compiled = wrap(net if part else torch.compile(net, backend="eager"), dt=DT)
    # Compiling takes long and is torch's affair: once is enough.
    with torch.compiler.set_stance("default" if name == "gru_step" else "force_eager"):
        run = compiled(inputs())
    assert torch.equal(run.membrane, plain(inputs()).membrane)
    assert run.readout == style.readout
    assert [layer.name for layer in compiled.layers()] == [layer.name for layer in plain.layers()]


@pytest.mark.parametrize(
    ("name", "is_state"),
    [
        *((name, True) for name in ("state", "s", "h", "hx", "mem1", "syn1", "prev_mem", "v")),
        *((name, True) for name in ("hidden_states", "lif_state", "h_0", "membrane", "states")),
        *((name, False) for name in ("labels", "mask", "num_steps", "return_all", "x2", "memory")),
    ],
)
def test_arguments_known_for_states_by_their_names(name, is_state):
    namespace: dict[str, Any] = {}
    exec(f"def forward(self, x, {name}=None): return x", namespace)
    net = type("Net", (nn.Module,), {"forward": namespace["forward"]})()
    assert arguments_of(net, None).states == ((name,) if is_state else ())


class Wide(nn.Module):
    """Time and batch merged into one axis, batch first or time first, around a GRU."""

    def __init__(self, *, swaps: bool) -> None:
        super().__init__()
        self.swaps = swaps
        self.fc1 = nn.Linear(FEATURES, HIDDEN)
        self.gru = nn.GRU(HIDDEN, HIDDEN, batch_first=not swaps)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if self.swaps else x
        sizes = x.shape[:2]
        hidden, _ = self.gru(self.fc1(x.flatten(0, 1)).unflatten(0, sizes))
        out = self.fc2(hidden)
        return out.transpose(0, 1) if self.swaps else out


@pytest.mark.parametrize("swaps", [False, True])
@pytest.mark.parametrize("n_timesteps", [3, 4])
def test_merged_axes_are_told_apart(swaps, n_timesteps):
    net = Wide(swaps=swaps)
    model = wrap(net, dt=DT)
    x = inputs(n_timesteps)
    run = model(x)
    assert torch.equal(run.membrane, net(x.transpose(0, 1)).transpose(0, 1))
    rhythm = model._look.rhythms["fc1"]
    assert rhythm.form == "merged"
    merged = (x if swaps else x.transpose(0, 1)).flatten(0, 1)
    assert torch.equal(rhythm.time_first(merged, n_timesteps), x)


# -- bare layers as models ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "net",
    [
        nn.RNNCell(FEATURES, CLASSES),
        nn.GRUCell(FEATURES, CLASSES),
        nn.LSTMCell(FEATURES, CLASSES),
        nn.LSTM(FEATURES, CLASSES),
        leaky(),
        leaky(init_hidden=True),
        norse.LIFCell(),
        norse.LIF(),
        norse.LIFRecurrentCell(FEATURES, CLASSES),
    ],
    ids=lambda net: type(net).__name__,
)
def test_a_bare_layer_runs_and_goes_on(net):
    x = 10 * inputs(8)
    model = wrap(net, dt=DT)
    whole = model(x)
    first = model(x[:5])
    second = model(x[5:], state=first.state)
    assert torch.equal(torch.cat([first.membrane, second.membrane]), whole.membrane)


# -- looking leaves no trace ----------------------------------------------------------------------


def trace(net: nn.Module) -> dict[str, Any]:
    """Everything that a module holds, tensors by identity and value."""
    return {
        f"{name}.{key}": copy.copy(value)
        for name, module in net.named_modules()
        for key, value in vars(module).items()
    }


def assert_same_trace(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for key, value in before.items():
        if isinstance(value, dict):
            assert list(value) == list(after[key]), key
            assert all(
                one is other for one, other in zip(value.values(), after[key].values(), strict=True)
            ), key
        elif isinstance(value, Tensor):
            assert torch.equal(value, after[key]), key
        else:
            assert value == after[key], key


@every_style
@pytest.mark.parametrize("engine", ["step", "auto"])
def test_a_run_leaves_the_model_exactly_as_found(style: Style, engine):
    net = style.fresh().eval()
    values = {name: value.clone() for name, value in net.named_buffers()}
    before = trace(net)
    dvs.wrap(net, dt=DT, engine=engine)(inputs())
    assert_same_trace(before, trace(net))
    assert all(torch.equal(values[name], value) for name, value in net.named_buffers())


def test_the_trace_check_can_fail():
    net = KeepsALog()
    before = trace(net)
    net(inputs()[0])
    with pytest.raises(AssertionError):
        assert_same_trace(before, trace(net))


class Noisy(nn.Module):
    """Random numbers, running statistics, and a counter of its own calls."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm = nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN)
        self.drop, self.lif = nn.Dropout(0.5), leaky(init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.drop(self.norm(self.fc1(x))))


def test_the_look_takes_no_random_numbers_and_no_statistics():
    net, twin = Noisy(), Noisy()
    twin.load_state_dict(net.state_dict())
    torch.manual_seed(5)
    run = wrap(net, dt=DT)(inputs())
    torch.manual_seed(5)
    spikes = torch.stack([twin(x) for x in inputs()])
    assert torch.equal(run.spikes, spikes)
    assert net.norm.num_batches_tracked == T
    for name, value in net.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_buffers_that_the_look_did_not_write_may_be_saved_for_backward():
    net = Noisy().eval()
    loss = net(inputs()[0]).sum() + net.norm(net.fc1(inputs()[1])).sum()
    wrap(net, dt=DT)(inputs())
    loss.backward()
    assert net.fc1.weight.grad is not None


def test_foreign_hooks_see_the_run_and_not_the_look():
    net = sequential_init_hidden()
    seen: list[int] = []
    net[0].register_forward_hook(lambda *_: seen.append(0))
    net.register_forward_hook(lambda *_: seen.append(1), always_call=True)
    hooks = [dict(module._forward_hooks) for module in net.modules()]
    wrap(net, dt=DT)(inputs())
    assert seen == [0, 1] * T
    assert [dict(module._forward_hooks) for module in net.modules()] == hooks


def test_pre_hooks_that_make_weights_are_run():
    net = nn.Sequential(nn.Linear(FEATURES, CLASSES), leaky(init_hidden=True))
    prune.random_unstructured(net[0], "weight", amount=0.5)
    pruned = net[0].weight.detach().clone()
    net[0].weight_orig.data.mul_(2)  # as an optimiser would, so that `weight` is stale
    run = wrap(net, dt=DT)(inputs())
    assert torch.equal(net[0].weight, 2 * pruned)
    net[1].reset_mem()
    assert torch.equal(run.spikes, torch.stack([net(x) for x in inputs()]))


class Plastic(nn.Module):
    """Writes its weights at every timestep, as `writes` says."""

    def __init__(self, writes: Any) -> None:
        super().__init__()
        self.fc, self.lif, self.writes = nn.Linear(FEATURES, CLASSES), leaky(), writes

    def forward(self, x: Tensor, mem: Any = None) -> tuple[Tensor, Tensor]:
        mem = torch.zeros(len(x), CLASSES) if mem is None else mem
        self.writes(self.fc)
        return self.lif(self.fc(x), mem)


def in_place(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.mul_(0.9)


def behind_autograd(layer: nn.Linear) -> None:
    layer.weight.data.mul_(0.9)


def exchanged(layer: nn.Linear) -> None:
    layer.weight.data = 0.9 * layer.weight.data


def another_parameter(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(0.9 * layer.weight.detach())


@pytest.mark.parametrize("engine", ["step", "auto"])
@pytest.mark.parametrize("writes", [in_place, behind_autograd, exchanged, another_parameter])
def test_weights_that_a_forward_writes_are_written_once_a_timestep(writes, engine):
    ours = Plastic(writes)
    theirs = copy.deepcopy(ours)
    model, mem = dvs.wrap(ours, dt=DT, engine=engine), None
    for batch in (B, B + 2):
        membranes = []
        for x in inputs(batch=batch):
            _, mem = theirs(x, mem if membranes else None)
            membranes.append(mem)
        assert torch.equal(model(inputs(batch=batch)).membrane, torch.stack(membranes))
        assert torch.equal(ours.fc.weight, theirs.fc.weight)


def test_a_look_that_fails_leaves_no_trace():
    net = StaticLoop(4)
    before = trace(net)
    with pytest.raises(WrapError):
        wrap(net, dt=DT)(inputs())
    assert_same_trace(before, trace(net))


# -- wrong shapes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "tried"), [(sequential_init_hidden, ["step"]), (GruStep, ["sequence", "step"])]
)
def test_wrong_features_say_what_was_given_and_tried(net, tried):
    with pytest.raises(WrapError, match=r"a batch of shape \[3, 6\] per timestep") as error:
        wrap(net(), dt=DT)(torch.rand(T, B, FEATURES + 1))
    assert all(f"as {way!r}: " in str(error.value) for way in tried)
    assert isinstance(error.value.__cause__, RuntimeError | ValueError)


def test_wrong_features_after_the_look_are_the_librarys_own_error():
    model = wrap(sequential_init_hidden(), dt=DT)
    run = model(inputs())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.rand(T, B, FEATURES + 1))
    assert torch.equal(model(inputs()).membrane, run.membrane)


def test_amplify_is_a_plain_gain():
    assert torch.equal(Amplify(2.0)(torch.ones(3)), torch.full((3,), 2.0))
