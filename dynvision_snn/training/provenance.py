"""Where a run came from: versions, seed, git state. Plain values, saved with the run."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "dynvision-snn",
    "torch",
    "numpy",
    "snntorch",
    "norse",
    "lightning",
    "pydantic",
    "scikit-learn",
)


def provenance(seed: int, folder: str | Path = ".") -> dict[str, Any]:
    """Everything but the configuration that a run can be repeated from.

    Args:
        seed: of the run.
        folder: whose git repository is looked at.
    """
    return {
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": versions(),
        "git": git_state(folder),
        "command": sys.argv,
    }


def versions() -> dict[str, str]:
    """The installed version of each of `PACKAGES`.

    >>> "torch" in versions()
    True
    """
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: str | Path) -> dict[str, Any] | None:
    """The commit, and the files that differ from it; None outside a git repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain") or ""
    return {"commit": commit.strip(), "changed": changed.splitlines()}


def _git(folder: str | Path, *arguments: str) -> str | None:
    try:
        shown = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return shown.stdout
