"""Nets whose branches join, against the step engine: residual sums, gates, concatenations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CLASSES, DT, FEATURES, HIDDEN, leaky
from test_layer_plans import (
    BATCH,
    check_close,
    check_flips_only_at_the_threshold,
    check_gradients,
    images,
)
from torch import Tensor, nn

from dynvision_snn.engine.timed import Timed, aligned
from dynvision_snn.model import TimedModel, wrap
from dynvision_snn.presentation import Presentation

Fire = Callable[[int, Tensor], Tensor]


def add_in_place(net: Any, k: int, h: Tensor, skip: Tensor) -> Tensor:
    h += skip
    return h


JOINS: dict[str, Callable[[Any, int, Tensor, Tensor], Tensor]] = {
    "sum": lambda net, k, h, skip: h + skip,
    "operator": lambda net, k, h, skip: operator.add(skip, h),
    "function": lambda net, k, h, skip: torch.add(h, skip, alpha=0.5),
    "method": lambda net, k, h, skip: h.add(skip),
    "in place": add_in_place,
    "method in place": lambda net, k, h, skip: h.add_(skip),
    "difference": lambda net, k, h, skip: skip - h,
    "gate": lambda net, k, h, skip: h * torch.sigmoid(skip),
    "maximum": lambda net, k, h, skip: torch.maximum(h, skip),
    "one gate for all": lambda net, k, h, skip: h * net.gates[k](skip),
    "cat": lambda net, k, h, skip: net.halves[k](torch.cat([h, skip], dim=1)),
    "cat from behind": lambda net, k, h, skip: net.halves[k](torch.cat((skip, h), -1)),
    "parameter": lambda net, k, h, skip: h + net.shift,
    "row": lambda net, k, h, skip: net.row * h - skip,
    "learned gate": lambda net, k, h, skip: h * torch.sigmoid(net.shift),
    "two parameters": lambda net, k, h, skip: h + (net.shift - net.row),
    "number": lambda net, k, h, skip: 1 - h,
}


# Listeners of the step engine that keep an output keep what is then written into it.
TOLD = JOINS.keys() - {"in place", "method in place"}


class Residual(nn.Module):
    """Blocks whose weights' output joins what comes past them: the input's, or the last spikes."""

    def __init__(self, blocks: list[tuple[str, bool]]) -> None:
        super().__init__()
        self.blocks = blocks
        self.enter, self.out = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.ways = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in blocks)
        self.halves = nn.ModuleList(nn.Linear(2 * HIDDEN, HIDDEN) for _ in blocks)
        self.gates = nn.ModuleList(nn.Linear(HIDDEN, 1) for _ in blocks)
        self.shift = nn.Parameter(torch.randn(HIDDEN))
        self.row = nn.Parameter(torch.rand(1, HIDDEN))

    def joined(self, x: Tensor, fire: Fire) -> Tensor:
        shown = self.enter(x)
        z = fire(0, shown)
        for k, (join, from_input) in enumerate(self.blocks):
            z = fire(k + 1, JOINS[join](self, k, self.ways[k](z), shown if from_input else z))
        return self.out(z)


class Snntorch(Residual):
    def __init__(self, blocks: list[tuple[str, bool]]) -> None:
        super().__init__(blocks)
        self.neurons = nn.ModuleList(leaky(init_hidden=True) for _ in range(len(blocks) + 1))
        self.readout = leaky(init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Any:
        return self.readout(self.joined(x, lambda k, h: self.neurons[k](h)))


class Norse(Residual):
    def __init__(self, blocks: list[tuple[str, bool]]) -> None:
        super().__init__(blocks)
        p = norse.LIFParameters(v_th=torch.tensor(0.1))
        self.neurons = nn.ModuleList(norse.LIFCell(p) for _ in range(len(blocks) + 1))
        self.readout = norse.LICell()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, list[Any]]:
        state = [None] * (len(self.neurons) + 1) if state is None else list(state)

        def fire(k: int, h: Tensor) -> Tensor:
            z, state[k] = self.neurons[k](10 * h, state[k])
            return z

        v, state[-1] = self.readout(self.joined(x, fire), state[-1])
        return v, state


LIBRARIES: dict[str, type[Residual]] = {"snnTorch": Snntorch, "Norse": Norse}

SHOWN: dict[str, Presentation | None] = {
    "constant": Presentation("1", dt=DT, n_timesteps=6),
    "several, after idle time": Presentation("01220", dt=DT, idle_time=2.0),
    "a new input at every timestep": None,
}


def both(build: Callable[[], nn.Module], seed: int = 0) -> tuple[TimedModel, TimedModel]:
    nets = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            nets.append(build())
    return wrap(nets[0], dt=DT, engine="step"), wrap(nets[1], dt=DT, engine="layer")


def stimuli(presentation: Presentation | None, seed: int = 1) -> Tensor:
    if presentation is not None:
        return images(presentation, seed)
    return 1 + torch.randn(6, BATCH, FEATURES, generator=torch.Generator().manual_seed(seed))


def check_same(step: TimedModel, layer: TimedModel, shown: tuple[Any, ...]) -> None:
    theirs, mine = step(*shown), layer(*shown)
    for run in (theirs, mine):
        run.membrane.square().sum().backward()
    check_close(mine.membrane, theirs.membrane)
    if theirs.spikes is not None:
        assert torch.equal(mine.spikes, theirs.spikes)
    check_gradients(layer, step)


@pytest.mark.parametrize("presentation", SHOWN.values(), ids=SHOWN.keys())
@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_branches_join_as_in_the_step_engine(
    library: str, join: str, presentation: Presentation | None
) -> None:
    step, layer = both(lambda: LIBRARIES[library]([(join, True), (join, False)]))
    check_same(step, layer, (stimuli(presentation), presentation))
    assert "timestep by timestep" not in layer.explain()


@settings(max_examples=25)
@given(
    library=st.sampled_from(sorted(LIBRARIES)),
    blocks=st.lists(st.tuples(st.sampled_from(sorted(TOLD)), st.booleans()), max_size=3),
    presentation=st.sampled_from(list(SHOWN.values())),
    seed=st.integers(0, 2**31),
)
def test_any_of_them_is_the_step_engines(
    library: str,
    blocks: list[tuple[str, bool]],
    presentation: Presentation | None,
    seed: int,
) -> None:
    models = both(lambda: LIBRARIES[library](blocks), seed)
    check_flips_only_at_the_threshold(*models, stimuli(presentation, seed), presentation)


class Axes(nn.Module):
    """Joins that no batch of timesteps can do: told by `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky(init_hidden=True)
        self.deep = nn.Parameter(torch.rand(1, 1, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        if self.kind == "one axis less":
            return self.lif(h + 2 * h.mean(0))
        if self.kind == "a number of all":
            return self.lif(h * (2 * h.mean()))
        if self.kind == "samples side by side":
            return self.lif(torch.cat([h, 2 * h]).unflatten(0, (2, -1)).sum(0))
        return self.lif((h + self.deep).squeeze(0))


AXES = (
    "one axis less",
    "a number of all",
    "samples side by side",
    "a parameter of more axes",
)


@pytest.mark.parametrize("presentation", SHOWN.values(), ids=SHOWN.keys())
@pytest.mark.parametrize("kind", AXES)
def test_axes_of_time_and_batch_never_mix(kind: str, presentation: Presentation | None) -> None:
    step, layer = both(lambda: Axes(kind))
    check_same(step, layer, (stimuli(presentation), presentation))


def test_a_join_that_does_not_line_up_is_told() -> None:
    _, layer = both(lambda: Axes("one axis less"))
    layer(stimuli(None))
    assert "add: its values have too few axes, or do not line up" in layer.explain()
    assert "timestep by timestep" in layer.explain()


class Writes(nn.Module):
    """Writes into a tensor: told by `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky(init_hidden=True)
        self.relu, self.celu = nn.ReLU(inplace=True), nn.CELU(inplace=True)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        if self.kind == "another name":
            skip = h
            h += 0.3
            return self.lif(h + skip)
        if self.kind == "a function of no value":
            h.sub_(0.3)
            return self.lif(h)
        if self.kind == "through a dropout that passes it on":
            return self.lif(self.relu(self.drop(h)) + h)
        if self.kind == "a module":
            return self.lif(self.celu(h) + self.fc(x))
        if self.kind == "a module, seen":
            return self.lif(self.relu(h) + h)
        return self.lif(torch.nn.functional.elu(h, inplace=True) + h)


