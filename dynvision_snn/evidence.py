"""What ranks the classes at a timestep: the membrane, or what has gathered since the last onset.

Every kind of evidence is causal: at a timestep it depends on that and earlier timesteps alone, and
not on what came before the last onset. Whatever it is, the highest class is the answer
(`readout.decode`).

Each is a stream that takes a run piece by piece and carries from one to the next what it needs, a
few numbers per sample and class (`gathering_of`). A run taken whole is one piece: the same values,
bit for bit, where the device sums over time in order (a CPU does).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from dynvision_snn.errors import ReadoutError, known_names
from dynvision_snn.timing import format_steps

__all__ = [
    "Decoding",
    "Evidence",
    "began_at",
    "check_onsets",
    "evidence",
    "first_spike",
    "gathering_of",
    "running_mean",
    "spike_count",
]

Decoding = Literal["membrane", "running_mean", "spike_count", "first_spike"]
"""What ranks the classes; see `evidence`."""


class Evidence(ABC):
    """One kind of evidence over one run, taken piece by piece, each piece once and in order."""

    @abstractmethod
    def __call__(self, membrane: Tensor, spikes: Tensor | None, began: Tensor) -> Tensor:
        """The evidence at every timestep of the next piece.

        Args:
            membrane: ``[t, B, classes]``.
            spikes: ``[t, B, classes]``; None where the readout does not spike.
            began: at which timesteps what is gathered begins anew, the onsets: bool ``[t]``, or
                ``[t, B]`` where each sample has its own.

        Returns:
            ``[t, B, classes]``.

        Raises:
            ReadoutError: for another shape, or spikes that are needed and not there.
        """


def gathering_of(decoding: Decoding) -> Evidence:
    """The evidence of a run that is taken piece by piece; see `evidence` for its kinds.

    Raises:
        ReadoutError: if the decoding is unknown.

    >>> counted = gathering_of("spike_count")
    >>> spikes, never = torch.ones(2, 1, 1), torch.tensor([False, False])
    >>> [counted(spikes, spikes, never).flatten().tolist() for _ in range(2)]
    [[1, 2], [3, 4]]
    """
    if decoding not in get_args(Decoding):
        raise ReadoutError(
            f"There is no decoding {decoding!r}. {known_names(str(decoding), get_args(Decoding))}"
        )
    kinds: dict[Decoding, type[_Membrane | _RunningMean | _SpikeCount | _FirstSpike]] = {
        "membrane": _Membrane,
        "running_mean": _RunningMean,
        "spike_count": _SpikeCount,
        "first_spike": _FirstSpike,
    }
    return kinds[decoding]()


def evidence(
    decoding: Decoding,
    membrane: Tensor,
    spikes: Tensor | None = None,
    onsets: Sequence[int] = (),
) -> Tensor:
    """What ranks the classes at every timestep of a whole run, for `readout.decode`.

    Args:
        decoding: ``"membrane"``: the membrane of the timestep alone; ``"running_mean"``: its mean
            since the last onset; ``"spike_count"``: spikes since the last onset;
            ``"first_spike"``: the earlier a class spiked since the last onset, the higher.
        membrane: ``[T, B, classes]``.
        spikes: ``[T, B, classes]``; None where the readout does not spike.
        onsets: Timesteps at which a stimulus begins, ascending, as ``Presentation.onsets``.

    Returns:
        ``[T, B, classes]``; at a timestep it depends on that and earlier timesteps alone.

    Raises:
        ReadoutError: If the decoding is unknown, the shapes or onsets do not fit, or a decoding by
            spikes is asked of a readout that does not spike.

    >>> spikes = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]], [[1.0, 0.0]]])
    >>> evidence("spike_count", spikes, spikes).squeeze(1).tolist()
    [[0, 1], [1, 1], [2, 1]]
    >>> evidence("first_spike", spikes, spikes).squeeze(1).tolist()
    [[0, 1], [1, 2], [2, 3]]
    """
    gathering = gathering_of(decoding)
    return gathering(membrane, spikes, began_at(onsets, len(membrane), membrane.device))


def running_mean(membrane: Tensor, onsets: Sequence[int] = ()) -> Tensor:
    """The mean membrane since the last onset, or since the beginning before the first.

    Args:
        membrane: ``[T, B, classes]``.
        onsets: Timesteps at which the mean begins anew, ascending.

    Returns:
        ``[T, B, classes]``, of the membrane's dtype.

    Raises:
        ReadoutError: If the shape is another, an onset is outside the run, or they do not ascend.

    >>> running_mean(torch.tensor([1.0, 3.0, 5.0, 7.0]).view(4, 1, 1), [2]).flatten().tolist()
    [1.0, 2.0, 5.0, 6.0]
    """
    return evidence("running_mean", membrane, None, onsets)


def spike_count(spikes: Tensor, onsets: Sequence[int] = ()) -> Tensor:
    """The spikes since the last onset, or since the beginning before the first.

    Args:
        spikes: ``[T, B, classes]``; every nonzero value is one spike, whatever its height.
        onsets: Timesteps at which the count begins anew, ascending.

    Returns:
        int64 ``[T, B, classes]``.

    Raises:
        ReadoutError: If the shape is another, an onset is outside the run, or they do not ascend.

    >>> spike_count(torch.tensor([1.0, 0.0, 1.0, 1.0]).view(4, 1, 1), [2]).flatten().tolist()
    [1, 1, 1, 2]
    """
    return evidence("spike_count", spikes, spikes, onsets)


def first_spike(spikes: Tensor, onsets: Sequence[int] = ()) -> Tensor:
    """How long ago each class spiked first since the last onset.

    Args:
        spikes: ``[T, B, classes]``; every nonzero value is one spike.
        onsets: Timesteps after which the first spike is looked for anew, ascending.

    Returns:
        int64 ``[T, B, classes]``: timesteps from the first spike to the end of this one; 0 for a
        class that has not spiked. So the highest spiked first.

    Raises:
        ReadoutError: If the shape is another, an onset is outside the run, or they do not ascend.

    >>> first_spike(torch.tensor([0.0, 1.0, 0.0, 1.0]).view(4, 1, 1)).flatten().tolist()
    [0, 1, 2, 3]
    """
    return evidence("first_spike", spikes, spikes, onsets)


def check_onsets(onsets: Sequence[int], n_timesteps: int, dt: float | None = None) -> None:
    """Refuses onsets that cannot be those of a run; `dt` in ms is for the error, where known.

    Raises:
        ReadoutError: If an onset is outside the run, or they do not ascend.

    >>> check_onsets([0, 4], n_timesteps=5)
    """
    if list(onsets) != sorted(set(onsets)) or not all(0 <= t < n_timesteps for t in onsets):
        raise ReadoutError(
            f"The onsets are {list(onsets)}; expected ascending timesteps from 0 to "
            f"{n_timesteps - 1}, of a run of {format_steps(n_timesteps, dt)}."
        )


def began_at(onsets: Sequence[int], n_timesteps: int, device: torch.device) -> Tensor:
    """Which timesteps are onsets: bool ``[T]``.

    Raises:
        ReadoutError: If an onset is outside the run, or they do not ascend.

    >>> began_at([0, 2], 3, torch.device("cpu")).tolist()
    [True, False, True]
    """
    check_onsets(onsets, n_timesteps)
    began = torch.zeros(n_timesteps, dtype=torch.bool)
    began[list(onsets)] = True
    return began.to(device, non_blocking=True)


class _SinceOnset:
    """The sum since the last onset, or since the beginning before the first, piece by piece."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._earlier: Tensor | None = None

    def __call__(self, values: Tensor, began: Tensor) -> Tensor:
        """Adds ``[t, B, classes]``; the sum at each of its timesteps."""
        if not len(values):
            return values
        if self._total is None or self._earlier is None:
            self._total = self._earlier = torch.zeros_like(values[0])
        # Summed from the carried total on, in the order of a run that is taken whole.
        total = torch.cat([self._total.unsqueeze(0), values]).cumsum(0)
        steps = torch.arange(len(values), device=values.device)
        columns = (-1, *(1,) * (began.ndim - 1))
        last = torch.where(began, steps.reshape(columns), -1).cummax(0).values
        last = last.reshape(*last.shape, *(1,) * (3 - last.ndim)).expand_as(values)
        # total[t] is the sum before timestep t of this piece.
        earlier = torch.where(last < 0, self._earlier, total.gather(0, last.clamp(min=0)))
        self._total, self._earlier = total[-1], earlier[-1]
        return total[1:] - earlier


