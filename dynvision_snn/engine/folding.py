"""Folds the operations of all timesteps of a time loop into those of one.

The operations of a loop over T timesteps are T blocks of the same operations. What a block takes
from the one before it is a state; what the first block takes in its place is the state's first
value. Blocks that differ in anything else, even one of them, are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from dynvision_snn.adapters import Layer
from dynvision_snn.engine.blocks import (
    NOT_ALIKE,
    Before,
    Blocks,
    Constant,
    Now,
    Shown,
    cuts,
    mapped,
)
from dynvision_snn.engine.over_time import gives_other_features, stacked_from, swaps
from dynvision_snn.engine.tracing import LENGTH, WRITTEN, Refusal, Traced, rebuilt
from dynvision_snn.engine.unrolling import Unrolled


def folded(loop: Unrolled, layers: Mapping[nn.Module, Layer], wanted: bool) -> Traced:
    """The data flow of one timestep.

    Args:
        loop: the operations of all timesteps.
        layers: the neuron layers by module.
        wanted: whether the first that is returned is.

    Raises:
        Refusal: where the timesteps are not all the same, or what is wanted is not theirs.
    """
    refusals: list[Refusal] = []
    for blocks in cuts(loop, layers):
        try:
            return _Folding(blocks, layers).traced(wanted)
        except Refusal as refusal:
            refusals.append(refusal)
    raise refusals[0]


class _Folding:
    """The graph of one timestep, while it is made."""

    def __init__(self, blocks: Blocks, layers: Mapping[nn.Module, Layer]) -> None:
        self._blocks = blocks
        self._loop = blocks.loop
        self._layers = layers
        self._by_name = {node.name: node for node in blocks.loop.graph.nodes}
        self._graph = fx.Graph()
        self._inputs = self._graph.placeholder("x")
        self._block: list[fx.Node] = []
        self._made: dict[str, fx.Node] = {}
        self._states: dict[tuple[int, str], tuple[fx.Node, Any]] = {}

    def traced(self, wanted: bool) -> Traced:
        """The data flow of one timestep."""
        first, later, *others = (self._blocks.form(t) for t in range(self._loop.n_steps))
        told = repr(later)
        if any(repr(form) != told for form in others):
            raise Refusal(NOT_ALIKE)
        for now, then in zip(later, first, strict=True):
            op, target, args, kwargs = map(self._resolved, now, then)
            self._block.append(self._graph.create_node(op, target, args, kwargs))
        self._note_lengths()
        for node in self._loop.sequences:
            if node.op == "call_module":
                self._over_time(node)
        self._check_called()
        outputs = self._outputs() if wanted else None
        returned = tuple(self._block[k] for k, _ in self._states)
        self._graph.output((outputs, returned))
        loop = self._loop
        module_of = {n: m for n in self._graph.nodes if (m := loop.module(n)) is not None}
        return Traced(
            loop.root,
            self._graph,
            module_of,
            {n: self._layers[m] for n, m in module_of.items() if m in self._layers},
            {n: loop.repeated[m] for n, m in module_of.items() if m in loop.repeated},
            self._inputs,
            tuple(placeholder for placeholder, _ in self._states.values()),
            outputs,
            returned,
            firsts=tuple(first for _, first in self._states.values()),
        )

    def _note_lengths(self) -> None:
        blocks = self._blocks
        for node in self._loop.graph.nodes:
            if LENGTH in node.meta:
                place = blocks.place.get(node, -1)
                if not blocks.start <= place < blocks.stop:
                    raise Refusal("it asks for the length of what is outside of its timesteps")
                self._block[(place - blocks.start) % blocks.length].meta[LENGTH] = True

    def _check_called(self) -> None:
        """A module is called with all timesteps, or with each of them; listeners hear of one."""
        whole = [node.target for node in self._made.values() if node.op == "call_module"]
        each = {node.target for node in self._block if node.op == "call_module"}
        for name in whole:
            if name in each or whole.count(name) > 1:
                raise Refusal(f"{str(name).removeprefix('net.')} is called in several ways")

    def _resolved(self, later: Any, first: Any) -> Any:
        """What an operation is given, told of a later timestep and of the first one."""
        if isinstance(later, Before):
            return self._state(later.k, first)
        if isinstance(later, tuple | list) and _alike(later, first):
            items = [self._resolved(*both) for both in zip(later, first, strict=True)]
            return type(later)(*items) if hasattr(later, "_fields") else type(later)(items)
        if isinstance(later, dict) and _alike(later, first) and later.keys() == first.keys():
            return {key: self._resolved(later[key], first[key]) for key in later}
        if repr(later) != repr(first):
            raise Refusal("its first timestep is not computed as the others")
        match later:
            case Now(k):
                return self._block[k]
            case Shown(name):
                return self._over_time(self._by_name[name])
            case Constant(name):
                return self._constant(self._by_name[name])
        return later

    def _state(self, k: int, first: Any) -> fx.Node:
        """What a timestep takes from operation `k` of the one before; the first takes `first`."""
        key = (k, repr(first))
        if key not in self._states:
            placeholder = self._graph.placeholder(f"state_{len(self._states)}")
            self._states[key] = placeholder, self._first_value(first)
        return self._states[key][0]

    def _first_value(self, first: Any) -> Any:
        if isinstance(first, tuple | list):
            return rebuilt(self._first_value, first)
        if first is None or isinstance(first, int | float):
            return first
        node = self._by_name[first.name] if isinstance(first, Constant) else self._inputs
        if node not in self._loop.constants:
            raise Refusal("its first states are computed")
        tensor = self._loop.constants[node]
        if tensor.numel() == 0:  # that of a reset neuron
            return tensor
        n_samples = self._loop.sequences[self._loop.inputs].n_samples
        if bool(tensor.any()) or tensor.dtype != torch.float32 or len(tensor) != n_samples:
            raise Refusal("its first states are tensors of its own, other than zeros of a batch")
        return tensor

    def _constant(self, node: fx.Node) -> fx.Node:
        """A parameter, or what is computed of parameters before the loop."""
        if node in self._loop.constants:
            raise Refusal("its forward makes tensors of its own")
        if node.name not in self._made:
            if node not in self._blocks.place and node.op != "get_attr":
                raise Refusal("it takes a whole sequence at a timestep")
            self._made[node.name] = self._graph.node_copy(node, self._constant)
        return self._made[node.name]

    def _over_time(self, node: fx.Node) -> fx.Node:
        """What a sequence is at one timestep."""
        if node is self._loop.inputs:
            return self._inputs
        if swaps(node):
            return self._over_time(node.all_input_nodes[0])
        stacked = stacked_from(node)
        if stacked is not None:
            operation = self._operation(stacked[0])
            if WRITTEN in node.meta:
                operation.meta[WRITTEN] = [*operation.meta.get(WRITTEN, []), node.meta[WRITTEN]]
            return operation
        if node.name not in self._made:
            self._made[node.name] = self._at_a_timestep(node)
        return self._made[node.name]

    def _at_a_timestep(self, node: fx.Node) -> fx.Node:
        if node.op == "call_module" or not gives_other_features(node):
            return self._graph.node_copy(node, self._over_time)
        axes = self._loop.sequences[node]
        assert axes.features is not None
        source = self._over_time(node.all_input_nodes[0])
        return self._graph.call_method("reshape", (source, axes.n_samples, *axes.features))

    def _operation(self, values: Sequence[fx.Node]) -> fx.Node:
        k = self._blocks.operation(values)
        if k >= len(self._block):
            raise Refusal("a timestep takes what all of them made")
        return self._block[k]

    def _outputs(self) -> Any:
        """What is returned, as far as it is over time: the first must be."""
        found = 0
        sequences = self._loop.sequences
        time_axis = sequences[self._loop.inputs].time_axis

        def told(node: fx.Node) -> fx.Node | None:
            nonlocal found
            found += 1
            if node in sequences and sequences[node].time_axis == time_axis:
                return self._over_time(node)
            if found == 1:
                raise Refusal("what it returns are not its timesteps, stacked in their order")
            return None

        return mapped(told, self._loop.outputs)


def _alike(one: Any, other: Any) -> bool:
    return type(one) is type(other) and len(one) == len(other)
