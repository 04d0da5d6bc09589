"""A value given other axes, or computed along them, over all timesteps at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from dynvision_snn.engine.axes import is_behind
from dynvision_snn.engine.shapes import reshaped, reshapes
from dynvision_snn.engine.timed import Timed, merged
from dynvision_snn.engine.values import computed


def with_other_axes(node: fx.Node, values: Mapping[fx.Node, Any]) -> Timed | None:
    """What `node` yields at every timestep; None where it would mix samples.

    Args:
        node: one that `shapes.reshapes`, or `axes.works_along`.
        values: what the nodes that it takes yielded, over time, and sizes.
    """
    source = node.all_input_nodes[0]
    timed = values[source]
    if not isinstance(timed, Timed):
        return None
    if reshapes(node):
        return reshaped(node, timed, values)
    if not is_behind(node, timed.values.ndim - 1):
        return None
    return merged(lambda x: computed(node, {source: x}, {}), timed, small=False)
