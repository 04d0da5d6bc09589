"""Retiming: what each neuron receives is scaled as its connection calls for, and nothing else is.

The oracle asks the network, not the rules: what reaches a neuron is captured at both timesteps,
once with all spikes silent (what lasts) and once with spikes, and the two are compared with the
factors that the equations in docs/time.md give.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import models
import norse.torch as norse
import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import dynvision_snn as dvs
from dynvision_snn.energy import EnergyMeter
from dynvision_snn.errors import AdapterError, TimingError, TimingWarning
from dynvision_snn.retiming import retime

BETA, RATIO = 0.9, 0.5
A = (1 - BETA**RATIO) / (1 - BETA)
"""What a Leaky's lasting input is multiplied with from 1 ms to 0.5 ms."""

quiet = pytest.mark.filterwarnings("ignore::dynvision_snn.errors.DynvisionWarning")


def leaky(**options: Any) -> snn.Leaky:
    return snn.Leaky(**{"beta": BETA, "init_hidden": True, **options})


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def received(net: nn.Module, layer: nn.Module, inputs: Tensor) -> Tensor:
    """The first argument of a layer's next call, from reset neurons."""
    caught: list[Tensor] = []
    models.reset_snntorch(net)
    with layer.register_forward_pre_hook(lambda _, args: caught.append(args[0])), torch.no_grad():
        net.eval()(inputs)
    return caught[0]


def check_scaled(build: Callable[[], nn.Module], layer: str, x: Tensor, spikes: bool) -> None:
    """What reaches `layer` for no input is multiplied by A, what `x` adds to it by 1 or by A."""
    net = seeded(build)
    retimed = retime(dvs.wrap(net, dt=1.0), 0.5, inputs="spikes" if spikes else "analog").net
    before, after = net.get_submodule(layer), retimed.get_submodule(layer)
    rest, rest_after = (
        received(n, at, torch.zeros_like(x)) for n, at in ((net, before), (retimed, after))
    )
    shown, shown_after = (received(n, at, x) for n, at in ((net, before), (retimed, after)))
    assert rest.any()
    torch.testing.assert_close(rest_after, A * rest, rtol=1e-5, atol=1e-6)
    factor = 1.0 if spikes else A
    torch.testing.assert_close(
        shown_after - rest_after, factor * (shown - rest), rtol=1e-4, atol=1e-5
    )


class Residual(nn.Module):
    """Two branches that are summed, one of them behind a second Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 6)
        self.lif = leaky()

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.three(self.two(x)) + self.one(x))


class Batched(nn.Module):
    """A convolution, normalised with statistics that are not 0 and 1, and pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.pool, self.lif = nn.MaxPool2d(2), leaky()
        nn.init.uniform_(self.norm.weight)
        nn.init.uniform_(self.norm.bias)
        self.norm.running_mean.uniform_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.pool(self.norm(self.conv(x))).flatten(1))


def two_linear() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 6), leaky())


def transposed() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.AvgPool2d(2), nn.Flatten(), leaky())


IMAGE = (torch.arange(2 * 64).reshape(2, 1, 8, 8) % 3 == 0).float()
ROW = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]])


@pytest.mark.parametrize("spikes", [True, False])
@pytest.mark.parametrize(
    ("build", "layer", "x"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 6), leaky()), "1", ROW),
        (two_linear, "3", ROW),
        (Residual, "lif", ROW),
        (Batched, "lif", IMAGE),
        (transposed, "3", IMAGE),
    ],
    ids=["linear", "two_linear", "residual", "batch_norm_and_pool", "transposed"],
)
def test_lasting_input_and_spikes_are_scaled_as_their_connection_calls_for(build, layer, x, spikes):
    check_scaled(build, layer, x, spikes)


