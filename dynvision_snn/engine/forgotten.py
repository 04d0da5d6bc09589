"""What a graph of operations would forget of a forward: values looked at, and modes."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.proxy import TraceError
from torch.utils._python_dispatch import TorchDispatchMode


class WithoutValues(TorchDispatchMode):
    """Refuses looks at a tensor's values, which are not those of a run while it is traced."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """An operation on tensors."""
        if func in _LOOKS:
            raise TraceError("it looks at the values of a tensor")
        return func(*args, **(kwargs or {}))


_LOOKS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
)


def modes() -> dict[str, Any]:
    """What decides, beside the operations themselves, on what is computed and kept."""
    return {
        "another gradient mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "another autocast": [
            (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in ("cpu", "cuda")
        ],
        "activation checkpointing": torch._C._autograd._top_saved_tensors_default_hooks(True),
    }
