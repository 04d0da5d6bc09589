"""A neuron's timesteps compiled for the CPU.

A timestep of a block of lanes is a few simple loops, one statement of the neuron each, which the
compiler turns into vector instructions: a loop reads and writes few rows, since the compiler gives
up on telling many of them apart. Nothing is contracted or reordered (no fast math), so the forward
is the library's float32 arithmetic bit for bit.

The numbers that say which neuron it is are those of the enumerations in `adapters.scan_spec` and of
`rule.KINDS`. Long for being one family of loops, which must be compiled together.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import math

import numpy as np

from dynvision_snn.engine.products.kernels import add_listed, listed
from dynvision_snn.jit import inner, outer


@inner
def _copy(source, target):
    for j in range(target.size):
        target[j] = source[j]


@inner
def _add(row, target):
    for j in range(target.size):
        target[j] = target[j] + row[j]


@inner
def _fire(v, threshold, value, out):
    for j in range(out.size):
        out[j] = np.float32(v[j] - threshold[j] > np.float32(0)) * value[j]


@inner
def _emit(spikes, emitted):
    for j in range(emitted.size):
        emitted[j] = emitted[j] + abs(spikes[j])


@inner
def _update(update, before, u, x, recurrent, has_recurrent, rate, threshold, leak, v):
    one = np.float32(1)
    zero = np.float32(0)
    if update == 0 and before == 2:
        for j in range(v.size):
            r = np.float32(u[j] - threshold[j] > zero)
            v[j] = rate[j] * ((one - r) * u[j]) + x[j]
    elif update == 0:
        for j in range(v.size):
            v[j] = rate[j] * u[j] + x[j]
    elif update == 1:
        for j in range(v.size):
            v[j] = u[j] + rate[j] * ((leak[j] - u[j]) + x[j])
    elif update == 2:
        for j in range(v.size):
            v[j] = u[j] + rate[j] * ((x[j] + leak[j]) - u[j])
    else:
        for j in range(v.size):
            v[j] = u[j] + x[j]
    if has_recurrent:
        _add(recurrent, v)
    if before == 1:
        for j in range(v.size):
            v[j] = v[j] - np.float32(u[j] - threshold[j] > zero) * threshold[j]
    elif before == 3:
        for j in range(v.size):
            v[j] = v[j] - np.float32(u[j] - threshold[j] > zero) * v[j]


@inner
def _reset(after, v, threshold, reset_value, u):
    one = np.float32(1)
    zero = np.float32(0)
    if after == 1:
        for j in range(v.size):
            s = np.float32(v[j] - threshold[j] > zero)
            u[j] = v[j] - (s - np.float32(u[j] - threshold[j] > zero)) * threshold[j]
    elif after == 2:
        for j in range(v.size):
            s = np.float32(v[j] - threshold[j] > zero)
            u[j] = v[j] - (s - np.float32(u[j] - threshold[j] > zero)) * v[j]
    elif after == 3:
        for j in range(v.size):
            s = np.float32(v[j] - threshold[j] > zero)
            u[j] = (one - s) * v[j] + s * reset_value[j]
    elif after == 4:
        for j in range(v.size):
            s = np.float32(v[j] - threshold[j] > zero)
            u[j] = (one - s) * v[j] + s * (v[j] - threshold[j])
    else:
        _copy(v, u)


@inner
def _slope(kind, a, b, v, threshold, out):
    one = np.float32(1)
    zero = np.float32(0)
    if kind == 3:
        half = a / np.float32(2)
        scale = np.float32(1.5707963267948966) * a
        for j in range(v.size):
            y = scale * (v[j] - threshold[j])
            out[j] = half / (one + y * y)
    elif kind == 4 or kind == 5:
        least = b if kind == 5 else np.float32(-np.inf)
        for j in range(v.size):
            y = a * abs(v[j] - threshold[j]) + one
            out[j] = np.float32(v[j] - threshold[j] > least) / (y * y)
    elif kind == 6:
        for j in range(v.size):
            e = math.exp(-a * (v[j] - threshold[j]))
            out[j] = a * e / ((e + one) * (e + one))
    elif kind == 7:
        for j in range(v.size):
            out[j] = a if v[j] - threshold[j] < zero else -a
    elif kind == 8:
        for j in range(v.size):
            out[j] = b * math.exp(-a * abs(v[j] - threshold[j] - one))
    elif kind == 9:
        for j in range(v.size):
            y = one - abs(v[j] - threshold[j])
            out[j] = a * y if y > zero else zero
    elif kind == 10:
        for j in range(v.size):
            y = math.tanh(a * (v[j] - threshold[j]))
            out[j] = one - y * y
    elif kind == 11:
        for j in range(v.size):
            y = v[j] - threshold[j]
            y = a / math.sqrt(a * a + y * y)
            out[j] = y * y * y
    elif kind == 12:
        scale = np.float32(1.1283791670955126)
        for j in range(v.size):
            y = a * (v[j] - threshold[j])
            out[j] = scale * math.exp(-(y * y))
    elif kind == 2:
        for j in range(v.size):
            out[j] = np.float32(v[j] - threshold[j] > zero)
    else:
        for j in range(v.size):
            out[j] = np.float32(kind)


@inner
def _through_reset(after, detached, v, u_before, threshold, reset_value, slope, h, g):
    """From the gradients of spike `h` and recorded membrane `g` to that of ``v``, in `g`.

    `h` becomes the gradient that reached the spike altogether.
    """
    one = np.float32(1)
    zero = np.float32(0)
    if after == 1 or (after == 4 and not detached):
        for j in range(g.size):
            h[j] = h[j] - threshold[j] * g[j]
    elif after == 2:
        for j in range(g.size):
            s = np.float32(v[j] - threshold[j] > zero)
            d = s - np.float32(u_before[j] - threshold[j] > zero)
            h[j] = h[j] - v[j] * g[j]
            g[j] = (one - d) * g[j]
    elif after == 3:
        for j in range(g.size):
            s = np.float32(v[j] - threshold[j] > zero)
            if not detached:
                h[j] = h[j] + (reset_value[j] - v[j]) * g[j]
            g[j] = (one - s) * g[j]
    for j in range(g.size):
        g[j] = g[j] + slope[j] * h[j]


@inner
def _through_update(update, before, u_before, threshold, rate, g, out):
    """From the gradient of ``v`` in `g` to that of the input in `out` and of ``u`` in `g`."""
    one = np.float32(1)
    zero = np.float32(0)
    if before == 3:
        for j in range(g.size):
            g[j] = (one - np.float32(u_before[j] - threshold[j] > zero)) * g[j]
    if update == 0:
        _copy(g, out)
        if before == 2:
            for j in range(g.size):
                r = np.float32(u_before[j] - threshold[j] > zero)
                g[j] = (one - r) * (rate[j] * g[j])
        else:
            for j in range(g.size):
                g[j] = rate[j] * g[j]
    elif update == 3:
        _copy(g, out)
    else:
        for j in range(g.size):
            out[j] = rate[j] * g[j]
        for j in range(g.size):
            g[j] = g[j] - out[j]


@inner
def _learn_threshold(before, after, v, u_before, threshold, slope, h, g_recorded, g, out):
    """Adds the threshold's gradient: in the spike, in the reset of this timestep, in the owed."""
    zero = np.float32(0)
    for j in range(out.size):
        out[j] = out[j] - slope[j] * h[j]
    if after == 1:
        for j in range(out.size):
            s = np.float32(v[j] - threshold[j] > zero)
            d = s - np.float32(u_before[j] - threshold[j] > zero)
            out[j] = out[j] - d * g_recorded[j]
    if before == 1:
        for j in range(out.size):
            out[j] = out[j] - np.float32(u_before[j] - threshold[j] > zero) * g[j]


