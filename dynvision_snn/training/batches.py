"""Which samples make up which batch: a pure function of (seed, epoch, batch), for any processes.

The order of an epoch is drawn for the whole data set, cut into global batches, and each process
takes its share of every one. So one process and several see the same global batches, no sample is
seen twice in an epoch, and a run that stopped in the middle of an epoch goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from dynvision_snn.errors import DataError
from dynvision_snn.varying import draw_generator

# What else (seed, epoch) is drawn for has numbers of its own; see VaryingPresentation.at.
_ORDER = 0x0BA7C4


class EpochOrder(Sampler[int]):
    """The order of the samples in each epoch.

    Args:
        n_samples: size of the data set.
        seed: of the training; None keeps the data set's own order.
    """

    def __init__(self, n_samples: int, seed: int | None) -> None:
        self._n_samples, self._seed = n_samples, seed
        self.epoch = 0
        self.first_batch = 0

    def set_epoch(self, epoch: int, first_batch: int | None = None) -> None:
        """Chooses the epoch, and the batch that it begins with; by default the first.

        Said again of the same epoch, as Lightning does after resuming, it changes nothing.
        """
        if first_batch is not None:
            self.first_batch = first_batch
        elif epoch != self.epoch:
            self.first_batch = 0
        self.epoch = epoch

    def __len__(self) -> int:
        return self._n_samples

    def __iter__(self) -> Iterator[int]:
        if self._seed is None:
            yield from range(self._n_samples)
        else:
            generator = draw_generator(self._seed, self.epoch, _ORDER)
            yield from torch.randperm(self._n_samples, generator=generator).tolist()


class GlobalBatches(BatchSampler):
    """One process's share of each global batch.

    Args:
        order: the order of the samples.
        batch_size: of the global batch, over all processes.
        rank: this process.
        world_size: how many processes there are.
        drop_small: drop a last batch with fewer samples than processes, in which some process
            would have none. For training, where all must take every step together.

    >>> [list(GlobalBatches(EpochOrder(7, None), 4, rank, 2)) for rank in (0, 1)]
    [[[0, 2], [4, 6]], [[1, 3], [5]]]
    """

    sampler: EpochOrder

    def __init__(
        self,
        order: EpochOrder,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        drop_small: bool = False,
    ) -> None:
        if batch_size < world_size:
            raise DataError(
                f"a batch of {batch_size} cannot be shared by {world_size} processes; give each at "
                "least one sample."
            )
        super().__init__(order, batch_size, drop_last=False)
        self._rank, self._world_size = rank, world_size
        self._least = world_size if drop_small else 1

    def __len__(self) -> int:
        """Batches in a whole epoch, also while one is resumed in its middle."""
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole + (rest >= self._least)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        for batch in range(self.sampler.first_batch, len(self)):
            start = batch * self.batch_size
            share = order[start + self._rank : start + self.batch_size : self._world_size]
            if share:
                yield share


class BatchLoader(DataLoader[Any]):
    """A DataLoader of `GlobalBatches` that knows how far it came, and can go on from there.

    Args:
        dataset: a map-style data set.
        batch_size: of the global batch, over all processes.
        seed: of the order; None keeps the data set's own.
        rank: this process.
        world_size: how many processes there are.
        drop_small: as in `GlobalBatches`.
        n_workers: processes that load data.

    Raises:
        DataError: for a data set without samples or without a length.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        drop_small: bool = False,
        n_workers: int = 0,
    ) -> None:
        if not isinstance(dataset, Sized):
            raise DataError(
                f"the data set is a {type(dataset).__name__} without a length; expected one with a "
                "length, so that a stopped run can go on in the middle of an epoch."
            )
        if len(dataset) == 0:
            raise DataError("the data set is empty; expected at least one sample.")
        self.order = EpochOrder(len(dataset), seed)
        self._reached = (0, 0)
        super().__init__(
            dataset,
            batch_sampler=GlobalBatches(
                self.order, batch_size, rank, world_size, drop_small=drop_small
            ),
            num_workers=n_workers,
            # Its own: what workers are seeded with must not advance the model's random numbers.
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: what the sampler is told before the first batch is asked for still counts.
        number = self.order.first_batch
        for batch in super().__iter__():
            self.order.first_batch = 0  # Only this pass begins there.
            number += 1
            self._reached = (self.order.epoch, number)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the loader is: the epoch, and how many of its batches were handed out."""
        epoch, number = self._reached
        return {"epoch": self.order.epoch, "batch": number if epoch == self.order.epoch else 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from there."""
        self.order.set_epoch(state["epoch"], first_batch=state["batch"])
        self._reached = (state["epoch"], state["batch"])
