"""What a text names: ``package.module:name``, imported and called.

Importing runs the code of that module: a configuration file that names one is as trusted as a
script.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

from dynvision_snn.errors import ConfigError


def named(path: str) -> Callable[..., Any]:
    """The function or class that ``package.module:name`` names.

    Raises:
        ConfigError: if the path is no such path, or what it names is not there or not callable.

    >>> named("torch.nn:ReLU")()
    ReLU()
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(
            f"{path!r} names no model; expected package.module:factory, such as mynets.small:build."
        )
    try:
        found = vars(import_module(module_name))[name]
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{path!r}: no module {error.name!r} could be imported. Run from the folder that holds "
            "it, or install it."
        ) from error
    except KeyError as error:
        raise ConfigError(f"{path!r}: the module {module_name!r} has no {name!r}.") from error
    if not callable(found):
        raise ConfigError(f"{path!r} is a {type(found).__name__}; expected a function or class.")
    return found


def model_factory(path: str, **kwargs: Any) -> Callable[[float], Any]:
    """The builder that ``package.module:name`` names.

    It is called with ``dt=`` in ms if it takes that, and with `kwargs`.

    Raises:
        ConfigError: as `named`; or if the builder does not take `kwargs`.

    >>> model_factory("torch.nn:ReLU")(2.0)
    ReLU()
    """
    build = named(path)
    parameters = signature(build).parameters
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [] if takes_any else [key for key in kwargs if key not in parameters]
    if unknown:
        raise ConfigError(
            f"{path!r} takes no {', '.join(map(repr, unknown))}; it takes "
            f"{', '.join(parameters) or 'no arguments'}."
        )
    takes_dt = "dt" in parameters
    return lambda dt: build(dt=dt, **kwargs) if takes_dt else build(**kwargs)
