"""Neurons of models that no plan is made of: both engines call them as their library would."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from both_engines import (
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
from snntorch import surrogate
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore::dynvision_snn.errors.DynvisionWarning")


def per_unit() -> Tensor:
    return 0.2 + 0.6 * torch.rand(HIDDEN)


def norse_p(cls: Any) -> Any:
    return cls(v_th=torch.tensor(0.05))


NEURONS: dict[str, Callable[[], nn.Module]] = {
    "Leaky": partial(leaky, learn_beta=True, learn_threshold=True),
    "Leaky, per unit": lambda: leaky(
        beta=per_unit(), threshold=per_unit(), learn_beta=True, learn_threshold=True
    ),
    "Leaky, to zero": partial(leaky, reset_mechanism="zero", learn_beta=True),
    "Leaky, no reset": partial(leaky, reset_mechanism="none", beta=1.2, learn_beta=True),
    "Leaky, at once": partial(leaky, reset_delay=False, learn_threshold=True),
    "Leaky, at once to zero": partial(leaky, reset_delay=False, reset_mechanism="zero"),
    "Leaky, graded": partial(leaky, graded_spikes_factor=1.7, learn_graded_spikes_factor=True),
    "Leaky, inhibition": partial(leaky, inhibition=True),
    "Leaky, quantised": partial(leaky, state_quant=lambda mem: (8 * mem).round() / 8),
    "Leaky, a surrogate of one's own": partial(
        leaky, spike_grad=surrogate.custom_surrogate(lambda x, g, spk: g * torch.exp(-x.abs()))
    ),
    "Lapicque": partial(snn.Lapicque, beta=0.9, threshold=0.3),
    "Synaptic": partial(snn.Synaptic, 0.8, 0.9, threshold=0.3, learn_alpha=True, learn_beta=True),
    "Synaptic, to zero": partial(snn.Synaptic, 0.8, 0.9, threshold=0.3, reset_mechanism="zero"),
    "Alpha": partial(snn.Alpha, 0.9, 0.8, threshold=0.1),
    "RLeaky": partial(snn.RLeaky, 0.9, linear_features=HIDDEN, threshold=0.3),
    "RLeaky, one to one": partial(snn.RLeaky, 0.9, V=0.3, all_to_all=False, threshold=0.3),
    "RSynaptic": partial(snn.RSynaptic, 0.8, 0.9, linear_features=HIDDEN, threshold=0.3),
    "SLSTM": partial(snn.SLSTM, HIDDEN, HIDDEN, threshold=0.05),
    "LIFCell": lambda: norse.LIFCell(norse_p(norse.LIFParameters)),
    "LIFBoxCell": lambda: norse.LIFBoxCell(norse_p(norse.LIFBoxParameters)),
    "LICell": norse.LICell,
    "LIBoxCell": norse.LIBoxCell,
    "IAFCell": lambda: norse.IAFCell(norse_p(norse.IAFParameters)),
    "LSNNCell": lambda: norse.LSNNCell(norse_p(norse.LSNNParameters)),
    "LIFExCell": lambda: norse.LIFExCell(norse_p(norse.LIFExParameters)),
    "LIFRecurrentCell": lambda: norse.LIFRecurrentCell(
        HIDDEN, HIDDEN, norse_p(norse.LIFParameters)
    ),
    "LSNNRecurrentCell": lambda: norse.LSNNRecurrentCell(
        HIDDEN, HIDDEN, norse_p(norse.LSNNParameters)
    ),
    "LILinearCell": lambda: norse.LILinearCell(HIDDEN, HIDDEN),
}


class Passes(nn.Module):
    """Passes a neuron's state on, and may do something to it at every timestep."""

    def __init__(
        self,
        neuron: nn.Module,
        between: Callable[..., Any] | None = None,
        before: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.neuron, self.between = neuron, between
        self.fc = nn.Linear(FEATURES, HIDDEN) if before is None else before

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if isinstance(self.neuron, snn.SpikingNeuron):
            spk, *state = self.neuron(self.fc(x), *(state or ()))
        else:
            spk, state = self.neuron(5 * self.fc(x), state)
        if self.between is not None:
            spk, state = self.between(self.neuron, spk, state)
        return spk, state


@pytest.mark.parametrize("build", NEURONS.values(), ids=NEURONS.keys())
def test_a_neuron_is_the_librarys_own(build: Callable[[], nn.Module]) -> None:
    def case(wrap: Wrap, told: Told) -> None:
        model, seen = wrap(foreign(Passes(build())), readout=""), []

        def notes(neuron: nn.Module, *_: Any) -> None:
            held = {**vars(neuron), **neuron._buffers}
            seen.append({k: v.clone() for k, v in held.items() if isinstance(v, Tensor)})

        told.trained(model)
        run = model(CONSTANT.expand(STEPS, -1, -1), record=["neuron"])
        run.layers["neuron"].output.sum().backward()
        told.gradients(model.net, "of the spikes")
        layer = run.layers["neuron"]
        told.same["recorded"] = [layer.output, layer.membrane, dict(layer.state)]
        model.net.neuron.register_forward_hook(notes)
        with torch.no_grad():
            told.same["goes on"] = model(shown(), state=run.state).membrane
        told.same["seen"] = seen

    check_alike(case)


ODD = (float("nan"), float("inf"), -float("inf"), 1e-40, -1e-40, -0.0, 3e38)


@pytest.mark.parametrize("build", NEURONS.values(), ids=NEURONS.keys())
def test_odd_numbers_are_the_librarys_own(build: Callable[[], nn.Module]) -> None:
    def case(wrap: Wrap, told: Told) -> None:
        model = wrap(foreign(Passes(build(), before=nn.Identity())), readout="")
        inputs = torch.tensor(ODD).repeat(5, 2, 1).requires_grad_()
        model(torch.ones(2, 2, HIDDEN))
        membrane = model(torch.cat([inputs[:2], inputs[2:].flip(-1)])).membrane
        told.same["membrane"] = membrane
        membrane.nan_to_num(0.0, 0.0, 0.0).sum().backward()
        told.close["of the inputs"] = inputs.grad.nan_to_num(0.0, 0.0, 0.0)

    check_alike(case)


def membranes_written(neuron: Any, spk: Tensor, state: Any) -> Any:
    (mem,) = state
    mem.clamp_(max=0.5)
    spk[:, 0] = 0
    return spk, [mem]


def cut_off(neuron: Any, spk: Tensor, state: Any) -> Any:
    return spk, [state[0].detach_()]


def gradients_clipped(neuron: Any, spk: Tensor, state: Any) -> Any:
    if spk.requires_grad:
        spk.retain_grad()
        state[0].register_hook(lambda g: g.clamp(-0.01, 0.01))
    return spk, state


def decay_edited(neuron: Any, spk: Tensor, state: Any) -> Any:
    with torch.no_grad():
        neuron.beta.data.mul_(0.95)
        neuron.threshold.data.add_(0.05)
    return spk, state


def reset_edited(neuron: Any, spk: Tensor, state: Any) -> Any:
    neuron.reset_delay = not neuron.reset_delay
    neuron.inhibition = not neuron.inhibition
    return spk, state


def parts_read(neuron: Any, spk: Tensor, state: Any) -> Any:
    return spk + 0.1 * neuron.reset + neuron.fire(neuron.mem + 0.1), state


def parts_replaced(neuron: Any, spk: Tensor, state: Any) -> Any:
    neuron.fire = lambda mem: (mem > 0.2).float()
    neuron.state_function = neuron._base_zero
    return spk, state


BETWEEN = (
    membranes_written,
    cut_off,
    gradients_clipped,
    decay_edited,
    reset_edited,
    parts_read,
    parts_replaced,
)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("between", BETWEEN, ids=lambda between: between.__name__)
def test_a_neuron_may_be_written_between_timesteps(between: Any, learned: bool) -> None:
    def case(wrap: Wrap, told: Told) -> None:
        neuron = leaky(learn_beta=learned, learn_threshold=learned)
        model = wrap(foreign(Passes(neuron, between)), readout="")
        told.raises("a training step", lambda: told.trained(model))
        with torch.no_grad():
            told.same["without a graph"] = model(shown()).membrane

    check_alike(case)


class Sharper(snn.Leaky):
    def fire(self, mem: Tensor) -> Tensor:
        return 2 * super().fire(mem - 0.1)


def of_a_subclass(wrap: Wrap, told: Told) -> None:
    told.trained(wrap(foreign(Passes(Sharper(0.9, threshold=0.2))), readout=""))


def of_parts_replaced(wrap: Wrap, told: Told) -> None:
    for name in ("fire", "mem_reset", "state_function", "spike_grad", "forward"):
        neuron = leaky(init_hidden=True, output=True)
        own = getattr(neuron, name)
        setattr(neuron, name, lambda *given, own=own: own(*(1.1 * x for x in given)))
        told.trained(wrap(foreign(nn.Sequential(nn.Linear(FEATURES, 5), neuron))), when=name)


def of_a_class_patched(wrap: Wrap, told: Told) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fire = snn.Leaky.fire
        patch.setattr(snn.Leaky, "fire", lambda self, mem: fire(self, mem + 0.1))
        told.trained(wrap(dense()))


def of_odd_layouts(wrap: Wrap, told: Told) -> None:
    class Turns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.first, self.last = nn.Linear(FEATURES, 5), leaky(), leaky()

        def forward(self, x: Tensor, mem1: Any = None, mem2: Any = None) -> tuple[Tensor, ...]:
            spk, mem1 = self.first(self.fc(x).t(), *(() if mem1 is None else (mem1,)))
            wide = spk.t().unsqueeze(-1).expand(-1, -1, 2)[..., 1].view(len(x), -1)
            spk, mem2 = self.last(wide, *(() if mem2 is None else (mem2,)))
            return spk, mem1, mem2

    told.trained(wrap(foreign(Turns()), readout="last"))


@pytest.mark.parametrize(
    "case",
    [of_a_subclass, of_parts_replaced, of_a_class_patched, of_odd_layouts],
    ids=lambda case: case.__name__,
)
def test_neurons_that_compute_otherwise(case: Case) -> None:
    check_alike(case)
