"""Exact fan-out: how many nonzero weights each input unit of a synapse layer reaches.

Counted: every nonzero weight of Linear, Conv1d/2d/3d and ConvTranspose1d/2d/3d (stride, dilation,
groups, every padding and padding mode), of a raw weight matrix ``[out, in]`` and of a one-to-one
connection; each weight once per place where it acts, so edges are exact and shared weights count
at every position. Average pooling and batch normalisation have their connections counted, too,
where they are asked for. Not counted: biases, zero (pruned) weights, and products with padding
zeros.

A connection of a convolution is separable: along each spatial axis the geometry alone says which
(input position, kernel tap) pairs meet an output, and the weights alone say how many nonzero taps
an input channel has. Fan-out is the contraction of the two, so padding, stride and mode need no
case of their own, and no convolution is run.

Everything is float64, which holds integers exactly up to 2**53, and nothing here makes a device
wait.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dynvision_snn.energy.foldable import foldable_dense, foldable_fan_out, is_foldable
from dynvision_snn.errors import EnergyError

Operator = nn.Module | Tensor
"""A synapse layer, or the weights themselves."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SYNAPSE_CLASSES: tuple[type[nn.Module], ...] = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
"""The module classes that `fan_out` has a rule for."""


def refusal(module: nn.Module) -> str | None:
    """Why `fan_out` has no exact rule for a module; None where it has one.

    A subclass with a forward of its own is refused: what it does with its weights is unknown.

    >>> refusal(nn.Linear(3, 2)) is None
    True
    >>> refusal(nn.Bilinear(3, 3, 2))
    'no counting rule for Bilinear'
    """
    for known in SYNAPSE_CLASSES:
        if isinstance(module, known):
            if type(module).forward is known.forward:
                return None
            return f"{type(module).__name__} overrides {known.__name__}.forward"
    return f"no counting rule for {type(module).__name__}"


