"""How much faster the layer plan is than the library's own loop, and than SpikingJelly.

Run with ``pytest tests/benchmarks -s --benchmark-only``. Every row is measured in one run: the
library's loop without energy, this package with the energy loss on, forward and backward. Times are
the shortest of several; set ``OMP_NUM_THREADS`` to the cores that are free. Where the system takes
back memory between two runs, asking for it anew takes a good part of the fastest; glibc is kept
from it by ``MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483648``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from dynvision_snn.engine import products, timed
from dynvision_snn.engine.choosing import EngineName
from dynvision_snn.engine.products import dense
from dynvision_snn.engine.scans import scan
from dynvision_snn.losses import EnergyLoss
from dynvision_snn.model import wrap
from dynvision_snn.presentation import Presentation

BATCH = 64


class Gain(nn.Module):
    """Norse scales input currents by dt / tau."""

    def forward(self, x: Tensor) -> Tensor:
        return 20.0 * x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(700, 256), nn.Linear(256, 20)
        self.rec = snn.RLeaky(0.9, linear_features=256, init_hidden=True)
        self.lif = readout()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.lif(self.out(self.rec(self.fc(x))))


def hidden() -> nn.Module:
    return snn.Leaky(0.9, init_hidden=True)


def readout() -> nn.Module:
    return snn.Leaky(0.9, init_hidden=True, output=True)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 1000), hidden(), nn.Linear(1000, 10), readout())


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 5), nn.MaxPool2d(2), hidden()),
        *(nn.Conv2d(12, 64, 5), nn.MaxPool2d(2), hidden()),
        *(nn.Flatten(), nn.Linear(1024, 10), readout()),
    )


def norse_mlp() -> nn.Module:
    return norse.SequentialState(
        nn.Linear(784, 1000), Gain(), norse.LIFCell(), nn.Linear(1000, 10), norse.LICell()
    )


def norse_recurrent() -> nn.Module:
    return norse.SequentialState(
        norse.LIFRecurrentCell(700, 256), nn.Linear(256, 20), norse.LICell()
    )


@dataclass(frozen=True)
class Case:
    """A net and its input: analog, or spikes of a share of the inputs at each timestep."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    constant: bool = True
    steps: int = 50
    spikes: float = 0.0

    def drawn(self) -> tuple[Tensor, list[Tensor]]:
        """The input, and what it shows at each timestep."""
        torch.manual_seed(0)
        lead = () if self.constant else (self.steps,)
        inputs = torch.rand(*lead, BATCH, *self.shape)
        if self.spikes:
            inputs = (inputs < self.spikes).float()
        return inputs, [inputs] * self.steps if self.constant else list(inputs)


CASES = {
    "MLP, constant image": Case(mlp, (784,)),
    "MLP, new input at every timestep": Case(mlp, (784,), constant=False),
    "MLP, new spikes (5 %)": Case(mlp, (784,), constant=False, spikes=0.05),
    "conv net, constant image": Case(convolutional, (1, 28, 28)),
    "Norse LIF MLP, constant image": Case(norse_mlp, (784,)),
    "RLeaky 700-256-20": Case(Recurrent, (700,), constant=False, steps=100),
    "RLeaky 700-256-20, spikes (2 %)": Case(
        Recurrent, (700,), constant=False, steps=100, spikes=0.02
    ),
    "LIFRecurrent 700-256-20": Case(norse_recurrent, (700,), constant=False, steps=100),
    "LIFRecurrent 700-256-20, spikes (2 %)": Case(
        norse_recurrent, (700,), constant=False, steps=100, spikes=0.02
    ),
}


def own_loop(net: nn.Module, steps: Sequence[Tensor]) -> Callable[[], None]:
    """The loop of the library's tutorials."""
    neurons = [module for module in net.modules() if isinstance(module, snn.SpikingNeuron)]

    def run() -> None:
        net.zero_grad()
        for neuron in neurons:
            neuron.reset_mem()
        state, outputs = None, []
        for x in steps:
            if neurons:
                outputs.append(net(x)[-1])
            else:
                output, state = net(x, state)
                outputs.append(output)
        torch.stack(outputs).square().mean().backward()

    return run


def ours(
    net: nn.Module,
    case: Case,
    inputs: Tensor,
    engine: EngineName,
    recompute_every: float | None = None,
) -> Callable[[], None]:
    """One training step of a wrapped model, with the energy loss."""
    model = wrap(net, dt=1.0, engine=engine, recompute_every=recompute_every)
    energy = EnergyLoss(reduction="mean", p=1)
    energy.register_hooks(model)
    shown = [Presentation("1", dt=1.0, n_timesteps=case.steps)] if case.constant else []

    def run() -> None:
        net.zero_grad()
        membrane = model(inputs, *shown).membrane
        (membrane.square().mean() + 0.1 * energy(None, None)).backward()

    return run


