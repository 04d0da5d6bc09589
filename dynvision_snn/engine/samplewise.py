"""Which stateless modules and functions may take many timesteps as one batch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from dynvision_snn.engine.axes import works_along
from dynvision_snn.engine.shapes import reshapes

if TYPE_CHECKING:
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
# Whose every output is one of its inputs.
CHOOSES: tuple[type[nn.Module], ...] = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d, nn.Flatten,
)  # fmt: skip
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
RANDOM = (*_DROPOUTS, nn.RReLU, nn.FeatureAlphaDropout)

# What yields a tensor of its own, and what may yield its input or a view of it.
PASSES_ON: tuple[type[nn.Module], ...] = (*_DROPOUTS, nn.Identity, nn.Flatten, nn.Unflatten)
MAKES_NEW: tuple[type[nn.Module], ...] = (
    *_BATCH_NORMS, *(cls for cls in SAMPLEWISE if cls not in PASSES_ON),
)  # fmt: skip

# Functions that work element by element, on tensors and numbers, and so do as methods.
_ELEMENTWISE: frozenset[Callable[..., Any]] = frozenset(
    {
        operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow,
        torch.add, torch.sub, torch.mul, torch.div, torch.pow, torch.maximum, torch.minimum,
        torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.abs, torch.neg, torch.clamp,
        F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.softplus, F.hardtanh,
    }
)  # fmt: skip
_ELEMENTWISE_METHODS = frozenset(
    {"add", "sub", "mul", "div", "pow", "neg", "abs", "exp", "relu", "sigmoid", "tanh", "clamp"}
)
# Functions of one tensor that treat the samples of a batch one by one, and yield a new one.
_POOLINGS: frozenset[Callable[..., Any]] = frozenset(
    {
        F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
        F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
        F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
        torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
    }
)  # fmt: skip
_DROPPING: frozenset[Callable[..., Any]] = frozenset(
    {torch.dropout, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout}
)
# What a function that draws random numbers is called.
_DRAWS = (
    "rand", "bernoulli", "dropout", "normal", "poisson", "rrelu", "uniform", "multinomial",
    "exponential", "gumbel", "geometric", "cauchy",
)  # fmt: skip
CONCATENATIONS: frozenset[Callable[..., Any]] = frozenset(
    {torch.cat, torch.concat, torch.concatenate}
)


def is_random(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node draws random numbers."""
    if module is not None:
        return isinstance(module, RANDOM) and module.training and not _is_silent(module)
    name = str(node.target)
    return any(word in name for word in _DRAWS) and not _drops_nothing(node)


def _is_silent(module: nn.Module) -> bool:
    return isinstance(module, _DROPOUTS) and module.p == 0


def _drops_nothing(node: fx.Node) -> bool:
    """Whether a node is a dropout function outside of training."""
    if node.op != "call_function" or node.target not in _DROPPING:
        return False
    given: dict[Any, Any] = dict(enumerate(node.args)) | dict(node.kwargs)
    training = given.get("training", given.get("train", given.get(2, True)))
    return training is False


def why_not_merged(traced: Traced, node: fx.Node, stepping: str) -> str | None:
    """Why a stateless node cannot take many timesteps as one batch."""
    module = traced.acting(node)
    given = [a for a in node.all_input_nodes if a.op == "placeholder" and a is not traced.inputs]
    if stepping == "sequence" and given:
        return "it takes the state"
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
    if node.op == "get_attr" or joins(node):
        return None
    single = is_elementwise(node) or _drops_nothing(node) or passes_on(node)
    if single and len(node.all_input_nodes) == 1:
        return None
    flattens = (flattens_from(node) or 0) >= 1
    reshaping = flattens or reshapes(node) or works_along(node)
    if stepping == "step" and (_is_pooling(node) or reshaping):
        return None
    if is_random(node, None):
        return "its random numbers are drawn timestep by timestep"
    return (
        f"{getattr(node.target, '__name__', node.target)} is not known to treat samples one by one"
    )


def passes_on(node: fx.Node) -> bool:
    """Whether a node passes on a value as it is, or as a tensor of another kind."""
    named = node.op == "call_method" and node.target in ("contiguous", "detach", "float")
    return named and len(node.args) == 1 and not node.kwargs


def makes_new(node: fx.Node) -> bool:
    """Whether a function yields a tensor of its own, no view of one that it takes."""
    return is_elementwise(node) or joins(node) or _is_pooling(node)


def _is_pooling(node: fx.Node) -> bool:
    pools = node.op == "call_function" and node.target in _POOLINGS
    return pools and len(node.all_input_nodes) == 1 and not node.kwargs.get("return_indices")


def flattens_from(node: fx.Node) -> int | None:
    """From which axis on a node flattens all that follow; None where it does something else."""
    if node.target is not torch.flatten and (node.op, node.target) != ("call_method", "flatten"):
        return None
    given: dict[Any, Any] = dict(enumerate(node.args)) | dict(node.kwargs)
    start, end = given.get("start_dim", given.get(1, 0)), given.get("end_dim", given.get(2, -1))
    return start if type(start) is int and start >= 0 and end == -1 else None


def joins(node: fx.Node) -> bool:
    """Whether a node joins several values in a way that can be done for all timesteps at once."""
    if node.op == "call_function" and node.target in CONCATENATIONS:
        tensors, *_ = node.args or (None,)
        return isinstance(tensors, list | tuple) and all(isinstance(t, fx.Node) for t in tensors)
    return is_elementwise(node) and len(node.all_input_nodes) > 1


def is_elementwise(node: fx.Node) -> bool:
    """Whether a node is a known function of tensors and numbers, element by element."""
    known = (node.op == "call_function" and node.target in _ELEMENTWISE) or (
        node.op == "call_method" and node.target in _ELEMENTWISE_METHODS
    )
    values = (*node.args, *node.kwargs.values())
    return known and all(isinstance(value, fx.Node | int | float) for value in values)
