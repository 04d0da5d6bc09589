"""The ledger of a measurement: observations in, sums by layer, phase and timestep out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import InnerSynapses, Role
from dynvision_snn.energy.budget import EnergyBudget
from dynvision_snn.energy.counting import nonzero_per_sample, synops_per_sample
from dynvision_snn.energy.foldable import is_foldable, uses_batch_statistics
from dynvision_snn.energy.layers import Series
from dynvision_snn.energy.placing import place_calls
from dynvision_snn.energy.rows import Row, Tallied, grown
from dynvision_snn.energy.samples import WHOLE, Kept, RunSamples, SampleEnergy
from dynvision_snn.energy.synapses import Operator, refusal
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


class Ledger:
    """What was counted of every layer: the current run's calls, and the sums of finished runs.

    Args:
        fold: whether average pooling and batch normalisation in evaluation mode cost nothing.
        per_sample: whether the cost of every sample is kept.

    Attributes:
        met: the names of the modules that were called.
        uncounted: modules that could not be counted, and why.
        dt: the timestep of the finished runs in ms; None where none said it.
        last_run: the run that ended last by sample, until the next one begins.
        kept: by moment, what each sample of each run cost.
    """

    def __init__(self, *, fold: bool = False, per_sample: bool = False) -> None:
        self.met: set[str] = set()
        self.uncounted: dict[str, str] = {}
        self.dt: float | None = None
        self.last_run: RunSamples | None = None
        self.kept: dict[str, list[Kept]] = {WHOLE: []}
        self._fold, self._per_sample = fold, per_sample
        self._rows: dict[str, Row] = {}
        self._refusals: dict[str, str | None] = {}
        self._samples = torch.zeros(len(_ROWS), 0, dtype=torch.float64)
        self._idle_samples = torch.zeros(1, 0, dtype=torch.float64)
        self.drop_run()

    @property
    def is_empty(self) -> bool:
        """Whether no run has ended."""
        return self._samples.shape[1] == 0

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
            phases = _phases(run, steps)
            self._samples = grown(self._samples, phases * batch_size)
            idle = torch.ones(1, run.idle_steps, dtype=torch.float64)
            self._idle_samples = grown(self._idle_samples, idle * batch_size)
            by_row = {row.name: row.close_run(phases, idle, batch_size) for row in rows}
            if self._per_sample:
                self.last_run = RunSamples(by_row, steps, batch_size)
                self.kept[WHOLE].append(self.last_run.whole())
            self.dt = run.dt if run.dt is not None else self.dt
        finally:
            self.drop_run()

    # -- results ----------------------------------------------------------------------------------

    def budget(self, dt: float, uncounted: dict[str, str]) -> EnergyBudget:
        """The sums as a budget; `uncounted` are further modules that were missed."""
        shown = [row for row, samples in enumerate(self._samples) if bool(samples.any())]
        idle = None
        if self._idle_samples.shape[1]:
            idle = EnergyBudget(
                counts=[row.counts(row.idle, [0]) for row in self._rows.values()],
                samples=self._idle_samples,
                dt=dt,
                phases=("idle",),
            )
        return EnergyBudget(
            counts=[row.counts(row.shown, shown) for row in self._rows.values()],
            samples=self._samples[shown],
            dt=dt,
            phases=tuple(_ROWS[row] for row in shown),
            uncounted=self.uncounted | uncounted,
            idle=idle,
        )

    def sample_energy(self, budget: EnergyBudget) -> SampleEnergy:
        """The cost of every sample; `budget` is of the same measurement."""
        return SampleEnergy.of_runs(budget.counts, self.kept)

    # -- counting ---------------------------------------------------------------------------------

    @torch.no_grad()
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
        if name not in self._refusals:
            self._refusals[name] = None if is_foldable(module) else refusal(module)
        reason = self._refusals[name]
        if reason is None and is_foldable(module):
            if uses_batch_statistics(module):
                reason = "it normalises by the statistics of its own batch"
            elif self._fold:
                return
        if reason is None and observation.inputs is None:
            reason = "which timesteps its calls belong to could not be told"
        if reason is not None:
            self.uncounted.setdefault(name, reason)
            return
        row = self._row(name, module)
        self._count_synapses(row, observation, module, observation.inputs)

    def _count_neurons(self, observation: Observation) -> None:
        layer, output = observation.layer, observation.output
        assert layer is not None
        if output is None:
            self.uncounted.setdefault(observation.name, "its output could not be read")
            return
        if not layer.is_stateful:
            return
        self._check_batch(observation, output.shape[1])
        row = self._row(observation.name, observation.module, keeps_time=True)
        row.spiking = layer.traits.role is Role.SPIKING
        row.neurons = output[0, 0].numel()
        self._last_output = Tallied.of(output)
        by_sample: dict[Series, Tensor] = {}
        if self._per_sample:
            by_sample["neuron_updates_active"] = nonzero_per_sample(output, sequence=True)
        values = self._last_output.tally
        active: dict[Series, Tensor] = {"neuron_updates_active": values.events}
        row.note(observation, self._ticks, active, by_sample, values, synaptic=False)

    def _count_inner_synapses(self, observation: Observation) -> None:
        assert observation.layer is not None
        if not observation.presynaptic:
            return
        inner = observation.layer.adapter.synapses(observation.module)
        for synapses, values in zip(inner, observation.presynaptic, strict=True):
            name = f"{observation.name}.{synapses.name}"
            row = self._row(name, observation.module, synapses, keeps_time=True)
            self._count_synapses(row, observation, synapses.operator, values)

    def _count_synapses(
        self, row: Row, observation: Observation, operator: Operator, values: Tensor | None
    ) -> None:
        if values is None:
            row.note_silence(observation, self._ticks, operator)
            return
        self._check_batch(observation, values.shape[1])
        seen = Tallied.of(values, row.last, self._last_output)
        row.last = seen
        output = observation.output
        size = None
        if isinstance(operator, nn.modules.conv._ConvTransposeNd) and output is not None:
            size = output.shape[3:]
        if output is not None:
            row.outputs = output[0, 0].numel()
        fan_out = row.fan_out(operator, seen.unit_shape, values.device, size)
        series = row.counted(seen.tally, fan_out)
        by_sample: dict[Series, Tensor] = {}
        if self._per_sample:
            by_sample["synops"] = synops_per_sample(values, fan_out, sequence=True)
        row.note(observation, self._ticks, series, by_sample, seen.tally, synaptic=True)

    def _row(
        self,
        name: str,
        module: nn.Module,
        inner: InnerSynapses | None = None,
        *,
        keeps_time: bool = False,
    ) -> Row:
        if name not in self._rows:
            diagonal = inner is not None and inner.form == "diagonal"
            kind = type(module).__name__
            self._rows[name] = Row(name, kind, diagonal=diagonal, keeps_time=keeps_time)
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


def _phases(run: Run, steps: int) -> Tensor:
    """Which timestep is in which phase: float64 ``[phases, T]`` of 0 and 1."""
    phases = torch.zeros(len(_ROWS), steps, dtype=torch.float64)
    if run.phases is None:
        phases[_ROWS.index(_UNKNOWN)] = 1
        return phases
    for code, name in _PHASES.items():
        phases[_ROWS.index(name)] = run.phases == code
    return phases
