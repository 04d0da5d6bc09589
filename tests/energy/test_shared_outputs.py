"""Layers whose neurons are not one for each value of the output.

The oracle is upstream's own loop: every cell of the membrane that its state function returned is an
update, every nonzero value that it returned as spikes a spike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import snntorch as snn
import torch
from energy_oracle import ops_of
from torch import Tensor, nn

import dynvision_snn as dvs
from dynvision_snn.energy import EnergyBudget, EnergyMeter, HardwareProfile, MemoryModel
from dynvision_snn.errors import EnergyError
from dynvision_snn.losses import SynopsLoss
from dynvision_snn.presentation import Phase
from dynvision_snn.presentation_batch import PresentationBatch
from dynvision_snn.training.firing import FiringRate

B, SIZE, DT = 3, (5, 7), 2.0
POOLS: dict[str, dict[str, Any]] = {
    "none": {},
    "max": {"max_pool": 2},
    "max-uneven": {"max_pool": (2, 3)},
    "avg": {"avg_pool": 2},
}
CHIP = HardwareProfile(
    name="chip", source="bench", basis="measured", ac=2e-12, mac=5e-12, spike=7e-12,
    neuron_update_active=3e-12, neuron_update_inactive=1e-12,
)  # fmt: skip
ONES = dvs.Presentation("00111011", dt=DT, reaction_time=2.0, idle_time=4.0)
OWN = PresentationBatch(
    [ONES, *(dvs.Presentation(p, dt=DT, reaction_time=2.0, idle_time=4.0) for p in ("11", "01110"))]
)


class Pooling(nn.Module):
    """A convolution, an LSTM of convolutions whose spikes are pooled, and a readout."""

    def __init__(self, **pool: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.lstm = snn.SConv2dLSTM(2, 3, 3, threshold=0.05, init_hidden=True, **pool)
        self.fc = nn.LazyLinear(4)
        self.out = snn.Leaky(0.9, threshold=0.1, init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(self.lstm(self.conv(x)).flatten(1)))


def make(pool: str) -> nn.Module:
    torch.manual_seed(0)
    net = Pooling(**POOLS[pool])
    net(torch.rand(1, 1, *SIZE))
    reset(net)
    return net


def images() -> Tensor:
    return torch.rand(B, 1, *SIZE, generator=torch.Generator().manual_seed(1))


def reset(net: Any) -> None:
    net.lstm.reset_mem()
    net.out.reset_mem()


@dataclass
class Truth:
    """Of the LSTM: ``[T]`` or ``[T, B]``, idle time first."""

    cells: list[int]
    units: int
    spikes: Tensor
    recurrent: list[float]


def truth(net: Any, inputs: Tensor) -> Truth:
    """Upstream's loop, its state function watched."""
    cells: list[int] = []
    recurrent: list[float] = []
    spikes: list[Tensor] = []
    stepped = net.lstm.state_function
    conv = nn.Conv2d(3, 12, 3, padding=1, bias=False)
    conv.weight = nn.Parameter(net.lstm.conv.weight.detach()[:, 2:])

    def watched(x: Tensor) -> tuple[Tensor, Tensor]:
        recurrent.append(ops_of(conv, torch.ones_like(net.lstm.mem)) / len(x))
        syn, mem = stepped(x)
        cells.append(mem[0].numel())
        return syn, mem

    net.lstm.state_function = watched
    handle = net.lstm.register_forward_hook(lambda module, args, out: spikes.append(out.detach()))
    reset(net)
    with torch.no_grad():
        for x in inputs:
            net(x)
    handle.remove()
    net.lstm.state_function = stepped
    reset(net)
    counted = torch.stack([s.flatten(1).count_nonzero(1) for s in spikes])
    return Truth(cells, spikes[0][0].numel(), counted.double(), recurrent)


def with_idle(presentation: Any) -> Tensor:
    shown = presentation.present(images())
    return torch.cat([torch.zeros(presentation.idle_steps, *shown.shape[1:]), shown])


def row(budget: EnergyBudget, name: str = "lstm") -> Any:
    return next(layer for layer in budget.layers if layer.name == name)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("engine", ["step", "auto"])
