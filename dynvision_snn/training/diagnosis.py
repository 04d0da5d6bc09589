"""Where a training went wrong: the first layer and timestep whose values are not finite.

Asked for after the fact, by running the batch again: a training step itself looks at nothing but
its loss.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynvision_snn.finite import Extreme, extremes
from dynvision_snn.loading import LoadedBatch
from dynvision_snn.model import TimedModel
from dynvision_snn.observation import Attachment, Listener, Observation, watchable


def find_trouble(model: TimedModel, loaded: LoadedBatch) -> Extreme:
    """Runs a batch again and looks for the first value that is not finite.

    A parameter comes first, then the inputs, then what the layers yield, in the order of time and,
    within a timestep, of their calls. Where all is finite: the largest value of all.

    Args:
        model: the model, with the weights with which the loss went wrong.
        loaded: the batch.
    """
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            if not bool(parameter.isfinite().all()):
                return Extreme(name, "parameter", None, _largest(parameter))
        inputs = loaded.inputs
        if inputs.is_floating_point() and not bool(inputs.isfinite().all()):
            return Extreme("the inputs", "input", None, _largest(inputs))
        witness = _Witness()
        attachment = Attachment(model, witness, watchable(model))
        try:
            model(inputs, loaded.presentation, time_axis=loaded.time_axis)
        finally:
            attachment.close()
    return witness.first or witness.largest or Extreme("the loss", "output", None, math.nan)


class _Witness(Listener):
    def __init__(self) -> None:
        self.first: Extreme | None = None
        self.largest: Extreme | None = None

    def observe(self, observation: Observation) -> None:
        for extreme in extremes(observation):
            if not extreme.is_finite:
                if self.first is None or (extreme.timestep or 0) < (self.first.timestep or 0):
                    self.first = extreme
            elif self.largest is None or extreme.largest > self.largest.largest:
                self.largest = extreme


def _largest(values: Tensor) -> float:
    return float(values.abs().max())
