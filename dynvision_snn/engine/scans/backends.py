"""Which code runs a scan: compiled for the CPU, compiled for CUDA, or torch operations in a loop.

All three offer the same functions on flat lanes (``lanes = B * units``); see `Backend`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

from dynvision_snn.engine.scans.rule import Given, Rule, Wanted
from dynvision_snn.errors import MissingExtraError, WrapError, known_names

BackendName = Literal["numba", "triton", "torch"]

_FILES: dict[str, str] = {
    "numba": "dynvision_snn.engine.scans.numba_scans",
    "triton": "dynvision_snn.engine.scans.triton_scans",
    "torch": "dynvision_snn.engine.scans.torch_loop",
}


class Backend(Protocol):
    """The functions of a backend; every tensor is contiguous, on one device and of one dtype."""

    forward: Callable[
        [
            Rule,
            Tensor,
            Tensor,
            Tensor | None,
            tuple[Tensor, ...],
            Tensor,
            Tensor | None,
            Wanted,
        ],
        None,
    ]
    """``forward(rule, index, x, recurrent, parameters, u, i, wanted)``: all timesteps.

    `x` is ``[K, lanes]``, of which timestep t shows the row ``index[t]`` (int64 ``[T]``);
    `recurrent`, ``[T, lanes]``, comes on top. `parameters` are ``[1]`` or ``[lanes]``, in the order
    of `rule.parameters_of`. The state `u` (and the current `i`), ``[lanes]``, is left as it is
    after the last timestep; what is `wanted` is written.
    """

    forward_joined: (
        Callable[
            [
                Rule,
                Tensor,
                Tensor,
                Tensor,
                Tensor,
                Tensor,
                tuple[Tensor, ...],
                Tensor,
                Tensor | None,
                Wanted,
            ],
            None,
        ]
        | None
    )
    """``forward_joined(rule, index, x, z, sends, bias, parameters, u, i, wanted)``.

    As `forward`, for a neuron whose spikes come back through a matrix, row j of `sends` being what
    unit j sends to each, summed over the units that spiked; `bias` is ``[units]``. `z` are the
    spikes before, ``[lanes]``; all parameters are, too, and the spikes are wanted. None where a
    dense product for each timestep is faster.
    """

    backward: Callable[
        [
            Rule,
            Tensor,
            Tensor,
            tuple[Tensor, ...],
            Tensor,
            Tensor | None,
            Given,
            Tensor,
            Tensor | None,
            tuple[Tensor | None, ...],
        ],
        Tensor,
    ]
    """``backward(rule, index, x, parameters, u0, i0, given, g, g_i, learned)``: the gradient of x.

    The forward is computed again from `x` and the first state. `g`, `g_i` hold the gradients of the
    last state and are left holding those of the first. The gradients of the first `N_LEARNABLE`
    parameters are added to `learned`, ``[lanes]`` each; None where they are not wanted.
    """

    stepper_back: Callable[
        [
            Rule,
            Tensor,
            Tensor,
            tuple[Tensor, ...],
            Tensor,
            Given,
            Tensor,
            Tensor | None,
            Tensor,
            tuple[Tensor | None, ...],
        ],
        Callable[[int], None],
    ]
    """``stepper_back(rule, before, recorded, parameters, u0, given, g, g_i, g_x, learned)``.

    What goes back from timestep t, called once for each from the last on, where the forward was
    kept: the membranes `before` the reset and, where a reset is owed, as `recorded` (otherwise the
    same tensor), ``[T, lanes]``. Writes ``g_x[t]`` last, which may be where `given` holds the
    gradient of the spikes; that of a timestep is read when its turn comes.
    """


def backend(name: BackendName) -> Backend:
    """The backend of that name.

    Raises:
        MissingExtraError: if what it needs is not installed.
        WrapError: if there is none of that name.
    """
    if name not in _FILES:
        raise WrapError(f"unknown backend {name!r}. {known_names(name, _FILES)}")
    if not _is_installed(name):
        raise MissingExtraError(name, "engine", f"the {name} scans")
    return cast(Backend, import_module(_FILES[name]))


def backend_for(currents: Tensor) -> BackendName:
    """The fastest backend installed for `currents`."""
    if currents.dtype is torch.float32:
        if currents.is_cuda and _is_installed("triton"):
            return "triton"
        if currents.device.type == "cpu" and _is_installed("numba"):
            return "numba"
    return "torch"


def compilation(name: BackendName) -> str:
    """What a backend's first use cost, in words; empty where it compiles nothing on a CPU."""
    if name != "numba":
        return ""
    seconds = import_module("dynvision_snn.jit").seconds_compiling()
    return f"compiled in {seconds:.1f} s" if seconds else "compiled before, read from disk"


@cache
def _is_installed(name: str) -> bool:
    return name == "torch" or find_spec(name) is not None
