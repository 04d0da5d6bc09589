"""Faster forwards that stand in for those of known layers, while a model runs step by step.

A model of which no plan is made is called as its library would call it. Its layers are known all
the same: for the time of a run, each Linear or convolution of torch, and each neuron with weights
of its own, has an attribute `forward`, which computes what its class's does and leaves its weight
gradients to `weight_sums`. Hooks, whoever put them there, are called as ever.

Nothing stands in for a module with a forward of its own already, nor where somebody else takes a
hand in what is computed: a compiler, a function transform, a mode of torch's, activation
checkpointing.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynvision_snn.adapters import Layer
from dynvision_snn.adapters.finding import is_compiled
from dynvision_snn.engine.weight_sums import SummedWeight, WeightSums


class StandIn:
    """The forward of one module. A copy of the module takes its class's own along."""

    def __init__(self, module: nn.Module, sums: WeightSums) -> None:
        self._module = weakref.ref(module)
        self._sums = sums
        self.__name__, self.__doc__ = "forward", type(module).forward.__doc__

    @property
    def module(self) -> Any:
        """Whose forward it stands in for."""
        return self._module()

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.module, "forward")


class _Linear(StandIn):
    def __call__(self, input: Tensor) -> Tensor:
        layer: nn.Linear = self.module
        return self._sums.linear(input, layer.weight, layer.bias)


class _Convolution(StandIn):
    def __call__(self, input: Tensor) -> Tensor:
        return self._sums.convolution(self.module, input)


class _Neuron(StandIn):
    """A neuron that multiplies with weights of its own, by ``F.linear``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        if not torch.is_grad_enabled():
            return type(module).forward(module, *args, **kwargs)
        own = vars(module)
        weights = [(n, p) for n, p in module._parameters.items() if p is not None and p.ndim == 2]
        try:
            # Found before the parameters of these names, for the time of this call.
            for name, weight in weights:
                own[name] = SummedWeight.of(weight, self._sums)
            return type(module).forward(module, *args, **kwargs)
        finally:
            for name, _ in weights:
                own.pop(name, None)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KINDS: dict[type[nn.Module], type[StandIn]] = {
    nn.Linear: _Linear,
    **dict.fromkeys(_CONVOLUTIONS, _Convolution),
}


def _repeated() -> tuple[object, ...]:
    """The functions whose results are repeated here."""
    return (
        F.linear,
        *(cls.forward for cls in _KINDS),
        *(cls._conv_forward for cls in _CONVOLUTIONS),
    )


# Whoever replaces one of them wants all calls of it.
_AS_IMPORTED = _repeated()


class StandIns:
    """Those of one model."""

    def __init__(self) -> None:
        self._sums = WeightSums()
        # A compiler that was told of one must find the same again.
        self._made: weakref.WeakKeyDictionary[nn.Module, StandIn] = weakref.WeakKeyDictionary()
        self.summed: tuple[str, ...] = ()
        """The weights whose gradients were in sums in the last run with gradients, by name."""

    @contextmanager
    def instead(self, net: nn.Module, layers: Sequence[Layer]) -> Iterator[None]:
        """While entered, they are called in the place of the layers' own forwards.

        Args:
            net: the model.
            layers: its neuron layers.
        """
        taken: list[tuple[nn.Module, StandIn]] = []
        try:
            if _is_as_torch_made_it(net):
                kinds = {m: _KINDS[type(m)] for m in net.modules() if type(m) in _KINDS}
                kinds |= {x.module: _Neuron for x in layers if _has_weights(x)}
                for module, kind in kinds.items():
                    if "forward" not in vars(module):
                        stand_in = self._made.setdefault(module, kind(module, self._sums))
                        taken.append((module, stand_in))
                        vars(module)["forward"] = stand_in
            yield
        finally:
            for module, stand_in in taken:
                if vars(module).get("forward") is stand_in:
                    del vars(module)["forward"]
            named = net.named_parameters() if taken else ()
            self.summed = tuple(name for name, p in named if self._sums.sums(p))
            self._sums.clear()


def _has_weights(layer: Layer) -> bool:
    own = layer.module._parameters.values()
    return any(
        synapses.operator is parameter and parameter.ndim == 2
        for synapses in layer.adapter.synapses(layer.module)
        for parameter in own
    )


def _is_as_torch_made_it(net: nn.Module) -> bool:
    """Whether no compiler or parallel wrapper takes modules for its own, and nobody patched any."""
    return _repeated() == _AS_IMPORTED and not any(
        isinstance(module, nn.DataParallel) or is_compiled(module) for module in net.modules()
    )
