"""Time is milliseconds: a neuron at dt 2, 1, 0.5 and 0.25 ms converges as its integrator does.

Membranes are compared with closed forms of the differential equations, or with a run at a far
finer timestep where there is none. The order of convergence is the slope of log(error) over
log(dt).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

import dynvision_snn as dvs
from dynvision_snn.adapters import Adapters
from dynvision_snn.errors import TimingError, TimingWarning
from dynvision_snn.retiming import retime
from dynvision_snn.timing import decay_euler, decay_exact, gain_ratio, integration_problem

DTS = (2.0, 1.0, 0.5, 0.25)
TAU = 20.0  # ms


def order(errors: list[float]) -> float:
    """Least-squares slope of log(error) over log(dt)."""
    x = torch.tensor(DTS, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def test_the_order_is_that_of_known_errors() -> None:
    assert order([3 * dt for dt in DTS]) == pytest.approx(1)
    assert order([3 * dt**2 for dt in DTS]) == pytest.approx(2)


class Driven(nn.Module):
    """One neuron behind a weight of 1, of which dvs.retime makes what the timestep calls for."""

    def __init__(self, neuron: nn.Module, gain: float = 1.0) -> None:
        super().__init__()
        self.fc, self.neuron = nn.Linear(1, 1, bias=False), neuron
        nn.init.constant_(self.fc.weight, gain)
        self.double()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        x = self.fc(x)
        if isinstance(self.neuron, snn.SpikingNeuron):
            return self.neuron(x)[0], state
        return self.neuron(x, state)


def traced(
    neuron: nn.Module, dt: float, current: Callable[[Tensor], Tensor], duration: float
) -> Any:
    """The neuron, built at 1 ms, at another timestep, driven by a current over time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dvs.errors.DynvisionWarning)
        model = retime(dvs.wrap(Driven(neuron), dt=1.0), dt)
    start = dt * torch.arange(round(duration / dt), dtype=torch.float64)
    with torch.no_grad():
        run = model(current(start).view(-1, 1, 1), record=["neuron"])
    layer = run.layers["neuron"]
    # A step's value is that at its end.
    return start + dt, layer.membrane.flatten(), layer.output.flatten()


def constant(level: float) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.full_like(t, level)


def high() -> Tensor:
    return torch.tensor(1e9, dtype=torch.float64)


def rate(tau: float) -> Tensor:
    return torch.tensor(1000.0 / tau, dtype=torch.float64)


def exact_leaky() -> snn.Leaky:
    beta = torch.tensor(math.exp(-1 / TAU), dtype=torch.float64)
    return snn.Leaky(beta, threshold=1e9)


# -- subthreshold membranes -----------------------------------------------------------------------


@pytest.mark.parametrize("dt", DTS)
def test_exact_decay_makes_no_error_under_constant_input(dt):
    times, membrane, _ = traced(exact_leaky(), dt, constant(1.0), 60.0)
    settled = 1 / (1 - math.exp(-1 / TAU))
    torch.testing.assert_close(membrane, settled * (1 - (-times / TAU).exp()), rtol=1e-9, atol=0)


def test_exact_decay_is_of_first_order_under_changing_input() -> None:
    """Its input is held over each timestep: dv/dt = (g sin(w t) - v) / tau, in closed form."""
    w, gain = 2 * math.pi / 50.0, 1 / (1 - math.exp(-1 / TAU))

    def solution(t: Tensor) -> Tensor:
        a = w * TAU
        return gain * ((w * t).sin() - a * (w * t).cos() + a * (-t / TAU).exp()) / (1 + a**2)

    errors = []
    for dt in DTS:
        times, membrane, _ = traced(exact_leaky(), dt, lambda t: (w * t).sin(), 100.0)
        errors.append(float((membrane - solution(times)).abs().max()))
    assert order(errors) == pytest.approx(1, abs=0.1)


def lif_box() -> nn.Module:
    return norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=rate(TAU), v_th=high()))


