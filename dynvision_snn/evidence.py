"""What ranks the classes at a timestep: the membrane, or what has gathered since the last onset.

Every kind of evidence is causal: at a timestep it depends on that and earlier timesteps alone, and
not on what came before the last onset. Whatever it is, the highest class is the answer
(`readout.decode`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from dynvision_snn.errors import ReadoutError, known_names

__all__ = [
    "Decoding",
    "check_onsets",
    "evidence",
    "first_spike",
    "running_mean",
    "spike_count",
]

Decoding = Literal["membrane", "running_mean", "spike_count", "first_spike"]
"""What ranks the classes; see `evidence`."""


def evidence(
    decoding: Decoding,
    membrane: Tensor,
    spikes: Tensor | None = None,
    onsets: Sequence[int] = (),
) -> Tensor:
    """What ranks the classes at every timestep, for `readout.decode`.

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
    if decoding not in get_args(Decoding):
        raise ReadoutError(
            f"There is no decoding {decoding!r}. {known_names(str(decoding), get_args(Decoding))}"
        )
    if decoding == "membrane":
        return membrane
    if decoding == "running_mean":
        return running_mean(membrane, onsets)
    if spikes is None:
        raise ReadoutError(
            f"The decoding {decoding!r} needs the readout's spikes, and it does not spike (an "
            "integrator, or no neuron layer). Decode 'membrane' or 'running_mean', or name a "
            "spiking layer: wrap(net, readout=...)."
        )
    return spike_count(spikes, onsets) if decoding == "spike_count" else first_spike(spikes, onsets)


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
    _check_over_time(membrane)
    since = _since_onset(len(membrane), onsets, membrane.device)
    # In double, so that what came before the onset cancels.
    total = _gathered(membrane.double(), since)
    return (total / since.view(-1, 1, 1)).to(membrane.dtype)


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
    _check_over_time(spikes)
    return _gathered((spikes != 0).long(), _since_onset(len(spikes), onsets, spikes.device))


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
    has_spiked = (spike_count(spikes, onsets) > 0).long()
    return _gathered(has_spiked, _since_onset(len(spikes), onsets, spikes.device))


def check_onsets(onsets: Sequence[int], n_timesteps: int) -> None:
    """Refuses onsets that cannot be those of a run.

    Raises:
        ReadoutError: If an onset is outside the run, or they do not ascend.

    >>> check_onsets([0, 4], n_timesteps=5)
    """
    if list(onsets) != sorted(set(onsets)) or not all(0 <= t < n_timesteps for t in onsets):
        raise ReadoutError(
            f"The onsets are {list(onsets)}; expected ascending timesteps from 0 to "
            f"{n_timesteps - 1}."
        )


def _check_over_time(values: Tensor) -> None:
    if values.ndim != 3:
        raise ReadoutError(
            f"What is decoded has shape {list(values.shape)}; expected [T, B, classes]."
        )


def _since_onset(n_timesteps: int, onsets: Sequence[int], device: torch.device) -> Tensor:
    """Timesteps from the last onset to the end of each timestep: int64 ``[T]``, from 1."""
    check_onsets(onsets, n_timesteps)
    steps = torch.arange(n_timesteps, device=device)
    began = torch.zeros_like(steps)
    began[list(onsets)] = steps[list(onsets)]
    return steps - began.cummax(0).values + 1


def _gathered(values: Tensor, since: Tensor) -> Tensor:
    """The sum of ``[T, B, classes]`` since the last onset."""
    total = values.cumsum(0)
    before = torch.arange(len(values), device=values.device) - since
    earlier = total[before.clamp(min=0)].masked_fill((before < 0).view(-1, 1, 1), 0)
    return total - earlier
