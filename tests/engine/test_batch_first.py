"""Models of whole sequences that take [B, T, ...]: the step engine's run, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CLASSES, DT, FEATURES, HIDDEN
from test_layer_plans import (
    BATCH,
    PRESENTATIONS,
    check_close,
    check_energy_alike,
    check_flips_only_at_the_threshold,
    check_gradients,
    check_heard_alike,
    images,
)
from torch import Tensor, nn
from torch.nn import functional

from dynvision_snn.errors import WrapError
from dynvision_snn.model import TimedModel, wrap
from dynvision_snn.presentation import Presentation

Forward = Callable[..., Any]


class Net(nn.Module):
    """Norse's sequences; `steps` is the forward of ``[B, T, ...]``."""

    def __init__(self, steps: Forward) -> None:
        super().__init__()
        self.steps = steps
        p = norse.LIFParameters(v_th=torch.tensor(0.1))
        self.fc, self.lif = nn.Linear(FEATURES, HIDDEN), norse.LIF(p)
        self.rec, self.out = norse.LIFRecurrent(HIDDEN, HIDDEN, p), nn.Linear(HIDDEN, CLASSES)
        self.li, self.norm = norse.LI(), nn.LayerNorm(HIDDEN)
        self.lifted = norse.Lift(nn.Linear(HIDDEN, HIDDEN))

    def forward(self, x: Tensor) -> Any:
        return self.steps(self, x)


def swaps_first(net: Any, x: Tensor) -> Tensor:
    z, _ = net.lif(20 * net.fc(x.transpose(0, 1)))
    v, _ = net.li(net.out(z))
    return v.transpose(0, 1)


