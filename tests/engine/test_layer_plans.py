"""The layer plan against the step engine: numbers, gradients, observations, states, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CLASSES, DT, FEATURES, HIDDEN, STYLES, leaky
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynvision_snn.energy.meter import EnergyMeter
from dynvision_snn.engine import choosing
from dynvision_snn.errors import WrapError
from dynvision_snn.losses import EnergyLoss
from dynvision_snn.model import TimedModel, wrap
from dynvision_snn.observation import Attachment, Listener, Observation, watchable
from dynvision_snn.presentation import Presentation

BATCH = 3


class Feedback(nn.Module):
    """The second layer's spikes come back to the first; the readout is not in the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.back = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.lif1, self.lif2 = leaky(init_hidden=True), leaky(init_hidden=True)
        self.fc2, self.out = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.readout = leaky(init_hidden=True, output=True)

    def forward(self, x: Tensor, spk: Any) -> tuple[Tensor, Tensor, Tensor]:
        currents = self.fc1(x)
        if spk is not None:
            currents = currents + self.back(spk)
        spk1 = self.lif1(currents)
        spk2 = self.lif2(self.fc2(spk1))
        out, mem = self.readout(self.out(spk2))
        return out, mem, spk2


class TwoReaders(nn.Module):
    """A layer's membrane and spikes both go on, and two branches join."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.syn = nn.Linear(FEATURES, HIDDEN), snn.Synaptic(0.8, 0.9, threshold=0.3)
        self.left, self.right = nn.Linear(HIDDEN, CLASSES), nn.Linear(HIDDEN, CLASSES)
        self.lif = leaky()

    def forward(self, x: Tensor, syn: Any, mem1: Any, mem2: Any) -> tuple[Tensor, ...]:
        spk, syn, mem1 = self.syn(self.fc1(x), syn, mem1)
        out, mem2 = self.lif(self.left(spk) + 0.1 * self.right(mem1), mem2)
        return out, syn, mem1, mem2


def recurrent_snntorch() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, HIDDEN),
        snn.RLeaky(0.9, linear_features=HIDDEN, threshold=0.3, init_hidden=True),
        nn.Linear(HIDDEN, CLASSES),
        leaky(init_hidden=True, output=True),
    )


def recurrent_norse() -> nn.Module:
    p = norse.LIFParameters(v_th=torch.tensor(0.1))
    return norse.SequentialState(
        norse.LIFRecurrentCell(FEATURES, HIDDEN, p), nn.Linear(HIDDEN, CLASSES), norse.LICell()
    )


def unknown_neuron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, HIDDEN),
        snn.Alpha(0.9, 0.8, threshold=0.1, init_hidden=True),
        nn.Linear(HIDDEN, CLASSES),
        leaky(init_hidden=True, output=True),
    )


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, FEATURES)),
        nn.Conv1d(1, 4, 2),
        nn.BatchNorm1d(4),
        leaky(init_hidden=True),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * (FEATURES - 1), CLASSES),
        leaky(init_hidden=True, output=True),
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    **{name: style.build for name, style in STYLES.items()},
    "feedback": Feedback,
    "two_readers": TwoReaders,
    "recurrent_snntorch": recurrent_snntorch,
    "recurrent_norse": recurrent_norse,
    "unknown_neuron": unknown_neuron,
    "convolutions": convolutions,
    "starts_elsewhere": lambda: StartsElsewhere(),
    "two_dropouts": lambda: two_dropouts(),
}

PLANNED = {
    "sequential_init_hidden", "nested_init_hidden", "explicit_states", "conv_step",
    "dict_of_states", "norse_list", "sequential_state_of_cells", "sequential_state_lifted",
    "plain_sequential_lifted", "two_readers", "recurrent_snntorch", "recurrent_norse",
    "unknown_neuron", "convolutions", "feedback", "starts_elsewhere", "loop_inside",
    "loop_inside_batch_first", "lifted_cells", "two_dropouts",
}  # fmt: skip

PRESENTATIONS = {
    "constant": Presentation("1", dt=DT, n_timesteps=6),
    "phases": Presentation("0110110", dt=DT, reaction_time=1.0),
    "idle": Presentation("0111", dt=DT, idle_time=3.0),
    "several": Presentation("01220", dt=DT, idle_time=1.0),
}


def built(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETS[name]()


def images(presentation: Presentation, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    several = (presentation.n_stimuli,) if presentation.n_stimuli > 1 else ()
    return 1 + torch.randn(*several, BATCH, FEATURES, generator=generator)


def both(name: str, seed: int = 0, mode: bool = True) -> tuple[TimedModel, TimedModel]:
    nets = [built(name, seed).train(mode) for _ in range(2)]
    step, auto = nets
    return wrap(step, dt=DT, engine="step"), wrap(auto, dt=DT, engine="auto")


class Hears(Listener):
    """Keeps everything."""

    hears_idle = True
    hears_synapses = True

    def __init__(self, model: TimedModel) -> None:
        told = [w for w in watchable(model) if w.layer is not None or type(w.module) is nn.Linear]
        self.heard: dict[str, list[Observation]] = {}
        self.attachment = Attachment(model, self, told)

    def observe(self, observation: Observation) -> None:
        self.heard.setdefault(observation.name, []).append(observation)

    def timesteps(self, name: str) -> list[int]:
        return [t for o in self.heard[name] for t in range(o.t0, o.t1)]

    def values(self, name: str) -> dict[str, Tensor | None]:
        observed = self.heard[name]
        columns: dict[str, list[Tensor | None]] = {
            "inputs": [o.inputs for o in observed],
            "output": [o.output for o in observed],
            "membrane": [o.membrane for o in observed],
            **{key: [o.state[key] for o in observed] for key in observed[0].state},
        }
        for k in range(len(observed[0].presynaptic)):
            # None stands for silence.
            received = [o.presynaptic[k] for o in observed]
            like = next((r for r in received if r is not None), None)
            if like is not None:
                columns[f"presynaptic {k}"] = [
                    torch.zeros_like(like) if r is None else r for r in received
                ]
        return {
            key: None if any(v is None for v in column) else torch.cat(column)  # type: ignore[arg-type]
            for key, column in columns.items()
        }


def check_close(mine: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert mine.shape == theirs.shape
    scale = theirs.abs().max().clamp(min=1.0)
    assert (mine - theirs).abs().max() <= tolerance * scale


def check_heard_alike(
    step: TimedModel,
    auto: TimedModel,
    images: Callable[[Presentation], Tensor],
    presentation: Presentation,
) -> None:
    """Listeners hear the same of both: at which timesteps, and all values."""
    theirs, mine = Hears(step), Hears(auto)
    for model in (step, auto):
        model(images(presentation), presentation)
    assert mine.heard.keys() == theirs.heard.keys()
    for layer in theirs.heard:
        assert mine.timesteps(layer) == theirs.timesteps(layer)
        one, other = mine.values(layer), theirs.values(layer)
        assert one.keys() == other.keys(), layer
        for key, value in other.items():
            assert (one[key] is None) == (value is None), (layer, key)
            if value is not None:
                check_close(one[key], value)
                if key in ("output", "membrane"):
                    assert one[key].requires_grad == value.requires_grad, (layer, key)


def check_energy_alike(
    step: TimedModel,
    auto: TimedModel,
    images: Callable[[Presentation], Tensor],
    presentation: Presentation,
) -> float:
    """Both have the same energy loss and its gradients, and exactly the same budget; the loss."""
    losses, totals = [], []
    for model in (step, auto):
        energy = EnergyLoss(reduction="mean", p=1)
        energy.register_hooks(model)
        with EnergyMeter(model) as meter:
            model(images(presentation), presentation)
        loss = energy(None, None)
        loss.backward()
        losses.append(loss.detach())
        budget = meter.budget()
        rows = [
            (row.name, row.spikes, row.synops_ac, row.synops_mac, row.neuron_updates)
            for row in budget.layers
        ]
        totals.append((rows, *(budget.by_timestep(q).tolist() for q in ("spikes", "synops_ac"))))
    check_close(losses[1], losses[0])
    assert totals[1] == totals[0]
    check_gradients(auto, step)
    return float(losses[0])


def check_gradients(mine: nn.Module, theirs: nn.Module) -> None:
    # A bias before batch normalisation has no gradient but noise: the largest sets the scale.
    largest = max(p.grad.abs().max() for p in theirs.parameters() if p.grad is not None)
    for (name, one), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            error = (one.grad - other.grad).abs().max()
            assert error <= 1e-4 * other.grad.abs().max().clamp(min=0.05 * largest), name


@pytest.mark.parametrize("presentation", PRESENTATIONS.values(), ids=PRESENTATIONS.keys())
@pytest.mark.parametrize("name", NETS)
def test_it_is_the_step_engines_run(name: str, presentation: Presentation) -> None:
    step, auto = both(name)
    runs = []
    for model in (step, auto):
        torch.manual_seed(5)
        runs.append(model(images(presentation), presentation))
        runs[-1].membrane.square().sum().backward()
    theirs, mine = runs
    assert auto.explain().startswith("layer by layer") == (name in PLANNED), auto.explain()
    check_close(mine.membrane, theirs.membrane)
    assert (mine.spikes is None) == (theirs.spikes is None)
    if theirs.spikes is not None:
        assert torch.equal(mine.spikes, theirs.spikes)
    check_gradients(auto, step)


@pytest.mark.parametrize("name", sorted(PLANNED))
def test_a_run_goes_on_from_either_engines_state(name: str) -> None:
    if not STYLES[name].goes_on if name in STYLES else False:
        pytest.skip("it takes no state")
    step, auto = both(name, mode=False)
    inputs = 1 + torch.randn(6, BATCH, FEATURES)
    whole = step(inputs).membrane
    for first, second in ((auto, auto), (step, auto), (auto, step)):
        start = first(inputs[:4])
        rest = second(inputs[4:], state=start.state)
        check_close(torch.cat([start.membrane, rest.membrane]), whole)


@pytest.mark.parametrize("name", sorted(PLANNED))
def test_listeners_hear_the_same(name: str) -> None:
    step, auto = both(name, mode=False)
    check_heard_alike(step, auto, images, PRESENTATIONS["several"])
    assert auto.explain().startswith("layer by layer"), auto.explain()


@pytest.mark.parametrize("name", sorted(PLANNED))
def test_energy_is_the_same(name: str) -> None:
    check_energy_alike(*both(name, mode=False), images, PRESENTATIONS["idle"])


def test_what_draws_random_numbers_in_turn_runs_by_step() -> None:
    _, model = both("two_dropouts")
    model(images(PRESENTATIONS["constant"]), PRESENTATIONS["constant"])
    explained = model.explain()
    assert "timestep by timestep         0, 1, 2: they draw random numbers in turn" in explained
    assert "one scan over time           3" in explained


class NormalisesTwice(nn.Module):
    """One batch normalisation before and behind a neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(FEATURES, HIDDEN), leaky(init_hidden=True)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), leaky(init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc2(self.norm(self.lif1(self.norm(self.fc1(x))))))


