"""How a sweep becomes jobs, and what it does when a process dies under it."""

import os
import signal

import pytest

from rlloss import launch, sweep
from rlloss.config import ConfigError, load, run_folder
from rlloss.runs import RunFolder

TINY = ("num_envs=2", "num_steps=50", "total_timesteps=400")


@pytest.mark.parametrize(
    "name", ["a, b=c", "it's", "back\\slash", "end\\", "\\'", "${seed}", "[1,2]", "{a: b}", "été", "'", ""]
)
def test_a_quoted_value_comes_through_every_grammar(name):
    assert load([launch.quoted("run_root", name)]).run_root == name


def test_a_sweep_is_split_into_jobs_and_hydras_own_keys():
    jobs, hydras = launch.split_sweep([*TINY, "seed=1,2", "hydra/launcher=slurm", "hydra.launcher.partition=cpu"])
    assert [job.config.seed for job in jobs] == [1, 2]
    assert hydras == ["hydra/launcher=slurm", "hydra.launcher.partition=cpu"]
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.max_batch_size=2: of Hydra's own keys a sweep takes"):
        launch.sweep(jobs, ["hydra.sweeper.max_batch_size=2"])


def killed_if_seed_is_2(config):
    """A job that dies as one does that takes too much memory: in the middle of its run, without a word."""
    if config.seed == 2:
        folder = run_folder(config)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text('{"status": "running"}')
        os.kill(os.getpid(), signal.SIGKILL)
    return sweep.run_one(config)


def killed_at_once_if_seed_is_2(config):
    """One that dies before it has written anything, as while torch is imported."""
    if config.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return sweep.run_one(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "left"), [(killed_if_seed_is_2, "running"), (killed_at_once_if_seed_is_2, "missing")]
)
def test_a_killed_process_fails_its_run_alone(tmp_path, monkeypatch, killed, left):
    jobs = launch.jobs_of([(*TINY, f"seed={seed}", f"run_root={tmp_path}") for seed in (1, 2, 3, 4)])
    monkeypatch.setattr(launch, "run_one", killed)
    outcomes = launch.sweep(jobs, ["hydra.launcher.n_jobs=2"])
    assert [bool(outcome.reason) for outcome in outcomes] == [False, True, False, False]
    assert "its process was killed" in outcomes[1].reason
    assert [RunFolder(run_folder(job.config)).status for job in jobs] == ["finished", left, "finished", "finished"]


def dies(configs):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_while_it_checks_is_named_with_a_remedy(tmp_path, monkeypatch):
    jobs = launch.jobs_of([(*TINY, f"run_root={tmp_path / 'runs'}")])
    monkeypatch.setattr(sweep, "_validate", dies)
    with pytest.raises(ConfigError, match=r"one was killed before the first run, as where memory is short; use fewer"):
        launch.sweep(jobs, ["hydra.launcher.n_jobs=2"])
    assert list(tmp_path.iterdir()) == []


def test_slurm_that_is_not_there_is_bad_input(tmp_path, monkeypatch):
    jobs = launch.jobs_of([(*TINY, f"run_root={tmp_path / 'runs'}")])
    monkeypatch.setenv("PATH", str(tmp_path))
    with monkeypatch.context() as installed:
        installed.setattr(launch.importlib.util, "find_spec", lambda name: object())
        with pytest.raises(ConfigError, match="hydra/launcher=slurm: no sbatch on this machine"):
            launch.sweep(jobs, ["hydra/launcher=slurm"])
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rlloss\[slurm\]'"):
        launch.sweep(jobs, ["hydra/launcher=slurm"])
    assert list(tmp_path.iterdir()) == []
