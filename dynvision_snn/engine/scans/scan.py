"""A neuron's whole time loop in one call."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dynvision_snn.adapters.scan_spec import ScanSpec, Synapse
from dynvision_snn.engine.products import linear
from dynvision_snn.engine.scans.backends import BackendName, backend, backend_for
from dynvision_snn.engine.scans.functions import Plan, RecurrentScan, Scan
from dynvision_snn.engine.scans.rule import Rule, expanded, parameters_of
from dynvision_snn.errors import WrapError, known_names
from dynvision_snn.spike_bits import note_moved

OUTPUTS = ("spikes", "membrane", "current", "activity")
"""What a scan can give."""


@dataclass(frozen=True, eq=False, slots=True)
class Scanned:
    """What a neuron did at every timestep.

    Attributes:
        spikes: ``[T, B, *units]``; None for a neuron that never fires, or where not asked for.
        membrane: ``[T, B, *units]``, as its library records it; None where not asked for.
        current: the synapse's current, ``[T, B, *units]``; None where not asked for, or without.
        activity: ``sum |spikes|`` of each sample over timesteps and units, ``[B]``; its gradient
            reaches the spikes without a tensor of their size. None where `spikes` is, or where not
            asked for.
        state: the state after the last timestep, ``[B, *units]`` each: ``"membrane"``, and where
            the neuron has them ``"current"`` and (recurrent) ``"spikes"``.
    """

    spikes: Tensor | None
    membrane: Tensor | None
    current: Tensor | None
    activity: Tensor | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def output(self) -> Tensor:
        """What goes on to the next layer: spikes, or the membrane of one that never fires."""
        value = self.membrane if self.spikes is None else self.spikes
        assert value is not None
        return value


def scan(
    spec: ScanSpec,
    inputs: Tensor,
    *,
    index: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
    keep: Collection[str] = ("spikes",),
    keep_membranes: bool = True,
    backend_name: BackendName | None = None,
) -> Scanned:
    """Runs a neuron through all timesteps.

    Its forward is the library's own recursion, in the same order of operations; only what comes
    back through a recurrent matrix may be summed in another (over the units that spiked). The
    gradient is the library's surrogate gradient, without a second derivative.

    Args:
        spec: the neuron.
        inputs: the distinct inputs ``[K, B, *units]`` (``[K, B, features]`` with input weights).
        index: which of them each timestep shows, int64 ``[T]`` on the CPU; by default each once.
        state: a `Scanned.state` to go on from; what it does not name starts as at the first
            timestep of a run.
        keep: what is wanted, of `OUTPUTS`. The membrane of a neuron that never
            fires is its output and always kept.
        keep_membranes: whether a recurrent neuron's membranes are kept for the backward, or
            computed there again, to the last bit, where less is then kept. One without recurrence
            always computes its own again.
        backend_name: who computes it; by default the fastest one there is for the inputs.

    Raises:
        WrapError: for an unknown output; for a state or a recurrent matrix that does not fit.

    >>> from dynvision_snn.adapters.scan_spec import ScanSpec, Update
    >>> integrator = ScanSpec(Update.DECAY, rate=torch.tensor(0.5))
    >>> always = torch.zeros(3, dtype=torch.int64)
    >>> scan(integrator, torch.ones(1, 1, 1), index=always).output.ravel()
    tensor([1.0000, 1.5000, 1.7500])
    """
    for name in keep:
        if name not in OUTPUTS:
            raise WrapError(f"keep names no output {name!r}. {known_names(name, OUTPUTS)}")
    for gain in spec.gains:
        inputs = inputs * gain.to(inputs.device)
    if spec.input_weight is not None:
        received = linear(inputs.flatten(0, 1), spec.input_weight, None)
        inputs = received.unflatten(0, inputs.shape[:2])
    shape = inputs.shape[1:]
    x = inputs.reshape(inputs.shape[0], -1).contiguous()
    parameters = [expanded(value, unset, shape, x) for value, unset in parameters_of(spec)]
    u0 = _first(state, "membrane", spec.initial_membrane, shape, x)
    i0 = None if spec.synapse is Synapse.NONE else _first(state, "current", None, shape, x)
    tensors = [x, u0, i0, *parameters]
    recurrence = spec.recurrence
    if recurrence is not None:
        z0 = _first(state, "spikes", None, shape, x)
        weight = recurrence.weight
        if recurrence.diagonal:
            weight = expanded(weight, 0.0, shape, x)
        elif weight.shape != (shape[-1], shape[-1]):
            raise WrapError(
                f"the recurrent weight has shape {list(weight.shape)}; expected "
                f"{[shape[-1], shape[-1]]}, since its input has {shape[-1]} units."
            )
        tensors += [z0, weight, recurrence.bias]
    needs = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    plan = Plan(
        rule=Rule.of(spec),
        backend=backend(backend_name or backend_for(x)),
        index=torch.arange(x.shape[0]) if index is None else index,
        shape=shape,
        spikes=spec.fires and "spikes" in keep,
        membrane="membrane" in keep or not spec.fires,
        current="current" in keep and i0 is not None,
        activity=spec.fires and {"spikes", "activity"} <= set(keep),
        keeps=needs,
        keeps_membranes=keep_membranes,
    )
    if recurrence is None:
        outputs = Scan.apply(plan, x, u0, i0, *parameters)
    else:
        outputs = RecurrentScan.apply(plan, x, u0, i0, z0, weight, recurrence.bias, *parameters)
    return _scanned(spec, plan, outputs)


def fits(spec: ScanSpec, example: Tensor, state: Mapping[str, Any]) -> bool:
    """Whether a state is that of every unit, not one that a library would broadcast or promote.

    Args:
        spec: the neuron.
        example: its input at one timestep, ``[B, *units]`` (``[B, features]`` with input weights).
        state: what it is to start from; a tensor of one number is that of every unit.
    """
    weight = spec.input_weight
    units = example.shape if weight is None else (*example.shape[:-1], weight.shape[0])
    return all(
        isinstance(value, Tensor)
        and (value.ndim == 0 or (value.shape == units and value.dtype == example.dtype))
        for value in state.values()
    )


def _scanned(spec: ScanSpec, plan: Plan, outputs: tuple[Tensor | None, ...]) -> Scanned:
    *over_time, activity, u, i = outputs
    spikes, membrane, current, u, i = (
        None if value is None else value.view(*value.shape[:-1], *plan.shape)
        for value in (*over_time, u, i)
    )
    assert u is not None
    state = {"membrane": u}
    if i is not None:
        state["current"] = i
    if spec.recurrence is not None:
        assert spikes is not None
        # Not a view, which would hold on to the spikes of all timesteps.
        state["spikes"] = spikes[-1].clone()
        note_moved(state["spikes"], spikes)
    return Scanned(spikes if plan.spikes else None, membrane, current, activity, state)


def _first(
    state: Mapping[str, Tensor] | None,
    name: str,
    initial: Tensor | None,
    shape: torch.Size,
    like: Tensor,
) -> Tensor:
    """A state variable before the first timestep, ``[lanes]``."""
    if state is None or name not in state:
        value = expanded(initial, 0.0, shape, like)
        return value.expand(shape.numel()).contiguous()
    value = state[name]
    if value.ndim == 0:
        return value.to(like.device, like.dtype).expand(shape.numel()).contiguous()
    if value.shape != shape:
        raise WrapError(
            f"the state's {name} has shape {list(value.shape)}; expected {list(shape)}, the shape "
            "of one timestep's input. Start a run of another batch size without a state."
        )
    return value.to(like.device, like.dtype).reshape(-1).contiguous()
