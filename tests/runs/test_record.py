"""Run folders: what is in them, what survives a kill, what is refused. Real processes, real files."""

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import asdict

import numpy as np
import pytest
import torch
import yaml

from rlloss.config import load
from rlloss.errors import ConfigError
from rlloss.runs import RunFolder, find_runs
from rlloss.runs.writer import RunWriter
from rlloss.train import train
from rlloss.train.checkpoint import unpack

TINY = ["num_envs=2", "num_steps=50", "total_timesteps=600"]


def test_a_finished_folder_holds_the_whole_run(make_run):
    run = make_run()
    config = load(["num_envs=2", "num_steps=50", "total_timesteps=600", "snapshot_every=10", "learning_rate=0.003"])
    steps = config.num_iterations * config.update_epochs * config.num_minibatches
    assert run.status == "finished"
    assert run.info["optimizer_steps"] == steps == len(run.digests) == 96
    assert run.info["env_steps"] == 600
    assert run.info["versions"]["torch"] == torch.__version__
    assert set(run.info["machine"]) == {"architecture", "system", "cpu", "torch_cpu_capability", "device", "libc"}
    assert list(run.metrics["iteration"]) == list(range(1, 7))
    assert (run.metrics["optimizer_steps"] == run.metrics["iteration"] * 16).all()
    assert run.metrics.drop(columns=["episodic_return", "episodic_length"]).notna().all().all()
    assert len(run.episodes) == run.metrics["episodes"].sum() > 0
    assert run.snapshot_steps == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 96]
    assert yaml.safe_load((run.path / "config.yaml").read_text())["optimizer"]["name"] == "adam"
    assert not list(run.path.rglob("*.partial"))


def test_every_digest_is_the_sha256_of_all_parameters(make_run):
    run = make_run()
    for step in run.snapshot_steps[1:]:
        assert run.digests[step - 1].tobytes() == hashlib.sha256(run.snapshot(step).tobytes()).digest()
    assert run.info["final_digest"] == run.digests[-1].tobytes().hex()
    assert len(np.unique(run.digests)) == 96


def test_checkpoint_holds_the_final_parameters(make_run):
    run = make_run()
    saved = unpack(run.path / "checkpoint.safetensors")
    assert np.array_equal(saved["parameters"].numpy(), run.snapshot(96))
    assert saved["optimizer"]["state"][0]["step"] == 96


def test_recording_and_its_density_do_not_change_a_bit(make_run):
    run = make_run()
    overrides = [*TINY, "learning_rate=0.003"]
    assert train(load(overrides)).final_digest == run.info["final_digest"]
    assert make_run("snapshot_every=0").info["final_digest"] == run.info["final_digest"]
    assert make_run("snapshot_every=0").snapshot_steps == [0, 96]


def test_many_snapshots_span_several_files(make_run):
    run = make_run("snapshot_every=1")
    assert run.snapshot_steps == list(range(97))
    assert len(list((run.path / "snapshots").glob("*"))) == 2, "50, then the rest"


def test_a_failure_is_recorded_with_its_reason(tmp_path):
    def explode(row):
        if row["iteration"] == 3:
            raise RuntimeError("a bug in a callback")

    with pytest.raises(RuntimeError, match="a bug"):
        train(load(TINY), tmp_path / "run", explode)
    run = RunFolder(tmp_path / "run")
    assert run.status == "failed"
    assert run.info["error"] == "RuntimeError: a bug in a callback"
    assert len(run.metrics) == 3


