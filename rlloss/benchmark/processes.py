"""A command as a benchmark sees it: how long it takes, and how much memory."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# In a small process of its own, since a process begins with the memory of the one that started it.
CODE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
seconds = time.perf_counter() - start
sys.stdout.write(json.dumps([code, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))
"""


class Taken(NamedTuple):
    seconds: float
    megabytes: float  # of its largest process, its own children's included


def measured(command: Sequence[str], folder: Path) -> Taken:
    """Of a command that is run in ``folder``. Raises: CalledProcessError for one that fails."""
    starter = [sys.executable, "-S", "-c", CODE, *command]
    code, *taken = json.loads(subprocess.run(starter, cwd=folder, stdout=subprocess.PIPE, check=True).stdout)
    if code:
        raise subprocess.CalledProcessError(code, command)
    return Taken(*taken)
