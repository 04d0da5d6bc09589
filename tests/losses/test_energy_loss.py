"""EnergyLoss: the formula on every kind of model and loop, its refusals, what it keeps alive."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from typing import Any

import pytest
import snntorch as snn
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import (
    CLASSES,
    DT,
    FEATURES,
    HIDDEN,
    STYLES,
    GruStep,
    LoopInside,
    Style,
    leaky,
    reset_snntorch,
    sequential_init_hidden,
    sequential_state_lifted,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynvision_snn import Presentation, PresentationBatch, wrap
from dynvision_snn.errors import LossError, ObservationError
from dynvision_snn.losses import EnergyLoss, build_criterion
from dynvision_snn.losses.energy import activity

every_style = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
every_p = pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
T, B = 7, 3

# The layers that spike or recur, in each style of `models`.
EMITTING = {
    "sequential_init_hidden": {"1", "3"},
    "nested_init_hidden": {"0.0.1", "2"},
    "explicit_states": {"lif1", "lif2"},
    "conv_step": {"lif1", "lif2"},
    "dict_of_states": {"lif"},
    "norse_list": {"lif"},
    "sequential_state_of_cells": {"2"},
    "gru_step": {"gru"},
    "lstm_step": {"lstm"},
    "sequential_state_lifted": {"2"},
    "plain_sequential_lifted": {"2"},
    "lifted_cells": {"2.lifted_module"},
    "loop_inside": {"lif1", "lif2"},
    "loop_inside_batch_first": {"lif1", "lif2"},
    "gru_sequence": {"gru"},
    "bare_gru": {""},
}


def inputs(n_timesteps: int = T, batch: int = B, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(n_timesteps, batch, FEATURES, generator=generator)


def by_hand(values: Tensor, p: float) -> Tensor:
    """``sum_t ||a_t||_p / n_units`` of each sample, timestep by timestep, sample by sample."""
    energy = []
    for b in range(values.shape[1]):
        total = torch.zeros(())
        for t in range(values.shape[0]):
            units = values[t, b].flatten().abs()
            norm = units.max() if p == math.inf else units.pow(p).sum().pow(1 / p)
            total = total + norm / len(units)
        energy.append(total)
    return torch.stack(energy)


def energy_by_hand(layers: list[Tensor], p: float) -> Tensor:
    return sum(by_hand(values, p) for values in layers) / (len(layers) * len(layers[0]))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# -- the formula ----------------------------------------------------------------------------------


@every_p
@every_style
def test_formula_and_gradient_on_every_style(style: Style, p: float):
    model = wrap(style.fresh().eval(), dt=DT)
    energy = EnergyLoss("none", p=p)
    energy.register_hooks(model)
    names = EMITTING[next(name for name, other in STYLES.items() if other is style)]
    assert set(energy.monitored) == names
    run = model(inputs(), record=sorted(names))
    wanted = energy_by_hand([run.layers[name].output for name in names], p)
    found = energy(None, None)
    assert found.shape == (B,)
    assert (wanted > 0).all()
    torch.testing.assert_close(found, wanted)

    weights = [w for w in model.parameters() if w.requires_grad]
    ours = torch.autograd.grad(found.sum(), weights, retain_graph=True, allow_unused=True)
    # `pow` has no gradient at 0; the closed form of the norm's gradient is the oracle.
    outputs = [run.layers[name].output for name in names]
    seeds = [_gradient(values.detach(), p) / (len(names) * T) for values in outputs]
    theirs = torch.autograd.grad(outputs, weights, seeds, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert any(grad is not None and grad.any() for grad in ours)


def _gradient(values: Tensor, p: float) -> Tensor:
    """Of ``sum_t ||a_t||_p / n_units`` by ``a``: 0 at silent units, ties of the maximum shared."""
    units = values.flatten(2)
    magnitude = units.abs()
    if p == math.inf:
        at_top = (magnitude == magnitude.amax(2, keepdim=True)) & (magnitude > 0)
        share = at_top / at_top.sum(2, keepdim=True).clamp(min=1)
    else:
        norm = magnitude.pow(p).sum(2, keepdim=True).pow(1 / p)
        share = torch.where(norm > 0, (magnitude / norm.clamp(min=1e-30)).pow(p - 1), 0.0)
        share = torch.where(magnitude > 0, share, 0.0)
    return (units.sign() * share / units.shape[2]).view_as(values)


@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    p=st.sampled_from([1, 1.5, 2, 7, math.inf]),
    seed=st.integers(0, 1000),
)
def test_activity_is_the_formula_for_any_shape(shape, p, seed):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(activity(values, p), by_hand(values, p))


@given(silent=st.booleans(), p=st.floats(1, 8))
def test_gradients_are_zero_at_silent_units_and_never_nan(silent, p):
    spikes = torch.tensor([[[0.0, 1.0, 0.0, 1.0]]]) * (not silent)
    spikes.requires_grad_()
    activity(spikes, p).sum().backward()
    assert torch.isfinite(spikes.grad).all()
    assert not spikes.grad[0, 0, [0, 2]].any()
    assert silent or (spikes.grad[0, 0, [1, 3]] > 0).all()


@pytest.mark.parametrize("p", [1, 2])
def test_gradients_are_those_of_finite_differences_twice_over(p):
    values = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: activity(x, p), values)
    assert torch.autograd.gradgradcheck(lambda x: activity(x, p), values)


def test_half_precision_is_summed_in_float32():
    values = torch.ones(4000, 1, 1, dtype=torch.bfloat16)
    assert activity(values, 1).item() == 4000
    assert activity(values.half() * 40, 2).item() == 160_000
    assert activity(torch.ones(2, 1, 3, dtype=torch.float64), 2).dtype == torch.float64


@pytest.mark.parametrize(("reduction", "reduce"), [("mean", torch.mean), ("sum", torch.sum)])
def test_reductions(reduction, reduce):
    model = wrap(sequential_init_hidden(), dt=DT)
    one, other = EnergyLoss(reduction), EnergyLoss("none")
    one.register_hooks(model)
    other.register_hooks(model)
    model(inputs())
    torch.testing.assert_close(one(), reduce(other()))


@pytest.mark.parametrize("p", [0, 0.99, -1, math.nan, True, "2", None])
def test_p_that_is_no_norm(p):
    with pytest.raises(LossError, match="a number from 1 up"):
        EnergyLoss(p=p)


def test_layers_of_several_axes_are_one_population():
    net = nn.Sequential(nn.Conv2d(1, 3, 2), leaky(init_hidden=True))
    energy = EnergyLoss("none", p=2)
    energy.register_hooks(net)
    spikes = torch.stack([net(x) for x in torch.rand(T, B, 1, 5, 5) * 3])
    torch.testing.assert_close(energy(), by_hand(spikes, 2) / T)


# -- any loop -------------------------------------------------------------------------------------


@every_style
def test_a_users_own_loop_gives_the_same_as_the_timed_model(style: Style):
    model = wrap(style.fresh().eval(), dt=DT)
    timed = EnergyLoss("none")
    timed.register_hooks(model)
    model(inputs())
    net = style.fresh().eval()
    reset_snntorch(net)
    bare = EnergyLoss("none")
    bare.register_hooks(net)
    style.oracle(net, inputs())
    found = bare()
    if style.time_axis == 1 and net_is_batch_first(net):
        assert found.shape == (B,)
    torch.testing.assert_close(found, timed())


def net_is_batch_first(net: nn.Module) -> bool:
    return any(getattr(module, "batch_first", False) for module in net.modules())


def test_whole_sequences_through_plain_layers_are_said_by_hand():
    net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES))
    energy = EnergyLoss("none", p=2)
    energy.register_hooks(net, sequence=True)
    hidden = net[0](inputs())
    out = net[1](hidden)
    torch.testing.assert_close(energy(), energy_by_hand([hidden, out], 2))


def test_idle_time_is_not_seen_on_the_timed_model_but_on_the_bare_net():
    model = wrap(sequential_init_hidden(), dt=DT)
    timed, bare = EnergyLoss("none"), EnergyLoss("none")
    timed.register_hooks(model)
    bare.register_hooks(model.net)
    presentation = Presentation("0110", dt=DT, idle_time=4.0, null_value=1.5)
    with torch.no_grad():
        run = model(inputs()[0], presentation, record=["1", "3"])
    seen = energy_by_hand([layer.output for layer in run.layers.values()], 1)
    torch.testing.assert_close(timed(), seen)
    idle = torch.full((4, B, FEATURES), 1.5)
    with torch.no_grad():
        whole = model(torch.cat([idle, presentation.present(inputs()[0])]), record=["1", "3"])
    bare.reset()
    with torch.no_grad():
        model(inputs()[0], presentation)
    torch.testing.assert_close(
        bare(), energy_by_hand([layer.output for layer in whole.layers.values()], 1)
    )


def test_idle_time_with_gradients_on_the_bare_net_is_refused_and_not_mixed():
    model = wrap(sequential_init_hidden(), dt=DT)
    bare = EnergyLoss()
    bare.register_hooks(model.net)
    with pytest.raises(LossError, match=r"with and without gradient.*register.*on the TimedModel"):
        model(inputs()[0], Presentation("11", dt=DT, idle_time=1.0))
    bare.remove_hooks()
    model(inputs()[0], Presentation("11", dt=DT, idle_time=1.0))


def test_idle_time_of_a_model_with_its_own_loop_is_not_seen():
    model = wrap(sequential_state_lifted(), dt=DT)
    energy = EnergyLoss("none")
    energy.register_hooks(model)
    run = model(inputs()[0], Presentation("0110", dt=DT, idle_time=4.0), record=["2"])
    torch.testing.assert_close(energy(), by_hand(run.layers["2"].output, 1) / 4)


# -- accumulations --------------------------------------------------------------------------------


def test_a_validation_run_between_training_runs():
    model = wrap(sequential_init_hidden(), dt=DT)
    energy = EnergyLoss()
    energy.register_hooks(model)
    model(inputs())
    alone = energy()
    model(inputs(seed=1))  # dropped: its loss is not taken
    with torch.inference_mode():
        model(inputs(batch=5, seed=2))
        energy()
        model(inputs(batch=2, seed=3))
    model(inputs())
    again = energy()
    assert torch.equal(alone, again)
    again.backward()
    assert model.net[0].weight.grad.any()


def test_a_failed_run_leaves_nothing_behind():
    model = wrap(sequential_init_hidden(), dt=DT)
    energy = EnergyLoss()
    energy.register_hooks(model)
    model(inputs())
    energy()
    with pytest.raises(RuntimeError):
        model(torch.rand(T, B, FEATURES + 1))
    with pytest.raises(LossError, match="no timestep"):
        energy()


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (lambda net: net(inputs(1, 2)[0]), "batch sizes 3 and 2"),
        (lambda net: _without_grad(net), "with and without gradient"),
    ],
)
def test_mixing_in_a_users_loop_is_refused_and_reset_is_the_way_out(other, match):
    net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), leaky())
    energy = EnergyLoss()
    energy.register_hooks(net)
    net(inputs()[0])
    with pytest.raises(LossError, match=match):
        other(net)
    with pytest.raises(LossError, match="no timestep"):
        energy()
    net(inputs()[0])
    energy.reset()
    other(net)
    assert energy().ndim == 0


def _without_grad(net: nn.Module) -> None:
    with torch.no_grad():
        net(inputs()[0])


def test_unequal_counts_are_refused_naming_layers_and_counts():
    net = nn.ModuleDict({"often": leaky(), "seldom": leaky()})
    energy = EnergyLoss()
    energy.register_hooks(net)
    for t, x in enumerate(inputs()):
        net["often"](x)
        if t < 2:
            net["seldom"](x)
    with pytest.raises(LossError, match=r"often: 7, seldom: 2"):
        energy()
    for x in inputs():
        net["often"](x)
        net["seldom"](x)
    energy()


def test_several_timed_models_in_one_module_are_refused():
    pair = nn.ModuleList([wrap(sequential_init_hidden(), dt=DT) for _ in range(2)])
    with pytest.raises(ObservationError, match="Observe each by itself"):
        EnergyLoss().register_hooks(pair)


def test_a_module_that_holds_a_timed_model_is_observed_inside_it():
    model = wrap(sequential_init_hidden(), dt=DT)
    outer = nn.ModuleDict({"model": model, "decoder": nn.Linear(CLASSES, CLASSES)})
    inside, outside = EnergyLoss(), EnergyLoss()
    inside.register_hooks(model)
    outside.register_hooks(outer)
    assert inside.monitored == outside.monitored == ("1", "3")
    outer["decoder"](model(inputs()).membrane)
    assert torch.equal(inside(), outside())


# -- what is monitored ----------------------------------------------------------------------------


def test_integrators_and_activations_are_not_monitored():
    energy = EnergyLoss()
    energy.register_hooks(sequential_state_lifted())
    assert energy.monitored == ("2",)
    relu = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with EnergyLoss() as fallback:
        fallback.register_hooks(relu)
        assert fallback.monitored == ("0", "2")


@pytest.mark.parametrize(
    ("monitor", "names"),
    [
        ("gru", ("gru",)),
        (["fc"], ("fc",)),
        (nn.Linear, ("fc",)),
        ([nn.Linear, "gru"], ("gru", "fc")),
        ((name for name in ["fc"]), ("fc",)),
        (lambda name, module: name.startswith("g"), ("gru",)),
    ],
)
def test_monitor_takes_names_types_and_predicates(monitor, names):
    net = GruStep()
    energy = EnergyLoss("none", monitor=monitor)
    energy.register_hooks(net)
    assert energy.monitored == names
    state, seen = None, []
    for x in inputs():
        out, state = net(x, state)
        seen.append({"gru": state, "fc": out})
    layers = [torch.stack([values[name] for values in seen]) for name in names]
    torch.testing.assert_close(energy(), energy_by_hand(layers, 1))


@pytest.mark.parametrize(
    ("monitor", "match"),
    [
        (["grus"], r"no module 'grus'.*Did you mean 'gru'"),
        (nn.Conv2d, "nothing to monitor"),
        ([], "nothing to monitor"),
        (lambda name, module: False, "nothing to monitor"),
        (nn.Linear(2, 2), "monitor holds a Linear"),
        ([nn.Linear, nn.Linear(2, 2)], "monitor holds a Linear"),
    ],
)
def test_monitor_that_names_nothing(monitor, match):
    energy = EnergyLoss(monitor=monitor)
    net = GruStep()
    with pytest.raises(LossError, match=match):
        energy.register_hooks(net)
    assert hooks(net) == 0


# -- hooks ----------------------------------------------------------------------------------------


class HasASpare(nn.Module):
    """A layer that is not called, and one whose hooks are passed by."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, HIDDEN), leaky()
        self.spare, self.bypassed = leaky(), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.bypassed.forward(self.lif(self.fc(x))[0])


