"""What a plan was made for: what a forward may read beside its input, as far as it can be told.

A plan holds the numbers that a forward read while it was traced: attributes, also in a dict or a
list of settings, attributes of classes, what its functions find in their modules and closures. If
any of these is another, so is the signature, and the forward is traced anew.
"""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

# How deep containers, objects and functions are looked into, and at how many things in all.
_DEPTH, _MOST = 6, 4096
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def signature_of(net: nn.Module) -> tuple[Any, ...]:
    """What a plan depends on besides the model's code: another signature needs another plan."""
    modules = list(net.modules())
    marks = _Marks(modules)
    code = [marks.code(module) for module in modules]
    return (*code, *((id(m), *marks.attributes(m), *_settings(m)) for m in modules))


def names_in_code(net: nn.Module) -> frozenset[str]:
    """What the forwards of a model's own modules, and the functions that they call, name."""
    modules = list(net.modules())
    marks = _Marks(modules)
    for module in modules:
        marks.code(module)
    return frozenset(marks.named)


def _settings(module: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Buffers that decide how a neuron runs, and the sizes of parameters.

    A neuron's state is replaced all the time, and is no setting; nor is what a module of torch
    counts, as batch normalisation does its batches.
    """
    counts = type(module).__module__.startswith("torch.")
    for buffer in () if counts else module._buffers.values():
        if buffer is not None and buffer.ndim == 0 and not buffer.is_inference():
            yield id(buffer), buffer._version
    for parameter in module._parameters.values():
        if parameter is not None:
            yield parameter.shape, parameter.dtype, parameter.device


class _Marks:
    """Tells one value from another; what the code names is looked into.

    Args:
        modules: the model's.

    Attributes:
        named: the names in the code that was looked into.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._left = _MOST
        self._classes = dict.fromkeys(cls for module in modules for cls in _own(type(module)))
        self._seen: set[FunctionType] = set()
        self.named: set[str] = set()

    def code(self, module: nn.Module) -> tuple[Any, ...]:
        """Of what a module's forward, and functions that it holds, find by name."""
        held = [v for v in vars(module).values() if isinstance(v, FunctionType | MethodType)]
        return self._all((type(module).forward, *held), _DEPTH)

    def attributes(self, module: nn.Module) -> Iterator[Any]:
        """Of a module, after all code was looked into."""
        for name, value in vars(module).items():
            yield self._mark(value, _DEPTH if name in self.named else 0)

    def _all(self, values: Iterable[Any], depth: int) -> tuple[Any, ...]:
        return tuple(self._mark(value, depth - 1) for value in values)

    def _mark(self, value: Any, depth: int) -> Any:
        """A number or word by its value, a container by its items, all else by its identity."""
        if isinstance(value, _PLAIN):
            return value
        self._left -= 1
        if depth == 0 or self._left < 0 or isinstance(value, Tensor | nn.Module):
            return id(value)
        if isinstance(value, FunctionType):
            return id(value), *self._function(value, depth)
        if isinstance(value, MethodType):
            return id(value.__self__), self._mark(value.__func__, depth)
        if isinstance(value, dict):
            return self._all((item for pair in value.items() for item in pair), depth)
        if isinstance(value, list | tuple | set | frozenset):
            return self._all(value, depth)
        return id(value), *self._all(_held(value), depth)

    def _function(self, function: FunctionType, depth: int) -> tuple[Any, ...]:
        """What a function finds by name."""
        if function in self._seen or _is_of_a_library(function.__module__):
            return ()
        self._seen.add(function)
        names = _names(function.__code__)
        self.named.update(names)
        found = [function.__globals__.get(name) for name in names]
        found += [_inside(vars(cls)[n]) for cls in self._classes for n in names if n in vars(cls)]
        # What a cell without contents, which equals any other such, will hold is not known.
        cells = [c.cell_contents for c in function.__closure__ or () if c != CellType()]
        given = (*cells, function.__defaults__, function.__kwdefaults__)
        return tuple(self._found(v, names, depth - 1) for v in found) + self._all(given, depth)

    def _found(self, value: Any, names: tuple[str, ...], depth: int) -> Any:
        """A value, or what a function may take of a module or a class."""
        if not isinstance(value, ModuleType | type):
            return self._mark(value, depth)
        module = value.__name__ if isinstance(value, ModuleType) else value.__module__
        if _is_of_a_library(module):
            return id(value)
        held = vars(value)
        return id(value), *self._all((_inside(held.get(name)) for name in names), depth)


def _held(value: Any) -> list[Any]:
    """The attributes of a plain object."""
    settings = isinstance(value, Namespace | SimpleNamespace) or dataclasses.is_dataclass(value)
    ours = settings or not _is_of_a_library(type(value).__module__)
    return list(vars(value).values()) if ours and hasattr(value, "__dict__") else []


def _inside(value: Any) -> Any:
    """The function in a property or a static or class method."""
    if isinstance(value, property):
        return value.fget
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value


def _own(cls: type) -> list[type]:
    """Of a class and those that it extends, the ones that are no library's."""
    return [each for each in cls.__mro__ if not _is_of_a_library(each.__module__)]


@lru_cache(maxsize=1024)
def _is_of_a_library(module: str | None) -> bool:
    """Whether a module is one that was installed, whose settings are no user's."""
    root = (module or "").partition(".")[0]
    if root in sys.stdlib_module_names or root == "dynvision_snn":
        return root != "__main__"
    file = getattr(sys.modules.get(root), "__file__", None)
    return file is not None and ("site-packages" in file or "dist-packages" in file)


@lru_cache(maxsize=1024)
def _names(code: CodeType) -> tuple[str, ...]:
    """The names that a function's code may look up, those of functions inside of it included."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    words = [const for const in code.co_consts if isinstance(const, str) and const.isidentifier()]
    return (*code.co_names, *words, *(name for const in inner for name in _names(const)))
