"""Wrapping: a model of snnTorch, Norse or torch that runs in biological time.

`wrap` finds the spiking and recurrent layers of a model that is not rewritten, and gives back a
`TimedModel`: called with images and a `Presentation`, it resets the state, runs the idle time,
shows the presentation timestep by timestep, and returns a `Recording` of the readout's membrane.
Whoever is attached to it (an energy loss, a meter) is told where each run begins and ends.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Adapter, Adapters, Layer, Role
from dynvision_snn.engine.calling import Stepping
from dynvision_snn.engine.choosing import Engine, EngineName
from dynvision_snn.engine.looking import Look, look
from dynvision_snn.engine.plan import LayerPlan
from dynvision_snn.engine.step import copied, first_tensor, run_idle, run_sequence, run_steps
from dynvision_snn.engine.witness import left_as_found
from dynvision_snn.errors import AdapterWarning, TimingError, WrapError, known_names
from dynvision_snn.observation import Attachment, Clock, Run, RunHost, Watched, watchable
from dynvision_snn.presentation import Presentation
from dynvision_snn.recording import LayerRecording, Recorder, Recording, RunState
from dynvision_snn.timing import check_dt, common_dt, format_ms, nearest_steps


def wrap(
    net: nn.Module,
    dt: float,
    *,
    readout: str | None = None,
    stepping: Stepping | None = None,
    time_axis: int | None = None,
    adapters: Iterable[Adapter] = (),
    set_dt: bool = False,
    engine: EngineName = "auto",
) -> TimedModel:
    """A model that runs in biological time; `net` itself is not rewritten.

    Args:
        net: a model with spiking or recurrent layers (snnTorch, Norse, torch), one-step or
            whole-sequence.
        dt: length of a timestep in ms.
        readout: dotted name of the layer whose membrane is decoded. By default the last spiking or
            integrating layer reached, if the model's output is that layer's spikes or membrane;
            else the output itself.
        stepping: ``"step"`` for a model called once per timestep, ``"sequence"`` for one with the
            time loop inside. By default found out by looking, once, at the first run.
        time_axis: where a ``"sequence"`` model has time: 0 for ``[T, B, ...]``, 1 for
            ``[B, T, ...]``. By default found out by looking.
        adapters: adapters for further libraries.
        set_dt: set the timestep of modules that have one of their own (Norse, in seconds) to `dt`.
        engine: ``"step"`` runs the model as its library would, bit for bit; ``"layer"`` runs layer
            by layer what can be, within a stated tolerance (a spike may flip whose membrane was at
            the threshold), and refuses the rest; ``"auto"`` does so where it can.
            `TimedModel.explain` says which part runs how.

    Raises:
        WrapError: if `net` has no layer to observe, or is wrapped already.
        AdapterError: for a neuron that is unknown or cannot be served.
        TimingError: if a module's own timestep is not `dt`.

    Warns:
        AdapterWarning: for a layer whose library computes something unexpected.

    >>> import torch, dynvision_snn as dvs
    >>> gru = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> model = dvs.wrap(gru, dt=2.0)
    >>> model(torch.ones(5, 4), dvs.Presentation("0110", dt=2.0)).membrane.shape
    torch.Size([4, 5, 3])
    """
    return TimedModel(
        net,
        dt,
        readout=readout,
        stepping=stepping,
        time_axis=time_axis,
        adapters=adapters,
        set_dt=set_dt,
        engine=engine,
    )


class TimedModel(RunHost):
    """A wrapped model; see `wrap`.

    Attributes:
        net: the model as it was given.
        dt: length of a timestep in ms.
        adapters: the adapters in force.
    """

    def __init__(
        self,
        net: nn.Module,
        dt: float,
        *,
        readout: str | None = None,
        stepping: Stepping | None = None,
        time_axis: int | None = None,
        adapters: Iterable[Adapter] = (),
        set_dt: bool = False,
        engine: EngineName = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise WrapError(f"wrap takes an nn.Module; received a {type(net).__name__}.")
        if any(isinstance(module, RunHost) for module in net.modules()):
            raise WrapError(
                "this model is, or holds, a TimedModel already. Wrap the bare model, and use "
                "model.net where a TimedModel is to become part of another."
            )
        if stepping not in (None, "step", "sequence"):
            raise WrapError(
                f"stepping={stepping!r}. {known_names(str(stepping), ['step', 'sequence'])}"
            )
        if time_axis not in (None, 0, 1):
            raise WrapError(
                f"time_axis={time_axis!r}; expected 0 ([T, B, ...]) or 1 ([B, T, ...])."
            )
        self.net = net
        self.dt = check_dt(dt)
        self.adapters = Adapters(adapters)
        self._by_hand = (stepping, time_axis, readout)
        self._look: Look | None = None
        self._engine = Engine(engine)
        layers = self.layers()
        _check_something_to_observe(net, layers)
        _agree_on_dt(layers, self.dt, set_dt)
        for layer in layers:
            for caveat in layer.traits.caveats:
                warnings.warn(
                    f"layer {layer.name!r} ({type(layer.module).__name__}): {caveat}",
                    AdapterWarning,
                    stacklevel=3,
                )
        known = [layer.name for layer in layers]
        if readout is not None and readout not in known:
            raise WrapError(
                f"readout={readout!r} names no neuron layer. {known_names(readout, known)}"
            )

    def hosted(self) -> nn.Module:
        """The model inside; names of layers are relative to it."""
        return self.net

    def layers(self) -> list[Layer]:
        """The neuron layers of the model."""
        return self.adapters.layers(self.net)

    def manner(self) -> tuple[str | None, str | None]:
        """How it is called and what is decoded, in words; None for what its first run will tell."""
        stepping, time_axis, readout = self._by_hand
        if self._look is not None:
            calling = self._look.calling
            stepping, time_axis = calling.stepping, calling.time_axis
            readout = self._look.readout or "the model's output"
        if stepping == "step":
            return "called once per timestep", readout
        if stepping is None:
            return None, readout
        axes = "[B, T, ...]" if time_axis == 1 else "[T, B, ...]"
        return f"called once per run, with {axes}", readout

    def explain(self) -> str:
        """Which part of the model runs how, and why a part does not run faster; after a run."""
        return self._engine.explain()

    def extra_repr(self) -> str:
        """What `repr` shows beside the model inside."""
        return f"dt={self.dt:g} ms"

    def forward(
        self,
        inputs: Tensor,
        presentation: Presentation | None = None,
        *,
        record: Sequence[str] = (),
        state: RunState | None = None,
    ) -> Recording:
        """One run: reset, idle time, then every timestep of the presentation.

        Args:
            inputs: what is shown: images ``[B, *features]`` (``[K, B, *features]`` of K stimuli)
                with a presentation, the inputs of every timestep ``[T, B, *features]`` without.
            presentation: the schedule.
            record: names of layers whose spikes, membrane and state are wanted.
            state: ``run.state`` of an earlier run to go on from. A run that goes on is not reset
                and has no idle time: that belongs before the first.

        Returns:
            The recording; ``membrane`` is ``[T, B, classes]``.

        Raises:
            TimingError: if the presentation's dt is not the model's.
            PresentationError: if the inputs do not fit the presentation, or are empty.
            WrapError: if the model cannot run so; the message says why and what to do.
            ObservationError: if a neuron layer is not called exactly once per timestep.
        """
        shown = _shown(self, inputs, presentation, continued=state is not None)
        return self._run_shown(shown, record, state)

    def chunks(
        self,
        inputs: Tensor,
        presentation: Presentation | None = None,
        *,
        every: float,
        record: Sequence[str] = (),
        state: RunState | None = None,
    ) -> Iterator[Recording]:
        """One run in pieces that continue each other's state, detached between them.

        A loop can take a loss of each piece and back-propagate before the next one runs (truncated
        back-propagation through time), or stream a run of any length in constant memory. Losses
        that are told the targets of the whole run share its denominators, so that they add up to
        the loss of the run::

            targets = presentation.targets(labels)
            for chunk in model.chunks(images, presentation, every=50.0):
                criterion(chunk.membrane, targets[chunk.steps], whole=targets).backward()

        Args:
            inputs: as in `forward`.
            presentation: as in `forward`.
            every: length of a piece in ms, rounded to the nearest timestep; the last may be
                shorter.
            record: as in `forward`.
            state: as in `forward`.

        Yields:
            a recording of each piece. Do not keep them all where memory matters.

        Raises:
            TimingError: if a piece would be shorter than a timestep; else as `forward`.
        """
        n_steps = nearest_steps(every, self.dt, "every")
        if n_steps < 1:
            raise TimingError(
                f"every is {format_ms(every)}, shorter than a timestep of {format_ms(self.dt)}. "
                "Expected at least one timestep."
            )
        shown = _shown(self, inputs, presentation, continued=state is not None)
        return self._chunks(shown, n_steps, record, state)

    def _chunks(
        self, shown: _Shown, n_steps: int, record: Sequence[str], state: RunState | None
    ) -> Iterator[Recording]:
        for piece in shown.pieces(n_steps):
            recording = self._run_shown(piece, record, state)
            state = recording.state.detach()
            yield recording
            # Only the state goes on: what the piece recorded is the caller's to keep.
            del recording

    def _run_shown(self, shown: _Shown, record: Sequence[str], state: RunState | None) -> Recording:
        watched = watchable(self)
        if self._look is None:
            self._look = self._look_once(watched, shown)
        seen = self._look
        layers = {item.name: item.layer for item in watched if item.layer is not None}
        if state is not None:
            _check_goes_on(state, layers, shown.example.shape[0])
        start = 0 if state is None else state.timestep
        plan = self._engine.planned(self, seen.calling, shown.example)
        kept = _kept_layers(layers, seen.readout, record)
        run = Run(
            n_timesteps=shown.n_timesteps,
            idle_steps=shown.idle_steps,
            phases=shown.phases,
            dt=self.dt,
            start=start,
            with_grad=torch.is_grad_enabled(),
            clock=Clock() if seen.calling.stepping == "step" else None,
            rhythms=seen.rhythms,
        )
        recorder = Recorder()
        with ExitStack() as stack:
            attachment = Attachment(self, recorder, [w for w in watched if w.name in kept])
            stack.callback(attachment.close)
            for layer in kept.values():
                stack.enter_context(layer.adapter.recording(layer.module))
            stack.enter_context(_isolated(list(layers.values()), state))
            stack.enter_context(self.saying(run))
            output, passed = self._run(shown, run, seen, state, plan)
            after = RunState(
                passed,
                {name: layer.adapter.state(layer.module) for name, layer in layers.items()},
                shown.example.shape[0],
                start + shown.n_timesteps,
            )
        recordings = {name: recorder.recording(layer) for name, layer in kept.items()}
        return _recording(self, seen, output, recordings, record, after, shown)

    def _look_once(self, watched: Sequence[Watched], shown: _Shown) -> Look:
        stepping, time_axis, readout = self._by_hand
        with torch.inference_mode(False):
            return look(
                self.net,
                watched,
                self.adapters,
                shown.example,
                shown.n_timesteps + shown.idle_steps,
                stepping=stepping,
                time_axis=time_axis,
                readout=readout,
            )

    def _run(
        self,
        shown: _Shown,
        run: Run,
        seen: Look,
        state: RunState | None,
        plan: LayerPlan | None,
    ) -> tuple[Tensor | None, tuple[Any, ...]]:
        """The output over time where it is what is decoded, and the states that are passed."""
        calling = seen.calling
        if state is not None and calling.stepping == "sequence" and not calling.states:
            raise WrapError(
                f"{type(self.net).__name__} has its own time loop and takes no state, so a run "
                "cannot go on from another's. Let its forward take and return the state: "
                "out, state = net(x, state)."
            )
        passed = calling.initial_states if state is None else copied(state.passed)
        wanted = seen.readout is None
        ran = None if plan is None else self._engine.run(plan, self, calling, shown, run, passed)
        if ran is not None:
            outputs, passed = ran
            return (outputs if wanted else None), passed
        if calling.stepping == "sequence":
            outputs, passed = run_sequence(self.net, calling, shown.whole(), passed)
            if not wanted:
                return None, passed
            output = first_tensor(outputs)
            output = output.transpose(0, 1) if calling.time_axis == 1 else output
            return output[shown.idle_steps :], passed
        assert run.clock is not None
        if shown.null is not None:
            passed = run_idle(self.net, calling, shown.null, shown.idle_steps, passed, run.clock)
        steps, passed = run_steps(
            self.net, calling, shown.steps, passed, run.clock, keep_outputs=wanted
        )
        return (torch.stack(steps) if wanted else None), passed


@dataclass(frozen=True, eq=False, slots=True)
class _Shown:
    """What a run shows: one input per timestep, after idle null input.

    Attributes:
        n_timesteps, idle_steps: T, and the timesteps before it.
        example: the input of one timestep, ``[B, *features]``.
        steps: the inputs of the T timesteps; a sequence holds one object for one stimulus.
        null: the input of the idle timesteps; None where there are none.
        phases: `Phase` code of the T timesteps; None where unknown.
        start: how many timesteps of the same call came before.
    """

    n_timesteps: int
    idle_steps: int
    example: Tensor
    steps: Tensor | Sequence[Tensor]
    null: Tensor | None = None
    phases: Tensor | None = None
    start: int = 0

    def pieces(self, n_steps: int) -> Iterator[_Shown]:
        """The same in pieces of at most `n_steps`, idle time before the first."""
        for start in range(0, self.n_timesteps, n_steps):
            stop = min(start + n_steps, self.n_timesteps)
            yield replace(
                self,
                n_timesteps=stop - start,
                idle_steps=0 if start else self.idle_steps,
                steps=self.steps[start:stop],
                null=None if start else self.null,
                phases=None if self.phases is None else self.phases[start:stop],
                start=start,
            )

    def whole(self) -> Tensor:
        """All of it as one ``[idle + T, B, *features]``."""
        idle = [] if self.null is None else [self.null] * self.idle_steps
        if not idle and isinstance(self.steps, Tensor):
            return self.steps
        return torch.stack([*idle, *self.steps])


def _shown(
    model: TimedModel, inputs: Tensor, presentation: Presentation | None, *, continued: bool
) -> _Shown:
    if not isinstance(inputs, Tensor):
        raise WrapError(f"a TimedModel takes a torch.Tensor; received a {type(inputs).__name__}.")
    if inputs.ndim < 2 or 0 in inputs.shape[:2]:
        expected = "[B, *features]" if presentation is not None else "[T, B, *features]"
        raise WrapError(
            f"the inputs have shape {list(inputs.shape)}; expected {expected} with at least one "
            "timestep, sample and feature."
        )
    if presentation is None:
        return _Shown(inputs.shape[0], 0, inputs[0], inputs)
    common_dt({"the model": model.dt, "the presentation": presentation.dt})
    idle_steps = 0 if continued else presentation.idle_steps
    null = presentation.null_input(inputs) if idle_steps else None
    example = inputs if presentation.n_stimuli <= 1 else inputs[0]
    steps = list(presentation.inputs_at(inputs))
    return _Shown(len(steps), idle_steps, example, steps, null, presentation.phase_codes)


@contextmanager
def _isolated(layers: Sequence[Layer], state: RunState | None) -> Iterator[None]:
    """Starts from reset state, or from `state`, and leaves the neuron layers as they were found.

    What lies inside a layer (its recurrent weights, an inner cell) is part of it.
    """
    with left_as_found(module for layer in layers for module in layer.module.modules()):
        for layer in layers:
            layer.adapter.reset(layer.module)
            if state is not None:
                layer.adapter.restore(layer.module, state.held[layer.name])
        yield


def _check_goes_on(state: RunState, layers: dict[str, Layer], batch_size: int) -> None:
    """Refuses a state that does not fit: a neuron would silently start from zero."""
    if not isinstance(state, RunState):
        raise WrapError(
            f"state is a {type(state).__name__}; expected the `state` of an earlier run: "
            "model(inputs, state=run.state)."
        )
    if state.held.keys() != layers.keys():
        raise WrapError(
            f"the state is of another model, with layers {', '.join(map(repr, state.held))}; this "
            f"one has {', '.join(map(repr, layers))}."
        )
    if state.batch_size != batch_size:
        raise WrapError(
            f"the state is of a batch of {state.batch_size}, the inputs are one of {batch_size}. "
            "A run goes on with the same samples; leave state out to start from reset state."
        )


def _kept_layers(
    layers: dict[str, Layer], readout: str | None, record: Sequence[str]
) -> dict[str, Layer]:
    if isinstance(record, str):
        raise WrapError(f"record={record!r}; expected a list of names: record=[{record!r}].")
    for name in record:
        if name not in layers:
            raise WrapError(f"record names no neuron layer {name!r}. {known_names(name, layers)}")
    wanted = {*record, *([] if readout is None else [readout])}
    return {name: layer for name, layer in layers.items() if name in wanted}


def _recording(
    model: TimedModel,
    seen: Look,
    output: Tensor | None,
    recordings: dict[str, LayerRecording | None],
    record: Sequence[str],
    state: RunState,
    shown: _Shown,
) -> Recording:
    layers = {}
    for name in record:
        layer = recordings[name]
        if layer is None:
            raise WrapError(f"layer {name!r} was not reached in this run; it cannot be recorded.")
        layers[name] = layer
    if seen.readout is None:
        assert output is not None
        recording = Recording(output, None, layers, state, model.dt, None, None, shown.start)
        return _checked(recording, shown.n_timesteps)
    readout = recordings[seen.readout]
    if readout is None:
        raise WrapError(f"the readout {seen.readout!r} was not reached in this run.")
    membrane = readout.output if readout.role is Role.RECURRENT else readout.membrane
    if membrane is None:
        raise WrapError(
            f"the readout {seen.readout!r} does not show its membrane. Name another layer with "
            "wrap(net, readout=...), or let the model return what is to be decoded."
        )
    recording = Recording(
        membrane,
        readout.spikes,
        layers,
        state,
        model.dt,
        seen.readout,
        readout.membrane_is,
        shown.start,
    )
    return _checked(recording, shown.n_timesteps)


def _checked(recording: Recording, n_timesteps: int) -> Recording:
    if recording.membrane.shape[0] != n_timesteps:
        raise WrapError(
            f"the model returned {recording.membrane.shape[0]} timesteps where {n_timesteps} were "
            "asked for: its own time loop does not follow the length of its input. Let it loop "
            "over x.shape[0]."
        )
    if recording.membrane.ndim != 3:
        raise WrapError(
            f"what is decoded has shape {list(recording.membrane.shape)}; expected "
            "[T, B, classes]. Flatten the readout's units, or name another layer with "
            "wrap(net, readout=...)."
        )
    return recording


def _check_something_to_observe(net: nn.Module, layers: Sequence[Layer]) -> None:
    if layers:
        return
    classes = sorted({type(module).__name__ for module in net.modules() if module is not net})
    raise WrapError(
        f"{type(net).__name__} has no layer that spikes, integrates, recurs or activates: "
        f"nothing to observe. Its modules: {', '.join(classes) or 'none'}. If one of them is a "
        "neuron, pass an adapter for it (adapters=[MyAdapter()]; see docs/adapters.md). If its "
        "neurons are functional calls, use the library's modules: a function has nothing to hook."
    )


def _agree_on_dt(layers: Sequence[Layer], dt: float, set_dt: bool) -> None:
    own = {layer: layer.traits.dt for layer in layers if layer.traits.dt is not None}
    if set_dt:
        for layer in own:
            layer.adapter.set_dt(layer.module, dt)
        return
    for layer, layer_dt in own.items():
        common_dt(
            {"wrap": dt, f"layer {layer.name!r}": layer_dt},
            way_out=f"pass dt={layer_dt:g}, or set_dt=True to set the layers' own timesteps",
        )
