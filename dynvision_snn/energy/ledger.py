"""The ledger of a measurement: observations in, sums by layer, phase and timestep out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import InnerSynapses, Role
from dynvision_snn.energy.budget import EnergyBudget
from dynvision_snn.energy.counting import (
    nonzero_per_sample,
    synops_per_sample,
    weighted_per_sample,
)
from dynvision_snn.energy.foldable import is_foldable, uses_batch_statistics
from dynvision_snn.energy.layers import Series
from dynvision_snn.energy.placing import place_calls
from dynvision_snn.energy.rows import NEURONS, SYNAPSES, UNWANTED, Row, Tallied, output_size
from dynvision_snn.energy.running import Kept, Onsets, RunSamples
from dynvision_snn.energy.samples import WHOLE, SampleEnergy
from dynvision_snn.energy.sums import Extent, OverTime, Spread
from dynvision_snn.energy.synapses import Operator, refusal
from dynvision_snn.energy.updates import Updates
from dynvision_snn.errors import EnergyError
from dynvision_snn.observation import Observation, Run
from dynvision_snn.presentation import Phase

# Rows of a series while it is measured; a budget shows those that occurred.
_PHASES = {
    int(Phase.NULL): "null",
    int(Phase.REACTION): "reaction",
    int(Phase.SUPERVISED): "supervised",
}
_UNKNOWN = "unknown"
_ROWS = (*_PHASES.values(), _UNKNOWN)


class _Kind(NamedTuple):
    """What is known of a module that is no neuron layer.

    Attributes:
        refusal: why it cannot be counted, if so.
        foldable: whether it may be taken as folded into other weights.
    """

    refusal: str | None
    foldable: bool

    @classmethod
    def of(cls, module: nn.Module) -> _Kind:
        foldable = is_foldable(module)
        return cls(None if foldable else refusal(module), foldable)


class Ledger:
    """What was counted of every layer: the current run's calls, and the sums of finished runs.

    Args:
        fold: whether average pooling and batch normalisation in evaluation mode cost nothing.
        per_sample: whether the cost of every sample is kept.
        by_timestep: whether sums keep timesteps apart; else nothing grows with their number.

    Attributes:
        met: the names of the modules that were called.
        uncounted: modules that could not be counted, and why.
        dt: the timestep of the finished runs in ms; None where none said it.
        last_run: the run that ended last by sample, until another call is observed.
        kept: by moment, what each sample of each run cost.
    """

    def __init__(
        self, *, fold: bool = False, per_sample: bool = False, by_timestep: bool = True
    ) -> None:
        self.met: set[str] = set()
        self.uncounted: dict[str, str] = {}
        self.dt: float | None = None
        self.last_run: RunSamples | None = None
        self.kept: dict[str, list[Kept]] = {WHOLE: []}
        self._fold, self._per_sample, self._by_timestep = fold, per_sample, by_timestep
        self._rows: dict[str, Row] = {}
        self._kinds: dict[str, _Kind] = {}
        self._samples, self._idle_samples = OverTime(by_timestep), OverTime(by_timestep)
        self._n_samples = self._n_timesteps = self._idle_steps = 0
        self._origins: set[object] = set()
        self._last_origin: object = None
        self._samples_of_last: RunSamples | None = None
        self.drop_run()

    @property
    def is_empty(self) -> bool:
        """Whether no run has ended."""
        return not self._samples.n_timesteps

    # -- runs -------------------------------------------------------------------------------------

    def tick(self) -> None:
        """The whole model was called."""
        self._ticks += 1

    def drop_run(self) -> None:
        """Forgets the current run."""
        self._run: Run | None = None
        self._batch_size: int | None = None
        self._last_output: Tallied | None = None
        self._ticks = 0
        for row in self._rows.values():
            row.drop_run()

    def close_run(self) -> None:
        """Adds the current run to the sums, if it has any call.

        Raises:
            EnergyError: calls in a user's own loop whose timesteps cannot be told; the run is lost.
        """
        run, batch_size, rows = self._run, self._batch_size, list(self._rows.values())
        try:
            if run is None or batch_size is None:
                return
            steps = run.n_timesteps or place_calls(rows, self._ticks)
            goes_on = run.start > 0 and run.origin in self._origins
            if self._per_sample and goes_on:
                self._check_goes_on(run)
            spread = Spread(_phases(run, steps), batch_size, run.start)
            self._samples.add(spread.present, spread.occurring, run.start)
            idle = Spread(torch.ones(1, run.idle_steps, dtype=torch.float64), batch_size)
            self._idle_samples.add(idle.present, idle.occurring)
            self._n_samples += 0 if goes_on else batch_size
            self._n_timesteps = max(self._n_timesteps, run.start + steps)
            self._idle_steps = max(self._idle_steps, run.idle_steps)
            by_row = {
                row.name: row.close_run(spread, idle, per_sample=self._per_sample) for row in rows
            }
            if self._per_sample:
                self._keep(run, by_row, steps, batch_size, goes_on=goes_on)
            if run.origin is not None:
                self._origins.add(run.origin)
            self._last_origin = run.origin
            self.dt = run.dt if run.dt is not None else self.dt
        finally:
            self.drop_run()

    def mark(self, name: str, last: RunSamples, times: Tensor, onsets: Onsets, dt: float) -> None:
        """Keeps what the samples of the last run cost until a moment."""
        again = name in last.marked
        cost = last.mark(name, times, onsets, dt)
        kept = self.kept.setdefault(name, [])
        if again:
            kept.pop()
        kept.append(cost)

    def _check_goes_on(self, run: Run) -> None:
        """Refuses a piece of a run whose samples could not be told from others.

        Raises:
            EnergyError: if it goes on from a run that other runs came after.
        """
        if run.origin is not self._last_origin:
            raise EnergyError(
                "the cost of each sample needs the pieces of a run one after the other: this one "
                "goes on from a run after which others ran. Run it at once, or leave out "
                "per_sample=True."
            )

    def _keep(
        self,
        run: Run,
        by_row: Mapping[str, Mapping[Series, Tensor]],
        steps: int,
        batch_size: int,
        *,
        goes_on: bool,
    ) -> None:
        samples = self._samples_of_last
        if goes_on and samples is not None:
            self.kept[WHOLE].pop()
        else:
            samples = RunSamples(batch_size)
        samples.add(by_row, steps, run.active)
        self.kept[WHOLE].append(samples.whole())
        self.last_run = self._samples_of_last = samples

    # -- results ----------------------------------------------------------------------------------

    def budget(self, dt: float, uncounted: dict[str, str]) -> EnergyBudget:
        """The sums as a budget; `uncounted` are further modules that were missed."""
        shown, length = self._samples.phases, self._samples.n_timesteps
        idle = None
        if self._idle_steps:
            before = self._idle_samples.n_timesteps
            idle = EnergyBudget(
                counts=[row.counts(row.idle, [0], before) for row in self._rows.values()],
                samples=self._idle_samples.of([0]),
                dt=dt,
                phases=("idle",),
                extent=self._extent(self._idle_steps),
            )
        return EnergyBudget(
            counts=[row.counts(row.shown, shown, length) for row in self._rows.values()],
            samples=self._samples.of(shown),
            dt=dt,
            phases=tuple(_ROWS[row] for row in shown),
            uncounted=self.uncounted | uncounted,
            idle=idle,
            extent=self._extent(self._n_timesteps),
        )

    def _extent(self, n_timesteps: int) -> Extent | None:
        return None if self._by_timestep else Extent(self._n_samples, n_timesteps)

    def sample_energy(self, budget: EnergyBudget) -> SampleEnergy:
        """The cost of every sample; `budget` is of the same measurement."""
        return SampleEnergy.of_runs(budget.counts, self.kept)

    # -- counting ---------------------------------------------------------------------------------

    def observe(self, observation: Observation) -> None:
        """Counts one call of a layer."""
        if observation.recomputed:
            return
        self.met.add(observation.name)
        if observation.layer is not None:
            self._count_neurons(observation)
            self._count_inner_synapses(observation)
            return
        name, module = observation.name, observation.module
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = _Kind.of(module)
        reason = kind.refusal
        if kind.foldable:
            if uses_batch_statistics(module):
                reason = "it normalises by the statistics of its own batch"
            elif self._fold:
                return
        if reason is None and observation.inputs is None:
            reason = "which timesteps its calls belong to could not be told"
        if reason is not None:
            self.uncounted.setdefault(name, reason)
            return
        output = observation.output
        drives = 0 if output is None else output.shape[2:].numel()
        row = self._row(name, module)
        self._count_synapses(row, observation, module, observation.inputs, drives)

    def _count_neurons(self, observation: Observation) -> None:
        layer, output = observation.layer, observation.output
        assert layer is not None
        if output is None:
            self.uncounted.setdefault(observation.name, "its output could not be read")
            return
        if not layer.is_stateful:
            return
        self._check_batch(observation, output.shape[1])
        row = self._row(observation.name, observation.module, NEURONS, keeps_time=True)
        outputs, row.neurons = Updates.of(observation, output)
        if layer.traits.role is Role.SPIKING:
            row.spiking_units = outputs.shape[2:].numel()
        output = observation.without_padding(outputs)
        self._last_output = Tallied.of(output)
        values = self._last_output.tally
        active, by_sample = values.events, UNWANTED
        own_phases = _has_own_phases(observation)
        if self._per_sample or own_phases:
            by_sample = {"neuron_updates_active": nonzero_per_sample(output)}
        if own_phases:
            active = by_sample["neuron_updates_active"]
        row.note(observation, self._ticks, (active,), values.seen, by_sample)

    def _count_inner_synapses(self, observation: Observation) -> None:
        assert observation.layer is not None
        if not observation.presynaptic:
            return
        layer = self._rows.get(observation.name)
        neurons = 0 if layer is None else layer.neurons
        inner = observation.layer.adapter.synapses(observation.module)
        for synapses, values in zip(inner, observation.presynaptic, strict=True):
            name = f"{observation.name}.{synapses.name}"
            row = self._row(name, observation.module, inner=synapses, keeps_time=True)
            drives = neurons if synapses.drives is None else synapses.drives
            self._count_synapses(row, observation, synapses.operator, values, drives)

    def _count_synapses(
        self,
        row: Row,
        observation: Observation,
        operator: Operator,
        values: Tensor | None,
        drives: int,
    ) -> None:
        if values is None:
            row.note_silence(observation, self._ticks, operator)
            return
        self._check_batch(observation, values.shape[1])
        values = observation.without_padding(values)
        seen = Tallied.of(values, row.last, self._last_output)
        row.last = seen
        row.outputs = drives
        size = output_size(operator, observation.output)
        fan_out = row.fan_out(operator, values.shape[2:], values.device, size)
        by_sample = UNWANTED
        own_phases = _has_own_phases(observation)
        if self._per_sample or own_phases:
            by_sample = {"synops": synops_per_sample(values, fan_out)}
        counts: tuple[Tensor, ...]
        if own_phases:
            weighted = weighted_per_sample(values, fan_out)
            counts = (by_sample["synops"], weighted, nonzero_per_sample(values))
        else:
            counts = row.counted(seen.tally, fan_out)
        row.note(observation, self._ticks, counts, seen.tally.seen, by_sample)

    def _row(
        self,
        name: str,
        module: nn.Module,
        series: tuple[Series, ...] = SYNAPSES,
        *,
        inner: InnerSynapses | None = None,
        keeps_time: bool = False,
    ) -> Row:
        if name not in self._rows:
            diagonal = inner is not None and inner.form == "diagonal"
            kind = type(module).__name__
            self._rows[name] = Row(
                name,
                kind,
                series,
                diagonal=diagonal,
                keeps_time=keeps_time,
                by_timestep=self._by_timestep,
            )
        return self._rows[name]

    def _check_batch(self, observation: Observation, batch_size: int) -> None:
        self._run, self.last_run = observation.run, None
        if self._batch_size is None:
            self._batch_size = batch_size
        elif batch_size != self._batch_size:
            raise EnergyError(
                f"the batch size changed within a run, from {self._batch_size} to {batch_size}, at "
                f"layer {observation.name!r}. Calls within a run are timesteps of one batch: call "
                "meter.next_run() before another batch; if one call holds the whole sequence, say "
                "EnergyMeter(model, sequence=True)."
            )


def _has_own_phases(observation: Observation) -> bool:
    """Whether each sample has phases of its own, so that counts are spread sample by sample."""
    phases = observation.run.phases
    return phases is not None and phases.ndim == 2


def _phases(run: Run, steps: int) -> Tensor:
    """Which timestep is in which phase: float64 ``[phases, T]`` of 0 and 1.

    ``[phases, T, B]`` where each sample has its own.
    """
    own = () if run.phases is None else run.phases.shape[1:]
    phases = torch.zeros(len(_ROWS), steps, *own, dtype=torch.float64)
    if run.phases is None:
        phases[_ROWS.index(_UNKNOWN)] = 1
        return phases
    for code, name in _PHASES.items():
        phases[_ROWS.index(name)] = run.phases == code
    return phases
