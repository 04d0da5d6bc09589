"""The data flow of one timestep of a model that loops over time itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Adapters, Layer
from dynvision_snn.engine.calling import Calling
from dynvision_snn.engine.folding import folded
from dynvision_snn.engine.granted import check_granted
from dynvision_snn.engine.over_time import OverTime
from dynvision_snn.engine.tracing import (
    Refusal,
    Traced,
    attributes_of,
    check_attributes,
    states_of,
    steps_of,
    traceable,
    written_since,
)
from dynvision_snn.engine.unrolling import unrolled
from dynvision_snn.engine.witness import left_as_found, witnessed


def loops_by_itself(calling: Calling, adapters: Adapters, net: nn.Module) -> bool:
    """Whether a model steps its neurons in a time loop of its own.

    Neurons that a module of their library steps one by one are none of its own loop.
    """
    if calling.stepping == "step":
        return False
    lifted = {
        child
        for module in net.modules()
        if adapters.loops_children(module)
        for child in module.children()
    }
    return any(
        layer.is_stateful and not layer.traits.sequence and layer.module not in lifted
        for layer in adapters.layers(net)
    )


def trace_loop(
    net: nn.Module,
    calling: Calling,
    adapters: Adapters,
    layers: Mapping[nn.Module, Layer],
    example: Tensor,
    n_steps: int,
    wanted: bool,
) -> Traced:
    """The data flow of one timestep, as it is in a call with `n_steps` of them.

    Args:
        net: the model.
        calling: how it is called.
        adapters: the adapters in force.
        layers: the neuron layers by module.
        example: the input of one timestep, ``[B, *features]``.
        n_steps: T.
        wanted: whether its first output is; else it may return anything.

    Raises:
        Refusal: where the loop cannot be traced, or its timesteps are not all the same.
    """
    if calling.states:
        raise Refusal("it takes a state beside its own time loop")
    if example.ndim < 2:
        raise Refusal("its input has no axis of features")
    n_samples, *features = example.shape
    inputs = OverTime(n_steps, n_samples, calling.time_axis, tuple(features), example)
    with left_as_found(net.modules()), witnessed(net, ()):

        def traced() -> Traced:
            for module, layer in layers.items():
                layer.adapter.reset(module)
            return folded(unrolled(net, calling, adapters, layers, inputs), layers, wanted)

        before = attributes_of(net)
        with traceable("its time loop"):
            # Under both gradient modes: a forward that sets one is told from one that does not.
            with torch.enable_grad():
                one = traced()
            with torch.no_grad():
                other = traced()
        written = written_since(before, net) - states_of(layers)
        with traceable("its time loop"):
            for layer in layers.values():
                layer.adapter.reset(layer.module)
            check_granted(one, example, one.firsts or ())
    if written:
        raise Refusal(f"its forward writes {', '.join(sorted(written))}")
    if steps_of(one) != steps_of(other) or not _same(one.firsts, other.firsts):
        raise Refusal("its forward does not compute the same at every call")
    check_attributes(one, layers)
    _check_firsts(one)
    return one


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _check_firsts(traced: Traced) -> None:
    """Refuses what a reset neuron holds, which is empty, where another than a neuron takes it."""
    for placeholder, first in zip(traced.states, traced.firsts or (), strict=True):
        if isinstance(first, Tensor) and first.numel() == 0:
            others = [user for user in placeholder.users if user not in traced.layer_of]
            if any(user.op != "output" for user in others):
                raise Refusal("it uses the state of a neuron that was reset")
