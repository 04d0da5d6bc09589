"""What every loss shares: which entries are supervised, how values are reduced, hooks given back.

A loss states its elementwise values in `compute_loss`; the mask, the normalisation and the
reduction are inherited. Every step is a tensor operation of fixed shape, so that nothing here waits
for a GPU.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dynvision_snn.errors import LossError, known_names

REDUCTIONS = ("mean", "sum", "none")


def at_least_float32(values: Tensor) -> Tensor:
    """`values`, in float32 where they were float16 or bfloat16.

    A sum over a few thousand timesteps overflows float16 and has three digits in bfloat16.
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def is_masked(targets: Tensor, ignore_index: int) -> Tensor:
    """Where `targets` are `ignore_index`, whatever their dtype: bool.

    A comparison in a narrow integer type wraps: 255 equals -1 in uint8.

    >>> is_masked(torch.tensor([255, 0], dtype=torch.uint8), -1)
    tensor([False, False])
    """
    exact = targets if targets.is_floating_point() else targets.long()
    return exact == ignore_index


def mean_over_count(loss: Tensor, count: Tensor | float) -> Tensor:
    """The sum of `loss` divided by `count`; 0, still differentiable, where `count` is 0.

    Args:
        loss: values of any shape.
        count: what to divide by: a 0-dim tensor (never read back from its device) or a number.

    Raises:
        LossError: `count` is a negative or non-finite number.

    >>> mean_over_count(torch.tensor([1.0, 2.0, 0.0]), 2)
    tensor(1.5000)
    >>> mean_over_count(torch.zeros(3), torch.tensor(0))
    tensor(0.)
    """
    if not isinstance(count, Tensor):
        if not (math.isfinite(count) and count >= 0):
            raise LossError(
                f"A mean over {count!r} valid timesteps was asked for. Expected a finite number "
                "from 0 up: how many entries are supervised."
            )
        count = loss.new_full((), count)
    nothing = count == 0
    mean = loss.sum() / count.to(loss.dtype).masked_fill(nothing, 1)
    # Times 0, not overwritten with 0: a NaN among the values must stay visible.
    return mean * ~nothing


