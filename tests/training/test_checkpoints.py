"""Checkpoints are whole or not there, hold no code, and are compared by what is there."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys

import pytest
import torch

from dynvision_snn.config import parse_config
from dynvision_snn.errors import OutputError, TrainingError
from dynvision_snn.training.lightning import (
    AtomicCheckpointIO,
    read_checkpoint,
    simulate_checkpoint,
    train,
)
from dynvision_snn.training.lightning.checkpoints import monitored


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    path = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"state_dict": {"w": torch.ones(3)}}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # No file may grow beyond this: the write fails half way, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(OutputError, match="cannot be written"):
            io.save_checkpoint({"state_dict": {"w": torch.ones(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert torch.equal(read_checkpoint(path)["state_dict"]["w"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


WRITE = """
import sys, torch
from dynvision_snn.training.lightning import AtomicCheckpointIO
io = AtomicCheckpointIO()
print("ready", flush=True)
for n in range(10_000):
    io.save_checkpoint({"state_dict": {"n": torch.full((200_000,), float(n))}}, sys.argv[1])
"""


def test_a_kill_while_writing_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WRITE, str(path)], stdout=subprocess.PIPE
    )
    process.stdout.readline()
    while not path.exists():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    values = read_checkpoint(path)["state_dict"]["n"]
    assert bool((values == values[0]).all())


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(TrainingError, match="can be read safely"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "run").exists()


def test_missing_and_damaged_checkpoints_are_told(tmp_path):
    (tmp_path / "best.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(
        TrainingError, match=r"there is no checkpoint .*last\.ckpt\. There are: best"
    ):
        read_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(TrainingError, match="can be read safely"):
        read_checkpoint(tmp_path / "best.ckpt")
    (tmp_path / "best.ckpt").write_bytes(pickle.dumps([1]))
    with pytest.raises(TrainingError):
        read_checkpoint(tmp_path / "best.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(TrainingError, match="holds no training"):
        read_checkpoint(tmp_path / "list.ckpt")


@pytest.mark.parametrize(
    ("validated", "validate_every", "save_every", "expected"),
    [
        (True, 1, 1, ("val_loss", "min")),
        (True, 2, 1, ("train_loss", "min")),
        (True, 2, 4, ("val_loss", "min")),
        (True, 2, 3, ("train_loss", "min")),
        (False, 1, 1, ("train_loss", "min")),
    ],
)
def test_what_is_compared_falls_back_to_the_training_loss(
    validated, validate_every, save_every, expected
):
    found = monitored(
        "val_loss", "min", validated=validated, validate_every=validate_every, save_every=save_every
    )
    assert found == expected


def test_a_metric_of_the_training_needs_no_validation():
    kept = monitored("train_accuracy", "max", validated=False, validate_every=5, save_every=1)
    assert kept == ("train_accuracy", "max")


@pytest.mark.parametrize("validation", [0.2, 0.0])
def test_the_best_is_kept_where_validation_is_rare_or_absent(settings, validation):
    settings["data"]["validation"] = validation
    settings["training"]["validate_every"] = 2
    result = train(parse_config(settings), progress=False)
    state = read_checkpoint(f"{settings['out']}/{result.checkpoint}")
    (best,) = [c for name, c in state["callbacks"].items() if name.startswith("BestCheckpoint")]
    assert best["monitor"] == "train_loss"


def test_a_checkpoint_of_another_model_is_told(settings):
    train(parse_config(settings), progress=False)
    last = f"{settings['out']}/checkpoints/last.ckpt"
    other = parse_config(settings | {"model": "nets:wider"})
    with pytest.raises(
        TrainingError, match=r"is of another model: net\.1\.weight is \[12, 6\] there and \[20, 6\]"
    ):
        simulate_checkpoint(other, last, progress=False)
