"""Looking once at how a model runs: stepping, state, what is called when, and its readout.

Much is known from the types: a whole-sequence neuron runs sequences, a Sequential of one-step
neurons is stepped. A module with a forward of its own is looked at by running it on a tiny batch,
without a graph, its buffers, neuron state, random state and hooks left as they were: on a sequence
of 3 timesteps of 2 samples, a model with the loop inside calls each neuron 3 times with 2 samples,
and one that is to be stepped does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Adapters, Call, Layer, Reading
from dynvision_snn.adapters.base import tensors_of
from dynvision_snn.engine.calling import Calling, Stepping, call, state_arguments
from dynvision_snn.engine.step import first_tensor
from dynvision_snn.errors import WrapError
from dynvision_snn.observation import Rhythm, Watched

# What a user's forward raises when it is handed a layout that it was not written for.
_MISFIT = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)

# Timesteps and samples of the tiny sequence: unequal, so that the axes can be told apart.
_STEPS, _SAMPLES = 3, 2


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a model.

    Attributes:
        calling: how it is called.
        rhythms: how each module inside is called, where the model has its own time loop.
        reached: the neuron layers, in the order in which they were first called.
        readout: the layer whose membrane is decoded; None where the output itself is.
    """

    calling: Calling
    rhythms: Mapping[str, Rhythm]
    reached: tuple[str, ...]
    readout: str | None


@dataclass(slots=True)
class _Seen:
    """The calls of one module during a look."""

    watched: Watched
    calls: list[tuple[tuple[int, ...], Reading | None, bool]]

    @property
    def stateful(self) -> bool:
        return self.watched.layer is not None and self.watched.layer.is_stateful

    @property
    def is_step_neuron(self) -> bool:
        layer = self.watched.layer
        return layer is not None and layer.is_stateful and not layer.traits.sequence


class _Misfit(Exception):
    """The candidate way of calling is not the model's; the message says why."""


def look(
    net: nn.Module,
    watched: Sequence[Watched],
    adapters: Adapters,
    example: Tensor,
    *,
    stepping: Stepping | None = None,
    time_axis: int | None = None,
    readout: str | None = None,
) -> Look:
    """Looks at `net`, fed with (at most two samples of) `example`.

    Args:
        net: the model.
        watched: its modules.
        adapters: the adapters in force.
        example: what one timestep shows, ``[B, *features]``.
        stepping: how it is stepped, said by hand.
        time_axis: where a model with its own time loop has time, said by hand.
        readout: the layer whose membrane is decoded, said by hand.

    Raises:
        WrapError: if the ways of calling that were tried all fail, if the model cannot follow a
            presentation, or if its readout is ambiguous.
    """
    root = next((item.layer for item in watched if item.module is net), None)
    states = state_arguments(net, root)
    sample = example[:_SAMPLES]
    if sample.shape[0] < _SAMPLES:
        sample = sample.expand(_SAMPLES, *sample.shape[1:])
    candidates = [stepping] if stepping else _likely(net, watched, adapters)
    refusals: dict[str, str] = {}
    for candidate in candidates:
        last = candidate == candidates[-1]
        try:
            if candidate == "step":
                return _look_at_steps(net, watched, sample, Calling("step", 0, states), readout)
            return _look_at_sequence(net, watched, sample, states, time_axis, readout)
        except _Misfit as misfit:
            refusals[candidate] = str(misfit)
        except _MISFIT as error:
            if isinstance(error, WrapError) or (last and len(candidates) == 1):
                raise
            refusals[candidate] = f"{type(error).__name__}: {error}"
    tried = "\n".join(f"  as {name!r}: {reason}" for name, reason in refusals.items())
    raise WrapError(
        f"how {type(net).__name__} is run could not be told from a batch of shape "
        f"{list(example.shape)} per timestep. Tried:\n{tried}\nSay it by hand: "
        'wrap(net, stepping="step") for a model called once per timestep, '
        'stepping="sequence" (and time_axis=) for one with the time loop inside.'
    )


def _likely(net: nn.Module, watched: Sequence[Watched], adapters: Adapters) -> list[Stepping]:
    """The ways of calling to try, the most telling first."""
    if any(item.layer is not None and item.layer.traits.sequence for item in watched):
        return ["sequence"]
    if any(adapters.loops_children(item.module) for item in watched):
        return ["sequence"]
    if all(_only_passes_on(item, adapters) for item in watched):
        return ["step"]
    if not any(item.layer is not None and item.layer.is_stateful for item in watched):
        return ["step"]
    return ["sequence", "step"]


