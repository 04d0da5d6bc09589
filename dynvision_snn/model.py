"""Wrapping: a model of snnTorch, Norse or torch that runs in biological time.

`wrap` finds the spiking and recurrent layers of a model that is not rewritten, and gives back a
`TimedModel`: called with images and a `Presentation`, it resets the state, runs the idle time,
shows the presentation timestep by timestep, and returns a `Recording` of the readout's membrane.
Whoever is attached to it (an energy loss, a meter) is told where each run begins and ends.

The file is one class and the function that builds it; what they document makes it long.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Self, SupportsIndex

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Adapter, Adapters, Layer, Role, integration_problems
from dynvision_snn.adapters.finding import uncompiled
from dynvision_snn.engine.calling import Stepping
from dynvision_snn.engine.choosing import Engine, EngineName
from dynvision_snn.engine.looking import Look, look
from dynvision_snn.engine.pickling import check_picklable
from dynvision_snn.engine.plan import LayerPlan
from dynvision_snn.engine.precision import telling_dtypes
from dynvision_snn.engine.recomputing import run_recomputed
from dynvision_snn.engine.shown import Showing, Shown, shown
from dynvision_snn.engine.step import copied, first_tensor, run_idle, run_sequence, run_steps
from dynvision_snn.engine.witness import left_as_found
from dynvision_snn.errors import AdapterWarning, TimingError, TimingWarning, WrapError, known_names
from dynvision_snn.finite import FiniteCheck, check_inputs
from dynvision_snn.observation import Attachment, Clock, Run, RunHost, Watched, watchable
from dynvision_snn.presentation_batch import AnyPresentation
from dynvision_snn.recording import Decoding, Recorder, Recording, RunState
from dynvision_snn.spike_bits import KeepSpikes, check_keep_spikes, keeping
from dynvision_snn.timing import check_dt, common_dt, format_ms, nearest_steps


def wrap(
    net: nn.Module,
    dt: float,
    *,
    readout: str | None = None,
    stepping: Stepping | None = None,
    time_axis: int | None = None,
    n_classes: int | None = None,
    adapters: Iterable[Adapter] = (),
    set_dt: bool = False,
    check_finite: bool = False,
    engine: EngineName = "auto",
    recompute_every: float | None = None,
    keep_spikes: KeepSpikes = "floats",
    keep_membranes: bool = True,
) -> TimedModel:
    """A model that runs in biological time; `net` itself is not rewritten.

    Args:
        net: a model with spiking or recurrent layers (snnTorch, Norse, torch), one-step or
            whole-sequence.
        dt: length of a timestep in ms.
        readout: dotted name of the layer whose membrane is decoded; ``""``, the name that torch
            gives the model itself, for its output. By default the last spiking or integrating layer
            reached, if the model's output is that layer's spikes or membrane; else the output
            itself.
        stepping: ``"step"`` for a model called once per timestep, ``"sequence"`` for one with the
            time loop inside. By default found out by looking, once, at the first run.
        time_axis: where a ``"sequence"`` model has time: 0 for ``[T, B, ...]``, 1 for
            ``[B, T, ...]``. By default found out by looking.
        n_classes: of a readout in which several neurons stand for each class (a population code),
            the number of classes. Its neurons are taken in equal groups, class after class, as in
            snnTorch's ``population_code=True``; what is decoded is each group's mean membrane, and
            its spikes are the group's sum.
        adapters: adapters for further libraries.
        set_dt: set the timestep of modules that have one of their own (Norse, in seconds) to `dt`.
        check_finite: stop a run at the first input, output or membrane that is NaN or infinite,
            with an `ObservationError` that names layer and timestep. Waits for the device at every
            timestep.
        engine: ``"auto"`` runs layer by layer what can be, within a stated tolerance (a spike may
            flip whose membrane was at the threshold; docs/engine.md), and the rest step by step;
            ``"layer"`` refuses a model that cannot. ``"step"``, the reference, runs the model as
            its library would, bit for bit. `TimedModel.explain` says which part runs how.
        recompute_every: where a run is to be back-propagated through, how many ms of its activity
            are kept at once for that; the backward computes the others again, from the state that
            was kept at the start of each such stretch. The numbers are the same; memory grows
            with the stretch and not with the run, and a step takes one forward more. By default
            all is kept.
        keep_spikes: in which form the spikes of layers that are run by layer are kept for the
            backward: as ``"floats"``, 4 bytes each, or as ``"bits"``, an eighth of a byte, from
            which the backward makes floats again. The numbers are the same, bit for bit.
        keep_membranes: whether the membranes of recurrent neurons that are run by layer are kept
            for the backward. If not, each such layer keeps what it received and its state at every
            16th timestep, where that is less, and the backward computes its membranes again, a
            forward of that layer more. The numbers are the same, bit for bit. Other neurons that
            are run by layer compute theirs again anyway, and the step engine keeps all.

    Raises:
        WrapError: if `net` has no layer to observe, or is wrapped already; for an argument that
            is none of those named.
        AdapterError: for a neuron that is unknown or cannot be served.
        TimingError: if a module's own timestep is not `dt`.

    Warns:
        AdapterWarning: for a layer whose library computes something unexpected.
        TimingWarning: where `dt` is coarse for a time constant (over a quarter of it), or unstable.

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
        n_classes=n_classes,
        adapters=adapters,
        set_dt=set_dt,
        check_finite=check_finite,
        engine=engine,
        recompute_every=recompute_every,
        keep_spikes=keep_spikes,
        keep_membranes=keep_membranes,
    )


