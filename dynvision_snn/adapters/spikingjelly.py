"""SpikingJelly 2: its IF, LIF and PLIF nodes, single- and multi-step.

Nodes keep their membrane as a memory between calls, also between the sequences that a multi-step
node runs; membranes are those after the reset. Time constants are in timesteps and stepped by
Euler. Its nodes spike at the threshold (``v >= v_threshold``), where others spike above it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from spikingjelly.activation_based import base, layer, neuron
from torch import Tensor, nn

from dynvision_snn.adapters.base import (
    Adapter,
    Call,
    LayerTraits,
    Reading,
    Retimed,
    Role,
    TimeConstant,
)
from dynvision_snn.adapters.catalogue import (
    CatalogueRow,
    library_class,
    refusal,
    row_of,
    unknown,
)
from dynvision_snn.errors import AdapterError
from dynvision_snn.timing import format_ms

TABLE: Mapping[type[nn.Module], Callable[[Any], Tensor]] = {
    neuron.IFNode: lambda node: torch.tensor(torch.inf),
    neuron.LIFNode: lambda node: torch.tensor(float(node.tau)),
    neuron.ParametricLIFNode: lambda node: 1 / node.w.detach().sigmoid(),
}
"""The membrane's time constant in timesteps."""

_NEURON_PACKAGES = ("spikingjelly.activation_based.neuron", "spikingjelly.activation_based.rnn")


class SpikingJellyAdapter(Adapter):
    """Serves IFNode, LIFNode and ParametricLIFNode."""

    @property
    def library(self) -> str:
        """The library's import name."""
        return "spikingjelly"

    def traits(self, module: nn.Module) -> LayerTraits | None:
        """What is known of `module`, or None where it keeps no state.

        Raises:
            AdapterError: for other neurons of the library, for modules that keep a state of
                another kind (its Dropout, its recurrent containers), and for nodes whose surrogate
                function was told not to spike.
        """
        cls = library_class(module, "spikingjelly")
        if cls is None:
            return None
        if cls not in TABLE:
            if cls.__module__.startswith(_NEURON_PACKAGES):
                raise unknown("SpikingJelly", module, TABLE)
            if issubclass(cls, base.MemoryModule):
                raise AdapterError(
                    f"{type(module).__name__} of SpikingJelly keeps a state between calls that its "
                    "adapter does not know, and so would leak from run to run. Use torch's own "
                    "layer in its place, or pass an adapter of your own: docs/adapters.md."
                )
            return None
        node: Any = module
        if not node.surrogate_function.spiking:
            raise refusal(
                "SpikingJelly",
                module,
                "its surrogate function has spiking=False, so that its output is no spikes. Call "
                "surrogate_function.set_spiking_mode(True)",
            )
        return LayerTraits(Role.SPIKING, sequence=node.step_mode == "m", membrane="after")

    def read(self, module: nn.Module, call: Call) -> Reading:
        """Spikes and membrane; of a whole sequence, the membranes that it is told to keep."""
        node: Any = module
        return Reading(call.output, node.v_seq if node.step_mode == "m" else node.v)

    def state(self, module: nn.Module) -> dict[str, Any]:
        """The node's memories, by reference."""
        node: Any = module
        return dict(node.named_memories())

    def restore(self, module: nn.Module, state: Mapping[str, Any]) -> None:
        """Puts back what `state` returned."""
        for name, value in state.items():
            setattr(module, name, value)

    def reset(self, module: nn.Module) -> None:
        """Sets every memory to the value it had when the node was built.

        Not by the node's own ``reset``, which may overwrite a memory in place, and with it what
        `state` returned.
        """
        node: Any = module
        for name, _ in list(node.named_memories()):
            setattr(node, name, copy.deepcopy(node.get_reset_value(name)))
        node.v_seq = None

    def time_constants(self, module: nn.Module, dt: float) -> Sequence[TimeConstant]:
        """The membrane's time constant: SpikingJelly's ``tau`` timesteps of `dt` ms."""
        return (TimeConstant("membrane", row_of(module, TABLE)(module) * dt, "euler"),)

    def retime(self, module: nn.Module, dt: float, new_dt: float) -> Retimed:
        """Gives the node its time constant in timesteps of `new_dt`.

        Raises:
            AdapterError: for a ParametricLIFNode whose time constant would be one timestep or less.
        """
        node: Any = module
        ratio = new_dt / dt
        one = torch.ones((), dtype=torch.float64)
        if isinstance(node, neuron.IFNode):
            return Retimed(analog=one * ratio, spikes=one)
        tau = row_of(module, TABLE)(module).double() / ratio
        if isinstance(node, neuron.LIFNode):
            node.tau = float(tau)
        elif float(tau) <= 1:
            raise refusal(
                "SpikingJelly",
                module,
                f"its time constant would be {float(tau):.4g} timesteps of {format_ms(new_dt)}, "
                "and it is learned as a number above 1. Choose a smaller dt",
            )
        else:
            with torch.no_grad():
                node.w.copy_(torch.logit(1 / tau))
        # With decay_input it multiplies its input by dt / tau.
        if node.decay_input:
            return Retimed(analog=one, spikes=one / ratio)
        return Retimed(analog=one * ratio, spikes=one)

    @contextmanager
    def recording(self, module: nn.Module) -> Iterator[None]:
        """While entered, a multi-step node keeps its membrane at every timestep."""
        node: Any = module
        if node.step_mode != "m" or node.store_v_seq:
            yield
            return
        node.store_v_seq = True
        try:
            yield
        finally:
            node.store_v_seq = False

    def loops_children(self, module: nn.Module) -> bool:
        """Whether `module` is a MultiStepContainer, which calls its children once per timestep."""
        return type(module).forward is layer.MultiStepContainer.forward

    def rows(self) -> Iterator[CatalogueRow]:
        """What the documentation says of every class."""
        for cls in TABLE:
            yield CatalogueRow(
                cls.__name__,
                role=Role.SPIKING.value,
                call="timestep; sequence with `step_mode='m'`",
                membrane="after the reset",
                time_constants="membrane (Euler)",
                note="Spikes at its threshold, not only above it. Other nodes of SpikingJelly, and "
                "its other modules that keep a state, are refused.",
            )