def test_statistics_are_of_the_calls_in_their_order() -> None:
    torch.manual_seed(0)
    net = NormalisesTwice()
    step, auto = (wrap(copy.deepcopy(net), dt=DT, engine=name) for name in ("step", "auto"))
    for model in (step, auto):
        model(1 + torch.randn(7, BATCH, FEATURES, generator=torch.Generator().manual_seed(1)))
    for name, buffer in auto.net.norm.named_buffers():
        torch.testing.assert_close(buffer, step.net.norm.get_buffer(name))
    assert "norm, lif1, norm: a module is called several times" in auto.explain()
    auto.eval()
    auto(torch.randn(3, BATCH, FEATURES))
    assert "several times" not in auto.explain()


def test_feedback_runs_by_step_and_the_rest_by_layer() -> None:
    _, model = both("feedback")
    model(images(PRESENTATIONS["constant"]), PRESENTATIONS["constant"])
    explained = model.explain()
    assert "timestep by timestep" in explained
    assert "a connection runs backwards in time" in explained
    assert "one scan over time           readout" in explained


def test_what_falls_back_says_why() -> None:
    _, model = both("convolutions")
    model(images(PRESENTATIONS["constant"]), PRESENTATIONS["constant"])
    assert "batch normalisation in training mode" in model.explain()
    assert "random numbers" in model.explain()
    model.eval()
    model(images(PRESENTATIONS["constant"]), PRESENTATIONS["constant"])
    assert "timestep by timestep" not in model.explain()


