"""Peak memory of long runs; run with ``pytest tests/benchmarks --benchmark-only``.

Each measurement is a process of its own, whose peak resident memory (``getrusage``) is taken before
and after: torch's memory is not Python's. The net is 20-64-10 of snnTorch's Leaky for simulation,
64-256-10 for truncated back-propagation. Numbers go to pytest-benchmark's ``extra_info``.

``python tests/benchmarks/test_long_runs.py simulate 100000 1000`` prints one: what to do
(``simulate``; ``stream``, keeping nothing by timestep; ``train``), timesteps of 1 ms, and ms per
chunk (0: none).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

import dynvision_snn as dvs
from dynvision_snn.decision import SoftmaxConfidence
from dynvision_snn.losses import build_criterion

LOSSES = [{"name": "cross_entropy_loss"}, {"name": "energy_loss", "weight": 0.1}]


def net(features: int, hidden: int) -> nn.Module:
    torch.manual_seed(0)
    leaky = {"beta": 0.9, "init_hidden": True, "spike_grad": surrogate.fast_sigmoid()}
    return nn.Sequential(
        nn.Linear(features, hidden),
        snn.Leaky(**leaky),
        nn.Linear(hidden, 10),
        snn.Leaky(**leaky, output=True),
    )


def simulate(n_timesteps: int, every: float, by_timestep: bool = True) -> None:
    model = dvs.wrap(net(20, 64), dt=1.0)
    batch = (torch.rand(4, 20) * 2, torch.arange(4))
    presentation = dvs.Presentation("01", 1.0, n_timesteps=n_timesteps)
    dvs.simulate(
        model,
        [batch],
        presentation,
        every=every or None,
        by_timestep=by_timestep,
        rules={"sure": SoftmaxConfidence(0.9)},
        progress=False,
    )


def stream(n_timesteps: int, every: float) -> None:
    simulate(n_timesteps, every, by_timestep=False)


def train(n_timesteps: int, every: float) -> None:
    model = dvs.wrap(net(64, 256), dt=1.0)
    images, labels = torch.rand(64, 64) * 2, torch.randint(0, 10, (64,))
    presentation = dvs.Presentation("1", 1.0, n_timesteps=n_timesteps)
    targets = presentation.targets(labels)
    with build_criterion(LOSSES, model=model) as criterion:
        for chunk in model.chunks(images, presentation, every=every or presentation.duration):
            criterion(chunk.membrane, targets[chunk.steps], whole=targets).backward()


def peak() -> float:
    """Peak resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(what: str, n_timesteps: int, every: float) -> float:
    """MiB that it takes in a process of its own, beyond a short run of the same."""
    command = [sys.executable, __file__, what, str(n_timesteps), str(every)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(shown.stdout))


@pytest.mark.benchmark(group="long runs")
def test_a_simulation_keeps_little_of_a_timestep(benchmark: Any) -> None:
    """What is kept grows by counts, not by membranes and spikes; or does not grow at all."""
    takes = benchmark.pedantic(
        lambda: {
            f"{steps} timesteps, every {every} ms": measured("simulate", steps, every)
            for steps, every in ((5000, 0), (5000, 500), (20000, 500))
        },
        rounds=1,
    )
    takes["20000 timesteps, streamed"] = measured("stream", 20000, 500)
    benchmark.extra_info |= takes
    whole, chunked, longer, streamed = takes.values()
    assert streamed < longer
    assert chunked < whole / 3
    # As much again for four times the timesteps as the whole run takes for one.
    assert longer < whole


@pytest.mark.benchmark(group="long runs")
def test_the_graph_is_as_long_as_a_chunk(benchmark: Any) -> None:
    takes = benchmark.pedantic(
        lambda: {every: measured("train", 400, every) for every in (0, 200, 100, 50)},
        rounds=1,
    )
    benchmark.extra_info |= {f"every {every or 400} ms": mib for every, mib in takes.items()}
    assert takes[200] < 0.85 * takes[0]
    assert takes[100] < 0.7 * takes[200]
    assert takes[50] < takes[100]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run = {"simulate": simulate, "stream": stream, "train": train}[sys.argv[1]]
    length, chunk = int(sys.argv[2]), float(sys.argv[3])
    run(20, 10)
    before = peak()
    run(length, chunk)
    print(json.dumps(peak() - before))
