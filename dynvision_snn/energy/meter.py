"""EnergyMeter: counts what a network does while it runs, in any loop, and keeps no activation.

Counted, streaming: spikes and updates of neuron layers; synaptic operations of Linear and
convolution layers, of the weights inside neuron modules, and of average pooling and batch
normalisation. Not counted, but named in the budget: every other module with weights or operations
of its own that is met, and every module with weights that is not. Not seen at all: operations of
functions that belong to no module of their own (a ``torch.matmul`` in a forward).

Every call costs a few reductions and one dot product with a remembered fan-out; a neuron's spikes
and the next layer's operations are counted from the same reduction, and so is an input that does
not change from one timestep to the next. Nothing waits for the device until the budget is asked
for, and memory is a few numbers per layer, phase and timestep, or with ``by_timestep=False`` per
layer and phase.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from dynvision_snn.adapters import Adapter
from dynvision_snn.energy.budget import EnergyBudget
from dynvision_snn.energy.ledger import Ledger
from dynvision_snn.energy.reducing import summed_over_ranks
from dynvision_snn.energy.running import Onsets
from dynvision_snn.energy.samples import WHOLE, SampleEnergy
from dynvision_snn.energy.survey import (
    adapters_for,
    check_not_replaced,
    never_called,
    outside_runs,
    with_operations,
)
from dynvision_snn.errors import EnergyError
from dynvision_snn.observation import (
    Attachment,
    Listener,
    Observation,
    Run,
    Watched,
    is_recomputing,
)
from dynvision_snn.timing import common_dt


class EnergyMeter(Listener):
    """Counts spikes, synaptic operations and neuron updates inside a ``with`` block.

    Calls within a run are successive timesteps of one batch. A `TimedModel` says where runs begin;
    in a bare loop one block is one run unless `next_run` starts another. A run that fails is not
    counted; runs that ended before are.

    Args:
        module: any module, in any loop: a `TimedModel`, a module that holds one, or a bare net.
        sequence: in a bare loop, whether Linear and Conv layers receive whole sequences,
            ``[T, B, ...]``. Neuron layers are known, and so is a TimedModel.
        fold: whether average pooling, and batch normalisation in evaluation mode, cost nothing, as
            if folded into the weights next to them. By default their connections are counted.
        per_sample: whether the cost of every sample is kept (`sample_energy`), up to the moments
            that `mark` is told. It costs a float64 copy of what synapses receive.
        by_timestep: whether counts are kept by timestep. If not, nothing that is kept grows with
            the length of a run, and the budget has sums by layer and phase alone.
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
    hears_membranes: ClassVar[bool] = False

    def __init__(
        self,
        module: nn.Module,
        *,
        sequence: bool = False,
        fold: bool = False,
        per_sample: bool = False,
        by_timestep: bool = True,
        adapters: Iterable[Adapter] = (),
    ) -> None:
        self._host, self._sequence = module, sequence
        self._adapters = adapters_for(module, adapters)
        self._watched: Sequence[Watched] = with_operations(module, self._adapters)
        self._attachment: Attachment | None = None
        self._opened = False
        self._per_sample = per_sample
        self._ledger = Ledger(fold=fold, per_sample=per_sample, by_timestep=by_timestep)
        self._ledger.uncounted.update(outside_runs(module))

    # -- the block --------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._opened:
            raise EnergyError(
                "this EnergyMeter has been used already; make a new one for each measurement."
            )
        self._opened = True
        self._watched = with_operations(self._host, self._adapters)
        self._attachment = Attachment(self._host, self, self._watched, sequence=self._sequence)
        self._host_hook = self._host.register_forward_hook(_Tick(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._attachment is not None
        self._attachment.close()
        self._host_hook.remove()
        if kind is not None:
            self._ledger.drop_run()
            return
        self._ledger.close_run()
        self._check_modules()

    def next_run(self) -> None:
        """In a bare loop: the next call begins another run, with timestep 0.

        Raises:
            EnergyError: outside the block, or if the run that ends cannot be told apart in time.
        """
        if self._attachment is None or self._attachment.closed:
            raise EnergyError("next_run() belongs inside the meter's `with` block.")
        self._attachment.begin_run(Run())

    def mark(self, name: str, times: Tensor, onsets: Onsets = (0,)) -> None:
        """Keeps what each sample of the last run cost from each onset through a moment.

        Call it after a TimedModel's run (in a bare loop, after `next_run`), before the next one. Of
        a run in chunks, call it after each of them, with the moments that are known by then: counts
        by timestep are kept of the last chunk alone.

        Args:
            name: what the moment is called, such as ``"settling"`` or ``"decision"``.
            times: ms after each onset, ``[onsets, B]``; NaN for a sample that has no such moment,
                or none yet. The timestep in which it lies is included. After a later chunk of the
                run a moment may have moved into that chunk, or have gone.
            onsets: timesteps of the run at which the counting begins, as ``Presentation.onsets``;
                or those of each sample, ``[onsets, B]``, with -1 where it has fewer.

        Raises:
            EnergyError: without ``per_sample=True``, without a finished run or a known dt, or times
                that do not fit the run.
        """
        if not self._per_sample or name == WHOLE:
            raise EnergyError(
                f"mark({name!r}) needs EnergyMeter(model, per_sample=True) and another name than "
                f"{WHOLE!r}."
            )
        last, dt = self._ledger.last_run, self._ledger.dt
        if last is None or dt is None:
            raise EnergyError(
                f"mark({name!r}) belongs after a run of a TimedModel, whose timestep is known, and "
                "before the next one begins."
            )
        self._ledger.mark(name, last, times, onsets, dt)

    def budget(self, dt: float | None = None) -> EnergyBudget:
        """What was counted, per sample. Inside the block it ends the run.

        Args:
            dt: length of a timestep in ms; not needed where the module is a TimedModel.

        Raises:
            EnergyError: if nothing was observed, no dt is known, values were NaN, or modules were
                replaced during the measurement.
            TimingError: if `dt` is not the TimedModel's.
        """
        if self._attachment is not None and not self._attachment.closed:
            self.next_run()
            self._check_modules()
        known = {"the model": self._ledger.dt, "budget": dt}
        given = {whose: value for whose, value in known.items() if value is not None}
        if not given:
            raise EnergyError(
                "no timestep is known: a bare module has none. Say its length in ms: "
                "meter.budget(dt=1.0)."
            )
        if self._ledger.is_empty:
            raise EnergyError(
                "no call was observed, so there is nothing to budget. Run the module inside the "
                "`with` block, on the very object that the meter was given; a run that failed is "
                "not counted. A model compiled and run before its hooks were there may not see "
                "them: call torch._dynamo.reset(), or meter the model uncompiled."
            )
        missed = never_called(self._watched, self._ledger.met)
        return self._ledger.budget(common_dt(given), missed)

    def all_reduce(self, dt: float | None = None, group: Any = None) -> EnergyBudget:
        """The budget of all ranks of ``torch.distributed``, the same on each: a collective call.

        Whether a connection carries spikes is decided on the values of all ranks. A rank that
        observed nothing adds nothing.

        Args:
            dt: as in `budget`.
            group: process group; the default one if None.

        Raises:
            EnergyError: if no rank observed anything, or, on every rank, what went wrong on one.
        """
        return summed_over_ranks(lambda: self.budget(dt), not self._ledger.is_empty, group)

    @property
    def sample_energy(self) -> SampleEnergy:
        """What every sample cost, of all finished runs in their order.

        Raises:
            EnergyError: without ``per_sample=True``, or if nothing was observed.
        """
        if not self._per_sample:
            raise EnergyError("the cost of samples needs EnergyMeter(model, per_sample=True).")
        # Counts do not depend on the length of a timestep.
        return self._ledger.sample_energy(self.budget(self._ledger.dt or 1.0))

    # -- observing --------------------------------------------------------------------------------

    def begin_run(self, run: Run) -> None:
        """The counts of the run before are complete."""
        self._ledger.close_run()

    def end_run(self, run: Run) -> None:
        """The run's counts join the totals."""
        self._ledger.close_run()

    def abandon_run(self, run: Run) -> None:
        """A run that failed is not counted."""
        self._ledger.drop_run()

    def observe(self, observation: Observation) -> None:
        """Counts one call of a layer."""
        try:
            self._ledger.observe(observation)
        except EnergyError:
            # What was counted of the run is incomplete from here on, so it must not count at all.
            self._ledger.drop_run()
            if self._attachment is not None and observation.run.n_timesteps is None:
                self._attachment.begin_run(Run())
            raise

    def _check_modules(self) -> None:
        check_not_replaced(self._watched, with_operations(self._host, self._adapters))


class _Tick:
    """The hook on the whole model: counts its calls. Deep copies and pickles of it are inert."""

    def __init__(self, meter: EnergyMeter | None = None) -> None:
        self._meter = None if meter is None else weakref.ref(meter)

    def __call__(self, *called: Any) -> None:
        meter = None if self._meter is None else self._meter()
        if meter is not None and not is_recomputing():
            meter._ledger.tick()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Tick:
        return _Tick()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Tick, ()
