"""Checkpointing over time: the activity of a stretch is let go, and made again in the backward.

What autograd keeps of a run grows with its timesteps. Run in stretches, only the state at the start
of each is kept, and the backward runs one stretch after the other again: the same numbers, at the
price of a second forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynvision_snn.adapters import Layer
from dynvision_snn.adapters.base import map_tensors
from dynvision_snn.engine.step import copied
from dynvision_snn.engine.witness import left_as_found
from dynvision_snn.errors import WrapError
from dynvision_snn.observation import Attachment

Passed = tuple[Any, ...]


def run_recomputed(
    stretch: Callable[[Passed], tuple[Any, Passed]],
    net: nn.Module,
    layers: Sequence[Layer],
    recorded: Sequence[Layer],
    attachments: Sequence[Attachment],
    example: Tensor,
    passed: Passed,
) -> tuple[Any, Passed]:
    """One stretch of a run, whose activity is not kept for the backward but computed again there.

    Args:
        stretch: runs it, from the states that are passed to those after it.
        net: the model.
        layers: its neuron layers.
        recorded: those of them that are recording.
        attachments: who listens; they are told again, and know that it is not new.
        example: an input, for the device whose random numbers are to be the same.
        passed: the states that are passed.

    Returns:
        what `stretch` returned.
    """
    held = {layer.name: layer.adapter.state(layer.module) for layer in layers}
    buffers = _buffers(net, layers)
    versions = _versions(net)
    # A listener that is gone by then must be counted as listening all the same.
    listeners = [attachment.listener for attachment in attachments]
    runs = 0

    def run(passed: Passed, example: Tensor) -> tuple[Any, Passed]:
        nonlocal runs
        runs += 1
        if runs == 1:
            # A library may write its states into the list that it is passed.
            return stretch(copied(passed))
        assert len(listeners) == len(attachments)
        if _versions(net) != versions:
            raise WrapError(
                "parameters were changed between the forward and the backward of a run with "
                "recompute_every=, so the backward would not compute the same activity again. "
                "Call backward() before optimizer.step()."
            )
        with ExitStack() as stack:
            stack.enter_context(left_as_found(net.modules()))
            for layer in recorded:
                stack.enter_context(layer.adapter.recording(layer.module))
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for layer in layers:
                layer.adapter.restore(layer.module, map_tensors(_leaf, held[layer.name]))
            return stretch(map_tensors(_leaf, passed))

    ran: tuple[Any, Passed] = checkpoint(run, passed, example, use_reentrant=False)
    return ran


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _versions(net: nn.Module) -> list[int]:
    return [parameter._version for parameter in net.parameters()]


def _buffers(net: nn.Module, layers: Sequence[Layer]) -> list[tuple[Tensor, Tensor]]:
    """Statistics and the like, with what they are now; a neuron's states are not among them."""
    inside = {id(module) for layer in layers for module in layer.module.modules()}
    return [
        (buffer, buffer.detach().clone())
        for module in net.modules()
        if id(module) not in inside
        for buffer in module._buffers.values()
        if buffer is not None
    ]