def refused(net: nn.Module) -> nn.Module:
    """A net that no plan is made of, since somebody wants to hear of every call."""
    net.register_forward_hook(lambda module, args, output: None)
    return net


def spikingjelly_multi_step(case: Case, inputs: Tensor) -> Callable[[], None] | None:
    """The same net in SpikingJelly's multi-step mode; None where it has no counterpart here."""
    functional, layer, neuron = (
        pytest.importorskip(f"spikingjelly.activation_based.{name}")
        for name in ("functional", "layer", "neuron")
    )

    def lif() -> nn.Module:
        return neuron.LIFNode(tau=10.0, decay_input=False, v_reset=None, detach_reset=True)

    builders = {
        mlp: lambda: [layer.Linear(784, 1000), lif(), layer.Linear(1000, 10), lif()],
        convolutional: lambda: [
            *(layer.Conv2d(1, 12, 5), layer.MaxPool2d(2), lif()),
            *(layer.Conv2d(12, 64, 5), layer.MaxPool2d(2), lif()),
            *(layer.Flatten(), layer.Linear(1024, 10), lif()),
        ],
    }
    if case.build not in builders:
        return None
    net = nn.Sequential(*builders[case.build]())
    functional.set_step_mode(net, "m")
    whole = inputs.expand(case.steps, *inputs.shape) if case.constant else inputs

    def run() -> None:
        net.zero_grad()
        functional.reset_net(net)
        net(whole).square().mean().backward()

    return run


def shortest(run: Callable[[], None], repeats: int = 12) -> float:
    """In ms."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


@pytest.mark.parametrize("name", CASES)
def test_speed(name: str, benchmark: Callable[..., object]) -> None:
    case = CASES[name]
    inputs, steps = case.drawn()
    # A net of its own for each: hooks of one would slow the others.
    planned = ours(case.build(), case, inputs, "layer")
    theirs = shortest(own_loop(case.build(), steps))
    stepped = shortest(ours(case.build(), case, inputs, "step"))
    unplanned = shortest(ours(refused(case.build()), case, inputs, "auto"))
    mine = shortest(planned)
    jelly = spikingjelly_multi_step(case, inputs)
    row = f"{name:34s} own loop {theirs:7.1f} ms, step {stepped:7.1f}, layer {mine:7.1f}"
    row += f", {theirs / mine:5.2f}x; refused {unplanned:7.1f}, {theirs / unplanned:5.2f}x"
    if jelly is not None:
        other = shortest(jelly)
        row += f"; SpikingJelly {other:7.1f} ms, {other / mine:5.2f}x"
    print(f"\n{row}")
    benchmark.pedantic(planned, rounds=3)  # type: ignore[attr-defined]


@contextmanager
def without(idea: str) -> Iterator[None]:
    """The layer engine with one of its ideas left out."""
    with pytest.MonkeyPatch.context() as patch:
        match idea:
            case "fused scans":
                patch.setattr(sys.modules[scan.__module__], "backend_for", lambda x: "torch")
            case "chunks in cache":
                patch.setattr(timed, "_CHUNK", 1 << 62)
            case "sums over entries":
                patch.setattr(products, "_WORTH", 1 << 62)
            case "oneDNN":
                patch.setattr(dense, "_WORTH", 1 << 62)
        yield


IDEAS = ("nothing", "shown once", "fused scans", "chunks in cache", "sums over entries", "oneDNN")


@pytest.mark.parametrize("name", [name for name in CASES if "LIF" not in name])
def test_what_each_idea_gives(name: str, benchmark: Callable[..., object]) -> None:
    """Training steps of the layer engine, each without one idea, in turn, and of the others."""
    case = CASES[name]
    inputs, steps = case.drawn()
    runs = {"own loop": own_loop(case.build(), steps)}
    for idea in IDEAS:
        if idea == "shown once" and case.constant:
            whole = inputs.expand(case.steps, *inputs.shape).clone()
            runs[idea] = ours(case.build(), replace(case, constant=False), whole, "layer")
        elif idea != "shown once":
            runs[idea] = ours(case.build(), case, inputs, "layer")
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(9):
        for kind, run in runs.items():
            with without(kind):
                start = time.perf_counter()
                run()
                times[kind].append(1e3 * (time.perf_counter() - start))
    told = ", ".join(f"without {kind} {min(found[1:]):.1f}" for kind, found in times.items())
    print(f"\n{name:34s} ms: {told.replace('without own', 'own')}")
    benchmark.pedantic(runs["nothing"], rounds=1)  # type: ignore[attr-defined]
