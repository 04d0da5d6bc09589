"""The meter in the libraries' own loops, against brute force over every weight and timestep."""

from __future__ import annotations

import copy
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from energy_nets import (
    B,
    SharedTwice,
    T,
    check_same,
    conv_inputs,
    conv_net,
    layer,
    leaky,
    measured,
    norse_recurrent,
    run_loop,
    run_states,
    sparsify,
)
from energy_oracle import matrix_ops, ops_of, watch, weighted_of
from torch import Tensor, nn

import dynvision_snn as dvs
from dynvision_snn.energy import EnergyMeter
from dynvision_snn.errors import EnergyError


class TestBruteForce:
    def test_snntorch_conv_net_weight_by_weight_and_step_by_step(self) -> None:
        net, inputs = conv_net(), conv_inputs()
        with watch(net) as seen, EnergyMeter(net) as meter:
            run_loop(net, inputs)
        budget = meter.budget(dt=2.0)
        for name in ("conv", "fc"):
            module = net.get_submodule(name)
            truth = torch.tensor([ops_of(module, x) for x, _ in seen[name]]).double() / B
            kind = "synops_mac" if name == "conv" else "synops_ac"
            assert truth.sum() > 0
            assert torch.equal(budget.by_timestep(kind, name), truth)
            weighted = sum(weighted_of(module, x) for x, _ in seen[name]) / B
            assert layer(budget, name).synops_weighted == pytest.approx(weighted)
            dense = T * ops_of(_dense(module), torch.ones_like(seen[name][0][0])) / B
            assert layer(budget, name).synops_dense == dense
        for name in ("lif1", "lif2"):
            spikes = torch.stack([out.ne(0).sum() for _, out in seen[name]]).double() / B
            assert spikes.sum() > 0
            assert torch.equal(budget.by_timestep("spikes", name), spikes)
            units = seen[name][0][1][0].numel()
            assert layer(budget, name).neurons == units
            assert layer(budget, name).neuron_updates == T * units
            rate = float(spikes.sum()) / (units * T * 2e-3)
            assert layer(budget, name).firing_rate == pytest.approx(rate)
        assert (budget.n_samples, budget.n_timesteps, budget.uncounted) == (B, T, {})

    def test_norse_recurrent_weights_one_product_at_a_time(self) -> None:
        net, inputs = norse_recurrent(), torch.rand(T, B, 6)
        with watch(net) as seen, EnergyMeter(net) as meter:
            run_states(net, inputs)
        budget = meter.budget(dt=1.0)
        spikes = [out for _, out in seen["lif"]]
        assert sum(float(z.sum()) for z in spikes) > 0
        before = [torch.zeros_like(spikes[0]), *spikes[:-1]]
        recurrent = sum(matrix_ops(net.lif.recurrent_weights, z) for z in before) / B
        given = sum(matrix_ops(net.lif.input_weights, x) for x, _ in seen["lif"]) / B
        assert layer(budget, "lif.recurrent").synops_ac == recurrent
        assert layer(budget, "lif.input").synops_mac == given
        nonzero = int(net.lif.recurrent_weights.ne(0).sum())
        assert layer(budget, "lif.recurrent").synapses == nonzero
        assert layer(budget, "lif.recurrent").synops_dense == T * 49
        assert layer(budget, "out").synops_ac == sum(ops_of(net.out, z) for z in spikes) / B
        assert layer(budget, "li").firing_rate is None
        assert layer(budget, "li").neuron_updates == 3 * T

    @pytest.mark.parametrize("all_to_all", [True, False])
    def test_snntorch_recurrence_of_both_kinds(self, all_to_all: bool) -> None:
        torch.manual_seed(0)
        options = (
            {"linear_features": 6} if all_to_all else {"V": torch.tensor([0.5, 0, 1, 1, 1, 1])}
        )
        rleaky = snn.RLeaky(
            beta=0.9, threshold=0.2, all_to_all=all_to_all, init_hidden=True, **options
        )
        net = nn.Sequential(nn.Linear(4, 6), rleaky)
        with watch(net) as seen, EnergyMeter(net) as meter:
            rleaky.reset_mem()
            for x in torch.rand(T, B, 4):
                net(x)
        spikes = [out for _, out in seen["1"]]
        before = [torch.zeros_like(spikes[0]), *spikes[:-1]]
        if all_to_all:
            truth = sum(ops_of(rleaky.recurrent, z) for z in before) / B
        else:
            truth = sum(float((z.ne(0) & rleaky.recurrent.V.ne(0)).sum()) for z in before) / B
        assert truth > 0
        assert layer(meter.budget(dt=1.0), "1.recurrent").synops_ac == truth

    @pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
    def test_torch_cells(self, cell: type[nn.Module]) -> None:
        torch.manual_seed(0)
        net: Any = sparsify(cell(5, 4))
        inputs = torch.rand(T, B, 5) * (torch.rand(T, B, 5) < 0.5)
        state, truth_in, truth_rec = None, 0.0, 0.0
        with EnergyMeter(net) as meter:
            for x in inputs:
                hidden = state[0] if isinstance(state, tuple) else state
                truth_in += matrix_ops(net.weight_ih, x)
                truth_rec += 0 if hidden is None else matrix_ops(net.weight_hh, hidden)
                state = net(x, state)
        budget = meter.budget(dt=1.0)
        assert layer(budget, ".input").synops_mac == truth_in / B
        assert layer(budget, ".recurrent").synops_mac == truth_rec / B
        assert layer(budget, "").neuron_updates_active == 4 * T

    def test_torch_gru_over_sequences_is_its_cells_unrolled(self) -> None:
        torch.manual_seed(0)
        gru, inputs = sparsify(nn.GRU(5, 4)), torch.rand(T, B, 5)
        with EnergyMeter(gru) as meter:
            outputs, _ = gru(inputs)
        budget = meter.budget(dt=1.0)
        before = torch.cat([torch.zeros(1, B, 4), outputs[:-1]])
        truth = torch.tensor([matrix_ops(gru.weight_hh_l0, h) for h in before]).double() / B
        assert torch.equal(budget.by_timestep("synops_mac", ".recurrent"), truth)
        assert budget.n_timesteps == T

    def test_totals_are_exact_integers_beyond_float32(self) -> None:
        net = nn.Linear(4099, 4099, bias=False)
        x = torch.ones(1, 4099)
        x[0, 0] = 0
        with torch.no_grad():
            net.weight[0, 1] = 0
        with EnergyMeter(net) as meter:
            net(x)
        expected = 4098 * 4099 - 1
        assert expected > 2**24
        assert torch.tensor(float(expected)).long() != expected  # float32 cannot hold it
        assert meter.budget(dt=1.0).total.synops_ac == expected


