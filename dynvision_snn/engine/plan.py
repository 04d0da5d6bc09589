"""How a model can run over time, part by part, so that the numbers stay its library's own.

A plan is made from the data flow of one call (`tracing`). Where a one-step model's states come
back, the graph has edges backwards in time; what these join is one part. A stateless layer that is
joined with nothing handles many timesteps as one batch; a neuron that is joined with its own state
alone is scanned; the rest runs as the step engine would run it, that part alone.

What cannot be the same computation is a `Refusal` of the whole model, with its reason.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import fx, nn

from dynvision_snn.adapters import Call, Layer
from dynvision_snn.engine.axes import works_along
from dynvision_snn.engine.batch_first import time_first
from dynvision_snn.engine.calling import Calling
from dynvision_snn.engine.samplewise import is_random, joins, why_not_merged
from dynvision_snn.engine.shapes import is_size, reshapes
from dynvision_snn.engine.signature import signature_of
from dynvision_snn.engine.tracing import Refusal, Traced

Manner = Literal["layer", "join", "shape", "scan", "step", "whole", "pick", "size"]
"""How a part runs: many timesteps as one batch, several values joined or one given other axes
over all timesteps, one scan, timestep by timestep, one call with all timesteps, or no computation
(a state variable taken out of what a neuron returned, or a size that is the same at all)."""


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """Nodes that run together.

    Attributes:
        manner: how.
        nodes: the nodes, in order.
        name: the layer's name, or the nodes' names.
        reason: why it runs step by step, where it does.
        wants: the state variables of a scanned neuron that others need at every timestep.
    """

    manner: Manner
    nodes: tuple[fx.Node, ...]
    name: str
    reason: str | None = None
    wants: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False, slots=True)
class LayerPlan:
    """A model's parts in the order in which they run.

    Attributes:
        traced: the data flow.
        parts: the parts.
        stepping: whether the data flow is that of a timestep or of a run.
        signature: what the plan was made for; see `signature_of`.
        as_it_is: parts that a run found to be of other axes than batching takes, and ran as the
            model itself does.
    """

    traced: Traced
    parts: tuple[Part, ...]
    stepping: str
    signature: tuple[Any, ...]
    as_it_is: set[Part] = field(default_factory=set)

    @property
    def is_worth_it(self) -> bool:
        """Whether any part runs otherwise than the model itself would run it."""
        return any(part.manner == "scan" for part in self.parts)


def make_plan(
    net: nn.Module, calling: Calling, traced: Traced, layers: Iterable[Layer]
) -> LayerPlan:
    """The parts of a traced model.

    Raises:
        Refusal: where a part can only be run with all others, step by step.
    """
    _check_each_once(traced)
    stepping = calling.stepping if traced.firsts is None else "step"
    if stepping == "sequence" and not traced.starts_alike:
        raise Refusal("its forward makes its own first states")
    if stepping == "sequence" and calling.time_axis == 1:
        traced = time_first(traced)
    _check_returned(traced)
    names = {module: name or "the model" for name, module in net.named_modules()}
    words = _words(traced)
    components = _components(traced, stepping)
    parts = [_part(traced, nodes, names, stepping, words) for nodes in components]
    return LayerPlan(traced, tuple(_chained(parts)), stepping, signature_of(net))


def _check_each_once(traced: Traced) -> None:
    called = [traced.layer_of[n].name for n in traced.layer_of if traced.layer_of[n].is_stateful]
    twice = sorted({name for name in called if called.count(name) > 1})
    if twice:
        raise Refusal(f"{', '.join(twice)} is called more than once in a timestep")


def _check_returned(traced: Traced) -> None:
    for placeholder, value in pairs(traced.states, traced.returned):
        if placeholder.users and not isinstance(value, fx.Node):
            raise Refusal(_OF_ANOTHER_FORM)
    if not _constants_stay(traced.states, traced.returned):
        raise Refusal("it returns a state that is no tensor, and another at every timestep")


def _constants_stay(states: Any, returned: Any) -> bool:
    """Whether what is no tensor comes back as it was given: a trace knows no other."""
    if isinstance(states, fx.Node):
        return True
    if isinstance(states, dict):
        return all(_constants_stay(value, returned[key]) for key, value in states.items())
    if isinstance(states, tuple | list):
        return all(map(_constants_stay, states, returned))
    return returned is states or (not isinstance(returned, fx.Node) and bool(returned == states))


_OF_ANOTHER_FORM = "it returns another kind of state than it takes"
_BACKWARDS = "a connection runs backwards in time"


# -- parts ----------------------------------------------------------------------------------------


def _components(traced: Traced, stepping: str) -> list[list[fx.Node]]:
    """The nodes joined by edges back in time, in an order in which they can be computed.

    In a model that takes whole sequences, states go from one call to the next, not back in time.
    """
    nodes = list(traced.graph.nodes)[:-1]
    later: dict[fx.Node, set[fx.Node]] = {
        n: {u for u in n.users if u.op != "output"} for n in nodes
    }
    back = dict(pairs(traced.states, traced.returned)) if stepping == "step" else {}
    for placeholder, value in back.items():
        if isinstance(value, fx.Node):
            later[value].add(placeholder)
    if stepping == "step":
        for turns in (_random(traced, nodes), *_repeated(traced, nodes)):
            # All of them act at a timestep before any does at the next.
            for one, other in zip(turns, [*turns[1:], *turns[:1]], strict=True):
                later[one].add(other)
    reach = {node: _reachable(node, later) for node in nodes}
    placed: set[fx.Node] = set()
    components = []
    for node in nodes:
        if node.op == "placeholder" or node in placed:
            continue
        joined = [n for n in nodes if n is node or (n in reach[node] and node in reach[n])]
        component = [n for n in joined if n.op != "placeholder"]
        placed.update(component)
        components.append(component)
    return _ordered(components, back)


def _random(traced: Traced, nodes: Iterable[fx.Node]) -> list[fx.Node]:
    return [node for node in nodes if is_random(node, traced.acting(node))]


def _repeated(traced: Traced, nodes: Iterable[fx.Node]) -> list[list[fx.Node]]:
    """The calls of each module that is called several times in a timestep, and may remember them.

    Batch normalisation in training does: its statistics are those of its calls in their order.
    """
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node in nodes:
        module = traced.acting(node)
        if module is not None and why_not_merged(traced, node, "step") is not None:
            calls.setdefault(module, []).append(node)
    return [each for each in calls.values() if len(each) > 1]


def _chained(parts: Sequence[Part]) -> list[Part]:
    """Layers that only feed one another as one part: what lies between them stays in cache."""
    chained: list[Part] = []
    for part in parts:
        before = chained[-1] if chained else None
        feeds = (
            before is not None
            and before.manner == part.manner == "layer"
            and before.nodes[0].op != "get_attr"
            and list(before.nodes[-1].users) == [part.nodes[0]]
        )
        if feeds and before is not None:
            names = ", ".join((before.name, part.name))
            chained[-1] = replace(before, nodes=(*before.nodes, *part.nodes), name=names)
        else:
            chained.append(part)
    return chained


def _ordered(components: list[list[fx.Node]], back: Mapping[fx.Node, Any]) -> list[list[fx.Node]]:
    """So that each comes after those whose values it needs, of the timestep before included."""
    owner = {node: k for k, component in enumerate(components) for node in component}
    done: set[int] = set()
    ordered: list[list[fx.Node]] = []

    def place(k: int) -> None:
        if k in done:
            return
        done.add(k)
        for node in components[k]:
            for operand in node.all_input_nodes:
                needed = back.get(operand, operand)
                if needed in owner:
                    place(owner[needed])
        ordered.append(components[k])

    for k in range(len(components)):
        place(k)
    return ordered


def _reachable(start: fx.Node, later: Mapping[fx.Node, set[fx.Node]]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [start]
    while waiting:
        for node in later.get(waiting.pop(), ()):
            if node not in found:
                found.add(node)
                waiting.append(node)
    return found


def pairs(states: Any, returned: Any) -> list[tuple[fx.Node, Any]]:
    """Every placeholder with what comes back to it.

    Raises:
        Refusal: where that is of another form, as a cell's pair of states that is passed on whole.
    """
    if isinstance(states, fx.Node):
        return [(states, returned)]
    if not isinstance(states, dict | tuple | list):
        return []
    alike = isinstance(returned, dict if isinstance(states, dict) else tuple | list)
    if not alike or len(returned) != len(states):
        raise Refusal(_OF_ANOTHER_FORM)
    if isinstance(states, dict):
        columns = [(states[key], returned.get(key)) for key in states]
    else:
        columns = list(zip(states, returned, strict=True))
    return [pair for one, other in columns for pair in pairs(one, other)]


def _part(
    traced: Traced,
    component: Sequence[fx.Node],
    names: Mapping[nn.Module, str],
    stepping: str,
    words: Mapping[fx.Node, Any],
) -> Part:
    calls = [node for node in component if node in traced.module_of]
    name = ", ".join(names[traced.module_of[n]] for n in calls) or component[0].name
    nodes = tuple(component)
    if len(component) == 1 and is_size(component[0]) and stepping == "step":
        return Part("size", nodes, name)
    if len(component) == 1 and _picks(component[0]) and _root(component[0]) in traced.layer_of:
        return Part("pick", nodes, name)
    neurons = [n for n in calls if n in traced.layer_of and traced.layer_of[n].is_stateful]
    if len(neurons) == 1 and all(_root(n) is neurons[0] for n in component):
        reason = _why_no_scan(traced, neurons[0], words, stepping)
        if reason is None and all(n in words for n in component):
            return Part("scan", nodes, name, wants=_wanted(traced, neurons[0], words))
        return Part(_alone(stepping), nodes, name, reason or _BACKWARDS)
    if len(component) == 1 and (component[0], component[0]) in _carried(traced, stepping):
        return Part("step", nodes, name, _BACKWARDS)
    if len(component) == 1:
        reason = why_not_merged(traced, component[0], stepping)
        if reason is None:
            return Part(_together(component[0]), nodes, name)
        return Part(_alone(stepping), nodes, name, reason)
    if len(_random(traced, component)) > 1:
        return Part("step", nodes, name, "they draw random numbers in turn, timestep by timestep")
    if _repeated(traced, component):
        return Part("step", nodes, name, "a module is called several times in a timestep, in turn")
    return Part("step", nodes, name, _BACKWARDS)


def _carried(traced: Traced, stepping: str) -> set[tuple[fx.Node, fx.Node]]:
    """Which node takes what which node made at the timestep before."""
    back = pairs(traced.states, traced.returned) if stepping == "step" else []
    return {(made, user) for placeholder, made in back for user in placeholder.users}


def _together(node: fx.Node) -> Manner:
    if joins(node):
        return "join"
    return "shape" if reshapes(node) or works_along(node) else "layer"


def _alone(stepping: str) -> Manner:
    return "step" if stepping == "step" else "whole"


# -- neurons --------------------------------------------------------------------------------------


# A recurrent neuron's spikes are its output.
_ALSO: Mapping[str, tuple[str, ...]] = {"spikes": ("output",)}


def _words(traced: Traced) -> dict[fx.Node, Any]:
    """Of every neuron that a scan can run, and of what is picked from its output, our names."""
    words: dict[fx.Node, Any] = {}
    for node in traced.nodes:
        layer = traced.layer_of.get(node)
        if layer is not None and layer.is_stateful:
            if layer.adapter.why_no_scan(layer.module) is None:
                names = {n: n for n in ("output", "membrane", "current", "spikes")}
                words[node] = layer.adapter.scan_return(layer.module, names)
        elif _picks(node) and picked_from(node) in words:
            picked = _picked(node, words[picked_from(node)])
            if picked is not None:
                words[node] = picked
    return words


def _picks(node: fx.Node) -> bool:
    takes = node.op == "call_function" and node.target in (operator.getitem, getattr)
    return takes and not is_size(node)


def picked_from(node: fx.Node) -> fx.Node:
    """The node whose value `node` takes a part of."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _picked(node: fx.Node, whole: Any) -> Any:
    key = node.args[1]
    if isinstance(key, str):
        return whole._asdict().get(key) if hasattr(whole, "_fields") else None
    if isinstance(whole, tuple) and isinstance(key, int) and -len(whole) <= key < len(whole):
        return whole[key]
    return None


