"""What the weights inside neuron modules receive, against brute force and against the states.

Two oracles: loops that keep every input and every earlier output by hand, and the neurons' own
equations, by which the operators applied to what they received must make the recorded states.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from adapter_cases import (
    CASES,
    NORSE,
    TORCH_RECURRENT,
    B,
    Case,
    N,
    Seen,
    T,
    adapter_of,
    case_name,
    over_time,
    run,
    watched,
)
from torch import Tensor, nn
from torch.nn import functional as F

from dynvision_snn.adapters import Adapters, InnerSynapses
from dynvision_snn.errors import AdapterError

STEPPED = [case for case in CASES if case.synapses and not case.sequence]
WHOLE = [case for case in CASES if case.synapses and case.sequence]


def received_over_time(case: Case, module: nn.Module, seen: list[Seen]) -> dict[str, Tensor]:
    """Time first, by the synapses' names; silence as zeros."""
    synapses = adapter_of(module).synapses(module)
    assert tuple(s.name for s in synapses) == case.synapses
    found = {}
    for index, synapse in enumerate(synapses):
        values = [item.received[index] for item in seen]
        if case.sequence:
            (value,) = values
            assert value is not None
            found[synapse.name] = value.transpose(0, 1) if case.time_axis else value
        else:
            zero = torch.zeros_like(next(v for v in values if v is not None))
            found[synapse.name] = torch.stack([zero if v is None else v for v in values])
    return found


def later(values: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(values[:1]), values[:-1]])


# -- every earlier output, kept by hand -----------------------------------------------------------


@pytest.mark.parametrize("case", STEPPED, ids=case_name)
def test_stepped_layers_receive_their_inputs_and_their_past(case: Case) -> None:
    module, inputs = case.module(), case.inputs()
    truth = case.truth(copy.deepcopy(module), inputs)
    seen = run(case, module, inputs)
    found = received_over_time(case, module, seen)
    recurs_on_membrane = isinstance(module, snn.SLSTM | snn.SConv2dLSTM)
    past = truth.membrane if recurs_on_membrane else truth.output
    assert past is not None
    if "input" in found:
        assert torch.equal(found["input"], inputs)
    if "recurrent" in found:
        assert torch.equal(found["recurrent"], later(past))
        assert found["recurrent"].any()


@pytest.mark.parametrize("case", [c for c in WHOLE if c not in TORCH_RECURRENT], ids=case_name)
def test_whole_sequences_receive_their_inputs_and_their_past(case: Case) -> None:
    module, inputs = case.module(), case.inputs()
    seen = run(case, module, inputs)
    output = over_time(case, seen).output
    for name, value in received_over_time(case, module, seen).items():
        assert torch.equal(value, later(output) if name == "recurrent" else inputs), name
        assert value.requires_grad == (output if name == "recurrent" else inputs).requires_grad


def test_a_whole_sequence_starts_from_the_spikes_of_the_state_it_is_passed() -> None:
    module, x = norse.LIFRecurrent(N, N), 10 * torch.rand(T, B, N)
    _, state = norse.LIFRecurrent(N, N)(x)
    state = state._replace(z=torch.ones(B, N))
    with watched(adapter_of(module), module) as seen:
        module(x, state)
    assert torch.equal(seen[0].received[1][0], torch.ones(B, N))


# -- torch's stacks of layers, by their cells' equations ------------------------------------------


def unrolled(module: Any, inputs: Tensor, initial: Any = None) -> dict[str, Tensor]:
    """Every layer and direction by hand, one timestep after the other."""
    ways = ["", "_reverse"] if module.bidirectional else [""]
    single = module.num_layers * len(ways) == 1
    found: dict[str, Tensor] = {}
    for layer in range(module.num_layers):
        outputs = []
        for place, way in enumerate(ways):
            index = layer * len(ways) + place
            suffix = "" if single else f".{layer}" + (".reverse" if way else "")
            out, past, before = _direction(module, inputs, f"l{layer}{way}", initial, index)
            found[f"input{suffix}"], found[f"recurrent{suffix}"] = inputs, past
            if module.proj_size:
                found[f"projection{suffix}"] = before
            outputs.append(out)
        inputs = torch.cat(outputs, dim=-1)
    return found | {"output": inputs}


