"""Says which agreement tests were skipped, and how to run them."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [
        report.nodeid
        for report in terminalreporter.stats.get("skipped", [])
        if "tests/peers/" in report.nodeid
    ]
    if skipped:
        terminalreporter.write_sep("-", "agreement with other tools was not tested")
        for nodeid in skipped:
            terminalreporter.write_line(f"skipped: {nodeid}")
        terminalreporter.write_line("pip install --no-deps -r tests/peers.txt")
