"""The data flow of a model's forward, as a graph: which module or function receives what.

The forward is traced by ``torch.fx``. Neuron layers and torch's own modules are nodes; containers
and users' own modules are traced through. Where a one-step model takes a state, the graph has one
placeholder for each state variable that a neuron takes as a whole, and the graph says which value
comes back to it at the next timestep.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from dynvision_snn.adapters import Adapters, Layer
from dynvision_snn.engine.calling import Calling
from dynvision_snn.engine.forgotten import WithoutValues, modes
from dynvision_snn.engine.in_place import mark, seen_by_others, without_writing
from dynvision_snn.engine.over_time import SizedProxy, StepProxy
from dynvision_snn.errors import DynvisionError

UNTRACEABLE = (
    TraceError,
    TypeError,
    ValueError,
    RuntimeError,
    IndexError,
    AttributeError,
    KeyError,
)
"""What a forward raises that looks at its input's values or shapes, or writes into it."""


LENGTH = "its length was asked for"
"""Marks a node of which a forward took the number of samples for its length."""
WRITTEN = "was written into"
"""Marks a node with shape, dtype and device of what a loop writes it into."""


class Refusal(Exception):
    """The model, or a part of it, cannot run otherwise than step by step; says why."""


@dataclass(frozen=True, eq=False, slots=True)
class Traced:
    """The graph of one call.

    Attributes:
        root: what the targets of the nodes are relative to.
        graph: its nodes, in the order of their computation.
        module_of: what each ``call_module`` node calls.
        layer_of: what is known of it, where it is a neuron layer.
        repeated: what a node calls once per timestep, where it only repeats another module.
        inputs: the placeholder of the input.
        states: the states that are passed, with placeholders for their variables.
        outputs: what the model returns besides its states, with nodes for tensors.
        returned: the states that it returns, in the same form.
        starts_alike: whether the forward does the same without a state, so that its neurons start
            by themselves; else it makes states of its own at its first timestep.
        firsts: of a graph of one timestep out of a model's own time loop, what the loop passes for
            the states at its first timestep; None where a graph is that of a call.
    """

    root: nn.Module
    graph: fx.Graph
    module_of: Mapping[fx.Node, nn.Module]
    layer_of: Mapping[fx.Node, Layer]
    repeated: Mapping[fx.Node, nn.Module]
    inputs: fx.Node
    states: tuple[Any, ...]
    outputs: Any
    returned: tuple[Any, ...]
    starts_alike: bool = True
    firsts: tuple[Any, ...] | None = None

    def acting(self, node: fx.Node) -> nn.Module | None:
        """The module that computes `node`; None for a function."""
        return self.repeated.get(node, self.module_of.get(node))

    def has_all(self, neuron: fx.Node) -> bool:
        """Whether a neuron is called with all timesteps, by itself or by what repeats it."""
        return self.layer_of[neuron].traits.sequence or neuron in self.repeated

    @property
    def nodes(self) -> list[fx.Node]:
        """Every node that is computed."""
        return [node for node in self.graph.nodes if node.op not in ("placeholder", "output")]