class Logs(nn.Module):
    """Its forward does more than it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif, self.calls = nn.Linear(FEATURES, CLASSES), leaky(init_hidden=True), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.lif(self.fc(x))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky(init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.fc(x) + float(torch.rand(())))


class StartsElsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky()

    def forward(self, x: Tensor, mem: Any = None) -> tuple[Tensor, Tensor]:
        current = self.fc(x)
        if mem is None:
            mem = current * 0 + 0.2
        return self.lif(current, mem)


class FadesItsState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky()

    def forward(self, x: Tensor, mem: Any) -> tuple[Tensor, Tensor]:
        spk, mem = self.lif(self.fc(x), mem)
        return spk, 0.5 * mem


def two_dropouts() -> nn.Module:
    first, *rest = recurrent_snntorch()
    return nn.Sequential(nn.Dropout(0.3), first, nn.Dropout(0.3), *rest)


class Modes(nn.Module):
    """Runs its first layer under a mode that a graph of its operations would forget."""

    def __init__(self, mode: Callable[[], Any]) -> None:
        super().__init__()
        self.mode = mode
        self.fc1, self.lif1 = nn.Linear(FEATURES, 6), snn.Leaky(0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(6, CLASSES), snn.Leaky(0.9, init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            x = self.fc1(x)
        return self.lif2(self.fc2(self.lif1(x.float())))


class Checkpoints(Modes):
    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.fc1, x, use_reentrant=False)
        return self.lif2(self.fc2(self.lif1(x)))


MODES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no gradient": (lambda: Modes(torch.no_grad), "another gradient mode"),
    "gradient": (lambda: Modes(torch.enable_grad), "another gradient mode"),
    "autocast": (
        lambda: Modes(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
        "another autocast",
    ),
    "checkpoint": (lambda: Checkpoints(torch.no_grad), "activation checkpointing"),
}


@pytest.mark.parametrize(("build", "reason"), MODES.values(), ids=MODES.keys())
def test_a_part_under_another_mode_keeps_it(build: Callable[[], nn.Module], reason: str) -> None:
    nets = [build(), build()]
    nets[1].load_state_dict(nets[0].state_dict())
    inputs = 3 * torch.rand(5, BATCH, FEATURES)
    for net, engine in zip(nets, ("step", "auto"), strict=True):
        model = wrap(net, dt=DT, engine=engine, readout="lif2")
        model(inputs).membrane.square().mean().backward()
    assert reason in model.explain()
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


class Writes(nn.Module):
    """Changes what a neuron holds, between its calls."""

    def __init__(self, write: Callable[[nn.Module], None]) -> None:
        super().__init__()
        self.write = write
        self.fc1, self.lif1 = nn.Linear(FEATURES, 6), snn.Leaky(0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(6, CLASSES), snn.Leaky(0.9, init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.lif1(self.fc1(x))
        self.write(self)
        return self.lif2(self.fc2(spikes))


def halves(net: Any) -> None:
    net.lif1.mem = 0.5 * net.lif1.mem


def halves_in_place(net: Any) -> None:
    with torch.no_grad():
        net.lif1.mem.mul_(0.5)


def charges_the_next(net: Any) -> None:
    net.lif2.mem = net.lif2.mem + 0.3


def looks(net: Any) -> None:
    if net.lif1.mem.sum() > 1.0:
        net.fc2.bias.data.zero_()


def adapts(net: Any) -> None:
    net.lif1.threshold = net.lif1.threshold + 0.1


@pytest.mark.parametrize("write", [halves, halves_in_place, charges_the_next, adapts, looks])
def test_what_a_forward_writes_into_its_neurons_is_written(write: Any) -> None:
    nets = [Writes(write), Writes(write)]
    nets[1].load_state_dict(nets[0].state_dict())
    inputs = 3 * torch.rand(6, BATCH, FEATURES)
    runs = []
    for net, engine in zip(nets, ("step", "auto"), strict=True):
        model = wrap(net, dt=DT, engine=engine, readout="lif2")
        with torch.no_grad():
            runs.append(model(inputs).membrane)
    assert torch.equal(*runs)
    assert ("looks at the values" if write is looks else "writes lif") in model.explain()


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "logs": (Logs, "writes calls"),
    "noisy": (Noisy, "looks at the values of a tensor"),
    "fades": (FadesItsState, "a connection runs backwards in time|is not the one"),
}


@pytest.mark.parametrize(("build", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_the_same_computation_is_refused(
    build: Callable[[], nn.Module], reason: str
) -> None:
    nets = [build(), build()]
    nets[1].load_state_dict(nets[0].state_dict())
    inputs = 1 + torch.randn(5, BATCH, FEATURES)
    runs = []
    for net, engine in zip(nets, ("step", "auto"), strict=True):
        torch.manual_seed(2)
        runs.append(wrap(net, dt=DT, engine=engine, readout=_last_leaky(net))(inputs).membrane)
    assert torch.equal(*runs)
    with pytest.raises(WrapError, match=reason):
        wrap(build(), dt=DT, engine="layer")(inputs)


class Carries(nn.Module):
    """Carries a state of its own beside its neuron's: how strong the next input is."""

    def __init__(self, first: Any, after: Callable[[Any], Any]) -> None:
        super().__init__()
        self.first, self.after = first, after
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, tuple[Any, Tensor]]:
        gain, mem = (self.first, torch.zeros(len(x), CLASSES)) if state is None else state
        spk, mem = self.lif(self.fc(x) * (gain["n"] if isinstance(gain, dict) else gain), mem)
        return spk, (self.after(gain), mem)


