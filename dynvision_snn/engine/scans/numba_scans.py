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

# Lanes of a block, and timesteps times lanes that make a thread worth its start.
_BLOCK = 8192
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
    x_, recurrent_, u_, i_ = x.numpy(), _matrix(recurrent), u.numpy(), _vector(i)
    rows_of_x = index.numpy()
    outputs = [_matrix(w) for w in (wanted.spikes, wanted.before, wanted.membrane, wanted.current)]
    emitted = _vector(wanted.emitted)
    values = [p.numpy() for p in parameters]

    def share(start: int, stop: int) -> None:
        width = min(_BLOCK, stop - start)
        buffers, filled = np.empty((3, width), np.float32), _filled(values, width)
        for a, b in _blocks(start, stop):
            kernels.forward(
                a,
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
                *outputs,
                emitted[a:b],
            )

    _shared_out(share, u.numel(), len(rows_of_x))


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
    given = (index.numpy(), x.numpy(), _NO_MATRIX, sends.numpy(), bias.numpy())
    z_, u_, i_ = z.numpy(), u.numpy(), _vector(i)
    outputs = [_matrix(w) for w in (wanted.spikes, wanted.before, wanted.membrane, wanted.current)]
    values, emitted = [p.numpy() for p in parameters], _vector(wanted.emitted)
    units = len(bias)
    # Several samples at a time: loops over few lanes take longer to enter than to run.
    block = max(1, _JOINED_BLOCK // units) * units

    def share(start: int, stop: int) -> None:
        width = min(block, (stop - start) * units)
        buffers, filled = np.empty((3, width), np.float32), _filled(values, width)
        places = np.empty(units, np.int32)
        for a, b in _blocks(start * units, stop * units, block):
            kernels.forward(
                a,
                words,
                *given,
                z_[a:b],
                *_rows(values, filled, a, b),
                u_[a:b],
                i_[a:b],
                buffers,
                places,
                a,
                *outputs,
                emitted[a:b],
            )

    in_parallel(share, u.numel() // units, u.numel() * len(index) / _PER_THREAD_JOINED)


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
    x_, g_x_, u0_, i0_, g_, g_i_ = (
        x.numpy(),
        g_x.numpy(),
        u0.numpy(),
        _vector(i0),
        g.numpy(),
        _vector(g_i),
    )
    from_later = [_matrix(value) for value in (given.spikes, given.membrane, given.current)]
    g_emitted = _vector(given.emitted)
    learning = [_vector(value) for value in learned]
    learns_synapse = learned[3] is not None

    def share(start: int, stop: int) -> None:
        width = min(_BLOCK, stop - start)
        buffers, filled = np.empty((3, width), np.float32), _filled(values, width)
        scratch = np.empty((2 + rule.owes + learns_synapse, steps * width), np.float32)
        for a, b in _blocks(start, stop):
            over_time = scratch[:, : steps * (b - a)].reshape(-1, steps, b - a)
            before, slopes = over_time[:2]
            membrane = over_time[2] if rule.owes else _NO_MATRIX
            current = over_time[-1] if learns_synapse else _NO_MATRIX
            rows = _rows(values, filled, a, b)
            u, i = u0_[a:b], i0_[a:b]
            kernels.forward(
                a,
                words,
                rows_of_x,
                x_,
                _NO_MATRIX,
                *_NOT_JOINED,
                *rows,
                u.copy(),
                i.copy(),
                buffers,
                _NO_PLACES,
                0,
                _NO_MATRIX,
                before,
                membrane,
                current,
                _NO_VECTOR,
            )
            _write_slopes(rule, before, rows[THRESHOLD], slopes)
            kernels.backward(
                a,
                (*words, int(rule.detached)),
                0,
                steps,
                _NO_INDEX if unique else rows_of_x,
                *rows,
                u,
                i,
                0,
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

    _shared_out(share, g.numel(), steps)
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
    u0_, g_, g_i_ = u0.numpy(), g.numpy(), _vector(g_i)
    learning = [_vector(value) for value in learned]
    before_ = before.numpy()
    slopes = np.empty_like(before_)
    kept = (before_, slopes, recorded.numpy(), _NO_MATRIX)
    from_later = [_matrix(value) for value in (given.spikes, given.membrane, given.current)]
    g_emitted = _vector(given.emitted)
    width = min(_BLOCK, g.numel())
    buffers, filled, g_x_ = np.empty((2, width), np.float32), _filled(values, width), g_x.numpy()
    threshold = parameters[THRESHOLD].expand_as(g).contiguous().numpy()
    _write_slopes(rule, before_, threshold, slopes)
    blocks = [
        (
            (a, words),
            (
                *(_NO_INDEX, *_rows(values, filled, a, b), u0_[a:b], _NO_VECTOR, a),
                *(*kept, *from_later, g_emitted[a:b], g_[a:b], g_i_[a:b], buffers, g_x_),
                *(part[a:b] for part in learning),
            ),
        )
        for a, b in _blocks(0, g.numel())
    ]

    def step_back(t: int) -> None:
        for first, rest in blocks:
            kernels.backward(*first, t, t + 1, *rest)

    return step_back


_NO_VECTOR: Array = np.empty(0, np.float32)
_NO_MATRIX: Array = np.empty((0, 0), np.float32)
_NO_INDEX: Array = np.empty(0, np.int64)
_NO_PLACES: Array = np.empty(0, np.int32)
_NOT_JOINED = (_NO_MATRIX, _NO_VECTOR, _NO_VECTOR)


def _words(rule: Rule) -> tuple[int, int, int, int]:
    return int(rule.update), int(rule.synapse), int(rule.before), int(rule.after)


def _write_slopes(rule: Rule, before: Array, threshold: Array, slopes: Array) -> None:
    """The surrogate slopes of the membranes `before`, ``[T, n]``."""
    a, b = np.float32(rule.surrogate.a), np.float32(rule.surrogate.b)
    SLOPES[rule.surrogate.kind](a, b, before, threshold, slopes)


def _vector(value: Tensor | None) -> Array:
    return _NO_VECTOR if value is None else value.numpy()


def _matrix(value: Tensor | None) -> Array:
    return _NO_MATRIX if value is None else value.numpy()


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