def _only_passes_on(item: Watched, adapters: Adapters) -> bool:
    module = item.module
    return (
        item.layer is not None
        or not any(True for _ in module.children())
        or type(module).forward is nn.Sequential.forward
        or adapters.is_container(module)
    )


# -- step ---------------------------------------------------------------------------------------


def _look_at_steps(
    net: nn.Module,
    watched: Sequence[Watched],
    sample: Tensor,
    calling: Calling,
    readout: str | None,
) -> Look:
    states: tuple[Any, ...] = calling.initial_states
    with _witnessed(net, watched) as seen:
        outputs, states = calling.split(call(net, sample, states))
        _check_one_call_each(net, seen)
        for item in seen.values():
            item.calls.clear()
        outputs, states = calling.split(call(net, sample, states))
    _check_state_is_kept(seen)
    shapes = {
        name: [value for value in (reading.output, reading.membrane) if value is not None]
        for name, (_, reading, _) in ((n, item.calls[-1]) for n, item in seen.items() if item.calls)
        if reading is not None
    }
    chosen = _readout(seen, list(tensors_of(outputs)), shapes, readout)
    if chosen is None:
        _check_decodable(net, first_tensor(outputs), (_SAMPLES,), seen)
    return Look(calling, {}, _reached(seen), chosen)


def _check_one_call_each(net: nn.Module, seen: Mapping[str, _Seen]) -> None:
    counts = {name: len(item.calls) for name, item in seen.items() if item.stateful}
    if not counts:
        return
    several = {name: count for name, count in counts.items() if count > 1}
    if several and len(set(counts.values())) == 1:
        n_steps = next(iter(counts.values()))
        raise WrapError(
            f"{type(net).__name__} called each of its neuron layers {n_steps} times in one call on "
            f"one static input: it seems to loop num_steps = {n_steps} over one image by itself, "
            "and so cannot follow a presentation in which the stimulus changes. Move the loop out "
            "(forward does one timestep), or let forward take [T, B, ...] and loop over axis 0. "
            "Its energy can be measured as it is: with EnergyMeter(net): net(images)."
        )
    if several:
        names = ", ".join(f"{name!r} ({count} times)" for name, count in several.items())
        raise WrapError(
            f"called more than once within one timestep: {names}. A neuron module keeps one state, "
            "so several streams would mix in it: give each use a module of its own."
        )


def _check_state_is_kept(seen: Mapping[str, _Seen]) -> None:
    dropped = [
        f"{name!r} ({type(item.watched.module).__name__})"
        for name, item in seen.items()
        if item.is_step_neuron and any(fresh for _, _, fresh in item.calls)
    ]
    if dropped:
        raise WrapError(
            f"the state of {', '.join(dropped)} is dropped at every timestep: the layer returns "
            "its state, and the model calls it again without. Use its library's container that "
            "passes states on, or let forward take and return the state: "
            "out, state = net(x, state)."
        )


# -- sequence -----------------------------------------------------------------------------------


def _look_at_sequence(
    net: nn.Module,
    watched: Sequence[Watched],
    sample: Tensor,
    states: tuple[str, ...],
    time_axis: int | None,
    readout: str | None,
) -> Look:
    # One input [3, 2, ...] tells a time-first model (3 timesteps) from a batch-first one (2).
    inputs = sample.unsqueeze(0).expand(_STEPS, *sample.shape)
    outputs, seen = _run_once(net, watched, inputs, states)
    sizes = {0: (_STEPS, _SAMPLES), 1: (_SAMPLES, _STEPS)}
    axes = [time_axis] if time_axis is not None else [0, 1]
    fitting = [axis for axis in axes if _fits(seen, *sizes[axis])]
    if fitting == [1] and time_axis is None:
        # A static loop of 2 looks the same; with 4 timesteps it would still loop 2 times.
        longer = inputs.repeat(1, 2, *([1] * (inputs.ndim - 2)))
        outputs, seen = _run_once(net, watched, longer, states)
        sizes[1] = (2 * _SAMPLES, _STEPS)
        fitting = [axis for axis in fitting if _fits(seen, *sizes[axis])]
    if not fitting:
        raise _Misfit(
            f"given [T={_STEPS}, B={_SAMPLES}, ...], its neurons were not called once at each "
            f"timestep: {_called(seen)}"
        )
    if len(fitting) > 1:
        raise WrapError(
            f"{type(net).__name__} runs on [T, B, ...] and on [B, T, ...] alike; say which with "
            "wrap(net, time_axis=0) or wrap(net, time_axis=1)."
        )
    axis = fitting[0]
    n_steps, n_samples = sizes[axis]
    _check_state_is_kept_in_loop(seen)
    rhythms = {
        name: _rhythm(item, n_steps, n_samples) or Rhythm("unclear") for name, item in seen.items()
    }
    shapes = {name: _sequences(item, rhythms[name], n_steps) for name, item in seen.items()}
    tensors = [
        tensor.transpose(0, 1) if axis == 1 and tensor.ndim > 1 else tensor
        for tensor in tensors_of(outputs)
    ]
    chosen = _readout(seen, tensors, shapes, readout)
    if chosen is None:
        _check_decodable(net, tensors[0], (n_steps, n_samples), seen)
    return Look(Calling("sequence", axis, states), rhythms, _reached(seen), chosen)


