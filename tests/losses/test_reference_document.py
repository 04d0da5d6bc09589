"""Every test that docs/reference.md cites exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CITED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/reference.md").read_text())


def check_exists(path: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), (path, name)


def test_the_check_can_fail():
    with pytest.raises(AssertionError):
        check_exists("tests/losses/test_reference_document.py", "test_that_is_not_there")


def test_tests_are_cited():
    assert len(CITED) > 40


@pytest.mark.parametrize(("path", "name"), sorted(set(CITED)))
def test_cited_tests_exist(path, name):
    check_exists(path, name)
