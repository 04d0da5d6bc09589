"""Runs the Triton kernels on the CPU, interpreted, against the torch loop; see test_scans.py.

A process of its own, since the interpreter is chosen when the kernels are defined.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from scan_cases import CASES

from dynvision_snn.engine.scans import recursion, scan

KEPT = ("spikes", "membrane", "current", "activity")


def check_membranes_again() -> None:
    """Of recurrent neurons, computed again in the backward, they lead to the same gradients."""
    recursion._STRETCH = 4
    index = torch.tensor([0, 1, 1, 0, 1, 1])
    for name, case in CASES.items():
        module = case.make()
        if case.spec(module).recurrence is None:
            continue
        inputs = (2 * torch.randn(2, 3, case.features) + 0.4).requires_grad_()
        leaves = [inputs, *(p for p in module.parameters() if p.requires_grad)]
        found = []
        for keep in (True, False):
            ran = scan(
                case.spec(module), inputs, index=index, keep_membranes=keep, backend_name="triton"
            )
            loss = ran.spikes.square().sum() + ran.state["membrane"].square().sum()
            found.append(torch.autograd.grad(loss, leaves))
        assert all(torch.equal(*both) for both in zip(*found, strict=True)), name


def main() -> None:
    torch.manual_seed(0)
    check_membranes_again()
    for name, case in CASES.items():
        module = case.make()
        inputs = (2 * torch.randn(2, 3, case.features) + 0.4).requires_grad_()
        index = torch.tensor([0, 1, 1, 0])
        leaves = [inputs, *(p for p in module.parameters() if p.requires_grad)]
        results = []
        for backend_name in ("triton", "torch"):
            for shown in (index, None):
                ours = scan(
                    case.spec(module), inputs, index=shown, keep=KEPT, backend_name=backend_name
                )
                kept = (ours.spikes, ours.membrane, ours.current, ours.activity)
                values = [v for v in kept if v is not None]
                weights = [torch.linspace(-1, 1, v.numel()).view(v.shape) for v in values]
                loss = sum((v * w).sum() for v, w in zip(values, weights, strict=True))
                gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
                results.append([*values, *ours.state.values(), *gradients])
        half = len(results) // 2
        for triton_values, torch_values in zip(results[:half], results[half:], strict=True):
            for mine, other in zip(triton_values, torch_values, strict=True):
                if other is not None:
                    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5, msg=name)


if __name__ == "__main__":
    main()
