"""Who watches a model, whether a plan can tell them all, and what they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Call, Layer, Role
from dynvision_snn.engine.plan import LayerPlan
from dynvision_snn.engine.scans import Scanned
from dynvision_snn.engine.timed import Timed
from dynvision_snn.engine.tracing import Refusal
from dynvision_snn.finite import FiniteCheck
from dynvision_snn.observation import (
    Attachment,
    LayerHook,
    Observation,
    Run,
    Watched,
    is_recomputing,
)
from dynvision_snn.spike_bits import note_moved


def check_hooks(net: nn.Module, attachments: Sequence[Attachment]) -> None:
    """Refuses a model with hooks other than those of `attachments`, who are told without calls.

    Raises:
        Refusal: naming the module.
    """
    modules = dict(net.named_modules())
    hooks = [
        (name, hook)
        for name, module in modules.items()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    for name, hook in hooks:
        attachment = hook.attachment if isinstance(hook, LayerHook) else None
        listener = None if attachment is None else attachment.listener
        if listener is not None and attachment not in attachments:
            raise Refusal(
                f"{type(listener).__name__} on the bare model hears every call of {name!r}; on the "
                "wrapped one it is told of its runs"
            )
    # Afterwards, since a meter's own hook on the whole model is no more than a part of it.
    for name, hook in hooks:
        if not isinstance(hook, LayerHook):
            raise Refusal(f"a foreign hook on {name!r} wants every call of it")
    for name, module in modules.items():
        if module._backward_hooks or module._backward_pre_hooks:
            raise Refusal(f"a backward hook on {name!r} wants every call of it")


def check_listeners(plan: LayerPlan, attachments: Sequence[Attachment]) -> None:
    """Refuses to run by layer what someone watches who could not be told.

    Raises:
        Refusal: naming the module.
    """
    told = {*plan.traced.module_of.values(), *plan.traced.repeated.values()}
    for attachment in attachments:
        for item in attachment.watched:
            if item.module not in told and any(inside in told for inside in item.module.modules()):
                by = " by check_finite=True" if isinstance(attachment.listener, FiniteCheck) else ""
                name = item.name or "the model"
                raise Refusal(f"{name} is observed{by}, and is traced through")


@dataclass(frozen=True, eq=False, slots=True)
class Audience:
    """Those who listen to one stretch of a run.

    Attributes:
        run: the run, as they know it.
        t0: the first timestep (idle ones are negative).
        attachments: who they are.
    """

    run: Run
    t0: int
    attachments: Sequence[Attachment]

    def watching(self, module: nn.Module) -> list[tuple[Attachment, Watched]]:
        """Who is to be told of a module."""
        return [
            (attachment, item)
            for attachment in self.attachments
            for item in attachment.watched
            if item.module is module
        ]

    def wants(self, layer: Layer) -> set[str]:
        """What a scan of the layer must keep for them; see `scans.OUTPUTS`."""
        heard = (attachment.listener for attachment, _ in self.watching(layer.module))
        listeners = [listener for listener in heard if listener is not None]
        wanted = set()
        if any(listener.hears_membranes for listener in listeners) and _shows_membrane(layer):
            wanted |= {"membrane", "current"}
        # Of a part of these timesteps, or of some samples' alone, the sum would say nothing.
        whole = self.t0 >= 0 and self.run.active is None
        if whole and any(listener.hears_activity for listener in listeners):
            wanted |= {"activity"}
        return wanted

    def tell(self, module: nn.Module, before: Timed, after: Timed) -> None:
        """Tells what a module made of its input."""
        output, shown = after.over_time(), None
        for attachment, item in self.watching(module):
            listener = attachment.listener
            if listener is None:
                continue
            if shown is None and listener.hears_inputs:
                shown = before.over_time()
            inputs = shown if listener.hears_inputs else None
            attachment.tell(self._observation(item, inputs, output))

    def tell_scanned(
        self, layer: Layer, inputs: Timed, ran: Scanned, start: Mapping[str, Any]
    ) -> None:
        """Tells what a neuron did from the state `start` on."""
        watching = self.watching(layer.module)
        if not watching:
            return
        shows = _shows_membrane(layer)
        shown: Tensor | None = None
        received: tuple[Tensor | None, ...] | None = None
        for attachment, item in watching:
            listener = attachment.listener
            if listener is None:
                continue
            if shown is None and (listener.hears_inputs or listener.hears_synapses):
                shown = inputs.over_time()
            presynaptic: tuple[Tensor | None, ...] = ()
            if listener.hears_synapses:
                if received is None:
                    assert shown is not None
                    received = _presynaptic_of(layer, shown, ran, start)
                presynaptic = received
            observation = self._observation(
                item,
                shown if listener.hears_inputs else None,
                ran.output,
                ran.membrane if shows or ran.spikes is None else None,
                {} if ran.current is None or not shows else {"current": ran.current},
                presynaptic,
                ran.activity if listener.hears_activity else None,
            )
            attachment.tell(observation)

    def _observation(
        self,
        item: Watched,
        inputs: Tensor | None,
        output: Tensor,
        membrane: Tensor | None = None,
        state: Mapping[str, Tensor] | None = None,
        presynaptic: tuple[Tensor | None, ...] = (),
        activity: Tensor | None = None,
    ) -> Observation:
        return Observation(
            name=item.name,
            module=item.module,
            layer=item.layer,
            run=self.run,
            t0=self.t0,
            t1=self.t0 + len(output),
            inputs=inputs,
            output=output,
            membrane=membrane,
            state={} if state is None else state,
            presynaptic=presynaptic,
            recomputed=is_recomputing(),
            activity=activity,
        )


def _shows_membrane(layer: Layer) -> bool:
    """Whether a call of the layer would show its membrane at every timestep."""
    if not layer.traits.sequence:
        return True
    values = dict.fromkeys(("output", "membrane", "current", "spikes"), torch.empty(0))
    returned = layer.adapter.scan_return(layer.module, values)
    reading = layer.adapter.read(layer.module, Call((), {}, returned))
    spikes = layer.traits.role is Role.SPIKING
    return bool(reading.state) or (spikes and reading.membrane is not None)


def _presynaptic_of(
    layer: Layer, inputs: Tensor, ran: Scanned, start: Mapping[str, Any]
) -> tuple[Tensor | None, ...]:
    """What the inner synapses received: the inputs, and the spikes of the timestep before."""
    received: list[Tensor | None] = []
    for synapses in layer.adapter.synapses(layer.module):
        if synapses.name == "input":
            received.append(inputs)
        else:
            received.append(_of_the_timestep_before(ran.output, start.get("spikes")))
    return tuple(received)


def _of_the_timestep_before(spikes: Tensor, first: Tensor | None) -> Tensor:
    if first is None:
        # With the sign that silence has where a spike is worth less than 0, as bits give it back.
        first = 0 * spikes[0].detach()
        note_moved(first, spikes)
    received = torch.cat([first.expand_as(spikes[:1]), spikes[:-1]])
    note_moved(received, spikes, first)
    return received
