"""The generated parts of the README: tables of the reference results, and what commands print."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd

from rlloss import tables
from rlloss.config import ConfigError

COMMAND = re.compile(r"<!-- \$ rlloss (?P<arguments>[^\n]*?) -->(?P<body>.*?)<!-- end -->", re.DOTALL)
FOLDED = 8  # lines of output from which on it is folded away


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
