"""Settings from YAML: what is wrong is said with its path, and nothing in a file is run."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pydantic")

from dynvision_snn.config import dump_yaml, load_config, load_yaml, parse_config
from dynvision_snn.errors import ConfigError

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def settings():
    return {"model": "a.b:c", "dt": 2.0, "presentation": {"pattern": "0110"}}


def _error(settings, *path_and_value):
    *path, key, value = path_and_value
    section = settings
    for name in path:
        section = section.setdefault(name, {})
    section[key] = value
    with pytest.raises(ConfigError) as caught:
        parse_config(settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            ("presentation", "patern", "01"),
            "presentation.patern: no such setting. Did you mean 'pattern'?",
        ),
        (("epochs", 3), "epochs: no such setting."),
        (("training", "epoch", 3), "training.epoch: no such setting. Did you mean 'epochs'?"),
        (
            ("training", "epochs", 3.0),
            "training.epochs: Input should be a valid integer; received 3.0",
        ),
        (("training", "epochs", 0), "training.epochs: Input should be greater than or equal to 1"),
        (
            ("training", "early_stopping", {"patiense": 3}),
            "early_stopping.patiense: no such setting. Did you mean 'patience'?",
        ),
        (("dt", "2"), "dt: Input should be a valid number; received '2' (str)"),
        (("dt", -1.0), "dt: Input should be greater than 0"),
        (("dt", float("nan")), "dt: Input should be"),
        (("model", {"kwargs": {}}), "model.factory: is needed and not there"),
        (
            ("criterion", [{"name": "energy_loss", "wieght": 1.0}]),
            "criterion.0.wieght: no such setting. Did you mean 'weight'?",
        ),
        (
            ("target", {"limit": 3.0, "unit": "joule"}),
            "target.unit: Input should be 'activity', 'hertz', 'synops' or 'joules'",
        ),
        (("target", {"limit": 3.0, "unit": "joules"}), "target.profile: is needed for joules"),
        (
            ("target", {"limit": 3.0, "unit": "joules", "profile": "lohi"}),
            "target.profile: Unknown hardware profile 'lohi'. Did you mean 'loihi'?",
        ),
        (("profile", "lohi"), "profile: Unknown hardware profile 'lohi'"),
        (
            ("presentation", "duration", 2.0),
            "presentation: n_timesteps is 1 (2 ms), fewer than the 4 entries",
        ),
        (("presentation", "reaction_time", -3.0), "presentation: reaction_time is -3.0"),
        (
            ("presentation", "phases", [["a", 3.0, 1]]),
            "presentation: give either a pattern or phases",
        ),
        (("training", "truncate", 1.0), "training.truncate: is 1 ms, less than a timestep of 2 ms"),
        (("sweep", {"values": []}), "sweep.values: List should have at least 1 item"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(settings, wrong, told):
    assert told in _error(settings, *wrong)


def test_every_problem_is_told_at_once(settings):
    settings["training"] = {"epochs": "many"}
    message = _error(settings, "presentation", "patern", "01")
    assert "presentation.patern" in message
    assert "training.epochs" in message


def test_resolved_settings_hold_every_default_and_read_back_the_same(settings):
    settings["presentation"] = {"phases": [["off", 4.0, 0], ["on", 8.0, 1]], "reaction_time": 2.0}
    config = parse_config(settings)
    resolved = config.resolved()
    assert resolved["training"]["epochs"] == 20
    assert resolved["model"] == config.model.model_dump()
    assert parse_config(load_yaml(dump_yaml(resolved))) == config


def test_settings_cannot_be_changed(settings):
    config = parse_config(settings)
    with pytest.raises(ValueError, match="frozen"):
        config.dt = 3.0


def test_presentations_are_those_of_the_class(settings):
    settings["presentation"] |= {"duration": 16.0, "reaction_time": 4.0, "idle_time": 6.0}
    presentation = parse_config(settings).presentation.build(2.0)
    assert presentation.n_timesteps == 8
    assert presentation.idle_steps == 3
    assert presentation.supervised_mask.int().tolist() == [0, 0, 0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2", "the key 'a' stands here twice"),
        ("a: {b: 1, b: 2}", "the key 'b' stands here twice"),
        ("- 1", "holds list"),
        ("", "holds nothing"),
        ("a: [", "is no YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is no YAML of plain values"),
    ],
)
def test_what_is_no_mapping_of_plain_values_is_refused(text, reason):
    with pytest.raises(ConfigError, match=reason):
        load_yaml(text)


def test_numbers_are_those_of_yaml_1_2():
    values = load_yaml("a: 1e-3\nb: -2E+4\nc: .5e1\nd: 1.5\ne: 7\nf: e3")
    assert values == {"a": 1e-3, "b": -2e4, "c": 5.0, "d": 1.5, "e": 7, "f": "e3"}


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        load_config(tmp_path / "nowhere.yaml")


def test_an_energy_weight_and_a_limit_can_be_varied(settings):
    settings["criterion"] = [{"name": "cross_entropy_loss"}, {"name": "energy_loss", "weight": 1.0}]
    settings["sweep"] = {"values": [0.0, 0.5]}
    config = parse_config(settings)
    varied = config.with_energy("energy_weight", 0.5)
    assert [loss.weight for loss in varied.criterion] == [1.0, 0.5]
    assert varied.sweep is None
    with pytest.raises(ConfigError, match="there is no target"):
        config.with_energy("limit", 0.5)
    limited = parse_config(settings | {"target": {"limit": 1.0}}).with_energy("limit", 0.5)
    assert limited.target.limit == 0.5


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid(path):
    assert load_config(path).dt == 2.0
