"""Dtypes that do not fit, told as what the user chose rather than as a matrix product that failed.

Neurons of some libraries emit float32 spikes whatever they are given, so that a model in bfloat16
or float64 fails at the first layer behind them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dynvision_snn.errors import WrapError

# How torch says of a product or a convolution that its operands are of different dtypes.
_OPERANDS_DIFFER = re.compile(r"same dtype|scalar type|[Ii]nput type .* should be the same")


@contextmanager
def telling_dtypes(net: nn.Module, inputs: Tensor, spiking: Sequence[str]) -> Iterator[None]:
    """Turns torch's error about dtypes that differ into one that says what is of which dtype.

    Args:
        net: the model that runs while this is entered.
        inputs: what it is given.
        spiking: the names of its spiking layers.

    Raises:
        WrapError: instead of such an error. Any other passes unchanged.
    """
    try:
        yield
    except (RuntimeError, WrapError) as error:
        if not _OPERANDS_DIFFER.search(str(error)):
            raise
        raise WrapError(_reason(net, inputs, spiking)) from error


def _reason(net: nn.Module, inputs: Tensor, spiking: Sequence[str]) -> str:
    weights = {p.dtype: None for p in net.parameters() if p.is_floating_point()}
    names = " and ".join(map(_name, weights))
    if weights and inputs.dtype not in weights:
        dtype = next(iter(weights))
        return (
            f"the inputs are {_name(inputs.dtype)}, the model's weights {names}. Convert one of "
            f"them: inputs.to({dtype}), or model.to({inputs.dtype})."
            if inputs.is_floating_point()
            else f"the inputs are {_name(inputs.dtype)}, the model's weights {names}. Convert "
            f"them: inputs.to({dtype})."
        )
    faster = (
        f", under torch.autocast({inputs.device.type!r}, dtype={inputs.dtype}) where speed matters"
        if inputs.dtype.itemsize < torch.float32.itemsize
        else ""
    )
    return (
        f"the inputs are {_name(inputs.dtype)} and the model's weights {names}, but a layer handed "
        "on another dtype. Some libraries' neurons emit float32 spikes whatever they are given "
        f"(spiking here: {', '.join(map(repr, spiking)) or 'none'}). Run it with weights and "
        f"inputs in float32{faster}."
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
