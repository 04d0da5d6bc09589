"""Rounding against exact decimals, decays against measured ones."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynvision_snn import timing
from dynvision_snn.errors import TimingError

# What a user types: milliseconds with few decimals, which binary floats cannot hold exactly.
decimal_times = st.decimals(0, 10_000, places=3, allow_nan=False, allow_infinity=False)
decimal_dts = st.decimals(Decimal("0.01"), 20, places=2, allow_nan=False, allow_infinity=False)
float_dts = st.floats(1e-3, 1e3)
taus = st.floats(1e-2, 1e4)

ILLEGAL_DTS = [0, 0.0, -1.0, math.nan, math.inf, -math.inf, "2", None, True, 1j, torch.tensor(2.0)]
ILLEGAL_TIMES = [-1e-9, math.nan, math.inf, "6", None, False]


@given(decimal_times, decimal_dts)
def test_ceil_steps_is_the_ceiling_of_the_exact_decimal_ratio(time, dt):
    exact = int((time / dt).to_integral_value(ROUND_CEILING))
    assert timing.ceil_steps(float(time), float(dt)) == exact


@given(decimal_times, decimal_dts)
def test_nearest_steps_rounds_the_exact_decimal_ratio_half_up(time, dt):
    exact = int((time / dt).to_integral_value(ROUND_HALF_UP))
    assert timing.nearest_steps(float(time), float(dt)) == exact


@given(st.integers(0, 10**6), float_dts)
def test_a_whole_number_of_timesteps_survives_the_round_trip(steps, dt):
    assert timing.ceil_steps(steps * dt, dt) == steps
    assert timing.nearest_steps(steps * dt, dt) == steps


@pytest.mark.parametrize(
    ("time", "dt", "steps"), [(1.1, 0.1, 11), (6, 2, 3), (5, 2, 3), (0, 2, 0), (0.1, 2, 1)]
)
def test_ceil_steps_on_the_decided_examples(time, dt, steps):
    assert timing.ceil_steps(time, dt) == steps


def test_single_precision_times_do_not_gain_a_timestep():
    assert float(np.float32(0.3)) > 0.3
    assert timing.ceil_steps(np.float32(0.3), 0.1) == 3


@given(st.lists(decimal_times, max_size=30), decimal_dts)
def test_cumulative_boundaries_are_the_rounded_exact_sums(durations, dt):
    total, exact = Decimal(0), [0]
    for duration in durations:
        total += duration
        exact.append(int((total / dt).to_integral_value(ROUND_HALF_UP)))
    assert timing.cumulative_steps(map(float, durations), float(dt)) == tuple(exact)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=20), float_dts, st.randoms())
def test_the_total_does_not_depend_on_the_order(durations, dt, random):
    total = timing.cumulative_steps(durations, dt)[-1]
    random.shuffle(durations)
    assert timing.cumulative_steps(durations, dt)[-1] == total


@pytest.mark.parametrize("dt", ILLEGAL_DTS)
@pytest.mark.parametrize(
    "use",
    [
        timing.check_dt,
        lambda dt: timing.ceil_steps(1.0, dt),
        lambda dt: timing.nearest_steps(1.0, dt),
        lambda dt: timing.cumulative_steps([1.0], dt),
        lambda dt: timing.decay_exact(10.0, dt),
        lambda dt: timing.time_constant_euler(0.9, dt),
        lambda dt: timing.common_dt({"model": dt}),
    ],
)
def test_illegal_dts_are_refused_by_name(use, dt):
    with pytest.raises(TimingError, match="dt"):
        use(dt)


@pytest.mark.parametrize("time", ILLEGAL_TIMES)
@pytest.mark.parametrize("use", [timing.ceil_steps, timing.nearest_steps])
def test_illegal_times_are_refused_by_name(use, time):
    with pytest.raises(TimingError, match="idle_time"):
        use(time, 1.0, "idle_time")
    with pytest.raises(TimingError, match="idle_time"):
        timing.check_time(time, "idle_time")


def test_more_timesteps_than_a_float_can_count_are_refused():
    with pytest.raises(TimingError, match="more timesteps"):
        timing.ceil_steps(1e300, 1e-300)


@given(taus, float_dts)
def test_exact_decay_composes_over_time(tau, dt):
    once, twice = timing.decay_exact(tau, dt), timing.decay_exact(tau, 2 * dt)
    assert once**2 == pytest.approx(twice, rel=1e-9, abs=1e-300)
    assert once == pytest.approx(math.exp(-dt / tau), rel=1e-12, abs=1e-300)


@given(st.floats(1e-3, 1 - 1e-9), float_dts)
def test_exact_decay_and_time_constant_are_inverse(decay, dt):
    assert timing.decay_exact(timing.time_constant_exact(decay, dt), dt) == pytest.approx(decay)


@given(taus, float_dts)
def test_euler_time_constant_is_recovered_from_one_euler_step(tau, dt):
    state = 1.0
    stepped = state + dt * (-state / tau)
    assert timing.decay_euler(tau, dt) == pytest.approx(stepped, rel=1e-9, abs=1e-12)
    if dt < 1e3 * tau and dt > 1e-3 * tau:
        assert timing.time_constant_euler(stepped, dt) == pytest.approx(tau, rel=1e-6)


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.99])
def test_exact_time_constant_fits_a_simulated_trace(decay):
    dt = 0.5
    trace = decay ** np.arange(200)
    time = dt * np.arange(200)
    slope = np.polyfit(time, np.log(trace), 1)[0]
    assert timing.time_constant_exact(decay, dt) == pytest.approx(-1 / slope, rel=1e-9)


def test_the_two_integrators_agree_to_first_order_and_no_further():
    tau, dts = 10.0, (0.4, 0.2, 0.1)
    gaps = [timing.decay_exact(tau, dt) - timing.decay_euler(tau, dt) for dt in dts]
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.05)
    assert gaps[1] / gaps[2] == pytest.approx(4, rel=0.05)


def test_limits_of_the_decays():
    assert timing.time_constant_exact(1.0, 2.0) == math.inf
    assert timing.time_constant_exact(0.0, 2.0) == 0.0
    assert timing.decay_exact(0.0, 2.0) == 0.0
    assert timing.decay_exact(math.inf, 2.0) == 1.0
    assert timing.time_constant_euler(1.0, 2.0) == math.inf
    assert timing.decay_euler(math.inf, 2.0) == 1.0
    assert timing.decay_euler(1.0, 2.0) == -1.0


@pytest.mark.parametrize(
    "function",
    [
        timing.decay_exact,
        timing.decay_euler,
        timing.time_constant_exact,
        timing.time_constant_euler,
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_convert_elementwise_and_keep_their_dtype(function, dtype):
    values = torch.tensor([[0.2, 0.5], [0.9, 1.0]], dtype=dtype)
    converted = function(values, 2.0)
    one_by_one = torch.tensor([function(float(v), 2.0) for v in values.flatten()], dtype=dtype)
    assert converted.dtype == dtype
    torch.testing.assert_close(converted, one_by_one.view(2, 2))


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan, True, "0.9"])
def test_decays_that_are_none_are_refused(decay):
    with pytest.raises(TimingError, match="decay"):
        timing.time_constant_exact(decay, 1.0)


@pytest.mark.parametrize("decay", [1.1, math.nan, -math.inf])
def test_euler_decays_that_are_none_are_refused(decay):
    with pytest.raises(TimingError, match="decay"):
        timing.time_constant_euler(decay, 1.0)


def test_one_bad_element_is_refused_and_named():
    with pytest.raises(TimingError, match=r"decay is 1\.5"):
        timing.time_constant_exact(torch.tensor([0.5, 1.5]), 1.0)
    with pytest.raises(TimingError, match=r"time constant is -1\.0"):
        timing.decay_exact(torch.tensor([[-1.0]]), 1.0)
    with pytest.raises(TimingError, match="time constant is 0"):
        timing.decay_euler(0.0, 1.0)


def test_gradients_flow_through_conversions():
    beta = torch.tensor([0.5, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: timing.time_constant_exact(b, 2.0), (beta,))


def test_dts_that_agree_to_single_precision_are_one():
    assert timing.common_dt({"model": 0.1, "norse": float(np.float32(0.1))}) == 0.1


def test_dts_that_disagree_are_all_named_with_the_way_out():
    dts = {"model": 2.0, "presentation": 2.0, "lif (Norse)": timing.seconds_to_ms(0.001)}
    with pytest.raises(TimingError) as caught:
        timing.common_dt(dts)
    message = str(caught.value)
    assert all(owner in message for owner in dts)
    assert "2 ms" in message
    assert "1 ms" in message
    assert "set_dt=True" in message
    with pytest.raises(TimingError, match=r"To fix it, retime it\."):
        timing.common_dt({"a": 1.0, "b": 1.1}, way_out="retime it")


def test_nothing_to_compare_is_an_error():
    with pytest.raises(TimingError, match="No dt"):
        timing.common_dt({})


@given(st.floats(1e-6, 1e6))
def test_seconds_and_ms_are_inverse(time):
    assert timing.seconds_to_ms(timing.ms_to_seconds(time)) == pytest.approx(time, rel=1e-12)
