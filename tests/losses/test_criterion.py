"""Criterion and build_criterion: weights, names, plug-ins, hooks, and every refusal."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from dynvision_snn.errors import LossError
from dynvision_snn.losses import BaseLoss, Criterion, CrossEntropyLoss, LossTerm, build_criterion

CE = "cross_entropy_loss"


class Constant(BaseLoss):
    """A loss of a known value."""

    def __init__(self, value: float, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.value = value

    def compute_loss(self, outputs: Tensor | None, targets: Tensor | None) -> Tensor:
        return torch.full((2,), self.value)


class Activity(BaseLoss):
    """A user's loss of activity: the mean square of what every Linear put out."""

    needs_model = True

    def __init__(self, reduction: str = "mean", *, fails: bool = False) -> None:
        super().__init__(reduction)
        self.fails = fails
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        self.observed: list[Tensor] = []

    def register_hooks(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                self.handles.append(
                    module.register_forward_hook(lambda _m, _i, out: self.observed.append(out))
                )
        if self.fails:
            raise LossError("no module to observe")

    def remove_hooks(self) -> None:
        while self.handles:
            self.handles.pop().remove()

    def reset(self) -> None:
        self.observed.clear()

    def compute_loss(self, outputs: Tensor | None, targets: Tensor | None) -> Tensor:
        observed = torch.stack(self.observed)
        self.reset()
        return observed.square()


class Whatever(Constant):
    """A loss whose class takes any keyword."""

    def __init__(self, **kwargs: float) -> None:
        super().__init__(sum(kwargs.values()))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(5, 3, 4, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(-1, 4, (5, 3), generator=generator)
    return outputs, targets


# --- the weighted sum ---------------------------------------------------------------------------


def test_the_references_configuration_form():
    outputs, targets = data()
    criterion = build_criterion(
        [
            {"name": CE, "weight": 1.0, "kwargs": {"reduction": "mean", "ignore_index": -1}},
            {"name": Activity, "weight": 0.05, "kwargs": {"reduction": "mean"}},
        ],
        model=(model := nn.Linear(4, 4)),
    )
    activity = model(torch.ones(3, 4)).square().mean()
    total = criterion(outputs, targets)
    entropy = F.cross_entropy(outputs.view(-1, 4), targets.view(-1), ignore_index=-1)
    torch.testing.assert_close(total, 1.0 * entropy + 0.05 * activity)
    torch.testing.assert_close(
        criterion.components, {"CrossEntropyLoss": entropy.detach(), "Activity": activity.detach()}
    )
    assert dict(criterion.weights) == {"CrossEntropyLoss": 1.0, "Activity": 0.05}
    total.backward()
    assert outputs.grad.any()
    assert model.weight.grad.any()


@pytest.mark.parametrize(
    ("entropy", "energy", "weighted", "total"),
    [
        (2.30, 0.05, 0.0025, 2.3025),
        (1.50, 0.12, 0.0060, 1.5060),
        (1.00, 0.15, 0.0075, 1.0075),
        (0.50, 0.15, 0.0075, 0.5075),
        (0.30, 0.14, 0.0070, 0.3070),
    ],
)
def test_the_references_training_curve_adds_up(entropy, energy, weighted, total):
    criterion = build_criterion(
        [
            {"name": Constant, "kwargs": {"value": entropy}, "label": "CrossEntropy"},
            {"name": Constant, "weight": 0.05, "kwargs": {"value": energy}, "label": "Energy"},
        ]
    )
    assert criterion(None, None).item() == pytest.approx(total, rel=1e-6)
    assert criterion.components["Energy"].item() == pytest.approx(energy, rel=1e-6)
    assert criterion.weights["Energy"] * energy == pytest.approx(weighted)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(-10, 10)), min_size=1, max_size=5))
def test_total_is_the_sum_of_weight_times_component(terms):
    criterion = Criterion(
        [LossTerm(Constant(value), weight, f"{n}") for n, (weight, value) in enumerate(terms)]
    )
    total = criterion().item()
    components = criterion.components
    assert total == pytest.approx(
        sum(criterion.weights[label] * components[label].item() for label in components),
        rel=1e-5,
        abs=1e-5,
    )
    assert [value.item() for value in components.values()] == pytest.approx(
        [value for _, value in terms], rel=1e-5, abs=1e-30
    )


def test_gradient_is_the_weighted_sum_of_gradients():
    outputs, targets = data(torch.float64)
    criterion = build_criterion(
        [
            {"name": CE, "weight": 0.7},
            {"name": CE, "weight": 0.2, "kwargs": {"reduction": "sum"}, "label": "sum"},
        ]
    )
    criterion(outputs, targets).backward()
    (mean,) = torch.autograd.grad(CrossEntropyLoss()(outputs, targets), outputs)
    (total,) = torch.autograd.grad(CrossEntropyLoss("sum")(outputs, targets), outputs)
    torch.testing.assert_close(outputs.grad, 0.7 * mean + 0.2 * total)


