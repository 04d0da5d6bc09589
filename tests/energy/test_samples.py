"""The cost of each sample: it adds up to the budget, and stops at the moment asked for."""

from __future__ import annotations

import numpy as np
import pytest
import snntorch as snn
import torch
from energy_nets import T, conv_inputs, conv_net, norse_recurrent, run_loop
from energy_oracle import ops_of, watch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dynvision_snn as dvs
from dynvision_snn.energy import EnergyMeter, HardwareProfile, Spread
from dynvision_snn.energy.samples import SAMPLE_QUANTITIES
from dynvision_snn.errors import EnergyError, TimingError

N = 6
CHIP = HardwareProfile(
    name="chip", source="bench", basis="measured", ac=2e-12, mac=5e-12, spike=1e-12,
    neuron_update_active=3e-12, neuron_update_inactive=1e-12, static_power=1e-6, hardware_dt=1.0,
)  # fmt: skip


def inputs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return (
        torch.rand(T, N, 2, 8, 8, generator=generator)
        * torch.linspace(0, 1.5, N)[:, None, None, None]
    )


@pytest.mark.parametrize("make", [conv_net, norse_recurrent])
def test_samples_add_up_to_the_budget(make) -> None:
    net = make()
    model = dvs.wrap(net, dt=1.0)
    x = inputs() if make is conv_net else torch.rand(T, N, 6)
    with EnergyMeter(model, per_sample=True) as meter:
        model(x[:, :4])
        model(x[:, 4:])
    samples, budget = meter.sample_energy, meter.budget()
    assert samples.n_samples == budget.n_samples == N
    for quantity in SAMPLE_QUANTITIES:
        each = samples.operations(quantity)
        assert each.shape == (1, N)
        assert float(each.mean()) == pytest.approx(getattr(budget.total, quantity), rel=1e-12)
    assert float(samples.joules(CHIP).mean()) == pytest.approx(budget.joules(CHIP), rel=1e-12)
    assert float(samples.joules(CHIP).std()) > 0


def test_each_sample_is_what_it_costs_alone() -> None:
    net, x = conv_net(), inputs()
    with EnergyMeter(net, per_sample=True) as meter:
        run_loop(net, x)
    together = meter.sample_energy
    for sample in range(N):
        with EnergyMeter(net) as meter:
            run_loop(net, x[:, sample : sample + 1])
        alone = meter.budget(dt=1.0)
        assert together.operations("spikes")[0, sample] == alone.total.spikes
        synops = alone.total.synops_ac + alone.total.synops_mac
        each = together.operations("synops_ac") + together.operations("synops_mac")
        assert each[0, sample] == synops


def test_the_cost_stops_at_each_samples_moment() -> None:
    net, x = conv_net(), inputs()
    model = dvs.wrap(net, dt=2.0)
    times = torch.tensor([[0.0, 2.0, 4.0, 5.9, 8.0, torch.nan]])
    last = [1, 2, 3, 3, 5]  # timesteps of dt 2 that are included
    with EnergyMeter(model, per_sample=True) as meter, watch(net) as seen:
        model(x)
        seen = {name: calls[-T:] for name, calls in seen.items()}
        meter.mark("decision", times)
    samples = meter.sample_energy
    assert samples.moments == ("whole", "decision")
    macs = samples.operations("synops_mac", until="decision")
    spikes = samples.operations("spikes", until="decision")
    for sample, stop in enumerate(last):
        truth = sum(ops_of(net.conv, x[sample : sample + 1]) for x, _ in seen["conv"][:stop])
        assert macs[0, sample] == truth
        out = sum(int(o[sample].ne(0).sum()) for n in ("lif1", "lif2") for _, o in seen[n][:stop])
        assert spikes[0, sample] == out
    assert macs[0, 5].isnan()
    joules = samples.joules(CHIP, until="decision")
    assert joules[0, 5].isnan()
    assert joules[0, 0] < samples.joules(CHIP)[0, 0]
    spread = Spread.of(joules)
    assert spread.n_samples == 5


def test_moments_of_several_onsets_count_from_their_onset() -> None:
    model = dvs.wrap(conv_net(), dt=1.0)
    with EnergyMeter(model, per_sample=True) as meter:
        model(inputs())
        meter.mark("settling", torch.tensor([[1.0] * N, [0.0] * N]), onsets=[0, 3])
        meter.mark("first", torch.tensor([[3.0] * N]))
        meter.mark("before", torch.tensor([[2.0] * N]))
    samples = meter.sample_energy
    updates = samples.operations("neuron_updates", until="settling")
    assert updates.tolist() == [[2 * 52.0] * N, [52.0] * N]
    for quantity in SAMPLE_QUANTITIES:
        second = samples.operations(quantity, until="settling")[1]
        first, before = (samples.operations(quantity, until=m)[0] for m in ("first", "before"))
        assert torch.equal(second, first - before)


