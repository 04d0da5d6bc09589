"""Spikes as bits: what autograd saves of them for the backward, in an eighth of a byte each.

Whoever makes spikes says so (`note_spikes`). While they are to be kept as bits (`keeping`), torch
asks here in which form to save a tensor, whatever operation saves it: a layer, a loss, a scan. One
whose memory is that of noted spikes is saved as their bits, which all that save it share, and made
again, to the last bit, for each that asks for it in the backward. Every other is saved as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from dynvision_snn.errors import WrapError, known_names

KeepSpikes = Literal["floats", "bits"]

# Times a word of eight bytes that are 0 or 1, it brings them together in the highest byte.
_GATHER = 0x0102040810204080


def check_keep_spikes(how: str) -> None:
    """Refuses what is no form to keep spikes in.

    Raises:
        WrapError: naming those that are.
    """
    if how not in get_args(KeepSpikes):
        raise WrapError(f"keep_spikes={how!r}. {known_names(str(how), get_args(KeepSpikes))}")


def keeping(how: KeepSpikes) -> AbstractContextManager[object]:
    """Saves noted spikes as `how` says, in what is computed inside of it.

    Where somebody else decides already how tensors are saved, as activation checkpointing does, it
    is left to them.

    Raises:
        WrapError: for another form.
    """
    check_keep_spikes(how)
    if how == "floats" or not torch.is_grad_enabled() or _packing() is not None:
        return nullcontext()
    return saved_tensors_hooks(_Keeper(), lambda form: form.unpacked())


def note_spikes(spikes: Tensor, value: Tensor) -> None:
    """All numbers in the memory of `spikes` are `value`, or 0 times it.

    Args:
        spikes: of any shape.
        value: ``[1]``, finite; spikes worth several values stay floats.
    """
    keeper = _packing()
    if isinstance(keeper, _Keeper) and value.numel() == 1:
        keeper.note(spikes, value)


def note_moved(moved: Tensor, source: Tensor, *others: Tensor) -> None:
    """All numbers of `moved` are 0 or among those of the others, as in a copy in another order.

    Where several are joined, their spikes must be known to be worth the same: those of one scan
    are, and on a CPU those of several that are.
    """
    keeper = _packing()
    if isinstance(keeper, _Keeper):
        keeper.note_moved(moved, (source, *others))


def hooked_by_others() -> bool:
    """Whether somebody else, such as activation checkpointing, decides how tensors are saved."""
    packing = _packing()
    return packing is not None and not isinstance(packing, _Keeper)


def _packing() -> object | None:
    """What torch calls with every tensor that is saved."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return None if hooks is None else hooks[0]


@dataclass(frozen=True, eq=False, slots=True)
class Bits:
    """Numbers that are `value` or 0 times it.

    Attributes:
        octets: uint8, the first of each eight numbers in the lowest bit.
        value: ``[1]``, finite.
    """

    octets: Tensor
    value: Tensor

    @classmethod
    def of(cls, numbers: Tensor, value: Tensor) -> Bits:
        """The bits of ``[n]`` numbers.

        >>> bits = Bits.of(torch.tensor([0.0, 2.0, 2.0]), torch.tensor([2.0]))
        >>> bits.octets, bits.numbers(1, 3)
        (tensor([6], dtype=torch.uint8), tensor([2., 2.]))
        """
        n = len(numbers)
        flags = numbers.new_empty(-(-n // 8) * 8, dtype=torch.bool)
        flags[:n] = numbers
        flags[n:] = False
        words = flags.view(torch.int64).mul_(_GATHER).bitwise_right_shift_(56)
        return cls(words.to(torch.uint8), value.clone())

    def numbers(self, start: int, stop: int) -> Tensor:
        """Those from `start` up to `stop`."""
        places, octets = (torch.arange(n, device=self.octets.device) for n in (8, 256))
        is_set = (octets.unsqueeze(1) >> places & 1).bool()
        table = torch.where(is_set, self.value, 0 * self.value)
        first = start // 8
        rows = F.embedding(self.octets[first : -(-stop // 8)].int(), table)
        return rows.view(-1)[start - 8 * first : stop - 8 * first]


@dataclass(eq=False, slots=True)
class _Spikes:
    """Noted spikes: what they are worth, in which version they were, their bits once saved."""

    value: Tensor
    version: int
    bits: Bits | None = None


class _Keeper:
    """Says in which form a tensor is saved."""

    def __init__(self) -> None:
        # By memory; a weak reference lets go of the numbers, but of no memory for other tensors.
        self._noted: dict[StorageWeakRef, _Spikes] = {}

    def note(self, spikes: Tensor, value: Tensor) -> None:
        """See `note_spikes`."""
        self._noted[_memory(spikes)] = _Spikes(value.detach(), spikes._version)

    def note_moved(self, moved: Tensor, sources: Sequence[Tensor]) -> None:
        """See `note_moved`."""
        first, *others = (self._find(source) for source in sources)
        if first is None or self._find(moved) is not None:
            return
        if any(other is None or not _same(first.value, other.value) for other in others):
            return
        if moved.untyped_storage().nbytes() == moved.numel() * moved.element_size():
            self._noted[_memory(moved)] = _Spikes(first.value, moved._version)

    def __call__(self, tensor: Tensor) -> _AsBits | _AsItIs:
        """The form of a tensor that is saved."""
        spikes = self._find(tensor)
        if spikes is None:
            return _AsItIs(tensor, tensor._version)
        if spikes.bits is None:
            n = tensor.untyped_storage().nbytes() // tensor.element_size()
            spikes.bits = Bits.of(tensor.as_strided((n,), (1,), 0), spikes.value)
        return _AsBits(spikes.bits, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def _find(self, tensor: Tensor) -> _Spikes | None:
        if type(tensor) is not Tensor or tensor.layout is not torch.strided:
            return None  # it may have no memory to be known by
        spikes = self._noted.get(_memory(tensor))
        if spikes is None or spikes.version != tensor._version:
            return None  # written into, it may be anything
        return spikes if tensor.dtype is spikes.value.dtype else None


def _same(value: Tensor, other: Tensor) -> bool:
    """Whether they are known to be; another device is not waited for."""
    on_cpu = value.device.type == other.device.type == "cpu"
    return value is other or (on_cpu and torch.equal(value, other))


def _memory(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


@dataclass(frozen=True, eq=False, slots=True)
class _AsBits:
    """A view of the memory of spikes."""

    bits: Bits
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def unpacked(self) -> Tensor:
        """The view, in memory of its own."""
        last = sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        numbers = self.bits.numbers(self.offset, self.offset + last + 1)
        return numbers.as_strided(self.size, self.stride)


@dataclass(frozen=True, eq=False, slots=True)
class _AsItIs:
    """Torch itself does not look whether what was packed is written into meanwhile."""

    tensor: Tensor
    version: int

    def unpacked(self) -> Tensor:
        """The tensor.

        Raises:
            RuntimeError: if it was written into, as torch would.
        """
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: a tensor of shape {list(self.tensor.shape)} is at version "
                f"{self.tensor._version}; expected version {self.version} instead. Change a copy: "
                "x = x * mask instead of x *= mask."
            )
        return self.tensor
