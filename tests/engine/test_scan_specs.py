"""Which neurons can be scanned, and what is said of those that cannot."""

from __future__ import annotations

from collections.abc import Callable

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from hypothesis import given
from hypothesis import strategies as st
from scan_cases import own_loop
from snntorch import surrogate
from torch import nn

from dynvision_snn.adapters import norse_scan, snntorch_scan
from dynvision_snn.adapters.scan_spec import (
    After,
    Before,
    ScanSpec,
    Surrogate,
    SurrogateKind,
    Synapse,
    Update,
)
from dynvision_snn.adapters.surrogates import norse_surrogate, snntorch_surrogate
from dynvision_snn.engine.scans import scan
from dynvision_snn.engine.scans.surrogate_slopes import slope
from dynvision_snn.errors import AdapterError


class OwnLeaky(snn.Leaky):
    """A subclass may compute anything."""


def _switched() -> nn.Module:
    neuron = snn.Leaky(0.9, reset_mechanism="subtract")
    neuron.reset_mechanism = "zero"
    return neuron


def _by_state_dict() -> nn.Module:
    neuron = snn.Leaky(0.9, reset_mechanism="subtract", reset_delay=False)
    neuron.load_state_dict(snn.Leaky(0.9, reset_mechanism="zero").state_dict())
    return neuron


def _custom_surrogate() -> nn.Module:
    return snn.Leaky(0.9, spike_grad=surrogate.custom_surrogate(lambda x, g, s: g))


