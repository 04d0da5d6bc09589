"""Models that no plan is made of, used in every way that could upset what stands in for a layer.

Each case does the same with ``engine="step"``, the oracle, and with ``"auto"``, and says what came
of it: values that must be the same bits, and gradients that may differ by the order of their sums.
"""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from both_engines import (
    CLASSES,
    CONSTANT,
    FEATURES,
    HIDDEN,
    STEPS,
    Case,
    Told,
    Wrap,
    check_alike,
    dense,
    foreign,
    shown,
)
from models import leaky
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from dynvision_snn.energy import EnergyMeter
from dynvision_snn.engine import weight_sums
from dynvision_snn.losses import EnergyLoss
from dynvision_snn.model import wrap


class Net(nn.Module):
    """Its forward does `each` with what it is shown, at every timestep."""

    def __init__(self, each: Callable[[Any, Tensor, int], Tensor], **modules: Any) -> None:
        super().__init__()
        self.each = each
        self.fc, self.out, self.lif = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES), leaky()
        for name, value in modules.items():
            setattr(self, name, value)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        t, mem = (0, torch.zeros(len(x), CLASSES)) if state is None else state
        spk, mem = self.lif(self.out(F.relu(self.each(self, x, t))), mem)
        return spk, (t + 1, mem)


def net(each: Callable[[Any, Tensor, int], Tensor], **modules: Any) -> nn.Module:
    return foreign(Net(each, **modules))


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that learns has a stand-in, and what waits is multiplied now and then."""
    monkeypatch.setattr(weight_sums, "_WORTH", 0)
    monkeypatch.setattr(weight_sums, "_WAITING", 100)


def test_what_is_not_alike_is_told() -> None:
    def another_gradient(wrap: Wrap, told: Told) -> None:
        model = wrap(dense())
        if wrap.keywords["engine"] == "auto":  # type: ignore[attr-defined]
            model.net[0].weight.register_hook(lambda g: 1.001 * g)
        told.trained(model)

    with pytest.raises(AssertionError, match=r"0\.weight"):
        check_alike(another_gradient)


def test_what_is_held_against_the_step_engine_has_stand_ins() -> None:
    model = wrap(dense(), dt=1.0)
    model(shown())
    assert "gradients summed over time   0.weight, 2.weight" in model.explain()


# -- what a forward may do with its layers --------------------------------------------------------


def tied(net: Any, x: Tensor, t: int) -> Tensor:
    return net.fc(x) + 0.5 * net.fc(x.flip(1)) - net.fc(x)


def under_other_modes(net: Any, x: Tensor, t: int) -> Tensor:
    with torch.set_grad_enabled(torch.is_grad_enabled() and t % 2 == 0):
        kept = net.fc(x)
    with torch.no_grad():
        return kept + net.fc(x)


def written_in_place(net: Any, x: Tensor, t: int) -> Tensor:
    y = net.fc(x)
    with torch.no_grad():
        net.fc.weight.mul_(0.9)
    y += 0.1
    y[:, 0] = 0
    return F.relu_(y)


def exchanged_for_a_call(net: Any, x: Tensor, t: int) -> Tensor:
    held = net.second.weight.data
    net.second.weight.data = held * (1 + 0.3 * t)
    y = net.second(net.fc(x))
    net.second.weight.data = held
    return y


def another_parameter(net: Any, x: Tensor, t: int) -> Tensor:
    net.fc.weight = net.one if t % 2 else net.other
    return net.fc(x)


def of_a_hypernetwork(net: Any, x: Tensor, t: int) -> Tensor:
    given = {"weight": F.dropout(net.raw.tanh(), 0.3), "bias": net.fc.bias}
    return torch.func.functional_call(net.fc, given, (x,)) + net.fc(x)


def computed_and_written(net: Any, x: Tensor, t: int) -> Tensor:
    if t == 0:
        net.kept[:] = [1.5 * net.raw]
    y = torch.func.functional_call(net.fc, {"weight": net.kept[0]}, (x.detach(),))
    net.kept[0].mul_(0.5)
    return y


def kernel_edited(net: Any, x: Tensor, t: int) -> Tensor:
    y = net.conv(x.unsqueeze(1))
    net.conv.weight.data[0, 0, 0] += 0.1 * (t == 3)
    y += t
    return net.fc(y.squeeze(1))


def settings_edited(net: Any, x: Tensor, t: int) -> Tensor:
    net.conv.dilation = net.conv.padding = (1 + t % 2,)
    return net.fc(net.conv(x.unsqueeze(1)).squeeze(1))


def one_kernel_twice(net: Any, x: Tensor, t: int) -> Tensor:
    net.other.weight = net.conv.weight
    x = x.unsqueeze(1)
    return net.fc(net.conv(x).squeeze(1) + net.other(x).squeeze(1))


def late(net: Any, x: Tensor, t: int) -> Tensor:
    return net.fc(x) + net.second(net.fc(x)) if t >= 4 else net.fc(x)


def without_batch(net: Any, x: Tensor, t: int) -> Tensor:
    return torch.stack([net.fc(one) for one in x]) + net.fc(x[:0]).sum() + net.fc(x[:1])


def with_more_axes(net: Any, x: Tensor, t: int) -> Tensor:
    return net.fc(x.unsqueeze(1).expand(-1, 2, -1).flip(2)).mean(1)


def kept_in_one_buffer(net: Any, x: Tensor, t: int) -> Tensor:
    buffer = net.buffers_.setdefault(len(x), torch.zeros(x.shape))
    buffer.data.copy_(x.detach() * (1 + t))
    return net.fc(buffer)


def recomputed(net: Any, x: Tensor, t: int) -> Tensor:
    inner = net.fc(x)
    return checkpoint(lambda y: net.second(net.second(y)), inner, use_reentrant=net.reentrant)


def with_derivatives(net: Any, x: Tensor, t: int) -> Tensor:
    y, along = torch.func.jvp(net.fc, (x,), (torch.ones_like(x),))
    slopes = torch.func.vmap(torch.func.grad(lambda one: net.fc(one).tanh().sum()))(x)
    return y + 0.1 * along + net.fc(slopes)


def in_bfloat16(net: Any, x: Tensor, t: int) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = net.fc(x)
    return net.second(y.float())


def under_hooks(net: Any, x: Tensor, t: int) -> Tensor:
    y = net.second(net.fc(x))
    if y.requires_grad:
        y.register_hook(lambda g: 2 * g)
    return y


class Doubles(TorchFunctionMode):
    """As simulators of hardware do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return 2 * result if func is F.linear else result


