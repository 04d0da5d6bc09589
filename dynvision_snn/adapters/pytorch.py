"""PyTorch's own recurrent layers and activations, for baselines that do not spike.

Recurrent layers keep no state of their own: it goes in and out of every call. The inputs and
hidden states of a sequence module's lower layers stay inside one call; what its synapses received
is told exactly by running those layers once more, one at a time and without a graph. Counting the
synapses of an L-layer module so costs L - 1 further layers; listening to its output costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dynvision_snn.adapters.base import (
    Adapter,
    Call,
    InnerSynapses,
    LayerTraits,
    Reading,
    Role,
)
from dynvision_snn.adapters.catalogue import CatalogueRow, unknown
from dynvision_snn.errors import AdapterError

CELLS: tuple[type[nn.RNNCellBase], ...] = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)
SEQUENCES: tuple[type[nn.RNNBase], ...] = (nn.RNN, nn.GRU, nn.LSTM)
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)
"""Elementwise activations; Softmax and its like are no neurons."""


class TorchAdapter(Adapter):
    """Serves torch's recurrent cells and sequence modules, and its elementwise activations."""

    @property
    def library(self) -> str:
        """The library's import name."""
        return "torch"

    def traits(self, module: nn.Module) -> LayerTraits | None:
        """What is known of `module`, or None where it is neither recurrent nor an activation.

        Raises:
            AdapterError: for a recurrent class that torch itself does not have.
        """
        if isinstance(module, CELLS):
            return LayerTraits(Role.RECURRENT)
        if isinstance(module, SEQUENCES):
            return LayerTraits(
                Role.RECURRENT,
                sequence=True,
                time_axis=1 if module.batch_first else 0,
                caveats=_bidirectional(module),
            )
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            raise unknown("torch", module, (*CELLS, *SEQUENCES))
        if isinstance(module, ACTIVATIONS):
            return LayerTraits(Role.ACTIVATION)
        return None

    def read(self, module: nn.Module, call: Call) -> Reading:
        """The output: a hidden state or an activation; and the cell state of an LSTM's cell."""
        if isinstance(module, SEQUENCES):
            hidden = call.output[0]
            _check_batched(module, hidden, n_axes=3)
            return Reading(hidden)
        if isinstance(module, nn.LSTMCell):
            hidden, cell = call.output
            _check_batched(module, hidden, n_axes=2)
            return Reading(hidden, state={"cell": cell})
        if isinstance(module, CELLS):
            _check_batched(module, call.output, n_axes=2)
        return Reading(call.output)

    def synapses(self, module: nn.Module) -> Sequence[InnerSynapses]:
        """Input and recurrent weights, the gates stacked along the rows, layer by layer."""
        if isinstance(module, CELLS):
            return (
                InnerSynapses("input", module.weight_ih),
                InnerSynapses("recurrent", module.weight_hh),
            )
        if isinstance(module, SEQUENCES):
            return tuple(
                InnerSynapses(
                    f"{kind}{part.suffix}",
                    weight,
                    drives=module.proj_size if kind == "projection" else module.hidden_size,
                )
                for part in _parts(module)
                for kind, weight in zip(_KINDS, part.weights, strict=False)
            )
        return ()

    def presynaptic(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor | None, ...]:
        """A cell's input, and the hidden state that is passed.

        What a sequence module's synapses receive is known after the call.

        Raises:
            AdapterError: for layers whose input a random dropout decides inside the call.
        """
        if isinstance(module, CELLS):
            call = Call(args, kwargs, None)
            return (call.inputs, _hidden(call.argument(1, "hx")))
        if isinstance(module, SEQUENCES):
            if module.training and module.dropout and module.num_layers > 1:
                raise AdapterError(
                    f"the synapses of a {type(module).__name__} with dropout={module.dropout:g} "
                    "between its layers cannot be counted while it trains: what its upper layers "
                    "receive is random inside one call. Measure in evaluation mode (model.eval()), "
                    "or build it with dropout=0."
                )
            return (None,) * len(self.synapses(module))
        return ()

    def presynaptic_sequence(
        self, module: nn.Module, before: tuple[Tensor | None, ...], call: Call, reading: Reading
    ) -> tuple[Tensor | None, ...]:
        """What every layer and direction of a sequence module received."""
        if not isinstance(module, SEQUENCES):
            return before
        initial = call.argument(1, "hx")
        outputs = _layer_outputs(module, call.inputs, initial, reading.output)
        received: list[Tensor | None] = []
        for part in _parts(module):
            inputs = call.inputs if part.layer == 0 else outputs[part.layer - 1]
            hidden = (
                outputs[part.layer].chunk(2, dim=-1)[part.reverse]
                if (module.bidirectional)
                else outputs[part.layer]
            )
            start = None if initial is None else _hidden(initial)[part.index]
            earlier = _one_step_later(hidden, start, _time_axis(module), part.reverse)
            received += [inputs, earlier]
            if len(part.weights) > 2:
                received.append(_before_projection(module, part, inputs, earlier, initial))
        return tuple(received)

    def updated(
        self, module: nn.Module, output: Tensor, presynaptic: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, ...]:
        """The hidden states of every layer and direction, before their projection."""
        if not isinstance(module, SEQUENCES) or not presynaptic:
            return (output,)
        received = {
            synapses.name: values
            for synapses, values in zip(self.synapses(module), presynaptic, strict=True)
            if values is not None
        }
        if module.proj_size:
            return tuple(v for name, v in received.items() if name.startswith("projection"))
        # Both directions of a layer receive all of the layer below.
        lower = (received[f"input.{layer}"] for layer in range(1, module.num_layers))
        return (*lower, output)

    def is_fresh(self, module: nn.Module, call: Call) -> bool:
        """Whether no hidden state was passed."""
        return isinstance(module, CELLS) and call.argument(1, "hx") is None

    def is_container(self, module: nn.Module) -> bool:
        """Whether `module` is a Sequential that runs its children one after the other."""
        return type(module).forward is nn.Sequential.forward

    def rows(self) -> Iterator[CatalogueRow]:
        """What the documentation says of every class."""
        for cell in CELLS:
            yield CatalogueRow(
                cell.__name__,
                role=Role.RECURRENT.value,
                call="timestep",
                membrane="none",
                state="cell" if cell is nn.LSTMCell else "",
                synapses="input, recurrent",
            )
        for sequence in SEQUENCES:
            yield CatalogueRow(
                sequence.__name__,
                role=Role.RECURRENT.value,
                call="sequence",
                membrane="none",
                synapses="input, recurrent" + (", projection" * (sequence is nn.LSTM)),
                note="`batch_first=True` is followed. Several layers or directions number their "
                "synapses (input.0, input.0.reverse); counting them runs the lower layers twice, "
                "and is refused in training with dropout between layers. `bidirectional=True` "
                "reads the future: warned about. Packed and unbatched sequences are refused.",
            )
        for activation in ACTIVATIONS:
            yield CatalogueRow(
                activation.__name__, role=Role.ACTIVATION.value, call="either", membrane="none"
            )


