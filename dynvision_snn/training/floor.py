"""The energy that no training can save: what a model still costs when none of its neurons fires.

The model is run on a batch with the output of every spiking layer and every activation silenced.
What is counted then is left to the input and the clock: the first layer's operations on analog
images, the neurons' updates, and the hidden values of non-spiking recurrent layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Call, Layer, Role
from dynvision_snn.adapters.base import map_tensors
from dynvision_snn.energy import EnergyBudget, EnergyMeter
from dynvision_snn.model import TimedModel
from dynvision_snn.presentation_batch import AnyPresentation

_SILENCED = (Role.SPIKING, Role.ACTIVATION)


def silent_budget(
    model: TimedModel,
    images: Tensor,
    presentation: AnyPresentation,
    time_axis: int | None = None,
) -> EnergyBudget:
    """What a batch costs if no neuron fires, per sample.

    Weights inside spiking layers receive their own spikes, which a library may keep out of reach;
    they are taken to receive none.

    Args:
        model: the wrapped model; left as it was.
        images: ``[B, *features]``.
        presentation: the schedule.
        time_axis: where the inputs have time themselves, as the model takes it.
    """
    with torch.no_grad(), _silenced(model), EnergyMeter(model) as meter:
        model(images, presentation, time_axis=time_axis)
    budget = meter.budget()
    firing = [layer.name for layer in model.layers() if layer.traits.role in _SILENCED]
    inner = tuple(f"{name}.recurrent" for name in firing)
    kept = [counts for counts in budget.counts if not (inner and counts.name.startswith(inner))]
    return replace(budget, counts=kept)


@contextmanager
def _silenced(model: TimedModel) -> Iterator[None]:
    """Inside, spiking layers and activations yield zeros."""
    with ExitStack() as stack:
        for layer in model.layers():
            if layer.traits.role in _SILENCED:
                handle = layer.module.register_forward_hook(_silencer(layer), with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _silencer(layer: Layer) -> Any:
    def silence(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        fired = layer.adapter.output(module, Call(args, kwargs, output))
        return map_tensors(lambda x: torch.zeros_like(x) if x is fired else x, output)

    return silence
