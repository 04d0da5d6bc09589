"""Tells whether a forward touches what its neurons hold between their calls."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Layer
from dynvision_snn.engine.tracing import Refusal


class Marks:
    """Left in the neurons while a forward is traced.

    Args:
        layers: the neuron layers by module.
    """

    def __init__(self, layers: Mapping[nn.Module, Layer]) -> None:
        self._layers = layers
        self._left: dict[nn.Module, dict[str, tuple[Tensor, int]]] = {}

    def called(self, module: nn.Module) -> None:
        """Checks what `module` holds, and leaves a mark for its next call."""
        layer = self._layers[module]
        self._check(module)
        marks = {name: torch.empty(0) for name in layer.adapter.state(module)}
        layer.adapter.restore(module, marks)
        self._left[module] = {name: (mark, mark._version) for name, mark in marks.items()}

    def check_all(self) -> None:
        """Checks what every neuron holds after its last call."""
        for module in self._left:
            self._check(module)

    def _check(self, module: nn.Module) -> None:
        layer = self._layers[module]
        held = layer.adapter.state(module)
        for name, (mark, version) in self._left.get(module, {}).items():
            if held[name] is not mark or mark._version != version:
                raise Refusal(f"its forward writes {layer.name}.{name} between timesteps")
