"""One tally, whichever way it is found, against counting value by value."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynvision_snn.energy.counting import (
    Tally,
    in_one_pass,
    in_several_passes,
    ones_per_sample,
    synops,
    synops_per_sample,
    tally,
    weighted_per_sample,
)

WAYS = ["in_several_passes", "in_one_pass"]

# Zeros of both signs, the smallest number there is, one's neighbours, a large number, and what
# is none.
ODD = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 1 - 2**-24, 1.0, -1.0, 1 + 2**-23, 1e30]
BAD = [math.inf, -math.inf, math.nan]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[Tensor], Tally]:
    return _way(request.param)


def _way(name: str) -> Callable[[Tensor], Tally]:
    if name == "in_several_passes":
        return in_several_passes
    pytest.importorskip("numba")
    from dynvision_snn.energy.one_pass import count

    return lambda values: in_one_pass(values, count)


def check_value_by_value(found: Tally, values: Tensor) -> None:
    """By Python's own numbers; `values` are finite."""
    for t, step in enumerate(values.flatten(2).tolist()):
        sizes = [[abs(x) for x in sample] for sample in step]
        units = list(zip(*sizes, strict=True))
        nonzero = [sum(x != 0 for x in unit) for unit in units]
        assert found.nonzero[t].tolist() == nonzero
        assert found.magnitude[t].tolist() == pytest.approx(
            [math.fsum(unit) for unit in units], rel=1e-6, abs=1e-44
        )
        assert float(found.events[t]) == sum(nonzero)
        present = [x for unit in units for x in unit if x]
        assert float(found.least[t]) == min(present, default=math.inf)
        assert float(found.most[t]) == max(present, default=0.0)


@st.composite
def sequences(draw: st.DrawFn, values: list[float] = ODD) -> Tensor:
    shape = draw(st.tuples(*(st.integers(1, most) for most in (3, 4, 3, 2))))
    few = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    numbers = st.lists(st.sampled_from(few), min_size=math.prod(shape), max_size=math.prod(shape))
    return torch.tensor(draw(numbers), dtype=torch.float32).reshape(shape)


class TestEachWay:
    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(WAYS), sequences())
    def test_value_by_value(self, name: str, values: Tensor) -> None:
        before = values.clone()
        check_value_by_value(_way(name)(values), values)
        assert torch.equal(values, before)

    def test_the_check_can_fail(self) -> None:
        values = torch.tensor([[[1.0, 0.0]]])
        with pytest.raises(AssertionError):
            check_value_by_value(tally(values.flip(2)), values)

    @settings(max_examples=100, deadline=None)
    @given(sequences(ODD + BAD))
    def test_both_find_the_same(self, values: Tensor) -> None:
        one, several = _way("in_one_pass")(values), in_several_passes(values)
        assert torch.equal(one.least.isnan(), several.least.isnan())
        if values.isnan().any():
            assert one.most.isnan().any()
            return
        assert torch.equal(one.nonzero, several.nonzero)
        assert torch.equal(one.events, several.events)
        for mine, theirs in ((one.least, several.least), (one.most, several.most)):
            assert torch.equal(mine, theirs.double())
        finite = values.isfinite().all()
        assert not finite or torch.equal(one.magnitude.double(), several.magnitude.double())
        assert (one.magnitude is one.nonzero) is (several.magnitude is several.nonzero)

    @pytest.mark.parametrize("bad", BAD)
    def test_bad_values_are_seen(self, way: Callable[[Tensor], Tally], bad: float) -> None:
        found = way(torch.tensor([[[1.0, 0.0], [bad, 1.0]]]))
        assert not math.isfinite(float(found.most))
        if math.isnan(bad):
            assert math.isnan(float(found.least))
            assert math.isnan(float(synops(found, torch.ones(2).double())[1]))

    def test_more_units_than_a_block(self, way: Callable[[Tensor], Tally]) -> None:
        values = (torch.rand(2, 3, 9001) < 0.3).float()
        values[1, 2, 9000] = 0.25
        found = way(values)
        assert torch.equal(found.nonzero, values.ne(0).sum(1).double())
        assert found.least.tolist() == [1.0, 0.25]

    def test_large_counts_are_exact(self, way: Callable[[Tensor], Tally]) -> None:
        found = way(torch.ones(1, 3, 2**23 + 1))
        weights = torch.ones(2**23 + 1, dtype=torch.float64)
        assert int(synops(found, weights)[0]) == int(found.events) == 3 * (2**23 + 1)

    def test_equal_magnitudes_are_multiplied_exactly(self, way: Callable[[Tensor], Tally]) -> None:
        """In float32, adding 0.1 a thousand times is wrong in the fifth digit."""
        tenth = torch.tensor(0.1)
        found = way(tenth.expand(1, 1000, 1).contiguous())
        assert float(found.magnitude) == 1000 * float(tenth)


