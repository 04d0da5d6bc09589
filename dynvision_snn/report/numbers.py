"""Numbers as text: significant digits, SI prefixes, and a mark where there is no number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real

__all__ = ["NO_VALUE", "MeanSD", "number", "scale"]

NO_VALUE = "–"
"""What stands for a missing or undefined number."""

_PREFIXES = {-15: "f", -12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}


@dataclass(frozen=True)
class MeanSD:
    """A mean over several runs, and their standard deviation (over one less than the runs).

    >>> number(MeanSD(0.973, 0.004))
    '0.973 ± 0.004'
    """

    mean: float
    sd: float

    def __truediv__(self, factor: float) -> MeanSD:
        return MeanSD(self.mean / factor, self.sd / abs(factor))


def scale(values: Iterable[float | None]) -> tuple[float, str]:
    """The factor and SI prefix that bring the largest of some values between 1 and 1000.

    One prefix for all of them, so that they can be compared at sight.

    >>> scale([3.2e-8, 4e-10, None])
    (1e-09, 'n')
    """
    known = [abs(value) for value in values if value is not None and math.isfinite(value)]
    largest = max(known, default=0.0)
    if not largest:
        return 1.0, ""
    # The digits that will be shown decide: 999.7 is shown as 1000, which has a prefix of its own.
    exponent = math.floor(math.log10(float(f"{largest:.3g}")) / 3) * 3
    exponent = min(max(exponent, min(_PREFIXES)), max(_PREFIXES))
    return 10.0**exponent, _PREFIXES[exponent]


def number(value: object, *, digits: int = 3, decimals: int | None = None) -> str:
    """A number for a table.

    Args:
        value: A number; whole numbers are shown whole. None and NaN are shown as `NO_VALUE`,
            anything else as its own text.
        digits: Significant digits of a number that is not whole.
        decimals: Digits after the point instead, the same for all of a column.

    >>> number(1234567), number(0.97345), number(97.345, decimals=1), number(float("nan"))
    ('1,234,567', '0.973', '97.3', '–')
    """
    if value is None:
        return NO_VALUE
    if isinstance(value, MeanSD):
        return _mean_sd(value, digits, decimals)
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral) and decimals is None:
        return f"{int(value):,}"
    real = float(value)
    if math.isnan(real):
        return NO_VALUE
    if math.isinf(real):
        return "∞" if real > 0 else "-∞"
    return _significant(real, digits) if decimals is None else f"{real:,.{decimals}f}"


def _significant(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    exponent = math.floor(math.log10(abs(rounded)))
    if not -4 <= exponent < 7:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}"


def _mean_sd(value: MeanSD, digits: int, decimals: int | None) -> str:
    """Both to the same place, so that the second says how much of the first means something."""
    mean = number(float(value.mean), digits=digits, decimals=decimals)
    if mean == NO_VALUE or math.isnan(value.sd):
        return mean
    if decimals is not None:
        return f"{mean} ± {number(float(value.sd), decimals=decimals)}"
    if "e" in mean or value.mean == 0:
        return f"{mean} ± {number(float(value.sd), digits=2)}"
    return f"{mean} ± {value.sd:,.{len(mean.partition('.')[2])}f}"
