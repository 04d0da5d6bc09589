"""What is taken for granted while a forward is traced, looked at afterwards with values.

Python wants a number at once for a length, as in ``x.reshape(len(x), -1)``: the number of samples
is told. What a loop writes into a tensor of its own, ``voltages[t] = v``, is taken for all of a
timestep of it, which is neither broadcast nor of another dtype.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from dynvision_snn.engine.tracing import LENGTH, WRITTEN, Refusal, Traced
from dynvision_snn.engine.values import attribute, bind, computed, looked_up


def check_granted(traced: Traced, example: Tensor, states: tuple[Any, ...]) -> None:
    """Computes two timesteps, of reset neurons, if anything was taken for granted.

    Args:
        traced: the data flow of a timestep.
        example: the input of one timestep, ``[B, *features]``.
        states: those that the first of the two starts from.

    Raises:
        Refusal: where it is not so.
    """
    asked = [node for node in traced.graph.nodes if LENGTH in node.meta]
    written = [node for node in traced.graph.nodes if WRITTEN in node.meta]
    if not asked and not written:
        return
    values: dict[fx.Node, Any] = {traced.inputs: example}
    for _ in range(2):
        bind(traced.states, states, values)
        for node in traced.nodes:
            values[node] = (
                attribute(traced.root, str(node.target))
                if node.op == "get_attr"
                else computed(node, values, traced.module_of)
            )
        if any(len(values[node]) != len(example) for node in asked):
            raise Refusal("it asks for a length that is not the number of samples")
        for node in written:
            value = values[node]
            told = value.shape, value.dtype, value.device
            if any(like != told for like in node.meta[WRITTEN]):
                raise Refusal("it writes a timestep into a tensor of another shape or dtype")
        states = looked_up(traced.returned, values)
