"""Budgets: conservation, the AC/MAC split, merging, pricing, files."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvision_snn.energy import EnergyBudget, HardwareProfile, Joules, LayerCounts
from dynvision_snn.energy.layers import QUANTITIES
from dynvision_snn.errors import EnergyError, EnergyWarning

PHASES = ("null", "reaction", "supervised")


def series(*values: float, phases: int = 1) -> torch.Tensor:
    """The values at every timestep in the first phase."""
    rows = torch.zeros(phases, len(values), dtype=torch.float64)
    rows[0] = torch.tensor(values)
    return rows


def small(n: float = 2, *, least: float = 1.0, most: float = 1.0, **budget: object) -> EnergyBudget:
    """Linear 3-4 onto four spiking neurons, two timesteps."""
    synapses = LayerCounts(
        name="fc",
        kind="Linear",
        synapses=12,
        series={
            "synops": series(8, 4),
            "synops_weighted": series(8 * most, 4 * most),
            "synops_dense": series(12 * n, 12 * n),
        },
        least=least,
        most=most,
    )
    neurons = LayerCounts(
        name="lif",
        kind="Leaky",
        neurons=4,
        spiking_units=4,
        series={
            "spikes": series(3, 1),
            "neuron_updates": series(4 * n, 4 * n),
            "neuron_updates_active": series(3, 1),
        },
    )
    values: dict = {"counts": [synapses, neurons], "samples": series(n, n), "dt": 2.0}
    return EnergyBudget(**{**values, **budget})


@st.composite
def budgets(draw: st.DrawFn, n: int = 1) -> list[EnergyBudget]:
    """`n` measurements of one random model."""
    layers = draw(
        st.lists(st.sampled_from(["synapses", "spiking", "analog"]), min_size=1, max_size=4)
    )
    phases = draw(st.sampled_from([("unknown",), PHASES]))
    found = []
    for _ in range(n):
        steps = draw(st.integers(1, 5))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

        def random(steps: int = steps, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randint(0, 50, (len(phases), steps), generator=generator).double()

        rows = []
        for i, role in enumerate(layers):
            name = f"{i}.{role}"
            if role == "synapses":
                sizes = draw(st.sampled_from([(math.inf, 0.0), (1.0, 1.0), (0.5, 0.5), (0.5, 2.0)]))
                rows.append(
                    LayerCounts(
                        name=name, kind="Linear", synapses=7 + i, least=sizes[0], most=sizes[1],
                        series={"synops": random(), "synops_weighted": random(),
                                "synops_dense": random() + 50},
                    )
                )  # fmt: skip
                continue
            active = random()
            updates = {"neuron_updates": active + random(), "neuron_updates_active": active}
            spikes = {"spikes": active} if role == "spiking" else {}
            rows.append(
                LayerCounts(
                    name=name,
                    kind=role,
                    neurons=3 + i,
                    spiking_units=3 + i,
                    series={**updates, **spikes},
                )
            )
        samples = random() + 1
        samples[:, 0] += 50  # all samples are there at first; some runs end earlier
        found.append(EnergyBudget(counts=rows, samples=samples, dt=0.5, phases=phases))
    return found


class TestCounts:
    def test_rows_are_means_per_sample(self) -> None:
        budget = small()
        fc, lif = budget.layers
        assert (budget.n_samples, budget.n_timesteps, budget.duration) == (2, 2, 4.0)
        assert (fc.name, fc.kind, fc.neurons, fc.synapses) == ("fc", "Linear", 0, 12)
        assert (fc.synops_ac, fc.synops_mac, fc.synops_dense, fc.spikes) == (6, 0, 24, 0)
        assert fc.firing_rate is None
        assert (lif.spikes, lif.neuron_updates, lif.neuron_updates_active) == (2, 8, 2)
        # 2 spikes per sample, 4 neurons, 2 timesteps of 2 ms
        assert lif.firing_rate == pytest.approx(2 / (4 * 4e-3))
        assert budget.total.firing_rate == lif.firing_rate
        assert budget.by_timestep("spikes").tolist() == [1.5, 0.5]
        assert budget.by_timestep("firing_rate").tolist() == pytest.approx(
            [1.5 / (4 * 2e-3), 0.5 / (4 * 2e-3)]
        )
        assert budget.by_timestep("synops_ac", layer="fc").tolist() == [4, 2]
        assert budget.by_timestep("synops_ac", layer="lif").tolist() == [0, 0]
        assert budget.by_timestep("spikes").dtype == torch.float64

    @pytest.mark.parametrize(
        ("least", "most", "spiking"),
        [(math.inf, 0.0, True), (1.0, 1.0, True), (0.3, 0.3, True), (0.3, 0.30001, False)],
    )
    def test_spiking_or_analog(self, least: float, most: float, spiking: bool) -> None:
        total = small(least=least, most=most).total
        assert (total.synops_ac, total.synops_mac) == ((6, 0) if spiking else (0, 6))

    def test_one_analog_batch_makes_the_connection_analog(self) -> None:
        total = (small() + small(least=0.5, most=1.0)).total
        assert (total.synops_ac, total.synops_mac) == (0, 6)
        two_sizes = (small(least=0.5, most=0.5) + small()).total
        assert (two_sizes.synops_ac, two_sizes.synops_mac) == (0, 6)

    def test_phases(self) -> None:
        samples = torch.tensor([[4.0, 4.0, 0.0], [0.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
        lif = LayerCounts(
            name="lif",
            kind="Leaky",
            neurons=2,
            spiking_units=2,
            series={"spikes": samples / 4 * torch.arange(3)},
        )
        budget = EnergyBudget(counts=[lif], samples=samples, dt=1.0, phases=PHASES)
        assert budget.by_phase("spikes") == {"null": 0.25, "reaction": 0.5, "supervised": 0.0}
        rates = budget.by_phase("firing_rate")
        assert rates["null"] == pytest.approx(1 / (2 * 8e-3))
        assert math.isnan(rates["supervised"])

    def test_runs_of_different_length(self) -> None:
        short = EnergyBudget(
            counts=[
                LayerCounts(
                    name="lif",
                    kind="Leaky",
                    neurons=1,
                    spiking_units=1,
                    series={"spikes": series(2)},
                )
            ],
            samples=series(2),
            dt=1.0,
        )
        long = EnergyBudget(
            counts=[
                LayerCounts(
                    name="lif",
                    kind="Leaky",
                    neurons=1,
                    spiking_units=1,
                    series={"spikes": series(0, 2, 0)},
                )
            ],
            samples=series(2, 2, 2),
            dt=1.0,
        )
        both = short + long
        assert (both.n_samples, both.n_timesteps) == (4, 3)
        assert both.by_timestep("spikes").tolist() == [0.5, 0.5, 0]
        assert both.by_timestep("firing_rate").tolist() == [500, 1000, 0]
        assert both.total.firing_rate == pytest.approx(4 / 8e-3)  # 4 spikes in 8 neuron-ms

    @settings(max_examples=40, deadline=None)
    @given(budgets())
    def test_conservation(self, drawn: list[EnergyBudget]) -> None:
        (budget,) = drawn
        for quantity in QUANTITIES:
            total = getattr(budget.total, quantity)
            assert sum(getattr(row, quantity) for row in budget.layers) == pytest.approx(total)
            assert float(budget.by_timestep(quantity).sum()) == pytest.approx(total)
            assert sum(budget.by_phase(quantity).values()) == pytest.approx(total)
            layered = sum(budget.by_timestep(quantity, row.name) for row in budget.layers)
            torch.testing.assert_close(layered, budget.by_timestep(quantity))

    def test_a_measurement_on_another_device_or_type_is_taken(self) -> None:
        layer = LayerCounts(
            name="a",
            kind="A",
            neurons=1,
            spiking_units=1,
            series={"spikes": torch.ones(1, 2).int()},
        )
        assert layer.series["spikes"].dtype == torch.float64


class TestMerging:
    @settings(max_examples=40, deadline=None)
    @given(budgets(n=2))
    def test_two_halves_are_the_whole(self, drawn: list[EnergyBudget]) -> None:
        a, b = drawn
        whole = a + b
        assert whole.n_samples == a.n_samples + b.n_samples
        for quantity in QUANTITIES:
            if quantity in ("synops_ac", "synops_mac"):
                continue  # decided on the whole, below
            mean = (
                getattr(a.total, quantity) * a.n_samples + getattr(b.total, quantity) * b.n_samples
            ) / whole.n_samples
            assert getattr(whole.total, quantity) == pytest.approx(mean)
        both = sum(
            (x.total.synops_ac + x.total.synops_mac) * x.n_samples / whole.n_samples for x in (a, b)
        )
        assert whole.total.synops_ac + whole.total.synops_mac == pytest.approx(both)
        assert (b + a).to_dict()["layers"] == whole.to_dict()["layers"]

    def test_different_phases_line_up_by_name(self) -> None:
        unknown = small()
        known = small(phases=("null",))
        both = unknown + known
        assert both.phases == ("unknown", "null")
        assert both.by_phase("spikes") == {"unknown": 1.0, "null": 1.0}
        assert both.n_samples == 4

    def test_idle_and_uncounted_are_kept(self) -> None:
        a = small(idle=small(), uncounted={"attention": "no rule"})
        b = small(idle=small(), uncounted={"pool": "no rule"})
        both = a + b
        assert both.idle is not None
        assert both.idle.n_samples == 4
        assert set(both.uncounted) == {"attention", "pool"}
        assert (a + small()).idle is a.idle
        assert both.total == a.total

    @pytest.mark.parametrize("change", [{"name": "other"}, {"kind": "Conv2d"}, {"synapses": 11}])
    def test_other_models_are_refused(self, change: dict) -> None:
        budget = small()
        other = dataclasses.replace(
            budget, counts=[dataclasses.replace(budget.counts[0], **change), budget.counts[1]]
        )
        with pytest.raises(EnergyError, match="fc"):
            budget + other

    def test_other_dt_and_other_series_are_refused(self) -> None:
        with pytest.raises(EnergyError, match=r"dt 2.0 ms and 1.0 ms"):
            small() + small(dt=1.0)
        budget = small()
        silent = dataclasses.replace(budget.counts[1], series={})
        other = dataclasses.replace(budget, counts=[budget.counts[0], silent])
        with pytest.raises(EnergyError, match="'lif' counts spikes"):
            budget + other
        with pytest.raises(TypeError):
            budget + 1


class TestJoules:
    def test_arithmetic_profile(self) -> None:
        spiking, analog = small(), small(least=0.1)
        assert spiking.joules("45nm-fp32") == pytest.approx(6 * 0.9e-12)
        assert analog.joules("45nm-fp32") == pytest.approx(6 * 4.6e-12)

    def test_loihi_by_term(self) -> None:
        # per sample: 6 ACs, 2 of 8 neuron updates active, 2 spikes
        expected = {
            "ac": 6 * 23.6e-12,
            "mac": None,
            "neuron_update_active": 2 * 81e-12,
            "neuron_update_inactive": 6 * 52e-12,
            "spike": 2 * 1.7e-12,
        }
        del expected["mac"]
        joules = small().joules("loihi")
        assert joules.terms == pytest.approx(expected)
        assert joules == pytest.approx(sum(expected.values()))
        assert joules.complete
        assert joules.lacking == {}

    def test_hardware_that_is_not_event_driven_pays_for_every_synapse(self) -> None:
        spiking, analog = small(), small(least=0.1)
        assert spiking.joules("gpu") == analog.joules("gpu") == pytest.approx((24 + 8) * 0.3e-9)

    def test_macs_are_never_priced_as_acs(self) -> None:
        analog = small(least=0.1)
        with pytest.warns(EnergyWarning, match="'loihi' has no figure .* without 6 MACs"):
            joules = analog.joules("loihi")
        assert joules.lacking == {"mac": 6}
        assert "ac" not in joules.lacking
        assert joules.terms["ac"] == 0
        assert not joules.complete
        assert str(joules).startswith("at least ")
        assert "without 6 MACs" in repr(joules)
        with pytest.warns(EnergyWarning):
            assert analog.joules("loihi", by="layer")["fc"].lacking == {"mac": 6}

    def test_other_lacking_terms_are_shown_without_a_warning(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            joules = small().joules("45nm-fp32")
        assert joules.lacking == {
            "neuron_update_active": 2,
            "neuron_update_inactive": 6,
            "spike": 2,
        }
        assert str(joules) == (
            "at least 5.4 pJ (45nm-fp32, estimate; without 2 active neuron updates, "
            "6 inactive neuron updates, 2 spikes)"
        )

    def test_uncounted_layers_are_in_the_printed_sum(self) -> None:
        joules = small(uncounted={"attention": "no rule"}).joules("loihi")
        assert not joules.complete
        assert str(joules).endswith("without the uncounted attention)")

    def test_static_power_is_a_row_of_its_own(self) -> None:
        chip = HardwareProfile(
            name="chip",
            source="bench",
            basis="measured",
            ac=1e-9,
            static_power=0.1,
            hardware_dt=2.0,
        )
        budget = small()
        joules = budget.joules(chip)
        assert joules.terms == pytest.approx({"ac": 6e-9, "static": 2 * 0.1 * 2e-3})
        by_layer = budget.joules(chip, by="layer")
        assert by_layer["static power"] == pytest.approx(4e-4)
        assert by_layer["fc"] == pytest.approx(6e-9)
        off = dataclasses.replace(chip, hardware_dt=None)
        assert budget.joules(off) == pytest.approx(6e-9)
        assert "static power" not in budget.joules(off, by="layer")

    @settings(max_examples=40, deadline=None)
    @given(budgets(), st.sampled_from(["45nm-fp32", "loihi", "spinnaker", "cpu", "own"]))
    def test_conservation(self, drawn: list[EnergyBudget], name: str) -> None:
        (budget,) = drawn
        own = HardwareProfile(
            name="own", source="bench", basis="measured", ac=1e-12, mac=3e-12, spike=2e-12,
            static_power=1e-9, hardware_dt=1.0,
        )  # fmt: skip
        profile = own if name == "own" else name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EnergyWarning)
            whole = budget.joules(profile)
            for by in ("layer", "phase", "term"):
                assert sum(budget.joules(profile, by=by).values()) == pytest.approx(whole)
            series_ = budget.joules(profile, by="timestep")
        assert series_.shape == (budget.n_timesteps,)
        assert float(series_.sum()) == pytest.approx(whole)

    def test_it_is_a_float(self) -> None:
        joules = small().joules("loihi")
        assert isinstance(joules, float)
        assert f"{joules:.3e}" == f"{float(joules):.3e}"
        assert f"{joules}" == str(joules)
        assert type(joules * 2) is float
        assert json.loads(json.dumps(float(joules))) == joules
        for same in (pickle.loads(pickle.dumps(joules)), copy.deepcopy(joules)):
            assert isinstance(same, Joules)
            assert (same, same.terms, same.profile) == (joules, joules.terms, joules.profile)

    def test_unknown(self) -> None:
        with pytest.raises(EnergyError, match=r"by 'layers' is unknown\. Did you mean 'layer'"):
            small().joules("loihi", by="layers")
        with pytest.raises(EnergyError, match=r"Known: .*loihi"):
            small().joules("loihi2000")


class TestFiles:
    @settings(max_examples=30, deadline=None)
    @given(budgets())
    def test_round_trip(self, drawn: list[EnergyBudget]) -> None:
        (budget,) = drawn
        full = dataclasses.replace(budget, uncounted={"x": "no rule"}, idle=budget)
        plain = json.loads(json.dumps(full.to_dict(), allow_nan=False))
        again = EnergyBudget.from_dict(plain)
        assert again.to_dict() == plain
        assert again.layers == full.layers
        assert again.idle is not None
        assert again.idle.total == full.total

    @pytest.mark.parametrize(
        ("change", "message"),
        [({"schema": 0}, "schema 0 cannot be read"), ({"extra": 1}, "got .*extra")],
    )
    def test_other_files(self, change: dict, message: str) -> None:
        with pytest.raises(EnergyError, match=message):
            EnergyBudget.from_dict({**small().to_dict(), **change})

    def test_other_layers(self) -> None:
        plain = small().to_dict()
        del plain["layers"][0]["least"]
        with pytest.raises(EnergyError, match="A layer of a budget has the keys"):
            EnergyBudget.from_dict(plain)


class TestTable:
    def test_every_layer_and_every_gap_is_named(self) -> None:
        text = str(small(uncounted={"attention": "no counting rule"}, idle=small()))
        lines = text.splitlines()
        assert lines[0] == "Energy budget per sample: 2 samples, 4 ms = 2 timesteps of 2 ms"
        assert lines[1].split()[:4] == ["layer", "kind", "neurons", "synapses"]
        assert [" ".join(lines[i].split()) for i in (3, 4, 6)] == [
            "fc Linear 0 12 0.00 - 6.0 0.0 6.0 24.0 0.0",
            "lif Leaky 4 0 2.00 125.00 0.0 0.0 0.0 0.0 8.0",
            "total 4 12 2.00 125.00 6.0 0.0 6.0 24.0 8.0",
        ]
        assert lines[7:] == [
            "uncounted: attention (no counting rule)",
            "idle time apart: 4 ms, in no total",
        ]
        assert len({len(line) for line in lines[1:7]}) == 1

    def test_a_layer_that_is_the_whole_model(self) -> None:
        layer = dataclasses.replace(small().counts[0], name="")
        assert "(model)  Linear" in str(small(counts=[layer]))


class TestRefusals:
    @pytest.mark.parametrize(
        "change", [{"least": math.nan}, {"most": math.inf}, {"least": math.nan, "most": math.nan}]
    )
    def test_bad_values_name_the_layer(self, change: dict) -> None:
        with pytest.raises(EnergyError, match="'fc' took in or gave out NaN or infinite values"):
            dataclasses.replace(small().counts[0], **change)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"series": {"spikes": series(1, math.nan)}}, "'lif': spikes holds NaN"),
            ({"series": {"spikes": series(1, -1)}}, "'lif': spikes is negative"),
            ({"series": {"spikes": torch.ones(2)}}, r"shape \[2\]"),
            ({"series": {"spike": series(1, 1)}}, "unknown series 'spike'. Did you mean 'spikes'"),
            ({"series": {"spikes": series(1, 1), "synops": series(1)}}, "shapes disagree"),
            ({"neurons": -1}, "'lif' has -1 neurons"),
        ],
    )
    def test_layers(self, change: dict, message: str) -> None:
        with pytest.raises(EnergyError, match=message):
            dataclasses.replace(small().counts[1], **change)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"dt": 0.0}, "dt is a positive"),
            ({"dt": math.nan}, "dt is a positive"),
            ({"samples": series(0, 0)}, "No timestep was observed"),
            ({"samples": torch.ones(1, 0)}, "No timestep was observed"),
            ({"samples": torch.ones(2, 2)}, r"expected \[1, T\]"),
            ({"samples": series(1, 1, 1)}, "but the samples have"),
            ({"phases": ("a", "a"), "samples": torch.ones(2, 2)}, "a more than once"),
            ({"counts": [small().counts[0]] * 2}, "fc more than once"),
        ],
    )
    def test_budgets(self, change: dict, message: str) -> None:
        with pytest.raises(EnergyError, match=message):
            small(**change)

    def test_unknown_quantities_and_layers(self) -> None:
        with pytest.raises(EnergyError, match=r"Unknown quantity 'spike'. Did you mean 'spikes'"):
            small().by_timestep("spike")
        with pytest.raises(EnergyError, match=r"Unknown layer 'lf'. Did you mean 'lif'"):
            small().by_phase("spikes", layer="lf")