CARRIED: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "a tensor for each unit": (torch.ones(BATCH, CLASSES), lambda gain: gain + 1),
    "a tensor for all": (torch.ones(1), lambda gain: gain + 1),
    "a tensor without axes": (torch.tensor(1.0), lambda gain: 0.5 * gain),
    "a count": (1, lambda gain: gain + 1),
    "a number": (1.0, lambda gain: 0.5 * gain),
    "a flag": (True, lambda gain: not gain),
    "a dict": ({"n": 1}, lambda gain: {"n": gain["n"] + 1}),
    "a constant": (2.0, lambda gain: gain),
}


@pytest.mark.parametrize(("first", "after"), CARRIED.values(), ids=CARRIED.keys())
def test_a_state_of_the_forwards_own_is_that_of_the_timestep_before(
    first: Any, after: Callable[[Any], Any]
) -> None:
    step = wrap(Carries(first, after), dt=DT, engine="step")
    auto = wrap(copy.deepcopy(step.net), dt=DT, engine="auto")
    inputs = 1 + torch.randn(6, BATCH, FEATURES)
    theirs, mine = step(inputs), auto(inputs)
    assert theirs.membrane.abs().max() > 0.1
    check_close(mine.membrane, theirs.membrane)
    check_close(auto(inputs, state=mine.state).membrane, step(inputs, state=theirs.state).membrane)
    changes = not isinstance(first, Tensor) and after(first) != first
    assert ("a state that is no tensor" in auto.explain()) == changes
    theirs_gain, mine_gain = theirs.state.passed[0][0], mine.state.passed[0][0]
    assert (
        torch.equal(theirs_gain, mine_gain)
        if isinstance(first, Tensor)
        else (theirs_gain == mine_gain)
    )


