"""One table, three forms: aligned text for the terminal, Markdown for pages, and numbers written readably."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd


def number(value: Any) -> str:
    """A cell: integers with thousands separators, floats to four significant digits, nothing for None and nan."""
    if value is None or value is pd.NA or value != value:  # nan
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        x = float(value)
        return f"{x:,.0f}" if abs(x) >= 10_000 else f"{x:.4g}"
    return str(value)


def _cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    columns = [str(column) for column in table.columns]
    rows = [[number(value) for value in row] for row in table.astype(object).itertuples(index=False, name=None)]
    return columns, rows


def _numeric(table: pd.DataFrame) -> list[bool]:
    columns = (table[name].infer_objects() for name in table.columns)
    return [pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column) for column in columns]


def text(table: pd.DataFrame) -> str:
    """Aligned columns under one rule; numbers to the right."""
    columns, rows = _cells(table)
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    right = _numeric(table)

    def line(cells: Sequence[str]) -> str:
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(columns), line(["─" * width for width in widths]), *map(line, rows)])


def markdown(table: pd.DataFrame) -> str:
    """A GitHub-flavoured Markdown table; numbers to the right."""
    columns, rows = _cells(table)
    rule = ["---:" if right else "---" for right in _numeric(table)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [columns, rule, *rows])
