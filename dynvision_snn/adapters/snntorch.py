"""snnTorch 1.0: neurons that keep their state in buffers of their own.

Reset and inspection go module by module; the library's own reset reaches only direct children of a
net, but in every net of the process. Each class is a row of `snntorch_table.TABLE`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import snntorch_scan as scans
from dynvision_snn.adapters.base import (
    Adapter,
    Call,
    InnerSynapses,
    LayerTraits,
    MembraneTiming,
    Reading,
    Retimed,
    Role,
    TimeConstant,
)
from dynvision_snn.adapters.catalogue import CatalogueRow, library_class, refusal, row_of, unknown
from dynvision_snn.adapters.scan_spec import ScanSpec
from dynvision_snn.adapters.snntorch_retiming import RULES
from dynvision_snn.adapters.snntorch_table import BASES, REFUSED, TABLE, Neuron
from dynvision_snn.timing import time_constant_euler, time_constant_exact

_MEMBRANES = {
    "switch": "before the reset; after it with `reset_delay=False`",
    "delayed": "before the reset",
    "never": "without a reset",
    "hidden": "not shown",
}


class SnnTorchAdapter(Adapter):
    """Serves every neuron class of snnTorch 1.0."""

    @property
    def library(self) -> str:
        """The library's import name."""
        return "snntorch"

    def traits(self, module: nn.Module) -> LayerTraits | None:
        """What is known of `module`, or None where it is no neuron of snnTorch.

        Raises:
            AdapterError: for a neuron class without a row in the table, and for a neuron that
                snnTorch computes wrongly as it is configured.
        """
        cls = library_class(module, "snntorch")
        if cls is None:
            return None
        if cls in REFUSED:
            raise refusal("snnTorch", module, REFUSED[cls])
        if cls not in TABLE:
            if issubclass(cls, BASES):
                raise unknown("snnTorch", module, TABLE)
            return None
        neuron = TABLE[cls]
        reason = neuron.refusal(module)
        if reason is not None:
            raise refusal("snnTorch", module, reason)
        return LayerTraits(
            Role.SPIKING if _spikes(module, neuron) else Role.INTEGRATOR,
            sequence=neuron.sequence,
            membrane=_membrane_timing(module, neuron),
            caveats=(*neuron.caveats(module), *_reset_caveats(module, neuron)),
        )

    def read(self, module: nn.Module, call: Call) -> Reading:
        """Spikes, membrane and further state of one call.

        What a call does not return (a stepped neuron with ``init_hidden=True`` returns its spikes
        alone) is taken from the module, which replaces its state at every call, never in place.
        """
        neuron = row_of(module, TABLE)
        output, *rest = call.output if isinstance(call.output, tuple) else (call.output,)
        if not neuron.sequence:
            holder: Any = module
            state = {ours: getattr(module, theirs) for ours, theirs in neuron.shown.items()}
            return Reading(output, holder.mem, state)
        if not _spikes(module, neuron):
            return Reading(output, output)
        return Reading(output, rest[0] if rest else None)

    def output(self, module: nn.Module, call: Call) -> Tensor:
        """The spikes alone; the module's state, which takes longer to find, is left alone."""
        output: Tensor = call.output[0] if isinstance(call.output, tuple) else call.output
        return output

    def state(self, module: nn.Module) -> dict[str, Any]:
        """The state that the module keeps between calls, by reference."""
        return {name: getattr(module, name) for name in row_of(module, TABLE).state}

    def restore(self, module: nn.Module, state: Mapping[str, Any]) -> None:
        """Puts back what `state` returned, and drops what a forward leaves behind beside it."""
        for name, value in state.items():
            setattr(module, name, value)
        _drop_leftovers(module)

    def reset(self, module: nn.Module) -> None:
        """Makes the module as new: the next call starts from zeros like its input.

        Zeros of the old shape, as the library's own reset leaves them, would keep a dtype; an
        empty tensor keeps nothing but its device.
        """
        neuron = row_of(module, TABLE)
        for name in neuron.state:
            held = getattr(module, name)
            blank = None if neuron.unset == "none" else torch.zeros(0, device=held.device)
            setattr(module, name, blank)
        _drop_leftovers(module)

    def synapses(self, module: nn.Module) -> Sequence[InnerSynapses]:
        """Recurrent and input weights inside the module."""
        return row_of(module, TABLE).synapses(module)

    def presynaptic(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor | None, ...]:
        """The inputs, and the spikes or membranes of the timestep before.

        Once per timestep, although with ``reset_mechanism="zero"`` snnTorch evaluates its recurrent
        connection twice.
        """
        return row_of(module, TABLE).received(module, Call(args, kwargs, None))

    def neurons(
        self, module: nn.Module, outputs: Tensor, presynaptic: tuple[Tensor | None, ...]
    ) -> int:
        """One for each output, but for a layer that pools its membrane before it spikes."""
        count = row_of(module, TABLE).neurons
        if count is None:
            return super().neurons(module, outputs, presynaptic)
        return count(module, presynaptic)

    def time_constants(self, module: nn.Module, dt: float) -> Sequence[TimeConstant]:
        """Time constants in ms; snnTorch counts in timesteps, so each follows `dt`."""
        neuron = row_of(module, TABLE)
        convert = time_constant_euler if neuron.integrator == "euler" else time_constant_exact
        return tuple(
            TimeConstant(name, convert(decay(module).detach(), dt), neuron.integrator)
            for name, decay in neuron.decays.items()
        )

    def retime(self, module: nn.Module, dt: float, new_dt: float) -> Retimed:
        """Gives the module decays per timestep of `new_dt`; delays keep their ms where they can.

        Raises:
            AdapterError: for a class without a rule.
        """
        rule = next((RULES[cls] for cls in type(module).__mro__ if cls in RULES), None)
        # A class of the library without a rule may extend one that has one.
        if rule is None or library_class(module, "snntorch") not in RULES:
            return super().retime(module, dt, new_dt)
        return rule(module, dt, new_dt)

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

    def scan_finish(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Leaves the state in the buffers."""
        scans.finish(module, state)

    def rows(self) -> Iterator[CatalogueRow]:
        """What the documentation says of every class."""
        for cls, neuron in TABLE.items():
            yield CatalogueRow(
                cls.__name__,
                role=Role.SPIKING.value,
                call="sequence" if neuron.sequence else "timestep",
                membrane=_MEMBRANES[neuron.reset],
                state=", ".join(neuron.shown),
                time_constants=_named_constants(neuron),
                synapses=", ".join(neuron.inner),
                note=neuron.note,
            )
        for cls, reason in REFUSED.items():
            yield CatalogueRow(cls.__qualname__, note=f"Refused: {reason}.")


def _drop_leftovers(module: nn.Module) -> None:
    """Deletes what only holds a graph, so that a module that has trained can be copied."""
    for name in row_of(module, TABLE).leftovers:
        if hasattr(module, name):
            delattr(module, name)


def _named_constants(neuron: Neuron) -> str:
    ending = " (Euler)" if neuron.integrator == "euler" else ""
    return ", ".join(name + ending for name in neuron.decays)


def _spikes(module: Any, neuron: Neuron) -> bool:
    """Whether the output is spikes: of whole-sequence kernels only with ``output=True``."""
    return neuron.reset == "hidden" or not neuron.sequence or bool(module.output)


def _membrane_timing(module: Any, neuron: Neuron) -> MembraneTiming | None:
    if neuron.reset == "hidden":
        return None
    if neuron.reset == "never" or _steps_by(module) == "none":
        return "without"
    return "after" if neuron.reset == "switch" and not module.reset_delay else "before"


_RESET_FUNCTIONS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}


def _steps_by(module: Any) -> str:
    """The reset mechanism that the module steps by: it chooses once, when it is built."""
    return _RESET_FUNCTIONS.get(module.state_function.__name__, module.reset_mechanism)


def _reset_caveats(module: Any, neuron: Neuron) -> Iterator[str]:
    if neuron.reset not in ("switch", "delayed"):
        return
    name = type(module).__name__
    if module.reset_mechanism != _steps_by(module):
        yield (
            f"{name} was built with reset_mechanism={_steps_by(module)!r} and keeps to it, "
            f"although the attribute now says {module.reset_mechanism!r}"
        )
    if module.inhibition and _steps_by(module) != "none":
        yield (
            f"{name}(inhibition=True) resets every neuron above threshold, not only the one that "
            "it lets spike"
        )