def _last_leaky(net: nn.Module) -> str:
    return [name for name, m in net.named_modules() if isinstance(m, snn.Leaky)][-1]


def test_foreign_hooks_and_listeners_on_the_bare_model_hear_every_call() -> None:
    inputs = 1 + torch.randn(5, BATCH, FEATURES)
    net = built("sequential_init_hidden")
    model = wrap(net, dt=DT, engine="auto")
    model(inputs)
    assert model.explain().startswith("layer by layer")
    calls: list[int] = []
    handle = net[0].register_forward_hook(lambda *_: calls.append(1))
    model(inputs)
    assert len(calls) == 5
    assert "foreign hook on '0'" in model.explain()
    handle.remove()
    energy = EnergyLoss(reduction="mean", p=1)
    energy.register_hooks(net)
    model(inputs)
    assert "EnergyLoss on the bare model hears every call of" in model.explain()
    energy.remove_hooks()
    with EnergyMeter(model.net):
        model(inputs)
    assert "EnergyMeter on the bare model hears every call of" in model.explain()
    model(inputs)
    assert model.explain().startswith("layer by layer")


def test_a_changed_model_gets_another_plan() -> None:
    step, auto = both("sequential_init_hidden")
    inputs = 1 + torch.randn(5, BATCH, FEATURES)
    auto(inputs)
    for model in (step, auto):
        neuron = model.net[1]
        neuron.threshold = torch.tensor(0.6)
        neuron.reset_delay = False
    check_close(auto(inputs).membrane, step(inputs).membrane)
    for model in (step, auto):
        model.net[1] = snn.Leaky(0.5, threshold=0.4, init_hidden=True)
        model.net[1].load_state_dict(model.net[3].state_dict())
    check_close(auto(inputs).membrane, step(inputs).membrane)


