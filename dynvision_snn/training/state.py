"""What a training keeps between steps beside weights: random numbers, an epoch's sums, a name.

It is all plain values and tensors, so that a checkpoint loads with ``weights_only=True``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from dynvision_snn.energy import EnergyMeter
from dynvision_snn.errors import TrainingError
from dynvision_snn.training.joining import rank, world_size
from dynvision_snn.training.sums import EpochSums

SCHEMA = 1
"""Version of what a checkpoint holds."""

_SHOWN = 4


class TrainingState:
    """The state of one process's training.

    Attributes:
        sums: of the epoch so far.
        n_samples: that this process saw of the epoch so far.
        meter: has measured one batch of the epoch; None before it.
        readout: the layer that is decoded; None where the model's output is.
        floor_checked: whether the energy limit was compared with what cannot be changed.
    """

    def __init__(self) -> None:
        self.begin_epoch()
        self.readout: str | None = None
        self.floor_checked = False
        self._random: Mapping[str, Any] | None = None

    def begin_epoch(self) -> None:
        """Nothing of the epoch has been seen yet."""
        self.sums = EpochSums()
        self.n_samples = 0
        self.meter: EnergyMeter | None = None

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors; every process must call it."""
        return {
            "schema": SCHEMA,
            "floor_checked": self.floor_checked,
            "n_samples": self.n_samples,
            "sums": _from_all(self.sums.state_dict()),
            "random": _from_all(random_state()),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> TrainingState:
        """The state that `state_dict` wrote, of this process.

        Raises:
            TrainingError: for another version.
        """
        if state.get("schema") != SCHEMA:
            raise TrainingError(
                f"the checkpoint is of version {state.get('schema')!r}; expected {SCHEMA}."
            )
        restored = cls()
        restored.floor_checked = state["floor_checked"]
        restored.n_samples = state["n_samples"]
        if len(state["sums"]) != world_size():
            # The random numbers of other processes are not this one's; a new count begins.
            return restored
        restored.sums = EpochSums.from_state_dict(state["sums"][rank()])
        restored._random = state["random"][rank()]
        return restored

    def restore_random_numbers(self) -> None:
        """Sets torch's generators to where they were when the checkpoint was written; once."""
        if self._random is not None:
            set_random_state(self._random)
            self._random = None


def random_state() -> dict[str, Any]:
    """The state of torch's default generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Puts back what `random_state` gave, on the devices that are there."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def check_same_model(
    saved: Mapping[str, Tensor], ours: Mapping[str, Tensor], source: str = "the checkpoint"
) -> None:
    """Refuses weights of another model, naming what differs.

    Args:
        saved: the weights in the checkpoint.
        ours: those of the model.
        source: what an error calls the checkpoint.

    Raises:
        TrainingError: if names or shapes differ.

    >>> check_same_model({"fc.weight": torch.zeros(2)}, {"fc.weight": torch.zeros(3)})
    Traceback (most recent call last):
    ...
    dynvision_snn.errors.TrainingError: the checkpoint is of another model: fc.weight is [2] there
    and [3] here. Use the configuration that it was trained with.
    """
    differences = [f"{name} is missing there" for name in ours if name not in saved]
    differences += [f"{name} is unknown here" for name in saved if name not in ours]
    differences += [
        f"{name} is {list(saved[name].shape)} there and {list(ours[name].shape)} here"
        for name in ours
        if name in saved and saved[name].shape != ours[name].shape
    ]
    if differences:
        more = len(differences) - _SHOWN
        raise TrainingError(
            f"{source} is of another model: {'; '.join(differences[:_SHOWN])}"
            f"{f'; and {more} more' if more > 0 else ''}. Use the configuration that it was "
            "trained with."
        )


def _from_all(value: dict[str, Any]) -> list[dict[str, Any]]:
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered
