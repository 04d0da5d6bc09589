"""Sizes that a forward asks for, and what it does with them: ``x.view(x.size(0), -1)``.

A size is the same at every timestep. A tensor that is given another shape stays samples side by
side where its first axis stays as it is; whether it does is known when the sizes are.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from dynvision_snn.engine.timed import Timed

_ARITHMETIC = frozenset({operator.add, operator.sub, operator.mul, operator.floordiv})


def is_size(node: fx.Node) -> bool:
    """Whether a node yields a size or a number of axes, or is computed of such alone."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1:] in (("shape",), ("ndim",))
    given = node.all_input_nodes
    return (
        (node.target is operator.getitem or node.target in _ARITHMETIC)
        and bool(given)
        and all(is_size(operand) for operand in given)
    )


def reshapes(node: fx.Node) -> bool:
    """Whether a node gives a tensor a shape that is told in numbers and sizes."""
    if node.op == "call_method":
        named = node.target in ("view", "reshape")
    else:
        named = node.op == "call_function" and node.target is torch.reshape
    return named and not node.kwargs and all(_is_told(size) for size in _shape(node))


def reshaped(node: fx.Node, timed: Timed, values: Mapping[fx.Node, Any]) -> Timed | None:
    """What `node` yields at every timestep; None where it moves values between samples.

    Args:
        node: one that `reshapes`.
        timed: what is given another shape, ``[K, B, ...]``.
        values: the sizes that the node is given.
    """
    n_samples = timed.values.shape[1]
    sizes: tuple[Any, ...] = map_arg(tuple(_shape(node)), values.__getitem__)
    if not all(isinstance(size, int) for size in sizes) or sizes.count(-1) > 1:
        return None
    per_step = timed.values[0].numel()
    known = math.prod(size for size in sizes if size != -1)
    if per_step == 0 or known <= 0 or per_step % known:
        return None
    sizes = tuple(per_step // known if size == -1 else size for size in sizes)
    if sizes[:1] != (n_samples,) or math.prod(sizes) != per_step:
        return None
    return Timed(timed.values.reshape(-1, *sizes), timed.index)


def _shape(node: fx.Node) -> Sequence[Any]:
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        return sizes[0]
    return sizes


def _is_told(size: Any) -> bool:
    return is_size(size) if isinstance(size, fx.Node) else type(size) is int
