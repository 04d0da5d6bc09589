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
from nets import Stopped

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


def _check_same_end(resumed, unbroken):
    assert resumed["global_step"] == unbroken["global_step"]
    assert resumed["state_dict"].keys() == unbroken["state_dict"].keys()
    for key, value in unbroken["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key
    ours, theirs = (state["dynvision_snn"]["sums"][0]["values"] for state in (resumed, unbroken))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
    ours, theirs = (state["lr_schedulers"] for state in (resumed, unbroken))
    assert ours == theirs


@pytest.fixture
def varied(settings):
    """Everything random at once: dropout, order, presentations; a target, a scheduler."""
    settings["target"] = {"limit": 30.0, "unit": "hertz"}
    varying = {"shuffle": True, "onset_jitter": 4.0, "by_sample": True}
    settings["presentation"]["varying"] = varying
    settings["training"]["checkpoint_every"] = 2
    settings["scheduler"] = {"name": "ExponentialLR", "kwargs": {"gamma": 0.9}}
    return settings


def _unbroken(settings, tmp_path):
    whole = copy.deepcopy(settings) | {"out": str(tmp_path / "whole")}
    train(parse_config(whole), progress=False)
    return _weights(whole["out"])


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(varied, tmp_path):
    """40 samples in 5 batches an epoch, 6 to 10 timesteps each: killed in the second epoch."""
    _killed_run(varied, tmp_path, kill_at=92)
    stopped = _weights(varied["out"])
    assert 0 < stopped["global_step"] % 5 < 5
    train(parse_config(varied), resume=True, progress=False)
    _check_same_end(_weights(varied["out"]), _unbroken(varied, tmp_path))


SCHEDULERS = {
    "epoch": {"name": "ExponentialLR", "kwargs": {"gamma": 0.9}},
    "step": {"name": "ExponentialLR", "kwargs": {"gamma": 0.99}, "interval": "step"},
    "plateau": {
        "name": "ReduceLROnPlateau",
        "kwargs": {"patience": 0, "threshold": 1.0, "factor": 0.5},
    },
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("truncate", "every"), [(None, 2), (None, None), (4.0, 2)])
def test_it_does_not_matter_where_a_run_was_stopped(
    varied, tmp_path, monkeypatch, scheduler, truncate, every
):
    """Stopped again and again, in epochs and in validations."""
    varied["scheduler"] = SCHEDULERS[scheduler]
    varied["training"] |= {"truncate": truncate, "checkpoint_every": every}
    unbroken = _unbroken(varied, tmp_path)
    stops = 0
    for calls in (75, 61, 74, 23, 78, 72, 47, 83, 90, 500):
        monkeypatch.setenv("STOP_AT", str(calls))
        try:
            train(parse_config(varied), resume=True, progress=False)
        except Stopped:
            stops += 1
        else:
            break
    assert stops >= 2
    _check_same_end(_weights(varied["out"]), unbroken)
