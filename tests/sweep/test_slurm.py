"""Sweeps as jobs of a real Slurm: one node, on 127.0.0.1, with a munge of its own, started and stopped here."""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rlloss.claims import load_claims
from rlloss.cli import main
from rlloss.config import load
from rlloss.runs import RunFolder, find_runs
from rlloss.sweep.run import run_one
from rlloss.train import train
from rlloss.train.numerics import lacking
from tests.numerics.paths import python

pytestmark = pytest.mark.slow

TINY = ("num_envs=2", "num_steps=50")
LONG = 60_000  # environment steps: some ten seconds, time enough to be killed in
PATIENCE = 240  # seconds that anything may take on a busy machine

CONF = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
MinJobAge=86400
MaxArraySize=3
KillWait=1
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES State=UP MaxTime=INFINITE
"""


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.1)


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="module")
def slurm():
    """The cluster's configuration file, in SLURM_CONF."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install slurm-wlm")
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("needs submitit: pip install 'rlloss[slurm]'")
    folder = Path("/tmp") / f"rlloss-slurm-{os.getpid()}"  # short: a socket's path has 107 characters at most
    for part in ("munge", "state", "spool"):
        (folder / part).mkdir(parents=True, mode=0o700)
    folder.chmod(0o755)
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    user = output("id", "-un").strip()
    (folder / "slurm.conf").write_text(CONF.format(host=host, ports=free_ports(2), user=user, folder=folder))
    munge = [
        f"--{key}={folder}/munge/{key.partition('-')[0]}" for key in ("socket", "key-file", "pid-file", "seed-file")
    ]
    log = (folder / "daemons.log").open("wb")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    daemons = [
        subprocess.Popen(command, stdout=log, stderr=log)
        for command in (
            ["munged", "--force", "--foreground", *munge, f"--log-file={folder}/munge/log"],
            ["slurmctld", "-D", "-f", str(folder / "slurm.conf")],
            ["slurmd", "-D", "-f", str(folder / "slurm.conf")],
        )
    ]
    try:
        until(lambda: "idle" in output("sinfo", "--noheader", "--format=%T"), "the node is idle")
        yield folder
    finally:
        subprocess.run(["scancel", "--me"], check=False)
        until(lambda: not output("squeue", "--noheader"), "the queue is empty")  # or their steps outlive the daemons
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(PATIENCE)
        log.close()
        os.environ.pop("SLURM_CONF") if before is None else os.environ.update(SLURM_CONF=before)
        shutil.rmtree(folder, ignore_errors=True)


def sweep(*arguments, cwd):
    """`rlloss train --multirun` on the cluster, as a process that is not waited for."""
    command = [
        sys.executable,
        "-m",
        "rlloss",
        "train",
        "-m",
        *TINY,
        *arguments,
        "hydra/launcher=slurm",
        "run_root=runs",
    ]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a test run in the background ignores
    )  # fmt: skip


def statuses(folder):
    return sorted(run.status for run in find_runs([folder]))


def test_jobs_have_the_bits_of_runs_made_here_and_what_is_finished_is_not_run_again(slurm, tmp_path):
    arguments = ("total_timesteps=600", "loss=ppo_clip,reinforce", "seed=1,2")
    first = sweep(*arguments, cwd=tmp_path)
    out, err = first.communicate(timeout=PATIENCE)
    assert first.returncode == 0, err
    runs = find_runs([tmp_path])
    assert len(runs) == 4 == out.count("finished")
    for run in runs:
        config = load([*TINY, "total_timesteps=600", f"loss={run.loss}", f"seed={run.config['seed']}",
                       f"run_dir={tmp_path / 'here' / run.path.name}"])  # fmt: skip
        assert not run_one(config).reason
        assert (run.path / "digests.bin").read_bytes() == (Path(config.run_dir) / "digests.bin").read_bytes()
    assert not list((tmp_path / "runs").glob(".*")), "nothing is left of submitit"
    submitted = output("scontrol", "show", "jobs").count("JobId=")
    assert submitted >= 4, "they did run there"
    arrays = re.findall(r"ArrayJobId=(\d+)", output("scontrol", "show", "jobs"))
    assert len(arrays) == 3, "in one array, which is all that this cluster takes; the fourth job is by itself"
    again = sweep(*arguments, cwd=tmp_path)
    again.communicate(timeout=PATIENCE)
    assert again.returncode == 0
    assert output("scontrol", "show", "jobs").count("JobId=") == submitted


