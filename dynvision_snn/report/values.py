"""Plain rows for machines: CSV of full precision, and a pandas frame for those who want one."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynvision_snn.errors import MissingExtraError

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["to_csv", "to_pandas"]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""Rows as CSV (RFC 4180 with ``\n``); None is an empty field.

    Every line break inside a text becomes ``\n``.

    Args:
        rows: Plain dicts; columns are the keys of all of them, in order of first appearance.

    >>> to_csv([{"model": 'a "b", c', "joules": 1e-9}, {"model": "d"}])
    'model,joules\n"a ""b"", c",1e-09\nd,\n'
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _one_kind_of_break(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _one_kind_of_break(value: Any) -> Any:
    """The csv module quotes no lone carriage return, but reads it as the end of a line."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n")
    return value


def to_pandas(rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """Rows as a pandas frame.

    Raises:
        MissingExtraError: If pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise MissingExtraError("pandas", "dev", "A pandas frame") from error
    return DataFrame(list(rows))
