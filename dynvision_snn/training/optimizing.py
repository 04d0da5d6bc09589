"""Optimizers and schedulers by name and keyword arguments, as objects, or made by a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dynvision_snn.errors import ConfigError, known_names
from dynvision_snn.factories import named

OptimizerLike = str | Optimizer | Callable[..., Optimizer]
Scheduler = LRScheduler | ReduceLROnPlateau
SchedulerLike = str | Scheduler | Callable[..., Scheduler]


def build_optimizer(
    what: OptimizerLike, parameters: Iterable[nn.Parameter], kwargs: Mapping[str, Any]
) -> Optimizer:
    """An optimizer over `parameters`.

    Args:
        what: the name of a class in ``torch.optim``, ``package.module:name``, a class or function
            of parameters, or an optimizer (then without `kwargs`).
        parameters: of the model.
        kwargs: arguments of the class or function.

    Raises:
        ConfigError: an unknown name or argument, or arguments that the class refuses.

    >>> build_optimizer("SGD", [nn.Parameter(torch.zeros(1))], {"lr": 0.1}).defaults["lr"]
    0.1
    """
    if isinstance(what, Optimizer):
        _refuse_kwargs(what, kwargs)
        return what
    optimizer = _called("optimizer", torch.optim, Optimizer, what, list(parameters), kwargs)
    assert isinstance(optimizer, Optimizer)
    return optimizer


def build_scheduler(
    what: SchedulerLike, optimizer: Optimizer, kwargs: Mapping[str, Any]
) -> Scheduler:
    """A learning rate scheduler of `optimizer`; arguments and errors as in `build_optimizer`."""
    if isinstance(what, LRScheduler | ReduceLROnPlateau):
        _refuse_kwargs(what, kwargs)
        return what
    schedulers = torch.optim.lr_scheduler
    scheduler = _called("scheduler", schedulers, LRScheduler, what, optimizer, kwargs)
    assert isinstance(scheduler, LRScheduler | ReduceLROnPlateau)
    return scheduler


def _called(
    role: str, module: Any, base: type, what: Any, first: Any, kwargs: Mapping[str, Any]
) -> object:
    build = what
    if isinstance(what, str) and ":" in what:
        build = named(what)
    elif isinstance(what, str):
        known = {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, base) and value is not base
        }
        if what not in known:
            raise ConfigError(f"Unknown {role} {what!r}. {known_names(what, known)}")
        build = known[what]
    parameters = inspect.signature(build).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in kwargs:
        if key not in parameters and not takes_any:
            raise ConfigError(
                f"the {role} {what!r} takes no {key!r}. {known_names(key, list(parameters)[1:])}"
            )
    try:
        return build(first, **kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the {role} {what!r} refuses {dict(kwargs)}: {error}.") from error


def _refuse_kwargs(what: object, kwargs: Mapping[str, Any]) -> None:
    if kwargs:
        raise ConfigError(
            f"a {type(what).__name__} came with arguments {dict(kwargs)}; give them where it is "
            "built, or name its class instead."
        )
