"""The same script says the same in every process, to the last bit: numbers, texts and files.

Sets of strings are iterated over in another order in every process (PYTHONHASHSEED), and sets of
objects by where they lie in memory; none of that may reach what is told.
"""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import json, warnings
import snntorch as snn
import torch
from torch import nn
import dynvision_snn as dvs
from dynvision_snn.losses import build_criterion
from dynvision_snn.training import fit

warnings.simplefilter("ignore")
torch.manual_seed(0)
net = nn.Sequential(
    nn.Linear(6, 9), nn.LayerNorm(9), snn.RLeaky(0.8, linear_features=9, init_hidden=True),
    nn.BatchNorm1d(9), nn.LayerNorm(9), nn.Linear(9, 3),
    snn.Leaky(0.9, init_hidden=True, output=True))
presentation = dvs.Presentation("0011110", dt=1.0, reaction_time=2.0, idle_time=3.0)
loader = [(4 * torch.rand(n, 6), torch.randint(3, (n,))) for n in (5, 2)]
for engine in ("step", "auto"):
    model = dvs.wrap(net, dt=1.0, engine=engine)
    losses = ["cross_entropy_loss", "energy_loss", "synops_loss"]
    losses += [{"name": "energy_loss", "label": "2", "kwargs": {"p": 2}}]
    with build_criterion(losses, model=model) as criterion:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        print(fit(model, loader, presentation, criterion, optimizer, epochs=1))
    print([p.grad.tolist() for p in model.parameters() if p.grad is not None])
    print(dvs.describe(model))
    comparison = dvs.compare({"a": model}, loader, presentation, progress=False)
    print(json.dumps(comparison.to_dict()), comparison, comparison.rows())
    budget = comparison.runs["a"][0].budget
    print(budget, budget.explain("45nm-fp32", "loihi"))
"""


def said(hash_seed: int) -> str:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def test_two_processes_say_the_same():
    first, second = (said(seed) for seed in (1, 2))
    assert "synops_weighted" in first
    assert first == second
