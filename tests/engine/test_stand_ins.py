"""Models of which no plan is made: their outputs are the library's bits, their gradients sums."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dynvision_snn.energy import EnergyMeter
from dynvision_snn.engine import weight_sums
from dynvision_snn.losses import EnergyLoss
from dynvision_snn.model import wrap
from dynvision_snn.presentation import Presentation

T, BATCH = 9, 4


@pytest.fixture(autouse=True)
def _small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_sums, "_WORTH", 0)


def leaky(**options: Any) -> nn.Module:
    return snn.Leaky(0.9, threshold=0.4, init_hidden=True, **options)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 12), leaky(), nn.Linear(12, 3), leaky(output=True))


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 2, padding=1, bias=False), leaky()),
        *(nn.Conv2d(3, 4, 2, stride=2), leaky()),
        *(nn.Flatten(), nn.Linear(16, 3), leaky(output=True)),
    )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(16, 12), nn.Linear(12, 3, bias=False)
        self.rec = snn.RLeaky(0.8, threshold=0.4, linear_features=12, init_hidden=True)
        self.lif = leaky(output=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.lif(self.out(self.rec(self.fc(x))))


class Tied(nn.Module):
    """One layer twice in a timestep, and its weight a third time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(16, 16), nn.Linear(16, 3)
        self.lif = leaky(output=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.fc(self.fc(x).relu()).relu()
        return self.lif(self.out(x + F.linear(x, self.fc.weight)))


def norse_recurrent() -> nn.Module:
    return norse.SequentialState(
        norse.LIFRecurrentCell(16, 12, p=norse.LIFParameters(v_th=torch.tensor(0.1))),
        nn.Linear(12, 3),
        norse.LICell(),
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "convolutional": convolutional,
    "recurrent": Recurrent,
    "tied": Tied,
    "norse, recurrent": norse_recurrent,
}


def refused(build: Callable[[], nn.Module]) -> nn.Module:
    """A net that no plan is made of: somebody wants every call of a layer."""
    torch.manual_seed(0)
    net = build()
    for module in net.modules():
        if isinstance(module, nn.Linear | norse.LIFRecurrentCell):
            module.register_forward_hook(lambda module, args, output: None)
    return net


def inputs_of(kind: str) -> tuple[Any, ...]:
    torch.manual_seed(1)
    if kind == "one image":
        return torch.rand(BATCH, 16), Presentation("0110", dt=1.0, n_timesteps=T, idle_time=2.0)
    return (torch.rand(T, BATCH, 16),)


def close(found: Tensor | None, expected: Tensor | None) -> None:
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["one image", "new input"])
@pytest.mark.parametrize("name", NETS)
def test_outputs_are_the_librarys_bits_and_gradients_sums(name: str, kind: str) -> None:
    found = {}
    for engine in ("step", "auto"):
        net = refused(NETS[name])
        model = wrap(net, dt=1.0, engine=engine)
        energy = EnergyLoss()
        energy.register_hooks(model)
        with EnergyMeter(model) as meter:
            for _ in range(2):
                membrane = model(*inputs_of(kind)).membrane
                (membrane.square().mean() + 0.1 * energy(None, None)).backward()
        found[engine] = membrane, net, meter.budget(dt=1.0)
        assert ("gradients summed over time" in model.explain()) is (engine == "auto")
    (mine, net, budget), (theirs, reference, counted) = found["auto"], found["step"]
    assert mine.equal(theirs)
    series, expected_series = (
        [layer["series"] for layer in b.to_dict()["layers"]] for b in (budget, counted)
    )
    assert series == expected_series
    for parameter, expected in zip(net.parameters(), reference.parameters(), strict=True):
        close(parameter.grad, expected.grad)


