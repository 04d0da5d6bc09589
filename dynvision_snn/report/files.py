"""Files and folders that are written whole or not at all, and overwritten only when told to.

What is written lies beside its place, under a hidden name, until it is whole; then it is renamed.
An error on the way leaves the place as it was.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dynvision_snn.errors import OutputError

__all__ = ["check_free", "file_names", "write_text", "writing_file", "writing_folder"]

_LONGEST_NAME = 48
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def file_names(names: Iterable[str]) -> dict[str, str]:
    """A part of a file's name for each name, legal on every system, no two alike.

    Letters and digits of ASCII, ``-``, ``_`` and inner dots remain; two that would be the same
    where upper and lower case are not told apart get a number.

    >>> file_names(["Norse", "a/b: c", "../norse", "con"])
    {'Norse': 'Norse', 'a/b: c': 'a-b-c', '../norse': 'norse-2', 'con': 'con-'}
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:_LONGEST_NAME].strip("-.") or "model"
        base = f"{base}-" if _RESERVED.match(base) else base
        number, unique = 1, base
        while unique.lower() in taken:
            number += 1
            unique = f"{base}-{number}"
        taken.add(unique.lower())
        found[name] = unique
    return found


def check_free(path: str | Path, *, force: bool = False) -> Path:
    """Whether something may be written at a path; ask before a long computation.

    Args:
        path: A file or folder to be. An empty folder counts as free.
        force: Whether what is there may be overwritten.

    Returns:
        The path.

    Raises:
        OutputError: If something is there and ``force`` is not set, or the folder it would lie in
            is a file or cannot be written.
    """
    path = Path(path)
    try:
        is_free = not any(path.iterdir()) if path.is_dir() else not os.path.lexists(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be looked at: {error}.") from error
    if not (is_free or force):
        raise OutputError(
            f"{path} exists already. Choose another place, or overwrite it with force=True "
            "(--force on the command line)."
        )
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(
            f"{path} cannot be written: {above} is "
            f"{'not writable' if above.is_dir() else 'a file, not a folder'}."
        )
    return path


@contextmanager
def writing_file(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A hidden path to write to, renamed to ``path`` when the block ends without an error.

    Args:
        path: The file to be; folders above it are made.
        force: Whether a file that is there is replaced.

    Yields:
        A path beside it with the same suffix, for the block to write to.

    Raises:
        OutputError: If ``path`` exists and ``force`` is not set, is a folder, or cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with writing_file(f"{folder}/numbers.csv") as hidden:
    ...         _ = hidden.write_text("1,2")
    ...     Path(folder, "numbers.csv").read_text()
    '1,2'
    """
    path = check_free(path, force=force)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; expected a place for a file.")
    with _cannot_be_written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    hidden = _beside(path)
    try:
        with _cannot_be_written(path):
            yield hidden
            os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, *, force: bool = False) -> None:
    """Write a text file as UTF-8, whole or not at all.

    Args:
        path: The file to be; folders above it are made.
        text: What it is to hold.
        force: Whether a file that is there is replaced.

    Raises:
        OutputError: As `writing_file`.
    """
    with writing_file(path, force=force) as hidden:
        hidden.write_text(text, encoding="utf-8")


@contextmanager
def writing_folder(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A hidden folder to fill, put in the place of ``path`` when the block ends without an error.

    With ``force``, a folder that is there keeps the files that the block did not write: nothing
    is ever deleted, files of the same name are replaced, each at once.

    Args:
        path: The folder to be; folders above it are made.
        force: Whether files in a folder that is there may be replaced.

    Yields:
        An empty folder beside it, for the block to fill.

    Raises:
        OutputError: If ``path`` exists, is not empty and ``force`` is not set; is a file; or cannot
            be written.
    """
    path = check_free(path, force=force)
    if os.path.lexists(path) and not path.is_dir():
        raise OutputError(f"{path} is a file; expected a place for a folder.")
    hidden = _beside(path)
    try:
        with _cannot_be_written(path):
            hidden.mkdir(parents=True)
            yield hidden
            if path.exists():
                _move_files(hidden, path)
            else:
                os.replace(hidden, path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(8)}{path.suffix}")


def _move_files(source: Path, target: Path) -> None:
    for file in sorted(source.rglob("*")):
        place = target / file.relative_to(source)
        if file.is_dir():
            place.mkdir(exist_ok=True)
        else:
            os.replace(file, place)


@contextmanager
def _cannot_be_written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path} cannot be written: {error}.") from error
