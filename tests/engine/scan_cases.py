"""Neurons of both libraries, and how their own loops run them: the oracle of every scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
from norse.torch.functional.reset import reset_subtract
from norse.torch.module.snn import SNN, SNNRecurrent
from snntorch import surrogate
from torch import Tensor, nn

from dynvision_snn.adapters import norse_scan, snntorch_scan
from dynvision_snn.adapters.scan_spec import ScanSpec

UNITS = 5


@dataclass(frozen=True)
class Case:
    """One neuron.

    Attributes:
        make: builds it.
        spec: describes it.
        why_not: says why it cannot be scanned.
        features: what it takes per sample.
    """

    make: Callable[[], nn.Module]
    spec: Callable[[nn.Module], ScanSpec]
    why_not: Callable[[nn.Module], str | None]
    features: int = UNITS


SURROGATES = {
    "atan": lambda: surrogate.atan(1.7),
    "fast_sigmoid": lambda: surrogate.fast_sigmoid(12),
    "sigmoid": lambda: surrogate.sigmoid(4),
    "triangular": lambda: surrogate.triangular(0.6),
    "straight_through": surrogate.straight_through_estimator,
    "heaviside": surrogate.heaviside,
    "rate_escape": lambda: surrogate.spike_rate_escape(beta=0.7, slope=3),
    "sparse": lambda: surrogate.SFS(slope=9, B=-0.2),
}


def _snn(make: Callable[[], nn.Module]) -> Case:
    return Case(make, snntorch_scan.spec, snntorch_scan.why_not)


def _norse(make: Callable[[], nn.Module], features: int = UNITS) -> Case:
    return Case(make, norse_scan.spec, norse_scan.why_not, features)


def _per_unit(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, UNITS)


CASES: Mapping[str, Case] = {
    **{
        f"Leaky-{reset}-{'delayed' if delay else 'at once'}": _snn(
            lambda reset=reset, delay=delay: snn.Leaky(
                0.9, threshold=0.7, reset_mechanism=reset, reset_delay=delay
            )
        )
        for reset in ("subtract", "zero", "none")
        for delay in (True, False)
    },
    **{
        f"Leaky-learned-{reset}-{delay}": _snn(
            lambda reset=reset, delay=delay: snn.Leaky(
                0.8,
                threshold=0.9,
                learn_beta=True,
                learn_threshold=True,
                learn_graded_spikes_factor=True,
                graded_spikes_factor=1.3,
                reset_mechanism=reset,
                reset_delay=delay,
            )
        )
        for reset in ("subtract", "zero", "none")
        for delay in (True, False)
    },
    **{
        f"Leaky-per-unit-{reset}-{delay}": _snn(
            lambda reset=reset, delay=delay: snn.Leaky(
                _per_unit(0.5, 0.99),
                threshold=_per_unit(0.5, 1.5),
                learn_beta=True,
                learn_threshold=True,
                reset_mechanism=reset,
                reset_delay=delay,
            )
        )
        for reset in ("subtract", "zero")
        for delay in (True, False)
    },
    **{
        f"Leaky-{name}": _snn(lambda make=make: snn.Leaky(0.9, spike_grad=make()))
        for name, make in SURROGATES.items()
    },
    "Leaky-clamped": _snn(lambda: snn.Leaky(1.2, learn_beta=True)),
    "Leaky-surrogate-disabled": _snn(lambda: snn.Leaky(0.9, surrogate_disable=True)),
    "Leaky-surrogate-disabled-graded": _snn(
        lambda: snn.Leaky(
            0.9,
            surrogate_disable=True,
            learn_graded_spikes_factor=True,
            graded_spikes_factor=1.5,
        )
    ),
    "Leaky-worth-below-0": _snn(
        lambda: snn.Leaky(0.9, learn_graded_spikes_factor=True, graded_spikes_factor=-0.7)
    ),
    "Leaky-worth-otherwise-by-unit": _snn(
        lambda: snn.Leaky(0.9, graded_spikes_factor=torch.linspace(-1, 1, UNITS))
    ),
    **{
        f"Synaptic-{reset}-{delay}": _snn(
            lambda reset=reset, delay=delay: snn.Synaptic(
                0.7,
                0.8,
                learn_alpha=True,
                learn_beta=True,
                learn_threshold=True,
                reset_mechanism=reset,
                reset_delay=delay,
            )
        )
        for reset in ("subtract", "zero", "none")
        for delay in (True, False)
    },
    **{
        f"Lapicque-{reset}": _snn(
            lambda reset=reset: snn.Lapicque(
                R=5.0, C=2.0, time_step=0.8, threshold=0.3, reset_mechanism=reset
            )
        )
        for reset in ("subtract", "zero", "none")
    },
    "Lapicque-beta": _snn(lambda: snn.Lapicque(beta=0.8, threshold=0.3, learn_threshold=True)),
    **{
        f"RLeaky-{reset}-{delay}": _snn(
            lambda reset=reset, delay=delay: snn.RLeaky(
                0.85,
                linear_features=UNITS,
                learn_beta=True,
                learn_threshold=True,
                reset_mechanism=reset,
                reset_delay=delay,
            )
        )
        for reset in ("subtract", "zero", "none")
        for delay in (True, False)
    },
    "RLeaky-one-to-one": _snn(lambda: snn.RLeaky(0.85, V=0.3, all_to_all=False)),
    "RLeaky-one-to-one-per-unit": _snn(
        lambda: snn.RLeaky(0.85, V=_per_unit(-0.5, 0.5), all_to_all=False, reset_mechanism="zero")
    ),
    **{
        f"LIF-{method}": _norse(
            lambda method=method: norse.LIF(
                norse.LIFParameters(
                    method=method, alpha=torch.tensor(0.8), v_reset=torch.tensor(-0.1)
                )
            )
        )
        for method in ("super", "heaviside", "triangle", "tanh", "circ", "heavi_erfc")
    },
    "LIFCell": _norse(
        lambda: norse.LIFCell(norse.LIFParameters(v_leak=torch.tensor(0.1)), dt=0.002)
    ),
    "LIFBoxCell": _norse(lambda: norse.LIFBoxCell(norse.LIFBoxParameters(v_th=torch.tensor(0.3)))),
    "LIFBoxCell-subtract": _norse(
        lambda: norse.LIFBoxCell(
            norse.LIFBoxParameters(reset_method=reset_subtract, v_th=torch.tensor(0.4))
        )
    ),
    "LI": _norse(lambda: norse.LI()),
    "LICell": _norse(lambda: norse.LICell(norse.LIParameters(v_leak=torch.tensor(0.2)))),
    "LILinearCell": _norse(lambda: norse.LILinearCell(3, UNITS), features=3),
    "LIBoxCell": _norse(lambda: norse.LIBoxCell()),
    "IAF": _norse(lambda: norse.IAF(norse.IAFParameters(v_th=torch.tensor(1.5)))),
    "IAFCell": _norse(lambda: norse.IAFCell()),
    "LIFRecurrent": _norse(lambda: norse.LIFRecurrent(3, UNITS), features=3),
    "LIFRecurrentCell": _norse(
        lambda: norse.LIFRecurrentCell(3, UNITS, norse.LIFParameters(v_th=torch.tensor(0.4))),
        features=3,
    ),
}


@dataclass(frozen=True)
class Ran:
    """What a library's own loop gave; ``[T, B, *units]`` each, and the last state in our words."""

    spikes: Tensor | None
    membrane: Tensor
    current: Tensor | None
    state: dict[str, Tensor]


