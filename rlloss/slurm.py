"""Waiting for Slurm jobs so that none is waited for in vain.

submitit asks ``sacct`` whether a job still lives. Without accounting ``sacct`` knows nothing, and a killed job is
waited for forever; and the first failure ends the wait for all others. ``squeue`` and ``scontrol`` need no accounting.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submitit import SlurmJob

POLL_SECONDS = 0.2  # between two looks for a result file
QUEUE_SECONDS = 5.0  # between two calls of squeue, one for all jobs: it is the cluster's scheduler that answers
LATE_SECONDS = 30.0  # within which the result of a job that ended well shows up on a network file system
LOG_LINES = 20
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
)  # fmt: skip


@dataclass(frozen=True)
class Lost:
    """What stands in a result's place if a job left none: the reason in one line, and the end of its log."""

    reason: str
    log: str = ""


@dataclass
class Queue:
    """The jobs that Slurm has not ended yet, as squeue last listed them, and how the others ended.

    Slurm forgets an ended job after minutes (MinJobAge); whoever waits for a long one first would come too late to ask.
    """

    ends: dict[str, str] = field(default_factory=dict)
    _ids: frozenset[str] = frozenset()
    _asked: float = field(default=float("-inf"))
    _answered: bool = False
    _seen: set[str] = field(default_factory=set)

    def has(self, job: str) -> bool:
        """Whether the job waits, runs or is being requeued. If Slurm does not answer: yes, until it does."""
        new = job not in self._seen  # a list from before it was submitted says nothing of it
        self._seen.add(job)
        if time.monotonic() - self._asked > QUEUE_SECONDS or (new and job not in self._ids):
            self._ask()
        return job in self._ids or not self._answered

    def _ask(self) -> None:
        # --all: of hidden partitions, too, and of those that have been closed to this user since
        listed = _output("squeue", "--noheader", "--me", "--all", "--array", "--states=all", "--format=%i %T")
        self._answered = listed is not None
        states = dict(line.split() for line in (listed or "").splitlines())
        self._ids = frozenset(job for job, state in states.items() if state not in ENDED)
        self.ends |= {job: state for job, state in states.items() if state in ENDED}
        self._asked = time.monotonic()


@contextmanager
def patient_jobs() -> Iterator[None]:
    """Within, submitit's Slurm jobs are waited for with ``squeue``, and a result never raises: it may be a Lost.

    If the wait ends by an exception, Ctrl-C say, the jobs are cancelled. If every job gave its result, their folders
    of pickles and logs are removed.
    """
    queue, arrays, folders = Queue(), set[str](), set[Path]()
    lost: list[Lost] = []

    def results(job: "SlurmJob[Any]") -> list[Any]:
        arrays.add(job.job_id.split("_")[0])
        folders.add(job.paths.folder)
        result = wait_for(job, queue)
        if isinstance(result, Lost):
            lost.append(result)
        return [result]

    patched: Any = SlurmJob  # the class itself: submitit names it outright for the jobs of an array
    before = patched.results
    patched.results = results
    try:
        yield
    except BaseException:
        if arrays:
            subprocess.run(["scancel", *sorted(arrays)], check=False)
        raise
    finally:
        patched.results = before
    if not lost:
        for folder in folders:
            tidy(folder, arrays)


def array_size() -> int:
    """How many jobs the cluster takes in one array; Slurm's default where it does not say."""
    for line in (_output("scontrol", "show", "config") or "").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value))
    return 1001


def tidy(folder: Path, arrays: set[str]) -> None:
    """Remove a job's folder of pickles and logs and what its array left beside it, and nothing that is not Slurm's."""
    if folder.name.split("_")[0] not in arrays:
        return  # the user's submitit_folder names no job: other files may lie there
    shutil.rmtree(folder, ignore_errors=True)
    for array in arrays:
        shutil.rmtree(folder.parent / array, ignore_errors=True)
    for script in folder.parent.glob(".submission_file_*.sh"):  # read by sbatch long ago
        script.unlink(missing_ok=True)
    with suppress(OSError):  # another sweep's are there
        folder.parent.rmdir()


def wait_for(job: "SlurmJob[Any]", queue: Queue) -> Any:
    """What the job returned, once it has; or a Lost if it ended without."""
    while not job.paths.result_pickle.exists():
        if not queue.has(job.job_id) and not _came_late(job):
            return Lost(f"Slurm job {job.job_id} {_end_of(job.job_id, queue)}", _log(job))
        time.sleep(POLL_SECONDS)
    outcome, result = job._get_outcome_and_result()
    if outcome == "error":
        return Lost(f"Slurm job {job.job_id} failed outside its run", str(result))
    return result


def _came_late(job: "SlurmJob[Any]") -> bool:
    """Whether the result of a job that has ended appears after all."""
    patience = LATE_SECONDS if _state(job.job_id).get("JobState") == "COMPLETED" else 2.0
    until = time.monotonic() + patience
    while time.monotonic() < until:
        list(job.paths.folder.iterdir())  # makes NFS look again
        if job.paths.result_pickle.exists():
            return True
        time.sleep(POLL_SECONDS)
    return False


def _state(job: str) -> dict[str, str]:
    """Slurm's own record, kept some minutes after the end (MinJobAge); empty once it is forgotten."""
    words = (_output("scontrol", "show", "job", "--oneliner", job) or "").split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def _end_of(job: str, queue: Queue) -> str:
    state = _state(job)
    if "JobState" not in state and job in queue.ends:
        state = {"JobState": queue.ends[job]}
    if "JobState" not in state:
        return "is no longer known to Slurm and left no result"
    code, _, signal = state.get("ExitCode", "0:0").partition(":")
    detail = f", signal {signal}" if signal != "0" else f", exit code {code}" if code != "0" else ""
    if state["JobState"] == "COMPLETED":
        return "ended without a result"
    return f"was killed ({state['JobState']}{detail})"


def _log(job: "SlurmJob[Any]") -> str:
    for path in (job.paths.stderr, job.paths.stdout):
        with suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()
            if lines:
                return "\n".join([f"the end of {path}:", *lines[-LOG_LINES:]])
    return ""


def _output(*command: str) -> str | None:
    """Standard output, or None if Slurm does not answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