_KINDS = ("input", "recurrent", "projection")


@dataclass(frozen=True, slots=True)
class _Part:
    """One direction of one layer; `index` is its place among the initial states."""

    layer: int
    reverse: bool
    index: int
    suffix: str
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]


def _parts(module: nn.RNNBase) -> Iterator[_Part]:
    directions = (False, True) if module.bidirectional else (False,)
    single = module.num_layers * len(directions) == 1
    for layer in range(module.num_layers):
        for reverse in directions:
            ending = f"l{layer}{'_reverse' * reverse}"
            kinds = ("ih", "hh", "hr") if module.proj_size else ("ih", "hh")
            yield _Part(
                layer,
                reverse,
                index=layer * len(directions) + reverse,
                suffix="" if single else f".{layer}{'.reverse' * reverse}",
                weights=tuple(getattr(module, f"weight_{kind}_{ending}") for kind in kinds),
                biases=tuple(
                    getattr(module, f"bias_{kind}_{ending}") for kind in kinds[:2] if module.bias
                ),
            )


def _layer_outputs(module: nn.RNNBase, inputs: Tensor, initial: Any, last: Tensor) -> list[Tensor]:
    """The outputs of every layer; the last layer's is known."""
    outputs: list[Tensor] = []
    for layer in range(module.num_layers - 1):
        parts = [part for part in _parts(module) if part.layer == layer]
        starts = _starts(module, parts, inputs, initial)
        weights = [
            tensor
            for part in parts
            for tensor in (*part.weights[:2], *part.biases, *part.weights[2:])
        ]
        inputs = _function(module)(
            inputs,
            starts if isinstance(module, nn.LSTM) else starts[0],
            weights,
            module.bias,
            1,  # layers
            0.0,  # dropout
            torch.is_grad_enabled(),  # training, without which cuDNN has no way back
            module.bidirectional,
            module.batch_first,
        )[0]
        outputs.append(inputs)
    return [*outputs, last]


