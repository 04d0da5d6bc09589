"""A run that was killed goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dynvision_snn.config import dump_yaml, parse_config
from dynvision_snn.training.lightning import read_checkpoint, train

RUN = """
import logging, sys, warnings
warnings.simplefilter("ignore")
from dynvision_snn.config import load_config
from dynvision_snn.training.lightning import train
train(load_config(sys.argv[1]), resume=True, progress=False)
"""


def _killed_run(settings, tmp_path, kill_at):
    """Trains in a process that kills itself at its `kill_at`-th forward."""
    config = tmp_path / "config.yaml"
    config.write_text(dump_yaml(settings))
    shown = subprocess.run(
        [sys.executable, "-c", RUN, str(config)],
        env=os.environ | {"KILL_AT": str(kill_at), "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == -signal.SIGKILL, shown.stderr


def _weights(out):
    return read_checkpoint(Path(out) / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("name", ["plain"])
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(settings, tmp_path, name):
    settings |= {
        "model": "nets:killed",
        "scheduler": {"name": "ExponentialLR", "kwargs": {"gamma": 0.9}},
        "target": {"limit": 30.0, "unit": "hertz"},
    }
    settings["presentation"]["varying"] = {"shuffle": True, "onset_jitter": 4.0}
    settings["training"]["checkpoint_every"] = 2
    # 6 timesteps, and with jitter 6 to 8 more; 5 batches an epoch, then a validation: in epoch 1.
    _killed_run(settings, tmp_path, kill_at=72)
    stopped = _weights(settings["out"])
    assert 0 < stopped["global_step"] % 5 < 5
    train(parse_config(settings), resume=True, progress=False)
    resumed = _weights(settings["out"])

    whole = copy.deepcopy(settings) | {"out": str(tmp_path / "whole")}
    train(parse_config(whole), progress=False)
    unbroken = _weights(whole["out"])
    assert resumed["global_step"] == unbroken["global_step"] == 15
    assert resumed["state_dict"].keys() == unbroken["state_dict"].keys()
    for key, value in unbroken["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key
    for key, value in unbroken["dynvision_snn"]["sums"][0]["values"].items():
        assert torch.equal(resumed["dynvision_snn"]["sums"][0]["values"][key], value), key
