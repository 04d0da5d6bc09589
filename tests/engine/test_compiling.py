"""What the first call costs is said, and is paid once, not in the speed of what was compiled."""

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


def said_by_a_new_process(cache: Path, code: str = FIRST_CALL) -> str:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "NUMBA_OPT": "3"}
    command = [sys.executable, "-W", "ignore", "-c", code]
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


PRODUCT = """
import torch
from dynvision_snn.engine.products.entries import entries_of
from dynvision_snn.engine.products.kernels import add_product

entries_of(torch.eye(3), most=0.5) @ torch.ones(3, 2)
(code,) = add_product.inspect_llvm().values()
calls = [line for line in code.splitlines() if " call " in line]
print(any("add_product" in line for line in calls), any("add_listed" in line for line in calls))
"""


def test_inner_functions_are_inlined_where_they_are_compiled(tmp_path: Path) -> None:
    # A call that is left runs what was compiled by itself, without being optimised: dozens of times
    # slower, in this process alone.
    assert said_by_a_new_process(tmp_path, PRODUCT).split() == ["True", "False"]


CALLED = """
import re
import torch
from dynvision_snn.adapters.scan_spec import ScanSpec, Surrogate, SurrogateKind, Update
from dynvision_snn.engine.scans import numba_kernels, scan

surrogate = Surrogate(SurrogateKind.ATAN, 2.0)
neuron = ScanSpec(Update.DECAY, torch.tensor(0.5), torch.tensor(1.0), surrogate)
scan(neuron, torch.rand(3, 2, 4, requires_grad=True)).output.sum().backward()
for kernel in (numba_kernels.forward, numba_kernels.backward):
    for compiled in kernel.overloads.values():
        for name in re.findall(r'^define[^@]*@"?([^"(]+)', compiled.library.get_llvm_str(), re.M):
            print(kernel.py_func.__name__, name)
"""


def test_the_process_that_compiles_runs_what_it_optimised(tmp_path: Path) -> None:
    """Inner functions are not optimised by themselves: none may be left to be called."""
    defined = [line.split() for line in said_by_a_new_process(tmp_path, CALLED).splitlines()]
    ours = [(kernel, name) for kernel, name in defined if "dynvision" in name]
    assert {kernel for kernel, _ in ours} == {"forward", "backward"}
    for kernel, name in ours:
        assert f"numba_kernels{len(kernel)}{kernel}" in name
