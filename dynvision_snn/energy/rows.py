"""The running sums of a measurement: one `Row` per layer, fed call by call, merged run by run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from dynvision_snn.energy.counting import Tally, tally
from dynvision_snn.energy.layers import LayerCounts, Series
from dynvision_snn.energy.synapses import FanOut, Operator, dense_synops
from dynvision_snn.observation import Observation


def grown(total: Tensor, run: Tensor) -> Tensor:
    """The sum of two ``[phases, T]``, each as long as it is."""
    longer, shorter = (total, run) if total.shape[1] >= run.shape[1] else (run, total)
    summed = longer.clone()
    summed[:, : shorter.shape[1]] += shorter.to(summed.device)
    return summed


@dataclass(frozen=True, slots=True)
class Tallied:
    """A tally, and the memory that it is of, so that the same values are not reduced twice.

    The memory is known by its storage, held weakly, and by the version that in-place operations
    count. In inference mode nothing counts versions: a tensor overwritten in place there between
    two layers keeps the tally of its first reader.
    """

    tally: Tally
    storage: StorageWeakRef
    place: tuple[int | None, ...]

    @classmethod
    def of(cls, values: Tensor, *known: Tallied | None) -> Tallied:
        """The tally of ``[T, B, *units]``, taken from one of `known` where it is of the same."""
        storage = StorageWeakRef(values.untyped_storage())
        place = (
            values.storage_offset(),
            *values.shape[:2],
            values.numel(),
            None if values.is_inference() else values._version,
        )
        if values.is_contiguous():
            for other in known:
                if (
                    other is not None
                    and other.place == place
                    and other.storage.cdata == storage.cdata
                    and not other.storage.expired()
                ):
                    return cls(other.tally.reshaped(values.shape[2:]), storage, place)
        else:
            place = (None,)
        return cls(tally(values, sequence=True), storage, place)

    @property
    def unit_shape(self) -> torch.Size:
        """Shape of one sample at one timestep."""
        return self.tally.unit_shape


@dataclass(slots=True)
class Sums:
    """Sums over runs, on the layer's device: series ``[phases, T]``, and what was received."""

    series: dict[Series, Tensor] = field(default_factory=dict)
    least: Tensor | None = None
    most: Tensor | None = None

    def add(self, series: Mapping[Series, Tensor], phases: Tensor, values: Sequence[Tally]) -> None:
        """Adds one run: series ``[T]``, spread over its `phases`, ``[phases, T]``."""
        for name, counts in series.items():
            spread = phases.to(counts.device) * counts
            known = self.series.get(name)
            self.series[name] = spread if known is None else grown(known.to(spread.device), spread)
        if values:
            least = torch.cat([value.least for value in values]).amin()
            most = torch.cat([value.most for value in values]).amax()
            self.least = least if self.least is None else torch.minimum(self.least, least)
            self.most = most if self.most is None else torch.maximum(self.most, most)

    def counts(self, row: Row, phases: Sequence[int]) -> LayerCounts:
        """The counts as a budget takes them, of some phases."""
        return LayerCounts(
            name=row.name,
            kind=row.kind,
            neurons=row.neurons,
            synapses=0 if row.synapses is None else round(float(row.synapses)),
            series={name: counts[list(phases)] for name, counts in self.series.items()},
            **({} if self.least is None else {"least": float(self.least)}),
            **({} if self.most is None else {"most": float(self.most)}),
        )


