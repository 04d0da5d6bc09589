"""A progress bar on a terminal; nothing at all elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from importlib.util import find_spec
from typing import TypeVar

from dynvision_snn.errors import MissingExtraError

Item = TypeVar("Item")


def track(items: Iterable[Item], title: str, *, shown: bool | None = None) -> Iterator[Item]:
    """The same items, with a bar that vanishes at the end.

    Args:
        items: what is gone through; the bar shows a share where its length is known.
        title: what is under way.
        shown: whether to show it; None for: if stderr is a terminal and rich is installed.

    Raises:
        MissingExtraError: if it is to be shown without rich.

    >>> list(track("ab", "reading", shown=False))
    ['a', 'b']
    """
    installed = find_spec("rich") is not None
    if shown and not installed:
        raise MissingExtraError("rich", "report", "A progress bar")
    if shown is False or not installed or (shown is None and not sys.stderr.isatty()):
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    total = len(items) if isinstance(items, Sized) else None
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        for item in items:
            yield item
            progress.advance(task)
