"""A made-up library of one neuron, for which `docs/adapters.md` writes an adapter."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ToyLIF(nn.Module):
    """Steps once per call; keeps its membrane; every neuron also hears its own last spike."""

    def __init__(self, units: int, tau: float = 10.0) -> None:
        super().__init__()
        self.tau = tau
        self.echo = nn.Parameter(torch.full((units,), 0.25))
        self.membrane: Tensor | None = None
        self.spikes: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.membrane is None or self.spikes is None:
            self.membrane = self.spikes = torch.zeros_like(x)
        before_reset = (1 - 1 / self.tau) * self.membrane + x + self.echo * self.spikes
        self.spikes = (before_reset > 1).to(x)
        self.membrane = before_reset - self.spikes
        return self.spikes