WRITES = {
    "another name": True,
    "a function of no value": True,
    "through a dropout that passes it on": True,
    "a module": False,
    "a module, seen": True,
    "a function": True,
}


@pytest.mark.parametrize("presentation", SHOWN.values(), ids=SHOWN.keys())
@pytest.mark.parametrize("kind", WRITES)
def test_what_is_written_into_a_tensor_is_seen(
    kind: str, presentation: Presentation | None
) -> None:
    step, layer = both(lambda: Writes(kind))
    auto = wrap(layer.net, dt=DT, engine="auto")
    check_same(step, auto, (stimuli(presentation), presentation))
    assert ("writes into a tensor that others may see" in auto.explain()) == WRITES[kind]


class Sets(nn.Module):
    """Changes a tensor by an attribute of it: told by `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky(init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Any:
        if self.kind == "weights":
            self.fc.weight.data = self.fc.weight.data.clamp(min=-0.1, max=0.1)
        h = self.fc(x)
        skip = torch.sigmoid(h)
        if self.kind == "values":
            h.data += 0.5
        if self.kind == "values set":
            h.data = h.data + 0.5
        if self.kind == "gradient":
            skip = skip.detach().requires_grad_()
        return self.lif(2.0 * h + skip)


class SetsAState(nn.Module):
    """Writes into a variable of what a neuron returned as a whole."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        p = norse.LIFParameters(v_th=torch.tensor(0.3))
        self.fc, self.lif = nn.Linear(FEATURES, HIDDEN), norse.LIFCell(p)
        self.out, self.readout = nn.Linear(HIDDEN, CLASSES), norse.LICell()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        s1, s2 = (None, None) if state is None else state
        z, s1 = self.lif(10 * self.fc(x), s1)
        v = s1.v
        if self.kind == "a state":
            v *= -1.0
        out, s2 = self.readout(self.out(z), s2)
        return out, (s1, s2)


