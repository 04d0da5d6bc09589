"""A whole training from its settings: what is written, resumed, refused, swept and told."""

from __future__ import annotations

import copy
import csv
import json
import math
import subprocess

import pytest
import torch
from typer.testing import CliRunner

from dynvision_snn.cli import app
from dynvision_snn.comparison import load
from dynvision_snn.config import dump_yaml, load_config, parse_config
from dynvision_snn.errors import ComparisonError, ConfigError, DataError, OutputError, TrainingError
from dynvision_snn.training.lightning import (
    TrainingResult,
    read_checkpoint,
    simulate_checkpoint,
    sweep,
    train,
)
from dynvision_snn.training.lightning.building import build_model
from dynvision_snn.training.provenance import git_state, versions


@pytest.fixture
def trained(settings, tmp_path):
    config = parse_config(settings)
    return config, tmp_path / "run", train(config, progress=False)


def test_a_run_is_saved_with_all_that_it_came_from(trained):
    config, folder, result = trained
    assert load_config(folder / "config.yaml") == config
    run = json.loads((folder / "run.json").read_text())
    assert run["seed"] == config.seed
    assert run["packages"] == versions()
    assert {"torch", "lightning", "dynvision-snn", "snntorch"} <= run["packages"].keys()
    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    # An unpacked archive of the project is no repository.
    expected = None if asked.returncode else asked.stdout.strip()
    assert (run["git"] and run["git"]["commit"]) == expected
    assert json.loads((folder / "result.json").read_text())["accuracy"] == result.accuracy


def test_the_state_of_git_is_its_commit_and_what_differs_from_it(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "net.py").write_text("a = 1\n")
    git("add", "net.py")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert len(commit) == 40
    clean = git_state(tmp_path)
    assert clean["commit"] == commit
    (tmp_path / "net.py").write_text("a = 2\n")
    changed = git_state(tmp_path)
    assert changed["commit"] == commit
    assert changed != clean
    assert "net.py" in str(changed)


def test_outside_of_git_there_is_no_state_of_it(tmp_path):
    assert git_state(tmp_path) is None


def test_metrics_are_written_for_tables_and_tensorboard(trained):
    _, folder, _ = trained
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    named = {name for row in rows for name, value in row.items() if value}
    assert {"loss/CrossEntropyLoss", "loss/EnergyLoss", "train_loss", "val_joules"} <= named
    assert sum(bool(row["train_loss"]) for row in rows) == 3
    assert list((folder / "tensorboard" / "version_0").glob("events.out.tfevents.*"))


def test_a_checkpoint_simulates_to_the_result(trained):
    config, folder, result = trained
    found = simulate_checkpoint(config, folder / result.checkpoint, progress=False)
    assert found.accuracy == pytest.approx(result.accuracy)
    assert float(found.budget.joules(config.profile)) == pytest.approx(result.joules)
    assert found.budget.total.firing_rate == pytest.approx(result.firing_rate)


