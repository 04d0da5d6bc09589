"""Profiles: figures as published, validation, files and plug-ins."""

from __future__ import annotations

import dataclasses
import json
import math
from importlib import metadata
from pathlib import Path

import pytest

from dynvision_snn.energy.hardware import (
    ENTRY_POINT_GROUP,
    HardwareProfile,
    hardware_profiles,
    resolve_profile,
)
from dynvision_snn.errors import EnergyError

CHIP = {"name": "chip", "source": "our bench", "basis": "measured", "ac": 2e-12}

PLUG_IN = HardwareProfile(name="plugged", source="our bench", basis="measured", ac=1e-12)

PICOJOULES = {  # (AC, MAC, neuron update active, inactive, spike), None where there is no figure
    "45nm-fp32": (0.9, 4.6, None, None, None),
    "45nm-fp16": (0.4, 1.5, None, None, None),
    "45nm-int8": (0.03, 0.23, None, None, None),
    "loihi": (23.6, None, 81, 52, 1.7),
    "truenorth": (26, None, None, None, None),
    "spinnaker": (13300, None, 26000, 26000, None),
    "spinnaker2": (450, None, 2190, 2190, None),
    "cpu": (None, 8600, 8600, 8600, None),
    "gpu": (None, 300, 300, 300, None),
    "arm": (None, 900, 900, 900, None),
    "odin": (12.7, None, None, None, None),
    "reckon": (5.3, None, None, None, None),
    "ubrain": (26, None, None, None, None),
    "tianjic": (1.54, None, None, None, None),
    "neuronflow": (20, None, None, None, None),
    "seneca": (2.8, None, None, None, None),
}


TEXTS = {
    "json": '{"name": "chip", "source": "our bench", "basis": "measured", "ac": 2e-12}',
    "toml": 'name = "chip"\nsource = "our bench"\nbasis = "measured"\nac = 2e-12',
}


class TestShippedProfiles:
    def test_every_figure(self) -> None:
        profiles = hardware_profiles()
        assert set(profiles) == set(PICOJOULES)
        for name, expected in PICOJOULES.items():
            found = [e if e is None else e * 1e12 for e in profiles[name].energies.values()]
            assert found == [e if e is None else pytest.approx(e) for e in expected], name

    def test_basis_and_event_driven(self) -> None:
        profiles = hardware_profiles()
        measured = {n for n, p in profiles.items() if p.basis == "measured"}
        assert measured == {"truenorth", "spinnaker", "spinnaker2"}
        assert {n for n, p in profiles.items() if p.basis == "simulated"} == {"loihi"}
        assert {n for n, p in profiles.items() if not p.event_driven} == {"cpu", "gpu", "arm"}

    @pytest.mark.parametrize(
        ("name", "other"), [("truenorth", "2.5"), ("spinnaker", "45"), ("spinnaker2", "10")]
    )
    def test_conflicts_are_shown(self, name: str, other: str) -> None:
        (conflict,) = [c for c in hardware_profiles()[name].caveats if "Conflicting" in c]
        assert f"prints {other} pJ" in conflict

    def test_static_power_is_off_until_a_hardware_time_is_given(self) -> None:
        loihi = resolve_profile("loihi")
        assert loihi.static_power == 0.104
        assert loihi.static_energy is None
        assert dataclasses.replace(loihi, hardware_dt=2.0).static_energy == pytest.approx(208e-6)

    def test_read_only(self) -> None:
        with pytest.raises(TypeError):
            hardware_profiles()["loihi"] = PLUG_IN
        with pytest.raises(dataclasses.FrozenInstanceError):
            hardware_profiles()["loihi"].ac = 0.0


class TestResolve:
    def test_by_name_profile_and_fields(self) -> None:
        assert resolve_profile(PLUG_IN) is PLUG_IN
        assert resolve_profile(CHIP).ac == 2e-12
        assert resolve_profile("loihi").name == "loihi"

    def test_unknown_names_list_the_known(self) -> None:
        with pytest.raises(EnergyError, match=r"'lohi'. Did you mean 'loihi'\? Known: .*truenorth"):
            resolve_profile("lohi")

    def test_other_types(self) -> None:
        with pytest.raises(EnergyError, match="got float"):
            resolve_profile(1e-12)


