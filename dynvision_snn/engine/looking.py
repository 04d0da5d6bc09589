"""Looking once at how a model runs: stepping, state, what is called when, and its readout.

Much is known from the types: a whole-sequence neuron runs sequences, a Sequential of one-step
neurons is stepped. A module with a forward of its own is looked at by running it on tiny batches
(`witness`): on a sequence of 3 timesteps of 2 samples, a model with the loop inside calls each
neuron 3 times with 2 samples, and one that is to be stepped does not. Every sequence is tried in
two sizes, so that no size of the model's own passes for a number of timesteps or samples; a model
that insists on its numbers is looked at with these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Adapters
from dynvision_snn.adapters.base import tensors_of
from dynvision_snn.adapters.finding import uncompiled
from dynvision_snn.engine.calling import Arguments, Calling, Stepping, arguments_of
from dynvision_snn.engine.decoding import choose_readout, reached
from dynvision_snn.engine.rhythm import Size, find_rhythms, fits, over_time, sizes_to_try
from dynvision_snn.engine.witness import Memory, Seen, same_values, untouched, witnessed
from dynvision_snn.errors import WrapError
from dynvision_snn.observation import Rhythm, Watched

# What a user's forward raises when it is handed a layout that it was not written for.
_MISFIT = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)

_SAMPLES = 2


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a model.

    Attributes:
        calling: how it is called.
        rhythms: how each module inside is called, where the model has its own time loop.
        reached: the neuron layers, in the order in which they were first called.
        readout: the layer whose membrane is decoded; None where the output itself is.
        widest: the most values that a layer takes of one sample at one timestep.
    """

    calling: Calling
    rhythms: Mapping[str, Rhythm]
    reached: tuple[str, ...]
    readout: str | None
    widest: int


def _telling(sample: Tensor) -> Tensor:
    """A sample that is not blank: nothing could be told of a model that stays at rest."""
    if sample.is_floating_point() and not bool(sample.any()):
        return torch.full_like(sample, 0.5)
    return sample


class _Misfit(Exception):
    """The candidate way of calling is not the model's; the message says why."""


