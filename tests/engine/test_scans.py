"""Every scan against the library's own loop: forward bit for bit, gradients, states, options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scan_cases import CASES, UNITS, Case, own_loop
from torch import Tensor, nn

from dynvision_snn.engine.scans import Scanned, scan
from dynvision_snn.engine.scans.backends import backend
from dynvision_snn.errors import MissingExtraError, WrapError

STEPS, BATCH = 12, 4


def backends() -> list[str]:
    found = ["torch"]
    try:
        backend("numba")
    except MissingExtraError:
        return found
    return ["numba", *found]


def _inputs(case: Case, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 1.0 if case.features == UNITS else 2.0
    return scale * torch.randn(STEPS, BATCH, case.features, generator=generator) + 0.4


def _weighted(values: list[Tensor | None]) -> Tensor:
    """A scalar that gives every value of every tensor a gradient of its own."""
    generator = torch.Generator().manual_seed(9)
    total = torch.zeros(())
    for value in values:
        if value is not None and value.requires_grad:
            total = total + (value * torch.randn(value.shape, generator=generator)).sum()
    return total


def _gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    if not loss.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def _scanned(
    case: Case, module: nn.Module, inputs: Tensor, name: str, **options: object
) -> Scanned:
    return scan(
        case.spec(module),
        inputs,
        keep=("spikes", "membrane", "current"),
        backend_name=name,
        **options,
    )


def _check_equal(ours: Scanned, theirs: object) -> None:
    for name in ("spikes", "membrane", "current"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        if other is not None:
            assert torch.equal(mine, other), name
    for name, value in theirs.state.items():
        assert torch.equal(ours.state[name], value), name
    if theirs.spikes is not None:
        assert ours.spikes.requires_grad == theirs.spikes.requires_grad


def _check_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        # What cancels out in ours (a graded factor in its own reset) is rounding noise in theirs.
        scale = other.abs().max().clamp(min=0.2)
        assert ((mine - other).abs().max() / scale) < 2e-5


@pytest.fixture(params=backends())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_is_the_librarys_own_recursion(case: Case, name: str) -> None:
    torch.manual_seed(3)
    module = case.make()
    assert case.why_not(module) is None
    inputs = _inputs(case).requires_grad_()
    parameters = [p for p in module.parameters() if p.requires_grad]
    theirs = own_loop(module, inputs)
    ours = _scanned(case, module, inputs, name)
    _check_equal(ours, theirs)
    if theirs.spikes is not None:
        assert 0 < theirs.spikes.count_nonzero() < theirs.spikes.numel()
    wanted = [inputs, *parameters]
    _check_close(
        _gradients(_weighted([ours.spikes, ours.membrane, ours.current]), wanted),
        _gradients(_weighted([theirs.spikes, theirs.membrane, theirs.current]), wanted),
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_goes_on_from_a_state_and_sends_gradients_into_it(case: Case, name: str) -> None:
    torch.manual_seed(3)
    module = case.make()
    inputs = _inputs(case)
    first = own_loop(module, _inputs(case, seed=1))
    state = {key: value.detach().clone().requires_grad_() for key, value in first.state.items()}
    theirs = own_loop(module, inputs, state)
    ours = _scanned(case, module, inputs, name, state=state)
    _check_equal(ours, theirs)
    # The last state alone: what truncated back-propagation passes on.
    _check_close(
        _gradients(_weighted(list(ours.state.values())), list(state.values())),
        _gradients(_weighted([theirs.state[k] for k in ours.state]), list(state.values())),
    )


@pytest.mark.parametrize("with_spikes", [False, True])
@pytest.mark.parametrize("shown", [None, torch.tensor([0, 1, 1, 2, 2, 2, 0, 3])])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_activity_is_the_sum_of_the_spikes_of_each_sample(
    case: Case, name: str, shown: Tensor | None, with_spikes: bool
) -> None:
    torch.manual_seed(3)
    module = case.make()
    inputs = _inputs(case).requires_grad_()
    theirs = own_loop(module, inputs if shown is None else inputs[shown])
    given = inputs if shown is None else inputs[:4]
    keep = ("spikes", "activity")
    ours = scan(case.spec(module), given, index=shown, keep=keep, backend_name=name)
    if theirs.spikes is None:
        assert ours.activity is None
        return
    activity = theirs.spikes.abs().flatten(2).sum((0, 2))
    assert activity.count_nonzero()
    torch.testing.assert_close(ours.activity, activity, rtol=1e-6, atol=0)
    wanted = [inputs, *(p for p in module.parameters() if p.requires_grad)]
    _check_close(
        _gradients(_weighted([ours.activity, ours.spikes if with_spikes else None]), wanted),
        _gradients(_weighted([activity, theirs.spikes if with_spikes else None]), wanted),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_activity_is_summed_in_float32_at_least(dtype: torch.dtype) -> None:
    spec = CASES["Leaky-atan"].spec(CASES["Leaky-atan"].make())
    inputs = torch.full((3000, 2, 3), 9.0, dtype=dtype)
    ran = scan(spec, inputs, keep=("spikes", "activity"), backend_name="torch")
    assert ran.activity.tolist() == [float(ran.spikes[:, k].count_nonzero()) for k in (0, 1)]
    assert float(ran.activity.min()) > 4000


def test_a_batch_of_nothing_has_no_activity(name: str) -> None:
    case = CASES["Leaky-atan"]
    inputs = torch.zeros(3, 0, UNITS)
    ran = scan(case.spec(case.make()), inputs, keep=("spikes", "activity"), backend_name=name)
    assert ran.activity.shape == (0,)


@pytest.mark.parametrize("kept", ["spikes", "membrane"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_input_shown_often_is_computed_once(case: Case, name: str, kept: str) -> None:
    torch.manual_seed(3)
    module = case.make()
    distinct = _inputs(case)[:3].clone().requires_grad_()
    index = torch.tensor([0, 1, 1, 1, 0, 2, 2, 1, 1, 0])
    theirs = own_loop(module, distinct[index])
    ours = scan(case.spec(module), distinct, index=index, keep=(kept,), backend_name=name)
    mine, other = (getattr(which, kept) for which in (ours, theirs))
    if other is None:
        pytest.skip("an integrator has no spikes")
    parameters = [p for p in module.parameters() if p.requires_grad]
    if case.features == UNITS:
        assert torch.equal(mine, other)
    else:
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)
    wanted = [distinct, *parameters]
    _check_close(_gradients(_weighted([mine]), wanted), _gradients(_weighted([other]), wanted))


def test_image_shaped_units_and_many_lanes(name: str) -> None:
    case = CASES["Leaky-learned-subtract-False"]
    module = case.make()
    inputs = torch.randn(6, 3, 4, 37, 41, requires_grad=True)
    theirs = own_loop(module, inputs)
    ours = _scanned(case, module, inputs, name)
    _check_equal(ours, theirs)
    wanted = [inputs, *module.parameters()]
    _check_close(
        _gradients(_weighted([ours.spikes]), wanted), _gradients(_weighted([theirs.spikes]), wanted)
    )


def test_more_than_one_thread_computes_the_same(name: str) -> None:
    case = CASES["Synaptic-subtract-True"]
    module = case.make()
    inputs = torch.randn(20, 8, 6001, requires_grad=True)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            ours = _scanned(case, module, inputs, name)
            results.append((ours.spikes, *_gradients(ours.spikes.sum(), [inputs])))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


def test_the_torch_backend_takes_float64_and_agrees_with_float32() -> None:
    case = CASES["LIF-super"]
    module = case.make()
    inputs = _inputs(case)
    double = scan(case.spec(module), inputs.double(), keep=("membrane",))
    single = scan(case.spec(module), inputs, keep=("membrane",))
    assert double.membrane.dtype is torch.float64
    torch.testing.assert_close(double.membrane.float(), single.membrane, atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_finite_differences_where_nothing_fires() -> None:
    spec = CASES["Synaptic-none-True"].spec(CASES["Synaptic-none-True"].make())
    inputs = 0.01 * torch.randn(5, 2, 3, dtype=torch.float64)
    inputs.requires_grad_()

    def membranes(x: Tensor) -> Tensor:
        return scan(spec, x, keep=("membrane",)).membrane

    assert torch.autograd.gradcheck(membranes, (inputs,), atol=1e-6)


def test_without_grad_nothing_is_kept(name: str) -> None:
    case = CASES["RLeaky-subtract-True"]
    module = case.make()
    with torch.inference_mode():
        ours = _scanned(case, module, _inputs(case), name)
    assert ours.spikes is not None
    assert not ours.spikes.requires_grad


def test_what_is_not_asked_for_is_not_given(name: str) -> None:
    case = CASES["Synaptic-subtract-True"]
    ours = scan(case.spec(case.make()), _inputs(case), backend_name=name)
    assert ours.membrane is None
    assert ours.current is None
    assert ours.output is ours.spikes


def test_mistakes_are_named() -> None:
    spec = CASES["Leaky-subtract-delayed"].spec(CASES["Leaky-subtract-delayed"].make())
    inputs = torch.ones(2, 3, 4)
    with pytest.raises(WrapError, match=r"'membranes'.*Did you mean 'membrane'"):
        scan(spec, inputs, keep=("membranes",))
    with pytest.raises(WrapError, match=r"membrane has shape \[2, 4\]; expected \[3, 4\]"):
        scan(spec, inputs, state={"membrane": torch.zeros(2, 4)})
    with pytest.raises(WrapError, match="unknown backend"):
        scan(spec, inputs, backend_name="cuda")


def test_triton_kernels_under_the_interpreter() -> None:
    pytest.importorskip("triton")
    script = Path(__file__).with_name("interpret_triton.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_triton_kernels_on_cuda(case: Case) -> None:
    torch.manual_seed(3)
    module = case.make().cuda()
    inputs = _inputs(case).cuda().requires_grad_()
    theirs = own_loop(module, inputs)
    ours = _scanned(case, module, inputs, "triton")
    _check_equal(ours, theirs)
