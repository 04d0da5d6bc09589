"""A validation: losses, accuracy and energy over all samples of all processes.

It uses the training's criterion and leaves it as it was: no weight moves, no gradient is asked for,
and what the training last saw stays what it last saw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dynvision_snn.energy import EnergyBudget, EnergyMeter, HardwareProfile
from dynvision_snn.energy.pricing import unwarned
from dynvision_snn.errors import DataError
from dynvision_snn.loading import LoadedBatch, check_answers
from dynvision_snn.losses import Criterion, CrossEntropyLoss
from dynvision_snn.model import TimedModel
from dynvision_snn.training.joining import are_means, counts, joined_budget, rank, summed
from dynvision_snn.training.sums import phase_hits
from dynvision_snn.training.target import EnergyTarget

TOLERANCE = 0.05
"""A model whose energy is up to this share above the limit still counts as within it."""


@dataclass(frozen=True, eq=False)
class ValidationFigures:
    """What was measured.

    Attributes:
        losses: by label, unweighted.
        loss: their weighted sum.
        hits: right answers and answers by phase, see `phase_hits`.
        firing_rate: Hz; NaN where nothing can spike.
        synops, joules: per sample.
        energy: in the target's unit, by ``energy/<unit>``; empty without a target.
        violation: relative, of the target's limit; negative below it; None without a target.
        objective: higher is better; see `objective`.
    """

    losses: Mapping[str, float]
    loss: float
    hits: Tensor
    firing_rate: float
    synops: float
    joules: float
    energy: Mapping[str, float]
    violation: float | None
    objective: float

    def scalars(self) -> dict[str, float]:
        """All but the accuracies, by name."""
        return {
            "loss": self.loss,
            **{f"loss/{label}": value for label, value in self.losses.items()},
            "firing_rate": self.firing_rate,
            "synops": self.synops,
            "joules": self.joules,
            **self.energy,
            "objective": self.objective,
        }


def objective(cross_entropy: float, violation: float | None) -> float:
    """What the best checkpoint is best in; higher is better.

    Within the limit (or without one) ``exp(-cross-entropy)``, from 0 to 1; above it minus the
    relative violation. So any model within the limit is better than any above it.

    >>> objective(0.0, None), objective(9.0, violation=0.01) > objective(0.1, violation=0.5)
    (1.0, True)
    """
    if violation is not None and violation > TOLERANCE:
        return -violation
    return math.exp(-cross_entropy)


class Validation:
    """Measures batch by batch; `finish` gives the figures.

    Args:
        model: the wrapped model.
        criterion: the training's, its hooks on the model.
        every: length in ms of the pieces that each run is taken in; None for whole runs.

    Attributes:
        n_samples: measured so far.
    """

    def __init__(self, model: TimedModel, criterion: Criterion, every: float | None = None) -> None:
        self._model, self._criterion, self._every = model, criterion, every
        self.n_samples = 0
        self._meter = EnergyMeter(model)
        self._meter.__enter__()
        self._sums: Tensor | None = None
        self._hits: Tensor | None = None

    def step(self, loaded: LoadedBatch) -> None:
        """One batch, on the model's device.

        Raises:
            DataError: for a label that is no class.
        """
        self.n_samples += loaded.n_samples
        targets = loaded.targets
        whole = None if self._every is None else targets
        taken, hits = [], []
        with torch.no_grad(), _left_alone(self._criterion) as target:
            for run in loaded.runs(self._model, self._every):
                check_answers(loaded, run.membrane.shape[-1])
                values = self._criterion.values(run.membrane, targets[run.steps], whole=whole)
                taken.append(torch.stack([value.double() for value in values.values()]))
                hits.append(phase_hits(run.membrane, loaded, run.steps))
            part = counts(self._criterion, targets)
            energy = part.new_zeros(()) if target is None else target.energy.to(part)
        n_samples = part.new_tensor(float(loaded.n_samples))
        found = torch.stack(taken).sum(0).to(part)
        # The shares of a batch add up to one sum: the first process, which has one of each, counts.
        weight = part if rank() == 0 else part * are_means(self._criterion, part.device)
        step = torch.cat([found * part, weight, torch.stack([energy * n_samples, n_samples])])
        self._sums = step if self._sums is None else self._sums + step
        right = torch.stack(hits).sum(0)
        self._hits = right if self._hits is None else self._hits + right

    def finish(self, profile: HardwareProfile, device: torch.device) -> ValidationFigures:
        """The figures over all processes; every process must call it.

        Args:
            profile: that joules are for.
            device: that processes exchange tensors on.

        Raises:
            DataError: where no process saw a sample.
        """
        self._meter.__exit__(None, None, None)
        n_losses = len(self._criterion.losses)
        nothing = torch.zeros(2 * n_losses + 2, dtype=torch.float64, device=device)
        sums = summed(nothing if self._sums is None else self._sums)
        hits = summed(nothing.new_zeros(2, 3) if self._hits is None else self._hits)
        if not sums[-1]:
            raise DataError(
                "there was nothing to validate with: the validation set is empty. Give it samples, "
                "or leave it out."
            )
        budget = joined_budget(self._meter)
        weighted, weights = sums[:n_losses], sums[n_losses : 2 * n_losses]
        values = dict(zip(self._criterion.weights, _means(weighted, weights), strict=True))
        energy, violation = self._energy(float(sums[-2] / sums[-1]))
        total = budget.total
        return ValidationFigures(
            losses=values,
            loss=sum(self._criterion.weights[label] * value for label, value in values.items()),
            hits=hits,
            firing_rate=firing_rate(budget),
            synops=total.synops_ac + total.synops_mac,
            joules=logged_joules(budget, profile),
            energy=energy,
            violation=violation,
            objective=objective(self._cross_entropy(values), violation),
        )

    def _energy(self, energy: float) -> tuple[dict[str, float], float | None]:
        target = energy_target(self._criterion)
        if target is None:
            return {}, None
        return {f"energy/{target.unit}": energy}, energy / target.limit - 1

    def _cross_entropy(self, values: Mapping[str, float]) -> float:
        """Of the criterion, or its whole value where it has none."""
        found = [
            value
            for value, loss in zip(values.values(), self._criterion.losses, strict=True)
            if isinstance(loss, CrossEntropyLoss)
        ]
        return sum(found) if found else sum(values.values())


def energy_target(criterion: Criterion) -> EnergyTarget | None:
    """The energy target among a criterion's losses, if there is one."""
    return next((loss for loss in criterion.losses if isinstance(loss, EnergyTarget)), None)


@contextmanager
def _left_alone(criterion: Criterion) -> Iterator[EnergyTarget | None]:
    """Inside, the criterion is in evaluation mode; afterwards it is as it was."""
    target, components, training = (
        energy_target(criterion),
        criterion.components,
        criterion.training,
    )
    energy = None if target is None else target.energy
    criterion.eval()
    try:
        yield target
    finally:
        criterion.train(training)
        criterion.components = components
        if target is not None and energy is not None:
            target.energy = energy


def _means(weighted: Tensor, weights: Tensor) -> list[float]:
    means: list[float] = (weighted / weights.clamp(min=1e-12)).tolist()
    return means


def firing_rate(budget: EnergyBudget) -> float:
    """Hz, over the neurons that can spike; NaN where there are none."""
    rate = budget.total.firing_rate
    return math.nan if rate is None else rate


def logged_joules(budget: EnergyBudget, profile: HardwareProfile) -> float:
    """Joules, NaN where the profile leaves synaptic operations out: no lower bound is logged."""
    with unwarned():
        joules = budget.joules(profile)
    return math.nan if joules.lacks_synops else float(joules)