class Row:
    """What is counted of one layer, or of the weights inside one.

    Args:
        name: the row's name in the budget.
        kind: class name of the layer.
        diagonal: whether its weights are one-to-one.
    """

    def __init__(self, name: str, kind: str, *, diagonal: bool = False) -> None:
        self.name, self.kind = name, kind
        self.neurons = 0
        self.spiking = False
        self.synapses: Tensor | None = None
        self.last: Tallied | None = None
        self.shown, self.idle = Sums(), Sums()
        self._diagonal = diagonal
        self._known_fan_out = FanOut(diagonal=diagonal)
        self._dense: dict[tuple[int, ...], int] = {}
        self._dense_now = 0
        self.drop_run()

    def drop_run(self) -> None:
        """Forgets the current run."""
        self.last = None
        self._known_fan_out.refresh()
        self._noted: list[_Noted] = []

    @property
    def n_timesteps(self) -> int:
        """Timesteps of the current run seen so far, idle ones apart."""
        return max((call.t1 for call in self._noted), default=0)

    def fan_out(self, operator: Operator, unit_shape: torch.Size) -> Tensor:
        """The fan-out of the row's weights, float64 ``[*units]``."""
        fan_out = self._known_fan_out(operator, unit_shape)
        if tuple(unit_shape) not in self._dense:
            self._dense[tuple(unit_shape)] = dense_synops(
                operator, unit_shape, diagonal=self._diagonal
            )
            self.synapses = fan_out.sum()
        self._dense_now = self._dense[tuple(unit_shape)]
        return fan_out

    def note(
        self, observation: Observation, series: Mapping[Series, Tensor], values: Tally | None = None
    ) -> None:
        """Notes the counts of one call, ``[t1 - t0]`` each, and what synapses received."""
        dense = self._dense_now if values is not None else 0
        self._noted.append(_Noted(observation.t0, observation.t1, series, dense, values))

    def note_silence(self, observation: Observation, operator: Operator) -> None:
        """Notes a call in which the synapses received nothing: dense operations count all the same.

        A convolution's input shape is the layer's own; a matrix's is its second axis.
        """
        output = observation.output
        if isinstance(operator, Tensor) and not self._diagonal:
            self.fan_out(operator, operator.shape[1:])
        elif output is not None:
            self.fan_out(operator, output.shape[2:])
        self._noted.append(_Noted(observation.t0, observation.t1, {}, self._dense_now, None))

    def close_run(self, phases: Tensor, idle: Tensor, batch_size: int) -> None:
        """Adds the run to the sums.

        Args:
            phases: the phases of its timesteps, ``[phases, T]`` of 0 and 1.
            idle: the same of its idle timesteps, ``[1, T_idle]``.
            batch_size: B.
        """
        n_idle = idle.shape[1]
        shown = [call for call in self._noted if call.t0 >= 0]
        before = [call.later(n_idle) for call in self._noted if call.t0 < 0]
        self._add(self.shown, shown, phases, batch_size)
        self._add(self.idle, before, idle, batch_size)
        self.drop_run()

    def _add(self, sums: Sums, calls: Sequence[_Noted], phases: Tensor, batch_size: int) -> None:
        n_timesteps = phases.shape[1]
        names = {name for call in self._noted for name in call.series}
        series = {name: _over_time(calls, name, n_timesteps) for name in names}
        times = torch.zeros(n_timesteps, dtype=torch.float64)
        dense = torch.zeros(n_timesteps, dtype=torch.float64)
        for call in calls:
            times[call.t0 : call.t1] = 1
            dense[call.t0 : call.t1] += call.dense
        if self.neurons:
            series["neuron_updates"] = times * self.neurons * batch_size
            if self.spiking:
                series["spikes"] = series["neuron_updates_active"]
        if "synops" in series or self.synapses is not None:
            series["synops_dense"] = dense * batch_size
            for name in ("synops", "synops_weighted"):
                series.setdefault(name, torch.zeros(n_timesteps, dtype=torch.float64))
        sums.add(series, phases, [call.values for call in calls if call.values is not None])


@dataclass(frozen=True, slots=True)
class _Noted:
    """One call: its timesteps, counts ``[t1 - t0]``, dense operations of a sample and timestep."""

    t0: int
    t1: int
    series: Mapping[Series, Tensor]
    dense: int
    values: Tally | None

    def later(self, steps: int) -> _Noted:
        """The same call, its timesteps counted from `steps` earlier."""
        return replace(self, t0=self.t0 + steps, t1=self.t1 + steps)


def _over_time(calls: Sequence[_Noted], name: Series, n_timesteps: int) -> Tensor:
    """One series of all calls, float64 ``[T]``; a timestep called twice holds the sum."""
    counted = [(call, call.series[name]) for call in calls if name in call.series]
    if not counted:
        return torch.zeros(n_timesteps, dtype=torch.float64)
    joined = torch.cat([counts.reshape(-1) for _, counts in counted])
    steps = [t for call, _ in counted for t in range(call.t0, call.t1)]
    if steps == list(range(n_timesteps)):
        return joined
    over_time = joined.new_zeros(n_timesteps)
    return over_time.index_add_(0, torch.tensor(steps, device=joined.device), joined)
