"""Which stateless modules and functions may take many timesteps as one batch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from dynvision_snn.engine.tracing import Traced

# Modules that treat the samples of a batch one by one, so that timesteps may be batched.
SAMPLEWISE: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Linear, nn.Unflatten,
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus,
    nn.Hardtanh, nn.LayerNorm, nn.GroupNorm, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
CONVOLUTIONAL = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
RANDOM = (*_DROPOUTS, nn.RReLU, nn.FeatureAlphaDropout)

# Functions that work element by element, on tensors and numbers.
_ELEMENTWISE: frozenset[Callable[..., Any]] = frozenset(
    {
        operator.add, operator.sub, operator.mul, operator.truediv, operator.neg,
        torch.add, torch.sub, torch.mul, torch.relu, torch.sigmoid, torch.tanh, F.relu,
    }
)  # fmt: skip


def is_random(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node draws random numbers."""
    if module is not None:
        return isinstance(module, RANDOM) and module.training and not _is_silent(module)
    name = str(node.target)
    return any(word in name for word in ("rand", "bernoulli", "dropout", "normal", "poisson"))


def _is_silent(module: nn.Module) -> bool:
    return isinstance(module, _DROPOUTS) and module.p == 0


def why_not_merged(traced: Traced, node: fx.Node, stepping: str) -> str | None:
    """Why a stateless node cannot take many timesteps as one batch."""
    module = traced.acting(node)
    if node in traced.repeated:
        stepping = "step"
    if module is None:
        return _why_function_not_merged(node, stepping)
    if isinstance(module, _BATCH_NORMS):
        if type(module) in _BATCH_NORMS and not module.training and module.track_running_stats:
            return None
        return "batch normalisation in training mode: each timestep is a batch of its own"
    if isinstance(module, _DROPOUTS):
        silent = type(module) in _DROPOUTS and (not module.training or _is_silent(module))
        return None if silent else "its random numbers are drawn timestep by timestep"
    if type(module) is nn.Flatten:
        return None if stepping == "step" and module.start_dim >= 1 else "it flattens another axis"
    if type(module) not in SAMPLEWISE:
        return f"{type(module).__name__} is not known to treat samples one by one"
    if stepping == "sequence" and not isinstance(module, nn.Linear | nn.Identity | nn.ReLU):
        return "it is called with all timesteps"
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d) and module.return_indices:
        return "it returns indices"
    return None


def _why_function_not_merged(node: fx.Node, stepping: str) -> str | None:
    if node.op == "get_attr":
        return None
    tensors = [value for value in node.args if isinstance(value, fx.Node)]
    numbers = [value for value in node.args if isinstance(value, int | float)]
    if node.target in _ELEMENTWISE and len(tensors) + len(numbers) == len(node.args):
        if not node.kwargs and sum(t.op != "get_attr" for t in tensors) == 1 == len(tensors):
            return None
        return "it joins several values"
    flattens = node.target is torch.flatten or (
        node.op == "call_method" and node.target == "flatten"
    )
    if flattens and stepping == "step" and (*node.args[1:], *node.kwargs.values()) == (1,):
        return None
    return (
        f"{getattr(node.target, '__name__', node.target)} is not known to treat samples one by one"
    )
