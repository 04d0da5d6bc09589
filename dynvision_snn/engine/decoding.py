"""Which layer's membrane is decoded.

The rule: the last spiking or integrating layer reached, if the model's output is that layer's
spikes or membrane; if the output is no layer's, the output itself. Of a model that returns several
tensors, one is enough to name the layer, unless the first could be decoded and is no layer's, as in
``logits, spikes = net(x)``. What a layer yields is marked during a look (see `witness`), so that
equal values are no accident.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dynvision_snn.engine.witness import Seen
from dynvision_snn.errors import WrapError


def choose_readout(
    net: nn.Module,
    seen: Mapping[str, Seen],
    outputs: Sequence[Tensor],
    yielded: Mapping[str, Sequence[Tensor]],
    leading: tuple[int, ...],
    by_hand: str | None,
) -> str | None:
    """The readout's name; None where the model's output itself is decoded.

    Args:
        net: the model.
        seen: the calls of every module, in the order of their first calls.
        outputs: the tensors that the model returned, time first.
        yielded: by layer, the values that would identify it: spikes and membranes, laid out as the
            outputs.
        leading: the sizes of the axes before the classes, ``(B,)`` or ``(T, B)``.
        by_hand: the readout that the user named; ``""``, the model itself, for its output.

    Raises:
        WrapError: if the output is a layer's, but not the last one's; if it is no layer's and has
            no values for each class at every timestep; if the layer named was not reached.
    """
    candidates = [
        name
        for name in reached(seen)
        if (layer := seen[name].layer) is not None and layer.spikes_or_integrates
    ]
    decodable = bool(outputs) and _is_decodable(outputs[0], leading)
    is_output = by_hand == "" and not _is_layer(seen, by_hand)
    if by_hand is not None and not is_output:
        return _readout_by_hand(seen, by_hand)
    owners = [
        [
            name
            for name in candidates
            if any(_same(output, value) for value in yielded.get(name, ()))
        ]
        for output in outputs
    ]
    matching = [name for name in candidates if any(name in names for names in owners)]
    if is_output or not matching or (decodable and not owners[0]):
        if not decodable:
            raise _not_decodable(net, outputs, leading, seen)
        return None
    if matching[-1] == candidates[-1]:
        return candidates[-1]
    raise WrapError(
        f"the model returns what its layer {matching[-1]!r} yielded, but {candidates[-1]!r} was "
        "reached after it. Say which is decoded: wrap(net, readout=...), one of "
        f"{', '.join(map(repr, candidates))}."
    )


def reached(seen: Mapping[str, Seen]) -> tuple[str, ...]:
    """Neuron layers in the order in which they were first called."""
    return tuple(name for name, item in seen.items() if item.layer is not None)


def _is_layer(seen: Mapping[str, Seen], name: str) -> bool:
    return name in seen and seen[name].layer is not None


def _readout_by_hand(seen: Mapping[str, Seen], name: str) -> str:
    if name not in seen:
        raise WrapError(
            f"readout={name!r} was not reached by a forward of the model; reached: "
            f"{', '.join(map(repr, reached(seen))) or 'none'}."
        )
    return name


def _same(output: Tensor, value: Tensor) -> bool:
    return output is value or (output.shape == value.shape and torch.equal(output, value))


def _is_decodable(output: Tensor, leading: tuple[int, ...]) -> bool:
    return output.ndim == len(leading) + 1 and output.shape[: len(leading)] == leading


def _not_decodable(
    net: nn.Module, outputs: Sequence[Tensor], leading: tuple[int, ...], seen: Mapping[str, Seen]
) -> WrapError:
    layers = [name for name, item in seen.items() if item.is_stateful]
    returned = ", ".join(str(list(output.shape)) for output in outputs) or "no tensor"
    axes = "[T, B, classes]" if len(leading) == 2 else "[B, classes]"
    return WrapError(
        f"{type(net).__name__} returned {returned} where {axes} = {[*leading, 'classes']} could be "
        "decoded at every timestep. Return the readout's spikes or membrane per timestep, or name "
        "the layer to decode: wrap(net, readout=...), one of "
        f"{', '.join(map(repr, layers)) or 'no neuron layer was reached'}."
    )
