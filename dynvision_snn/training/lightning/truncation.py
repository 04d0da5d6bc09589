"""Truncated back-propagation through time: piece by piece, one piece's graph at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from dynvision_snn.training.lightning.module import TimedClassifier


def back_propagate(classifier: TimedClassifier, loss: Tensor, *, last: bool) -> None:
    """Adds a piece's gradient to that of the pieces before.

    Args:
        classifier: whose gradients are set.
        loss: of the piece.
        last: whether it is the last one of the batch, after which processes join gradients.
    """
    with _unsynchronised(classifier, last=last):
        classifier.manual_backward(loss)


def _unsynchronised(classifier: TimedClassifier, *, last: bool) -> AbstractContextManager[Any]:
    """Gradients of all pieces but the last stay in this process."""
    outer = classifier.trainer.model
    if last or not isinstance(outer, DistributedDataParallel):
        return nullcontext()
    return outer.no_sync()
