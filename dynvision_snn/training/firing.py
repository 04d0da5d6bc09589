"""The mean firing rate as a differentiable number in Hz: what an energy limit in hertz limits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Adapter, Adapters, Role
from dynvision_snn.errors import LossError
from dynvision_snn.losses.listening import ListeningLoss
from dynvision_snn.observation import Observation, Run, watchable


def spike_count(values: Tensor) -> Tensor:
    """Spikes of each sample: nonzero values, whose gradient is that of their sum.

    So a silent neuron near its threshold feels it too, through its surrogate gradient; and a graded
    spike counts once.

    Args:
        values: ``[T, B, *units]``.

    Returns:
        ``[B]``, in float32 at least.

    >>> spikes = torch.tensor([[[0.0, 3.0]], [[3.0, 0.0]]], requires_grad=True)
    >>> spike_count(spikes)
    tensor([2.], grad_fn=<AddBackward0>)
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    total = values.sum((0, *range(2, values.ndim)), dtype=dtype)
    nonzero = values.detach().ne(0).sum((0, *range(2, values.ndim)))
    return total + (nonzero.to(dtype) - total.detach())


class FiringRate(ListeningLoss):
    """The mean rate of all neurons that can spike, over the whole run, in Hz.

    The same number as ``budget.total.firing_rate`` of an `EnergyMeter`: idle time is in neither.
    (Of samples of different lengths this is the mean of their rates, the budget's the rate over all
    of their time.) It needs a `TimedModel`, which knows how long a timestep is.

    Args:
        reduction: over the batch: ``"mean"``, ``"sum"``, or ``"none"`` for ``[B]``.
        adapters: adapters for further libraries.
    """

    _spikes: dict[str, Tensor]
    _neuron_steps: dict[str, int | Tensor]
    _dt: float | None

    def __init__(self, reduction: str = "mean", adapters: Iterable[Adapter] = ()) -> None:
        super().__init__(reduction)
        self._adapters = tuple(adapters)
        self._dt = None

    def register_hooks(self, model: nn.Module) -> None:
        """Starts to observe the spiking layers of `model`.

        Raises:
            LossError: if it observes a model already, or `model` has no spiking layer.
        """
        self._check_free()
        modules = watchable(model, Adapters(self._adapters) if self._adapters else None)
        spiking = [w for w in modules if w.layer and w.layer.traits.role is Role.SPIKING]
        if not spiking:
            raise LossError(
                f"{type(model).__name__} has no layer that spikes, so it has no firing rate. Limit "
                "its 'activity', 'synops' or 'joules' instead."
            )
        self._attach(model, spiking, sequence=False)

    def reset(self) -> None:
        """Forgets what was observed since the rate was last taken."""
        super().reset()
        self._spikes, self._neuron_steps = {}, {}

    def _fresh(self) -> dict[str, Any]:
        return super()._fresh() | {"_spikes": {}, "_neuron_steps": {}}

    def begin_run(self, run: Run) -> None:
        """A run starts a new count."""
        super().begin_run(run)
        self._dt = run.dt

    def observe(self, observation: Observation) -> None:
        """Adds the spikes of one observation."""
        output, name = observation.output, observation.name
        if output is None:
            raise LossError(f"the spikes of layer {name!r} could not be read over time.")
        self._check_recomputed(observation)
        spikes = spike_count(observation.without_padding(output))
        if observation.recomputed:
            return
        self._check_same_accumulation(name, spikes.shape[0])
        known = self._spikes.get(name)
        self._spikes[name] = spikes if known is None else known.to(spikes.device) + spikes
        steps = observation.n_active * output[0, 0].numel()
        self._neuron_steps[name] = self._neuron_steps.get(name, 0) + steps

    def forward(
        self,
        outputs: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        whole: Tensor | None = None,
    ) -> Tensor:
        """The rate since it was last taken, reduced over the batch; see `compute_loss`.

        Args:
            outputs: not looked at.
            targets: not looked at.
            whole: where the timesteps observed are a piece of a run, the targets of all of it,
                ``[T, B]``: the rate is then over its time, so that the pieces add up.

        Raises:
            LossError: as `compute_loss`, or a `whole` of fewer timesteps than were observed.
        """
        return self._mean_over_time(whole)

    def compute_loss(self, outputs: Any = None, targets: Any = None) -> Tensor:
        """The rate of each sample in Hz, ``[B]``; empties the count.

        Raises:
            LossError: without hooks, without an observed timestep, or outside a TimedModel.
        """
        self._check_attached()
        if not self._spikes or self._dt is None:
            raise LossError(
                "FiringRate observed no run of a TimedModel since it was last taken. Register it "
                "on one (build_criterion(..., model=model) does), and run that first."
            )
        counted = list(self._spikes.values())
        device = counted[0].device
        total = torch.stack([spikes.to(device) for spikes in counted]).sum(0)
        # A chunk may hold nothing of a sample but its padding, without spikes.
        steps = torch.as_tensor(sum(self._neuron_steps.values())).clamp(min=1)
        seconds = steps.to(device, non_blocking=True) * (self._dt * 1e-3)
        self._take()
        return total / seconds
