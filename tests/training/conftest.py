"""What the tests of training share."""

from __future__ import annotations

import copy
import logging
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


@pytest.fixture
def settings(tmp_path):
    """Plain settings of a training that takes a fraction of a second."""
    from nets import SETTINGS

    return copy.deepcopy(SETTINGS) | {"out": str(tmp_path / "run")}
