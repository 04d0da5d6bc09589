"""Membranes of recurrent neurons that the backward computes again: the same bits, and less is kept.

Every comparison is of two runs of the same scan, one that keeps its membranes and one that does
not; that the first is the library's own loop is tested in test_scans.py.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from scan_cases import CASES, UNITS, Case
from test_recomputing import kept_bytes
from test_recurrent_sums import CASES as SUMMED
from test_scans import backends
from test_spike_bits import check_same, gradients
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import dynvision_snn as dvs
from dynvision_snn.energy import EnergyMeter
from dynvision_snn.engine.scans import Scanned, functions, recursion, scan
from dynvision_snn.errors import WrapError
from dynvision_snn.losses import EnergyLoss, build_criterion
from dynvision_snn.training import fit

STEPS, BATCH = 41, 4
EVERYTHING = ("spikes", "membrane", "current", "activity")
RECURRENT = {name: case for name, case in CASES.items() if case.spec(case.make()).recurrence}
RECURRENT |= {f"{name} (more units)": case for name, case in SUMMED.items()}


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many timesteps each backward ran again."""
    ran: list[int] = []
    original = recursion.Recursion.run_again

    def noting(self: Any, starts: Any, z0: Tensor, spikes: Tensor) -> Iterator[Any]:
        ran.append(len(spikes))
        return original(self, starts, z0, spikes)

    monkeypatch.setattr(recursion.Recursion, "run_again", noting)
    return ran


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing is saved by it."""
    monkeypatch.setattr(functions, "_runs_again", lambda plan, *_: not plan.keeps_membranes)


def shown(case: Case, n_distinct: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n_distinct, BATCH, case.features, generator=generator)
    inputs += torch.linspace(0.4, -0.6, n_distinct).view(-1, 1, 1)
    return inputs.requires_grad_(), torch.arange(STEPS) % n_distinct


def weighted(ran: Scanned) -> Tensor:
    """A scalar that gives every value a gradient of its own."""
    generator = torch.Generator().manual_seed(9)
    values = (ran.spikes, ran.membrane, ran.current, ran.activity, *ran.state.values())
    asked = [v for v in values if v is not None and v.requires_grad]
    return sum((v * torch.randn(v.shape, generator=generator)).sum() for v in asked)


def both(
    case: Case, n_distinct: int, inside: Callable[[], Any] = nullcontext, **options: Any
) -> list[dict[str, Any]]:
    """Spikes, state and gradients with the membranes kept, and computed again."""
    torch.manual_seed(3)
    module = case.make()
    inputs, index = shown(case, n_distinct)
    first = scan(case.spec(module), shown(case, 9)[0], backend_name="torch").state
    found = []
    for keep in (True, False):
        state = {key: value.detach().clone().requires_grad_() for key, value in first.items()}
        leaves = [inputs, *state.values(), *(p for p in module.parameters() if p.requires_grad)]
        ran = scan(
            case.spec(module), inputs, index=index, state=state, keep_membranes=keep, **options
        )
        assert 0 < ran.spikes.count_nonzero() < ran.spikes.numel()
        loss = weighted(ran)
        with inside():
            grads = torch.autograd.grad(loss, leaves, retain_graph=True)
        assert any(g.count_nonzero() for g in grads)
        numbers = {"spikes": ran.spikes, **{f"last {k}": v for k, v in ran.state.items()}}
        numbers |= {f"gradient {k}": g for k, g in enumerate(grads)}
        twice = torch.autograd.grad(loss, leaves) if inside is nullcontext else ()
        found.append(numbers | {f"gradient {k} again": g for k, g in enumerate(twice)})
    return found


# -- scans ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("n_distinct", [1, 3, STEPS])
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("name", RECURRENT)
def test_gradients_are_the_same_to_the_last_bit(
    name: str, backend: str, n_distinct: int, again: list[int]
) -> None:
    for keep in (("spikes",), EVERYTHING):
        check_same(*both(RECURRENT[name], n_distinct, keep=keep, backend_name=backend))
    assert again == [STEPS] * 4


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("most", [0.2, 1.0])
@pytest.mark.parametrize("name", SUMMED)
def test_sums_over_spikes_are_taken_again_where_they_were(
    name: str, most: float, again: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    numba_scans = pytest.importorskip("dynvision_snn.engine.scans.numba_scans")
    monkeypatch.setattr(recursion, "_WORTH", 1)
    monkeypatch.setattr(recursion, "_MOST", most)
    summed: list[int] = []
    original = numba_scans.forward_joined
    monkeypatch.setattr(
        numba_scans,
        "forward_joined",
        lambda rule, index, *others: (summed.append(len(index)), original(rule, index, *others)),
    )
    check_same(*both(SUMMED[name], STEPS, keep=EVERYTHING, backend_name="numba"))
    assert again == [STEPS, STEPS]
    # Two forwards and two backwards, of which each ran what the forwards did.
    n_forwards = 4
    assert sum(summed) == n_forwards * STEPS if most == 1.0 else sum(summed) > 0
    assert sum(summed) % n_forwards == 0


@pytest.mark.parametrize("backend", backends())
def test_an_autocast_around_the_backward_does_not_reach_it(backend: str, again: list[int]) -> None:
    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16)

    check_same(*both(SUMMED["RLeaky"], 1, autocast, backend_name=backend))
    assert again == [STEPS]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", RECURRENT)
def test_gradients_are_the_same_on_cuda(name: str, again: list[int]) -> None:
    module = RECURRENT[name].make().cuda()
    inputs, index = shown(RECURRENT[name], 1)
    found = []
    for keep in (True, False):
        spec = RECURRENT[name].spec(module)
        ran = scan(spec, inputs.cuda(), index=index, keep_membranes=keep)
        found.append({"x": torch.autograd.grad(ran.spikes.square().sum(), inputs)[0]})
    check_same(*found)
    assert again == [STEPS]


# -- what is kept ---------------------------------------------------------------------------------


def saved(case: Case, n_distinct: int, keep_membranes: bool, **options: Any) -> tuple[int, Any]:
    """Bytes that autograd saves of a scan, each storage once, and what it gave."""
    sizes: dict[int, int] = {}

    def noted(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    module = case.make()
    inputs, index = shown(case, n_distinct)
    spec = case.spec(module)
    with saved_tensors_hooks(noted, lambda tensor: tensor):
        ran = scan(spec, inputs, index=index, keep_membranes=keep_membranes, **options)
    return sum(sizes.values()), ran


@pytest.mark.parametrize("n_distinct", [1, 3, STEPS])
@pytest.mark.parametrize("keep", [("spikes",), ("spikes", "membrane")])
@pytest.mark.parametrize(
    "name",
    ["RLeaky-subtract-True", "RLeaky-subtract-False", "RLeaky-one-to-one", "LIFRecurrentCell"],
)
def test_what_is_kept_is_less_or_the_same(
    name: str, keep: tuple[str, ...], n_distinct: int, again: list[int]
) -> None:
    """In rows of a float for each unit of each sample."""
    case = RECURRENT[name]
    owes, has_current = name.endswith("False"), name.startswith("LIF")
    membranes = STEPS * (2 if owes else 1)
    starts = 2 * (2 if has_current else 1)  # at timesteps 16 and 32
    less = n_distinct + starts < membranes
    (whole, _), (rest, ran) = (saved(case, n_distinct, k, keep=keep) for k in (True, False))
    weighted(ran).backward()
    assert again == [STEPS] * less
    rows = (membranes - n_distinct - starts) * less
    bias = UNITS if less and name.startswith("RLeaky") and "one" not in name else 0
    assert whole - rest == 4 * (rows * BATCH * UNITS - bias)


def test_tensors_that_were_changed_before_the_backward_are_told() -> None:
    module = SUMMED["RLeaky"].make()
    inputs, index = shown(SUMMED["RLeaky"], 1)
    for changed in (module.recurrent.weight, module.recurrent.bias, inputs):
        spec = SUMMED["RLeaky"].spec(module)
        loss = weighted(scan(spec, inputs, index=index, keep_membranes=False))
        with torch.no_grad():
            changed.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_gradient_nothing_is_kept(mode: Callable[[], Any]) -> None:
    with mode():
        assert saved(RECURRENT["RLeaky-subtract-True"], 1, keep_membranes=False)[0] == 0


# -- runs -----------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """By a matrix, with an owed reset, and one to one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 60), nn.Linear(60, 3)
        learned = {"learn_beta": True, "learn_threshold": True, "init_hidden": True}
        self.rec = snn.RLeaky(0.9, linear_features=60, reset_mechanism="zero", **learned)
        self.owing = snn.RLeaky(0.8, linear_features=60, reset_delay=False, **learned)
        self.own = snn.RLeaky(0.9, all_to_all=False, **learned)
        self.own.graded_spikes_factor = torch.tensor(1.5)
        self.lif = snn.Leaky(0.9, init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Any:
        return self.lif(self.out(self.own(self.owing(self.rec(self.fc(x))))))


def norse_cells() -> nn.Module:
    return norse.SequentialState(
        *(norse.LIFRecurrentCell(6, 60, dt=0.001), norse.LIFRecurrentCell(60, 60, dt=0.001)),
        *(nn.Linear(60, 3), norse.LICell(dt=0.001)),
    )


class NorseSequence(nn.Module):
    """Its time loop is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.rec, self.out = norse.LIFRecurrent(6, 60, dt=0.001), nn.Linear(60, 3)
        self.li = norse.LI(dt=0.001)

    def forward(self, x: Tensor) -> Any:
        return self.li(self.out(self.rec(x)[0]))[0]


NETS: dict[str, Callable[[], nn.Module]] = {
    "snnTorch": Recurrent,
    "Norse cells": norse_cells,
    "Norse sequence": NorseSequence,
}
CONSTANT = dvs.Presentation("1", dt=1.0, n_timesteps=STEPS)
CHANGING = dvs.Presentation("1011", dt=1.0, n_timesteps=STEPS, idle_time=3.0)


def wrapped(name: str, **options: Any) -> dvs.TimedModel:
    torch.manual_seed(0)
    return dvs.wrap(NETS[name](), dt=1.0, **options)


def images(*lead: int) -> Tensor:
    return 6 * torch.rand(*lead, BATCH, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [{}, {"keep_spikes": "bits"}, {"recompute_every": 20.0}])
@pytest.mark.parametrize("schedule", [CONSTANT, CHANGING, None])
@pytest.mark.parametrize("name", NETS)
def test_runs_are_the_same_to_the_last_bit(
    name: str, schedule: dvs.Presentation | None, options: dict[str, Any], again: list[int]
) -> None:
    if name == "Norse sequence" and "recompute_every" in options:
        pytest.skip("is refused")
    given = (images(STEPS),) if schedule is None else (images(), schedule)
    found = []
    for keep in (True, False):
        model = wrapped(name, engine="layer", keep_membranes=keep, **options)
        energy = EnergyLoss()
        energy.register_hooks(model)
        with EnergyMeter(model) as meter:
            run = model(*given, record=[layer.name for layer in model.layers()])
            joules = energy(None, None)
            loss = run.membrane.square().mean() + joules
            loss = loss + sum(layer.membrane.square().mean() for layer in run.layers.values())
            if name != "Norse sequence":  # which takes no state
                loss = loss + model(images(), CONSTANT, state=run.state).membrane.square().mean()
            n_before = len(again)
            loss.backward()
        assert (len(again) > n_before) is (
            not keep and (name != "Norse sequence" or bool(schedule))
        )
        numbers = {"membrane": run.membrane, "budget": meter.budget(dt=1.0).to_dict()}
        found.append(numbers | {"energy": joules} | gradients(model.net))
    assert all(g.count_nonzero() for g in gradients(model.net).values())
    check_same(*found)


@pytest.mark.parametrize("options", [{}, {"keep_spikes": "bits"}])
def test_chunks_and_truncated_training_are_the_same(options: dict[str, Any]) -> None:
    found = []
    for keep in (True, False):
        model = wrapped("snnTorch", keep_membranes=keep, **options)
        for chunk in model.chunks(images(), CONSTANT, every=20.0):
            chunk.membrane.square().mean().backward()
        numbers = {f"chunks {key}": g for key, g in copy.deepcopy(gradients(model.net)).items()}
        data = [(images(), torch.arange(BATCH) % 3)]
        criterion = build_criterion(["cross_entropy_loss", "energy_loss"], model=model)
        optimizer = torch.optim.Adam(model.parameters())
        fit(model, data, CONSTANT, criterion, optimizer, epochs=2, truncate=20.0)
        found.append(numbers | dict(model.net.named_parameters()))
    check_same(*found)


def test_what_a_run_keeps_is_less() -> None:
    image = images()
    models = {keep: wrapped("snnTorch", keep_membranes=keep) for keep in (True, False)}
    kept = {k: kept_bytes(lambda x, m=m: m(x, CONSTANT), image) for k, m in models.items()}
    # Of the membranes those of the first, one of two of the second; the third gains nothing.
    assert kept[False] < kept[True] - 4 * 1.5 * STEPS * BATCH * 60


def test_the_step_engine_keeps_all(again: list[int]) -> None:
    found = []
    for keep in (True, False):
        model = wrapped("snnTorch", engine="step", keep_membranes=keep)
        model(images(), CONSTANT).membrane.sum().backward()
        found.append(gradients(model.net))
    check_same(*found)
    assert not again


# -- the argument ---------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["no", None, 0])
def test_what_is_neither_true_nor_false_is_refused(other: Any) -> None:
    with pytest.raises(WrapError, match=rf"keep_membranes={other!r}; expected True or False"):
        wrapped("snnTorch", keep_membranes=other)
    model = wrapped("snnTorch")
    model.keep_membranes = other
    with pytest.raises(WrapError, match=rf"keep_membranes={other!r}"):
        model(images(STEPS))


def test_copies_are_told(again: list[int]) -> None:
    plain = dvs.wrap(nn.Sequential(nn.Linear(6, 3), nn.ReLU()), dt=1.0, keep_membranes=False)
    assert pickle.loads(pickle.dumps(plain)).keep_membranes is False
    assert dvs.retime(plain, dt=2.0).keep_membranes is False
    model = copy.deepcopy(wrapped("snnTorch", keep_membranes=False))
    assert model.keep_membranes is False
    for keep in (False, True):
        model.keep_membranes = keep
        again.clear()
        model(images(), CONSTANT).membrane.sum().backward()
        assert bool(again) is not keep
