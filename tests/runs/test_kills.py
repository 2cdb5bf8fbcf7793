"""Real kills, at random moments and at every other write: whatever is cut short goes on to the bits of what was not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.runs.folders import files
from tests.runs.killing import SETTINGS

KILLS = 5  # of each setting: at least 50 in all


def killed(*arguments: str, home: Path) -> list[dict]:
    command = [sys.executable, "-m", "tests.runs.killing", *arguments, str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_as_if_never_killed(home: Path, runs: list[dict]) -> None:
    whole = files(home / "whole")
    assert {"run.json", "digests.bin", "checkpoint.safetensors", "snapshots/000000000.safetensors"} <= whole.keys()
    for run in runs:
        assert run["exit"] == 0, run
        found = files(Path(run["folder"]))
        assert sorted(found) == sorted(whole)
        assert [name for name in whole if found[name] != whole[name]] == [], run


@pytest.mark.slow
@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "tiny"])
def test_a_run_killed_at_random_moments_goes_on_to_the_same_files(setting, tmp_path):
    runs = killed("random", setting, str(KILLS), "1", home=tmp_path)
    assert sum(run["kills"] for run in runs) >= KILLS
    assert any(run["resumed"] for run in runs), "all began anew"
    assert_as_if_never_killed(tmp_path, runs)


@pytest.mark.slow
def test_a_run_killed_at_every_other_write_goes_on_to_the_same_files(tmp_path):
    """Those between: ``python -m tests.runs.killing writes tiny 2 1 FOLDER``, which takes as long."""
    runs = killed("writes", "tiny", "2", "0", home=tmp_path)
    assert len(runs) > 100
    assert sum(run["resumed"] for run in runs) > 60
    assert {run["status"] for run in runs} == {"missing", "interrupted", "finished"}
    assert_as_if_never_killed(tmp_path, runs)
