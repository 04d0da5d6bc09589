"""Spikes kept as bits: the same numbers to the last bit, and the floats are let go."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_layer_plans import NETS, PLANNED, PRESENTATIONS, built, images
from test_scans import backends
from torch import Tensor, nn
from torch.autograd.function import Function
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import relu

import dynvision_snn as dvs
from dynvision_snn.energy import EnergyMeter
from dynvision_snn.engine import choosing
from dynvision_snn.engine.scans import scan
from dynvision_snn.errors import WrapError
from dynvision_snn.losses import EnergyLoss, SynopsLoss
from dynvision_snn.spike_bits import Bits, keeping, note_moved, note_spikes

UNITS, STEPS, BATCH = 300, 100, 8
FORMS = ("floats", "bits")


def lif(**options: Any) -> nn.Module:
    return snn.Leaky(0.9, init_hidden=True, **options)


def deep() -> nn.Module:
    """Large enough for products by entries, after the input, and by oneDNN."""
    return nn.Sequential(
        *(nn.Linear(20, UNITS), lif(), nn.Linear(UNITS, UNITS), lif(threshold=0.3)),
        *(nn.Linear(UNITS, UNITS), lif(), nn.Linear(UNITS, 5), lif(output=True)),
    )


def convolutional(*pool: nn.Module) -> nn.Module:
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 4, 5)), nn.Conv2d(1, 6, 3, padding=1), lif(threshold=0.1), *pool),
        *(nn.Conv2d(6, 7, 3, padding=1), nn.MaxPool2d(2), lif(threshold=0.1)),
        *(nn.Flatten(), nn.Linear(7 if pool else 28, 5), lif(output=True)),
    )


class Recurrent(nn.Module):
    """Recurrent by a matrix, then one to one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(20, UNITS), nn.Linear(UNITS, 5)
        self.rec = snn.RLeaky(0.9, linear_features=UNITS, init_hidden=True)
        self.own = snn.RLeaky(0.9, all_to_all=False, init_hidden=True, learn_threshold=True)
        self.lif = lif(output=True)

    def forward(self, x: Tensor) -> Any:
        return self.lif(self.out(self.own(self.rec(self.fc(x)))))


class Joined(nn.Module):
    """Spikes are read by several, added, concatenated and multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gate, self.out = nn.Linear(20, 30), nn.Linear(30, 30), nn.Linear(90, 5)
        self.one, self.other, self.lif = lif(), lif(threshold=0.2), lif(output=True)

    def forward(self, x: Tensor) -> Any:
        one = self.one(self.fc(x))
        other = self.other(self.gate(one))
        return self.lif(self.out(torch.cat([one + other, one * other, other], dim=1)))


def norse_deep() -> nn.Module:
    return norse.SequentialState(
        *(norse.LIFRecurrentCell(20, UNITS), nn.Linear(UNITS, UNITS), norse.LIFCell()),
        *(nn.Linear(UNITS, 5), norse.LICell()),
    )


def worth(factor: Any, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        hidden = lif(graded_spikes_factor=factor, **options)
        return nn.Sequential(nn.Linear(20, 30), hidden, nn.Linear(30, 5), lif(output=True))

    return build


LARGE: dict[str, Callable[[], nn.Module]] = {
    "deep": deep,
    "convolutions": convolutional,
    "maxima of spikes": lambda: convolutional(nn.MaxPool2d(2)),
    "means of spikes": lambda: convolutional(nn.AvgPool2d(2)),
    "recurrent": Recurrent,
    "joined": Joined,
    "Norse": norse_deep,
    "worth 0.5": worth(0.5),
    "worth -2": worth(-2.0),
    "worth nothing": worth(0.0),
    "worth what is learnt": worth(1.5, learn_graded_spikes_factor=True),
    "worth otherwise by unit": worth(torch.arange(30.0)),
}


def run_of(net: nn.Module, how: str, **options: Any) -> tuple[Any, Tensor, dict[str, Any]]:
    """A run, its loss with the energy's, and the numbers that are known so far."""
    model = dvs.wrap(net, dt=1.0, engine="layer", keep_spikes=how, **options)
    losses = EnergyLoss(), SynopsLoss()
    for loss in losses:
        loss.register_hooks(model)
    inputs = 3 * torch.rand(STEPS, BATCH, 20, generator=torch.Generator().manual_seed(1))
    with EnergyMeter(model) as meter:
        run = model(inputs, record=[layer.name for layer in model.layers()])
    taken = [loss(None, None) for loss in losses]
    numbers = {f"loss {k}": loss.detach() for k, loss in enumerate(taken)}
    numbers |= {f"{name} output": r.output.detach() for name, r in run.layers.items()}
    numbers |= {"membrane": run.membrane.detach(), "budget": meter.budget(dt=1.0).to_dict()}
    return run, run.membrane.square().mean() + taken[0] + taken[1], numbers


