"""The generated parts of the READMEs. ``python -m rlloss.claims.readme FILE ...`` renews them (``make readme``).

Each part stands between a marker and ``<!-- end -->``. A marker is one of

- ``<!-- NAME.csv -->``, ``<!-- NAME.md -->``: a table of the reference results;
  ``<!-- NAME.csv: COLUMN; COLUMN -->``: some of its columns; ``<!-- NAME.md | head -4 -->``: some of its lines
- ``<!-- claims -->``, ``<!-- metrics -->``, ``<!-- groups -->``, ``<!-- keys -->``: a table made from the code
- ``<!-- $ rlloss ARGUMENTS -->``, ``<!-- $ python ARGUMENTS -->``: the command and what it prints;
  ``<!-- $ rlloss ARGUMENTS | head -3 -->``: a part of what it prints
"""

import ast
import inspect
import io
import re
import shlex
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from rlloss import tables
from rlloss.claims.claim import load_claims
from rlloss.config.choices import choices
from rlloss.config.metrics import METRICS
from rlloss.config.schema import (
    GROUPS,
    VARIANTS,
    Config,
    EnvConfig,
    LoggerConfig,
    LossConfig,
    NumericsConfig,
    PrecisionConfig,
)  # fmt: skip
from rlloss.errors import ConfigError

COMMAND = re.compile(
    r"<!-- \$ (?P<program>rlloss|python) (?P<arguments>[^\n|]*?)(?: \| (?P<filter>[^\n]*?))? -->"
    r"(?P<body>.*?)<!-- end -->",
    re.DOTALL,
)
TABLE = re.compile(
    r"<!-- (?P<name>[\w/-]+\.(?:csv|md)|claims|metrics|groups|keys)"
    r"(?:: (?P<columns>[^\n|]*?))?(?: \| (?P<filter>[^\n]*?))? -->.*?<!-- end -->",
    re.DOTALL,
)
FOLDED = 8  # lines of output from which on it is folded away
SHARED = {
    "loss": LossConfig,
    "env": EnvConfig,
    "precision": PrecisionConfig,
    "numerics": NumericsConfig,
    "logger": LoggerConfig,
}
"""The groups all of whose choices have the same keys."""


def update_readme(readme: Path, reference: Path) -> None:
    """Renew the tables.

    Raises: ConfigError if a table of the reference results is missing.
    """

    def fill(match: re.Match[str]) -> str:
        name, columns = match["name"], match["columns"]
        body = MADE[name](reference) if name in MADE else _reference_table(readme, reference / name, columns)
        marker = match[0].partition(" -->")[0] + " -->"
        return f"{marker}\n\n{filtered(body, match['filter']).rstrip()}\n\n<!-- end -->"

    readme.write_text(TABLE.sub(fill, readme.read_text()))


def _reference_table(readme: Path, source: Path, columns: str | None) -> str:
    if not source.exists():
        raise ConfigError(f"{readme}: {source} is missing; make it with its command first")
    if source.suffix != ".csv":
        return source.read_text().strip()
    table = pd.read_csv(source)
    return tables.markdown(table[columns.split("; ")] if columns else table)


def claims_table(reference: Path) -> str:
    """Every claim's sentence, linked to its file, and the verdict of the reference results."""
    verdicts = pd.read_csv(reference / "claims.csv").set_index("claim")["verdict"]
    rows = [
        {"claim": f"[{claim.name}](experiments/{claim.name}.py): {claim.sentence}", "verdict": verdicts[claim.name]}
        for claim in load_claims()
        if not claim.on_request
    ]
    return tables.markdown(pd.DataFrame(rows))


def metrics_table(reference: Path) -> str:
    """The glossary of metrics.csv."""
    rows = [
        {"metric": f"`{name}`", "meaning": metric.sentence, "unit": metric.unit, "may be monitored": metric.monitored}
        for name, metric in METRICS.items()
    ]
    return _escaped(pd.DataFrame(rows))