@quiet
@pytest.mark.parametrize("spikes", [True, False])
def test_the_check_of_scaling_can_fail(spikes, monkeypatch):
    monkeypatch.setattr("dynvision_snn.engine.scaling.Scaling._scale_affine", lambda *_: None)
    with pytest.raises(AssertionError):
        check_scaled(Residual, "lif", ROW, spikes)


# -- whole networks -------------------------------------------------------------------------------


def rates(model: dvs.TimedModel, images: Tensor) -> list[float]:
    """Mean rates in Hz of both spiking layers of `two_layers`, over 300 ms."""
    p = dvs.Presentation("1", dt=model.dt, n_timesteps=round(300 / model.dt))
    run = model(images, p, record=["1", "3"])
    return [float(run.layers[n].spikes.mean()) * 1000 / model.dt for n in ("1", "3")]


def two_layers() -> nn.Sequential:
    net = nn.Sequential(
        nn.Linear(20, 100), leaky(beta=0.95), nn.Linear(100, 50), leaky(beta=0.95, output=True)
    )
    with torch.no_grad():
        net[0].weight.mul_(0.4)
        net[2].weight.mul_(2.0)
    return net


def scaled_alike(model: dvs.TimedModel, dt: float, factor: float) -> dvs.TimedModel:
    """The wrong way: one rule for all connections."""
    net = copy.deepcopy(model.net)
    with torch.no_grad():
        for module in net:
            if isinstance(module, nn.Linear):
                module.weight.mul_(factor)
                module.bias.mul_(factor)
            else:
                module.beta.pow_(dt / model.dt)
    return dvs.wrap(net, dt=dt)


def test_two_layers_keep_their_rates_which_one_rule_for_all_connections_does_not() -> None:
    model = dvs.wrap(seeded(two_layers), dt=1.0)
    images = torch.rand(8, 20, generator=torch.Generator().manual_seed(0))
    dts = (2.0, 1.0, 0.5, 0.25)
    told = [rates(retime(model, dt), images) for dt in dts]
    assert told[1] == rates(model, images)
    limits = [2 * finest - coarser for finest, coarser in zip(told[3], told[2], strict=True)]
    for layer, limit in enumerate(limits):
        errors = [abs(at[layer] - limit) / limit for at in told]
        assert errors[0] < 0.3
        for coarse, fine in pairwise(errors):
            assert 0.3 < fine / coarse < 0.7  # halved with dt: of first order
    # The wrong ways are wrong already at half the timestep.
    gain = (1 - 0.95**0.5) / (1 - 0.95)
    silenced = rates(scaled_alike(model, 0.5, gain), images)[1]
    aroused = rates(scaled_alike(model, 0.5, 1.0), images)[1]
    assert silenced < 0.5 * limits[1]
    assert aroused > 2 * limits[1]


@pytest.mark.parametrize("name", [n for n in models.STYLES if "gru" not in n and "lstm" not in n])
def test_every_style_of_model_is_retimed_without_being_told_its_input(name):
    style = models.STYLES[name]
    net = style.fresh()
    before = copy.deepcopy(net.state_dict())
    model = dvs.wrap(net, dt=1.0)
    retimed = retime(model, 0.5)
    assert retimed.dt == 0.5
    assert all(layer.traits.dt in (None, 0.5) for layer in retimed.layers())
    for layer, other in zip(model.layers(), retimed.layers(), strict=True):
        ones = layer.adapter.time_constants(layer.module, 1.0)
        others = other.adapter.time_constants(other.module, 0.5)
        for one, two in zip(ones, others, strict=True):
            torch.testing.assert_close(two.tau, one.tau, rtol=1e-4, atol=0)
    # The model itself is as it was.
    assert model.dt == 1.0
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    # And the copy runs: twice the timesteps, the same milliseconds.
    inputs = torch.rand(6, 2, models.FEATURES)
    assert retimed(inputs).duration == 3.0


