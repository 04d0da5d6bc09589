"""PyTorch's own recurrent layers and activations, for baselines that do not spike.

Cells and sequence modules keep no state of their own: it goes in and out of every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dynvision_snn.adapters.base import (
    Adapter,
    Call,
    InnerSynapses,
    LayerTraits,
    Reading,
    Role,
)

CELLS = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)


class TorchAdapter(Adapter):
    """Serves torch's recurrent cells."""

    @property
    def library(self) -> str:
        """The library's import name."""
        return "torch"

    def traits(self, module: nn.Module) -> LayerTraits | None:
        """What is known of `module`, or None where it has neither state nor activation."""
        if isinstance(module, CELLS):
            return LayerTraits(Role.RECURRENT)
        return None

    def read(self, module: nn.Module, call: Call) -> Reading:
        """The hidden state, and the cell state of an LSTM."""
        if isinstance(module, nn.LSTMCell):
            hidden, cell = call.output
            return Reading(hidden, state={"cell": cell})
        return Reading(call.output)

    def synapses(self, module: nn.Module) -> Sequence[InnerSynapses]:
        """Input and recurrent weights, the gates stacked along the rows."""
        if isinstance(module, nn.RNNCellBase):
            return (
                InnerSynapses("input", module.weight_ih),
                InnerSynapses("recurrent", module.weight_hh),
            )
        return ()

    def presynaptic(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor | None, ...]:
        """The input, and the hidden state that is passed."""
        call = Call(args, kwargs, None)
        hidden = call.argument(1, "hx")
        return (call.inputs, hidden[0] if isinstance(hidden, tuple) else hidden)

    def is_fresh(self, module: nn.Module, call: Call) -> bool:
        """Whether no hidden state was passed."""
        return isinstance(module, CELLS) and call.argument(1, "hx") is None

    def is_container(self, module: nn.Module) -> bool:
        """Whether `module` is a Sequential that runs its children one after the other."""
        return type(module).forward is nn.Sequential.forward