def under_a_mode(net: Any, x: Tensor, t: int) -> Tensor:
    with Doubles():
        return net.fc(x)


def patched_in_the_run(net: Any, x: Tensor, t: int) -> Tensor:
    own = net.fc.forward
    if t == 2:
        net.fc.forward = lambda y: 0.5 * F.linear(y, net.fc.weight)
    return own(x)


class Magnitude(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.abs()


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda _, given: (given[0] * 0.5,))
    layer.register_forward_hook(lambda _, given, y: y + 0.1)
    layer.register_full_backward_hook(lambda _, grads, back: (grads[0] * 3,))
    return layer


def parametrised(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Magnitude())
    return layer


SECOND = {"second": partial(nn.Linear, 5, 5)}
CONV = {"conv": partial(nn.Conv1d, 1, 1, 3, padding=1)}
KERNEL = {
    "conv": partial(nn.Conv1d, 1, 1, 3, padding=1, bias=False),
    "other": partial(nn.Conv1d, 1, 1, 3, padding=2, dilation=2, bias=False),
}


def _raw() -> nn.Parameter:
    return nn.Parameter(torch.randn(5, FEATURES))


FORWARDS: dict[str, tuple[Any, dict[str, Callable[[], Any]]]] = {
    "tied": (tied, {}),
    "under other modes": (under_other_modes, {}),
    "written in place": (written_in_place, {}),
    "exchanged for a call": (exchanged_for_a_call, SECOND),
    "another parameter": (another_parameter, {"one": _raw, "other": _raw}),
    "of a hypernetwork": (of_a_hypernetwork, {"raw": _raw}),
    "computed and written": (computed_and_written, {"raw": _raw, "kept": list}),
    "kernel edited": (kernel_edited, CONV),
    "settings edited": (settings_edited, CONV),
    "one kernel twice": (one_kernel_twice, KERNEL),
    "late": (late, SECOND),
    "without a batch": (without_batch, {}),
    "with more axes": (with_more_axes, {}),
    "kept in one buffer": (kept_in_one_buffer, {"buffers_": dict}),
    "recomputed": (recomputed, {**SECOND, "reentrant": lambda: False}),
    "recomputed, reentrant": (recomputed, {**SECOND, "reentrant": lambda: True}),
    "with derivatives": (with_derivatives, {}),
    "in bfloat16": (in_bfloat16, SECOND),
    "under hooks": (under_hooks, {"second": lambda: hooked(nn.Linear(5, 5))}),
    "parametrised": (under_hooks, {"second": lambda: parametrised(nn.Linear(5, 5))}),
    "under a mode": (under_a_mode, {}),
    "patched in the run": (patched_in_the_run, {}),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(("each", "modules"), FORWARDS.values(), ids=FORWARDS.keys())
def test_a_forward_may_do_what_it_likes_with_its_layers(each: Any, modules: Any) -> None:
    def case(wrap: Wrap, told: Told) -> None:
        model = wrap(net(each, **{name: build() for name, build in modules.items()}))
        told.trained(model)
        told.trained(model, CONSTANT.expand(STEPS, -1, -1), "again")
        with torch.no_grad():
            told.same["without a graph"] = model(shown()).membrane

    # Products of bfloat16 are summed over timesteps in bfloat16 by torch itself.
    check_alike(case, tolerance=2e-2 if each is in_bfloat16 else 1e-4)


# -- what may be done with a run ------------------------------------------------------------------


def half_a_backward_first(wrap: Wrap, told: Told) -> None:
    model, inputs = wrap(dense()), shown().requires_grad_()
    loss = model(inputs).membrane.square().sum()
    for k, wanted in enumerate((inputs, model.net[2].weight, model.net[0].bias)):
        (told.close[f"of {k}"],) = torch.autograd.grad(loss, wanted, retain_graph=True)
    loss.backward(inputs=[model.net[0].bias], retain_graph=True)
    told.gradients(model.net, "one bias")
    loss.backward(retain_graph=True)
    told.gradients(model.net, "all")
    (loss + model(inputs).membrane.sum()).backward()
    told.gradients(model.net, "with another run")


def a_backward_fails_half_way(wrap: Wrap, told: Told) -> None:
    for at in (1, 3, 5):
        model, left = wrap(dense()), [at]

        def fails(grad: Tensor, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise ValueError("half way")

        def hook(*seen: Any, fails: Any = fails) -> None:
            if seen[-1].requires_grad:
                seen[-1].register_hook(fails)

        model.net[1].register_forward_hook(hook)
        loss = model(shown()).membrane.square().sum()
        told.raises(f"at {at}", partial(loss.backward, retain_graph=True))
        left[0] = 0
        model.zero_grad()
        loss.backward()
        told.gradients(model.net, f"again {at}")


def runs_go_back_in_any_order(wrap: Wrap, told: Told) -> None:
    model = wrap(dense(learn_beta=True))
    runs = [model(shown()) for _ in range(3)]
    for k in (1, 2, 0):
        runs[k].membrane.square().sum().backward()
        told.gradients(model.net, f"run {k}")
    told.raises("a second time", runs[0].membrane.square().sum().backward)


def a_run_goes_on_from_another(wrap: Wrap, told: Told) -> None:
    model = wrap(dense())
    run, loss = model(shown()), torch.zeros(())
    for _ in range(2):
        run = model(shown(), state=run.state)
        loss = loss + run.membrane.square().sum()
    loss.backward()
    told.gradients(model.net)


def weights_move_before_the_backward(wrap: Wrap, told: Told) -> None:
    for k in range(4):
        model = wrap(dense())
        run = model(shown())
        with torch.no_grad():
            list(model.parameters())[k].add_(0.1)
        told.raises(f"moved {k}", run.membrane.sum().backward)
        told.gradients(model.net, f"moved {k}")
    inputs = shown()
    run = model(inputs)
    inputs.mul_(2)
    told.raises("the input", run.membrane.sum().backward)


def hooks_on_parameters(wrap: Wrap, told: Told) -> None:
    model, calls = wrap(dense()), []
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda g, name=name: calls.append(f"before {name}"))
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: calls.append(f"after {name}")
        )
    told.trained(model)
    told.same["calls"] = sorted(calls)