def _dense(module: nn.Module) -> nn.Module:
    full = copy.deepcopy(module)
    with torch.no_grad():
        full.weight.fill_(1.0)
    return full


class TestRuns:
    def test_bare_loop_and_wrapped_model_agree(self) -> None:
        net, inputs = conv_net(), conv_inputs()
        bare = measured(net, inputs)
        model = dvs.wrap(net, dt=1.0)
        with EnergyMeter(model) as meter:
            model(inputs)
        check_same(bare, meter.budget())

    def test_two_half_batches_are_the_whole(self) -> None:
        net, inputs = conv_net(), conv_inputs()
        whole = measured(net, inputs)
        with EnergyMeter(net) as meter:
            run_loop(net, inputs[:, :1])
            meter.next_run()
            run_loop(net, inputs[:, 1:])
        halves = meter.budget(dt=1.0)
        check_same(whole, halves)
        assert halves.n_samples == B
        separate = measured(net, inputs[:, :1]) + measured(net, inputs[:, 1:])
        check_same(whole, separate)

    def test_runs_of_a_wrapped_model_need_no_next_run(self) -> None:
        net, inputs = conv_net(), conv_inputs()
        model = dvs.wrap(net, dt=1.0)
        with EnergyMeter(model) as meter:
            model(inputs[:, :1])
            model(inputs[:, 1:])
        check_same(measured(net, inputs), meter.budget())

    def test_a_connection_is_the_same_in_idle_time_as_after_it(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 4), snn.Leaky(beta=0.9, init_hidden=True))
        model = dvs.wrap(net, dt=2.0)
        p = dvs.Presentation("0111", dt=2.0, idle_time=4.0, null_value=0.5)
        with EnergyMeter(model) as meter:
            model(torch.rand(3, 5) + 0.1, p)
        budget = meter.budget()
        assert budget.idle is not None
        shown, idle = layer(budget, "0"), layer(budget.idle, "0")
        # Null input alone has one magnitude, and would look like spikes.
        assert (shown.synops_ac, shown.synops_mac) == (0, 4 * 20)
        assert (idle.synops_ac, idle.synops_mac) == (0, 2 * 20)

    def test_idle_time_is_apart_and_phases_add_up(self) -> None:
        net = conv_net()
        model = dvs.wrap(net, dt=2.0)
        p = dvs.Presentation("0011111100", dt=2.0, reaction_time=4.0, idle_time=6.0)
        with watch(net) as seen, EnergyMeter(model) as meter:
            model(conv_inputs()[0], p)
            seen_in_run = {name: list(calls) for name, calls in seen.items()}
        budget = meter.budget()
        calls = [out for _, out in seen_in_run["lif1"]][-13:]  # a look at the model came before
        spikes = torch.stack([out.ne(0).sum() for out in calls]).double() / B
        assert budget.n_timesteps == 10
        assert torch.equal(budget.by_timestep("spikes", "lif1"), spikes[3:])
        by_phase = budget.by_phase("spikes", "lif1")
        assert by_phase == {
            "null": float(spikes[3:5].sum() + spikes[11:].sum()),
            "reaction": float(spikes[5:7].sum()),
            "supervised": float(spikes[7:11].sum()),
        }
        assert budget.idle is not None
        assert budget.idle.n_timesteps == 3
        assert torch.equal(budget.idle.by_timestep("spikes", "lif1"), spikes[:3])
        assert layer(budget.idle, "conv").synops_mac == 0
        assert (
            layer(budget.idle, "conv").synops_dense == 3 * layer(budget, "conv").synops_dense / 10
        )

    def test_taking_the_budget_inside_the_block_ends_the_run(self) -> None:
        net, inputs = conv_net(), conv_inputs()
        with EnergyMeter(net) as meter:
            run_loop(net, inputs)
            first = meter.budget(dt=1.0)
            run_loop(net, inputs)
        check_same(first, meter.budget(dt=1.0))
        assert meter.budget(dt=1.0).n_samples == 2 * first.n_samples
        check_same(first, measured(net, inputs))

    def test_a_changed_batch_size_is_an_error_that_names_the_layer(self) -> None:
        net, inputs = conv_net(), conv_inputs()
        with EnergyMeter(net) as meter:
            run_loop(net, inputs)
            with pytest.raises(EnergyError, match=r"from 3 to 2, at layer 'conv'.*next_run"):
                run_loop(net, inputs[:, :2])
            run_loop(net, inputs)  # what was mixed is dropped, and a new run begins
        check_same(measured(net, inputs), meter.budget(dt=1.0))

    def test_an_exception_drops_its_run_and_keeps_those_before(self) -> None:
        net, inputs = conv_net(), conv_inputs()
        with pytest.raises(KeyError), EnergyMeter(net) as meter:  # noqa: PT012
            run_loop(net, inputs)
            meter.next_run()
            net(inputs[0])
            raise KeyError
        check_same(measured(net, inputs), meter.budget(dt=1.0))
        with pytest.raises(KeyError), EnergyMeter(net) as meter:  # noqa: PT012
            net(inputs[0])
            raise KeyError
        with pytest.raises(EnergyError, match=r"no call was observed.*failed"):
            meter.budget(dt=1.0)
        assert not net.conv._forward_hooks

    def test_a_wrapped_run_that_fails_does_not_count(self) -> None:
        model, inputs = dvs.wrap(conv_net(), dt=1.0), conv_inputs()
        with EnergyMeter(model) as meter:
            model(inputs)
            handle = model.net.fc.register_forward_hook(_fail)
            with pytest.raises(ZeroDivisionError):
                model(inputs)
            handle.remove()
            model(inputs)
        budget = meter.budget()
        assert budget.n_samples == 2 * B
        check_same(measured(model.net, inputs), budget)

    def test_calls_of_the_inner_model_are_a_run_of_their_own(self) -> None:
        net, inputs = conv_net(), conv_inputs()
        model = dvs.wrap(net, dt=1.0)
        with EnergyMeter(model) as meter:
            model(inputs)
            run_loop(net, inputs)
            model(inputs)
        budget = meter.budget()
        assert (budget.n_samples, budget.n_timesteps) == (3 * B, T)
        check_same(measured(net, inputs), budget)


