"""Values that are not finite: the first layer and timestep at which a model goes wrong.

A NaN does not stay visible in a spiking network: ``nan > threshold`` is false, so that a diverged
neuron is merely silent for every layer behind it. Looking at every value waits for the device at
every timestep, so it is asked for: `dynvision_snn.wrap` takes ``check_finite=True``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dynvision_snn.errors import ObservationError
from dynvision_snn.observation import Listener, Observation
from dynvision_snn.timing import format_timestep


@dataclass(frozen=True, slots=True)
class Extreme:
    """The first value that is not finite, or else the largest one.

    Attributes:
        layer: dotted name of the layer, or of the parameter.
        what: ``"output"``, ``"membrane"``, ``"input"``, or ``"parameter"``.
        timestep: of the run, from 0 up, idle ones negative; None for a parameter.
        largest: the largest ``|x|`` there; NaN or infinite where it is not finite.
        dt: length of a timestep in ms; None where unknown.
    """

    layer: str
    what: str
    timestep: int | None
    largest: float
    dt: float | None = None

    @property
    def is_finite(self) -> bool:
        """Whether there is nothing but numbers."""
        return math.isfinite(self.largest)

    def __str__(self) -> str:
        where = "" if self.timestep is None else f" at {format_timestep(self.timestep, self.dt)}"
        value = f"reaches {self.largest:.3g}" if self.is_finite else "is not finite"
        return f"the {self.what} of {self.layer!r} {value}{where}"


def extremes(observation: Observation) -> Iterator[Extreme]:
    """The extreme of a layer's output and of its membrane, if it has them. Waits for the device."""
    for what, values in (("output", observation.output), ("membrane", observation.membrane)):
        if values is None or not values.is_floating_point() or values.numel() == 0:
            continue
        run = observation.run
        # Negative timesteps are idle; those of a chunk go on from the chunk before.
        t0 = observation.t0 + (run.start if observation.t0 >= 0 else 0)
        yield _extreme(observation.name, what, values, t0, run.dt)


def _extreme(name: str, what: str, values: Tensor, t0: int, dt: float | None) -> Extreme:
    sizes = values.detach().flatten(1).abs().amax(1)
    bad = (~sizes.isfinite()).nonzero()
    at = int(bad[0]) if len(bad) else int(sizes.argmax())
    return Extreme(name, what, t0 + at, float(sizes[at]), dt)


class FiniteCheck(Listener):
    """Stops a run at the first output or membrane that is not finite."""

    hears_idle: ClassVar[bool] = True
    hears_inputs: ClassVar[bool] = False

    def observe(self, observation: Observation) -> None:
        """Looks at one observation.

        Raises:
            ObservationError: naming layer and timestep.
        """
        for extreme in extremes(observation):
            if not extreme.is_finite:
                raise _not_finite(extreme, type(observation.module).__name__)


def check_inputs(steps: Iterable[Tensor], start: int, dt: float) -> None:
    """Refuses inputs that are not finite.

    Args:
        steps: the inputs of successive timesteps, ``[B, *features]`` each; what comes again as the
            same tensor is looked at once.
        start: the timestep of the first.
        dt: length of a timestep in ms.

    Raises:
        ObservationError: naming the timestep.
    """
    good: dict[int, Tensor] = {}  # held, so that no id is given to another tensor
    for t, step in enumerate(steps, start):
        if id(step) in good or not step.is_floating_point() or step.numel() == 0:
            continue
        good[id(step)] = step
        extreme = _extreme("the model", "input", step.unsqueeze(0), t, dt)
        if not extreme.is_finite:
            raise _not_finite(extreme, f"{list(step.shape)} at every timestep")


def check_parameters(net: nn.Module) -> None:
    """Refuses a net with a NaN among its parameters, or the statistics of a normalisation.

    Waits for the device.

    Behind a spiking layer it would be told as a net that is silent, with the accuracy of one.

    Raises:
        ObservationError: naming it.
    """
    statistics = [
        (name, value)
        for name, value in net.named_buffers()
        if name.rpartition(".")[2] in ("running_mean", "running_var")
    ]
    for name, value in (*net.named_parameters(), *statistics):
        if not is_lazy(value) and bool(value.isnan().any()):
            raise ObservationError(
                f"{name!r} holds NaN, which spiking layers hide: neurons fed "
                "with it are merely silent. Look for values in the data that are not finite, and "
                "for a learning rate that is too high; wrap(..., check_finite=True) names the "
                "first such value of a run."
            )


def _not_finite(extreme: Extreme, kind: str) -> ObservationError:
    return ObservationError(
        f"{extreme} ({kind}): {extreme.largest}. Expected finite values throughout. Look for "
        "values in the data that are not finite, for a timestep that is too long for a time "
        "constant, and for weights that have diverged (a learning rate that is too high)."
    )