def look(
    net: nn.Module,
    watched: Sequence[Watched],
    adapters: Adapters,
    example: Tensor,
    n_timesteps: int,
    *,
    stepping: Stepping | None = None,
    time_axis: int | None = None,
    readout: str | None = None,
) -> Look:
    """Looks at `net`, fed with samples made of the first of `example`.

    Args:
        net: the model; it is left as it was found.
        watched: its modules.
        adapters: the adapters in force.
        example: what one timestep shows, ``[B, *features]``.
        n_timesteps: how many timesteps the model is to run, for one that insists on their number.
        stepping: how it is stepped, said by hand.
        time_axis: where a model with its own time loop has time, said by hand.
        readout: the layer whose membrane is decoded, said by hand.

    Raises:
        WrapError: if the ways of calling that were tried all fail, if the model cannot follow a
            presentation, or if its readout is ambiguous.
    """
    root = next((item.layer for item in watched if item.name == ""), None)
    arguments = arguments_of(net, root)
    subject = _Subject(net, watched, _telling(example[:1]), arguments, readout)
    sizes = len(example), n_timesteps
    refusals: dict[str, str] = {}
    cause: Exception | None = None
    for way, attempt in _attempts(
        subject, stepping or _likely(net, watched, adapters), time_axis, *sizes
    ):
        try:
            with untouched(net):
                return attempt()
        except WrapError:
            raise
        except _Misfit as misfit:
            refusals[way] = str(misfit)
        except _MISFIT as error:
            refusals[way], cause = f"{type(error).__name__}: {error}", error
    tried = "\n".join(f"  as {name!r}: {reason}" for name, reason in refusals.items())
    raise WrapError(
        f"how {type(net).__name__} is run could not be told from a batch of shape "
        f"{list(example.shape)} per timestep. Tried:\n{tried}\nSay it by hand: "
        'wrap(net, stepping="step") for a model called once per timestep, '
        'stepping="sequence" (and time_axis=) for one with the time loop inside.'
    ) from cause


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is looked at: the model, one sample of one timestep, and what was said by hand."""

    net: nn.Module
    watched: Sequence[Watched]
    sample: Tensor
    arguments: Arguments
    readout: str | None

    def calling(self, stepping: Stepping, time_axis: int = 0) -> Calling:
        """The candidate: so stepped, with the states that its arguments are named for."""
        return Calling(
            stepping,
            time_axis,
            self.arguments.states,
            self.arguments.by_name,
            returns_state=stepping == "step" and isinstance(uncompiled(self.net), nn.RNNCellBase),
        )

    def inputs(self, *sizes: int) -> Tensor:
        """``[*sizes, *features]``: the samples along the last of these axes differ, if they can."""
        inputs = self.sample.expand(sizes[-1], *self.sample.shape[1:])
        if inputs.is_floating_point():
            # Smaller, never larger: a forward may read its input as probabilities.
            shades = torch.linspace(1, 0.5, sizes[-1]).to(inputs)
            inputs = inputs * shades.view(-1, *[1] * (inputs.ndim - 1))
        return inputs.expand(*sizes, *inputs.shape[1:])

    def run(self, calling: Calling, calls: Sequence[Tensor]) -> tuple[Any, dict[str, Seen]]:
        """The outputs of the last of successive calls, and what was seen in all of them.

        Raises:
            WrapError: if the model remembers something that a run cannot reset.
        """
        memory = Memory(self.net, self.watched)
        outputs, seen = self._run(calling, calls)
        written = memory.written(calls[0].shape[: 1 if calling.stepping == "step" else 2])
        if written and not same_values(seen, self._run(calling, calls)[1]):
            raise WrapError(
                f"{type(self.net).__name__} keeps state of its own from one call to the next, in "
                f"{', '.join(map(repr, written))}, which a run could not reset: it would leak into "
                "the next. Let forward take and return it: out, state = net(x, state)."
            )
        return outputs, seen

    def _run(self, calling: Calling, calls: Sequence[Tensor]) -> tuple[Any, dict[str, Seen]]:
        outputs, states = None, calling.initial_states
        with witnessed(self.net, self.watched) as seen:
            for inputs in calls:
                outputs, states = calling.split(calling.call(self.net, inputs, states))
        return outputs, seen


def _attempts(
    subject: _Subject,
    stepping: Stepping | None,
    time_axis: int | None,
    n_samples: int,
    n_timesteps: int,
) -> Iterator[tuple[str, Callable[[], Look]]]:
    """The ways of calling to try, the most telling first; both where `stepping` is not known."""
    axes = (0, 1) if time_axis is None else (time_axis,)
    if stepping != "step":
        yield "sequence", lambda: _look_at_sequence(subject, {a: sizes_to_try(a) for a in axes})
    if stepping != "sequence":
        yield "step", lambda: _look_at_steps(subject, _SAMPLES)
    if stepping != "step":
        # For a loop over a number of timesteps of its own. Of this length alone, a loop over one
        # static image could not be told from one over axis 1: that must be said by hand.
        yield (
            f"sequence of {n_timesteps} timesteps",
            lambda: _look_at_sequence(subject, {axes[0]: sizes_to_try(axes[0], n_timesteps)}),
        )
    # For a batch size of its own, ``x.view(batch_size, -1)``.
    if stepping != "step":
        yield (
            f"sequence, {n_samples} samples",
            lambda: _look_at_either(subject, {a: sizes_to_try(a, None, n_samples) for a in axes}),
        )
    if stepping != "sequence" and n_samples != _SAMPLES:
        yield f"step, {n_samples} samples", lambda: _look_at_steps(subject, n_samples)
    if stepping != "step" and n_samples != n_timesteps:
        sizes = sizes_to_try(axes[0], n_timesteps, n_samples)
        yield (
            f"sequence of {n_timesteps} timesteps, {n_samples} samples",
            lambda: _look_at_sequence(subject, {axes[0]: sizes}),
        )


def _likely(net: nn.Module, watched: Sequence[Watched], adapters: Adapters) -> Stepping | None:
    """How the types of its modules say that the model is stepped; None where they do not."""
    layers = [item.layer for item in watched if item.layer is not None]
    if any(layer.traits.sequence for layer in layers):
        return "sequence"
    if any(adapters.loops_children(item.module) for item in watched):
        return "sequence"
    if all(_only_passes_on(item, adapters) for item in watched):
        return "step"
    return None if any(layer.is_stateful for layer in layers) else "step"


def _only_passes_on(item: Watched, adapters: Adapters) -> bool:
    module = item.module
    return (
        item.layer is not None
        or not any(True for _ in module.children())
        or type(module).forward is nn.Sequential.forward
        or adapters.is_container(module)
    )


def _widest(seen: Mapping[str, Seen], n_shown: int) -> int:
    """The most values that a module took of each of `n_shown` samples at a timestep."""
    taken = [sum(math.prod(shape) for shape in item.shapes if shape) for item in seen.values()]
    return max(taken, default=0) // n_shown


# -- step ---------------------------------------------------------------------------------------


def _look_at_steps(subject: _Subject, n_samples: int) -> Look:
    net = subject.net
    calling = subject.calling("step")
    step = subject.inputs(n_samples)
    _, first = subject.run(calling, [step])
    _check_one_call_each(net, first)
    _check_no_sequence(net, first)
    outputs, seen = subject.run(calling, [step, step])
    _check_state_is_kept(seen, subject.arguments)
    yielded = {
        name: [value for value in item.calls[-1].yielded if value is not None]
        for name, item in seen.items()
    }
    chosen = choose_readout(
        net, seen, list(tensors_of(outputs)), yielded, (n_samples,), subject.readout
    )
    return Look(calling, {}, reached(seen), chosen, _widest(seen, 2 * n_samples))


def _check_one_call_each(net: nn.Module, seen: Mapping[str, Seen]) -> None:
    counts = {name: len(item.calls) for name, item in seen.items() if item.is_stateful}
    several = {name: count for name, count in counts.items() if count > 1}
    if not several:
        return
    n_steps = next(iter(several.values()))
    others = [item for item in seen.values() if not item.is_stateful and not _holds(item)]
    if set(counts.values()) == {n_steps} and (
        len(counts) > 1 or any(len(item.calls) == n_steps for item in others)
    ):
        raise WrapError(
            f"{type(net).__name__} called each of its neuron layers {n_steps} times in one call on "
            f"one static input: it seems to loop num_steps = {n_steps} over one image by itself, "
            "and so cannot follow a presentation in which the stimulus changes. Move the loop out "
            "(forward does one timestep), or let forward take [T, B, ...] and loop over axis 0. "
            "Its energy can be measured as it is: with EnergyMeter(net): net(images)."
        )
    names = ", ".join(
        f"{name!r} ({type(seen[name].watched.module).__name__}, {count} times)"
        for name, count in several.items()
    )
    raise WrapError(
        f"called more than once within one timestep: {names}. A neuron module keeps one state, so "
        "several streams would mix in it: give each use a module of its own. If it is a loop over "
        "timesteps, move it out, or let forward take [T, B, ...] and loop over axis 0."
    )


def _holds(item: Seen) -> bool:
    return any(True for _ in item.watched.module.children())


def _check_no_sequence(net: nn.Module, seen: Mapping[str, Seen]) -> None:
    """Refuses whole-sequence layers that would take the batch for timesteps."""
    for name, item in seen.items():
        layer = item.layer
        if layer is None or not layer.traits.sequence:
            continue
        if any(shape[layer.traits.time_axis :][:1] != (1,) for shape in item.shapes):
            raise WrapError(
                f"{type(net).__name__} cannot be stepped: given one timestep, its layer {name!r} "
                f"({type(item.watched.module).__name__}) runs a whole sequence and would take "
                f"axis {layer.traits.time_axis} of {list(item.calls[0].shape)} for time. Use "
                'stepping="sequence", or the layer\'s one-step form.'
            )


def _check_state_is_kept(seen: Mapping[str, Seen], arguments: Arguments) -> None:
    """Refuses one-step layers that start from no state in any call but their first."""
    dropped = [
        f"{name!r} ({type(item.watched.module).__name__})"
        for name, item in seen.items()
        if item.is_step_neuron and item.forgets
    ]
    if dropped:
        others = ", ".join(map(repr, arguments.others))
        raise WrapError(
            f"the state of {', '.join(dropped)} is dropped at every timestep: the layer leaves a "
            "state, and the model calls it again without, or with zeros. Use its library's "
            "container that passes states on, or let forward take and return the state: "
            "out, state = net(x, state). (An argument is known for a state by its name, such as "
            f"state, hidden, mem1 or h, and by its default, None{_left(others)}.)"
        )


def _left(others: str) -> str:
    return f"; forward's {others} looks like none and is left at its default" if others else ""


# -- sequence -----------------------------------------------------------------------------------


def _look_at_either(subject: _Subject, tried: Mapping[int, tuple[Size, ...]]) -> Look:
    """Looks at each time axis alone: a model may fail on the other."""
    looks: list[Look] = []
    failures: list[Exception] = []
    for axis, sizes in tried.items():
        try:
            looks.append(_look_at_sequence(subject, {axis: sizes}))
        except (_Misfit, *_MISFIT) as error:
            failures.append(error)
    if not looks:
        raise failures[0]
    if len(looks) > 1:
        raise WrapError(_ambiguous(subject.net))
    return looks[0]


def _ambiguous(net: nn.Module) -> str:
    return (
        f"{type(net).__name__} runs on [T, B, ...] and on [B, T, ...] alike; say which with "
        "wrap(net, time_axis=0) or wrap(net, time_axis=1)."
    )


def _look_at_sequence(subject: _Subject, tried: Mapping[int, tuple[Size, ...]]) -> Look:
    runs: dict[tuple[int, int], tuple[Any, dict[str, Seen]]] = {}
    calling = subject.calling("sequence")
    for size in dict.fromkeys(size.axes for sizes in tried.values() for size in sizes):
        runs[size] = subject.run(calling, [subject.inputs(*size)])
    fitting = [
        axis
        for axis, sizes in tried.items()
        if all(fits(runs[size.axes][1], size) for size in sizes)
    ]
    if not fitting:
        (n_0, n_1), (_, seen) = next(iter(runs.items()))
        raise _Misfit(
            f"given [{n_0}, {n_1}, ...], its neurons were not called once at each timestep: "
            f"{_called(seen)}"
        )
    if len(fitting) > 1:
        raise WrapError(_ambiguous(subject.net))
    axis = fitting[0]
    sizes = tried[axis]
    outputs, seen = runs[sizes[0].axes]
    _check_state_is_kept(seen, subject.arguments)
    rhythms = find_rhythms([(runs[size.axes][1], size) for size in sizes])
    n_steps = sizes[0].n_steps
    yielded = {name: over_time(item, rhythms[name], n_steps) for name, item in seen.items()}
    tensors = [
        tensor.transpose(0, 1) if axis == 1 and tensor.ndim > 1 else tensor
        for tensor in tensors_of(outputs)
    ]
    leading = (n_steps, sizes[0].n_samples)
    chosen = choose_readout(subject.net, seen, tensors, yielded, leading, subject.readout)
    widest = _widest(seen, n_steps * sizes[0].n_samples)
    return Look(subject.calling("sequence", axis), rhythms, reached(seen), chosen, widest)


def _called(seen: Mapping[str, Seen]) -> str:
    return (
        ", ".join(
            f"{name!r} {len(item.calls)} times with {list(item.calls[0].shape)}"
            for name, item in seen.items()
            if item.is_stateful
        )
        or "no neuron layer was called"
    )
