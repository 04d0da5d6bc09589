"""A neuron's timesteps compiled for the CPU.

A timestep of a block of lanes is a few simple loops, one statement of the neuron each, which the
compiler turns into vector instructions: a loop reads and writes few rows, since the compiler gives
up on telling many of them apart. Nothing is contracted or reordered (no fast math), so the forward
is the library's float32 arithmetic bit for bit.

Every neuron runs through the same two functions, so that there are two to compile, and the time
that takes goes with the number of loops: they are written out where they are used, as functions of
their own would be compiled twice, and a loop serves as many neurons as it can. A timestep's rows
that may be one and the same are not read and written in one loop, which would be slow.

The numbers that say which neuron it is are those of the enumerations in `adapters.scan_spec`. A sum
of inputs, ``Update.SUM``, is a decay with the rate 1.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import numpy as np

from dynvision_snn.engine.products.kernels import add_listed
from dynvision_snn.jit import outer


@outer
def forward(
    start,
    lanes,
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
    width,
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
    one = np.float32(1)
    zero = np.float32(0)
    n = u.size
    units = bias.size
    own = buffers[:n]
    sums = buffers[n : 2 * n]
    values = buffers[2 * n :]
    # Not a literal, for which `add_listed` would be compiled once more.
    none = np.int64(0)
    for t in range(index.size):
        row = t * lanes + start
        kept = t * width + at
        back = recurrent[row:]
        if units > 0:
            sent = spikes[row - lanes :] if t > 0 else z
            for k in range(0, n, units):
                total = sums[k : k + units]
                fired = none
                for j in range(units):
                    total[j] = bias[j]
                    places[fired] = j
                    values[fired] = sent[k + j]
                    fired += np.int64(sent[k + j] != zero)
                add_listed(places, values, none, fired, sends, units, none, total)
            back = sums
        drive = x[index[t] * lanes + start :]
        if synapse == 1:
            for j in range(n):
                i[j] = synapse_rate[j] * i[j] + drive[j]
            drive = i
        elif synapse == 2:
            for j in range(n):
                i[j] = i[j] + drive[j]
            if back.size > 0:
                for j in range(n):
                    i[j] = i[j] + back[j]
            drive = i

        v = before[kept:] if before.size > 0 else own
        if update == 1:
            for j in range(n):
                v[j] = u[j] + rate[j] * ((leak[j] - u[j]) + drive[j])
        elif update == 2:
            for j in range(n):
                v[j] = u[j] + rate[j] * ((drive[j] + leak[j]) - u[j])
        elif update == 0 and reset_before == 2:
            for j in range(n):
                owed = np.float32(u[j] - threshold[j] > zero)
                v[j] = rate[j] * ((one - owed) * u[j]) + drive[j]
        else:
            for j in range(n):
                v[j] = rate[j] * u[j] + drive[j]
        if back.size > 0 and synapse == 0:
            for j in range(n):
                v[j] = v[j] + back[j]
        if reset_before == 1:
            for j in range(n):
                v[j] = v[j] - np.float32(u[j] - threshold[j] > zero) * threshold[j]
        elif reset_before == 3:
            for j in range(n):
                v[j] = v[j] - np.float32(u[j] - threshold[j] > zero) * v[j]
        if synapse == 2:
            for j in range(n):
                i[j] = i[j] + synapse_rate[j] * i[j]

        if spikes.size > 0:
            emits = spikes[row:]
            for j in range(n):
                emits[j] = np.float32(v[j] - threshold[j] > zero) * value[j]
            if emitted.size > 0:
                for j in range(n):
                    emitted[j] = emitted[j] + abs(emits[j])

        if reset_after == 1 or reset_after == 2:
            lost = threshold if reset_after == 1 else v
            for j in range(n):
                owed = np.float32(u[j] - threshold[j] > zero)
                u[j] = v[j] - (np.float32(v[j] - threshold[j] > zero) - owed) * lost[j]
        elif reset_after == 3:
            for j in range(n):
                s = np.float32(v[j] - threshold[j] > zero)
                u[j] = (one - s) * v[j] + s * reset_value[j]
        elif reset_after == 4:
            for j in range(n):
                s = np.float32(v[j] - threshold[j] > zero)
                u[j] = (one - s) * v[j] + s * (v[j] - threshold[j])
        else:
            for j in range(n):
                u[j] = v[j]
        if membrane.size > 0:
            recorded = membrane[kept:]
            for j in range(n):
                recorded[j] = u[j]
        if current.size > 0:
            recorded = current[kept:]
            for j in range(n):
                recorded[j] = i[j]


@outer
def backward(
    start,
    lanes,
    words,
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
    width,
    before,
    slopes,
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

    `before`, `recorded` and `current` hold the forward from the column `at` on, `slopes` the
    surrogate's of `before`, of these timesteps alone; `g_emitted` is the gradient of what each lane
    emitted, times the sign of its spikes. `g` and `g_i` are the gradients of the state, carried
    back in time. Those of the parameters have no size where nothing is learned. `buffers` has two
    rows.

    A timestep turns ``h``, the gradient of a spike, and ``g``, that of the recorded membrane, into
    ``g_v``, that of the membrane before the reset, and this into that of the input, in its place.
    """
    update, synapse, reset_before, reset_after, detached = words
    one = np.float32(1)
    zero = np.float32(0)
    n = g.size
    h, out = buffers[:n], buffers[n:]
    unique = index.size == 0
    for t in range(last - 1, first - 1, -1):
        row = t * lanes + start
        kept = t * width + at
        v, slope = before[kept:], slopes[(t - first) * width + at :]
        u_before = recorded[kept - width :] if t > 0 else u_first
        if g_membrane.size > 0:
            given = g_membrane[row:]
            for j in range(n):
                g[j] = g[j] + given[j]

        if g_spikes.size > 0:
            given = g_spikes[row:]
            for j in range(n):
                h[j] = given[j]
        else:
            for j in range(n):
                h[j] = zero
        if g_emitted.size > 0:
            for j in range(n):
                h[j] = h[j] + np.float32(v[j] - threshold[j] > zero) * g_emitted[j]
        if g_value.size > 0:
            for j in range(n):
                g_value[j] = g_value[j] + np.float32(v[j] - threshold[j] > zero) * h[j]
        for j in range(n):
            h[j] = h[j] * value[j]
        if reset_after == 1 or reset_after == 2 or (reset_after == 4 and not detached):
            lost = v if reset_after == 2 else threshold
            for j in range(n):
                h[j] = h[j] - lost[j] * g[j]
        elif reset_after == 3 and not detached:
            for j in range(n):
                h[j] = h[j] + (reset_value[j] - v[j]) * g[j]
        if g_threshold.size > 0:
            for j in range(n):
                g_threshold[j] = g_threshold[j] - slope[j] * h[j]
            if reset_after == 1:
                for j in range(n):
                    owed = np.float32(u_before[j] - threshold[j] > zero)
                    s = np.float32(v[j] - threshold[j] > zero)
                    g_threshold[j] = g_threshold[j] - (s - owed) * g[j]
        if reset_after == 2:
            for j in range(n):
                owed = np.float32(u_before[j] - threshold[j] > zero)
                g[j] = (one - (np.float32(v[j] - threshold[j] > zero) - owed)) * g[j]
        elif reset_after == 3:
            for j in range(n):
                g[j] = (one - np.float32(v[j] - threshold[j] > zero)) * g[j]

        g_v = g_x[row:] if unique else out
        for j in range(n):
            g_v[j] = g[j] + slope[j] * h[j]
        if reset_before == 1 and g_threshold.size > 0:
            for j in range(n):
                owed = np.float32(u_before[j] - threshold[j] > zero)
                g_threshold[j] = g_threshold[j] - owed * g_v[j]
        elif reset_before == 3:
            for j in range(n):
                g_v[j] = (one - np.float32(u_before[j] - threshold[j] > zero)) * g_v[j]
        if g_rate.size > 0:
            zeroed = np.float32(reset_before == 2)
            for j in range(n):
                counts = one - zeroed * np.float32(u_before[j] - threshold[j] > zero)
                g_rate[j] = g_rate[j] + counts * u_before[j] * g_v[j]
        if update == 1 or update == 2:
            for j in range(n):
                driven = rate[j] * g_v[j]
                g[j] = g_v[j] - driven
                g_v[j] = driven
        elif update == 0 and reset_before == 2:
            for j in range(n):
                owed = np.float32(u_before[j] - threshold[j] > zero)
                g[j] = (one - owed) * (rate[j] * g_v[j])
        else:
            for j in range(n):
                g[j] = rate[j] * g_v[j]

        if synapse > 0:
            if g_current.size > 0:
                given = g_current[row:]
                for j in range(n):
                    g_i[j] = g_i[j] + given[j]
            if synapse == 1:
                for j in range(n):
                    g_v[j] = g_v[j] + g_i[j]
                    g_i[j] = synapse_rate[j] * g_v[j]
                if g_synapse_rate.size > 0:
                    i_before = current[kept - width :] if t > 0 else i_first
                    for j in range(n):
                        g_synapse_rate[j] = g_synapse_rate[j] + g_v[j] * i_before[j]
            else:
                for j in range(n):
                    g_v[j] = g_v[j] + (g_i[j] + synapse_rate[j] * g_i[j])
                    g_i[j] = g_v[j]
        if not unique:
            shared = g_x[index[t] * lanes + start :]
            for j in range(n):
                shared[j] = shared[j] + g_v[j]
