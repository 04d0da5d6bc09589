"""Nets as users write them: functions of torch, views, first states made in the forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CLASSES, DT, leaky
from test_layer_plans import (
    BATCH,
    PRESENTATIONS,
    check_close,
    check_energy_alike,
    check_flips_only_at_the_threshold,
    check_gradients,
    check_heard_alike,
)
from torch import Tensor, nn
from torch.nn import functional

from dynvision_snn.errors import WrapError
from dynvision_snn.model import TimedModel, wrap
from dynvision_snn.presentation import Presentation

IMAGE = (1, 8, 8)
batch_size = BATCH


def images(presentation: Presentation | None, seed: int = 1, n_samples: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    several = (6,) if presentation is None else (presentation.n_stimuli,)
    leading = several if presentation is None or several[0] > 1 else ()
    return 1 + 2 * torch.randn(*leading, n_samples, *IMAGE, generator=generator)


# -- snnTorch's tutorial 6, in its two forms ------------------------------------------------------


class Convolutional(nn.Module):
    """Tutorial 6; `pool`, `view` and `start` are what users write in different ways."""

    def __init__(self, **written: Any) -> None:
        super().__init__()
        self.pool = written.get("pool", POOLS["max"])
        self.view = written.get("view", VIEWS["batch_size"])
        self.start = written.get("start", STARTS["none"])
        self.front = written.get("front", FRONTS["as it is"])
        self.conv1, self.lif1 = nn.Conv2d(1, 3, 3), leaky()
        self.conv2, self.lif2 = nn.Conv2d(3, 4, 2), leaky()
        self.fc1, self.lif3 = nn.Linear(4, CLASSES), leaky()

    def one_step(self, x: Tensor, mem1: Any, mem2: Any, mem3: Any) -> tuple[Tensor, ...]:
        cur1 = self.pool(self, self.conv1(x))
        spk1, mem1 = self.lif1(cur1, mem1)
        cur2 = self.pool(self, self.conv2(spk1))
        spk2, mem2 = self.lif2(3 * cur2, mem2)
        cur3 = self.fc1(self.view(spk2, x))
        spk3, mem3 = self.lif3(3 * cur3, mem3)
        return spk3, mem1, mem2, mem3


class Step(Convolutional):
    """One timestep, the states handed in and out."""

    def forward(
        self, x: Tensor, mem1: Any = None, mem2: Any = None, mem3: Any = None
    ) -> tuple[Tensor, ...]:
        return self.one_step(x, *self.start(self, x, mem1, mem2, mem3))


class Loop(Convolutional):
    """The loop inside, as the tutorial's own."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        spk3_rec, mem3_rec = [], []
        x = self.front(x)
        for step in range(x.size(0)):
            spk3, mem1, mem2, mem3 = self.one_step(x[step], mem1, mem2, mem3)
            spk3_rec.append(spk3)
            mem3_rec.append(mem3)
        return torch.stack(spk3_rec, dim=0), torch.stack(mem3_rec, dim=0)


POOLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "max": lambda net, h: functional.max_pool2d(h, 2),
    "max, named": lambda net, h: functional.max_pool2d(h, kernel_size=2, stride=2),
    "max, torch": lambda net, h: torch.max_pool2d(h, 2),
    "average": lambda net, h: functional.avg_pool2d(h, 2),
    "adaptive": lambda net, h: functional.adaptive_avg_pool2d(
        functional.max_pool2d(h, 2), (None, None)
    ),
    "relu": lambda net, h: functional.relu(functional.max_pool2d(h, 2)),
    "relu in place": lambda net, h: functional.relu(functional.max_pool2d(h, 2), inplace=True),
    "clamped": lambda net, h: functional.max_pool2d(h, 2).clamp(min=-1.0),
    "dropout in eval": lambda net, h: functional.dropout(
        functional.max_pool2d(h, 2), 0.4, training=net.training
    ),
}
VIEWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "batch_size": lambda h, x: h.view(batch_size, -1),
    "size": lambda h, x: h.view(h.size(0), -1),
    "size of the input": lambda h, x: h.view(x.size(0), -1),
    "shape": lambda h, x: h.view(h.shape[0], -1),
    "shapes": lambda h, x: h.reshape(h.shape[0], h.shape[1] * h.shape[2] * h.shape[3]),
    "shape, unpacked": lambda h, x: reshaped_by_all(h),
    "list": lambda h, x: h.reshape([x.size()[0], 4]),
    "torch.reshape": lambda h, x: torch.reshape(h, (x.shape[0], -1)),
    "length": lambda h, x: h.reshape(len(h), -1),
    "length of the input": lambda h, x: h.view(len(x), -1),
    "features": lambda h, x: h.view(-1, 4),
    "twice": lambda h, x: h.view(-1, 2, 2, 1).view(h.size(0), -1),
    "flatten": lambda h, x: h.flatten(1),
    "torch.flatten": lambda h, x: torch.flatten(h, 1),
    "mean": lambda h, x: h.mean(dim=(2, 3)),
    "sums": lambda h, x: torch.sum(h.sum(-1), dim=-1),
    "squeeze": lambda h, x: h.squeeze(-1).squeeze(2),
    "unsqueeze": lambda h, x: torch.unsqueeze(h.unsqueeze(1), -1).flatten(1),
    "transpose": lambda h, x: h.transpose(1, -1).flatten(1),
    "softmax": lambda h, x: functional.softmax(3 * h.flatten(1), dim=1),
    "contiguous": lambda h, x: h.contiguous().float().flatten(1),
    "torch.flatten, named": lambda h, x: torch.flatten(h, start_dim=1, end_dim=-1),
}
# What a loop does with all of its input first.
FRONTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "flatten": lambda x: x.flatten(2).view(x.size(0), x.size(1), *IMAGE),
    "torch.flatten": lambda x: torch.flatten(x, start_dim=3).reshape(len(x), batch_size, *IMAGE),
    "view": lambda x: x.view(x.size(0), x.size(1), -1).view(*x.shape[:2], 1, 8, -1),
    "float": lambda x: 2 * x.float().reshape((x.shape[0], x.shape[1], *IMAGE)).contiguous(),
}
Start = Callable[..., tuple[Any, ...]]


def reshaped_by_all(h: Tensor) -> Tensor:
    n, channels, height, width = h.shape
    return h.reshape(n, channels * height * width)


def each(net: Any, x: Tensor, mem1: Any, mem2: Any, mem3: Any) -> tuple[Any, ...]:
    if mem1 is None:
        mem1 = net.lif1.init_leaky()
    if mem2 is None:
        mem2 = net.lif2.reset_mem()
    return mem1, mem2, net.lif3.reset_mem() if mem3 is None else mem3


def all_at_once(net: Any, x: Tensor, *states: Any) -> tuple[Any, ...]:
    if states[0] is None:
        return net.lif1.init_leaky(), net.lif2.init_leaky(), net.lif3.init_leaky()
    return states


def zeros(net: Any, x: Tensor, *states: Any) -> tuple[Any, ...]:
    if states[0] is not None:
        return states
    like: Any = {"device": x.device, "dtype": x.dtype}
    mem1 = torch.zeros(x.size(0), 3, 3, 3, **like)
    return mem1, torch.zeros((len(x), 4, 1, 1)), torch.zeros(x.shape[0], CLASSES)


def ones(net: Any, x: Tensor, *states: Any) -> tuple[Any, ...]:
    return (*states[:2], torch.ones(x.size(0), CLASSES) if states[2] is None else states[2])


def computed(net: Any, x: Tensor, *states: Any) -> tuple[Any, ...]:
    if states[0] is not None:
        return states
    return 0.2 * functional.max_pool2d(net.conv1(x), 2), None, None


def anothers(net: Any, x: Tensor, *states: Any) -> tuple[Any, ...]:
    return (net.lif3.reset_mem(), None, None) if states[0] is None else states


STARTS: dict[str, Start] = {
    "none": lambda net, x, *states: states,
    "each": each,
    "all at once": all_at_once,
    "zeros": zeros,
    "ones": ones,
    "computed": computed,
    "another's": anothers,
}
AS_IT_IS = ("zeros", "ones", "computed", "another's")


def net(form: Callable[..., nn.Module], **written: Any) -> Callable[[], nn.Module]:
    return lambda: form(**written)