def start(folder, *overrides):
    command = [sys.executable, "-m", "rlloss", "train", f"run_dir={folder}", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_leaves_whole_rows_and_the_same_command_finishes_it(tmp_path):
    folder = tmp_path / "run"
    overrides = ("total_timesteps=20480", "snapshot_every=2")
    process = start(folder, *overrides)
    run = RunFolder(folder)
    wait_for(lambda: (folder / "snapshots").exists() and len(list((folder / "snapshots").glob("*"))) >= 3, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert run.status == "interrupted"
    rows = len(run.metrics)
    assert rows > 0
    assert run.metrics["iteration"].tolist() == list(range(1, rows + 1))
    assert run.metrics["steps_per_second"].notna().all(), "the last column of the last row is there"
    assert len(run.digests) in (16 * rows, 16 * (rows + 1)), "an iteration's digests go before its row"
    assert np.isfinite(run.snapshot(run.snapshot_steps[-1])).all()
    with pytest.raises(ConfigError, match="total_timesteps=20480 instead of 4096"):
        train(load([overrides[1], "total_timesteps=4096"]), folder)
    assert len(RunFolder(folder).digests) == len(run.digests), "a refused run must leave the folder alone"
    again = start(folder, *overrides)
    again.communicate()
    assert again.returncode == 0
    assert RunFolder(folder).info["final_digest"] == train(load(overrides)).final_digest


def test_a_failed_run_keeps_the_snapshots_it_had(tmp_path):
    def stop(row):
        if row["iteration"] == 2:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(load([*TINY, "snapshot_every=10"]), tmp_path / "run", stop)
    assert RunFolder(tmp_path / "run").snapshot_steps == [0, 10, 20, 30]


def test_what_a_kill_at_the_very_start_leaves_is_no_obstacle(tmp_path):
    (tmp_path / "snapshots").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / "config.yaml.partial").write_text("loss:")
    train(load(TINY), tmp_path)
    assert RunFolder(tmp_path).status == "finished"


def test_a_run_that_finished_before_the_lock_was_ours_is_kept(tmp_path):
    """Two processes pass the first check together; the slower one finds a finished run of another config."""
    config, other = load(TINY), load([*TINY, "gamma=0.9"])
    slow, same = (RunWriter(tmp_path / "run", asdict(c), {}) for c in (other, config))
    digest = train(config, tmp_path / "run").final_digest
    with pytest.raises(ConfigError, match=r"gamma=0\.99 instead of 0\.9"), slow:
        pass
    with pytest.raises(ConfigError, match="is finished already"), same:
        pass
    assert RunFolder(tmp_path / "run").info["final_digest"] == digest


def test_an_unfinished_run_starts_over_and_ends_as_if_it_had_never_stopped(tmp_path):
    def stop(row):
        if row["iteration"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(load(TINY), tmp_path / "run", stop)
    again = train(load(TINY), tmp_path / "run")
    assert again.final_digest == train(load(TINY)).final_digest
    run = RunFolder(tmp_path / "run")
    assert list(run.metrics["iteration"]) == [1, 2, 3, 4, 5, 6]
    assert len(run.digests) == 96


def test_two_processes_never_write_one_folder(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, "total_timesteps=400000")
    try:
        wait_for(lambda: (folder / "metrics.csv").exists(), process)
        with pytest.raises(ConfigError, match=f"process {process.pid} on .* is writing this run"):
            train(load(["total_timesteps=400000"]), folder)
    finally:
        process.kill()
        process.communicate()


def test_a_folder_with_other_things_in_it_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(load(TINY), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match="is a file"):
        train(load(TINY), tmp_path / "thesis.tex")


def test_damaged_files_are_read_as_far_as_they_go(make_run, tmp_path):
    run = make_run()
    (tmp_path / "config.yaml").write_text((run.path / "config.yaml").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run.info)[:50])
    (tmp_path / "digests.bin").write_bytes(run.digests.tobytes()[:100])
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "0.safetensors").write_bytes(b"cut short")
    (damaged,) = find_runs([tmp_path])
    assert damaged.status == "missing"
    assert len(damaged.digests) == 3
    assert damaged.snapshot_steps == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_the_run(tmp_path):
    """Between iterations 20 and 60, Python's live memory grows by less than what the rows alone would take."""
    sizes = {}

    def measure(row):
        if row["iteration"] in (20, 60):
            gc.collect()
            sizes[row["iteration"]] = tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        train(load([*TINY, "total_timesteps=6000", "snapshot_every=10000"]), tmp_path / "run", measure)
    finally:
        tracemalloc.stop()
    rows = (tmp_path / "run" / "metrics.csv").stat().st_size + (tmp_path / "run" / "digests.bin").stat().st_size
    assert sizes[60] - sizes[20] < rows * 40 / 60


def test_recorder_keeps_at_most_a_file_of_snapshots_in_memory(tmp_path):
    largest = []
    original = RunWriter.snapshot

    def snapshot(self, parameters):
        original(self, parameters)
        largest.append(len(self._snapshots))

    RunWriter.snapshot = snapshot
    try:
        train(load([*TINY, "snapshot_every=1"]), tmp_path / "run")
    finally:
        RunWriter.snapshot = original
    assert max(largest) == 50
