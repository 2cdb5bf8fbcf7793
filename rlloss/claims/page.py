"""One self-contained page for all claims: no request leaves it, and made twice it is byte for byte the same."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rlloss import tables
from rlloss.claims.judged import Judged
from rlloss.runs.reader import RunFolder
from rlloss.templates import environment

MIME = {".svg": "image/svg+xml", ".csv": "text/csv", ".tex": "text/plain", ".pdf": "application/pdf"}
FOLDED = 20  # rows from which on a table is folded away


def write(
    judged: Sequence[Judged],
    returns: pd.DataFrame,
    aggregate: pd.DataFrame,
    runs: Sequence[RunFolder],
    command: str,
    out: Path,
) -> None:
    """``out``/index.html, from the tables and figures that lie in ``out`` already."""
    templates = environment("rlloss.claims", "pages")
    templates.filters |= {
        "html": tables.html,
        "uri": lambda name: data_uri(out / name),
        "width": lambda name: width(out / name),
    }
    document = templates.get_template("report.html").render(
        judged=judged,
        held=sum(one.verdict == "holds" for one in judged),
        returns=returns,
        aggregate=aggregate,
        runs=len({run.path for run in runs}),
        steps=sum(run.info["optimizer_steps"] for run in {run.path: run for run in runs}.values()),
        machines=machines(runs),
        command=command,
        explained=(out / "explanation.html").is_file(),
        bisected=(out / "bisect.html").is_file(),
        folded=FOLDED,
    )
    (out / "index.html").write_text(document)


def data_uri(path: Path) -> str:
    """A file as an address that needs no server."""
    return f"data:{MIME[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def width(svg: Path) -> int:
    """A figure's own width, in CSS pixels."""
    found = re.search(r'<svg[^>]* width="([\d.]+)pt"', svg.read_text())
    assert found is not None, svg
    return round(float(found[1]) * 4 / 3)


def machines(runs: Sequence[RunFolder]) -> pd.DataFrame:
    """A row per combination of versions and machine on which the runs were made, and how many."""
    counts: dict[tuple[tuple[str, str], ...], int] = {}
    for run in {run.path: run for run in runs}.values():
        facts = tuple((key, str(value)) for part in ("versions", "machine") for key, value in run.info[part].items())
        counts[facts] = counts.get(facts, 0) + 1
    return pd.DataFrame([{"runs": count, **dict(facts)} for facts, count in counts.items()])
