"""Where a result came from: which samples, which package versions, which device.

Results of other runs and machines are only comparable where these agree, so every simulation keeps
them and every comparison says what differs.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from dynvision_snn.errors import DataError
from dynvision_snn.presentation_batch import AnyPresentation, PresentationBatch

__all__ = ["DataFingerprint", "Fingerprinting", "environment"]

_PACKAGES = ("dynvision-snn", "torch", "numpy", "snntorch", "norse", "spikingjelly")
_MODULUS = 2**256


@dataclass(frozen=True)
class DataFingerprint:
    """Which samples a model saw, in whatever order and batches.

    Attributes:
        n_samples: how many.
        features: shape of one sample; of one timestep, where samples have time themselves and
            each a presentation of its own length.
        dtype: type of its values.
        digest: of all samples with their labels, and with their presentations where each has its
            own, as hexadecimal.
    """

    n_samples: int
    features: tuple[int, ...]
    dtype: str
    digest: str

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.features)) or "1"
        return f"{self.n_samples} samples of {shape} {self.dtype} values, {self.digest[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-safe."""
        return {**asdict(self), "features": list(self.features)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataFingerprint:
        """What `to_dict` wrote."""
        return cls(**{**values, "features": tuple(values["features"])})


class Fingerprinting:
    """Adds batches up to a `DataFingerprint`.

    The digests of samples are summed, so that their order and their batches do not matter.

    >>> images, labels = torch.rand(6, 3), torch.arange(6)
    >>> whole, halves = Fingerprinting(), Fingerprinting()
    >>> whole.add(images, labels)
    >>> for part in (slice(3, 6), slice(0, 3)):
    ...     halves.add(images[part], labels[part])
    >>> whole.result() == halves.result()
    True
    """

    def __init__(self) -> None:
        self._sum = self._count = 0
        self._kind: tuple[tuple[int, ...], str] | None = None

    def add(
        self,
        samples: Tensor,
        labels: Tensor,
        presentation: AnyPresentation | None = None,
        *,
        timed: bool = False,
    ) -> None:
        """One batch.

        Args:
            samples: the batch on its first axis.
            labels: likewise.
            presentation: of the batch. Where samples have their own, a digest is of both, so that
                another pairing of them is told apart.
            timed: whether samples (and labels with a second axis) have time on it. Of those with a
                presentation of their own padding does not count, since it is up to their batch.

        Raises:
            DataError: if their lengths differ, or samples have another shape or type than before.
        """
        if len(samples) != len(labels):
            raise DataError(f"{len(samples)} samples came with {len(labels)} labels.")
        lengths = None
        if timed and isinstance(presentation, PresentationBatch):
            lengths = presentation.lengths.tolist()
        features = samples.shape[1 if lengths is None else 2 :]
        kind = (tuple(features), str(samples.dtype).removeprefix("torch."))
        if self._kind not in (None, kind):
            raise DataError(
                f"The loader gave samples of shape and type {self._kind}, then of {kind}; expected "
                "the same of all."
            )
        self._kind = kind
        own = _described(presentation, len(samples))
        rows = _bytes(samples, lengths), _bytes(labels, lengths if labels.ndim == 2 else None)
        for sample, label, shown in zip(*rows, own, strict=True):
            digest = hashlib.sha256(sample + b"|" + label + shown).digest()
            self._sum = (self._sum + int.from_bytes(digest)) % _MODULUS
        self._count += len(samples)

    def result(self) -> DataFingerprint:
        """Of everything added.

        Raises:
            DataError: if nothing was.
        """
        if self._kind is None:
            raise DataError("there was no sample; expected at least one.")
        return DataFingerprint(self._count, *self._kind, f"{self._sum:064x}")


def environment(device: torch.device) -> dict[str, str]:
    """Versions of Python and the packages that decide about numbers, and the device's name.

    >>> sorted(environment(torch.device("cpu")))[:3]
    ['device', 'dynvision-snn', ...]
    """
    on_gpu = device.type == "cuda"
    found = {
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _described(presentation: AnyPresentation | None, n_samples: int) -> list[bytes]:
    """What each sample's own presentation is; nothing where all have the same one."""
    if not isinstance(presentation, PresentationBatch):
        return [b""] * n_samples
    return [b"|" + json.dumps(one.to_dict(), sort_keys=True).encode() for one in presentation]


def _bytes(tensor: Tensor, lengths: Sequence[int] | None = None) -> list[bytes]:
    """The bytes of each row, or of its first entries."""
    rows = tensor.detach().cpu().contiguous()
    raw = rows.reshape(len(rows), -1).contiguous().view(torch.uint8).numpy()
    if lengths is None:
        return [row.tobytes() for row in raw]
    each = raw.shape[1] // rows.shape[1]
    return [row[: length * each].tobytes() for row, length in zip(raw, lengths, strict=True)]
