"""The energy of activity: what every unit emits, per unit, timestep and module.

This is the reference's energy, a differentiable regulariser. What a network costs in synaptic
operations and joules is counted by `dynvision_snn.energy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import Function

from dynvision_snn.adapters import Adapter, Adapters, Role
from dynvision_snn.energy.counting import ones_per_sample
from dynvision_snn.errors import LossError, known_names
from dynvision_snn.losses.listening import ListeningLoss
from dynvision_snn.observation import Observation, Watched, watchable
from dynvision_snn.spike_bits import hooked_by_others

Monitor = str | type[nn.Module] | Iterable[str | type[nn.Module]] | Callable[[str, nn.Module], bool]

# What the reference monitors; here only where nothing spikes or recurs.
_FALLBACK = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def activity(values: Tensor, p: float, active: Tensor | None = None) -> Tensor:
    """``sum_t ||a_t||_p / n_units`` of each sample.

    Args:
        values: ``[T, B, *units]``.
        p: order of the norm, from 1 up; ``math.inf`` for the maximum.
        active: bool ``[T, B]``, which timesteps are summed; all if None.

    Returns:
        ``[B]``, in float32 at least.

    >>> activity(torch.tensor([[[1.0, 0.0, 0.0, 1.0]], [[0.0, 0.0, 0.0, 1.0]]]), p=1)
    tensor([0.7500])
    """
    if p == 1 and active is None:
        return _magnitude([values])
    units = values.flatten(2) if values.ndim > 2 else values.unsqueeze(2)
    dtype = torch.promote_types(values.dtype, torch.float32)
    if p == 1:
        norms = units.abs().sum(2, dtype=dtype)
    else:
        norms = torch.linalg.vector_norm(units, ord=p, dim=2, dtype=dtype)
    if active is not None:
        norms = norms.masked_fill(~active.to(norms.device, non_blocking=True), 0)
    return norms.sum(0) / units.shape[2]


# Floats that stay in cache. Timesteps are looked at together up to so many: each by itself would
# be a node of the graph, and all of them at once would be read from memory again and again.
_CACHED = 1 << 20


def _magnitude(outputs: Sequence[Tensor]) -> Tensor:
    """``sum_t sum_u |a| / n_units`` of some ``[T, B, *units]``: ``[B]``, one node of the graph."""
    summed: Tensor = _Magnitude.apply(*outputs)
    return summed


class _Magnitude(Function):
    """What is taken of many timesteps, each of which would be a node of the graph by itself."""

    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> Tensor:
        """``[T, B, *units]`` each, to ``[B]``."""
        ctx.save_for_backward(*outputs)
        dtype = torch.promote_types(outputs[0].dtype, torch.float32)
        sums = ones_per_sample(outputs)
        ctx.are_signs = sums is not None
        if sums is None:
            sums = torch.cat(
                [
                    part.abs().reshape(*part.shape[:2], -1).sum(2, dtype=dtype)
                    for output in outputs
                    for part in _parts(output)
                ]
            ).sum(0)
        ctx.n_units = outputs[0].shape[2:].numel()
        return sums.div_(ctx.n_units).to(dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        """Differentiable itself."""
        outputs = ctx.saved_tensors
        scale = (g / ctx.n_units).to(outputs[0].dtype)
        scale = scale.view(-1, *(1,) * (outputs[0].ndim - 2))
        if torch.is_grad_enabled():
            return tuple(output.sgn() * scale for output in outputs)
        if ctx.are_signs:
            return tuple(output * scale for output in outputs)
        return tuple(_scaled_signs(output, scale) for output in outputs)


def _scaled_signs(output: Tensor, scale: Tensor) -> Tensor:
    signs = torch.empty_like(output)
    for values, out in zip(_parts(output), _parts(signs), strict=True):
        torch.sgn(values, out=out).mul_(scale)
    return signs


def _parts(values: Tensor) -> Sequence[Tensor]:
    """A few timesteps each on a CPU, all of them on another device."""
    if values.device.type != "cpu" or values.numel() <= _CACHED:
        return (values,)
    return values.split(max(1, _CACHED // values[0].numel()))


class EnergyLoss(ListeningLoss):
    """``sum_t sum_modules (||a_t||_p / n_units) / (n_modules * n_timesteps)``, over the batch.

    Forward hooks observe the monitored modules of any model in any loop; the loss is taken once per
    batch, whatever is handed to it as outputs and targets, and empties the accumulators. All
    timesteps count: null input and reaction windows too, but not the idle timesteps of a
    `TimedModel` that it is registered on. Where samples are of different lengths
    (`PresentationBatch`), each is averaged over its own timesteps.

    Monitored by default is what spikes or recurs: spikes of spiking layers, hidden outputs of
    recurrent layers; never integrators (whose output is a membrane) and never activations. A model
    with none of these gets the outputs of its Linear, Conv and ConvTranspose layers.

    The gradient of ``||spikes||_p`` is zero at silent units: the penalty quietens units that fire
    and never reaches one that does not.

    Args:
        reduction: over the batch, ``"mean"``, ``"sum"``, or ``"none"`` for ``[B]``.
        p: order of the norm, a number from 1 up.
        monitor: what is observed instead of the default: layer names, module types, or a predicate
            of name and module.
        adapters: adapters for further libraries.

    Raises:
        LossError: an unknown reduction, or a `p` that is no norm.

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Linear(3, 2, bias=False)
    >>> _ = nn.init.ones_(net.weight)
    >>> energy = EnergyLoss(reduction="mean", p=1)
    >>> energy.register_hooks(net)
    >>> for _ in range(5):
    ...     out = net(torch.ones(4, 3))
    >>> energy(None, None)
    tensor(3., grad_fn=<MeanBackward0>)
    >>> energy.remove_hooks()
    """

    hears_membranes: ClassVar[bool] = False
    hears_inputs: ClassVar[bool] = False

    @property
    def hears_activity(self) -> bool:
        """Whether the sum that a scan has made of its spikes is the norm."""
        return self.p == 1

    p: float
    monitor: Monitor | None
    _adapters: tuple[Adapter, ...]
    _energies: dict[str, Tensor]
    _waiting: dict[str, list[tuple[Tensor, int]]]
    _timesteps: dict[str, int]
    _active: dict[str, int | Tensor]

    def __init__(
        self,
        reduction: str = "mean",
        p: float = 1,
        monitor: Monitor | None = None,
        adapters: Iterable[Adapter] = (),
    ) -> None:
        super().__init__(reduction)
        if isinstance(p, bool) or not isinstance(p, Real) or not p >= 1:
            raise LossError(
                f"EnergyLoss got p={p!r}. Expected the order of a norm: a number from 1 up, "
                "such as 1 or 2."
            )
        self.p = float(p)
        self.monitor = monitor
        self._adapters = tuple(adapters)

    # -- hooks ------------------------------------------------------------------------------------

    def register_hooks(self, model: nn.Module, *, sequence: bool = False) -> None:
        """Starts to observe `model`.

        Args:
            model: any module: a `TimedModel`, a module that holds one, or a bare net in any loop.
            sequence: in a bare loop, whether Linear and Conv layers receive whole sequences,
                ``[T, B, ...]``. Neuron layers are known, and so is a TimedModel.

        Raises:
            LossError: if hooks are registered already, or there is nothing to monitor.
            AdapterError: for a neuron that is unknown or cannot be served.
        """
        self._check_free()
        modules = watchable(model, Adapters(self._adapters) if self._adapters else None)
        chosen = _monitored(modules, self.monitor)
        if not chosen:
            raise LossError(
                f"EnergyLoss found nothing to monitor in {type(model).__name__} "
                f"(monitor={self.monitor!r}). Expected layers that spike or recur, or Linear or "
                f"Conv layers. Its modules: {', '.join(w.name or '(itself)' for w in modules)}."
            )
        self._attach(model, chosen, sequence=sequence)

    def reset(self) -> None:
        """Forgets what was observed since the loss was last taken."""
        super().reset()
        self._energies = {}
        self._waiting = {}
        self._timesteps = {}
        self._active = {}

    def _fresh(self) -> dict[str, Any]:
        empty: dict[str, Any] = {"_energies": {}, "_waiting": {}, "_timesteps": {}, "_active": {}}
        return super()._fresh() | empty

    # -- observing --------------------------------------------------------------------------------

    def observe(self, observation: Observation) -> None:
        """Adds the activity of one observation."""
        if observation.output is None:
            raise LossError(
                f"EnergyLoss monitors {observation.name!r} "
                f"({type(observation.module).__name__}), whose output over time could not be read. "
                "Monitor another module (monitor=)."
            )
        self._check_recomputed(observation)
        name, output, active = observation.name, observation.output, observation.active
        summed = observation.activity if active is None else None
        if observation.recomputed:
            # Autograd must see the same operations again.
            if summed is None:
                activity(output, self.p, active)
            return
        self._check_same_accumulation(name, output.shape[1])
        if summed is not None:
            self._add(name, summed / output.shape[2:].numel())
        elif active is None and _can_wait(output):
            before = self._waiting.get(name)
            if before and _form(before[-1][0]) != _form(output):
                self._catch_up(name)
            waiting = self._waiting.setdefault(name, [])
            waiting.append((output, output._version))
            if len(waiting) * output.numel() >= _CACHED:
                self._catch_up(name)
        else:
            self._add(name, activity(output, self.p, active))
        steps = observation.t1 - observation.t0
        self._timesteps[name] = self._timesteps.get(name, 0) + steps
        self._active[name] = self._active.get(name, 0) + observation.n_active

    def _add(self, name: str, energy: Tensor) -> None:
        before = self._energies.get(name)
        self._energies[name] = energy if before is None else before.to(energy.device) + energy

    def _catch_up(self, name: str) -> None:
        """Adds the activity of outputs that waited, by one operation for all of them.

        Raises:
            LossError: if one was changed since it was observed.
        """
        waiting = self._waiting.pop(name)
        if any(output._version != version for output, version in waiting):
            self.reset()
            raise LossError(
                f"what layer {name!r} returned was changed in place before the loss was taken, so "
                "that its gradient is lost. Change a copy: x = x * mask instead of x *= mask."
            )
        outputs = [output for output, _ in waiting]
        if self.p == 1:
            self._add(name, _magnitude(outputs))
        else:
            self._add(name, activity(torch.cat(outputs), self.p))

    def forward(
        self,
        outputs: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        whole: Tensor | None = None,
    ) -> Tensor:
        """The energy since it was last taken, reduced over the batch; see `compute_loss`.

        Args:
            outputs: not looked at.
            targets: not looked at.
            whole: where the timesteps observed are a piece of a run, the targets of all of it,
                ``[T, B]``: the mean is then over its T, so that the pieces add up.

        Raises:
            LossError: as `compute_loss`, or a `whole` of fewer timesteps than were observed.
        """
        return self._mean_over_time(whole, max(self._timesteps.values(), default=0))

    def compute_loss(self, outputs: Any = None, targets: Any = None) -> Tensor:
        """The energy of each sample, ``[B]``; empties the accumulators.

        Raises:
            LossError: without hooks, without an observed timestep, if a layer that `monitor` names
                was not called, if layers were observed a different number of times, or if what one
                returned was changed in place.
        """
        self._check_attached()
        for name in list(self._waiting):
            self._catch_up(name)
        if not self._energies:
            raise LossError(
                "EnergyLoss observed no timestep since it was last taken. Run the model that its "
                f"hooks are on before taking the loss (monitored: {', '.join(self.monitored)})."
            )
        unreached = [name for name in _names(self.monitor) if name not in self._energies]
        if unreached:
            reached = ", ".join(map(repr, self._energies))
            self.reset()
            raise LossError(
                f"EnergyLoss is to monitor {', '.join(map(repr, unreached))}, which the model did "
                f"not call (it called {reached}). Leave it out of monitor=, or let the model call "
                "it as module(x), which hooks see, and not as module.forward(x)."
            )
        if len(set(self._timesteps.values())) > 1:
            counts = ", ".join(f"{name}: {count}" for name, count in self._timesteps.items())
            self.reset()
            raise LossError(
                f"these layers were observed a different number of times: {counts}. A mean over "
                "timesteps needs each once per timestep; choose layers that are with monitor=, and "
                "take the loss once per batch."
            )
        n_observed = next(iter(self._active.values()))
        energies = list(self._energies.values())
        self._take()
        device = energies[0].device
        total = torch.stack([energy.to(device) for energy in energies]).sum(0)
        if isinstance(n_observed, Tensor):
            # A chunk may hold nothing of a sample but its padding, whose sum is 0.
            n_observed = n_observed.clamp(min=1).to(device, non_blocking=True)
        return total / (len(energies) * n_observed)

    def extra_repr(self) -> str:
        """The arguments, as the module prints them."""
        p = "inf" if math.isinf(self.p) else f"{self.p:g}"
        return f"reduction={self.reduction!r}, p={p}, monitored={list(self.monitored)}"


def _can_wait(output: Tensor) -> bool:
    """Whether the output of a timestep can be looked at later, together with others.

    The graph keeps it anyway, and allows no one to change it meanwhile. What activation
    checkpointing drops must be looked at where it is computed.
    """
    return len(output) == 1 and output.requires_grad and not hooked_by_others()


def _form(output: Tensor) -> tuple[object, ...]:
    return output.shape[1:], output.dtype, output.device


def _monitored(modules: Sequence[Watched], monitor: Monitor | None) -> list[Watched]:
    if monitor is None:
        emitting = [
            w
            for w in modules
            if w.layer is not None and w.layer.traits.role in (Role.SPIKING, Role.RECURRENT)
        ]
        return emitting or [w for w in modules if isinstance(w.module, _FALLBACK)]
    if isinstance(monitor, nn.Module):
        raise _no_way_to_monitor(monitor)
    if callable(monitor) and not isinstance(monitor, type):
        return [w for w in modules if monitor(w.name, w.module)]
    wanted = [monitor] if isinstance(monitor, str | type) else list(monitor)
    for item in wanted:
        if not isinstance(item, str | type):
            raise _no_way_to_monitor(item)
    types = tuple(item for item in wanted if isinstance(item, type))
    names = {item for item in wanted if isinstance(item, str)}
    known = {w.name for w in modules}
    for name in sorted(names - known):
        raise LossError(f"monitor names no module {name!r}. {known_names(name, known)}")
    return [w for w in modules if w.name in names or isinstance(w.module, types)]


def _names(monitor: Monitor | None) -> list[str]:
    """The layers that are monitored by name."""
    if isinstance(monitor, str):
        return [monitor]
    if monitor is None or callable(monitor):
        return []
    return [item for item in monitor if isinstance(item, str)]


def _no_way_to_monitor(item: object) -> LossError:
    return LossError(
        f"monitor holds a {type(item).__name__}. Expected layer names, module types, or a "
        "predicate of name and module: monitor=['fc1'], monitor=nn.Linear, or "
        "monitor=lambda name, module: name.startswith('fc')."
    )