def test_an_explicit_example_serves_where_no_shape_is_known() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 6), leaky()

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1:] == (2, 2, 3)
            return self.lif(self.fc(x[..., :2].flatten(1)[:, :4]))

    model = dvs.wrap(Odd(), dt=1.0)
    with pytest.raises(TimingError, match="example="):
        retime(model, 0.5)
    assert retime(model, 0.5, example=torch.rand(1, 2, 2, 3)).dt == 0.5


def test_a_state_that_holds_a_graph_is_no_obstacle_and_is_kept() -> None:
    net = seeded(models.sequential_init_hidden)
    net(torch.ones(2, models.FEATURES))
    held = net[1].mem
    assert held.grad_fn is not None
    retime(dvs.wrap(net, dt=1.0), 0.5)
    assert net[1].mem is held


# -- families -------------------------------------------------------------------------------------


def refractory() -> nn.Module:
    p = norse.LIFRefracParameters(rho_reset=torch.tensor(4.0))
    return norse.LIFRefracCell(p)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "Leaky": lambda: snn.Leaky(0.9),
    "Leaky learnt": lambda: snn.Leaky(torch.rand(6) * 0.2 + 0.79, learn_beta=True),
    "Leaky zero": lambda: snn.Leaky(0.9, reset_mechanism="zero", reset_delay=False),
    "Synaptic": lambda: snn.Synaptic(alpha=0.85, beta=0.9),
    "Alpha": lambda: snn.Alpha(alpha=0.9, beta=0.85),
    "Lapicque": lambda: snn.Lapicque(beta=0.9),
    "RLeaky": lambda: snn.RLeaky(0.9, linear_features=6),
    "RLeaky one to one": lambda: snn.RLeaky(0.9, V=0.3, all_to_all=False),
    "RSynaptic": lambda: snn.RSynaptic(alpha=0.85, beta=0.9, linear_features=6),
    "LIFCell": norse.LIFCell,
    "LIFBoxCell": norse.LIFBoxCell,
    "LIFExCell": norse.LIFExCell,
    "LICell": norse.LICell,
    "LIBoxCell": norse.LIBoxCell,
    "LILinearCell": lambda: norse.LILinearCell(6, 6),
    "IAFCell": norse.IAFCell,
    "LSNNCell": norse.LSNNCell,
    "LIFAdExCell": norse.LIFAdExCell,
    "LIFRefracCell": refractory,
    "LIFRecurrentCell": lambda: norse.LIFRecurrentCell(6, 6),
    "LSNNRecurrentCell": lambda: norse.LSNNRecurrentCell(6, 6),
    "LIFAdExRecurrentCell": lambda: norse.LIFAdExRecurrentCell(6, 6),
    "IzhikevichRecurrentCell": lambda: norse.IzhikevichRecurrentCell(
        6, 6, norse.functional.izhikevich.tonic_spiking
    ),
    "LIFMCRecurrentCell": lambda: norse.LIFMCRecurrentCell(6, 6),
}


