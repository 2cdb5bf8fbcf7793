"""An environment or a loss that ends the process, as sys.exit() does, has failed: said in words, and never exit 0."""

import pytest

from rlloss.cli.main import main
from rlloss.config import load
from rlloss.errors import RunFailed
from rlloss.runs import RunFolder
from rlloss.train import train
from tests.helpers import SHORT

ENVIRONMENTS = """\
import sys

import gymnasium


class Exit(gymnasium.Env):
    def __init__(self, where="step", error="SystemExit"):
        self.observation_space, self.action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)
        self.where, self.error, self.t = where, error, 0
        self.leave("init")

    def leave(self, where):
        if where == self.where:
            raise {"SystemExit": SystemExit, "GeneratorExit": GeneratorExit}[self.error](0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.leave("reset")
        return self.observation_space.sample() * 0, {}

    def step(self, action):
        self.t += 1
        if self.t > 90:
            self.leave("step")
        return self.observation_space.sample() * 0, 1.0, self.t % 20 == 0, False, {}


gymnasium.register("Exit-v0", Exit)
"""
LOSSES = """\
import sys

CALLS = []


def at_once(logp, old_logp, advantages, *, clip_coef):
    sys.exit(0)


def later(logp, old_logp, advantages, *, clip_coef):
    CALLS.append(1)
    if len(CALLS) > 20:
        sys.exit(0)
    return -logp * advantages
"""


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A user's folder with such files, whose names no other test has."""
    (tmp_path / "leaving_envs.py").write_text(ENVIRONMENTS)
    (tmp_path / "leaving_losses.py").write_text(LOSSES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


ENV = ("env.id=leaving_envs:Exit-v0", *SHORT)


@pytest.mark.parametrize("error", ["SystemExit", "GeneratorExit"])
def test_an_environment_that_exits_fails_its_run(there, capsys, error):
    assert main(["train", *ENV, f"env.kwargs.error={error}", "run_dir=r"]) == 1
    err = capsys.readouterr().err
    assert f"the run failed: environment 0 (Exit-v0) raised {error}: 0 (leaving_envs.py, line 14)" in err
    run = RunFolder(there / "r")
    assert run.status == "failed"
    assert f"raised {error}: 0" in run.info["error"]


@pytest.mark.slow
@pytest.mark.parametrize("check", ["true", "false"])
@pytest.mark.parametrize("where", ["init", "reset"])
def test_an_environment_that_exits_before_the_run_is_refused(there, capsys, where, check):
    assert main(["train", *ENV, f"env.kwargs.where={where}", f"env.check={check}", "run_dir=r"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rlloss: env.id=leaving_envs:Exit-v0: ")
    assert "raised SystemExit: 0 (leaving_envs.py, line 14)" in err
    assert err.count("\n") == 1
    assert not (there / "r").exists()


@pytest.mark.slow
def test_a_sweep_goes_on_with_the_others(there, capsys):
    sweep = ["train", "-m", *SHORT, "hydra.launcher.n_jobs=1", "run_root=runs"]
    assert main([*sweep, "env.id=leaving_envs:Exit-v0,CartPole-v1", "seed=1,2"]) == 1
    assert capsys.readouterr().err.count("raised SystemExit: 0") == 2
    assert sorted(RunFolder(path).status for path in (there / "runs").iterdir() if path.is_dir()) == [
        "failed", "failed", "finished", "finished",
    ]  # fmt: skip


def test_a_loss_that_exits_is_refused_or_fails_its_run(there, capsys):
    assert main(["train", *SHORT, "loss=leaving_losses.py:at_once", "run_dir=r"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rlloss: loss=leaving_losses.py:at_once raised SystemExit: 0 (leaving_losses.py, line 7)")
    assert not (there / "r").exists()
    assert main(["train", *SHORT, "loss=leaving_losses.py:later", "run_dir=later"]) == 1
    said = "the run failed: leaving_losses.py:later raised SystemExit: 0 (leaving_losses.py, line 13)"
    assert said in capsys.readouterr().err
    assert RunFolder(there / "later").status == "failed"
    sweep = ["train", "-m", *SHORT, "hydra.launcher.n_jobs=1", "run_root=runs", "seed=1"]
    assert main([*sweep, "loss=leaving_losses.py:later,ppo_clip"]) == 1
    assert "later raised SystemExit: 0 (leaving_losses.py, line 13)" in capsys.readouterr().err


@pytest.mark.slow
def test_check_and_graph_of_a_loss_that_exits_are_one_line(there, capsys):
    for command in (
        ["check", "leaving_losses.py:at_once", "ppo_clip"],
        ["graph", "leaving_losses.py:at_once", "-o", "page.html"],
    ):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert "raised SystemExit: 0 (leaving_losses.py, line 7)" in err
        assert err.count("\n") == 1


@pytest.mark.slow
def test_in_python_it_is_a_run_that_failed(there):
    with pytest.raises(RunFailed, match="environment 0 \\(Exit-v0\\) raised SystemExit"):
        train(load([*ENV]))
