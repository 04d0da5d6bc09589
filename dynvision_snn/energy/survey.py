"""Which modules of a network have operations: what a meter must hook, and what it must not miss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from dynvision_snn.adapters import Adapter, Adapters
from dynvision_snn.energy.foldable import is_foldable
from dynvision_snn.energy.synapses import refusal
from dynvision_snn.errors import EnergyError
from dynvision_snn.observation import RunHost, Watched, watchable

# Modules that neither have synapses nor update a neuron: they pass values on, or compare them.
_WITHOUT_OPERATIONS = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.PixelShuffle,
    nn.ChannelShuffle,
    nn.modules.loss._Loss,
)


def adapters_for(host: nn.Module, given: Iterable[Adapter] = ()) -> Adapters | None:
    """The adapters for `host`: None where its TimedModels bring their own and none are given."""
    own = tuple(given)
    return None if not own and _holds_run_hosts(host) else Adapters(own)


def _holds_run_hosts(host: nn.Module) -> bool:
    return any(isinstance(module, RunHost) for module in host.modules())


def with_operations(host: nn.Module, adapters: Adapters | None) -> list[Watched]:
    """The modules of `host` that are worth a hook: neuron layers, and those with operations.

    What a synapse layer has inside (a parametrisation) makes its weights and is part of it.

    Raises:
        AdapterError: for a neuron that is unknown or cannot be served.
    """
    found: list[Watched] = []
    inside: tuple[str, ...] = ()
    for item in watchable(host, adapters):
        if item.name.startswith(inside or ("\0",)):
            continue
        if item.layer is None and refusal(item.module) is None:
            inside = (*inside, f"{item.name}." if item.name else "")
        if item.layer is not None or _has_operations(item.module):
            found.append(item)
    return found


def _has_operations(module: nn.Module) -> bool:
    if _has_weights(module):
        return True
    leaf = not any(True for _ in module.children())
    return leaf and not isinstance(module, _WITHOUT_OPERATIONS)


def _has_weights(module: nn.Module) -> bool:
    if refusal(module) is None or is_foldable(module):
        return True
    return any(True for _ in module.parameters(recurse=False))


def outside_runs(host: nn.Module) -> dict[str, str]:
    """The modules with weights beside the TimedModels of `host`, and why they are missed."""
    if isinstance(host, RunHost) or not _holds_run_hosts(host):
        return {}
    found: dict[str, str] = {}

    def visit(module: nn.Module, name: str) -> None:
        if isinstance(module, RunHost):
            return
        if _has_weights(module):
            found[name] = "runs outside the TimedModel, at none of its timesteps"
        for child_name, child in module.named_children():
            visit(child, f"{name}.{child_name}" if name else child_name)

    visit(host, "")
    return found


def never_called(watched: Sequence[Watched], called: Iterable[str]) -> dict[str, str]:
    """The modules with weights or state that were not called, and why they are missed."""
    met = set(called)
    return {
        item.name: "never called as a module: unused, or a function uses its weights"
        for item in watched
        if item.name not in met
        and (_has_weights(item.module) if item.layer is None else item.layer.is_stateful)
    }


def check_not_replaced(before: Sequence[Watched], after: Sequence[Watched]) -> None:
    """Refuses a measurement during which modules were replaced, added or removed.

    Raises:
        EnergyError: naming them.
    """
    old, new = ({w.name: w.module for w in watched} for watched in (before, after))
    changed = _changed(old, new)
    if changed:
        raise EnergyError(
            f"these modules were replaced, added or removed during the measurement: "
            f"{', '.join(changed)}. What the new ones did was not seen: make a new EnergyMeter "
            "after changing the model."
        )


def _changed(old: Mapping[str, nn.Module], new: Mapping[str, nn.Module]) -> list[str]:
    names = dict.fromkeys((*old, *new))
    return [name or "(the model)" for name in names if old.get(name) is not new.get(name)]