@pytest.mark.parametrize("every", [None, 6.0])
@pytest.mark.parametrize("presentation", [ONES, OWN], ids=["alike", "by-sample"])
def test_every_cell_is_updated_and_pooled_units_spike(
    pool: str, engine: str, every: float | None, presentation: Any
) -> None:
    net = make(pool)
    found, idle = truth(net, with_idle(presentation)), presentation.idle_steps
    spikes, cells = found.spikes[idle:], found.cells[0]
    active = torch.ones(len(spikes), B, dtype=torch.bool)
    if isinstance(presentation, PresentationBatch):
        active = presentation.active_mask
    spikes = spikes * active
    assert set(found.cells) == {cells}
    assert cells == 3 * 5 * 7
    assert (found.units < cells) == (pool != "none")
    assert 0 < spikes.sum() < active.sum() * found.units

    model = dvs.wrap(net, dt=DT, engine=engine)
    with torch.no_grad(), EnergyMeter(model, per_sample=True) as meter:
        if every is None:
            model(images(), presentation)
        else:
            list(model.chunks(images(), presentation, every=every))
    budget = meter.budget()
    layer, steps = row(budget), active.sum(1)
    assert layer.neurons == cells
    assert layer.neuron_updates == pytest.approx(cells * float(steps.sum()) / B)
    assert layer.spikes == layer.neuron_updates_active == pytest.approx(float(spikes.sum()) / B)
    seconds = float(steps.sum()) * DT * 1e-3
    assert layer.firing_rate == pytest.approx(float(spikes.sum()) / (found.units * seconds))
    total = budget.total
    assert total.firing_rate == pytest.approx(
        (total.spikes * B) / ((found.units + 4) * seconds), rel=1e-12
    )
    updates = budget.by_timestep("neuron_updates", "lstm") * B
    assert updates.tolist() == (cells * steps).tolist()
    rates = budget.by_timestep("firing_rate", "lstm")
    expected = spikes.sum(1) / (found.units * steps.double() * DT * 1e-3)
    torch.testing.assert_close(rates, expected, rtol=1e-12, atol=0)
    for phase, code in (
        ("null", Phase.NULL),
        ("reaction", Phase.REACTION),
        ("supervised", Phase.SUPERVISED),
    ):
        codes = presentation.phase_codes
        mask = (codes if codes.ndim == 2 else codes[:, None].expand(-1, B)) == code
        assert budget.by_phase("neuron_updates", "lstm")[phase] == pytest.approx(
            cells * float(mask.sum()) / B
        )
        assert budget.by_phase("spikes", "lstm")[phase] == pytest.approx(
            float((spikes * mask).sum()) / B
        )
    assert budget.idle is not None
    resting = row(budget.idle)
    assert resting.neuron_updates == cells * idle
    assert resting.spikes == pytest.approx(float(found.spikes[:idle].sum()) / B)
    dense = budget.by_timestep("synops_dense", "lstm.recurrent") * B
    assert dense.tolist() == (found.recurrent[0] * steps).tolist()
    samples = meter.sample_energy
    assert (
        samples.operations("neuron_updates")[0].tolist() == ((cells + 4) * active.sum(0)).tolist()
    )


@pytest.mark.parametrize("pool", POOLS)
def test_joules_price_every_cell_and_one_active_update_per_spike(pool: str) -> None:
    net = make(pool)
    found = truth(net, ONES.present(images()))
    with torch.no_grad(), EnergyMeter(net) as meter:
        for x in ONES.present(images()):
            net(x)
    spikes = float(found.spikes.sum()) / B
    updates = sum(found.cells)
    by_layer = meter.budget(dt=DT).joules(CHIP, by="layer")
    assert float(by_layer["lstm"]) == pytest.approx(
        spikes * (3e-12 + 7e-12) + (updates - spikes) * 1e-12
    )


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("presentation", [ONES, OWN], ids=["alike", "by-sample"])
def test_losses_are_the_budgets_numbers(pool: str, presentation: Any) -> None:
    model = dvs.wrap(make(pool), dt=DT)
    joules, rate = SynopsLoss("none", profile=CHIP, relative=False), FiringRate("none")
    share = SynopsLoss("none", profile=CHIP)
    for loss in (joules, rate, share):
        loss.register_hooks(model)
    with EnergyMeter(model, per_sample=True) as meter:
        model(images(), presentation)
    samples = meter.sample_energy
    each = samples.joules(CHIP)[0]
    torch.testing.assert_close(joules(None, None).detach().double(), each, rtol=1e-5, atol=0)
    units = meter.budget().counts[1].spiking_units + 4
    seconds = samples.timesteps["whole"][0] * DT * 1e-3
    rates = samples.operations("spikes")[0] / (units * seconds)
    torch.testing.assert_close(rate(None, None).detach().double(), rates, rtol=1e-5, atol=0)
    most = samples.operations("synops_dense")[0] * 0
    dense = {layer.name: layer.synops_dense for layer in meter.budget().layers}
    steps = samples.timesteps["whole"][0]
    mean_steps = float(steps.mean())
    for layer in meter.budget().counts:
        price = 2e-12 if layer.carries_spikes else 5e-12
        most = most + price * dense[layer.name] / mean_steps * steps
        most = most + layer.spiking_units * steps * (3e-12 - 1e-12 + 7e-12)
        most = most + layer.neurons * steps * 1e-12
    torch.testing.assert_close(share(None, None).detach().double(), each / most, rtol=1e-4, atol=0)


