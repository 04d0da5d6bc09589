"""SpikingJelly's nodes, through the same door as any third library's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapter_cases import B, N, T, watched
from torch import Tensor, nn

from dynvision_snn.adapters import Adapters, Call, Role
from dynvision_snn.errors import AdapterError

pytest.importorskip("spikingjelly", reason="the extra 'spikingjelly' is not installed")

from spikingjelly.activation_based import functional, layer, neuron, surrogate

from dynvision_snn.adapters.spikingjelly import SpikingJellyAdapter

ADAPTER = SpikingJellyAdapter()
NODES: dict[str, Callable[..., Any]] = {
    "IF": neuron.IFNode,
    "IF-soft": lambda **k: neuron.IFNode(v_reset=None, **k),
    "LIF": lambda **k: neuron.LIFNode(tau=5.0, **k),
    "LIF-undecayed": lambda **k: neuron.LIFNode(tau=5.0, decay_input=False, v_reset=-0.5, **k),
    "PLIF": lambda **k: neuron.ParametricLIFNode(init_tau=3.0, **k),
}
each_node = pytest.mark.parametrize("name", NODES)
both_modes = pytest.mark.parametrize("mode", ["s", "m"])


def inputs() -> Tensor:
    values = torch.rand(T, B, N, generator=torch.Generator().manual_seed(0))
    return 4 * values * (values > 0.3)


def by_hand(node: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The nodes' equations: Euler charge, spike at threshold, hard or soft reset."""
    rest = 0.0 if node.v_reset is None else node.v_reset
    v, spikes, membranes = torch.full_like(x[0], rest), [], []
    for drive in x:
        if isinstance(node, neuron.IFNode):
            v = v + drive
        else:
            rate = node.w.sigmoid() if hasattr(node, "w") else 1 / node.tau
            v = v - rate * (v - rest) + (rate * drive if node.decay_input else drive)
        spike = (v >= node.v_threshold).float()
        v = v - spike * node.v_threshold if node.v_reset is None else (1 - spike) * v + spike * rest
        spikes.append(spike)
        membranes.append(v)
    return torch.stack(spikes), torch.stack(membranes)


