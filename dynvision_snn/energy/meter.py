"""EnergyMeter: counts what a network does while it runs, in any loop, and keeps no activation.

Counted, streaming: spikes and updates of neuron layers; synaptic operations of Linear and
convolution layers and of the weights inside neuron modules. Not counted, but named in the budget:
every other module with weights or operations of its own that is met.

Every call costs a few reductions and one dot product with a remembered fan-out; a neuron's spikes
and the next layer's operations are counted from the same reduction, and so is an input that does
not change from one timestep to the next. Nothing waits for the device until the budget is asked
for, and memory is O(T) numbers per layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Adapter, Adapters, InnerSynapses, Role
from dynvision_snn.energy.budget import EnergyBudget
from dynvision_snn.energy.counting import synops
from dynvision_snn.energy.rows import Row, Tallied, grown
from dynvision_snn.energy.synapses import Operator, refusal
from dynvision_snn.errors import EnergyError
from dynvision_snn.observation import Attachment, Listener, Observation, Run, Watched, watchable
from dynvision_snn.presentation import Phase
from dynvision_snn.timing import common_dt

# Modules that neither have synapses nor update a neuron: they pass values on, or compare them.
_WITHOUT_OPERATIONS = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.PixelShuffle,
    nn.ChannelShuffle,
)

# Rows of a series while it is measured; a budget shows those that occurred.
_PHASES = {
    int(Phase.NULL): "null",
    int(Phase.REACTION): "reaction",
    int(Phase.SUPERVISED): "supervised",
}
_UNKNOWN = "unknown"
_ROWS = (*_PHASES.values(), _UNKNOWN)


class EnergyMeter(Listener):
    """Counts spikes, synaptic operations and neuron updates inside a ``with`` block.

    Calls within a run are successive timesteps of one batch. A `TimedModel` says where runs begin;
    in a bare loop one block is one run unless `next_run` starts another.

    Args:
        module: any module, in any loop: a `TimedModel`, a module that holds one, or a bare net.
        sequence: in a bare loop, whether Linear and Conv layers receive whole sequences,
            ``[T, B, ...]``. Neuron layers are known, and so is a TimedModel.
        adapters: adapters for further libraries.

    Raises:
        AdapterError: for a neuron that is unknown or cannot be served.

    >>> import torch
    >>> layer = torch.nn.Linear(3, 5)
    >>> with EnergyMeter(layer) as meter:
    ...     for _ in range(4):
    ...         _ = layer(torch.tensor([[1.0, 0.0, 1.0]]))
    >>> meter.budget(dt=1.0).total.synops_ac
    40.0
    """

    hears_idle: ClassVar[bool] = True
    hears_synapses: ClassVar[bool] = True

    def __init__(
        self, module: nn.Module, *, sequence: bool = False, adapters: Iterable[Adapter] = ()
    ) -> None:
        given = tuple(adapters)
        self._host = module
        self._sequence = sequence
        self._modules = watchable(module, Adapters(given) if given else None)
        self._attachment: Attachment | None = None
        self._opened = False
        self._rows: dict[str, Row] = {}
        self._uncounted: dict[str, str] = {}
        self._samples = torch.zeros(len(_ROWS), 0, dtype=torch.float64)
        self._idle_samples = torch.zeros(1, 0, dtype=torch.float64)
        self._dt: float | None = None
        self._fresh_run()

    # -- the block --------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._opened:
            raise EnergyError(
                "this EnergyMeter has been used already; make a new one for each measurement."
            )
        self._opened = True
        watched = [item for item in self._modules if _has_operations(item)]
        self._attachment = Attachment(self._host, self, watched, sequence=self._sequence)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._attachment is not None
        self._attachment.close()
        if kind is None:
            self._close_run()
        else:
            self._fresh_run()

    def next_run(self) -> None:
        """In a bare loop: the next call begins another run, with timestep 0.

        Raises:
            EnergyError: outside the block.
        """
        if self._attachment is None or self._attachment.closed:
            raise EnergyError("next_run() belongs inside the meter's `with` block.")
        self._attachment.begin_run(Run())

    def budget(self, dt: float | None = None) -> EnergyBudget:
        """What was counted, per sample.

        Args:
            dt: length of a timestep in ms; not needed where the module is a TimedModel.

        Raises:
            EnergyError: if nothing was observed, no dt is known, or values were NaN.
            TimingError: if `dt` is not the TimedModel's.
        """
        if self._attachment is not None and not self._attachment.closed:
            self._close_run()
        known = {"the model": self._dt, "budget": dt}
        given = {whose: value for whose, value in known.items() if value is not None}
        if not given:
            raise EnergyError(
                "no timestep is known: a bare module has none. Say its length in ms: "
                "meter.budget(dt=1.0)."
            )
        if self._samples.shape[1] == 0:
            raise EnergyError(
                "no call was observed, so there is nothing to budget. Run the module inside the "
                "`with` block, on the very object that the meter was given; a run that failed is "
                "not counted."
            )
        length = common_dt(given)
        shown = [row for row, samples in enumerate(self._samples) if bool(samples.any())]
        idle = None
        if self._idle_samples.shape[1]:
            idle = EnergyBudget(
                counts=[row.idle.counts(row, [0]) for row in self._rows.values()],
                samples=self._idle_samples,
                dt=length,
                phases=("idle",),
            )
        return EnergyBudget(
            counts=[row.shown.counts(row, shown) for row in self._rows.values()],
            samples=self._samples[shown],
            dt=length,
            phases=tuple(_ROWS[row] for row in shown),
            uncounted=self._uncounted,
            idle=idle,
        )

    # -- runs -------------------------------------------------------------------------------------

    def begin_run(self, run: Run) -> None:
        """The counts of the run before are complete."""
        self._close_run()

    def end_run(self, run: Run) -> None:
        """The run's counts join the totals."""
        self._close_run()

    def abandon_run(self, run: Run) -> None:
        """A run that failed is not counted."""
        self._fresh_run()

    def _fresh_run(self) -> None:
        self._run: Run | None = None
        self._batch_size: int | None = None
        self._last_output: Tallied | None = None
        for row in self._rows.values():
            row.drop_run()

    def _close_run(self) -> None:
        run, batch_size = self._run, self._batch_size
        if run is not None and batch_size is not None:
            steps = max(row.n_timesteps for row in self._rows.values())
            phases = _phases(run, steps)
            self._samples = grown(self._samples, phases * batch_size)
            idle = torch.ones(1, run.idle_steps, dtype=torch.float64)
            self._idle_samples = grown(self._idle_samples, idle * batch_size)
            for row in self._rows.values():
                row.close_run(phases, idle, batch_size)
            self._dt = run.dt if run.dt is not None else self._dt
        self._fresh_run()

    # -- counting ---------------------------------------------------------------------------------

    @torch.no_grad()
    def observe(self, observation: Observation) -> None:
        """Counts one call of a layer."""
        if observation.recomputed:
            return
        if observation.layer is not None:
            self._count_neurons(observation)
            self._count_inner_synapses(observation)
            return
        reason = refusal(observation.module)
        if reason is None and observation.inputs is None:
            reason = "which timesteps its calls belong to could not be told"
        if reason is not None:
            self._uncounted.setdefault(observation.name, reason)
            return
        row = self._row(observation.name, observation.module)
        self._count_synapses(row, observation, observation.module, observation.inputs)

    def _count_neurons(self, observation: Observation) -> None:
        layer, output = observation.layer, observation.output
        assert layer is not None
        if output is None:
            self._uncounted.setdefault(observation.name, "its output could not be read")
            return
        if not layer.is_stateful:
            return
        self._check_batch(observation, output.shape[1])
        row = self._row(observation.name, observation.module)
        row.spiking = layer.traits.role is Role.SPIKING
        row.neurons = output[0, 0].numel()
        self._last_output = Tallied.of(output)
        row.note(observation, {"neuron_updates_active": self._last_output.tally.total()})

    def _count_inner_synapses(self, observation: Observation) -> None:
        assert observation.layer is not None
        inner = observation.layer.adapter.synapses(observation.module)
        for synapses, values in zip(inner, observation.presynaptic, strict=True):
            row = self._row(f"{observation.name}.{synapses.name}", observation.module, synapses)
            self._count_synapses(row, observation, synapses.operator, values)

    def _count_synapses(
        self, row: Row, observation: Observation, operator: Operator, values: Tensor | None
    ) -> None:
        if values is None:
            row.note_silence(observation, operator)
            return
        self._check_batch(observation, values.shape[1])
        seen = Tallied.of(values, row.last, self._last_output)
        row.last = seen
        counted, weighted = synops(seen.tally, row.fan_out(operator, seen.unit_shape))
        row.note(observation, {"synops": counted, "synops_weighted": weighted}, seen.tally)

    def _row(self, name: str, module: nn.Module, inner: InnerSynapses | None = None) -> Row:
        if name not in self._rows:
            diagonal = inner is not None and inner.form == "diagonal"
            self._rows[name] = Row(name, type(module).__name__, diagonal=diagonal)
        return self._rows[name]

    def _check_batch(self, observation: Observation, batch_size: int) -> None:
        self._run = observation.run
        if self._batch_size is None:
            self._batch_size = batch_size
        elif batch_size != self._batch_size:
            expected = self._batch_size
            self._fresh_run()
            raise EnergyError(
                f"the batch size changed within a run, from {expected} to {batch_size}, at layer "
                f"{observation.name!r}. Calls within a run are timesteps of one batch: call "
                "meter.next_run() before another batch."
            )


def _has_operations(item: Watched) -> bool:
    """Whether a module is worth a hook: a neuron layer, or one with operations of its own."""
    module = item.module
    if item.layer is not None or refusal(module) is None:
        return True
    if any(True for _ in module.parameters(recurse=False)):
        return True
    leaf = not any(True for _ in module.children())
    return leaf and not isinstance(module, _WITHOUT_OPERATIONS)


def _phases(run: Run, steps: int) -> Tensor:
    """Which timestep is in which phase: float64 ``[phases, T]`` of 0 and 1."""
    phases = torch.zeros(len(_ROWS), steps, dtype=torch.float64)
    if run.phases is None:
        phases[_ROWS.index(_UNKNOWN)] = 1
        return phases
    for code, name in _PHASES.items():
        phases[_ROWS.index(name)] = run.phases == code
    return phases