class _Membrane(Evidence):
    def __call__(self, membrane: Tensor, spikes: Tensor | None, began: Tensor) -> Tensor:
        return membrane


class _RunningMean(Evidence):
    def __init__(self) -> None:
        self._sum, self._steps = _SinceOnset(), _SinceOnset()

    def __call__(self, membrane: Tensor, spikes: Tensor | None, began: Tensor) -> Tensor:
        _check_over_time(membrane)
        # In double, so that what came before the onset cancels.
        total = self._sum(membrane.double(), began)
        ones = torch.ones_like(membrane[..., :1], dtype=torch.int64)
        return (total / self._steps(ones, began)).to(membrane.dtype)


class _SpikeCount(Evidence):
    def __init__(self) -> None:
        self._sum = _SinceOnset()

    def __call__(self, membrane: Tensor, spikes: Tensor | None, began: Tensor) -> Tensor:
        return self._sum((_needed(spikes, "spike_count") != 0).long(), began)


class _FirstSpike(Evidence):
    def __init__(self) -> None:
        self._spikes, self._since = _SinceOnset(), _SinceOnset()

    def __call__(self, membrane: Tensor, spikes: Tensor | None, began: Tensor) -> Tensor:
        fired = (_needed(spikes, "first_spike") != 0).long()
        has_spiked = (self._spikes(fired, began) > 0).long()
        return self._since(has_spiked, began)


def _needed(spikes: Tensor | None, decoding: Decoding) -> Tensor:
    if spikes is None:
        raise ReadoutError(
            f"The decoding {decoding!r} needs the readout's spikes, and it does not spike (an "
            "integrator, or no neuron layer). Decode 'membrane' or 'running_mean', or name a "
            "spiking layer: wrap(net, readout=...)."
        )
    _check_over_time(spikes)
    return spikes


def _check_over_time(values: Tensor) -> None:
    if values.ndim != 3:
        raise ReadoutError(
            f"What is decoded has shape {list(values.shape)}; expected [T, B, classes]."
        )
