"""An expert who doubts a number finds its definition, source and caveat."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from energy_nets import conv_inputs, conv_net, run_loop
from torch import nn

from dynvision_snn.energy import EnergyMeter, LayerEnergy, hardware_profiles
from dynvision_snn.errors import EnergyError, EnergyWarning


@pytest.fixture
def budget():
    with EnergyMeter(net := conv_net()) as meter:
        run_loop(net, conv_inputs())
    return meter.budget(dt=1.0)


def test_every_number_of_a_row_has_a_note(budget) -> None:
    explanation = budget.explain()
    numbers = {field.name for field in dataclasses.fields(LayerEnergy)} - {"name", "kind"}
    assert {note.name for note in explanation} == numbers
    for note in explanation:
        assert note.definition
        assert note.source
        assert note.caveat
        assert note.name in str(explanation)
    assert explanation.of("synops_ac").value == f"{budget.total.synops_ac:,.6g}"


def test_the_split_into_acs_and_macs_shows_its_evidence(budget) -> None:
    assert "conv received magnitudes from " in budget.explain().of("synops_mac").caveat
    assert "fc received values of magnitude 1 alone" in budget.explain().of("synops_ac").caveat


@pytest.mark.parametrize("name", list(hardware_profiles()))
def test_joules_carry_their_profiles_source_and_caveats(budget, name: str) -> None:
    profile = hardware_profiles()[name]
    if profile.mac is None:
        with pytest.warns(EnergyWarning):
            explanation = budget.explain(name)
    else:
        explanation = budget.explain(name)
    note = explanation.of(f"joules {name}")
    assert profile.source in note.source
    assert profile.basis in note.source
    for caveat in profile.caveats:
        assert caveat in note.caveat
    if profile.mac is None:
        assert explanation.of(f"joules {name} mac").value == "lacking"


def test_uncounted_layers_are_numbers_too() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    with EnergyMeter(net) as meter:
        net(torch.ones(1, 3))
    note = meter.budget(dt=1.0).explain().of("uncounted 1")
    assert note.value == "not counted"
    assert "LayerNorm" in note.caveat


def test_unknown_names(budget) -> None:
    with pytest.raises(KeyError):
        budget.explain().of("energy")
    with pytest.raises(EnergyError, match="Unknown hardware profile"):
        budget.explain("loihi9")