def _function(module: nn.RNNBase) -> Any:
    if isinstance(module, nn.RNN):
        return torch.rnn_relu if module.nonlinearity == "relu" else torch.rnn_tanh
    return torch.lstm if isinstance(module, nn.LSTM) else torch.gru


def _starts(
    module: nn.RNNBase, parts: Sequence[_Part], inputs: Tensor, initial: Any
) -> tuple[Tensor, ...]:
    """Initial hidden (and cell) states of some parts, ``[parts, B, units]`` each."""
    if initial is not None:
        states = initial if isinstance(initial, tuple) else (initial,)
        return tuple(torch.stack([state[part.index] for part in parts]) for state in states)
    batch = inputs.shape[1 - _time_axis(module)]
    units = [module.proj_size or module.hidden_size]
    if isinstance(module, nn.LSTM):
        units.append(module.hidden_size)
    return tuple(inputs.new_zeros(len(parts), batch, size) for size in units)


def _one_step_later(hidden: Tensor, start: Tensor | None, axis: int, reverse: bool) -> Tensor:
    """What the recurrent weights received: every timestep's predecessor in its direction."""
    n_steps = hidden.shape[axis]
    kept = hidden.narrow(axis, 1 if reverse else 0, n_steps - 1)
    first = torch.zeros_like(hidden.select(axis, 0)) if start is None else start
    first = first.unsqueeze(axis)
    return torch.cat([kept, first] if reverse else [first, kept], dim=axis)


def _before_projection(
    module: nn.RNNBase, part: _Part, inputs: Tensor, earlier: Tensor, initial: Any
) -> Tensor:
    """The hidden state that an LSTM projects: all gates at once, then the cell over time."""
    axis = _time_axis(module)
    gates = inputs @ part.weights[0].T + earlier @ part.weights[1].T
    for bias in part.biases:
        gates = gates + bias
    enter, forget, candidate, leave = gates.chunk(4, dim=-1)
    written = torch.sigmoid(enter) * torch.tanh(candidate)
    kept = torch.sigmoid(forget)
    cell = _starts(module, [part], inputs, initial)[1][0]
    cells = [cell] * inputs.shape[axis]
    order = range(len(cells))
    for t in reversed(order) if part.reverse else order:
        cell = kept.select(axis, t) * cell + written.select(axis, t)
        cells[t] = cell
    return torch.sigmoid(leave) * torch.tanh(torch.stack(cells, dim=axis))


def _time_axis(module: nn.RNNBase) -> int:
    return 1 if module.batch_first else 0


def _hidden(state: Any) -> Any:
    """The hidden state of an LSTM's pair, or of any other's one tensor."""
    return state[0] if isinstance(state, tuple) else state


def _bidirectional(module: nn.RNNBase) -> tuple[str, ...]:
    if not module.bidirectional:
        return ()
    return (
        f"{type(module).__name__}(bidirectional=True) reads the future: its output at a timestep "
        "depends on what is shown later, so that no decision time can be told from it",
    )


def _check_batched(module: nn.Module, hidden: Any, n_axes: int) -> None:
    name = type(module).__name__
    if isinstance(hidden, PackedSequence):
        raise AdapterError(
            f"{name} was given a PackedSequence, whose timesteps cannot be told apart. Pass a "
            "padded tensor of shape [T, B, features]."
        )
    if hidden.ndim != n_axes:
        raise AdapterError(
            f"{name} was given input without a batch axis. Add one: x.unsqueeze({n_axes - 2})."
        )
