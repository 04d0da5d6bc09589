"""That freed memory is used again, by the pages that a process asks for in its training steps."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from dynvision_snn.engine.freed_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(1 << 20) for _ in range(6)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
faults()
given_back = max(faults() for _ in range(3))
keep_freed_memory()
faults()
print(given_back, max(faults() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_a_step_asks_for_no_memory_that_the_one_before_freed() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    env |= {"LD_PRELOAD": ""}
    found = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, check=True, text=True, env=env
    )
    given_back, kept = map(int, found.stdout.split())
    blocks = 6 * 4 * 2**20 // os.sysconf("SC_PAGESIZE")
    assert given_back > blocks / 2
    assert kept < blocks / 100
