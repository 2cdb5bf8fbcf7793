"""The artifact: it says what the claims and the reference hold, and answers an outside auditor's complaints."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from rlloss.claims import artifact
from rlloss.claims.artifact import ANSWERS, digest_of, write
from rlloss.claims.claim import Claim, select
from rlloss.claims.reference import DIGESTS, SUMS
from rlloss.config import load
from rlloss.errors import ConfigError
from rlloss.runs.place import run_folder
from rlloss.version import __version__
from tests.helpers import ROOT, SHORT

REFERENCE = ROOT / "results" / "reference"


@pytest.fixture
def of_one_run(tmp_path, make_run, monkeypatch):
    """A claim with one run, which is there, and a reference that has it."""
    run = make_run()
    home, runs = tmp_path / "reference", tmp_path / "runs"
    shutil.copytree(run.path, runs / "one")
    shutil.copytree(REFERENCE, home, ignore=shutil.ignore_patterns("*.png", "certificates"))
    pd.DataFrame({"run": ["one"], "final_digest": [run.info["final_digest"]]}).to_csv(home / DIGESTS, index=False)
    claim = Claim("It is so.", lambda preset: [(*SHORT, f"run_dir={runs / 'one'}")], None, None, name="mine")
    monkeypatch.setattr(artifact, "select", lambda names, numerics: [claim])
    return run, runs, home, tmp_path / "out"


def test_what_it_says_is_what_the_runs_hold(of_one_run):
    run, runs, home, out = of_one_run
    write(runs, home, out)
    appendix = (out / "appendix.md").read_text()
    digest = digest_of([f"one {run.info['final_digest']}"])
    listed = subprocess.run(
        ["sha256sum"], input=f"one {run.info['final_digest']}\n", text=True, capture_output=True, check=True
    )
    assert listed.stdout.startswith(digest)
    assert f"| mine | `rlloss reproduce --claim mine` | 1 | 600 | 0 | {digest} |" in appendix
    assert f"1 digests and {len((home / SUMS).read_text().splitlines())} files" in appendix
    assert all(f"| {rule} | {answer} |" in appendix for rule, answer in ANSWERS.items())
    assert "The 1 runs of the quick preset" in appendix
    assert "{{" not in appendix + (out / "checklist.md").read_text()
    assert "&#39;" not in appendix, "Markdown is not escaped as HTML"


def test_codemeta_is_that_of_the_project(of_one_run):
    _, runs, home, out = of_one_run
    write(runs, home, out)
    codemeta = json.loads((out / "codemeta.json").read_text())
    assert codemeta["@context"] == "https://w3id.org/codemeta/3.0"
    assert codemeta["version"] == __version__
    assert {"@type", "name", "license", "author", "softwareRequirements"} <= codemeta.keys()


def test_a_run_that_is_missing_is_one_line(of_one_run):
    _, runs, home, out = of_one_run
    shutil.rmtree(runs / "one")
    with pytest.raises(ConfigError, match=r"one: missing; run `make reproduce` first"):
        write(runs, home, out)


@pytest.mark.slow
def test_the_reference_has_every_run_of_every_claim():
    names = set(pd.read_csv(REFERENCE / DIGESTS)["run"])
    for claim in select(None, "portable"):
        assert {run_folder(load(overrides)).name for overrides in claim.runs("quick")} <= names, claim.name


def test_an_outside_auditors_complaints_are_answered(tmp_path):
    """adduce, on what git has: each rule that it finds fault with has an answer, and no answer is to nothing."""
    pytest.importorskip("adduce")
    copy, found = tmp_path / "copy", tmp_path / "found.json"
    subprocess.run(["git", "clone", "-q", ROOT, copy], check=True)
    command = [Path(sys.executable).parent / "adduce", "check", copy, "--format", "json", "--output", found]
    subprocess.run(command, check=True, capture_output=True)
    findings = json.loads(found.read_text())["findings"]
    faults = {finding["rule_id"] for finding in findings if finding["status"] in ("fail", "partial")}
    assert faults, "an audit that finds nothing at all has not been made"
    assert faults <= ANSWERS.keys(), faults - ANSWERS.keys()
    assert {rule for rule in ANSWERS if re.match("R-", rule)} <= faults, ANSWERS.keys() - faults