def _broadcast_recurrence() -> nn.Module:
    neuron = snn.RLeaky(0.9, linear_features=3)
    neuron.recurrent = nn.Linear(3, 1)
    return neuron


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], str | None], str]] = {
    "subclass": (lambda: OwnLeaky(0.9), snntorch_scan.why_not, "no scan is written for OwnLeaky"),
    "Alpha": (lambda: snn.Alpha(0.9, 0.8), snntorch_scan.why_not, "Alpha"),
    "custom": (_custom_surrogate, snntorch_scan.why_not, "surrogate"),
    "random": (lambda: snn.Leaky(0.9, spike_grad=surrogate.SSO()), snntorch_scan.why_not, "surr"),
    "broken": (lambda: snn.Leaky(0.9, spike_grad=surrogate.LSO()), snntorch_scan.why_not, "surr"),
    "inhibition": (lambda: snn.Leaky(0.9, inhibition=True), snntorch_scan.why_not, "inhibition"),
    "quantised": (
        lambda: snn.Leaky(0.9, state_quant=lambda mem: mem),
        snntorch_scan.why_not,
        "quantised",
    ),
    "switched": (_switched, snntorch_scan.why_not, "changed after it was built"),
    "loaded": (_by_state_dict, snntorch_scan.why_not, "changed after it was built"),
    "convolution": (
        lambda: snn.RLeaky(0.9, conv2d_channels=2, kernel_size=3),
        snntorch_scan.why_not,
        "recurrent connection",
    ),
    "broadcast": (_broadcast_recurrence, snntorch_scan.why_not, "neither a square Linear"),
    "Lapicque": (
        lambda: snn.Lapicque(beta=0.9, learn_beta=True),
        snntorch_scan.why_not,
        "does not learn its beta",
    ),
    "float64": (
        lambda: snn.Leaky(torch.ones(3, dtype=torch.float64)),
        snntorch_scan.why_not,
        "float64",
    ),
    "LSNNCell": (lambda: norse.LSNNCell(), norse_scan.why_not, "LSNNCell"),
    "learned": (
        lambda: norse.LIFCell(norse.LIFParameters(tau_mem_inv=nn.Parameter(torch.tensor(100.0)))),
        norse_scan.why_not,
        "to be learned",
    ),
    "adjoint": (
        lambda: norse.LIFCell(norse.LIFParameters(method="adjoint")),
        norse_scan.why_not,
        "adjoint",
    ),
    "reset": (
        lambda: norse.LIFBoxCell(norse.LIFBoxParameters(reset_method=lambda z, v, r, th: v)),
        norse_scan.why_not,
        "reset method",
    ),
}


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
@pytest.mark.parametrize(("make", "why_not", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_scanned_says_why(
    make: Callable[[], nn.Module], why_not: Callable[[nn.Module], str | None], reason: str
) -> None:
    said = why_not(make())
    assert said is not None
    assert reason in said


def test_iaf_is_scanned_after_its_first_call_too() -> None:
    neuron = norse.IAFCell(norse.IAFParameters(v_reset=torch.tensor(0.0)))
    neuron(torch.ones(1, 2))
    assert neuron.p.v_reset.requires_grad
    assert norse_scan.why_not(neuron) is None
    assert not norse_scan.spec(neuron).reset_value.requires_grad


def test_surrogates_are_told_with_their_parameters() -> None:
    assert snntorch_surrogate(surrogate.atan(alpha=3.0)) == Surrogate(SurrogateKind.ATAN, 3.0)
    assert snntorch_surrogate(surrogate.SFS(slope=8, B=0.5)) == Surrogate(
        SurrogateKind.SPARSE_SIGMOID, 8.0, 0.5
    )
    assert norse_surrogate("tanh", torch.tensor(3.0)) == Surrogate(SurrogateKind.TANH, 3.0)


def test_a_function_that_only_looks_like_one_of_snntorch_is_not_taken_for_it() -> None:
    def atan() -> Callable[[torch.Tensor], torch.Tensor]:
        alpha = 2.0

        def inner(x: torch.Tensor) -> torch.Tensor:
            return x * alpha

        return inner

    assert snntorch_surrogate(atan()) is None
    assert snntorch_surrogate(torch.sigmoid) is None
    assert snntorch_surrogate(surrogate.atan(alpha=torch.tensor(2.0))) is None


SLOPES = {
    "atan": (lambda: surrogate.atan(1.7), Surrogate(SurrogateKind.ATAN, 1.7)),
    "fast_sigmoid": (lambda: surrogate.fast_sigmoid(12), Surrogate(SurrogateKind.FAST_SIGMOID, 12)),
    "sigmoid": (lambda: surrogate.sigmoid(25), Surrogate(SurrogateKind.SIGMOID, 25)),
    "triangular": (lambda: surrogate.triangular(0.6), Surrogate(SurrogateKind.SIGN, 0.6)),
    "rate_escape": (
        lambda: surrogate.spike_rate_escape(0.7, 3),
        Surrogate(SurrogateKind.RATE_ESCAPE, 0.7, 3),
    ),
}


@pytest.mark.parametrize(("make", "ours"), SLOPES.values(), ids=SLOPES.keys())
def test_slopes_are_the_librarys_own(make: Callable[[], object], ours: Surrogate) -> None:
    # Far below the threshold snnTorch's sigmoid overflows to NaN; so must ours.
    x = torch.tensor([-9.0, -3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0], requires_grad=True)
    make()(x).sum().backward()
    torch.testing.assert_close(
        slope(ours, x.detach()), x.grad, equal_nan=True, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(
    ("wrong", "needs"),
    [
        (dict(update=Update.DECAY), "a rate"),
        (dict(update=Update.EULER, rate=torch.tensor(0.1)), "a leak"),
        (dict(update=Update.SUM, synapse=Synapse.DECAY), "a synapse_rate"),
        (dict(update=Update.SUM, threshold=torch.tensor(1.0)), "a threshold and a surrogate"),
        (dict(update=Update.SUM, before=Before.ZERO), "a threshold, for its reset"),
        (
            dict(
                update=Update.SUM,
                threshold=torch.tensor(1.0),
                surrogate=Surrogate(SurrogateKind.NONE),
                after=After.VALUE,
            ),
            "a reset_value",
        ),
        (
            dict(
                update=Update.SUM,
                threshold=torch.tensor(1.0),
                surrogate=Surrogate(SurrogateKind.NONE),
                after=After.OWED_ZERO,
            ),
            "an earlier reset",
        ),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(wrong: dict[str, object], needs: str) -> None:
    with pytest.raises(AdapterError, match=needs):
        ScanSpec(**wrong)


@given(
    steps=st.integers(1, 9),
    batch=st.integers(1, 5),
    units=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    beta=st.floats(0, 1),
    threshold=st.floats(-1, 2),
    reset=st.sampled_from(["subtract", "zero", "none"]),
    delay=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_leaky_of_any_size_is_the_librarys_bit_for_bit(
    steps: int,
    batch: int,
    units: list[int],
    beta: float,
    threshold: float,
    reset: str,
    delay: bool,
    seed: int,
) -> None:
    neuron = snn.Leaky(beta, threshold=threshold, reset_mechanism=reset, reset_delay=delay)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(steps, batch, *units, generator=generator)
    theirs = own_loop(neuron, inputs)
    ours = scan(snntorch_scan.spec(neuron), inputs, keep=("spikes", "membrane"))
    assert torch.equal(ours.spikes, theirs.spikes)
    assert torch.equal(ours.membrane, theirs.membrane)


@given(
    steps=st.integers(1, 9),
    batch=st.integers(1, 5),
    units=st.integers(1, 7),
    rates=st.tuples(st.floats(1, 900), st.floats(1, 900)),
    threshold=st.floats(0.05, 2),
    seed=st.integers(0, 2**31),
)
def test_any_lif_of_any_size_is_the_librarys_bit_for_bit(
    steps: int, batch: int, units: int, rates: tuple[float, float], threshold: float, seed: int
) -> None:
    numbers = [torch.tensor(value) for value in (*rates, threshold)]
    p = norse.LIFParameters(tau_syn_inv=numbers[0], tau_mem_inv=numbers[1], v_th=numbers[2])
    neuron = norse.LIF(p)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(steps, batch, units, generator=generator)
    theirs = own_loop(neuron, inputs)
    ours = scan(norse_scan.spec(neuron), inputs, keep=("spikes", "membrane", "current"))
    assert torch.equal(ours.spikes, theirs.spikes)
    assert torch.equal(ours.membrane, theirs.membrane)
    assert torch.equal(ours.current, theirs.current)
