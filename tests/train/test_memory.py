"""Sizes beyond this machine's memory: refused in one line, before anything is made."""

import pytest

from rlloss.cli.main import main
from rlloss.config import load
from rlloss.errors import ConfigError
from rlloss.sweep.run import check_elsewhere
from rlloss.train import memory, train
from tests.helpers import SHORT

LINE = ("env.id=tests.examples.environments:Line-v0", "env.check=false")
HUGE = {
    "one layer": (["hidden_sizes=[100000000000]"], "hidden_sizes=[100000000000]: needs at least "),
    "two layers": (["hidden_sizes=[100000,100000]"], "hidden_sizes=[100000, 100000]: needs at least 373 GiB, this"),
    "steps": (
        ["num_steps=1000000000", "total_timesteps=1280000000000"],
        "num_steps=1000000000 with num_envs=4, 4,000,000,000 samples per iteration: needs at least ",
    ),
    "environments": (
        ["num_envs=100000000", "num_steps=2", "total_timesteps=12800000000"],
        "num_envs=100000000: needs at least ",
    ),
    "a number without end": ([f"num_steps={10**400}", f"total_timesteps={10**402}"], "samples per iteration: needs"),
}


@pytest.mark.parametrize("case", HUGE)
@pytest.mark.parametrize("many", [[], ["-m", "hydra.launcher.n_jobs=1", "seed=1,2"]], ids=["one run", "a sweep"])
def test_what_does_not_fit_is_refused_in_one_line_and_leaves_nothing(tmp_path, capfd, case, many):
    overrides, said = HUGE[case]
    assert main(["train", *many, *overrides, f"run_root={tmp_path / 'runs'}"]) == 2
    err = capfd.readouterr().err
    assert said in err
    assert "this machine has " in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_observations_count_before_the_second_environment_is_made(monkeypatch):
    """By one environment alone is known how many numbers it shows."""
    monkeypatch.setattr(memory, "memory", lambda: 600_000)
    made = []
    monkeypatch.setattr("tests.examples.environments.Line.__init__", counted(made))
    train(load([*SHORT, *LINE]))
    assert len(made) == 2
    monkeypatch.setattr("rlloss.train.memory.ENVIRONMENT", 200_000)
    with pytest.raises(ConfigError, match=r"num_envs=4: needs at least 1 GiB, this machine has 0\.0 GiB; use fewer"):
        train(load([*SHORT, *LINE, "num_envs=4"]))
    assert len(made) == 2, "none, since two numbers are not needed to see it"
    monkeypatch.setattr("rlloss.train.memory.ENVIRONMENT", 0)
    with pytest.raises(ConfigError, match="num_steps=300 with num_envs=2, 600 samples per iteration"):
        train(load([*SHORT, *LINE, "num_steps=300", "env.kwargs.obs=wide"]))
    assert len(made) == 3


def counted(made):
    from tests.examples.environments import Line

    before = Line.__init__

    def init(self, *args, **kwargs):
        made.append(self)
        before(self, *args, **kwargs)

    return init


def test_a_login_node_needs_no_room_for_a_batch(monkeypatch):
    monkeypatch.setattr(memory, "memory", lambda: 600_000)
    large = load(["num_steps=1000000", "total_timesteps=8000000"])
    with pytest.raises(ConfigError, match="num_steps=1000000"):
        train(large)
    check_elsewhere([large])


@pytest.mark.parametrize("precision", ["fp32", "fp64", "fp16"])
def test_what_fits_is_not_refused(precision, monkeypatch):
    monkeypatch.setattr(memory, "memory", lambda: 2 << 20)
    assert train(load([*SHORT, f"precision={precision}"])).optimizer_steps == 96
