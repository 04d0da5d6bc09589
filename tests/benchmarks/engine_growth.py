"""How time and memory of one training step grow with timesteps, batch and width.

Draws ``engine-growth.png`` of docs/engine.md and prints its numbers. Takes some minutes on two
cores; Linux alone says the peak memory of a process that goes on.

Run: OMP_NUM_THREADS=2 python tests/benchmarks/engine_growth.py [folder]
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import snntorch as snn
import torch
from matplotlib.ticker import FuncFormatter
from test_engine_scans import Case, ours, own_loop, shortest
from torch import nn


@dataclass(frozen=True)
class Size:
    """Of an MLP 784-width-10 that is shown one image for all timesteps."""

    timesteps: int = 50
    batch: int = 64
    width: int = 1000


SWEEPS = {
    "timesteps": (10, 30, 100, 300, 1000),
    "batch": (8, 32, 128, 512),
    "width": (100, 300, 1000, 3000),
}
COLOURS = {"snnTorch's own loop": "#D55E00", "layer engine, energy loss on": "#0072B2"}


def net(width: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(784, width), snn.Leaky(0.9, init_hidden=True)),
        *(nn.Linear(width, 10), snn.Leaky(0.9, init_hidden=True, output=True)),
    )


def runs(size: Size) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    inputs = torch.rand(size.batch, 784)
    case = Case(lambda: net(size.width), (784,), steps=size.timesteps)
    return dict(
        zip(
            COLOURS,
            (
                own_loop(case.build(), [inputs] * size.timesteps),
                ours(case.build(), case, inputs, "layer"),
            ),
            strict=True,
        )
    )


def peak_mib(run: Callable[[], None]) -> float:
    """By how much the process grew at most while it ran."""
    run()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    run()
    return (_resident("VmHWM") - before) / 1024


def _resident(which: str) -> int:
    """In kB."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    figure, axes = plt.subplots(
        2, len(SWEEPS), figsize=(10, 5.6), layout="constrained", sharex="col", sharey="row"
    )
    for (what, sizes), (upper, lower) in zip(SWEEPS.items(), axes.T, strict=True):
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in COLOURS}
        for size in sizes:
            for name, run in runs(replace(Size(), **{what: size})).items():
                ms, mib = shortest(run, repeats=3), peak_mib(run)
                found[name].append((ms, mib))
                print(f"{what} {size:5d}  {name:30s} {ms:8.1f} ms {mib:8.1f} MiB", flush=True)
        for name, points in found.items():
            for axis, values in zip((upper, lower), zip(*points, strict=True), strict=True):
                axis.loglog(sizes, values, marker="o", markersize=4, color=COLOURS[name])
                axis.lines[-1].set_label(name)
        lower.set_xlabel({"timesteps": "timesteps (dt 1 ms)"}.get(what, what))
        lower.set_xticks(sizes, [str(size) for size in sizes])
        for axis in (upper, lower):
            axis.minorticks_off()
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", color="0.9")
    axes[0, 0].set_ylabel("training step (ms)")
    axes[1, 0].set_ylabel("peak memory (MiB)")
    axes[0, 0].legend(frameon=False, fontsize=8)
    size = Size()
    figure.suptitle(
        f"MLP 784-{size.width}-10, T {size.timesteps}, batch {size.batch} where not on the axis",
        fontsize=10,
    )
    figure.savefig(folder / "engine-growth.png", dpi=160)


if __name__ == "__main__":
    main()