@inner
def _learn_rate(before, u_before, threshold, g, out):
    zero = np.float32(0)
    if before == 2:
        for j in range(out.size):
            kept = np.float32(1) - np.float32(u_before[j] - threshold[j] > zero)
            out[j] = out[j] + kept * u_before[j] * g[j]
    else:
        for j in range(out.size):
            out[j] = out[j] + u_before[j] * g[j]


@inner
def _learn_value(v, threshold, h, out):
    for j in range(out.size):
        out[j] = out[j] + np.float32(v[j] - threshold[j] > np.float32(0)) * h[j]


@outer
def forward(
    start,
    words,
    index,
    x,
    recurrent,
    sends,
    bias,
    z,
    rate,
    threshold,
    value,
    synapse_rate,
    leak,
    reset_value,
    u,
    i,
    buffers,
    places,
    at,
    spikes,
    before,
    membrane,
    current,
    emitted,
):
    """All timesteps of the lanes from `start` on, as many as `u` has.

    Arrays without size stand for what there is not, or is not wanted. What comes back is either
    given, in `recurrent`, or summed over the units that spiked, where `bias` has as many: row j of
    `sends` is then what unit j sends to each, `z` are the spikes before the first timestep of these
    lanes, whole samples, and `places` (int32) has room for one per unit.

    What these lanes emit is added to `emitted`. `at` is where `before`, `membrane` and `current`
    hold the first of them. `buffers` has three rows.
    """
    update, synapse, reset_before, reset_after = words
    n = u.size
    stop = start + n
    end = at + n
    units = bias.size
    v, sums, values = buffers[0, :n], buffers[1, :n], buffers[2, :n]
    # Not a literal, for which `add_listed` would be compiled once more.
    none = np.int64(0)
    for t in range(index.size):
        back = recurrent[t, start:stop]
        if units > 0:
            sent = spikes[t - 1, start:stop] if t > 0 else z
            for k in range(0, n, units):
                row = sums[k : k + units]
                _copy(bias, row)
                fired = listed(sent[k : k + units], places, values)
                add_listed(places, values, none, fired, sends, none, units, row)
            back = sums
        drive = x[index[t], start:stop]
        if synapse == 1:
            for j in range(n):
                i[j] = synapse_rate[j] * i[j] + drive[j]
            drive = i
        elif synapse == 2:
            _add(drive, i)
            if back.size > 0:
                _add(back, i)
            drive = i
        joins = back.size > 0 and synapse == 0
        _update(update, reset_before, u, drive, back, joins, rate, threshold, leak, v)
        if synapse == 2:
            for j in range(n):
                i[j] = i[j] + synapse_rate[j] * i[j]
        if spikes.size > 0:
            _fire(v, threshold, value, spikes[t, start:stop])
        if emitted.size > 0:
            _emit(spikes[t, start:stop], emitted)
        if before.size > 0:
            _copy(v, before[t, at:end])
        _reset(reset_after, v, threshold, reset_value, u)
        if membrane.size > 0:
            _copy(u, membrane[t, at:end])
        if current.size > 0:
            _copy(i, current[t, at:end])


