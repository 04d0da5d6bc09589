"""The mask, the normalisation and the reductions that every loss inherits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynvision_snn.errors import LossError
from dynvision_snn.losses import BaseLoss, CrossEntropyLoss
from dynvision_snn.losses.base import is_masked, mean_over_count


class SquaredError(BaseLoss):
    """A user's regression loss: one output for each target."""

    def compute_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square()


class PerSample(BaseLoss):
    """A loss that looks at neither outputs nor targets, as a loss of activity does."""

    def __init__(self, values: Tensor, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.values = values

    def compute_loss(self, outputs: Tensor | None, targets: Tensor | None) -> Tensor:
        assert outputs is None
        assert targets is None
        return self.values


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: float(x.max()),
    ],
)
def test_no_read_back_can_fail(no_read_back, waits):
    with no_read_back, pytest.raises(AssertionError, match="waits for the device"):
        waits(torch.ones(3))


def test_base_loss_is_abstract():
    with pytest.raises(TypeError, match="compute_loss"):
        BaseLoss()


@pytest.mark.parametrize("shape", [(6,), (4, 3)])
def test_masked_subclass_equals_the_supervised_subset(shape):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(shape, generator=generator)
    targets = torch.randn(shape, generator=generator)
    targets.view(-1)[::2] = -1
    chosen = targets != -1
    values = (outputs - targets)[chosen].square()
    torch.testing.assert_close(SquaredError("mean", -1)(outputs, targets), values.mean())
    torch.testing.assert_close(SquaredError("sum", -1)(outputs, targets), values.sum())
    elementwise = SquaredError("none", -1)(outputs, targets)
    assert elementwise.shape == targets.shape
    torch.testing.assert_close(elementwise[chosen], values)
    assert not elementwise[~chosen].any()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_masked_outputs_may_hold_anything(poison, reduction):
    outputs = torch.tensor([1.0, poison, 3.0], requires_grad=True)
    loss = SquaredError(reduction, -1)(outputs, torch.tensor([0.0, -1.0, 0.0]))
    loss.backward()
    divisor = 2 if reduction == "mean" else 1
    assert loss.item() == 10 / divisor
    assert outputs.grad.tolist() == [2 / divisor, 0.0, 6 / divisor]


def test_zero_valid_timesteps_gives_zero_that_back_propagates():
    outputs = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = SquaredError("mean", -1)(outputs, torch.tensor([-1.0, -1.0]))
    loss.backward()
    assert loss.item() == 0
    assert outputs.grad.tolist() == [0.0, 0.0]


def test_without_ignore_index_every_value_counts():
    outputs, targets = torch.tensor([1.0, 2.0]), torch.tensor([0.0, -1.0])
    assert SquaredError()(outputs, targets).item() == 5.0
    assert SquaredError().count_valid(targets) is None


def test_a_loss_may_ignore_outputs_and_targets():
    energies = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    for call in ((), (None, None)):
        assert PerSample(energies)(*call).item() == 3.0
        assert PerSample(energies, "sum")(*call).item() == 9.0
        assert PerSample(energies, "none")(*call) is energies
    PerSample(energies)(outputs=None, targets=None).backward()
    torch.testing.assert_close(energies.grad, torch.full((3,), 1 / 3))


@pytest.mark.parametrize("count", [4, 4.0, torch.tensor(4), torch.tensor(4.0)])
def test_apply_reduction_divides_the_sum_by_the_count(count):
    loss = SquaredError("mean")
    assert loss.apply_reduction(torch.tensor([1.0, 2.0, 3.0]), count).item() == 1.5
    assert loss.apply_reduction(torch.tensor([1.0, 2.0, 3.0])).item() == 2.0


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_only_the_mean_looks_at_the_count(reduction):
    values = torch.tensor([1.0, 2.0])
    loss = SquaredError(reduction)
    assert torch.equal(loss.apply_reduction(values, 7), loss.apply_reduction(values))


@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8),
    count=st.integers(0, 20),
)
def test_mean_over_count_is_the_quotient(values, count):
    values = torch.tensor(values)
    mean = mean_over_count(values, torch.tensor(count))
    torch.testing.assert_close(mean, values.sum() / count if count else torch.tensor(0.0))
    assert torch.equal(mean, mean_over_count(values, count))


def test_a_nan_is_visible_even_where_nothing_counts():
    assert mean_over_count(torch.tensor([float("nan")]), torch.tensor(0)).isnan()


@pytest.mark.parametrize("count", [-1, float("nan"), float("inf")])
def test_impossible_counts_are_refused(count):
    with pytest.raises(LossError, match="valid timesteps"):
        SquaredError().apply_reduction(torch.ones(2), count)


def test_half_precision_sums_do_not_overflow():
    values = torch.full((70_000,), 2.0, dtype=torch.float16)
    loss = SquaredError("sum").apply_reduction(values)
    assert loss.dtype == torch.float32
    assert loss.item() == 140_000
    assert SquaredError("mean").apply_reduction(values, torch.tensor(70_000)).item() == 2.0


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32]
)
@pytest.mark.parametrize("ignore_index", [-1, 255, 300, 0])
def test_is_masked_compares_as_integers_do(dtype, ignore_index):
    held = [0, 1, 127, 255] if dtype == torch.uint8 else [0, 1, 127, -1, -128]
    masked = is_masked(torch.tensor(held, dtype=dtype), ignore_index)
    assert masked.tolist() == [value == ignore_index for value in held]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_is_read_back(no_read_back, reduction):
    outputs = torch.randn(3, 2, requires_grad=True)
    targets = torch.tensor([[-1.0, 1.0], [2.0, -1.0], [0.0, 0.0]])
    with no_read_back:
        SquaredError(reduction, -1)(outputs, targets).backward()


@pytest.mark.parametrize("reduction", ["men", "", None, "MEAN"])
def test_unknown_reductions_are_refused(reduction):
    with pytest.raises(LossError, match=r"reduction=.*Known: mean, none, sum"):
        SquaredError(reduction)


@pytest.mark.parametrize("ignore_index", [-1.0, "-1", True])
def test_ignore_index_must_be_an_integer(ignore_index):
    with pytest.raises(LossError, match="ignore_index"):
        SquaredError("mean", ignore_index)


@pytest.mark.parametrize(
    ("outputs", "targets", "missing"),
    [(None, torch.zeros(2), "outputs"), (torch.zeros(2), None, "targets"), (None, None, "outputs")],
)
def test_missing_arguments_are_named(outputs, targets, missing):
    with pytest.raises(LossError, match=f"got no {missing}"):
        SquaredError("mean", -1)(outputs, targets)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(LossError, match=r"\[4, 3\].*\[3, 4\]"):
        SquaredError("mean", -1)(torch.zeros(4, 3), torch.zeros(3, 4))


def test_a_loss_for_each_target_is_demanded():
    with pytest.raises(LossError, match=r"compute_loss returned \[4, 4\].*\[4\]"):
        SquaredError("mean", -1)(torch.zeros(4, 1), torch.zeros(4))


def test_life_cycle_methods_do_nothing_by_default():
    loss, model = SquaredError(), nn.Linear(2, 2)
    loss.register_hooks(model)
    assert not model._forward_hooks
    loss.reset()
    loss.check_targets()
    loss.remove_hooks()
    assert not loss.needs_model
    assert not list(loss.parameters())


def test_arguments_are_printed():
    assert repr(CrossEntropyLoss("sum", -7)) == "CrossEntropyLoss(reduction='sum', ignore_index=-7)"