def test_a_budget_says_that_neurons_share_outputs() -> None:
    def notes(pool: str) -> Any:
        net = make(pool)
        with torch.no_grad(), EnergyMeter(net) as meter:
            net(images())
        return meter.budget(dt=DT).explain()

    sharing = (
        "The 105 neurons of lstm share 18 outputs that spike; a spike makes one update active."
    )
    for name in ("firing_rate", "neuron_updates_active"):
        assert sharing in notes("max").of(name).caveat
        assert "share" not in notes("none").of(name).caveat


def test_it_survives_a_file_a_sum_and_a_description() -> None:
    net = make("max")
    budgets = []
    for _ in range(2):
        reset(net)
        with torch.no_grad(), EnergyMeter(net) as meter:
            net(images())
            net(images())
        budgets.append(meter.budget(dt=DT))
    both = EnergyBudget.from_dict(json.loads(json.dumps((budgets[0] + budgets[1]).to_dict())))
    assert both.counts[1].spiking_units == 18
    assert row(both) == row(budgets[0])
    rows = {layer.name: layer for layer in dvs.describe(dvs.wrap(net, dt=DT), images()).layers}
    alone = {
        layer.name: layer for layer in dvs.describe(dvs.wrap(make("none"), dt=DT), images()).layers
    }
    for name in ("lstm", "lstm.input", "lstm.recurrent"):
        assert rows[name].units == alone[name].units
        assert rows[name].synapses == alone[name].synapses


def test_spikes_of_no_unit_are_refused() -> None:
    net = make("max")
    with torch.no_grad(), EnergyMeter(net) as meter:
        net(images())
    with pytest.raises(EnergyError, match="has spikes but 0 spiking_units"):
        replace(meter.budget(dt=DT).counts[1], spiking_units=0)


@pytest.mark.parametrize("pool", POOLS)
def test_synapses_inside_drive_every_cell(pool: str) -> None:
    net = make(pool)
    with torch.no_grad(), EnergyMeter(net) as meter:
        net(images())
    counts = {layer.name: layer for layer in meter.budget(dt=DT).counts}
    assert (counts["lstm.input"].inputs, counts["lstm.input"].outputs) == (2 * 35, 3 * 35)
    assert (counts["lstm.recurrent"].inputs, counts["lstm.recurrent"].outputs) == (3 * 35, 3 * 35)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_an_lstm_costs_the_loss_what_it_costs_the_meter(
    layers: int, both_ways: bool, proj_size: int
) -> None:
    net = nn.LSTM(4, 5, layers, bidirectional=both_ways, proj_size=proj_size)
    loss = SynopsLoss(profile=CHIP, relative=False)
    loss.register_hooks(net)
    with EnergyMeter(net) as meter:
        net(torch.rand(6, B, 4))
    budget = meter.budget(dt=DT)
    assert budget.total.neurons == 5 * layers * (1 + both_ways)
    assert float(loss(None, None)) == pytest.approx(float(budget.joules(CHIP)), rel=1e-5)
    for counts in budget.counts[1:]:
        assert counts.outputs == (proj_size if "projection" in counts.name else 5)
    memory = MemoryModel(weight_buffer=8192, potential_buffer=8192, event_buffer=8192)
    written = sum(c.inputs + c.outputs for c in budget.counts[1:]) * 6
    events = memory.joules(budget)["events"]
    assert events == pytest.approx(written * 10e-12 / 8 * 4)