def _why_no_scan(
    traced: Traced, node: fx.Node, words: Mapping[fx.Node, Any], stepping: str
) -> str | None:
    layer = traced.layer_of[node]
    reason = layer.adapter.why_no_scan(layer.module)
    if reason is not None:
        return reason
    if traced.has_all(node) != (stepping == "sequence") or layer.traits.time_axis != 0:
        return "it is called in another way than the model"
    if node in traced.repeated and not _is_tensor(traced, words, node.args[0]):
        return "its input comes with a state"
    back = dict(pairs(traced.states, traced.returned))
    arguments: list[Any] = [*node.args[1:], *node.kwargs.values()]
    passed = [value for value in arguments if value is not None]
    if any(not isinstance(value, fx.Node) or value not in back for value in passed):
        return "the state that it is passed is not the one that it returned"

    def renamed(value: Any) -> Any:
        return None if value is None else words.get(back[value])

    by_name = {key: renamed(value) for key, value in node.kwargs.items()}
    if any(renamed(value) is None for value in passed):
        return "the state that it is passed is not the one that it returned"
    if stepping == "step" and passed:
        call = Call((torch.empty(0), *map(renamed, node.args[1:])), by_name, None)
        start = layer.adapter.scan_start(layer.module, call)
        start = {ours: word for ours, word in start.items() if isinstance(word, str)}
        if any(word not in (ours, *_ALSO.get(ours, ())) for ours, word in start.items()):
            return "the state that it is passed is not the one that it returned"
    return None


