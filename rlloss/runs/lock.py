"""One run folder has one writer, on a shared file system, too: who it is, and whether it is still there.

The lock is a file in the folder, filelock's SoftFileLease: its holder touches it every few seconds. A process that is
gone from this machine loses it at once; one of another machine, or one that stands still, after LEASE_SECONDS without a
sign of life, timed by the clock of whoever waits.
"""

import logging
import os
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rlloss.errors import ConfigError, RunFailed

if TYPE_CHECKING:
    from filelock import OwnerRecord, SoftFileLease

LOCK = ".writer"
LEASE_SECONDS = 30.0
HEARTBEAT_SECONDS = 5.0
GRACE_SECONDS = 3.0  # of waiting in silence: the lock of a process that is gone from this machine takes less

log = logging.getLogger("rlloss")


class FolderLock:
    """The right to write a run folder.

    Raises: ConfigError if another process has it, naming that process; OSError where nothing can be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error  # and not the name of that file
        self.folder = folder
        self._lease = _lease(folder)
        self._acquire()
        self._path = str(folder / LOCK)
        self._mark = _identity(self._path)

    def _acquire(self) -> None:
        from filelock import Timeout

        seen, begun, told = _heartbeat(self.folder), time.monotonic(), False

        def in_vain() -> bool:
            """Whether the lock's holder is alive."""
            nonlocal told
            owner, waited = self._lease.owner, time.monotonic() - begun
            if waited > GRACE_SECONDS and _heartbeat(self.folder) == seen and _is_empty(self.folder):
                (self.folder / LOCK).unlink(missing_ok=True)  # killed before it had written who it was
            elif not told and waited > GRACE_SECONDS:
                log.warning("%s: waits for a sign of life of %s", self.folder.name, _who(owner))
                told = True
            here = owner is not None and _is_here(owner) and _lives(owner.pid)
            return here or _heartbeat(self.folder) not in (seen, 0)

        try:
            self._lease.acquire(timeout=LEASE_SECONDS + HEARTBEAT_SECONDS, cancel_check=in_vain)
        except Timeout as error:
            what = f"{_who(self._lease.owner)} is writing this run; wait for it"
            raise ConfigError(f"run_dir={self.folder}: {what}") from error

    def check(self) -> None:
        """Raises: RunFailed if another process took the folder over, as from one that stood still for too long."""
        if (now := _identity(self._path)) == self._mark:
            return
        if now is None:
            raise RunFailed(f"{self.folder}: its lock, {LOCK}, is gone; the folder was removed, or the lock in it")
        raise RunFailed(f"{_who(self._lease.owner)} took {self.folder} over, since this one gave no sign of life")

    def release(self) -> None:
        with suppress(OSError):  # the disk is gone: so is the lock
            self._lease.release()


def is_held(folder: Path) -> bool:
    """Whether a process is writing the run in ``folder``, as far as its lock tells: one that was killed is not."""
    if not (folder / LOCK).exists():
        return False
    owner = _lease(folder).owner
    if owner is None or (_is_here(owner) and not _lives(owner.pid)):
        return False
    return time.time() - _heartbeat(folder) / 1e9 < LEASE_SECONDS


def _identity(path: str) -> tuple[int, int] | None:
    """Of the lock's file, which whoever takes it over makes anew."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _lease(folder: Path) -> "SoftFileLease":
    from filelock import SoftFileLease  # here, since reading a finished run needs none

    return SoftFileLease(
        folder / LOCK, lease_duration=LEASE_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS, thread_local=False
    )


def _who(owner: "OwnerRecord | None") -> str:
    return "another process" if owner is None else f"process {owner.pid} on {owner.hostname.partition('?')[0]}"


def _is_here(owner: "OwnerRecord") -> bool:
    return owner.hostname == socket.gethostname()


def _is_empty(folder: Path) -> bool:
    return (folder / LOCK).exists() and not (folder / LOCK).stat().st_size


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _heartbeat(folder: Path) -> int:
    """When the lock was last touched, in nanoseconds; 0 if there is none."""
    try:
        return (folder / LOCK).stat().st_mtime_ns
    except OSError:
        return 0
