"""That freed memory is used again, by the pages that a process asks for in its training steps."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, statistics, sys, torch
from dynvision_snn import EnergyMeter

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(1 << 20) for _ in range(40)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def small_blocks():
    return [torch.empty(1 << 16, dtype=torch.uint8) for _ in range(int(sys.argv[1]))]

torch.set_num_threads(1)
faults()
below = small_blocks()
above = torch.empty(1 << 16, dtype=torch.uint8)
del below
with EnergyMeter(torch.nn.Linear(1, 1)):
    pass
below = small_blocks()
faults()
print(statistics.median(faults() for _ in range(5)))
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")


def pages_asked_for(n_small: int = 0, **settings: str) -> float:
    """In the usual step of 160 MiB after somebody listened to a net, as a share of its pages.

    Args:
        n_small: freed blocks of 64 KiB that are there in one piece when it is called.
        settings: environment variables.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    env |= {"LD_PRELOAD": "", "GLIBC_TUNABLES": ""} | settings
    found = subprocess.run(
        [sys.executable, "-c", STEPS, str(n_small)],
        capture_output=True,
        check=True,
        text=True,
        env=env,
    )
    return float(found.stdout) / (40 * 4 * 2**20 // os.sysconf("SC_PAGESIZE"))


# With 40 MiB free in one piece glibc would take the block from there that it is to learn from.
@pytest.mark.parametrize("n_small", [0, 640])
def test_a_step_asks_for_no_memory_that_the_one_before_freed(n_small: int) -> None:
    assert pages_asked_for(n_small) < 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.mmap_threshold=131072"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_threshold_that_the_user_set_stays(settings: dict[str, str]) -> None:
    assert pages_asked_for(**settings) > 0.5
