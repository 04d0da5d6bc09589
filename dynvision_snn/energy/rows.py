"""The running sums of a measurement: one `Row` per layer, fed call by call, merged run by run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from dynvision_snn.energy.counting import Tally, synops, tally
from dynvision_snn.energy.layers import LayerCounts, Series
from dynvision_snn.energy.sums import Spread, Sums, joined_on_one
from dynvision_snn.energy.synapses import FanOut, Operator, dense_synops
from dynvision_snn.observation import Observation


class Tallied(NamedTuple):
    """A tally, and the memory that it is of, so that the same values are not reduced twice.

    The memory is known by its storage, held weakly, and by the version that in-place operations
    count. Tensors made in inference mode count no versions, so nothing is taken as known of them.
    The units may have another shape where the same values are seen again, as after a Flatten.
    """

    tally: Tally
    storage: StorageWeakRef | None
    place: tuple[object, ...]

    @classmethod
    def of(cls, values: Tensor, *known: Tallied | None) -> Tallied:
        """The tally of ``[T, B, *units]``, taken from one of `known` where it is of the same."""
        if values.is_inference() or not values.is_contiguous():
            return cls(tally(values), None, ())
        shape = values.shape
        place = (
            values.data_ptr(),
            values._version,
            shape[0],
            shape[1],
            shape.numel(),
            values.dtype,
        )
        for other in known:
            if (
                other is not None
                and other.place == place
                and other.storage is not None
                and not other.storage.expired()
            ):
                return other
        return cls(tally(values), StorageWeakRef(values.untyped_storage()), place)


NEURONS: tuple[Series, ...] = ("neuron_updates_active", "neuron_updates")
SYNAPSES: tuple[Series, ...] = ("synops", "synops_weighted", "events", "synops_dense")
"""The series of a row: those that are counted, and last the one that follows from shapes alone."""

UNWANTED: Mapping[Series, Tensor] = MappingProxyType({})
"""No counts of each sample."""


class Noted(NamedTuple):
    """One call.

    Attributes:
        t0, t1: its timesteps.
        tick: how often the whole model had been called before.
        counts: of the row's series, those that are counted, ``[t1 - t0]`` each; ``[t1 - t0, B]``
            where samples have their own phases; empty in silence.
        by_sample: counts of each sample, ``[t1 - t0, B]``; empty unless they are wanted.
        dense: dense operations of a sample and timestep.
        seen: what was received, or emitted, as in a `Tally`; of it alone, for the rest of it has
            O(units) numbers and is not kept.
    """

    t0: int
    t1: int
    tick: int
    counts: tuple[Tensor, ...]
    by_sample: Mapping[Series, Tensor]
    dense: int
    seen: Tensor | None

    def at(self, t0: int) -> Noted:
        """The same call, its timesteps counted from `t0`."""
        if t0 == self.t0:
            return self
        return self._replace(t0=t0, t1=t0 + self.t1 - self.t0)


def output_size(operator: Operator, output: Tensor | None) -> torch.Size | None:
    """The size of a ConvTranspose's output ``[T, B, C, *size]``, which its caller may choose.

    None for others, whose input decides.
    """
    if output is None or not isinstance(operator, nn.modules.conv._ConvTransposeNd):
        return None
    return output.shape[3:]


class Row:
    """What is counted of one layer, or of the weights inside one.

    Args:
        name: the row's name in the budget.
        kind: class name of the layer.
        series: what it has, `NEURONS` or `SYNAPSES`.
        diagonal: whether its weights are one-to-one.
        keeps_time: whether it is called exactly once per timestep, as a layer with state is.
        by_timestep: whether its sums keep timesteps apart.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        series: tuple[Series, ...] = SYNAPSES,
        *,
        diagonal: bool = False,
        keeps_time: bool = False,
        by_timestep: bool = True,
    ) -> None:
        self.name, self.kind, self.series = name, kind, series
        self.keeps_time = keeps_time
        self.neurons = self.spiking_units = 0
        self.inputs = self.outputs = 0
        self.synapses: Tensor | None = None
        self.last: Tallied | None = None
        self.last_counted: tuple[Tally, Tensor, tuple[Tensor, ...]] | None = None
        self.shown, self.idle = (Sums(len(series), by_timestep) for _ in range(2))
        self.noted: list[Noted] = []
        self._diagonal = diagonal
        self._known_fan_out = FanOut(diagonal=diagonal)
        self._dense: dict[tuple[object, ...], int] = {}
        self.dense_now = 0

    def drop_run(self) -> None:
        """Forgets the current run; the next one looks at the weights anew."""
        self.last = self.last_counted = None
        self.noted = []
        self._known_fan_out.refresh()

    @property
    def n_timesteps(self) -> int:
        """Timesteps of the current run seen so far, idle ones apart."""
        return max((call.t1 for call in self.noted), default=0)

    def fan_out(
        self,
        operator: Operator,
        unit_shape: torch.Size,
        device: torch.device | None = None,
        output_size: torch.Size | None = None,
    ) -> Tensor:
        """The fan-out of the row's weights, float64 ``[*units]``."""
        fan_out = self._known_fan_out(operator, unit_shape, output_size, device)
        shapes = (unit_shape, output_size)
        if shapes not in self._dense:
            self._dense[shapes] = dense_synops(
                operator, unit_shape, diagonal=self._diagonal, output_size=output_size
            )
            self.synapses = fan_out.sum()
            self.inputs = math.prod(unit_shape)
        self.dense_now = self._dense[shapes]
        return fan_out

    def counted(self, values: Tally, fan_out: Tensor) -> tuple[Tensor, ...]:
        """What is counted of `values`, worked out once for values that do not change."""
        known = self.last_counted
        if known is not None and known[0] is values and known[1] is fan_out:
            return known[2]
        counts = (*synops(values, fan_out), values.events)
        self.last_counted = (values, fan_out, counts)
        return counts

    def note(
        self,
        observation: Observation,
        tick: int,
        counts: tuple[Tensor, ...],
        seen: Tensor | None,
        by_sample: Mapping[Series, Tensor] = UNWANTED,
    ) -> None:
        """Notes the counts of one call, and what it was counted from."""
        t0, t1 = observation.t0, observation.t1
        self.noted.append(Noted(t0, t1, tick, counts, by_sample, self.dense_now, seen))

    def note_silence(self, observation: Observation, tick: int, operator: Operator) -> None:
        """Notes a call in which the synapses received nothing; dense operations count still."""
        self.dense_of_silence(observation, operator)
        self.note(observation, tick, (), None)

    def dense_of_silence(self, observation: Observation, operator: Operator) -> int:
        """Dense operations of a sample and timestep at which the synapses received nothing.

        A convolution's input shape is the layer's own; a matrix's is its second axis.
        """
        output = observation.output
        if isinstance(operator, Tensor) and not self._diagonal:
            self.fan_out(operator, operator.shape[1:])
        elif output is not None:
            self.fan_out(operator, output.shape[2:])
        return self.dense_now

    def close_run(
        self, spread: Spread, idle: Spread, *, per_sample: bool = False
    ) -> dict[Series, Tensor]:
        """Adds the run to the sums.

        Args:
            spread: of its timesteps.
            idle: of its idle timesteps, in one phase.
            per_sample: whether counts of each sample are wanted.

        Returns:
            What was counted of each sample, ``[T, B]``; empty where it was not wanted.
        """
        n_idle = idle.n_timesteps
        shown = [call for call in self.noted if call.t0 >= 0]
        before = [call.at(call.t0 + n_idle) for call in self.noted if call.t0 < 0]
        self._add(self.shown, shown, spread)
        if n_idle:
            self._add(self.idle, before, idle)
        by_sample = (
            self._by_sample(shown, spread.n_timesteps, spread.batch_size) if per_sample else {}
        )
        self.drop_run()
        return by_sample

    def counts(self, sums: Sums, phases: Sequence[int], n_timesteps: int) -> LayerCounts:
        """The sums of this row as a budget takes them, of some phases and `n_timesteps` columns.

        What kind of values its connections carry is told from the whole measurement: idle or
        not, they are the same connections.
        """
        least = [float(part.least) for part in (self.shown, self.idle) if part.least is not None]
        most = [float(part.most) for part in (self.shown, self.idle) if part.most is not None]
        table = sums.total.of(phases, n_timesteps)
        series: dict[Series, Tensor] = dict(zip(self.series, table.unbind(1), strict=True))
        if self.spiking_units and "neuron_updates_active" in series:
            series["spikes"] = series["neuron_updates_active"]
        return LayerCounts(
            name=self.name,
            kind=self.kind,
            neurons=self.neurons,
            spiking_units=self.spiking_units,
            synapses=0 if self.synapses is None else round(float(self.synapses)),
            inputs=self.inputs,
            outputs=self.outputs,
            series=series,
            # Not min and max, which may lose a NaN.
            **({"least": float(torch.tensor(least, dtype=torch.float64).amin())} if least else {}),
            **({"most": float(torch.tensor(most, dtype=torch.float64).amax())} if most else {}),
        )

    def _add(self, sums: Sums, calls: Sequence[Noted], spread: Spread) -> None:
        n_timesteps = spread.n_timesteps
        heard = [(call, call.counts) for call in calls if call.counts]
        counted = _over_time(heard, n_timesteps, len(self.series) - 1)
        known = self._updates if self.series is NEURONS else self._dense_over_time
        seen = [call.seen for call in calls if call.seen is not None]
        sums.add(counted, known(calls, n_timesteps), spread, seen)

    def _by_sample(
        self, calls: Sequence[Noted], n_timesteps: int, batch_size: int
    ) -> dict[Series, Tensor]:
        names = dict.fromkeys(name for call in calls for name in call.by_sample)
        series = {
            name: _over_time(
                [(call, (call.by_sample[name],)) for call in calls if name in call.by_sample],
                n_timesteps,
            )[0]
            for name in names
        }
        if self.neurons:
            updates = self._updates(calls, n_timesteps)
            series["neuron_updates"] = updates[:, None].expand(-1, batch_size)
            if self.spiking_units and "neuron_updates_active" in series:
                series["spikes"] = series["neuron_updates_active"]
        # Dense operations are done in silence, too, of which a short run may consist.
        if self.synapses is not None:
            dense = self._dense_over_time(calls, n_timesteps)
            series["synops_dense"] = dense[:, None].expand(-1, batch_size)
        return series

    def _updates(self, calls: Sequence[Noted], n_timesteps: int) -> Tensor:
        times = [0] * n_timesteps
        for call in calls:
            times[call.t0 : call.t1] = [self.neurons] * (call.t1 - call.t0)
        return torch.tensor(times, dtype=torch.float64)

    def _dense_over_time(self, calls: Sequence[Noted], n_timesteps: int) -> Tensor:
        dense = [0] * n_timesteps
        for call in calls:
            for t in range(call.t0, call.t1):
                dense[t] += call.dense
        return torch.tensor(dense, dtype=torch.float64)


def _over_time(
    calls: Sequence[tuple[Noted, Sequence[Tensor]]], n_timesteps: int, n_series: int = 1
) -> Tensor:
    """Counts of calls, of each series ``[t1 - t0, ...]``, as float64 ``[series, T, ...]``.

    A timestep called twice holds the sum.
    """
    if not calls:
        return torch.zeros(n_series, n_timesteps, dtype=torch.float64)
    joined = joined_on_one([counts[i] for i in range(n_series) for _, counts in calls])
    joined = joined.unflatten(0, (n_series, -1))
    steps = [t for call, _ in calls for t in range(call.t0, call.t1)]
    if steps == list(range(n_timesteps)):
        return joined
    over_time = joined.new_zeros(n_series, n_timesteps, *joined.shape[2:])
    return over_time.index_add_(1, torch.tensor(steps).to(joined.device, non_blocking=True), joined)