def inputs_that_move_in_the_backward(wrap: Wrap, told: Told) -> None:
    def learned(net: Any, x: Tensor, t: int) -> Tensor:
        return net.fc(net.raw).mean(0) + net.fc(x)

    model = wrap(net(learned, raw=_raw()))
    optimizer = torch.optim.SGD([model.net.raw], 1.0)
    model.net.raw.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    told.trained(model)


def layouts_are_kept(wrap: Wrap, told: Told) -> None:
    images = nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 2, stride=2, bias=False)
    last = nn.Conv2d(3, 2, 2, groups=1), nn.Flatten(), leaky(init_hidden=True, output=True)
    net = foreign(nn.Sequential(*images, leaky(init_hidden=True), *last))
    model = wrap(net.to(memory_format=torch.channels_last))
    told.trained(model, shown(features=16))
    grads = [p.grad for p in net.parameters()]
    told.same["strides"] = [g.stride() for g in grads]
    told.trained(model, shown(features=16), "again")
    told.same["in place"] = [g is p.grad for g, p in zip(grads, net.parameters(), strict=True)]


def derivatives_of_derivatives(wrap: Wrap, told: Told) -> None:
    layers = nn.Unflatten(1, (1, FEATURES)), nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten()
    model = wrap(foreign(nn.Sequential(*layers, nn.Linear(8, CLASSES), nn.Sigmoid())), readout="")
    weights, inputs = list(model.parameters()), shown().requires_grad_()
    loss = model(inputs).membrane.square().sum()
    first = torch.autograd.grad(loss, [*weights, inputs], create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), weights, create_graph=True)
    third = torch.autograd.grad(sum(g.sum() for g in second), weights)
    told.close |= {str(k): g for k, g in enumerate((*first, *second, *third))}


