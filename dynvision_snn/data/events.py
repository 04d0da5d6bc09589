"""Events of cameras and cochleas: files in, spike counts per timestep out.

Two formats are read, from files that the user downloaded:

- N-MNIST (Orchard et al., Frontiers in Neuroscience 9:437, 2015): one ``.bin`` file per digit, 5
  bytes per event: x, y, then one bit of polarity and 23 bits of time in microseconds, big-endian.
  An event in row 240 is no event: it marks an overflow of the camera's clock, and all later times
  grow by 2^13 microseconds.
- Spiking Heidelberg Digits and Speech Commands (Cramer et al., IEEE TNNLS 33(7):2744, 2022): one
  HDF5 file per part, with ``spikes/times`` in seconds, ``spikes/units`` and ``labels``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dynvision_snn.errors import DataError, MissingExtraError
from dynvision_snn.timing import ceil_steps, check_dt, containing_steps, seconds_to_ms

__all__ = ["NMNIST", "Events", "HeidelbergSpikes", "read_heidelberg", "read_nmnist", "time_first"]

_CAMERA = (2, 34, 34)
_COCHLEA = (700,)
_BYTES_PER_EVENT = 5
_OVERFLOW_ROW = 240
_OVERFLOW_US = 2**13


@dataclass(frozen=True, eq=False)
class Events:
    """Events of one sample: when, and which unit.

    Args:
        times: Times in ms, finite and at least 0, in any order: ``[N]``.
        units: int64 ``[N]``: index of the unit in the flattened ``shape``.
        shape: Shape of the units, such as ``(polarities, height, width)``.

    Raises:
        DataError: If the lengths differ, a time is not legal, or a unit is outside the shape.

    >>> e = Events(torch.tensor([0.5, 2.5, 2.6]), torch.tensor([0, 3, 3]), shape=(2, 2))
    >>> e.frames(dt=1.0, duration=4.0).flatten(1).tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]
    """

    times: Tensor
    units: Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.times.ndim != 1 or self.times.shape != self.units.shape:
            raise DataError(
                f"Times have shape {list(self.times.shape)} and units {list(self.units.shape)}; "
                "expected [N] of both."
            )
        if not bool((self.times.isfinite() & (self.times >= 0)).all()):
            raise DataError("A time is negative or not finite; expected ms of at least 0.")
        n_units = int(np.prod(self.shape))
        if len(self.units) and not 0 <= int(self.units.min()) <= int(self.units.max()) < n_units:
            raise DataError(
                f"Units run from {int(self.units.min())} to {int(self.units.max())}; expected 0 to "
                f"{n_units - 1}, for the shape {list(self.shape)}."
            )

    def frames(self, dt: float, duration: float, *, binary: bool = False) -> Tensor:
        """How many events each unit had in each timestep.

        Args:
            dt: Length of one timestep in ms.
            duration: Length in ms, rounded up to timesteps. Events after it are left out, so that
                all samples have one length.
            binary: Give 1 for any number of events.

        Returns:
            float32 ``[T, *shape]``.

        Raises:
            TimingError: If a time is not legal.
        """
        n_timesteps = ceil_steps(duration, dt, "duration")
        steps = containing_steps(self.times, dt)
        kept = steps < n_timesteps
        n_units = int(np.prod(self.shape))
        counts = torch.bincount(
            steps[kept] * n_units + self.units[kept], minlength=n_timesteps * n_units
        )
        frames = counts.clamp(max=1) if binary else counts
        return frames.reshape(n_timesteps, *self.shape).float()


def read_nmnist(path: str | Path) -> Events:
    """The events of one N-MNIST file, of shape ``(polarity, y, x) = (2, 34, 34)``.

    Raises:
        DataError: If the file cannot be read, has not 5 bytes per event, or an event lies outside
            the camera.
    """
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if len(content) % _BYTES_PER_EVENT:
        raise DataError(
            f"{path} has {len(content)} bytes, which is not {_BYTES_PER_EVENT} for each event; it "
            "was not copied whole, or is no N-MNIST file."
        )
    x, y, high, middle, low = content.reshape(-1, _BYTES_PER_EVENT).astype(np.int64).T
    overflow = y == _OVERFLOW_ROW
    microseconds = ((high & 0x7F) << 16 | middle << 8 | low) + _OVERFLOW_US * overflow.cumsum()
    polarity = high >> 7
    event = ~overflow
    _, height, width = _CAMERA
    if (x[event] >= width).any() or (y[event] >= height).any():
        raise DataError(
            f"{path} has an event outside the camera of {width}x{height} pixels; it is no N-MNIST "
            "file."
        )
    units = (polarity * height + y) * width + x
    return Events(
        torch.from_numpy(microseconds[event] / 1000), torch.from_numpy(units[event]), _CAMERA
    )


def read_heidelberg(path: str | Path, index: int) -> tuple[Events, int]:
    """The events and label of one sample of a Spiking Heidelberg file, of shape ``(700,)``.

    Args:
        path: The unpacked ``.h5`` file.
        index: Which sample.

    Raises:
        DataError: If the file is not of that form, or has no such sample.
        MissingExtraError: If h5py is not installed.
    """
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            times, units = file["spikes/times"][index], file["spikes/units"][index]
            label = int(file["labels"][index])
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"{path} gives no sample {index}: {error}. Expected an unpacked HDF5 file with "
            "spikes/times, spikes/units and labels."
        ) from error
    events = Events(
        torch.from_numpy(seconds_to_ms(times.astype(np.float64))),
        torch.from_numpy(units.astype(np.int64)),
        _COCHLEA,
    )
    return events, label


class NMNIST(Dataset[tuple[Tensor, int]]):
    """N-MNIST digits as frames ``[T, 2, 34, 34]`` with their label.

    Args:
        folder: ``Train`` or ``Test`` of the unpacked data set, holding folders ``0`` to ``9``.
        dt: Length of one timestep in ms.
        duration: Length of every sample in ms; a recording has three saccades of about 100 ms.
        binary: Give 1 for any number of events of a pixel in a timestep.

    Raises:
        DataError: If the folder holds no such files.
        TimingError: If a time is not legal.
    """

    def __init__(
        self, folder: str | Path, *, dt: float, duration: float = 300.0, binary: bool = False
    ) -> None:
        self.dt, self.duration, self.binary = check_dt(dt), duration, binary
        self.n_timesteps = ceil_steps(duration, dt, "duration")
        self.paths = sorted(Path(folder).glob("[0-9]/*.bin"))
        if not self.paths:
            raise DataError(
                f"{folder} holds no files such as 0/00002.bin; expected the folder Train or Test "
                "of the unpacked N-MNIST."
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.paths[index]
        frames = read_nmnist(path).frames(self.dt, self.duration, binary=self.binary)
        return frames, int(path.parent.name)


class HeidelbergSpikes(Dataset[tuple[Tensor, int]]):
    """Spiking Heidelberg Digits (or Speech Commands) as frames ``[T, 700]`` with their label.

    Args:
        path: The unpacked ``.h5`` file, such as ``shd_train.h5``.
        dt: Length of one timestep in ms.
        duration: Length of every sample in ms.
        binary: Give 1 for any number of spikes of a unit in a timestep.

    Raises:
        DataError: If the file is not of that form.
        MissingExtraError: If h5py is not installed.
        TimingError: If a time is not legal.
    """

    def __init__(
        self, path: str | Path, *, dt: float, duration: float = 1000.0, binary: bool = False
    ) -> None:
        self.path = Path(path)
        self.dt, self.duration, self.binary = check_dt(dt), duration, binary
        self.n_timesteps = ceil_steps(duration, dt, "duration")
        h5py = _h5py()
        try:
            with h5py.File(self.path, "r") as file:
                self._length = len(file["labels"])
        except (OSError, KeyError) as error:
            raise DataError(
                f"{path} cannot be read: {error}. Expected an unpacked HDF5 file (gunzip a "
                ".h5.gz) with spikes/times, spikes/units and labels."
            ) from error

    def __len__(self) -> int:
        return self._length

    # The file is opened per sample: an open HDF5 file cannot be shared with a loader's workers.
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        events, label = read_heidelberg(self.path, index % len(self))
        return events.frames(self.dt, self.duration, binary=self.binary), label


def time_first(samples: Iterable[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Collate frames ``[T, *units]`` and labels to ``[T, B, *units]`` and ``[B]``.

    For ``DataLoader(..., collate_fn=time_first)``, whose own way would put the batch first.

    >>> frames, labels = time_first([(torch.zeros(5, 2), 3), (torch.ones(5, 2), 4)])
    >>> frames.shape, labels.tolist()
    (torch.Size([5, 2, 2]), [3, 4])
    """
    frames, labels = zip(*samples, strict=True)
    return torch.stack(frames, dim=1), torch.tensor(labels, dtype=torch.int64)


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", "events", "Reading an HDF5 file of spikes") from error
    return h5py