SETS: dict[str, tuple[type[nn.Module], str]] = {
    "weights": (Sets, "it sets data of a tensor"),
    "values": (Sets, "it sets data of a tensor"),
    "values set": (Sets, "it sets data of a tensor"),
    "gradient": (Sets, "requires_grad_ writes into a tensor"),
    "a state": (SetsAState, "writes into a tensor that others may see"),
}


@pytest.mark.parametrize("kind", SETS)
def test_what_is_changed_by_an_attribute_is_changed(kind: str) -> None:
    build, reason = SETS[kind]
    step, layer = both(lambda: build(kind))
    auto = wrap(layer.net, dt=DT, engine="auto")
    inputs = stimuli(None)
    with torch.no_grad():
        assert torch.equal(auto(inputs).membrane, step(inputs).membrane)
        plain, _ = both(lambda: build("not at all"))
        changed = not torch.equal(plain(inputs).membrane, step(inputs).membrane)
    assert reason in auto.explain()
    assert changed == (kind != "gradient")


class Delayed(nn.Module):
    """A layer's spikes, and the input, reach the next layer one timestep later."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(FEATURES, HIDDEN), leaky()
        self.fc2, self.past = nn.Linear(HIDDEN, CLASSES), nn.Linear(FEATURES, CLASSES)
        self.lif2 = leaky()

    def forward(
        self, x: Tensor, mem1: Any, mem2: Any, spk_prev: Any, x_state: Any
    ) -> tuple[Tensor, ...]:
        if spk_prev is None:
            spk_prev, x_state = 0 * self.fc1(x), 0 * x
        spk, mem1 = self.lif1(self.fc1(x), mem1)
        out, mem2 = self.lif2(self.fc2(spk_prev) + self.past(x_state), mem2)
        return out, mem1, mem2, spk, x


class ByName(nn.Module):
    """Takes its states by name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.syn = nn.Linear(FEATURES, HIDDEN), snn.Synaptic(0.8, 0.9, threshold=0.3)
        self.fc2, self.lif = nn.Linear(HIDDEN, CLASSES), leaky()

    def forward(
        self, x: Tensor, *, syn: Any = None, mem1: Any = None, mem2: Any = None
    ) -> tuple[Tensor, ...]:
        spk, syn, mem1 = self.syn(self.fc1(x), syn, mem1)
        out, mem2 = self.lif(self.fc2(spk), mem2)
        return out, syn, mem1, mem2


