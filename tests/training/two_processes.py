"""What each of two processes does, started by torchrun from test_distributed.py.

Arguments: a configuration, and a folder that the first process writes what it found to.
"""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from pathlib import Path

import torch
from nets import FEATURES, net
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dynvision_snn as dvs
from dynvision_snn.config import load_config, parse_config
from dynvision_snn.energy import EnergyMeter
from dynvision_snn.losses import build_criterion
from dynvision_snn.training import EnergyTarget
from dynvision_snn.training.joining import JoinedLoss, joined_budget
from dynvision_snn.training.lightning import TimedClassifier, train


class Step(nn.Module):
    """One training step as DistributedDataParallel wraps it: a module that returns a loss."""

    def __init__(self, model, criterion, presentation) -> None:
        super().__init__()
        self.model, self.criterion, self.presentation = model, criterion, presentation

    def forward(self, images, labels):
        run = self.model(images, self.presentation)
        losses = JoinedLoss(self.criterion, self.presentation.targets(labels))
        return losses(run.membrane), losses.whole()


def parts_of_a_batch():
    """Images and labels of 7 samples; 4 of 7 are supervised, 3 of them in the first part."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(7, FEATURES, generator=generator)
    return images, torch.tensor([0, 1, 2, -1, -1, 1, -1])


def step(build, images, labels, *, parallel: bool) -> dict[str, object]:
    """Loss, gradients, energy weight and budget of one step."""
    torch.manual_seed(0)
    model = dvs.wrap(build(), dt=2.0)
    presentation = dvs.Presentation("0111", dt=2.0, reaction_time=2.0)
    target = EnergyTarget(5.0, "hertz", damping=1.0)
    criterion = build_criterion(
        [
            "cross_entropy_loss",
            {"name": "energy_loss", "weight": 0.3},
            {"name": "energy_loss", "weight": 0.2, "kwargs": {"reduction": "sum"}, "label": "sum"},
            target,
        ],
        model=model,
    )
    inner = Step(model, criterion, presentation)
    outer = DistributedDataParallel(inner, broadcast_buffers=False) if parallel else inner
    with EnergyMeter(model) as meter:
        loss, joined = outer(images, labels)
    loss.backward()
    budget = joined_budget(meter)
    return {
        "total": joined.total,
        "components": {k: v.double() for k, v in joined.components.items()},
        "gradients": [p.grad for p in model.parameters()],
        "weight": target.weight,
        "budget": budget.to_dict(),
    }


def main() -> None:
    """Runs everything, and saves what was found."""
    config, folder = load_config(sys.argv[1]), Path(sys.argv[2])
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    broadcast = []
    start = TimedClassifier.on_train_start

    def noting(self) -> None:
        broadcast.append(self.trainer.model.broadcast_buffers)
        start(self)

    TimedClassifier.on_train_start = noting
    dist.init_process_group("gloo")
    images, labels = parts_of_a_batch()
    mine = slice(0, 3) if dist.get_rank() == 0 else slice(3, 7)
    found = step(lambda: net(dropout=0.0), images[mine], labels[mine], parallel=True)
    train(config, progress=False)
    chunked = config.resolved()
    chunked["training"]["truncate"] = 4.0
    train(parse_config(chunked | {"out": f"{config.out} in chunks"}), progress=False)
    if dist.get_rank() == 0:
        torch.save({"step": found, "broadcast": broadcast}, folder / "found.pt")
    # A DDP reducer that outlives its group may abort a finished process.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