def test_a_portable_run_is_begun_again_with_what_its_bits_need(slurm, tmp_path):
    """Slurm's job is a process that lacks the variables, and starts itself again; nobody has set them for it."""
    assert lacking()
    done = sweep("total_timesteps=600", "numerics=native,portable", cwd=tmp_path)
    _, err = done.communicate(timeout=PATIENCE)
    assert done.returncode == 0, err
    runs = {run.config["numerics.name"]: run for run in find_runs([tmp_path])}
    overrides = [*TINY, "total_timesteps=600", "numerics=portable", f"run_dir={tmp_path / 'here'}"]
    python("-m", "rlloss", "train", *overrides)
    assert (tmp_path / "here/digests.bin").read_bytes() == (runs["portable"].path / "digests.bin").read_bytes()
    assert runs["native"].info["operations"] != runs["portable"].info["operations"]


def test_a_failed_run_is_listed_with_its_traceback_and_leaves_the_other(slurm, tmp_path):
    """A gravity that is no number passes every check and fails in the environment's first step."""
    done = sweep("total_timesteps=400", "env=pendulum", "+env.kwargs.g=abc,10.0", cwd=tmp_path)
    _, err = done.communicate(timeout=PATIENCE)
    assert done.returncode == 1
    assert err.count("failed: ") == 1
    assert "pendulum.py" in err, "with its traceback"
    assert statuses(tmp_path) == ["failed", "finished"]


def test_only_the_node_must_have_the_device(slurm, tmp_path):
    """Where the sweep is submitted nobody asks for one; this node has none either, and says so in its job."""
    done = sweep("total_timesteps=400", "device=cuda", cwd=tmp_path)
    _, err = done.communicate(timeout=PATIENCE)
    if torch.cuda.is_available():
        assert done.returncode == 0, err
    else:
        assert done.returncode == 1, err
        assert err.count("failed: ") == err.count("device=cuda: this machine or torch build has none") == 1
    refused = sweep("total_timesteps=400", "device=tpu", cwd=tmp_path)
    assert "device=tpu: unknown" in refused.communicate(timeout=PATIENCE)[1]
    assert refused.returncode == 2


def cancel(slurm):
    for job in output("squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i").split():
        subprocess.run(["scancel", job], check=True)


