"""Norse 1.1: neurons that take and return their state, and keep none.

Each class is a row of `norse_table.TABLE`. Membranes are those after the reset. Norse counts time
in seconds and steps by Euler.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

with warnings.catch_warnings():
    # Norse scripts functions as it is imported; its user can do nothing about that.
    warnings.filterwarnings("ignore", r"`torch\.jit\.script`", FutureWarning)
    import norse.torch as norse
import torch
from torch import Tensor, nn

from dynvision_snn.adapters import norse_scan as scans
from dynvision_snn.adapters.base import (
    Adapter,
    Call,
    InnerSynapses,
    LayerTraits,
    Reading,
    Retimed,
    Role,
    TimeConstant,
    map_tensors,
)
from dynvision_snn.adapters.catalogue import CatalogueRow, library_class, refusal, row_of, unknown
from dynvision_snn.adapters.norse_delay import delay_steps, padded
from dynvision_snn.adapters.norse_retiming import RULES, retime
from dynvision_snn.adapters.norse_table import (
    BASES,
    REFUSED,
    STATE_NAMES,
    TABLE,
    Neuron,
    flat,
    parameters_of,
)
from dynvision_snn.adapters.scan_spec import ScanSpec
from dynvision_snn.errors import AdapterError
from dynvision_snn.timing import ms_to_seconds, seconds_to_ms

_CONTAINERS = (norse.SequentialState, norse.RecurrentSequential, norse.Lift)


class NorseAdapter(Adapter):
    """Serves every neuron class of Norse 1.1 that uses its input."""

    @property
    def library(self) -> str:
        """The library's import name."""
        return "norse"

    def traits(self, module: nn.Module) -> LayerTraits | None:
        """What is known of `module`, or None where it is no neuron of Norse.

        Raises:
            AdapterError: for a neuron class without a row in the table, and for one that Norse
                computes wrongly.
        """
        cls = library_class(module, "norse")
        if cls is None:
            return None
        if cls in REFUSED:
            raise refusal("Norse", module, REFUSED[cls])
        if cls not in TABLE:
            if issubclass(cls, BASES):
                raise unknown("Norse", module, TABLE)
            return None
        neuron, holder = TABLE[cls], _any(module)
        return LayerTraits(
            neuron.role,
            sequence=neuron.sequence,
            membrane="without" if neuron.role is Role.INTEGRATOR else "after",
            dt=seconds_to_ms(float(holder.dt)),
            caveats=(*neuron.caveats(module), *_shared_caveats(holder, neuron)),
        )

    def read(self, module: nn.Module, call: Call) -> Reading:
        """Output, membrane and further state of one call.

        A whole-sequence layer returns only its last state unless it is told to record them: then
        an integrator's output is its membrane, and a spiking layer's membrane is not shown.
        """
        neuron = row_of(module, TABLE)
        output, state = self.output(module, call), call.output[1]
        if neuron.sequence and not _any(module).record_states:
            return Reading(output, output if neuron.role is Role.INTEGRATOR else None)
        values = flat(state)
        return Reading(
            output, values["v"], {STATE_NAMES[name]: values[name] for name in neuron.state}
        )

    def output(self, module: nn.Module, call: Call) -> Tensor:
        """The first of what a call returns."""
        output: Tensor = call.output[0]
        if output.is_sparse:
            raise AdapterError(
                f"{type(module).__name__} was given sparse input and returns sparse spikes, which "
                "are not served. Pass dense input: x.to_dense()."
            )
        return output

    def synapses(self, module: nn.Module) -> Sequence[InnerSynapses]:
        """Input, recurrent and coupling weights, which Norse applies without a module."""
        return row_of(module, TABLE).synapses(module)

    def presynaptic(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor | None, ...]:
        """The inputs, and the spikes or membranes of the state that is passed."""
        return row_of(module, TABLE).received(module, Call(args, kwargs, None))

    def presynaptic_sequence(
        self, module: nn.Module, before: tuple[Tensor | None, ...], call: Call, reading: Reading
    ) -> tuple[Tensor | None, ...]:
        """The inputs, and a whole-sequence layer's own spikes one timestep (or delay) later."""
        if not row_of(module, TABLE).sequence:
            return before
        inputs, earlier = before
        spikes = reading.output
        earlier = torch.zeros_like(spikes[0]) if earlier is None else earlier
        if earlier.ndim < spikes.ndim:
            earlier = padded(earlier.unsqueeze(0), delay_steps(module))
        return (inputs, torch.cat([earlier, spikes])[: spikes.shape[0]])

    def time_constants(self, module: nn.Module, dt: float) -> Sequence[TimeConstant]:
        """Time constants in ms: 1000 over Norse's rates, whatever `dt` is."""
        neuron = row_of(module, TABLE)
        parameters = parameters_of(module, neuron)
        return tuple(
            TimeConstant(name, 1000 / rate(parameters).detach(), "euler")
            for name, rate in neuron.rates.items()
        )

    def set_dt(self, module: nn.Module, dt: float) -> None:
        """Sets the module's timestep, which Norse keeps in seconds."""
        _any(module).dt = ms_to_seconds(dt)

    def retime(self, module: nn.Module, dt: float, new_dt: float) -> Retimed:
        """Sets the module's timestep; delays and refractory periods keep their ms where they can.

        Raises:
            AdapterError: for a class without a rule.
        """
        cls = row_of(module, {known: known for known in TABLE})
        if cls not in RULES:
            return super().retime(module, dt, new_dt)
        return retime(module, RULES[cls], dt, new_dt)

    @contextmanager
    def recording(self, module: nn.Module) -> Iterator[None]:
        """While entered, a whole-sequence layer shows its state at every timestep.

        It then returns all states stacked. A hook hands on only the last, as without recording, to
        whatever the state is passed to: hooks registered before this is entered see them all.
        """
        holder = _any(module)
        if not row_of(module, TABLE).sequence or holder.record_states:
            yield
            return
        holder.record_states = True
        handle = module.register_forward_hook(_hand_on_last_state)
        try:
            yield
        finally:
            handle.remove()
            holder.record_states = False

    def is_fresh(self, module: nn.Module, call: Call) -> bool:
        """Whether a stepped layer was passed no state."""
        return not row_of(module, TABLE).sequence and call.argument(1, "state") is None

    def is_container(self, module: nn.Module) -> bool:
        """Whether `module` is one of Norse's containers."""
        return isinstance(module, _CONTAINERS)

    def loops_children(self, module: nn.Module) -> bool:
        """Whether `module` is a Lift, which calls what it lifts once per timestep."""
        return isinstance(module, norse.Lift)

    def why_no_scan(self, module: nn.Module) -> str | None:
        """Why its timesteps cannot be computed without calling it."""
        return scans.why_not(module)

    def scan_spec(self, module: nn.Module) -> ScanSpec:
        """One timestep, in the library's order of operations."""
        return scans.spec(module)

    def scan_start(self, module: nn.Module, call: Call) -> Mapping[str, Any]:
        """The state that a call starts from."""
        return scans.start(module, call)

    def scan_return(self, module: nn.Module, values: Mapping[str, Any]) -> Any:
        """What a call returns."""
        return scans.returned(module, values)

    def rows(self) -> Iterator[CatalogueRow]:
        """What the documentation says of every class."""
        for cls, neuron in TABLE.items():
            yield CatalogueRow(
                cls.__name__,
                role=neuron.role.value,
                call="sequence" if neuron.sequence else "timestep",
                membrane="without a reset" if neuron.role is Role.INTEGRATOR else "after the reset",
                state=", ".join(STATE_NAMES[name] for name in neuron.state),
                time_constants=", ".join(f"{name} (Euler)" for name in neuron.rates),
                synapses=", ".join(neuron.inner),
                note=neuron.note,
            )
        for cls, reason in REFUSED.items():
            yield CatalogueRow(cls.__name__, note=f"Refused: {reason}.")


def _any(module: nn.Module) -> Any:
    """The module, whose attributes torch cannot type."""
    return module


def _hand_on_last_state(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    spikes, states = output
    return spikes, map_tensors(lambda state: state[-1], states)


def _shared_caveats(module: Any, neuron: Neuron) -> Iterator[str]:
    name = type(module).__name__
    if neuron.sequence and module.record_states:
        yield (
            f"{name}(record_states=True) returns the states of all timesteps, from which a next "
            "call cannot go on"
        )
    # A deep copy leaves tensor hooks behind; torch has no public way to ask for them.
    if (
        "recurrent" in neuron.inner
        and not module.autapses
        and module.recurrent_weights.requires_grad
        and not module.recurrent_weights._backward_hooks
    ):
        yield (
            f"{name} is a deep copy, which lost the hook that keeps its autapses at zero: training "
            "it would connect neurons to themselves"
        )
