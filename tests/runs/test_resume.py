"""A run that was cut short goes on as if it never was; what cannot go on says why. Real processes and files."""

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rlloss.config import load
from rlloss.errors import ConfigError, EnvironmentFailed, Interrupted, RunFailed
from rlloss.runs import RunFolder
from rlloss.runs.lock import LOCK, FolderLock, is_held
from rlloss.train import train
from tests.helpers import ROOT
from tests.runs.folders import cut_short, files

TINY = ("num_envs=2", "num_steps=50", "total_timesteps=600", "snapshot_every=7", "checkpoint_seconds=0")
PLACES = ("named tuple", "array", "set", "deque", "generator", "legacy generator", "random")


@pytest.mark.parametrize(
    "where",
    ["counter", *(pytest.param(at, marks=pytest.mark.slow) for at in ("object", "shared generator", *PLACES))],
)
def test_what_an_environment_remembers_over_its_resets_is_brought_back(where, tmp_path, monkeypatch, caplog):
    overrides = (*TINY, "total_timesteps=6000", "env.id=tests.examples.remembering:Remembering-v0",
                 f"+env.kwargs.where={where}")  # fmt: skip
    cut_short(overrides, tmp_path / "cut", 47, monkeypatch)
    train(load(list(overrides)), tmp_path / "whole")
    with caplog.at_level(logging.INFO, "rlloss"):
        train(load(list(overrides)), tmp_path / "cut")
    assert "goes on after optimiser step 736, iteration 46 of 60" in caplog.text
    cut, whole = files(tmp_path / "cut"), files(tmp_path / "whole")
    assert cut.pop("checkpoint.safetensors") != whole.pop("checkpoint.safetensors"), "the clock, which is no state"
    assert cut == whole


@pytest.mark.slow
@pytest.mark.parametrize("where", ["slots", "global"])
def test_an_environment_that_cannot_be_brought_back_is_named_and_the_run_starts_over(
    where, tmp_path, monkeypatch, caplog
):
    overrides = (*TINY, "total_timesteps=6000", "env.id=tests.examples.remembering:Remembering-v0",
                 f"+env.kwargs.where={where}", "env.check=false")  # fmt: skip
    cut_short(overrides, tmp_path / "cut", 47, monkeypatch)
    rows = []
    train(load(list(overrides)), tmp_path / "cut", rows.append)
    assert "environment 0, played again for" in caplog.text
    assert "the run starts over" in caplog.text
    assert rows[0]["iteration"] == 1
    assert len(rows) == len(RunFolder(tmp_path / "cut").metrics) == 60
    assert len(RunFolder(tmp_path / "cut").digests) == 960


def test_a_finished_run_that_cannot_go_on_is_kept(tmp_path):
    """Asked for more steps, it began again, and what was finished was gone."""
    overrides = (*TINY, "env.id=tests.examples.remembering:Remembering-v0", "+env.kwargs.where=global",
                 "env.check=false", "schedule=constant")  # fmt: skip
    train(load(list(overrides)), tmp_path / "run")
    before = files(tmp_path / "run")
    with pytest.raises(ConfigError, match="this finished run cannot go on; it is kept, and a longer one needs another"):
        train(load([*overrides, "total_timesteps=6000"]), tmp_path / "run")
    assert files(tmp_path / "run") == before


@pytest.mark.parametrize(
    "more",
    [
        (),
        *(
            pytest.param((more,), marks=pytest.mark.slow)
            for more in ("best=metric", "logger=tensorboard", "env=halfcheetah")
        ),
    ],
)
def test_a_finished_run_goes_on_to_more_steps_as_if_asked_at_once(more, tmp_path):
    if "env=halfcheetah" in more:
        pytest.importorskip("mujoco")
    common = [*TINY, "schedule=plateau", "schedule.patience=2", *more]
    train(load([*common, "total_timesteps=2000"]), tmp_path / "whole")
    for steps in (300, 700, 2000):
        train(load([*common, f"total_timesteps={steps}"]), tmp_path / "longer")
    assert files(tmp_path / "longer") == files(tmp_path / "whole")


