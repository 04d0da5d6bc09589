"""What losses that listen to a network share: hooks given back, one accumulation per batch."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from dynvision_snn.errors import LossError
from dynvision_snn.losses.base import BaseLoss
from dynvision_snn.observation import Attachment, Listener, Observation, Run, Watched
from dynvision_snn.timing import format_steps


class ListeningLoss(BaseLoss, Listener):
    """A loss of what modules do while a model runs, taken once per batch.

    A subclass chooses the modules in `register_hooks` (which calls `_attach`), adds up in
    `observe`, and gives the loss of each sample in `compute_loss`. Its accumulators are emptied in
    `reset`, which it extends.
    """

    needs_model: ClassVar[bool] = True

    _attachment: Attachment | None
    _run: Run | None
    _with_grad: bool | None
    _taken_with_grad: bool | None
    _batch_size: int | None

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self._attachment = None
        self._taken_with_grad = None
        self.reset()

    # -- hooks ------------------------------------------------------------------------------------

    @property
    def monitored(self) -> tuple[str, ...]:
        """The names of the modules that are observed."""
        return () if self._attachment is None else tuple(w.name for w in self._attachment.watched)

    def _check_free(self) -> None:
        if self._attachment is not None:
            kind = type(self).__name__
            raise LossError(
                f"this {kind} observes a model already; call remove_hooks() first, or use an "
                f"{kind} for each model."
            )

    def _attach(self, model: nn.Module, chosen: Sequence[Watched], *, sequence: bool) -> None:
        self._attachment = Attachment(model, self, chosen, sequence=sequence)
        self.reset()

    def remove_hooks(self) -> None:
        """Gives every hook back, and forgets what was observed. Safe to call again."""
        if self._attachment is not None:
            self._attachment.close()
            self._attachment = None
        self.reset()

    def reset(self) -> None:
        """Forgets what was observed since the loss was last taken."""
        self._run = None
        self._with_grad = None
        self._batch_size = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove_hooks()

    # -- observing --------------------------------------------------------------------------------

    def begin_run(self, run: Run) -> None:
        """A TimedModel's run starts a new accumulation."""
        self.reset()
        self._run = run

    def abandon_run(self, run: Run) -> None:
        """A run that failed leaves nothing behind."""
        self.reset()

    def _check_attached(self) -> None:
        if self._attachment is None:
            raise LossError(
                f"{type(self).__name__} has no hooks, so it observed nothing. Call "
                "register_hooks(model) before the model runs (build_criterion(..., model=model) "
                "does)."
            )

    def _check_same_accumulation(self, name: str, batch_size: int) -> None:
        with_grad = torch.is_grad_enabled()
        if self._with_grad is None:
            self._with_grad, self._batch_size = with_grad, batch_size
            # What backward recomputes from now on is of this accumulation, not of the last.
            self._taken_with_grad = None
            return
        changed = []
        causes = ""
        if with_grad is not self._with_grad:
            changed.append("with and without gradient")
            causes = (
                " (A TimedModel runs its idle time without a gradient: register the loss on the "
                "TimedModel, not on the model inside it. Reentrant activation checkpointing runs "
                "layers without one, too: use use_reentrant=False.)"
            )
        if batch_size != self._batch_size:
            changed.append(f"with batch sizes {self._batch_size} and {batch_size}")
        if changed:
            self.reset()
            raise LossError(
                f"{type(self).__name__} observed timesteps {' and '.join(changed)} (at {name!r}) "
                "without being taken in between, so they would be mixed into one mean. Take the "
                f"loss after every batch, or call reset() to drop what was observed.{causes}"
            )

    def _mean_over_time(self, whole: Tensor | None, n_steps: int = 0) -> Tensor:
        """The loss, reduced, of values that are means over time.

        Args:
            whole: where the timesteps observed are a piece of a run, the targets of all of it,
                ``[T, B]``: the means are then over its timesteps, so that the pieces add up.
            n_steps: timesteps observed, where no run says it.

        Raises:
            LossError: as `compute_loss`, or a `whole` of fewer timesteps than were observed.
        """
        share = None if whole is None else self._share_of(whole, n_steps)
        values = self.compute_loss(None, None)
        if isinstance(share, Tensor):
            share = share.to(values.device, non_blocking=True)
        return self.apply_reduction(values if share is None else values * share)

    def _share_of(self, whole: Tensor, n_steps: int) -> float | Tensor:
        """Which part of the whole was observed; of each sample, ``[B]``, where some are padded."""
        run = self._run
        if run is not None and run.n_timesteps is not None:
            n_steps = run.n_timesteps  # a layer may be called several times in each
        if len(whole) < n_steps:
            raise LossError(
                f"{type(self).__name__} observed "
                f"{format_steps(n_steps, None if run is None else run.dt)} of a run whose targets "
                f"(whole=) have shape {list(whole.shape)}. Expected [T, B], time first, with T at "
                "least as large."
            )
        if run is None or run.lengths is None or run.active is None:
            return n_steps / len(whole)
        return run.active.sum(0) / run.lengths.to(run.active.device)

    def _take(self) -> None:
        """Ends the accumulation that the loss is about to be made of."""
        self._taken_with_grad = self._with_grad
        self.reset()

    def _check_recomputed(self, observation: Observation) -> None:
        """Refuses what activation checkpointing recomputes where that is not what it was.

        Called before anything is computed: a recomputation ends with the last tensor it needs.
        """
        if not observation.recomputed:
            return
        if self._taken_with_grad is False:
            raise LossError(
                f"layer {observation.name!r} runs under reentrant activation checkpointing: its "
                "forward ran without a graph, so the energy that was taken has no gradient. Use "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
        if observation.run.active is not None:
            raise LossError(
                f"layer {observation.name!r} runs under activation checkpointing on samples of "
                "different lengths. While backward recomputes it, its timestep is not known, and "
                "so neither is what is padding. Give the samples one length, or take the "
                "checkpoint away."
            )

    def _fresh(self) -> dict[str, Any]:
        """The attributes that a copy starts with: it listens to nothing and carries no graph."""
        return {"_attachment": None, "_run": None, "_with_grad": None, "_batch_size": None}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | self._fresh()
