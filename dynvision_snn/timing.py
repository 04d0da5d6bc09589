"""Milliseconds and timesteps, decays and time constants: the only place that rounds time.

Times are in ms throughout. Rounding tolerates binary floating point: a time within a millionth of
a timestep (or a billionth of its own length) of a whole number of timesteps *is* that number, so
that 1.1 ms at dt 0.1 ms is 11 timesteps although ``1.1 / 0.1 > 11`` in binary.

A decay is the factor by which a state shrinks over one timestep of zero input. Two integrators
relate it to the time constant tau:

- exact exponential, ``decay = exp(-dt / tau)``: the solution of ``tau dv/dt = -v``
  (snnTorch Leaky);
- explicit Euler, ``decay = 1 - dt / tau``: its first-order step (Norse; snnTorch Lapicque), which
  oscillates once dt exceeds tau and no longer decays from ``dt = 2 tau`` on.

One file, although it is long: whoever asks how a time is rounded or converted finds it here.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import accumulate
from numbers import Real
from typing import TYPE_CHECKING, Literal, TypeVar

import torch

from dynvision_snn.errors import TimingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "ceil_steps",
    "check_dt",
    "check_time",
    "common_dt",
    "containing_steps",
    "cumulative_steps",
    "decay_euler",
    "decay_exact",
    "format_ms",
    "format_steps",
    "format_timestep",
    "gain_ratio",
    "integration_problem",
    "ms_to_seconds",
    "nearest_steps",
    "retimed_decay",
    "seconds_to_ms",
    "time_constant_euler",
    "time_constant_exact",
    "whole_steps",
]

_STEP_TOLERANCE = 1e-6
_RELATIVE_TOLERANCE = 1e-9
# Wider than the rounding of float32, the type in which libraries may keep their dt.
_DT_TOLERANCE = 1e-6

# Coarser than this part of a time constant, a timestep is warned about.
_COARSE = 1 / 4

FloatOrTensor = TypeVar("FloatOrTensor", float, torch.Tensor)


def check_dt(dt: float, name: str = "dt") -> float:
    """The length of a timestep, validated.

    Args:
        dt: Length of one timestep in ms.
        name: What the error calls it.

    Returns:
        ``dt`` as a plain float.

    Raises:
        TimingError: If ``dt`` is not a finite positive number.

    >>> check_dt(2)
    2.0
    """
    value = _real(dt, name)
    if not (math.isfinite(value) and value > 0):
        raise TimingError(
            f"{name} is {value}; expected a finite number of milliseconds above 0, "
            f"such as {name}=1.0."
        )
    return value


def check_time(time: float, name: str) -> float:
    """A duration, validated: finite and not negative.

    Args:
        time: Duration in ms.
        name: What the error calls it.

    Returns:
        ``time`` as a plain float.

    Raises:
        TimingError: If ``time`` is not a finite number of at least 0.

    >>> check_time(6, "reaction_time")
    6.0
    """
    value = _real(time, name)
    if not (math.isfinite(value) and value >= 0):
        raise TimingError(
            f"{name} is {value}; expected a finite number of milliseconds of at least 0."
        )
    return value


def ceil_steps(time: float, dt: float, name: str = "time") -> int:
    """The fewest timesteps that cover a time.

    Args:
        time: Duration in ms, at least 0.
        dt: Length of one timestep in ms.
        name: What an error calls the time.

    Returns:
        ``ceil(time / dt)``, tolerant of binary floating point.

    Raises:
        TimingError: If either is not a legal time.

    >>> ceil_steps(1.1, 0.1), ceil_steps(6, 2), ceil_steps(5, 2), ceil_steps(0, 2)
    (11, 3, 3, 0)
    """
    ratio = _ratio(check_time(time, name), check_dt(dt), name)
    return math.ceil(ratio - _tolerance(ratio))


def nearest_steps(time: float, dt: float, name: str = "time") -> int:
    """The number of timesteps nearest to a time; halves round up.

    Args:
        time: Duration in ms, at least 0.
        dt: Length of one timestep in ms.
        name: What an error calls the time.

    Raises:
        TimingError: If either is not a legal time.

    >>> nearest_steps(4.9, 2), nearest_steps(5, 2), nearest_steps(0.35, 0.1)
    (2, 3, 4)
    """
    ratio = _ratio(check_time(time, name), check_dt(dt), name)
    return math.floor(ratio + 0.5 + _tolerance(ratio))


def whole_steps(time: float, dt: float) -> int | None:
    """The number of timesteps that a time is, where it is a whole number of them.

    Args:
        time: Duration in ms, at least 0.
        dt: Length of one timestep in ms.

    Returns:
        The number, or None where the time ends between two timesteps.

    Raises:
        TimingError: If either is not a legal time.

    >>> whole_steps(1.1, 0.1), whole_steps(1.0, 2.0)
    (11, None)
    """
    ratio = _ratio(check_time(time, "time"), check_dt(dt), "time")
    nearest = round(ratio)
    return nearest if abs(ratio - nearest) <= _tolerance(ratio) else None


def containing_steps(times: torch.Tensor, dt: float) -> torch.Tensor:
    """The timestep in which each moment lies: ``floor(time / dt)``.

    A moment on a boundary, by the tolerance of this module, belongs to the timestep it begins.

    Args:
        times: Moments in ms from the start of timestep 0, finite and at least 0, of any shape.
        dt: Length of one timestep in ms.

    Returns:
        int64, of the shape of ``times``.

    Raises:
        TimingError: If a moment is negative, NaN or infinite, or ``dt`` is not a legal dt.

    >>> containing_steps(torch.tensor([0.0, 0.29, 0.3], dtype=torch.float64), dt=0.1).tolist()
    [0, 2, 3]
    """
    legal = torch.isfinite(times) & (times >= 0)
    if not bool(legal.all()):
        raise TimingError(
            f"A moment is {times[~legal].flatten()[0].item()} ms; expected a finite number of "
            "milliseconds of at least 0."
        )
    ratio = times.double() / check_dt(dt)
    tolerance = (_RELATIVE_TOLERANCE * ratio).clamp(min=_STEP_TOLERANCE, max=0.25)
    return (ratio + tolerance).floor().long()


def cumulative_steps(durations: Iterable[float], dt: float) -> tuple[int, ...]:
    """The boundaries of successive durations, each rounded to its nearest timestep.

    The running sum is rounded, not the single durations, so that rounding errors do not add up:
    every boundary is within half a timestep of its true time.

    Args:
        durations: Durations in ms, each at least 0.
        dt: Length of one timestep in ms.

    Returns:
        One boundary more than there are durations, from 0 to the number of timesteps.

    Raises:
        TimingError: If a duration or ``dt`` is not a legal time.

    >>> cumulative_steps([2.4, 2.4, 2.4], dt=1.0)
    (0, 2, 5, 7)
    """
    # Exact sums, so that the total does not depend on the order of the durations.
    ends = accumulate(Fraction(check_time(duration, "duration")) for duration in durations)
    return (0, *(nearest_steps(float(end), dt) for end in ends))


def common_dt(
    dts: Mapping[str, float],
    way_out: str = "pass the same dt to each, or set_dt=True to set what can be set",
) -> float:
    """The one timestep on which all sides agree.

    Args:
        dts: Timestep in ms by whose it is, such as ``{"model": 2.0, "presentation": 2.0}``.
        way_out: What the error tells the user to do.

    Returns:
        The first of them, in ms. They agree if they differ by less than a millionth.

    Raises:
        TimingError: If they disagree, naming each with its dt; if one is not a legal dt; if there
            are none.

    >>> common_dt({"model": 2.0, "presentation": 2})
    2.0
    >>> common_dt({"model": 2.0, "presentation": 1.0})
    Traceback (most recent call last):
    dynvision_snn.errors.TimingError: The timesteps disagree: model has dt = 2 ms, presentation has
    dt = 1 ms. To fix it, pass the same dt to each, or set_dt=True to set what can be set.
    """
    if not dts:
        raise TimingError("No dt was given to compare; expected at least one.")
    checked = {owner: check_dt(dt, f"dt of {owner}") for owner, dt in dts.items()}
    first, *others = checked.values()
    if not all(math.isclose(first, other, rel_tol=_DT_TOLERANCE) for other in others):
        listed = ", ".join(f"{owner} has dt = {format_ms(dt)}" for owner, dt in checked.items())
        raise TimingError(f"The timesteps disagree: {listed}. To fix it, {way_out}.")
    return first


def seconds_to_ms(seconds: float) -> float:
    """Seconds, in which Norse counts, as ms.

    >>> seconds_to_ms(0.001)
    1.0
    """
    return seconds * 1000.0


def ms_to_seconds(time: float) -> float:
    """Milliseconds as seconds, in which Norse counts.

    >>> ms_to_seconds(2.0)
    0.002
    """
    return time / 1000.0


def format_ms(time: float) -> str:
    """A time as it is printed, without the noise of binary floating point.

    >>> format_ms(3 * 0.1), format_ms(20.0)
    ('0.3 ms', '20 ms')
    """
    return f"{time:.10g} ms"


def format_steps(n_steps: int, dt: float | None) -> str:
    """A number of timesteps as it is printed, with its ms beside it where they are known.

    >>> format_steps(10, 2.0), format_steps(1, 0.5), format_steps(3, None)
    ('10 timesteps (20 ms)', '1 timestep (0.5 ms)', '3 timesteps')
    """
    counted = f"{n_steps} timestep{'' if n_steps == 1 else 's'}"
    return counted if dt is None else f"{counted} ({format_ms(n_steps * dt)})"


def format_timestep(step: int, dt: float | None) -> str:
    """One timestep as it is named in print, with the time at which it begins where it is known.

    >>> format_timestep(10, 2.0), format_timestep(-1, 2.0), format_timestep(3, None)
    ('timestep 10 (20 ms)', 'timestep -1 (-2 ms)', 'timestep 3')
    """
    return f"timestep {step}" if dt is None else f"timestep {step} ({format_ms(step * dt)})"


def decay_exact(tau: FloatOrTensor, dt: float) -> FloatOrTensor:
    """Decay per timestep of the exact solution: ``exp(-dt / tau)``.

    Args:
        tau: Time constant in ms, one or a tensor of them; 0 forgets at once, inf never.
        dt: Length of one timestep in ms.

    Returns:
        Decay in [0, 1], of the type, dtype and shape of ``tau``.

    Raises:
        TimingError: If a time constant is negative or NaN, or ``dt`` is not a legal dt.

    >>> round(decay_exact(10.0, dt=1.0), 6)
    0.904837
    """
    step = check_dt(dt)
    return _convert(
        tau,
        lambda t: torch.exp(-step / t),
        lambda t: t >= 0,
        "time constant",
        "a number of milliseconds of at least 0 (inf: no decay)",
    )


def decay_euler(tau: FloatOrTensor, dt: float) -> FloatOrTensor:
    """Decay per timestep of explicit Euler: ``1 - dt / tau``.

    Args:
        tau: Time constant in ms, one or a tensor of them; inf does not decay.
        dt: Length of one timestep in ms.

    Returns:
        Decay of at most 1, of the type, dtype and shape of ``tau``: below 0 where dt exceeds tau
        (the state changes sign every timestep), at or below -1 where it is unstable.

    Raises:
        TimingError: If a time constant is not above 0, or ``dt`` is not a legal dt.

    >>> decay_euler(10.0, dt=1.0)
    0.9
    """
    step = check_dt(dt)
    return _convert(
        tau,
        lambda t: 1 - step / t,
        lambda t: t > 0,
        "time constant",
        "a number of milliseconds above 0 (inf: no decay)",
    )


def time_constant_exact(decay: FloatOrTensor, dt: float) -> FloatOrTensor:
    """Time constant of an exact exponential decay: ``-dt / ln(decay)``.

    Args:
        decay: Decay per timestep in [0, 1], one or a tensor of them.
        dt: Length of one timestep in ms.

    Returns:
        Time constant in ms, of the type, dtype and shape of ``decay``; 0 for a decay of 0, inf for
        a decay of 1.

    Raises:
        TimingError: If a decay is outside [0, 1] or NaN, or ``dt`` is not a legal dt.

    >>> round(time_constant_exact(0.9, dt=1.0), 4)
    9.4912
    """
    step = check_dt(dt)
    return _convert(
        decay,
        # abs: ln(1) is +0, which would make -dt / ln(1) minus infinity.
        lambda d: step / torch.log(d).abs(),
        lambda d: (d >= 0) & (d <= 1),
        "decay",
        "a factor between 0 and 1 per timestep",
    )


def time_constant_euler(decay: FloatOrTensor, dt: float) -> FloatOrTensor:
    """Time constant of a decay under explicit Euler: ``dt / (1 - decay)``.

    Args:
        decay: Decay per timestep, at most 1 and finite, one or a tensor of them; below 0 where dt
            exceeds the time constant.
        dt: Length of one timestep in ms.

    Returns:
        Time constant in ms, of the type, dtype and shape of ``decay``; inf for a decay of 1.

    Raises:
        TimingError: If a decay is above 1, infinite or NaN, or ``dt`` is not a legal dt.

    >>> round(time_constant_euler(0.9, dt=1.0), 6)
    10.0
    """
    step = check_dt(dt)
    return _convert(
        decay,
        lambda d: step / (1 - d),
        lambda d: torch.isfinite(d) & (d <= 1),
        "decay",
        "a finite factor of at most 1 per timestep",
    )


def retimed_decay(decay: torch.Tensor, dt: float, new_dt: float) -> torch.Tensor:
    """The decay of an exact exponential over another timestep: ``decay ** (new_dt / dt)``.

    Args:
        decay: Decay per timestep of `dt`, in [0, 1].
        dt: Length in ms of the timestep that it belongs to.
        new_dt: Length in ms of the other timestep.

    Returns:
        Of the dtype and shape of `decay`.

    Raises:
        TimingError: If a decay is outside [0, 1] or NaN, or a timestep is not a legal dt.

    >>> retimed_decay(torch.tensor(0.81), dt=2.0, new_dt=1.0)
    tensor(0.9000)
    """
    ratio = check_dt(new_dt, "new_dt") / check_dt(dt)
    power = _convert(
        decay.double(),
        lambda d: d**ratio,
        lambda d: (d >= 0) & (d <= 1),
        "decay",
        "a factor between 0 and 1 per timestep",
    )
    return power.to(decay.dtype)


def gain_ratio(decay: torch.Tensor, dt: float, new_dt: float) -> torch.Tensor:
    """By what a lasting input must be multiplied to drive an exact decay as before.

    ``v[t + 1] = decay * v[t] + x`` settles at ``x / (1 - decay)``; over another timestep it settles
    there with ``x (1 - new_decay) / (1 - decay)``.

    Args:
        decay: Decay per timestep of `dt`, in [0, 1].
        dt: Length in ms of the timestep that it belongs to.
        new_dt: Length in ms of the other timestep.

    Returns:
        float64, of the shape of `decay`; ``new_dt / dt``, the limit, for a decay of 1.

    Raises:
        TimingError: If a decay is outside [0, 1] or NaN, or a timestep is not a legal dt.

    >>> gain_ratio(torch.tensor([0.81, 1.0]).double(), dt=2.0, new_dt=1.0).tolist()
    [0.526..., 0.5]
    """
    ratio = check_dt(new_dt, "new_dt") / check_dt(dt)

    def formula(decays: torch.Tensor) -> torch.Tensor:
        exponent = torch.log(decays)
        # expm1: the two differences cancel for slow decays.
        quotient = torch.expm1(ratio * exponent) / torch.expm1(exponent)
        return torch.where(decays == 1, ratio, quotient)

    return _convert(
        decay.double(),
        formula,
        lambda d: (d >= 0) & (d <= 1),
        "decay",
        "a factor between 0 and 1 per timestep",
    )


def integration_problem(
    tau: torch.Tensor, integrator: Literal["exact", "euler"], dt: float
) -> str | None:
    """What a timestep is too long for, in words.

    A timestep is coarse over a quarter of a time constant: the decay between two timesteps may
    still be exact, but inputs, spikes and resets are placed no finer than the timestep. Euler's
    step oscillates once dt exceeds tau and no longer decays from ``dt = 2 tau`` on.

    Args:
        tau: Time constants in ms, one or several, as the model behaves.
        integrator: Whether they come of exact decays or of Euler's.
        dt: Length of one timestep in ms.

    Returns:
        None where every time constant is at least four timesteps long. Waits for the device of
        `tau`.

    Raises:
        TimingError: If ``dt`` is not a legal dt.

    >>> integration_problem(torch.tensor([4.0, 10.0]), "exact", dt=2.0)
    'its time constant of 4 ms is only 2 timesteps of 2 ms (in 1 of 2 units): the integration is
    coarse. From dt = 1 ms on down it is not'
    >>> integration_problem(torch.tensor(10.0), "exact", dt=2.0)
    """
    step = check_dt(dt)
    taus = tau.detach().double().flatten()
    # A decay in float32 is known no better than this.
    coarse = step > taus * _COARSE * (1 + _DT_TOLERANCE)
    if not bool(coarse.any()):
        return None
    shortest = float(taus.min())
    where = f" (in {int(coarse.sum())} of {taus.numel()} units)" if taus.numel() > 1 else ""
    told = (
        f"its time constant of {format_ms(float(f'{shortest:.6g}'))} is only "
        f"{shortest / step:.3g} timesteps of {format_ms(step)}{where}: "
    )
    if integrator == "euler" and step >= 2 * shortest * (1 - _DT_TOLERANCE):
        told += "from dt = 2 tau on, Euler's step is unstable, and the state does not decay"
    elif integrator == "euler" and step > shortest * (1 + _DT_TOLERANCE):
        told += "Euler's step changes the state's sign at every timestep"
    else:
        told += "the integration is coarse"
    if shortest == 0:
        return f"{told}: the state is forgotten at once"
    return f"{told}. From dt = {format_ms(float(f'{shortest * _COARSE:.6g}'))} on down it is not"


def _real(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TimingError(f"{name} is {value!r}; expected a number.")
    return float(value)


def _ratio(time: float, dt: float, name: str) -> float:
    ratio = time / dt
    if math.isinf(ratio):
        raise TimingError(
            f"{name} of {format_ms(time)} at dt = {format_ms(dt)} is more timesteps than a float "
            "can count; check that both are in milliseconds."
        )
    return ratio


def _tolerance(ratio: float) -> float:
    # Under half a timestep, so that even a very long time cannot be moved past its neighbour.
    return min(max(_STEP_TOLERANCE, _RELATIVE_TOLERANCE * ratio), 0.25)


def _convert(
    value: FloatOrTensor,
    formula: Callable[[torch.Tensor], torch.Tensor],
    is_legal: Callable[[torch.Tensor], torch.Tensor],
    name: str,
    expected: str,
) -> FloatOrTensor:
    """Apply a formula to one number (in float64) or a tensor, after checking every value."""
    if isinstance(value, torch.Tensor):
        tensor = value if value.is_floating_point() else value.to(torch.get_default_dtype())
    else:
        tensor = torch.tensor(_real(value, name), dtype=torch.float64, device="cpu")
    legal = is_legal(tensor)
    if not bool(legal.all()):
        first = tensor[~legal].flatten()[0].item()
        raise TimingError(f"A {name} is {first}; expected {expected}.")
    result = formula(tensor)
    return result if isinstance(value, torch.Tensor) else float(result)
