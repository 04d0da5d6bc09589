"""Observations: what a layer did, at which timesteps of which run.

One mechanism serves everything that listens to a network. An `Attachment` puts forward hooks on a
module's layers; each call of a layer becomes one `Observation`, in time-first layout whatever its
library's; a `Listener` (a loss, a meter, a recorder) receives observations and never a library's
tuple. In a user's own loop the timesteps are counted from the calls; a `RunHost` (the wrapped
model) says where a run begins, what timestep it is, and where the run ends. An engine that does not
call the modules finds the same hooks on them and delivers the same observations.

Hooks refer to their attachment weakly and are given back by `Attachment.close`, when the attachment
is garbage-collected, and never travel with a deep copy or a pickle of the model.

One mechanism read top to bottom, from a rhythm to an attachment; hence one long file.
"""

from __future__ import annotations

import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dynvision_snn.adapters import Adapters, Call, Layer, Reading
from dynvision_snn.adapters.base import tensors_of
from dynvision_snn.errors import ObservationError
from dynvision_snn.freed_memory import keep_freed_memory
from dynvision_snn.timing import format_steps, format_timestep


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How a module inside a model with its own time loop is called during one run.

    Attributes:
        form: ``"step"``: `calls` times at every timestep, with ``[B, ...]``; ``"whole"``: with all
            timesteps at once, time on `time_axis`; ``"merged"``: with all timesteps at once, time
            and batch merged into axis 0; ``"unclear"``: none of these could be told, and its
            observations carry no values.
        calls: calls per timestep, or per run where the form is not ``"step"``.
        time_axis: where time is, in the form ``"whole"``; in the form ``"merged"``, 0 where time
            changes slowest, 1 where the batch does.
    """

    form: Literal["step", "whole", "merged", "unclear"] = "step"
    calls: int = 1
    time_axis: int = 0

    def time_first(self, value: Tensor, n_timesteps: int | None = None) -> Tensor:
        """`value` as ``[T, B, ...]``, a view."""
        if self.form == "step":
            return value.unsqueeze(0)
        if self.form == "merged":
            assert n_timesteps is not None
            sizes = (n_timesteps, -1) if self.time_axis == 0 else (-1, n_timesteps)
            value = value.unflatten(0, sizes)
        return value if self.time_axis == 0 else value.transpose(0, self.time_axis)


STEP = Rhythm()


@dataclass(slots=True)
class Clock:
    """The timestep that a stepped run is at."""

    t: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Run:
    """One sequence of one batch, from reset state (or from where another run stopped).

    Attributes:
        n_timesteps: T; None in a user's own loop, where nobody knows it beforehand.
        idle_steps: null-input timesteps before timestep 0; they are counted ``-idle_steps .. -1``.
        phases: `Phase` code of every timestep, int8 ``[T]``, or ``[T, B]`` where each sample has
            its own, on the CPU; None where unknown.
        active: where samples are of different lengths, which timesteps are no padding: bool
            ``[T, B]``, on the device of the inputs; None where none is.
        lengths: then also, how many timesteps of each sample are no padding in the whole call of
            which this may be a chunk: ``[B]``.
        dt: length of a timestep in ms; None where unknown.
        start: timesteps of the earlier runs that it goes on from; its own begin at 0 all the same.
        origin: the same object in all runs that go on from each other.
        with_grad: whether autograd records it, idle time apart; None where unknown.
        clock: the current timestep, where the run is stepped from outside.
        rhythms: how each module is called, where the model has its own time loop.
    """

    n_timesteps: int | None = None
    idle_steps: int = 0
    phases: Tensor | None = None
    active: Tensor | None = None
    lengths: Tensor | None = None
    dt: float | None = None
    start: int = 0
    origin: object = None
    with_grad: bool | None = None
    clock: Clock | None = None
    rhythms: Mapping[str, Rhythm] = field(default_factory=dict)

    @property
    def total_steps(self) -> int | None:
        """Idle timesteps included."""
        return None if self.n_timesteps is None else self.n_timesteps + self.idle_steps


class Observation(NamedTuple):
    """One call of a layer, or a part of it, in time-first layout.

    Attributes:
        name: the layer's dotted name in the user's own model.
        module: the module that was called.
        layer: what the adapters know of it; None for a module that is no neuron layer.
        run, t0, t1: timesteps ``t0:t1`` of which run; negative ones are idle.
        inputs: ``[t1 - t0, B, *features]``, or None where the input is no tensor, and where nobody
            asks for it (`Listener.hears_inputs`).
        output: ``[t1 - t0, B, *units]``: spikes of a spiking layer; None where it is no tensor.
        membrane: ``[t1 - t0, B, *units]``, or None where this call does not show it.
        state: further state variables of a neuron layer, same layout.
        presynaptic: what each of the layer's inner synapses received, same layout; None stands for
            silence. Only where the listener `hears_synapses`.
        recomputed: whether activation checkpointing ran the layer again during backward. A listener
            must then do what it did the first time and drop the result.
        activity: ``sum |output|`` of each sample over these timesteps and all units, ``[B]``, where
            what made the output summed it, too, and takes its gradient without a tensor of the
            output's size. Only where the listener `hears_activity`. Who replaces the output
            replaces it, too.
    """

    name: str
    module: nn.Module
    layer: Layer | None
    run: Run
    t0: int
    t1: int
    inputs: Tensor | None
    output: Tensor | None
    membrane: Tensor | None = None
    state: Mapping[str, Tensor] = MappingProxyType({})
    presynaptic: tuple[Tensor | None, ...] = ()
    recomputed: bool = False
    activity: Tensor | None = None

    @property
    def active(self) -> Tensor | None:
        """Which of its timesteps and samples are no padding: bool ``[t1 - t0, B]``; None if all."""
        if self.run.active is None or self.t0 < 0:
            return None
        return self.run.active[self.t0 : self.t1]

    @property
    def n_active(self) -> int | Tensor:
        """How many of its timesteps are no padding; of each sample, ``[B]``, where some are."""
        active = self.active
        return self.t1 - self.t0 if active is None else active.sum(0)

    def without_padding(self, values: Tensor) -> Tensor:
        """``[t1 - t0, B, ...]`` with zeros, which count as nothing, where a sample has ended."""
        active = self.active
        if active is None:
            return values
        padding = ~active.to(values.device, non_blocking=True)
        return values.masked_fill(padding.reshape(*padding.shape, *(1,) * (values.ndim - 2)), 0)

    def part(self, start: int, stop: int) -> Observation:
        """The timesteps ``start:stop`` of this observation (absolute timesteps of the run)."""
        cut = slice(start - self.t0, stop - self.t0)

        def cut_out(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[cut]

        return Observation(
            self.name,
            self.module,
            self.layer,
            self.run,
            start,
            stop,
            cut_out(self.inputs),
            cut_out(self.output),
            cut_out(self.membrane),
            {name: value[cut] for name, value in self.state.items()},
            tuple(cut_out(value) for value in self.presynaptic),
            self.recomputed,
        )


class Listener(ABC):
    """Whoever wants to know what a network does.

    Attributes:
        hears_idle: whether idle timesteps of a `RunHost`'s run are delivered too.
        hears_synapses: whether observations carry what the inner synapses received.
        hears_membranes: whether it reads membranes and further state. They are left out where it
            does not, and an engine need not keep them at every timestep where nobody does.
        hears_inputs: whether it reads inputs; an engine need not lay them out where it does not.
        hears_activity: whether it makes use of `Observation.activity`.
    """

    hears_idle: ClassVar[bool] = False
    hears_synapses: ClassVar[bool] = False
    hears_membranes: ClassVar[bool] = True
    hears_inputs: ClassVar[bool] = True

    @property
    def hears_activity(self) -> bool:
        """See above."""
        return False

    @abstractmethod
    def observe(self, observation: Observation) -> None:
        """Receives one observation."""

    def begin_run(self, run: Run) -> None:
        """A run begins: nothing was observed of it yet."""

    def end_run(self, run: Run) -> None:
        """A run has ended; every layer reached was observed at each of its timesteps."""

    def abandon_run(self, run: Run) -> None:
        """A run has failed half way: what was observed of it must not count."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A module to put a hook on, with its layer where it is a neuron layer."""

    name: str
    module: nn.Module
    layer: Layer | None


