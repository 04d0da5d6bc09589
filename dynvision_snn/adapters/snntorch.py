"""snnTorch: neurons that keep their state in buffers of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from dynvision_snn.adapters.base import (
    Adapter,
    Call,
    InnerSynapses,
    LayerTraits,
    Reading,
    Role,
    TimeConstant,
)
from dynvision_snn.adapters.catalogue import class_of
from dynvision_snn.errors import AdapterError
from dynvision_snn.timing import time_constant_exact


@dataclass(frozen=True, slots=True)
class Row:
    """One neuron class: its state buffers, in the order of its arguments, and our names of them."""

    state: Mapping[str, str]
    decays: Mapping[str, str] = field(default_factory=lambda: {"membrane": "beta"})
    recurrent: bool = False


TABLE: Mapping[type[nn.Module], Row] = {
    snn.Leaky: Row({"mem": "membrane"}),
    snn.Synaptic: Row(
        {"syn": "current", "mem": "membrane"}, {"membrane": "beta", "synapse": "alpha"}
    ),
    snn.RLeaky: Row({"spk": "spikes", "mem": "membrane"}, recurrent=True),
}


class SnnTorchAdapter(Adapter):
    """Serves the neurons of snnTorch 1.0."""

    @property
    def library(self) -> str:
        """The library's import name."""
        return "snntorch"

    def traits(self, module: nn.Module) -> LayerTraits | None:
        """What is known of `module`, or None where it is no neuron of snnTorch."""
        if _row(module) is None:
            if isinstance(module, snn.SpikingNeuron):
                raise AdapterError(f"snnTorch's {type(module).__name__} is not served.")
            return None
        if module.reset_mechanism == "none":
            return LayerTraits(Role.SPIKING, membrane="before")
        return LayerTraits(Role.SPIKING, membrane="before" if module.reset_delay else "after")

    def read(self, module: nn.Module, call: Call) -> Reading:
        """Spikes, the membrane, and the synaptic current."""
        row = _known_row(module)
        values = {ours: getattr(module, theirs) for theirs, ours in row.state.items()}
        membrane = values.pop("membrane")
        values.pop("spikes", None)
        spikes = call.output if isinstance(call.output, Tensor) else call.output[0]
        return Reading(spikes, membrane, values)

    def state(self, module: nn.Module) -> dict[str, Any]:
        """The state buffers, by reference."""
        return {name: getattr(module, name) for name in _known_row(module).state}

    def restore(self, module: nn.Module, state: Mapping[str, Any]) -> None:
        """Puts back what `state` returned."""
        for name, value in state.items():
            setattr(module, name, value)

    def reset(self, module: nn.Module) -> None:
        """Empties the state buffers, so that the next call starts from zeros like its input."""
        for name in _known_row(module).state:
            setattr(module, name, torch.zeros(0, device=getattr(module, name).device))

    def synapses(self, module: nn.Module) -> Sequence[InnerSynapses]:
        """The recurrent connection."""
        if not _known_row(module).recurrent:
            return ()
        if isinstance(module.recurrent, nn.Linear | nn.Conv2d):
            return (InnerSynapses("recurrent", module.recurrent, "module"),)
        return (InnerSynapses("recurrent", module.recurrent.V, "diagonal"),)

    def presynaptic(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor | None, ...]:
        """The spikes of the previous timestep."""
        if not _known_row(module).recurrent:
            return ()
        call = Call(args, kwargs, None)
        passed = call.argument(1, "spk")
        spikes = module.spk if passed is None else passed
        return (spikes if spikes.shape == call.inputs.shape else None,)

    def time_constants(self, module: nn.Module, dt: float) -> Sequence[TimeConstant]:
        """``-dt / ln(decay)`` of the clamped decays."""
        return tuple(
            TimeConstant(
                name, time_constant_exact(getattr(module, decay).detach().clamp(0, 1), dt), "exact"
            )
            for name, decay in _known_row(module).decays.items()
        )

    def is_fresh(self, module: nn.Module, call: Call) -> bool:
        """False: a neuron that was passed no state goes on from its own."""
        return False


def _row(module: nn.Module) -> Row | None:
    cls = class_of(module, TABLE)
    return None if cls is None else TABLE[cls]


def _known_row(module: nn.Module) -> Row:
    row = _row(module)
    assert row is not None
    return row