@pytest.mark.parametrize("monitor", [["lif", "spare"], "bypassed", ("bypassed", "lif")])
def test_a_layer_monitored_by_name_that_is_never_reached_is_refused_by_name(monitor):
    net = HasASpare()
    energy = EnergyLoss(monitor=monitor)
    energy.register_hooks(net)
    net(inputs()[0])
    missing = "no timestep" if monitor == "bypassed" else r"'(spare|bypassed)', which the model did"
    with pytest.raises(LossError, match=missing):
        energy()
    found = EnergyLoss()
    found.register_hooks(net)
    net(inputs()[0])
    assert found().isfinite(), "what is monitored by default may stay unused"


def test_hooks_are_given_back_at_the_end_of_a_block_also_after_an_error():
    net = sequential_init_hidden()
    with EnergyLoss() as energy:
        energy.register_hooks(net)
        assert hooks(net) == 2
    assert hooks(net) == 0
    with pytest.raises(LossError, match="already"):
        _register_twice(energy, net)
    assert hooks(net) == 0
    energy.remove_hooks()
    with pytest.raises(LossError, match="no hooks"):
        energy()


def _register_twice(energy: EnergyLoss, net: nn.Module) -> None:
    with energy:
        energy.register_hooks(net)
        energy.register_hooks(net)


