"""Short trainings in one process, each a line of overrides: prints what they came to, as JSON.

``python -m tests.numerics.trainings NUMERICS LINE ...``, from the root of the checkout. ``operations`` in the place of
a line: the digests of this process's operations.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from rlloss.config import load
from rlloss.runs.certificate import tables
from rlloss.runs.reader import RunFolder
from rlloss.train import train
from rlloss.train.operations import digests
from rlloss.train.switches import deterministic


def trained(numerics: str, line: str) -> dict[str, str]:
    """Of every optimiser step's parameters, and of the tables without their speeds."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "run"
        train(load([f"numerics={numerics}", *line.split()]), folder)
        digest = hashlib.sha256((folder / "digests.bin").read_bytes()).hexdigest()
        return {"digests.bin": digest, **tables(RunFolder(folder))}


def main() -> None:
    numerics, *lines = sys.argv[1:]
    found = {}
    for line in lines:
        if line == "operations":
            with deterministic(load([f"numerics={numerics}"])):
                found[line] = digests()
        else:
            found[line] = trained(numerics, line)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