@outer
def backward(
    start,
    words,
    slope_a,
    slope_b,
    first,
    last,
    index,
    rate,
    threshold,
    value,
    synapse_rate,
    leak,
    reset_value,
    u_first,
    i_first,
    at,
    before,
    recorded,
    current,
    g_spikes,
    g_membrane,
    g_current,
    g_emitted,
    g,
    g_i,
    buffers,
    g_x,
    g_rate,
    g_threshold,
    g_value,
    g_synapse_rate,
):
    """The timesteps ``last - 1`` down to `first` of the lanes from `start` on.

    `before`, `recorded` and `current` hold the forward from the column `at` on, `g_emitted` is the
    gradient of what each lane emitted, times the sign of its spikes. `g` and `g_i` are
    the gradients of the state, carried back in time.
    """
    update, synapse, reset_before, reset_after, detached, kind = words
    n = g.size
    stop = start + n
    end = at + n
    slope, h, out, g_recorded = buffers[0, :n], buffers[1, :n], buffers[2, :n], buffers[3, :n]
    unique = index.size == 0
    for t in range(last - 1, first - 1, -1):
        v = before[t, at:end]
        u_before = recorded[t - 1, at:end] if t > 0 else u_first
        if g_membrane.shape[0] > 0:
            _add(g_membrane[t, start:stop], g)
        _slope(kind, slope_a, slope_b, v, threshold, slope)
        if g_spikes.shape[0] > 0:
            _copy(g_spikes[t, start:stop], h)
        else:
            for j in range(n):
                h[j] = np.float32(0)
        if g_emitted.size > 0:
            _fire(v, threshold, g_emitted, out)
            _add(out, h)
        if g_value is not None:
            _learn_value(v, threshold, h, g_value)
        for j in range(n):
            h[j] = h[j] * value[j]
        if g_threshold is not None:
            _copy(g, g_recorded)
        _through_reset(reset_after, detached, v, u_before, threshold, reset_value, slope, h, g)
        if g_threshold is not None:
            _learn_threshold(
                reset_before,
                reset_after,
                v,
                u_before,
                threshold,
                slope,
                h,
                g_recorded,
                g,
                g_threshold,
            )
        x_row = g_x[t, start:stop] if unique else out
        _through_update(update, reset_before, u_before, threshold, rate, g, x_row)
        if g_rate is not None:
            _learn_rate(reset_before, u_before, threshold, x_row, g_rate)
        if synapse > 0:
            if g_current.shape[0] > 0:
                _add(g_current[t, start:stop], g_i)
            if synapse == 1:
                _add(g_i, x_row)
                if g_synapse_rate is not None:
                    i_before = current[t - 1, at:end] if t > 0 else i_first
                    for j in range(n):
                        g_synapse_rate[j] = g_synapse_rate[j] + x_row[j] * i_before[j]
                for j in range(n):
                    g_i[j] = synapse_rate[j] * x_row[j]
            else:
                for j in range(n):
                    x_row[j] = x_row[j] + (g_i[j] + synapse_rate[j] * g_i[j])
                _copy(x_row, g_i)
        if not unique:
            _add(out, g_x[index[t], start:stop])