class Passing(nn.Module):
    """A Linear and a neuron of either library; its state is passed where it is not kept."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.fc, self.neuron = nn.Linear(4, 6), neuron

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        x = self.fc(x)
        if isinstance(self.neuron, snn.SpikingNeuron):
            return self.neuron(x)[0], state
        return self.neuron(x, state)


def values_of(net: nn.Module) -> dict[str, Tensor]:
    """Everything that a retiming may change."""
    found = {name: value.float() for name, value in net.state_dict().items()}
    for name, module in net.named_modules():
        if hasattr(module, "p"):
            fields = module.p._asdict() if hasattr(module.p, "_asdict") else {}
            found |= {
                f"{name}.p.{key}": value for key, value in fields.items() if torch.is_tensor(value)
            }
            found[f"{name}.dt"] = torch.tensor(module.dt)
    return found


@quiet
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dt", [0.5, 0.25])
def test_a_model_retimed_back_is_the_original_to_rounding(family, dt):
    net = seeded(lambda: Passing(FAMILIES[family]()))
    model = dvs.wrap(net, dt=1.0)
    there = retime(model, dt)
    back = retime(there, 1.0)
    assert type(back.net.neuron) is type(net.neuron)
    original, changed = values_of(net), values_of(there.net)
    assert any(not torch.equal(original[key], changed[key]) for key in original)
    for key, value in values_of(back.net).items():
        torch.testing.assert_close(value, original[key], rtol=1e-5, atol=1e-7, msg=key)


@torch.no_grad()
def weak(net: nn.Module) -> None:
    """Makes every synapse so weak that the neurons stay below threshold."""
    for name, value in net.named_parameters():
        if name.split(".")[-1] not in ("beta", "alpha"):
            value.mul_(0.005)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lasting_input_settles_where_it_did(family):
    """Weak enough to stay below threshold; over 600 ms of the slowest time constant, 10 ms."""
    if family in ("IAFCell", "LIFMCRecurrentCell", "IzhikevichRecurrentCell", "LSNNRecurrentCell"):
        pytest.skip("does not settle below threshold, or far too slowly")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dvs.errors.DynvisionWarning)
        net = seeded(lambda: Passing(FAMILIES[family]()))
        weak(net)
        model = dvs.wrap(net, dt=1.0)
        settled = []
        for timed in (model, retime(model, 0.5), retime(model, 2.0)):
            run = timed(torch.ones(round(600 / timed.dt), 2, 4), record=["neuron"])
            assert run.spikes is None or not run.spikes.any()
            settled.append(run.layers["neuron"].membrane[-1])
    assert settled[0].abs().max() > 1e-5
    torch.testing.assert_close(settled[1], settled[0], rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(settled[2], settled[0], rtol=1e-3, atol=1e-8)


@quiet
@pytest.mark.parametrize("family", ["Leaky", "Leaky learnt", "Synaptic", "Lapicque", "LIFCell"])
def test_a_spike_moves_the_membrane_by_as_much(family):
    """The area under the response in ms, to first order in dt."""
    net = seeded(lambda: Passing(FAMILIES[family]()))
    with torch.no_grad():
        net.fc.bias.zero_()
        net.fc.weight.mul_(0.1)
    model = dvs.wrap(net, dt=1.0)

    def area(timed: dvs.TimedModel) -> Tensor:
        inputs = torch.zeros(round(300 / timed.dt), 1, 4)
        inputs[0] = 1.0
        membrane = timed(inputs, record=["neuron"]).layers["neuron"].membrane
        return membrane.sum(0) * timed.dt

    errors = [
        float((area(retime(model, dt, inputs="spikes")) / area(model) - 1).abs().max())
        for dt in (0.5, 0.25)
    ]
    assert max(errors) < 0.1  # dt / 2 tau, and no more


@given(st.floats(0.01, 0.999), st.floats(0.1, 4.0))
@settings(max_examples=30, deadline=None)
def test_leaky_under_constant_input_is_exact_at_any_timestep(beta, dt):
    neuron = snn.Leaky(torch.tensor(beta, dtype=torch.float64), reset_mechanism="none")
    net = Passing(neuron).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TimingWarning)
        timed = retime(dvs.wrap(net, dt=1.0), dt)
    x = torch.rand(1, 4, dtype=torch.float64)
    current = net.fc(x).detach()
    membrane = timed(x.expand(5, 1, 4), record=["neuron"]).layers["neuron"].membrane.detach()
    for step in range(5):
        expected = current / (1 - beta) * (1 - beta ** (dt * (step + 1)))
        torch.testing.assert_close(membrane[step], expected, rtol=1e-6, atol=1e-9)


def test_units_with_time_constants_of_their_own_are_scaled_one_by_one() -> None:
    betas = torch.tensor([0.8, 0.9, 0.95])
    net = nn.Sequential(nn.Linear(4, 3), leaky(beta=betas))
    retimed = retime(dvs.wrap(net, dt=1.0), 0.5).net
    factors = (1 - betas**0.5) / (1 - betas)
    torch.testing.assert_close(retimed[0].weight, factors[:, None] * net[0].weight)
    for shape, size in (((3, 1, 1), 26), ((3,), 3)):
        conv = nn.Sequential(
            nn.Conv2d(1, 3, 3),
            leaky(beta=betas.view(shape)),
            nn.Flatten(),
            nn.Linear(3 * size * size, 2),
            leaky(output=True),
        )
        timed = dvs.wrap(conv, dt=1.0)
        if shape == (3,):  # along the image's width, not its channels
            with pytest.raises(TimingError, match="one time constant"):
                retime(timed, 0.5)
        else:
            weight = retime(timed, 0.5).net[0].weight
            torch.testing.assert_close(weight, factors.view(3, 1, 1, 1) * conv[0].weight)


# -- delays ---------------------------------------------------------------------------------------


def recurrent(kind: str) -> nn.Module:
    """A Linear and a recurrent neuron that spikes often."""
    if kind == "RLeaky":
        return Passing(snn.RLeaky(0.9, linear_features=6, threshold=0.3))
    if kind == "RLeaky zero":
        return Passing(snn.RLeaky(0.9, linear_features=6, threshold=0.3, reset_mechanism="zero"))
    if kind == "RSynaptic":
        return Passing(snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=6, threshold=0.3))
    p = norse.LIFParameters(v_th=torch.tensor(0.2))
    if kind == "LIFRecurrentCell":
        return Passing(norse.LIFRecurrentCell(6, 6, p=p))
    if kind == "LIFRefracRecurrentCell":
        return Passing(
            norse.LIFRefracRecurrentCell(6, 6, p=norse.LIFRefracParameters(p, torch.tensor(2.0)))
        )
    return nn.Sequential(norse.Lift(nn.Linear(4, 6)), norse.LIFRecurrent(6, 6, p=p))


RECURRENT = [
    "RLeaky",
    "RLeaky zero",
    "RSynaptic",
    "LIFRecurrentCell",
    "LIFRefracRecurrentCell",
    "LIFRecurrent",
]


@quiet
@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_delay_keeps_its_ms(kind):
    """A pulse that only one unit sees reaches the others a delay later, at any timestep."""
    net = seeded(lambda: recurrent(kind))
    fc = net.fc if isinstance(net, Passing) else net[0].lifted_module
    name = "neuron" if isinstance(net, Passing) else "1"
    neuron = net.get_submodule(name)
    with torch.no_grad():
        fc.weight.zero_()
        fc.bias.zero_()
        fc.weight[0] = 40.0
        if isinstance(neuron, snn.SpikingNeuron):
            neuron.recurrent.weight.fill_(0.1)
            neuron.recurrent.bias.zero_()
        else:
            neuron.input_weights.copy_(torch.eye(6))
            neuron.recurrent_weights.fill_(0.1).fill_diagonal_(0.0)
    model = dvs.wrap(net, dt=1.0)
    for timed, steps in ((model, 1), (retime(model, 0.5), 2), (retime(model, 0.25), 4)):
        inputs = torch.zeros(12, 1, 4)
        inputs[0] = 1.0
        run = timed(inputs, record=[name])
        membrane = run.layers[name].membrane[:, 0, 1]
        assert int((membrane != 0).nonzero()[0]) == steps


@quiet
@pytest.mark.parametrize("kind", RECURRENT)
def test_a_delayed_network_is_counted_and_goes_on_like_any_other(kind):
    net = seeded(lambda: recurrent(kind))
    name = "neuron" if isinstance(net, Passing) else "1"
    model = retime(dvs.wrap(net, dt=1.0), 0.5)
    inputs = 4 * torch.rand(20, 3, 4, generator=torch.Generator().manual_seed(1))
    with EnergyMeter(model) as meter:
        run = model(inputs, record=[name])
    spikes = run.layers[name].spikes
    assert 0.02 < float(spikes.mean()) < 0.98
    row = next(row for row in meter.budget().layers if row.name == f"{name}.recurrent")
    neuron = model.net.get_submodule(name)
    weight = neuron.recurrent.weight if hasattr(neuron, "recurrent") else neuron.recurrent_weights
    fan_out = (weight != 0).sum(0).float()
    # The spikes of the last delay of two timesteps have not arrived yet.
    expected = float((spikes[:-2].sum((0, 1)) * fan_out).sum()) / 3
    assert row.synops_ac == pytest.approx(expected)
    if kind == "LIFRecurrent":
        return  # a bare Sequential takes no state
    first = model(inputs[:7], record=[name])
    second = model(inputs[7:], record=[name], state=first.state)
    joined = torch.cat([first.layers[name].spikes, second.layers[name].spikes])
    assert torch.equal(joined, spikes)
    assert torch.equal(model(inputs, record=[name]).layers[name].spikes, spikes)


@quiet
def test_a_sequence_and_a_cell_agree_with_a_delay() -> None:
    lifted = seeded(lambda: recurrent("LIFRecurrent"))
    cell = Passing(norse.LIFRecurrentCell(6, 6, p=lifted[1].p))
    cell.fc.load_state_dict(lifted[0].lifted_module.state_dict())
    cell.neuron.load_state_dict(lifted[1].state_dict())
    inputs = 4 * torch.rand(20, 3, 4)
    ones, others = (
        retime(dvs.wrap(net, dt=1.0), 0.25)(inputs, record=[name]).layers[name].spikes
        for net, name in ((lifted, "1"), (cell, "neuron"))
    )
    assert ones.any()
    assert torch.equal(ones, others)


def test_a_delay_that_cannot_be_kept_is_told() -> None:
    model = dvs.wrap(seeded(lambda: recurrent("RLeaky")), dt=1.0)
    with pytest.warns(TimingWarning, match=r"'neuron': its recurrent delay of 1 ms .* is now 2 ms"):
        retime(model, 2.0)
    with pytest.warns(TimingWarning, match=r"is now 0.8 ms"):
        retime(model, 0.8)
    coupled = dvs.wrap(Passing(norse.LIFMCRecurrentCell(6, 6)), dt=1.0)
    with pytest.warns(TimingWarning, match="stays one timestep, and so changes from 1 ms to 0.5"):
        retime(coupled, 0.5)


def test_a_refractory_period_that_cannot_be_kept_is_told() -> None:
    slow = torch.tensor(50.0)
    p = norse.LIFRefracParameters(
        norse.LIFParameters(tau_mem_inv=slow, tau_syn_inv=slow), torch.tensor(5.0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dvs.errors.AdapterWarning)
        model = dvs.wrap(Passing(norse.LIFRefracCell(p)), dt=1.0)
    assert float(retime(model, 0.5).net.neuron.p.rho_reset) == 10
    with pytest.warns(TimingWarning, match="refractory period of 5 ms .* is now 6 ms"):
        coarse = retime(model, 2.0)
    assert float(retime(coarse, 1.0).net.neuron.p.rho_reset) == 5


def test_recurrence_in_a_forward_of_the_users_own_is_told() -> None:
    class Feedback(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.back, self.lif = nn.Linear(4, 6), nn.Linear(6, 6), leaky()

        def forward(self, x: Tensor, spk: Tensor | None = None) -> tuple[Tensor, Tensor]:
            spk = torch.zeros(len(x), 6) if spk is None else spk
            spk = self.lif(self.fc(x) + self.back(spk))
            return spk, spk

    net = Feedback()
    with pytest.warns(TimingWarning, match="'lif' reach 'back' one timestep later .* 1 ms to 0.5"):
        retimed = retime(dvs.wrap(net, dt=1.0), 0.5).net
    assert torch.equal(retimed.back.weight, net.back.weight)
    torch.testing.assert_close(retimed.back.bias, A * net.back.bias)
    torch.testing.assert_close(retimed.fc.weight, A * net.fc.weight)


def test_connections_of_a_neuron_with_itself_stay_cut_when_the_copy_trains() -> None:
    model = dvs.wrap(Passing(norse.LIFRecurrentCell(6, 6)), dt=1.0)
    neuron = retime(model, 0.5).net.neuron
    neuron.recurrent_weights.sum().backward()
    assert not neuron.recurrent_weights.grad.diagonal().any()
    assert neuron.recurrent_weights.grad.any()


# -- what is told and what is refused -------------------------------------------------------------


def test_a_layer_without_reset_is_told_and_drives_as_a_value_that_lasts() -> None:
    net = nn.Sequential(
        nn.Linear(4, 6), leaky(reset_mechanism="none"), nn.Linear(6, 6), leaky(output=True)
    )
    with pytest.warns(TimingWarning, match="'1' is never reset"):
        retimed = retime(dvs.wrap(net, dt=1.0), 0.5).net
    torch.testing.assert_close(retimed[2].weight, A * net[2].weight)


def test_a_coarse_timestep_is_told() -> None:
    model = dvs.wrap(nn.Sequential(nn.Linear(4, 6), leaky()), dt=1.0)
    with pytest.warns(TimingWarning, match=r"'1' \(Leaky, membrane\): .* 2.37 timesteps of 4 ms"):
        retime(model, 4.0)


def test_a_layer_that_is_not_reached_is_told() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif, self.aside = nn.Linear(4, 6), leaky(), leaky()

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(self.fc(x))

    with pytest.warns(TimingWarning, match="'aside' was not reached"):
        retimed = retime(dvs.wrap(Unused(), dt=1.0), 0.5)
    assert float(retimed.net.aside.beta) == pytest.approx(BETA**0.5)


class Through(nn.Module):
    """Two layers with something of the user's own between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(4, 6), leaky()
        self.fc2, self.lif2 = nn.Linear(6, 6), leaky()
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc2(self.between(self.lif1(self.fc1(x)))))


