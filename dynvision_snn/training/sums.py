"""What is summed over an epoch, on the device, so that nothing waits for it between steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dynvision_snn.loading import LoadedBatch
from dynvision_snn.presentation import Phase

PHASES = (Phase.NULL, Phase.REACTION, Phase.SUPERVISED)


def phase_hits(membrane: Tensor, loaded: LoadedBatch, steps: slice = slice(None)) -> Tensor:
    """Right answers and answers by phase: float64 ``[2, 3]``, columns as `PHASES`.

    An answer is about the stimulus shown, or the last one shown. Where all classes are equal none
    is right. Unlike `readout.decode` it does not look for NaN, which would wait for the device.

    Args:
        membrane: ``[t, B, classes]``.
        loaded: the batch, on the same device.
        steps: which of its timesteps these are; by default all.
    """
    membrane, answers = membrane.detach(), loaded.answers[steps]
    top, decoded = membrane.max(-1)
    counted = answers != loaded.presentation.ignore_index
    right = (decoded == answers) & (top != membrane.amin(-1)) & counted
    codes = loaded.phase_codes[steps]
    found = torch.stack([right, counted])
    return torch.stack([(found & (codes == phase)).sum((1, 2)) for phase in PHASES], 1).double()


class EpochSums:
    """Sums over the steps of one epoch; `state_dict` lets a stopped epoch go on.

    Attributes:
        values: by name, float64 tensors of any shape, summed.
        n_steps: how many steps were added.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.n_steps = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds one step."""
        self.n_steps += 1
        for name, value in values.items():
            exact = value.detach().double()
            known = self.values.get(name)
            self.values[name] = exact if known is None else known.to(exact.device) + exact

    def mean(self, name: str) -> Tensor:
        """The mean over the steps."""
        return self.values[name] / self.n_steps

    def state_dict(self) -> dict[str, object]:
        """Plain values."""
        return {"n_steps": self.n_steps, "values": dict(self.values)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, object]) -> EpochSums:
        """The sums that `state_dict` wrote."""
        sums = cls()
        n_steps, values = state["n_steps"], state["values"]
        assert isinstance(n_steps, int)
        assert isinstance(values, Mapping)
        sums.n_steps, sums.values = n_steps, dict(values)
        return sums
