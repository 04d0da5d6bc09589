"""Fan-out and counting against a count over every weight, made by the layers themselves."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from dynvision_snn.energy.counting import synops, synops_per_sample, tally
from dynvision_snn.energy.synapses import FanOut, dense_synops, fan_out, refusal
from dynvision_snn.errors import EnergyError

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    """A copy without bias whose weight is `weight`, in float64."""
    probe = copy.deepcopy(layer).double()
    probe.weight = nn.Parameter(weight.double())
    probe.bias = None
    return probe


def reached_one_by_one(layer: nn.Module, shape: tuple[int, ...], weight: Tensor) -> Tensor:
    """What the layer itself makes of each unit alone, every nonzero weight being 1."""
    units = math.prod(shape)
    alone = torch.eye(units, dtype=torch.float64).reshape(units, *shape)
    with torch.no_grad():
        return with_weight(layer, weight.ne(0))(alone).flatten(1).sum(1).reshape(shape)


def synops_weight_by_weight(layer: nn.Module, x: Tensor) -> float:
    """A forward of the nonzero inputs per nonzero weight, that weight alone being 1."""
    total = 0.0
    active = x.ne(0).double()
    for index in layer.weight.ne(0).nonzero():
        weight = torch.zeros_like(layer.weight)
        weight[tuple(index)] = 1.0
        with torch.no_grad():
            total += float(with_weight(layer, weight)(active).sum())
    return total


def sparsify(layer: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        keep = torch.rand(layer.weight.shape, generator=generator) < 0.7
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * keep)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    axes = draw(st.integers(1, 3))
    largest = {1: 9, 2: 6, 3: 4}[axes]
    size = tuple(draw(st.integers(1, largest)) for _ in range(axes))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    groups = draw(st.integers(1, 2))
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(axes))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    padding: str | tuple[int, ...] = draw(
        st.sampled_from(["same", "valid"])
        | st.tuples(*(st.integers(0, max(0, s - 1)) for s in size))
    )
    if padding == "same":
        stride = (1,) * axes
    layer = CONVS[axes](*channels, kernel, stride, padding, dilation, groups, padding_mode=mode)
    span = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    before = [s // 2 + s % 2 for s in span] if padding == "same" else None
    wide = before or ([0] * axes if padding == "valid" else list(padding))
    both = [s for s in span] if padding == "same" else [2 * w for w in wide]
    assume(all(n + b > s for n, b, s in zip(size, both, span, strict=True)))
    # torch itself refuses padding wider than the input in these modes.
    assume(mode == "zeros" or all(w < n for w, n in zip(wide, size, strict=True)))
    return layer, (channels[0], *size)


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    axes = draw(st.integers(1, 3))
    size = tuple(draw(st.integers(1, {1: 7, 2: 4, 3: 3}[axes])) for _ in range(axes))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(axes))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(axes))
    extra = tuple(
        draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
    )
    groups = draw(st.integers(1, 2))
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    out = [
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(size, stride, padding, dilation, kernel, extra, strict=True)
    ]
    assume(min(out) > 0)
    layer = TRANSPOSED[axes](*channels, kernel, stride, padding, extra, groups, dilation=dilation)
    return layer, (channels[0], *size)


def check_fan_out(
    layer: nn.Module,
    shape: tuple[int, ...],
    seed: int,
    count: Callable[[nn.Module, tuple[int, ...]], Tensor] = fan_out,
) -> None:
    sparsify(layer, seed)
    everything = torch.ones_like(layer.weight)
    expected = reached_one_by_one(layer, shape, layer.weight)
    torch.testing.assert_close(count(layer, shape), expected, rtol=0, atol=0)
    dense = reached_one_by_one(layer, shape, everything).sum()
    assert dense_synops(layer, shape) == int(dense)
    x = (torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed)) < 0.4).float()
    assert float(synops(tally(x[None]), count(layer, shape))[0]) == synops_weight_by_weight(
        layer, x
    )


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=60, deadline=None)
@given(convolutions(), st.integers(0, 10**6))
def test_convolutions_of_every_geometry(drawn: tuple, seed: int) -> None:
    check_fan_out(*drawn, seed)


@settings(max_examples=40, deadline=None)
@given(transposed_convolutions(), st.integers(0, 10**6))
def test_transposed_convolutions_of_every_geometry(drawn: tuple, seed: int) -> None:
    check_fan_out(*drawn, seed)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_linear_shares_its_weights_over_leading_axes(shape: tuple[int, ...]) -> None:
    check_fan_out(nn.Linear(5, 4), shape, seed=1)


def test_the_checker_can_fail() -> None:
    def without_edges(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
        return torch.full_like(fan_out(layer, shape), float(fan_out(layer, shape).max()))

    with pytest.raises(AssertionError):
        check_fan_out(nn.Conv1d(1, 1, 3, padding=1), (1, 4), seed=1, count=without_edges)


def test_conv_with_zero_padding_by_hand() -> None:
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    sparsify(layer, 3)
    expected = torch.zeros(2, 5, 4, dtype=torch.float64)
    for o in range(3):
        for c in range(2):
            for row in range(3):
                for column in range(2):
                    for i in range(3):
                        for j in range(3):
                            y, x = 2 * row + i - 1, 2 * column + j - 1
                            if 0 <= y < 5 and 0 <= x < 4 and layer.weight[o, c, i, j] != 0:
                                expected[c, y, x] += 1
    assert torch.equal(fan_out(layer, (2, 5, 4)), expected)


class TestFiguresOfOtherTools:
    """Figures of public test suites, per run."""

    @staticmethod
    def chain(x: Tensor, *layers: nn.Module) -> float:
        total = 0.0
        for layer in layers:
            total += float(synops(tally(x[None]), fan_out(layer, x.shape[1:]))[0])
            x = layer(x)
        return total

    @pytest.mark.parametrize(
        ("widths", "expected"), [((20, 25, 25), 1125), ((20, 20, 25, 25, 25), 2150)]
    )
    def test_linear_chains(self, widths: tuple[int, ...], expected: int) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(widths)]
        assert self.chain(torch.rand(1, widths[0]) + 1, *layers) == expected

    @pytest.mark.parametrize(
        ("layer", "shape", "expected"),
        [
            (nn.Conv2d(1, 1, 3), (1, 3, 3), 9),
            (nn.Conv2d(1, 1, 3), (1, 12, 12), 900),
            (nn.Conv1d(5, 1, 5), (5, 10), 150),
        ],
    )
    def test_convolutions_of_nonzeros(self, layer: nn.Module, shape: tuple, expected: int) -> None:
        assert self.chain(torch.ones(1, *shape), layer) == expected
        assert dense_synops(layer, shape) == expected

    def test_linear_of_spikes_per_sample(self) -> None:
        spikes = tally(torch.ones(10, 5, 20))
        by_timestep, _ = synops(spikes, fan_out(nn.Linear(20, 5), (20,)))
        assert by_timestep.tolist() == [500.0] * 10
        assert float(by_timestep.sum()) / 5 == 1000

    def test_rnn_cell(self) -> None:
        cell = nn.RNNCell(25, 5)
        x, state = tally(torch.ones(1, 1, 25)), tally(torch.ones(1, 1, 5))
        total = (
            synops(x, fan_out(cell.weight_ih, (25,)))[0]
            + synops(state, fan_out(cell.weight_hh, (5,)))[0]
        )
        assert float(total) == 150

    def test_sinabs_weighs_by_value(self) -> None:
        known = fan_out(nn.Linear(3, 5), (3,))
        x = torch.tensor([[[0.0, 1.0, 3.0]]])
        assert synops(tally(x), known)[1].tolist() == [20]
        both = torch.cat([x, torch.tensor([[[1.0, 3.0, 1.0]]])], dim=1)
        assert synops(tally(both), known)[1].tolist() == [45]

    def test_conv_on_eye(self) -> None:
        assert self.chain(torch.eye(3)[None, None], nn.Conv2d(1, 5, 2)) == 30


class TestWeightsAsTheyAct:
    def test_bias_is_never_counted(self) -> None:
        for layer in (nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=True)):
            assert fan_out(layer, (4,)).tolist() == [3.0] * 4

    def test_recurrent_matrix_with_stacked_gates(self) -> None:
        weight = nn.LSTMCell(6, 5).weight_hh
        assert fan_out(weight, (5,)).tolist() == [20.0] * 5
        assert dense_synops(weight, (5,)) == 100

    @pytest.mark.parametrize(
        "value", [torch.tensor(0.5), torch.full((4,), 0.5), torch.ones(4, 1, 1)]
    )
    def test_one_to_one(self, value: Tensor) -> None:
        shape = (4, 2, 3) if value.ndim == 3 else (4,)
        assert torch.equal(fan_out(value, shape, diagonal=True), torch.ones(shape).double())
        assert dense_synops(value, shape, diagonal=True) == math.prod(shape)

    def test_one_to_one_zeros_are_pruned(self) -> None:
        value = torch.tensor([0.5, 0.0, -1.0])
        assert fan_out(value, (3,), diagonal=True).tolist() == [1.0, 0.0, 1.0]
        assert dense_synops(value, (3,), diagonal=True) == 3

    def test_pruning(self) -> None:
        layer = nn.Conv2d(2, 4, 3, padding=1)
        prune.random_unstructured(layer, "weight", amount=0.5)
        mask = layer.weight_mask
        expected = reached_one_by_one(nn.Conv2d(2, 4, 3, padding=1), (2, 5, 5), mask)
        assert torch.equal(fan_out(layer, (2, 5, 5)), expected)

    def test_parametrisation(self) -> None:
        class Upper(nn.Module):
            def forward(self, weight: Tensor) -> Tensor:
                return weight.triu()

        layer = nn.Linear(4, 4)
        parametrize.register_parametrization(layer, "weight", Upper())
        assert fan_out(layer, (4,)).tolist() == [1.0, 2.0, 3.0, 4.0]

    def test_a_parametrisation_with_state_is_left_alone(self) -> None:
        layer = parametrizations.spectral_norm(nn.Linear(4, 3)).train()
        before = copy.deepcopy(layer.state_dict())
        assert fan_out(layer, (4,)).tolist() == [3.0] * 4
        after = layer.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert layer.parametrizations.weight.training

    def test_under_autocast_and_inference_mode(self) -> None:
        layer = nn.Conv2d(3, 5, 3, padding=1)
        expected = fan_out(layer, (3, 6, 6))
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            inside = fan_out(layer, (3, 6, 6))
            x = torch.ones(1, 2, 3, 6, 6, dtype=torch.bfloat16)
            assert float(synops(tally(x), inside)[0]) == 2 * float(expected.sum())
        assert torch.equal(inside, expected)
        assert not inside.is_inference()

    def test_beyond_float32(self) -> None:
        weight = torch.ones(1, 1).expand(2**24 + 1, 1)
        assert fan_out(weight, (1,)).tolist() == [2.0**24 + 1]
        counted, weighted = synops(tally(torch.ones(1, 3, 1)), fan_out(weight, (1,)))
        assert int(counted) == int(weighted) == 3 * (2**24 + 1)


class TestRefusals:
    @pytest.mark.parametrize(
        "module", [nn.Bilinear(2, 2, 2), nn.MultiheadAttention(4, 1), nn.Embedding(3, 2)]
    )
    def test_modules_without_a_rule(self, module: nn.Module) -> None:
        assert refusal(module) == f"no counting rule for {type(module).__name__}"
        with pytest.raises(EnergyError, match=type(module).__name__):
            fan_out(module, (2,))

    def test_a_forward_of_its_own(self) -> None:
        class Twice(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(super().forward(x))

        assert refusal(Twice(2, 2)) == "Twice overrides Linear.forward"

        class Named(nn.Linear):
            pass

        assert refusal(Named(2, 2)) is None

    @pytest.mark.parametrize(
        ("operator", "shape", "diagonal"),
        [
            (nn.Linear(3, 2), (4,), False),
            (nn.Linear(3, 2), (), False),
            (nn.Conv2d(3, 2, 3), (5, 5), False),
            (nn.Conv2d(3, 2, 3), (2, 5, 5), False),
            (torch.ones(3), (3,), False),
            (torch.ones(3), (4,), True),
        ],
    )
    def test_shapes_that_do_not_fit(self, operator: object, shape: tuple, diagonal: bool) -> None:
        for count in (fan_out, dense_synops):
            with pytest.raises(EnergyError, match=r"shape"):
                count(operator, shape, diagonal=diagonal)

    def test_values_of_other_units(self) -> None:
        with pytest.raises(EnergyError, match=r"have 4 units per sample"):
            synops(tally(torch.ones(1, 2, 4)), torch.ones(3, dtype=torch.float64))
        with pytest.raises(EnergyError, match=r"\[4\] units per sample"):
            synops_per_sample(torch.ones(1, 2, 4), torch.ones(3, dtype=torch.float64))

    @pytest.mark.parametrize("values", [torch.ones(3), torch.ones(1, 0, 3)])
    def test_nothing_to_count(self, values: Tensor) -> None:
        with pytest.raises(EnergyError, match="at least one value"):
            tally(values)


class TestFanOutFollowsTheWeights:
    def test_the_same_tensor_while_nothing_changes(self) -> None:
        layer, known = nn.Linear(3, 2), FanOut()
        assert known(layer, (3,)) is known(layer, (3,))
        known.refresh()
        assert known(layer, (3,)).tolist() == [2.0, 2.0, 2.0]

    def test_every_tracked_change(self) -> None:
        layer, known = nn.Linear(3, 2), FanOut()

        def check() -> None:
            assert torch.equal(known(layer, (3,)), fan_out(layer, (3,)))

        check()
        with torch.no_grad():
            layer.weight[0, 0] = 0
        check()
        layer.weight = nn.Parameter(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        check()
        layer.weight.data = torch.ones(2, 3)
        check()
        layer.load_state_dict({"weight": torch.eye(2, 3), "bias": torch.zeros(2)})
        check()
        layer.weight.grad = torch.eye(2, 3)
        torch.optim.SGD(layer.parameters(), lr=1.0).step()
        check()
        assert known(layer, (3,)).sum() == 0
        layer.double()
        check()
        assert known(layer, (2, 3)).shape == (2, 3)

    def test_pruning_and_parametrisation(self) -> None:
        layer, known = nn.Linear(3, 2), FanOut()
        known(layer, (3,))
        prune.custom_from_mask(layer, "weight", torch.eye(2, 3))
        assert known(layer, (3,)).tolist() == [1.0, 1.0, 0.0]
        parametrised = parametrizations.weight_norm(nn.Linear(3, 2))
        assert known(parametrised, (3,)).tolist() == [2.0] * 3
        with torch.no_grad():
            parametrised.parametrizations.weight.original1[:, 0] = 0
        assert known(parametrised, (3,)).tolist() == [0.0, 2.0, 2.0]

    def test_untracked_edits_wait_for_refresh(self) -> None:
        layer, known = nn.Linear(3, 2), FanOut()
        known(layer, (3,))
        layer.weight.data.zero_()
        known.refresh()
        assert known(layer, (3,)).sum() == 0

    def test_inference_tensors(self) -> None:
        with torch.inference_mode():
            layer = nn.Linear(3, 2)
        known = FanOut()
        assert known(layer, (3,)) is known(layer, (3,))
