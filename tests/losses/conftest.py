"""What the tests of all losses share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "aten::equal")


class NoReadBack(TorchDispatchMode):
    """Refuses the operations that make a GPU wait: values read back, shapes that depend on data."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        by_mask = name.startswith("aten::index.") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or any(waiting in name for waiting in WAITING):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_read_back():
    """A context in which an operation that would make a GPU wait is an error, on any device."""
    return NoReadBack()