def many_backwards_at_once(wrap: Wrap, told: Told) -> None:
    model = wrap(dense())
    membrane = model(shown(3)).membrane
    every = torch.eye(membrane.numel()).view(-1, *membrane.shape)
    weights = list(model.parameters())
    grads = torch.autograd.grad(membrane, weights, every, is_grads_batched=True)
    told.close |= {str(k): g for k, g in enumerate(grads)}


def function_transforms(wrap: Wrap, told: Told) -> None:
    model = wrap(foreign(nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.ReLU())), readout="")
    inputs = shown()
    model(inputs)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def membrane(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, (inputs,)).membrane

    told.close |= torch.func.grad(lambda w: membrane(w).square().sum())(weights)
    told.close |= {f"jacobian {k}": g for k, g in torch.func.jacrev(membrane)(weights).items()}
    told.close["along"] = torch.func.jvp(membrane, (weights,), (weights,))[1]
    several = {name: torch.stack([w, 2 * w]) for name, w in weights.items()}
    told.close["several"] = torch.func.vmap(membrane)(several)


def stopped_in_the_middle(wrap: Wrap, told: Told) -> None:
    for error in (ValueError, KeyboardInterrupt):
        model = wrap(dense())
        model(shown())

        def stops(*_: Any, error: type[BaseException] = error) -> None:
            raise error

        handle = model.net[2].register_forward_hook(stops)
        with pytest.raises(error):
            model(shown())
        handle.remove()
        told.trained(model, when=error.__name__)


def copies_in_the_run(wrap: Wrap, told: Told) -> None:
    model, kept = wrap(dense()), []
    model(shown())

    def copies(layer: nn.Module, *_: Any) -> None:
        if not kept:
            kept.append(copy.deepcopy(layer))

    model.net[2].register_forward_hook(copies)
    told.trained(model)
    with torch.no_grad():
        model.net[2].weight.add_(1)
        kept[0].weight.mul_(2)
    told.same["the copy's"] = kept[0](torch.ones(2, HIDDEN))
    kept[0](torch.ones(2, HIDDEN)).sum().backward()
    told.close["of the copy"] = kept[0].weight.grad
    told.trained(wrap(copy.deepcopy(model.net)), when="a copy of all")


