"""Functions compiled for the CPU: the only file that imports numba.

Nothing is contracted or reordered (no fast math), the interpreter's lock is released, and dividing
by zero gives infinity, as in numpy.

Numba compiles anew where the file of an outer function changed, not where one that it calls did:
who edits an inner function of another file deletes the kept ``*.nbi`` of those that call it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit


def inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles what only other compiled functions call."""
    return njit(  # type: ignore[call-overload]
        nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
    )(function)


def outer(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles what Python calls, and keeps it on disk where there is a place to write."""
    compiled = njit(nogil=True, error_model="numpy")(function)
    with suppress(RuntimeError):  # raised where neither this folder nor the user's is writable
        compiled.enable_caching()
    return compiled