IDIOMS: dict[str, Callable[[], nn.Module]] = {
    **{f"step, pool: {name}": net(Step, pool=pool) for name, pool in POOLS.items()},
    **{f"loop, pool: {name}": net(Loop, pool=pool) for name, pool in POOLS.items()},
    **{f"step, view: {name}": net(Step, view=view) for name, view in VIEWS.items()},
    **{f"loop, view: {name}": net(Loop, view=view) for name, view in VIEWS.items()},
    **{f"loop, front: {name}": net(Loop, front=front) for name, front in FRONTS.items()},
    **{f"step, start: {name}": net(Step, start=start) for name, start in STARTS.items()},
}
# All but the views that differ in their words alone.
SEVERAL = [name for name in IDIOMS if "view" not in name or name.endswith(("size", "length"))]


def built(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def both(
    build: Callable[[], nn.Module], seed: int = 0, engine: Any = "layer", **options: Any
) -> tuple[TimedModel, TimedModel]:
    step, layer = (built(build, seed).eval() for _ in range(2))
    return (
        wrap(step, dt=DT, engine="step", **options),
        wrap(layer, dt=DT, engine=engine, **options),
    )


def check_same(step: TimedModel, layer: TimedModel, shown: tuple[Any, ...]) -> None:
    theirs, mine = step(*shown), layer(*shown)
    for run in (theirs, mine):
        run.membrane.square().sum().backward()
    assert mine.readout == theirs.readout
    check_close(mine.membrane, theirs.membrane)
    assert theirs.membrane.std() > 0
    assert (mine.spikes is None) == (theirs.spikes is None)
    if theirs.spikes is not None:
        assert torch.equal(mine.spikes, theirs.spikes)
        assert theirs.spikes.any()
    check_gradients(layer, step)


@pytest.mark.parametrize(
    ("name", "presentation"),
    [*((name, None) for name in IDIOMS), *((name, PRESENTATIONS["constant"]) for name in SEVERAL)],
)
def test_it_is_the_step_engines_run(name: str, presentation: Presentation | None) -> None:
    step, layer = both(IDIOMS[name])
    check_same(step, layer, (images(presentation), presentation))
    assert "timestep by timestep" not in layer.explain()
    as_it_is = name in [f"step, start: {start}" for start in AS_IT_IS]
    assert ("the first timestep as it is" in layer.explain()) == as_it_is


@pytest.mark.parametrize("name", SEVERAL)
def test_listeners_hear_the_same(name: str) -> None:
    check_heard_alike(*both(IDIOMS[name]), images, PRESENTATIONS["several"])


@pytest.mark.parametrize("name", SEVERAL)
def test_energy_is_the_same(name: str) -> None:
    assert check_energy_alike(*both(IDIOMS[name]), images, PRESENTATIONS["idle"]) > 0


@pytest.mark.parametrize("name", [name for name in IDIOMS if name.startswith("step, start")])
def test_a_run_goes_on_from_either_engines_state(name: str) -> None:
    step, layer = both(IDIOMS[name])
    inputs = images(None)
    whole = step(inputs).membrane
    for first, second in ((layer, layer), (step, layer), (layer, step)):
        start = first(inputs[:4])
        rest = second(inputs[4:], state=start.state)
        check_close(torch.cat([start.membrane, rest.membrane]), whole)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(IDIOMS)),
    seed=st.integers(0, 2**31),
    pattern=st.lists(st.integers(0, 2), min_size=2, max_size=9).filter(any),
    idle=st.integers(0, 3),
)
def test_a_spike_flips_only_at_the_threshold(
    name: str, seed: int, pattern: list[int], idle: int
) -> None:
    presentation = Presentation(pattern, dt=DT, idle_time=float(idle))
    shown = images(presentation, seed)
    check_flips_only_at_the_threshold(*both(IDIOMS[name], seed), shown, presentation)


@pytest.mark.parametrize("form", ["step", "loop"])
@pytest.mark.parametrize("view", ["size", "length", "shape"])
def test_another_number_of_samples_is_another_plan(form: str, view: str) -> None:
    step, layer = both(IDIOMS[f"{form}, view: {view}"])
    for n_samples in (2, 5, 2):
        inputs = images(None, n_samples=n_samples)
        check_close(layer(inputs).membrane, step(inputs).membrane)


