"""What must be known of a neuron layer, whichever library wrote it.

An `Adapter` answers for the classes of one library. It is stateless: every method is a function of
the module it is given, and nothing is ever written on that module but the state variables that the
module itself owns (`restore`, `reset`) and, inside `recording`, a switch that is put back.

A third library plugs in with one subclass, passed as `adapters=[MyAdapter()]` or found through the
entry point group ``dynvision_snn.adapters``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from dynvision_snn.adapters.scan_spec import ScanSpec
from dynvision_snn.errors import AdapterError
from dynvision_snn.timing import format_ms, nearest_steps, whole_steps

MembraneTiming = Literal["before", "after", "without"]
"""A membrane before or after the reset of its timestep, or one that is never reset."""


class Role(StrEnum):
    """What a layer's output is.

    `SPIKING` layers emit spikes, `INTEGRATOR` layers their membrane (leaky-integrator readouts),
    `RECURRENT` layers an analog hidden state (RNN, GRU, LSTM), `ACTIVATION` layers an analog value
    without any state.
    """

    SPIKING = "spiking"
    INTEGRATOR = "integrator"
    RECURRENT = "recurrent"
    ACTIVATION = "activation"


@dataclass(frozen=True, slots=True)
class LayerTraits:
    """What is known of a layer without calling it.

    Attributes:
        role: what its output is.
        sequence: True where one call runs all timesteps (time on `time_axis`), False where one
            call is one timestep.
        membrane: whether the recorded membrane is the one ``"before"`` or ``"after"`` the reset, or
            one ``"without"`` a reset; None where the layer has no membrane to show.
        time_axis: where a whole-sequence layer has its time axis, in inputs and outputs.
        dt: the module's own timestep in ms, or None where its library knows none.
        caveats: what a user should know before publishing numbers of this layer.
    """

    role: Role
    sequence: bool = False
    membrane: MembraneTiming | None = None
    time_axis: int = 0
    dt: float | None = None
    caveats: tuple[str, ...] = ()


class Call(NamedTuple):
    """One forward call of a module, as a hook sees it."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    def argument(self, position: int, name: str) -> Any:
        """The argument at `position`, or by `name`; None where it was not given."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name)

    @property
    def inputs(self) -> Tensor:
        """The first argument, however it was passed; the tensor of a ``(tensor, state)`` pair."""
        first: Any = self.args[0] if self.args else next(iter(self.kwargs.values()), None)
        return first[0] if isinstance(first, tuple | list) else first


class Reading(NamedTuple):
    """What one call of a layer yielded, in the library's own layout.

    Attributes:
        output: spikes, membrane or hidden values that go on to the next layer.
        membrane: the membrane potential; None where this call does not show it.
        state: further state variables by name (``"current"``, ``"adaptation"``, ...).
    """

    output: Tensor
    membrane: Tensor | None = None
    state: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class InnerSynapses:
    """Weights inside a neuron module, which no hook on a Linear would see.

    Attributes:
        name: the row's suffix, ``"recurrent"`` or ``"input"``; stacked modules number theirs.
        operator: a weight ``[out, in]``, or the module (convolution, Linear) that applies it.
        form: ``"dense"`` for a weight matrix, ``"diagonal"`` for a one-to-one connection,
            ``"module"`` for a synapse module.
        drives: how many units of a sample it drives, where that is not every neuron of the layer.
    """

    name: str
    operator: Tensor | nn.Module
    form: Literal["dense", "diagonal", "module"] = "dense"
    drives: int | None = None


@dataclass(frozen=True, slots=True)
class TimeConstant:
    """One time constant of a layer, as the module really behaves at its timestep.

    Attributes:
        name: ``"membrane"``, ``"synapse"``, ``"adaptation"``, ...
        tau: time constant in ms; one number, or one per unit.
        integrator: ``"exact"`` for exponential decay, ``"euler"`` for ``1 - dt / tau``.
    """

    name: str
    tau: Tensor
    integrator: Literal["exact", "euler"]


@dataclass(frozen=True, eq=False, slots=True)
class Retimed:
    """By what a neuron's input must be multiplied, to act at another timestep as it did before.

    Attributes:
        analog: for a value that lasts (a current, a bias): it is there at every timestep.
        spikes: for a value that comes in one timestep, as an event, however long that is.
        notes: what could not be kept in ms, such as a delay that is no whole number of timesteps.

    Factors are float64, one number or of a shape that broadcasts to the units.
    """

    analog: Tensor
    spikes: Tensor
    notes: tuple[str, ...] = ()


class Adapter(ABC):
    """Answers for the neuron classes of one library."""

    @property
    @abstractmethod
    def library(self) -> str:
        """The library's import name; no two adapters may share it."""

    @abstractmethod
    def traits(self, module: nn.Module) -> LayerTraits | None:
        """What is known of `module`, or None where it is none of this library's neurons.

        Raises:
            AdapterError: for a neuron of this library that is unknown or cannot be served; the
                message names the class and the reason.
        """

    @abstractmethod
    def read(self, module: nn.Module, call: Call) -> Reading:
        """Output, membrane and further state of one call."""

    def output(self, module: nn.Module, call: Call) -> Tensor:
        """The output alone, as `read` would give it; for those who want no more of many calls."""
        return self.read(module, call).output

    def state(self, module: nn.Module) -> dict[str, Any]:
        """State variables that the module keeps between calls, by name; by reference."""
        return {}

    def restore(self, module: nn.Module, state: Mapping[str, Any]) -> None:
        """Puts back what `state` returned."""

    def reset(self, module: nn.Module) -> None:
        """Forgets every state variable, so that the next call starts a sequence."""

    def synapses(self, module: nn.Module) -> Sequence[InnerSynapses]:
        """The weights inside the module, in the order of `presynaptic`'s values."""
        return ()

    def presynaptic(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor | None, ...]:
        """What each of `synapses` will receive in the call that is about to happen.

        Called before the forward, while the module still holds its previous state. A value is
        ``[B, *units]`` (``[T, B, *units]`` is put together by `presynaptic_sequence`); None stands
        for silence, as at the first timestep of a sequence.
        """
        return ()

    def presynaptic_sequence(
        self, module: nn.Module, before: tuple[Tensor | None, ...], call: Call, reading: Reading
    ) -> tuple[Tensor | None, ...]:
        """What each of `synapses` received in a call that has happened.

        One-step layers received what `presynaptic` said. A whole-sequence layer's recurrent weights
        receive its own output one timestep later; its adapter overrides this.
        """
        return before

    def updated(
        self, module: nn.Module, output: Tensor, presynaptic: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, ...]:
        """The outputs of all neurons that a call updated, ``[t, B, *units]`` each.

        Of most modules that is the output. One that holds further neurons, whose outputs stay
        inside it, overrides this; `presynaptic` is what its `synapses` received, time first.
        """
        return (output,)

    def neurons(
        self, module: nn.Module, outputs: Tensor, presynaptic: tuple[Tensor | None, ...]
    ) -> int:
        """How many neurons of each sample a call updated.

        Of most modules, one for each value of `outputs`, which are those of `updated` side by side,
        ``[t, B, *units]``. One whose neurons share an output, as where their membranes are pooled
        before any spike, overrides this.
        """
        return outputs.shape[2:].numel()

    def time_constants(self, module: nn.Module, dt: float) -> Sequence[TimeConstant]:
        """Time constants in ms at a timestep of `dt` ms."""
        return ()

    def set_dt(self, module: nn.Module, dt: float) -> None:
        """Sets the module's own timestep to `dt` ms; only called where its traits have a `dt`."""

    def retime(self, module: nn.Module, dt: float, new_dt: float) -> Retimed:
        """Gives `module` the time constants in ms that it has at `dt` at a timestep of `new_dt`.

        Only called on copies. Its `synapses` named ``"input"`` and ``"recurrent"`` are left alone:
        the caller multiplies them by the factors returned. Any others are this method's affair.

        Raises:
            AdapterError: for a neuron of whose input no such factors make it act as before.
        """
        raise AdapterError(
            f"{type(module).__name__} has no rule for another timestep. Build and train it at the "
            f"dt that is wanted, or let its adapter ({type(self).__name__}) have a method retime; "
            "docs/time.md lists the rules."
        )

    def recording(self, module: nn.Module) -> AbstractContextManager[None]:
        """While entered, `read` shows the membrane at every timestep of a whole sequence.

        What the module returns stays the same to its caller: only forward hooks that were
        registered before this is entered may see more.
        """
        return nullcontext()

    def is_fresh(self, module: nn.Module, call: Call) -> bool:
        """Whether this call of a one-step layer started from no state at all.

        A layer whose state is passed by the caller is fresh when none was passed: at the first
        timestep of a run rightly so, at any later one because its state was dropped.
        """
        return False

    def why_no_scan(self, module: nn.Module) -> str | None:
        """Why an engine cannot run `module` without calling it; None where it can.

        Asked once for each plan; may wait for the module's device, unlike what follows.
        """
        return f"no scan is written for {type(module).__name__}"

    def scan_spec(self, module: nn.Module) -> ScanSpec:
        """One timestep of `module` with its present parameters, where there is no `why_no_scan`."""
        raise NotImplementedError

    def scan_start(self, module: nn.Module, call: Call) -> Mapping[str, Any]:
        """The state that a call starts from, by our names, whether passed or held by the module.

        What starts by itself (nothing passed, nothing held) is left out.
        """
        raise NotImplementedError

    def scan_return(self, module: nn.Module, values: Mapping[str, Any]) -> Any:
        """What a call returns, put together from ``"output"`` and the state variables."""
        raise NotImplementedError

    def scan_finish(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Leaves the state in the module as its own forward would."""

    def is_container(self, module: nn.Module) -> bool:
        """Whether `module` only passes tensors and states between its children."""
        return False

    def loops_children(self, module: nn.Module) -> bool:
        """Whether `module` calls its children once per timestep of a ``[T, ...]`` input."""
        return False


def kept_steps(steps: float, dt: float, new_dt: float, what: str) -> tuple[int, tuple[str, ...]]:
    """How many timesteps of `new_dt` ms last as long as some of `dt` ms, and a note if none do.

    Args:
        steps: their number at `dt`, above 0.
        dt: length in ms of the timestep that they are counted in.
        new_dt: length in ms of the timestep that they are to be counted in.
        what: what lasts so long, as the note calls it.

    >>> kept_steps(1, dt=1.0, new_dt=0.5, what="delay")
    (2, ())
    >>> kept_steps(1, dt=1.0, new_dt=2.0, what="delay")
    (1, ('its delay of 1 ms is no whole number of timesteps of 2 ms, and is now 2 ms',))
    """
    time = steps * dt
    whole = whole_steps(time, new_dt)
    if whole:
        return whole, ()
    nearest = max(1, nearest_steps(time, new_dt))
    return nearest, (
        f"its {what} of {format_ms(time)} is no whole number of timesteps of {format_ms(new_dt)}, "
        f"and is now {format_ms(nearest * new_dt)}",
    )


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)


def map_tensors(function: Any, value: Any) -> Any:
    """`value` with `function` applied to every tensor in it; containers are rebuilt."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, item) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(function, item) for item in value)
    return value
