"""By how much weights and biases change, so that neurons act at another timestep as before.

Each neuron layer demands that what it receives be multiplied by two factors: one for what comes as
spikes, one for what lasts. The affine layer that feeds it takes over the demand: its weights are
multiplied by the factor of what they receive, its bias by that of what lasts. Where it lies behind
another affine layer, what is still to be done is demanded of that one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dynvision_snn.adapters import InnerSynapses, Layer, Role
from dynvision_snn.engine.feeding import (
    AFFINE,
    Feeding,
    Part,
    Signal,
    affine_bias,
    fires_events,
)
from dynvision_snn.errors import TimingError
from dynvision_snn.observation import Watched
from dynvision_snn.timing import format_ms

# Factors that differ by less are the same.
_SAME = 1e-9

_UNKNOWN: Signal = frozenset({Part("unclear", "nothing that could be followed")})


@dataclass(frozen=True, eq=False, slots=True)
class _Demand:
    """By what a signal must be multiplied: what of it are spikes, and what of it lasts."""

    who: str
    spikes: Tensor
    analog: Tensor

    def of(self, content: Set[str]) -> Tensor:
        """The factor of a weight that receives such content."""
        return self.spikes if "spikes" in content else self.analog

    def differs_from(self, other: _Demand, content: Set[str]) -> bool:
        pairs = [(self.spikes, other.spikes)] if "spikes" in content else []
        pairs += [(self.analog, other.analog)] if "analog" in content else []
        return not all(_same(one, two) for one, two in pairs)


class Scaling:
    """Gives a model's neurons another timestep, and multiplies weights and biases upstream of them.

    Args:
        watched: the modules of the model; it is changed.
        feeding: what its layers receive, as a copy of it showed.
        output: what its output is made of.
        dt: length of its timestep in ms.
        new_dt: length of the new timestep in ms.
    """

    def __init__(
        self,
        watched: Sequence[Watched],
        feeding: Feeding,
        output: Signal,
        dt: float,
        new_dt: float,
    ) -> None:
        self._feeding, self._output = feeding, output
        self._dt, self._new_dt = dt, new_dt
        self._layers = {
            item.name: item.layer for item in watched if item.layer and item.layer.is_stateful
        }
        self._affine = {
            item.name: item.module for item in watched if isinstance(item.module, AFFINE)
        }
        self._demands: dict[str, list[_Demand]] = {}
        self._scaled: dict[int, str] = {}

    def applied(self) -> Iterator[str]:
        """Does it; yields what the user should know.

        Raises:
            TimingError: where a connection cannot be told or scaled.
            AdapterError: if a neuron family has no rule.
        """
        yield from self._late_notes()
        for name, layer in self._layers.items():
            if name in self._feeding.received:
                yield from self._retime_layer(layer, self._feeding.received[name] or _UNKNOWN)
            else:
                layer.adapter.retime(layer.module, self._dt, self._new_dt)
                yield f"layer {name!r} was not reached: what would reach it is not scaled."
        one = torch.ones((), dtype=torch.float64)
        for name, operation in self._feeding.taken.items():
            self._demand(
                frozenset({Part("affine", name)}), _Demand(f"the operation {operation!r}", one, one)
            )
        if any(part.kind == "affine" for part in self._output):
            self._demand(self._output, _Demand("the model's output", one, one))
        for name in self._downstream_first():
            self._scale_affine(name)

    def _late_notes(self) -> Iterator[str]:
        for late in self._feeding.late():
            if late.part.kind in ("affine", "unclear"):
                raise TimingError(
                    f"{late.consumer!r} receives what {late.part.source!r} made a timestep "
                    "earlier: the model's forward keeps a state by itself, of which no rule is "
                    "known. Use a neuron module of its library, or train at the dt that is wanted."
                )
            yield (
                f"the spikes of {late.part.source!r} reach {late.consumer!r} one timestep later "
                f"through the model's own forward: this delay changes from {format_ms(self._dt)} "
                f"to {format_ms(self._new_dt)}."
            )

    def _retime_layer(self, layer: Layer, signal: Signal) -> Iterator[str]:
        retimed = layer.adapter.retime(layer.module, self._dt, self._new_dt)
        for note in retimed.notes:
            yield f"layer {layer.name!r}: {note}."
        if layer.traits.role is Role.SPIKING and not fires_events(layer):
            yield (
                f"layer {layer.name!r} is never reset, so that it spikes at every timestep above "
                "its threshold: the number of its spikes follows dt, and what it drives is scaled "
                "as by a value that lasts."
            )
        demand = _Demand(
            f"layer {layer.name!r}", _reduced(retimed.spikes), _reduced(retimed.analog)
        )
        upstream = demand
        for synapses in layer.adapter.synapses(layer.module):
            if synapses.name == "recurrent":
                kind = {"spikes" if fires_events(layer) else "analog"}
                self._scale_inner(layer, synapses, demand.of(kind), demand.analog)
            elif synapses.name == "input":
                content = self._feeding.content(signal)
                self._scale_inner(layer, synapses, demand.of(content), demand.analog)
                upstream = _after_weight(demand, content)
        self._demand(signal, upstream)

    def _scale_inner(
        self, layer: Layer, synapses: InnerSynapses, factor: Tensor, of_bias: Tensor
    ) -> None:
        name = f"{layer.name}.{synapses.name}"
        operator = synapses.operator
        if isinstance(operator, nn.Module):
            self._multiply_module(name, operator, factor, of_bias)
        elif synapses.form == "diagonal":
            self._multiply(name, operator, factor)
        else:
            self._multiply(name, operator, _along(factor, operator, name), axis=0)

    # -- signals ----------------------------------------------------------------------------------

    def _demand(self, signal: Signal, demand: _Demand) -> None:
        """Asks everything that a signal is made of for a factor."""
        for part in signal:
            if part.kind == "affine":
                self._demands.setdefault(part.source, []).append(demand)
                continue
            factors = {
                "spikes": [demand.spikes],
                "analog": [demand.analog],
                "unclear": [demand.spikes, demand.analog],
            }[part.kind]
            if not all(_is_one(factor) for factor in factors):
                raise TimingError(self._no_weights(part, demand))

    def _no_weights(self, part: Part, demand: _Demand) -> str:
        needed = f"{demand.who} needs its input multiplied by {_number(demand.analog)} where it "
        needed += f"lasts and by {_number(demand.spikes)} where it is spikes"
        if part.kind == "unclear":
            return (
                f"{needed}, but it is not clear which of the two is what reaches it through "
                f"{part.source}. Connect it by a Linear or a convolution, or train at the dt that "
                "is wanted."
            )
        what = "spikes" if part.kind == "spikes" else "a lasting value"
        return (
            f"{needed}, but {part.source!r} reaches it as {what} with no weight of its own that "
            "could be multiplied. Put a Linear, a convolution or a normalisation between them."
        )

    # -- affine layers ----------------------------------------------------------------------------

    def _downstream_first(self) -> list[str]:
        """Affine layers so that each comes after those that it feeds."""
        order: list[str] = []

        def visit(name: str) -> None:
            if name in order:
                return
            for other, signal in self._feeding.received.items():
                fed = any(part.kind == "affine" and part.source == name for part in signal)
                if fed and other in self._affine and other != name:
                    visit(other)
            order.append(name)

        for name in self._affine:
            visit(name)
        return order

    def _scale_affine(self, name: str) -> None:
        demands = self._demands.get(name)
        if not demands:
            return
        module, received = self._affine[name], self._feeding.received[name]
        content = self._feeding.content(received)
        whole = content | ({"analog"} if affine_bias(module) is not None else set())
        demand = demands[0]
        for other in demands[1:]:
            if demand.differs_from(other, whole):
                raise TimingError(
                    f"{name!r} feeds both {demand.who} and {other.who}, which need its output "
                    f"multiplied by different numbers. Give each a layer of its own."
                )
        if _is_one(demand.spikes) and _is_one(demand.analog):
            return
        if "unclear" in content:
            part = next(iter(received))
            raise TimingError(
                f"what {name!r} receives, through {part.source}, is neither clearly spikes nor "
                f"clearly a value that lasts, so that what it hands to {demand.who} cannot be "
                "scaled. Train at the dt that is wanted."
            )
        factor = demand.of(content)
        if isinstance(module, _BatchNorm):
            self._scale_normalisation(name, module, factor, demand.analog)
        else:
            self._multiply_module(name, module, factor, demand.analog)
        upstream = _after_weight(demand, content)
        asks_for_many = upstream.spikes.ndim > 0 or upstream.analog.ndim > 0
        if asks_for_many and any(part.kind == "affine" for part in received):
            raise TimingError(
                f"{name!r} lies between another layer's bias and {demand.who}, whose units have "
                "time constants of their own: no one factor for that bias serves all of them. "
                "Leave the bias out."
            )
        self._demand(received, upstream)

    def _scale_normalisation(
        self, name: str, module: _BatchNorm, factor: Tensor, analog: Tensor
    ) -> None:
        """Multiplies what a batch normalisation makes of its input, and what it adds itself.

        In evaluation mode it gives ``weight * x / std + (bias - weight * mean / std)``.
        """
        if not module.affine or not module.track_running_stats:
            raise TimingError(
                f"{name!r} is a {type(module).__name__} without weights (affine=False) or without "
                "running statistics, so that its output cannot be multiplied."
            )
        assert module.running_mean is not None
        assert module.running_var is not None
        with torch.no_grad():
            by, of_bias = (
                _along(each, module, name).to(module.weight.device) for each in (factor, analog)
            )
            deviation = (module.running_var.double() + module.eps).sqrt()
            drift = module.weight.double() * module.running_mean.double() / deviation
            bias = of_bias * module.bias.double() + (by - of_bias) * drift
            module.bias.copy_(bias)
        self._multiply(name, module.weight, by, axis=0)

    def _multiply_module(
        self, name: str, module: nn.Module, factor: Tensor, of_bias: Tensor
    ) -> None:
        own = dict(module.named_parameters(recurse=False))
        bias = affine_bias(module)
        if "weight" not in own or (bias is not None and "bias" not in own):
            raise TimingError(
                f"the weight of {name!r} is computed from others (parametrised or pruned) and "
                "cannot be multiplied. Make it permanent first, such as with "
                "torch.nn.utils.parametrize.remove_parametrizations."
            )
        axis = 1 if isinstance(module, _ConvTransposeNd) else 0
        if axis == 1 and factor.ndim and module.groups != 1:
            raise TimingError(
                f"{name!r} is a transposed convolution in groups, and the units of what it feeds "
                "have time constants of their own, for which no rule is written."
            )
        self._multiply(name, own["weight"], _along(factor, module, name), axis)
        if bias is not None:
            self._multiply(f"{name} (bias)", own["bias"], _along(of_bias, module, name), axis=0)

    @torch.no_grad()
    def _multiply(self, name: str, value: Tensor, factor: Tensor, axis: int | None = None) -> None:
        other = self._scaled.setdefault(id(value), name)
        if other != name:
            raise TimingError(
                f"{name!r} and {other!r} share a weight, and would multiply it twice. Give each "
                "a weight of its own."
            )
        factor = factor.to(value.device)
        if axis is not None and factor.ndim == 1:
            factor = factor.view([-1 if a == axis else 1 for a in range(value.ndim)])
        if torch.broadcast_shapes(factor.shape, value.shape) != value.shape:
            raise TimingError(
                f"{name!r} has one weight for all units, and they have time constants of their "
                "own. Give it a weight for each."
            )
        value.copy_(value.double() * factor)


# -- factors --------------------------------------------------------------------------------------


def _reduced(factor: Tensor) -> Tensor:
    """One number, where all units have the same; on the CPU."""
    factor = factor.detach().cpu()
    first = factor.flatten()[0]
    return first if bool(((factor - first).abs() <= _SAME * first.abs()).all()) else factor


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one - other).abs() <= _SAME * one.abs()).all())


def _is_one(factor: Tensor) -> bool:
    return factor.ndim == 0 and math.isclose(float(factor), 1.0, rel_tol=_SAME)


def _after_weight(demand: _Demand, content: Set[str]) -> _Demand:
    """What is still asked of the input of a weight that was multiplied as its content calls for."""
    factor = demand.of(content)
    return _Demand(demand.who, _reduced(demand.spikes / factor), _reduced(demand.analog / factor))


def _along(factor: Tensor, operator: Tensor | nn.Module, name: str) -> Tensor:
    """A factor by unit as one by output of a weight: one number, or one for each.

    Raises:
        TimingError: where the units are not the outputs of the weight.
    """
    if factor.ndim == 0:
        return factor
    n_outputs, n_axes = _outputs(operator)
    squeezed = factor.flatten()
    at = -1 - n_axes
    if squeezed.numel() != n_outputs or factor.ndim < -at or factor.shape[at] != n_outputs:
        raise TimingError(
            f"the time constants of the units that {name!r} feeds have the shape "
            f"{list(factor.shape)}, which is not one for each of its {n_outputs} outputs. Use one "
            "time constant for the layer, or one for each output."
        )
    return squeezed


def _outputs(operator: Tensor | nn.Module) -> tuple[int, int]:
    """The number of outputs (or channels) of a weight, and of the spatial axes behind them."""
    match operator:
        case Tensor():
            return operator.shape[0], 0
        case nn.Linear():
            return operator.out_features, 0
        case _ConvNd():
            return operator.out_channels, len(operator.kernel_size)
        case _BatchNorm():
            axes = {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
            return operator.num_features, axes.get(type(operator), 0)
    raise TimingError(f"{type(operator).__name__} has no weight that could be multiplied by unit.")


def _number(factor: Tensor) -> str:
    low, high = float(factor.min()), float(factor.max())
    return f"{low:.4g}" if math.isclose(low, high) else f"{low:.4g} to {high:.4g}"
