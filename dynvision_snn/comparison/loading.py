"""Saved comparisons, read back; and every output made again from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dynvision_snn.comparison.comparison import Comparison
from dynvision_snn.comparison.saving import JSON_NAME, write_derived
from dynvision_snn.errors import ComparisonError
from dynvision_snn.report.files import check_free, writing_folder

__all__ = ["load", "load_all", "rebuild", "saved_in"]


def load(path: str | Path) -> Comparison:
    """A comparison that was saved.

    Args:
        path: a JSON file, or a folder that holds one.

    Raises:
        ComparisonError: if there is none, it is truncated or was changed, or has another schema.
    """
    path = Path(path)
    if path.is_dir():
        found = saved_in(path)
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise ComparisonError(f"{path} holds several comparisons, {names}; name one of them.")
        path = found[0]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ComparisonError(f"{path} cannot be read: {error}.") from error
    except ValueError as error:
        raise ComparisonError(
            f"{path} is no JSON, or was cut off: {error}. Run the comparison again."
        ) from error
    try:
        return Comparison.from_dict(content)
    except ComparisonError as error:
        raise ComparisonError(f"{path}: {error}") from error


def load_all(paths: Sequence[str | Path]) -> dict[str, Comparison]:
    """Several saved comparisons, by the shortest ends of their paths that tell them apart.

    Raises:
        ComparisonError: as `load`; or if a path is given twice.
    """
    parts = [Path(path).absolute().with_suffix("").parts for path in paths]
    if len(set(parts)) < len(parts):
        raise ComparisonError("a saved comparison is named twice; expected each once.")
    for length in range(1, 1 + max(map(len, parts), default=0)):
        labels = ["/".join(each[-length:]) for each in parts]
        if len(set(labels)) == len(labels):
            return {label: load(path) for label, path in zip(labels, paths, strict=True)}
    raise ComparisonError("there is nothing to read; expected at least one path.")


def rebuild(folder: str | Path, out: str | Path | None = None, *, force: bool = False) -> Path:
    """Makes every table, figure and report again, from the numbers in a folder alone.

    Args:
        folder: holds one or several saved comparisons.
        out: another folder for what is made; by default the same, where files of the same names
            are replaced and nothing else is touched.
        force: whether files in another folder may be replaced.

    Returns:
        The folder with what was made.

    Raises:
        ComparisonError: if there is no comparison, or one cannot be read.
        OutputError: if `out` exists and `force` is not set, or it cannot be written.
    """
    comparisons = [load(file) for file in saved_in(Path(folder))]
    place = Path(folder if out is None else out)
    force = force or out is None
    check_free(place, force=force)
    with writing_folder(place, force=force) as hidden:
        for comparison in comparisons:
            write_derived(comparison, hidden)
    return place


def saved_in(folder: Path) -> list[Path]:
    """Files of comparisons in a folder.

    Raises:
        ComparisonError: if there is none.
    """
    found = sorted(folder.glob(f"*{JSON_NAME}")) if folder.is_dir() else []
    if not found:
        raise ComparisonError(
            f"{folder} holds no saved comparison; expected a file whose name ends in {JSON_NAME}, "
            "as dynvision-snn compare writes it."
        )
    return found
