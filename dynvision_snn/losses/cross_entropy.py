"""Cross-entropy over timesteps, normalised by the supervised entries alone.

Targets outside the classes are checked without a GPU having to be waited for. Why not simply let
torch complain: on CUDA its complaint is a device-side assertion, which ends the process's use of
the GPU and names no value; and a check that reads a result back at once stalls every step. So a
target that is no class

- on a CPU, where reading is free, raises at once;
- on CUDA turns its own entry of the loss to NaN (a wrong number is never returned), and its value
  is copied to the host behind the computation. The copy is looked at, never waited for, at the
  start of later calls, which raise the error; `CrossEntropyLoss.check_targets` waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dynvision_snn.errors import LossError
from dynvision_snn.losses.base import BaseLoss, at_least_float32, is_masked


def illegal_targets(targets: Tensor, n_classes: int, ignore_index: int) -> Tensor:
    """Where `targets` are neither a class (0 to `n_classes` - 1) nor `ignore_index`: bool.

    >>> illegal_targets(torch.tensor([-1, 0, 2, 3, -5]), n_classes=3, ignore_index=-1)
    tensor([False, False, False,  True,  True])
    """
    return ((targets < 0) | (targets >= n_classes)) & (targets != ignore_index)


def illegal_extremes(targets: Tensor, illegal: Tensor) -> Tensor:
    """The lowest and the highest target where legal ones count as 0: int64 ``[2]``.

    0 is always a class, so whatever else stands here is an illegal target.

    >>> targets = torch.tensor([-1, 0, 2, 3, -5])
    >>> illegal_extremes(targets, illegal_targets(targets, n_classes=3, ignore_index=-1))
    tensor([-5,  3])
    """
    return torch.stack(torch.where(illegal, targets, 0).aminmax())


def elementwise_cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    ignore_index: int,
    illegal: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """``-weight[target] * log_softmax(outputs)[target]`` of each entry.

    Args:
        outputs: logits ``[*entries, C]``.
        targets: int64 ``[*entries]``.
        ignore_index: the target of entries that are 0.
        illegal: bool ``[*entries]``: entries that are NaN.
        weight: weights of the classes ``[C]``.

    Returns:
        Values ``[*entries]``.
    """
    values = F.cross_entropy(
        outputs.reshape(-1, outputs.shape[-1]),
        targets.masked_fill(illegal, ignore_index).reshape(-1),
        weight=weight,
        ignore_index=ignore_index,
        reduction="none",
    )
    return values.reshape(targets.shape).masked_fill(illegal, float("nan"))


class CrossEntropyLoss(BaseLoss):
    """Cross-entropy of a membrane decoded at every timestep, over the supervised entries.

    ``mean`` is ``sum(loss) / number of supervised entries``: null input and reaction windows count
    neither above nor below the line. With class weights it divides by the summed weights of the
    supervised entries, as torch does. No supervised entry gives 0, which still back-propagates.
    Unsupervised outputs may hold anything, NaN included: they reach neither loss nor gradient.

    Half-precision outputs are computed in float32, under autocast as well, and so is the loss.

    Targets that are neither a class nor `ignore_index` are an error naming the value: at once on a
    CPU. On CUDA that would stall every step, so the loss (not the other entries' gradients) turns
    to NaN, and a later call, or `check_targets`, raises the error. Call `check_targets` after the
    last step of an epoch. In a captured CUDA graph only the NaN tells.

    `ignore_index` may be a class, which is then not supervised, as in torch.

    Args:
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for values of the shape of the targets.
        ignore_index: the target of unsupervised entries.
        weight: weights of the classes ``[C]``, finite and not negative; a buffer, saved with the
            state and moved with ``.to()``.

    Raises:
        LossError: an unknown reduction, an `ignore_index` that is not an integer, or weights that
            are not C finite numbers from 0 up.

    >>> criterion = CrossEntropyLoss(ignore_index=-1)
    >>> membrane = torch.zeros(5, 2, 10)  # [T, B, C]
    >>> targets = torch.tensor([[-1, -1], [-1, -1], [3, 7], [3, 7], [-1, -1]])  # [T, B]
    >>> criterion(membrane, targets)  # log(10), whatever the number of masked timesteps
    tensor(2.3026)
    >>> criterion(membrane.view(-1, 10), targets.view(-1))
    tensor(2.3026)
    """

    weight: Tensor | None
    ignore_index: int

    def __init__(
        self,
        reduction: str = "mean",
        ignore_index: int = -1,
        weight: Tensor | Sequence[float] | None = None,
    ) -> None:
        if ignore_index is None:
            raise LossError(
                "CrossEntropyLoss got ignore_index=None. Expected an integer; any that is no "
                "class, such as -1, masks nothing where no target has it."
            )
        super().__init__(reduction, ignore_index)
        self.register_buffer("weight", None if weight is None else _class_weight(weight))
        self._under_way = _ChecksUnderWay()

    def check_inputs(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse what is not ``[*entries, C]`` logits with ``[*entries]`` class indices.

        Raises:
            LossError: shapes, dtypes, devices or class weights that do not fit; or an illegal
                target of an earlier call on CUDA.
        """
        if outputs.ndim == 0 or outputs.shape[:-1] != targets.shape or outputs.shape[-1] == 0:
            raise LossError(
                f"CrossEntropyLoss got outputs {list(outputs.shape)} and targets "
                f"{list(targets.shape)}. Expected the classes on the last axis of outputs and one "
                "target for each other entry: [T, B, C] with [T, B], or [N, C] with [N]."
            )
        super().check_inputs(outputs, targets)
        if not outputs.is_floating_point():
            raise LossError(
                f"CrossEntropyLoss got outputs of {outputs.dtype}. Expected logits of a floating "
                "point type, such as the membrane of the readout."
            )
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise LossError(
                f"CrossEntropyLoss got targets of {targets.dtype}. Expected class indices of an "
                "integer type; one-hot targets become those with targets.argmax(-1)."
            )
        if self.weight is None:
            pass
        elif len(self.weight) != outputs.shape[-1]:
            raise LossError(
                f"CrossEntropyLoss has weights for {len(self.weight)} classes and got outputs of "
                f"{outputs.shape[-1]}. Give one weight for each class."
            )
        elif self.weight.device != outputs.device:
            raise LossError(
                f"CrossEntropyLoss has its class weights on {self.weight.device} and got outputs "
                f"on {outputs.device}. Move the loss as well: criterion.to(device)."
            )
        if not _is_capturing(outputs):
            self._under_way.raise_finished()

    def compute_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of each entry: 0 where unsupervised, NaN where illegal (CUDA only).

        Args:
            outputs: logits ``[*entries, C]``.
            targets: class indices ``[*entries]``.

        Returns:
            Values ``[*entries]``, in float32 at least, times the class weights if there are any.

        Raises:
            LossError: a target that is neither a class nor `ignore_index` (CPU; CUDA: later).
        """
        logits = at_least_float32(outputs)
        targets = targets.long()
        n_classes = outputs.shape[-1]
        illegal = illegal_targets(targets, n_classes, self.ignore_index)
        if targets.numel() and not _is_capturing(outputs):
            extremes = illegal_extremes(targets, illegal)
            if extremes.is_cuda:
                self._under_way.put(*_copy_to_host(extremes), n_classes, self.ignore_index)
            else:
                _refuse_illegal(extremes, n_classes, self.ignore_index)
        weight = None if self.weight is None else self.weight.to(logits.dtype)
        return elementwise_cross_entropy(logits, targets, self.ignore_index, illegal, weight)

    def count_valid(self, targets: Tensor) -> Tensor:
        """The number of supervised entries, or the sum of their class weights: a 0-dim tensor."""
        valid = ~is_masked(targets, self.ignore_index)
        if self.weight is None:
            return valid.sum()
        weight = at_least_float32(self.weight)
        return (weight[targets.long().clamp(0, len(weight) - 1)] * valid).sum()

    def check_targets(self) -> None:
        """Wait for the checks of earlier calls on CUDA, and raise the first illegal target.

        Raises:
            LossError: a target of an earlier call was neither a class nor `ignore_index`.
        """
        self._under_way.raise_all()


class _ChecksUnderWay:
    """Results of target checks that are on their way from a CUDA device, oldest first."""

    def __init__(self) -> None:
        self._checks: deque[tuple[Tensor, torch.cuda.Event, int, int]] = deque()

    def __reduce__(self) -> tuple[type[_ChecksUnderWay], tuple[()]]:
        # A copy is told of its own targets only; and an event can be neither copied nor saved.
        return (_ChecksUnderWay, ())

    def put(
        self, extremes: Tensor, arrived: torch.cuda.Event, n_classes: int, ignore_index: int
    ) -> None:
        """Remember a check: `extremes` may be read once `arrived` has happened."""
        self._checks.append((extremes, arrived, n_classes, ignore_index))

    def raise_finished(self) -> None:
        """Look at the checks that have arrived; never wait."""
        while self._checks and self._checks[0][1].query():
            extremes, _, n_classes, ignore_index = self._checks.popleft()
            _refuse_illegal(extremes, n_classes, ignore_index)

    def raise_all(self) -> None:
        """Wait for the checks, and look at each."""
        while self._checks:
            extremes, arrived, n_classes, ignore_index = self._checks.popleft()
            arrived.synchronize()
            _refuse_illegal(extremes, n_classes, ignore_index)


def _copy_to_host(extremes: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    """Start a copy that nobody waits for, and the event that tells when it has arrived."""
    host = torch.empty(extremes.shape, dtype=extremes.dtype, pin_memory=True)
    host.copy_(extremes, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(extremes.device))
    return host, arrived


def _is_capturing(outputs: Tensor) -> bool:
    return outputs.is_cuda and torch.cuda.is_current_stream_capturing()


def _refuse_illegal(extremes: Tensor, n_classes: int, ignore_index: int) -> None:
    found = sorted({value for value in extremes.tolist() if value != 0})
    if found:
        raise LossError(
            f"CrossEntropyLoss got the target {' and '.join(map(str, found))}. Expected a class "
            f"(0 to {n_classes - 1}) or ignore_index ({ignore_index}). Mark unsupervised timesteps "
            "with ignore_index; a label beyond the classes needs a wider readout."
        )


def _class_weight(weight: Tensor | Sequence[float]) -> Tensor:
    values = torch.as_tensor(weight, dtype=None if isinstance(weight, Tensor) else torch.float32)
    if not values.is_floating_point():
        values = values.to(torch.float32)
    values = values.detach().clone()
    if values.ndim != 1 or not bool((torch.isfinite(values) & (values >= 0)).all()):
        raise LossError(
            f"CrossEntropyLoss got weight={weight!r}. Expected one finite number from 0 up for "
            "each class, [C]."
        )
    return values