def test_one_loss_observes_one_model_at_a_time():
    energy, net, other = EnergyLoss(), GruStep(), GruStep()
    energy.register_hooks(net)
    with pytest.raises(LossError, match="already"):
        energy.register_hooks(other)
    energy.remove_hooks()
    energy.register_hooks(other)
    assert hooks(net) == 0


def test_a_deleted_loss_is_gone_and_its_hooks_are_inert():
    model = wrap(sequential_init_hidden(), dt=DT)
    energy = EnergyLoss()
    energy.register_hooks(model)
    model(inputs())
    gone = weakref.ref(energy)
    del energy
    gc.collect()
    assert gone() is None
    assert hooks(model) == 0
    model(inputs())


def test_two_losses_on_one_model_do_not_meet():
    model = wrap(sequential_init_hidden(), dt=DT)
    one, other = EnergyLoss(p=1), EnergyLoss(p=2, monitor="1")
    one.register_hooks(model)
    other.register_hooks(model)
    run = model(inputs(), record=["1", "3"])
    layers = [run.layers[name].output for name in ("1", "3")]
    torch.testing.assert_close(one(), energy_by_hand(layers, 1).mean())
    torch.testing.assert_close(other(), energy_by_hand(layers[:1], 2).mean())
    one.remove_hooks()
    model(inputs())
    other()


