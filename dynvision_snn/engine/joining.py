"""Several values joined, such as the branches of a residual net, over all timesteps at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from dynvision_snn.engine.samplewise import CONCATENATIONS
from dynvision_snn.engine.timed import Timed, aligned
from dynvision_snn.engine.values import computed


def joined(node: fx.Node, values: Mapping[fx.Node, Any], stepping: str) -> Timed | None:
    """What `node` yields at every timestep; None where its axes would not line up over time.

    Args:
        node: one that `samplewise.joins`.
        values: what the nodes that it takes yielded, over time, and parameters as they are.
        stepping: whether one call of the model is one timestep (``"step"``) or has all of them.
    """
    given = {operand: values[operand] for operand in node.all_input_nodes}
    timed = [value for value in given.values() if isinstance(value, Timed)]
    constant = [value for value in given.values() if not isinstance(value, Timed)]
    if not timed or not all(isinstance(value, Tensor) for value in constant):
        return None
    n_axes = timed[0].values.ndim
    if any(one.values.ndim != n_axes or len(one) != len(timed[0]) for one in timed):
        return None
    # So a parameter never reaches the axis of time, to which it knows nothing.
    if any(value.ndim >= n_axes for value in constant):
        return None
    tensors, index = aligned(timed)
    rows = iter(tensors)
    now = {o: next(rows) if isinstance(v, Timed) else v for o, v in given.items()}
    if node.target not in CONCATENATIONS:
        return Timed(computed(node, now, {}), index)
    axis = _axis(node, n_axes, stepping)
    if constant or axis is None:
        return None
    n_distinct = max(len(tensor) for tensor in tensors)
    parts = [now[operand].expand(n_distinct, *now[operand].shape[1:]) for operand in _parts(node)]
    return Timed(torch.cat(parts, axis), index)


def _parts(node: fx.Node) -> list[fx.Node]:
    parts: list[fx.Node] = []
    map_arg(node.args[0], parts.append)
    return parts


def _axis(node: fx.Node, n_axes: int, stepping: str) -> int | None:
    """The axis of ``[K, B, ...]`` that values are put side by side on; None for those of time."""
    given = [*node.args[1:], *node.kwargs.values()]
    if len(given) > 1 or not all(isinstance(value, int) for value in given):
        return None
    axis: Any = given[0] if given else 0
    if axis < 0:
        axis += n_axes
    elif stepping == "step":
        axis += 1
    return axis if 2 <= axis < n_axes else None
