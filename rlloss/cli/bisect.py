"""``rlloss bisect``: where two runs part, and why."""

import sys
from pathlib import Path

from tqdm import tqdm

from rlloss.bisect.found import Finding
from rlloss.cli.arguments import Parser
from rlloss.cli.exits import Exit
from rlloss.cli.paths import one_run, output_file
from rlloss.errors import ConfigError
from rlloss.runs.reader import RunFolder, to_json


def run(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    if options.output is not None and options.output.suffix != ".html":
        raise ConfigError(f"-o {options.output}: unknown format {options.output.suffix or '(none)'}; use .html")
    output_file("-o", options.output)
    for path in options.runs:
        one_run(path)
    from rlloss.bisect.bisect import bisect  # here, since it needs torch

    with tqdm(unit="step", disable=None, leave=False) as bar:

        def progress(run: RunFolder, step: int, steps: int) -> None:
            bar.total = steps
            bar.set_description(f"executes {run.path.name} again", refresh=False)
            bar.update(step - bar.n)

        found = bisect(RunFolder(options.runs[0]), RunFolder(options.runs[1]), progress)
    if options.json:
        print(to_json(found.to_dict()))
    else:
        print_finding(found)
    if options.output is not None:
        from rlloss.bisect.page import page

        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(page([found]), encoding="utf-8")
        print(f"written to {options.output}", file=sys.stderr)
    return Exit.FAILS if found.differs else Exit.HOLDS


def print_finding(found: Finding) -> None:
    if not found.differs:
        print(f"no difference in {found.steps:,} optimiser steps")
        return
    rows = found.rows()
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    for line in found.evidence:
        print(f"{'':<{width}}  {line}")


def parser() -> Parser:
    verb = Parser(
        prog="rlloss bisect",
        description="The first optimiser step after which two runs differ, the operation in it, and the cause. Runs of "
        "rlloss are executed again up to that step; of records of rlloss.watch, what they hold is read.",
    )
    verb.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    verb.add_argument("-o", "--output", type=Path, metavar="FILE",
                      help="page.html: the finding, a timeline, and the losses as graphs, marked there")  # fmt: skip
    verb.add_argument("--json", action="store_true", help="the finding for programs, on standard output")
    return verb
