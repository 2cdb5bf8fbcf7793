"""Where the runs of claims part, and why: the first pair of each two losses of each claim, bisected."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rlloss.bisect.bisect import bisect
from rlloss.bisect.found import Finding
from rlloss.bisect.page import page
from rlloss.claims.judged import Judged
from rlloss.errors import ConfigError
from rlloss.runs.reader import RunFolder
from rlloss.verify import first_difference, pair

COLUMNS = ("claim", "a", "b", "environment", "first step that differs", "operation", "cause")


def write_parted(judged: Sequence[Judged], out: Path) -> pd.DataFrame:
    """``out``/bisect.html, and what it found as a table: a row per pair, empty and no page if no runs part.

    Runs that cannot be executed again here are said to be undecided.
    """
    (out / "bisect.html").unlink(missing_ok=True)
    rows, findings, headings = [], [], []
    for one in judged:
        for a, b in _pairs([run for _, run in one.ours] if one.finding else []):
            found = _found(a, b)
            findings.append(found)
            headings.append(f"{one.claim.name.replace('_', ' ')}: {a.loss} | {b.loss}")
            cause = found.cause if found.decided else f"undecided: {found.cause}"
            rows.append((one.claim.name, a.loss, b.loss, a.config["env.id"], found.step, found.operation, cause))
    if findings:
        (out / "bisect.html").write_text(page(findings, headings), encoding="utf-8")
    return pd.DataFrame(rows, columns=COLUMNS).astype({"first step that differs": "Int64"})


def _pairs(runs: Sequence[RunFolder]) -> list[tuple[RunFolder, RunFolder]]:
    """Twins that part: of each two losses the first."""
    chosen: dict[tuple[str, str], tuple[RunFolder, RunFolder]] = {}
    for a, b in pair(list({run.path: run for run in runs}.values()))[0]:
        if (a.loss, b.loss) not in chosen and (first_difference(a, b) or len(a.digests) != len(b.digests)):
            chosen[a.loss, b.loss] = (a, b)
    return list(chosen.values())


def _found(a: RunFolder, b: RunFolder) -> Finding:
    try:
        return bisect(a, b)
    except ConfigError as error:  # as for other numerics than this process has
        steps = min(len(a.digests), len(b.digests))
        return Finding(str(a.path), str(b.path), steps, first_difference(a, b), str(error), decided=False)
