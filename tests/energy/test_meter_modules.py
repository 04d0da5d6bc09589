"""What a meter makes of changing weights, values and modules, and of misuse."""

from __future__ import annotations

import copy
import gc
import pickle

import norse.torch as norse
import pytest
import torch
from energy_nets import (
    B,
    T,
    check_same,
    conv_inputs,
    conv_net,
    layer,
    leaky,
    measured,
    run_loop,
)
from energy_oracle import ops_of, watch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import dynvision_snn as dvs
from dynvision_snn.energy import EnergyMeter
from dynvision_snn.errors import EnergyError
from dynvision_snn.losses import EnergyLoss


class TestWeights:
    def test_pruned_by_torch(self) -> None:
        net, inputs = conv_net(), conv_inputs()
        prune.random_unstructured(net.fc, "weight", amount=0.5)
        prune.random_unstructured(net.conv, "weight", amount=0.3)
        with torch.no_grad(), watch(net) as seen, EnergyMeter(net) as meter:
            run_loop(net, inputs)
        plain = copy.deepcopy(net)
        for module in (plain.fc, plain.conv):
            prune.remove(module, "weight")
        for name, module in (("fc", plain.fc), ("conv", plain.conv)):
            row = layer(meter.budget(dt=1.0), name)
            truth = sum(ops_of(module, x) for x, _ in seen[name]) / B
            assert row.synops_ac + row.synops_mac == truth

    def test_parametrised(self) -> None:
        class Half(nn.Module):
            def forward(self, weight: Tensor) -> Tensor:
                return weight * (torch.arange(weight.shape[1]) % 2)

        net = nn.Linear(6, 4)
        parametrize.register_parametrization(net, "weight", Half())
        with EnergyMeter(net) as meter:
            net(torch.ones(B, 6))
        budget = meter.budget(dt=1.0)
        assert budget.total.synops_ac == 12
        assert budget.uncounted == {}

    def test_the_fan_out_follows_the_weights_within_a_run(self) -> None:
        net = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        x = torch.ones(1, 3)
        with EnergyMeter(net) as meter:
            net(x)
            net.weight.grad = net.weight.detach().clone() * torch.tensor([[1.0, 0, 0], [0, 0, 0]])
            optimizer.step()  # one weight becomes zero
            net(x)
            with torch.no_grad():
                net.weight.zero_()
            net(x)
            net.weight = nn.Parameter(torch.ones(2, 3))
            net(x)
        assert meter.budget(dt=1.0).by_timestep("synops_ac").tolist() == [6, 5, 0, 6]

    def test_edits_that_torch_does_not_track_are_seen_by_the_next_run(self) -> None:
        net = nn.Linear(3, 2)
        with EnergyMeter(net) as meter:
            net(torch.ones(1, 3))
            net.weight.data.zero_()
            meter.next_run()
            net(torch.ones(1, 3))
        assert meter.budget(dt=1.0).total.synops_ac == 3  # (6 + 0) / 2

    def test_a_transposed_convolution_called_with_an_output_size(self) -> None:
        layer_ = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)
        x = torch.ones(1, 2, 4, 4)
        for size in ([7, 7], [8, 8], [7, 8]):
            probe = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, bias=False)
            nn.init.ones_(probe.weight)
            truth = float(probe(x, output_size=size).sum())
            with EnergyMeter(layer_) as meter:
                layer_(x, output_size=size)
            total = meter.budget(dt=1.0).total
            assert (total.synops_ac, total.synops_dense) == (truth, truth)


