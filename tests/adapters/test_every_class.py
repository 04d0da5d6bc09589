"""Every class against the library's own loop: outputs, membranes, states and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adapter_cases import (
    CASES,
    SNNTORCH,
    B,
    Case,
    T,
    Truth,
    adapter_of,
    case_name,
    over_time,
    run,
)
from torch import Tensor, nn

from dynvision_snn.adapters import Role

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")
every_case = pytest.mark.parametrize("case", CASES, ids=case_name)


def modes(case: Case) -> list[dict[str, Any]]:
    """How a stepped snnTorch neuron may be told to keep or return its state."""
    if case not in SNNTORCH or case.sequence:
        return [{}]
    if case.name == "DeltaLeaky":
        return [{"init_hidden": True}]
    return [
        {},
        {"init_hidden": True},
        {"init_hidden": True, "output": True},
        {"output": True},
    ]


@every_case
def test_reads_what_the_librarys_own_loop_yields(case: Case) -> None:
    inputs = case.inputs()
    module = case.module()
    if case.time_axis:
        truth = Truth(module(inputs.transpose(0, 1))[0].transpose(0, 1))
    else:
        truth = case.truth(copy.deepcopy(module), inputs)
    for mode in modes(case):
        again = copy.deepcopy(module)
        for name, value in mode.items():
            setattr(again, name, value)
        reading = over_time(case, run(case, again, inputs))

        n_steps = truth.output.shape[0]
        assert reading.output.shape[:2] == (T, B)
        same = torch.equal if exact(case) else torch.allclose
        assert same(reading.output[:n_steps], truth.output)
        assert (reading.membrane is None) == (truth.membrane is None)
        if truth.membrane is not None:
            assert same(reading.membrane, truth.membrane)
        assert set(reading.state) == set(truth.state) == set(case.state)
        for name, value in truth.state.items():
            assert torch.equal(reading.state[name], value), name
        if case.role is Role.SPIKING:
            assert 0 < torch.count_nonzero(reading.output) < reading.output.numel()


def exact(case: Case) -> bool:
    """Whether the oracle does the library's arithmetic in the library's order."""
    return case.name.removesuffix("-integrator") not in ("StateLeaky", "LinearLeaky")


@every_case
def test_gradients_are_those_of_the_librarys_own_loop(case: Case) -> None:
    if case in SNNTORCH and case.sequence and case.role is Role.SPIKING:
        pytest.skip("its oracle thresholds without a surrogate gradient")

    def gradient(module: nn.Module, through_adapter: bool) -> list[Tensor]:
        inputs = case.inputs().requires_grad_()
        if case.time_axis:
            output = module(inputs.transpose(0, 1))[0].transpose(0, 1)
            if through_adapter:
                output = over_time(case, run(case, module, inputs)).output
        elif through_adapter:
            output = over_time(case, run(case, module, inputs)).output
        else:
            output = case.truth(module, inputs).output
        weighting = torch.arange(output.numel()).reshape(output.shape).cos()
        (output * weighting).sum().backward()
        found = [inputs, *module.parameters()]
        return [tensor.grad for tensor in found if tensor.grad is not None]

    # Built twice, not copied: a copy of a Norse layer loses the gradient mask of its autapses.
    module, other = case.module(), case.module()
    if case.name == "DeltaLeaky":
        other.init_hidden = True
    expected, found = gradient(module, False), gradient(other, True)
    assert len(expected) == len(found) >= 1
    assert any(bool(grad.any()) for grad in expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs) or (
            not exact(case) and torch.allclose(ours, theirs, atol=1e-5)
        )


@every_case
def test_one_timestep_and_one_sample(case: Case) -> None:
    module = case.module()
    if case.name == "DeltaLeaky":
        module.init_hidden = True
    reading = over_time(case, run(case, module, case.inputs()[:1, :1]))
    assert reading.output.shape[:2] == (1, 1)


@pytest.mark.parametrize("case", [c for c in CASES if c.sequence], ids=case_name)
def test_recording_is_undone_and_changes_nothing_for_the_caller(case: Case) -> None:
    module, inputs = case.module(), case.inputs()
    given = inputs.transpose(0, 1) if case.time_axis else inputs
    adapter = adapter_of(module)
    before = dict(vars(module))
    plain = module(given)
    with adapter.recording(module):
        recorded = module(given)
    adapter.reset(module)
    assert same_nested(plain, recorded)
    assert vars(module).keys() == before.keys()
    assert all(vars(module)[name] is before[name] for name in before)

    class Stopped(Exception):
        pass

    with pytest.raises(Stopped), adapter.recording(module):
        raise Stopped
    assert all(vars(module)[name] is before[name] for name in before)
    assert not module._forward_hooks


def same_nested(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same_nested(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_a_norse_layer_that_records_nothing_shows_no_membrane() -> None:
    import norse.torch as norse

    from dynvision_snn.adapters import Call

    module, x = norse.LIF(), torch.rand(T, B, 4)
    adapter = adapter_of(module)
    reading = adapter.read(module, Call((x,), {}, module(x)))
    assert reading.membrane is None
    assert reading.state == {}


def test_states_are_taken_by_position_or_keyword_alike() -> None:
    import norse.torch as norse
    import snntorch as snn

    from dynvision_snn.adapters import Call

    x = torch.rand(B, 4)
    cell = norse.LIFRecurrentCell(4, 4)
    _, state = cell(10 * x)
    _, state = cell(10 * x, state)
    z = state.z
    assert z.any()
    adapter = adapter_of(cell)
    assert adapter.presynaptic(cell, (x, state), {})[1] is z
    assert adapter.presynaptic(cell, (x,), {"state": state})[1] is z
    assert adapter.presynaptic(cell, (), {"input_tensor": x, "state": state})[0] is x
    assert not adapter.is_fresh(cell, Call((x,), {"state": state}, None))
    assert adapter.is_fresh(cell, Call((x,), {}, None))

    neuron, spikes = snn.RLeaky(0.9, linear_features=4), torch.ones(B, 4)
    assert adapter_of(neuron).presynaptic(neuron, (x,), {"spk": spikes})[0] is spikes
    assert adapter_of(neuron).presynaptic(neuron, (x, spikes), {})[0] is spikes