@pytest.mark.parametrize("timed", [True, False])
def test_a_deep_copy_of_the_model_does_not_feed_the_originals_loss(timed):
    net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), leaky(init_hidden=True))
    model: Any = wrap(net, dt=DT) if timed else net
    energy = EnergyLoss()
    energy.register_hooks(model)
    twin = copy.deepcopy(model)
    twin(inputs() if timed else inputs()[0])
    with pytest.raises(LossError, match="no timestep"):
        energy()
    model(inputs() if timed else inputs()[0])
    energy()


def test_a_deep_copy_of_the_loss_listens_to_nothing():
    net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), leaky(init_hidden=True))
    energy = EnergyLoss("sum", p=2, monitor=nn.Linear)
    energy.register_hooks(net)
    net(inputs()[0])  # its energy holds a graph, which could not be copied
    twin = copy.deepcopy(energy)
    assert (twin.reduction, twin.p, twin.monitor, twin.monitored) == ("sum", 2, nn.Linear, ())
    with pytest.raises(LossError, match="no hooks"):
        twin()
    twin.register_hooks(net)
    energy.reset()
    net(inputs()[0])
    assert torch.equal(twin(), energy())


def test_a_criterion_and_its_model_copied_together():
    model = wrap(sequential_init_hidden(), dt=DT)
    trainer = nn.ModuleDict(
        {"model": model, "criterion": build_criterion([{"name": "energy_loss"}], model=model)}
    )
    trainer["model"](inputs())
    trainer["criterion"]()
    twin = copy.deepcopy(trainer)
    twin["model"](inputs())
    with pytest.raises(LossError, match="no timestep"):
        trainer["criterion"]()
    twin["criterion"].register_hooks(twin["model"])
    twin["model"](inputs())
    trainer["model"](inputs())
    assert torch.equal(twin["criterion"](), trainer["criterion"]())


