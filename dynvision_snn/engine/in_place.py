"""Operations that write into a tensor, told from those that make a new one.

Where the values of many timesteps are one tensor, or one value stands for many timesteps, nothing
may be written into it. Where nobody but the writing operation ever sees what it writes into, it is
the same as its counterpart that makes a new tensor, which is what the graph gets; else the model
is not run by layer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from dynvision_snn.engine.samplewise import MAKES_NEW, PASSES_ON, makes_new

# fmt: off
_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "__iadd__": operator.add, "__isub__": operator.sub, "__imul__": operator.mul,
    "__itruediv__": operator.truediv, "__ifloordiv__": operator.floordiv,
    "__imod__": operator.mod, "__ipow__": operator.pow, "__imatmul__": operator.matmul,
    "__iand__": operator.and_, "__ior__": operator.or_, "__ixor__": operator.xor,
    "__ilshift__": operator.lshift, "__irshift__": operator.rshift,
}
# fmt: on


class WritingProxy(fx.Proxy):
    """A proxy that tells ``a += b`` from ``a = a + b``, which fx takes for one another."""

    def __getattr__(self, name: str) -> Any:
        """An attribute, which is read now, and can be written into; a method as in fx."""
        if name.startswith("_") or callable(getattr(Tensor, name, None)):
            return super().__getattr__(name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(Tensor, name):
            raise TraceError(f"it sets {name} of a tensor")
        super().__setattr__(name, value)


def _writing(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], Any]:
    def method(self: fx.Proxy, other: Any) -> Any:
        result = function(self, other)
        result.node.meta[_WRITES] = self.node
        return result

    return method


for _name, _function in _OPERATORS.items():
    setattr(WritingProxy, _name, _writing(_function))

_WRITES = "writes into"


def without_writing(
    kind: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, dict[str, Any], Any]:
    """The counterpart of an operation that makes a new tensor, and what it would write into.

    Returns:
        its target and its keyword arguments; then the node, None for what does not write.

    Raises:
        TraceError: for an operation whose counterpart is not known.
    """
    given = dict(kwargs)
    if kind not in ("call_function", "call_method"):
        return target, given, None
    name = target if isinstance(target, str) else target.__name__
    if kind == "call_function" and given.get("inplace"):
        return target, given | {"inplace": False}, args[0]
    if given.get("out") is not None or (kind == "call_function" and _says_in_place(name)):
        raise TraceError(f"{name} writes into a tensor")
    if kind == "call_method" and (_says_in_place(name) or name in _OPERATORS):
        if not callable(getattr(Tensor, name[:-1], None)):
            raise TraceError(f"{name} writes into a tensor")
        return name[:-1], given, args[0]
    return target, given, None


def _says_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def mark(node: fx.Node, written: fx.Node) -> None:
    """Notes what `node` would have written into."""
    node.meta[_WRITES] = written


def seen_by_others(graph: fx.Graph, module_of: Mapping[fx.Node, nn.Module]) -> fx.Node | None:
    """An operation that writes into what others may see; None where there is none.

    Args:
        graph: the operations.
        module_of: the modules of torch that compute them.
    """
    for node in graph.nodes:
        written = node.meta.get(_WRITES)
        if writes_inside(module_of.get(node)):
            written = node.all_input_nodes[0]
        if written is not None and not _is_its_own(written, module_of):
            found: fx.Node = node
            return found
    return None


def writes_inside(module: nn.Module | None) -> bool:
    """Whether a module of torch writes into its input."""
    return module is not None and bool(vars(module).get("inplace"))


def _is_its_own(node: Any, module_of: Mapping[fx.Node, nn.Module]) -> bool:
    """Whether `node` is a new tensor that one operation alone takes."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    module = module_of.get(node)
    if module is None:
        return makes_new(node)
    if type(module) in PASSES_ON or writes_inside(module):
        return _is_its_own(node.all_input_nodes[0], module_of)
    return type(module) in MAKES_NEW
