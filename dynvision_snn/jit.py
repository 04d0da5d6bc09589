"""Functions compiled for the CPU: the only file that imports numba.

Nothing is contracted or reordered (no fast math), the interpreter's lock is released, and dividing
by zero gives infinity, as in numpy. Loops are written out, so that rewriting array expressions
would be time lost.

Numba compiles anew where the file of an outer function changed, not where one that it calls did:
who edits an inner function of another file deletes the kept ``*.nbi`` of those that call it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import config, njit
from numba.core import event


class _Compiling(event.Listener):
    """Adds up the time that this package's functions take to compile, inner ones in outer ones.

    Two things are left out meanwhile for the time that they take. Garbage is not collected: the
    compiler makes so many objects that it is several times, and each collection goes through all
    that torch has made. And inner functions are not optimised by themselves: they are once more in
    each outer one, whose code alone is run, since they are inlined there whatever their size.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth, self._since = 0, 0.0
        self._collecting, self._level = False, 0

    def on_start(self, event: event.Event) -> None:
        """A function begins to compile."""
        if _is_ours(event):
            if not self._depth:
                self._since = time.perf_counter()
                self._collecting = gc.isenabled()
                gc.disable()
                self._level = config.OPT  # type: ignore[attr-defined]
            self._depth += 1
            self._optimise()

    def on_end(self, event: event.Event) -> None:
        """It is compiled."""
        if _is_ours(event):
            self._depth -= 1
            self._optimise()
            if not self._depth:
                self.seconds += time.perf_counter() - self._since
                if self._collecting:
                    gc.enable()

    def _optimise(self) -> None:
        config.OPT = self._level if self._depth <= 1 else 0  # type: ignore[attr-defined]


def _is_ours(event: event.Event) -> bool:
    module: str = event.data["dispatcher"].py_func.__module__
    return module.startswith(f"{__package__}.")


# What is compiled is kept by numba for the whole process, and so is the time that it took.
_COMPILING = _Compiling()
event.register("numba:compile", _COMPILING)


def seconds_compiling() -> float:
    """How long this process has compiled so far; 0 where all was read from disk."""
    return _COMPILING.seconds


def inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles what only other compiled functions call.

    Inlined by force: a call that is left is bound, in the process that compiles, to the function
    that was compiled by itself and is not optimised.
    """
    return njit(  # type: ignore[call-overload]
        nogil=True,
        error_model="numpy",
        no_rewrites=True,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        forceinline=True,
    )(function)


def outer(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles what Python calls, and keeps it on disk where there is a place to write."""
    compiled = njit(  # type: ignore[call-overload]
        nogil=True, error_model="numpy", no_rewrites=True, no_cfunc_wrapper=True
    )(function)
    with suppress(RuntimeError):  # raised where neither this folder nor the user's is writable
        compiled.enable_caching()
    return compiled
