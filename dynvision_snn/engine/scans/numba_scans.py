"""Scans on the CPU: blocks of lanes for the compiled kernels, shared out to threads.

The lanes (``B * units``) are cut into blocks whose state stays in cache while a block runs through
all of time. The backward keeps nothing of the forward but its input: it runs each block forward
again, into scratch memory of ``[T, block]``, and then back in time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynvision_snn.engine.scans import numba_kernels as kernels
from dynvision_snn.engine.scans.numba_slopes import SLOPES
from dynvision_snn.engine.scans.rule import THRESHOLD, Given, Rule, Wanted
from dynvision_snn.engine.threads import in_parallel

Array = NDArray[Any]

# Lanes of a block, timesteps whose slopes are computed at once, and timesteps times lanes that
# make a thread worth its start.
_BLOCK = 8192
_SLOPES = 64
_JOINED_BLOCK = 2048
_PER_THREAD = 1 << 18
_PER_THREAD_JOINED = 1 << 16


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
    words = _words(rule)
    x_, recurrent_, u_, i_ = _flat(x), _flat(recurrent), u.numpy(), _flat(i)
    rows_of_x, lanes = index.numpy(), u.numel()
    outputs = [_flat(w) for w in (wanted.spikes, wanted.before, wanted.membrane, wanted.current)]
    emitted = _flat(wanted.emitted)
    values = [p.numpy() for p in parameters]

    def share(start: int, stop: int) -> None:
        width = min(_BLOCK, stop - start)
        buffers, filled = np.empty(3 * width, np.float32), _filled(values, width)
        for a, b in _blocks(start, stop):
            kernels.forward(
                a,
                lanes,
                words,
                rows_of_x,
                x_,
                recurrent_,
                *_NOT_JOINED,
                *_rows(values, filled, a, b),
                u_[a:b],
                i_[a:b],
                buffers,
                _NO_PLACES,
                a,
                lanes,
                *outputs,
                emitted[a:b],
            )

    _shared_out(share, lanes, len(rows_of_x))


def forward_joined(
    rule: Rule,
    index: Tensor,
    x: Tensor,
    z: Tensor,
    sends: Tensor,
    bias: Tensor,
    parameters: tuple[Tensor, ...],
    u: Tensor,
    i: Tensor | None,
    wanted: Wanted,
) -> None:
    """Runs all timesteps, changing the state `u`, `i` in place; see `backends.Backend`."""
    words = _words(rule)
    lanes, units = u.numel(), len(bias)
    given = (index.numpy(), _flat(x), _NONE, _flat(sends), bias.numpy())
    z_, u_, i_ = z.numpy(), u.numpy(), _flat(i)
    outputs = [_flat(w) for w in (wanted.spikes, wanted.before, wanted.membrane, wanted.current)]
    values, emitted = [p.numpy() for p in parameters], _flat(wanted.emitted)
    # Several samples at a time: loops over few lanes take longer to enter than to run.
    block = max(1, _JOINED_BLOCK // units) * units

    def share(start: int, stop: int) -> None:
        width = min(block, (stop - start) * units)
        buffers, filled = np.empty(3 * width, np.float32), _filled(values, width)
        places = np.empty(units, np.int32)
        for a, b in _blocks(start * units, stop * units, block):
            kernels.forward(
                a,
                lanes,
                words,
                *given,
                z_[a:b],
                *_rows(values, filled, a, b),
                u_[a:b],
                i_[a:b],
                buffers,
                places,
                a,
                lanes,
                *outputs,
                emitted[a:b],
            )

    in_parallel(share, lanes // units, lanes * len(index) / _PER_THREAD_JOINED)


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
    rows_of_x = index.numpy()
    steps = len(rows_of_x)
    unique = x.shape[0] == steps
    g_x = torch.empty_like(x) if unique else torch.zeros_like(x)
    words = _words(rule)
    values = [p.numpy() for p in parameters]
    x_, g_x_, u0_, i0_, g_, g_i_ = (_flat(value) for value in (x, g_x, u0, i0, g, g_i))
    from_later = [_flat(value) for value in (given.spikes, given.membrane, given.current)]
    g_emitted = _flat(given.emitted)
    learning = [_flat(value) for value in learned]
    learns_synapse, lanes = learned[3] is not None, g.numel()

    def share(start: int, stop: int) -> None:
        width = min(_BLOCK, stop - start)
        buffers, filled = np.empty(3 * width, np.float32), _filled(values, width)
        scratch = np.empty((1 + rule.owes + learns_synapse, steps * width), np.float32)
        before, slopes = scratch[0], np.empty(min(steps, _SLOPES) * width, np.float32)
        membrane = scratch[1] if rule.owes else _NONE
        current = scratch[-1] if learns_synapse else _NONE
        for a, b in _blocks(start, stop):
            rows = _rows(values, filled, a, b)
            u, i = u0_[a:b], i0_[a:b]
            kernels.forward(
                a,
                lanes,
                words,
                rows_of_x,
                x_,
                _NONE,
                *_NOT_JOINED,
                *rows,
                u.copy(),
                i.copy(),
                buffers,
                _NO_PLACES,
                0,
                b - a,
                _NONE,
                before,
                membrane,
                current,
                _NONE,
            )
            for first in reversed(range(0, steps, _SLOPES)):
                last = min(first + _SLOPES, steps)
                seen = before[first * (b - a) : last * (b - a)]
                _write_slopes(rule, seen, rows[THRESHOLD], slopes)
                kernels.backward(
                    a,
                    lanes,
                    (*words, int(rule.detached)),
                    first,
                    last,
                    _NO_INDEX if unique else rows_of_x,
                    *rows,
                    u,
                    i,
                    0,
                    b - a,
                    before,
                    slopes,
                    membrane if rule.owes else before,
                    current,
                    *from_later,
                    g_emitted[a:b],
                    g_[a:b],
                    g_i_[a:b],
                    buffers,
                    g_x_,
                    *(part[a:b] for part in learning),
                )

    _shared_out(share, lanes, steps)
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
    words = (*_words(rule), int(rule.detached))
    values = [p.numpy() for p in parameters]
    u0_, g_, g_i_, before_, recorded_, g_x_ = (
        _flat(value) for value in (u0, g, g_i, before, recorded, g_x)
    )
    lanes = g.numel()
    learning = [_flat(value) for value in learned]
    slopes = np.empty(lanes, np.float32)
    kept = (before_, slopes, recorded_, _NONE)
    from_later = [_flat(value) for value in (given.spikes, given.membrane, given.current)]
    g_emitted = _flat(given.emitted)
    width = min(_BLOCK, lanes)
    buffers, filled = np.empty(2 * width, np.float32), _filled(values, width)
    threshold = parameters[THRESHOLD].expand_as(g).contiguous().numpy()
    blocks = [
        (
            (a, lanes, words),
            (
                *(_NO_INDEX, *_rows(values, filled, a, b), u0_[a:b], _NONE, a, lanes),
                *(*kept, *from_later, g_emitted[a:b], g_[a:b], g_i_[a:b], buffers, g_x_),
                *(part[a:b] for part in learning),
            ),
        )
        for a, b in _blocks(0, lanes)
    ]

    def step_back(t: int) -> None:
        _write_slopes(rule, before_[t * lanes : (t + 1) * lanes], threshold, slopes)
        for first, rest in blocks:
            kernels.backward(*first, t, t + 1, *rest)

    return step_back


_NONE: Array = np.empty(0, np.float32)
_NO_INDEX: Array = np.empty(0, np.int64)
_NO_PLACES: Array = np.empty(0, np.int32)
_NOT_JOINED = (_NONE, _NONE, _NONE)


def _words(rule: Rule) -> tuple[int, int, int, int]:
    return int(rule.update), int(rule.synapse), int(rule.before), int(rule.after)


def _write_slopes(rule: Rule, before: Array, threshold: Array, slopes: Array) -> None:
    """The surrogate slopes of the membranes `before`, those of a timestep after each other."""
    a, b = np.float32(rule.surrogate.a), np.float32(rule.surrogate.b)
    SLOPES[rule.surrogate.kind](a, b, before, threshold, slopes)


def _flat(value: Tensor | None) -> Array:
    return _NONE if value is None else value.view(-1).numpy()


def _filled(values: list[Array], width: int) -> list[Array | None]:
    """Parameters that are one number, repeated for a block's lanes; None for the others."""
    return [None if value.size > 1 else np.full(width, value[0]) for value in values]


def _rows(values: list[Array], filled: list[Array | None], start: int, stop: int) -> list[Array]:
    """The lanes ``start:stop`` of every parameter."""
    return [
        value[start:stop] if row is None else row[: stop - start]
        for value, row in zip(values, filled, strict=True)
    ]


def _blocks(start: int, stop: int, size: int = _BLOCK) -> Iterator[tuple[int, int]]:
    return ((a, min(a + size, stop)) for a in range(start, stop, size))


def _shared_out(work: Callable[[int, int], None], lanes: int, steps: int) -> None:
    in_parallel(work, lanes, lanes * steps / _PER_THREAD, of=16)
