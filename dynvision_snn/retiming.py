"""`retime`: the same network at another timestep.

A timestep is no property of a network's behaviour but of its simulation, yet every number in it
depends on it: decays, what an input adds to a membrane, delays. `retime` copies a wrapped model,
lets each neuron layer's adapter set its decays, and multiplies weights and biases so that every
neuron receives as much per millisecond as before. By how much depends on the connection:

- a value that lasts (an analog input, a bias) is there at every timestep, and so is given more or
  less often;
- a spike is one event, at whatever timestep.

docs/time.md derives the factors for each neuron family. Which signals reach a layer is found by
running a throwaway copy for some timesteps (see `engine.feeding`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dynvision_snn.adapters import integration_problems
from dynvision_snn.engine.feeding import Feeding, Signal
from dynvision_snn.engine.scaling import Scaling
from dynvision_snn.errors import DynvisionError, TimingError, TimingWarning
from dynvision_snn.model import TimedModel
from dynvision_snn.observation import watchable
from dynvision_snn.timing import check_dt

__all__ = ["retime"]

# What a user's forward raises when it is handed a shape that it was not written for.
_MISFIT = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)

# Timesteps of the throwaway run: enough for what a forward keeps for the timestep after.
_STEPS, _SAMPLES = 3, 2

# Edge lengths of images to try where only a convolution's channels are known.
_SIZES = (28, 32, 34, 16, 8, 64, 10, 12, 5, 48, 96, 128, 224, 7, 14, 4, 3, 2, 1)


def retime(
    model: TimedModel,
    dt: float,
    *,
    inputs: Literal["analog", "spikes"] = "analog",
    example: Tensor | None = None,
) -> TimedModel:
    """A copy of a wrapped model for another timestep, which behaves the same in ms.

    Decays per timestep become ``decay ** (dt / model.dt)``; a timestep of the layers' own is set.
    Weights and biases are multiplied by what the connection calls for; see docs/time.md. A model
    retimed back equals the original to rounding. Batch normalisation is retimed as it is in
    evaluation mode.

    Args:
        model: the wrapped model; it is not changed.
        dt: length of the new timestep in ms.
        inputs: what the model is given: ``"analog"`` for images and currents, ``"spikes"`` for
            encoded or recorded events.
        example: one timestep's input ``[B, *features]``, needed only where its shape cannot be
            told from the model's layers.

    Raises:
        TimingError: if ``dt`` is not a legal dt; if the model, or a connection in it, cannot be
            retimed; the message names the layer and the reason.
        AdapterError: if a neuron family has no rule.

    Warns:
        TimingWarning: where a delay or refractory period cannot keep its ms, where a layer that is
            never reset spikes at every timestep, and where the new timestep is coarse or unstable.

    >>> import dynvision_snn as dvs
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> retime(dvs.wrap(net, dt=2.0), dt=1.0).dt  # nothing in it has a time constant
    1.0
    """
    new_dt = check_dt(dt)
    if not isinstance(model, TimedModel):
        raise TimingError(
            f"retime takes a wrapped model; received a {type(model).__name__}. Wrap it: "
            "dvs.retime(dvs.wrap(net, dt=...), dt=...)."
        )
    if inputs not in ("analog", "spikes"):
        raise TimingError(f"inputs={inputs!r}; expected 'analog' or 'spikes'.")
    with _at_rest(model):
        retimed, throwaway = _copied(model), _copied(model)
    feeding, output = _fed(throwaway, inputs, example)
    notes = list(Scaling(watchable(retimed), feeding, output, model.dt, new_dt).applied())
    retimed.dt = new_dt
    notes += integration_problems(retimed.layers(), new_dt)
    for note in dict.fromkeys(notes):
        warnings.warn(note, TimingWarning, stacklevel=2)
    return retimed


@contextmanager
def _at_rest(model: TimedModel) -> Iterator[None]:
    """While entered, no layer holds a state, whose graph could not be copied."""
    held = [(layer, layer.adapter.state(layer.module)) for layer in model.layers()]
    try:
        for layer, _ in held:
            layer.adapter.reset(layer.module)
        yield
    finally:
        for layer, state in held:
            layer.adapter.restore(layer.module, state)


def _copied(model: TimedModel) -> TimedModel:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise TimingError(
            f"{type(model.net).__name__} cannot be copied: {error}. Weights that are computed from "
            "others (pruned, normalised) must be made permanent first."
        ) from error


# -- what feeds what ------------------------------------------------------------------------------


def _fed(
    model: TimedModel, kind: Literal["analog", "spikes"], example: Tensor | None
) -> tuple[Feeding, Signal]:
    """What reaches every layer of a model, and its output; spends the model."""
    model.eval()
    inputs = _trial_input(model, example)
    # Only in evaluation mode can the look, which the first run takes, be left out of the labels.
    feeding = Feeding(watchable(model), inputs, kind)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), feeding:
        run = model(inputs)
        output = feeding.signal(run.membrane)
    return feeding, output


def _trial_input(model: TimedModel, example: Tensor | None) -> Tensor:
    """Some timesteps of zeros that the model accepts."""
    like = next(model.parameters(), torch.zeros(1))
    shapes = list(_likely_shapes(model)) if example is None else [tuple(example.shape[1:])]
    reasons = []
    for shape in shapes:
        trial = torch.zeros(_STEPS, _SAMPLES, *shape, dtype=like.dtype, device=like.device)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                model(trial)
        except (*_MISFIT, DynvisionError) as error:
            reasons.append(f"{list(shape)}: {' '.join(str(error).split())}")
        else:
            return trial
    raise TimingError(
        f"{type(model.net).__name__} must be run to see what feeds what, but the shape of its "
        f"input could not be told (tried {len(shapes)}; {reasons[0] if reasons else 'none fits'}). "
        "Pass one timestep's input: retime(model, dt=..., example=images)."
    )


def _likely_shapes(model: TimedModel) -> Iterator[tuple[int, ...]]:
    """Features ``[*features]`` that the model's layers could take, in the order of its modules."""
    for item in watchable(model):
        if isinstance(item.module, nn.Linear):
            yield (item.module.in_features,)
        elif isinstance(item.module, _ConvNd):
            channels, n_axes = item.module.in_channels, len(item.module.kernel_size)
            yield from ((channels, *[size] * n_axes) for size in _SIZES)
            if channels == 1:  # which a forward may add itself
                yield from ((size,) * n_axes for size in _SIZES)
        elif item.layer is not None:
            for synapses in item.layer.adapter.synapses(item.module):
                operator = synapses.operator
                weight = operator.weight if isinstance(operator, nn.Linear) else operator
                if isinstance(weight, Tensor) and weight.ndim == 2:
                    yield (weight.shape[1],)
    yield (1,)