def _run_once(
    net: nn.Module, watched: Sequence[Watched], inputs: Tensor, states: tuple[str, ...]
) -> tuple[Any, dict[str, _Seen]]:
    calling = Calling("sequence", 0, states)
    with _witnessed(net, watched) as seen:
        outputs, _ = calling.split(call(net, inputs, calling.initial_states))
    return outputs, seen


def _fits(seen: Mapping[str, _Seen], n_steps: int, n_samples: int) -> bool:
    """Whether every neuron was called once at each of `n_steps` timesteps."""
    neurons = [item for item in seen.values() if item.stateful]
    judged = neurons or [item for item in seen.values() if item.calls]
    rhythms = [_rhythm(item, n_steps, n_samples) for item in judged]
    if not neurons:
        return any(rhythm is not None for rhythm in rhythms)
    return all(
        rhythm is not None
        and rhythm.calls == 1
        and (rhythm.form == "step")
        is not (item.watched.layer and item.watched.layer.traits.sequence)
        for item, rhythm in zip(neurons, rhythms, strict=True)
    )


def _rhythm(item: _Seen, n_steps: int, n_samples: int) -> Rhythm | None:
    """How a module was called, given the true numbers of timesteps and samples."""
    n_calls = len(item.calls)
    leads = {shape[:2] for shape, _, _ in item.calls}
    layer = item.watched.layer
    if layer is not None and layer.traits.sequence:
        axis = layer.traits.time_axis
        expected = (n_steps, n_samples) if axis == 0 else (n_samples, n_steps)
        return Rhythm("whole", n_calls, axis) if leads == {expected} else None
    if n_calls % n_steps == 0 and all(lead[:1] == (n_samples,) for lead in leads):
        return Rhythm("step", n_calls // n_steps)
    if leads == {(n_steps, n_samples)}:
        return Rhythm("whole", n_calls, 0)
    if leads == {(n_samples, n_steps)}:
        return Rhythm("whole", n_calls, 1)
    if all(lead[:1] == (n_steps * n_samples,) for lead in leads):
        return Rhythm("merged", n_calls)
    return None


def _check_state_is_kept_in_loop(seen: Mapping[str, _Seen]) -> None:
    later = {
        name: _Seen(item.watched, item.calls[1:]) for name, item in seen.items() if item.calls[1:]
    }
    _check_state_is_kept(later)


def _sequences(item: _Seen, rhythm: Rhythm, n_steps: int) -> list[Tensor]:
    """Outputs and membranes of a layer over all its calls, time first."""
    readings = [reading for _, reading, _ in item.calls if reading is not None]
    if not readings or rhythm.form == "unclear":
        return []
    columns = [[reading.output for reading in readings]]
    membranes = [reading.membrane for reading in readings]
    columns.append([membrane for membrane in membranes if membrane is not None])
    return [
        torch.cat([rhythm.time_first(value, n_steps) for value in column])
        for column in columns
        if column
    ]


# -- readout ------------------------------------------------------------------------------------


def _readout(
    seen: Mapping[str, _Seen],
    outputs: Sequence[Tensor],
    values: Mapping[str, Sequence[Tensor]],
    by_hand: str | None,
) -> str | None:
    """The readout's name: the last layer reached that the output belongs to; None: the output."""
    candidates = [
        name
        for name in _reached(seen)
        if (layer := seen[name].watched.layer) is not None and layer.spikes_or_integrates
    ]
    if by_hand is not None:
        return _readout_by_hand(seen, by_hand, candidates)
    matching = [
        name
        for name in candidates
        if any(_same(output, value) for output in outputs for value in values.get(name, ()))
    ]
    if candidates and matching and matching[-1] == candidates[-1]:
        return candidates[-1]
    if matching:
        raise WrapError(
            f"the model returns what its layer {matching[-1]!r} yielded, but {candidates[-1]!r} "
            f"was reached after it. Say which is decoded: wrap(net, readout=...), one of "
            f"{', '.join(map(repr, candidates))}."
        )
    return None


def _readout_by_hand(seen: Mapping[str, _Seen], name: str, candidates: Sequence[str]) -> str:
    if name not in seen or seen[name].watched.layer is None:
        known = ", ".join(n for n, item in seen.items() if item.watched.layer is not None)
        raise WrapError(f"readout={name!r} names no neuron layer of this model; known: {known}.")
    if not seen[name].calls:
        raise WrapError(
            f"readout={name!r} was not reached by a forward of the model; reached: "
            f"{', '.join(candidates) or 'none'}."
        )
    return name


def _same(output: Tensor, value: Tensor) -> bool:
    if output is value:
        return True
    return output.shape == value.shape and torch.equal(output, value)


def _check_decodable(
    net: nn.Module, output: Tensor, leading: tuple[int, ...], seen: Mapping[str, _Seen]
) -> None:
    if output.ndim == len(leading) + 1 and output.shape[: len(leading)] == leading:
        return
    layers = [
        name
        for name, item in seen.items()
        if item.calls and item.watched.layer is not None and item.stateful
    ]
    axes = "[T, B, classes]" if len(leading) == 2 else "[B, classes]"
    raise WrapError(
        f"{type(net).__name__} returned {list(output.shape)} where {axes} = "
        f"{[*leading, 'classes']} could be decoded at every timestep. Return the readout's spikes "
        "or membrane per timestep, or name the layer to decode: wrap(net, readout=...), one of "
        f"{', '.join(map(repr, layers)) or 'no neuron layer was reached'}."
    )


def _reached(seen: Mapping[str, _Seen]) -> tuple[str, ...]:
    """Neuron layers in the order in which they were first called; `seen` is in that order."""
    return tuple(
        name for name, item in seen.items() if item.calls and item.watched.layer is not None
    )


def _called(seen: Mapping[str, _Seen]) -> str:
    return (
        ", ".join(
            f"{name!r} {len(item.calls)} times with {list(item.calls[0][0])}"
            for name, item in seen.items()
            if item.stateful and item.calls
        )
        or "no neuron layer was called"
    )


# -- leaving no trace ---------------------------------------------------------------------------


@contextmanager
def _witnessed(net: nn.Module, watched: Sequence[Watched]) -> Iterator[dict[str, _Seen]]:
    """Notes every call of the watched modules; leaves no trace on the model."""
    seen: dict[str, _Seen] = {}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_untouched(net, [item.layer for item in watched if item.layer]))
        for item in watched:
            handle = item.module.register_forward_hook(_witness(item, seen), with_kwargs=True)
            stack.callback(handle.remove)
            # After the witness: recording shows every state to hooks that were there before it.
            if item.layer is not None:
                stack.enter_context(item.layer.adapter.recording(item.module))
        yield seen


