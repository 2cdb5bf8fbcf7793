"""What the losses of users' files do to a verdict: edited, printing, differing where no run went."""

import json
import re
import shutil
import subprocess
import sys

from rlloss.config import load
from rlloss.runs import RunFolder, find_runs
from rlloss.train import train
from rlloss.verify import compare_runs, verify
from tests.helpers import SHORT
from tests.test_verify import QUIET, copy_of

UNCLIPPED = (
    "import torch\ndef mine(logp, old, A, *, clip_coef):\n    print('hello')\n    r = (logp - old).exp()\n"
    "    return -torch.min(r * A, r.clamp(0.8, 1.2) * A)\n"
)


def test_a_loss_that_is_edited_between_two_runs_is_not_one_loss_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, source in (("a", UNCLIPPED), ("b", UNCLIPPED.replace("0.8", "0.7")), ("c", UNCLIPPED)):
        (tmp_path / "mine.py").write_text(source)
        train(load([*SHORT, QUIET, "loss=mine.py:mine"]), tmp_path / name)
    a, b, c = (RunFolder(tmp_path / name) for name in "abc")
    edited = compare_runs(a, b)
    assert (edited.verdict, edited.tested) == ("IDENTICAL", None)
    assert edited.untested == "not known: the source of mine.py:mine has changed between the two"
    assert re.match(r"the source of mine\.py:mine has changed between the two: \w{12} \| \w{12}$", edited.reason)
    assert compare_runs(a, c).tested is True


def test_a_loss_that_prints_is_compared_and_json_is_json(make_run, tmp_path, monkeypatch):
    """In a process of its own, too, whose answer is read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(UNCLIPPED)
    shutil.copytree(make_run().path, tmp_path / "runs" / "ours")
    train(load([*SHORT, "loss=mine.py:mine"]), tmp_path / "runs" / "mine")
    command = [sys.executable, "-m", "rlloss", "verify", "--json", "runs"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (pair,) = json.loads(done.stdout)["pairs"]
    assert (pair["verdict"], pair["tested"]) == ("IDENTICAL", True)


def test_a_loss_that_differs_at_large_advantages_alone_is_not_known_to_be_tested(tmp_path, make_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        UNCLIPPED.replace("return -", "return (1 + 6 * (A.abs() > 50)) * -").replace("    print('hello')\n", "")
    )
    train(load([*SHORT, "loss=mine.py:mine"]), tmp_path / "mine")
    verdict = compare_runs(make_run(), RunFolder(tmp_path / "mine"))
    assert (verdict.verdict, verdict.tested) == ("IDENTICAL", None)
    assert verdict.untested == "not known: the losses differ at large |A| alone, and how large it was is not recorded"


def test_a_config_that_was_edited_is_incomplete_whatever_was_edited(make_run, tmp_path):
    other = copy_of(make_run("loss=reinforce"), tmp_path / "run")
    config = (other.path / "config.yaml").read_text()
    (other.path / "config.yaml").write_text(config.replace("gamma: 0.99", "gamma: 0.5"))
    verdict = compare_runs(make_run(), RunFolder(other.path))
    assert verdict.verdict == "INCOMPLETE"
    assert "config.yaml is not the config that run.json has the digest of" in verdict.reason


def test_a_loss_that_is_random_is_said_to_be(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import random\ndef mine(logp, old, A, *, clip_coef):\n    return -random.random() * (logp - old).exp() * A\n"
    )
    for name in ("a", "b"):
        train(load([*SHORT, "loss=mine.py:mine"]), tmp_path / name)
    verdict = compare_runs(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"))
    assert verdict.verdict == "DIVERGED"
    assert "twice: training is not deterministic" in verdict.reason


def test_a_loss_whose_source_has_changed_since_is_not_asked_where_it_differs(tmp_path, monkeypatch):
    """The source that is there now is not what was trained."""
    monkeypatch.chdir(tmp_path)
    mine = (
        "import torch\ndef mine(logp, old, A, *, clip_coef):\n    r = (logp - old).exp()\n"
        "    return -torch.min(r * A, r.clamp(0.8, 1.2) * A)\n"
    )
    (tmp_path / "mine.py").write_text(mine)
    for loss in ("ppo_clip", "mine.py:mine"):
        train(load([*SHORT, f"loss={loss}"]), tmp_path / "runs" / loss[:4])
    (verdict,) = verify(find_runs([tmp_path / "runs"]))[0]
    assert verdict.tested
    (tmp_path / "mine.py").write_text(mine.replace("0.8", "0.5"))
    (verdict,) = verify(find_runs([tmp_path / "runs"]))[0]
    assert (verdict.verdict, verdict.tested) == ("IDENTICAL", None)
    assert verdict.untested == "not known: the source of mine.py:mine has changed since"