def li_box() -> nn.Module:
    return norse.LIBoxCell(norse.LIBoxParameters(tau_mem_inv=rate(TAU)))


def lapicque() -> snn.Lapicque:
    # Over 1 ms it decays by 1 - 1 / (R C), whatever its beta says.
    return snn.Lapicque(R=1.0, C=TAU, threshold=1e9)


@pytest.mark.parametrize("neuron", [lif_box, li_box, lapicque])
def test_euler_is_of_first_order_under_constant_input(neuron):
    errors = []
    for dt in DTS:
        times, membrane, _ = traced(neuron(), dt, constant(1.0), 60.0)
        errors.append(float((membrane - (1 - (-times / TAU).exp())).abs().max()))
    assert errors[0] > 1e-3
    assert order(errors) == pytest.approx(1, abs=0.1)


def lif() -> nn.Module:
    return norse.LIFCell(
        norse.LIFParameters(tau_mem_inv=rate(TAU), tau_syn_inv=rate(8.0), v_th=high())
    )


def li() -> nn.Module:
    return norse.LICell(norse.LIParameters(tau_mem_inv=rate(TAU), tau_syn_inv=rate(8.0)))


def lsnn() -> nn.Module:
    return norse.LSNNCell(
        norse.LSNNParameters(tau_mem_inv=rate(TAU), tau_syn_inv=rate(8.0), v_th=high())
    )


@pytest.mark.parametrize("neuron", [lif, li, lsnn])
def test_a_current_and_a_membrane_under_euler_are_of_first_order(neuron):
    """A constant input of 1 per ms charges the current to 8, and that the membrane."""
    tau_s = 8.0

    def solution(t: Tensor) -> Tensor:
        fast, slow = (-t / tau_s).exp(), (-t / TAU).exp()
        return tau_s * (1 - (TAU * slow - tau_s * fast) / (TAU - tau_s))

    errors = []
    for dt in DTS:
        times, membrane, _ = traced(neuron(), dt, constant(1.0), 60.0)
        errors.append(float((membrane - solution(times)).abs().max()))
    assert order(errors) == pytest.approx(1, abs=0.15)


def synaptic() -> snn.Synaptic:
    alpha, beta = (torch.tensor(math.exp(-1 / t), dtype=torch.float64) for t in (8.0, TAU))
    return snn.Synaptic(alpha=alpha, beta=beta, threshold=1e9)


def alpha() -> snn.Alpha:
    decays = (torch.tensor(math.exp(-1 / t), dtype=torch.float64) for t in (TAU, 8.0))
    return snn.Alpha(*decays, threshold=1e9)


def adex() -> nn.Module:
    p = norse.LIFAdExParameters(
        tau_mem_inv=rate(TAU), tau_syn_inv=rate(8.0), tau_ada_inv=rate(50.0), v_th=torch.tensor(9.0)
    )
    return norse.LIFAdExCell(p)


def ex() -> nn.Module:
    p = norse.LIFExParameters(tau_mem_inv=rate(TAU), tau_syn_inv=rate(8.0), v_th=torch.tensor(9.0))
    return norse.LIFExCell(p)


def izhikevich() -> nn.Module:
    return norse.IzhikevichCell(norse.functional.izhikevich.tonic_spiking)


@pytest.mark.parametrize(
    ("neuron", "level"),
    [(synaptic, 1.0), (alpha, 1.0), (adex, 0.1), (ex, 0.1), (izhikevich, 2.0)],
    ids=["Synaptic", "Alpha", "LIFAdExCell", "LIFExCell", "IzhikevichCell"],
)
def test_other_families_are_of_first_order_against_a_fine_timestep(neuron, level):
    fine = 1 / 32
    _, reference, _ = traced(neuron(), fine, constant(level), 60.0)
    errors = []
    for dt in DTS:
        times, membrane, spikes = traced(neuron(), dt, constant(level), 60.0)
        assert not spikes.any()
        at = (times / fine).round().long() - 1
        errors.append(float((membrane - reference[at]).abs().max()))
    assert errors[0] > 1e-3 * float((reference - reference[0]).abs().max())
    assert order(errors) == pytest.approx(1, abs=0.2)