def test_another_number_of_samples_than_its_own_is_the_forwards_own_error() -> None:
    for model in both(IDIOMS["loop, view: batch_size"]):
        model(images(None))
        with pytest.raises(RuntimeError, match=r"shape '\[3, -1\]' is invalid"):
            model(images(None, n_samples=4))


def test_a_dropout_function_in_training_is_drawn_timestep_by_timestep() -> None:
    for form in (Step, Loop):
        nets = [built(net(form, pool=POOLS["dropout in eval"])) for _ in range(2)]
        runs = []
        for model in (wrap(nets[0], dt=DT, engine="step"), wrap(nets[1], dt=DT, engine="layer")):
            torch.manual_seed(4)
            runs.append(model(images(None)))
        check_close(runs[1].membrane, runs[0].membrane)
        assert "they draw random numbers in turn" in model.explain()


# -- what is not the same -------------------------------------------------------------------------


class Mixes(nn.Module):
    """One step; `mix` does something with what the first layer yields."""

    def __init__(self, mix: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = mix
        self.fc1, self.lif1 = nn.Linear(64, 6), leaky(init_hidden=True)
        self.pairs, self.fc2 = nn.LayerNorm(12), nn.Linear(6, CLASSES)
        self.lif2 = leaky(init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc2(self.mix(self, self.lif1(self.fc1(x.flatten(1))))))


MIXES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "half": lambda net, h: net.pairs(h.view(h.size(0) // 2, -1)).view(h.shape),
    "a number of its own": lambda net, h: net.pairs(h.view(2, -1)).view(4, 6),
    "features": lambda net, h: net.pairs(h.view(-1, 12)).reshape(h.shape[0], h.shape[1]),
    "all": lambda net, h: (2 * h.view(-1) / h.numel() ** 0.5).view(h.shape),
    "a feature axis first": lambda net, h: h.view(h.size(1), -1).flip(0).reshape(h.shape),
    "mean of samples": lambda net, h: h + 0.1 * h.mean(0, keepdim=True),
    "mean of samples, from behind": lambda net, h: h + 0.1 * h.mean(-2, keepdim=True),
    "softmax of samples": lambda net, h: 2 * functional.softmax(h, dim=-2),
    "softmax of all that is left": lambda net, h: h + h.sum(1).softmax(-1).unsqueeze(1),
    "swapped": lambda net, h: h.transpose(-2, -1).flip(0).transpose(0, 1),
    "a new first axis": lambda net, h: h.unsqueeze(-3).squeeze(0),
    "flat from the first axis": lambda net, h: torch.flatten(h, 0).flip(0).view(-1, 6),
}


@pytest.mark.parametrize("presentation", [PRESENTATIONS["several"], None])
@pytest.mark.parametrize("mix", MIXES)
def test_a_view_that_moves_values_between_samples_is_taken_timestep_by_timestep(
    mix: str, presentation: Presentation | None
) -> None:
    step, layer = both(lambda: Mixes(MIXES[mix]))
    check_same(step, layer, (images(presentation, n_samples=4), presentation))
    assert "timestep by timestep" in layer.explain()
    assert "one scan over time           lif2" in layer.explain()


class Lengths(Mixes):
    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.mix(self, self.fc2(self.lif1(self.fc1(x.flatten(1))))))


LENGTHS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "of what is no batch": lambda net, h: 2 * h / len(h.t()),
    "of a parameter": lambda net, h: h * len(net.fc2.weight),
    "of samples side by side": lambda net, h: 8 * h / len(torch.cat([h, h])),
}


@pytest.mark.parametrize("length", LENGTHS)
def test_a_length_is_the_number_of_samples_or_refused(length: str) -> None:
    step, auto = both(lambda: Lengths(LENGTHS[length]), engine="auto")
    for n_samples in (3, CLASSES, 5, CLASSES):
        inputs = images(None, n_samples=n_samples)
        check_close(auto(inputs).membrane, step(inputs).membrane)
        by_chance = n_samples == CLASSES and length == "of what is no batch"
        right = by_chance or length == "of a parameter"
        assert auto.explain().startswith("layer by layer") == right