def test_operations_that_only_move_or_weigh_spikes_are_followed() -> None:
    for between in (
        lambda s: (2 * s).unsqueeze(1).squeeze(1),
        lambda s: torch.cat([s[:, :3], s[:, 3:]], dim=1).float(),
        lambda s: torch.stack([s, torch.zeros_like(s)]).sum(0) + 0,
    ):
        net = Through(between)
        retimed = retime(dvs.wrap(net, dt=1.0), 0.5).net
        assert torch.equal(retimed.fc2.weight, net.fc2.weight)
        torch.testing.assert_close(retimed.fc2.bias, A * net.fc2.bias)


def test_what_cannot_be_told_apart_is_refused() -> None:
    cases: list[tuple[Callable[[Tensor], Tensor], str]] = [
        (torch.sigmoid, "'sigmoid'"),
        (lambda s: s + torch.ones(6), "spikes and|multiplied"),
        (lambda s: 1 - s, "multiplied|'fc2'"),
    ]
    for between, match in cases:
        with pytest.raises(TimingError, match=match):
            retime(dvs.wrap(Through(between), dt=1.0), 0.5)


class OnOutput(nn.Module):
    """A neuron whose input is also what the model returns."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 6), leaky()

    def forward(self, x: Tensor) -> Tensor:
        current = self.fc(x)
        self.lif(current)
        return current


class Twice(nn.Module):
    """One Linear that drives neurons of different time constants."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.fast, self.slow = nn.Linear(4, 6), leaky(beta=0.8), leaky(beta=0.95)

    def forward(self, x: Tensor) -> Tensor:
        current = self.fc(x)
        return self.fast(current) + self.slow(current)