def fan_out(
    operator: Operator,
    unit_shape: Sequence[int],
    *,
    diagonal: bool = False,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Number of nonzero weights that each input unit reaches.

    Args:
        operator: a module of `SYNAPSE_CLASSES`; or a weight matrix ``[out, in]`` (the gates of a
            recurrent cell stacked along ``out``); or, with `diagonal`, one-to-one weights that
            broadcast to the units. Pruned and parametrised weights are seen as they act; a
            parametrisation is evaluated on a copy in evaluation mode, so that power iterations
            and random masks are left alone.
        unit_shape: shape of one sample's input, ``[*features]``, without batch and time. A
            Linear's or matrix's further leading axes (tokens) share its weights.
        diagonal: whether a tensor operator is one-to-one.
        output_size: spatial size of the output of a ConvTranspose that was called with one;
            others follow from the input's.

    Returns:
        float64 of shape `unit_shape`, on the weights' device; its sum is the number of synapses.

    Raises:
        EnergyError: a module without a rule, or a shape that the operator cannot take.

    >>> fan_out(nn.Conv1d(1, 2, 3, padding=1), (1, 4))
    tensor([[4., 6., 6., 4.]], dtype=torch.float64)
    """
    shape = tuple(unit_shape)
    # Outside inference mode, so that a cached result may be used in training too.
    with torch.inference_mode(False), torch.no_grad():
        if isinstance(operator, nn.Module) and is_foldable(operator):
            return foldable_fan_out(operator, shape)
        weight = _acting_weight(operator)
        if isinstance(operator, _CONVOLUTIONS + _TRANSPOSED):
            taps = _nonzero_taps(operator, weight)
            reaches = _reaches(operator, shape, output_size)
            return _spread(taps, [r.to(taps, non_blocking=True) for r in reaches])
        nonzero = weight.ne(0).to(torch.float64)
        if diagonal:
            _check_diagonal(nonzero, shape)
            return nonzero.expand(shape).clone()
        _check_matrix(nonzero, shape)
        return nonzero.sum(0).expand(shape).clone()


def dense_synops(
    operator: Operator,
    unit_shape: Sequence[int],
    *,
    diagonal: bool = False,
    output_size: Sequence[int] | None = None,
) -> int:
    """Connections of one sample if no weight and no input were zero; edges exact.

    A function of shapes alone. Arguments and errors as in `fan_out`.

    >>> dense_synops(nn.Conv2d(1, 1, 3), (1, 12, 12))
    900
    """
    shape = tuple(unit_shape)
    if isinstance(operator, nn.Module) and is_foldable(operator):
        return foldable_dense(operator, shape)
    if isinstance(operator, _CONVOLUTIONS + _TRANSPOSED):
        reaches = _reaches(operator, shape, output_size)
        meetings = math.prod(int(reach.sum()) for reach in reaches)
        pairs = operator.in_channels * operator.out_channels // operator.groups
        return pairs * meetings
    weight = _acting_weight(operator)
    if diagonal:
        _check_diagonal(weight, shape)
        return math.prod(shape)
    _check_matrix(weight, shape)
    return math.prod(shape) * weight.shape[0]


class FanOut:
    """Remembers one operator's fan-out until its weights or the input's shape change.

    A change is seen by the memory, shape, type, device and version counter of the tensors that
    make up the weight, without reading a value: optimiser steps, in-place updates, pruning,
    replaced parameters and ``.to()`` are all noticed. Edits that PyTorch itself does not track
    (through ``weight.data``, inside inference mode, by a replayed CUDA graph) are not: call
    `refresh` where a run begins, so that every run is counted with the weights it began with.

    Weights that a pre-forward hook computes (``torch.nn.utils.prune``) are up to date only after
    the layer was called; ask then.

    >>> layer, known = nn.Linear(3, 2), FanOut()
    >>> known(layer, (3,))
    tensor([2., 2., 2.], dtype=torch.float64)
    >>> with torch.no_grad():
    ...     _ = layer.weight[0].zero_()
    >>> known(layer, (3,))
    tensor([1., 1., 1.], dtype=torch.float64)
    """

    def __init__(self, *, diagonal: bool = False) -> None:
        self._diagonal = diagonal
        self._key: tuple[object, ...] | None = None
        self._sources: tuple[Tensor, ...] = ()
        self._fan_out: Tensor | None = None

    def __call__(
        self,
        operator: Operator,
        unit_shape: Sequence[int],
        output_size: Sequence[int] | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """`fan_out` of `operator`; the same tensor as long as nothing changed.

        Args:
            operator: as in `fan_out`.
            unit_shape: as in `fan_out`.
            output_size: as in `fan_out`.
            device: where it is wanted; by default where the weights are.
        """
        sources = _sources(operator)
        key = (unit_shape, output_size, device, *(_fingerprint(source) for source in sources))
        if self._fan_out is None or key != self._key:
            counted = fan_out(
                operator, unit_shape, diagonal=self._diagonal, output_size=output_size
            )
            self._fan_out = counted if device is None else counted.to(device, non_blocking=True)
            self._key = key
            # Aliases keep the memory from being reused, so that equal addresses mean equal memory.
            self._sources = tuple(source.detach() for source in sources)
        return self._fan_out

    def refresh(self) -> None:
        """Forgets; the next call computes anew."""
        self._key, self._sources, self._fan_out = None, (), None


def _sources(operator: Operator) -> tuple[Tensor, ...]:
    """The stored tensors that decide the operator's weight, without evaluating it."""
    if isinstance(operator, Tensor):
        return (operator,)
    # Not `operator.weight`: on a parametrised module that evaluates the parametrisation.
    weight = operator._parameters.get("weight")
    if weight is not None:
        return (weight,)
    return (*operator.parameters(), *operator.buffers())


def _fingerprint(tensor: Tensor) -> tuple[object, ...]:
    version = None if tensor.is_inference() else tensor._version
    return (tensor.data_ptr(), version, tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def _acting_weight(operator: Operator) -> Tensor:
    if isinstance(operator, Tensor):
        return operator
    reason = refusal(operator)
    if reason is not None:
        raise EnergyError(
            f"Cannot count the synapses of {type(operator).__name__}: {reason}. Known are "
            f"{', '.join(c.__name__ for c in SYNAPSE_CLASSES)} with their own forward, and tensors."
        )
    if parametrize.is_parametrized(operator, "weight"):
        parametrizations = operator.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        return copy.deepcopy(parametrizations["weight"]).eval()()
    return operator.weight  # type: ignore[return-value]


def _check_matrix(weight: Tensor, shape: tuple[int, ...]) -> None:
    if weight.ndim != 2:
        raise EnergyError(
            f"A weight matrix is [out, in]; got shape {list(weight.shape)}. "
            f"Pass diagonal=True for one-to-one weights."
        )
    if not shape or shape[-1] != weight.shape[1]:
        raise EnergyError(
            f"One sample's input has shape {list(shape)}, but the weights take [..., "
            f"{weight.shape[1]}]. Leave the batch (and time) axis out."
        )


def _check_diagonal(weight: Tensor, shape: tuple[int, ...]) -> None:
    fits = weight.ndim <= len(shape) and all(
        w in (1, s) for w, s in zip(reversed(weight.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise EnergyError(
            f"One-to-one weights of shape {list(weight.shape)} do not broadcast to units of shape "
            f"{list(shape)}. Leave the batch (and time) axis out."
        )


def _nonzero_taps(conv: nn.Module, weight: Tensor) -> Tensor:
    """Nonzero weights by input channel and kernel tap: float64 ``[in_channels, *kernel]``."""
    nonzero = weight.ne(0).to(torch.float64)
    if isinstance(conv, _TRANSPOSED):  # [in, out / groups, *kernel]
        return nonzero.sum(1)
    assert isinstance(conv, _CONVOLUTIONS)  # [out, in / groups, *kernel]
    by_group = nonzero.unflatten(0, (conv.groups, conv.out_channels // conv.groups))
    return by_group.sum(1).flatten(0, 1)


def _spread(taps: Tensor, reaches: Sequence[Tensor]) -> Tensor:
    """Contracts every kernel axis of ``[in, *kernel]`` with its ``[positions, taps]``."""
    spread = taps
    for axis, reach in enumerate(reaches, start=1):
        spread = (spread.transpose(axis, -1) @ reach.T).transpose(axis, -1)
    return spread.contiguous()


def _reaches(
    conv: nn.Module, shape: tuple[int, ...], output_size: Sequence[int] | None = None
) -> list[Tensor]:
    """Per spatial axis, how often each (input position, kernel tap) meets an output: int64."""
    assert isinstance(conv, _CONVOLUTIONS + _TRANSPOSED)
    axes = len(conv.kernel_size)
    if len(shape) != axes + 1 or shape[0] != conv.in_channels:
        raise EnergyError(
            f"One sample's input has shape {list(shape)}, but {type(conv).__name__} takes "
            f"[{conv.in_channels}, {', '.join(['size'] * axes)}]. Leave the batch (and time) axis "
            f"out, and give the layer batched inputs."
        )
    reaches = []
    for axis, size in enumerate(shape[1:]):
        kernel, stride = conv.kernel_size[axis], conv.stride[axis]
        dilation = conv.dilation[axis]
        if isinstance(conv, _TRANSPOSED):
            assert not isinstance(conv.padding, str)
            padding, extra = conv.padding[axis], conv.output_padding[axis]
            out = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1
            out = out if output_size is None else output_size[axis]
            reaches.append(_transposed_reach(size, out, kernel, stride, dilation, padding))
        else:
            left, right = _padding(conv.padding, axis, dilation * (kernel - 1))
            out = (size + left + right - dilation * (kernel - 1) - 1) // stride + 1
            reaches.append(_reach(size, out, kernel, stride, dilation, left, conv.padding_mode))
    return reaches


def _padding(padding: str | tuple[int, ...], axis: int, span: int) -> tuple[int, int]:
    """Padding before and after one axis; ``"same"`` puts the odd one after, as torch does."""
    if padding == "valid":
        return 0, 0
    if padding == "same":
        return span // 2, span - span // 2
    assert not isinstance(padding, str)
    return padding[axis], padding[axis]


@lru_cache(maxsize=64)
def _reach(
    size: int, out: int, kernel: int, stride: int, dilation: int, left: int, padding_mode: str
) -> Tensor:
    """Along one axis, how often each (input position, kernel tap) meets an output.

    Remembered, since it does not depend on weights, which are looked at anew in every run.
    """
    # An index map ``[out, tap]`` into the padded axis.
    source = torch.arange(out)[:, None] * stride + torch.arange(kernel) * dilation - left
    if padding_mode == "reflect":
        source = source.abs()
        source = torch.where(source >= size, 2 * (size - 1) - source, source)
    elif padding_mode == "replicate":
        source = source.clamp(0, size - 1)
    elif padding_mode == "circular":
        source = source.remainder(size)
    tap = torch.arange(source.shape[1]).expand_as(source)
    real = (source >= 0) & (source < size)
    reach = torch.zeros(size, source.shape[1], dtype=torch.int64)
    return reach.index_put((source[real], tap[real]), torch.tensor(1), accumulate=True)


@lru_cache(maxsize=64)
def _transposed_reach(
    size: int, out: int, kernel: int, stride: int, dilation: int, padding: int
) -> Tensor:
    position = torch.arange(size)[:, None] * stride + torch.arange(kernel) * dilation - padding
    return ((position >= 0) & (position < out)).to(torch.int64)