# -- firing rates ---------------------------------------------------------------------------------

CURRENTS = torch.linspace(1.2, 3.0, 40, dtype=torch.float64)
DURATION = 500.0  # ms


def f_i(neuron: nn.Module, dt: float, gain: float) -> Tensor:
    """Rate in Hz at each of CURRENTS, from the intervals between its spikes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dvs.errors.DynvisionWarning)
        model = retime(dvs.wrap(Driven(neuron, gain), dt=1.0), dt)
    inputs = CURRENTS.view(-1, 1).expand(round(DURATION / dt), -1, 1)
    with torch.no_grad():
        spikes = model(inputs, record=["neuron"]).layers["neuron"].spikes.squeeze(-1) != 0
    steps = torch.arange(len(spikes)).unsqueeze(1)
    first = torch.where(spikes, steps, len(spikes)).amin(0)
    last = torch.where(spikes, steps, -1).amax(0)
    return 1000 * (spikes.sum(0) - 1) / (dt * (last - first))


def lif_rate(tau: float) -> Tensor:
    """Rate in Hz of tau dv/dt = I - v, reset to 0 at 1: 1000 / (tau ln(I / (I - 1)))."""
    return 1000 / (tau * (CURRENTS / (CURRENTS - 1)).log())


def firing(reset: str, delayed: bool) -> snn.Leaky:
    beta = torch.tensor(math.exp(-1 / TAU), dtype=torch.float64)
    return snn.Leaky(beta, reset_mechanism=reset, reset_delay=delayed)


@pytest.mark.parametrize(
    ("build", "gain"),
    [
        (lambda: firing("zero", False), 1 - math.exp(-1 / TAU)),
        (lambda: firing("zero", True), 1 - math.exp(-1 / TAU)),
        (lambda: firing("subtract", False), 1 - math.exp(-1 / TAU)),
        (lambda: firing("subtract", True), 1 - math.exp(-1 / TAU)),
        (lambda: snn.Lapicque(R=1.0, C=TAU), 1.0),
        (lambda: norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=rate(TAU))), 1.0),
    ],
    ids=["zero", "zero_delayed", "subtract", "subtract_delayed", "Lapicque", "LIFBoxCell"],
)
def test_firing_rates_converge_at_first_order_to_the_closed_form(build, gain):
    """Reset included: what a reset misplaces is at most a timestep."""
    expected = lif_rate(TAU)
    errors = [float((f_i(build(), dt, gain) - expected).abs().mean()) for dt in DTS]
    assert errors[-1] < 0.03 * float(expected.mean())
    assert order(errors) == pytest.approx(1, abs=0.35)


def test_rates_under_the_wrong_rule_do_not_converge() -> None:
    """The test above can fail: with the input left alone, the rate goes up with every timestep."""
    beta = math.exp(-1 / TAU)
    factor = float(gain_ratio(torch.tensor(beta, dtype=torch.float64), 1.0, 0.5))
    right = f_i(firing("zero", False), 0.5, 1 - beta)
    wrong = f_i(firing("zero", False), 0.5, (1 - beta) / factor)
    assert (wrong > 1.5 * right).all()


# -- between libraries ----------------------------------------------------------------------------


@pytest.mark.parametrize("dt", DTS)
def test_lif_box_and_the_equivalent_leaky_agree_exactly(dt):
    """v + dt / tau (x - v) and beta v + (dt / tau) x, with beta = 1 - dt / tau, reset to 0."""
    box = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=rate(TAU)), dt=dt / 1000)
    beta = decay_euler(TAU, dt)
    leaky = snn.Leaky(
        torch.tensor(beta, dtype=torch.float64), reset_mechanism="zero", reset_delay=False
    )
    inputs = 3 * torch.rand(
        300, 8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    state = None
    n_spikes = 0
    for x in inputs:
        ones, state = box(x, state)
        others, membrane = leaky(x * dt / TAU)
        assert torch.equal(ones, others)
        torch.testing.assert_close(state.v, membrane, rtol=0, atol=1e-14)
        n_spikes += int(ones.sum())
    assert n_spikes > 100


# -- time constants as they really are ------------------------------------------------------------


@pytest.mark.parametrize("dt", DTS)
@pytest.mark.parametrize("neuron", [exact_leaky, lapicque, lif_box, li_box])
def test_time_constants_are_those_of_the_measured_decay(neuron, dt):
    """Driven, released, fitted; of Euler, the time constant of the equation that it steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dvs.errors.DynvisionWarning)
        model = retime(dvs.wrap(Driven(neuron()), dt=1.0), dt)
    inputs = torch.zeros(round(60 / dt), 1, 1, dtype=torch.float64)
    inputs[: round(20 / dt)] = 1.0
    with torch.no_grad():
        v = model(inputs, record=["neuron"]).layers["neuron"].membrane.flatten()
    released = v[round(20 / dt) :]
    decay = float((released[-1] / released[0]) ** (1 / (len(released) - 1)))
    layer = Adapters().layers(model.net)[0]
    (constant_,) = layer.adapter.time_constants(layer.module, dt)
    fitted = -dt / math.log(decay) if constant_.integrator == "exact" else dt / (1 - decay)
    assert float(constant_.tau) == pytest.approx(fitted, rel=1e-6)
    assert float(constant_.tau) == pytest.approx(TAU, rel=1e-6)


