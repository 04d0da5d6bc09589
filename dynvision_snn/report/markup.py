"""A grid as Markdown, LaTeX or HTML, every text in it shown as it is.

Names come from users: none of them may turn into markup of the form that it is written in.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

from dynvision_snn.report.tables import Grid

__all__ = ["latex_text", "markdown_text", "to_html", "to_latex", "to_markdown"]

_LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "±": r"\ensuremath{\pm}",
    "×": r"\ensuremath{\times}",
    "·": r"\ensuremath{\cdot}",
    "≥": r"\ensuremath{\geq}",
    "∞": r"\ensuremath{\infty}",
    "µ": r"\ensuremath{\mu}",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "*": "*",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "§": r"\S{}",
    "¶": r"\P{}",
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&])")
_ADDRESS = re.compile(r"(?<=\w)(?=://)|(?<=www)(?=\.)", re.IGNORECASE)


def markdown_text(text: str) -> str:
    r"""Plain text as Markdown that shows it as it is, in one line.

    >>> markdown_text("a|b *c*")
    'a\\|b \\*c\\*'
    """
    escaped = _MARKDOWN.sub(r"\\\1", " ".join(text.split()))
    # A renderer of GitHub's kind turns bare addresses into links.
    escaped = _ADDRESS.sub("\N{ZERO WIDTH NON-JOINER}", escaped)
    return re.sub(
        r"^([-=]|\d+(?=[.)]))", r"\\\1" if not escaped[:1].isdigit() else r"\1\\", escaped
    )


def latex_text(text: str) -> str:
    r"""Plain text as LaTeX that shows it as it is, in one paragraph.

    Letters outside of ASCII are left to the document's input encoding, UTF-8 by default.

    >>> latex_text("50% of #1_a")
    '50\\% of \\#1\\_a'
    """
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def to_markdown(grid: Grid, *, title: str = "") -> str:
    """A grid as a Markdown table, its footnotes below it.

    Args:
        grid: From `lay_out`.
        title: Shown above it, bold.

    >>> from dynvision_snn.report.tables import Column, lay_out
    >>> grid = lay_out([{"a": "x", "n": 12}], [Column("a", "name"), Column("n", "spikes")])
    >>> print(to_markdown(grid), end="")
    | name | spikes |
    | :--- | ---: |
    | x | 12 |
    """
    rule = ["---:" if right else ":---" for right in grid.is_number]
    rows = [[markdown_text(cell) for cell in row] for row in (grid.header, *grid.body)]
    lines = ["| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:])]
    head = [f"**{markdown_text(title)}**", ""] if title else []
    # Two lines of one paragraph would join; notes are short paragraphs instead.
    notes = [
        line
        for mark, text in grid.footnotes
        for line in ("", f"{markdown_text(mark)} {markdown_text(text)}".strip())
    ]
    return "\n".join([*head, *lines, *notes]) + "\n"


def to_latex(grid: Grid, *, title: str = "", label: str = "") -> str:
    r"""A grid as a LaTeX table with booktabs' rules, its footnotes below it.

    It needs ``\usepackage{booktabs}``; ``textcomp``'s signs are part of LaTeX since 2020.

    Args:
        grid: From `lay_out`.
        title: Its caption.
        label: What ``\ref`` calls it; letters, digits and hyphens remain of it.

    >>> from dynvision_snn.report.tables import Column, lay_out
    >>> grid = lay_out([{"a": "x_1", "n": 12}], [Column("a", "name"), Column("n", "spikes")])
    >>> print(to_latex(grid))
    \begin{table}
    \centering
    \begin{tabular}{lr}
    \toprule
    name & spikes \\
    \midrule
    x\_1 & 12 \\
    \bottomrule
    \end{tabular}
    \end{table}
    """
    columns = "".join("r" if right else "l" for right in grid.is_number)
    # A row that begins with a bracket would be read as an argument of the line before it.
    rows = [" & ".join(map(_cell, row)) + r" \\" for row in (grid.header, *grid.body)]
    lines = [r"\begin{table}", r"\centering"]
    if title:
        lines.append(rf"\caption{{{latex_text(title)}}}")
    if label:
        lines.append(rf"\label{{{re.sub(r'[^A-Za-z0-9-]+', '-', label)}}}")
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:]]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if grid.footnotes:
        notes = [
            (rf"\textsuperscript{{{latex_text(mark)}}} " if mark else "") + latex_text(text)
            for mark, text in grid.footnotes
        ]
        lines += [r"\par\medskip", r"\begin{minipage}{\linewidth}\footnotesize"]
        lines += [" \\\\\n".join(notes), r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def to_html(grid: Grid, *, title: str = "") -> str:
    """A grid as an HTML table without any style but the alignment of numbers.

    Args:
        grid: From `lay_out`.
        title: Its caption.

    >>> from dynvision_snn.report.tables import Column, lay_out
    >>> grid = lay_out([{"a": "<x>", "n": 12}], [Column("a", "name"), Column("n", "spikes")])
    >>> "<th scope='row'>&lt;x&gt;</th>" in to_html(grid)
    True
    """
    sides = ["right" if right else "left" for right in grid.is_number]
    lines = ["<table>"]
    if title:
        lines.append(f"<caption>{html.escape(title)}</caption>")
    head = [
        f"<th scope='col' style='text-align:{side}'>{html.escape(cell)}</th>"
        for cell, side in zip(grid.header, sides, strict=True)
    ]
    lines += ["<thead><tr>", *head, "</tr></thead>", "<tbody>"]
    for name, *cells in grid.body:
        values = [
            f"<td style='text-align:{side}'>{html.escape(cell)}</td>"
            for cell, side in zip(cells, sides[1:], strict=True)
        ]
        lines += ["<tr>", f"<th scope='row'>{html.escape(name)}</th>", *values, "</tr>"]
    lines += ["</tbody>", "</table>"]
    lines += [
        f"<p class='note'>{html.escape(f'{mark} {text}'.strip())}</p>"
        for mark, text in grid.footnotes
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    escaped = latex_text(text)
    return f"{{{escaped}}}" if escaped.startswith(("[", "*")) else escaped
