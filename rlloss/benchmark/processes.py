"""A command as a benchmark sees it: how long it takes, and how much memory."""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Taken(NamedTuple):
    seconds: float
    megabytes: float  # of its largest process, its own children's included


def measured(command: Sequence[str], folder: Path) -> Taken:
    """Of a command that is run in ``folder``. Raises: CalledProcessError for one that fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Taken(seconds, usage.ru_maxrss / 1024)