def test_a_run_that_stopped_early_stays_as_it_is(tmp_path):
    common = [*TINY, "schedule=constant", "stop=threshold", "stop.monitor=value_loss", "stop.threshold=1e9"]
    train(load([*common, "total_timesteps=600"]), tmp_path / "run")
    train(load([*common, "total_timesteps=1200"]), tmp_path / "run")
    assert len(RunFolder(tmp_path / "run").metrics) == 1
    assert RunFolder(tmp_path / "run").config["total_timesteps"] == 1200


def test_a_longer_run_is_refused_where_its_schedule_is_another_from_the_first_step(tmp_path):
    train(load([*TINY, "total_timesteps=600"]), tmp_path / "run")
    with pytest.raises(ConfigError, match="schedule=linear spreads the learning rate"):
        train(load([*TINY, "total_timesteps=1200"]), tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run with another config, total_timesteps=600 instead of 300"):
        train(load([*TINY, "total_timesteps=300"]), tmp_path / "run")
    assert RunFolder(tmp_path / "run").status == "finished"


def test_every_schedule_that_depends_on_the_length_is_refused_and_no_other():
    from rlloss.config.schema import OVER_THE_RUN
    from rlloss.train.conditions import FACTORS

    assert [name for name, factor in FACTORS.items() if factor(3, 10) != factor(3, 20)] == list(OVER_THE_RUN)


# ----------------------------------------------------------------------------------------- signals


def command(folder, *overrides):
    return [sys.executable, "-m", "rlloss", "train", f"run_dir={folder}", *overrides]


def started(folder, *overrides, iterations=5, env=None):
    """A run in a process of its own, some iterations old."""
    process = subprocess.Popen(
        command(folder, *overrides), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (folder / "metrics.csv").exists() or len(RunFolder(folder).metrics) < iterations:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(
    ("signum", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_a_run_after_its_iteration_and_the_same_command_goes_on(signum, code, tmp_path):
    overrides = ("total_timesteps=20480", "snapshot_every=9")
    process = started(tmp_path / "run", *overrides)
    process.send_signal(signum)
    _, err = process.communicate()
    assert process.returncode == code, err
    run = RunFolder(tmp_path / "run")
    step = run.info["optimizer_steps"]
    assert run.status == "interrupted"
    assert f"interrupted after optimiser step {step:,}, iteration {step // 16} of 40; the same command goes on" in err
    assert len(run.digests) == step == 16 * len(run.metrics) < 640
    again = subprocess.run(command(tmp_path / "run", *overrides), capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0, again.stderr
    assert f"goes on after optimiser step {step:,}" in again.stderr
    train(load(list(overrides)), tmp_path / "whole")
    found, whole = files(tmp_path / "run"), files(tmp_path / "whole")
    found.pop("config.yaml"), whole.pop("config.yaml")  # which name their run_dir
    assert found == whole


@pytest.mark.parametrize("signum", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
@pytest.mark.parametrize(
    "many", [[], pytest.param(["-m", "hydra.launcher.n_jobs=2", "seed=1,2"], marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_the_first_signal_ends_a_run_that_is_still_set_up(signum, many, tmp_path):
    """Half a million environments take minutes to make."""
    sizes = ("num_envs=500000", "num_steps=2", "total_timesteps=1000000", "checkpoint_seconds=9")
    process = subprocess.Popen(
        [sys.executable, "-m", "rlloss", "train", *many, *sizes, f"run_root={tmp_path / 'runs'}"],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    time.sleep(12 if many else 5)
    assert process.poll() is None
    process.send_signal(signum)
    _, err = process.communicate(timeout=10)
    assert process.returncode in (128 + signum, -signum), err
    assert "Traceback" not in err
    assert err.count("\n") <= 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path):
    """The first would wait for an iteration of a minute."""
    overrides = ("num_envs=8", "num_steps=20000", "num_minibatches=1", "update_epochs=1", "total_timesteps=320000")
    process = subprocess.Popen(command(tmp_path / "run", *overrides), stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while not (tmp_path / "run" / "run.json").exists():
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    while "once more ends at once" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode in (-signal.SIGTERM, 143)
    assert RunFolder(tmp_path / "run").status == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_hands_a_signal_on_and_the_same_command_goes_on(signum, tmp_path):
    sweep = [sys.executable, "-m", "rlloss", "train", "--multirun", f"run_root={tmp_path}", "total_timesteps=30720",
             "seed=1,2,3", "hydra.launcher.n_jobs=2"]  # fmt: skip
    process = subprocess.Popen(
        sweep, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while sum(len(path.read_bytes().splitlines()) > 4 for path in tmp_path.glob("*/metrics.csv")) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    assert "interrupted; 3 of 3 runs are not finished; the same command goes on with them" in err
    assert out.count("interrupted") == 2
    assert "Traceback" not in err
    again = subprocess.run(sweep, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0, again.stderr
    assert "3 runs, 0 of them finished already, 2 go on where they were cut, 1 begin" in again.stderr
    assert again.stdout.count("finished") == 3


def test_a_library_call_that_is_asked_to_stop_says_so(tmp_path):
    asked = iter([0, 0, signal.SIGTERM])
    with pytest.raises(Interrupted, match="interrupted after optimiser step 48, iteration 3 of 6"):
        train(load(list(TINY)), tmp_path / "run", asked_to_stop=lambda: next(asked))
    assert RunFolder(tmp_path / "run").status == "interrupted"
    assert train(load(list(TINY)), tmp_path / "run").final_digest == train(load(list(TINY))).final_digest


# ----------------------------------------------------------------------------------------- environments that fail

ILL = """\
import time
import gymnasium, numpy as np
from gymnasium import spaces

class Ill(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)
    ever = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.random(2, np.float32), {{}}

    def step(self, action):
        self.t, self.ever = self.t + 1, self.ever + 1
        if self.ever == 1234:
            {what}
        return self.np_random.random(2, np.float32), float(action), self.t == 20, False, {{}}

gymnasium.register("Ill-v0", entry_point="ill:Ill", max_episode_steps=30)
"""
ILLNESSES = {
    "raises": ("raise ConnectionError('simulator lost its licence')", "raised ConnectionError: simulator lost its lic"),
    "sleeps": ("time.sleep(1000)", "did not return within 2 s"),
    "loops": ("[x for x in iter(int, 1)]", "did not return within 2 s"),
    "swallows": ("exec('while True:\\n try: time.sleep(1)\\n except Exception: pass')", "did not return within 2 s"),
    "exits": ("raise SystemError('segment')", "raised SystemError: segment"),
    "nan": ("return np.full(2, np.nan, np.float32), 0.0, False, False, {}", "observation nan from environment 0"),
    "inf": ("return np.zeros(2, np.float32), float('inf'), False, False, {}", "reward inf from environment 0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("illness", ILLNESSES)
def test_a_run_goes_on_from_its_checkpoint_once_its_environment_is_mended(illness, tmp_path):
    what, said = ILLNESSES[illness]
    overrides = [*TINY, "env.id=ill:Ill-v0", "env.timeout=2", "total_timesteps=3000", "on_nonfinite=fail"]

    def rlloss(folder):
        return subprocess.run(
            command(tmp_path / folder, *overrides), cwd=tmp_path, capture_output=True, text=True, timeout=120
        )

    (tmp_path / "ill.py").write_text(ILL.format(what=what))
    ill = rlloss("run")
    assert ill.returncode == 1, ill.stderr
    line = ill.stderr.splitlines()[-1]
    assert line.startswith("rlloss: the run failed: ")
    assert said in line
    assert "at environment step 2468" in line
    assert RunFolder(tmp_path / "run").status == "failed"
    assert RunFolder(tmp_path / "run").info["error"] == line.removeprefix("rlloss: the run failed: ")
    if said.startswith(("raised", "did")):
        assert "environment 0 (Ill-v0)" in line
        assert "(ill.py, line 17)" in line or illness == "swallows"
        assert "mend it, and the same command goes on from the last checkpoint" in line
    (tmp_path / "ill.py").write_text(ILL.format(what="pass"))
    mended = rlloss("run")
    assert mended.returncode == 0, mended.stderr
    assert "goes on after optimiser step 384, iteration 24 of 30, where it was failed" in mended.stderr
    assert rlloss("whole").returncode == 0
    run, whole = (RunFolder(tmp_path / name) for name in ("run", "whole"))
    assert np.array_equal(run.digests, whole.digests)
    assert " from step 384 on " in run.info["versions"]["environment"], "made by two sources"
    assert not (run.path / "last_finite.safetensors").exists()


# ----------------------------------------------------------------------------------------- disks


def mounted(path, size):
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a file system")
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")


@pytest.mark.slow
def test_a_disk_that_fills_up_fails_the_run_in_one_line_and_with_space_it_goes_on(tmp_path):
    disk = tmp_path / "disk"
    mounted(disk, "2m")
    try:
        overrides = ["total_timesteps=30720", "snapshot_every=5", "checkpoint_seconds=0"]
        full = subprocess.run(command(disk / "run", *overrides), capture_output=True, text=True, cwd=ROOT)
        assert full.returncode == 1
        assert "Traceback" not in full.stderr
        line = full.stderr.splitlines()[-1]
        assert "No space left on device; free some space" in line
        run = RunFolder(disk / "run")
        assert run.status == "failed"
        assert "No space left on device" in run.info["error"]
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        again = subprocess.run(command(disk / "run", *overrides), capture_output=True, text=True, cwd=ROOT)
        assert again.returncode == 0, again.stderr
        assert "goes on after optimiser step" in again.stderr
        train(load(overrides), tmp_path / "whole")
        assert np.array_equal(RunFolder(disk / "run").digests, RunFolder(tmp_path / "whole").digests)
        assert RunFolder(disk / "run").snapshot_steps == RunFolder(tmp_path / "whole").snapshot_steps
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_disk_that_turns_read_only_fails_the_run_in_one_line_and_mended_it_goes_on(tmp_path):
    """ext4 does so where it finds an error; what had not been synced is then lost, as in a power failure."""
    disk, image = tmp_path / "disk", tmp_path / "image"
    if os.geteuid() != 0 or not all(map(shutil.which, ("mount", "mkfs.ext4", "fsck.ext4"))):
        pytest.skip("needs root and mkfs.ext4, to make a file system")
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    mount = ["mount", "-o", "loop,errors=remount-ro", image, disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        overrides = ["total_timesteps=61440", "checkpoint_seconds=0"]
        process = started(disk / "run", *overrides, iterations=30)
        mounts = Path("/proc/mounts").read_text().splitlines()
        device = next(line.split()[0] for line in mounts if str(disk) in line)
        Path(f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error").write_text("1")
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        # What the kernel says depends on whether the write came while it gave the journal up, or after.
        reasons = "(Read-only file system|Input/output error)"
        assert re.search(f"{reasons}; free some space, or name another run_root", err.splitlines()[-1])
        assert "Traceback" not in err
        assert RunFolder(disk / "run").status == "interrupted", "where nothing can be written, the lock tells"
        refused = subprocess.run(command(disk / "run", *overrides), capture_output=True, text=True, cwd=ROOT)
        assert refused.returncode in (1, 2)
        assert "Traceback" not in refused.stderr
        assert "Read-only file system" in refused.stderr
        subprocess.run(["umount", disk], check=True)
        subprocess.run(["fsck.ext4", "-fy", image], capture_output=True)
        subprocess.run(mount, check=True)
        again = subprocess.run(command(disk / "run", *overrides), capture_output=True, text=True, cwd=ROOT)
        assert again.returncode == 0, again.stderr
        assert "goes on after optimiser step" in again.stderr
        assert RunFolder(disk / "run").info["final_digest"] == train(load(overrides)).final_digest
    finally:
        subprocess.run(["umount", "-l", disk])


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tmp_path):
    """Years forth and back, under a run that checkpoints and one that waits for its lock."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("needs libfaketime: apt-get install faketime")
    clock, overrides = tmp_path / "clock", ("total_timesteps=61440", "checkpoint_seconds=0.2")
    clock.write_text("+0")
    jumping = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
               "FAKETIME_DONT_FAKE_MONOTONIC": "1"}  # fmt: skip
    process = started(tmp_path / "run", *overrides, env={**os.environ, **jumping})
    for i, jump in enumerate(("+3y", "-2y", "+1d", "-1d")):
        clock.write_text(jump)
        rows = len(RunFolder(tmp_path / "run").metrics)
        while len(RunFolder(tmp_path / "run").metrics) < rows + 5 and process.poll() is None:
            time.sleep(0.02)
        if i == 1:
            with pytest.raises(ConfigError, match=f"process {process.pid} on .* is writing this run"):
                train(load(list(overrides)), tmp_path / "run")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    run = RunFolder(tmp_path / "run")
    assert run.info["final_digest"] == train(load(list(overrides))).final_digest
    assert run.info["steps_per_second"] > 0


# ----------------------------------------------------------------------------------------- one writer


def marker_of(host, folder, age):
    """A lock as a process on ``host`` leaves it, ``age`` seconds ago."""
    folder.mkdir(parents=True)
    lock = FolderLock(folder)
    text = (folder / LOCK).read_text()
    lock.release()
    (folder / LOCK).write_text(text.replace(f"host={socket.gethostname()}", f"host={host}"))
    os.utime(folder / LOCK, (time.time() - age,) * 2)


@pytest.mark.slow
def test_the_lock_of_another_machine_is_taken_over_once_it_gives_no_sign_of_life(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("rlloss.runs.lock.LEASE_SECONDS", 4.0)
    monkeypatch.setattr("rlloss.runs.lock.HEARTBEAT_SECONDS", 1.0)
    marker_of("node7", tmp_path / "run", age=0)
    assert is_held(tmp_path / "run")
    train(load(list(TINY)), tmp_path / "run")
    assert "waits for a sign of life of process" in caplog.text
    assert "on node7" in caplog.text
    assert RunFolder(tmp_path / "run").status == "finished"
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_lock_that_another_machine_keeps_alive_is_respected(tmp_path, monkeypatch):
    monkeypatch.setattr("rlloss.runs.lock.LEASE_SECONDS", 30.0)
    marker_of("node7", tmp_path / "run", age=3)
    alive = subprocess.Popen(["sh", "-c", f"sleep 1; touch {tmp_path}/run/{LOCK}"])
    with pytest.raises(ConfigError, match=r"process \d+ on node7 is writing this run"):
        train(load(list(TINY)), tmp_path / "run")
    alive.wait()


def test_a_writer_whose_folder_was_taken_over_stops_before_it_writes(tmp_path):
    def taken_over(row):
        if row["iteration"] == 2:
            (tmp_path / "run" / LOCK).unlink()
            marker = tmp_path / "other"
            marker_of("node7", marker, age=0)
            shutil.copy(marker / LOCK, tmp_path / "run" / LOCK)

    with pytest.raises(RunFailed, match=r"on node7 took .* over"):
        train(load(list(TINY)), tmp_path / "run", taken_over)
    run = RunFolder(tmp_path / "run")
    assert len(run.metrics) == 2
    assert run.recorded_status == "running", "the other's status is not touched"


# ----------------------------------------------------------------------------------------- what is refused


def test_a_run_that_other_versions_began_does_not_go_on(tmp_path, monkeypatch):
    cut_short(TINY, tmp_path / "run", 3, monkeypatch)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    info["versions"]["torch"] = "1.0.0"
    (tmp_path / "run" / "run.json").write_text(json.dumps(info))
    before = (tmp_path / "run" / "digests.bin").read_bytes()
    with pytest.raises(ConfigError, match=r"was begun by other versions \(torch 1\.0\.0, now .*remove the folder"):
        train(load(list(TINY)), tmp_path / "run")
    assert (tmp_path / "run" / "digests.bin").read_bytes() == before


@pytest.mark.parametrize("name", ["metrics.csv", "episodes.csv", "digests.bin", "snapshots/000000000.safetensors"])
def test_files_that_are_shorter_than_the_checkpoint_says_are_named(name, tmp_path, monkeypatch):
    cut_short(TINY, tmp_path / "run", 5, monkeypatch)
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match=name):
        train(load(list(TINY)), tmp_path / "run")


def test_an_environment_failure_in_a_sweep_keeps_its_traceback(tmp_path):
    from rlloss.sweep.run import run_one

    outcome = run_one(load([*TINY, "env=pendulum", "+env.kwargs.g=abc", f"run_dir={tmp_path / 'run'}"]))
    assert "environment 0 (Pendulum-v1) raised" in outcome.reason
    assert "pendulum.py" in outcome.traceback
    with pytest.raises(EnvironmentFailed):
        train(load([*TINY, "env=pendulum", "+env.kwargs.g=abc"]))
