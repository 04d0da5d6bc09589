"""The page on wrapping runs as written, and every argument that it names exists."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path

from dynvision_snn import wrap

PAGE = Path(__file__).parent.parent / "docs" / "wrapping.md"


def test_the_page_runs_as_written() -> None:
    result = doctest.testfile(
        str(PAGE), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.attempted > 5
    assert result.failed == 0


def test_the_page_tells_of_every_argument() -> None:
    arguments = set(inspect.signature(wrap).parameters)
    told = set(re.findall(r"[`,( ](\w+)=", PAGE.read_text()))
    assert arguments - told == {"net"}
