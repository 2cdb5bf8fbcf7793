"""``rlloss reproduce`` runs every claim's experiments, and only what is missing; all is as in the reference."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

from rlloss.claims import load_claims, select
from rlloss.claims.reference import compare, reference_dir
from rlloss.cli import main
from rlloss.config import load
from rlloss.errors import ConfigError
from rlloss.graph.browser import BINARIES
from rlloss.runs import RunFolder
from rlloss.runs.place import run_folder
from rlloss.sweep.launchers import jobs_of, quoted, sweep
from rlloss.train.by_hand import HandStepper
from rlloss.train.numerics import available
from rlloss.train.state import prepared
from rlloss.train.switches import deterministic
from tests.browser import opened, readable
from tests.helpers import code_blocks

CLAIMS = {claim.name: claim for claim in load_claims()}
ASKED = {name for name, claim in CLAIMS.items() if not claim.on_request}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_claim_holds_with_the_quick_preset(tmp_path, request):
    """What `make reproduce` runs, into a fresh folder whose name no override grammar would like."""
    out = tmp_path / "a, b=c"
    command = [sys.executable, "-m", "rlloss", "reproduce", "--runs", out / "runs", "--report", out / "report"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    if available():  # of other people's trainers only the verdicts are the same on every CPU
        names = [*sorted(ASKED - {"other_trainers"}), "aggregate", "bisect", "returns"]
        comparison = compare(out / "report", reference_dir("quick"), names)
        assert (comparison.others, comparison.digests) == ([], 248)
        assert comparison.files > 100
    table = pd.read_csv(out / "report" / "claims.csv")
    assert set(table["claim"]) == ASKED
    assert (table["verdict"] == "holds").all()
    assert main(["verify", str(out / "runs")]) == 1, "the textbook order is among the runs"
    steps = same_by_autograd(out / "runs", tmp_path / "autograd")
    assert steps > 50_000
    if any(map(shutil.which, BINARIES)):  # without one this is no reason to skip the rest
        for width in (1280, 390):
            with opened(request.getfixturevalue("browser"), out / "report" / "index.html", width=width) as page:
                readable(page, width)
                assert page.locator("section figure img").count() == len(ASKED)


def same_by_autograd(runs, elsewhere):
    """Trains runs again whose gradients are written out by hand, and compares every digest. Returns: how many.

    Of each configuration the first seed: what another seed would show, the others' kinds show, too.
    """
    wanted, seen = {}, set()
    for claim in select(sorted(ASKED), "portable" if available() else "native"):
        for native, overrides in zip(CLAIMS[claim.name].runs("quick"), claim.runs("quick"), strict=True):
            config = load(native)
            kind = repr(replace(config, seed=0, run_dir=None, run_root=""))
            if kind in seen:
                continue
            seen.add(kind)
            with deterministic(config), prepared(config) as state:
                if isinstance(state.stepper, HandStepper):
                    by_hand = run_folder(load([*overrides, quoted("run_root", str(runs))]))
                    wanted[by_hand] = [*overrides, quoted("run_root", str(elsewhere)), "update=autograd"]
    jobs = jobs_of(list(wanted.values()))
    assert not any(outcome.reason for outcome in sweep(jobs))
    digests = [(folder / "digests.bin").read_bytes() for folder in wanted]
    assert [(run_folder(job.config) / "digests.bin").read_bytes() for job in jobs] == digests
    return sum(map(len, digests)) // 32


def test_select_and_unknown_claims():
    assert [claim.name for claim in select(["ppo_learns", "ppo_learns"])] == ["ppo_learns"]
    assert {claim.name for claim in select(None)} == ASKED == set(CLAIMS) - {"compiled"}
    with pytest.raises(ConfigError, match="--claim=x: no such claim"):
        select(["x"])


NEW_CLAIM = code_blocks("experiments/README.md")[0]  # what a newcomer copies


@pytest.mark.slow
def test_a_new_claim_is_one_file_and_reproduce_skips_what_is_finished(tmp_path, monkeypatch, capsys):
    experiments = tmp_path / "experiments"
    experiments.mkdir()
    (experiments / "one_digest.py").write_text(NEW_CLAIM)
    monkeypatch.setattr("rlloss.claims.claim.data_dir", lambda name: experiments)
    where = ["--runs", str(tmp_path / "runs"), "--report", str(tmp_path / "report")]
    (tmp_path / "runs").mkdir()
    assert main(["report", where[1], *where[2:]]) == 1, "not run yet"
    assert "not run" in capsys.readouterr().out
    assert main(["reproduce", "--jobs", "2", *where]) == 0
    assert "2 runs, 0 of them finished already" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "report").iterdir()}
    whole = {
        "index.html",
        "digests.csv",
        *(f"{name}.{kind}" for name in ("claims", "returns", "aggregate", "bisect") for kind in ("csv", "tex")),
    }
    assert names == whole | {f"one_digest.{suffix}" for suffix in ("csv", "tex", "md", "pdf", "png", "svg")}
    runs = sorted((tmp_path / "runs").iterdir())
    shutil.rmtree(runs[0])
    before = (runs[1] / "run.json").stat().st_mtime_ns
    assert main(["reproduce", "--jobs", "2", *where]) == 0
    assert "2 runs, 1 of them finished already" in capsys.readouterr().out
    assert (runs[1] / "run.json").stat().st_mtime_ns == before
    assert RunFolder(runs[0]).status == "finished"


@pytest.mark.slow
def test_a_claim_whose_packages_are_missing_leaves_the_others_running(tmp_path, monkeypatch, capsys):
    experiments = tmp_path / "experiments"
    experiments.mkdir()
    (experiments / "one_digest.py").write_text(NEW_CLAIM)
    (experiments / "lander.py").write_text(NEW_CLAIM.replace('("num_envs=2"', '("env=lunarlander", "num_envs=2"'))
    monkeypatch.setattr("rlloss.claims.claim.data_dir", lambda name: experiments)
    command = ["reproduce", "--jobs", "2", "--runs", str(tmp_path / "runs"), "--report", str(tmp_path / "report")]

    def verdicts():
        return pd.read_csv(tmp_path / "report" / "claims.csv").set_index("claim")

    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "Box2D", None)
        assert main(command) == 1
    assert "2 claims, 2 runs, 0 of them finished" in capsys.readouterr().out
    assert verdicts()["verdict"].to_dict() == {"lander": "not run", "one_digest": "holds"}
    remedy = "LunarLander-v3 is not installed; pip install 'rlloss[box2d]'"
    assert verdicts()["evidence"]["lander"] == f"2 of 2 runs are not finished: env.id={remedy}"
    pytest.importorskip("Box2D", reason="pip install 'rlloss[box2d]'")
    assert main(command) == 0
    assert (verdicts()["verdict"] == "holds").all()