class StartsWithANumber(nn.Module):
    """Its first timestep takes a number in place of a state, in the same operation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky(init_hidden=True, output=True)

    def forward(self, x: Tensor, last_state: Any = None) -> tuple[Tensor, Tensor]:
        h = self.fc(x)
        _, mem = self.lif(h + (0.2 if last_state is None else last_state))
        return mem, h


@pytest.mark.parametrize("presentation", SHOWN.values(), ids=SHOWN.keys())
@pytest.mark.parametrize("build", [Delayed, ByName, StartsWithANumber])
def test_states_that_are_passed_on(
    build: Callable[[], nn.Module], presentation: Presentation | None
) -> None:
    step, layer = both(build)
    check_same(step, layer, (stimuli(presentation), presentation))
    assert "timestep by timestep" not in layer.explain()
    inputs = stimuli(None, 3)
    whole = step(inputs).membrane
    first = layer(inputs[:3])
    check_close(torch.cat([first.membrane, layer(inputs[3:], state=first.state).membrane]), whole)


SEQUENCES: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "sum": lambda net, y, h: y + h + net.shift,
    "in place": lambda net, y, h: operator.iadd(y, h),
    "cat": lambda net, y, h: net.halves(torch.cat([y, h], dim=2)),
    "cat of samples": lambda net, y, h: torch.cat([y, h], dim=1).unflatten(1, (2, -1)).sum(1),
    "cat over time": lambda net, y, h: torch.cat([y[:1], h[1:]]),
    "mean over time": lambda net, y, h: y + h.mean(0),
    "mean over time, the axis kept": lambda net, y, h: y + h.mean(0, keepdim=True),
}


class Sequence(nn.Module):
    """Takes all timesteps, and returns its states after them: of neurons, a GRU and its own."""

    def __init__(self, join: str) -> None:
        super().__init__()
        self.join = join
        p = norse.LIFParameters(v_th=torch.tensor(0.1))
        self.enter, self.lif1 = nn.Linear(FEATURES, HIDDEN), norse.LIF(p)
        self.way, self.halves = nn.Linear(HIDDEN, HIDDEN), nn.Linear(2 * HIDDEN, HIDDEN)
        self.gru, self.lif2 = nn.GRU(HIDDEN, HIDDEN), norse.LIF(p)
        self.out, self.readout = nn.Linear(HIDDEN, CLASSES), norse.LI()
        self.shift = nn.Parameter(torch.rand(HIDDEN))

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, tuple[Any, ...]]:
        s1, s2, s3, hidden, _ = (None,) * 5 if state is None else state
        h = 10 * self.enter(x)
        z, s1 = self.lif1(h, s1)
        y, hidden = self.gru(SEQUENCES[self.join](self, self.way(z), h), hidden)
        z, s2 = self.lif2(20 * y, s2)
        v, s3 = self.readout(self.out(z), s3)
        return v, (s1, s2, s3, hidden, 2 * s2.v)


@pytest.mark.parametrize("presentation", SHOWN.values(), ids=SHOWN.keys())
@pytest.mark.parametrize("join", SEQUENCES)
def test_whole_sequences_join_too(join: str, presentation: Presentation | None) -> None:
    step, layer = both(lambda: Sequence(join))
    check_same(step, layer, (stimuli(presentation), presentation))
    inputs = stimuli(None, 3)
    whole = step(inputs).membrane
    first = layer(inputs[:3])
    for model in (step, layer):
        rest = model(inputs[3:], state=first.state).membrane
        if "over time" not in join:
            check_close(torch.cat([first.membrane, rest]), whole)


def test_values_are_brought_to_common_distinct_ones() -> None:
    index = torch.tensor([0, 1, 1, 0])
    held, other = Timed(torch.rand(2, 3), index), Timed(torch.rand(2, 3), index.clone())
    steps, one = Timed(torch.rand(4, 3)), Timed(torch.rand(1, 3), torch.zeros(4, dtype=torch.int64))
    for timed in ([held, other], [held, one], [steps, one], [held, steps, one], [one, one]):
        values, common = aligned(timed)
        for value, original in zip(values, timed, strict=True):
            n_distinct = max(len(v) for v in values)
            whole = Timed(value.expand(n_distinct, 3), common)
            assert torch.equal(whole.over_time(), original.over_time())
    assert all(len(value) == 2 for value in aligned([held, other])[0])