def nothing_is_held(wrap: Wrap, told: Told) -> None:
    model, seen = wrap(dense()), []
    model(shown())
    model.net[2].register_forward_hook(lambda _, given, y: seen.append(weakref.ref(given[0])))
    gc.collect()
    gc.disable()
    try:
        for ends in ("backward", "no backward", "half a backward"):
            loss = model(shown()).membrane.square().sum()
            if ends == "backward":
                loss.backward()
            elif ends == "half a backward":
                torch.autograd.grad(loss, model.net[2].bias, retain_graph=True)
            del loss
            told.same[ends] = sum(ref() is not None for ref in seen)
    finally:
        gc.enable()


def layers_shared_by_models_in_threads(wrap: Wrap, told: Told) -> None:
    """The one that began first ends first."""
    shared, begun, ended = nn.Linear(FEATURES, 5), threading.Event(), threading.Event()
    nets = [foreign(nn.Sequential(shared, leaky(init_hidden=True, output=True))) for _ in range(2)]
    models, inputs = [wrap(net) for net in nets], [shown(), shown()]
    runs = [model(inputs[k]) for k, model in enumerate(models)]
    nets[0][1].register_forward_hook(lambda *_: begun.wait(20) and None)

    def waits(*_: Any) -> None:
        begun.set()
        ended.wait(20)

    nets[1][1].register_forward_hook(waits)

    def run(k: int) -> None:
        runs[k] = models[k](inputs[k])
        ended.set()

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in (1, 0):
        told.same[f"membrane {k}"] = runs[k].membrane
        runs[k].membrane.square().sum().backward()
        told.gradients(nets[k], f"net {k}")


def compiled_no_more_often(wrap: Wrap, told: Told) -> None:
    compilations: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compilations.append(1)
        return graph.forward

    torch.compiler.reset()
    model = wrap(dense())
    layer = torch.compile(model.net[0], backend=backend)
    counts = []
    for _ in range(4):
        layer(CONSTANT).sum().backward()
        told.trained(model, when="between")
        counts.append(len(compilations))
    told.same["counts"] = counts


class Learns(nn.Module):
    """Takes a step at every timestep, in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif, self.optimizer = nn.Linear(FEATURES, CLASSES), leaky(), []

    def forward(self, x: Tensor, mem: Any = None) -> tuple[Tensor, Tensor]:
        mem = torch.zeros(len(x), CLASSES) if mem is None else mem.detach()
        spk, mem = self.lif(self.fc(x), mem)
        if torch.is_grad_enabled():
            mem.square().sum().backward()
            torch.optim.SGD(self.parameters(), 0.01).step()
        return spk.detach(), mem


def online_learning(wrap: Wrap, told: Told) -> None:
    model = wrap(foreign(Learns()))
    for k in range(2):
        told.close[f"membrane {k}"] = model(shown()).membrane
    told.gradients(model.net)
    told.close |= dict(model.net.named_parameters())


def meters_and_losses(wrap: Wrap, told: Told) -> None:
    model = wrap(dense())
    energy = EnergyLoss(reduction="mean", p=1)
    energy.register_hooks(model)
    with EnergyMeter(model) as meter:
        run = model(shown(), record=["1"])
    told.same["rows"] = [(r.spikes, r.synops_ac, r.synops_mac) for r in meter.budget().layers]
    told.same["spikes"] = run.layers["1"].output
    told.close["energy"] = loss = energy(None, None)
    (loss + run.membrane.sum()).backward()
    told.gradients(model.net)


USES: tuple[Case, ...] = (
    half_a_backward_first,
    a_backward_fails_half_way,
    runs_go_back_in_any_order,
    a_run_goes_on_from_another,
    weights_move_before_the_backward,
    hooks_on_parameters,
    inputs_that_move_in_the_backward,
    layouts_are_kept,
    derivatives_of_derivatives,
    many_backwards_at_once,
    function_transforms,
    stopped_in_the_middle,
    copies_in_the_run,
    nothing_is_held,
    layers_shared_by_models_in_threads,
    compiled_no_more_often,
    online_learning,
    meters_and_losses,
)


@pytest.mark.parametrize("case", USES, ids=lambda case: case.__name__)
def test_a_run_may_be_used_in_any_way(case: Case) -> None:
    check_alike(case)
