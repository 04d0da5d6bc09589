"""Every exception and warning that the package raises.

Each message says what was received, what was expected, and how to fix it. All exceptions share
`DynvisionError`; each is also the built-in that a caller would expect, so `except ValueError`
keeps working.
"""

from __future__ import annotations

from difflib import get_close_matches
from pickle import PicklingError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class DynvisionError(Exception):
    """Base of every exception of this package."""


class TimingError(DynvisionError, ValueError):
    """A time, timestep or decay that makes no sense, or timesteps that disagree."""


class PresentationError(DynvisionError, ValueError):
    """A presentation that cannot be built, or inputs that do not fit it."""


class EncodingError(DynvisionError, ValueError):
    """Inputs that cannot be encoded as asked, or a random generator that does not fit them."""


class AdapterError(DynvisionError, TypeError):
    """A layer that no adapter serves, or that its adapter refuses."""


class WrapError(DynvisionError, ValueError):
    """A model whose stepping, state or readout could not be told, or that cannot follow a run."""


class ObservationError(DynvisionError, RuntimeError):
    """Observations that contradict each other: layers, counts, gradients or batch sizes."""


class LossError(DynvisionError, ValueError):
    """A loss built or called with values it cannot take."""


class EnergyError(DynvisionError, ValueError):
    """An energy budget or hardware profile that cannot be built or priced."""


class ReadoutError(DynvisionError, ValueError):
    """Membranes that cannot be decoded, or answers that do not fit them."""


class DataError(DynvisionError, ValueError):
    """Data that do not have the shape, type or labels that were announced."""


class ComparisonError(DynvisionError, ValueError):
    """Simulations that cannot stand side by side, or a comparison that cannot be saved or read."""


class OutputError(DynvisionError, OSError):
    """A file or folder that exists already, or that cannot be written."""


class SavingError(DynvisionError, PicklingError):
    """A model that cannot be pickled."""


class ConfigError(DynvisionError, ValueError):
    """A setting that is unknown, of the wrong type, or impossible."""


class TrainingError(DynvisionError, RuntimeError):
    """A training that diverged, an energy limit out of reach, or a checkpoint that does not fit."""


class MissingExtraError(DynvisionError, ImportError):
    """An optional library that is not installed."""

    def __init__(self, library: str, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs {library}, which is not installed. "
            f"Install it with: pip install 'dynvision-snn[{extra}]'"
        )


class DynvisionWarning(UserWarning):
    """Base of every warning of this package: legal, but seldom what was meant."""


class PresentationWarning(DynvisionWarning):
    """A presentation that leaves a stimulus, or everything, unsupervised."""


class AdapterWarning(DynvisionWarning):
    """A layer that is served, but whose library computes something unexpected."""


class TimingWarning(DynvisionWarning):
    """A timestep that is coarse or unstable for a time constant."""


class EnergyWarning(DynvisionWarning):
    """A figure in joules that leaves out synaptic operations, since its profile has no price."""


def known_names(received: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, then all of them.

    >>> known_names("lohi", ["45nm-fp32", "loihi"])
    "Did you mean 'loihi'? Known: 45nm-fp32, loihi."
    """
    names = sorted(known)
    near = get_close_matches(received, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(names) or 'none'}."
