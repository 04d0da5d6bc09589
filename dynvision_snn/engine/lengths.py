"""Lengths that a forward asks for while it is traced, ``x.reshape(len(x), -1)``.

Python wants a number for a length at once. The number of samples is told, and afterwards it is
looked whether that was right.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from dynvision_snn.engine.tracing import LENGTH, Refusal, Traced
from dynvision_snn.engine.values import attribute, bind, computed, looked_up


def check_lengths(traced: Traced, example: Tensor, states: tuple[Any, ...]) -> None:
    """Computes two timesteps, of reset neurons, if the forward asked for lengths.

    Args:
        traced: the data flow of a timestep.
        example: the input of one timestep, ``[B, *features]``.
        states: those that the first of the two starts from.

    Raises:
        Refusal: where a length is another than the number of samples.
    """
    asked = [node for node in traced.graph.nodes if LENGTH in node.meta]
    if not asked:
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
        states = looked_up(traced.returned, values)
