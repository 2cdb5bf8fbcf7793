"""Judge the claims on what has been run, and write their evidence and figures; the generated parts of the README."""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from rlloss import figures, tables
from rlloss.claims import Claim
from rlloss.config import ConfigError, load, run_folder
from rlloss.runs import RunFolder


def report_claims(claims: Sequence[Claim], preset: str, run_root: Path, out: Path) -> bool:
    """Judge each claim, write ``out``/NAME.csv, .md and its figure (pdf, png, svg), and print the verdicts.

    A claim whose runs are not all finished does not hold: it is reported as not run. Returns whether all hold.
    """
    rows = []
    out.mkdir(parents=True, exist_ok=True)
    for claim in claims:
        configs = [replace(load(overrides), run_root=str(run_root)) for overrides in claim.runs(preset)]
        runs = [RunFolder(run_folder(config)) for config in configs]
        missing = sum(run.status != "finished" for run in runs)
        if missing:
            rows.append((claim.name, "not run", f"{missing} of {len(runs)} runs are not finished"))
            continue
        finding = claim.judge(runs)
        finding.evidence.to_csv(out / f"{claim.name}.csv", index=False)
        command = f"rlloss reproduce --claim {claim.name} --preset {preset}"
        page = f"{claim.sentence}\n\n{finding.summary}\n\n`{command}`\n\n{tables.markdown(finding.evidence)}\n"
        (out / f"{claim.name}.md").write_text(page)
        with figures.style():
            figures.save(claim.figure(runs), out / claim.name)
        rows.append((claim.name, "holds" if finding.holds else "DOES NOT HOLD", finding.summary))
    table = pd.DataFrame(rows, columns=["claim", "verdict", "evidence"])
    table.to_csv(out / "claims.csv", index=False)
    print(tables.text(table[["claim", "verdict"]]))
    for name, _, summary in rows:
        print(f"\n{name}: {summary}")
    print(f"\ntables and figures: {out}")
    return bool((table["verdict"] == "holds").all())


def update_readme(readme: Path, reference: Path) -> None:
    """Renew what stands between ``<!-- NAME -->`` and ``<!-- end -->``: NAME.md or NAME.csv of the reference results.

    Raises: ConfigError if a named table is missing.
    """

    def fill(match: re.Match[str]) -> str:
        source = reference / match["name"]
        if not source.exists():
            raise ConfigError(f"{readme}: {source} is missing; make it with its command first")
        body = tables.markdown(pd.read_csv(source)) if source.suffix == ".csv" else source.read_text().strip()
        return f"<!-- {match['name']} -->\n\n{body}\n\n<!-- end -->"

    pattern = re.compile(r"<!-- (?P<name>[\w/-]+\.(?:csv|md)) -->.*?<!-- end -->", re.DOTALL)
    readme.write_text(pattern.sub(fill, readme.read_text()))


COMMAND = re.compile(r"<!-- \$ rlloss (?P<arguments>[^\n]*?) -->(?P<body>.*?)<!-- end -->", re.DOTALL)


FOLDED = 8  # lines of output from which on it is folded away


def run_readme(readme: Path) -> None:
    """Run every command that stands in ``<!-- $ rlloss ... -->``, and put its output before the ``<!-- end -->``."""

    def run(match: re.Match[str]) -> str:
        command = [sys.executable, "-m", "rlloss", *shlex.split(match["arguments"])]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        block = f"```console\n$ rlloss {match['arguments']}\n{done.stdout.rstrip()}\n```"
        lines = done.stdout.splitlines()
        if len(lines) > FOLDED:  # its first line says the verdict; the rest is a click away
            summary = f"<code>rlloss {match['arguments']}</code> &rarr; {lines[0]}"
            block = f"<details><summary>{summary}</summary>\n\n{block}\n\n</details>"
        return f"<!-- $ rlloss {match['arguments']} -->\n\n{block}\n\n<!-- end -->"

    readme.write_text(COMMAND.sub(run, readme.read_text()))
