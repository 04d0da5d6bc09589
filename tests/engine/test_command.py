"""The command's own models under the engine that it is told."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from dynvision_snn.cli import app
from dynvision_snn.errors import WrapError


def test_compare_runs_its_models_by_the_engine_it_is_told(tmp_path: Path) -> None:
    model = ["--only", "--model", "GRU=dynvision_snn.demo:GRUClassifier"]
    asked = ["compare", *model, "--epochs", "1", "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, [*asked, "--engine", "layer"])
    assert isinstance(refused.exception, WrapError)
    assert "no scan is written for GRUCell" in str(refused.exception)
    unknown = CliRunner().invoke(app, [*asked, "--engine", "fast"])
    assert unknown.exit_code == 2
    assert all(name in unknown.output for name in ("fast", "auto", "step", "layer"))