def _direction(
    module: Any, inputs: Tensor, ending: str, initial: Any, index: int
) -> tuple[Tensor, Tensor, Tensor]:
    w_ih, w_hh = getattr(module, f"weight_ih_{ending}"), getattr(module, f"weight_hh_{ending}")
    zero = torch.zeros(w_ih.shape[0])
    b_ih = getattr(module, f"bias_ih_{ending}") if module.bias else zero
    b_hh = getattr(module, f"bias_hh_{ending}") if module.bias else zero
    batch = inputs.shape[1]
    h, c = torch.zeros(batch, w_hh.shape[1]), torch.zeros(batch, module.hidden_size)
    if initial is not None:
        h = (initial[0] if isinstance(initial, tuple) else initial)[index]
        c = initial[1][index] if isinstance(initial, tuple) else c
    steps = range(len(inputs))
    out: dict[int, Tensor] = {}
    past: dict[int, Tensor] = {}
    before: dict[int, Tensor] = {}
    for t in reversed(steps) if ending.endswith("reverse") else steps:
        past[t] = h
        drive, own = inputs[t] @ w_ih.T + b_ih, h @ w_hh.T + b_hh
        if isinstance(module, nn.LSTM):
            i, f, g, o = (drive + own).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            before[t] = h = o.sigmoid() * c.tanh()
            if module.proj_size:
                h = h @ getattr(module, f"weight_hr_{ending}").T
        elif isinstance(module, nn.GRU):
            (r, z, n), (r2, z2, n2) = drive.chunk(3, -1), own.chunk(3, -1)
            gate = (z + z2).sigmoid()
            h = (1 - gate) * (n + (r + r2).sigmoid() * n2).tanh() + gate * h
        else:
            h = (drive + own).relu() if module.nonlinearity == "relu" else (drive + own).tanh()
        out[t] = h
    stack = [torch.stack([values[t] for t in steps]) for values in (out, past, before or past)]
    return stack[0], stack[1], stack[2]


@pytest.mark.parametrize("from_zero", [True, False])
@pytest.mark.parametrize("case", [c for c in TORCH_RECURRENT if c.sequence], ids=case_name)
def test_every_layer_and_direction_of_torch(case: Case, from_zero: bool) -> None:
    module: Any = case.module().eval()
    inputs = case.inputs()
    parts = module.num_layers * (2 if module.bidirectional else 1)
    initial: Any = None
    if not from_zero:
        initial = torch.rand(parts, B, module.proj_size or module.hidden_size) - 0.5
        if isinstance(module, nn.LSTM):
            initial = (initial, torch.rand(parts, B, module.hidden_size) - 0.5)
    expected = unrolled(module, inputs, initial)
    given = inputs.transpose(0, 1) if case.time_axis else inputs
    with watched(adapter_of(module), module) as seen:
        module(given, initial)
    found = received_over_time(case, module, seen)
    output = expected.pop("output")
    read = seen[0].reading.output
    assert torch.allclose(read.transpose(0, 1) if case.time_axis else read, output, atol=1e-6)
    assert found.keys() == expected.keys()
    weights = list(module.parameters())
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-6), name
        assert torch.equal(found[name] == 0, value == 0), name
        assert found[name].requires_grad == value.requires_grad, name
        if value.requires_grad:
            shares = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
            mine, theirs = (
                torch.autograd.grad(
                    (v * shares).sum(), weights, retain_graph=True, allow_unused=True
                )
                for v in (found[name], value)
            )
            for one, other in zip(mine, theirs, strict=True):
                assert (one is None or not one.any()) == (other is None or not other.any())
                if one is not None and other is not None:
                    assert torch.allclose(one, other, atol=1e-5), name


