"""Synaptic operations, or the joules of them, as a loss that silent neurons feel.

What is counted is what `dynvision_snn.energy` counts: every nonzero value that meets a nonzero
weight. Counting has no gradient, so it is given a straight-through one: each unit's event costs its
fan-out, and the gradient with respect to the unit is that fan-out whether or not it fired
(negative for values below 0). From there a neuron's surrogate gradient carries it to the membrane,
so that silent neurons near their threshold are pushed away from it, too, unlike by a norm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Adapter, Role
from dynvision_snn.energy.hardware import HardwareProfile, resolve_profile
from dynvision_snn.energy.rows import Row, output_size
from dynvision_snn.energy.survey import adapters_for, with_operations
from dynvision_snn.energy.synapses import Operator, refusal
from dynvision_snn.energy.updates import Updates
from dynvision_snn.errors import LossError
from dynvision_snn.losses.base import at_least_float32
from dynvision_snn.losses.listening import ListeningLoss
from dynvision_snn.observation import Observation


class _Events(torch.autograd.Function):
    """1 where a value is not zero; the gradient of ``|x|``, 1 at zero."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.sign().abs_()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return torch.where(values < 0, -grads[0], grads[0])


def events(values: Tensor) -> Tensor:
    """1 where `values` are not zero, differentiable straight through; float32 at least.

    >>> spikes = torch.tensor([1.0, 0.0], requires_grad=True)
    >>> events(spikes).sum().backward()
    >>> spikes.grad
    tensor([1., 1.])
    """
    counted: Tensor = _Events.apply(at_least_float32(values))
    return counted


@dataclass(slots=True)
class _Cost:
    """What one layer did since the loss was last taken.

    Attributes:
        events: operations or active updates of each sample, ``[B]``.
        possible: how many they could have been, per sample; ``[B]`` where some are padding.
        updates: neuron updates, active or not, likewise; None of synaptic operations.
        least, most: the smallest nonzero and the largest ``|x|``, 0-dim.
        spiking: whether they are active updates of a spiking layer.
    """

    events: Tensor
    possible: float | Tensor
    least: Tensor
    most: Tensor
    updates: float | Tensor | None = None
    spiking: bool = False

    def joined(self, other: _Cost) -> _Cost:
        """Both, of the same layer."""
        device = other.events.device
        return _Cost(
            self.events.to(device) + other.events,
            self.possible + other.possible,
            torch.minimum(self.least.to(device), other.least),
            torch.maximum(self.most.to(device), other.most),
            None if self.updates is None or other.updates is None else self.updates + other.updates,
            self.spiking,
        )