# Held as long as somebody else holds them, in the order in which they came: in another, gradients
# would be summed in another, and the same training would not be the same to the last bit.
_Attached = weakref.WeakKeyDictionary["Attachment", None]


class RunHost(nn.Module):
    """A module that knows where runs begin and end, and says so to those attached to it."""

    adapters: Adapters

    def __init__(self) -> None:
        super().__init__()
        self._attachments = _Attached()

    def hosted(self) -> nn.Module:
        """The module that is run; names of layers are relative to it."""
        raise NotImplementedError

    def attached(self) -> list[Attachment]:
        """Those who listen now."""
        return [attachment for attachment in self._attachments if not attachment.closed]

    def __getstate__(self) -> dict[str, Any]:
        # A copy has no listeners: those of the original stay with the original.
        return {key: value for key, value in self.__dict__.items() if key != "_attachments"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._attachments = _Attached()

    @contextmanager
    def saying(self, run: Run, also: Iterable[Attachment] = ()) -> Iterator[None]:
        """Announces `run` to everyone attached, and how it ended."""
        attachments = [*self._attachments, *also]
        for attachment in attachments:
            attachment.begin_run(run)
        try:
            yield
        except BaseException:
            for attachment in attachments:
                attachment.abandon_run()
            raise
        with ExitStack() as stack:
            # One that cannot end its run must not keep the others in theirs.
            for attachment in reversed(attachments):
                stack.callback(attachment.end_run)


def _call(function: Callable[..., None], called: tuple[Any, ...]) -> None:
    function(*called)


def _as_is() -> Callable[..., None] | None:
    """Calls a function that a compiled model must not trace: its graph breaks there instead.

    None where the compiler was never imported: there is none, and importing it takes seconds.
    """
    if "torch._dynamo" not in sys.modules:
        return None
    disabled: Callable[..., None] = torch._dynamo.disable(_call)
    return disabled


class LayerHook:
    """The hook on one module. Deep copies and pickles of it are inert."""

    __slots__ = ("_as_is", "_attachment", "watched")

    def __init__(
        self, attachment: Attachment | None = None, watched: Watched | None = None
    ) -> None:
        self._attachment = None if attachment is None else weakref.ref(attachment)
        self.watched = watched
        self._as_is = _as_is()

    @property
    def attachment(self) -> Attachment | None:
        """The attachment that this hook reports to, if it is still there."""
        return None if self._attachment is None else self._attachment()

    def __call__(self, *called: Any) -> None:
        """Reports one call."""
        if self._as_is is None:
            self.report(*called)
        else:
            self._as_is(self.report, called)

    def report(self, *called: Any) -> None:
        """An inert hook reports nothing."""

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerHook:
        return LayerHook()

    def __reduce__(self) -> tuple[Any, ...]:
        return LayerHook, ()


class _BeforeHook(LayerHook):
    __slots__ = ()

    def report(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        attachment = self.attachment
        if attachment is not None and self.watched is not None:
            attachment.about_to_call(self.watched, args, kwargs)


class _AfterHook(LayerHook):
    __slots__ = ()

    def report(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        attachment = self.attachment
        if attachment is not None and self.watched is not None:
            attachment.called(self.watched, Call(args, kwargs, output))


def watchable(host: nn.Module, adapters: Adapters | None = None) -> list[Watched]:
    """Every module of `host` that a hook could watch, neuron layers and others, by name.

    Names are relative to `host`, or to the model inside a `RunHost` if `host` is or holds one; then
    only what is inside it is listed, since nothing else runs at its timesteps.

    Raises:
        AdapterError: for a neuron that is unknown or cannot be served.
        ObservationError: for a module that holds several `RunHost`s.
    """
    run_host = _run_host(host)
    if run_host is None:
        return _watched(host, adapters or Adapters())
    return _watched(run_host.hosted(), adapters or run_host.adapters)


def _run_host(host: nn.Module) -> RunHost | None:
    found = [(name, module) for name, module in host.named_modules() if isinstance(module, RunHost)]
    if len(found) > 1:
        raise ObservationError(
            f"{type(host).__name__} holds several models whose runs begin and end by themselves "
            f"({', '.join(repr(name) for name, _ in found)}): their timesteps are not one "
            "sequence. Observe each by itself."
        )
    return found[0][1] if found else None


def _watched(root: nn.Module, adapters: Adapters) -> list[Watched]:
    return [Watched(name, module, layer) for name, module, layer in adapters.walk(root)]


class Attachment:
    """The hooks of one listener on one module, and the timesteps they have counted.

    Args:
        host: the module that the listener was given; a `RunHost`, or a module that holds one, makes
            the attachment follow its runs.
        listener: who receives the observations; held weakly, since it owns the attachment.
        watched: the modules to put hooks on.
        sequence: in a bare loop, whether one call of a module that is no neuron layer holds the
            whole sequence, time first.
    """

    def __init__(
        self,
        host: nn.Module,
        listener: Listener,
        watched: Sequence[Watched],
        *,
        sequence: bool = False,
    ) -> None:
        # Glibc would give memory back, or not, by where the small blocks of what is heard lie.
        keep_freed_memory()
        self.watched = tuple(watched)
        self._listener = weakref.ref(listener)
        self._outside = Rhythm("whole") if sequence else STEP
        self._run = Run()
        self._ended = Run()
        self._counts: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._before: dict[str, tuple[Tensor | None, ...]] = {}
        run_host = _run_host(host)
        handles: list[RemovableHandle] = []
        for item in self.watched:
            if listener.hears_synapses and item.layer is not None and _has_synapses(item.layer):
                handles.append(
                    item.module.register_forward_pre_hook(_BeforeHook(self, item), with_kwargs=True)
                )
            handles.append(
                item.module.register_forward_hook(_AfterHook(self, item), with_kwargs=True)
            )
        if run_host is not None:
            run_host._attachments[self] = None
        self._give_back = weakref.finalize(self, _remove, handles)

    def close(self) -> None:
        """Gives every hook back; safe to call again."""
        self._give_back()

    @property
    def listener(self) -> Listener | None:
        """Who receives the observations, if it is still there."""
        return self._listener()

    @property
    def closed(self) -> bool:
        """Whether the hooks have been given back."""
        return not self._give_back.alive

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        # A copied listener listens to nothing until it is registered itself.
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    # -- runs -------------------------------------------------------------------------------------

    def begin_run(self, run: Run) -> None:
        """Starts counting timesteps anew, as part of `run`."""
        self._restart(run)
        listener = self._listener()
        if listener is not None and not self.closed:
            listener.begin_run(run)

    def end_run(self) -> None:
        """Checks that every layer reached was observed at every timestep, and says so.

        Raises:
            ObservationError: naming the layers that were not.
        """
        run, listener = self._run, self._listener()
        if listener is None or self.closed:
            self._restart(Run())
            return
        wrong = {
            item.name: self._counts[item.name]
            for item in self.watched
            if item.layer is not None
            and item.layer.is_stateful
            and self._counts.get(item.name, run.total_steps) != run.total_steps
        }
        if wrong:
            self.abandon_run()
            counts = ", ".join(f"{name}: {count}" for name, count in wrong.items())
            raise ObservationError(
                "these layers were not called once at each of the run's "
                f"{format_steps(run.total_steps or 0, run.dt)}, idle ones included: {counts}. A "
                "layer with state must be called once "
                "per timestep; give each use of it a module of its own."
            )
        self._restart(Run())
        listener.end_run(run)

    def abandon_run(self) -> None:
        """Forgets what was counted of the current run."""
        run, listener = self._run, self._listener()
        self._restart(Run())
        if listener is not None and not self.closed:
            listener.abandon_run(run)

    def _restart(self, run: Run) -> None:
        self._ended, self._run = self._run, run
        self._counts.clear()
        self._last.clear()
        self._before.clear()

    # -- calls ------------------------------------------------------------------------------------

    def about_to_call(
        self, watched: Watched, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Notes what the layer's inner synapses are about to receive."""
        assert watched.layer is not None
        self._before[watched.name] = watched.layer.adapter.presynaptic(watched.module, args, kwargs)

    def called(self, watched: Watched, call: Call) -> None:
        """Turns one call of a module into one observation and delivers it."""
        listener = self._listener()
        if listener is None:
            return
        self.deliver(self._observed(watched, call, listener))

    def tell(self, observation: Observation) -> None:
        """Delivers what an engine observed without a call that a hook would have heard."""
        name = observation.name
        if not observation.recomputed:
            self._counts[name] = self._counts.get(name, 0) + observation.t1 - observation.t0
            self._last[name] = observation.t1 - 1
        self.deliver(observation)

    def deliver(self, observation: Observation) -> None:
        """Hands an observation to the listener, without its idle timesteps where unwanted."""
        listener = self._listener()
        if listener is None:
            return
        if observation.t0 >= 0:
            listener.observe(observation)
        elif observation.t1 > 0:
            self.deliver(observation.part(observation.t0, 0))
            self.deliver(observation.part(0, observation.t1))
        elif listener.hears_idle:
            listener.observe(observation)

    def _observed(self, watched: Watched, call: Call, listener: Listener) -> Observation:
        layer, membranes = watched.layer, listener.hears_membranes
        # Checkpointing recomputes a layer during backward, when its run has ended.
        recomputed = is_recomputing()
        run = self._ended if recomputed and self._run.n_timesteps is None else self._run
        before = self._before.pop(watched.name, ()) if self._before else ()
        rhythm, total = self._rhythm(watched, run), run.total_steps
        reading = _reading(watched, call, whole=membranes or bool(before))
        if layer is not None and before:
            before = layer.adapter.presynaptic_sequence(watched.module, before, call, reading)
            before = tuple(_arranged(value, rhythm, total) for value in before)
        output = _arranged(reading.output, rhythm, total)
        n_steps = 1 if output is None else output.shape[0]
        t0 = self._timestep(watched, rhythm, n_steps, recomputed)
        observed = Observation(
            watched.name,
            watched.module,
            layer,
            run,
            t0,
            t0 + n_steps,
            _arranged(call.inputs, rhythm, total) if listener.hears_inputs else None,
            output,
            presynaptic=before,
            recomputed=recomputed,
        )
        if not membranes:
            return observed
        return observed._replace(
            membrane=_arranged(reading.membrane, rhythm, total),
            state={name: rhythm.time_first(value, total) for name, value in reading.state.items()},
        )

    def _rhythm(self, watched: Watched, run: Run) -> Rhythm:
        if watched.layer is not None and watched.layer.traits.sequence:
            return Rhythm("whole", time_axis=watched.layer.traits.time_axis)
        if run.n_timesteps is not None:
            return run.rhythms.get(watched.name, STEP)
        return STEP if watched.layer is not None else self._outside

    def _timestep(self, watched: Watched, rhythm: Rhythm, n_steps: int, recomputed: bool) -> int:
        count = self._counts.get(watched.name, 0)
        calls = rhythm.calls if rhythm.form == "step" else 1
        if recomputed:
            return max(0, count // calls - n_steps)
        clock = self._run.clock
        if clock is not None:
            stateful = watched.layer is not None and watched.layer.is_stateful
            if stateful and self._last.get(watched.name) == clock.t:
                raise ObservationError(
                    f"layer {watched.name!r} ({type(watched.module).__name__}) was called twice "
                    f"within {format_timestep(clock.t, self._run.dt)}. It keeps one state, so "
                    "two streams would mix in it: give each use a module of its own."
                )
            self._counts[watched.name] = count + (self._last.get(watched.name) != clock.t)
            self._last[watched.name] = clock.t
            return clock.t
        self._counts[watched.name] = count + n_steps
        if rhythm.form != "step" and self._run.total_steps is not None:
            return -self._run.idle_steps  # each call holds the whole run
        return count // calls - self._run.idle_steps


def is_recomputing() -> bool:
    """Whether a backward is under way, and what runs is a checkpoint's second forward."""
    return torch._C._current_graph_task_id() != -1


def _reading(watched: Watched, call: Call, *, whole: bool) -> Reading:
    """What a call yielded: all that its layer shows, or the output alone."""
    layer, output = watched.layer, call.output
    if layer is None:
        if not isinstance(output, Tensor):
            output = next(tensors_of(output), None)
        return Reading(output)
    if whole:
        return layer.adapter.read(watched.module, call)
    return Reading(layer.adapter.output(watched.module, call))


def _arranged(value: Any, rhythm: Rhythm, n_timesteps: int | None) -> Tensor | None:
    """`value` time-first; None where it is no tensor, or where its layout is unclear."""
    if not isinstance(value, Tensor) or value.ndim == 0 or rhythm.form == "unclear":
        return None
    return rhythm.time_first(value, n_timesteps)


def _has_synapses(layer: Layer) -> bool:
    return bool(layer.adapter.synapses(layer.module))


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
