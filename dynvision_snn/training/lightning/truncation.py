"""Truncated back-propagation through time: chunk by chunk, one chunk's graph at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dynvision_snn.model import TimedModel
from dynvision_snn.presentation import Presentation
from dynvision_snn.recording import RunState
from dynvision_snn.training.joining import Joined, counts, joined_loss

if TYPE_CHECKING:
    from dynvision_snn.training.lightning.module import TimedClassifier


def back_propagated(
    classifier: TimedClassifier,
    images: Tensor,
    targets: Tensor,
    presentation: Presentation,
    chunk: int,
) -> tuple[Tensor, Joined, str | None]:
    """Back-propagates a batch in chunks; their gradients add up to that of the whole loss, cut.

    The state goes on from chunk to chunk, the gradient does not.

    Args:
        classifier: whose gradients are set.
        images: ``[B, *features]``.
        targets: ``[T, B]``.
        presentation: the schedule of T timesteps.
        chunk: timesteps of a chunk.

    Returns:
        The membranes ``[T, B, classes]`` without a graph, the losses of the whole, and the readout.
    """
    classifier.zero_grad()
    inputs, whole = presentation.present(images), counts(classifier.criterion, targets)
    state = _after_idle_time(classifier.model, images, presentation)
    starts = range(0, presentation.n_timesteps, chunk)
    membranes: list[Tensor] = []
    total = whole.new_zeros(())
    components: dict[str, Tensor] = {}
    readout: str | None = None
    for start in starts:
        steps = slice(start, start + chunk)
        run = classifier.model(inputs[steps], state=state)
        part = joined_loss(classifier.criterion, run.membrane, targets[steps], whole)
        with _unsynchronised(classifier, last=start == starts[-1]):
            classifier.manual_backward(part.loss)
        state, readout = run.state.detach(), run.readout
        membranes.append(run.membrane.detach())
        total = total + part.total
        components = {k: v + components.get(k, 0.0) for k, v in part.components.items()}
    return torch.cat(membranes), Joined(total, total, components), readout


def _after_idle_time(
    model: TimedModel, images: Tensor, presentation: Presentation
) -> RunState | None:
    if not presentation.idle_steps:
        return None
    null = presentation.null_input(images)
    with torch.no_grad():
        run = model(null.expand(presentation.idle_steps, *null.shape))
    state: RunState = run.state.detach()
    return state


def _unsynchronised(classifier: TimedClassifier, *, last: bool) -> AbstractContextManager[Any]:
    """Gradients of all chunks but the last stay in this process."""
    outer = classifier.trainer.model
    if last or not isinstance(outer, DistributedDataParallel):
        return nullcontext()
    return outer.no_sync()