@pytest.mark.parametrize("case", [c for c in TORCH_RECURRENT if c.sequence], ids=case_name)
def test_synapses_of_torch_are_its_weights(case: Case) -> None:
    module = case.module()
    weights = {id(p) for name, p in module.named_parameters() if name.startswith("weight")}
    assert {id(s.operator) for s in adapter_of(module).synapses(module)} == weights


def test_dropout_between_layers_is_refused_while_it_trains() -> None:
    module = nn.LSTM(N, 5, num_layers=2, dropout=0.5)
    adapter, x = adapter_of(module), torch.rand(T, B, N)
    with pytest.raises(AdapterError, match=r"LSTM with dropout=0.5 .* evaluation mode"):
        adapter.presynaptic(module, (x,), {})
    module.eval()
    assert adapter.presynaptic(module, (x,), {}) == (None,) * 4


# -- operators applied to what they received make the recorded states -----------------------------


def applied(synapse: InnerSynapses, values: Tensor) -> Tensor:
    """One timestep's synaptic input, without the bias."""
    operator: Any = synapse.operator
    if synapse.form == "dense":
        return values @ operator.T
    if synapse.form == "diagonal":
        return values * operator
    if isinstance(operator, nn.Conv2d):
        return F.conv2d(values, operator.weight, None, operator.stride, operator.padding)
    return values @ operator.weight.T


def synaptic_input(case: Case, module: nn.Module, seen: list[Seen]) -> dict[str, Tensor]:
    received = received_over_time(case, module, seen)
    return {
        synapse.name: torch.stack([applied(synapse, value) for value in received[synapse.name]])
        for synapse in adapter_of(module).synapses(module)
    }


CURRENTS = [c for c in NORSE if "recurrent" in c.synapses and "current" in c.state]


@pytest.mark.parametrize("case", CURRENTS, ids=case_name)
def test_input_and_recurrent_weights_make_norses_current(case: Case) -> None:
    module: Any = case.module()
    seen = run(case, module, case.inputs())
    current = over_time(case, seen).state["current"]
    made = synaptic_input(case, module, seen)
    jump = made["input"] + made["recurrent"]
    p = module.p
    p = getattr(p, "lif", getattr(p, "lif_adex", p))
    decay = 1 - module.dt * p.tau_syn_inv
    arrives_late = case.name.startswith(("LSNN", "LIFMCRefrac"))
    expected = decay * later(current) + jump if arrives_late else decay * (later(current) + jump)
    assert torch.allclose(current, expected, rtol=1e-4, atol=1e-4)


def test_coupling_weights_make_the_membrane_of_lifmc() -> None:
    (case,) = (c for c in NORSE if c.name == "LIFMCRecurrentCell")
    module: Any = case.module()
    seen = run(case, module, case.inputs())
    received = received_over_time(case, module, seen)["coupling"]
    made = synaptic_input(case, module, seen)["coupling"]
    reading = over_time(case, seen)
    assert reading.membrane is not None
    assert torch.allclose(reading.membrane, received + module.dt * made, atol=1e-6)
    # Just reset, a neuron has no membrane to couple: silence, and counted so.
    assert not received[reading.output.bool()].any()


def test_coupling_weights_receive_the_membrane_before_of_lifmcrefrac() -> None:
    (case,) = (c for c in NORSE if c.name == "LIFMCRefracRecurrentCell")
    module = case.module()
    seen = run(case, module, case.inputs())
    membrane = over_time(case, seen).membrane
    assert membrane is not None
    received = received_over_time(case, module, seen)["coupling"]
    assert torch.equal(received, later(membrane))


