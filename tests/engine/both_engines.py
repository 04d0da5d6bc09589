"""The same done with both engines, and held against each other.

A case is told how to wrap and notes what came of it: values that must be the same bits, and
gradients that may differ by the order of their sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from models import leaky
from torch import Tensor, nn

from dynvision_snn.model import TimedModel, wrap

STEPS, BATCH, FEATURES, HIDDEN, CLASSES = 6, 3, 6, 7, 4
CONSTANT = torch.rand(BATCH, FEATURES, generator=torch.Generator().manual_seed(2))


@dataclass
class Told:
    """What came of a case."""

    same: dict[str, Any] = field(default_factory=dict)
    close: dict[str, Tensor | None] = field(default_factory=dict)

    def gradients(self, net: nn.Module, when: str = "") -> None:
        """Notes them, and that the net is as it was."""
        for name, parameter in net.named_parameters():
            grad = parameter.grad
            self.close[f"{when} {name}"] = None if grad is None else grad.clone()
        self.same[f"{when} forwards"] = [m for m, v in net.named_modules() if "forward" in vars(v)]

    def trained(self, model: TimedModel, inputs: Tensor | None = None, when: str = "") -> None:
        """Notes a run and its gradients."""
        run = model(shown() if inputs is None else inputs)
        self.same[f"{when} membrane"] = run.membrane
        self.same[f"{when} held"] = [dict(held) for held in run.state.held.values()]
        run.membrane.square().sum().backward()
        self.gradients(model.net, when)

    def raises(self, what: str, call: Callable[[], Any]) -> None:
        """Notes which error a call raises, if any."""
        try:
            call()
        except (RuntimeError, TypeError, ValueError) as error:
            self.same[what] = type(error).__name__
        else:
            self.same[what] = None


Wrap = Callable[..., TimedModel]
Case = Callable[[Wrap, Told], None]


def shown(n_steps: int = STEPS, features: int = FEATURES) -> Tensor:
    return 0.6 + torch.randn(n_steps, BATCH, features)


def foreign(net: nn.Module) -> nn.Module:
    """With a hook that no plan can be made with."""
    net.register_forward_hook(lambda *_: None)
    return net


def dense(**options: Any) -> nn.Module:
    first, last = leaky(init_hidden=True, **options), leaky(init_hidden=True, output=True)
    return foreign(
        nn.Sequential(nn.Linear(FEATURES, HIDDEN), first, nn.Linear(HIDDEN, CLASSES), last)
    )


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same, tensors bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if (one.dtype, one.requires_grad, one.stride()) != (
            other.dtype,
            other.requires_grad,
            other.stride(),
        ):
            return False
        return torch.equal(one.isnan(), other.isnan()) and all(
            torch.equal(f(one).nan_to_num(7.0), f(other).nan_to_num(7.0))
            for f in (torch.Tensor.detach, lambda x: torch.signbit(x.detach()).float())
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def check_alike(case: Case, tolerance: float = 1e-4) -> None:
    """Both engines tell the same of a case."""
    told = []
    for engine in ("step", "auto"):
        torch.manual_seed(0)
        told.append(Told())
        case(partial(wrap, dt=1.0, engine=engine, stepping="step"), told[-1])
    step, auto = told
    assert step.same.keys() == auto.same.keys()
    for name, value in step.same.items():
        assert same(value, auto.same[name]), name
    assert step.close.keys() == auto.close.keys()
    largest = max((v.abs().max().item() for v in step.close.values() if v is not None), default=0)
    for name, value in step.close.items():
        other = auto.close[name]
        assert (value is None) == (other is None), name
        if value is not None and other is not None:
            assert (value.dtype, value.shape) == (other.dtype, other.shape), name
            scale = max(value.abs().max().item(), 0.02 * largest)
            assert (value - other).abs().max() <= tolerance * scale, name