def test_criterion_adds_up_cross_entropy_and_energy_of_one_run():
    model = wrap(sequential_init_hidden(), dt=DT)
    presentation = Presentation("0111", dt=DT, reaction_time=1.0)
    config = [
        {"name": "cross_entropy_loss", "weight": 2.0},
        {"name": "energy_loss", "weight": 0.5, "kwargs": {"p": 2}},
    ]
    with build_criterion(config, model=model) as criterion:
        run = model(inputs()[0], presentation, record=["1", "3"])
        total = criterion(run.membrane, presentation.targets(torch.arange(B)))
    supervised = run.membrane[presentation.supervised_mask].flatten(0, 1)
    entropy = nn.functional.cross_entropy(supervised, torch.arange(B).repeat(2))
    energy = energy_by_hand([layer.output for layer in run.layers.values()], 2).mean()
    torch.testing.assert_close(total, 2 * entropy + 0.5 * energy)
    assert hooks(model) == 0


# -- activation checkpointing ---------------------------------------------------------------------


class Checkpointed(nn.Module):
    """The first layer, or both, run again during backward."""

    def __init__(self, reentrant: bool | None, both: bool) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(FEATURES, HIDDEN), leaky()
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), leaky()
        self.reentrant, self.both = reentrant, both

    def layer(self, fc: nn.Module, lif: nn.Module, *args: Tensor, again: bool) -> Any:
        def run(x: Tensor, mem: Tensor) -> Any:
            return lif(fc(x), mem)

        if self.reentrant is None or not again:
            return run(*args)
        return checkpoint(run, *args, use_reentrant=self.reentrant)

    def forward(self, x: Tensor, mem1: Any = None, mem2: Any = None) -> Any:
        mem1 = torch.zeros(len(x), HIDDEN) if mem1 is None else mem1
        mem2 = torch.zeros(len(x), CLASSES) if mem2 is None else mem2
        spk1, mem1 = self.layer(self.fc1, self.lif1, x, mem1, again=True)
        spk2, mem2 = self.layer(self.fc2, self.lif2, spk1, mem2, again=self.both)
        return spk2, mem1, mem2


