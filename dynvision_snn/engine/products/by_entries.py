"""A linear layer on the entries of its input that are not 0, with its gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from dynvision_snn.engine.products.dense import times
from dynvision_snn.engine.products.entries import Entries, entries_of


def linear_by_entries(x: Tensor, weight: Tensor, bias: Tensor | None, most: float) -> Tensor | None:
    """``F.linear`` on float32 ``[N, features]`` on the CPU; None where a dense product is to do it.

    That is where more than a share of `most` of the entries differ from 0, or a weight is not
    finite: in a dense product, that times 0 is NaN.
    """
    entries = entries_of(x.detach(), most)
    if entries is None or not bool(weight.detach().sum().isfinite()):
        return None
    product: Tensor = _Linear.apply(x, weight, bias, entries)
    return product


def weight_gradient_by_entries(g: Tensor, x: Tensor, most: float) -> Tensor | None:
    """``g.t() @ x`` for float32 on the CPU; None where a dense product is to do it."""
    entries = entries_of(x, most)
    if entries is None or not bool(g.sum().isfinite()):
        return None
    return _in_rows(entries.transposed_times(g))


def _in_rows(transposed: Tensor) -> Tensor:
    """In the layout of the weight, in which torch gives its gradient, and keeps it."""
    return transposed.t().contiguous()


class _Linear(Function):
    """Keeps the entries of its input alone, and not the input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, entries: Entries
    ) -> Tensor:
        """``[N, features]`` to ``[N, units]``."""
        ctx.n_columns = entries.n_columns
        ctx.save_for_backward(weight, entries.heads, entries.places, entries.values)
        if bias is None:
            out = x.new_zeros(x.shape[0], weight.shape[0])
        else:
            out = bias.detach().repeat(x.shape[0], 1)
        entries.add_to(out, weight.detach().t().contiguous())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        """The gradients of input, weight and bias."""
        weight, heads, places, values = ctx.saved_tensors
        entries = Entries(heads, places, values, ctx.n_columns)
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        g_x = times(g, weight) if needs_x else None
        g_bias = g.sum(0) if needs_bias or needs_weight else None
        g_weight = None
        if needs_weight:
            assert g_bias is not None
            if bool(g_bias.isfinite().all()):
                g_weight = _in_rows(entries.transposed_times(g.contiguous()))
            else:
                # What is not finite spreads in a dense product, 0 times it being NaN.
                g_weight = times(g.t(), entries.dense())
        return g_x, g_weight, g_bias if needs_bias else None, None
