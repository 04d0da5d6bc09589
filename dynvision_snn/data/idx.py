"""IDX files, the format of MNIST and its siblings (Fashion-MNIST, KMNIST, EMNIST).

The format (LeCun, Cortes and Burges, "The MNIST database of handwritten digits"): two zero bytes,
a byte for the type of the values, a byte for the number of dimensions, the dimensions as
big-endian 32-bit integers, then the values, big-endian, last axis fastest.

Files are read from a folder; nothing is downloaded.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from dynvision_snn.errors import DataError

__all__ = ["load_mnist", "read_idx"]

_GZIP_MAGIC = b"\x1f\x8b"
_VALUE_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PARTS = {"train": "train", "test": "t10k"}


def read_idx(path: str | Path) -> Tensor:
    """The array of one IDX file, gzipped or not (its content decides, not its name).

    Args:
        path: The file.

    Returns:
        A tensor of the file's own shape and value type.

    Raises:
        DataError: If the file cannot be read, is no IDX file, or is shorter or longer than its
            header says.
    """
    content = _content(Path(path))
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _VALUE_TYPES:
        raise DataError(
            f"{path} begins with {content[:4].hex(' ')!r}; expected an IDX file: two zero bytes, a "
            f"value type ({', '.join(f'{code:02x}' for code in _VALUE_TYPES)}) and the number of "
            "dimensions."
        )
    values = np.dtype(_VALUE_TYPES[content[2]])
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise DataError(f"{path} ends within its header; it was not copied whole.")
    shape = np.frombuffer(content[4:header], dtype=">u4").tolist()
    expected = header + math.prod(shape) * values.itemsize
    if len(content) != expected:
        raise DataError(
            f"{path} has {len(content)} bytes; expected {expected} for the shape {shape} that its "
            "header announces. It was not copied whole, or is another file."
        )
    array = np.frombuffer(content, dtype=values, offset=header).reshape(shape)
    return torch.from_numpy(array.astype(values.newbyteorder("=")))


def load_mnist(folder: str | Path) -> tuple[TensorDataset, TensorDataset]:
    """MNIST, or a data set in its form, from a folder that holds its four files.

    Args:
        folder: Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
            ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each also with ``.gz``.

    Returns:
        Training and test set of (image float32 ``[1, H, W]`` in [0, 1], label int64) pairs.

    Raises:
        DataError: If a file is missing or broken, or images and labels do not fit each other.
    """
    return _part(Path(folder), "train"), _part(Path(folder), "test")


def _part(folder: Path, part: str) -> TensorDataset:
    images = read_idx(_find(folder, f"{_PARTS[part]}-images-idx3-ubyte"))
    labels = read_idx(_find(folder, f"{_PARTS[part]}-labels-idx1-ubyte"))
    if images.dtype != torch.uint8 or images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(
            f"The {part} images in {folder} have shape {list(images.shape)} and type "
            f"{images.dtype}, the labels shape {list(labels.shape)}; expected [N, H, W] of "
            "torch.uint8, and [N]."
        )
    return TensorDataset(images.unsqueeze(1).float() / 255, labels.long())


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"{folder} holds neither {name} nor {name}.gz. Download the data set's files into it; "
        "this package downloads nothing."
    )


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(_GZIP_MAGIC) else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
