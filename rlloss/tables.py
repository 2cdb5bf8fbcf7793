"""One table, four forms: text for the terminal, Markdown, LaTeX, HTML; and numbers written readably."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

Rows = Sequence[Mapping[str, Any]]  # a value by column

if TYPE_CHECKING:  # tables of few rows do without pandas, which takes a third of a second to load
    import pandas as pd


def number(value: Any) -> str:
    """A cell: integers with thousands separators, floats to four significant digits, nothing for None and nan."""
    if value is None or type(value).__name__ == "NAType" or value != value:  # nan
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        x = float(value)
        return f"{x:,.0f}" if abs(x) >= 10_000 else f"{x:.4g}"
    return str(value)


def _cells(table: "pd.DataFrame | Rows") -> tuple[list[str], list[list[str]]]:
    if isinstance(table, Sequence):
        return list(table[0]), [[number(value) for value in row.values()] for row in table]
    columns = [str(column) for column in table.columns]
    rows = [[number(value) for value in row] for row in table.astype(object).itertuples(index=False, name=None)]
    return columns, rows


def _numeric(table: "pd.DataFrame | Rows") -> list[bool]:
    if isinstance(table, Sequence):
        kinds = [{type(row[name]) for row in table} - {type(None)} for name in table[0]]
        return [bool(kind) and kind <= {int, float} for kind in kinds]
    import pandas as pd

    columns = (table[name].infer_objects() for name in table.columns)
    return [pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column) for column in columns]


def text(table: "pd.DataFrame | Rows") -> str:
    """Aligned columns under one rule; numbers to the right."""
    columns, rows = _cells(table)
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    right = _numeric(table)

    def line(cells: Sequence[str]) -> str:
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(columns), line(["─" * width for width in widths]), *map(line, rows)])


def markdown(table: "pd.DataFrame") -> str:
    """A GitHub-flavoured Markdown table; numbers to the right."""
    columns, rows = _cells(table)
    rule = ["---:" if right else "---" for right in _numeric(table)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [columns, rule, *rows])


LONG = 40  # characters from which on a cell is broken into lines

# What stands in our tables and that no LaTeX of today reads in text mode as it stands.
SYMBOLS = {
    "–": "--", "×": r"$\times$", "·": r"$\cdot$", "±": r"$\pm$", "ρ": r"$\rho$", "π": r"$\pi$", "ε": r"$\epsilon$",
    "→": r"$\to$", "≥": r"$\geq$", "≤": r"$\leq$", "−": "$-$", "∞": r"$\infty$",
    "->": r"$\to$", "<": "$<$", ">": "$>$", "|": "$|$",  # which OT1, LaTeX's default encoding, prints as others
    "²": "$^2$", "∂": r"$\partial$", "÷": r"$\div$", "≠": r"$\neq$", "√": r"$\surd$",
}  # fmt: skip


def latex(table: "pd.DataFrame", command: str) -> str:
    """A booktabs tabular in ASCII, under a comment with the command that makes it; numbers to the right.

    Raises: ValueError for a character that is neither ASCII nor among SYMBOLS.
    """
    import pandas as pd

    columns, rows = _cells(table)
    cells = pd.DataFrame(rows, columns=columns)
    long = [any(len(row[i]) > LONG for row in rows) for i in range(len(columns))]
    align = "".join("r" if n else "p{60mm}" if w else "l" for n, w in zip(_numeric(table), long, strict=True))
    body = cells.to_latex(index=False, escape=True, column_format=align)
    for symbol, replacement in SYMBOLS.items():
        body = body.replace(symbol, replacement)
    body = re.sub(r"(?<![\w-])-(?=\d)", "$-$", body)  # a minus, not a hyphen
    if not body.isascii():
        unknown = sorted({character for character in body if not character.isascii()})
        raise ValueError(f"no LaTeX for {' '.join(unknown)}: add it to tables.SYMBOLS")
    return f"% {command}\n% needs \\usepackage{{booktabs}}\n{body}"


def html(table: "pd.DataFrame") -> str:
    """A table whose cells are escaped; numbers to the right, and what is long may break."""
    columns, rows = _cells(table)
    right = _numeric(table)

    def line(tag: str, cells: Sequence[str]) -> str:
        parts = []
        for cell, numeric in zip(cells, right, strict=True):
            kinds = "num" if numeric else "long" if len(cell) > LONG else ""
            parts.append(f"<{tag}{f' class={kinds}' if kinds else ''}>{escape(cell)}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    return (
        f"<table>\n<thead>{line('th', columns)}</thead>\n<tbody>\n"
        + "\n".join(line("td", row) for row in rows)
        + "\n</tbody>\n</table>"
    )
