"""A neuron's timesteps on CUDA: the only file that imports Triton, which comes with torch there.

A program owns a few lanes (``B * units``) and runs through all of time, its state in registers. The
numbers that say which neuron it is are those of the enumerations in `adapters.scan_spec` and of
`rule.KINDS`.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _fired(v, threshold):
    return (v - threshold > 0).to(tl.float32)


@triton.jit
def _slope(x, a, b, KIND: tl.constexpr):
    if KIND == 1:
        y = x * 0.0 + 1.0
    elif KIND == 2:
        y = (x > 0).to(tl.float32)
    elif KIND == 3:
        z = 1.5707963267948966 * a * x
        y = a / 2.0 / (1.0 + z * z)
    elif KIND == 4:
        z = a * tl.abs(x) + 1.0
        y = 1.0 / (z * z)
    elif KIND == 5:
        z = a * tl.abs(x) + 1.0
        y = (x > b).to(tl.float32) / (z * z)
    elif KIND == 6:
        e = tl.exp(-a * x)
        y = a * e / ((e + 1.0) * (e + 1.0))
    elif KIND == 7:
        y = tl.where(x < 0, a, -a)
    elif KIND == 8:
        y = b * tl.exp(-a * tl.abs(x - 1.0))
    elif KIND == 9:
        y = a * tl.maximum(1.0 - tl.abs(x), 0.0)
    elif KIND == 10:
        e = tl.exp(-2.0 * tl.abs(a * x))
        y = 4.0 * e / ((1.0 + e) * (1.0 + e))
    elif KIND == 11:
        z = a / tl.sqrt(a * a + x * x)
        y = z * z * z
    elif KIND == 12:
        z = a * x
        y = 1.1283791670955126 * tl.exp(-(z * z))
    else:
        y = x * 0.0
    return y


@triton.jit(do_not_specialize=["steps"])
def forward(
    index,
    x,
    recurrent,
    rate_p,
    threshold_p,
    value_p,
    synapse_rate_p,
    leak_p,
    reset_value_p,
    u_p,
    i_p,
    spikes,
    before,
    membrane,
    current,
    emitted_p,
    steps,
    lanes,
    STRIDES: tl.constexpr,
    UPDATE: tl.constexpr,
    SYNAPSE: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    HAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All timesteps of the program's lanes; `HAS` says which pointers are to be followed."""
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < lanes
    rate = tl.load(rate_p + lane * STRIDES[0], mask=inside)
    threshold = tl.load(threshold_p + lane * STRIDES[1], mask=inside)
    value = tl.load(value_p + lane * STRIDES[2], mask=inside)
    synapse_rate = tl.load(synapse_rate_p + lane * STRIDES[3], mask=inside)
    leak = tl.load(leak_p + lane * STRIDES[4], mask=inside)
    reset_value = tl.load(reset_value_p + lane * STRIDES[5], mask=inside)
    u = tl.load(u_p + lane, mask=inside)
    i = u
    if SYNAPSE > 0:
        i = tl.load(i_p + lane, mask=inside)
    emitted = tl.zeros((BLOCK,), tl.float32)
    for t in range(steps):
        at = tl.cast(t, tl.int64) * lanes + lane
        drive = tl.load(x + tl.load(index + t) * lanes + lane, mask=inside)
        back = drive
        if HAS[0]:
            back = tl.load(recurrent + at, mask=inside)
        if SYNAPSE == 1:
            i = synapse_rate * i + drive
            drive = i
        elif SYNAPSE == 2:
            i = i + drive
            if HAS[0]:
                i = i + back
            drive = i
        owed = _fired(u, threshold)
        if UPDATE == 0:
            start = u
            if BEFORE == 2:
                start = (1.0 - owed) * u
            v = rate * start + drive
        elif UPDATE == 1:
            v = u + rate * ((leak - u) + drive)
        elif UPDATE == 2:
            v = u + rate * ((drive + leak) - u)
        else:
            v = u + drive
        if HAS[0] and SYNAPSE == 0:
            v = v + back
        if BEFORE == 1:
            v = v - owed * threshold
        elif BEFORE == 3:
            v = v - owed * v
        if SYNAPSE == 2:
            i = i + synapse_rate * i
        s = _fired(v, threshold)
        if HAS[1]:
            tl.store(spikes + at, s * value, mask=inside)
            if HAS[5]:
                emitted = emitted + tl.abs(s * value)
        if HAS[2]:
            tl.store(before + at, v, mask=inside)
        if AFTER == 1:
            u = v - (s - owed) * threshold
        elif AFTER == 2:
            u = v - (s - owed) * v
        elif AFTER == 3:
            u = (1.0 - s) * v + s * reset_value
        elif AFTER == 4:
            u = (1.0 - s) * v + s * (v - threshold)
        else:
            u = v
        if HAS[3]:
            tl.store(membrane + at, u, mask=inside)
        if HAS[4]:
            tl.store(current + at, i, mask=inside)
    tl.store(u_p + lane, u, mask=inside)
    if SYNAPSE > 0:
        tl.store(i_p + lane, i, mask=inside)
    if HAS[5]:
        was = tl.load(emitted_p + lane, mask=inside)
        tl.store(emitted_p + lane, was + emitted, mask=inside)


