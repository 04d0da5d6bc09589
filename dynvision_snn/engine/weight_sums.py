"""Weight gradients that are taken once for many timesteps, in a model that is run step by step.

A layer that is called at every timestep has a weight gradient for each, which autograd adds up: a
small matrix product and a pass through the whole weight, again and again. Here a call's backward
only keeps what the product needs, which is then taken for many timesteps at once. Where one input
was shown for many, what came back of them is summed first, and there is one product for all.

Outputs are the layer's own, bit for bit; weight gradients are summed in another order.

In the graph, weight and bias have one node for a whole run, `_Gather`. The calls of the layer
(`_Called`) give it no gradient, but autograd comes to it after all those of them that a backward
reaches. It then gives what they kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.function import Function

from dynvision_snn.adapters.base import map_tensors
from dynvision_snn.engine.products import weight_gradient
from dynvision_snn.engine.products.dense import times
from dynvision_snn.engine.undisturbed import is_undisturbed
from dynvision_snn.errors import WrapError

# Numbers that may wait for a product, and multiplications from which on a call is worth its way
# through Python.
_WAITING = 1 << 22
_WORTH = 1 << 20


class WeightSums:
    """The weight gradients of one run of a model.

    >>> from torch import nn
    >>> layer, x = nn.Linear(1024, 1024), torch.ones(1, 1024)
    >>> sums = WeightSums()
    >>> for _ in range(3):
    ...     sums.linear(x, layer.weight, layer.bias).sum().backward()
    >>> layer.bias.grad[0]
    tensor(3.)
    """

    def __init__(self) -> None:
        self._shared: dict[_Key, tuple[_Kept, Tensor]] = {}
        self._shown: dict[_Key, _Shown] = {}

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``F.linear``, the gradients of `weight` and `bias` in sums where that is worth it.

        Args:
            x: ``[..., features]``.
            weight: ``[units, features]``.
            bias: ``[units]``.

        Returns:
            ``[..., units]``, the bits of ``F.linear``.
        """
        if not _can_wait(x, weight, bias) or x.ndim < 2 or x.numel() * len(weight) < _WORTH:
            return F.linear(x, weight, bias)
        return self._called(_Linear(), x, weight, bias, F.linear)

    def convolution(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
        """What a convolution makes of `x`, with its bits.

        The gradients of its weight and bias are in sums where `x` is an input that may be shown
        again. Elsewhere its own backward takes both gradients in one operation, which is faster.
        """
        weight, bias, padding = layer.weight, layer.bias, layer.padding
        if (
            not _can_wait(x, weight, bias)
            or x.requires_grad
            or x.ndim != weight.ndim
            or layer.padding_mode != "zeros"
            or isinstance(padding, str)
        ):
            return layer._conv_forward(x, weight, bias)
        how = _Convolution(layer.stride, padding, layer.dilation, layer.groups)
        shown = self._shown.setdefault(_key(how, weight, bias), _Shown(how))
        return self._called(how, x, weight, bias, shown)

    def sums(self, weight: Tensor) -> bool:
        """Whether a gradient of `weight` is in sums since `clear`."""
        return any(kept.weight is weight for kept, _ in self._shared.values())

    def clear(self) -> None:
        """The run has ended; what its graph needs, it holds by itself."""
        self._shared.clear()
        self._shown.clear()

    def _called(
        self,
        how: _Operation,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        compute: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        key = _key(how, weight, bias)
        if key not in self._shared:
            kept = _Kept(how, weight, bias)
            self._shared[key] = kept, _Gather.apply(kept, weight, bias)
        kept, token = self._shared[key]
        out: Tensor = _Called.apply(kept, compute, token, x, weight, bias)
        return out


_Key = tuple["_Operation", int, int, bool]


def _key(how: _Operation, weight: Tensor, bias: Tensor | None) -> _Key:
    return how, id(weight), id(bias), bias is not None and bias.requires_grad


class SummedWeight(Tensor):
    """A weight for somebody else's ``F.linear``, its gradients in sums.

    Whatever else is done with it is done with the weight itself.
    """

    weight: Tensor
    sums: WeightSums
    _is_param: bool

    @classmethod
    def of(cls, weight: Tensor, sums: WeightSums) -> SummedWeight:
        """`weight`, for ``F.linear(x, weight, bias)``."""
        # Still joined with the weight in the graph: compiled code would not ask this class.
        summed = weight.as_subclass(cls)
        summed.weight, summed.sums = weight, sums
        summed._is_param = isinstance(weight, nn.Parameter)
        return summed

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The function of the weight itself."""
        if func is F.linear and not kwargs and type(args[1]) is cls:
            x, summed, *bias = args
            if not any(type(given) is cls for given in (x, *bias)):
                return summed.sums.linear(x, summed.weight, *bias)
        named = map_tensors(_itself, dict(kwargs or {}))
        return func(*map_tensors(_itself, tuple(args)), **named)


def _itself(tensor: Tensor) -> Tensor:
    return tensor.weight if isinstance(tensor, SummedWeight) else tensor


class _Operation(Protocol):
    """What a layer computes; its gradients are differentiable, where a graph is made of them."""

    def input_gradient(self, g: Tensor, weight: Tensor) -> Tensor:
        """From what comes back, `g`."""

    def weight_gradients(
        self, g: Tensor, x: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Those of weight and bias; the weight is known where it is kept."""


@dataclass(frozen=True, slots=True)
class _Linear:
    def input_gradient(self, g: Tensor, weight: Tensor) -> Tensor:
        if g.ndim != 2 or _is_followed(g):
            return g @ weight
        return times(g, weight)

    def weight_gradients(
        self, g: Tensor, x: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        g, x = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        if _is_followed(g):
            return g.t() @ x, g.sum(0)
        return weight_gradient(g, x), g.sum(0)


@dataclass(frozen=True, slots=True)
class _Convolution:
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1]
        return convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def input_gradient(self, g: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError  # only taken where the input learns nothing

    def weight_gradients(
        self, g: Tensor, x: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert weight is not None
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            g,
            x,
            weight,
            [len(weight)],
            self.stride,
            self.padding,
            self.dilation,
            False,
            [0] * len(self.stride),
            self.groups,
            [False, True, True],
        )
        return of_weight, of_bias


class _Shown:
    """What a convolution makes of an input that is shown again and again: computed once.

    That its input, weight and bias are as they were is told from copies, number by number, which
    takes a small part of the time: weights may be written into behind autograd's back.
    """

    def __init__(self, how: _Convolution) -> None:
        self.how = how
        self.last: Tensor | None = None
        self.copies: list[Tensor] = []
        self.out: Tensor | None = None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        again = self.last is not None and _is_same(self.last, x)
        given = [x, weight] if bias is None else [x, weight, bias]
        if again and self.out is not None and all(map(torch.equal, self.copies, given)):
            return self.out.clone()
        out = self.how(x, weight, bias)
        self.last, self.out = x, None
        if again:
            self.copies, self.out = [value.clone() for value in given], out.clone()
        return out


class _Kept:
    """What the calls of a layer have kept, by the backward that it is kept in."""

    def __init__(self, how: _Operation, weight: Tensor, bias: Tensor | None) -> None:
        # Both are held, so that no other tensor has the identity that calls are told apart by.
        self.how, self.weight, self.bias = how, weight, bias
        self._sums: dict[int, _Sum] = {}

    def add(self, g: Tensor, x: Tensor, weight: Tensor | None) -> None:
        """What came back of a call with `x`."""
        task = torch._C._current_graph_task_id()
        if task not in self._sums:
            self._sums[task] = _Sum(self.how)
            # A backward that does not ask for the weight never comes to take it.
            Variable._execution_engine.queue_callback(partial(self._forget, task))
        self._sums[task].add(g, x, weight)

    def _forget(self, task: int) -> None:
        self._sums.pop(task, None)

    def taken(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of weight and bias in this backward."""
        found = self._sums.pop(torch._C._current_graph_task_id(), None)
        return (None, None) if found is None else found.total()


@dataclass(slots=True)
class _Sum:
    """The gradients of weight and bias, and what waits for the next product."""

    how: _Operation
    inputs: list[Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    back: list[Tensor] = field(default_factory=list)
    weight: Tensor | None = None
    waiting: int = 0
    is_own: bool = False
    sums: tuple[Tensor, Tensor] | None = None

    def add(self, g: Tensor, x: Tensor, weight: Tensor | None) -> None:
        self.weight = weight
        if self.inputs and _is_same(self.inputs[-1], x):
            # The first of a sum is not ours to write into.
            self.back[-1] = self.back[-1].add_(g) if self.is_own else self.back[-1] + g
            self.is_own = True
            return
        if self.waiting >= _WAITING or (self.inputs and self.inputs[-1].shape[1:] != x.shape[1:]):
            self.multiply()
        self.inputs.append(x)
        self.versions.append(x._version)
        self.back.append(g)
        self.waiting += x.numel() + g.numel()
        self.is_own = False

    def multiply(self) -> None:
        """Takes the product of what waits."""
        if [x._version for x in self.inputs] != self.versions:
            raise RuntimeError(
                "what a layer received was changed in place during the backward, which still needs "
                'it. Use wrap(engine="step"), whose backward takes one timestep after the other.'
            )
        found = self.how.weight_gradients(_joined(self.back), _joined(self.inputs), self.weight)
        if self.sums is None:
            self.sums = found
        else:
            for total, part in zip(self.sums, found, strict=True):
                total.add_(part)
        self.inputs, self.versions, self.back, self.waiting = [], [], [], 0

    def total(self) -> tuple[Tensor, Tensor]:
        self.multiply()
        assert self.sums is not None
        return self.sums


class _Gather(Function):
    """The node of a weight and its bias. What it returns carries no number, but the order."""

    @staticmethod
    def forward(ctx: Any, kept: _Kept, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.kept = kept
        return weight.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor | None, ...]:
        of_weight, of_bias = ctx.kept.taken()
        _, _, learns_bias = ctx.needs_input_grad
        return None, of_weight, of_bias if learns_bias else None


class _Called(Function):
    """One call of a layer."""

    @staticmethod
    def forward(
        ctx: Any,
        kept: _Kept,
        compute: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        token: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.kept = kept
        # The weight may change before the backward where nothing asks for it there; where its
        # numbers are exchanged (`weight.data = ...`), those that this call had are asked for.
        asks = x.requires_grad or isinstance(kept.how, _Convolution)
        ctx.save_for_backward(x, weight if asks else None, weight.detach() if asks else None)
        return compute(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, numbers = ctx.saved_tensors
        kept: _Kept = ctx.kept
        *_, needs_x, _, learns_bias = ctx.needs_input_grad
        if not _is_followed(g):
            kept.add(g, x, numbers)
            g_x = kept.how.input_gradient(g, numbers) if needs_x else None
            return None, None, None, g_x, None, None
        # Somebody follows how the gradient is computed, which is that of this call alone.
        if needs_x and weight.data_ptr() != numbers.data_ptr():
            raise WrapError(
                "a layer's weight was exchanged (weight.data = ...) between a forward and a "
                'backward with create_graph=True. Use wrap(engine="step") for second derivatives '
                "of such a model."
            )
        g_x = kept.how.input_gradient(g, weight) if needs_x else None
        of_weight, of_bias = kept.how.weight_gradients(g, x, weight)
        return None, None, None, g_x, of_weight, of_bias if learns_bias else None


def _can_wait(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    own = (weight,) if bias is None else (weight, bias)
    return (
        torch.is_grad_enabled()
        and is_undisturbed(x, *own)
        and weight.requires_grad
        # What is computed may have another place in the graph at the next call.
        and all(tensor.is_leaf for tensor in own)
        # What learns may be written into by its optimiser before the backward is over.
        and not (x.is_leaf and x.requires_grad)
    )


def _is_followed(g: Tensor) -> bool:
    """Whether a graph is made of a backward, or many backwards run at once (``vmap``)."""
    return torch.is_grad_enabled() or not torch._C._has_storage(g)


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Whether both are the same numbers in the same memory."""
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a._version == b._version
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The samples of all of them, without a copy where they lie side by side, last one first."""
    if len(parts) == 1:
        return parts[0]
    last = parts[-1]
    size = last.numel()
    lie_side_by_side = all(
        part.is_contiguous()
        and part.shape == last.shape
        and part.data_ptr() == last.data_ptr() + k * size * last.element_size()
        and part.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()
        for k, part in enumerate(reversed(parts))
    )
    if not lie_side_by_side:
        return torch.cat(tuple(reversed(parts)))
    return last.as_strided((len(parts) * last.shape[0], *last.shape[1:]), last.stride())