def _witness(item: Watched, seen: dict[str, _Seen]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        made = Call(args, kwargs, output)
        layer = item.layer
        reading = None if layer is None else layer.adapter.read(module, made)
        fresh = layer is not None and layer.adapter.is_fresh(module, made)
        inputs = next(tensors_of((args, kwargs)), None)
        shape = () if inputs is None else tuple(inputs.shape)
        seen.setdefault(item.name, _Seen(item, [])).calls.append((shape, reading, fresh))

    return hook


@contextmanager
def _untouched(net: nn.Module, layers: Sequence[Layer]) -> Iterator[None]:
    """Puts back buffers, neuron state, hooks and the random state that a forward may change."""
    cpu_and_gpus = sorted(
        {tensor.device.index for tensor in net.parameters() if tensor.device.type == "cuda"}
    )
    held = [(layer, layer.adapter.state(layer.module)) for layer in layers]
    in_neurons = {id(value) for _, state in held for value in state.values()}
    buffers = [
        (buffer, buffer.detach().clone())
        for buffer in net.buffers()
        if id(buffer) not in in_neurons
    ]
    hooks = [(module, dict(module._forward_hooks)) for module in net.modules()]
    with torch.random.fork_rng(devices=cpu_and_gpus):
        for module, _ in hooks:
            module._forward_hooks.clear()
        for layer in layers:
            layer.adapter.reset(layer.module)
        try:
            yield
        finally:
            for module, found in hooks:
                module._forward_hooks.clear()
                module._forward_hooks.update(found)
            for layer, state in held:
                layer.adapter.restore(layer.module, state)
            for buffer, value in buffers:
                buffer.copy_(value)
