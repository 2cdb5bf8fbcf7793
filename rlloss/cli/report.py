"""``rlloss report``: judge the claims and draw the figures from what has been run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rlloss import tables
from rlloss.claims.claim import select
from rlloss.claims.judged import HOLDS, Judged
from rlloss.claims.report import report_claims
from rlloss.cli.exits import Exit
from rlloss.errors import ConfigError


def run(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    if not options.runs.is_dir():
        raise ConfigError(f"{options.runs}: no such folder; name the one that the runs went to")
    judged = report_claims(select(options.claim), options.preset, options.runs, options.report)
    return Exit.HOLDS if print_verdicts(judged, options.report) else Exit.FAILS


def print_verdicts(judged: Sequence[Judged], out: Path) -> bool:
    """Each claim's verdict, and why; and where the report lies. Returns whether all hold."""
    print(tables.text(pd.DataFrame({"claim": one.claim.name, "verdict": one.verdict} for one in judged)))
    for one in judged:
        print(f"\n{one.claim.name}: {one.summary}")
    print(f"\ntables and figures: {out}\nall of it on one page: {out / 'index.html'}")
    return all(one.verdict == HOLDS for one in judged)


def parser() -> argparse.ArgumentParser:
    verb = argparse.ArgumentParser(
        prog="rlloss report", description="Judge and draw the claims from what has been run."
    )
    add_claims(verb)
    verb.add_argument("runs", nargs="?", type=Path, default=Path("results/runs"), metavar="FOLDER")
    return verb


def add_claims(verb: argparse.ArgumentParser) -> None:
    """The options that say which claims, and where their report goes."""
    verb.add_argument("--preset", choices=("quick", "paper"), default="quick", help="how much (default: quick)")
    verb.add_argument("--claim", action="append", metavar="NAME", help="only this claim; may be repeated")
    verb.add_argument("--report", type=Path, default=Path("results/report"), metavar="DIR", help="where to write")