def _fail(*_: Any) -> None:
    raise ZeroDivisionError


class TestTimeInBareLoops:
    def test_a_linear_called_twice_per_timestep(self) -> None:
        torch.manual_seed(0)
        net, inputs = sparsify(SharedTwice()), torch.rand(T, B, 6)
        with watch(net) as seen, EnergyMeter(net) as meter:
            run_loop(net, inputs)
        budget = meter.budget(dt=1.0)
        assert budget.n_timesteps == T
        truth = torch.tensor([ops_of(net.fc, x) for x, _ in seen["fc"]]).double() / B
        assert torch.equal(budget.by_timestep("synops_mac", "fc"), truth.reshape(T, 2).sum(1))
        assert layer(budget, "fc").synops_dense == 2 * T * 36
        model = dvs.wrap(net, dt=1.0)
        with EnergyMeter(model) as meter:
            model(inputs)
        check_same(budget, meter.budget())

    def test_without_a_call_of_the_whole_model(self) -> None:
        torch.manual_seed(0)
        net, inputs = sparsify(SharedTwice()), torch.rand(T, B, 6)
        whole = measured(net, inputs)
        with EnergyMeter(net) as meter:
            for lif in (net.lif1, net.lif2):
                lif.reset_mem()
            for x in inputs:
                net.lif2(net.fc(net.lif1(net.fc(x))))
        check_same(whole, meter.budget(dt=1.0))

    def test_a_current_worked_out_once(self) -> None:
        fc, lif = nn.Linear(4, 3), leaky(init_hidden=True)
        net = nn.ModuleDict({"fc": fc, "lif": lif})
        x = torch.ones(B, 4)
        with EnergyMeter(net) as meter:
            current = fc(x)
            for _ in range(T):
                lif(current)
        budget = meter.budget(dt=1.0)
        assert budget.n_timesteps == T
        assert budget.by_timestep("synops_ac", "fc").tolist() == [12, 0, 0, 0, 0]

    def test_a_normalisation_of_its_own_for_every_timestep(self) -> None:
        class PerStep(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc, self.lif = nn.Linear(4, 4), leaky(init_hidden=True)
                self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(T))
                self.t = 0

            def forward(self, x: Tensor) -> Tensor:
                self.t += 1
                return self.lif(self.norms[self.t - 1](self.fc(x)))

        net = PerStep().eval()
        with EnergyMeter(net) as meter:
            run_loop(net, torch.rand(T, B, 4))
        budget = meter.budget(dt=1.0)
        assert budget.by_timestep("synops_mac", "norms.3").tolist() == [0, 0, 0, 4, 0]

    def test_states_out_of_step_are_refused(self) -> None:
        net = nn.ModuleDict({"a": leaky(init_hidden=True), "b": leaky(init_hidden=True)})
        with pytest.raises(EnergyError, match=r"a: 2, b: 1.*next_run"), EnergyMeter(net):  # noqa: PT012
            net["a"](torch.ones(B, 3))
            net["b"](torch.ones(B, 3))
            net["a"](torch.ones(B, 3))

    def test_calls_that_fit_no_timestep_are_refused(self) -> None:
        net = nn.ModuleDict({"fc": nn.Linear(3, 3), "lif": leaky(init_hidden=True)})
        with pytest.raises(EnergyError, match=r"3 timesteps in a run of 2"), EnergyMeter(net):  # noqa: PT012
            for _ in range(2):
                net["lif"](net["fc"](torch.ones(B, 3)))
            net["fc"](torch.ones(B, 3))

    def test_whole_sequences(self) -> None:
        torch.manual_seed(0)
        net = norse.SequentialState(nn.Linear(4, 5), norse.LIF(), nn.Linear(5, 2), norse.LI())
        inputs = 100 * torch.rand(T, B, 4)
        with watch(net) as seen, EnergyMeter(net, sequence=True) as meter:
            net(inputs)
        budget = meter.budget(dt=1.0)
        assert (budget.n_timesteps, budget.n_samples) == (T, B)
        spikes = seen["1"][0][1]
        truth = torch.tensor([ops_of(net[2], z) for z in spikes]).double() / B
        assert torch.equal(budget.by_timestep("synops_ac", "2"), truth)
        with pytest.raises(EnergyError, match=r"sequence=True"), EnergyMeter(net):
            net(inputs)
