"""The signs of a healthy or troubled training, each with its figure and a way out.

`EpochFigures` are what an epoch showed; `signs` judges a history of them. Both are plain values, so
that any training loop can use them; `LayerProbe` takes the figures of the layers from one batch.
The reference's signs (docs/reference.md) come with its own limits, as defaults of `Limits`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from dynvision_snn.adapters import Role
from dynvision_snn.model import TimedModel
from dynvision_snn.observation import Attachment, Listener, Observation, Run, watchable


@dataclass(frozen=True, kw_only=True)
class Limits:
    """From where on something is a warning sign.

    Attributes:
        activity: raw energy (`EnergyLoss`), per unit and timestep. 1 from the reference.
        activation: largest value of an analog layer. 10 from the reference.
        share: the weighted energy's share of the loss. 5 % from the reference.
        rate: mean firing rate of a layer in Hz. Cortical neurons seldom fire above 200 Hz.
        saturation: share of a layer's neurons that spike at nearly every timestep (9 of 10).
        silence: share of a layer's neurons that never spike in a batch.
        gradient: a layer's gradient norm over the largest layer's.
        window: epochs over which a trend is judged.
        plateau: growth over the window from which on energy counts as growing.
    """

    activity: float = 1.0
    activation: float = 10.0
    share: float = 0.05
    rate: float = 200.0
    saturation: float = 0.1
    silence: float = 0.9
    gradient: float = 1e-4
    window: int = 5
    plateau: float = 0.1


@dataclass(frozen=True, kw_only=True)
class LayerFigures:
    """What one layer did with one batch.

    Attributes:
        role: what its output is.
        rate: mean firing rate in Hz; None where it does not spike.
        silent: share of its neurons that did not spike; None likewise.
        saturated: share of its neurons that spiked at 9 of 10 timesteps or more; None likewise.
        largest: largest ``|output|``.
    """

    role: Role
    rate: float | None
    silent: float | None
    saturated: float | None
    largest: float


@dataclass(frozen=True, kw_only=True)
class EpochFigures:
    """What one epoch showed.

    Attributes:
        cross_entropy: mean over the epoch, unweighted.
        weighted_cross_entropy: what it adds to the loss.
        energy: raw activity (`EnergyLoss`), the same mean; None where nobody measures it.
        weighted_energy: what the energy terms add to the loss.
        supervised_steps: supervised timesteps per sample, mean over the epoch's presentations.
        layers: by name, of one batch.
        gradients: norms of the gradients by module with parameters, of one batch.
    """

    cross_entropy: float
    weighted_cross_entropy: float
    energy: float | None = None
    weighted_energy: float = 0.0
    supervised_steps: float = 1.0
    layers: Mapping[str, LayerFigures] = field(default_factory=dict)
    gradients: Mapping[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The weighted energy's share of the loss; NaN where the loss is 0."""
        total = self.weighted_energy + self.weighted_cross_entropy
        return self.weighted_energy / total if total > 0 else math.nan


@dataclass(frozen=True, slots=True)
class Sign:
    """One finding.

    Attributes:
        name: short and stable: ``"energy share"``.
        healthy: whether it is as it should be.
        figure: what was found, with its unit and the limit.
        way_out: what to do; empty for a healthy sign.
    """

    name: str
    healthy: bool
    figure: str
    way_out: str = ""

    def __str__(self) -> str:
        mark = "healthy" if self.healthy else "warning"
        return f"{mark}: {self.name}: {self.figure}" + (f". {self.way_out}" if self.way_out else "")


def signs(history: Sequence[EpochFigures], limits: Limits | None = None) -> list[Sign]:
    """What a training shows so far, the last epoch counting.

    Args:
        history: the epochs, oldest first; at least one.
        limits: from where on something is a warning.

    >>> healthy = [EpochFigures(cross_entropy=2.0 / n, weighted_cross_entropy=2.0 / n,
    ...                         energy=0.15, weighted_energy=0.0075) for n in (1, 2, 3, 4)]
    >>> [str(sign) for sign in signs(healthy) if not sign.healthy]
    []
    >>> heavy = EpochFigures(cross_entropy=0.1, weighted_cross_entropy=0.1, energy=2.0,
    ...                      weighted_energy=0.2)
    >>> [sign.name for sign in signs([heavy]) if not sign.healthy]
    ['raw energy', 'energy against cross-entropy', 'energy share']
    """
    limits = limits or Limits()
    return [*_loss_signs(history, limits), *_layer_signs(history[-1], limits)]


