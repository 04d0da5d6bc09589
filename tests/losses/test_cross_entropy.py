"""CrossEntropyLoss against torch's own cross-entropy on the supervised subset."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dynvision_snn.errors import LossError
from dynvision_snn.losses import CrossEntropyLoss
from dynvision_snn.losses.cross_entropy import (
    _ChecksUnderWay,
    elementwise_cross_entropy,
    illegal_extremes,
    illegal_targets,
)


def case(shape, n_classes, share_masked, seed, ignore_index=-1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(*shape, n_classes, generator=generator, dtype=dtype) * 3
    targets = torch.randint(n_classes, shape, generator=generator)
    targets[torch.rand(shape, generator=generator) < share_masked] = ignore_index
    return outputs, targets


def check_against_subset(outputs, targets, *, reduction, ignore_index, weight=None, loss=None):
    """Value and gradient of the loss equal those of torch on the supervised entries alone."""
    ours = outputs.clone().requires_grad_()
    theirs = outputs.clone().requires_grad_()
    chosen = targets != ignore_index
    subset = F.cross_entropy(theirs[chosen], targets[chosen], weight=weight, reduction=reduction)
    if not chosen.any():
        subset = theirs.sum() * 0
    loss = loss or CrossEntropyLoss(reduction, ignore_index, weight)
    value = loss(ours, targets)
    torch.testing.assert_close(value, subset)
    value.backward()
    subset.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert (ours.grad[~chosen] == 0).all()


def test_check_against_subset_can_fail():
    outputs, targets = case((6, 2), 3, 0.5, seed=1)
    with pytest.raises(AssertionError):
        check_against_subset(
            outputs,
            targets,
            reduction="mean",
            ignore_index=-1,
            loss=lambda o, t: CrossEntropyLoss("sum")(o, t) / t.numel(),
        )


@given(
    shape=st.one_of(st.tuples(st.integers(1, 12)), st.tuples(st.integers(1, 6), st.integers(1, 4))),
    n_classes=st.integers(1, 6),
    share_masked=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    ignore_index=st.sampled_from([-1, -100, 99]),
    reduction=st.sampled_from(["mean", "sum"]),
    weighted=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_equals_torch_on_the_supervised_subset(
    shape, n_classes, share_masked, ignore_index, reduction, weighted, seed
):
    outputs, targets = case(shape, n_classes, share_masked, seed, ignore_index)
    weight = torch.linspace(0.2, 3, n_classes, dtype=torch.float64) if weighted else None
    check_against_subset(
        outputs, targets, reduction=reduction, ignore_index=ignore_index, weight=weight
    )


def test_mean_is_the_sum_over_the_number_of_valid_timesteps():
    outputs, targets = case((10, 4), 5, 0.4, seed=0)
    n_valid = sum(target != -1 for target in targets.flatten().tolist())
    assert 0 < n_valid < targets.numel()
    mean, total = (
        CrossEntropyLoss("mean")(outputs, targets),
        CrossEntropyLoss("sum")(outputs, targets),
    )
    assert mean.item() == pytest.approx(total.item() / n_valid, rel=1e-12)


@given(n_masked=st.integers(0, 50))
def test_masked_timesteps_never_dilute_the_mean(n_masked):
    outputs = torch.zeros(3 + n_masked, 2, 10)
    targets = torch.full((3 + n_masked, 2), -1)
    targets[:3] = 4
    assert CrossEntropyLoss()(outputs, targets).item() == pytest.approx(math.log(10))


def test_mean_with_class_weights_divides_by_the_summed_weights():
    outputs = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    targets = torch.tensor([0, 1, -1])
    nll = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1))]
    loss = CrossEntropyLoss(weight=[1.0, 3.0])(outputs, targets)
    assert loss.item() == pytest.approx((1 * nll[0] + 3 * nll[1]) / (1 + 3))


def test_none_keeps_the_shape_of_the_targets():
    outputs, targets = case((7, 3), 4, 0.5, seed=2)
    values = CrossEntropyLoss("none")(outputs, targets)
    assert values.shape == targets.shape
    brute = torch.zeros_like(values)
    for t in range(7):
        for b in range(3):
            if targets[t, b] != -1:
                brute[t, b] = -outputs[t, b].log_softmax(0)[targets[t, b]]
    torch.testing.assert_close(values, brute)


@pytest.mark.parametrize("weight", [None, torch.linspace(0.5, 2, 4, dtype=torch.float64)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_flattened_and_temporal_shapes_agree(reduction, weight):
    outputs, targets = case((7, 3), 4, 0.5, seed=3)
    loss = CrossEntropyLoss(reduction, weight=weight)
    flat = loss(outputs.view(-1, 4), targets.view(-1))
    assert torch.equal(loss(outputs, targets), flat)


def test_two_halves_make_the_whole_sum():
    outputs, targets = case((6, 4), 5, 0.3, seed=4)
    loss = CrossEntropyLoss("sum")
    halves = loss(outputs[:, :2], targets[:, :2]) + loss(outputs[:, 2:], targets[:, 2:])
    torch.testing.assert_close(halves, loss(outputs, targets))


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 3.0]])
@pytest.mark.parametrize("shape", [(4, 2), (0,), (5, 0)])
def test_zero_valid_timesteps_gives_zero_that_back_propagates(shape, weight):
    outputs = torch.randn(*shape, 3, requires_grad=True)
    loss = CrossEntropyLoss(weight=weight)(outputs, torch.full(shape, -1))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(outputs.grad, torch.zeros(*shape, 3))


def test_supervised_classes_of_weight_zero_give_zero():
    outputs = torch.randn(2, 2, requires_grad=True)
    loss = CrossEntropyLoss(weight=[0.0, 1.0])(outputs, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == 0
    assert not outputs.grad.any()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, torch.linspace(0.5, 2, 3, dtype=torch.float64)])
def test_masked_logits_may_hold_anything(poison, reduction, weight):
    outputs, targets = case((8, 2), 3, 0.5, seed=5)
    outputs[targets == -1] = poison
    if reduction != "none":
        check_against_subset(outputs, targets, reduction=reduction, ignore_index=-1, weight=weight)
    else:
        assert CrossEntropyLoss("none", weight=weight)(outputs, targets).isfinite().all()


def test_supervised_nan_stays_visible():
    outputs = torch.zeros(3, 2)
    outputs[1] = float("nan")
    assert CrossEntropyLoss()(outputs, torch.tensor([0, 1, -1])).isnan()


def test_ignore_index_may_be_a_class():
    outputs, targets = case((9,), 3, 0.0, seed=6)
    theirs = F.cross_entropy(outputs, targets, ignore_index=2)
    torch.testing.assert_close(CrossEntropyLoss(ignore_index=2)(outputs, targets), theirs)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, torch.linspace(0.5, 2, 3, dtype=torch.float64)])
def test_gradcheck(reduction, weight):
    outputs, targets = case((4, 2), 3, 0.4, seed=7)
    loss = CrossEntropyLoss(reduction, weight=weight)
    outputs.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), outputs)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, targets), outputs)


def test_outputs_that_are_views_work():
    outputs, targets = case((4, 6), 3, 0.4, seed=8)
    batch_first = outputs.transpose(0, 1).contiguous().transpose(0, 1)
    assert not batch_first.is_contiguous()
    loss = CrossEntropyLoss()
    assert torch.equal(loss(batch_first, targets), loss(outputs, targets))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5]])
def test_half_precision_is_computed_in_float32(dtype, weight):
    outputs, targets = case((50, 4), 3, 0.4, seed=9, dtype=torch.float32)
    half = outputs.to(dtype).requires_grad_()
    exact = half.detach().float().requires_grad_()
    loss = CrossEntropyLoss(weight=weight)
    value, wanted = loss(half, targets), loss(exact, targets)
    assert value.dtype == torch.float32
    assert torch.equal(value, wanted)
    value.backward()
    wanted.backward()
    assert torch.equal(half.grad, exact.grad.to(dtype))


def test_half_precision_count_does_not_overflow():
    outputs = torch.zeros(70_000, 2, dtype=torch.float16)
    loss = CrossEntropyLoss()(outputs, torch.zeros(70_000, dtype=torch.long))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-4)


def test_a_loss_cast_to_half_precision_still_counts():
    outputs, targets = case((50,), 3, 0.0, seed=9, dtype=torch.float32)
    loss = CrossEntropyLoss(weight=[1.0, 2.0, 0.5])
    assert torch.equal(copy.deepcopy(loss).half()(outputs, targets), loss(outputs, targets))


def test_autocast_computes_in_float32():
    outputs, targets = case((9, 2), 3, 0.4, seed=10, dtype=torch.float32)
    loss = CrossEntropyLoss(weight=[1.0, 2.0, 0.5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(outputs, targets)
    assert torch.equal(value, loss(outputs, targets))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integer_type_holds_targets(dtype):
    outputs, targets = case((20,), 3, 0.0, seed=11)
    loss = CrossEntropyLoss()
    assert torch.equal(loss(outputs, targets.to(dtype)), loss(outputs, targets))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        ([0, 3, 1], "target 3"),
        ([0, -2, 1], "target -2"),
        ([-100, 1, 57], "target -100 and 57"),
        ([-7, -3, -5], "target -7 and -3"),
    ],
)
def test_illegal_targets_are_named(targets, named):
    with pytest.raises(LossError, match=rf"{named}\. Expected a class \(0 to 2\).*\(-1\)"):
        CrossEntropyLoss()(torch.zeros(3, 3), torch.tensor(targets))


def test_uint8_255_is_not_minus_one():
    with pytest.raises(LossError, match="target 255"):
        CrossEntropyLoss()(torch.zeros(1, 3), torch.tensor([255], dtype=torch.uint8))


@given(
    targets=st.lists(st.integers(-5, 8), max_size=12),
    n_classes=st.integers(1, 5),
    ignore_index=st.integers(-3, 6),
)
def test_illegal_targets_are_those_that_are_no_class(targets, n_classes, ignore_index):
    bad = [t for t in targets if t != ignore_index and t not in range(n_classes)]
    tensor = torch.tensor(targets, dtype=torch.long)
    illegal = illegal_targets(tensor, n_classes, ignore_index)
    assert tensor[illegal].tolist() == bad
    if targets:
        named = {value for value in illegal_extremes(tensor, illegal).tolist() if value != 0}
        assert named <= set(bad)
        assert bool(named) == bool(bad)


def test_illegal_entries_are_nan_and_leave_the_others_alone():
    outputs = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 5, -1, 2])
    illegal = illegal_targets(targets, 3, -1)
    values = elementwise_cross_entropy(outputs, targets, -1, illegal)
    assert values.isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(
        values[[0, 3]], F.cross_entropy(outputs[[0, 3]], targets[[0, 3]], reduction="none")
    )
    values.sum().backward()
    assert outputs.grad.isfinite().all()
    assert not outputs.grad[1:3].any()


class Arrival:
    """What the queue asks of a CUDA event, without a device."""

    def __init__(self, happened):
        self.happened = happened

    def query(self):
        return self.happened

    def synchronize(self):
        self.happened = True


def test_checks_under_way_are_looked_at_once_they_have_arrived():
    checks, fine, late = _ChecksUnderWay(), Arrival(True), Arrival(False)
    checks.put(torch.tensor([0, 0]), fine, 3, -1)
    checks.put(torch.tensor([0, 5]), late, 3, -1)
    checks.put(torch.tensor([-9, 0]), Arrival(False), 3, -1)
    checks.raise_finished()
    late.happened = True
    with pytest.raises(LossError, match="target 5"):
        checks.raise_finished()
    checks.raise_finished()
    with pytest.raises(LossError, match="target -9"):
        checks.raise_all()
    checks.raise_all()


def test_a_copy_is_told_of_its_own_targets_only():
    loss = CrossEntropyLoss()
    loss._under_way.put(torch.tensor([0, 5]), Arrival(True), 3, -1)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        twin.check_targets()
    with pytest.raises(LossError, match="target 5"):
        loss(torch.zeros(1, 3), torch.tensor([0]))


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        ((4, 3), (3,)),
        ((4, 3), (4, 3)),
        ((5, 2, 3), (5,)),
        ((5, 2, 3), (10,)),
        ((5, 2, 3), (2, 5)),
        ((4, 3, 5), (4, 5)),  # torch's own layout, classes on axis 1
        ((3,), (3,)),
        ((4, 0), (4,)),
        ((), ()),
    ],
)
def test_shapes_that_do_not_fit_are_shown(outputs, targets):
    with pytest.raises(LossError) as error:
        CrossEntropyLoss()(torch.zeros(outputs), torch.zeros(targets, dtype=torch.long))
    for part in (str(list(outputs)), str(list(targets)), "[T, B, C] with [T, B]"):
        assert part in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_targets_must_be_integers(dtype):
    with pytest.raises(LossError, match=f"targets of {dtype}.*argmax"):
        CrossEntropyLoss()(torch.zeros(2, 3), torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_outputs_must_be_floating_point(dtype):
    with pytest.raises(LossError, match=f"outputs of {dtype}"):
        CrossEntropyLoss()(torch.zeros(2, 3, dtype=dtype), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("call", [(), (None, None), (torch.zeros(2, 3), None)])
def test_outputs_and_targets_are_needed(call):
    with pytest.raises(LossError, match="got no"):
        CrossEntropyLoss()(*call)


@pytest.mark.parametrize(
    "weight", [[1.0, -1.0], [1.0, float("nan")], [float("inf"), 1.0], [[1.0, 1.0]], 1.0]
)
def test_impossible_class_weights_are_refused(weight):
    with pytest.raises(LossError, match="weight="):
        CrossEntropyLoss(weight=weight)


def test_one_weight_for_each_class():
    with pytest.raises(LossError, match=r"weights for 2 classes.*outputs of 3"):
        CrossEntropyLoss(weight=[1.0, 2.0])(torch.zeros(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("outputs", "targets", "weight"),
    [("meta", "cpu", "cpu"), ("cpu", "meta", "cpu"), ("cpu", "cpu", "meta")],
)
def test_devices_that_differ_are_named(outputs, targets, weight):
    loss = CrossEntropyLoss(weight=[1.0, 1.0]).to(weight)
    with pytest.raises(LossError, match=r"on .*meta"):
        loss(torch.zeros(3, 2, device=outputs), torch.zeros(3, dtype=torch.long, device=targets))


def test_ignore_index_none_is_refused():
    with pytest.raises(LossError, match="ignore_index=None"):
        CrossEntropyLoss(ignore_index=None)


# --- as a module --------------------------------------------------------------------------------


def test_defaults_are_the_references():
    loss = CrossEntropyLoss()
    assert (loss.reduction, loss.ignore_index, loss.weight) == ("mean", -1, None)


def test_copies_and_saved_states_compute_the_same():
    outputs, targets = case((6, 2), 3, 0.3, seed=12)
    loss = CrossEntropyLoss("sum", weight=[1.0, 2.0, 0.5])
    other = CrossEntropyLoss("sum", weight=[1.0, 1.0, 1.0])
    other.load_state_dict(loss.state_dict())
    wanted = loss(outputs, targets)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), other):
        assert torch.equal(twin(outputs, targets), wanted)
    assert list(loss.state_dict()) == ["weight"]
    assert not list(loss.parameters())
    assert not CrossEntropyLoss().state_dict()
    assert loss.double().weight.dtype == torch.float64


def test_the_weight_given_is_copied():
    weight = torch.ones(2)
    loss = CrossEntropyLoss(weight=weight)
    weight.zero_()
    assert loss.weight.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5]])
def test_on_a_cpu_only_the_target_check_reads_values(no_read_back, weight):
    # The check's `tolist` of CPU memory runs no operation; on CUDA it is not reached (below).
    outputs, targets = case((6, 2), 3, 0.3, seed=13, dtype=torch.float32)
    outputs.requires_grad_()
    loss = CrossEntropyLoss(weight=weight)
    with no_read_back:
        loss(outputs, targets).backward()


@pytest.fixture
def no_synchronisation():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.zeros(1, pin_memory=True)
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5]])
def test_nothing_synchronises_on_cuda(no_synchronisation, weight):
    outputs = torch.randn(6, 2, 3, device="cuda", requires_grad=True)
    targets = torch.ones(6, 2, dtype=torch.long, device="cuda")
    loss = CrossEntropyLoss(weight=weight)
    if weight is not None:
        torch.cuda.set_sync_debug_mode("default")
        loss = loss.cuda()
        torch.cuda.set_sync_debug_mode("error")
    for _ in range(3):
        loss(outputs, targets).backward()


def test_illegal_targets_on_cuda_turn_the_loss_to_nan_and_are_named_later(no_synchronisation):
    outputs = torch.randn(4, 3, device="cuda", requires_grad=True)
    targets = torch.ones(4, dtype=torch.long, device="cuda") * 7
    loss = CrossEntropyLoss()
    value = loss(outputs, targets)
    torch.cuda.set_sync_debug_mode("default")
    assert value.isnan()
    with pytest.raises(LossError, match="target 7"):
        loss.check_targets()
    loss(outputs, targets)
    torch.cuda.synchronize()
    with pytest.raises(LossError, match="target 7"):
        loss(outputs, torch.zeros_like(targets))
