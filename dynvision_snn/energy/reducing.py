"""One budget out of the budgets of several ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from dynvision_snn.energy.budget import EnergyBudget
from dynvision_snn.errors import EnergyError


def summed_over_ranks(
    budget: Callable[[], EnergyBudget], observed: bool, group: Any = None
) -> EnergyBudget:
    """The sum of the budgets of all ranks, in the order of ranks; a collective call.

    Exchanged are the sums by layer, phase and timestep and the evidence on what each connection
    carried, so the result is that of one process that had seen every sample. What goes wrong on one
    rank is raised on all, so that none waits for it.

    Args:
        budget: this rank's.
        observed: whether this rank observed anything.
        group: process group; the default one if None.

    Raises:
        EnergyError: without a process group, if no rank observed anything, budgets that do not add
            up, or, on every rank, what went wrong on one.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise EnergyError(
            "there are no ranks to reduce over: torch.distributed has no process group. Use "
            "meter.budget() in a single process."
        )
    mine: tuple[str, Any] = ("nothing", None)
    if observed:
        try:
            mine = ("budget", budget().to_dict())
        except EnergyError as error:
            mine = ("error", str(error))
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    for rank, (what, found) in enumerate(everyone):
        if what == "error":
            raise EnergyError(f"rank {rank}: {found}")
    budgets = [EnergyBudget.from_dict(found) for what, found in everyone if what == "budget"]
    if not budgets:
        raise EnergyError("no rank observed a call, so there is nothing to budget.")
    total = budgets[0]
    for other in budgets[1:]:
        total = total + other
    return total
