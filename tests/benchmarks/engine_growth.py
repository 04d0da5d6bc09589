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
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import snntorch as snn
import torch
from matplotlib.ticker import FuncFormatter
from test_engine_scans import Case, ours, own_loop, shortest
from torch import nn

Found = dict[str, list[float]]


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
COLOURS = {
    "snnTorch's own loop": "#D55E00",
    "layer engine, energy loss on": "#0072B2",
    "the same, recompute_every=20 ms": "#56B4E9",
}

# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


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
                ours(case.build(), case, inputs, "layer", recompute_every=20.0),
            ),
            strict=True,
        )
    )


def give_memory_back() -> None:
    """From here on what is freed is given back, so that what a process holds is what it uses."""
    libc = ctypes.CDLL("libc.so.6")
    for setting, value in ((_MMAP_THRESHOLD, 1 << 16), (_TRIM_THRESHOLD, 0)):
        if libc.mallopt(setting, value) != 1:
            raise SystemExit("this system's malloc cannot be told to give memory back.")


def peak_mib(run: Callable[[], None]) -> float:
    """By how much the process grew at most while it ran."""
    run()
    before = start_peak()
    run()
    return resident_mib("VmHWM") - before


def start_peak() -> float:
    """What the process holds, from where its peak, ``VmHWM``, starts anew."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident_mib("VmRSS")


def resident_mib(which: str) -> float:
    """Of the memory of this process."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def measured(what: str, how: Callable[[Callable[[], None]], float], unit: str) -> Found:
    """Each kind of run at each size of a sweep."""
    found: Found = {name: [] for name in COLOURS}
    for size in SWEEPS[what]:
        for name, run in runs(replace(Size(), **{what: size})).items():
            found[name].append(how(run))
            print(f"{what} {size:5d}  {name:32s} {found[name][-1]:8.1f} {unit}", flush=True)
    return found


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    figure, axes = plt.subplots(
        2, len(SWEEPS), figsize=(10, 5.8), layout="constrained", sharex="col", sharey="row"
    )
    times = [measured(what, partial(shortest, repeats=3), "ms") for what in SWEEPS]
    give_memory_back()
    peaks = [measured(what, peak_mib, "MiB") for what in SWEEPS]
    for row, results in zip(axes, (times, peaks), strict=True):
        for axis, (what, sizes), found in zip(row, SWEEPS.items(), results, strict=True):
            for name, values in found.items():
                axis.loglog(sizes, values, "o-", markersize=4, color=COLOURS[name], label=name)
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.minorticks_off()
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", color="0.9")
            axis.set_xlabel({"timesteps": "timesteps (dt 1 ms)"}.get(what, what))
            axis.label_outer()
    axes[0, 0].set_ylabel("training step (ms)")
    axes[1, 0].set_ylabel("peak memory (MiB)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    size = Size()
    figure.suptitle(
        f"MLP 784-{size.width}-10, T {size.timesteps}, batch {size.batch} where not on the axis",
        fontsize=10,
    )
    figure.savefig(folder / "engine-growth.png", dpi=160)


if __name__ == "__main__":
    main()