def checkpointed_gradients(
    reentrant: bool | None, p: float, *, both: bool, timed: bool
) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    net = Checkpointed(reentrant, both)
    model: Any = wrap(net, dt=DT) if timed else net
    energy = EnergyLoss(p=p)
    energy.register_hooks(model)
    x = inputs().requires_grad_()
    if timed:
        membrane = model(x).membrane
    else:
        mem1 = mem2 = None
        membranes = []
        for step in x:
            _, mem1, mem2 = net(step, mem1, mem2)
            membranes.append(mem2)
        membrane = torch.stack(membranes)
    value = energy()
    (value + membrane.square().mean()).backward()
    with pytest.raises(LossError, match="no timestep"):
        energy()  # what was recomputed was not accumulated
    return value.detach(), [parameter.grad for parameter in net.parameters()]


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("timed", [False, True])
def test_checkpointing_changes_neither_value_nor_gradient(p, both, timed):
    value, gradients = checkpointed_gradients(None, p, both=both, timed=timed)
    again, recomputed = checkpointed_gradients(False, p, both=both, timed=timed)
    assert torch.equal(value, again)
    for one, other in zip(gradients, recomputed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    assert all(grad.any() for grad in gradients)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("timed", [False, True])
def test_reentrant_checkpointing_is_refused_with_the_reason(both, timed):
    # The loss refuses it, or already the run whose readout it is.
    with pytest.raises(
        (LossError, ObservationError), match=r"[Rr]eentrant activation.*use_reentrant=False"
    ):
        checkpointed_gradients(True, 1, both=both, timed=timed)


def test_a_validation_loss_before_checkpointed_training_is_no_reentrance():
    torch.manual_seed(0)
    net = Checkpointed(False, both=True)
    model = wrap(net, dt=DT)
    energy = EnergyLoss()
    energy.register_hooks(model)
    with torch.no_grad():
        model(inputs())
        energy()
    run = model(inputs())
    energy.reset()  # this batch's energy is not wanted
    run.membrane.sum().backward()
    assert net.fc1.weight.grad.any()


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("timed", [True, False])
def test_no_activation_is_kept_alive(timed):
    net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), leaky(init_hidden=True))
    model: Any = wrap(net, dt=DT) if timed else net
    energy = EnergyLoss(p=2)
    energy.register_hooks(model)
    spikes: list[weakref.ref[Tensor]] = []
    net[1].register_forward_hook(lambda module, args, out: spikes.append(weakref.ref(out)))
    with torch.no_grad():
        if timed:
            model(inputs())
        else:
            for x in inputs():
                net(x)
    gc.collect()
    assert len(spikes) == T
    assert not any(spike() is not None for spike in spikes)
    energy()


def test_with_gradients_only_autograd_keeps_activations():
    net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), leaky(init_hidden=True))
    energy = EnergyLoss(p=2)
    energy.register_hooks(net)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.untyped_storage().data_ptr()) or tensor, lambda t: t
    ):
        spikes = [net(x) for x in inputs()]
    assert {spike.untyped_storage().data_ptr() for spike in spikes} <= set(saved)
    value = energy()
    kept = [energy._energies, energy._timesteps]
    assert kept == [{}, {}]
    value.backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_modules_on_different_devices_sum_onto_one_with_their_gradients():
    near, far = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES).to("cuda")
    net = nn.ModuleList([near, far])
    energy = EnergyLoss("none")
    energy.register_hooks(net)
    hidden = torch.stack([near(x) for x in inputs()])
    out = torch.stack([far(h.to("cuda")) for h in hidden])
    found = energy()
    torch.testing.assert_close(found, energy_by_hand([hidden, out.cpu()], 1))
    found.sum().backward()
    assert near.weight.grad.any()
    assert far.weight.grad.any()


def test_a_loop_inside_with_an_energy_loss_trains():
    torch.manual_seed(0)
    model = wrap(LoopInside(), dt=DT)
    energy = EnergyLoss()
    energy.register_hooks(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        model(inputs())
        loss = energy()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]