def weighs_first(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Linears and functions before the first swap, and after the last."""
    currents = functional.relu(20 * net.fc(x)) - 0.1
    z, _ = net.lif(currents.permute(1, 0, 2).contiguous())
    z, _ = net.rec(net.lifted(z) + z)
    v, _ = net.li(net.out(z).contiguous())
    return 2 * torch.swapaxes(v, 0, 1) - 0.1, z


class Parameters(Net):
    """Weighs with parameters of its own."""

    def __init__(self) -> None:
        super().__init__(swaps_first)
        self.gain, self.row = nn.Parameter(torch.ones(())), nn.Parameter(torch.rand(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        return swaps_first(self, (x + self.row) * self.gain)


def swaps_twice(net: Any, x: Tensor) -> Tensor:
    """Weights between the neurons with samples first, a residual around them."""
    currents = 20 * net.fc(x)
    z, _ = net.lif(currents.transpose(1, 0))
    behind = net.norm(z).transpose(0, 1) + 0.3 * currents
    z, _ = net.rec(behind.transpose(0, 1))
    v, _ = net.li(net.out(z.transpose(0, 1)).transpose(0, 1))
    return v.transpose(0, 1)


def all_of_them(net: Any, x: Tensor) -> Tensor:
    """A container, a layer that is called as it is, and a whole-sequence module of torch."""
    hidden, _ = net.chain(x.transpose(0, 1))
    y, _ = net.gru(hidden)
    v, _ = net.li(net.out(y))
    return v.transpose(0, 1)


def chained() -> nn.Module:
    net = Net(all_of_them)
    p = norse.LIFParameters(v_th=torch.tensor(0.1))
    scale = nn.Linear(FEATURES, HIDDEN)
    net.chain = norse.SequentialState(
        scale, norse.LIF(p), nn.Linear(HIDDEN, HIDDEN), norse.LIFRecurrent(HIDDEN, HIDDEN, p)
    )
    net.gru = nn.GRU(HIDDEN, HIDDEN)
    with torch.no_grad():
        scale.weight.mul_(20)
    return net


class GoesOn(Net):
    """Takes and returns its states."""

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        s1, s2 = (None, None) if state is None else state
        z, s1 = self.lif(20 * self.fc(x.transpose(0, 1)), s1)
        v, s2 = self.li(self.out(z), s2)
        return v.transpose(0, 1), (s1, s2)


NETS: dict[str, Callable[[], nn.Module]] = {
    "swaps first": lambda: Net(swaps_first),
    "weighs first": lambda: Net(weighs_first),
    "swaps twice": lambda: Net(swaps_twice),
    "all of them": chained,
    "parameters": Parameters,
    "goes on": lambda: GoesOn(swaps_first),
}
# A meter wants every call of a model that holds parameters itself.
METERED = sorted(NETS.keys() - {"parameters"})
every_net = pytest.mark.parametrize("name", NETS)


def built(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def both(build: Callable[[], nn.Module], seed: int = 0) -> tuple[TimedModel, TimedModel]:
    step, layer = (built(build, seed) for _ in range(2))
    return wrap(step, dt=DT, engine="step"), wrap(layer, dt=DT, engine="layer")


@pytest.mark.parametrize("presentation", [*PRESENTATIONS.values(), None])
@every_net
def test_it_is_the_step_engines_run(name: str, presentation: Presentation | None) -> None:
    step, layer = both(NETS[name])
    shown = 1 + torch.randn(6, BATCH, FEATURES) if presentation is None else images(presentation)
    theirs, mine = step(shown, presentation), layer(shown, presentation)
    for run in (theirs, mine):
        run.membrane.square().sum().backward()
    assert step._look is not None
    assert step._look.calling.time_axis == 1
    assert mine.readout == theirs.readout
    assert theirs.membrane.std() > 0
    check_close(mine.membrane, theirs.membrane)
    check_gradients(layer, step)
    assert "one scan over time           lif" in layer.explain() or name == "all of them"


@every_net
def test_listeners_hear_the_same(name: str) -> None:
    check_heard_alike(*both(NETS[name]), images, PRESENTATIONS["several"])


@pytest.mark.parametrize("name", METERED)
def test_energy_is_the_same(name: str) -> None:
    assert check_energy_alike(*both(NETS[name]), images, PRESENTATIONS["idle"]) > 0


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(NETS)),
    seed=st.integers(0, 2**31),
    pattern=st.lists(st.integers(0, 2), min_size=2, max_size=9).filter(any),
    idle=st.integers(0, 3),
)
def test_a_spike_flips_only_at_the_threshold(
    name: str, seed: int, pattern: list[int], idle: int
) -> None:
    presentation = Presentation(pattern, dt=DT, idle_time=float(idle))
    shown = images(presentation, seed)
    check_flips_only_at_the_threshold(*both(NETS[name], seed), shown, presentation)


def test_a_run_goes_on_from_either_engines_state() -> None:
    step, layer = both(NETS["goes on"])
    inputs = 1 + torch.randn(6, BATCH, FEATURES)
    whole = step(inputs).membrane
    for first, second in ((layer, layer), (step, layer), (layer, step)):
        start = first(inputs[:4])
        rest = second(inputs[4:], state=start.state)
        check_close(torch.cat([start.membrane, rest.membrane]), whole)


# -- refusals -------------------------------------------------------------------------------------


def before(change: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """A net that does something with ``[B, T, ...]`` before it swaps the axes."""
    return lambda: Net(lambda net, x: swaps_first(net, change(net, x)))


def after(change: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Net(lambda net, x: change(net, swaps_first(net, x)))


class Window(Net):
    """A parameter that is broadcast over the axis behind the first, whichever that is."""

    def __init__(self) -> None:
        super().__init__(swaps_first)
        self.window = nn.Parameter(torch.rand(1, FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        return swaps_first(self, x + self.window)


class Drops(Net):
    def __init__(self) -> None:
        super().__init__(swaps_first)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return swaps_first(self, self.drop(x))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sums up over time": (before(lambda net, x: x.cumsum(1)), "not the first where cumsum"),
    "sums up over samples": (before(lambda net, x: x.cumsum(0)), "not the first where cumsum"),
    "less its mean": (before(lambda net, x: x - x.mean(1, keepdim=True)), "where mean takes it"),
    "flips": (before(lambda net, x: x.flip(1)), "not the first where flip"),
    "joins": (before(lambda net, x: torch.cat([x[:, :1], x[:, 1:]], 1)), "where getitem takes it"),
    "after": (after(lambda net, v: v.cumsum(1)), "not the first where cumsum"),
    "normalises": (before(lambda net, x: net.norm(x.repeat(1, 1, 2)[..., :HIDDEN])[..., :FEATURES]),
                   "where repeat takes it"),
    "window": (Window, "not the first where add takes it"),
    "drops": (Drops, r"draws random numbers for \[B, T, ...\]"),
    "flips by itself": (
        after(lambda net, v: v.transpose(0, 1).flip(0).transpose(0, 1)),
        r"what it returns is not known to be \[B, T, ...\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_may_know_of_time_is_refused(build: Callable[[], nn.Module], reason: str) -> None:
    inputs = 1 + torch.randn(6, BATCH, FEATURES)
    runs = []
    for engine in ("step", "auto"):
        torch.manual_seed(2)
        model = wrap(built(build), dt=DT, engine=engine, time_axis=1, readout="")
        torch.manual_seed(2)
        runs.append(model(inputs).membrane)
    assert torch.equal(*runs)
    with pytest.raises(WrapError, match=reason):
        wrap(built(build), dt=DT, engine="layer", time_axis=1, readout="")(inputs)
