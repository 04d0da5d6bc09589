"""Functions along axes behind that of the samples: ``x.mean(dim=(2, 3))``, ``x.unsqueeze(1)``.

Counted from behind, an axis may be that of the samples; which it is, is known with the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

_METHODS = frozenset(
    {"squeeze", "unsqueeze", "mean", "sum", "amax", "softmax", "log_softmax", "transpose"}
)
_FUNCTIONS: Mapping[Callable[..., Any], str] = {
    torch.squeeze: "squeeze", torch.unsqueeze: "unsqueeze", torch.mean: "mean", torch.sum: "sum",
    torch.amax: "amax", torch.softmax: "softmax", torch.log_softmax: "log_softmax",
    torch.transpose: "transpose", F.softmax: "softmax", F.log_softmax: "log_softmax",
}  # fmt: skip


def works_along(node: fx.Node) -> bool:
    """Whether a node works on one tensor along axes that it names."""
    return _name(node) is not None and len(node.all_input_nodes) == 1 and _axes(node) is not None


def is_behind(node: fx.Node, n_axes: int) -> bool:
    """Whether the axes of a node that `works_along` them are behind that of the samples.

    Args:
        node: the node.
        n_axes: the axes of what it takes, ``[B, ...]``.
    """
    if _name(node) == "unsqueeze":
        n_axes += 1
    axes = [axis + n_axes if axis < 0 else axis for axis in _axes(node) or ()]
    return all(1 <= axis < n_axes for axis in axes)


def _name(node: fx.Node) -> str | None:
    if node.op == "call_method":
        return str(node.target) if node.target in _METHODS else None
    return _FUNCTIONS.get(node.target) if node.op == "call_function" else None  # type: ignore[arg-type]


def _axes(node: fx.Node) -> list[int] | None:
    given: dict[Any, Any] = dict(enumerate(node.args)) | dict(node.kwargs)
    if _name(node) == "transpose":
        axes = [given.get("dim0", given.get(1)), given.get("dim1", given.get(2))]
    else:
        named = given.get("dim", given.get(1))
        axes = list(named) if isinstance(named, tuple | list) else [named]
    known = [axis for axis in axes if type(axis) is int]
    return known if axes and len(known) == len(axes) else None
