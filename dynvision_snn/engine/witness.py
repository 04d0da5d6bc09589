"""Watching a model run without leaving a trace on it.

A look runs the user's model on a tiny batch. Whatever a forward may write, in buffers, in the
neurons' state, in attributes of the user's modules, in torch's random generators, is put back
afterwards, and no hook that was there before sees the look.

What a spiking or integrating layer yields is replaced by random values on its way out. They mark
it: a model's output that equals them is that layer's, however silent the layer was, and nothing
downstream is zero by accident.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Call, Layer, Reading
from dynvision_snn.adapters.base import map_tensors, tensors_of
from dynvision_snn.observation import LayerHook, Watched


@dataclass(frozen=True, eq=False, slots=True)
class Witnessed:
    """One call of a module.

    Attributes:
        inputs: the first tensor that it was given; None where there was none.
        reading: what a neuron layer yielded.
        marked: what it was made to yield instead.
        fresh: whether its adapter says that the layer started from no state.
        passed: the state that it was passed.
        held: the state that it kept itself, before the call.
        kept: the state that it keeps itself, after the call.
    """

    inputs: Tensor | None
    reading: Reading | None = None
    marked: Reading | None = None
    fresh: bool = False
    passed: tuple[Tensor, ...] = ()
    held: tuple[Tensor, ...] = ()
    kept: tuple[Tensor, ...] = ()

    def forgets(self, before: Witnessed) -> bool:
        """Whether it started from no state, or from zeros, although the call before left some."""
        if self.fresh:
            return True
        from_itself = {id(tensor) for tensor in self.held}
        if self.passed and not all(id(tensor) in from_itself for tensor in self.passed):
            start, left = self.passed, before.handed_out
        else:
            start, left = self.held, before.kept
        return bool(start) and not _any_nonzero(start) and _any_nonzero(left)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the inputs; empty where there were none."""
        return () if self.inputs is None else tuple(self.inputs.shape)

    @property
    def yielded(self) -> tuple[Tensor | None, ...]:
        """What a model that passes on this layer's values may return.

        Its membrane also unmarked: a model may take it from the layer itself.
        """
        if self.reading is None or self.marked is None:
            return ()
        return self.marked.output, self.marked.membrane, self.reading.membrane

    @property
    def values(self) -> list[Tensor]:
        """All that was given and yielded."""
        reading = self.reading
        yielded = () if reading is None else (reading.output, reading.membrane)
        return [value for value in (self.inputs, *yielded) if value is not None]

    @property
    def handed_out(self) -> tuple[Tensor, ...]:
        """Output and membrane, as the model received them."""
        reading = self.marked or self.reading
        yielded = () if reading is None else (reading.output, reading.membrane)
        return tuple(value for value in yielded if value is not None)