class Tied(nn.Module):
    """Two Linears that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.lif = nn.Linear(4, 6), nn.Linear(4, 6), leaky()
        self.fc2.weight = self.fc1.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.fc1(x) + self.fc2(2 * x))


class ByHand(nn.Module):
    """A membrane that the forward integrates by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 6), leaky()

    def forward(self, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        current = self.fc(x)
        v = current if v is None else 0.9 * v + current
        return self.lif(v), v


class Noisy(nn.Module):
    """Noise on a membrane's input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 6), leaky()

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.fc(x) + torch.ones(len(x), 6))


def decorrelated() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), leaky())


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: nn.Sequential(leaky(), nn.Linear(4, 6), leaky()), "no weight of its own"),
        (OnOutput, "the model's output"),
        (Twice, "'fast' and layer 'slow'|different numbers"),
        (Tied, "share a weight"),
        (ByHand, "keeps a state by itself"),
        (Noisy, "made in the model's forward"),
        (decorrelated, "parametrised"),
        (
            lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), leaky()),
            "without weights",
        ),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), leaky()), "no weight of its own"),
    ],
    ids=["direct", "output", "twice", "tied", "by_hand", "noisy", "parametrised", "norm", "relu"],
)
def test_connections_that_cannot_be_scaled_are_refused_by_name(build, match):
    with pytest.raises(TimingError, match=match):
        retime(dvs.wrap(build(), dt=1.0), 0.5)


@quiet
@pytest.mark.parametrize(
    "neuron",
    [
        lambda: snn.SLSTM(6, 6),
        lambda: snn.DeltaLeaky(0.9, 0.1, init_hidden=True),
        lambda: norse.LIFMCRefracRecurrentCell(6, 6),
    ],
    ids=["SLSTM", "DeltaLeaky", "LIFMCRefracRecurrentCell"],
)
def test_families_without_a_rule_are_refused_by_name(neuron):
    module = neuron()
    with pytest.raises(AdapterError, match=f"{type(module).__name__} has no rule"):
        retime(dvs.wrap(Passing(module), dt=1.0), 0.5)


def test_recurrent_layers_that_do_not_spike_are_refused() -> None:
    with pytest.raises(AdapterError, match="GRUCell has no rule"):
        retime(dvs.wrap(models.GruStep(), dt=1.0), 0.5)


def test_bad_arguments_are_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 6), leaky())
    with pytest.raises(TimingError, match=r"dvs\.wrap"):
        retime(net, 0.5)
    model = dvs.wrap(net, dt=1.0)
    for dt in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(TimingError, match="above 0"):
            retime(model, dt)
    with pytest.raises(TimingError, match="'analog' or 'spikes'"):
        retime(model, 0.5, inputs="current")


def test_spikingjelly_is_retimed_too() -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")
    own = {"surrogate_function": surrogate.Sigmoid()}  # the default is shared by all nodes
    for node, analog, spikes in (
        (neuron.LIFNode(tau=10.0, decay_input=True, **own), 1.0, 2.0),
        (neuron.LIFNode(tau=10.0, decay_input=False, **own), 0.5, 1.0),
        (neuron.ParametricLIFNode(init_tau=10.0, decay_input=True, **own), 1.0, 2.0),
        (neuron.IFNode(**own), 0.5, 1.0),
    ):
        net = nn.Sequential(nn.Linear(4, 6), node)
        model = dvs.wrap(net, dt=1.0)
        for inputs, factor in (("analog", analog), ("spikes", spikes)):
            retimed = retime(model, 0.5, inputs=inputs)
            torch.testing.assert_close(retimed.net[0].weight, factor * net[0].weight)
            (before,), (after,) = (
                layer.adapter.time_constants(layer.module, timed.dt)
                for timed in (model, retimed)
                for layer in timed.layers()
            )
            torch.testing.assert_close(after.tau, before.tau)
