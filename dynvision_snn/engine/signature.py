"""What a plan was made for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def signature_of(net: nn.Module) -> tuple[Any, ...]:
    """What a plan depends on besides the model's code: another signature needs another plan."""
    return tuple(
        (
            id(module),
            *(_mark(value) for value in vars(module).values()),
            *_settings(module),
            *_sizes(module),
        )
        for module in net.modules()
    )


def _mark(value: Any) -> Any:
    """A number or word by its value, all else by its identity."""
    return value if isinstance(value, bool | int | float | str) else id(value)


def _settings(module: nn.Module) -> Iterator[tuple[int, int]]:
    """Buffers that decide how a neuron runs; its state is replaced all the time, and is none."""
    return (
        (id(buffer), buffer._version)
        for buffer in module._buffers.values()
        if buffer is not None and buffer.ndim == 0 and not buffer.is_inference()
    )


def _sizes(module: nn.Module) -> Iterator[tuple[Any, ...]]:
    """What a forward may have asked of its parameters."""
    parameters = module._parameters.values()
    return ((p.shape, p.dtype, p.device) for p in parameters if p is not None)