def test_flattened_use():
    outputs, targets = data()
    criterion = build_criterion([{"name": CE}])
    assert torch.equal(
        criterion(outputs.view(-1, 4), targets.view(-1)), criterion(outputs, targets)
    )


def test_components_hold_no_graph():
    outputs, targets = data()
    criterion = build_criterion([{"name": CE, "weight": 3.0}])
    assert criterion.components == {}
    criterion(outputs, targets)
    component = criterion.components["CrossEntropyLoss"]
    assert not component.requires_grad
    assert component.grad_fn is None
    torch.testing.assert_close(component, CrossEntropyLoss()(outputs, targets).detach())


def test_a_weight_of_zero_is_reported_and_not_trained():
    outputs, targets = data()
    criterion = build_criterion([{"name": CE, "weight": 0}])
    total = criterion(outputs, targets)
    total.backward()
    assert total.item() == 0
    assert criterion.components["CrossEntropyLoss"] > 0
    assert not outputs.grad.any()


def test_nothing_is_read_back(no_read_back):
    outputs, targets = data()
    criterion = build_criterion([{"name": CE}, {"name": Constant, "kwargs": {"value": 1.0}}])
    with no_read_back:
        criterion(outputs, targets).backward()


def test_weights_are_read_only():
    criterion = build_criterion([{"name": CE}])
    with pytest.raises(TypeError):
        criterion.weights["CrossEntropyLoss"] = 2.0


# --- what names a loss --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "cross_entropy_loss", "kwargs": {"reduction": "sum"}},
        {"name": "CrossEntropyLoss", "kwargs": {"reduction": "sum"}},
        {"name": CrossEntropyLoss, "kwargs": {"reduction": "sum"}},
        {"name": CrossEntropyLoss("sum")},
        {"loss": "cross_entropy_loss", "kwargs": {"reduction": "sum"}},
        {"loss": CrossEntropyLoss, "kwargs": {"reduction": "sum"}},
        {"loss": CrossEntropyLoss("sum"), "kwargs": None, "label": None},
        CrossEntropyLoss("sum"),
    ],
    ids=repr,
)
def test_names_classes_and_instances(entry):
    criterion = build_criterion([entry])
    assert isinstance(criterion.losses[0], CrossEntropyLoss)
    assert criterion.losses[0].reduction == "sum"
    assert dict(criterion.weights) == {"CrossEntropyLoss": 1.0}


@pytest.mark.parametrize("entry", [CE, "CrossEntropyLoss", CrossEntropyLoss])
def test_a_loss_alone_takes_its_defaults(entry):
    loss = build_criterion((entry,)).losses[0]
    assert (loss.reduction, loss.ignore_index) == ("mean", -1)


def test_an_instance_is_used_as_it_is():
    loss = CrossEntropyLoss(ignore_index=-7)
    assert build_criterion([{"loss": loss}]).losses[0] is loss


def test_class_weights_come_through_as_a_list():
    criterion = build_criterion([{"name": CE, "kwargs": {"weight": [1, 2, 3, 4]}}])
    assert criterion.losses[0].weight.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_class_may_take_any_keyword():
    criterion = build_criterion([{"name": Whatever, "kwargs": {"this": 1.0, "that": 2.0}}])
    assert criterion().item() == 3.0


def test_two_of_a_kind_with_labels():
    criterion = build_criterion(
        [{"name": CE}, {"name": CE, "label": "keys"}, {"name": CE, "label": "a.b"}]
    )
    criterion(*data())
    assert list(criterion.components) == ["CrossEntropyLoss", "keys", "a.b"]


def test_the_configuration_is_not_modified():
    config = [{"name": CE, "weight": 1.0, "kwargs": {"reduction": "sum"}}]
    before = copy.deepcopy(config)
    build_criterion(config)
    assert config == before


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package of the given entry points, as pip would lay it out."""

    def install(package: str, entry_points: dict[str, str], code: str = "") -> None:
        site = tmp_path / package
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{package}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[dynvision_snn.losses]", *lines, ""]))
        monkeypatch.syspath_prepend(site)

    return install


PLUGIN = """
import torch
from dynvision_snn.losses import BaseLoss

class Margin(BaseLoss):
    def __init__(self, margin=1.0):
        super().__init__()
        self.margin = margin

    def compute_loss(self, outputs, targets):
        return torch.full((3,), self.margin)

