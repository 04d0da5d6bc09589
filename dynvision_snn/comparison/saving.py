"""A comparison as files: numbers, tables, figures and a report, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dynvision_snn.comparison import drawing, page, telling
from dynvision_snn.errors import OutputError
from dynvision_snn.report.figure import WIDTH, save_figure
from dynvision_snn.report.files import check_free, file_names, write_text, writing_folder
from dynvision_snn.report.markup import latex_text, markdown_text, to_latex, to_markdown
from dynvision_snn.report.values import to_csv

if TYPE_CHECKING:
    from dynvision_snn.comparison.comparison import Comparison

__all__ = ["JSON_NAME", "save", "to_json", "write_derived"]

JSON_NAME = "comparison.json"
"""How names of files with the numbers end."""


def to_json(comparison: Comparison) -> str:
    """The text that `load` reads."""
    return json.dumps(comparison.to_dict(), allow_nan=False) + "\n"


def save(comparison: Comparison, path: str | Path, *, force: bool = False) -> None:
    """See `Comparison.save`."""
    text = to_json(comparison)
    if Path(path).suffix == ".json":
        write_text(path, text, force=force)
        return
    check_free(path, force=force)
    if Path(path).is_file():
        raise OutputError(f"{path} is a file; expected a folder, or a name that ends in .json.")
    with writing_folder(path, force=force) as folder:
        write_text(folder / f"{prefix(comparison)}{JSON_NAME}", text)
        write_derived(comparison, folder)


def write_derived(comparison: Comparison, folder: Path) -> None:
    """Everything that follows from the numbers: tables, figures, the report."""
    start = prefix(comparison)
    tables = telling.tables(comparison)
    figures = drawing.figures(comparison, WIDTH)
    differences = comparison.differences
    written = {
        "table.txt": comparison.table(),
        "table.md": "\n".join(
            [
                *(f"{markdown_text(sentence)}\n" for sentence in differences),
                *(to_markdown(table.grid, title=table.title) for table in tables),
            ]
        ),
        "table.tex": "\n".join(
            [
                *(f"{latex_text(sentence)}\n" for sentence in differences),
                *(
                    to_latex(table.grid, title=table.title, label=f"tab:{start}{table.key}")
                    for table in tables
                ),
            ]
        ),
        "table.csv": to_csv(comparison.rows()),
        "report.html": page.page(comparison),
    }
    for name, text in written.items():
        write_text(folder / f"{start}{name}", text)
    for name, drawn in figures.items():
        for suffix in (".png", ".svg"):
            save_figure(drawn.figure, folder / f"{start}{name}{suffix}")


def prefix(comparison: Comparison) -> str:
    """What names of its files begin with."""
    return f"{file_names([comparison.name])[comparison.name]}-" if comparison.name else ""
