"""The data flow of one call of a model, and whether its first call is as the others.

Without a state many a forward makes one: zeros of its own, which its first timestep starts from, or
that of its neurons after a reset, from which they start by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from dynvision_snn.adapters import Adapters, Layer
from dynvision_snn.engine.blocks import mapped
from dynvision_snn.engine.calling import Calling
from dynvision_snn.engine.granted import check_granted
from dynvision_snn.engine.marks import Marks
from dynvision_snn.engine.over_time import SizedProxy
from dynvision_snn.engine.tracing import (
    UNTRACEABLE,
    Refusal,
    Traced,
    Tracer,
    attributes_of,
    check_attributes,
    states_of,
    steps_of,
    traceable,
    written_since,
)
from dynvision_snn.engine.witness import left_as_found, witnessed

# The placeholders of states.
_STATE = re.compile(r"\bstate_\d+\b")


def trace_call(
    net: nn.Module,
    calling: Calling,
    adapters: Adapters,
    layers: Mapping[nn.Module, Layer],
    example: Tensor,
) -> Traced:
    """The data flow of one call.

    Args:
        net: the model.
        calling: how it is called.
        adapters: the adapters in force.
        layers: the neuron layers by module.
        example: an input of one call, for one look at the form of its states.

    Raises:
        Refusal: where the forward cannot be traced, or does what a graph cannot say.
    """
    form, like = _forms(net, calling, layers, example)
    with left_as_found(net.modules()), witnessed(net, ()):
        for module, layer in layers.items():
            layer.adapter.reset(module)
        before = attributes_of(net)
        n_samples = len(example) if calling.stepping == "step" else None
        with traceable("its forward"):
            # Under both gradient modes: a forward that sets one is told from one that does not.
            with torch.enable_grad():
                traced = Tracer(adapters, layers, n_samples).traced(net, calling, form, like)
            with torch.no_grad():
                again = Tracer(adapters, layers, n_samples).traced(net, calling, form, like)
        _check_written(before, net, frozenset())
        if steps_of(traced) != steps_of(again):
            raise Refusal("its forward does not compute the same at every call")
        traced = _without_unread(traced)
        check_attributes(traced, layers)
        first = _First(net, calling, adapters, layers, n_samples, like)
        with traceable("its forward at the first timestep"):
            traced = replace(traced, starts_alike=first.is_as(traced, example))
        _check_written(before, net, states_of(layers))
        for layer in layers.values():
            layer.adapter.reset(layer.module)
        with traceable("its forward"):
            check_granted(traced, example, form)
    return traced


def _forms(
    net: nn.Module, calling: Calling, layers: Mapping[nn.Module, Layer], example: Tensor
) -> tuple[tuple[Any, ...], Any]:
    """The states that the model returns, and all that it returns, at one look."""
    if not calling.states:
        return (), None
    with left_as_found(net.modules()), witnessed(net, ()):
        for module, layer in layers.items():
            layer.adapter.reset(module)
        output = calling.call(net, example, calling.initial_states)
        _, states = calling.split(output)
    return states, output


def _without_unread(traced: Traced) -> Traced:
    """Leaves out what a forward reads only to return it behind its first output, ``lif.mem``."""
    found: list[fx.Node] = []
    mapped(found.append, traced.outputs)
    kept = {*found[:1]}
    mapped(kept.add, traced.returned)
    unread = {
        node
        for node in found
        if node.op == "get_attr" and node not in kept and all(u.op == "output" for u in node.users)
    }
    for node in unread:
        node.replace_all_uses_with(traced.inputs)
        traced.graph.erase_node(node)
    outputs = mapped(lambda node: None if node in unread else node, traced.outputs)
    return replace(traced, outputs=outputs)


def _check_written(
    before: Mapping[tuple[str, int, int], Any], net: nn.Module, allowed: frozenset[str]
) -> None:
    written = written_since(before, net) - allowed
    if written:
        raise Refusal(f"its forward writes {', '.join(sorted(written))}")


# -- the first call -------------------------------------------------------------------------------


class _First:
    """The call that has no state."""

    def __init__(
        self,
        net: nn.Module,
        calling: Calling,
        adapters: Adapters,
        layers: Mapping[nn.Module, Layer],
        n_samples: int | None,
        like: Any,
    ) -> None:
        self._net = net
        self._calling = calling
        self._adapters = adapters
        self._layers = layers
        self._n_samples = n_samples
        self._like = like

    def is_as(self, traced: Traced, example: Tensor) -> bool:
        """Whether it computes what `traced` does, given no states.

        Raises:
            Refusal: where it touches what its neurons hold otherwise than to reset them.
        """
        if not self._calling.states:
            return True
        try:
            first = _without_unread(self._traced(None))
        except UNTRACEABLE:
            # It may make tensors of the sizes of its input. It is run as it is, but may do nothing
            # that a later call would see.
            self._traced(example)
            return False
        return steps_of(first) == [
            (op, target, _STATE.sub("None", given), length)
            for op, target, given, length in steps_of(traced)
        ]

    def _traced(self, example: Tensor | None) -> Traced:
        for module, layer in self._layers.items():
            layer.adapter.reset(module)
        tracer = _FirstTracer(self._adapters, self._layers, self._n_samples, example)
        none = self._calling.initial_states
        traced = tracer.traced(self._net, self._calling, none, self._like)
        tracer.marks.check_all()
        return traced


class _FirstTracer(Tracer):
    """Traces a call that has no state."""

    def __init__(
        self,
        adapters: Adapters,
        layers: Mapping[nn.Module, Layer],
        n_samples: int | None,
        example: Tensor | None,
    ) -> None:
        super().__init__(adapters, layers, n_samples)
        self._example = example
        # Those that are surely their library's own; another might tell its state from none.
        self._known = {m for m, layer in layers.items() if layer.adapter.why_no_scan(m) is None}
        self.marks = Marks(layers)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that knows the sizes of the input, if they are to be known."""
        if self._example is not None and node.op == "placeholder":
            return SizedProxy(node, self, self._example)
        return super().proxy(node)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A node; a neuron that is given its own state after a reset starts by itself."""
        neuron = self._repeated(m) or m
        layer = self._layers.get(neuron)
        if layer is None or not layer.is_stateful:
            return super().call_module(m, forward, args, kwargs)
        held = layer.adapter.state(neuron)
        blank = [value for value in held.values() if isinstance(value, Tensor)]
        if any(value.numel() for value in blank):
            raise Refusal(f"its forward writes what {layer.name} holds")
        if neuron in self._known:
            args = tuple(_none_if(value, blank) for value in args)
            kwargs = {key: _none_if(value, blank) for key, value in kwargs.items()}
        result = super().call_module(m, forward, args, kwargs)
        if isinstance(result, fx.Proxy):
            self.marks.called(neuron)
        return result


def _none_if(value: Any, blank: list[Tensor]) -> Any:
    return None if any(value is tensor for tensor in blank) else value
