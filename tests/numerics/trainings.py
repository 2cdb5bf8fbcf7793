"""Short trainings in one process, each a line of overrides: prints what they came to, as JSON.

``python -m tests.numerics.trainings NUMERICS LINE ...``, from the root of the checkout. In the place of a line:
``operations``, the digests of this process's operations; ``libm``, of what portable runs do not take from it;
``listed``, of what a user's loss may use.
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
from rlloss.train.operations import digests, uniform
from rlloss.train.portable import Portable
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


LISTED = {  # those of portable.SAME that compute something, and are no part of a training here
    "rsqrt": lambda x, y: torch.rsqrt(x.abs() + 0.01),
    "reciprocal": lambda x, y: torch.reciprocal(x + 9),
    "sin": lambda x, y: torch.sin(x),
    "cos": lambda x, y: torch.cos(x),
    "erf": lambda x, y: torch.erf(x),
    "pow": lambda x, y: torch.pow(x.abs() + 0.01, 1.7),
    "pow of tensors": lambda x, y: torch.pow(x.abs() + 0.01, y),
    "2 ** x": lambda x, y: 2**x,
    "cumsum": lambda x, y: x.cumsum(0),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "addcmul": lambda x, y: torch.addcmul(x, x, y),
    "addcdiv": lambda x, y: torch.addcdiv(x, x, y + 9),
    "remainder": lambda x, y: torch.remainder(x, y.abs() + 0.1),
    "fmod": lambda x, y: torch.fmod(x, y.abs() + 0.1),
    "linspace": lambda x, y: torch.linspace(-1, 0.7, 997, dtype=x.dtype),
    "median": lambda x, y: x.view(-1, 8).median(1).values,
    "topk": lambda x, y: x.topk(9).values,
    "sort": lambda x, y: x.sort().values,
    "dot": lambda x, y: x.dot(y),
    "mv": lambda x, y: x.view(8, -1) @ y[: len(y) // 8],
    "bmm": lambda x, y: x.view(8, -1, 25) @ y.view(8, -1, 25).transpose(1, 2),
    "hardtanh": lambda x, y: torch.nn.functional.hardtanh(x),
    "index_add": lambda x, y: torch.zeros(7, dtype=x.dtype).index_add(0, torch.arange(len(x)) % 7, y),
    "scatter_add": lambda x, y: torch.zeros(7, dtype=x.dtype).scatter_add(0, torch.arange(len(x)) % 7, x),
    "logsumexp": lambda x, y: torch.logsumexp(x.view(-1, 8), 1),
    "softmax": lambda x, y: torch.softmax(x.view(-1, 8), 1),
    "std": lambda x, y: x.view(-1, 8).std(1),
}


def listed() -> dict[str, str]:
    """A digest of each with its gradient, in both dtypes."""
    rng, found = np.random.default_rng(4), {}
    x, y = 4 * uniform(rng, 4000), 4 * uniform(rng, 4000)
    for name, function in LISTED.items():
        digest = hashlib.sha256()
        for dtype in (torch.float32, torch.float64):
            a, b = (torch.from_numpy(array).to(dtype).requires_grad_() for array in (x, y))
            with Portable(strict=True):
                out = function(a, b)
                parts = torch.autograd.grad(out.sum(), (a, b), allow_unused=True) if out.requires_grad else ()
            for part in (out, *parts):
                digest.update(b"" if part is None else part.detach().contiguous().numpy().tobytes())
        found[name] = digest.hexdigest()
    return found


def main() -> None:
    numerics, *lines = sys.argv[1:]
    found = {}
    for line in lines:
        if line == "operations":
            with deterministic(load([f"numerics={numerics}"])):
                found[line] = digests()
        elif line == "libm":
            found[line] = from_libm()
        elif line == "listed":
            with deterministic(load([f"numerics={numerics}"])):
                found[line] = listed()
        else:
            found[line] = trained(numerics, line)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