class TestValidation:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ac": -1e-12}, "ac must be finite and not negative"),
            ({"ac": math.nan}, "ac must be finite"),
            ({"ac": math.inf}, "ac must be finite"),
            ({"ac": True}, "ac must be a number"),
            ({"ac": "9e-10"}, r"got '9e-10' \(YAML"),
            ({"static_power": -1.0}, "static_power must be"),
            ({"memory_access": math.nan}, "memory_access must be"),
            ({"basis": "guess"}, "expected one of measured, simulated, estimate"),
            ({"source": " "}, "source must say something"),
            ({"name": ""}, "name must say something"),
            ({"name": None}, "name must say something"),
            ({"ac": None}, "no figure at all"),
            ({"neuron_update_active": 1e-12}, "only one kind of neuron update"),
            ({"hardware_dt": 1.0}, "no static_power"),
            ({"hardware_dt": 0.0, "static_power": 1.0}, "hardware_dt is 0"),
            ({"event_driven": False}, "every synapse is a MAC"),
            ({"event_driven": "no"}, "event_driven is true or false"),
            ({"caveats": "one"}, "caveats is a tuple"),
            ({"caveats": [1]}, "caveats is a tuple"),
            ({"joules": 1.0}, "Unknown field 'joules' .* Known: ac, "),
        ],
    )
    def test_refused(self, change: dict, message: str) -> None:
        with pytest.raises(EnergyError, match=message):
            HardwareProfile.from_dict({**CHIP, **change})

    def test_missing_fields_are_named(self) -> None:
        with pytest.raises(EnergyError, match="needs source, basis; got name, ac"):
            HardwareProfile.from_dict({"name": "chip", "ac": 1e-12})

    def test_round_trip(self) -> None:
        for profile in hardware_profiles().values():
            plain = json.loads(json.dumps(profile.to_dict(), allow_nan=False))
            assert HardwareProfile.from_dict(plain) == profile


class TestFiles:
    @pytest.mark.parametrize("kind", ["json", "toml"])
    def test_every_kind(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / f"chip.{kind}"
        path.write_text(TEXTS[kind])
        assert HardwareProfile.from_file(path) == HardwareProfile.from_dict(CHIP)

    @pytest.mark.parametrize("kind", ["json", "toml"])
    def test_broken_files(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / f"chip.{kind}"
        path.write_text("{[")
        with pytest.raises(EnergyError, match=f"is not {kind.upper()}"):
            HardwareProfile.from_file(path)

    def test_other_contents_and_endings(self, tmp_path: Path) -> None:
        path = tmp_path / "chip.json"
        path.write_text("[]")
        with pytest.raises(EnergyError, match="holds list"):
            HardwareProfile.from_file(path)
        path = tmp_path / "chip.txt"
        path.write_text("")
        with pytest.raises(EnergyError, match=r"ends in \.json or \.toml"):
            HardwareProfile.from_file(path)


class TestEntryPoints:
    @staticmethod
    def install(monkeypatch: pytest.MonkeyPatch, path: Path, target: str) -> None:
        """A real installed distribution, as pip leaves it, on the import path."""
        info = path / "plugin-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[{ENTRY_POINT_GROUP}]\nmine = plugin_test:{target}\n"
        )
        (path / "plugin_test.py").write_text(
            "from dynvision_snn.energy.hardware import HardwareProfile\n"
            "def make(name):\n"
            "    return HardwareProfile(name=name, source='bench', basis='measured', ac=1e-12)\n"
            "PLUG_IN, TAKEN, NO_PROFILE = make('plugged'), make('loihi'), {'name': 'plugged'}\n"
        )
        monkeypatch.syspath_prepend(path)
        assert metadata.distribution("plugin").version == "1.0"

    def test_a_plugged_in_profile(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.install(monkeypatch, tmp_path, "PLUG_IN")
        assert resolve_profile("plugged").ac == 1e-12

    def test_a_name_twice(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.install(monkeypatch, tmp_path, "TAKEN")
        with pytest.raises(
            EnergyError, match="called 'loihi': of dynvision_snn and of plugin_test"
        ):
            hardware_profiles()

    def test_no_profile(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.install(monkeypatch, tmp_path, "NO_PROFILE")
        with pytest.raises(EnergyError, match=r"'mine' \(plugin_test:NO_PROFILE\).* is a dict"):
            hardware_profiles()
