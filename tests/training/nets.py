"""A small network and small data, cheap to train; named by the tests' configurations."""

from __future__ import annotations

import os
import signal

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn
from torch.utils.data import TensorDataset

FEATURES, CLASSES = 6, 3


class KillsItself(nn.Module):
    """Passes on its input; at a given forward of a training the whole process is killed."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def net(dropout: float = 0.3, kill_at: int | None = None) -> nn.Module:
    """A snnTorch network; dropout makes it draw random numbers in every step."""
    neuron = {"beta": 0.8, "threshold": 0.5, "init_hidden": True}
    spike_grad = surrogate.fast_sigmoid(slope=5)
    return nn.Sequential(
        nn.Identity() if kill_at is None else KillsItself(kill_at),
        nn.Linear(FEATURES, 12),
        snn.Leaky(spike_grad=spike_grad, **neuron),
        nn.Dropout(dropout),
        nn.Linear(12, CLASSES),
        snn.Leaky(spike_grad=spike_grad, reset_mechanism="none", output=True, **neuron),
    )


def killed(dropout: float = 0.3) -> nn.Module:
    """`net`, which ends its process at the forward that the environment says."""
    at = os.environ.get("KILL_AT")
    return net(dropout, None if at is None else int(at))


def data(n_training: int = 50, n_test: int = 20) -> tuple[TensorDataset, TensorDataset]:
    """Noisy classes that can be told apart."""
    generator = torch.Generator().manual_seed(5)

    def part(n: int) -> TensorDataset:
        labels = torch.arange(n) % CLASSES
        centres = torch.eye(CLASSES, FEATURES)[labels]
        return TensorDataset(centres + 0.3 * torch.rand(n, FEATURES, generator=generator), labels)

    return part(n_training), part(n_test)
