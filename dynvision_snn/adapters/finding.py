"""Which adapter serves which module, and which layers a model has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from torch import nn

from dynvision_snn.adapters.base import Adapter, LayerTraits, Role
from dynvision_snn.errors import AdapterError
from dynvision_snn.timing import integration_problem

ENTRY_POINT_GROUP = "dynvision_snn.adapters"

# The built-in adapters by the import name of the library that they serve. A file is imported only
# when a model holds a module of its library, which is then imported already.
BUILT_IN = {
    "torch": ("dynvision_snn.adapters.pytorch", "TorchAdapter"),
    "snntorch": ("dynvision_snn.adapters.snntorch", "SnnTorchAdapter"),
    "norse": ("dynvision_snn.adapters.norse", "NorseAdapter"),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A neuron layer of a model: its dotted name, module, adapter and traits."""

    name: str
    module: nn.Module
    adapter: Adapter
    traits: LayerTraits

    @property
    def spikes_or_integrates(self) -> bool:
        """Whether its membrane could be a readout."""
        return self.traits.role in (Role.SPIKING, Role.INTEGRATOR)

    @property
    def is_stateful(self) -> bool:
        """Whether it carries a state from one timestep to the next."""
        return self.traits.role is not Role.ACTIVATION


class Adapters:
    """The adapters in force: those given, those of installed packages, and the built-in ones.

    Args:
        given: adapters of the caller's, asked first.

    Raises:
        AdapterError: if two adapters serve the same library.
    """

    def __init__(self, given: Iterable[Adapter] = ()) -> None:
        self._loaders: dict[str, Callable[[], Adapter]] = {}
        self._loaded: dict[str, Adapter] = {}
        for library, (path, name) in BUILT_IN.items():
            self._register(library, partial(_built_in, path, name))
        for point in entry_points(group=ENTRY_POINT_GROUP):
            self._register(point.name, partial(_installed, point))
        for adapter in given:
            if not isinstance(adapter, Adapter):
                raise AdapterError(
                    f"adapters= takes instances of dynvision_snn.adapters.Adapter; "
                    f"received {adapter!r}. Pass an instance, as in adapters=[MyAdapter()]."
                )
            self._register(adapter.library, partial(_given, adapter))

    def _register(self, library: str, loader: Callable[[], Adapter]) -> None:
        if library in self._loaders:
            raise AdapterError(
                f"two adapters serve the library {library!r}; keep one of them "
                f"(libraries served: {', '.join(sorted(self._loaders))})."
            )
        self._loaders[library] = loader

    def asked(self, module: nn.Module) -> Iterator[Adapter]:
        """The adapters that may answer for `module`: its class's library first, then its bases'."""
        for library in dict.fromkeys(
            cls.__module__.partition(".")[0] for cls in _own_classes(module)
        ):
            if library in self._loaders:
                if library not in self._loaded:
                    self._loaded[library] = self._loaders[library]()
                yield self._loaded[library]

    def layer(self, module: nn.Module, name: str = "") -> Layer | None:
        """`module` as a neuron layer, or None where it is none.

        Raises:
            AdapterError: for a neuron of a served library that is unknown or cannot be served.
        """
        for adapter in self.asked(module):
            traits = adapter.traits(module)
            if traits is not None:
                return Layer(name, module, adapter, traits)
        return None

    def is_container(self, module: nn.Module) -> bool:
        """Whether `module` only passes tensors and states between its children."""
        return any(adapter.is_container(module) for adapter in self.asked(module))

    def loops_children(self, module: nn.Module) -> bool:
        """Whether `module` calls its children once per timestep of a ``[T, ...]`` input."""
        return any(adapter.loops_children(module) for adapter in self.asked(module))

    def walk(
        self, root: nn.Module, prefix: str = ""
    ) -> Iterator[tuple[str, nn.Module, Layer | None]]:
        """Every module below and including `root`, once, with its layer where it is one.

        What lies inside a neuron layer (its recurrent weights, an inner cell) is part of it and not
        visited. A compiled module counts as the one that was compiled, under its name.
        """
        yield from self._walk(root, prefix, set())

    def _walk(
        self, module: nn.Module, name: str, seen: set[int]
    ) -> Iterator[tuple[str, nn.Module, Layer | None]]:
        module = uncompiled(module)
        if id(module) in seen:
            return
        seen.add(id(module))
        layer = self.layer(module, name)
        yield name, module, layer
        if layer is not None:
            return
        for child_name, child in module.named_children():
            yield from self._walk(child, f"{name}.{child_name}" if name else child_name, seen)

    def layers(self, root: nn.Module) -> list[Layer]:
        """The neuron layers of `root`, in the order of its modules."""
        return [layer for _, _, layer in self.walk(root) if layer is not None]


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` wrapped; any other module as it is."""
    # Its class is not imported: that would load the compiler for those who do not compile.
    if type(module).__module__ == "torch._dynamo.eval_frame":
        return module.get_submodule("_orig_mod")
    return module


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` or ``module.compile()`` compiles what it calls."""
    return uncompiled(module) is not module or module._compiled_call_impl is not None


def integration_problems(layers: Iterable[Layer], dt: float) -> Iterator[str]:
    """What a timestep is too long for in some layers, in words; nothing where it is not.

    Args:
        layers: neuron layers, with the time constants that they have at `dt`.
        dt: length of a timestep in ms.

    Raises:
        TimingError: if `dt` is not a legal dt.
    """
    for layer in layers:
        for constant in layer.adapter.time_constants(layer.module, dt):
            problem = integration_problem(constant.tau, constant.integrator, dt)
            if problem is not None:
                kind = type(layer.module).__name__
                yield f"layer {layer.name!r} ({kind}, {constant.name}): {problem}."


def _own_classes(module: nn.Module) -> list[type]:
    """The classes of `module` below `nn.Module`, nearest first."""
    classes = type(module).__mro__
    return list(classes[: classes.index(nn.Module)])


def _built_in(path: str, name: str) -> Adapter:
    adapter: Adapter = getattr(import_module(path), name)()
    return adapter


def _installed(point: EntryPoint) -> Adapter:
    adapter: Adapter = point.load()()
    return adapter


def _given(adapter: Adapter) -> Adapter:
    return adapter