class Counting(TorchDispatchMode):
    """How often each operation runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "rows"), [("one image", 1), ("new input", T)])
def test_one_product_stands_for_many(kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = refused(lambda: nn.Sequential(nn.Linear(16, 3), leaky(output=True)))
    products = []

    def product(g: Tensor, x: Tensor) -> Tensor:
        products.append((g.shape, x.shape))
        return g.t() @ x

    monkeypatch.setattr(weight_sums, "weight_gradient", product)
    shown = inputs_of(kind)
    if kind == "one image":
        shown = (shown[0], Presentation("1", dt=1.0, n_timesteps=T))
    wrap(net, dt=1.0)(*shown).membrane.sum().backward()
    assert products == [((rows * BATCH, 3), (rows * BATCH, 16))]


def test_a_convolution_of_an_image_that_stays_is_computed_twice() -> None:
    net = refused(convolutional)
    model = wrap(net, dt=1.0)
    image, shown = torch.rand(BATCH, 16), Presentation("1", dt=1.0, n_timesteps=T)
    model(image, shown)
    calls: list[Tensor] = []
    compute = weight_sums._Convolution.__call__

    def counted(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(x)
        return compute(self, x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_sums._Convolution, "__call__", counted)
        model(image, shown)
    assert len(calls) == 2


def test_weights_written_behind_autograds_back_are_seen() -> None:
    class Plastic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lif = nn.Conv1d(1, 3, 16), leaky(output=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            returned = self.lif(self.conv(x.unsqueeze(1)).flatten(1))
            self.conv.weight.data.mul_(0.9)
            return returned

    found = []
    for engine in ("step", "auto"):
        torch.manual_seed(0)
        model = wrap(Plastic(), dt=1.0, engine=engine, stepping="step")
        found.append(model(*inputs_of("one image")).membrane)
    assert found[0].equal(found[1])


def test_half_a_backward_leaves_nothing_behind() -> None:
    grads = []
    for engine in ("step", "auto"):
        net = refused(mlp)
        first, *_, last = net.parameters()
        run = wrap(net, dt=1.0, engine=engine)(*inputs_of("new input"))
        loss = run.membrane.square().sum()
        torch.autograd.grad(loss, last, retain_graph=True)
        loss.backward(retain_graph=True)
        loss.backward()
        grads.append(first.grad)
    close(grads[1], grads[0])


def test_a_gradient_can_be_differentiated_again() -> None:
    """Where no surrogate, which has no second derivative, is in the way."""
    found = []
    for engine in ("step", "auto"):
        torch.manual_seed(0)
        net = norse.SequentialState(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3), norse.LICell())
        first, _, second, _ = net.children()
        first.register_forward_hook(lambda module, args, output: None)
        membrane = wrap(net, dt=1.0, engine=engine)(*inputs_of("new input")).membrane
        (once,) = torch.autograd.grad(
            membrane.square().sum(), second.parameters(), create_graph=True
        )[:1]
        once.square().sum().backward()
        found.append(next(first.parameters()).grad)
    close(found[1], found[0])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_on_the_modules(error: type[BaseException]) -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif, self.fails = nn.Linear(16, 3), leaky(output=True), False

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            out = self.lif(self.fc(x))
            if self.fails:
                raise error("on purpose")
            return out

    net = Failing()
    model = wrap(net, dt=1.0, stepping="step")
    model(*inputs_of("new input"))
    net.fails = True
    with pytest.raises(error):
        model(*inputs_of("new input"))
    assert "forward" not in vars(net.fc)


def test_a_copy_made_during_a_run_computes_with_its_own_weights() -> None:
    class Teaching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(16, 3), leaky(output=True)
            self.copies: list[Any] = []
            self.copying = False

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            if self.copying:
                self.copies = [copy.deepcopy(self.fc), pickle.loads(pickle.dumps(self.fc))]
            return self.lif(self.fc(x))

    net = Teaching()
    model = wrap(net, dt=1.0, stepping="step")
    model(*inputs_of("new input"))
    net.copying = True
    model(*inputs_of("new input"))
    assert len(net.copies) == 2
    x = torch.rand(2, 16)
    for other in net.copies:
        with torch.no_grad():
            other.weight.zero_()
            assert other(x).equal(other.bias.expand(2, 3))


def test_it_makes_way_for_whoever_follows_the_operations() -> None:
    seen: Counter[str] = Counter()

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(16, 3), leaky(output=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with Counting() as counting:
                current = self.fc(x)
            seen.update(counting.calls)
            return self.lif(current)

    model = wrap(refused(Watched), dt=1.0, stepping="step")
    model(*inputs_of("new input"))
    seen.clear()
    model(*inputs_of("new input"))
    assert seen["aten::addmm"] == T
    assert "gradients summed over time" not in model.explain()