class TimedModel(RunHost):
    """A wrapped model; see `wrap`.

    Attributes:
        net: the model as it was given.
        dt: length of a timestep in ms.
        n_classes: number of classes of a population-coded readout; None where each of its units is
            a class.
        adapters: the adapters in force.
        check_finite: whether runs stop at values that are not finite; may be changed at any time.
        recompute_every: how many ms of a run's activity are kept at once for the backward; None
            for all; may be changed at any time.
        keep_spikes: whether spikes are kept for the backward as ``"floats"`` or ``"bits"``; may be
            changed at any time.
        keep_membranes: whether membranes of recurrent neurons are kept for the backward; may be
            changed at any time.
    """

    def __init__(
        self,
        net: nn.Module,
        dt: float,
        *,
        readout: str | None = None,
        stepping: Stepping | None = None,
        time_axis: int | None = None,
        n_classes: int | None = None,
        adapters: Iterable[Adapter] = (),
        set_dt: bool = False,
        check_finite: bool = False,
        engine: EngineName = "auto",
        recompute_every: float | None = None,
        keep_spikes: KeepSpikes = "floats",
        keep_membranes: bool = True,
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
        if n_classes is not None and n_classes < 2:
            raise WrapError(f"n_classes={n_classes}; expected at least 2 classes.")
        self.net = net
        self.dt = check_dt(dt)
        self.n_classes = n_classes
        self.check_finite = check_finite
        self.adapters = Adapters(adapters)
        self._by_hand = (stepping, time_axis, readout)
        self._look: Look | None = None
        self._engine = Engine(engine)
        self.recompute_every = recompute_every
        self._stretch()
        self.keep_spikes = keep_spikes
        check_keep_spikes(keep_spikes)
        self.keep_membranes = keep_membranes
        _check_keep_membranes(keep_membranes)
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
        for problem in integration_problems(layers, self.dt):
            warnings.warn(problem, TimingWarning, stacklevel=3)
        known = [layer.name for layer in layers]
        if readout not in (None, "", *known):
            raise WrapError(
                f'readout={readout!r} names no neuron layer (and is not "", the output). '
                f"{known_names(str(readout), known)}"
            )

    def __copy__(self) -> Self:
        twin = type(self).__new__(type(self))
        twin.__setstate__(self.__getstate__())
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        # Copies, which may hold what pickle cannot write, do not come by here.
        check_picklable(self.net)
        return super().__reduce_ex__(protocol)

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
            readout = self._look.readout
            if readout is None:
                readout = "the model's output"
        if readout is not None:
            # Without a name, a bare layer.
            readout = readout or ("the model itself" if self._is_layer else "the model's output")
            if self.n_classes is not None:
                readout += f", {self.n_classes} classes of several units each"
        if stepping == "step":
            return "called once per timestep", readout
        if stepping is None:
            return None, readout
        axes = "[B, T, ...]" if time_axis == 1 else "[T, B, ...]"
        return f"called once per run, with {axes}", readout

    @property
    def _is_layer(self) -> bool:
        return self.adapters.layer(uncompiled(self.net)) is not None

    def explain(self) -> str:
        """Which part of the model runs how, and why a part does not run faster; after a run."""
        return self._engine.explain()

    def extra_repr(self) -> str:
        """What `repr` shows beside the model inside."""
        return f"dt={self.dt:g} ms"

    def forward(
        self,
        inputs: Tensor,
        presentation: AnyPresentation | None = None,
        *,
        time_axis: int | None = None,
        record: Sequence[str] = (),
        state: RunState | None = None,
    ) -> Recording:
        """One run: reset, idle time, then every timestep of the presentation.

        Args:
            inputs: what is shown: images ``[B, *features]`` (``[K, B, *features]`` of K stimuli)
                with a presentation, the inputs of every timestep ``[T, B, *features]`` without.
            presentation: the schedule, one for all samples or one for each. Samples shorter than
                the longest go on with null input, which no listener counts; batch normalisation in
                training mode, and whatever else mixes samples, sees it.
            time_axis: where inputs that go with a presentation have time themselves: 0 for
                ``[T, B, *features]``, 1 for ``[B, T, *features]``. The presentation then says what
                the timesteps are, and shows nothing.
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
        what = shown(self.dt, inputs, presentation, time_axis, continued=state is not None)
        return self._run_shown(what.piece(0, what.n_timesteps), record, state)

    def chunks(
        self,
        inputs: Tensor,
        presentation: AnyPresentation | None = None,
        *,
        every: float,
        time_axis: int | None = None,
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
            time_axis: as in `forward`.
            record: as in `forward`.
            state: as in `forward`.

        Yields:
            a recording of each piece. Do not keep them all where memory matters.

        Raises:
            TimingError: if a piece would be shorter than a timestep; else as `forward`.
        """
        n_steps = _steps_in(every, self.dt, "every")
        what = shown(self.dt, inputs, presentation, time_axis, continued=state is not None)
        return self._chunks(what, n_steps, record, state)

    def _chunks(
        self, what: Showing, n_steps: int, record: Sequence[str], state: RunState | None
    ) -> Iterator[Recording]:
        for piece in what.pieces(n_steps):
            recording = self._run_shown(piece, record, state)
            state = recording.state.detach()
            yield recording
            # Only the state goes on: what the piece recorded is the caller's to keep.
            del recording

    def _run_shown(self, what: Shown, record: Sequence[str], state: RunState | None) -> Recording:
        watched = watchable(self)
        layers = {item.name: item.layer for item in watched if item.layer is not None}
        spiking = [name for name, layer in layers.items() if layer.traits.role is Role.SPIKING]
        with telling_dtypes(self.net, what.example, spiking):
            return self._run_watched(what, watched, layers, record, state)

    def _run_watched(
        self,
        what: Shown,
        watched: Sequence[Watched],
        layers: dict[str, Layer],
        record: Sequence[str],
        state: RunState | None,
    ) -> Recording:
        if self.check_finite:
            check_inputs(what.steps, what.start, self.dt)
        if self._look is None:
            self._look = self._look_once(watched, what)
        seen = self._look
        if state is not None:
            _check_goes_on(state, layers, what.example.shape[0])
        start, origin = (0, object()) if state is None else (state.timestep, state.origin)
        wanted, widest = seen.readout is None, seen.widest
        plan = self._engine.planned(self, seen.calling, what, wanted=wanted, widest=widest)
        kept = _kept_layers(layers, seen.readout, record)
        run = Run(
            n_timesteps=what.n_timesteps,
            idle_steps=what.idle_steps,
            phases=what.phases,
            active=what.active,
            lengths=what.lengths,
            dt=self.dt,
            start=start,
            origin=origin,
            with_grad=torch.is_grad_enabled(),
            clock=Clock() if seen.calling.stepping == "step" else None,
            rhythms=seen.rhythms,
        )
        recorder = Recorder()
        with ExitStack() as stack:
            attachment = Attachment(self, recorder, [w for w in watched if w.name in kept])
            stack.callback(attachment.close)
            if self.check_finite:
                check = FiniteCheck()
                stack.callback(Attachment(self, check, watched).close)
            # After the hooks: recording shows every state to those that were there before it.
            recorded = list(layers.values() if self.check_finite else kept.values())
            for layer in recorded:
                stack.enter_context(layer.adapter.recording(layer.module))
            stack.enter_context(_isolated(list(layers.values()), state))
            stack.enter_context(self.saying(run))
            output, passed = self._run(what, run, seen, state, plan, recorded)
            after = RunState(
                passed,
                {name: layer.adapter.state(layer.module) for name, layer in layers.items()},
                what.example.shape[0],
                start + what.n_timesteps,
                origin,
            )
        return Recording.of(
            {name: recorder.recording(layer) for name, layer in kept.items()},
            record,
            Decoding(seen.readout, output, self.n_classes),
            after,
            dt=self.dt,
            n_timesteps=what.n_timesteps,
            start=what.start,
        )

    def _stretch(self) -> int | None:
        """How many timesteps are kept at once for the backward; None for all.

        Raises:
            TimingError: if that is less than a timestep.
        """
        if self.recompute_every is None:
            return None
        return _steps_in(self.recompute_every, self.dt, "recompute_every")

    def _look_once(self, watched: Sequence[Watched], what: Shown) -> Look:
        stepping, time_axis, readout = self._by_hand
        with torch.inference_mode(False):
            return look(
                self.net,
                watched,
                self.adapters,
                what.example,
                what.n_timesteps + what.idle_steps,
                stepping=stepping,
                time_axis=time_axis,
                readout=readout,
            )

    def _run(
        self,
        what: Shown,
        run: Run,
        seen: Look,
        state: RunState | None,
        plan: LayerPlan | None,
        recorded: Sequence[Layer],
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
        n_steps = self._stretch()
        if n_steps is None or n_steps >= what.n_timesteps or not torch.is_grad_enabled():
            return self._run_stretch(what, run, seen, plan, passed)
        if calling.stepping == "sequence":
            raise WrapError(
                f"recompute_every={self.recompute_every:g} (ms), but {type(self.net).__name__} has "
                "its own time loop, which runs as one. Write it as a model of one timestep, or "
                "put torch.utils.checkpoint into its loop."
            )
        outputs = []
        for part in what.stretches(n_steps):
            output, passed = run_recomputed(
                partial(self._run_stretch, part, run, seen, plan),
                self.net,
                self.layers(),
                recorded,
                self.attached(),
                what.example,
                passed,
            )
            outputs.append(output)
        return (torch.cat(outputs) if wanted else None), passed

    def _run_stretch(
        self,
        what: Shown,
        run: Run,
        seen: Look,
        plan: LayerPlan | None,
        passed: tuple[Any, ...],
    ) -> tuple[Tensor | None, tuple[Any, ...]]:
        ran = None
        if plan is not None:
            _check_keep_membranes(self.keep_membranes)
            with keeping(self.keep_spikes):
                ran = self._engine.run(
                    plan,
                    self,
                    seen.calling,
                    what,
                    run,
                    passed,
                    seen.widest,
                    self.keep_membranes,
                )
        if ran is not None:
            outputs, passed = ran
            return (outputs if seen.readout is None else None), passed
        with self._engine.stepping(self):
            return self._step_through(what, run, seen, passed)

    def _step_through(
        self, what: Shown, run: Run, seen: Look, passed: tuple[Any, ...]
    ) -> tuple[Tensor | None, tuple[Any, ...]]:
        calling, wanted = seen.calling, seen.readout is None
        if calling.stepping == "sequence":
            outputs, passed = run_sequence(self.net, calling, what.whole(), passed)
            if not wanted:
                return None, passed
            output = first_tensor(outputs)
            output = output.transpose(0, 1) if calling.time_axis == 1 else output
            return output[what.idle_steps :], passed
        assert run.clock is not None
        if what.null is not None:
            passed = run_idle(self.net, calling, what.null, what.idle_steps, passed, run.clock)
        run.clock.t = what.t0
        steps, passed = run_steps(
            self.net, calling, what.steps, passed, run.clock, keep_outputs=wanted
        )
        return (torch.stack(steps) if wanted else None), passed


def _check_keep_membranes(keep: object) -> None:
    if not isinstance(keep, bool):
        raise WrapError(f"keep_membranes={keep!r}; expected True or False.")


def _steps_in(ms: float, dt: float, name: str) -> int:
    n_steps = nearest_steps(ms, dt, name)
    if n_steps < 1:
        raise TimingError(
            f"{name} is {format_ms(ms)}, shorter than a timestep of {format_ms(dt)}. "
            "Expected at least one timestep."
        )
    return n_steps


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
