"""Models that loop over time themselves: the step engine's run, or a refusal that says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CLASSES, DT, FEATURES, HIDDEN, STYLES, Amplify, leaky
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

from dynvision_snn.energy.meter import EnergyMeter
from dynvision_snn.errors import WrapError
from dynvision_snn.model import TimedModel, wrap
from dynvision_snn.presentation import Presentation

Steps = Callable[[Any, Tensor], Any]


class Loop(nn.Module):
    """Two layers; `steps` is the time loop."""

    def __init__(self, steps: Steps, **options: Any) -> None:
        super().__init__()
        self.steps = steps
        self.fc1, self.lif1 = nn.Linear(FEATURES, HIDDEN), leaky(**options)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), leaky(**options)

    def forward(self, x: Tensor) -> Any:
        return self.steps(self, x)


def from_none(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    mem1 = mem2 = None
    spk_rec, mem_rec = [], []
    for frame in x:
        spk1, mem1 = net.lif1(net.fc1(frame), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2)
        mem_rec.append(mem2)
    return torch.stack(spk_rec), torch.stack(mem_rec)


def from_zeros(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """States of the user's own, the images viewed, the classes' membranes returned first."""
    n_steps, batch_size = x.shape[0], x.size(1)
    mem1 = torch.zeros(batch_size, HIDDEN, device=x.device)
    mem2 = torch.zeros(batch_size, CLASSES, device=x.device)
    mem_rec, spk_rec = [], []
    for step in range(n_steps):
        spk1, mem1 = net.lif1(net.fc1(x[step, :].view(batch_size, -1)), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        mem_rec += [mem2]
        spk_rec += [spk2]
    return torch.stack(mem_rec, dim=0), torch.stack(spk_rec, dim=0)


def hidden_states(net: Any, x: Tensor) -> Tensor:
    return torch.stack([net.lif2(net.fc2(net.lif1(net.fc1(step)))) for step in x.unbind(0)])


def resets_first(net: Any, x: Tensor) -> Tensor:
    net.lif1.reset_mem()
    net.lif2.reset_mem()
    return hidden_states(net, x)


def by_its_own_number(net: Any, x: Tensor) -> Tensor:
    """The number of timesteps is the model's."""
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    mem_rec = []
    for step in range(net.num_steps):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        _, mem2 = net.lif2(net.fc2(spk1), mem2)
        mem_rec.append(mem2)
    return torch.stack(mem_rec)


def numbered() -> nn.Module:
    net = Loop(by_its_own_number)
    net.num_steps = 6
    return net


