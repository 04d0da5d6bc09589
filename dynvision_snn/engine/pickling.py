"""Telling before a model is pickled whether it can be, and if not, what to do instead."""

from __future__ import annotations

import io
import pickle
from typing import Any

from torch import Tensor, nn

from dynvision_snn.errors import SavingError


class _WithoutTensors(pickle.Pickler):
    """Writes all but the numbers, so that a large model costs nothing to try."""

    def persistent_id(self, obj: Any) -> str | None:
        return "tensor" if isinstance(obj, Tensor) else None


def check_picklable(net: nn.Module) -> None:
    """Refuses a model that holds what pickle cannot write.

    Raises:
        SavingError: naming it, and the ways out.
    """
    try:
        _WithoutTensors(io.BytesIO()).dump(net)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise SavingError(
            f"{type(net).__name__} cannot be pickled: {error}. Its library keeps such things in "
            "its neurons. Save the weights, torch.save(model.state_dict(), path), and load them "
            "into a model built by the same code: model.load_state_dict(torch.load(path)). A "
            "process that is to run the model can build it in the same way."
        ) from error
