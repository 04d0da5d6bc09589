"""What each batch of a loader is shown by: one presentation for all, drawn, or the loader's own.

It is told in the same ways in simulation and training (`PresentationSource`). `load` finds the
presentation of one batch, and `loaded_batches` those of a pass over a loader. What is drawn is a
function of the batch's `Place` and of nothing else, so that it can be drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from dynvision_snn.errors import DataError
from dynvision_snn.loading import LoadedBatch, arrange, padded, parts_of, samples_in
from dynvision_snn.presentation import Presentation
from dynvision_snn.presentation_batch import AnyPresentation, PresentationBatch
from dynvision_snn.timing import format_steps
from dynvision_snn.varying import draw_generator

__all__ = ["Place", "PresentationSource", "collate", "load", "loaded_batches"]

PresentationSource = AnyPresentation | Callable[[int, torch.Generator], AnyPresentation] | None
"""What batches are shown by: one `Presentation` for all; a `PresentationBatch` with one for each
sample of a pass over the loader, in its order; a function that draws one, or one for each sample,
anew for each batch, from the number of its samples and a generator (such as a
`VaryingPresentation`); or None where the loader yields it with every batch, as (inputs, labels,
presentation)."""


Collated = tuple[Tensor, Tensor, PresentationBatch]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a batch stands, which decides what is drawn for it.

    Attributes:
        seed: of the draws.
        epoch, batch: from 0 up.
        n_before: samples that came before in the same pass over the loader.
        rank, world_size: which of how many processes this is that share every batch. Each has every
            `world_size`-th sample of it.
    """

    seed: int = 0
    epoch: int = 0
    batch: int = 0
    n_before: int = 0
    rank: int = 0
    world_size: int = 1


def loaded_batches(
    loader: Iterable[Any],
    source: PresentationSource,
    time_axis: int | None = None,
    *,
    seed: int = 0,
    epoch: int = 0,
) -> Iterator[LoadedBatch]:
    """One pass over a loader, time first.

    Args:
        loader: yields batches as in `load`.
        source: what they are shown by.
        time_axis: as in `arrange`.
        seed: of the draws, which depend on it, the epoch and the number of the batch alone.
        epoch: from 0 up.

    Raises:
        DataError: as `load`; or if a `PresentationBatch` is of more samples than the loader gave.

    >>> from dynvision_snn.presentation_batch import PresentationBatch
    >>> loader = [(torch.rand(2, 5), torch.tensor([0, 1])), (torch.rand(1, 5), torch.tensor([2]))]
    >>> def draw(n_samples, generator):
    ...     return PresentationBatch.random(n_samples, generator, dt=2.0, onset=(0, 8), shown=6)
    >>> [len(batch.presentation) for batch in loaded_batches(loader, draw)]
    [2, 1]
    """
    n_before = 0
    for number, batch in enumerate(loader):
        place = Place(seed=seed, epoch=epoch, batch=number, n_before=n_before)
        loaded = load(batch, source, time_axis, place)
        n_before += loaded.n_samples
        yield loaded
    if isinstance(source, PresentationBatch) and 0 < n_before < len(source):
        raise _another_number(f"{n_before} samples", source)


def load(
    batch: Any,
    source: PresentationSource,
    time_axis: int | None = None,
    place: Place | None = None,
) -> LoadedBatch:
    """One batch as a loader yields it, time first, with what it is shown by.

    Args:
        batch: inputs and labels; with its presentation where `source` is None.
        source: what batches are shown by.
        time_axis: as in `arrange`.
        place: where the batch stands, for what is drawn and what is one for each sample; by
            default it is the first.

    Raises:
        DataError: as `arrange`; for a presentation from both sides or none; for presentations of
            another number of samples.
        PresentationError: as `arrange`, or for a draw that gives none.
    """
    inputs, labels, own = parts_of(batch)
    n_samples = samples_in(batch, time_axis)
    if own is not None and source is not None:
        raise DataError(
            "the loader gave a presentation with its batch, but there is one already. Pass None "
            "for the presentation, or let the loader give (inputs, labels)."
        )
    shown_by = source if own is None else own
    if shown_by is None:
        raise DataError(
            "there is no presentation: none was passed, and the loader gave (inputs, labels). Pass "
            "one, or let the loader give (inputs, labels, presentation)."
        )
    if own is None:
        shown_by = _presented(shown_by, n_samples, place or Place())
    if not isinstance(shown_by, Presentation | PresentationBatch):
        raise DataError(
            f"a batch came with a {type(shown_by).__name__}; expected a Presentation, or a "
            "PresentationBatch with one for each sample."
        )
    if isinstance(shown_by, PresentationBatch) and len(shown_by) != n_samples:
        raise _another_number(f"a batch of {n_samples} samples", shown_by)
    return arrange((inputs, labels), shown_by, time_axis)


