"""What the tests of training share."""

from __future__ import annotations

import copy
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

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


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


@pytest.fixture
def settings(tmp_path):
    """Plain settings of a training that takes a fraction of a second."""
    return copy.deepcopy(SETTINGS) | {"out": str(tmp_path / "run")}