def kill(slurm):
    """kill -9 of the job's Python, on this cluster and no other."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"SLURM_CONF={slurm}/slurm.conf".encode() in (process / "environ").read_bytes()
            if ours and b"submitit.core._submit" in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        except (OSError, ProcessLookupError):
            continue


def in_the_middle(folder):
    """One of two runs finished, the other past a checkpoint."""
    runs = find_runs([folder])
    return statuses(folder) == ["finished", "running"] and all(
        (r.path / "checkpoint.safetensors").exists() for r in runs
    )


def assert_bits_of_a_run_made_here(run, folder):
    overrides = (*TINY, f"total_timesteps={run.config['total_timesteps']}", "snapshot_every=0")
    config = load([*overrides, f"run_dir={folder}"])
    assert not run_one(config).reason
    assert (run.path / "digests.bin").read_bytes() == (folder / "digests.bin").read_bytes()


def test_a_job_cancelled_in_the_middle_is_listed_and_the_second_call_goes_on_with_that_one(slurm, tmp_path):
    arguments = (f"total_timesteps=400,{LONG}", "snapshot_every=0", "checkpoint_seconds=0.5")
    first = sweep(*arguments, cwd=tmp_path)
    until(lambda: in_the_middle(tmp_path), "one run finished, the other begun")
    cancel(slurm)
    _, err = first.communicate(timeout=PATIENCE)
    assert first.returncode == 1, err
    assert err.count("failed: ") == 1
    assert "Slurm job " in err
    assert "was killed (CANCELLED" in err
    assert f"total_timesteps-{LONG}" in err.split("failed: ")[1].splitlines()[0], "which run it was"
    assert statuses(tmp_path) == ["finished", "interrupted"]
    (finished,) = (run for run in find_runs([tmp_path]) if run.status == "finished")
    before = (finished.path / "run.json").stat().st_mtime_ns
    again = sweep(*arguments, cwd=tmp_path)
    _, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, err
    assert "2 runs, 1 of them finished already, 1 go on where they were cut" in err
    assert statuses(tmp_path) == ["finished", "finished"]
    assert (finished.path / "run.json").stat().st_mtime_ns == before
    (longer,) = (run for run in find_runs([tmp_path]) if run.config["total_timesteps"] == LONG)
    assert_bits_of_a_run_made_here(longer, tmp_path / "here")


def test_a_job_killed_in_the_middle_goes_on_by_itself(slurm, tmp_path):
    submitted = len(re.findall("^JobId=", output("scontrol", "show", "jobs"), re.MULTILINE))
    jobs = sweep(f"total_timesteps=400,{LONG}", "snapshot_every=0", "checkpoint_seconds=0.5", cwd=tmp_path)
    until(lambda: in_the_middle(tmp_path), "one run finished, the other begun")
    kill(slurm)
    _, err = jobs.communicate(timeout=PATIENCE)
    assert jobs.returncode == 0, err
    assert statuses(tmp_path) == ["finished", "finished"]
    now = len(re.findall("^JobId=", output("scontrol", "show", "jobs"), re.MULTILINE))
    assert now == submitted + 3, "the killed run had a second job"
    (longer,) = (run for run in find_runs([tmp_path]) if run.config["total_timesteps"] == LONG)
    assert_bits_of_a_run_made_here(longer, tmp_path / "here")


def test_a_job_that_runs_into_its_time_limit_is_queued_again_and_goes_on(slurm, tmp_path):
    """Slurm tells it 50 seconds before the limit of a minute, give or take the half minute in which it looks.

    So the run is of some 50 seconds, on this machine as it is now. The job would wait for two minutes in the queue.
    """
    speed = train(load([*TINY, "total_timesteps=20000"])).steps_per_second
    long_enough = f"total_timesteps={1000 * int(50 * speed / 1000)}"
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=50")
    jobs = sweep(long_enough, "snapshot_every=0", "checkpoint_seconds=600", *limit, cwd=tmp_path)
    until(lambda: statuses(tmp_path) == ["interrupted"], "the time limit is near")
    (run,) = find_runs([tmp_path])
    reached = run.info["optimizer_steps"]
    assert (run.path / "checkpoint.safetensors").exists(), "made for the signal alone"
    while jobs.poll() is None:
        for job in output("squeue", "--noheader", "--states=PENDING", "--format=%A").split():
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True, check=False)
        time.sleep(1)
    assert jobs.returncode == 0, jobs.stderr.read()
    (run,) = find_runs([tmp_path])
    assert run.status == "finished"
    assert len(run.digests) > reached > 0
    assert re.search("Restarts=[1-9]", output("scontrol", "show", "jobs")), "by the same job"
    assert_bits_of_a_run_made_here(run, tmp_path / "here")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_sweep_cancels_the_jobs(signum, slurm, tmp_path):
    running = sweep(f"total_timesteps={100 * LONG}", "seed=1,2,3", cwd=tmp_path)
    until(lambda: "running" in statuses(tmp_path), "a run has begun")
    running.send_signal(signum)
    _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 128 + signum, err
    assert "interrupted" in err
    until(lambda: not output("squeue", "--noheader"), "no job is left in the queue")


CLAIM = """
import pandas as pd
from rlloss import figures
from rlloss.claims import Claim, Finding