def test_a_run_is_not_overwritten_and_a_finished_one_not_run_again(trained):
    config, folder, result = trained
    with pytest.raises(OutputError, match="exists already"):
        train(config, progress=False)
    before = (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert train(config, resume=True, progress=False) == result
    assert (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_a_finished_run_can_be_trained_for_longer_as_if_from_the_start(trained, settings, tmp_path):
    settings["training"]["epochs"] = 5
    longer = train(parse_config(settings), resume=True, progress=False)
    assert longer.epochs == 5
    whole = copy.deepcopy(settings) | {"out": str(tmp_path / "whole")}
    train(parse_config(whole), progress=False)
    ours, theirs = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"]
        for name in ("run", "whole")
    )
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_a_run_of_other_settings_is_not_gone_on_with(trained, settings):
    settings["optimizer"]["kwargs"]["lr"] = 0.5
    settings["training"]["batch_size"] = 9
    with pytest.raises(TrainingError) as caught:
        train(parse_config(settings), resume=True, progress=False)
    assert "optimizer.kwargs.lr is 0.01 there and 0.5 here" in str(caught.value)
    assert "training.batch_size is 8 there and 9 here" in str(caught.value)


def test_early_stopping_ends_a_run_that_counts_as_finished(settings):
    settings["optimizer"]["kwargs"]["lr"] = 0.0
    settings["training"] |= {"epochs": 30, "early_stopping": {"patience": 2}}
    result = train(parse_config(settings), progress=False)
    assert result.epochs == 3
    assert train(parse_config(settings), resume=True, progress=False) == result


def test_a_limit_that_is_not_met_is_said_and_the_nearest_kept(settings):
    # Rates fall too slowly for this limit, since the weight hardly moves.
    settings["target"] = {"limit": 0.01, "unit": "hertz", "rate": 1e-9, "damping": 0.0}
    result = train(parse_config(settings), progress=False)
    assert result.met is False
    assert "NOT MET" in str(result)
    assert result.energy == pytest.approx(result.firing_rate)


def test_a_result_says_whether_its_limit_is_met():
    values = {
        "accuracy": 0.9,
        "firing_rate": 10.0,
        "synops": 1.0,
        "joules": math.nan,
        "profile": "loihi",
        "limit": 10.0,
        "unit": "hertz",
        "checkpoint": "c",
        "epochs": 1,
        "asked_epochs": 1,
    }
    assert TrainingResult(energy=10.4, **values).met
    assert not TrainingResult(energy=10.6, **values).met
    assert TrainingResult(energy=None, **values).met is None
    assert "is met" in str(TrainingResult(energy=10.4, **values))


@pytest.mark.parametrize(
    ("section", "key", "value", "error", "told"),
    [
        ("data", "validation", 0.001, DataError, "leaves 0 to validate and 50 to train with"),
        ("data", "factory", "nets:net", ConfigError, "expected a training and a test set"),
        ("data", "factory", "nets:nothing", ConfigError, "has no 'nothing'"),
        ("model", "factory", "nowhere.at.all:net", ConfigError, "no module 'nowhere'"),
        ("model", "kwargs", {"width": 3}, ConfigError, "takes no 'width'"),
        ("training", "precision", "16-true", ConfigError, "training.precision"),
    ],
)
def test_settings_that_cannot_be_are_told(settings, section, key, value, error, told):
    settings["model"] = {"factory": "nets:net"}
    settings[section][key] = value
    with pytest.raises(error, match=told):
        train(parse_config(settings), progress=False)


# -- sweeps ---------------------------------------------------------------------------------------


def test_a_file_says_which_engine_runs_the_model():
    section = {"factory": "dynvision_snn.demo:snntorch_model", "engine": "step"}
    settings = {"model": section, "dt": 2.0, "presentation": {"pattern": "0111"}}
    images = torch.rand(3, 64)

    def explained(**changed):
        config = parse_config(settings | {"model": section | changed})
        model = build_model(config)
        assert model.recompute_every == config.model.recompute_every
        assert model.keep_spikes == config.model.keep_spikes
        assert model.keep_membranes == config.model.keep_membranes
        model(images, config.presentation.build(config.dt))
        return model.explain()

    assert 'engine="step"' in explained()
    assert explained(engine="auto", recompute_every=4.0).startswith("layer by layer")
    kept = {"keep_spikes": "bits", "keep_membranes": False}
    assert explained(engine="auto", **kept).startswith("layer by layer")
    with pytest.raises(ConfigError, match=r"model\.engine"):
        explained(engine="fast")
    with pytest.raises(ConfigError, match=r"model\.keep_spikes"):
        explained(keep_spikes="bytes")
    with pytest.raises(ConfigError, match=r"model\.keep_membranes"):
        explained(keep_membranes="no")


def test_a_sweep_trains_each_value_once_and_shows_the_front(settings, tmp_path):
    """The first limit is out of reach: its run fails, the others are finished and kept."""
    settings["training"]["epochs"] = 1
    settings["target"] = {"limit": 1.0, "unit": "synops"}
    settings["sweep"] = {"over": "limit", "values": [1.0, 1000.0, 1e9], "jobs": 2}
    ran = []
    with pytest.raises(TrainingError, match=r"1 of 3 runs failed: limit 1: the limit of 1 SynOps"):
        sweep(parse_config(settings), on_run=lambda value, result: ran.append(value))
    assert sorted(ran) == [1000.0, 1e9]

    settings["sweep"]["values"] = [1000.0, 1e9]
    again = []
    whole = sweep(parse_config(settings), on_run=lambda value, result: again.append(value))
    assert again == []
    folder = tmp_path / "run"
    saved = json.loads((folder / "sweep.json").read_text())
    assert saved["runs"] == whole.rows()
    assert [run["limit"] for run in saved["runs"]] == [1000.0, 1e9]
    assert any(run["front"] for run in saved["runs"])
    assert load_config(folder / "limit=1000" / "config.yaml").target.limit == 1000.0
    assert "1000" in (folder / "table.txt").read_text()
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_a_sweep_over_energy_weights_names_its_runs_by_them(settings):
    settings["sweep"] = {"values": [0.5]}
    config = parse_config(settings)
    train(
        config.with_energy("energy_weight", 0.5).model_copy(
            update={"out": settings["out"] + "/energy_weight=0.5"}
        ),
        progress=False,
    )
    (row,) = sweep(config).rows()
    assert row["energy_weight"] == 0.5
    assert row["limit_met"] is None


# -- the command ----------------------------------------------------------------------------------


def _command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_trains_resumes_and_simulates(settings, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(settings))
    first = _command("train", path)
    assert first.exit_code == 0, first.output
    assert "accuracy" in first.output
    assert _command("train", path, "--resume").output == first.output
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    numbers = tmp_path / "numbers.json"
    shown = _command("simulate", path, "--checkpoint", checkpoint, "--out", numbers)
    assert shown.exit_code == 0, shown.output
    assert "Energy budget per sample" in shown.output
    alone = load(numbers)
    (run,) = alone.runs["run"]  # called by the folder of its settings
    assert run.budget.dt == 2.0
    assert [profile.name for profile in alone.profiles] == ["45nm-fp32"]
    other = tmp_path / "other.json"
    shown = _command(
        "simulate", path, "--checkpoint", checkpoint, "--out", other, "--name", "b", "--every", 4
    )
    assert shown.exit_code == 0, shown.output
    beside = _command("compare", numbers, other)
    assert beside.exit_code == 0, beside.output
    (chunked,) = load(other).runs["b"]
    for name, moment in run.moments.items():  # the rules of `compare`, in chunks or not
        assert moment.to_dict() == chunked.moments[name].to_dict()
    assert len(run.moments) > 1
    assert isinstance(_command("compare", path).exception, ComparisonError)


def test_the_command_says_what_is_wrong(settings, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(settings | {"epochs": 3}))
    shown = _command("train", path)
    assert isinstance(shown.exception, ConfigError)
    assert "epochs: no such setting" in str(shown.exception)
    path.write_text(dump_yaml(settings))
    shown = _command("simulate", path, "--checkpoint", tmp_path / "none.ckpt")
    assert isinstance(shown.exception, TrainingError)
