"""Training to an energy budget: a penalty that finds its own weight.

The limit is a constraint, ``energy <= limit``, and the weight its Lagrange multiplier: while the
energy of a batch is above the limit the weight grows, below it the weight shrinks, never under 0.
Written for the relative violation, so that one step size serves every unit:

    v           = (energy - limit) / room
    multiplier <- max(0, multiplier + rate * v)              (dual ascent, once per batch)
    weight      = max(0, multiplier + damping * v)           (augmented Lagrangian)
    penalty     = weight * energy / room

The room is what the limit leaves to the neurons: the limit without the floor, the energy that no
training can save (`dynvision_snn.training.floor`), but at least 2 % of the limit. The damping term
is that of the method of multipliers (Hestenes 1969; Powell 1969); without it the energy swings
about its limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Adapter
from dynvision_snn.energy import EnergyBudget, HardwareProfile, Joules, resolve_profile
from dynvision_snn.energy.pricing import TERM_NAMES, unwarned
from dynvision_snn.errors import LossError, TrainingError, known_names
from dynvision_snn.losses import BaseLoss, EnergyLoss, SynopsLoss
from dynvision_snn.model import TimedModel
from dynvision_snn.presentation_batch import AnyPresentation
from dynvision_snn.training.firing import FiringRate
from dynvision_snn.training.floor import silent_budget
from dynvision_snn.training.joining import joined_mean, summed

_LEAST_ROOM = 0.02

Unit = Literal["activity", "hertz", "synops", "joules"]
UNITS: tuple[Unit, ...] = get_args(Unit)


class EnergyTarget(BaseLoss):
    """Keeps the energy of a model under a limit while it learns, by a penalty of its own weight.

    One term of a criterion, with weight 1 there. Each call in training mode takes the energy of
    the batch (of all processes' shares of it) and moves the weight; in evaluation mode the weight
    stays. Of a run in pieces, whose energy is known at its end alone, the weight moves there: its
    pieces are priced by the weight of the batch before. The multiplier is a buffer: it is saved
    with the criterion and goes on where it was.

    Args:
        limit: what the energy may be at most, per sample, in `unit`.
        unit: ``"activity"`` per unit and timestep (`EnergyLoss` with p=1); ``"hertz"``, mean rate
            of all neurons that can spike; ``"synops"``, synaptic operations; ``"joules"`` on
            `profile`.
        profile: the hardware profile, for joules.
        rate: step of the dual ascent.
        damping: of the augmented Lagrangian.
        adapters: adapters for further libraries.

    Attributes:
        energy: of the last batch, detached, 0-dim; NaN before the first.
        room: what violations are relative to; the limit, until `check_reachable` knows the floor.
        weight: the penalty's weight at the last batch, 0-dim.

    Raises:
        LossError: a limit that is not above 0, an unknown unit, or joules without a profile.
        EnergyError: an unknown profile.

    >>> target = EnergyTarget(limit=20.0, unit="hertz")
    >>> target
    EnergyTarget(limit=20 Hz)
    """

    needs_model: ClassVar[bool] = True

    multiplier: Tensor
    room: Tensor
    energy: Tensor
    weight: Tensor

    def __init__(
        self,
        limit: float,
        unit: Unit = "activity",
        profile: str | HardwareProfile | Mapping[str, Any] | None = None,
        *,
        rate: float = 0.05,
        damping: float = 0.5,
        adapters: Iterable[Adapter] = (),
    ) -> None:
        super().__init__("mean")
        if unit not in UNITS:
            raise LossError(f"EnergyTarget got unit={unit!r}. {known_names(str(unit), UNITS)}")
        for name, value in (("limit", limit), ("rate", rate), ("damping", damping)):
            least_is_open = name != "damping"
            number = isinstance(value, Real) and not isinstance(value, bool)
            if (
                not number
                or not math.isfinite(value)
                or value < 0
                or (least_is_open and value == 0)
            ):
                expected = "above 0" if least_is_open else "from 0 up"
                raise LossError(f"EnergyTarget got {name}={value!r}; expected a number {expected}.")
        if (profile is not None) != (unit == "joules"):
            raise LossError(
                f"EnergyTarget got unit={unit!r} and profile={profile!r}; expected a hardware "
                "profile for joules, such as '45nm-fp32', and none for another unit."
            )
        self.limit, self.unit = float(limit), unit
        self.profile = None if profile is None else resolve_profile(profile)
        self.rate, self.damping = float(rate), float(damping)
        self.measure = _measure(unit, self.profile, tuple(adapters))
        self.register_buffer("multiplier", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("room", torch.tensor(self.limit))
        self.register_buffer("energy", torch.full((), math.nan), persistent=False)
        self._pieces: tuple[int, Tensor | float] = (0, 0.0)

    def register_hooks(self, model: nn.Module) -> None:
        """Starts to observe `model`."""
        self.measure.register_hooks(model)

    def remove_hooks(self) -> None:
        """Gives every hook back."""
        self.measure.remove_hooks()

    def reset(self) -> None:
        """Forgets what was observed since the loss was last taken; the weight stays."""
        self.measure.reset()
        self._pieces = (0, 0.0)

    def forward(
        self,
        outputs: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        whole: Tensor | None = None,
    ) -> Tensor:
        """The penalty, reduced over the batch; see `compute_loss`.

        Args:
            outputs: not looked at.
            targets: with `whole`, those of the piece, ``[t, B]``.
            whole: where what was observed is a piece of a run, the targets of all of it,
                ``[T, B]``. The pieces must come one after the other, and all of them.

        Raises:
            LossError: as `compute_loss`; or for a piece in a unit whose pieces do not add up.
        """
        if whole is None or targets is None:
            return super().forward(outputs, targets, whole=whole)
        energies = self.measure(None, None, whole=whole)
        n_before, energy = self._pieces
        n_steps, energy = n_before + len(targets), energy + energies.detach()
        self._pieces = (n_steps, energy)
        penalty = self.apply_reduction(self.weight * energies / self.room)
        if n_steps >= len(whole):
            self._pieces = (0, 0.0)
            self._take(energy)
        return penalty

    def compute_loss(self, outputs: Any = None, targets: Any = None) -> Tensor:
        """The penalty of each sample, ``[B]``: ``weight * energy / room``."""
        energies = self.measure.compute_loss(None, None)
        self._take(energies)
        return self.weight * energies / self.room

    def _take(self, energies: Tensor) -> None:
        """The energy of each sample of a batch, ``[B]``: moves the weight, in training."""
        if self.training and torch.is_grad_enabled():
            self._move(joined_mean(energies))
        else:
            self.energy = energies.detach().mean()

    def check_reachable(
        self,
        model: TimedModel,
        images: Tensor,
        presentation: AnyPresentation,
        time_axis: int | None = None,
    ) -> None:
        """Refuses a limit below what the model costs when none of its neurons fires.

        Call it once, before training; every process must. `TimedClassifier` does.

        Args:
            model: the wrapped model.
            images: a batch as it is trained on, ``[B, *features]``.
            presentation: the schedule.
            time_axis: where the inputs have time themselves, as the model takes it.

        Raises:
            TrainingError: giving that cost; or for a profile that cannot price the model.
        """
        if self.unit not in ("synops", "joules"):
            return
        parts = self._floor(silent_budget(model, images, presentation, time_axis), images.device)
        floor = sum(parts.values())
        if self.limit < floor:
            symbol = SYMBOLS[self.unit]
            named = ", ".join(f"{part} {value:.4g}" for part, value in parts.items() if value)
            raise TrainingError(
                f"the limit of {self.limit:g} {symbol} is out of reach: a sample costs "
                f"{floor:.6g} {symbol} even if no neuron ever fires ({named}). Set a limit above "
                "that; or lower it with fewer timesteps, prune or narrow the first layer, or show "
                "the input as spikes."
            )
        self.room.fill_(max(self.limit - floor, _LEAST_ROOM * self.limit))

    def _floor(self, budget: EnergyBudget, device: torch.device) -> dict[str, float]:
        """What a silent model costs, by part, a mean over the samples of all processes."""
        total = budget.total
        parts = {"operations on the input and on analog values": total.synops_ac + total.synops_mac}
        if self.profile is not None:
            terms = _complete(budget, self.profile).terms
            parts = {TERM_NAMES.get(term, term): value for term, value in terms.items()}
        weighed = [value * budget.n_samples for value in parts.values()]
        exact = torch.tensor([*weighed, budget.n_samples], dtype=torch.float64, device=device)
        *sums, n_samples = summed(exact).tolist()
        return {part: value / n_samples for part, value in zip(parts, sums, strict=True)}

    def _move(self, energy: Tensor) -> None:
        violation = (energy - self.limit) / self.room
        self.energy = energy
        self.multiplier = (self.multiplier + self.rate * violation).clamp(min=0)
        self.weight = (self.multiplier + self.damping * violation).clamp(min=0)

    def extra_repr(self) -> str:
        """The limit, as the module prints it."""
        on = "" if self.profile is None else f" on {self.profile.name}"
        return f"limit={self.limit:g} {SYMBOLS[self.unit]}{on}"

    def __repr__(self) -> str:
        return f"EnergyTarget({self.extra_repr()})"


SYMBOLS: Mapping[Unit, str] = {
    "activity": "per unit and timestep",
    "hertz": "Hz",
    "synops": "SynOps",
    "joules": "J",
}


def _complete(budget: EnergyBudget, profile: HardwareProfile) -> Joules:
    """Joules in which no synaptic operation is left out, since a limit on the rest says nothing."""
    with unwarned():
        joules = budget.joules(profile)
    if joules.lacks_synops:
        raise TrainingError(
            f"the profile {profile.name!r} cannot price this model: {joules}. Choose a profile "
            "with a figure for them, or show the input as spikes."
        )
    return joules


def _measure(
    unit: Unit, profile: HardwareProfile | None, adapters: tuple[Adapter, ...]
) -> BaseLoss:
    """The loss whose elementwise values are the energy of each sample in `unit`."""
    if unit == "activity":
        return EnergyLoss("none", p=1, adapters=adapters)
    if unit == "hertz":
        return FiringRate("none", adapters=adapters)
    return SynopsLoss("none", profile=profile, relative=False, adapters=adapters)
