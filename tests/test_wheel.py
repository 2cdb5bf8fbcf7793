"""The wheel holds everything, so that `rlloss` runs outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rlloss.runs import find_runs


@pytest.mark.slow
def test_the_wheel_trains_and_finds_its_claims_outside_the_checkout(tmp_path):
    source, site, work = tmp_path / "source", tmp_path / "site-packages", tmp_path / "work"
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
    work.mkdir()
    experiments = [path.stem for path in Path("experiments").glob("[!_]*.py")]
    assert len(experiments) > 10

    def rlloss(*arguments):
        environment = os.environ | {"PYTHONPATH": str(site)}
        command = [sys.executable, "-m", "rlloss", *arguments]
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)

    where = subprocess.run(
        [sys.executable, "-c", "import rlloss; print(rlloss.__file__)"],
        cwd=work, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(site))
    done = rlloss("train", "-m", "loss=ppo_clip,reinforce", "num_envs=2", "num_steps=50", "total_timesteps=200")
    assert done.returncode == 0, done.stderr
    assert len(find_runs([work])) == 2
    assert rlloss("graph", "ppo_clip", "reinforce", "--table", "t.csv").returncode == 0
    assert "logp → ratio → clip → min → loss,logp → loss; w detached" in (work / "t.csv").read_text()
    named = rlloss("report", "--claim", "x").stderr
    assert [claim for claim in experiments if claim not in named] == []