def runs(preset):
    base = ("num_envs=2", "num_steps=50", "total_timesteps=400")
    return [(*base, f"loss={loss}") for loss in ("ppo_clip", "reinforce")]

def judge(runs):
    return Finding(runs[0].info["final_digest"] == runs[1].info["final_digest"], "digests", pd.DataFrame({"a": [1]}))

CLAIM = Claim("Two runs end with one digest.", runs, judge, lambda runs: figures.panels(1, 1, 3, 2)[0])
"""


def test_reproduce_runs_a_claim_on_the_cluster(slurm, tmp_path, monkeypatch, capsys):
    (tmp_path / "one_digest.py").write_text(CLAIM)
    monkeypatch.setattr("rlloss.claims.claim.data_dir", lambda name: tmp_path)
    assert len(load_claims()) == 1
    where = ["--runs", str(tmp_path / "a, b=c"), "--report", str(tmp_path / "report")]
    assert main(["reproduce", "--launcher", "slurm", "--jobs", "1", *where, "hydra.launcher.partition=main"]) == 0
    runs = find_runs([tmp_path])
    assert [run.status for run in runs] == ["finished", "finished"]
    submitted = output("scontrol", "show", "jobs").count("JobId=")
    assert "2 runs, 0 of them finished already" in capsys.readouterr().out
    shutil.rmtree(runs[0].path)
    assert main(["reproduce", "--launcher", "slurm", *where]) == 0
    assert output("scontrol", "show", "jobs").count("JobId=") == submitted + 1, "only what was missing"
    assert RunFolder(runs[0].path).status == "finished"
    assert (
        main(["reproduce", "--launcher", "slurm", *where, "hydra.launcher.partition=nope", "--claim", "one_digest"])
        == 0
    )
    shutil.rmtree(runs[1].path)
    capsys.readouterr()
    assert main(["reproduce", "--launcher", "slurm", *where, "hydra.launcher.partition=nope"]) == 2
    assert "nvalid partition" in capsys.readouterr().err


def test_how_a_job_ended_is_remembered_after_slurm_has_forgotten_it(tmp_path, monkeypatch):
    """No real Slurm here: it forgets after a minute at the earliest, longer than this test should take."""
    pytest.importorskip("submitit")
    from rlloss.sweep.slurm import QueueWatcher

    (tmp_path / "squeue").write_text('#!/bin/sh\ncat "$0.lists"\n')
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("rlloss.sweep.slurm.QUEUE_SECONDS", 0)
    monkeypatch.setattr("rlloss.sweep.slurm.LATE_SECONDS", 0)
    lists, queue, jobs = tmp_path / "squeue.lists", QueueWatcher(), ("7_0", "7_1", "7_2")
    for job in jobs:
        queue.register_job(job)
    assert not any(map(queue.is_done, jobs)), "Slurm does not answer"
    lists.write_text("7_0 RUNNING 0\n7_1 OUT_OF_MEMORY 9\n7_2 COMPLETING 0\n")
    assert [queue.is_done(job) for job in jobs] == [False, True, False]
    lists.write_text("7_0 CONFIGURING 0\n")
    assert [queue.is_done(job) for job in jobs] == [False, True, True]
    lists.unlink()
    assert [queue.is_done(job) for job in jobs] == [False, True, True], "Slurm does not answer"
    assert queue.end_of("7_1") == "was killed (OUT_OF_MEMORY, signal 9)"
    assert queue.end_of("7_2") == "is no longer known to Slurm and left no result"
    monkeypatch.setattr("rlloss.sweep.slurm.LATE_SECONDS", 1000)
    assert not any(map(queue.is_done, jobs)), "a result may be on its way"
