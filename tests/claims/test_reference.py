"""A report held against the committed results: what is the same is counted, what is not is named, with suspects."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from rlloss.claims import reference
from rlloss.claims.claim import Claim
from rlloss.claims.judged import Judged
from rlloss.claims.reference import (
    CERTIFICATES,
    DIGESTS,
    MADE_WITH,
    SUMS,
    compare,
    made_with,
    other_versions,
    read_sums,
    reference_dir,
    renew,
    versions,
)  # fmt: skip
from rlloss.claims.report import write_claim
from rlloss.errors import ConfigError
from rlloss.runs.certificate import read
from tests.helpers import ROOT
from tests.numerics.paths import FORCED, python

REFERENCE = ROOT / "results" / "reference"


@pytest.fixture
def reports(tmp_path, make_run):
    """A report of two claims, with one run each, and the reference that was made of it."""
    report, home, runs = tmp_path / "report", tmp_path / "reference", tmp_path / "runs"
    report.mkdir()
    home.mkdir()
    rows = []
    for name in ("a", "b"):
        run = make_run(f"seed={ord(name)}")
        shutil.copytree(run.path, runs / f"run-{name}")
        rows.append((f"run-{name}", run.info["final_digest"]))
        for suffix in ("csv", "md", "tex", "png", "svg"):
            (report / f"{name}.{suffix}").write_text(f"{name} {suffix}")
    pd.DataFrame(rows, columns=["run", "final_digest"]).to_csv(report / DIGESTS, index=False)
    pd.DataFrame({"claim": ["a", "b"], "verdict": "holds"}).to_csv(report / "claims.csv", index=False)
    (report / "index.html").write_text("names this machine")
    renew(report, runs, home)
    return report, home, runs


def test_the_same_report_is_the_same(reports):
    report, home, _ = reports
    found = compare(report, home, ["a", "b"])
    assert found.told([]) == "2 of 2 final digests and 12 of 12 files as in the reference"
    assert sorted(path.name for path in home.iterdir()) == sorted(
        [SUMS, MADE_WITH, CERTIFICATES, DIGESTS, "claims.csv", "a.csv", "a.png", "b.csv", "b.png"]
    ), "tables and pictures are kept, of the others their sums"
    subprocess.run(["sha256sum", "--check", "--strict", home / SUMS], cwd=report, check=True, capture_output=True)
    assert {path.stem for path in (home / CERTIFICATES).iterdir()} == {"run-a", "run-b"}


def test_what_is_not_the_same_is_named(reports):
    report, home, _ = reports
    (report / "a.tex").write_text("another")
    (report / "b.png").unlink()
    table = pd.read_csv(report / DIGESTS)
    table.loc[1, "final_digest"] = "0" * 64
    table.to_csv(report / DIGESTS, index=False)
    found = compare(report, home, ["a", "b"])
    assert found.others == ["run run-b", "a.tex", "b.png", DIGESTS]
    told = found.told(["torch 2.14 instead of 2.13"])
    assert told.startswith("1 of 2 final digests and 9 of 12 files as in the reference; not the same:\n  run run-b\n")
    assert told.endswith("to be suspected: torch 2.14 instead of 2.13")
    assert found.told([]).endswith("runs or files of before may lie there")


def test_of_some_claims_only_their_own_files_are_asked(reports):
    report, home, _ = reports
    (report / "b.tex").write_text("another")
    pd.read_csv(report / DIGESTS)[:1].to_csv(report / DIGESTS, index=False)
    assert compare(report, home, ["a"]).told([]) == "1 of 1 final digests and 5 of 5 files as in the reference"


def test_many_are_counted(reports):
    report, home, _ = reports
    for path in report.glob("*.*"):
        if path.suffix != ".csv":
            path.unlink()
    assert "and 3 more" in compare(report, home, ["a", "b"]).told([])


def test_files_of_an_earlier_report_do_not_pass_for_a_claim_that_was_not_run(reports):
    report, home, _ = reports
    write_claim(Judged(Claim("It is so.", None, None, None, name="a"), "quick", [], [], None), report)
    found = compare(report, home, ["a", "b"])
    assert [name for name in found.others if name.startswith("a.")] == ["a.csv", "a.md", "a.png", "a.svg", "a.tex"]


def test_versions_that_differ_are_suspected(reports, monkeypatch):
    _, home, _ = reports
    made = made_with(home)
    assert other_versions(made["versions"]) == []
    assert made["versions"]["torch"] == versions()["torch"]
    monkeypatch.setattr(reference, "versions", lambda: made["versions"] | {"gymnasium": "9.9", "mujoco": "none"})
    assert other_versions(made["versions"]) == ["gymnasium 9.9 instead of 1.4.0", "mujoco none instead of 4.0.0"]


def test_no_reference_is_made_of_claims_that_fail(reports):
    report, home, runs = reports
    pd.DataFrame({"claim": ["a", "b"], "verdict": ["holds", "not run"]}).to_csv(report / "claims.csv", index=False)
    with pytest.raises(ConfigError, match="not every claim holds"):
        renew(report, runs, home)


def test_the_committed_reference_is_whole():
    sums = read_sums(REFERENCE)
    kept = [name for name in sums if name.endswith((".csv", ".png"))]
    assert [name for name in kept if reference.sum_of(REFERENCE / name) != sums[name]] == []
    digests = pd.read_csv(REFERENCE / DIGESTS).set_index("run")["final_digest"]
    certificates = [read(path) for path in (REFERENCE / CERTIFICATES).iterdir()]
    assert all(certificate.intact for certificate in certificates)
    assert {c.path.stem: c.document["final_digest"] for c in certificates} == digests.to_dict()
    operations = json.loads((ROOT / "rlloss/train/operations.json").read_text())["digests"]
    assert all(c.document["operations"] == operations for c in certificates)
    assert made_with(REFERENCE)["operations"] == operations
    assert reference_dir("quick") == REFERENCE
    assert reference_dir("paper") is None, "made with native numerics, on a machine of its own"


@pytest.mark.parametrize(
    "name",
    [
        "CartPole-v1__numerics-portable__stop-threshold__stop.threshold-0.01__",
        pytest.param("Pendulum-v1__precision-fp16__numerics-portable__total", marks=pytest.mark.slow),
    ],
)
def test_a_certificate_of_the_reference_replays(name):
    """Whatever machine it was made on: this one gives the same links."""
    (path,) = (
        path for path in (REFERENCE / CERTIFICATES).glob(f"{name}*ppo_clip__seed-1.json") if "guard" not in path.name
    )
    assert "replays" in (printed := python("-m", "rlloss", "verify", "--certificate", str(path)))
    assert printed.splitlines()[-1].split()[1] == "yes", printed


@pytest.mark.slow
def test_reproduce_ends_with_the_comparison(tmp_path):
    """Whatever the user has set: a claim without runs, and its six files."""
    where = ["--claim", "overflow", "--runs", str(tmp_path / "runs"), "--report", str(tmp_path / "report")]
    for env in ({}, FORCED["all of them"]):
        printed = python("-m", "rlloss", "reproduce", "--exact", *where, env=env)
        assert printed.splitlines()[-1] == "0 of 0 final digests and 6 of 6 files as in the reference"


@pytest.mark.slow
def test_exact_fails_where_something_differs(tmp_path):
    """A reference that says otherwise of one file."""
    home = tmp_path / "reference"
    shutil.copytree(REFERENCE, home)
    sums = (home / SUMS).read_text()
    (home / SUMS).write_text(sums.replace(read_sums(home)["overflow.tex"], "0" * 64))
    command = ["reproduce", "--claim", "overflow", "--exact", "--report", str(tmp_path / "report")]
    code = f"""
import sys
from pathlib import Path
from rlloss.cli import main
import rlloss.cli.reproduce as reproduce
reproduce.reference_dir = lambda preset: Path({str(home)!r})
sys.exit(main({command!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "5 of 6 files as in the reference; not the same:\n  overflow.tex" in done.stdout, done.stderr