def _loss_signs(history: Sequence[EpochFigures], limits: Limits) -> Iterator[Sign]:
    now = history[-1]
    if now.supervised_steps == 0:
        yield Sign(
            "supervision",
            False,
            "no timestep was supervised in the last epoch",
            "Show the stimulus longer than reaction_time, or shorten reaction_time",
        )
    past = history[-limits.window - 1 :]
    ce_change = _change([epoch.cross_entropy for epoch in past])
    if len(past) > 1:
        yield Sign(
            "cross-entropy",
            ce_change <= 0,
            f"{now.cross_entropy:.4g}, {ce_change:+.1%} over {len(past) - 1} epochs",
            "" if ce_change <= 0 else "Lower the learning rate, or clip the gradient",
        )
    yield from _energy_signs(past, limits)
    if not now.weighted_energy:
        return
    if now.weighted_energy > now.weighted_cross_entropy:
        yield Sign(
            "energy against cross-entropy",
            False,
            f"weighted energy {now.weighted_energy:.4g} is above the cross-entropy's "
            f"{now.weighted_cross_entropy:.4g}",
            "Lower the energy's weight (or raise its limit), or the model will be silent rather "
            "than right",
        )
    heavy = now.share > limits.share
    yield Sign(
        "energy share",
        not heavy,
        f"{now.share:.1%} of the loss (limit {limits.share:.0%})",
        "Usual once the cross-entropy is small; if accuracy suffers, lower the energy's weight or "
        "raise its limit"
        if heavy
        else "",
    )


def _energy_signs(past: Sequence[EpochFigures], limits: Limits) -> Iterator[Sign]:
    """Signs of the raw energy over a window of epochs."""
    energies = [epoch.energy for epoch in past if epoch.energy is not None]
    if not energies:
        return
    now, growth = energies[-1], _change(energies)
    ce_change = _change([epoch.cross_entropy for epoch in past])
    span = f"over {len(energies) - 1} epochs"
    if len(energies) > limits.window:
        rising = all(later > earlier for earlier, later in pairwise(energies))
        growing = rising and growth > limits.plateau
        yield Sign(
            "energy plateau",
            not growing,
            f"raw energy {now:.4g}, {growth:+.1%} {span}",
            "Raise the energy's weight, or set a limit with EnergyTarget" if growing else "",
        )
    if len(energies) > 1 and growth > 0 and ce_change > 0:
        yield Sign(
            "both losses",
            False,
            f"cross-entropy {ce_change:+.1%} and energy {growth:+.1%} {span}",
            "Training moves away: lower the learning rate, or clip the gradient",
        )
    high = now > limits.activity
    yield Sign(
        "raw energy",
        not high,
        f"{now:.4g} per unit and timestep (limit {limits.activity:g})",
        "Activity grows unbounded: raise the energy's weight, or lower the input's scale"
        if high
        else "",
    )


def _layer_signs(epoch: EpochFigures, limits: Limits) -> Iterator[Sign]:
    for name, layer in epoch.layers.items():
        if layer.role in (Role.RECURRENT, Role.ACTIVATION):
            if layer.largest > limits.activation:
                yield Sign(
                    f"activation of {name!r}",
                    False,
                    f"reaches {layer.largest:.3g} (limit {limits.activation:g})",
                    "Normalise the layer, lower the learning rate, or raise the energy's weight",
                )
            continue
        if layer.rate is None or layer.silent is None or layer.saturated is None:
            continue
        if layer.silent > limits.silence:
            yield Sign(
                f"silence of {name!r}",
                False,
                f"{layer.silent:.0%} of its neurons never spike (limit {limits.silence:.0%})",
                "Lower its threshold, scale its input up, or lower the energy loss's weight: the "
                "energy's gradient does not revive a silent neuron",
            )
        if layer.saturated > limits.saturation:
            yield Sign(
                f"saturation of {name!r}",
                False,
                f"{layer.saturated:.0%} of its neurons spike at nearly every timestep "
                f"(limit {limits.saturation:.0%})",
                "Raise its threshold, scale its input down, or raise the energy loss's weight",
            )
        if layer.rate > limits.rate:
            yield Sign(
                f"rate of {name!r}",
                False,
                f"{layer.rate:.0f} Hz (limit {limits.rate:g} Hz)",
                "Raise the energy loss's weight, or check that dt is the time you mean",
            )
    largest = max(epoch.gradients.values(), default=0.0)
    for name, norm in epoch.gradients.items():
        if norm <= limits.gradient * largest:
            yield Sign(
                f"gradient of {name!r}",
                False,
                f"{norm:.2g}, of {largest:.2g} at the largest (limit: {limits.gradient:g} of it)",
                "The surrogate gradients vanish on the way: use a wider surrogate (a lower slope "
                "or alpha), or bring the membranes closer to the threshold",
            )