class TestOnes:
    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.tuples(*(st.integers(1, most) for most in (4, 5, 40, 3, 3))),
        n_axes=st.integers(2, 5),
        n_parts=st.integers(1, 3),
        last=st.booleans(),
        odd=st.sampled_from([None, *ODD, *BAD]),
    )
    @settings(max_examples=60)
    def test_it_counts_ones_where_there_are_no_other_values(
        self,
        seed: int,
        shape: tuple[int, ...],
        n_axes: int,
        n_parts: int,
        last: bool,
        odd: float | None,
    ) -> None:
        pytest.importorskip("numba")
        import dynvision_snn.energy.one_pass  # noqa: F401  (small values do not load it)

        draw = torch.Generator().manual_seed(seed)
        parts = [
            torch.randint(0, 2, shape[:n_axes], generator=draw).float() for _ in range(n_parts)
        ]
        if last and n_axes > 3:  # channels last in memory
            parts = [part.movedim(2, -1).contiguous().movedim(-1, 2) for part in parts]
        if odd is not None:
            parts[-1][-1, 0] = odd
        found = ones_per_sample(parts)
        if odd in (None, 1.0) or (odd == 0.0 and math.copysign(1, odd) > 0):
            assert found is not None
            assert found.tolist() == _ones_of_samples(torch.cat(parts))
        else:
            assert found is None

    def test_other_types_and_layouts_are_left_to_others(self) -> None:
        spikes = torch.ones(2, 3, 4)
        assert ones_per_sample([spikes.double()]) is None
        assert ones_per_sample([spikes.half()]) is None
        assert ones_per_sample([spikes.transpose(0, 1)]) is None


def _ones_of_samples(part: Tensor) -> list[int]:
    return [sum(x == 1 for x in sample.flatten().tolist()) for sample in part.unbind(1)]


class TestTally:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 10**6))
    def test_synops_against_boolean_counting(self, t: int, b: int, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(-2, 3, (t, b, n, 2), generator=generator).float()
        weights = torch.randint(0, 9, (n, 2), generator=generator).double()
        counted, weighted = synops(tally(x), weights)
        for step in range(t):
            assert counted[step] == ((x[step] != 0) * weights).sum()
            assert weighted[step] == (x[step].abs() * weights).sum()
        assert torch.equal(synops_per_sample(x, weights).sum(1), counted)
        assert torch.equal(weighted_per_sample(x, weights).sum(1), weighted)

    @pytest.mark.parametrize(
        "dtype",
        [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64],
    )
    def test_types_and_sums_beyond_them(self, dtype: torch.dtype) -> None:
        x = torch.ones(1, 3000, 2).to(dtype)  # float16 holds integers up to 2048, bfloat16 to 256
        found = tally(x)
        assert found.nonzero.tolist() == found.magnitude.tolist() == [[3000.0, 3000.0]]
        assert float(found.events) == 6000

    def test_values_that_are_not_contiguous(self) -> None:
        x = (torch.rand(2, 3, 4, 5) < 0.5).float()
        turned = x.transpose(2, 3).contiguous().transpose(2, 3)
        assert torch.equal(tally(turned).nonzero, tally(x).nonzero)

    def test_it_leaves_the_values_and_the_graph_alone(self) -> None:
        x = torch.tensor([[[-1.0, 0.0, 2.0]]], requires_grad=True)
        found = tally(x)
        assert not found.nonzero.requires_grad
        assert x.tolist() == [[[-1.0, 0.0, 2.0]]]

    @pytest.mark.parametrize("n_values", [10, 2**15])
    def test_without_the_compiler(self, n_values: int) -> None:
        """In a process that has no numba, and one that need not load it."""
        code = f"""
import sys
if {n_values} > 1000:
    sys.modules["numba"] = None
import torch
from dynvision_snn.energy.counting import tally
x = torch.ones(1, 2, {n_values})
print(int(tally(x).events), sys.modules.get("numba") is None)
"""
        shown = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert shown.stdout.split() == [str(2 * n_values), "True"]
