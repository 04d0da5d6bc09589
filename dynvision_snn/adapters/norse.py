"""Norse: neurons that take and return their state, and keep none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import norse.torch as norse
import torch
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
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
from dynvision_snn.timing import ms_to_seconds, seconds_to_ms

VOCABULARY = {"i": "current"}


@dataclass(frozen=True, slots=True)
class Row:
    """One neuron class."""

    role: Role = Role.SPIKING
    sequence: bool = False
    recurrent: bool = False


TABLE: Mapping[type[nn.Module], Row] = {
    norse.LIFCell: Row(),
    norse.LIF: Row(sequence=True),
    norse.LIFRecurrentCell: Row(recurrent=True),
    norse.LIFRecurrent: Row(recurrent=True, sequence=True),
    norse.LICell: Row(Role.INTEGRATOR),
    norse.LI: Row(Role.INTEGRATOR, sequence=True),
}

CONTAINERS = (norse.SequentialState, norse.RecurrentSequential, norse.Lift)


class NorseAdapter(Adapter):
    """Serves the neurons of Norse 1.1."""

    @property
    def library(self) -> str:
        """The library's import name."""
        return "norse"

    def traits(self, module: nn.Module) -> LayerTraits | None:
        """What is known of `module`, or None where it is no neuron of Norse."""
        row = _row(module)
        if row is None:
            if isinstance(module, SNN | SNNCell | SNNRecurrent | SNNRecurrentCell):
                raise AdapterError(f"Norse's {type(module).__name__} is not served.")
            return None
        return LayerTraits(
            row.role,
            sequence=row.sequence,
            membrane="after",
            dt=seconds_to_ms(float(module.dt)),
        )

    def read(self, module: nn.Module, call: Call) -> Reading:
        """Spikes (or the membrane of a leaky integrator) and the state that is returned."""
        row = _known_row(module)
        output, state = call.output
        if row.sequence and not module.record_states:
            return Reading(output, output if row.role is Role.INTEGRATOR else None)
        values = state._asdict()
        return Reading(
            output,
            values["v"],
            {ours: values[theirs] for theirs, ours in VOCABULARY.items() if theirs in values},
        )

    def synapses(self, module: nn.Module) -> Sequence[InnerSynapses]:
        """Input and recurrent weights."""
        if not _known_row(module).recurrent:
            return ()
        return (
            InnerSynapses("input", module.input_weights),
            InnerSynapses("recurrent", module.recurrent_weights),
        )

    def presynaptic(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor | None, ...]:
        """The input, and the spikes of the state that is passed."""
        if not _known_row(module).recurrent:
            return ()
        call = Call(args, kwargs, None)
        state = call.argument(1, "state")
        return (call.inputs, None if state is None else state.z)

    def presynaptic_sequence(
        self, module: nn.Module, before: tuple[Tensor | None, ...], call: Call, reading: Reading
    ) -> tuple[Tensor | None, ...]:
        """The input, and the layer's own spikes one timestep later."""
        if not _known_row(module).sequence or not before:
            return before
        inputs, first = before
        spikes = reading.output.detach()
        first = torch.zeros_like(spikes[0]) if first is None else first
        return (inputs, torch.cat([first.unsqueeze(0), spikes[:-1]]))

    def time_constants(self, module: nn.Module, dt: float) -> Sequence[TimeConstant]:
        """The parameters' inverse time constants (1/s) in ms."""
        return (
            TimeConstant("membrane", 1000 / torch.as_tensor(module.p.tau_mem_inv), "euler"),
            TimeConstant("synapse", 1000 / torch.as_tensor(module.p.tau_syn_inv), "euler"),
        )

    def set_dt(self, module: nn.Module, dt: float) -> None:
        """Sets the module's timestep, which Norse keeps in seconds."""
        module.dt = ms_to_seconds(dt)  # type: ignore[assignment]

    @contextmanager
    def recording(self, module: nn.Module) -> Iterator[None]:
        """While entered, a whole-sequence layer returns its state at every timestep."""
        if not _known_row(module).sequence:
            yield
            return
        before = module.record_states
        module.record_states = True  # type: ignore[assignment]
        try:
            yield
        finally:
            module.record_states = before

    def is_fresh(self, module: nn.Module, call: Call) -> bool:
        """Whether no state was passed."""
        return call.argument(1, "state") is None

    def is_container(self, module: nn.Module) -> bool:
        """Whether `module` is one of Norse's containers."""
        return isinstance(module, CONTAINERS)

    def loops_children(self, module: nn.Module) -> bool:
        """Whether `module` is a Lift, which calls what it lifts once per timestep."""
        return isinstance(module, norse.Lift)


def _row(module: nn.Module) -> Row | None:
    cls = class_of(module, TABLE)
    return None if cls is None else TABLE[cls]


def _known_row(module: nn.Module) -> Row:
    row = _row(module)
    assert row is not None
    return row
