"""Waiting for Slurm jobs so that none is waited for in vain.

submitit asks ``sacct`` whether a job still lives. Without accounting ``sacct`` knows nothing, and a killed job is
waited for forever. ``squeue`` needs no accounting.
"""

import logging
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from submitit import SlurmJob
from submitit.helpers import Checkpointable
from submitit.slurm.slurm import SlurmInfoWatcher

from rlloss.config.schema import Config
from rlloss.runs.place import is_finished, run_folder
from rlloss.signals import listening
from rlloss.sweep.run import Outcome, run_one
from rlloss.train.numerics import PORTABLE, own, relaunch

QUEUE_SECONDS = 5  # between two calls of squeue, one for all jobs: the cluster's scheduler has to answer
LATE_SECONDS = 15  # within which the result of a job that has ended shows up on a network file system
LOG_LINES = 20
KILLED_SECONDS = 600  # within which Slurm kills a job that it has sent SIGTERM: KillWait, or a partition's GraceTime
KILLED = ("FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT", "BOOT_FAIL")
FORGOTTEN = "FORGOTTEN"  # what squeue says of a job once Slurm has dropped its record (MinJobAge): nothing
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
    FORGOTTEN,
)  # fmt: skip


class QueueWatcher(SlurmInfoWatcher):
    """The states of all jobs, by one call of ``squeue``. How a job ended is remembered when Slurm has forgotten it.

    If Slurm does not answer, a job counts as running until Slurm does.
    """

    def __init__(self) -> None:
        super().__init__(delay_s=QUEUE_SECONDS)
        self._ended: dict[str, float] = {}  # the time at which each ended job was first seen to have ended

    def _make_command(self) -> list[str]:
        # --all: jobs in hidden partitions, too, and in partitions that have been closed to this user since
        listed = "--Format=JobArrayID,State,exit_code"
        return ["squeue", "--noheader", "--me", "--all", "--array", "--states=all", listed]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        text = string if isinstance(string, str) else string.decode()
        rows = (line.split() for line in text.splitlines())
        listed = {row[0]: {"State": row[1], "ExitCode": row[2]} for row in rows if len(row) == 3}
        for job in self._registered - listed.keys():
            listed[job] = self.get_info(job, "cache") if job in self._ended else {"State": FORGOTTEN}
        now = time.monotonic()
        self._ended = {job: self._ended.get(job, now) for job, info in listed.items() if info["State"] in ENDED}
        return listed

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether the job has ended, so long ago that no result can be on its way."""
        self.get_info(job_id, mode)
        return time.monotonic() - self._ended.get(job_id, inf) >= LATE_SECONDS

    def end_of(self, job_id: str) -> str:
        """How a job that left no result has ended."""
        info = self.get_info(job_id, "cache")
        if info["State"] == FORGOTTEN:
            return "is no longer known to Slurm and left no result"
        if info["State"] == "COMPLETED":
            return "ended without a result"
        code, signal = divmod(int(info["ExitCode"]), 256)  # as wait() returns them
        detail = f", signal {signal}" if signal else f", exit code {code}" if code else ""
        return f"was killed ({info['State']}{detail})"


class QueuedJob(SlurmJob[Outcome]):
    """A job of Slurm's that ``squeue`` is asked about."""

    watcher = QueueWatcher()


class RunOne(Checkpointable):
    """``run_one`` as submitit's jobs call it.

    A job that is about to run out of time (submitit has Slurm send SIGUSR2 before) ends its run after the iteration and
    is queued again, max_num_timeout times; the run then goes on. SIGTERM, as before a pre-emption, has the run end in
    the same way. Whether the job is queued again is then for Slurm to decide when it kills the job: this waits for it.
    """

    def __call__(self, config: Config) -> Outcome:
        if config.numerics.name == PORTABLE:
            own()
            relaunch()  # the same job, begun again with the environment that such a run needs
        queue_again: Any = signal.getsignal(signal.SIGUSR2)
        with listening((signal.SIGTERM, signal.SIGUSR2), say=""):
            outcome = run_one(config)
        if outcome.signum == signal.SIGUSR2:
            queue_again(outcome.signum, None)
        elif outcome.signum:
            time.sleep(KILLED_SECONDS)
        return outcome


@dataclass(frozen=True)
class Lost(Outcome):
    """What stands in for the outcome of a run whose job left none."""

    killed: bool = False  # and not cancelled by its user


def outcomes_of(jobs: Sequence[QueuedJob], configs: Sequence[Config]) -> list[Outcome]:
    """What came of the runs of one array, once all its jobs have ended. Any exception, as by Ctrl-C, cancels the jobs.

    If every job left its outcome, the folders of pickles and logs are removed.
    """
    logging.getLogger("submitit").setLevel(logging.ERROR)  # it warns on stdout, while Slurm does not answer
    try:
        for job in jobs:
            job.wait()
    except BaseException:
        subprocess.run(["scancel", _array(jobs[0])], check=False)
        raise
    outcomes = [_outcome(job, config) for job, config in zip(jobs, configs, strict=True)]
    if not any(isinstance(outcome, Lost) for outcome in outcomes):
        for job in jobs:
            _tidy(job)
    return outcomes


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Within: a submission of jobs with this folder, ``%j`` in it. If it fails, what it wrote and made is removed."""
    home = next(path for path in (folder, *folder.parents) if "%" not in str(path))
    before = set(home.iterdir()) if home.is_dir() else set()
    made = [path for path in (home, *home.parents) if not path.exists()]
    try:
        yield
    except Exception:
        for path in set(home.glob("*.pkl")) | set(home.glob(".submission_file_*.sh")):
            if path not in before:
                path.unlink(missing_ok=True)
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise


def array_size() -> int:
    """How many jobs the cluster takes in one array; Slurm's default where the cluster does not say."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["scontrol", "show", "config"]
        config = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        for key, _, value in (line.partition("=") for line in config.splitlines()):
            if key.strip() == "MaxArraySize" and value.strip().isdigit():
                return max(1, int(value))
    return 1001


def _array(job: QueuedJob) -> str:
    return job.job_id.split("_")[0]


def _outcome(job: QueuedJob, config: Config) -> Outcome:
    folder = str(run_folder(config))
    if not job.paths.result_pickle.exists():
        reason, log = job.watcher.end_of(job.job_id), _log(job)
    elif error := job.exception():
        reason, log = "failed outside its run", str(error)
    else:
        return job.result()
    if is_finished(config):  # killed after its last step
        return Lost(folder)
    killed = job.watcher.get_info(job.job_id, "cache").get("State") in KILLED
    return Lost(folder, f"Slurm job {job.job_id} {reason}", log, killed=killed)


def _log(job: QueuedJob) -> str:
    for path in (job.paths.stderr, job.paths.stdout):
        with suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()
            if lines:
                return "\n".join([f"the end of {path}:", *lines[-LOG_LINES:]])
    return ""


def _tidy(job: QueuedJob) -> None:
    """Remove a job's folder of pickles and logs and what its array left beside it, and nothing that is not Slurm's."""
    folder = job.paths.folder
    if folder.name.split("_")[0] != _array(job):
        return  # the user's submitit_folder names no job: other files may lie there
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder.parent / _array(job), ignore_errors=True)
    for script in folder.parent.glob(".submission_file_*.sh"):  # read by sbatch long ago
        script.unlink(missing_ok=True)
    with suppress(OSError):  # another sweep's are there
        folder.parent.rmdir()
