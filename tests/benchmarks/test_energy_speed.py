"""What metering and the energy losses cost; run with ``pytest tests/benchmarks --benchmark-only``.

The net is 12C5-P2-64C5-P2-10 (snnTorch's tutorial), 25 timesteps, batch 128. Ratios are medians
over pairs measured in turn, so that a busy machine disturbs both sides alike, and of the fastest of
each, which tell of a quiet one; nothing passes or fails on time. With ``OMP_NUM_THREADS=1`` they
are of processor time, with more threads of time on the clock: a thread that waits for another
spins, which is processor time, too. Opening a meter and registering a loss, which is done once,
are outside of what is timed. Each test adds its ratio to pytest-benchmark's ``extra_info``
(``--benchmark-json=FILE`` writes it).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from dynvision_snn.energy import EnergyMeter
from dynvision_snn.losses import EnergyLoss, SynopsLoss

T, B = 25, 128
PAIRS = 15


class ConvNet(nn.Module):
    """12C5-P2-64C5-P2-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 12, 5), snn.Leaky(beta=0.5, init_hidden=True)
        self.conv2, self.lif2 = nn.Conv2d(12, 64, 5), snn.Leaky(beta=0.5, init_hidden=True)
        self.pool = nn.MaxPool2d(2)
        self.fc, self.lif3 = nn.Linear(64 * 16, 10), snn.Leaky(beta=0.5, init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif1(self.pool(self.conv1(x)))
        x = self.lif2(self.pool(self.conv2(x)))
        return self.lif3(self.fc(x.flatten(1)))


def run(net: nn.Module, images: Tensor, n_timesteps: int = T) -> Tensor:
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()
    spikes = torch.zeros(len(images), 10)
    for _ in range(n_timesteps):
        spikes = spikes + net(images)
    return spikes


@pytest.fixture
def net() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(B, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def seconds(function: Callable[[], Any]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    function()
    return clock() - begin


def in_turn(pairs: int, **kinds: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of each kind, one after the other, again and again; the first round is dropped."""
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(pairs + 1):
        for kind, function in kinds.items():
            times[kind].append(seconds(function))
    return {kind: found[1:] for kind, found in times.items()}


def ratio(times: dict[str, list[float]], kind: str, to: str) -> dict[str, float]:
    pairs = [a / b for a, b in zip(times[kind], times[to], strict=True)]
    return {
        "median of pairs": round(statistics.median(pairs), 3),
        "of the fastest": round(min(times[kind]) / min(times[to]), 3),
    }


@torch.no_grad()
def test_metered_forward(benchmark: Any, net: ConvNet, images: Tensor) -> None:
    """A batch in an open meter, its run closed, against the plain batch."""

    def metered() -> None:
        run(net, images)
        meter.next_run()

    times: dict[str, list[float]] = {"plain": [], "metered": []}
    for _ in range(PAIRS + 1):
        times["plain"].append(seconds(lambda: run(net, images)))
        with EnergyMeter(net) as meter:
            times["metered"].append(seconds(metered))
    times = {kind: found[1:] for kind, found in times.items()}
    benchmark.extra_info["metered / plain"] = ratio(times, "metered", "plain")
    with EnergyMeter(net) as meter:
        benchmark.pedantic(metered, rounds=3, iterations=1)


@torch.no_grad()
def test_against_neurobench(benchmark: Any, net: ConvNet, images: Tensor) -> None:
    """What each adds to the plain forward of the same net and data."""
    models = pytest.importorskip("neurobench.models")
    workload = pytest.importorskip("neurobench.metrics.workload")
    model = models.TorchModel(net)

    def theirs() -> Any:
        model.register_hooks()
        run(net, images)
        found = workload.SynapticOperations()(model, None, (images, None))
        for hook in model.connection_hooks:
            hook.close()
        model.connection_hooks.clear()
        return found

    def ours() -> Any:
        with EnergyMeter(net) as meter:
            run(net, images)
        return meter.budget(dt=1.0)

    plain = lambda: run(net, images)  # noqa: E731
    times = in_turn(PAIRS // 3, plain=plain, ours=ours, theirs=theirs)
    added = {
        kind: statistics.median(a - b for a, b in zip(times[kind], times["plain"], strict=True))
        for kind in ("ours", "theirs")
    }
    benchmark.extra_info["NeuroBench adds / the meter adds"] = round(
        added["theirs"] / added["ours"], 1
    )
    benchmark.extra_info["NeuroBench / plain"] = ratio(times, "theirs", "plain")
    total, found = ours().total, theirs()
    assert total.synops_ac == pytest.approx(found["Effective_ACs"])
    benchmark.pedantic(theirs, rounds=1, iterations=1)


@pytest.mark.parametrize("kind", [EnergyLoss, SynopsLoss])
def test_training_step(benchmark: Any, net: ConvNet, images: Tensor, kind: type) -> None:
    """Forward, backward and optimiser step, with and without the loss."""
    labels = torch.arange(B) % 10
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    criterion = kind()

    def plain() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(run(net, images), labels).backward()
        optimizer.step()

    def energy() -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(run(net, images), labels)
        (loss + 0.1 * criterion(None, None)).backward()
        optimizer.step()

    times: dict[str, list[float]] = {"plain": [], "energy": []}
    for _ in range(PAIRS + 1):
        times["plain"].append(seconds(plain))
        criterion.register_hooks(net)
        times["energy"].append(seconds(energy))
        criterion.remove_hooks()
    times = {side: found[1:] for side, found in times.items()}
    benchmark.extra_info[f"with {kind.__name__} / without"] = ratio(times, "energy", "plain")
    criterion.register_hooks(net)
    benchmark.pedantic(energy, rounds=2, iterations=1)


PEAK = """
import sys, torch
sys.path.insert(0, {folder!r})
from test_energy_speed import ConvNet, run
from dynvision_snn.energy import EnergyMeter
from dynvision_snn.energy.counting import tally
tally(torch.ones(1, 2, 2**14))  # loads the compiler, whose size depends on nothing measured
torch.manual_seed(0)
net, images = ConvNet(), torch.rand(32, 1, 28, 28)
with torch.no_grad(), EnergyMeter(net if {metered} else torch.nn.Identity()) as meter:
    for _ in range({n_batches}):
        run(net, images, {n_timesteps})
        meter.next_run()
# Not ru_maxrss, which a process inherits from the one that started it.
print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])
"""


def test_memory_is_flat(benchmark: Any) -> None:
    """Peak memory of a metered process over a plain one's, in MiB, in runs of several lengths."""

    def peak(metered: bool, n_timesteps: int, n_batches: int) -> float:
        # Freed memory goes back at once, so that what is held is measured, not gaps in the heap.
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        code = PEAK.format(
            folder=str(Path(__file__).parent),
            metered=metered,
            n_timesteps=n_timesteps,
            n_batches=n_batches,
        )
        found = [
            int(
                subprocess.run(
                    [sys.executable, "-c", code], capture_output=True, check=True, env=env
                ).stdout
            )
            for _ in range(3)
        ]
        return min(found) / 1024

    sizes = ((25, 1), (200, 1), (25, 8))
    benchmark.extra_info["MiB over plain at the peak"] = {
        f"T {n_timesteps}, {n_batches} batches": round(
            peak(True, n_timesteps, n_batches) - peak(False, n_timesteps, n_batches), 1
        )
        for n_timesteps, n_batches in sizes
    }
    benchmark.pedantic(lambda: None, rounds=1, iterations=1)
