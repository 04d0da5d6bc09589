"""State that modules keep between calls: taken, put back, forgotten, and never shared."""

from __future__ import annotations

import copy

import pytest
import snntorch as snn
import torch
from adapter_cases import SNNTORCH, B, Case, adapter_of, case_name, over_time, run
from snntorch import utils
from torch import nn

from dynvision_snn.adapters import Reading

stepped = pytest.mark.parametrize(
    "case", [case for case in SNNTORCH if not case.sequence], ids=case_name
)
all_of_snntorch = pytest.mark.parametrize("case", SNNTORCH, ids=case_name)


def keeping(case: Case) -> nn.Module:
    module = case.module()
    module.init_hidden = not case.sequence
    return module


@all_of_snntorch
def test_a_reset_module_runs_as_a_new_one(case: Case) -> None:
    module, inputs = keeping(case), case.inputs()
    new = over_time(case, run(case, copy.deepcopy(module), inputs))
    adapter = adapter_of(module)
    for earlier in (inputs.flip(0), inputs[:, :2]):  # other values, then another batch size
        run(case, module, earlier)
        adapter.reset(module)
        again = over_time(case, run(case, module, inputs))
        assert torch.equal(again.output, new.output)
        assert (again.membrane is None) == (new.membrane is None)
        if new.membrane is not None:
            assert torch.equal(again.membrane, new.membrane)
        adapter.reset(module)


@all_of_snntorch
def test_a_reset_module_holds_no_graph(case: Case) -> None:
    module = keeping(case)
    adapter = adapter_of(module)
    run(case, module, case.inputs().requires_grad_())
    adapter.reset(module)
    copy.deepcopy(module)  # fails where an attribute is part of a graph


@stepped
def test_state_does_carry_over_without_a_reset(case: Case) -> None:
    module, inputs = keeping(case), case.inputs()
    first = over_time(case, run(case, module, inputs))
    second = over_time(case, run(case, module, inputs))
    assert first.membrane is not None
    assert not torch.equal(first.membrane, second.membrane)


@stepped
def test_state_put_back_goes_on_where_it_was_taken(case: Case) -> None:
    module, inputs = keeping(case), case.inputs()
    adapter = adapter_of(module)
    whole = over_time(case, run(case, module, inputs))
    adapter.reset(module)
    run(case, module, inputs[:5])
    state = adapter.state(module)
    run(case, module, inputs.flip(0))
    adapter.restore(module, state)
    rest = over_time(case, run(case, module, inputs[5:]))
    assert torch.equal(rest.output, whole.output[5:])
    assert torch.equal(rest.membrane, whole.membrane[5:])


@stepped
def test_state_is_taken_by_reference_and_never_changed_in_place(case: Case) -> None:
    module, inputs = keeping(case), case.inputs()
    adapter = adapter_of(module)
    run(case, module, inputs[:3])
    state = adapter.state(module)
    kept = {name: value.clone() for name, value in state.items()}
    run(case, module, inputs[3:])
    adapter.reset(module)
    assert all(torch.equal(state[name], kept[name]) for name in kept)


@stepped
def test_neither_dtype_nor_shape_is_left_over(case: Case) -> None:
    if case.synapses and case.name != "RLeaky-diagonal":
        pytest.skip("its spikes or states are float32 whatever its weights are")
    module, inputs = keeping(case), case.inputs()
    adapter = adapter_of(module)
    run(case, module.double(), inputs.double())
    adapter.reset(module)
    reading = over_time(case, run(case, module.float(), inputs))
    assert reading.membrane.dtype == torch.float32


# DeltaLeaky's own reset leaves None, on which the library's next reset raises; the library's reset
# leaves RSynaptic's spikes, which recur into the next sequence.
@pytest.mark.parametrize(
    "case",
    [
        case
        for case in SNNTORCH
        if not case.sequence and case.name not in ("DeltaLeaky", "RSynaptic")
    ],
    ids=case_name,
)
def test_reset_equals_the_librarys_own_for_a_direct_child(case: Case) -> None:
    ours, theirs = run_again_after_reset(case)
    assert torch.equal(ours.output, theirs.output)
    assert torch.equal(ours.membrane, theirs.membrane)


def test_the_librarys_own_reset_leaves_the_spikes_of_rsynaptic() -> None:
    (case,) = (case for case in SNNTORCH if case.name == "RSynaptic")
    ours, theirs = run_again_after_reset(case)
    assert not torch.equal(ours.membrane, theirs.membrane)


def run_again_after_reset(case: Case) -> tuple[Reading, Reading]:
    """The second of two runs, with our reset and with the library's between them."""
    net, other = nn.Sequential(keeping(case)), nn.Sequential(keeping(case))
    inputs = case.inputs()
    for module in (net[0], other[0]):
        run(case, module, inputs)
    adapter_of(net[0]).reset(net[0])
    everywhere = snn.SpikingNeuron.instances
    snn.SpikingNeuron.instances = [other[0]]  # the library would reset all of the process
    try:
        utils.reset(other)
    finally:
        snn.SpikingNeuron.instances = everywhere
    ours = over_time(case, run(case, net[0], inputs))
    return ours, over_time(case, run(case, other[0], inputs))


def test_a_reset_reaches_one_module_alone() -> None:
    one, other = snn.Leaky(0.9, init_hidden=True), snn.Leaky(0.9, init_hidden=True)
    nested = nn.Sequential(nn.Sequential(one))
    for neuron in (one, other):
        neuron(torch.ones(B, 4))
    adapter_of(one).reset(nested[0][0])
    assert one.mem.numel() == 0
    assert torch.equal(other.mem, torch.ones(B, 4))


def test_a_run_in_inference_mode_leaves_nothing_that_training_trips_over() -> None:
    module = snn.RLeaky(0.9, linear_features=4, init_hidden=True)
    adapter = adapter_of(module)
    with torch.inference_mode():
        module(torch.ones(B, 4))
        adapter.reset(module)
    module(torch.ones(B, 4))
    module(torch.ones(B, 4)).sum().backward()
    assert module.recurrent.weight.grad is not None


def test_modules_without_state_keep_none() -> None:
    import norse.torch as norse

    for module in (norse.LIF(), nn.LSTMCell(3, 3), nn.ReLU(), snn.StateLeaky(0.9, 3)):
        adapter = adapter_of(module)
        assert adapter.state(module) == {}
        adapter.reset(module)
        adapter.restore(module, {})
