"""Grids as Markdown, LaTeX, HTML and CSV: every cell arrives, and no name turns into markup."""

from __future__ import annotations

import csv
import html.parser
import io
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynvision_snn.report import Column, Noted, lay_out
from dynvision_snn.report.files import file_names
from dynvision_snn.report.markup import (
    latex_text,
    markdown_text,
    to_html,
    to_latex,
    to_markdown,
)
from dynvision_snn.report.numbers import MeanSD, number
from dynvision_snn.report.values import to_csv, to_pandas

HOSTILE = [
    "50% of $x_1^2$ & #2 {a} ~ \\textbf{b}",
    "<script>alert('x')</script>",
    "a|b *c* _d_ `e` [f](http://g.h) **i**",
    "&lt;p&gt; \"quoted\" 'too'",
    "=SUM(A1:A2), next\nline",
    "../../etc/passwd",
    "\\input{/etc/passwd} \\end{tabular}",
    "- item",
    "1. item",
    "[1] *",
]
COLUMNS = [Column("model", "model"), Column("e", "energy", "J", si=True, note="by <b> & 5%_x")]


def grid(names=HOSTILE):
    rows = [
        {"model": name, "e": Noted(1e-9 * (i + 1), f"note {name}")} for i, name in enumerate(names)
    ]
    return lay_out(rows, COLUMNS, notes=["in general: {x}"])


class _Texts(html.parser.HTMLParser):
    """The texts of all cells, captions and paragraphs, and the tags that were met."""

    def __init__(self):
        super().__init__()
        self.texts, self.tags, self._open = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self._open.append(tag)
        if tag in ("td", "th", "p", "caption"):
            self.texts.append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("td", "th", "p", "caption"):
            self.texts[-1] += data


def test_html_shows_every_text_as_it_is_and_has_no_other_tag():
    table = grid()
    parser = _Texts()
    parser.feed(to_html(table, title="<i>title</i>"))
    cells = [cell for row in (table.header, *table.body) for cell in row]
    notes = [f"{mark} {text}".strip() for mark, text in table.footnotes]
    assert parser.texts == ["<i>title</i>", *cells, *notes]
    assert parser.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}


def test_markdown_has_one_line_per_row_and_as_many_cells():
    table = grid()
    lines = to_markdown(table, title="a*b").splitlines()
    assert lines[0] == r"**a\*b**"
    body = [line for line in lines if line.startswith("|")]
    assert len(body) == 2 + len(HOSTILE)
    for line in body:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
        # Whatever could be markup is behind a backslash.
        if line is not body[1]:
            assert not re.search(r"(?<!\\)[*_`<>\[\]$#]", line.strip("|").strip())
    for mark, text in table.footnotes:
        assert f"{markdown_text(mark)} {markdown_text(text)}".strip() in lines


def test_markdown_is_shown_as_it_was_by_a_renderer():
    """With markdown-it as the judge, where it is installed (rich brings it)."""
    markdown_it = pytest.importorskip("markdown_it")
    render = markdown_it.MarkdownIt("commonmark").enable("table").render
    table = grid()
    parser = _Texts()
    parser.feed(render(to_markdown(table)))

    def plain(text):
        return " ".join(text.replace("\N{ZERO WIDTH NON-JOINER}", "").split())

    cells = [plain(cell) for row in (table.header, *table.body) for cell in row]
    notes = [plain(f"{mark} {text}") for mark, text in table.footnotes]
    assert [plain(text) for text in parser.texts] == [*cells, *notes]
    assert parser.tags == {"table", "thead", "tbody", "tr", "th", "td", "p"}


def test_latex_has_booktabs_rules_and_no_live_command_of_a_name():
    text = to_latex(grid(), title="50% {x}", label="tab:a_b c")
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lr}"):
        assert text.count(rule) == 1
    assert r"\caption{50\% \{x\}}" in text
    assert r"\label{tab-a-b-c}" in text
    assert r"\input" not in text
    assert text.count(r"\end{tabular}") == 1
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert body.count(r"\\") == len(HOSTILE)
    assert len(re.findall(r"(?<!\\)&", body)) == len(HOSTILE)
    assert not re.search(r"(?<!\\)[%#$_]", body)


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_text_is_balanced_and_only_known_commands_are_in_it(text):
    escaped = latex_text(text)
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", escaped):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    known = {"textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater"}
    known |= {"textbar", "textquotedbl", "textquotesingle", "textasciigrave", "ensuremath"}
    assert set(re.findall(r"\\([A-Za-z]+)", escaped)) <= known


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path):
    document = (
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{textcomp}"
        "\\usepackage{booktabs}\\begin{document}\n" + to_latex(grid()) + "\\end{document}\n"
    )
    (tmp_path / "a.tex").write_text(document)
    shown = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stdout[-2000:]


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_csv_reads_back_every_name(names):
    rows = [{"model": name, "n": i} for i, name in enumerate(names)]
    read = list(csv.DictReader(io.StringIO(to_csv(rows), newline="")))
    breaks = [name.replace("\r\n", "\n").replace("\r", "\n") for name in names]
    assert [row["model"] for row in read] == breaks
    assert [int(row["n"]) for row in read] == list(range(len(names)))


def test_csv_keeps_full_precision_and_leaves_missing_values_empty():
    text = to_csv([{"a": 0.1 + 0.2, "b": None}, {"c": 1}])
    assert text == "a,b,c\n0.30000000000000004,,\n,,1\n"


def test_a_frame_has_the_rows_and_names_its_library_where_it_is_missing():
    frame = to_pandas([{"a": 1, "b": 2.5}, {"a": 3, "b": None}])
    assert list(frame["a"]) == [1, 3]
    assert frame["b"].isna().tolist() == [False, True]
    code = "import sys; sys.modules['pandas'] = None\n"
    code += "from dynvision_snn.report.values import to_pandas\nto_pandas([])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtraError: A pandas frame needs pandas" in shown.stderr


@given(st.lists(st.text(max_size=80), unique=True, max_size=8))
def test_names_of_files_are_legal_everywhere_and_differ(names):
    found = file_names(names)
    assert list(found) == names
    for name in found.values():
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,60}", name) or name == "model"
        assert not re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)", name)
        assert ".." not in name[:2]
    assert len({name.lower() for name in found.values()}) == len(names)


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (MeanSD(97.25, 0.31), 1, "97.2 ± 0.3"),
        (MeanSD(0.0942, 0.0015), None, "0.0942 ± 0.0015"),
        (MeanSD(1234567.0, 120.0), None, "1,234,567 ± 120"),
        (MeanSD(2.0, float("nan")), None, "2.00"),
        (MeanSD(float("nan"), 1.0), None, "–"),
        (MeanSD(0.0, 0.0), None, "0 ± 0"),
        (MeanSD(3.21e-9, 2e-10), None, "3.21e-09 ± 2.0e-10"),
    ],
)
def test_a_mean_and_its_spread_end_at_the_same_place(value, decimals, text):
    assert number(value, decimals=decimals) == text


def test_means_share_a_prefix_with_plain_values():
    rows = [{"model": "a", "e": MeanSD(2e-9, 1e-10)}, {"model": "b", "e": 3e-10}]
    table = lay_out(rows, COLUMNS)
    assert table.header[1].startswith("energy (nJ)")
    assert [row[1] for row in table.body] == ["2.00 ± 0.10", "0.300"]
    assert table.is_number == (False, True)