class ReturnsWhatItHolds(nn.Module):
    """Returns its neuron's membrane behind the spikes, or before them."""

    def __init__(self, *, before: bool) -> None:
        super().__init__()
        self.before = before
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky(init_hidden=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spikes = self.lif(self.fc(x))
        return (self.lif.mem, spikes) if self.before else (spikes, self.lif.mem)


@pytest.mark.parametrize("before", [True, False])
def test_what_is_returned_behind_the_first_output_is_not_read(before: bool) -> None:
    nets = [ReturnsWhatItHolds(before=before) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    inputs = 1 + torch.randn(5, BATCH, FEATURES)
    runs = [
        wrap(net, dt=DT, engine=engine)(inputs)
        for net, engine in zip(nets, ("step", "auto"), strict=True)
    ]
    check_close(runs[1].membrane, runs[0].membrane)
    assert runs[0].spikes is not None
    assert torch.equal(runs[1].spikes, runs[0].spikes)
    model = wrap(nets[1], dt=DT, engine="auto")
    model(inputs)
    told = "reads lif.mem from the module" if before else "one scan over time           lif"
    assert told in model.explain()


def test_training_is_no_other_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is traced once, whatever batch normalisation counts."""
    traced: list[str] = []
    trace_call = choosing.trace_call

    def counted(*args: Any) -> Any:
        traced.append("a call")
        return trace_call(*args)

    monkeypatch.setattr(choosing, "trace_call", counted)
    model = wrap(built("convolutions"), dt=DT, engine="layer")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shown = images(PRESENTATIONS["constant"]), PRESENTATIONS["constant"]
    for _ in range(3):
        model(*shown).membrane.sum().backward()
        optimizer.step()
    assert len(traced) == 1


SCALE = 1.0


class Settings:
    scale = 1.0


def scaled(h: Tensor) -> Tensor:
    return h * SCALE


@dataclass
class Gains:
    inner: list[float]


class Reads(nn.Module):
    """Its forward reads a number from somewhere: told by `kind`."""

    shared = 1.0

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.settings: dict[str, Any] = {"gains": [1.0, {"first": 1.0}]}
        self.gains, self.space = Gains([1.0]), SimpleNamespace(gain=1.0)
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky(init_hidden=True, output=True)
        inner = 1.0

        def hidden(h: Tensor) -> Tensor:
            return h * inner

        def change(value: float) -> None:
            nonlocal inner
            inner = value

        self.hidden, self.change = hidden, change

    @property
    def gain(self) -> float:
        return self.gains.inner[0]

    def forward(self, x: Tensor) -> Any:
        return self.lif(self.read(self.fc(x)))

    def read(self, h: Tensor) -> Tensor:
        reads: dict[str, Callable[[], Any]] = {
            "dict": lambda: h * self.settings["gains"][1]["first"],
            "dataclass": lambda: h * self.gain,
            "namespace": lambda: h * self.space.gain,
            "class": lambda: h * self.shared,
            "another class": lambda: h * Settings.scale,
            "global": lambda: scaled(h),
            "closure": lambda: self.hidden(h),
            "by its word": lambda: h * vars(self)["gains"].inner[0],
        }
        read: Tensor = reads[self.kind]()
        return read


def change_all(net: Any, value: float) -> None:
    global SCALE
    SCALE = Settings.scale = Reads.shared = net.gains.inner[0] = net.space.gain = value
    net.settings["gains"][1]["first"] = value
    net.change(value)


KINDS = (
    "dict", "dataclass", "namespace", "class", "another class", "global", "closure", "by its word",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_a_forward_reads_may_change_between_runs(kind: str) -> None:
    nets = [Reads(kind), Reads(kind)]
    nets[1].load_state_dict(nets[0].state_dict())
    step = wrap(nets[0], dt=DT, engine="step")
    layer = wrap(nets[1], dt=DT, engine="layer")
    inputs, runs = 1 + torch.randn(5, BATCH, FEATURES), []
    for value in (1.0, 2.0, 0.5):
        for net in nets:
            change_all(net, value)
        runs.append(step(inputs).membrane)
        check_close(layer(inputs).membrane, runs[-1])
    assert not torch.equal(runs[0], runs[1])
    change_all(nets[0], 1.0)


class Seeds(nn.Module):
    """Draws the same numbers at every timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop = nn.Linear(FEATURES, CLASSES), nn.Dropout(0.5)
        self.lif = leaky(init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Any:
        torch.manual_seed(3)
        return self.lif(self.drop(self.fc(x)))


def test_a_forward_that_seeds_its_random_numbers_runs_by_step() -> None:
    nets = [Seeds(), Seeds()]
    nets[1].load_state_dict(nets[0].state_dict())
    inputs = 1 + torch.randn(5, BATCH, FEATURES)
    with torch.random.fork_rng():
        runs = [wrap(net, dt=DT, engine="step")(inputs).membrane for net in nets[:1]]
        model = wrap(nets[1], dt=DT, engine="auto")
        runs.append(model(inputs).membrane)
    assert torch.equal(*runs)
    assert "its forward seeds random numbers (manual_seed)" in model.explain()


def test_autocast_runs_by_step() -> None:
    model = wrap(built("sequential_init_hidden"), dt=DT, engine="auto")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.ones(4, BATCH, FEATURES))
    assert "autocast" in model.explain()


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(WrapError, match="engine='fast'"):
        wrap(built("sequential_init_hidden"), dt=DT, engine="fast")  # type: ignore[arg-type]


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(PLANNED)),
    seed=st.integers(0, 2**31),
    pattern=st.lists(st.integers(0, 2), min_size=2, max_size=9).filter(any),
    idle=st.integers(0, 3),
)
def test_a_spike_flips_only_at_the_threshold(
    name: str, seed: int, pattern: list[int], idle: int
) -> None:
    """Anything drawn: what differs by more than rounding follows a membrane at its threshold."""
    presentation = Presentation(pattern, dt=DT, idle_time=float(idle))
    shown = images(presentation, seed)
    check_flips_only_at_the_threshold(*both(name, seed, mode=False), shown, presentation)


