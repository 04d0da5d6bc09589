"""Where a training went wrong: the first layer and timestep whose values are not finite.

Asked for after the fact, by running the batch again: a training step itself looks at nothing but
its loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dynvision_snn.model import TimedModel
from dynvision_snn.observation import Attachment, Listener, Observation, watchable
from dynvision_snn.presentation import Presentation


@dataclass(frozen=True, slots=True)
class Trouble:
    """The first value that is not finite, or else the largest one.

    Attributes:
        layer: dotted name of the layer, or of the parameter.
        what: ``"output"``, ``"membrane"``, ``"input"``, or ``"parameter"``.
        timestep: of the run, from 0 up, idle ones negative; None for a parameter.
        largest: the largest ``|x|`` there; NaN or infinite where it is not finite.
    """

    layer: str
    what: str
    timestep: int | None
    largest: float

    def __str__(self) -> str:
        where = "" if self.timestep is None else f" at timestep {self.timestep}"
        value = f"reaches {self.largest:.3g}" if math.isfinite(self.largest) else "is not finite"
        return f"the {self.what} of {self.layer!r} {value}{where}"


def find_trouble(model: TimedModel, images: Tensor, presentation: Presentation | None) -> Trouble:
    """Runs a batch again and looks for the first value that is not finite.

    A parameter comes first, then the images, then what the layers yield, in the order of time and,
    within a timestep, of their calls. Where all is finite: the largest value of all.

    Args:
        model: the model, with the weights with which the loss went wrong.
        images: the batch, as the model takes it.
        presentation: the schedule.
    """
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            if not bool(parameter.isfinite().all()):
                return Trouble(name, "parameter", None, _largest(parameter))
        if images.is_floating_point() and not bool(images.isfinite().all()):
            return Trouble("the images", "input", None, _largest(images))
        witness = _Witness()
        attachment = Attachment(model, witness, watchable(model))
        try:
            model(images, presentation)
        finally:
            attachment.close()
    return witness.first or witness.largest or Trouble("the loss", "output", None, math.nan)


class _Witness(Listener):
    def __init__(self) -> None:
        self.first: Trouble | None = None
        self.largest: Trouble | None = None

    def observe(self, observation: Observation) -> None:
        for what, values in (("output", observation.output), ("membrane", observation.membrane)):
            if values is None or not values.is_floating_point() or values.numel() == 0:
                continue
            size = values.flatten(1).abs().amax(1)
            bad = (~size.isfinite()).nonzero().flatten()
            if len(bad):
                t = observation.t0 + int(bad[0])
                if self.first is None or t < (self.first.timestep or 0):
                    self.first = Trouble(observation.name, what, t, float(size[bad[0]]))
            elif self.largest is None or float(size.max()) > self.largest.largest:
                t = observation.t0 + int(size.argmax())
                self.largest = Trouble(observation.name, what, t, float(size.max()))


def _largest(values: Tensor) -> float:
    return float(values.abs().max())
