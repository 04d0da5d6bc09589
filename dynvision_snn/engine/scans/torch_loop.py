"""Scans as a loop of torch operations: any device and floating dtype, nothing to compile.

Slower than the kernels, but still without an autograd graph over time: the backward is the
recursion itself, on what the forward computes again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynvision_snn.adapters.scan_spec import After, Before, Synapse, Update
from dynvision_snn.engine.scans.rule import Given, Rule, Wanted
from dynvision_snn.engine.scans.surrogate_slopes import slope


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
    rate, threshold, value, synapse_rate, leak, reset_value = parameters
    for t, row in enumerate(index.tolist()):
        drive = x[row]
        back = None if recurrent is None else recurrent[t]
        if rule.synapse is Synapse.DECAY:
            assert i is not None
            i.copy_(synapse_rate * i + drive)
            drive = i
        elif rule.synapse is Synapse.EULER:
            assert i is not None
            i.add_(drive)
            if back is not None:
                i.add_(back)
                back = None
            drive = i
        owed = (u - threshold > 0).to(u.dtype)
        v = _updated(rule, u, drive, rate, leak, owed)
        if back is not None:
            v.add_(back)
        if rule.before is Before.SUBTRACT:
            v.sub_(owed * threshold)
        elif rule.before is Before.ZERO_UPDATE:
            v.sub_(owed * v)
        if rule.synapse is Synapse.EULER:
            assert i is not None
            i.add_(synapse_rate * i)
        if wanted.before is not None:
            wanted.before[t] = v
        if rule.fires:
            spikes = (v - threshold > 0).to(v.dtype)
            if wanted.spikes is not None:
                torch.mul(spikes, value, out=wanted.spikes[t])
                if wanted.emitted is not None:
                    wanted.emitted.add_(wanted.spikes[t].abs())
            _reset(rule, v, spikes, owed, threshold, reset_value)
        u.copy_(v)
        if wanted.membrane is not None:
            wanted.membrane[t] = u
        if wanted.current is not None:
            assert i is not None
            wanted.current[t] = i


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
    i = None if i0 is None else i0.clone()
    wanted = Wanted(before=before, membrane=recorded if rule.owes else None, current=current)
    forward(rule, index, x, None, parameters, u0.clone(), i, wanted)
    g_x = torch.zeros_like(x)
    rows = index.tolist()
    for t in range(steps - 1, -1, -1):
        i_before = None if current is None else (current[t - 1] if t else i0)
        g_x[rows[t]] += _step_back(
            rule, t, before, recorded, i_before, parameters, u0, given, g, g_i, learned
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
        g_x[t] = _step_back(rule, t, before, recorded, None, parameters, u0, given, g, g_i, learned)

    return step_back


def _updated(
    rule: Rule, u: Tensor, drive: Tensor, rate: Tensor, leak: Tensor, owed: Tensor
) -> Tensor:
    if rule.update is Update.DECAY:
        start = (1 - owed) * u if rule.before is Before.ZERO else u
        return rate * start + drive
    if rule.update is Update.EULER:
        return u + rate * ((leak - u) + drive)
    if rule.update is Update.EULER_INPUT_FIRST:
        return u + rate * ((drive + leak) - u)
    return u + drive


def _reset(
    rule: Rule,
    v: Tensor,
    spikes: Tensor,
    owed: Tensor,
    threshold: Tensor,
    reset_value: Tensor,
) -> None:
    """Turns ``v`` into the recorded membrane, in place."""
    if rule.after is After.OWED_SUBTRACT:
        v.sub_((spikes - owed) * threshold)
    elif rule.after is After.OWED_ZERO:
        v.sub_((spikes - owed) * v)
    elif rule.after is After.VALUE:
        v.copy_((1 - spikes) * v + spikes * reset_value)
    elif rule.after is After.SUBTRACT:
        v.copy_((1 - spikes) * v + spikes * (v - threshold))


def _step_back(
    rule: Rule,
    t: int,
    before: Tensor,
    recorded: Tensor,
    i_before: Tensor | None,
    parameters: tuple[Tensor, ...],
    u0: Tensor,
    given: Given,
    g: Tensor,
    g_i: Tensor | None,
    learned: tuple[Tensor | None, ...],
) -> Tensor:
    """The gradient of the input at `t`; the state's gradients `g`, `g_i` go one step back."""
    rate, threshold, value, synapse_rate, _, reset_value = parameters
    g_rate, g_threshold, g_value, g_synapse_rate = learned
    v = before[t]
    u_before = recorded[t - 1] if t else u0
    if given.membrane is not None:
        g.add_(given.membrane[t])
    owed = (u_before - threshold > 0).to(v.dtype)
    if rule.fires:
        spikes = (v - threshold > 0).to(v.dtype)
        h = torch.zeros_like(v) if given.spikes is None else given.spikes[t]
        if given.emitted is not None:
            h = h + spikes * given.emitted
        if g_value is not None:
            g_value.add_(h * spikes)
        h = h * value
        late = spikes - owed
        g_recorded = g.clone()
        if rule.after is After.OWED_SUBTRACT or (
            rule.after is After.SUBTRACT and not rule.detached
        ):
            h = h - threshold * g
        elif rule.after is After.OWED_ZERO:
            h = h - v * g
            g.mul_(1 - late)
        elif rule.after is After.VALUE:
            if not rule.detached:
                h = h + (reset_value - v) * g
            g.mul_(1 - spikes)
        at_spike = slope(rule.surrogate, v - threshold) * h
        g.add_(at_spike)
        if g_threshold is not None:
            g_threshold.sub_(at_spike)
            if rule.after is After.OWED_SUBTRACT:
                g_threshold.sub_(late * g_recorded)
            if rule.before is Before.SUBTRACT:
                g_threshold.sub_(owed * g)
    if rule.before is Before.ZERO_UPDATE:
        g.mul_(1 - owed)
    return _through_update(
        rule, t, u_before, i_before, owed, rate, synapse_rate, given, g, g_i, g_rate, g_synapse_rate
    )


def _through_update(
    rule: Rule,
    t: int,
    u_before: Tensor,
    i_before: Tensor | None,
    owed: Tensor,
    rate: Tensor,
    synapse_rate: Tensor,
    given: Given,
    g: Tensor,
    g_i: Tensor | None,
    g_rate: Tensor | None,
    g_synapse_rate: Tensor | None,
) -> Tensor:
    g_x = g.clone()
    if rule.update is Update.DECAY:
        kept = 1 - owed if rule.before is Before.ZERO else None
        if g_rate is not None:
            g_rate.add_(g * u_before if kept is None else g * kept * u_before)
        g.mul_(rate)
        if kept is not None:
            g.mul_(kept)
    elif rule.update is not Update.SUM:
        g_x.mul_(rate)
        g.sub_(g_x)
    if rule.synapse is Synapse.NONE:
        return g_x
    assert g_i is not None
    if given.current is not None:
        g_i.add_(given.current[t])
    if rule.synapse is Synapse.DECAY:
        g_x.add_(g_i)
        if g_synapse_rate is not None:
            assert i_before is not None
            g_synapse_rate.add_(g_x * i_before)
        g_i.copy_(synapse_rate * g_x)
    else:
        g_x.add_(g_i + synapse_rate * g_i)
        g_i.copy_(g_x)
    return g_x