# -- coarse and unstable timesteps ----------------------------------------------------------------


@pytest.mark.parametrize("integrator", ["exact", "euler"])
@pytest.mark.parametrize(
    ("dt", "problem"),
    [
        (0.5, None),
        (5.0, None),
        (5.1, "coarse"),
        (19.0, "coarse"),
        (21.0, "sign"),
        (40.0, "unstable"),
    ],
)
def test_a_timestep_is_judged_against_a_time_constant(integrator, dt, problem):
    told = integration_problem(torch.tensor(TAU), integrator, dt)
    if problem is None:
        assert told is None
        return
    expected = problem if integrator == "euler" else "coarse"
    assert expected in told
    assert f"{dt:g} ms" in told
    assert "20 ms" in told


def test_rounding_of_a_decay_is_no_coarse_timestep() -> None:
    """exp(-1/4) in float32 gives a time constant of a little less than four timesteps."""
    tau = -1 / torch.tensor(decay_exact(4.0, 1.0), dtype=torch.float32).log()
    assert integration_problem(tau, "exact", 1.0) is None


def test_units_without_a_time_constant_are_judged_too() -> None:
    assert integration_problem(torch.tensor(math.inf), "euler", 1.0) is None
    assert "forgotten at once" in integration_problem(torch.tensor(0.0), "exact", 1.0)
    told = integration_problem(torch.tensor([1.0, 100.0, 2.0]), "euler", 1.0)
    assert "2 of 3 units" in told


def test_euler_is_really_unstable_where_it_is_said_to_be() -> None:
    """A unit membrane under zero input, at and below twice its time constant."""
    for dt, grows in ((2 * TAU, True), (1.9 * TAU, False)):
        cell = norse.LIBoxCell(norse.LIBoxParameters(tau_mem_inv=rate(TAU)), dt=dt / 1000)
        state = None
        for x in (*[1.0], *[0.0] * 50):
            v, state = cell(torch.tensor([[x]], dtype=torch.float64), state)
        assert (abs(float(v)) > 1) is grows
        assert (
            "unstable" in integration_problem(torch.tensor(TAU, dtype=torch.float64), "euler", dt)
        ) is grows


def test_retiming_to_an_unstable_timestep_is_told() -> None:
    model = dvs.wrap(Driven(lif_box()), dt=1.0)
    with pytest.warns(TimingWarning, match="'neuron' .*unstable"):
        retime(model, 40.0)
    with pytest.raises(TimingError):
        integration_problem(torch.tensor(1.0), "euler", 0.0)