def check_flips_only_at_the_threshold(
    step: TimedModel, auto: TimedModel, shown: Tensor, presentation: Presentation | None
) -> None:
    theirs, mine = Hears(step), Hears(auto)
    with torch.no_grad():
        for model in (step, auto):
            model(shown, presentation)
    for layer in theirs.heard:
        other, one = theirs.values(layer)["output"], mine.values(layer)["output"]
        assert other is not None
        assert one is not None
        off = (one - other).abs().flatten(1).amax(1) > 1e-5 * other.abs().max().clamp(min=1.0)
        if off.any():
            # The first layer to differ must have been at its threshold; what follows may differ.
            _check_at_threshold(theirs, mine, layer, int(off.nonzero()[0]))
            return


def _check_at_threshold(theirs: Hears, mine: Hears, layer: str, t: int) -> None:
    watched = theirs.heard[layer][0].layer
    assert watched is not None
    assert watched.spikes_or_integrates
    differ = mine.values(layer)["output"][t] != theirs.values(layer)["output"][t]
    membrane = theirs.values(layer)["membrane"][t][differ]
    threshold = (
        watched.module.threshold
        if isinstance(watched.module, snn.SpikingNeuron)
        else watched.module.p.v_th
    )
    assert (membrane - threshold).abs().max() < 1e-5


def test_a_model_with_no_neuron_to_scan_is_refused_for_that() -> None:
    net = nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.ReLU(), nn.Linear(CLASSES, CLASSES))
    with pytest.raises(WrapError, match="it has no neuron that can be scanned"):
        wrap(net, dt=DT, engine="layer")(torch.rand(5, BATCH, FEATURES))


def test_a_check_of_every_module_is_named_where_it_stands_in_the_way() -> None:
    net = nn.Sequential(nn.Linear(FEATURES, CLASSES), snn.Leaky(beta=0.9, init_hidden=True))
    with pytest.raises(WrapError, match="is observed by check_finite=True"):
        wrap(net, dt=DT, engine="layer", check_finite=True)(torch.rand(5, BATCH, FEATURES))