@triton.jit(do_not_specialize=["first", "last"])
def backward(
    first,
    last,
    index,
    rate_p,
    threshold_p,
    value_p,
    synapse_rate_p,
    leak_p,
    reset_value_p,
    u_first_p,
    i_first_p,
    before,
    recorded,
    current,
    g_spikes,
    g_membrane,
    g_current,
    g_emitted_p,
    g_p,
    g_i_p,
    g_x,
    g_rate_p,
    g_threshold_p,
    g_value_p,
    g_synapse_rate_p,
    slope_a,
    slope_b,
    lanes,
    STRIDES: tl.constexpr,
    UPDATE: tl.constexpr,
    SYNAPSE: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    FIRES: tl.constexpr,
    DETACHED: tl.constexpr,
    KIND: tl.constexpr,
    HAS: tl.constexpr,
    LEARNS: tl.constexpr,
    UNIQUE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The timesteps ``last - 1`` down to `first`; `LEARNS` says which parameters do."""
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < lanes
    rate = tl.load(rate_p + lane * STRIDES[0], mask=inside)
    threshold = tl.load(threshold_p + lane * STRIDES[1], mask=inside)
    value = tl.load(value_p + lane * STRIDES[2], mask=inside)
    synapse_rate = tl.load(synapse_rate_p + lane * STRIDES[3], mask=inside)
    reset_value = tl.load(reset_value_p + lane * STRIDES[5], mask=inside)
    u_first = tl.load(u_first_p + lane, mask=inside)
    g = tl.load(g_p + lane, mask=inside)
    g_i = g
    if SYNAPSE > 0:
        g_i = tl.load(g_i_p + lane, mask=inside)
    g_emitted = tl.zeros((BLOCK,), tl.float32)
    if HAS[3]:
        g_emitted = tl.load(g_emitted_p + lane, mask=inside)
    g_rate = g * 0.0
    g_threshold = g * 0.0
    g_value = g * 0.0
    g_synapse_rate = g * 0.0
    for back in range(last - first):
        t = last - 1 - back
        at = tl.cast(t, tl.int64) * lanes + lane
        v = tl.load(before + at, mask=inside)
        u_before = tl.load(recorded + at - lanes, mask=inside & (t > 0))
        u_before = tl.where(t > 0, u_before, u_first)
        owed = _fired(u_before, threshold)
        if HAS[1]:
            g = g + tl.load(g_membrane + at, mask=inside)
        if FIRES:
            s = _fired(v, threshold)
            h = s * g_emitted
            if HAS[0]:
                h = h + tl.load(g_spikes + at, mask=inside)
            g_value = g_value + s * h
            h = h * value
            recorded_g = g
            if AFTER == 1 or (AFTER == 4 and not DETACHED):
                h = h - threshold * g
            elif AFTER == 2:
                h = h - v * g
                g = (1.0 - (s - owed)) * g
            elif AFTER == 3:
                if not DETACHED:
                    h = h + (reset_value - v) * g
                g = (1.0 - s) * g
            at_spike = _slope(v - threshold, slope_a, slope_b, KIND) * h
            g = g + at_spike
            g_threshold = g_threshold - at_spike
            if AFTER == 1:
                g_threshold = g_threshold - (s - owed) * recorded_g
            if BEFORE == 1:
                g_threshold = g_threshold - owed * g
        if BEFORE == 3:
            g = (1.0 - owed) * g
        out = g
        if UPDATE == 0:
            kept = g * 0.0 + 1.0
            if BEFORE == 2:
                kept = 1.0 - owed
            g_rate = g_rate + kept * u_before * g
            g = kept * (rate * g)
        elif UPDATE != 3:
            out = rate * g
            g = g - out
        if SYNAPSE > 0:
            if HAS[2]:
                g_i = g_i + tl.load(g_current + at, mask=inside)
            if SYNAPSE == 1:
                out = out + g_i
                if LEARNS[3]:
                    i_before = tl.load(current + at - lanes, mask=inside & (t > 0))
                    i_first = tl.load(i_first_p + lane, mask=inside)
                    g_synapse_rate = g_synapse_rate + out * tl.where(t > 0, i_before, i_first)
                g_i = synapse_rate * out
            else:
                out = out + (g_i + synapse_rate * g_i)
                g_i = out
        if UNIQUE:
            tl.store(g_x + at, out, mask=inside)
        else:
            shared = g_x + tl.load(index + t) * lanes + lane
            tl.store(shared, tl.load(shared, mask=inside) + out, mask=inside)
    tl.store(g_p + lane, g, mask=inside)
    if SYNAPSE > 0:
        tl.store(g_i_p + lane, g_i, mask=inside)
    if LEARNS[0]:
        tl.store(g_rate_p + lane, tl.load(g_rate_p + lane, mask=inside) + g_rate, mask=inside)
    if LEARNS[1]:
        was = tl.load(g_threshold_p + lane, mask=inside)
        tl.store(g_threshold_p + lane, was + g_threshold, mask=inside)
    if LEARNS[2]:
        tl.store(g_value_p + lane, tl.load(g_value_p + lane, mask=inside) + g_value, mask=inside)
    if LEARNS[3]:
        was = tl.load(g_synapse_rate_p + lane, mask=inside)
        tl.store(g_synapse_rate_p + lane, was + g_synapse_rate, mask=inside)