def _presented(source: Any, n_samples: int, place: Place) -> Any:
    """What `n_samples` samples at a place are shown by."""
    if isinstance(source, PresentationBatch):
        if place.world_size > 1:
            raise DataError(
                f"{place.world_size} processes share the loader's samples, so a PresentationBatch "
                "of all of them fits none. Draw presentations for each batch, or let the loader "
                "give (inputs, labels, presentation)."
            )
        own = slice(place.n_before, place.n_before + n_samples)
        if own.stop > len(source):
            raise _another_number(f"at least {own.stop} samples", source)
        return source[own]
    if not callable(source):
        return source
    generator = draw_generator(place.seed, place.epoch, place.batch)
    # Of the whole batch, of which a process takes its samples: those that are drawn one after the
    # other are then the same in one process and in several.
    drawn = source(n_samples * place.world_size, generator)
    if isinstance(drawn, PresentationBatch) and place.world_size > 1:
        return drawn[place.rank :: place.world_size]
    return drawn


def _another_number(gave: str, presentations: PresentationBatch) -> DataError:
    return DataError(
        f"the loader gave {gave}, but there are presentations for {len(presentations)}; expected "
        "one for each."
    )


def collate(samples: Sequence[tuple[Any, Any, Presentation]], *, timed: bool = False) -> Collated:
    """A batch of samples that come with a presentation each: the `collate_fn` of a DataLoader.

    Args:
        samples: (input, label, presentation) each.
        timed: whether inputs have time themselves, ``[T, *features]``, with T the presentation's
            own: they are padded with its null value up to the longest (labels of shape ``[T]`` with
            its ignore_index), and the batch is for ``time_axis=1``. Say so with
            ``functools.partial(collate, timed=True)``.

    Returns:
        inputs and labels with the batch first, and the batch's presentations.

    Raises:
        DataError: for samples of another form, or a timed input of another T than its presentation.

    >>> spikes = [(torch.ones(n, 3), n, Presentation("1", dt=1.0, n_timesteps=n)) for n in (2, 4)]
    >>> inputs, labels, presentations = collate(spikes, timed=True)
    >>> inputs.shape, labels.tolist(), presentations.lengths.tolist()
    (torch.Size([2, 4, 3]), [2, 4], [2, 4])
    """
    for sample in samples:
        if (
            not isinstance(sample, tuple | list)
            or len(sample) != 3
            or not isinstance(sample[2], Presentation)
        ):
            raise DataError(
                f"a sample is a {type(sample).__name__}; expected (input, label, Presentation)."
            )
    presentations = PresentationBatch(sample[2] for sample in samples)
    pairs = [(value, label) for value, label, _ in samples]
    if timed:
        pairs = [_padded_sample(*sample, presentations.n_timesteps) for sample in samples]
    inputs, labels = default_collate(pairs)
    return inputs, labels, presentations


def _padded_sample(
    values: Any, label: Any, presentation: Presentation, n_timesteps: int
) -> tuple[Tensor, Tensor]:
    values, label = torch.as_tensor(values), torch.as_tensor(label)
    for what, over_time in (("input", values), ("label", label)):
        if over_time.ndim and len(over_time) != presentation.n_timesteps:
            raise DataError(
                f"the {what} of a sample has shape {list(over_time.shape)}, its presentation "
                f"{format_steps(presentation.n_timesteps, presentation.dt)}; expected time on the "
                "first axis."
            )
    if label.ndim:
        label = padded(label, n_timesteps, presentation.ignore_index)
    return padded(values, n_timesteps, presentation.null_value), label
