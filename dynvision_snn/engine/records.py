"""Tensors that a time loop writes its timesteps into, ``voltages[t] = v``, in place of a list.

While the loop is traced nothing is written: the tensor is as it was made, and whoever reads it
would read that. So it may be read by nobody but who gets it when the loop is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.proxy import TraceError

from dynvision_snn.engine.over_time import OverTime, is_all


@dataclass(eq=False, slots=True)
class Record:
    """One such tensor.

    Attributes:
        tensor: the tensor, as it was made.
        axis: where its time is, 0 or 1.
        values: what was written, timestep by timestep.
    """

    tensor: Tensor
    axis: int
    values: list[fx.Node] = field(default_factory=list)

    @property
    def like(self) -> tuple[torch.Size, torch.dtype, torch.device]:
        """Shape, dtype and device of one timestep."""
        tensor = self.tensor
        shape = (*tensor.shape[: self.axis], *tensor.shape[self.axis + 1 :])
        return torch.Size(shape), tensor.dtype, tensor.device


class Records:
    """Those of one forward.

    Args:
        inputs: the axes of its input.
    """

    def __init__(self, inputs: OverTime) -> None:
        self._sizes = inputs.n_steps, inputs.n_samples
        self._of: dict[int, Record] = {}

    def write(self, tensor: Tensor, key: Any, value: Any) -> None:
        """Notes that the forward writes `value` into `tensor`.

        Raises:
            TraceError: where that is not the next timestep, all of it.
        """
        keys = list(key) if isinstance(key, tuple) else [key]
        if keys[-1] is Ellipsis:
            keys.pop()
        axis = next((k for k, each in enumerate(keys) if not is_all(each)), 2)
        t = keys[axis] if axis < len(keys) else None
        whole = all(is_all(each) for k, each in enumerate(keys) if k != axis)
        sizes = self._sizes if axis == 0 else self._sizes[::-1]
        if axis > 1 or type(t) is not int or not whole or tensor.shape[:2] != sizes:
            raise TraceError("it writes something else than a timestep into a tensor of its own")
        record = self._of.setdefault(id(tensor), Record(tensor, axis))
        in_order = record.axis == axis and t == len(record.values)
        if not in_order or not isinstance(value, fx.Proxy):
            raise TraceError("it writes its timesteps into a tensor in another order")
        record.values.append(value.node)

    def of(self, tensor: Tensor) -> Record | None:
        """What is written into `tensor`; None where nothing is."""
        return self._of.get(id(tensor))

    def check_unread(self, tensors: Iterable[Tensor]) -> None:
        """Refuses tensors that share memory with those that are written into."""
        if not self._of:
            return
        written = {_memory(record.tensor) for record in self._of.values()}
        if any(_memory(tensor) in written for tensor in tensors):
            raise TraceError("it reads a tensor that it writes its timesteps into")


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
