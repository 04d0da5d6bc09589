"""Which engine runs a model: the plan where there is one, the step engine otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Adapters
from dynvision_snn.adapters.finding import is_compiled
from dynvision_snn.engine.calling import Calling
from dynvision_snn.engine.layerwise import LayerRun
from dynvision_snn.engine.listeners import Audience, check_hooks, check_listeners
from dynvision_snn.engine.one_call import trace_call
from dynvision_snn.engine.plan import LayerPlan, make_plan
from dynvision_snn.engine.scans.backends import BackendName, backend_for, compilation
from dynvision_snn.engine.signature import names_in_code, signature_of
from dynvision_snn.engine.stand_ins import StandIns
from dynvision_snn.engine.step import run_idle, run_steps
from dynvision_snn.engine.time_loop import loops_by_itself, trace_loop
from dynvision_snn.engine.timed import Timed, map_timed
from dynvision_snn.engine.tracing import Refusal
from dynvision_snn.engine.witness import untouched
from dynvision_snn.errors import WrapError, known_names
from dynvision_snn.freed_memory import LARGEST_BLOCK
from dynvision_snn.observation import Run, RunHost

EngineName = Literal["auto", "step", "layer"]


# Sizes of runs whose plans are kept; data of other lengths in every batch would pile them up.
_MOST_PLANS = 32


# What seeds random numbers: once, while the forward is traced, would be too seldom.
_SEEDING = frozenset(
    {"manual_seed", "manual_seed_all", "seed_everything", "set_rng_state", "fork_rng"}
)


class Shown(Protocol):
    """What a run shows; see `model`."""

    @property
    def idle_steps(self) -> int:
        """Timesteps of null input before the first."""

    @property
    def t0(self) -> int:
        """Which timestep of its run the first is."""

    @property
    def example(self) -> Tensor:
        """The input of one timestep."""

    @property
    def steps(self) -> Tensor | Sequence[Tensor]:
        """The inputs of all timesteps."""

    @property
    def null(self) -> Tensor | None:
        """The null input, where there is idle time."""


class Engine:
    """Keeps the plan of one model, and makes it anew when the model is another.

    Args:
        name: ``"auto"``, ``"step"`` or ``"layer"``.

    Raises:
        WrapError: for another name.
    """

    def __init__(self, name: EngineName) -> None:
        if name not in get_args(EngineName):
            raise WrapError(f"engine={name!r}. {known_names(str(name), get_args(EngineName))}")
        self._name = name
        self._plan: LayerPlan | None = None
        self._plans: dict[tuple[Any, ...], LayerPlan | str] = {}
        self._loops = False
        self._refusal = "it has not run yet"
        self._signature: tuple[Any, ...] | None = None
        self._backend: BackendName | None = None
        self._stand_ins = StandIns()

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes a plan of its own modules.
        return {"_name": self._name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_name"])  # type: ignore[misc]

    def planned(
        self, host: RunHost, calling: Calling, shown: Shown, *, wanted: bool, widest: int
    ) -> LayerPlan | None:
        """The plan for the model as it is now; None where the step engine is to run it.

        Args:
            host: the model.
            calling: how it is called.
            shown: what it is to be shown.
            wanted: whether its first output is.
            widest: the most values that a layer takes of one sample at one timestep.

        Raises:
            WrapError: under ``engine="layer"``, if there is no plan.
        """
        if self._name == "step":
            self._refusal = 'engine="step"'
            return None
        try:
            check_hooks(host.hosted(), host.attached())
            if self._name == "auto" and calling.stepping == "sequence":
                _check_size(shown, widest)
            return self._planned(host.hosted(), host.adapters, calling, shown, wanted)
        except Refusal as refusal:
            self._refused(refusal)
            return None

    def run(
        self,
        plan: LayerPlan,
        host: RunHost,
        calling: Calling,
        shown: Shown,
        run: Run,
        states: tuple[Any, ...],
        widest: int,
        keep_membranes: bool,
    ) -> tuple[Tensor | None, tuple[Any, ...]] | None:
        """The first output over time and the states after it; None where the step engine is to.

        Arguments as in `planned`, the run that listeners are told of, the states before it, and
        whether membranes of recurrent neurons are kept for the backward.

        Raises:
            WrapError: under ``engine="layer"``, if someone watches who could not be told.
        """
        attachments = [a for a in host.attached() if a.listener is not None]
        try:
            check_listeners(plan, attachments)
        except Refusal as refusal:
            self._refused(refusal)
            return None
        self._refusal = ""
        self._backend = backend_for(shown.example)
        at_once = _timesteps_at_once(shown.example, widest)

        def layer_run(t0: int) -> LayerRun:
            return LayerRun(plan, Audience(run, t0, attachments), keep_membranes)

        return _run(plan, host.hosted(), calling, shown, run, layer_run, states, at_once)

    def stepping(self, host: RunHost) -> AbstractContextManager[None]:
        """What a model is called in, timestep by timestep, where there is no plan."""
        if self._name == "step" or not torch.is_grad_enabled():
            return nullcontext()
        net = host.hosted()
        return self._stand_ins.instead(net, host.adapters.layers(net))

    def _refused(self, refusal: Refusal) -> None:
        self._refusal = str(refusal)
        if self._name == "layer":
            raise WrapError(
                f'engine="layer" cannot run this model: {refusal}. Use engine="auto", which then '
                "runs it step by step."
            ) from refusal

    def _planned(
        self,
        net: nn.Module,
        adapters: Adapters,
        calling: Calling,
        shown: Shown,
        wanted: bool,
    ) -> LayerPlan:
        example = shown.example
        if example.dtype is not torch.float32 or example.is_sparse:
            raise Refusal(f"its input is {example.dtype}; scans take dense float32")
        if torch.is_autocast_enabled(example.device.type):
            raise Refusal("autocast changes the dtype on the way")
        # Before any trace: a compiler that is called without hooks takes it that there are none.
        compiled = next((name for name, m in net.named_modules() if is_compiled(m)), None)
        if compiled is not None:
            raise Refusal(f"{compiled or 'the model'} was compiled by torch.compile")
        signature = signature_of(net)
        if self._signature != signature:
            self._signature = signature
            self._plans.clear()
            self._loops = loops_by_itself(calling, adapters, net)
        n_steps = shown.idle_steps + len(shown.steps)
        # What a forward does is known of the number of samples that it was traced with; what a
        # time loop does, of all its sizes.
        sizes = (n_steps, *example.shape, str(example.device)) if self._loops else example.shape[:1]
        sizes = (wanted, *sizes)
        if sizes not in self._plans:
            if len(self._plans) >= _MOST_PLANS:
                del self._plans[next(iter(self._plans))]
            try:
                self._plans[sizes] = _plan(
                    net, adapters, calling, example, n_steps, self._loops, wanted
                )
            except Refusal as refusal:
                self._plans[sizes] = str(refusal)
        plan = self._plans[sizes]
        if isinstance(plan, str):
            raise Refusal(plan)
        self._plan = plan
        return plan

    def explain(self) -> str:
        """The plan in words."""
        if self._refusal or self._plan is None or self._backend is None:
            told = f"step by step, as its library would: {self._refusal}."
            summed = ", ".join(self._stand_ins.summed)
            return told + (f"\n  gradients summed over time   {summed}" if summed else "")
        cost = compilation(self._backend)
        lines = [f"layer by layer, scans by {self._backend}" + (f" ({cost})" if cost else "")]
        if not self._plan.traced.starts_alike:
            lines.append("  the first timestep as it is: its forward makes its own first states")
        for part in self._plan.parts:
            as_it_is = part in self._plan.as_it_is
            if as_it_is or part.manner not in ("pick", "size"):
                manner, reason = part.manner, part.reason
                if as_it_is:
                    manner = "step" if self._plan.stepping == "step" else "whole"
                    reason = _AS_IT_IS.get(part.manner, _NOT_OVER_TIME)
                told = f": {reason}" if reason else ""
                lines.append(f"  {_MANNERS[manner]:<28} {part.name}{told}")
        return "\n".join(lines)


def _plan(
    net: nn.Module,
    adapters: Adapters,
    calling: Calling,
    example: Tensor,
    n_steps: int,
    loops: bool,
    wanted: bool,
) -> LayerPlan:
    seeding = sorted(_SEEDING & names_in_code(net))
    if seeding:
        raise Refusal(f"its forward seeds random numbers ({', '.join(seeding)})")
    layers = adapters.layers(net)
    by_module = {layer.module: layer for layer in layers}
    with untouched(net):
        if loops:
            traced = trace_loop(net, calling, adapters, by_module, example, n_steps, wanted)
        else:
            if calling.time_axis == 1 and example.ndim < 2:
                raise Refusal("its input has no axis of features")
            step = calling.stepping == "step"
            inputs = example if step else example.unsqueeze(calling.time_axis)
            traced = trace_call(net, calling, adapters, by_module, inputs)
    plan = make_plan(net, calling, traced, layers)
    if not plan.is_worth_it:
        reasons = dict.fromkeys(part.reason for part in plan.parts if part.reason)
        raise Refusal("; ".join(reasons) or "it has no neuron that can be scanned")
    return plan


_NOT_OVER_TIME = "its values have too few axes, or do not line up over time"
_AS_IT_IS = {
    "shape": "it moves values between samples, or works along them",
    "scan": "its input or state is not of one shape at all timesteps",
}
_MANNERS = {
    "layer": "timesteps as one batch",
    "join": "timesteps as one batch",
    "shape": "timesteps as one batch",
    "scan": "one scan over time",
    "step": "timestep by timestep",
    "whole": "one call, as it is",
}


def _run(
    plan: LayerPlan,
    net: nn.Module,
    calling: Calling,
    shown: Shown,
    run: Run,
    layer_run: Callable[[int], LayerRun],
    states: tuple[Any, ...],
    at_once: int,
) -> tuple[Tensor | None, tuple[Any, ...]]:
    idle, steps = shown.idle_steps, shown.steps
    if calling.stepping == "sequence":
        before = [] if shown.null is None else [shown.null] * idle
        whole = Timed.of_steps([*before, *steps] if before else steps)
        firsts = plan.traced.firsts
        returned, after = layer_run(-idle)(whole, states if firsts is None else firsts)
        # A time loop of which a layer is decoded may return anything.
        output = None if returned is None else _first(returned)[idle:]
        return output, after if firsts is None else states
    fresh = not plan.traced.starts_alike and states == calling.initial_states
    outputs: list[Tensor] = []
    if shown.null is not None:
        with torch.no_grad():
            if fresh:
                assert run.clock is not None
                states = run_idle(net, calling, shown.null, 1, states, run.clock, of=idle)
            null = Timed(shown.null.unsqueeze(0), torch.zeros(idle - fresh, dtype=torch.int64))
            if len(null):
                _, states = layer_run(fresh - idle)(null, states)
    elif fresh:
        assert run.clock is not None
        run.clock.t = shown.t0
        first, states = run_steps(net, calling, steps[:1], states, run.clock, keep_outputs=True)
        outputs.append(torch.stack(first))
    for t in range(len(outputs), len(steps), at_once):
        stretch = Timed.of_steps(steps[t : t + at_once])
        output, states = layer_run(shown.t0 + t)(stretch, states)
        outputs.append(_first(output))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)), states


def _timesteps_at_once(example: Tensor, widest: int) -> int:
    """How many timesteps of what the widest layer takes fit into a block of memory."""
    if example.device.type != "cpu" or not widest:
        return sys.maxsize
    return max(1, LARGEST_BLOCK // (example.element_size() * len(example) * widest))


def _check_size(shown: Shown, widest: int) -> None:
    """Refuses a model with a time loop of its own that cannot run in stretches, but should.

    Raises:
        Refusal: saying how long a run could be.
    """
    n_steps, most = shown.idle_steps + len(shown.steps), _timesteps_at_once(shown.example, widest)
    if n_steps > most:
        raise Refusal(
            f"of its {n_steps} timesteps no more than {most} fit into a block of "
            f"{-(-LARGEST_BLOCK >> 20)} MiB, and a model with a time loop of its own runs as one; "
            "written as a model of one timestep it would be run in stretches"
        )


def _first(outputs: Any) -> Tensor:
    """The first tensor of what the model returned, over time."""
    found: list[Tensor] = []
    map_timed(lambda timed: found.append(timed.over_time()), outputs)
    return found[0]