def groups_table(reference: Path) -> str:
    """The config groups, the choices of each, and the keys that a choice has."""
    rows = []
    for group in GROUPS:
        kinds = VARIANTS.get(group) or (SHARED[group],)
        keys = dict.fromkeys(item.name for kind in kinds for item in fields(kind) if item.name != "name")
        rows.append(
            {
                "group": f"`{group}`",
                "choices": ", ".join(choices(group)),
                "keys": " ".join(f"`{key}`" for key in keys),
            }
        )
    return _escaped(pd.DataFrame(rows))


def keys_table(reference: Path) -> str:
    """Every key with its default and its comment in the schema; of a group's choice, as ``group.key (choice)``."""
    rows = list(_rows(Config, ""))
    for group in GROUPS:
        for kind in VARIANTS.get(group) or (SHARED[group],):
            rows += _rows(kind, f"{group}.")
    return _escaped(pd.DataFrame(rows))


def _rows(kind: type[Any], prefix: str) -> Iterator[dict[str, str]]:
    said = _comments(kind)
    choice = next((item.default for item in fields(kind) if item.name == "name"), "???")
    for item in fields(kind):
        if item.name != "name" and item.name not in GROUPS:
            suffix = "" if choice in ("???", MISSING) else f" ({choice})"
            yield {"key": f"`{prefix}{item.name}`{suffix}", "default": _default(item), "meaning": said[item.name]}


def _default(item: Field[Any]) -> str:
    value = item.default if item.default_factory is MISSING else item.default_factory()
    words = {None: "null", True: "true", False: "false", "???": "–"}
    return words[value] if isinstance(value, bool | None) or value == "???" else f"{value}"


def _comments(kind: type[Any]) -> dict[str, str]:
    """The comment that stands in a dataclass's source on a field's lines, by field; those of its bases first."""
    said: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        source = textwrap.dedent(inspect.getsource(owner))
        comments = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                said[node.target.id] = " ".join(comments[line] for line in lines if line in comments)
    return said


def _escaped(table: pd.DataFrame) -> str:
    """A Markdown table whose cells may hold the character that separates them."""
    return tables.markdown(table.map(lambda cell: cell.replace("|", "\\|") if isinstance(cell, str) else cell))


MADE: dict[str, Callable[[Path], str]] = {
    "claims": claims_table,
    "metrics": metrics_table,
    "groups": groups_table,
    "keys": keys_table,
}


def run_readme(readme: Path) -> None:
    """Run every command that stands in ``<!-- $ rlloss ... -->``, and put there what it prints."""

    def run(match: re.Match[str]) -> str:
        program, arguments = match["program"], match["arguments"]
        command = [sys.executable, *(["-m", "rlloss"] if program == "rlloss" else []), *shlex.split(arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return block(f"{program} {arguments}", match["filter"], done.stdout or done.stderr)

    readme.write_text(COMMAND.sub(run, readme.read_text()))


def block(command: str, filter: str | None, printed: str) -> str:
    """A command's block, from its marker to its end; a long one is folded below its verdict and its example."""
    line = command + (f" | {filter}" if filter else "")
    shown = filtered(printed, filter).rstrip()
    body = f"```console\n$ {line}\n{shown}\n```"
    if len(shown.splitlines()) > FOLDED:
        summary = "<br>".join([f"<code>{line}</code>", *_verdict(shown), *_example(shown)])
        body = f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"
    return f"<!-- $ {line} -->\n\n{body}\n\n<!-- end -->"


def filtered(printed: str, filter: str | None) -> str:
    """What is left of a command's output behind a filter such as ``head -3``."""
    if filter is None:
        return printed
    return subprocess.run(filter, shell=True, input=printed, capture_output=True, text=True, check=True).stdout


def _verdict(report: str) -> list[str]:
    """The first line, where it is one: a table begins with its header."""
    return re.findall(r"\A.* and .*: (?:IDENTICAL|EQUAL|DIFFERENT)\b.*", report)


def _example(report: str) -> list[str]:
    """The factor, and the two lines of the smallest example, where a report has them."""
    factor = re.findall(r"^size .*\n(?: +.*\n)?? +(.*'s gradient is .* times .*)", report, re.MULTILINE)
    found = re.search(r"^example +(.*)\n +(.*)", report, re.MULTILINE)
    return [*factor, *([f"{found[1]}; {found[2]}"] if found else [])]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        update_readme(Path(name), Path("results/reference"))
        run_readme(Path(name))
