"""scikit-learn's handwritten digits: real images, on disk with the library, no download.

1797 images of 8x8 pixels with values from 0 to 16, by 13 writers: the test part of the Optical
Recognition of Handwritten Digits data set (Alpaydin and Kaynak, UCI Machine Learning Repository,
1998, doi:10.24432/C50P49; licence CC BY 4.0).
"""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from dynvision_snn.errors import MissingExtraError

__all__ = ["load_digits"]

_BRIGHTEST = 16
_EVERY = 5


def load_digits(*, flatten: bool = False) -> tuple[TensorDataset, TensorDataset]:
    """The digits as a training and a test set, always split the same way.

    Within each class every fifth image, in the library's order, is for testing: 364 of 1797, each
    class in proportion. No seed is involved. A writer's digits may be in both sets, as in a random
    split.

    Args:
        flatten: Give images as ``[64]`` instead of ``[1, 8, 8]``.

    Returns:
        Training and test set of (image float32 in [0, 1], label int64) pairs.

    Raises:
        MissingExtraError: If scikit-learn is not installed.

    >>> train, test = load_digits()
    >>> len(train), len(test), test[0][0].shape
    (1433, 364, torch.Size([1, 8, 8]))
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "digits", "Loading the digits") from error
    digits = datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / _BRIGHTEST
    images = images.flatten(1) if flatten else images.unsqueeze(1)
    labels = torch.tensor(digits.target, dtype=torch.int64)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        is_test[(labels == label).nonzero().flatten()[::_EVERY]] = True
    return (
        TensorDataset(images[~is_test], labels[~is_test]),
        TensorDataset(images[is_test], labels[is_test]),
    )