@contextmanager
def traceable(what: str) -> Iterator[None]:
    """Refuses `what` where it cannot be traced, with the reason."""
    try:
        yield
    except (*UNTRACEABLE, DynvisionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise Refusal(f"{what} cannot be traced ({reason})") from error


def check_attributes(traced: Traced, layers: Mapping[nn.Module, Layer]) -> None:
    """Refuses tensors that would stay as they were when the forward was traced."""
    for node in traced.nodes:
        if node.op != "get_attr":
            continue
        owner, _, name = str(node.target).rpartition(".")
        if name.startswith("_tensor_constant"):
            raise Refusal("its forward makes tensors of its own")
        module = traced.root.get_submodule(owner)
        if module in layers or name not in module._parameters:
            raise Refusal(f"its forward reads {owner.removeprefix('net.')}.{name} from the module")


def steps_of(traced: Traced) -> list[tuple[str, Any, str, bool]]:
    """What is computed, in order, to be compared with another trace."""
    return [
        (node.op, node.target, f"{node.args} {node.kwargs}", LENGTH in node.meta)
        for node in traced.nodes
    ]


def attributes_of(net: nn.Module) -> dict[tuple[str, int, int], Any]:
    """What the modules hold besides their parameters, told apart by identity and version.

    Neurons do not run while a forward is traced: what changes in them, the forward wrote.
    """
    return {
        (f"{name}.{key}" if name else key, id(value), _version(value)): value
        for name, module in net.named_modules()
        for key, value in [*vars(module).items(), *module._buffers.items()]
        if key not in _TORCHS_OWN
    }


def written_since(before: Mapping[tuple[str, int, int], Any], net: nn.Module) -> set[str]:
    """The names of what has changed since `attributes_of` said what was `before`."""
    return {name for name, *_ in before.keys() ^ attributes_of(net).keys()}


def states_of(layers: Mapping[nn.Module, Layer]) -> frozenset[str]:
    """What neurons keep between calls, as `attributes_of` names it."""
    return frozenset(
        f"{layer.name}.{name}" if layer.name else name
        for module, layer in layers.items()
        for name in layer.adapter.state(module)
    )


def _version(value: Any) -> int:
    if isinstance(value, Tensor):
        return 0 if value.is_inference() else value._version
    return len(value) if isinstance(value, dict | list | set) else 0


# What torch itself keeps in a module, and changes while it is traced.
_TORCHS_OWN = frozenset(vars(nn.Module()))


class Tracer(fx.Tracer):
    """Traces one forward.

    While it does, ``torch.fx`` has every module of the process call it: what other threads run
    meanwhile is passed on, and no two trace at once.

    Args:
        adapters: the adapters in force.
        layers: the neuron layers by module.
        n_samples: how many samples the input has; None where its first axis is another.
    """

    _alone: ClassVar[threading.RLock] = threading.RLock()

    def __init__(
        self, adapters: Adapters, layers: Mapping[nn.Module, Layer], n_samples: int | None = None
    ) -> None:
        super().__init__()
        self._adapters = adapters
        self._layers = layers
        self._n_samples = n_samples
        self._thread = threading.get_ident()
        self._modes = modes()

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *others: Any,
        **named: Any,
    ) -> fx.Node:
        """A node that writes into nothing; what a graph would forget is refused."""
        changed = [name for name, mode in modes().items() if mode != self._modes[name]]
        if changed:
            raise TraceError(f"it computes a part under {' and '.join(changed)}")
        target, kwargs, written = without_writing(kind, target, args, kwargs)
        node = super().create_node(kind, target, args, kwargs, *others, **named)
        if written is not None:
            mark(node, written)
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that tells when it is written into; a parameter's knows its sizes."""
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            # Not by getattr, which is traced.
            parameter = self.root.get_submodule(owner)._parameters.get(name)
            if parameter is not None:
                return SizedProxy(node, self, parameter)
        return StepProxy(node, self)

    def length_of(self, node: fx.Node) -> int:
        """The number of samples, which is to be the length of what `node` yields.

        Raises:
            TraceError: where it is not known.
        """
        if self._n_samples is None:
            raise TraceError("it asks for the length of what it computed")
        node.meta[LENGTH] = True
        return self._n_samples

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A node, or what the module calls; of another thread's, the call itself."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A proxy for a parameter; for another thread, the parameter."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` is a node of the graph."""
        if m in self._layers or self._adapters.loops_children(m):
            return True
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        return type(m).__module__.startswith("torch.nn.") and not isinstance(m, containers)

    def _repeated(self, module: nn.Module) -> nn.Module | None:
        children = list(module.children())
        if len(children) == 1 and self._adapters.loops_children(module):
            return children[0]
        return None

    def graph_of(self, wrapper: Called, watching: WithoutValues) -> fx.Graph:
        """The operations of one call."""
        with self._alone, watching:
            return self.trace(wrapper)

    def traced(self, net: nn.Module, calling: Calling, form: tuple[Any, ...], like: Any) -> Traced:
        """Traces the forward with placeholders in the form of its states."""
        wrapper = Called(net, calling, self, form, like)
        graph = self.graph_of(wrapper, WithoutValues())
        output = next(node for node in graph.nodes if node.op == "output").args[0]
        outputs, returned = calling.split(thawed(output))
        inputs = next(node for node in graph.nodes if node.op == "placeholder")
        module_of = {
            node: wrapper.get_submodule(node.target)
            for node in graph.nodes
            if node.op == "call_module"
        }
        repeated = {n: c for n, m in module_of.items() if (c := self._repeated(m)) is not None}
        writes = seen_by_others(graph, {**module_of, **repeated})
        if writes is not None:
            raise Refusal(f"{writes.name} writes into a tensor that others may see")
        return Traced(
            wrapper,
            graph,
            module_of,
            {n: self._layers[m] for n, m in {**module_of, **repeated}.items() if m in self._layers},
            repeated,
            inputs,
            wrapper.placeholders,
            outputs,
            returned,
        )


class Called(nn.Module):
    """Calls the model with states made of placeholders."""

    def __init__(
        self,
        net: nn.Module,
        calling: Calling,
        tracer: fx.Tracer,
        form: tuple[Any, ...],
        like: Any,
    ) -> None:
        super().__init__()
        self.net = net
        self._calling = calling
        self._tracer = tracer
        self._form = form
        self._like = like
        self.placeholders: tuple[Any, ...] = ()

    def forward(self, x: Any) -> Any:
        """One call."""
        proxies = tuple(self._filled(value) for value in self._form)
        self.placeholders = tuple(_nodes(value) for value in proxies)
        output = self._calling.call(self.net, x, [_fresh_containers(value) for value in proxies])
        return _unpacked(output, self._like)

    def _filled(self, value: Any) -> Any:
        if _is_variable(value):
            n = sum(node.op == "placeholder" for node in self._tracer.graph.nodes)
            return self._tracer.create_proxy("placeholder", f"state_{n}", (), {})
        if isinstance(value, dict):
            return {key: self._filled(item) for key, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._filled(item) for item in value))
        if isinstance(value, tuple | list):
            return type(value)(self._filled(item) for item in value)
        return value


def _unpacked(value: Any, like: Any) -> Any:
    """What a neuron returned as a whole, taken apart as the model's caller does."""
    if not isinstance(value, fx.Proxy) or not isinstance(like, tuple | list) or _is_variable(like):
        return value
    whole: Any = value
    return tuple(_unpacked(whole[k], item) for k, item in enumerate(like))


def _is_variable(value: Any) -> bool:
    """Whether a neuron takes this as a whole: a tensor, or a namedtuple of tensors."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return all(isinstance(item, Tensor) for item in value)
    return isinstance(value, Tensor)


def _nodes(value: Any) -> Any:
    if isinstance(value, fx.Proxy):
        return value.node
    return rebuilt(_nodes, value)


def _fresh_containers(value: Any) -> Any:
    return rebuilt(_fresh_containers, value)


def thawed(value: Any) -> Any:
    """Fx keeps lists and dicts in immutable forms of its own."""
    return rebuilt(thawed, value)


def rebuilt(function: Any, value: Any) -> Any:
    """`value` with `function` applied to what its container holds, in a plain one."""
    if isinstance(value, dict):
        return {key: function(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(function(item) for item in value))
    if isinstance(value, list):
        return [function(item) for item in value]
    if isinstance(value, tuple):
        return tuple(function(item) for item in value)
    return value