class SynopsLoss(ListeningLoss):
    """Synaptic operations per sample and run, or their joules, over the batch.

    All timesteps that are observed count: null input and reaction windows too, but not the idle
    timesteps of a `TimedModel` that it is registered on. With `relative`, the cost is divided by
    what it would be if every value were nonzero and every neuron active at every timestep: a number
    from 0 to 1 whose weight does not depend on the size of the model or the unit.

    In joules, a connection is priced by the profile's AC or MAC as in an `EnergyBudget`: an AC if
    every nonzero value since the loss was last taken had one magnitude. Updates and spikes of
    neurons are priced where the profile has figures. What it has no figure for is left out, as in a
    budget; whether something was, `EnergyBudget.joules` says. Static power does not depend on
    activity and is left out, too.

    Layers that cannot be counted (attention, normalisation of the data itself) are left out:
    `EnergyBudget.uncounted` names them. Average pooling and batch normalisation are taken as folded
    into the weights next to them.

    Args:
        reduction: over the batch, ``"mean"``, ``"sum"``, or ``"none"`` for ``[B]``.
        profile: a hardware profile for joules; None for synaptic operations.
        relative: whether to divide by the dense cost.
        adapters: adapters for further libraries.

    Raises:
        LossError: an unknown reduction.
        EnergyError: an unknown profile, or one on which activity does not change the cost.

    >>> import torch
    >>> net = torch.nn.Linear(3, 2)
    >>> loss = SynopsLoss(relative=False)
    >>> loss.register_hooks(net)
    >>> _ = net(torch.tensor([[1.0, 0.0, 1.0]]))
    >>> loss(None, None)
    tensor(4.)
    >>> loss.remove_hooks()
    """

    hears_synapses: ClassVar[bool] = True

    profile: HardwareProfile | None
    relative: bool

    def __init__(
        self,
        reduction: str = "mean",
        profile: str | HardwareProfile | dict[str, Any] | None = None,
        relative: bool = True,
        adapters: Iterable[Adapter] = (),
    ) -> None:
        super().__init__(reduction)
        self.profile = None if profile is None else resolve_profile(profile)
        self.relative = relative
        self._adapters = tuple(adapters)
        self._rows: dict[str, Row] = {}
        if self.profile is not None and not self.profile.event_driven:
            raise LossError(
                f"On {self.profile.name!r} every synapse costs the same at every timestep, so "
                "activity does not change the joules. Choose an event-driven profile, or "
                "profile=None for synaptic operations."
            )

    def register_hooks(self, model: nn.Module, *, sequence: bool = False) -> None:
        """Starts to observe `model`.

        Args:
            model: any module: a `TimedModel`, a module that holds one, or a bare net in any loop.
            sequence: in a bare loop, whether Linear and Conv layers receive whole sequences,
                ``[T, B, ...]``. Neuron layers are known, and so is a TimedModel.

        Raises:
            LossError: if hooks are registered already, or nothing has synapses.
            AdapterError: for a neuron that is unknown or cannot be served.
        """
        self._check_free()
        chosen = [
            item
            for item in with_operations(model, adapters_for(model, self._adapters))
            if (refusal(item.module) is None if item.layer is None else item.layer.is_stateful)
        ]
        if not chosen:
            raise LossError(
                f"SynopsLoss found no layer with synapses in {type(model).__name__}. Expected "
                "Linear or Conv layers, or neurons with weights inside."
            )
        self._rows = {}
        self._attach(model, chosen, sequence=sequence)

    def reset(self) -> None:
        """Forgets what was observed since the loss was last taken."""
        super().reset()
        self._costs: dict[str, _Cost] = {}

    def _fresh(self) -> dict[str, Any]:
        return super()._fresh() | {"_costs": {}, "_rows": {}}

    # -- observing --------------------------------------------------------------------------------

    def observe(self, observation: Observation) -> None:
        """Adds the cost of one observation."""
        self._check_recomputed(observation)
        layer, output = observation.layer, observation.output
        if layer is None:
            self._add_synapses(observation, "", observation.module, observation.inputs)
            return
        if output is not None and self.profile is not None:
            outputs, neurons = Updates.of(observation, output)
            outputs, steps = observation.without_padding(outputs), observation.n_active
            active = events(outputs).reshape(*outputs.shape[:2], -1)
            cost = _cost(
                outputs,
                active.sum((0, 2)),
                steps * active.shape[2],
                updates=steps * neurons,
                spiking=layer.traits.role is Role.SPIKING,
            )
            self._add(observation, "", cost)
        inner = layer.adapter.synapses(observation.module) if observation.presynaptic else ()
        for synapses, values in zip(inner, observation.presynaptic, strict=True):
            self._add_synapses(
                observation,
                f".{synapses.name}",
                synapses.operator,
                values,
                diagonal=synapses.form == "diagonal",
            )

    def _add_synapses(
        self,
        observation: Observation,
        suffix: str,
        operator: Operator,
        values: Tensor | None,
        *,
        diagonal: bool = False,
    ) -> None:
        name = f"{observation.name}{suffix}"
        row = self._rows.get(name)
        if row is None:
            row = self._rows[name] = Row(name, type(observation.module).__name__, diagonal=diagonal)
        if values is None:
            if observation.output is None:
                return
            nothing = observation.output.new_zeros(observation.output.shape[1])
            dense = row.dense_of_silence(observation, operator) * observation.n_active
            self._add(observation, suffix, _cost(nothing, nothing, dense))
            return
        values = observation.without_padding(values)
        fan_out = row.fan_out(
            operator, values.shape[2:], values.device, output_size(operator, observation.output)
        )
        fired = events(values).reshape(*values.shape[:2], -1)
        operations = (fired @ fan_out.to(fired.dtype).flatten()).sum(0)
        dense = row.dense_now * observation.n_active
        self._add(observation, suffix, _cost(values, operations, dense))

    def _add(self, observation: Observation, suffix: str, cost: _Cost) -> None:
        if observation.recomputed:
            return
        self._check_same_accumulation(observation.name, len(cost.events))
        name = f"{observation.name}{suffix}"
        known = self._costs.get(name)
        self._costs[name] = cost if known is None else known.joined(cost)

    # -- the loss ---------------------------------------------------------------------------------

    def compute_loss(self, outputs: Any = None, targets: Any = None) -> Tensor:
        """The cost of each sample, ``[B]``; empties the accumulators.

        Raises:
            LossError: without hooks, or without an observed call.
        """
        self._check_attached()
        if not self._costs:
            raise LossError(
                "SynopsLoss observed no call since it was last taken. Run the model that its hooks "
                f"are on before taking the loss (observed: {', '.join(self.monitored)})."
            )
        costs = list(self._costs.values())
        self._take()
        for row in self._rows.values():
            row.drop_run()
        device = costs[0].events.device
        taken = [self._priced(cost) for cost in costs]
        total = torch.stack([cost.to(device) for cost, _ in taken]).sum(0)
        if not self.relative:
            return total
        dense = torch.stack([most.to(device) for _, most in taken]).sum(0)
        # A chunk may hold nothing of a sample but its padding, which costs nothing.
        return total / torch.where(dense == 0, 1, dense)

    def _priced(self, cost: _Cost) -> tuple[Tensor, Tensor]:
        """The cost of each sample, and what it would be if everything were active."""
        possible = torch.as_tensor(cost.possible).to(cost.events, non_blocking=True)
        if self.profile is None:
            return cost.events, possible
        figures = {term: figure or 0.0 for term, figure in self.profile.energies.items()}
        if cost.updates is not None:
            active, idle = figures["neuron_update_active"], figures["neuron_update_inactive"]
            sent = figures["spike"] * cost.spiking
            updates = torch.as_tensor(cost.updates).to(cost.events, non_blocking=True)
            fired, all_idle = active - idle + sent, updates * idle
            return cost.events * fired + all_idle, possible * fired + all_idle
        carries_spikes = (cost.most == 0) | (cost.least == cost.most)
        price = torch.where(carries_spikes, figures["ac"], figures["mac"]).to(cost.events)
        return cost.events * price, possible * price

    def extra_repr(self) -> str:
        """The arguments, as the module prints them."""
        unit = "synops" if self.profile is None else self.profile.name
        return f"reduction={self.reduction!r}, {unit}, relative={self.relative}"


@torch.no_grad()
def _magnitudes(values: Tensor) -> tuple[Tensor, Tensor]:
    # Not narrower than the values: two that differ in float64 alone make a connection analog.
    size = at_least_float32(values.detach().abs().flatten())
    return torch.threshold(size, 0.0, torch.inf).amin(), size.amax()


def _cost(
    values: Tensor,
    counted: Tensor,
    possible: float | Tensor,
    *,
    updates: float | Tensor | None = None,
    spiking: bool = False,
) -> _Cost:
    return _Cost(counted, possible, *_magnitudes(values), updates, spiking)