# -- layers called twice, samples of different lengths, pieces -----------------------------------


class CallsTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.lif, self.out = nn.Linear(5, 5), snn.Leaky(0.9, threshold=0.3), nn.Linear(5, 3)

    def forward(self, x: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
        spikes, mem = self.lif(self.a(self.a(x)), mem)
        return self.out(spikes), mem


@pytest.mark.parametrize("p", [1, 2])
def test_a_layer_called_twice_per_timestep_means_the_same_padded_and_in_pieces(p):
    model = wrap(CallsTwice(), dt=1.0)
    long, short = Presentation("0111", dt=1.0), Presentation("01", dt=1.0)
    images = torch.rand(2, 5)
    with EnergyLoss(reduction="none", p=p, monitor=["a"]) as energy:
        energy.register_hooks(model)
        alone = []
        for index, presentation in enumerate((long, short)):
            model(images[index : index + 1], presentation)
            alone.append(energy(None, None))
        model(images, PresentationBatch([long, short]))
        torch.testing.assert_close(energy(None, None), torch.cat(alone))
        model(images, long)
        whole, targets = energy(None, None), torch.zeros(4, 2, dtype=torch.int64)
        parts = []
        for _ in model.chunks(images, long, every=1.0):
            parts.append(energy(None, None, whole=targets))
        torch.testing.assert_close(torch.stack(parts).sum(0), whole)


class CallsACheckpoint(CallsTwice):
    def forward(self, x: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
        hidden = checkpoint(self.a, x, use_reentrant=False)
        spikes, mem = self.lif(hidden, mem)
        return self.out(spikes), mem


@pytest.mark.parametrize("lengths", [("0111", "01"), ("0111", "0111")])
def test_checkpointing_of_samples_of_different_lengths_is_refused(lengths):
    model = wrap(CallsACheckpoint(), dt=1.0)
    batch = PresentationBatch([Presentation(pattern, dt=1.0) for pattern in lengths])
    with EnergyLoss(monitor=["a"]) as energy:
        energy.register_hooks(model)
        model(torch.rand(2, 5), batch)
        loss = energy(None, None)
        if lengths[0] == lengths[1]:
            loss.backward()
            return
        with pytest.raises(LossError, match="different lengths"):
            loss.backward()


# -- outputs of few values, which are looked at together -------------------------------------------


class Growing(nn.Module):
    """A layer whose output has more units at some timesteps than at others."""

    def forward(self, x: Tensor, units: int) -> Tensor:
        return x[:, :units].relu()


@given(
    units=st.lists(st.integers(1, 2000), min_size=1, max_size=12),
    batch_size=st.integers(1, 70),
    p=st.sampled_from([1, 2]),
)
def test_outputs_that_wait_for_each_other_count_as_one_by_one(
    units: list[int], batch_size: int, p: int
) -> None:
    values = torch.randn(len(units), batch_size, 2000, dtype=torch.float64, requires_grad=True)
    layer = Growing()
    energy = EnergyLoss(p=p, monitor=Growing)
    net = nn.ModuleList([layer])
    energy.register_hooks(net)
    shown = [layer(value, n) for value, n in zip(values, units, strict=True)]
    taken = energy(None, None)
    norms = [
        torch.linalg.vector_norm(output, ord=p, dim=1) / n
        for output, n in zip(shown, units, strict=True)
    ]
    expected = torch.stack(norms).mean(0).mean()
    torch.testing.assert_close(taken, expected)
    theirs = torch.autograd.grad(expected, values, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(taken, values), theirs)


def test_an_output_that_is_changed_in_place_before_the_loss_is_taken_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    energy = EnergyLoss(monitor=nn.ReLU)
    energy.register_hooks(net)
    output = net(torch.ones(2, 3))
    output *= 2
    with pytest.raises(LossError, match="changed in place before the loss was taken"):
        energy(None, None)
    net(torch.ones(2, 3))
    assert energy(None, None).isfinite()


def test_without_a_gradient_an_output_may_be_changed_in_place() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    energy = EnergyLoss(monitor=nn.ReLU)
    energy.register_hooks(net)
    with torch.no_grad():
        output = net(torch.ones(2, 3))
        expected = output.mean(1).mean()
        output *= 2
    torch.testing.assert_close(energy(None, None), expected)
