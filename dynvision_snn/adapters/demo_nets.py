"""One small spiking classifier of digits in each library, as its users write it, for the demo.

They are here because only this folder names the classes of a library.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

from dynvision_snn.errors import MissingExtraError
from dynvision_snn.timing import decay_exact, ms_to_seconds

HIDDEN_UNITS = 128
MEMBRANE_TIME_CONSTANT = 20.0
"""Of both libraries' neurons, in ms."""

SYNAPSE_TIME_CONSTANT = 10.0
"""Of the Norse model's currents, in ms."""


def snntorch_model(dt: float) -> nn.Module:
    """Leaky integrate-and-fire neurons; the readout integrates and is never reset.

    Args:
        dt: length of a timestep in ms.

    Raises:
        MissingExtraError: if snnTorch is not installed.
    """
    try:
        import snntorch as snn
    except ImportError as error:
        raise MissingExtraError("snntorch", "snntorch", "The snnTorch model") from error
    beta = decay_exact(MEMBRANE_TIME_CONSTANT, dt)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, HIDDEN_UNITS),
        snn.Leaky(beta, init_hidden=True),
        nn.Linear(HIDDEN_UNITS, 10),
        snn.Leaky(beta, init_hidden=True, reset_mechanism="none", output=True),
    )


def norse_model(dt: float) -> nn.Module:
    """Leaky integrate-and-fire neurons with synaptic currents; the readout is an integrator.

    Args:
        dt: length of a timestep in ms.

    Raises:
        MissingExtraError: if Norse is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Norse scripts functions as it is imported; its user can do nothing about that.
            warnings.filterwarnings("ignore", r"`torch\.jit\.script`", FutureWarning)
            import norse.torch as norse
    except ImportError as error:
        raise MissingExtraError("norse", "norse", "The Norse model") from error
    per_second = {
        "tau_mem_inv": torch.tensor(1 / ms_to_seconds(MEMBRANE_TIME_CONSTANT)),
        "tau_syn_inv": torch.tensor(1 / ms_to_seconds(SYNAPSE_TIME_CONSTANT)),
    }
    return norse.SequentialState(
        nn.Flatten(),
        nn.Linear(64, HIDDEN_UNITS),
        norse.LIFCell(norse.LIFParameters(**per_second), dt=ms_to_seconds(dt)),
        nn.Linear(HIDDEN_UNITS, 10),
        norse.LICell(norse.LIParameters(**per_second), dt=ms_to_seconds(dt)),
    )
