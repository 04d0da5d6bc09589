"""Surrogate slopes compiled for the CPU, each when it is first used.

The formulas are those of `adapters.scan_spec.SurrogateKind`, in the order of operations of the
libraries. Each function writes `out` from the membranes `before` the reset and the `threshold`,
``[n]``: n values for every timestep, one timestep after the other.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from dynvision_snn.adapters.scan_spec import SurrogateKind
from dynvision_snn.jit import outer


@outer
def _heaviside(a, b, before, threshold, out):
    n = threshold.size
    for row in range(0, before.size, n):
        v = before[row:]
        slope = out[row:]
        for j in range(n):
            slope[j] = np.float32(v[j] - threshold[j] > np.float32(0))


@outer
def _atan(a, b, before, threshold, out):
    half = a / np.float32(2)
    scale = np.float32(1.5707963267948966) * a
    n = threshold.size
    for row in range(0, before.size, n):
        v = before[row:]
        slope = out[row:]
        for j in range(n):
            y = scale * (v[j] - threshold[j])
            slope[j] = half / (np.float32(1) + y * y)


@outer
def _sparse_sigmoid(a, b, before, threshold, out):
    n = threshold.size
    for row in range(0, before.size, n):
        v = before[row:]
        slope = out[row:]
        for j in range(n):
            y = a * abs(v[j] - threshold[j]) + np.float32(1)
            slope[j] = np.float32(v[j] - threshold[j] > b) / (y * y)


def _fast_sigmoid(a, b, before, threshold, out):
    _sparse_sigmoid(a, np.float32(-np.inf), before, threshold, out)


@outer
def _sigmoid(a, b, before, threshold, out):
    n = threshold.size
    for row in range(0, before.size, n):
        v = before[row:]
        slope = out[row:]
        for j in range(n):
            e = math.exp(-a * (v[j] - threshold[j]))
            slope[j] = a * e / ((e + np.float32(1)) * (e + np.float32(1)))


@outer
def _sign(a, b, before, threshold, out):
    n = threshold.size
    for row in range(0, before.size, n):
        v = before[row:]
        slope = out[row:]
        for j in range(n):
            slope[j] = a if v[j] - threshold[j] < np.float32(0) else -a


@outer
def _rate_escape(a, b, before, threshold, out):
    n = threshold.size
    for row in range(0, before.size, n):
        v = before[row:]
        slope = out[row:]
        for j in range(n):
            slope[j] = b * math.exp(-a * abs(v[j] - threshold[j] - np.float32(1)))


@outer
def _triangle(a, b, before, threshold, out):
    zero = np.float32(0)
    n = threshold.size
    for row in range(0, before.size, n):
        v = before[row:]
        slope = out[row:]
        for j in range(n):
            y = np.float32(1) - abs(v[j] - threshold[j])
            slope[j] = a * y if y > zero else zero


@outer
def _tanh(a, b, before, threshold, out):
    n = threshold.size
    for row in range(0, before.size, n):
        v = before[row:]
        slope = out[row:]
        for j in range(n):
            y = math.tanh(a * (v[j] - threshold[j]))
            slope[j] = np.float32(1) - y * y


@outer
def _circle(a, b, before, threshold, out):
    n = threshold.size
    for row in range(0, before.size, n):
        v = before[row:]
        slope = out[row:]
        for j in range(n):
            y = v[j] - threshold[j]
            y = a / math.sqrt(a * a + y * y)
            slope[j] = y * y * y


@outer
def _erfc(a, b, before, threshold, out):
    scale = np.float32(1.1283791670955126)
    n = threshold.size
    for row in range(0, before.size, n):
        v = before[row:]
        slope = out[row:]
        for j in range(n):
            y = a * (v[j] - threshold[j])
            slope[j] = scale * math.exp(-(y * y))


def _constant(value: float) -> Callable[..., None]:
    def fill(a, b, before, threshold, out):
        out.fill(value)

    return fill


SLOPES: Mapping[SurrogateKind, Callable[..., None]] = {
    SurrogateKind.NONE: _constant(0.0),
    SurrogateKind.STRAIGHT_THROUGH: _constant(1.0),
    SurrogateKind.HEAVISIDE: _heaviside,
    SurrogateKind.ATAN: _atan,
    SurrogateKind.FAST_SIGMOID: _fast_sigmoid,
    SurrogateKind.SPARSE_SIGMOID: _sparse_sigmoid,
    SurrogateKind.SIGMOID: _sigmoid,
    SurrogateKind.SIGN: _sign,
    SurrogateKind.RATE_ESCAPE: _rate_escape,
    SurrogateKind.TRIANGLE: _triangle,
    SurrogateKind.TANH: _tanh,
    SurrogateKind.CIRCLE: _circle,
    SurrogateKind.ERFC: _erfc,
}
"""``SLOPES[kind](a, b, before, threshold, out)``."""
