"""What a training step keeps and takes with its spikes kept as floats, and as bits.

Prints the table of docs/engine.md in some minutes, the sizes of memory from a process of its own
each: what others left behind would count with it. Linux alone says the peak of a process.

Run: OMP_NUM_THREADS=2 python tests/benchmarks/kept_spikes.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import snntorch as snn
from engine_growth import give_memory_back, resident_mib, start_peak
from test_engine_scans import CASES, Case
from torch import Tensor, nn

from dynvision_snn.losses import EnergyLoss
from dynvision_snn.model import wrap
from dynvision_snn.presentation import Presentation
from dynvision_snn.spike_bits import KeepSpikes

FORMS: tuple[KeepSpikes, ...] = ("floats", "bits")
STEPS = (50, 200)


def deep() -> nn.Module:
    layers: list[nn.Module] = []
    for width in (784, 1000, 1000, 1000):
        layers += [nn.Linear(width, 1000), snn.Leaky(0.9, init_hidden=True)]
    readout = snn.Leaky(0.9, init_hidden=True, output=True)
    return nn.Sequential(*layers, nn.Linear(1000, 10), readout)


NETS = {
    "MLP 784-1000-10": CASES["MLP, constant image"],
    "MLP 784-4x1000-10": Case(deep, (784,)),
    "conv net": CASES["conv net, constant image"],
    "RLeaky 700-256-20": CASES["RLeaky 700-256-20"],
}


@dataclass(frozen=True)
class Step:
    """A training step with the energy loss, in its two halves."""

    forward: Callable[[], Tensor]
    net: nn.Module

    def __call__(self) -> None:
        self.forward().backward()
        self.net.zero_grad()


def step(name: str, steps: int, keep_spikes: KeepSpikes) -> Step:
    case = replace(NETS[name], steps=steps)
    inputs, _ = case.drawn()
    net = case.build()
    model = wrap(net, dt=1.0, engine="layer", keep_spikes=keep_spikes)
    energy = EnergyLoss()
    energy.register_hooks(model)
    shown = [Presentation("1", dt=1.0, n_timesteps=case.steps)] if case.constant else []

    def forward() -> Tensor:
        membrane = model(inputs, *shown).membrane
        return membrane.square().mean() + 0.1 * energy(None, None)

    return Step(forward, net)


def print_memory(name: str, steps: int, keep_spikes: KeepSpikes) -> None:
    """What is held between forward and backward, and the most that ever is, in MB."""
    give_memory_back()
    run = step(name, steps, keep_spikes)
    run()
    before = start_peak()
    loss = run.forward()
    kept = resident_mib("VmRSS") - before
    loss.backward()
    print(kept * 1.048576, (resident_mib("VmHWM") - before) * 1.048576)


def memory(*case: object) -> tuple[float, ...]:
    command = [sys.executable, "-W", "ignore", __file__, *map(str, case)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(float(number) for number in shown.split())


def times(name: str, steps: int, repeats: int) -> dict[KeepSpikes, list[float]]:
    """In ms, in turn."""
    runs = {how: step(name, steps, how) for how in FORMS}
    taken: dict[KeepSpikes, list[float]] = {how: [] for how in FORMS}
    for _ in range(repeats + 1):
        for how, run in runs.items():
            start = time.perf_counter()
            run()
            taken[how].append(1e3 * (time.perf_counter() - start))
    return {how: values[1:] for how, values in taken.items()}


def row(name: str, steps: int) -> str:
    sizes = zip(*(memory(name, steps, how) for how in FORMS), strict=True)
    taken = times(name, steps, repeats=1500 // steps)
    ratios = [bits / floats for floats, bits in zip(*taken.values(), strict=True)]
    both = [*sizes, tuple(min(values) for values in taken.values())]
    columns = " | ".join(f"{floats:.1f} → {bits:.1f}" for floats, bits in both)
    return f"| {name} | {steps} | {columns} | {statistics.median(ratios):.2f} |"


def main() -> None:
    print("| net | T | kept, MB | most, MB | ms | ratio |")
    print("|---|---|---|---|---|---|")
    for name in NETS:
        for steps in STEPS:
            print(row(name, steps), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        name, steps, how = sys.argv[1:]
        print_memory(name, int(steps), FORMS[FORMS.index(how)])  # type: ignore[arg-type]
    else:
        main()
