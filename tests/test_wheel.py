"""The wheel holds everything, so that `rlloss` runs outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rlloss.runs import find_runs
from tests.helpers import ROOT, write_users_files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rlloss(tmp_path_factory):
    """The command of the installed wheel, called in a folder."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    source, site = tmp_path / "source", tmp_path / "site-packages"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.splitlines():
        if Path(name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(Path(name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)

    def call(folder, *arguments):
        # as the console script: the folder that it is called in is not on the path, only the installation
        code = "import sys; sys.path.remove(''); import rlloss; from rlloss.cli.main import main;"
        code += f"assert rlloss.__file__.startswith({str(site)!r}); sys.exit(main(sys.argv[1:]))"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=folder, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return call


def test_it_trains_and_finds_its_claims_outside_the_checkout(rlloss, tmp_path):
    experiments = [path.stem for path in (ROOT / "experiments").glob("[!_]*.py")]
    assert len(experiments) > 10
    done = rlloss(
        tmp_path, "train", "-m", "loss=ppo_clip,reinforce", "num_envs=2", "num_steps=50", "total_timesteps=200"
    )
    assert done.returncode == 0, done.stderr
    assert len(find_runs([tmp_path])) == 2
    assert rlloss(tmp_path, "graph", "ppo_clip", "reinforce", "--table", "t.csv").returncode == 0
    assert "logp → ratio → clip → min → loss,logp → loss; w detached" in (tmp_path / "t.csv").read_text()
    named = rlloss(tmp_path, "report", "--claim", "x").stderr
    assert [claim for claim in experiments if claim not in named] == []


def test_a_new_users_first_hour(rlloss, tmp_path):
    """From an empty folder: an environment, a loss and configs of one's own; a sweep of four, verify, evaluate."""
    write_users_files(tmp_path)
    transcript = [
        ("check ppo_clip losses.py:mine", 0, "IDENTICAL"),
        ("train env.id=mine:Line-v0 env.kwargs.obs=dict total_timesteps=1024", 0, "flattened to 4 numbers"),
        ("train env=line", 2, "env=line: no such env"),
        ("train --config-dir conf env=line +experiment=quick total_timesteps=1024", 0, "finished"),
        (
            "train -m --config-dir conf env=line experiment=quick total_timesteps=2048"
            " loss=ppo_clip,losses.py:mine seed=1,2 run_root=sweep",
            0,
            "losses.py-mine__seed-2",
        ),
        ("verify --tested sweep", 0, "2 IDENTICAL of 2 pairs"),
        ("train -m loss=ppo_clip,cispo total_timesteps=2048 run_root=short", 0, "cispo"),
        ("verify --tested short", 1, "not put to the test: no ratio left 0.8 … 1.2"),
    ]
    for command, code, said in transcript:
        done = rlloss(tmp_path, *command.split())
        assert (done.returncode, done.stderr.count("Traceback")) == (code, 0), f"{command}\n{done.stderr}"
        assert said in done.stdout + done.stderr, command
    run = next((tmp_path / "sweep").glob("*losses.py-mine__seed-1"))
    evaluated = rlloss(tmp_path, "evaluate", str(run), "--episodes", "6")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "over 6 episodes of" in evaluated.stdout