def _change(values: Sequence[float]) -> float:
    """Relative change from the first to the last."""
    first, last = values[0], values[-1]
    return (last - first) / abs(first) if first else math.copysign(math.inf, last) if last else 0.0


class LayerProbe(Listener):
    """Takes the figures of a TimedModel's layers while it runs one batch.

    >>> import dynvision_snn as dvs
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> model = dvs.wrap(net, dt=1.0)
    >>> probe = LayerProbe()
    >>> with probe.on(model):
    ...     _ = model(torch.ones(4, 1, 2))
    >>> probe.figures()["1"].role
    <Role.ACTIVATION: 'activation'>
    """

    def __init__(self) -> None:
        self._dt: float | None = None
        self._layers: dict[str, _Sums] = {}

    @contextmanager
    def on(self, model: TimedModel) -> Iterator[None]:
        """Listens to `model` inside the block."""
        watched = [item for item in watchable(model) if item.layer is not None]
        attachment = Attachment(model, self, watched)
        try:
            yield
        finally:
            attachment.close()

    def begin_run(self, run: Run) -> None:
        """Each run counts alone, its chunks together: the figures are of the last one."""
        self._dt = run.dt
        if run.start == 0:
            self._layers = {}

    @torch.no_grad()
    def observe(self, observation: Observation) -> None:
        """Adds the counts of one observation."""
        if observation.recomputed or observation.output is None or observation.layer is None:
            return
        values = observation.without_padding(observation.output.detach())
        spikes = values.ne(0).sum((0, 1)) if observation.layer.traits.role is Role.SPIKING else None
        sums = self._layers.setdefault(observation.name, _Sums(observation.layer.traits.role))
        n_active = observation.n_active
        counted = n_active * values.shape[1] if isinstance(n_active, int) else n_active.sum()
        sums.add(spikes, values.abs().max(), counted)

    def figures(self) -> dict[str, LayerFigures]:
        """The figures by layer; waits for the device."""
        return {name: sums.figures(self._dt) for name, sums in self._layers.items()}


@dataclass(slots=True)
class _Sums:
    """Of one layer: spikes by neuron, its largest value, and over how many values each sums."""

    role: Role
    spikes: Tensor | None = None
    largest: Tensor | None = None
    counted: int | Tensor = 0

    def add(self, spikes: Tensor | None, largest: Tensor, counted: int | Tensor) -> None:
        self.counted += counted
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        if spikes is not None:
            self.spikes = spikes if self.spikes is None else self.spikes + spikes

    def figures(self, dt: float | None) -> LayerFigures:
        assert self.largest is not None
        rate = silent = saturated = None
        if self.spikes is not None:
            share = self.spikes.double() / self.counted
            rate = None if dt is None else float(share.mean()) / (dt * 1e-3)
            silent = float((share == 0).double().mean())
            saturated = float((share >= 0.9).double().mean())
        return LayerFigures(
            role=self.role,
            rate=rate,
            silent=silent,
            saturated=saturated,
            largest=float(self.largest),
        )


def gradient_norms(model: TimedModel) -> dict[str, float]:
    """The norm of the gradient of each module's own parameters, by the module's name.

    Modules without a gradient (frozen, or not reached by the loss) are left out. Waits for the
    device.
    """
    norms = {}
    for name, module in model.net.named_modules():
        gradients = [p.grad for p in module.parameters(recurse=False) if p.grad is not None]
        if gradients:
            norms[name] = float(torch.stack([g.double().norm() for g in gradients]).norm())
    return norms
