"""How a sweep becomes jobs, and what it does when a process dies under it."""

import os
import signal

import pytest

from rlloss.config import load
from rlloss.errors import ConfigError
from rlloss.runs import RunFolder
from rlloss.runs.place import run_folder
from rlloss.sweep import launchers as launch, run as sweep

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


def test_a_later_override_replaces_an_earlier_one_and_its_values():
    jobs, _ = launch.split_sweep([*TINY, "seed=1,2", "loss=choice(ppo_clip,reinforce)", "seed=range(3,5)"])
    found = [(job.config.seed, job.config.loss.name) for job in jobs]
    assert found == [(3, "ppo_clip"), (3, "reinforce"), (4, "ppo_clip"), (4, "reinforce")]


REFUSED = {
    "hydra/launcher=ray": "hydra/launcher=ray: unknown; use one of joblib, basic, slurm, submitit_slurm",
    "hydra/launcher=joblib,slurm": "hydra/launcher=joblib,slurm: all runs of a sweep go one way; give one value",
    "hydra.launcher.n_jobs=many": "hydra.launcher.n_jobs=many: must be a number of processes",
    "hydra.launcher.nope=1": r"hydra\.launcher\.nope=1: launcher joblib has no nope; it has n_jobs, backend, prefer",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_launcher_that_cannot_be_had_is_refused_in_one_line(setting, tmp_path):
    with pytest.raises(ConfigError, match=REFUSED[setting]):
        launch.sweep(launch.jobs_of([(*TINY, f"run_root={tmp_path / 'runs'}")]), [setting])
    assert list(tmp_path.iterdir()) == []


def test_hydras_settings_of_the_slurm_launcher_become_sbatchs(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    for name in ("sbatch", "srun"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (job,) = launch.jobs_of([(*TINY, "torch_threads=3", f"run_root={tmp_path / 'runs'}")])
    settings = ["hydra.launcher.partition=cpu", "hydra.launcher.array_parallelism=8", "hydra.launcher.mem_gb=2"]
    settings += ["+hydra.launcher.nodelist=n1", "+hydra.launcher.additional_parameters.reservation=mine"]
    executor = launch._executor("slurm", job, ["hydra/launcher=slurm", *settings])
    assert str(executor.folder) == f"{tmp_path}/runs/.submitit/%j"
    expected = {"job_name": "rlloss", "time": 240, "cpus_per_task": 3, "partition": "cpu", "array_parallelism": 8,
                "mem": "2GB", "nodelist": "n1", "additional_parameters": {"reservation": "mine"}}  # fmt: skip
    assert expected.items() <= executor.parameters.items()
    for setting, message in {
        "+hydra.launcher.nope=1": "Unknown argument 'nope'",
        "hydra.launcher.nope=1": r"hydra\.launcher\.nope=1: launcher slurm has no nope; it has submitit_folder, time",
        "hydra.launcher.timeout_min=soon": "hydra.launcher.timeout_min: Value 'soon'",
        "hydra.launcher.partition=${nope}": "hydra.launcher.partition: Interpolation key 'nope' not found",
    }.items():
        with pytest.raises(ConfigError, match=message):
            launch._executor("slurm", job, ["hydra/launcher=slurm", setting])


def killed_if_seed_is_2(folder, config):
    """A job that dies as one does that takes too much memory: in the middle of its run, without a word."""
    if config.seed == 2:
        run = run_folder(config)
        run.mkdir(parents=True, exist_ok=True)
        (run / "run.json").write_text('{"status": "running"}')
        os.kill(os.getpid(), signal.SIGKILL)
    return sweep.run_in(folder, config)


def killed_at_once_if_seed_is_2(folder, config):
    """One that dies before it has written anything, as while torch is imported."""
    if config.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return sweep.run_in(folder, config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "left"), [(killed_if_seed_is_2, "interrupted"), (killed_at_once_if_seed_is_2, "missing")]
)
def test_a_killed_process_fails_its_run_alone(tmp_path, monkeypatch, killed, left):
    jobs = launch.jobs_of([(*TINY, f"seed={seed}", f"run_root={tmp_path}") for seed in (1, 2, 3, 4)])
    monkeypatch.setattr(launch, "run_in", killed)
    outcomes = launch.sweep(jobs, ["hydra.launcher.n_jobs=2"])
    assert [bool(outcome.reason) for outcome in outcomes] == [False, True, False, False]
    assert "its process was killed" in outcomes[1].reason
    assert [RunFolder(run_folder(job.config)).status for job in jobs] == ["finished", left, "finished", "finished"]


@pytest.mark.slow
def test_workers_that_joblib_keeps_follow_into_another_folder(tmp_path, monkeypatch):
    """Run folders, losses and environments are named relative to the folder in which a sweep is called."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        jobs = launch.jobs_of([(*TINY, f"seed={seed}", "run_root=runs") for seed in (1, 2)])
        assert not any(outcome.reason for outcome in launch.sweep(jobs, ["hydra.launcher.n_jobs=2"]))
        assert len(list((tmp_path / name / "runs").iterdir())) == 2


def dies(folder, configs):
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
        (tmp_path / "sbatch").touch(mode=0o755)
        with pytest.raises(ConfigError, match="hydra/launcher=slurm: no srun on this machine"):
            launch.sweep(jobs, ["hydra/launcher=slurm"])
        (tmp_path / "sbatch").unlink()
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rlloss\[slurm\]'"):
        launch.sweep(jobs, ["hydra/launcher=slurm"])
    assert list(tmp_path.iterdir()) == []


def test_no_more_processes_are_asked_for_than_there_are_runs():
    assert launch._parallel({"n_jobs": 100_000_000}, 3).n_jobs == 3
    assert launch._parallel({"n_jobs": 8}, 1).n_jobs == 2, "so that the run is in another process than this"
    assert launch._parallel({"n_jobs": -1}, 3).n_jobs == -1


@pytest.mark.slow
def test_a_launchers_timeout_is_named(tmp_path):
    jobs = launch.jobs_of([(*TINY, f"seed={seed}", f"run_root={tmp_path / 'runs'}") for seed in (1, 2)])
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.timeout=0\.01: a run took longer; use more seconds"):
        launch.sweep(jobs, ["hydra.launcher.n_jobs=2", "hydra.launcher.timeout=0.01"])


@pytest.mark.slow
def test_a_cluster_that_takes_no_jobs_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    programs, home = tmp_path / "bin", tmp_path / "home"
    programs.mkdir(), home.mkdir()
    for name in ("sbatch", "srun"):
        (programs / name).write_text("#!/bin/sh\necho 'sbatch: error: Unknown host' >&2\nexit 1\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    jobs = launch.jobs_of([(*TINY, f"run_root={home / 'runs'}")])
    with pytest.raises(ConfigError) as caught:
        launch.sweep(jobs, ["hydra/launcher=slurm"])
    assert str(caught.value).startswith("hydra/launcher=slurm: sbatch takes no jobs: error: Unknown host; mend that")
    assert "\n" not in str(caught.value)
    assert list(home.iterdir()) == []