def run(node: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    with watched(ADAPTER, node) as seen:
        if node.step_mode == "m":
            node(x)
        else:
            for step in x:
                node(step)
    readings = [item.reading for item in seen]
    if node.step_mode == "m":
        (reading,) = readings
        return reading.output, reading.membrane
    return torch.stack([r.output for r in readings]), torch.stack([r.membrane for r in readings])


@each_node
@both_modes
def test_reads_spikes_and_membranes(name: str, mode: str) -> None:
    node, x = NODES[name](step_mode=mode), inputs()
    traits = ADAPTER.traits(node)
    assert (traits.role, traits.sequence) == (Role.SPIKING, mode == "m")
    assert traits.membrane == "after"
    assert traits.caveats == ()
    spikes, membrane = run(node, x)
    expected_spikes, expected_membrane = by_hand(node, x)
    assert torch.equal(spikes, expected_spikes)
    assert 0 < spikes.sum() < spikes.numel()
    assert torch.allclose(membrane, expected_membrane, atol=1e-5)


@each_node
@both_modes
def test_equals_the_librarys_own_run_bit_for_bit(name: str, mode: str) -> None:
    node, x = NODES[name](step_mode=mode), inputs()
    other = copy.deepcopy(node)
    spikes, membrane = run(node, x)
    if mode == "m":
        other.store_v_seq = True
        assert torch.equal(other(x), spikes)
        assert torch.equal(other.v_seq, membrane)
    else:
        for step, spike, v in zip(x, spikes, membrane, strict=True):
            assert torch.equal(other(step), spike)
            assert torch.equal(other.v, v)


@each_node
@both_modes
def test_a_reset_node_runs_as_a_new_one_and_as_the_librarys_reset(name: str, mode: str) -> None:
    node, x = NODES[name](step_mode=mode), inputs()
    other = copy.deepcopy(node)
    new = run(copy.deepcopy(node), x)
    for earlier in (x.flip(0), x[:, :1]):
        run(node, earlier)
        run(other, earlier)
        ADAPTER.reset(node)
        functional.reset_net(other)
        for again in (run(node, x), run(other, x)):
            assert all(torch.equal(a, b) for a, b in zip(again, new, strict=True))
        ADAPTER.reset(node)
        functional.reset_net(other)
    assert node.v_seq is None


@each_node
@both_modes
def test_state_put_back_goes_on_where_it_was_taken(name: str, mode: str) -> None:
    node, x = NODES[name](step_mode=mode), inputs()
    whole = run(node, x)
    ADAPTER.reset(node)
    run(node, x[:5])
    state = ADAPTER.state(node)
    kept = state["v"].clone()
    run(node, x.flip(0))
    ADAPTER.reset(node)
    assert torch.equal(state["v"], kept)
    ADAPTER.restore(node, state)
    rest = run(node, x[5:])
    assert all(torch.equal(a, b[5:]) for a, b in zip(rest, whole, strict=True))


def test_recording_is_undone() -> None:
    node, x = neuron.LIFNode(step_mode="m"), inputs()
    plain = node(x)
    assert ADAPTER.read(node, Call((x,), {}, plain)).membrane is None
    with ADAPTER.recording(node):
        assert node.store_v_seq
    assert not node.store_v_seq
    assert node.v_seq is None
    with pytest.raises(KeyError), ADAPTER.recording(node):
        raise KeyError
    assert not node.store_v_seq
    keeping = neuron.LIFNode(step_mode="m", store_v_seq=True)
    with ADAPTER.recording(keeping):
        pass
    assert keeping.store_v_seq


@pytest.mark.parametrize("dt", [1.0, 0.5])
@each_node
def test_time_constants_against_the_measured_decay(name: str, dt: float) -> None:
    node = NODES[name]()
    node.v_threshold = 1e9
    (constant,) = ADAPTER.time_constants(node, dt)
    rest = 0.0 if node.v_reset is None else node.v_reset
    for _ in range(5):
        node(torch.ones(1, 1))
    trace = []
    for _ in range(8):
        node(torch.zeros(1, 1))
        trace.append(node.v.item() - rest)
    measured = (trace[-1] / trace[0]) ** (1 / (len(trace) - 1))
    assert constant.integrator == "euler"
    assert measured == pytest.approx(1 - dt / float(constant.tau), rel=1e-5)
    assert math.isinf(float(constant.tau)) == name.startswith("IF")


def test_gradients_pass_unchanged() -> None:
    node, x = neuron.ParametricLIFNode(step_mode="m"), inputs().requires_grad_()
    other = copy.deepcopy(node)
    weights = torch.arange(T * B * N).reshape(T, B, N).cos()
    (run(node, x)[0] * weights).sum().backward()
    mine, x.grad = x.grad, None
    (other(x) * weights).sum().backward()
    assert torch.equal(mine, x.grad)
    assert mine.any()


# -- the door -----------------------------------------------------------------------------------


def test_it_is_found_by_the_door_for_third_libraries() -> None:
    net = nn.Sequential(layer.Linear(N, 5), neuron.LIFNode(), layer.Linear(5, 2), neuron.IFNode())
    layers = Adapters().layers(net)
    assert [found.name for found in layers] == ["1", "3"]
    assert {found.adapter.library for found in layers} == {"spikingjelly"}


def test_a_subclass_of_the_users_is_served_as_its_base() -> None:
    class Mine(neuron.LIFNode):
        pass

    assert ADAPTER.traits(Mine()).role is Role.SPIKING
    assert ADAPTER.traits(surrogate.ATan()) is None
    assert ADAPTER.traits(layer.Conv2d(1, 1, 3)) is None
    assert ADAPTER.loops_children(layer.MultiStepContainer(nn.Linear(2, 2)))
    assert not ADAPTER.loops_children(layer.SeqToANNContainer(nn.Linear(2, 2)))


def analog() -> nn.Module:
    node = neuron.LIFNode()
    node.surrogate_function.set_spiking_mode(False)
    return node


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (neuron.QIFNode, "QIFNode is a neuron class of SpikingJelly .*IFNode, LIFNode"),
        (neuron.ILIFNode, "ILIFNode is a neuron class of SpikingJelly"),
        (lambda: neuron.PSN(4), "PSN is a neuron class of SpikingJelly"),
        (layer.Dropout, "Dropout of SpikingJelly keeps a state between calls"),
        (analog, "LIFNode is refused: its surrogate function has spiking=False"),
    ],
)
def test_refusals(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        ADAPTER.traits(build())