class BaseLoss(nn.Module, ABC):
    """A loss over timesteps: elementwise values, of which the supervised ones are reduced.

    A subclass implements `compute_loss`. With an `ignore_index` the loss is computed as follows:

    1. entries of `targets` equal to `ignore_index` are unsupervised. Their outputs are replaced by
       0 before `compute_loss` and their values by 0 after it, so that neither the loss nor the
       gradient sees them, whatever they hold (NaN and infinity included);
    2. the mean is the sum of the values divided by the number of supervised entries
       (`count_valid`), 0 where there are none, and then still differentiable.

    Without one (None) every value counts equally, and outputs and targets are handed to
    `compute_loss` as they are: also None, for a loss that looks at neither.

    A loss of activity sets `needs_model` and overrides `register_hooks`, `remove_hooks` and
    `reset`, which do nothing here.

    Args:
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for the elementwise values.
        ignore_index: the target of an unsupervised entry; None where targets are not masked.

    Raises:
        LossError: an unknown reduction, or an `ignore_index` that is not an integer.

    >>> class Brier(BaseLoss):
    ...     '''Squared distance between class probabilities and the one-hot target.'''
    ...
    ...     def compute_loss(self, outputs, targets):
    ...         n_classes = outputs.shape[-1]
    ...         wanted = nn.functional.one_hot(targets.clamp(min=0), n_classes)
    ...         return (outputs.softmax(-1) - wanted).square().sum(-1)
    >>> brier = Brier(ignore_index=-1)
    >>> brier(torch.zeros(4, 1, 2), torch.tensor([[-1], [0], [1], [-1]]))
    tensor(0.5000)
    """

    needs_model: ClassVar[bool] = False
    """Whether the loss observes a model, and so means nothing before `register_hooks`."""

    reduction: str
    ignore_index: int | None

    def __init__(self, reduction: str = "mean", ignore_index: int | None = None) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise LossError(
                f"{type(self).__name__} got reduction={reduction!r}. "
                f"{known_names(str(reduction), REDUCTIONS)}"
            )
        if ignore_index is not None and type(ignore_index) is not int:
            raise LossError(
                f"{type(self).__name__} got ignore_index={ignore_index!r}. Expected an integer, "
                "such as the -1 that Presentation.targets writes."
            )
        self.reduction = reduction
        self.ignore_index = ignore_index

    @abstractmethod
    def compute_loss(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of each entry, not yet reduced.

        Args:
            outputs: what the model put out, ``[*entries, ...]``, such as ``[T, B, C]`` or
                ``[N, C]``; None for a loss that does not look at it.
            targets: what was wanted, ``[*entries]``, such as ``[T, B]`` or ``[N]``; likewise.

        Returns:
            Values of the shape of `targets`; of any shape for a loss without `ignore_index`.
        """

    def forward(
        self,
        outputs: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        whole: Tensor | None = None,
    ) -> Tensor:
        """The reduced loss: a scalar, or the elementwise values for ``reduction="none"``.

        Args:
            outputs: what the model put out.
            targets: what was wanted.
            whole: where these are a piece of a run (a chunk, one of several micro-batches), the
                targets of all of it. The mean then divides by their number, so that the losses of
                the pieces add up to the loss of the whole.

        Raises:
            LossError: outputs and targets that do not fit each other, or a `whole` for a loss
                without `ignore_index`, which cannot tell what it is a part of.
        """
        if self.ignore_index is None:
            if whole is not None:
                raise LossError(
                    f"{type(self).__name__} has no ignore_index, so it cannot tell from whole= "
                    "what share of a run it has. Take it of whole runs, or use reduction='sum'."
                )
            return self.apply_reduction(self.compute_loss(outputs, targets))
        if outputs is None or targets is None:
            missing = "outputs" if outputs is None else "targets"
            raise LossError(
                f"{type(self).__name__} compares outputs with targets; got no {missing}."
            )
        self.check_inputs(outputs, targets)
        masked = is_masked(targets, self.ignore_index)
        trailing = (1,) * (outputs.ndim - targets.ndim)
        seen = outputs.masked_fill(masked.reshape(*masked.shape, *trailing), 0)
        loss = self.compute_loss(seen, targets)
        if loss.shape != targets.shape:
            raise LossError(
                f"{type(self).__name__}.compute_loss returned {list(loss.shape)} for targets "
                f"{list(targets.shape)}. Expected one value for each target."
            )
        count = self.count_valid(targets if whole is None else whole)
        return self.apply_reduction(loss.masked_fill(masked, 0), count)

    def check_inputs(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse outputs and targets whose shapes or devices do not fit, before any masking.

        Raises:
            LossError: `targets` is not shaped as the leading axes of `outputs`, or is elsewhere.
        """
        if outputs.shape[: targets.ndim] != targets.shape:
            raise LossError(
                f"{type(self).__name__} got outputs {list(outputs.shape)} and targets "
                f"{list(targets.shape)}. Expected targets shaped as the first axes of outputs, "
                "such as [T, B, C] with [T, B], or [N, C] with [N]."
            )
        if outputs.device != targets.device:
            raise LossError(
                f"{type(self).__name__} got outputs on {outputs.device} and targets on "
                f"{targets.device}. Move both to one device."
            )

    def count_valid(self, targets: Tensor) -> Tensor | None:
        """What the mean divides by: the number of supervised entries, as a 0-dim tensor.

        None without an `ignore_index`. Override it where entries do not weigh the same.
        """
        if self.ignore_index is None:
            return None
        return (~is_masked(targets, self.ignore_index)).sum()

    def apply_reduction(
        self, loss: Tensor, num_valid_timesteps: Tensor | float | None = None
    ) -> Tensor:
        """Reduce elementwise values.

        Args:
            loss: values of any shape, 0 where unsupervised.
            num_valid_timesteps: what the mean divides the sum by (`count_valid`); None for the
                plain mean over all values. "sum" and "none" do not look at it.

        Returns:
            A scalar, in float32 at least; for ``"none"`` the values themselves.

        Raises:
            LossError: a negative or non-finite number of timesteps.
        """
        if self.reduction == "none":
            return loss
        loss = at_least_float32(loss)
        if self.reduction == "sum":
            return loss.sum()
        return (
            loss.mean()
            if num_valid_timesteps is None
            else mean_over_count(loss, num_valid_timesteps)
        )

    def register_hooks(self, model: nn.Module) -> None:
        """Start to observe `model`. Nothing to do for a loss of outputs and targets alone."""

    def remove_hooks(self) -> None:
        """Give every hook back. Nothing to do for a loss of outputs and targets alone."""

    def reset(self) -> None:
        """Forget what was observed since the last loss."""

    def check_targets(self) -> None:
        """Wait for checks that are still under way on a device, and raise what they found."""

    def extra_repr(self) -> str:
        """The arguments, as the module prints them."""
        return f"reduction={self.reduction!r}, ignore_index={self.ignore_index}"
