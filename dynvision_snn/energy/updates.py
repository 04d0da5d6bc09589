"""The neurons that one call of a layer with state updated, and what came out of them.

The two differ in number where neurons share an output, as where their membranes are pooled before
any spike: all of them are updated, and no more of them are active than there are outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynvision_snn.observation import Observation


class Updates(NamedTuple):
    """One update of each neuron, at every timestep of a call.

    Attributes:
        outputs: ``[t, B, *units]``; a nonzero one is one active update.
        neurons: neurons of each sample.
    """

    outputs: Tensor
    neurons: int

    @classmethod
    def of(cls, observation: Observation, output: Tensor) -> Updates:
        """Those of one call of a layer with state, whose output was `output`."""
        layer, received = observation.layer, observation.presynaptic
        assert layer is not None
        parts = layer.adapter.updated(observation.module, output, received)
        outputs = (
            parts[0] if len(parts) == 1 else torch.cat([part.flatten(2) for part in parts], dim=2)
        )
        return cls(outputs, layer.adapter.neurons(observation.module, outputs, received))