answer = 42
"""


def test_another_package_adds_a_name(install):
    install("margin_plugin", {"margin_loss": "margin_plugin:Margin"}, PLUGIN)
    criterion = build_criterion([{"name": "margin_loss", "kwargs": {"margin": 2.5}}])
    assert criterion().item() == 2.5
    assert list(criterion.weights) == ["Margin"]
    with pytest.raises(LossError, match=r"Known: .*margin_loss"):
        build_criterion([{"name": "margn_loss"}])


def test_a_name_registered_twice_is_refused(install):
    install("one_plugin", {"margin_loss": "one_plugin:Margin"}, PLUGIN)
    install("two_plugin", {"margin_loss": "two_plugin:Margin"}, PLUGIN)
    with pytest.raises(LossError, match=r"'margin_loss' is registered twice: by .* and by"):
        build_criterion([{"name": CE}])


@pytest.mark.parametrize("name", ["energy_loss", "CrossEntropyLoss"])
def test_a_built_in_name_cannot_be_taken(install, name):
    install("taking_plugin", {name: "taking_plugin:Margin"}, PLUGIN)
    with pytest.raises(LossError, match=f"'{name}' is registered twice"):
        build_criterion([{"name": CE}])


def test_a_registered_name_must_be_a_class(install):
    install("answer_plugin", {"answer": "answer_plugin:answer"}, PLUGIN)
    with pytest.raises(LossError, match="answer_plugin:answer, which is no class"):
        build_criterion([{"name": "answer"}])


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [[], ()])
def test_an_empty_list_is_refused(config):
    with pytest.raises(LossError, match="at least one loss"):
        build_criterion(config)


@pytest.mark.parametrize("config", [{"name": CE}, CE, CrossEntropyLoss, None, CrossEntropyLoss()])
def test_a_list_is_demanded(config):
    with pytest.raises(LossError, match="from a list of losses"):
        build_criterion(config)


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"name": CE, "wieght": 1.0}, "'wieght'.*Did you mean 'weight'.*kwargs, label, loss, name"),
        ({"name": CE, 3: 1.0}, "Unknown key 3"),
        (
            {"name": "cross_entropy"},
            "'cross_entropy'.*Known: CrossEntropyLoss, EnergyLoss, SynopsLoss, cross_",
        ),
        ({"name": "CROSS_ENTROPY_LOSS"}, "Unknown loss"),
        ({"name": CE, "kwargs": {"reduce": "sum"}}, "'reduce'.*Known: ignore_index, reduction, we"),
        ({"name": CE, "kwargs": {"reduction": "none"}}, "reduction='none'"),
        ({"loss": CrossEntropyLoss("none")}, "reduction='none'"),
        ({"name": CE, "kwargs": {"reduction": "avg"}}, "'avg'.*mean, none, sum"),
        ({"name": CE, "kwargs": [1]}, "Expected a mapping"),
        ({"loss": CrossEntropyLoss(), "kwargs": {"reduction": "sum"}}, "came with kwargs"),
        ({"weight": 1.0}, "neither name nor loss.*Known: CrossEntropyLoss"),
        ({"name": None}, "neither name nor loss"),
        ({"name": CE, "loss": CE}, "name and loss"),
        ({"name": Constant}, "needs kwargs for 'value'"),
        ({"name": BaseLoss}, "BaseLoss is not a loss that can be built"),
        ({"name": nn.CrossEntropyLoss}, "Subclass dynvision_snn.losses.BaseLoss"),
        ({"name": nn.CrossEntropyLoss()}, "Subclass dynvision_snn.losses.BaseLoss"),
        ({"name": 3}, "an instance of int"),
        ({"name": CE, "label": 3}, "label=3"),
        ({"name": Activity}, "observes a model and got none.*model=model"),
    ],
    ids=str,
)
def test_entries_that_are_refused(entry, match):
    with pytest.raises(LossError, match=match):
        build_criterion([entry])


@pytest.mark.parametrize(
    "weight", [-1.0, -1e-9, float("nan"), float("inf"), None, True, "0.05", [1.0]]
)
def test_impossible_weights_are_refused(weight):
    with pytest.raises(LossError, match=r"weight=.*Expected a finite number from 0 up"):
        build_criterion([{"name": CE, "weight": weight}])


def test_a_weight_that_yaml_read_as_text():
    with pytest.raises(LossError, match=r"weight='1e-3'.*write 1\.0e-3"):
        build_criterion([{"name": CE, "weight": "1e-3"}])


def test_duplicate_labels_are_refused():
    with pytest.raises(LossError, match=r"called 'CrossEntropyLoss'.*'label'"):
        build_criterion([{"name": CE}, {"name": "CrossEntropyLoss"}])
    with pytest.raises(LossError, match="called 'x'"):
        build_criterion([{"name": CE, "label": "x"}, {"name": CE, "label": "x"}])


def test_one_instance_twice_is_refused():
    loss = CrossEntropyLoss()
    with pytest.raises(LossError, match="One loss instance"):
        build_criterion([loss, {"loss": loss, "label": "again"}])


def test_a_loss_that_is_not_a_scalar_is_refused():
    class Unreduced(Constant):
        def forward(self, outputs=None, targets=None):
            return self.compute_loss(outputs, targets)

    with pytest.raises(LossError, match=r"Unreduced returned \[2\]"):
        build_criterion([Unreduced(1.0)])()


# --- hooks --------------------------------------------------------------------------------------


def test_hooks_are_registered_and_given_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    criterion = build_criterion([{"name": Activity}], model=model)
    assert hooks(model) == 2
    criterion.remove_hooks()
    criterion.remove_hooks()
    assert hooks(model) == 0


def test_a_with_block_gives_hooks_back_also_after_an_exception():
    model = nn.Linear(2, 2)
    with build_criterion([{"name": Activity}], model=model) as criterion:
        assert hooks(model) == 1
        model(torch.ones(1, 2))
        assert criterion(None, None) > 0
    assert hooks(model) == 0
    with (
        pytest.raises(ZeroDivisionError),
        build_criterion([{"name": Activity}], model=model),
    ):
        raise ZeroDivisionError
    assert hooks(model) == 0


def test_leaving_a_with_block_waits_for_target_checks():
    class Late(Constant):
        def check_targets(self):
            raise LossError("target 7")

    with pytest.raises(LossError, match="target 7"), build_criterion([Late(1.0)]):
        pass
    with pytest.raises(ZeroDivisionError), build_criterion([Late(1.0)]):
        raise ZeroDivisionError


def test_all_hooks_or_none():
    model = nn.Linear(2, 2)
    with pytest.raises(LossError, match="no module to observe"):
        build_criterion(
            [
                {"name": Activity, "label": "first"},
                {"name": Activity, "label": "second", "kwargs": {"fails": True}},
            ],
            model=model,
        )
    assert hooks(model) == 0


def test_an_instance_may_be_hooked_by_hand():
    model = nn.Linear(2, 2)
    activity = Activity()
    activity.register_hooks(model)
    criterion = build_criterion([activity])
    model(torch.ones(1, 2))
    assert criterion() > 0
    criterion.remove_hooks()
    assert hooks(model) == 0


def test_reset_forgets_what_was_observed():
    model = nn.Linear(2, 2)
    criterion = build_criterion([Activity()], model=model)
    model(torch.full((1, 2), 100.0))
    criterion.reset()
    model(torch.zeros(1, 2))
    assert criterion().item() == pytest.approx(model.bias.square().mean().item())


def test_a_batch_whose_loss_fails_leaves_nothing_observed():
    model = nn.Linear(2, 2)
    activity = Activity()
    criterion = build_criterion([CrossEntropyLoss(), activity], model=model)
    with pytest.raises(LossError, match="target 9"):
        criterion(model(torch.ones(1, 2)), torch.tensor([9]))
    assert not activity.observed
    out = model(torch.zeros(1, 2))
    criterion(out, torch.tensor([1]))
    torch.testing.assert_close(criterion.components["Activity"], out.square().mean().detach())


def test_a_model_must_be_a_module():
    with pytest.raises(LossError, match="got function"):
        build_criterion([{"name": CE}], model=lambda x: x)


# --- as a module --------------------------------------------------------------------------------


def test_copies_and_saved_states_compute_the_same():
    outputs, targets = data()
    config = [{"name": CE, "kwargs": {"weight": [1.0, 2.0, 3.0, 4.0]}}]
    criterion = build_criterion(config)
    total = criterion(outputs, targets)
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(twin(outputs, targets), total)
        assert twin.weights == criterion.weights
    other = build_criterion([{"name": CE, "kwargs": {"weight": [1.0, 1.0, 1.0, 1.0]}}])
    other.load_state_dict(criterion.state_dict())
    assert torch.equal(other(outputs, targets), total)
    assert not list(criterion.parameters())
    assert criterion.double().losses[0].weight.dtype == torch.float64


def test_weights_are_printed():
    criterion = build_criterion([{"name": CE, "weight": 0.5}])
    assert "CrossEntropyLoss: 0.5" in repr(criterion)


def test_uniform_logits_cost_the_log_of_the_classes():
    criterion = build_criterion([{"name": CE, "weight": 2.0}])
    assert criterion(torch.zeros(4, 2, 8), torch.zeros(4, 2, dtype=torch.long)).item() == (
        pytest.approx(2 * math.log(8))
    )