def test_a_parameter_of_another_size_is_another_plan() -> None:
    class Scales(Mixes):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.fc1.weight.shape[0] / self.fc1.weight.size(1)

    step, layer = both(lambda: Scales(lambda net, h: h[:, :6]))
    inputs = images(None)
    for _ in range(2):
        check_close(layer(inputs).membrane, step(inputs).membrane)
        for model in (step, layer):
            net: Any = model.net
            net.fc1.weight = nn.Parameter(torch.linspace(-0.1, 0.2, 8 * 64).view(8, 64))
            net.fc1.bias = None


class Starts(nn.Module):
    """One step; `start` does something where it has no state."""

    def __init__(self, start: Callable[[Any], None], **options: Any) -> None:
        super().__init__()
        self.start, self.gain = start, 1.0
        self.fc1, self.lif1 = nn.Linear(64, 6), leaky(**options)
        self.fc2, self.lif2 = nn.Linear(6, CLASSES), leaky()

    def forward(self, x: Tensor, mem1: Any = None, mem2: Any = None) -> tuple[Tensor, ...]:
        if mem1 is None:
            self.start(self)
        spk, mem1 = self.lif1(self.gain * self.fc1(x.flatten(1)), mem1)
        spk, mem2 = self.lif2(2 * self.fc2(spk), mem2)
        return spk, mem1, mem2


class StartsHidden(Starts):
    """Its first layer keeps its state; what it does comes after that layer."""

    def forward(self, x: Tensor, mem2: Any = None) -> tuple[Tensor, Tensor]:
        spk = self.lif1(self.fc1(x.flatten(1)))
        if mem2 is None:
            self.start(self)
        return self.lif2(2 * self.fc2(spk), mem2)


def charges(net: Any) -> None:
    net.lif1.mem = torch.full((BATCH, 6), 0.2)


def sets_a_threshold(net: Any) -> None:
    net.lif1.threshold = torch.tensor(0.1)


def sets_a_gain(net: Any) -> None:
    net.gain = 2.0


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "charges": (lambda: Starts(charges), "writes what lif1 holds"),
    "sets a threshold": (lambda: Starts(sets_a_threshold), "writes lif1.threshold"),
    "sets a gain": (lambda: Starts(sets_a_gain), "writes gain"),
    "charges after the call": (
        lambda: StartsHidden(charges, init_hidden=True), "writes lif1.mem between timesteps"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_first_timestep_that_later_ones_would_see_is_refused(
    build: Callable[[], nn.Module], reason: str
) -> None:
    step, auto = both(build, engine="auto", readout="lif2")
    runs = [model(images(None)).membrane for model in (step, auto)]
    assert torch.equal(*runs)
    with pytest.raises(WrapError, match=reason):
        both(build, readout="lif2")[1](images(None))


class TellsItsState(snn.Leaky):
    """Starts higher where it is given no state."""

    def forward(self, input_: Tensor, mem: Any = None) -> Any:
        return super().forward(input_ + 0.3 if mem is None else input_, mem)


@pytest.mark.parametrize("given", [True, False])
def test_a_neuron_that_tells_its_state_from_none_is_given_what_the_forward_gives(
    given: bool,
) -> None:
    class Tells(Starts):
        def forward(self, x: Tensor, mem1: Any = None, mem2: Any = None) -> tuple[Tensor, ...]:
            if mem1 is None and given:
                mem1 = self.lif1.reset_mem()
            return super().forward(x, mem1, mem2)

    def build() -> nn.Module:
        net = Tells(lambda net: None)
        net.lif1 = TellsItsState(0.9, threshold=0.3)
        return net

    step, layer = both(build)
    check_same(step, layer, (images(None), None))
    assert ("the first timestep as it is" in layer.explain()) == given


class PassesOnWhole(nn.Module):
    """``state = lstm(x, state)``: the cell's pair of states is never taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 7), leaky(init_hidden=True)
        self.lstm, self.fc2 = nn.LSTMCell(7, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        state = self.lstm(self.lif1(self.fc1(x.flatten(1))), state)
        return self.fc2(state[0]), state


def test_a_pair_of_states_that_is_passed_on_whole_is_run_step_by_step() -> None:
    step, auto = both(PassesOnWhole, engine="auto", readout="")
    runs = [model(images(None)).membrane for model in (step, auto)]
    assert torch.equal(*runs)
    with pytest.raises(WrapError, match="returns another kind of state than it takes"):
        both(PassesOnWhole, readout="")[1](images(None))