def check_same(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, Tensor):
            # Not torch.equal, to which -0 is 0.
            bits = [v.detach().contiguous().view(torch.int32) for v in (mine[name], value)]
            assert torch.equal(*bits), name
        else:
            assert mine[name] == value, name


def gradients(net: nn.Module) -> dict[str, Any]:
    return {name: p.grad for name, p in net.named_parameters()}


def large(name: str) -> nn.Module:
    torch.manual_seed(0)
    return LARGE[name]()


def forms(name: str) -> list[Any]:
    """What autograd holds in place of tensors."""
    gc.collect()
    return [form for form in gc.get_objects() if type(form).__name__ == name]


def spikes_kept_as_floats(at_least: int) -> list[Tensor]:
    """What autograd was given as it is, though it is spikes."""
    kept = [form.tensor for form in forms("_AsItIs")]
    floats = [tensor for tensor in kept if tensor.dtype is torch.float32]
    return [x for x in floats if x.numel() >= at_least and bool(((x == 0) | (x == x.max())).all())]


# -- the same numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LARGE)
def test_numbers_are_the_same_to_the_last_bit(name: str) -> None:
    found = {}
    for how in FORMS:
        net = large(name)
        run, loss, numbers = run_of(net, how)
        hidden = next(iter(run.layers.values())).output
        assert hidden.count_nonzero() or name == "worth nothing"
        loss.backward(retain_graph=True)
        numbers |= gradients(net)
        loss.backward()
        found[how] = numbers | {f"twice {key}": g for key, g in gradients(net).items()}
    assert any(g.count_nonzero() for g in gradients(net).values())
    check_same(found["bits"], found["floats"])


@pytest.mark.parametrize("presentation", PRESENTATIONS.values(), ids=PRESENTATIONS)
@pytest.mark.parametrize("name", sorted(PLANNED & NETS.keys()))
def test_numbers_are_the_same_in_every_style(name: str, presentation: dvs.Presentation) -> None:
    found = {}
    for how in FORMS:
        net = built(name)
        model = dvs.wrap(net, dt=presentation.dt, engine="auto", keep_spikes=how)
        energy = EnergyLoss()
        energy.register_hooks(model)
        torch.manual_seed(3)
        membrane = model(images(presentation), presentation).membrane
        joules = energy(None, None)
        (membrane.square().mean() + joules).backward()
        found[how] = {"membrane": membrane, "energy": joules}
        found[how] |= {k: g for k, g in gradients(net).items() if g is not None}
    check_same(found["bits"], found["floats"])


@pytest.mark.parametrize("name", ["recurrent", "Norse", "convolutions"])
def test_recomputed_and_in_chunks_numbers_are_the_same(name: str) -> None:
    found: dict[str, dict[str, Any]] = {}
    for how in FORMS:
        net = large(name)
        _, loss, numbers = run_of(net, how, recompute_every=30.0)
        assert not forms("_AsBits")
        loss.backward()
        numbers |= gradients(copy.deepcopy(net))
        model = dvs.wrap(net, dt=1.0, engine="layer", keep_spikes=how)
        torch.manual_seed(2)
        for chunk in model.chunks(torch.rand(STEPS, BATCH, 20), every=40.0):
            chunk.membrane.square().mean().backward()
        found[how] = numbers | {f"chunks {key}": g for key, g in gradients(net).items()}
    check_same(found["bits"], found["floats"])


def test_who_decides_already_how_tensors_are_saved_goes_on_to() -> None:
    found = {}
    for how in FORMS:
        net = large("deep")
        with torch.autograd.graph.save_on_cpu():
            _, loss, numbers = run_of(net, how)
        assert not forms("_AsBits")
        loss.backward()
        found[how] = numbers | gradients(net)
    check_same(found["bits"], found["floats"])


# -- what is kept ---------------------------------------------------------------------------------


def let_go(net: nn.Module, how: str) -> dict[str, bool]:
    """Whether the spikes of each hidden layer are let go before the backward."""
    run, loss, _ = run_of(net, how)
    memory = {name: StorageWeakRef(r.output.untyped_storage()) for name, r in run.layers.items()}
    *hidden, _ = memory
    del run
    gc.collect()
    gone = {name: memory[name].expired() for name in hidden}
    loss.backward()
    return gone


@pytest.mark.parametrize("name", ["deep", "recurrent", "joined", "Norse", "worth 0.5"])
def test_the_floats_are_let_go(name: str) -> None:
    assert all(let_go(large(name), "bits").values())
    assert not any(let_go(large(name), "floats").values())


