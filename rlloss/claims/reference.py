"""The committed results, against which ``rlloss reproduce`` holds its own: digests of runs, and whole files.

``python -m rlloss.claims.reference REPORT RUNS REFERENCE`` makes the latter of the former (``make reference``).
"""

import hashlib
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rlloss.config.choices import data_dir
from rlloss.errors import ConfigError
from rlloss.runs.certificate import certify
from rlloss.runs.provenance import differing_versions
from rlloss.runs.reader import RunFolder, to_json
from rlloss.version import PACKAGE

SUMS, DIGESTS, MADE_WITH, CERTIFICATES = "SHA256SUMS", "digests.csv", "made_with.json", "certificates"
KEPT = (".csv", ".png")  # of the report's files, those that are committed; of the others, their sums
COMPARED = (*KEPT, ".md", ".tex", ".svg", ".pdf")
OPERATIONS = PACKAGE / "train" / "operations.json"  # their digests where numerics are portable
LISTED = 5  # of what is not the same
PACKAGES = (
    "torch", "numpy", "pandas", "matplotlib", "gymnasium", "mujoco", "box2d", "ale-py", "opencv-python-headless",
    "pillow", "z3-solver",
)  # fmt: skip
"""Whose versions decide what the report's files hold."""


@dataclass(frozen=True)
class Comparison:
    """How much of a report is as in the reference."""

    digests: int  # of final digests, how many are the same
    all_digests: int
    files: int
    all_files: int
    others: list[str]  # names of runs and files that are not

    def told(self, suspects: Sequence[str]) -> str:
        """In words, with whom to suspect where something is not the same."""
        told = (
            f"{self.digests:,} of {self.all_digests:,} final digests and {self.files} of {self.all_files} files as in "
            "the reference"
        )
        if not self.others:
            return told
        listed = "".join(f"\n  {name}" for name in self.others[:LISTED])
        more = f"\n  and {len(self.others) - LISTED} more" if len(self.others) > LISTED else ""
        nobody = "no version and no operation that is recorded; runs or files of before may lie there"
        return f"{told}; not the same:{listed}{more}\nto be suspected: {'; '.join(suspects) or nobody}"


def reference_dir(preset: str) -> Path | None:
    """Where the reference of a preset lies: inside the installed package, or in the checkout; None if there is none."""
    inside = PACKAGE / "reference"
    folder = inside if inside.is_dir() else data_dir("results") / "reference"
    folder = folder if preset == "quick" else folder / preset
    return folder if (folder / SUMS).is_file() else None


def compare(report: Path, reference: Path, claims: Sequence[str]) -> Comparison:
    """The report's files with the reference's, those of these claims and, if they are all there, those of all."""
    here, there = _digests(report), _digests(reference)
    sums = read_sums(reference)
    whole = all(Path(name).stem in claims for name in sums if name.endswith(".md"))
    runs = [name for name in there if whole or name in here]
    names = [name for name in sums if whole or Path(name).stem in claims]
    other_runs = [f"run {name}" for name in runs if here.get(name) != there[name]]
    other_files = [name for name in names if sum_of(report / name) != sums[name]]
    return Comparison(
        len(runs) - len(other_runs), len(runs), len(names) - len(other_files), len(names), [*other_runs, *other_files]
    )


def _digests(folder: Path) -> dict[str, str]:
    table = pd.read_csv(folder / DIGESTS)
    return dict(zip(table["run"], table["final_digest"], strict=True))


def read_sums(reference: Path) -> dict[str, str]:
    """By file name, as ``sha256sum`` writes them."""
    lines = (line.split(maxsplit=1) for line in (reference / SUMS).read_text().splitlines())
    return {name.strip(): total for total, name in lines}


def sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def made_with(reference: Path) -> dict[str, dict[str, str]]:
    """The versions of packages, and the digests of operations."""
    made: dict[str, dict[str, str]] = json.loads((reference / MADE_WITH).read_text())
    return made


def other_versions(made: Mapping[str, str]) -> list[str]:
    """Of packages, in words, those that are others here than where the reference was made."""
    now = versions()
    return [f"{name} {now[name]} instead of {made.get(name)}" for name in differing_versions(made, now)]


def versions() -> dict[str, str]:
    """Of what is installed here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def renew(report: Path, runs: Path, reference: Path) -> None:
    """Copy what is kept, with the sums of all, what it was made with, and a certificate of every run.

    Raises: ConfigError for a partial report.
    """
    verdicts = pd.read_csv(report / "claims.csv")
    if not verdicts["verdict"].eq("holds").all():
        raise ConfigError(f"{report}: not every claim holds; no reference is made of it")
    files = sorted(path for path in report.iterdir() if path.suffix in COMPARED)
    for path in files:
        if path.suffix in KEPT:
            shutil.copy(path, reference / path.name)
    (reference / SUMS).write_text("".join(f"{sum_of(path)}  {path.name}\n" for path in files))
    operations = json.loads(OPERATIONS.read_text())["digests"]
    made = {"versions": versions(), "operations": operations}
    (reference / MADE_WITH).write_text(json.dumps(made, indent=2) + "\n")
    shutil.rmtree(reference / CERTIFICATES, ignore_errors=True)
    (reference / CERTIFICATES).mkdir()
    for name in pd.read_csv(report / DIGESTS)["run"]:
        certificate = to_json(certify(RunFolder(runs / name)))
        (reference / CERTIFICATES / f"{name}.json").write_text(certificate + "\n")


if __name__ == "__main__":
    renew(*map(Path, sys.argv[1:4]))
