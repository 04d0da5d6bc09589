"""Prints the command that README.md gives under a name.

A command is a fenced ``bash`` block right below an HTML comment that names it::

    <!-- command: tests -->
    ```bash
    ...
    ```

Usage: python3 readme_command.py README.md tests
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

COMMENT = re.compile(r"^<!--\s*command:\s*(?P<name>[\w-]+)\s*-->[ \t]*$", re.MULTILINE)
BLOCK = re.compile(r"\s*^```bash[ \t]*\n(?P<command>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def readme_command(text: str, name: str) -> str:
    """The lines of the one block named ``name``, exactly as they stand.

    Raises:
        ValueError: If there is no such comment or more than one, or no ``bash`` block follows it,
            or the block holds nothing to run.
    """
    comments = [found for found in COMMENT.finditer(text) if found["name"] == name]
    if len(comments) != 1:
        raise ValueError(f"found {len(comments)} comments '<!-- command: {name} -->'; expected 1")
    block = BLOCK.match(text, comments[0].end())
    if block is None:
        raise ValueError(f"no closed ```bash block right below '<!-- command: {name} -->'")
    lines = [line.strip() for line in block["command"].splitlines()]
    if not any(line and not line.startswith("#") for line in lines):
        raise ValueError(f"the block below '<!-- command: {name} -->' holds no command")
    return block["command"]


def main() -> None:
    """Print one command, or say on standard error why there is none and exit with 1."""
    if len(sys.argv) != 3:
        sys.exit("usage: readme_command.py README.md NAME")
    path, name = sys.argv[1:]
    try:
        sys.stdout.write(readme_command(Path(path).read_text(encoding="utf-8"), name))
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")


if __name__ == "__main__":
    main()
