"""Every class in a wrapped model: the same numbers, at T timesteps, every synapse counted."""

from __future__ import annotations

import copy

import pytest
import torch
from adapter_cases import (
    CASES,
    B,
    Case,
    T,
    adapter_of,
    case_name,
    over_time,
    run,
)

import dynvision_snn as dvs
from dynvision_snn.adapters import Role
from dynvision_snn.energy.synapses import fan_out

pytestmark = [
    pytest.mark.filterwarnings("ignore::dynvision_snn.errors.AdapterWarning"),
    # Some of these decay within a timestep or two: their library steps them all the same.
    pytest.mark.filterwarnings("ignore::dynvision_snn.errors.TimingWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
]

LAYERS = [case for case in CASES if case.role is not Role.ACTIVATION]


def decodable(case: Case) -> bool:
    """Whether the layer alone is a readout: one axis of units, and something to decode."""
    shows = case.membrane is not None or case.role is Role.RECURRENT
    return shows and len(case.units) == 1


@pytest.mark.parametrize("case", [c for c in LAYERS if decodable(c)], ids=case_name)
def test_a_wrapped_layer_yields_what_it_yields_alone(case: Case) -> None:
    module, again, inputs = case.module(), case.module(), case.inputs()
    if case.name == "DeltaLeaky":
        module.init_hidden = again.init_hidden = True
    expected = over_time(case, run(case, again, inputs))
    decoded = expected.output if case.role is Role.RECURRENT else expected.membrane
    recorded = dvs.wrap(module, dt=1.0, engine="step")(inputs)
    assert recorded.membrane.shape[:2] == (T, B)
    assert torch.equal(recorded.membrane, decoded)
    assert recorded.membrane_is == case.membrane
    if case.role is Role.SPIKING:
        assert torch.equal(recorded.spikes, expected.output)


@pytest.mark.parametrize("case", [c for c in LAYERS if c.synapses and decodable(c)], ids=case_name)
def test_a_budget_counts_what_every_synapse_received(case: Case) -> None:
    module, again, inputs = case.module(), case.module(), case.inputs()
    model = dvs.wrap(module, dt=1.0)
    with dvs.EnergyMeter(model) as meter:
        model(inputs)
    budget = meter.budget()
    assert budget.uncounted == {}
    counted = {
        row.name.removeprefix("."): row.synops_ac + row.synops_mac
        for row in budget.layers
        if row.name
    }
    assert set(counted) == set(case.synapses)

    seen = run(case, again, inputs)
    for index, synapse in enumerate(adapter_of(again).synapses(again)):
        expected = 0.0
        for item in seen:
            received = item.received[index]
            if received is not None:
                flat = received.detach().reshape(-1, received.shape[-1])
                weights = fan_out(
                    synapse.operator, flat.shape[1:], diagonal=synapse.form == "diagonal"
                )
                expected += ((flat != 0) * weights).sum().item()
        assert counted[synapse.name] == pytest.approx(expected / B)
    assert sum(counted.values()) > 0


@pytest.mark.parametrize("case", [c for c in LAYERS if decodable(c)], ids=case_name)
def test_a_layer_that_has_trained_is_left_as_it_was_found(case: Case) -> None:
    module = case.module()
    if case.name == "DeltaLeaky":
        module.init_hidden = True
    before = {name: id(value) for name, value in vars(module).items()}
    model = dvs.wrap(module, dt=1.0)
    model(case.inputs().requires_grad_()).membrane.sum().backward()
    after = {name: id(value) for name, value in vars(module).items() if name != "reset"}
    assert after == before  # `reset` is snnTorch's own note of who was above threshold
    copy.deepcopy(model)
