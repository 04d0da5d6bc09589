"""A model of whole sequences, ``[B, T, ...]``, as one of ``[T, B, ...]``.

Such a model swaps the two axes, or its whole-sequence neurons would take samples for timesteps.
What lies before the first swap and after the last is computed with time first, too, where it is
known to act on the axes behind alone; the swaps are left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from dynvision_snn.engine.blocks import mapped
from dynvision_snn.engine.over_time import swaps
from dynvision_snn.engine.samplewise import is_elementwise, is_random, passes_on
from dynvision_snn.engine.tracing import Refusal, Traced
from dynvision_snn.engine.values import attribute

# Modules that act on the last axis, or on each entry.
_BEHIND: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid,
    nn.Tanh, nn.Softplus, nn.Hardtanh,
)  # fmt: skip


def time_first(traced: Traced) -> Traced:
    """The data flow with time first, of a call with ``[B, T, ...]``.

    Args:
        traced: the call; its graph is changed.

    Raises:
        Refusal: where it is not known to be the same computation.
    """
    return _Swapping(traced).swapped()


class _Swapping:
    """Tells the values with samples first from those with time first.

    Of those in neither set it is not known; they are what the model itself computes.
    """

    def __init__(self, traced: Traced) -> None:
        self._traced = traced
        self._samples_first = {traced.inputs}
        self._time_first: set[fx.Node] = set()
        self._left_out: dict[fx.Node, fx.Node] = {}

    def swapped(self) -> Traced:
        """The data flow with time first."""
        for node in self._traced.nodes:
            if is_random(node, self._traced.acting(node)):
                raise Refusal("it draws random numbers for [B, T, ...]")
            if node.all_input_nodes:
                self._see(node)
        outputs = self._outputs()
        returned = mapped(self._state, self._traced.returned)
        for node, source in self._left_out.items():
            node.replace_all_uses_with(source)
        for node in reversed(self._left_out):
            self._traced.graph.erase_node(node)
        return replace(self._traced, outputs=outputs, returned=returned)

    def _see(self, node: fx.Node) -> None:
        given = node.all_input_nodes
        source = given[0]
        if swaps(node) and source in self._samples_first | self._time_first:
            self._left_out[node] = self._left_out.get(source, source)
            swapped = source in self._samples_first
            (self._time_first if swapped else self._samples_first).add(node)
        elif self._acts_behind(node, self._samples_first):
            self._samples_first.add(node)
        elif any(each in self._samples_first for each in given):
            raise Refusal(f"its time axis is not the first where {_name(node)} takes it")
        elif self._yields_time(node):
            self._time_first.add(node)

    def _acts_behind(self, node: fx.Node, known: set[fx.Node]) -> bool:
        """Whether a node takes values of a set, and acts on the axes behind the first two alone."""
        module = self._traced.module_of.get(node)
        if module is not None:
            of_one_axis = type(module) is nn.LayerNorm and len(module.normalized_shape) == 1
            acts = type(module) in _BEHIND or of_one_axis
        else:
            acts = is_elementwise(node) or passes_on(node)
        given = node.all_input_nodes
        return acts and all(each in known or self._is_row(each) for each in given)

    def _is_row(self, node: fx.Node) -> bool:
        """Whether a node is a parameter that no axis but the last knows of."""
        if node.op != "get_attr":
            return False
        value = attribute(self._traced.root, str(node.target))
        return isinstance(value, Tensor) and value.ndim <= 1

    def _yields_time(self, node: fx.Node) -> bool:
        """Whether what takes no samples first yields time first."""
        traced = self._traced
        if node in traced.layer_of:
            return False  # a pair, of which the first is
        source = node.all_input_nodes[0]
        if source in traced.layer_of and traced.has_all(source):
            return node.args[1:] == (0,) and traced.layer_of[source].traits.time_axis == 0
        if node in traced.repeated:
            return True
        return self._acts_behind(node, self._time_first)

    def _outputs(self) -> Any:
        found = 0

        def told(node: fx.Node) -> fx.Node | None:
            nonlocal found
            found += 1
            if node in self._samples_first:
                return self._left_out.get(node, node)
            if found == 1:
                raise Refusal("what it returns is not known to be [B, T, ...]")
            return None

        return mapped(told, self._traced.outputs)

    def _state(self, node: fx.Node) -> fx.Node:
        if node in self._samples_first:
            raise Refusal("it returns a state that is [B, T, ...]")
        return self._left_out.get(node, node)


def _name(node: fx.Node) -> str:
    return str(node.target).removeprefix("net.") if node.op == "call_module" else node.name
