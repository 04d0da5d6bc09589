"""Runs a plan: layers over many timesteps at once, neurons in one scan, the rest step by step.

What a listener would have heard from hooks it is told here: one observation of all timesteps for a
module that ran as a whole; modules of a part that runs step by step are called, and their hooks
speak for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from dynvision_snn.adapters import Call
from dynvision_snn.engine.joining import joined
from dynvision_snn.engine.listeners import Audience
from dynvision_snn.engine.plan import LayerPlan, Part, pairs, picked_from
from dynvision_snn.engine.products import linear
from dynvision_snn.engine.reshaping import with_other_axes
from dynvision_snn.engine.samplewise import CHOOSES, CONVOLUTIONAL
from dynvision_snn.engine.scans import fits, scan
from dynvision_snn.engine.timed import (
    PerStep,
    Timed,
    at_step,
    map_timed,
    merged,
    stacked,
)
from dynvision_snn.engine.tracing import Traced
from dynvision_snn.engine.values import attribute, bind, computed, delayed, kept, last, looked_up
from dynvision_snn.spike_bits import note_moved


@dataclass(eq=False, slots=True)
class LayerRun:
    """One stretch of one run.

    Attributes:
        plan: the plan.
        audience: who listens, and to which timesteps of which run.
        keep_membranes: whether those of recurrent neurons are kept for the backward.
        values: what the nodes yielded, as far as it is still needed.
        brought: the states that `values` holds for every timestep.
    """

    plan: LayerPlan
    audience: Audience
    keep_membranes: bool
    values: dict[fx.Node, Any] = field(default_factory=dict)
    brought: set[fx.Node] = field(default_factory=set)

    def __call__(self, inputs: Timed, states: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """The outputs, `Timed`, and the states after the last timestep."""
        traced = self.plan.traced
        self.values[traced.inputs] = inputs
        bind(traced.states, states, self.values)
        needed = _last_uses(self.plan)
        for k, part in enumerate(self.plan.parts):
            self._bring_later(part)
            _RUNNERS[part.manner](self, part)
            for node in needed.get(k, ()):
                self.values.pop(node, None)
        outputs = looked_up(traced.outputs, self.values)
        returned = looked_up(traced.returned, self.values)
        if self.plan.stepping == "sequence":
            return outputs, map_timed(Timed.over_time, returned)
        return outputs, last(returned)

    def _bring_later(self, part: Part) -> None:
        """States that another part made at the timestep before, at every timestep."""
        if self.plan.stepping == "sequence":
            return
        for placeholder, value in _backwards(self.plan, part).items():
            if value not in part.nodes and placeholder not in self.brought:
                made, first = self.values[value], self.values[placeholder]
                self.values[placeholder] = delayed(made, first, self._n_steps())
                self.brought.add(placeholder)

    # -- parts ------------------------------------------------------------------------------------

    def pick(self, part: Part) -> None:
        """Takes a state variable out of what a neuron returned."""
        for node in part.nodes:
            self._pick(node)

    def _pick(self, node: fx.Node) -> None:
        whole, key = self.values[picked_from(node)], node.args[1]
        if isinstance(whole, Timed | PerStep):
            # The neuron returned no tuple: these are entries of its spikes.
            self._called(Part("step", (node,), node.name))
            return
        self.values[node] = getattr(whole, key) if isinstance(key, str) else whole[key]

    def layer(self, part: Part) -> None:
        """A chain of stateless layers and functions, on the distinct values."""
        first = part.nodes[0]
        if first.op == "get_attr":
            self.values[first] = attribute(self.plan.traced.root, str(first.target))
            return
        traced = self.plan.traced
        (source,) = first.all_input_nodes
        inputs = self.values[source]
        modules = {n: m for n in part.nodes if (m := traced.acting(n)) is not None}
        if isinstance(inputs, Tensor) and not modules:
            self._constant(part)
            return
        if not isinstance(inputs, Timed) or inputs.values.ndim < 3:
            self._as_it_is(part)
            return
        heard: dict[fx.Node, tuple[list[Tensor], list[Tensor]]] = {
            node: ([], []) for node, module in modules.items() if self.audience.watching(module)
        }

        def one_batch(x: Tensor) -> Tensor:
            given = source
            for node in part.nodes:
                before, x = x, _applied(node, x, given, self.values, traced)
                given = node
                if node in heard:
                    heard[node][0].append(before)
                    heard[node][1].append(x)
            return x

        small = any(isinstance(module, CONVOLUTIONAL) for module in modules.values())
        self.values[part.nodes[-1]] = merged(one_batch, inputs, small=small)
        for node, (before, after) in heard.items():
            self.audience.tell(modules[node], _gathered(before, inputs), _gathered(after, inputs))

    def join(self, part: Part) -> None:
        """A function of several values, over the distinct ones."""
        (node,) = part.nodes
        if all(isinstance(self.values[operand], Tensor) for operand in node.all_input_nodes):
            self._constant(part)
            return
        value = joined(node, self.values, self.plan.stepping)
        if value is None:
            self._as_it_is(part)
        else:
            self.values[node] = value

    def shape(self, part: Part) -> None:
        """Another shape of a value, or what is computed along its axes, for each sample."""
        (node,) = part.nodes
        value = with_other_axes(node, self.values)
        if value is None:
            self._as_it_is(part)
        else:
            self.values[node] = value

    def size(self, part: Part) -> None:
        """A size, as it is at every timestep."""
        (node,) = part.nodes
        given = {a: self.values[a] for a in node.all_input_nodes}
        if any(isinstance(value, PerStep) for value in given.values()):
            self._as_it_is(part)
            return
        self.values[node] = computed(node, {a: at_step(v, 0) for a, v in given.items()}, {})

    def _constant(self, part: Part) -> None:
        """What is the same at every timestep, such as a function of parameters."""
        for node in part.nodes:
            self.values[node] = computed(node, self.values, {})

    def _as_it_is(self, part: Part) -> None:
        self.plan.as_it_is.add(part)
        self._called(part)

    def _called(self, part: Part) -> None:
        """Runs a part as the model does."""
        (self.step if self.plan.stepping == "step" else self.whole)(part)

    def scan(self, part: Part) -> None:
        """One neuron, from its first timestep to its last."""
        traced = self.plan.traced
        node = next(n for n in part.nodes if n in traced.layer_of)
        layer = traced.layer_of[node]
        inputs = self.values[picked_from(node)]
        if not isinstance(inputs, Timed):
            self._as_it_is(part)
            return
        args = [self.values[a] if isinstance(a, fx.Node) else a for a in node.args[1:]]
        kwargs = {
            k: self.values[a] if isinstance(a, fx.Node) else a for k, a in node.kwargs.items()
        }
        example = inputs.values[0]
        start = layer.adapter.scan_start(layer.module, Call((example, *args), kwargs, None))
        spec = layer.adapter.scan_spec(layer.module)
        if not fits(spec, example, start):
            self._as_it_is(part)
            return
        keep = {"spikes"} | (part.wants - {"output"}) | self.audience.wants(layer)
        ran = scan(
            spec,
            inputs.values,
            index=inputs.index,
            state=start,
            keep=keep,
            keep_membranes=self.keep_membranes,
        )
        layer.adapter.scan_finish(layer.module, ran.state)
        values: dict[str, Any] = {"output": Timed(ran.output)}
        if traced.has_all(node):
            values |= {"spikes": ran.output[-1], **ran.state}
        else:
            values |= {
                "membrane": kept(ran.membrane, ran.state.get("membrane")),
                "current": kept(ran.current, ran.state.get("current")),
                "spikes": Timed(ran.output),
            }
        self.values[node] = layer.adapter.scan_return(layer.module, values)
        for other in part.nodes:
            if other is not node:
                self._pick(other)
        self.audience.tell_scanned(layer, inputs, ran, start)

    def step(self, part: Part) -> None:
        """A part as the model itself runs it, timestep by timestep."""
        traced = self.plan.traced
        back = {p: v for p, v in _backwards(self.plan, part).items() if v in part.nodes}
        inside = dict.fromkeys(part.nodes)
        held: dict[fx.Node, Any] = {p: self.values[p] for p in back}
        outside = {
            a for n in part.nodes for a in n.all_input_nodes if a not in inside and a not in held
        }
        n_steps = self._n_steps()
        steps: list[dict[fx.Node, Any]] = []
        clock = self.audience.run.clock
        for t in range(n_steps):
            if clock is not None:
                clock.t = self.audience.t0 + t
            now: dict[fx.Node, Any] = {n: at_step(self.values[n], t) for n in outside} | held
            for node in part.nodes:
                now[node] = computed(node, now, traced.module_of)
            held = {p: looked_up(value, now) for p, value in back.items()}
            steps.append({node: now[node] for node in part.nodes})
        for node in part.nodes:
            self.values[node] = stacked([step.pop(node) for step in steps])

    def whole(self, part: Part) -> None:
        """A node that takes all timesteps at once, called as the model calls it."""
        for node in part.nodes:
            now = {a: map_timed(Timed.over_time, self.values[a]) for a in node.all_input_nodes}
            result = computed(node, now, self.plan.traced.module_of)
            self.values[node] = _as_timed(result)

    def _n_steps(self) -> int:
        inputs: Timed = self.values[self.plan.traced.inputs]
        return len(inputs)


_RUNNERS: Mapping[str, Callable[[LayerRun, Part], None]] = {
    "pick": LayerRun.pick,
    "size": LayerRun.size,
    "layer": LayerRun.layer,
    "join": LayerRun.join,
    "shape": LayerRun.shape,
    "scan": LayerRun.scan,
    "step": LayerRun.step,
    "whole": LayerRun.whole,
}


def _laid_out(module: nn.Module, x: Tensor) -> Tensor:
    """Channels last, where it makes a convolution and the pooling after it much faster."""
    if isinstance(module, nn.Conv2d) and x.device.type == "cpu":
        laid_out = x.contiguous(memory_format=torch.channels_last)
        note_moved(laid_out, x)
        return laid_out
    return x


def _as_timed(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Timed(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return value
    if isinstance(value, tuple | list):
        return type(value)(_as_timed(item) for item in value)
    return value


def _applied(
    node: fx.Node,
    x: Tensor,
    given: fx.Node,
    values: Mapping[fx.Node, Any],
    traced: Traced,
) -> Tensor:
    """One stateless node on one batch `x`, which stands for the value of `given`."""
    module = traced.acting(node)
    if module is not None:
        if type(module) is nn.Linear and "forward" not in vars(module):
            return linear(x, module.weight, module.bias)
        # Not the call: its hooks would take a batch of timesteps for one of samples.
        output: Tensor = module.forward(_laid_out(module, x))
        if type(module) in CHOOSES:
            note_moved(output, x)
        return output
    result: Tensor = computed(node, {**values, given: x}, traced.module_of)
    return result


def _gathered(parts: Sequence[Tensor], like: Timed) -> Timed:
    whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    return Timed(whole.unflatten(0, like.values.shape[:2]), like.index)


def _backwards(plan: LayerPlan, part: Part) -> dict[fx.Node, Any]:
    """The placeholders of this part, with what comes back to each."""
    mine = {a for node in part.nodes for a in node.all_input_nodes if a.op == "placeholder"}
    back = pairs(plan.traced.states, plan.traced.returned)
    return {placeholder: value for placeholder, value in back if placeholder in mine}


def _last_uses(plan: LayerPlan) -> dict[int, list[fx.Node]]:
    """After which part each node's value is no longer needed."""
    final = {node for node in plan.traced.graph.nodes if node.op == "output"}
    kept = {a for node in final for a in node.all_input_nodes} | {plan.traced.inputs}
    last: dict[fx.Node, int] = {}
    for k, part in enumerate(plan.parts):
        for node in part.nodes:
            for needed in (node, *node.all_input_nodes):
                last[needed] = k
    uses: dict[int, list[fx.Node]] = {}
    for node, k in last.items():
        if node not in kept:
            uses.setdefault(k, []).append(node)
    return uses
