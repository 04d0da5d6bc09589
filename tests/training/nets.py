"""A small network and small data, cheap to train; named by the tests' configurations."""

from __future__ import annotations

import os
import signal
from typing import Any

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn
from torch.utils.data import TensorDataset

FEATURES, CLASSES = 6, 3

# A training that takes a fraction of a second.
SETTINGS: dict[str, Any] = {
    "model": "nets:net",
    "dt": 2.0,
    "data": {"factory": "nets:data", "validation": 0.2},
    "presentation": {"pattern": "0111", "duration": 12.0, "reaction_time": 4.0},
    "criterion": [
        {"name": "cross_entropy_loss"},
        {"name": "energy_loss", "weight": 0.01},
    ],
    "optimizer": {"name": "Adam", "kwargs": {"lr": 0.01}},
    "training": {"epochs": 3, "batch_size": 8, "log_every": 2},
}


class Stopped(RuntimeError):
    """A training that was made to stop."""


class Stops(nn.Module):
    """Passes on its input; at the forward that the environment says, it ends the training.

    ``KILL_AT`` kills the whole process, ``STOP_AT`` raises.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == int(os.environ.get("KILL_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == int(os.environ.get("STOP_AT", 0)):
            raise Stopped
        return x


def net(dropout: float = 0.3) -> nn.Module:
    """A snnTorch network; dropout makes it draw random numbers in every step."""
    neuron = {"beta": 0.8, "threshold": 0.5, "init_hidden": True}
    spike_grad = surrogate.fast_sigmoid(slope=5)
    return nn.Sequential(
        Stops(),
        nn.Linear(FEATURES, 12),
        snn.Leaky(spike_grad=spike_grad, **neuron),
        nn.Dropout(dropout),
        nn.Linear(12, CLASSES),
        snn.Leaky(spike_grad=spike_grad, reset_mechanism="none", output=True, **neuron),
    )


def data(
    n_training: int = 50, n_test: int = 20, unlabelled: bool = False
) -> tuple[TensorDataset, TensorDataset]:
    """Noisy classes that can be told apart; of every seven samples two may have no label."""
    generator = torch.Generator().manual_seed(5)

    def part(n: int) -> TensorDataset:
        labels = torch.arange(n) % CLASSES
        centres = torch.eye(CLASSES, FEATURES)[labels]
        labels = torch.where(torch.arange(n) % 7 < 2 * unlabelled, -1, labels)
        return TensorDataset(centres + 0.3 * torch.rand(n, FEATURES, generator=generator), labels)

    return part(n_training), part(n_test)


def wider() -> nn.Module:
    """`net` with more neurons."""
    body = net()
    assert isinstance(body, nn.Sequential)
    body[1], body[4] = nn.Linear(FEATURES, 20), nn.Linear(20, CLASSES)
    return body
