"""The digits comparison: three models, trained and simulated alike on real handwritten digits.

A snnTorch, a Norse and a non-spiking GRU network of one size see scikit-learn's 8 x 8 digits
through one presentation (null input, a digit, null input), learn by one criterion, and are then
compared by accuracy, time and energy. The nets are what a user of the package writes: plain models
of their libraries (`dynvision_snn.adapters.demo_nets`), which know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dynvision_snn.adapters.demo_nets import HIDDEN_UNITS, norse_model, snntorch_model
from dynvision_snn.comparison import DEFAULT_PROFILES, Comparison, compare
from dynvision_snn.data import load_digits
from dynvision_snn.engine.choosing import EngineName
from dynvision_snn.errors import ConfigError
from dynvision_snn.losses import build_criterion
from dynvision_snn.model import TimedModel, wrap
from dynvision_snn.presentation import Presentation
from dynvision_snn.timing import nearest_steps
from dynvision_snn.training import Epoch, fit


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What the comparison can be told; times in ms.

    Attributes:
        pattern: the presentation's entries, each of which lasts its share of `duration`.
        dt: length of a timestep.
        duration: length of the presentation.
        reaction_time: from an onset to the first supervised timestep.
        energy_weight: weight of the energy loss beside the cross-entropy's 1.
        epochs: how often the training images are gone through.
        batch_size: images per training step.
        learning_rate: of Adam, falling to 0 along a cosine.
        seed: of weights and of the order of images.
        runs: how often each model is trained, with `seed` and the seeds after it.
        engine: how models are run; see `wrap`. A builder that wraps its model says so itself.
    """

    pattern: str = "0111111100"
    dt: float = 2.0
    duration: float = 80.0
    reaction_time: float = 16.0
    energy_weight: float = 0.05
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 5e-3
    seed: int = 0
    runs: int = 1
    engine: EngineName = "auto"

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("runs", self.runs)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1.")

    def presentation(self) -> Presentation:
        """The schedule that all models share."""
        return Presentation(
            self.pattern,
            self.dt,
            reaction_time=self.reaction_time,
            n_timesteps=nearest_steps(self.duration, self.dt, "duration"),
        )


class GRUClassifier(nn.Module):
    """A non-spiking recurrent network; ``[B, 1, 8, 8]`` to class scores ``[B, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRUCell(64, HIDDEN_UNITS)
        self.readout = nn.Linear(HIDDEN_UNITS, 10)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One timestep: class scores and the hidden state."""
        state = self.gru(x.flatten(1), state)
        return self.readout(state), state


NON_SPIKING = "GRU"
"""The comparison's own model that does not spike."""

BUILDERS: Mapping[str, Callable[[float], nn.Module]] = {
    "snnTorch": snntorch_model,
    "Norse": norse_model,
    NON_SPIKING: lambda dt: GRUClassifier(),
}
"""The comparison's own models by name; each is built for a dt in ms."""


def run_demo(
    builders: Mapping[str, Callable[[float], Any]],
    settings: DemoSettings,
    *,
    profiles: Sequence[str] = DEFAULT_PROFILES,
    baseline: str | None = None,
    on_epoch: Callable[[str, Epoch], None] | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Trains every model alike and compares them on the test digits.

    Each model begins from the same seed, whichever others are trained beside it.

    Args:
        builders: from a dt in ms to a model, by name.
        settings: the presentation and the training.
        profiles: hardware profiles that energies are shown for.
        baseline: the model that ratios and break-even are against; by default the GRU, if it is
            there.
        on_epoch: told of every epoch of every model.
        progress: whether a progress bar is shown; by default on a terminal.

    Raises:
        WrapError: for a model that cannot be run; the message says why.
        MissingExtraError: if scikit-learn or a model's library is not installed.
    """
    training_set, test_set = load_digits()
    models: dict[str, list[TimedModel]] = {}
    for name, build in builders.items():
        for seed in range(settings.seed, settings.seed + settings.runs):
            called = name if settings.runs == 1 else f"{name}, seed {seed}"
            report = None if on_epoch is None else partial(on_epoch, called)
            trained = _trained(build, settings, seed, training_set, report)
            models.setdefault(name, []).append(trained)
    if baseline is None and NON_SPIKING in models:
        baseline = NON_SPIKING
    return compare(
        models,
        DataLoader(test_set, 364),
        settings.presentation(),
        profiles=profiles,
        baseline=baseline,
        name="digits",
        progress=progress,
    )


def _trained(
    build: Callable[[float], Any],
    settings: DemoSettings,
    seed: int,
    training_set: Dataset[Any],
    on_epoch: Callable[[Epoch], None] | None,
) -> TimedModel:
    torch.manual_seed(seed)
    net = build(settings.dt)
    model = (
        net if isinstance(net, TimedModel) else wrap(net, dt=settings.dt, engine=settings.engine)
    )
    loader = DataLoader(
        training_set,
        settings.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )
    with build_criterion(
        [
            {"name": "cross_entropy_loss", "weight": 1.0},
            {"name": "energy_loss", "weight": settings.energy_weight},
        ],
        model=model,
    ) as criterion:
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
        fit(
            model,
            loader,
            settings.presentation(),
            criterion,
            optimizer,
            epochs=settings.epochs,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs),
            on_epoch=on_epoch,
        )
    return model
