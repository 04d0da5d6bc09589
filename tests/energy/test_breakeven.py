"""Break-even against closed forms and against models that really are that active."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dynvision_snn.energy import (
    EnergyBudget,
    EnergyMeter,
    HardwareProfile,
    LayerCounts,
    MemoryModel,
    break_even,
    quantised_counterpart,
)
from dynvision_snn.energy.breakeven import silenced, spikes_per_synapse
from dynvision_snn.errors import EnergyError

N, T, IN, OUT = 10, 20, 8, 5


def spiking(rate: float, *, dt: float = 1.0) -> EnergyBudget:
    """A layer of IN inputs at `rate` spikes per timestep, and as active itself."""
    samples = torch.full((1, T), float(N))
    fc = LayerCounts(
        name="fc", kind="Linear", synapses=IN * OUT, inputs=IN, outputs=OUT,
        series={
            "synops": samples * rate * IN * OUT,
            "synops_weighted": samples * rate * IN * OUT,
            "synops_dense": samples * IN * OUT,
            "events": samples * rate * IN,
        },
        least=1.0, most=1.0,
    )  # fmt: skip
    lif = LayerCounts(
        name="lif", kind="Leaky", neurons=OUT, spiking_units=OUT,
        series={
            "spikes": samples * rate * OUT,
            "neuron_updates": samples * OUT,
            "neuron_updates_active": samples * rate * OUT,
        },
    )  # fmt: skip
    return EnergyBudget(counts=[fc, lif], samples=samples, dt=dt)


def profile(**figures: float) -> HardwareProfile:
    return HardwareProfile(name="own", source="bench", basis="measured", **figures)


def test_arithmetic_alone_has_a_closed_form() -> None:
    # rate * T ACs against 1 MAC per synapse: even at mac / ac spikes per synapse.
    result = break_even(spiking(0.1), quantised_counterpart(spiking(0.1)), "45nm-int8")
    assert result.spikes_per_synapse == pytest.approx(0.1 * T)
    assert result.break_even_spikes_per_synapse == pytest.approx(0.23 / 0.03)
    assert result.break_even_firing_rate == pytest.approx(0.23 / 0.03 / (T * 1e-3))
    assert result.firing_rate == pytest.approx(100.0)
    assert result.wins
    assert "break-even at 383 Hz and 7.67 spikes per synapse" in str(result)


def test_the_model_at_its_break_even_rate_costs_the_same() -> None:
    full = profile(
        ac=2e-12, mac=9e-12, spike=3e-12, neuron_update_active=4e-12, neuron_update_inactive=1e-12,
        static_power=1e-9, hardware_dt=1.0,
    )  # fmt: skip
    buffers = {"weight_buffer": 8192, "potential_buffer": 4096, "event_buffer": 1024}
    for price in (full, MemoryModel(**buffers), lambda budget: float(budget.joules(full))):
        at_rate = break_even(spiking(0.3), 5e-9, price).factor
        assert at_rate is not None
        there = spiking(0.3 * at_rate)
        assert break_even(there, 5e-9, price).factor == pytest.approx(1.0)
        assert break_even(there, 5e-9, price).joules == pytest.approx(5e-9)


def test_the_other_model_may_run_elsewhere() -> None:
    other = quantised_counterpart(spiking(0.1))
    result = break_even(spiking(0.1), other, "45nm-fp32", other_price="45nm-int8")
    assert result.other_joules == pytest.approx(IN * OUT * 0.23e-12)
    assert result.break_even_spikes_per_synapse == pytest.approx(0.23 / 0.9)
    assert not result.wins


def test_a_price_that_leaves_out_the_other_models_operations_is_refused() -> None:
    other = quantised_counterpart(spiking(0.1))
    with pytest.raises(EnergyError, match=r"'loihi' has no figure for .*mac"):
        break_even(spiking(0.1), other, "loihi")
    assert break_even(spiking(0.1), other, "loihi", other_price="45nm-int8").other_joules > 0


@pytest.mark.parametrize("joules", [math.nan, math.inf, -1e-9])
def test_a_price_that_is_none_is_refused(joules: float) -> None:
    with pytest.raises(EnergyError, match=r"the other model costs .* J per sample; expected"):
        break_even(spiking(0.1), joules, "45nm-fp32")
    with pytest.raises(EnergyError, match=r"the spiking model costs .* J per sample; expected"):
        break_even(spiking(0.1), 1e-9, lambda budget: joules)


def test_where_even_silence_costs_more() -> None:
    costly = profile(ac=1e-12, neuron_update_active=1.0, neuron_update_inactive=1.0)
    result = break_even(spiking(0.1), 1e-9, costly)
    assert (result.factor, result.break_even_firing_rate) == (None, None)
    assert result.silent_joules == pytest.approx(OUT * T)
    assert "no firing rate breaks even" in str(result)


def test_where_activity_costs_nothing() -> None:
    assert break_even(spiking(0.1), 1.0, "gpu").factor is None


def test_a_silent_model_has_no_rate_to_scale() -> None:
    with pytest.raises(EnergyError, match="this one has none"):
        break_even(silenced(spiking(0.1)), 1.0, "45nm-fp32")
    with EnergyMeter(net := nn.Linear(3, 2)) as meter:
        net(torch.ones(1, 3))
    with pytest.raises(EnergyError, match="this one has none"):
        break_even(meter.budget(dt=1.0), 1.0, "45nm-fp32")


def test_silence_keeps_analog_operations_and_updates() -> None:
    analog = EnergyBudget(
        counts=[LayerCounts(**{**_fields(spiking(0.1).counts[0]), "least": 0.5})],
        samples=spiking(0.1).samples, dt=1.0,
    )  # fmt: skip
    assert silenced(analog).total.synops_mac == analog.total.synops_mac > 0
    quiet = silenced(spiking(0.1)).total
    assert (quiet.spikes, quiet.synops_ac, quiet.neuron_updates_active) == (0, 0, 0)
    assert quiet.neuron_updates == OUT * T
    assert math.isclose(quiet.synops_dense, IN * OUT * T)


def _fields(row: LayerCounts) -> dict:
    return {**row.identity(), "series": row.series, "least": row.least, "most": row.most}


def test_the_quantised_counterpart_works_every_synapse_once() -> None:
    ann = quantised_counterpart(spiking(0.1))
    assert (ann.n_timesteps, ann.dt, ann.n_samples) == (1, T * 1.0, N)
    assert (ann.total.synops_mac, ann.total.synops_ac) == (IN * OUT, 0)
    assert ann.total.neuron_updates == 0


def test_spikes_per_synapse_without_synapses_is_none_at_all() -> None:
    alone = EnergyBudget(counts=[spiking(0.1).counts[1]], samples=spiking(0.1).samples, dt=1.0)
    assert spikes_per_synapse(alone) == 0


BUFFERS = {"weight_buffer": 8192, "potential_buffer": 32768, "event_buffer": 1024}


class TestMemoryModel:
    """A fully connected layer by the equations of the paper, in closed form."""

    def test_a_spiking_layer(self) -> None:
        rate, add, mac = 0.1, 0.1e-12, 3.2e-12
        theta_in, theta_out = rate * IN * T, rate * OUT * T
        words = {"weights": 10e-12 / 2, "potentials": 20e-12 / 2, "events": 1.25e-12 / 2}
        terms = MemoryModel(**BUFFERS).joules(spiking(rate))
        assert terms == pytest.approx(
            {
                # equations 2.3 and 2.4: the leak; inputs, biases, resets
                "operations": T * OUT * mac + (theta_in * OUT + T * OUT + theta_out) * add,
                "addresses": theta_in * OUT * add,  # 17.2
                "weights": (theta_in * OUT + T * OUT) * words["weights"],  # 8
                "potentials": 2 * (theta_in * OUT + T * OUT) * words["potentials"],  # 9, 15
                "events": (theta_in + theta_out) * words["events"],  # 5, 13
            }
        )
        assert MemoryModel(**BUFFERS)(spiking(rate)) == pytest.approx(sum(terms.values()))

    def test_an_analog_layer(self) -> None:
        ann = quantised_counterpart(spiking(0.1))
        terms = MemoryModel(**BUFFERS).joules(ann)
        assert terms == pytest.approx(
            {
                "operations": IN * OUT * 3.2e-12,
                "addresses": IN * OUT * 0.1e-12,
                "weights": IN * OUT * 5e-12,
                "potentials": 0.0,
                "events": (IN + OUT) * 0.625e-12,
            }
        )

    def test_no_leak_no_bias_and_a_price_per_byte(self) -> None:
        plain = MemoryModel(**BUFFERS, leak=False, bias=False, memory_access=1e-12)
        terms = plain.joules(spiking(0.1))
        assert terms["operations"] == pytest.approx((0.1 * IN * T * OUT + 0.1 * OUT * T) * 0.1e-12)
        assert terms["weights"] == pytest.approx(0.1 * IN * T * OUT * 4e-12)

    def test_a_profile_that_says_what_a_byte_costs(self) -> None:
        chip = profile(ac=1e-12, memory_access=3e-12)
        by_hand = MemoryModel(**BUFFERS, memory_access=3e-12, leak=False)
        budget = spiking(0.1)
        assert MemoryModel.on(chip, leak=False).joules(budget) == by_hand.joules(budget)

    def test_a_profile_that_does_not_and_arguments_that_are_none(self) -> None:
        with pytest.raises(EnergyError, match="'45nm-fp32' has no memory_access"):
            MemoryModel.on("45nm-fp32")
        chip = profile(ac=1e-12, memory_access=3e-12)
        for name in ("weight_buffer", "leek"):
            with pytest.raises(EnergyError, match=f"takes no '{name}'"):
                MemoryModel.on(chip, **{name: 8192})

    def test_a_convolution_finds_its_addresses_by_multiplying(self) -> None:
        conv = LayerCounts(**{**_fields(spiking(0.1).counts[0]), "kind": "Conv2d"})
        budget = EnergyBudget(counts=[conv], samples=spiking(0.1).samples, dt=1.0)
        terms = MemoryModel(**BUFFERS).joules(budget)
        theta = 0.1 * IN * T
        assert terms["addresses"] == pytest.approx(theta * OUT * 0.1e-12 + 2 * theta * 3.2e-12)

    @pytest.mark.parametrize(
        ("size", "energy"),
        [(4096, 5e-12), (8192, 10e-12), (20480, 15e-12), (32768, 20e-12), (2**20, 100e-12)],
    )
    def test_access_energy_is_piecewise_linear(self, size: int, energy: float) -> None:
        from dynvision_snn.energy.memory import access_energy

        assert access_energy(size) == pytest.approx(energy)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"weight_buffer": 2**21}, "ends at 1 MB"),
            ({"weight_buffer": 0}, "positive number of bytes"),
            ({"event_buffer": float("nan")}, "positive number of bytes"),
            ({"add": -1.0}, "add must be finite and positive"),
            ({"multiply": "3"}, "multiply must be a number"),
            ({"memory_access": float("inf")}, "memory_access must be finite"),
        ],
    )
    def test_bad_figures(self, change: dict, message: str) -> None:
        with pytest.raises(EnergyError, match=message):
            MemoryModel(**{**BUFFERS, **change})
