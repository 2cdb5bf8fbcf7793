"""Files of a run that can all be read and that contradict each other: never IDENTICAL, and no certificate."""

import json
import shutil

import pytest

from rlloss.cli.main import main
from rlloss.runs import RunFolder
from rlloss.verify import compare_runs

KEPT = ("keep_checkpoints=40",)


@pytest.fixture
def copied(make_run, tmp_path):
    """The run of ppo_clip, and a copy of that of reinforce, which is its twin, to be damaged."""
    shutil.copytree(make_run(*KEPT, "loss=reinforce").path, tmp_path / "b")
    return make_run(*KEPT), tmp_path / "b"


def refused(a, folder, capsys, *said):
    """``folder`` and its twin are no pair that could be judged, and it has no certificate, for one and the same why."""
    verdict = compare_runs(a, RunFolder(folder))
    assert verdict.verdict == "INCOMPLETE"
    assert all(text in verdict.reason for text in said), verdict.reason
    assert main(["verify", str(a.path), str(folder)]) == 1
    capsys.readouterr()
    assert main(["certify", str(folder)]) == 2
    err = capsys.readouterr().err
    assert all(text in err for text in said), err
    assert err.count("\n") == 1


def as_an_older_version_wrote(folder, *keys):
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({key: value for key, value in info.items() if key not in keys}))


def test_the_runs_themselves_agree(copied, capsys):
    a, b = copied
    assert compare_runs(a, RunFolder(b)).verdict == "IDENTICAL"
    assert main(["certify", str(b)]) == 0


@pytest.mark.parametrize("edit", [("name: reinforce", "name: cispo"), ("offset: 0.0", "offset: 5.0")], ids=str)
def test_a_config_that_names_another_loss_than_was_trained(copied, capsys, edit):
    a, b = copied
    text = (b / "config.yaml").read_text()
    assert edit[0] in text
    (b / "config.yaml").write_text(text.replace(*edit))
    refused(a, b, capsys, "b/config.yaml is not the config that run.json has the digest of")


def test_of_an_older_run_the_source_of_its_loss_tells(copied, capsys):
    a, b = copied
    as_an_older_version_wrote(b, "config_digest")
    text = (b / "config.yaml").read_text()
    (b / "config.yaml").write_text(text.replace("name: reinforce", "name: cispo"))
    refused(a, b, capsys, "b/config.yaml names the loss cispo, run.json has the source of reinforce")
    for name in ("reinforce", "mine.py:loss"):  # what cannot be decided is left alone
        (b / "config.yaml").write_text(text.replace("name: reinforce", f"name: {name}"))
        assert compare_runs(a, RunFolder(b)).verdict == "IDENTICAL"
    info = json.loads((b / "run.json").read_text())
    info["versions"]["loss"] = "0123456789ab"  # of another version
    (b / "run.json").write_text(json.dumps(info))
    (b / "config.yaml").write_text(text.replace("name: reinforce", "name: cispo"))
    assert compare_runs(a, RunFolder(b)).verdict == "IDENTICAL"
