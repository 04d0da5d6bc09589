"""Reported time constants against the decay that is measured: drive, release, fit.

Every variable is driven by the layer's own input, then released with no input and every other
variable held at rest, and its decay per timestep is the slope of its logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from adapter_cases import NORSE, OURS, Case, adapter_of, case_name
from torch import Tensor, nn

from dynvision_snn.adapters import TimeConstant
from dynvision_snn.errors import TimingError

UNITS = 3


def decay_of(constant: TimeConstant, dt: float) -> Tensor:
    """The decay per timestep that a time constant claims."""
    if constant.integrator == "euler":
        return 1 - dt / constant.tau
    return torch.exp(-dt / constant.tau)


def slope(trace: Tensor) -> Tensor:
    """The decay per timestep of ``[T, units]``: least squares on the logarithm."""
    time = torch.arange(len(trace), dtype=torch.float64)
    time = time - time.mean()
    logs = trace.double().abs().log()
    return ((time[:, None] * logs).sum(0) / time.square().sum()).exp()


def constants(module: nn.Module, dt: float) -> dict[str, TimeConstant]:
    found = adapter_of(module).time_constants(module, dt)
    return {constant.name: constant for constant in found}


# -- snnTorch -----------------------------------------------------------------------------------

HIGH = 1e9
FIELD = {"membrane": "mem", "synapse": "syn"} | {
    "synapse_excitatory": "syn_exc",
    "synapse_inhibitory": "syn_inh",
}
BETAS = torch.tensor([0.5, 0.9, 0.99])

STEPPED: dict[str, Callable[[], nn.Module]] = {
    "Leaky": lambda: snn.Leaky(BETAS, threshold=HIGH, init_hidden=True),
    "Leaky-learnt": lambda: snn.Leaky(
        torch.tensor([-0.2, 0.9, 1.3]), threshold=HIGH, init_hidden=True, learn_beta=True
    ),
    "Lapicque": lambda: snn.Lapicque(beta=0.9, threshold=HIGH, init_hidden=True),
    "Lapicque-RC": lambda: snn.Lapicque(
        R=5.0, C=2.0, time_step=0.5, threshold=HIGH, init_hidden=True
    ),
    "Synaptic": lambda: snn.Synaptic(0.8, BETAS, threshold=HIGH, init_hidden=True),
    "Alpha": lambda: snn.Alpha(0.9, 0.8, threshold=HIGH, init_hidden=True),
    "RLeaky": lambda: snn.RLeaky(BETAS, threshold=HIGH, init_hidden=True, linear_features=UNITS),
    "RSynaptic": lambda: snn.RSynaptic(
        0.8, BETAS, threshold=HIGH, init_hidden=True, linear_features=UNITS
    ),
    "DeltaLeaky": lambda: snn.DeltaLeaky(HIGH, BETAS, init_hidden=True),
}


@pytest.mark.parametrize("dt", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("name", STEPPED)
def test_stepped_neurons_of_snntorch(name: str, dt: float) -> None:
    module = STEPPED[name]()
    if hasattr(module, "recurrent"):
        nn.init.zeros_(module.recurrent.bias)
    adapter = adapter_of(module)
    found = constants(module, dt)
    assert found
    for constant in found.values():
        adapter.reset(module)
        for _ in range(10):
            module(torch.full((1, UNITS), 2.0))
        driven, trace = adapter.state(module), []
        held = FIELD[constant.name]
        for _ in range(8):
            adapter.restore(
                module,
                {
                    field: value.detach() if field == held else torch.zeros_like(value)
                    for field, value in driven.items()
                },
            )
            trace.append(getattr(module, held)[0])
            module(torch.zeros(1, UNITS))
            driven = adapter.state(module)
        measured = torch.stack(trace)
        claimed = decay_of(constant, dt).expand(UNITS).double()
        for unit in range(UNITS):
            if claimed[unit] == 0:
                assert not measured[1:, unit].any()
            else:
                assert slope(measured)[unit] == pytest.approx(claimed[unit].item(), rel=1e-5)


def test_a_decay_of_nothing_and_of_everything() -> None:
    found = constants(STEPPED["Leaky-learnt"](), 1.0)["membrane"].tau
    assert found[0] == 0
    assert found[1] == pytest.approx(-1 / math.log(0.9))
    assert found[2] == torch.inf


def test_a_decay_that_grows_has_no_time_constant() -> None:
    with pytest.raises(TimingError, match=r"between 0 and 1"):
        constants(snn.DeltaLeaky(1.0, 1.5), 1.0)


@pytest.mark.parametrize("cls", [snn.StateLeaky, snn.LinearLeaky])
def test_kernels_of_snntorch(cls: type[nn.Module]) -> None:
    sizes = (
        {"channels": UNITS}
        if cls is snn.StateLeaky
        else {
            "in_features": UNITS,
            "out_features": UNITS,
        }
    )
    module = cls(BETAS, **sizes)
    if cls is snn.LinearLeaky:
        nn.init.eye_(module.linear.weight)
        nn.init.zeros_(module.linear.bias)
    impulse = torch.zeros(9, 1, UNITS)
    impulse[0] = 1
    _, membrane = module(impulse)
    constant = constants(module, 2.0)["membrane"]
    assert torch.allclose(slope(membrane[:, 0]), decay_of(constant, 2.0).double(), rtol=1e-4)
    assert not torch.allclose(slope(membrane[:, 0]), BETAS.double(), rtol=1e-4)


def test_the_rnn_inside_leaky_parallel() -> None:
    module = snn.LeakyParallel(UNITS, UNITS, beta=0.9, bias=False)
    nn.init.eye_(module.rnn.weight_ih_l0)
    module.rnn.weight_hh_l0.data[0, 0] = -0.5  # rectified: forgets at once
    membranes: list[Tensor] = []
    handle = module.rnn.register_forward_hook(lambda m, args, out: membranes.append(out[0]))
    impulse = torch.zeros(9, 1, UNITS)
    impulse[0] = 1
    module(impulse)
    handle.remove()
    constant = constants(module, 2.0)["membrane"]
    assert constant.tau[0] == 0
    assert not membranes[0][1:, 0, 0].any()
    claimed = decay_of(constant, 2.0).double()
    assert torch.allclose(slope(membranes[0][:, 0])[1:], claimed[1:], rtol=1e-5)


@pytest.mark.parametrize("build", [lambda: snn.SLSTM(3, 3), lambda: snn.SConv2dLSTM(1, 1, 3)])
def test_gates_have_no_time_constant(build: Callable[[], nn.Module]) -> None:
    assert constants(build(), 1.0) == {}


# -- Norse --------------------------------------------------------------------------------------

VARIABLE = {"membrane": "v", "synapse": "i", "recovery": "u"}
FIRST = {"membrane": -50.0, "synapse": 2.0, "adaptation": 2.0, "recovery": 2.0}


@pytest.mark.parametrize("dt", [1.0, 0.5])
@pytest.mark.parametrize("case", NORSE, ids=case_name)
def test_neurons_of_norse(case: Case, dt: float) -> None:
    """One variable released from a value that it could have been driven to, the others clamped."""
    module: Any = case.module()
    adapter = adapter_of(module)
    adapter.set_dt(module, dt)
    if hasattr(module, "g_coupling"):
        module.g_coupling = torch.zeros(5, 5)
    found = constants(module, dt)
    assert set(found) == EXPECTED.get(family(case), {"membrane", "synapse"})
    inputs = torch.zeros(1, 1, 4)
    for constant in found.values():
        variable = variable_of(case, constant.name)
        rest = rest_of(case, module)
        value, trace = torch.full((1, 1), FIRST[constant.name]) + rest[variable], []
        for _ in range(6):
            trace.append((value - equilibrium(case, module, variable, rest)).reshape(1))
            state = filled(initial_state(module, inputs), rest | {variable: value})
            _, state = stepped(module, inputs, state)
            value = flat(state)[variable].reshape(-1)[:1].reshape(1, 1)
        measured = slope(torch.stack(trace)).item()
        # The clamped exponential term of LIFEx and LIFAdEx is not quite nothing.
        assert measured == pytest.approx(decay_of(constant, dt).item(), rel=1e-4)


EXPECTED = {
    "LIFBox": {"membrane"},
    "LIBox": {"membrane"},
    "IAF": {"membrane"},
    "LSNN": {"membrane", "synapse", "adaptation"},
    "LIFAdEx": {"membrane", "synapse", "adaptation"},
    "LIFAdExRefrac": {"membrane", "synapse", "adaptation"},
    "Izhikevich": {"recovery"},
}


def family(case: Case) -> str:
    return case.name.removesuffix("Cell").removesuffix("Recurrent")


def variable_of(case: Case, constant: str) -> str:
    if constant == "adaptation":
        return "b" if family(case) == "LSNN" else "a"
    return VARIABLE[constant]


def rest_of(case: Case, module: Any) -> dict[str, Tensor]:
    rest = {name: torch.zeros(1, 1) for name in (*OURS, "z")}
    if family(case) == "LSNN":
        rest["b"] = torch.ones(1, 1) * module.p.v_th
    if family(case) == "Izhikevich":
        rest["v"] = torch.full((1, 1), -65.0)
    return rest


def equilibrium(case: Case, module: Any, variable: str, rest: dict[str, Tensor]) -> Tensor:
    """What the variable decays to while the others are at rest."""
    if family(case) == "Izhikevich":
        return module.p.b * rest["v"]
    return rest["b"] if variable == "b" else torch.zeros(1, 1)


def initial_state(module: Any, inputs: Tensor) -> Any:
    if isinstance(module, norse.LILinearCell):
        return norse.LIState(v=torch.zeros(1, 5), i=torch.zeros(1, 5))
    return module.initial_state(inputs if hasattr(module, "record_states") else inputs[0])


def stepped(module: Any, inputs: Tensor, state: Any) -> Any:
    return module(inputs if hasattr(module, "record_states") else inputs[0], state)


def flat(state: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in state._asdict().items():
        found |= flat(value) if isinstance(value, tuple) else {name: value}
    return found


def filled(state: Any, values: dict[str, Tensor]) -> Any:
    """The state with every variable set, over all units."""
    return type(state)(
        *(
            filled(value, values)
            if isinstance(value, tuple)
            else values[name].expand(1, 5 if "z" in flat(state) else 1)
            for name, value in state._asdict().items()
        )
    )


def test_norse_keeps_its_time_constants_in_ms_whatever_dt_is() -> None:
    module = norse.LIFCell()
    assert constants(module, 1.0)["membrane"].tau == pytest.approx(10.0)
    assert constants(module, 0.5)["membrane"].tau == pytest.approx(10.0)
    assert constants(module, 1.0)["synapse"].tau == pytest.approx(5.0)


def test_time_constants_may_differ_by_unit() -> None:
    rates = torch.tensor([50.0, 100.0, 200.0])
    module = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=rates))
    assert torch.allclose(constants(module, 1.0)["membrane"].tau, torch.tensor([20.0, 10.0, 5.0]))


def test_no_graph_is_held() -> None:
    learnt = snn.Leaky(0.9, learn_beta=True)
    rates = nn.Parameter(torch.tensor([100.0]))
    box = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=rates))
    for module in (learnt, box):
        assert not constants(module, 1.0)["membrane"].tau.requires_grad


def test_setting_dt() -> None:
    module = norse.LIFRecurrent(2, 3)
    adapter = adapter_of(module)
    assert adapter.traits(module).dt == 1.0
    adapter.set_dt(module, 0.5)
    assert module.dt == 0.0005
    assert adapter.traits(module).dt == 0.5
