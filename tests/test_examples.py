"""Every example runs as a new user would run it, and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))

# What each example ends up printing or writing. One that is missing here fails.
PROMISES = {
    "compare_budgets.py": ["spiking, thrifty", "45nm-fp32"],
    "convergence.py": ["dvs.retime, 0.5 ms", "wrote convergence.png"],
    "norse_model.py": ["spikes of layer 1", "1.recurrent"],
    "snntorch_model.py": ["accuracy", "lif2", "45nm-fp32, estimate"],
}


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(script, tmp_path):
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for promise in PROMISES[script.name]:
        assert promise in done.stdout
