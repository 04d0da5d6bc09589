"""Scans as autograd functions: one node in the graph for all of a neuron's timesteps.

A neuron without recurrence keeps its input alone (one row for each distinct input) and computes the
forward again on the way back. A recurrent one, whose timesteps are joined by a matrix, keeps its
spikes and its membranes before the reset; or in place of these its input and its state at the start
of each stretch of timesteps, from which the way back runs that stretch again.

Neither has a second derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from dynvision_snn.adapters.scan_spec import SurrogateKind
from dynvision_snn.engine.products import weight_gradient
from dynvision_snn.engine.products.dense import times
from dynvision_snn.engine.scans.backends import Backend
from dynvision_snn.engine.scans.recursion import Recursion, stretches
from dynvision_snn.engine.scans.rule import (
    N_LEARNABLE,
    N_PARAMETERS,
    SPIKE_VALUE,
    Given,
    Rule,
    Wanted,
)
from dynvision_snn.spike_bits import note_spikes

Outputs = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor, Tensor | None]
"""Spikes, membrane and current, ``[T, lanes]`` each where asked for; the activity of each sample,
``[B]``, where asked for; last membrane and current."""


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """What a scan does that is no tensor of the graph.

    Attributes:
        rule: the neuron.
        backend: who computes it.
        index: the row of the input that each timestep shows, int64 ``[T]`` on the CPU.
        shape: ``[B, *units]``.
        spikes, membrane, current, activity: which of them are wanted.
        keeps: whether a backward may follow.
        keeps_membranes: whether a recurrent neuron's are kept for it, even where what they can be
            computed from again would be less.
    """

    rule: Rule
    backend: Backend
    index: Tensor
    shape: torch.Size
    spikes: bool
    membrane: bool
    current: bool
    activity: bool
    keeps: bool
    keeps_membranes: bool

    def mark(
        self,
        ctx: Any,
        spikes: Tensor | None,
        activity: Tensor | None,
        parameters: Sequence[Tensor],
    ) -> None:
        """Spikes without a surrogate have no gradient but that of what they are worth."""
        if spikes is None:
            return
        value = parameters[SPIKE_VALUE]
        note_spikes(spikes, value)
        if self.rule.surrogate.kind is SurrogateKind.NONE and not value.requires_grad:
            ctx.mark_non_differentiable(*(v for v in (spikes, activity) if v is not None))

    def outputs(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Memory for what is wanted."""
        size = (len(self.index), self.shape.numel())
        wanted = (self.spikes, self.membrane, self.current)
        spikes, membrane, current = (x.new_empty(size) if want else None for want in wanted)
        return spikes, membrane, current

    def emitted(self, x: Tensor) -> Tensor | None:
        """Memory for what each lane emits, where the activity is wanted; float32 at least."""
        if not self.activity:
            return None
        return x.new_zeros(self.shape.numel(), dtype=torch.promote_types(x.dtype, torch.float32))

    def activity_of(self, emitted: Tensor | None) -> Tensor | None:
        """The sum of each sample's lanes."""
        if emitted is None:
            return None
        lanes = emitted.view(self.shape[0], self.shape[1:].numel())
        return lanes.sum(1, dtype=torch.float64).to(emitted.dtype)

    def given(self, grads: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Given:
        """The gradients of the first four outputs; that of a sample's activity is every lane's."""
        *over_time, emitted = grads
        spikes, membrane, current = (None if g is None else g.contiguous() for g in over_time)
        if emitted is not None:
            lanes = emitted.view(-1, 1).expand(len(emitted), self.shape[1:].numel())
            sign = parameters[SPIKE_VALUE].sign()
            emitted = lanes.reshape(-1).to(sign.dtype) * sign
        return Given(spikes, membrane, current, emitted)

    def recursion(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, parameters: tuple[Tensor, ...]
    ) -> Recursion:
        """The forward of a recurrent neuron, its parameters on all lanes."""
        index = _at(self, x)
        return Recursion.of(self.rule, self.backend, self.shape, x, index, weight, bias, parameters)


class Scan(Function):
    """A neuron without recurrence."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, x: Tensor, u0: Tensor, i0: Tensor | None, *parameters: Tensor
    ) -> Outputs:
        """``x`` is ``[K, lanes]``, the first state ``[lanes]``; see `Outputs`."""
        ctx.set_materialize_grads(False)
        u, i = u0.clone(), None if i0 is None else i0.clone()
        spikes, membrane, current = plan.outputs(x)
        emitted = plan.emitted(x)
        plan.backend.forward(
            plan.rule,
            _at(plan, x),
            x,
            None,
            parameters,
            u,
            i,
            Wanted(spikes=spikes, membrane=membrane, current=current, emitted=emitted),
        )
        if plan.keeps:
            ctx.plan = plan
            ctx.save_for_backward(x, u0, i0, *parameters)
        activity = plan.activity_of(emitted)
        plan.mark(ctx, spikes, activity, parameters)
        return spikes, membrane, current, activity, u, i

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """Back through all timesteps at once."""
        plan: Plan = ctx.plan
        x, u0, i0, *parameters = ctx.saved_tensors
        given = plan.given(grads[:4], parameters)
        g, g_i = _state_gradients(grads[4:], u0, i0)
        learned = _learned(ctx.needs_input_grad[4:], u0)
        g_x = plan.backend.backward(
            plan.rule, _at(plan, x), x, tuple(parameters), u0, i0, given, g, g_i, learned
        )
        return None, g_x, g, g_i, *_as_parameters(learned, parameters)


class RecurrentScan(Function):
    """A neuron whose spikes come back, through a weight matrix or one to one."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        x: Tensor,
        u0: Tensor,
        i0: Tensor | None,
        z0: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *parameters: Tensor,
    ) -> Outputs:
        """`z0`: the spikes before, ``[lanes]``; a diagonal weight is ``[lanes]`` or ``[1]``."""
        ctx.set_materialize_grads(False)
        u, i = u0.clone(), None if i0 is None else i0.clone()
        spikes, membrane, current = plan.outputs(x)
        if spikes is None:
            spikes = x.new_empty(len(plan.index), u0.numel())
        emitted = plan.emitted(x)
        again = _runs_again(plan, x, i0)
        before = torch.empty_like(spikes) if plan.keeps and not again else None
        if before is not None and plan.rule.owes and membrane is None:
            membrane = torch.empty_like(spikes)
        wanted = Wanted(spikes, before, membrane, current, emitted)
        recursion = plan.recursion(x, weight, bias, _on_all_lanes(parameters, u0))
        starts: list[tuple[Tensor, Tensor | None]] = []
        z = z0
        for stretch in stretches(len(plan.index)):
            if again and stretch.start > 0:
                starts.append((u.clone(), None if i is None else i.clone()))
            recursion.run(stretch, z, u, i, wanted.at(stretch))
            z = spikes[stretch.stop - 1]
        if plan.keeps:
            ctx.plan = plan
            ctx.n_distinct = len(x)
            ctx.again = again
            kept = [x, bias, *(value for start in starts for value in start)]
            if not again:
                kept = [before, membrane if plan.rule.owes else before]
            ctx.save_for_backward(u0, i0, z0, weight, spikes, *parameters, *kept)
        activity = plan.activity_of(emitted)
        plan.mark(ctx, spikes, activity, parameters)
        return spikes, membrane if plan.membrane else None, current, activity, u, i

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """Back through one timestep after the other."""
        plan: Plan = ctx.plan
        u0, i0, z0, weight, spikes, *saved = ctx.saved_tensors
        parameters, kept = saved[:N_PARAMETERS], saved[N_PARAMETERS:]
        g_spikes = torch.zeros_like(spikes) if grads[0] is None else _copied(grads[0])
        given = plan.given((g_spikes, *grads[1:4]), parameters)
        g, g_i = _state_gradients(grads[4:], u0, i0)
        learned = _learned(ctx.needs_input_grad[7:], u0)
        # A timestep's gradient of the spikes is read before that of its input is written.
        g_x = g_spikes
        lanes = _on_all_lanes(parameters, u0)
        g_z = torch.zeros_like(z0)
        if ctx.again:
            x, bias, *states = kept
            recursion = plan.recursion(x, weight, bias, lanes)
            starts = [(u0, i0), *zip(states[::2], states[1::2], strict=True)]
            membranes = recursion.run_again(starts, z0, spikes)
        else:
            membranes = iter([(slice(0, len(spikes)), u0, *kept)])
        for stretch, u_first, before, recorded in membranes:
            step_back = plan.backend.stepper_back(
                *(plan.rule, before, recorded, lanes, u_first, given.at(stretch)),
                *(g, g_i, g_x[stretch], learned),
            )
            for t in range(stretch.stop - 1, stretch.start - 1, -1):
                step_back(t - stretch.start)
                g_z = _received(g_x[t], weight, plan.shape)
                if t > 0:
                    g_spikes[t - 1] += g_z
        g_weight = g_bias = None
        if ctx.needs_input_grad[5]:
            g_weight = _weight_gradient(g_x, spikes, z0, weight, plan.shape)
        if ctx.needs_input_grad[6]:
            g_bias = g_x.view(-1, plan.shape[-1]).sum(0)
        if ctx.n_distinct != len(g_x):
            g_distinct = g_x.new_zeros(ctx.n_distinct, g_x.shape[1])
            g_x = g_distinct.index_add_(0, _at(plan, g_x), g_x)
        return None, g_x, g, g_i, g_z, g_weight, g_bias, *_as_parameters(learned, parameters)


