"""What the first call costs is said, and is paid once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

FIRST_CALL = """
import gc
import numba, torch, snntorch as snn
from torch import nn
import dynvision_snn as dvs

net = nn.Sequential(nn.Linear(4, 3), snn.Leaky(0.9, init_hidden=True, output=True))
model = dvs.wrap(net, dt=1.0, engine="layer")
model(torch.rand(2, 4), dvs.Presentation("11", dt=1.0))
print(model.explain().splitlines()[0])
print(gc.isenabled(), int(numba.config.OPT))
"""


def said_by_a_new_process(cache: Path) -> str:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "NUMBA_OPT": "3"}
    command = [sys.executable, "-W", "ignore", "-c", FIRST_CALL]
    return subprocess.run(
        command, capture_output=True, check=True, text=True, env=environment
    ).stdout


def test_the_first_process_compiles_and_the_next_reads(tmp_path: Path) -> None:
    first, second = (said_by_a_new_process(tmp_path) for _ in range(2))
    compiled = re.search(r"scans by numba \(compiled in (\d+\.\d) s\)", first)
    assert compiled is not None, first
    assert float(compiled[1]) > 0
    assert "scans by numba (compiled before, read from disk)" in second
    assert first.splitlines()[1] == second.splitlines()[1] == "True 3"
