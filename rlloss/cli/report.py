"""``rlloss report``: judge the claims and draw the figures from what has been run."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rlloss import tables
from rlloss.claims.claim import select
from rlloss.claims.judged import HOLDS, Judged
from rlloss.claims.report import report_claims
from rlloss.cli.arguments import Parser
from rlloss.cli.exits import Exit
from rlloss.cli.paths import output_folder
from rlloss.errors import ConfigError
from rlloss.train.numerics import PORTABLE, available, is_own, refuse_elsewhere, relaunch


def run(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    if not options.runs.is_dir():
        raise ConfigError(f"FOLDER={options.runs}: no such folder; name the one that the runs went to")
    output_folder("--report", options.report)
    numerics = numerics_of(options)
    judged = report_claims(select(options.claim, numerics), options.preset, options.runs, options.report)
    return Exit.HOLDS if print_verdicts(judged, options.report) else Exit.FAILS


def numerics_of(options: argparse.Namespace) -> str:
    """The numerics of the runs, and of this process where it is a command's own."""
    if options.numerics is None and not available():
        print("note: numerics=native, whose bits are this machine's own: see rlloss/train/README.md", file=sys.stderr)
        return "native"
    if options.numerics in (None, PORTABLE):
        refuse_elsewhere()
        if is_own():
            relaunch()
        return PORTABLE
    return str(options.numerics)


def print_verdicts(judged: Sequence[Judged], out: Path) -> bool:
    """Each claim's verdict, and why; and where the report lies. Returns whether all hold."""
    print(tables.text(pd.DataFrame({"claim": one.claim.name, "verdict": one.verdict} for one in judged)))
    for one in judged:
        print(f"\n{one.claim.name}: {one.summary}")
    print(f"\ntables and figures: {out}\nall of it on one page: {out / 'index.html'}")
    return all(one.verdict == HOLDS for one in judged)


def parser() -> Parser:
    verb = Parser(prog="rlloss report", description="Judge and draw the claims from what has been run.")
    add_claims(verb)
    verb.add_argument("runs", nargs="?", type=Path, default=Path("results/runs"), metavar="FOLDER")
    return verb


def add_claims(verb: Parser) -> None:
    """The options that say which claims, and where their report goes."""
    verb.add_argument("--preset", choices=("quick", "paper"), default="quick", help="how much (default: quick)")
    verb.add_argument("--numerics", choices=("portable", "native"),
                      help="portable (default): the same bits on every x86-64 CPU; native: faster")  # fmt: skip
    verb.add_argument("--claim", action="append", metavar="NAME", help="only this claim; may be repeated")
    verb.add_argument("--report", type=Path, default=Path("results/report"), metavar="DIR", help="where to write")
