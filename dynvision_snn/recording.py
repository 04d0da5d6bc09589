"""What a run leaves behind: decoded membranes, the layers asked for, and a state to go on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from dynvision_snn.adapters import Layer, Role
from dynvision_snn.adapters.base import MembraneTiming, map_tensors
from dynvision_snn.errors import ObservationError, WrapError
from dynvision_snn.observation import Listener, Observation
from dynvision_snn.report.markup import to_html
from dynvision_snn.report.tables import Column, lay_out
from dynvision_snn.timing import format_steps


@dataclass(frozen=True, eq=False, slots=True)
class RunState:
    """The state of a model after a run, for `TimedModel.forward`'s ``state=``.

    Attributes:
        passed: the states that the model takes as arguments.
        held: the state variables that its modules keep, by layer name.
        batch_size: how many samples it is of.
        timestep: how many timesteps have been run since the reset, idle ones apart.
        origin: the same object in all runs that go on from each other.
    """

    passed: tuple[Any, ...]
    held: Mapping[str, Mapping[str, Any]]
    batch_size: int
    timestep: int
    origin: object = field(default_factory=object)

    def detach(self) -> RunState:
        """The same values outside the graph, as truncated back-propagation needs them."""
        return RunState(
            map_tensors(Tensor.detach, self.passed),
            map_tensors(Tensor.detach, dict(self.held)),
            self.batch_size,
            self.timestep,
            self.origin,
        )


@dataclass(frozen=True, eq=False, slots=True)
class LayerRecording:
    """What one layer did at every timestep of a run.

    Attributes:
        role: what the layer's output is.
        output: ``[T, B, *units]``: spikes, membrane or hidden values, as passed on.
        membrane: ``[T, B, *units]``, or None where the layer has none to show.
        membrane_is: whether that is the membrane ``"before"`` or ``"after"`` the reset, or one
            ``"without"`` a reset.
        state: further state variables, ``[T, B, *units]`` each.
    """

    role: Role
    output: Tensor
    membrane: Tensor | None
    membrane_is: MembraneTiming | None
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def spikes(self) -> Tensor | None:
        """``[T, B, *units]``, or None where the layer does not spike."""
        return self.output if self.role is Role.SPIKING else None


@dataclass(frozen=True, eq=False, slots=True)
class Decoding:
    """What of a run is decoded.

    Attributes:
        readout: the readout's name; None where the model's output is decoded.
        output: the model's output over time, where that is decoded.
        n_classes: the number of classes of a population code; None where each unit is a class.
    """

    readout: str | None
    output: Tensor | None = None
    n_classes: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Recording:
    """One run.

    Attributes:
        membrane: ``[T, B, classes]``, the decoded output at every timestep: the readout's membrane
            potential, or the model's output where its readout is no spiking or integrating layer.
            Of a population code, the mean over each class's units.
        spikes: ``[T, B, classes]``, or None where the readout does not spike. Of a population code,
            the sum over each class's units.
        layers: the layers asked for, by name.
        state: where another run can go on from.
        dt: length of a timestep in ms.
        readout: the readout's name; None where the model's output is decoded.
        membrane_is: ``"before"`` or ``"after"`` the reset, or ``"without"`` one; None where there
            is no membrane.
        start: where it begins in the call of `TimedModel.chunks` that it is a piece of.
    """

    membrane: Tensor
    spikes: Tensor | None
    layers: Mapping[str, LayerRecording]
    state: RunState
    dt: float
    readout: str | None
    membrane_is: MembraneTiming | None
    start: int = 0

    @classmethod
    def of(
        cls,
        recorded: Mapping[str, LayerRecording | None],
        record: Sequence[str],
        decoding: Decoding,
        state: RunState,
        *,
        dt: float,
        n_timesteps: int,
        start: int,
    ) -> Recording:
        """A run, from what its layers did.

        Args:
            recorded: the layers asked for and the readout, by name; None for one not reached.
            record: the layers asked for.
            decoding: what is decoded.
            state: where the run ended.
            dt: length of a timestep in ms.
            n_timesteps: how many were asked for.
            start: where it begins in its call.

        Raises:
            WrapError: if a layer was not reached, or what is to be decoded has no value for each
                class at every timestep.
        """
        layers = {name: _reached(recorded[name], f"layer {name!r}") for name in record}
        spikes, membrane_is = None, None
        if decoding.readout is None:
            assert decoding.output is not None
            membrane = decoding.output
        else:
            readout = _reached(recorded[decoding.readout], f"the readout {decoding.readout!r}")
            shown = readout.output if readout.role is Role.RECURRENT else readout.membrane
            if shown is None:
                raise WrapError(
                    f"the readout {decoding.readout!r} does not show its membrane. Name another "
                    "layer with wrap(net, readout=...), or let the model return what is to be "
                    'decoded (readout="" decodes its output).'
                )
            membrane, spikes, membrane_is = shown, readout.spikes, readout.membrane_is
        _check_decodable(membrane, n_timesteps, dt)
        if decoding.n_classes is not None:
            membrane = grouped(membrane, decoding.n_classes).mean(-1)
            spikes = None if spikes is None else grouped(spikes, decoding.n_classes).sum(-1)
        return cls(membrane, spikes, layers, state, dt, decoding.readout, membrane_is, start)

    @property
    def n_timesteps(self) -> int:
        """T."""
        return self.membrane.shape[0]

    @property
    def steps(self) -> slice:
        """Its timesteps of the call that it is (a chunk) of: ``targets[run.steps]``."""
        return slice(self.start, self.start + self.n_timesteps)

    @property
    def duration(self) -> float:
        """Length of the run in ms, without idle time."""
        return self.n_timesteps * self.dt

    def __repr__(self) -> str:
        steps, batch, classes = self.membrane.shape
        reset = f", {self.membrane_is} the reset" if self.membrane_is else ""
        readout = f"readout {self.readout!r}" if self.readout else "the model's output"
        layers = f", layers {list(self.layers)}" if self.layers else ""
        return (
            f"Recording({self.duration:g} ms = {steps} timesteps of {self.dt:g} ms, "
            f"{batch} samples, {classes} classes, {readout}{reset}{layers})"
        )

    def _repr_html_(self) -> str:
        decoded = (self.readout or "(the model's output)", "yes", self.membrane, self.spikes)
        recorded = [(n, None, layer.membrane, layer.spikes) for n, layer in self.layers.items()]
        shown = [
            {
                "layer": name,
                "decoded": is_decoded,
                "membrane": _shape(membrane),
                "spikes": _shape(spikes),
            }
            for name, is_decoded, membrane, spikes in (decoded, *recorded)
        ]
        columns = [
            Column("layer", "layer"),
            Column("decoded", "decoded"),
            Column("membrane", "membrane [T, B, ...]"),
            Column("spikes", "spikes [T, B, ...]"),
        ]
        return to_html(lay_out(shown, columns), title=repr(self))


def _shape(values: Tensor | None) -> str | None:
    return None if values is None else " x ".join(map(str, values.shape))


class Recorder(Listener):
    """Keeps what the watched layers yield, timestep by timestep."""

    hears_inputs: ClassVar[bool] = False

    def __init__(self) -> None:
        self._observed: dict[str, list[Observation]] = {}
        self._without_grad: set[str] = set()

    def observe(self, observation: Observation) -> None:
        """Keeps the observation, unless checkpointing only repeats it."""
        if not observation.recomputed:
            self._observed.setdefault(observation.name, []).append(observation)
            if not torch.is_grad_enabled():
                self._without_grad.add(observation.name)

    def recording(self, layer: Layer) -> LayerRecording | None:
        """All timesteps of one layer; None if it was not reached.

        Raises:
            ObservationError: if it was not called exactly once at each timestep, or under
                reentrant activation checkpointing.
        """
        observed = self._observed.get(layer.name)
        if not observed:
            return None
        run = observed[0].run
        n_timesteps = run.n_timesteps
        ends = [0, *(o.t1 for o in observed)]
        once_each = [o.t0 for o in observed] == ends[:-1] and ends[-1] == n_timesteps
        output = _joined([o.output for o in observed]) if once_each else None
        if output is None:
            raise ObservationError(
                f"layer {layer.name!r} ({type(layer.module).__name__}) cannot be recorded: it was "
                f"not called once at each of {format_steps(n_timesteps or 0, run.dt)}. Give each "
                "use of it a module of its own."
            )
        # A checkpoint gives what it returns a gradient after the layer was observed without one.
        if output.requires_grad and layer.name in self._without_grad:
            raise ObservationError(
                f"layer {layer.name!r} ({type(layer.module).__name__}) runs under reentrant "
                "activation checkpointing, so what is recorded of it would have no gradient. Use "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
        if layer.traits.role is Role.INTEGRATOR:
            membrane: Tensor | None = output
        else:
            membrane = _joined([o.membrane for o in observed])
        state = {
            name: joined
            for name in observed[0].state
            if (joined := _joined([o.state.get(name) for o in observed])) is not None
        }
        return LayerRecording(layer.traits.role, output, membrane, layer.traits.membrane, state)


def grouped(values: Tensor, n_classes: int) -> Tensor:
    """``[..., units]`` as ``[..., n_classes, units per class]``, class after class.

    Raises:
        WrapError: if the units are no multiple of the classes.

    >>> grouped(torch.tensor([1.0, 2.0, 3.0, 4.0]), 2).tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """
    n_units = values.shape[-1]
    if n_units % n_classes:
        raise WrapError(
            f"the readout has {n_units} units, which are no equal groups for n_classes="
            f"{n_classes}. Expected a multiple of the number of classes."
        )
    return values.unflatten(-1, (n_classes, n_units // n_classes))


def _reached(recording: LayerRecording | None, what: str) -> LayerRecording:
    if recording is None:
        raise WrapError(f"{what} was not reached in this run; it cannot be recorded.")
    return recording


def _check_decodable(membrane: Tensor, n_timesteps: int, dt: float) -> None:
    if membrane.shape[0] != n_timesteps:
        raise WrapError(
            f"the model returned {format_steps(membrane.shape[0], dt)} where "
            f"{format_steps(n_timesteps, dt)} were asked for: its own time loop does not follow "
            "the length of its input. Let it loop over x.shape[0]."
        )
    if membrane.ndim != 3:
        raise WrapError(
            f"what is decoded has shape {list(membrane.shape)}; expected [T, B, classes]. Flatten "
            "the readout's units, or name another layer with wrap(net, readout=...)."
        )


def _joined(values: Sequence[Tensor | None]) -> Tensor | None:
    present = [value for value in values if value is not None]
    if len(present) < len(values):
        return None
    return present[0] if len(present) == 1 else torch.cat(present)
