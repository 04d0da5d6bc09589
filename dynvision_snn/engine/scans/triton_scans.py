"""Scans on CUDA: launches of the Triton kernels.

Multiplications and additions are not fused, so that the forward is the library's float32
arithmetic. The backward runs the forward again, which writes what the way back needs into memory
that is given back afterwards. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from dynvision_snn.engine.scans import triton_kernels as kernels
from dynvision_snn.engine.scans.rule import Given, Rule, Wanted

_BLOCK = 256


def forward(
    rule: Rule,
    index: Tensor,
    x: Tensor,
    recurrent: Tensor | None,
    parameters: tuple[Tensor, ...],
    u: Tensor,
    i: Tensor | None,
    wanted: Wanted,
) -> None:
    """Runs all timesteps, changing the state `u`, `i` in place; see `backends.Backend`."""
    outputs = (wanted.spikes, wanted.before, wanted.membrane, wanted.current, wanted.emitted)
    with _on_device_of(x):
        kernels.forward[_programs(u)](
            index,
            x,
            _or(recurrent, x),
            *parameters,
            u,
            _or(i, u),
            *(_or(output, x) for output in outputs),
            len(index),
            u.numel(),
            **_words(rule, parameters),
            HAS=tuple(value is not None for value in (recurrent, *outputs)),
            BLOCK=_BLOCK,
            enable_fp_fusion=False,
        )


forward_joined = None


def backward(
    rule: Rule,
    index: Tensor,
    x: Tensor,
    parameters: tuple[Tensor, ...],
    u0: Tensor,
    i0: Tensor | None,
    given: Given,
    g: Tensor,
    g_i: Tensor | None,
    learned: tuple[Tensor | None, ...],
) -> Tensor:
    """The gradient of `x`; see `backends.Backend`."""
    steps = len(index)
    before = x.new_empty(steps, u0.numel())
    recorded = torch.empty_like(before) if rule.owes else before
    current = torch.empty_like(before) if learned[3] is not None else None
    wanted = Wanted(before=before, membrane=recorded if rule.owes else None, current=current)
    i = None if i0 is None else i0.clone()
    forward(rule, index, x, None, parameters, u0.clone(), i, wanted)
    unique = x.shape[0] == steps
    g_x = torch.empty_like(x) if unique else torch.zeros_like(x)
    _launch_backward(
        rule,
        0,
        steps,
        None if unique else index,
        parameters,
        u0,
        i0,
        before,
        recorded,
        current,
        given,
        g,
        g_i,
        g_x,
        learned,
    )
    return g_x


def stepper_back(
    rule: Rule,
    before: Tensor,
    recorded: Tensor,
    parameters: tuple[Tensor, ...],
    u0: Tensor,
    given: Given,
    g: Tensor,
    g_i: Tensor | None,
    g_x: Tensor,
    learned: tuple[Tensor | None, ...],
) -> Callable[[int], None]:
    """What goes one timestep back, into ``g_x[t]``; see `backends.Backend`."""

    def step_back(t: int) -> None:
        _launch_backward(
            rule,
            t,
            t + 1,
            None,
            parameters,
            u0,
            None,
            before,
            recorded,
            None,
            given,
            g,
            g_i,
            g_x,
            learned,
        )

    return step_back


def _launch_backward(
    rule: Rule,
    first: int,
    last: int,
    index: Tensor | None,
    parameters: tuple[Tensor, ...],
    u0: Tensor,
    i0: Tensor | None,
    before: Tensor,
    recorded: Tensor,
    current: Tensor | None,
    given: Given,
    g: Tensor,
    g_i: Tensor | None,
    g_x: Tensor,
    learned: tuple[Tensor | None, ...],
) -> None:
    from_later = (given.spikes, given.membrane, given.current, given.emitted)
    with _on_device_of(g):
        kernels.backward[_programs(g)](
            first,
            last,
            _or(index, g),
            *parameters,
            u0,
            _or(i0, u0),
            before,
            recorded,
            _or(current, before),
            *(_or(value, before) for value in from_later),
            g,
            _or(g_i, g),
            g_x,
            *(_or(value, g) for value in learned),
            rule.surrogate.a,
            rule.surrogate.b,
            g.numel(),
            **_words(rule, parameters),
            FIRES=rule.fires,
            DETACHED=rule.detached,
            KIND=rule.kind,
            HAS=tuple(value is not None for value in from_later),
            LEARNS=tuple(value is not None for value in learned),
            UNIQUE=index is None,
            BLOCK=_BLOCK,
            enable_fp_fusion=False,
        )


def _programs(lanes: Tensor) -> tuple[int]:
    return (-(-lanes.numel() // _BLOCK),)


def _words(rule: Rule, parameters: tuple[Tensor, ...]) -> dict[str, Any]:
    return {
        "STRIDES": tuple(int(parameter.numel() > 1) for parameter in parameters),
        "UPDATE": int(rule.update),
        "SYNAPSE": int(rule.synapse),
        "BEFORE": int(rule.before),
        "AFTER": int(rule.after),
    }


def _or(value: Tensor | None, unused: Tensor) -> Tensor:
    """`value`, or a pointer that the kernel will not follow."""
    return unused if value is None else value


def _on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