def test_a_backward_of_a_part_leaves_the_rest_as_it_was() -> None:
    found = []
    for part in (False, True):
        net = large("recurrent")
        _, loss, _ = run_of(net, "bits")
        if part:
            torch.autograd.grad(loss, net.out.weight, retain_graph=True)
        loss.backward(retain_graph=True)
        found.append(gradients(net))
    check_same(*found)


def test_spikes_that_are_worth_several_values_stay_floats() -> None:
    assert not any(let_go(large("worth otherwise by unit"), "bits").values())


@pytest.mark.parametrize("name", ["deep", "convolutions", "maxima of spikes", "recurrent"])
def test_no_operation_keeps_spikes_of_its_own_as_floats(name: str) -> None:
    _, loss, _ = run_of(large(name), "bits")
    assert spikes_kept_as_floats(BATCH * STEPS * 20) == []
    loss.backward()


def test_nor_do_stretches_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later one starts from the last spikes of the one before."""
    monkeypatch.setattr(choosing, "LARGEST_BLOCK", STEPS // 3 * BATCH * UNITS * 4)
    _, loss, _ = run_of(large("recurrent"), "bits")
    assert spikes_kept_as_floats(BATCH * STEPS * 20) == []
    loss.backward()


def test_the_check_finds_spikes_that_were_kept_as_floats() -> None:
    x = torch.ones(50, requires_grad=True)
    with keeping("bits"):
        y = x * torch.eye(50)[0]
    (kept,) = spikes_kept_as_floats(50)
    assert torch.equal(kept, torch.eye(50)[0])
    y.sum().backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_gradient_nothing_is_kept(mode: Callable[[], Any]) -> None:
    model = dvs.wrap(large("deep"), dt=1.0, engine="layer", keep_spikes="bits")
    inputs = torch.rand(STEPS, BATCH, 20)
    with mode():
        run = model(inputs, record=["1"])
    memory = StorageWeakRef(run.layers["1"].output.untyped_storage())
    state = run.state
    del run
    assert memory.expired()
    assert state.timestep == STEPS


# -- what is written into -------------------------------------------------------------------------


@pytest.mark.parametrize("how", FORMS)
def test_weights_changed_before_the_backward_are_told(how: str) -> None:
    net = large("deep")
    _, loss, _ = run_of(net, how)
    with torch.no_grad():
        net[2].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_recorded_spikes_may_be_written_into_once_they_are_kept() -> None:
    """As floats torch refuses it; as bits the gradient is that of the spikes as they were."""
    grads = []
    for written in (False, True):
        net = large("deep")
        run, loss, _ = run_of(net, "bits")
        if written:
            run.layers["1"].output.detach().zero_()
        loss.backward()
        grads.append(gradients(net))
    check_same(*grads)
    run, loss, _ = run_of(large("deep"), "floats")
    run.layers["1"].output.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_was_written_into_is_saved_as_it_is() -> None:
    spikes, weight = torch.eye(9), torch.ones(9, 9, requires_grad=True)
    with keeping("bits"):
        note_spikes(spikes, torch.ones(1))
        spikes.mul_(0.3)
        product = spikes * weight
        product.sum().backward()
    assert torch.equal(weight.grad, 0.3 * torch.eye(9))


@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize("operation", [torch.exp, torch.sigmoid, torch.square, relu])
def test_other_tensors_are_looked_after_as_torch_does(
    operation: Callable[[Tensor], Tensor], how: str
) -> None:
    x = torch.rand(5, requires_grad=True)
    with keeping(how):
        between = x * 1
        result = operation(between)
    written = between if operation is torch.square else result
    with torch.no_grad():
        written.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_a_matrix_without_memory_is_saved_as_it_is() -> None:
    x = torch.rand(4, 1, requires_grad=True)
    with keeping("bits"):
        torch.sparse.mm(torch.eye(4).to_sparse(), x).sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 1))


# -- the form itself ------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=70), st.floats(-9, 9, width=32), st.data())
def test_bits_are_the_numbers(fired: list[bool], value: float, data: st.DataObject) -> None:
    worth = torch.tensor([value])
    numbers = torch.tensor(fired).float() * worth
    start = data.draw(st.integers(0, len(fired)))
    stop = data.draw(st.integers(start, len(fired)))
    bits = Bits.of(numbers, worth)
    worth.add_(1)
    found = bits.numbers(start, stop)
    assert torch.equal(found.view(torch.int32), numbers[start:stop].view(torch.int32))
    assert len(bits.octets) == -(-len(fired) // 8)


class _Saves(Function):
    """Saves what it is told to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, saved: Tensor) -> Tensor:
        ctx.save_for_backward(saved)
        return x.sum()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        (saved,) = ctx.saved_tensors
        return saved.sum() * g, None


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda s: s,
    "transposed": lambda s: s.transpose(0, 2),
    "a piece": lambda s: s[1:3, 1:],
    "every other": lambda s: s[::2, :, 1::3],
    "one for all": lambda s: s[1:2].expand(6, -1, -1),
    "one timestep": lambda s: s[2],
    "a number": lambda s: s[3, 1, 4],
    "nothing": lambda s: s[:0],
    "diagonals": lambda s: s.diagonal(dim1=1, dim2=2),
    "as numbers of another kind": lambda s: s.view(torch.int32),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_view_of_spikes_comes_back(view: Callable[[Tensor], Tensor]) -> None:
    spikes = (torch.rand(5, 3, 7, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    x = torch.ones(1, requires_grad=True)
    with keeping("bits"):
        note_spikes(spikes, torch.ones(1))
        result = _Saves.apply(x, view(spikes))
    (saved,) = result.grad_fn.saved_tensors
    assert torch.equal(saved, view(spikes))
    assert saved.dtype is view(spikes).dtype
    assert saved.stride() == view(spikes).stride()


def test_a_copy_is_spikes_where_nothing_else_lies_in_its_memory() -> None:
    spikes, x = torch.eye(6), torch.ones(1, requires_grad=True)
    memory = torch.full((6, 12), 0.3)
    beside = memory[:, :6].copy_(spikes)
    with keeping("bits"):
        note_spikes(spikes, torch.ones(1))
        note_moved(beside, spikes)
        results = [_Saves.apply(x, memory), _Saves.apply(x, beside)]
        moved = spikes.t().contiguous()
        note_moved(moved, spikes)
        results.append(_Saves.apply(x, moved))
    assert len(forms("_AsBits")) == 1
    for result, expected in zip(results, (memory, beside, moved), strict=True):
        assert torch.equal(result.grad_fn.saved_tensors[0], expected)


@pytest.mark.parametrize("value", [1.0, 2.0, None])
def test_what_is_joined_is_spikes_where_all_were_of_one_value(value: float | None) -> None:
    spikes, others, x = torch.eye(6), torch.eye(6), torch.ones(1, requires_grad=True)
    with keeping("bits"):
        note_spikes(spikes, torch.ones(1))
        if value is not None:
            note_spikes(others.mul_(value), torch.tensor([value]))
        both = torch.cat([spikes, others])
        note_moved(both, spikes, others)
        result = _Saves.apply(x, both)
    assert len(forms("_AsBits")) == (value == 1)
    assert torch.equal(result.grad_fn.saved_tensors[0], both)


def test_all_that_save_spikes_share_their_bits() -> None:
    spikes, x = torch.eye(6), torch.ones(1, requires_grad=True)
    with keeping("bits"):
        note_spikes(spikes, torch.ones(1))
        first = _Saves.apply(x, spikes)
        note_moved(spikes.view(36), spikes)
        second = _Saves.apply(x, spikes[2:])
    kept = forms("_AsBits")
    assert len(kept) == 2
    assert kept[0].bits is kept[1].bits
    for result, expected in ((first, spikes), (second, spikes[2:])):
        assert torch.equal(result.grad_fn.saved_tensors[0], expected)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("neuron", [lif(), snn.RLeaky(0.9, linear_features=20, init_hidden=True)])
def test_whoever_computes_a_scan_notes_its_spikes(backend: Any, neuron: nn.Module) -> None:
    (layer,) = dvs.wrap(neuron, dt=1.0).layers()
    found = []
    for how in FORMS:
        inputs = 3 * torch.rand(9, 2, 20, generator=torch.Generator().manual_seed(0))
        inputs.requires_grad_()
        with keeping(how):
            spec = layer.adapter.scan_spec(neuron)
            spikes = scan(spec, inputs, backend_name=backend).output
            loss = spikes.square().sum()
        memory = StorageWeakRef(spikes.untyped_storage())
        del spikes
        assert memory.expired() is (how == "bits")
        found.append({"x": torch.autograd.grad(loss, inputs)[0]})
    check_same(*found)


# -- the argument ---------------------------------------------------------------------------------


def test_another_form_is_named() -> None:
    with pytest.raises(WrapError, match=r"keep_spikes='bit'.*bits"):
        dvs.wrap(large("joined"), dt=1.0, keep_spikes="bit")
    model = dvs.wrap(large("joined"), dt=1.0, keep_spikes="bits")
    assert copy.deepcopy(model).keep_spikes == "bits"
    model.keep_spikes = "bytes"
    with pytest.raises(WrapError, match=r"keep_spikes='bytes'"):
        model(torch.rand(3, 2, 20))
