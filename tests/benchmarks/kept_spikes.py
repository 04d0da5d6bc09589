"""What a training step keeps and takes: its spikes as floats and as bits, membranes kept or not.

Prints the two tables of docs/engine.md in some minutes, the sizes of memory from a process of its
own each: what others left behind would count with it. Linux alone says the peak of a process.

Run: OMP_NUM_THREADS=2 python tests/benchmarks/kept_spikes.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import snntorch as snn
from engine_growth import give_memory_back, resident_mib, start_peak
from test_engine_scans import CASES, Case, Recurrent, norse_recurrent
from torch import Tensor, nn

from dynvision_snn.losses import EnergyLoss
from dynvision_snn.model import wrap
from dynvision_snn.presentation import Presentation

FORMS: dict[str, dict[str, Any]] = {
    "all": {},
    "bits": {"keep_spikes": "bits"},
    "no membranes": {"keep_membranes": False},
    "bits, no membranes": {"keep_spikes": "bits", "keep_membranes": False},
}
STEPS = (50, 200)


def deep() -> nn.Module:
    layers: list[nn.Module] = []
    for width in (784, 1000, 1000, 1000):
        layers += [nn.Linear(width, 1000), snn.Leaky(0.9, init_hidden=True)]
    readout = snn.Leaky(0.9, init_hidden=True, output=True)
    return nn.Sequential(*layers, nn.Linear(1000, 10), readout)


def recurrent(**options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        net = Recurrent()
        net.rec = snn.RLeaky(0.9, init_hidden=True, **options)
        return net

    return build


NETS = {
    "MLP 784-1000-10": CASES["MLP, constant image"],
    "MLP 784-4x1000-10": Case(deep, (784,)),
    "conv net": CASES["conv net, constant image"],
    "RLeaky 700-256-20": CASES["RLeaky 700-256-20"],
}
RECURRENT = {
    "RLeaky, constant image": Case(Recurrent, (700,)),
    "LIFRecurrent, constant image": Case(norse_recurrent, (700,)),
    "RLeaky one to one, constant image": Case(recurrent(all_to_all=False), (700,)),
    "RLeaky, new input": CASES["RLeaky 700-256-20"],
    "the same, `reset_delay=False`": replace(
        CASES["RLeaky 700-256-20"], build=recurrent(linear_features=256, reset_delay=False)
    ),
}


@dataclass(frozen=True)
class Step:
    """A training step with the energy loss, in its two halves."""

    forward: Callable[[], Tensor]
    net: nn.Module

    def __call__(self) -> None:
        self.forward().backward()
        self.net.zero_grad()


def step(name: str, steps: int, form: str) -> Step:
    case = replace((NETS | RECURRENT)[name], steps=steps)
    inputs, _ = case.drawn()
    net = case.build()
    model = wrap(net, dt=1.0, engine="layer", **FORMS[form])
    energy = EnergyLoss()
    energy.register_hooks(model)
    shown = [Presentation("1", dt=1.0, n_timesteps=case.steps)] if case.constant else []

    def forward() -> Tensor:
        membrane = model(inputs, *shown).membrane
        return membrane.square().mean() + 0.1 * energy(None, None)

    return Step(forward, net)


def print_memory(name: str, steps: int, form: str) -> None:
    """What is held between forward and backward, and the most that ever is, in MB."""
    give_memory_back()
    run = step(name, steps, form)
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


def times(name: str, steps: int, forms: Sequence[str], repeats: int) -> list[list[float]]:
    """In ms, of each form, in turn."""
    runs = [step(name, steps, form) for form in forms]
    taken: list[list[float]] = [[] for _ in forms]
    for _ in range(repeats + 1):
        for run, values in zip(runs, taken, strict=True):
            start = time.perf_counter()
            run()
            values.append(1e3 * (time.perf_counter() - start))
    return [values[1:] for values in taken]


def row(name: str, steps: int, forms: Sequence[str]) -> str:
    sizes = zip(*(memory(name, steps, form) for form in forms), strict=True)
    first, *others = taken = times(name, steps, forms, repeats=1500 // steps)
    ratios = [
        statistics.median(b / a for a, b in zip(first, other, strict=True)) for other in others
    ]
    numbers = [*sizes, tuple(min(values) for values in taken)]
    columns = [" → ".join(f"{number:.1f}" for number in column) for column in numbers]
    columns.append(", ".join(f"{ratio:.2f}" for ratio in ratios))
    return f"| {name} | {steps} | {' | '.join(columns)} |"


def main() -> None:
    tables = ((NETS, ("all", "bits")), (RECURRENT, ("all", "no membranes", "bits, no membranes")))
    for nets, forms in tables:
        print(f"\n| {' → '.join(forms)} | T | kept, MB | most, MB | ms | ratio to the first |")
        print("|---|---|---|---|---|---|")
        for name in nets:
            for steps in STEPS:
                print(row(name, steps, forms), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        name, steps, form = sys.argv[1:]
        print_memory(name, int(steps), form)
    else:
        main()