def test_one_analog_sample_makes_the_operations_of_all_macs() -> None:
    net = nn.Linear(3, 2)
    with EnergyMeter(net, per_sample=True) as meter:
        net(torch.tensor([[1.0, 1, 1]]))
        meter.next_run()
        net(torch.tensor([[0.5, 1, 1]]))
    samples = meter.sample_energy
    assert samples.operations("synops_ac").tolist() == [[0, 0]]
    assert samples.operations("synops_mac").tolist() == [[6, 6]]


def test_memory_is_a_few_numbers_per_sample() -> None:
    model = dvs.wrap(conv_net(), dt=1.0)
    with EnergyMeter(model, per_sample=True) as meter, torch.no_grad():
        for _ in range(3):
            model(inputs().repeat(4, 1, 1, 1, 1))
    kept = [
        counts
        for runs in meter._ledger.kept.values()
        for by_row, _ in runs
        for series in by_row.values()
        for counts in series.values()
    ]
    assert max(counts.numel() for counts in kept) == N


class TestMisuse:
    def test_without_being_asked_for(self) -> None:
        with EnergyMeter(net := conv_net()) as meter:
            run_loop(net, conv_inputs())
        with pytest.raises(EnergyError, match="per_sample=True"):
            _ = meter.sample_energy
        with pytest.raises(EnergyError, match="per_sample=True"):
            meter.mark("settling", torch.zeros(1, 3))

    def test_moments_that_do_not_fit(self) -> None:
        model = dvs.wrap(conv_net(), dt=1.0)
        with EnergyMeter(model, per_sample=True) as meter:
            with pytest.raises(EnergyError, match="after a run"):
                meter.mark("settling", torch.zeros(1, N))
            model(inputs())
            with pytest.raises(EnergyError, match=r"onsets are \[4.0\]; expected timesteps"):
                meter.mark("settling", torch.zeros(1, N), onsets=[4.0])
            with pytest.raises(EnergyError, match=r"shape \[1, 2\]; expected \[1, 6\]"):
                meter.mark("settling", torch.zeros(1, 2))
            with pytest.raises(EnergyError, match="outside of the run of 5 timesteps"):
                meter.mark("settling", torch.full((1, N), 5.0))
            with pytest.raises(TimingError):
                meter.mark("settling", torch.full((1, N), -1.0))
            with pytest.raises(EnergyError, match="another name"):
                meter.mark("whole", torch.zeros(1, N))
        samples = meter.sample_energy
        with pytest.raises(EnergyError, match="Known: whole"):
            samples.operations("spikes", until="end")
        with pytest.raises(EnergyError, match="Did you mean 'spikes'"):
            samples.operations("spike")


@given(st.lists(st.floats(0, 1e6) | st.just(float("nan")), min_size=1, max_size=20))
def test_spread_is_numpys(values: list[float]) -> None:
    spread = Spread.of(torch.tensor(values, dtype=torch.float64))
    known = np.array([v for v in values if not np.isnan(v)])
    assert spread.n_samples == len(known)
    if len(known) == 0:
        assert np.isnan(spread.mean)
        return
    assert spread.mean == pytest.approx(known.mean())
    for probability, value in spread.quantiles.items():
        assert value == pytest.approx(np.quantile(known, probability), rel=1e-9, abs=1e-9)
    if len(known) > 1:
        assert spread.std == pytest.approx(known.std(ddof=1), abs=1e-6)
    else:
        assert np.isnan(spread.std)


@pytest.mark.parametrize("every", [1.0, 2.0, 3.0])
def test_dense_operations_of_a_silent_piece_count_for_each_sample(every: float) -> None:
    net = nn.Sequential(nn.Linear(6, 5), snn.RLeaky(0.9, linear_features=5, init_hidden=True))
    model, x = dvs.wrap(net, dt=1.0, engine="step"), torch.rand(T, N, 6)
    with torch.no_grad(), EnergyMeter(model, per_sample=True) as meter:
        for chunk in model.chunks(x, every=every):  # no spike comes back at the first timestep
            last = chunk.start + chunk.n_timesteps == T
            times = torch.full((1, N), T - 1.0 if last else torch.nan)
            meter.mark("end", times, [0])
    for until in ("whole", "end"):
        each = meter.sample_energy.operations("synops_dense", until=until)[0]
        assert each.tolist() == [T * (6 * 5 + 5 * 5)] * N