@dataclass(slots=True)
class Seen:
    """The calls of one module during a look."""

    watched: Watched
    calls: list[Witnessed] = field(default_factory=list)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of every input."""
        return [called.shape for called in self.calls]

    @property
    def layer(self) -> Layer | None:
        """What the adapters know of the module."""
        return self.watched.layer

    @property
    def is_stateful(self) -> bool:
        """Whether it is a neuron layer that carries a state between timesteps."""
        return self.layer is not None and self.layer.is_stateful

    @property
    def is_step_neuron(self) -> bool:
        """Whether it carries a state from one call to the next."""
        return self.layer is not None and self.layer.is_stateful and not self.layer.traits.sequence

    @property
    def forgets(self) -> bool:
        """Whether some call did not go on from the state that the call before it left."""
        return any(later.forgets(earlier) for earlier, later in pairwise(self.calls))


def _any_nonzero(values: Iterable[Tensor]) -> bool:
    return any(bool(value.any()) for value in values)


@contextmanager
def witnessed(net: nn.Module, watched: Sequence[Watched]) -> Iterator[dict[str, Seen]]:
    """Notes every call of the watched modules, by name, in the order of their first calls.

    From reset neurons, without a graph, with the same random numbers every time, and unheard by
    the hooks that were there before. Enter `left_as_found` around it.
    """
    seen: dict[str, Seen] = {}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=gpus(net)))
        stack.enter_context(unheard(net))
        for item in watched:
            held: list[Tensor] = []
            for handle in (
                item.module.register_forward_pre_hook(_before(item, held)),
                item.module.register_forward_hook(_witness(item, seen, held), with_kwargs=True),
            ):
                stack.callback(handle.remove)
            # After the witness: recording shows every state to hooks that were there before it.
            if item.layer is not None:
                item.layer.adapter.reset(item.module)
                stack.enter_context(item.layer.adapter.recording(item.module))
        yield seen


def _kept_by(item: Watched) -> tuple[Tensor, ...]:
    """The state that a layer keeps itself."""
    return () if item.layer is None else tuple(tensors_of(item.layer.adapter.state(item.module)))


def _before(item: Watched, held: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        held[:] = _kept_by(item)

    return hook


def _witness(item: Watched, seen: dict[str, Seen], held: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        called = Call(args, kwargs, output)
        inputs = next(tensors_of((args, kwargs)), None)
        calls = seen.setdefault(item.name, Seen(item)).calls
        layer = item.layer
        if layer is None:
            calls.append(Witnessed(inputs))
            return None
        reading = layer.adapter.read(module, called)
        witnessed = Witnessed(
            inputs,
            reading,
            fresh=layer.adapter.is_fresh(module, called),
            passed=tuple(tensors_of((args, kwargs)))[1:],
            held=tuple(held),
            kept=_kept_by(item),
        )
        if not layer.spikes_or_integrates:
            calls.append(witnessed)
            return None
        marks = {
            id(value): torch.rand_like(value)
            for value in (reading.output, reading.membrane)
            if value is not None and value.is_floating_point()
        }

        def marked(value: Any) -> Any:
            return marks.get(id(value), value)

        marking = reading._replace(output=marked(reading.output), membrane=marked(reading.membrane))
        calls.append(replace(witnessed, marked=marking))
        return map_tensors(marked, output)

    return hook


def gpus(net: nn.Module) -> list[int]:
    """The indices of the GPUs that it is on."""
    tensors = [*net.parameters(), *net.buffers()]
    return sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})


@contextmanager
def unheard(net: nn.Module) -> Iterator[None]:
    """Takes away forward hooks, and our own pre-hooks.

    Others' pre-hooks stay: pruning and reparametrisation make their weights in them.
    """
    found = [
        (hooks, dict(hooks))
        for module in net.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
    ]
    try:
        for module in net.modules():
            module._forward_hooks.clear()
            for key, hook in list(module._forward_pre_hooks.items()):
                if isinstance(hook, LayerHook):
                    del module._forward_pre_hooks[key]
        yield
    finally:
        for hooks, before in found:
            hooks.clear()
            hooks.update(before)


@contextmanager
def left_as_found(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Puts back all that a forward may write on these modules (not on those inside them).

    That is every attribute, what its lists, dicts and sets hold, and buffers written in place.
    """
    everything = list(modules)
    attributes = [(vars(module), dict(vars(module))) for module in everything]
    contents = [
        (value, value.copy())
        for _, held in attributes
        for value in held.values()
        if isinstance(value, dict | list | set)
    ]
    # An inference tensor is never written in place outside of inference mode.
    buffers = [
        (buffer, buffer.detach().clone())
        for module in everything
        for buffer in module._buffers.values()
        if buffer is not None and not buffer.is_inference()
    ]
    try:
        yield
    finally:
        for now, before in [*attributes, *contents]:
            _refill(now, before)
        with torch.no_grad():
            for buffer, value in buffers:
                # What was not written stays so: a graph of the user's may have saved it.
                # (Versions would not tell: batch normalisation writes without one.)
                if not _are_same(buffer, value):
                    buffer.copy_(value)


@contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """As `left_as_found` of all its modules; what a forward writes into weights goes, too."""
    # By `.data`, so that a graph that has saved a weight finds it as it was.
    weights = [
        (parameter, parameter.data, parameter.detach().clone())
        for parameter in net.parameters()
        if type(parameter) is nn.Parameter
        and parameter.layout is torch.strided
        and not parameter.is_inference()
    ]
    try:
        with left_as_found(net.modules()):
            yield
    finally:
        for parameter, numbers, value in weights:
            if not torch.equal(numbers, value):
                numbers.copy_(value)
            if parameter.data_ptr() != numbers.data_ptr():
                parameter.data = numbers


def _are_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, NaN in the same places included."""
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(
        one.nan_to_num(0.0, math.inf, -math.inf), other.nan_to_num(0.0, math.inf, -math.inf)
    )


def _refill(container: Any, before: Any) -> None:
    """Makes a container hold what it held before; a dict is at no moment without it."""
    if isinstance(container, list):
        container[:] = before
    elif isinstance(container, dict):
        container.update(before)
        for key in container.keys() - before.keys():
            del container[key]
    else:
        container.clear()
        container.update(before)


# -- state that no adapter knows of ---------------------------------------------------------------


class Memory:
    """What the modules of a model remember by themselves, outside of its neuron layers.

    Args:
        net: the model.
        watched: its modules.
    """

    def __init__(self, net: nn.Module, watched: Sequence[Watched]) -> None:
        layers = {id(item.module) for item in watched if item.layer is not None}
        # What torch's own modules remember is statistics and weights, never a sequence.
        self._modules = {
            name: module
            for name, module in net.named_modules()
            if id(module) not in layers and not type(module).__module__.startswith("torch.")
        }
        self._before = self._remembered()

    def written(self, sizes: Iterable[int]) -> list[str]:
        """The attributes and buffers written since, if they may hold a state of a batch.

        `sizes` are those that its number of samples may have.

        Statistics and weights are written by a forward, too, but have no sample axis.
        """
        wanted = set(sizes)
        return [
            name
            for name, leaves in self._remembered().items()
            if _changed(self._before.get(name, []), leaves)
            and any(not isinstance(leaf, Tensor) or wanted & {*leaf.shape} for leaf, _ in leaves)
        ]

    def _remembered(self) -> dict[str, list[tuple[Any, int]]]:
        return {
            f"{path}.{name}" if path else name: list(_leaves(value))
            for path, module in self._modules.items()
            for name, value in {**vars(module), **module._buffers}.items()
            if name not in _REGISTRIES
        }


_REGISTRIES = frozenset(vars(nn.Module()))


def _leaves(value: Any) -> Iterator[tuple[Any, int]]:
    """The tensors, numbers and Nones in nested containers, each with a tensor's version."""
    if isinstance(value, Tensor):
        yield value, 0 if value.is_inference() else value._version
    elif value is None or isinstance(value, Number):
        yield value, 0
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)


def _changed(before: Sequence[tuple[Any, int]], now: Sequence[tuple[Any, int]]) -> bool:
    if len(before) != len(now):
        return True
    return any(
        one_version != other_version
        or (
            one is not other
            if isinstance(one, Tensor) or isinstance(other, Tensor)
            else one != other
        )
        for (one, one_version), (other, other_version) in zip(before, now, strict=True)
    )


def same_values(ones: Mapping[str, Seen], others: Mapping[str, Seen]) -> bool:
    """Whether two runs gave the same values to every module and its membrane."""
    return ones.keys() == others.keys() and all(
        _same_calls(ones[name].calls, others[name].calls) for name in ones
    )


def _same_calls(ones: Sequence[Witnessed], others: Sequence[Witnessed]) -> bool:
    values = [[value for call in calls for value in call.values] for calls in (ones, others)]
    return len(values[0]) == len(values[1]) and all(
        _are_same(one, other) for one, other in zip(*values, strict=True)
    )
