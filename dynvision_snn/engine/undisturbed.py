"""Whether what is about to be computed is the affair of autograd alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from dynvision_snn.observation import is_recomputing
from dynvision_snn.spike_bits import hooked_by_others

_PLAIN = (Tensor, Parameter)


def is_undisturbed(*tensors: Tensor) -> bool:
    """Whether they are dense float32 numbers on the CPU, and no one else follows their operations.

    Others are: a compiler that traces, a function transform, forward derivatives, autocast, a mode
    of torch's, a tensor of a class of its own, activation checkpointing.

    >>> is_undisturbed(torch.ones(2))
    True
    >>> with torch.autocast("cpu"):
    ...     is_undisturbed(torch.ones(2))
    False
    """
    if torch.compiler.is_compiling():
        return False
    for tensor in tensors:
        if (
            type(tensor) not in _PLAIN
            or tensor.dtype is not torch.float32
            or not tensor.is_cpu
            or tensor.layout is not torch.strided
        ):
            return False
    return not (
        torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._get_tracing_state()
        or is_recomputing()
        or hooked_by_others()
    )
