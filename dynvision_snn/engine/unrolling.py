"""The data flow of a forward with its own time loop, timestep after timestep.

The forward is traced for one number of timesteps and samples, those of the run that is planned:
whatever it does at any timestep is seen, and holds for that number alone. Neuron layers and torch's
own modules are nodes, as in `tracing`; whoever resets or reads a neuron inside of the loop is found
by marks that are left in the neurons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from dynvision_snn.adapters import Adapters, Layer
from dynvision_snn.adapters.base import tensors_of
from dynvision_snn.engine.calling import Calling
from dynvision_snn.engine.forgotten import WithoutValues
from dynvision_snn.engine.in_place import seen_by_others
from dynvision_snn.engine.marks import Marks
from dynvision_snn.engine.over_time import (
    PICK,
    OverTime,
    SequenceProxy,
    StepProxy,
    axes_of,
    stacked_from,
)
from dynvision_snn.engine.records import Record, Records
from dynvision_snn.engine.tracing import WRITTEN, Called, Refusal, Tracer, thawed


@dataclass(frozen=True, eq=False, slots=True)
class Unrolled:
    """The operations of one call, all timesteps of them.

    Attributes:
        root: what the targets of the nodes are relative to.
        graph: its nodes, in the order of their computation.
        inputs: the placeholder of the input.
        sequences: the nodes that yield all timesteps at once.
        picks: the nodes that take a timestep out of one, and which.
        constants: the nodes that stand for tensors that the forward made.
        repeated: what the modules that only repeat another over a sequence repeat.
        outputs: what the model returns, with nodes for tensors.
    """

    root: nn.Module
    graph: fx.Graph
    inputs: fx.Node
    sequences: Mapping[fx.Node, OverTime]
    picks: Mapping[fx.Node, tuple[fx.Node, int]]
    constants: Mapping[fx.Node, Tensor]
    repeated: Mapping[nn.Module, nn.Module]
    outputs: Any

    @property
    def n_steps(self) -> int:
        """T."""
        return self.sequences[self.inputs].n_steps

    def module(self, node: fx.Node) -> nn.Module | None:
        """What a node calls; None for a function."""
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None


def unrolled(
    net: nn.Module,
    calling: Calling,
    adapters: Adapters,
    layers: Mapping[nn.Module, Layer],
    inputs: OverTime,
) -> Unrolled:
    """Traces the forward; the neurons are as after a reset.

    Raises:
        Refusal: where it writes into what others may see, or disturbs its neurons in the loop.
        TraceError: where it cannot be traced.
    """
    return _LoopTracer(adapters, layers, inputs).unrolled(net, calling)


class _LoopTracer(Tracer):
    """Traces a forward that asks for sizes, and takes timesteps out of sequences."""

    def __init__(
        self, adapters: Adapters, layers: Mapping[nn.Module, Layer], inputs: OverTime
    ) -> None:
        super().__init__(adapters, layers, inputs.n_samples)
        self._inputs = inputs
        self._sequences: dict[fx.Node, OverTime] = {}
        self._picks: dict[fx.Node, tuple[fx.Node, int]] = {}
        self._constants: dict[int, tuple[Tensor, fx.Node]] = {}
        self._marks = Marks(layers)
        self._records = Records(inputs)
        self._making = _Making(self._records)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` is a node; what loops over neurons is the time loop itself."""
        loops = m not in self._layers and self._adapters.loops_children(m)
        if loops and any(self._is_neuron(inside) for inside in m.modules()):
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def _is_neuron(self, module: nn.Module) -> bool:
        return module in self._layers and self._layers[module].is_stateful

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that knows the sizes of a sequence."""
        axes = self._axes(node)
        if axes is None:
            return super().proxy(node)
        self._sequences[node] = axes
        return SequenceProxy(node, self, axes, self._picked)

    def _axes(self, node: fx.Node) -> OverTime | None:
        if node.op == "placeholder":
            return self._inputs
        stacked = stacked_from(node)
        if stacked is not None:
            values, axis = stacked
            n_steps, n_samples = self._inputs.n_steps, self._inputs.n_samples
            return (
                OverTime(n_steps, n_samples, axis, None, self._inputs.like)
                if len(values) == n_steps
                else None
            )
        module = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is not None:
            module = self._repeated(module) or module
        return axes_of(node, self._sequences, module)

    def _picked(self, sequence: fx.Node, t: int) -> fx.Proxy:
        """The value of a sequence at timestep `t`."""
        node = self.create_node("call_function", PICK, (sequence, t), {})
        self._picks[node] = (sequence, t)
        return StepProxy(node, self)

    def length_of(self, node: fx.Node) -> int:
        """The number of samples, which the length of a timestep of the input surely is."""
        if node in self._picks and self._picks[node][0].op == "placeholder":
            return self._inputs.n_samples
        return super().length_of(node)

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: Any,
        kwargs: Any,
        *others: Any,
        **named: Any,
    ) -> Any:
        """A proxy; what is written into a tensor that the forward made is noted."""
        if kind == "call_method" and target == "__setitem__" and id(args[0]) in self._making.made:
            return self._records.write(*args)
        return super().create_proxy(kind, target, args, kwargs, *others, **named)

    def create_arg(self, a: Any) -> Any:
        """What an operation is given; a tensor that the forward made is a node of its own."""
        if isinstance(a, tuple) and hasattr(a, "_fields"):
            return type(a)(*(self.create_arg(item) for item in a))
        if not isinstance(a, Tensor) or isinstance(a, nn.Parameter):
            return super().create_arg(a)
        record = self._records.of(a)
        if record is not None:
            return self._stacked(record)
        self._records.check_unread([a])
        if id(a) not in self._constants:
            if a.numel() and id(a) not in self._making.made:
                raise TraceError("it reads tensors of its modules")
            node = self.create_node("get_attr", f"made_{len(self._constants)}", (), {})
            self._constants[id(a)] = (a, node)
        return self._constants[id(a)][1]

    def _stacked(self, record: Record) -> fx.Node:
        """What was written into a tensor, as if it had been kept in a list."""
        values = list(record.values)
        node = self.create_node("call_function", torch.stack, (values, record.axis), {})
        node.meta[WRITTEN] = record.like
        axes = self._axes(node)
        if axes is not None:
            self._sequences[node] = axes
        return node

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """A node; a neuron must be as its last call left it."""
        result = super().call_module(m, forward, args, kwargs)
        if self._is_neuron(m) and isinstance(result, fx.Proxy):
            self._marks.called(m)
        return result

    def unrolled(self, net: nn.Module, calling: Calling) -> Unrolled:
        """Traces the forward."""
        wrapper = Called(net, calling, self, (), None)
        graph = self.graph_of(wrapper, self._making)
        self._marks.check_all()
        constants = [(node, tensor) for tensor, node in self._constants.values()]
        self._records.check_unread(tensor for _, tensor in constants)
        nodes = list(graph.nodes)
        module_of = {
            node: wrapper.get_submodule(node.target) for node in nodes if node.op == "call_module"
        }
        writes = seen_by_others(graph, module_of)
        if writes is not None:
            raise Refusal(f"{writes.name} writes into a tensor that others may see")
        return Unrolled(
            wrapper,
            graph,
            next(node for node in nodes if node.op == "placeholder"),
            self._sequences,
            self._picks,
            dict(constants),
            {m: inside for m in module_of.values() if (inside := self._repeated(m)) is not None},
            thawed(nodes[-1].args[0]),
        )


class _Making(WithoutValues):
    """Notes the tensors that are made of nothing while a forward is traced.

    Args:
        records: those that may no longer be read.
    """

    def __init__(self, records: Records) -> None:
        super().__init__()
        self._records = records
        self.made: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """An operation on tensors."""
        self._records.check_unread(tensors_of((args, kwargs or {})))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if all(id(tensor) in self.made for tensor in tensors_of((args, kwargs or {}))):
            for tensor in tensors_of(result):
                self.made[id(tensor)] = tensor
        return result
