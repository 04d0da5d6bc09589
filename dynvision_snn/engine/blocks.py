"""Cuts the operations of a time loop into timesteps, and tells them without naming the timestep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import fx, nn

from dynvision_snn.adapters import Layer
from dynvision_snn.engine.tracing import Refusal, rebuilt
from dynvision_snn.engine.unrolling import Unrolled

NOT_ALIKE = "its timesteps are not all computed alike"
"""Why most time loops are refused that are."""


@dataclass(frozen=True, slots=True)
class Now:
    """What operation `k` of the same timestep yields."""

    k: int


@dataclass(frozen=True, slots=True)
class Before:
    """What operation `k` yielded at the timestep before."""

    k: int


@dataclass(frozen=True, slots=True)
class Shown:
    """What the sequence of that name shows at this timestep."""

    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """What is the same at every timestep."""

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Blocks:
    """One way to cut the operations into timesteps.

    Attributes:
        loop: the operations of all timesteps.
        nodes: those that are not on sequences.
        place: where in `nodes` each is.
        start: where the first timestep begins.
        length: how many operations a timestep has.
    """

    loop: Unrolled
    nodes: Sequence[fx.Node]
    place: Mapping[fx.Node, int]
    start: int
    length: int

    @property
    def stop(self) -> int:
        """Where the last timestep ends."""
        return self.start + self.loop.n_steps * self.length

    @property
    def outside(self) -> list[fx.Node]:
        """The operations before and after the timesteps."""
        return [*self.nodes[: self.start], *self.nodes[self.stop :]]

    def form(self, t: int) -> list[tuple[str, Any, Any, Any]]:
        """The operations of timestep `t`: what, which, and what they are given.

        Raises:
            Refusal: where they are given what no loop could pass on from timestep to timestep.
        """
        first = self.start + t * self.length

        def told(node: fx.Node) -> Any:
            if node in self.loop.picks:
                sequence, shown_at = self.loop.picks[node]
                if shown_at != t:
                    raise Refusal(f"at timestep {t} it takes the input of timestep {shown_at}")
                return Shown(sequence.name)
            if node.op == "get_attr":
                return Constant(node.name)
            if node not in self.place:
                raise Refusal("it takes a whole sequence at a timestep")
            k = self.place[node] - first
            if k >= 0:
                return Now(k)
            if k >= -self.length and t > 0:
                return Before(k + self.length)
            if self.place[node] < self.start:
                return Constant(node.name)
            raise Refusal("a timestep takes what was made more than one timestep before")

        return [
            (node.op, node.target, mapped(told, node.args), mapped(told, node.kwargs))
            for node in self.nodes[first : first + self.length]
        ]

    def operation(self, values: Sequence[fx.Node]) -> int:
        """Which operation of a timestep yields what is stacked.

        Raises:
            Refusal: where that is not one operation at all timesteps in their order.
        """
        k = self.place.get(values[0], -1) - self.start
        taken = self.nodes[self.start + k : self.stop : self.length] if k >= 0 else []
        if k >= self.length or list(values) != list(taken):
            raise Refusal("it stacks something else than its timesteps in their order")
        return k


def cuts(loop: Unrolled, layers: Mapping[nn.Module, Layer]) -> Iterator[Blocks]:
    """The ways to cut the operations; an operation in between may belong to either timestep.

    Args:
        loop: the operations of all timesteps.
        layers: the neuron layers by module.

    Raises:
        Refusal: where there is none.
    """
    nodes = [node for node in loop.graph.nodes if _is_of_a_timestep(node, loop)]
    calls = _calls_of_a_neuron(loop, nodes, layers)
    lengths = {after - before for before, after in pairwise(calls)}
    if len(calls) != loop.n_steps or len(lengths) != 1:
        raise Refusal(NOT_ALIKE if loop.n_steps > 1 else "it runs for a single timestep")
    length = lengths.pop()
    place = {node: k for k, node in enumerate(nodes)}
    starts = range(calls[0], max(-1, calls[0] - length), -1)
    ways = [Blocks(loop, nodes, place, start, length) for start in starts]
    fitting = [way for way in ways if way.stop <= len(nodes)]
    outside = [_module_called(way) for way in fitting]
    yield from (way for way, name in zip(fitting, outside, strict=True) if name is None)
    if None not in outside:
        name = outside[0] if outside else None
        raise Refusal(f"{name} is called outside of its timesteps" if name else NOT_ALIKE)


def _is_of_a_timestep(node: fx.Node, loop: Unrolled) -> bool:
    if node.op in ("placeholder", "output", "get_attr"):
        return False
    return node not in loop.sequences and node not in loop.picks


def _calls_of_a_neuron(
    loop: Unrolled, nodes: Sequence[fx.Node], layers: Mapping[nn.Module, Layer]
) -> list[int]:
    """Where the first neuron that is called is called."""
    modules = [loop.module(node) for node in nodes]
    neurons = [m for m in modules if m is not None and m in layers and layers[m].is_stateful]
    return [k for k, module in enumerate(modules) if neurons and module is neurons[0]]


def _module_called(way: Blocks) -> str | None:
    """A module that is called before or after the timesteps."""
    called = [node for node in way.outside if way.loop.module(node) is not None]
    return str(called[0].target).removeprefix("net.") if called else None


def mapped(function: Callable[[fx.Node], Any], value: Any) -> Any:
    """`value` with every node replaced, in plain containers."""
    if isinstance(value, fx.Node):
        return function(value)
    if isinstance(value, slice):
        return slice(*(mapped(function, item) for item in (value.start, value.stop, value.step)))
    return rebuilt(lambda item: mapped(function, item), value)