def own_loop(module: nn.Module, inputs: Tensor, state: dict[str, Tensor] | None = None) -> Ran:
    """Runs `module` over ``[T, B, *features]`` as its library's users do."""
    if isinstance(module, snn.SpikingNeuron):
        return _snntorch_loop(module, inputs, state)
    return _norse_loop(module, inputs, state)


def _snntorch_loop(module: Any, inputs: Tensor, state: dict[str, Tensor] | None) -> Ran:
    order = {
        snn.Synaptic: ("current", "membrane"),
        snn.RLeaky: ("spikes", "membrane"),
    }.get(type(module), ("membrane",))
    passed = tuple(state[name] for name in order) if state else ()
    if not passed:
        # A state of another shape than the input starts from zero.
        for name in ("mem", "syn", "spk"):
            if hasattr(module, name):
                setattr(module, name, torch.zeros(0))
    spikes, membranes, currents = [], [], []
    for x in inputs:
        out = module(x, *passed)
        passed = tuple(out) if isinstance(module, snn.RLeaky) else tuple(out[1:])
        spikes.append(out[0])
        membranes.append(out[-1])
        currents.append(out[1])
    last = dict(zip(order, passed, strict=True))
    return Ran(
        torch.stack(spikes),
        torch.stack(membranes),
        torch.stack(currents) if isinstance(module, snn.Synaptic) else None,
        last,
    )


def _norse_loop(module: Any, inputs: Tensor, state: dict[str, Tensor] | None) -> Ran:
    names = {"v": "membrane", "i": "current", "z": "spikes"}
    sequence = isinstance(module, SNN | SNNRecurrent)
    passed = None
    if state:
        _, example = module(inputs[:1] if sequence else inputs[0])
        passed = type(example)(**{n: state[names[n]] for n in example._fields})
    outputs, states = [], []
    for x in inputs:
        # One timestep at a time, so that every state is seen.
        output, passed = module(x.unsqueeze(0) if sequence else x, passed)
        outputs.append(output[0] if sequence else output)
        states.append(passed)
    integrates = isinstance(module, norse.LI | norse.LICell | norse.LILinearCell | norse.LIBoxCell)
    return Ran(
        None if integrates else torch.stack(outputs),
        torch.stack([s.v for s in states]),
        torch.stack([s.i for s in states]) if hasattr(passed, "i") else None,
        {names[n]: value for n, value in passed._asdict().items()},
    )