class TestValues:
    def test_a_reused_buffer_is_read_anew_at_every_timestep(self) -> None:
        net = nn.Linear(3, 2)
        for context in (torch.no_grad(), torch.inference_mode()):
            with context, EnergyMeter(net) as meter:
                buffer = torch.zeros(1, 3)
                for active in range(4):
                    buffer.zero_()
                    buffer[0, :active] = 1
                    net(buffer)
            assert meter.budget(dt=1.0).by_timestep("synops_ac").tolist() == [0, 2, 4, 6]

    def test_spikes_changed_in_place_on_their_way(self) -> None:
        class Halved(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lif, self.fc = leaky(init_hidden=True, threshold=0.1), nn.Linear(4, 2)

            def forward(self, x: Tensor) -> Tensor:
                spikes = self.lif(x)
                spikes[:, :2] = 0
                return self.fc(spikes)

        for context in (torch.no_grad(), torch.inference_mode()):
            net = Halved()
            with context, EnergyMeter(net) as meter:
                net(torch.ones(B, 4))
            budget = meter.budget(dt=1.0)
            assert layer(budget, "lif").spikes == 4
            assert layer(budget, "fc").synops_ac == 4

    @pytest.mark.parametrize("mode", ["train", "no_grad", "inference", "autocast"])
    def test_modes_count_alike(self, mode: str) -> None:
        net, inputs = conv_net(), conv_inputs()
        expected = measured(net, inputs)
        context = {
            "train": torch.enable_grad,
            "no_grad": torch.no_grad,
            "inference": torch.inference_mode,
            "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        }[mode]
        with watch(net) as seen, context(), EnergyMeter(net) as meter:
            run_loop(net, inputs)
        budget = meter.budget(dt=1.0)
        if mode == "autocast":  # other spikes, counted right
            truth = sum(ops_of(net.fc, x.float()) for x, _ in seen["fc"]) / B
            assert layer(budget, "fc").synops_ac == truth
        else:
            check_same(expected, budget)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_types(self, dtype: torch.dtype) -> None:
        net = nn.Sequential(nn.Linear(4, 2)).to(dtype)
        with EnergyMeter(net) as meter:
            net(torch.tensor([[0.0, 1, 1, 1]], dtype=dtype))
        assert meter.budget(dt=1.0).total.synops_ac == 6

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_nan_is_refused_by_name(self, bad: float) -> None:
        net, inputs = conv_net(), conv_inputs()
        inputs[2, 0, 0, 0, 0] = bad
        with EnergyMeter(net) as meter:
            run_loop(net, inputs)
        with pytest.raises(EnergyError, match="'conv' took in or gave out NaN or infinite"):
            meter.budget(dt=1.0)

    def test_nan_of_a_readout_is_refused_though_no_layer_follows(self) -> None:
        li = norse.LICell()
        with EnergyMeter(li) as meter:
            li(torch.full((B, 3), float("nan")))
        with pytest.raises(EnergyError, match="NaN"):
            meter.budget(dt=1.0)


class TestModules:
    def test_attention_is_uncounted_and_so_is_what_it_uses_unseen(self) -> None:
        net = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True).eval()
        with torch.no_grad(), EnergyMeter(net) as meter:
            net(torch.rand(B, 5, 8))
        budget = meter.budget(dt=1.0)
        assert set(budget.uncounted) == {"self_attn", "self_attn.out_proj", "norm1", "norm2"}
        assert "no counting rule for MultiheadAttention" in budget.uncounted["self_attn"]
        assert "never called as a module" in budget.uncounted["self_attn.out_proj"]
        assert layer(budget, "linear1").synops_dense == 5 * 8 * 16
        assert "uncounted: self_attn" in str(budget)
        assert not budget.joules("45nm-fp32").complete

    def test_what_a_function_uses_is_named(self) -> None:
        class Functional(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.hidden = nn.Linear(3, 3), nn.Linear(3, 3)

            def forward(self, x: Tensor) -> Tensor:
                return nn.functional.linear(self.used(x), self.hidden.weight)

        with EnergyMeter(net := Functional()) as meter:
            net(torch.ones(1, 3))
        assert set(meter.budget(dt=1.0).uncounted) == {"hidden"}

    def test_pooling_and_normalisation_are_counted_or_folded(self) -> None:
        net = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), leaky(init_hidden=True), nn.AvgPool2d(2, 1)
        ).eval()
        x = torch.rand(T, B, 1, 6, 6)
        with watch(net) as seen, EnergyMeter(net) as meter:
            run_loop(net, x)
        budget = meter.budget(dt=1.0)
        assert layer(budget, "1").synops_mac == T * 2 * 16
        spikes = [out for _, out in seen["2"]]
        windows = nn.functional.conv2d(
            torch.cat(spikes).flatten(0, 1)[:, None], torch.ones(1, 1, 2, 2)
        )
        assert windows.sum() > 0
        assert layer(budget, "3").synops_ac == float(windows.sum()) / B
        folded = measured(net, x, fold=True)
        assert [row.name for row in folded.layers] == ["0", "2"]
        assert folded.uncounted == {}
        training = measured(net.train(), x, fold=True)
        assert training.uncounted == {"1": "it normalises by the statistics of its own batch"}

    def test_layer_normalisation_is_uncounted(self) -> None:
        budget = measured(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), torch.rand(T, B, 3))
        assert budget.uncounted == {"1": "no counting rule for LayerNorm"}

    def test_replaced_modules_are_refused(self) -> None:
        net = conv_net()
        with pytest.raises(EnergyError, match=r"replaced.*: fc"), EnergyMeter(net):  # noqa: PT012
            run_loop(net, conv_inputs())
            net.fc = nn.Linear(12, 4)
            run_loop(net, conv_inputs())
        meter = EnergyMeter(net)
        net.fc = nn.Linear(12, 4)  # before the block: looked at anew
        with meter:
            run_loop(net, conv_inputs())
        net.fc = nn.Linear(12, 4)  # after it: too late to matter
        assert layer(meter.budget(dt=1.0), "fc").synops_ac > 0

    def test_modules_beside_a_wrapped_model_are_named(self) -> None:
        class Holder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model, self.head = dvs.wrap(conv_net(), dt=1.0), nn.Linear(4, 2)
                self.criterion = nn.CrossEntropyLoss()

        holder = Holder()
        with EnergyMeter(holder) as meter:
            holder.head(holder.model(conv_inputs()).membrane)
        uncounted = meter.budget().uncounted
        assert list(uncounted) == ["head"]
        assert "outside the TimedModel" in uncounted["head"]

    def test_a_moved_model_is_counted_on(self) -> None:
        net, inputs = nn.Sequential(conv_net().conv, nn.ReLU()), conv_inputs()
        with EnergyMeter(net) as meter:
            run_loop(net, inputs)
            net.double()
            meter.next_run()
            run_loop(net, inputs.double())
        budget = meter.budget(dt=1.0)
        assert budget.n_samples == 2 * B
        assert layer(budget, "0").synops_mac == measured(net, inputs.double()).total.synops_mac

    def test_a_copy_of_the_model_does_not_feed_the_meter(self) -> None:
        net, inputs = conv_net(), conv_inputs()
        with torch.no_grad(), EnergyMeter(net) as meter:
            run_loop(net, inputs)
            run_loop(copy.deepcopy(net), inputs[:, :2])
            pickle.loads(pickle.dumps(net.conv))(inputs[0])
        check_same(measured(net, inputs), meter.budget(dt=1.0))

    def test_two_meters_and_an_energy_loss_at_once(self) -> None:
        net, inputs = conv_net(), conv_inputs()
        alone = measured(net, inputs)
        energy = EnergyLoss()
        energy.register_hooks(net)
        run_loop(net, inputs)
        loss = energy(None, None).detach()
        with EnergyMeter(net) as outer:
            with EnergyMeter(net) as inner:
                run_loop(net, inputs)
            check_same(alone, inner.budget(dt=1.0))
        check_same(alone, outer.budget(dt=1.0))
        assert torch.equal(energy(None, None).detach(), loss)
        energy.remove_hooks()
        assert not net.conv._forward_hooks

    def test_checkpointing_counts_once(self) -> None:
        class Checkpointed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc1, self.lif1, self.fc2 = nn.Linear(4, 8), leaky(), nn.Linear(8, 2)

            def forward(self, x: Tensor, mem: Tensor, again: bool) -> tuple[Tensor, Tensor]:
                def block(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
                    return self.lif1(self.fc1(x), mem)

                spk, mem = (
                    checkpoint(block, x, mem, use_reentrant=False) if again else block(x, mem)
                )
                return self.fc2(spk), mem

        torch.manual_seed(0)
        net, inputs = Checkpointed(), torch.rand(T, B, 4)
        budgets = []
        for again in (False, True):
            with EnergyMeter(net) as meter:
                mem, loss = torch.zeros(B, 8), torch.zeros(())
                for x in inputs:
                    out, mem = net(x, mem, again)
                    loss = loss + out.sum()
                loss.backward()
            budgets.append(meter.budget(dt=1.0))
        assert budgets[0].total.spikes > 0
        check_same(*budgets)

    def test_hooks_and_meter_are_given_back(self) -> None:
        net = conv_net()
        meter = EnergyMeter(net)
        meter.__enter__()
        del meter
        gc.collect()
        net(conv_inputs()[0])
        assert not net.conv._forward_hooks


class TestMisuse:
    def test_used_twice(self) -> None:
        net = nn.Linear(3, 2)
        with EnergyMeter(net) as meter:
            net(torch.ones(1, 3))
        with pytest.raises(EnergyError, match="used already"), meter:
            pass

    def test_after_its_block(self) -> None:
        net = nn.Linear(3, 2)
        with EnergyMeter(net) as meter:
            net(torch.ones(1, 3))
        net(torch.zeros(1, 3))
        assert meter.budget(dt=1.0).n_samples == 1
        with pytest.raises(EnergyError, match="inside the meter's `with` block"):
            meter.next_run()

    def test_without_a_call(self) -> None:
        with EnergyMeter(nn.Linear(3, 2)) as meter:
            pass
        with pytest.raises(EnergyError, match="no call was observed"):
            meter.budget(dt=1.0)
        with pytest.raises(EnergyError, match="no call was observed"):
            EnergyMeter(nn.Linear(3, 2)).budget(dt=1.0)

    def test_without_a_timestep(self) -> None:
        net = nn.Linear(3, 2)
        with EnergyMeter(net) as meter:
            net(torch.ones(1, 3))
        with pytest.raises(EnergyError, match=r"budget\(dt=1.0\)"):
            meter.budget()

    def test_another_timestep_than_the_models(self) -> None:
        model = dvs.wrap(conv_net(), dt=2.0)
        with EnergyMeter(model) as meter:
            model(conv_inputs())
        with pytest.raises(dvs.errors.TimingError):
            meter.budget(dt=1.0)
        assert meter.budget().dt == 2.0

    def test_a_sample_without_a_batch_axis(self) -> None:
        net = nn.Linear(3, 2)
        with EnergyMeter(net), pytest.raises(EnergyError, match="batch"):
            net(torch.ones(3))


def test_reentrant_checkpointing_adds_no_timestep() -> None:
    net, inputs = nn.Sequential(nn.Linear(6, 3)), torch.rand(T, B, 6, requires_grad=True)
    with EnergyMeter(net) as meter:
        for x in inputs:
            checkpoint(net, x, use_reentrant=True).sum().backward()
    assert meter.budget(dt=1.0).by_timestep("synops_mac").tolist() == [18.0] * T


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("options", [{}, {"proj_size": 2}])
@pytest.mark.parametrize("per_sample", [False, True])
def test_every_layer_of_an_lstm_has_neurons(
    layers: int, both_ways: bool, options: dict[str, int], per_sample: bool
) -> None:
    net = nn.LSTM(4, 5, layers, bidirectional=both_ways, **options)
    with EnergyMeter(net, per_sample=per_sample) as meter:
        net(torch.rand(T, B, 4))
    neurons = 5 * layers * (1 + both_ways)
    row = meter.budget(dt=1.0).total
    assert row.neurons == neurons
    assert row.neuron_updates == row.neuron_updates_active == T * neurons


def test_silent_units_of_a_lower_layer_are_inactive_updates() -> None:
    net = nn.RNN(4, 5, 2, nonlinearity="relu").eval()
    inputs, hidden, active = torch.randn(T, B, 4), torch.zeros(2, B, 5), 0
    cells = [nn.RNNCell(4, 5, nonlinearity="relu"), nn.RNNCell(5, 5, nonlinearity="relu")]
    for index, cell in enumerate(cells):
        cell.load_state_dict(
            {name: getattr(net, f"{name}_l{index}").detach() for name in cell.state_dict()}
        )
    with torch.no_grad():
        for x in inputs:
            low = cells[0](x, hidden[0])
            hidden = torch.stack([low, cells[1](low, hidden[1])])
            active += int(hidden.count_nonzero())
    with EnergyMeter(net) as meter:
        net(inputs)
    assert 0 < active < T * B * 10
    assert meter.budget(dt=1.0).total.neuron_updates_active == pytest.approx(active / B)