def batch_first(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    spikes, membranes = from_none(net, x.transpose(0, 1))
    return spikes.transpose(0, 1), membranes.permute(1, 0, 2)


def batch_first_stacked(net: Any, x: Tensor) -> Tensor:
    mem1, mem2 = net.lif1.reset_mem(), net.lif2.reset_mem()
    rec = []
    for t in range(x.shape[1]):
        spk, mem1 = net.lif1(net.fc1(x[:, t, :]), mem1)
        spk, mem2 = net.lif2(net.fc2(spk), mem2)
        rec.append(spk)
    return torch.stack(rec, 1)


def layers_over_time(net: Any, x: Tensor) -> Tensor:
    """Linears over all timesteps at once, a loop between them; what it returns is no neuron's."""
    currents, mem, rec = 2 * net.fc1(x), None, []
    for t in range(len(x)):
        spk, mem = net.lif1(currents[t], mem)
        rec.append(spk)
    return torch.relu(net.fc2(torch.stack(rec))) - 0.1


def over_time() -> nn.Module:
    net = Loop(layers_over_time)
    del net.lif2
    return net


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.rlif = snn.RLeaky(0.9, linear_features=HIDDEN, threshold=0.3)
        self.syn = snn.Synaptic(0.8, 0.9, threshold=0.3, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        spk, mem = self.rlif.init_rleaky()
        syn, mem_out = self.syn.init_synaptic()
        rec = []
        for step in range(x.size(0)):
            spk, mem = self.rlif(self.fc(x[step]), spk, mem)
            _, syn, mem_out = self.syn(self.out(spk), syn, mem_out)
            rec.append(mem_out)
        return torch.stack(rec, dim=0)


class Feedback(Loop):
    """The readout's spikes come back, the hidden membrane goes on, spikes are summed up."""

    def __init__(self) -> None:
        super().__init__(from_none)
        self.back, self.skip = nn.Linear(CLASSES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.readout = leaky(beta=0.95)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1 = mem2 = mem3 = None
        spk2 = torch.zeros(x.size(1), CLASSES)
        trace = torch.zeros(x.size(1), HIDDEN)
        total, rec = 0, []
        for step in range(x.size(0)):
            shown = self.fc1(x[step])
            spk1, mem1 = self.lif1(shown + 0.5 * self.back(spk2), mem1)
            trace = torch.add(spk1, trace, alpha=0.8)
            spk2, mem2 = self.lif2(self.fc2(spk1) + 0.1 * self.skip(trace), mem2)
            total = total + spk2
            _, mem3 = self.readout(4 * functional.relu(shown[:, :CLASSES]) - spk2, mem3)
            rec.append(mem3)
        return torch.stack(rec), total


class Delayed(Loop):
    """The second layer hears the first a timestep later."""

    def __init__(self) -> None:
        super().__init__(from_none)

    def forward(self, x: Tensor) -> Tensor:
        mem1 = mem2 = None
        before, rec = torch.zeros(x.size(1), HIDDEN), []
        for frame in x:
            spk, mem1 = self.lif1(self.fc1(frame), mem1)
            _, mem2 = self.lif2(self.fc2(before), mem2)
            before = spk
            rec.append(mem2)
        return torch.stack(rec)


class Frames(nn.Module):
    """Norse's example: cells, images, functions of torch."""

    def __init__(self) -> None:
        super().__init__()
        p = norse.LIFParameters(v_th=torch.tensor(0.1))
        self.conv, self.lif0 = nn.Conv1d(1, 4, 2), norse.LIFCell(p)
        self.fc, self.lif1 = nn.Linear(4 * (FEATURES - 1), HIDDEN), norse.LIFRecurrentCell(7, 7, p)
        self.out = norse.LILinearCell(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        s0 = s1 = so = None
        voltages = []
        for t in range(x.shape[0]):
            z, s0 = self.lif0(10 * self.conv(x[t].unsqueeze(1)), s0)
            z, s1 = self.lif1(functional.relu(self.fc(z.flatten(1))), s1)
            v, so = self.out(z, so)
            voltages.append(v)
        return torch.stack(voltages)


class OwnStates(nn.Module):
    """Norse's states made by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, HIDDEN), norse.LIFCell()
        self.out, self.li = nn.Linear(HIDDEN, CLASSES), norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(x.shape[1], HIDDEN)
        state, last, rec = norse.LIFFeedForwardState(v=zeros, i=zeros), None, []
        for step in x:
            z, state = self.lif(100 * self.fc(step), state)
            v, last = self.li(self.out(z), last)
            rec.append(v)
        return torch.stack(rec)


class BroadcastStates(nn.Module):
    """Norse's first state of one number per sample, and a delayed value that starts so, too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, HIDDEN), norse.LIFCell()
        self.out, self.li = nn.Linear(HIDDEN, HIDDEN), norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(x.shape[1], 1)
        state, last, rec = norse.LIFFeedForwardState(v=zeros, i=zeros), None, []
        before = torch.zeros(x.shape[1], 1)
        for step in x:
            z, state = self.lif(100 * self.fc(step), state)
            v, last = self.li(self.out(z) + before, last)
            before = z
            rec.append(v)
        return torch.stack(rec)


class StateRecorded(OwnStates):
    """What is kept is a variable of Norse's state."""

    def forward(self, x: Tensor) -> Tensor:
        state = last = None
        rec = []
        for step in x:
            z, state = self.lif(100 * self.fc(step), state)
            _, last = self.li(self.out(z), last)
            rec.append(last.v)
        return torch.stack(rec)


Write = Callable[[Tensor, int, Any], None]


def recorded(
    write: Write, dtype: torch.dtype = torch.float32, width: int = CLASSES, axis: int = 0
) -> Callable[[], nn.Module]:
    """Norse's way to keep what a loop yields: a tensor that its timesteps are written into."""

    def steps(net: Any, x: Tensor) -> Tensor:
        n_steps, n_samples = x.shape[axis], x.shape[1 - axis]
        mem1 = mem2 = None
        sizes = (n_steps, n_samples) if axis == 0 else (n_samples, n_steps)
        voltages = torch.zeros(*sizes, width, device=x.device, dtype=dtype)
        for ts in range(n_steps):
            spk, mem1 = net.lif1(net.fc1(x[ts, :] if axis == 0 else x[:, ts]), mem1)
            spk, mem2 = net.lif2(net.fc2(spk), mem2)
            write(voltages, ts, mem2 - 0.5 * spk)
        return voltages

    return lambda: Loop(steps)


def write_all(voltages: Tensor, ts: int, v: Any) -> None:
    voltages[ts, :, :] = v


def write_timestep(voltages: Tensor, ts: int, v: Any) -> None:
    voltages[ts] = v


def write_batch_first(voltages: Tensor, ts: int, v: Any) -> None:
    voltages[:, ts, ...] = v


def lifted_whole() -> nn.Module:
    return norse.Lift(
        norse.SequentialState(
            nn.Linear(FEATURES, HIDDEN),
            Amplify(100.0),
            norse.LIFCell(),
            nn.Linear(HIDDEN, CLASSES),
            norse.LICell(),
        )
    )


class Trains(Loop):
    """Normalises and drops, as in training."""

    def __init__(self) -> None:
        super().__init__(from_none)
        self.norm, self.drop = nn.BatchNorm1d(HIDDEN), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, rec = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for step in range(x.size(0)):
            spk, mem1 = self.lif1(self.norm(self.fc1(x[step])), mem1)
            _, mem2 = self.lif2(self.fc2(self.drop(spk)), mem2)
            rec.append(mem2)
        return torch.stack(rec)


class UnknownNeuron(Loop):
    def __init__(self) -> None:
        super().__init__(from_none)
        self.alpha = snn.Alpha(0.9, 0.8, threshold=0.1)

    def forward(self, x: Tensor) -> Tensor:
        (a, b, c), mem2, rec = self.alpha.init_alpha(), None, []
        for step in x:
            spk, a, b, c = self.alpha(self.fc1(step), a, b, c)
            _, mem2 = self.lif2(self.fc2(spk), mem2)
            rec.append(mem2)
        return torch.stack(rec)


class Parameters(Loop):
    """Parameters of its own, one of them used before the loop."""

    def __init__(self) -> None:
        super().__init__(from_none)
        self.gain, self.shift = nn.Parameter(torch.ones(HIDDEN)), nn.Parameter(torch.rand(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, rec, gain = None, None, [], 2 * torch.sigmoid(self.gain)
        for step in x:
            spk, mem1 = self.lif1(self.fc1(step) * gain + self.shift, mem1)
            _, mem2 = self.lif2(self.fc2(spk), mem2)
            rec.append(mem2)
        return torch.stack(rec)


def hidden(steps: Steps) -> Callable[[], nn.Module]:
    return lambda: Loop(steps, init_hidden=True)


LOOPS: dict[str, Callable[[], nn.Module]] = {
    "tutorial": STYLES["loop_inside"].build,
    "batch first, mixed states": STYLES["loop_inside_batch_first"].build,
    "from None": lambda: Loop(from_none),
    "from zeros": lambda: Loop(from_zeros),
    "hidden states": hidden(hidden_states),
    "resets first": hidden(resets_first),
    "its own number": numbered,
    "batch first, transposed": lambda: Loop(batch_first),
    "batch first, stacked": lambda: Loop(batch_first_stacked),
    "layers over time": over_time,
    "recurrent": Recurrent,
    "feedback": Feedback,
    "delayed": Delayed,
    "frames": Frames,
    "own states": OwnStates,
    "broadcast states": BroadcastStates,
    "state recorded": StateRecorded,
    "recorded": recorded(write_all),
    "recorded by timestep": recorded(write_timestep),
    "recorded batch first": recorded(write_batch_first, axis=1),
    "lifted whole": lifted_whole,
    "trains": Trains,
    "unknown neuron": UnknownNeuron,
}
# A meter wants every call of a model that holds parameters itself.
METERED = sorted(LOOPS)
LOOPS["parameters"] = Parameters
every_loop = pytest.mark.parametrize("name", LOOPS)
NUMBERED = {"its own number"}


def built(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def both(name: str, seed: int = 0, mode: bool = True) -> tuple[TimedModel, TimedModel]:
    step, auto = (built(LOOPS[name], seed).train(mode) for _ in range(2))
    return wrap(step, dt=DT, engine="step"), wrap(auto, dt=DT, engine="layer")


def shown_to(name: str) -> Presentation:
    """Idle time and several stimuli, of six timesteps in all where the model counts them."""
    pattern, idle = ("01220", 1.0) if name in NUMBERED else ("0122013", 2.0)
    return Presentation(pattern, dt=DT, idle_time=idle)


@pytest.mark.parametrize("presentation", PRESENTATIONS.values(), ids=PRESENTATIONS.keys())
@every_loop
def test_it_is_the_step_engines_run(name: str, presentation: Presentation) -> None:
    if name in NUMBERED:
        presentation = shown_to(name)
    step, auto = both(name)
    runs = []
    for model in (step, auto):
        torch.manual_seed(5)
        runs.append(model(images(presentation), presentation))
        runs[-1].membrane.square().sum().backward()
    theirs, mine = runs
    assert auto.explain().startswith("layer by layer")
    assert mine.readout == theirs.readout
    check_close(mine.membrane, theirs.membrane)
    assert theirs.membrane.std() > 0
    assert (mine.spikes is None) == (theirs.spikes is None)
    if theirs.spikes is not None:
        assert torch.equal(mine.spikes, theirs.spikes)
        assert theirs.spikes.any()
    check_gradients(auto, step)


@every_loop
def test_listeners_hear_the_same(name: str) -> None:
    check_heard_alike(*both(name, mode=False), images, shown_to(name))


@pytest.mark.parametrize("name", METERED)
def test_energy_is_the_same(name: str) -> None:
    check_energy_alike(*both(name, mode=False), images, shown_to(name))


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(LOOPS.keys() - NUMBERED)),
    seed=st.integers(0, 2**31),
    pattern=st.lists(st.integers(0, 2), min_size=2, max_size=9).filter(any),
    idle=st.integers(0, 3),
)
def test_a_spike_flips_only_at_the_threshold(
    name: str, seed: int, pattern: list[int], idle: int
) -> None:
    presentation = Presentation(pattern, dt=DT, idle_time=float(idle))
    shown = images(presentation, seed)
    check_flips_only_at_the_threshold(*both(name, seed, mode=False), shown, presentation)


def test_what_runs_by_step_in_a_loop_says_why() -> None:
    inputs = 1 + torch.randn(5, BATCH, FEATURES)
    for name, reason in {
        "unknown neuron": "alpha: no scan is written for Alpha",
        "feedback": "a connection runs backwards in time",
        "broadcast states": "lif: its input or state is not of one shape at all timesteps",
    }.items():
        _, auto = both(name)
        auto(inputs)
        assert reason in auto.explain(), auto.explain()


def test_another_number_of_timesteps_or_samples_is_another_plan() -> None:
    step, auto = both("from zeros")
    for n_steps, n_samples in ((5, 3), (9, 3), (5, 2), (5, 3)):
        inputs = 1 + torch.randn(n_steps, n_samples, FEATURES)
        check_close(auto(inputs).membrane, step(inputs).membrane)


def test_it_leaves_the_model_as_it_was_found() -> None:
    net = built(LOOPS["resets first"])
    net(torch.rand(3, 2, FEATURES))
    before = {name: (id(value), value.clone()) for name, value in net.named_buffers()}
    wrap(net, dt=DT, engine="layer")(torch.rand(5, BATCH, FEATURES))
    for name, value in net.named_buffers():
        assert id(value) == before[name][0]
        assert torch.equal(value, before[name][1])


# -- refusals -------------------------------------------------------------------------------------


def loop(change: Callable[..., Any]) -> Callable[[], nn.Module]:
    """A net whose loop does something more, before each timestep: ``change(net, t, mem1, rec)``."""

    def steps(net: Any, x: Tensor) -> Tensor:
        mem1, mem2, rec = None, None, []
        for t in range(x.size(0)):
            now, mem1 = change(net, x, t, mem1, rec)
            spk, mem1 = net.lif1(net.fc1(now), mem1)
            spk, mem2 = net.lif2(net.fc2(spk), mem2)
            rec.append(mem2)
        return torch.stack(rec)

    return lambda: Loop(steps)


def warms_up(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    return (x[t] if t < 4 else 0.5 * x[t]), mem


def starts_again(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    return x[t], (None if t == 4 else mem)


def looks_back(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    return x[max(t - 1, 0)], mem


def backwards(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    return x[x.size(0) - 1 - t], mem


def looks_ahead(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    return x[t] + x[-1], mem


def remembers_longer(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    return x[t] + (rec[-2] if t > 1 else torch.zeros(x.size(1), CLASSES)).sum(1, True), mem


def the_mean(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    return x[t] - x.mean(0), mem


def swaps_records(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    if t == 4:
        rec[1], rec[2] = rec[2], rec[1]
    return x[t], mem


def resets_in_between(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    if t == 4:
        net.lif1.reset_mem()
    return x[t], mem


def sets_a_threshold(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    if t == 4:
        net.lif1.threshold = torch.tensor(0.1)
    return x[t], mem


def first_otherwise(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    return (x[t] if t == 0 else 2 * x[t]), mem


def starts_at_random(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    return x[t], torch.rand(x.size(1), HIDDEN) if t == 0 else mem


def starts_from_a_parameter(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    return x[t], net.fc1.bias.expand(x.size(1), HIDDEN) if t == 0 else mem


def noise(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    return x[t] + torch.rand(FEATURES), mem


def looks_at_values(net: Any, x: Tensor, t: int, mem: Any, rec: list[Any]) -> Any:
    return (x[t] if x[t].sum() > 0 else -x[t]), mem


class StartsFromABuffer(Loop):
    def __init__(self) -> None:
        super().__init__(from_none)
        self.register_buffer("start", torch.zeros(1, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, rec = self.start.expand(x.size(1), -1), None, []
        for step in x:
            spk, mem1 = self.lif1(self.fc1(step), mem1)
            _, mem2 = self.lif2(self.fc2(spk), mem2)
            rec.append(mem2)
        return torch.stack(rec)


class ReadsItsMembrane(Loop):
    def forward(self, x: Tensor) -> Tensor:
        rec = []
        for step in x:
            self.lif2(self.fc2(self.lif1(self.fc1(step))))
            rec.append(self.lif2.mem)
        return torch.stack(rec)


class NormalisesAll(Loop):
    """What is called with all timesteps is a normalisation over all of them."""

    def __init__(self) -> None:
        super().__init__(from_none)
        self.norm = nn.BatchNorm1d(FEATURES)

    def forward(self, x: Tensor) -> Any:
        return from_none(self, self.norm(x.transpose(1, 2)).transpose(1, 2))


class CallsItAgain(Loop):
    """A Linear that takes each timestep, and all of them at the end."""

    def __init__(self) -> None:
        super().__init__(from_none)

    def forward(self, x: Tensor) -> Any:
        spikes, membranes = from_none(self, x)
        return membranes, self.fc1(x), spikes


class TakesAState(Loop):
    def forward(self, x: Tensor, mem1: Any = None) -> tuple[Tensor, Tensor]:
        mem2, rec = None, []
        for step in x:
            spk, mem1 = self.lif1(self.fc1(step), mem1)
            _, mem2 = self.lif2(self.fc2(spk), mem2)
            rec.append(mem2)
        return torch.stack(rec), mem1


def write_some(voltages: Tensor, ts: int, v: Any) -> None:
    if ts != 3:
        voltages[ts] = v


def write_one_less(voltages: Tensor, ts: int, v: Any) -> None:
    if ts < len(voltages) - 1:
        voltages[ts] = v


def write_backwards(voltages: Tensor, ts: int, v: Any) -> None:
    voltages[len(voltages) - 1 - ts] = v


def write_twice(voltages: Tensor, ts: int, v: Any) -> None:
    voltages[ts] = v
    voltages[ts] = 2 * v


def write_part(voltages: Tensor, ts: int, v: Any) -> None:
    voltages[ts, :, :2] = v[:, :2]


def write_the_one_before(voltages: Tensor, ts: int, v: Any) -> None:
    voltages[max(ts - 1, 0)] = v


def add_to_the_one_before(voltages: Tensor, ts: int, v: Any) -> None:
    voltages[ts] = v + voltages[ts - 1]


def look_at_it(voltages: Tensor, ts: int, v: Any) -> None:
    voltages[ts] = v if voltages[0].sum() == 0 else 2 * v


def change_what_is_written(voltages: Tensor, ts: int, v: Any) -> None:
    v.mul_(2)
    voltages[ts] = v


def change_what_was_written(voltages: Tensor, ts: int, v: Any) -> None:
    voltages[ts] = v
    v.mul_(2)


class ReadsAfterwards(Loop):
    """Returns its record less its mean over time."""

    def forward(self, x: Tensor) -> Tensor:
        voltages: Tensor = self.steps(self, x)
        return voltages - voltages.mean(0)


class Alias(Loop):
    """Adds what it holds of its record, a view made before anything was written."""

    def __init__(self) -> None:
        super().__init__(from_none)

    def forward(self, x: Tensor) -> Tensor:
        voltages = torch.zeros(len(x), x.shape[1], CLASSES)
        first, mem1, mem2 = voltages[0], None, None
        for ts in range(len(x)):
            spk, mem1 = self.lif1(self.fc1(x[ts]), mem1)
            _, mem2 = self.lif2(self.fc2(spk) + first, mem2)
            voltages[ts] = mem2
        return voltages


RECORDS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "some": (recorded(write_some), "in another order"),
    "one less": (recorded(write_one_less), "what it returns are not its timesteps"),
    "backwards": (recorded(write_backwards), "in another order"),
    "twice": (recorded(write_twice), "in another order"),
    "part": (recorded(write_part), "something else than a timestep"),
    "the one before": (recorded(write_the_one_before), "in another order"),
    "added up": (recorded(add_to_the_one_before), "reads a tensor that it writes"),
    "looked at": (recorded(look_at_it), "reads a tensor|looks at the values"),
    "changed before": (recorded(change_what_is_written), "writes into a tensor that others"),
    "changed after": (recorded(change_what_was_written), "writes into a tensor that others"),
    "read afterwards": (
        lambda: ReadsAfterwards(recorded(write_all)().steps), "reads a tensor that it writes"
    ),
    "held before": (Alias, "reads a tensor that it writes"),
    "broadcast": (
        recorded(lambda voltages, ts, v: voltages.__setitem__(ts, v[:, :1])), "of another shape"
    ),
    "of another dtype": (recorded(write_all, torch.float64), "of another shape or dtype"),
}  # fmt: skip


@pytest.mark.parametrize(("build", "reason"), RECORDS.values(), ids=RECORDS.keys())
def test_what_is_written_otherwise_than_timestep_by_timestep_is_refused(
    build: Callable[[], nn.Module], reason: str
) -> None:
    """What is decoded is the record itself."""
    inputs = 1 + torch.randn(7, BATCH, FEATURES)
    runs = [
        wrap(built(build), dt=DT, engine=engine, readout="")(inputs).membrane
        for engine in ("step", "auto")
    ]
    assert torch.equal(*runs)
    with pytest.raises(WrapError, match=reason):
        wrap(built(build), dt=DT, engine="layer", readout="")(inputs)


NOT_ALIKE = "its timesteps are not all computed alike"
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "warms up": (loop(warms_up), NOT_ALIKE),
    "starts again": (loop(starts_again), NOT_ALIKE),
    "looks back": (loop(looks_back), "at timestep 1 it takes the input of timestep 0"),
    "backwards": (loop(backwards), "at timestep 0 it takes the input of timestep 6"),
    "looks ahead": (loop(looks_ahead), "at timestep 0 it takes the input of timestep 6"),
    "remembers longer": (loop(remembers_longer), NOT_ALIKE),
    "the mean": (loop(the_mean), "takes a whole sequence"),
    "swaps records": (loop(swaps_records), "it stacks something else"),
    "resets in between": (loop(resets_in_between), "writes lif1.mem between timesteps"),
    "sets a threshold": (loop(sets_a_threshold), "writes lif1.threshold"),
    "first otherwise": (loop(first_otherwise), NOT_ALIKE),
    "starts at random": (loop(starts_at_random), "first states are tensors of its own"),
    "starts from a parameter": (loop(starts_from_a_parameter), "first states are computed"),
    "noise": (loop(noise), NOT_ALIKE),
    "looks at values": (loop(looks_at_values), "cannot be traced"),
    "starts from a buffer": (StartsFromABuffer, "reads tensors of its modules"),
    "reads its membrane": (
        lambda: ReadsItsMembrane(from_none, init_hidden=True), "what it returns|stack"
    ),
    "normalises all": (NormalisesAll, "cannot be traced"),
    "calls it again": (CallsItAgain, "fc1 is called in several ways"),
    "takes a state": (lambda: TakesAState(from_none), "takes a state beside its own time loop"),
}  # fmt: skip


@pytest.mark.parametrize(("build", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_the_same_at_every_timestep_is_refused(
    build: Callable[[], nn.Module], reason: str
) -> None:
    inputs = 1 + torch.randn(7, BATCH, FEATURES)
    readout = "" if "stack" in reason else "lif2"
    runs = []
    for engine in ("step", "auto"):
        model = wrap(built(build), dt=DT, engine=engine, readout=readout)
        torch.manual_seed(2)
        runs.append(model(inputs).membrane)
    assert torch.equal(*runs)
    with pytest.raises(WrapError, match=reason):
        wrap(built(build), dt=DT, engine="layer", readout=readout)(inputs)


ENDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "the last": lambda spikes, membranes: membranes[-1],
    "the sum": lambda spikes, membranes: spikes.sum(0),
    "the largest": lambda spikes, membranes: functional.log_softmax(membranes.max(0)[0], dim=1),
    "swapped": lambda spikes, membranes: torch.stack([membranes[1], membranes[0]]),
    "both": lambda spikes, membranes: (spikes.mean(0), membranes),
}


@pytest.mark.parametrize("presentation", [PRESENTATIONS["constant"], PRESENTATIONS["several"]])
@pytest.mark.parametrize("end", ENDS)
def test_a_loop_of_which_a_layer_is_decoded_may_return_anything(
    end: str, presentation: Presentation
) -> None:
    def steps(net: Any, x: Tensor) -> Any:
        return ENDS[end](*from_none(net, x))

    runs, budgets, models = [], [], []
    for engine in ("step", "layer"):
        model = wrap(built(lambda: Loop(steps)), dt=DT, engine=engine, readout="lif2")
        with EnergyMeter(model) as meter:
            runs.append(model(images(presentation), presentation))
        runs[-1].membrane.square().sum().backward()
        budgets.append(
            [(r.name, r.spikes, r.synops_ac, r.synops_mac) for r in meter.budget().layers]
        )
        models.append(model)
    check_close(runs[1].membrane, runs[0].membrane)
    assert runs[0].spikes is not None
    assert torch.equal(runs[1].spikes, runs[0].spikes)
    assert runs[0].spikes.any()
    assert budgets[1] == budgets[0]
    check_gradients(models[1], models[0])


VIEWS: dict[str, Callable[[Any, Tensor], Any]] = {
    "batch for time": lambda net, x: x.reshape(x.size(1), x.size(0), -1).transpose(0, 1),
    "time for batch": lambda net, x: x.transpose(0, 1).reshape(x.size(0), x.size(1), -1),
    "all of it": lambda net, x: x.reshape(-1).flip(0).view(*x.shape),
    "a feature too many": lambda net, x: x.reshape(x.size(0), -1, FEATURES * x.size(1))
    .view(x.size(0), x.size(1), FEATURES),
    "merged": lambda net, x: (2 * x.reshape(-1, FEATURES)).view(x.size(0), x.size(1), -1),
}  # fmt: skip


@pytest.mark.parametrize("n_steps", [BATCH, 7])
@pytest.mark.parametrize("view", VIEWS)
def test_views_that_mix_time_and_samples_are_never_planned(view: str, n_steps: int) -> None:
    """Where there are as many timesteps as samples, some of them are no other view."""

    def steps(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return from_none(net, VIEWS[view](net, x))

    inputs = 1 + torch.randn(n_steps, BATCH, FEATURES)
    step, auto = (
        wrap(built(lambda: Loop(steps)), dt=DT, engine=engine, readout="lif2", time_axis=0)
        for engine in ("step", "auto")
    )
    check_close(auto(inputs).membrane, step(inputs).membrane)
    planned = auto.explain().startswith("layer by layer")
    assert not planned or (n_steps == BATCH and "for" in view)


def test_a_run_of_one_timestep_is_stepped() -> None:
    step, auto = both("tutorial")
    with pytest.raises(WrapError, match="a single timestep"):
        auto(torch.rand(1, BATCH, FEATURES))
    assert step(torch.rand(1, BATCH, FEATURES)).membrane.shape == (1, BATCH, CLASSES)