def _is_tensor(traced: Traced, words: Mapping[fx.Node, Any], value: Any) -> bool:
    """Whether `value` is surely no pair of a neuron's output and state."""
    if not isinstance(value, fx.Node):
        return False
    layer = traced.layer_of.get(value)
    return layer is None or not layer.is_stateful or words.get(value) == "output"


def _wanted(traced: Traced, neuron: fx.Node, words: Mapping[fx.Node, Any]) -> frozenset[str]:
    """The state variables of `neuron` that others than itself need at every timestep."""
    wanted: set[str] = set()
    if traced.has_all(neuron):
        return frozenset()  # it returns the last state alone
    own = {node for node in words if _root(node) is neuron}
    outputs = set(_nodes_in(traced.outputs))
    back = pairs(traced.states, traced.returned)
    for node in own:
        takers = [node, *(placeholder for placeholder, value in back if value is node)]
        users = [user for taker in takers for user in taker.users]
        others = [user for user in users if user not in own and user.op != "output"]
        if node in outputs or others:
            wanted.update(_strings(words[node]))
    return frozenset(wanted)


def _root(node: fx.Node) -> fx.Node:
    while _picks(node):
        node = picked_from(node)
    return node


def _nodes_in(value: Any) -> list[fx.Node]:
    if isinstance(value, fx.Node):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [node for item in value for node in _nodes_in(item)]
    return []


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [word for item in value for word in _strings(item)] if isinstance(value, tuple) else []
