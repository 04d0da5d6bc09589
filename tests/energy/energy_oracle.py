"""Counts by brute force: every weight that is not zero, on every input that is not zero.

`watch` keeps every input and output of plain hooks in memory; nothing of the package is used.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def ops_of(layer: nn.Module, x: Tensor) -> float:
    """Products of nonzero inputs ``[B, ...]`` and nonzero weights: the layer, made of ones."""
    probe = copy.deepcopy(layer).double()
    for hooks in (probe._forward_hooks, probe._forward_pre_hooks):
        hooks.clear()
    probe.weight = nn.Parameter(layer.weight.detach().ne(0).double())
    probe.bias = None
    with torch.no_grad():
        return float(probe(x.detach().ne(0).double()).sum())


def weighted_of(layer: nn.Module, x: Tensor) -> float:
    probe = copy.deepcopy(layer).double()
    for hooks in (probe._forward_hooks, probe._forward_pre_hooks):
        hooks.clear()
    probe.weight = nn.Parameter(layer.weight.detach().ne(0).double())
    probe.bias = None
    with torch.no_grad():
        return float(probe(x.detach().abs().double()).sum())


def matrix_ops(weight: Tensor, x: Tensor) -> float:
    """One product at a time, for a matrix ``[out, in]`` and values ``[B, in]``."""
    total = 0
    for sample in x:
        for row in weight:
            total += int(((row != 0) & (sample != 0)).sum())
    return float(total)


@contextmanager
def watch(net: nn.Module) -> Iterator[dict[str, list[tuple[Tensor, Any]]]]:
    """Every call of every module: its input and output, cloned."""
    seen: dict[str, list[tuple[Tensor, Any]]] = defaultdict(list)

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            x = args[0] if args else None
            seen[name].append(
                (
                    x.detach().clone() if isinstance(x, Tensor) else x,
                    first.detach().clone() if isinstance(first, Tensor) else first,
                )
            )

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in net.named_modules()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