def test_a_first_state_that_is_not_zero_is_no_silence() -> None:
    lif = norse.LIFParameters(v_leak=torch.tensor(0.25))
    module = norse.LIFMCRefracRecurrentCell(N, 5, p=norse.LIFRefracParameters(lif=lif))
    received = adapter_of(module).presynaptic(module, (torch.rand(B, N),), {})
    assert torch.equal(received[2], torch.full((B, 5), 0.25))


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("form", ["linear", "conv", "diagonal"])
def test_recurrent_weights_make_the_membrane_of_rleaky(reset: str, form: str) -> None:
    arguments: dict[str, Any] = {
        "linear": {"linear_features": N},
        "conv": {"conv2d_channels": 2, "kernel_size": 3},
        "diagonal": {"all_to_all": False, "V": torch.linspace(-0.5, 0.5, N)},
    }[form]
    torch.manual_seed(0)
    module = snn.RLeaky(0.9, init_hidden=True, reset_mechanism=reset, **arguments)
    if form != "diagonal":
        nn.init.zeros_(module.recurrent.bias)
    units = (2, 5, N) if form == "conv" else (N,)
    case = Case(
        "RLeaky", snn.RLeaky, lambda: module, lambda m, x: m, units, synapses=("recurrent",)
    )
    inputs = case.inputs()
    seen = run(case, module, inputs)
    membrane = over_time(case, seen).membrane
    assert membrane is not None
    before = later(membrane)
    made = synaptic_input(case, module, seen)["recurrent"]
    expected = 0.9 * before + inputs + made
    crossed = (before > 1).float()
    if reset == "subtract":
        expected = expected - crossed
    if reset == "zero":
        expected = (1 - crossed) * expected
    assert torch.allclose(membrane, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["SLSTM", "SConv2dLSTM"])
def test_input_and_recurrent_weights_make_the_cell_state(name: str) -> None:
    (case,) = (c for c in CASES if c.name == name)
    module: Any = case.module()
    seen = run(case, module, case.inputs())
    made = synaptic_input(case, module, seen)
    cell = over_time(case, seen).state["cell"]
    if name == "SLSTM":
        bias = module.lstm_cell.bias_ih + module.lstm_cell.bias_hh
        i, f, g, _ = (made["input"] + made["recurrent"] + bias).chunk(4, 2)
    else:
        bias = module.conv.bias[:, None, None]
        i, f, _, g = (made["input"] + made["recurrent"] + bias).chunk(4, 2)
    expected = f.sigmoid() * later(cell) + i.sigmoid() * g.tanh()
    assert torch.allclose(cell, expected, atol=1e-5)


def test_the_parts_of_a_conv_lstm_follow_its_weights() -> None:
    module = snn.SConv2dLSTM(2, 3, 3)
    parts = adapter_of(module).synapses(module)
    versions = [part.operator.weight._version for part in parts]
    with torch.no_grad():
        module.conv.weight.zero_()
    for part, version in zip(parts, versions, strict=True):
        assert not part.operator.weight.any()
        assert part.operator.weight._version > version
        assert not part.operator.weight.requires_grad


# -- calls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_recurrent_connection_counts_once_although_it_is_evaluated_twice(reset: str) -> None:
    module = snn.RLeaky(0.9, linear_features=N, init_hidden=True, reset_mechanism=reset)
    calls: list[Tensor] = []
    module.recurrent.register_forward_hook(lambda m, args, out: calls.append(out))
    with watched(adapter_of(module), module) as seen:
        module(torch.rand(B, N))
    assert len(calls) == (2 if reset == "zero" else 1)
    assert len(seen) == 1
    assert len(seen[0].received) == 1


@pytest.mark.parametrize(
    "build",
    [
        lambda: snn.RLeaky(0.9, linear_features=N, init_hidden=True),
        lambda: snn.SLSTM(N, N, init_hidden=True),
    ],
)
def test_a_state_of_another_batch_size_is_silence(build: Callable[[], nn.Module]) -> None:
    module = build()
    adapter = adapter_of(module)
    module(torch.rand(B, N))
    assert adapter.presynaptic(module, (torch.rand(B, N),), {})[-1] is not None
    assert adapter.presynaptic(module, (torch.rand(B + 1, N),), {})[-1] is None


def test_inner_modules_are_part_of_their_layer() -> None:
    net = nn.Sequential(snn.RLeaky(0.9, linear_features=N), nn.Linear(N, 2))
    visited = [name for name, _, _ in Adapters().walk(net)]
    assert visited == ["", "0", "1"]
