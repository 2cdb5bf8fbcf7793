"""Short trainings in one process, each a line of overrides: prints what they came to, as JSON.

``python -m tests.numerics.trainings NUMERICS LINE ...``, from the root of the checkout. In the place of a line:
``operations``, the digests of this process's operations; ``libm``, of what portable runs do not take from it.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

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


def from_libm() -> dict[str, str]:
    x = np.linspace(-8, 8, 100_001, dtype=np.float32)
    arrays = {"tanh": np.tanh(x), "expm1": torch.expm1(torch.from_numpy(x)).numpy()}
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}


def main() -> None:
    numerics, *lines = sys.argv[1:]
    found = {}
    for line in lines:
        if line == "operations":
            with deterministic(load([f"numerics={numerics}"])):
                found[line] = digests()
        elif line == "libm":
            found[line] = from_libm()
        else:
            found[line] = trained(numerics, line)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