def _runs_again(plan: Plan, x: Tensor, i0: Tensor | None) -> bool:
    """Whether a backward is to run the forward again, for which less is kept than its membranes.

    Who listens does not matter: a checkpoint must save the same when it is run again.
    """
    if plan.keeps_membranes or not plan.keeps:
        return False
    n_membranes = 2 if plan.rule.owes else 1
    n_states = 1 if i0 is None else 2
    n_starts = len(stretches(len(plan.index))) - 1
    return len(x) + n_states * n_starts < n_membranes * len(plan.index)


def _at(plan: Plan, x: Tensor) -> Tensor:
    """The rows of `x` on its device."""
    return plan.index.to(x.device, non_blocking=True)


def _on_all_lanes(parameters: Sequence[Tensor], like: Tensor) -> tuple[Tensor, ...]:
    """The parameters repeated once, not anew at every timestep."""
    return tuple(parameter.expand(like.shape).contiguous() for parameter in parameters)


def _received(g: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of those spikes, ``[lanes]``."""
    if weight.ndim == 2:
        return times(g.view(-1, shape[-1]), weight).view(-1)
    return g * weight


def _weight_gradient(
    g_x: Tensor, spikes: Tensor, z0: Tensor, weight: Tensor, shape: torch.Size
) -> Tensor:
    if weight.ndim == 1:
        total = g_x[0] * z0
        if len(g_x) > 1:
            total += (g_x[1:] * spikes[:-1]).sum(0)
        return total if weight.numel() > 1 else total.sum().view(1)
    units = shape[-1]
    total = g_x[0].view(-1, units).t() @ z0.view(-1, units)
    return total.add_(weight_gradient(g_x[1:].view(-1, units), spikes[:-1].view(-1, units)))


def _state_gradients(
    grads: tuple[Tensor | None, ...], u0: Tensor, i0: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the last state, in memory of their own."""
    g, g_i = grads
    first = torch.zeros_like(u0) if g is None else _copied(g)
    if i0 is None:
        return first, None
    return first, torch.zeros_like(i0) if g_i is None else _copied(g_i)


def _copied(value: Tensor) -> Tensor:
    return value.clone(memory_format=torch.contiguous_format)


def _learned(needed: tuple[bool, ...], like: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(torch.zeros_like(like) if need else None for need in needed[:N_LEARNABLE])


def _as_parameters(
    learned: tuple[Tensor | None, ...], parameters: list[Tensor]
) -> list[Tensor | None]:
    """The gradients in the shapes of the parameters; None for those that cannot learn."""
    gradients: list[Tensor | None] = [
        value if value is None or parameter.numel() > 1 else value.sum().view(1)
        for value, parameter in zip(learned, parameters, strict=False)
    ]
    return gradients + [None] * (len(parameters) - len(gradients))
