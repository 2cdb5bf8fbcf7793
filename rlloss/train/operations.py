"""What this machine's libraries compute, operation by operation: a digest each, of the results on fixed inputs.

Two machines, or two versions of a library, that part in a run part in one of these; which one says whose fault it is.
``numerics=portable`` refuses to train where one differs from the committed constants, ``operations.json``, which
``python -m rlloss.train.operations`` prints.
"""

import functools
import hashlib
import importlib.metadata
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rlloss.errors import ConfigError
from rlloss.train.numerics import PORTABLE
from rlloss.train.optimizers import OPTIMIZERS, RMSprop
from rlloss.train.portable import Portable, tanh

CONSTANTS = Path(__file__).with_name("operations.json")
SEED = 20_260_601
LIBRARIES = ("torch", "numpy")
Results = Iterator[NDArray[Any] | Tensor]


class Operation(NamedTuple):
    """``made_by``: whose code computes it; ``steered_by``: what makes it portable, for a message."""

    made_by: str
    steered_by: str
    compute: Callable[[np.random.Generator], Results]


def uniform(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> NDArray[np.float64]:
    """Of the same bits everywhere: made of integers, a product and a difference."""
    return (2 * rng.random(shape) - 1) * scale


def _tensor(rng: np.random.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(uniform(rng, *shape, scale=2)).to(dtype)


def _linear(rng: np.random.Generator, dtypes: tuple[torch.dtype, ...]) -> Results:
    """Forward and backward, of a policy's shapes and of odd ones."""
    for dtype in dtypes:
        for samples, inputs, outputs in ((128, 4, 64), (128, 64, 64), (37, 17, 5)):
            x, weight = _tensor(rng, samples, inputs, dtype=dtype), _tensor(rng, outputs, inputs, dtype=dtype)
            y = F.linear(x, weight.requires_grad_(), torch.ones(outputs, dtype=dtype))
            yield y
            yield from torch.autograd.grad(y.float().square().mean(), weight)


def matrix_products(rng: np.random.Generator) -> Results:
    return _linear(rng, (torch.float32, torch.float64))


def half_products(rng: np.random.Generator) -> Results:
    return _linear(rng, (torch.bfloat16, torch.float16))


def orthogonal(rng: np.random.Generator) -> Results:
    generator = torch.Generator().manual_seed(SEED)
    for shape in ((64, 4), (64, 64), (1, 64)):
        yield torch.nn.init.orthogonal_(torch.empty(shape), generator=generator)


def torch_exp_tanh(rng: np.random.Generator) -> Results:
    for dtype in (torch.float32, torch.float64):
        x = 4 * _tensor(rng, 2000, dtype=dtype)
        yield from (torch.exp(x), torch.tanh(x), torch.sigmoid(x), torch.log(x.abs() + 0.01))


def log_softmax(rng: np.random.Generator) -> Results:
    for dtype in (torch.float32, torch.float64):
        out = _tensor(rng, 500, 4, dtype=dtype).requires_grad_()
        log_probs = torch.log_softmax(out, -1)
        yield log_probs
        yield from torch.autograd.grad((log_probs.exp() * log_probs).sum(), out)


def reductions(rng: np.random.Generator) -> Results:
    for dtype in (torch.float32, torch.float64):
        x = _tensor(rng, 9217, dtype=dtype)
        yield from (x.mean(), x.sum(), x[:9216].view(4, -1).std(1), torch.linalg.vector_norm(x))


def convolution(rng: np.random.Generator) -> Results:
    x, weight = _tensor(rng, 16, 4, 20, 20), _tensor(rng, 8, 4, 8, 8).requires_grad_()
    y = F.conv2d(x, weight, stride=4)
    yield y
    yield from torch.autograd.grad(y.square().mean(), weight)


def random_tensors(rng: np.random.Generator) -> Results:
    generator = torch.Generator().manual_seed(SEED)
    yield torch.empty(1000).normal_(generator=generator)
    yield torch.rand(1000, generator=generator)


def optimizers(rng: np.random.Generator) -> Results:
    start, gradients = _tensor(rng, 1000), _tensor(rng, 3, 1000)
    kinds: tuple[Callable[[list[Tensor]], torch.optim.Optimizer], ...] = (
        lambda leaves: OPTIMIZERS["adam"][0](leaves, lr=0.01, fused=True),
        lambda leaves: OPTIMIZERS["sgd"][0](leaves, lr=0.01, momentum=0.9, fused=True),
        lambda leaves: RMSprop(leaves, 0.01),
    )
    for kind in kinds:
        leaf = start.clone().requires_grad_()
        optimizer = kind([leaf])
        for gradient in gradients:
            leaf.grad = gradient.clone()
            optimizer.step()
        yield leaf


def replaced(rng: np.random.Generator) -> Results:
    for dtype in (torch.float32, torch.float64):
        x = 3 * _tensor(rng, 2000, dtype=dtype)
        made = x.numpy().copy()
        tanh(made)()
        yield made
        with Portable():
            yield from (torch.sqrt(x.abs()), torch.expm1(x), torch.log1p(x.abs()), F.softplus(x), F.logsigmoid(x))


def numpy_products(rng: np.random.Generator) -> Results:
    for dtype in (np.float32, np.float64):
        for rows, inner, columns in ((4, 4, 64), (4, 64, 64), (37, 17, 5)):
            yield uniform(rng, rows, inner).astype(dtype) @ uniform(rng, inner, columns).astype(dtype)


def numpy_functions(rng: np.random.Generator) -> Results:
    x = uniform(rng, 2000, scale=5).astype(np.float32)
    yield from (np.exp(x), np.sin(x), np.cos(x), np.log(np.abs(x) + np.float32(0.01)), np.sqrt(np.abs(x)))
    yield from (np.asarray(x.mean()), np.asarray(x.std()))


def random_numbers(rng: np.random.Generator) -> Results:
    yield from (rng.gumbel(size=1000), rng.standard_normal(1000), rng.logistic(size=1000), rng.permutation(1000))


def c_library(rng: np.random.Generator) -> Results:
    x = uniform(rng, 500, scale=5)
    yield from (np.exp(x), np.tanh(x), np.sin(x), np.cos(x), np.log(np.abs(x) + 0.01), np.power(np.abs(x), 1.7))
    for function in (math.exp, math.sin, math.cos, math.tanh, math.atan):
        yield np.array([function(number) for number in x.tolist()])


def denormal_numbers(rng: np.random.Generator) -> Results:
    tiny = uniform(rng, 100).astype(np.float32) * np.float32(1e-39)
    yield from (tiny * np.float32(0.5), torch.from_numpy(tiny) * 0.5)


OPERATIONS: dict[str, Operation] = {
    "matrix products": Operation("torch (MKL)", "MKL_CBWR", matrix_products),
    "orthogonal initialisation": Operation("torch (MKL)", "MKL_CBWR", orthogonal),
    "exp, tanh, sigmoid, log": Operation("torch (MKL)", "MKL_CBWR", torch_exp_tanh),
    "matrix products of halves": Operation("torch", "oneDNN being off", half_products),
    "convolution": Operation("torch", "oneDNN and NNPACK being off", convolution),
    "log-softmax": Operation("torch", "ATEN_CPU_CAPABILITY", log_softmax),
    "means, sums, norms": Operation("torch", "ATEN_CPU_CAPABILITY", reductions),
    "random tensors": Operation("torch", "ATEN_CPU_CAPABILITY", random_tensors),
    "optimisers": Operation("torch", "ATEN_CPU_CAPABILITY", optimizers),
    "square root, expm1 and their kin": Operation("rlloss", "rlloss.train.portable", replaced),
    "NumPy's matrix products": Operation("NumPy (OpenBLAS)", "OPENBLAS_CORETYPE", numpy_products),
    "NumPy's float32 functions": Operation("NumPy", "NPY_DISABLE_CPU_FEATURES", numpy_functions),
    "NumPy's random numbers": Operation("NumPy and the C library", "GLIBC_TUNABLES", random_numbers),
    "exp, sin, cos, tanh, pow in float64": Operation("the C library", "GLIBC_TUNABLES", c_library),
    "denormal numbers": Operation("the processor", "no library compiled with -ffast-math", denormal_numbers),
}
"""Of the order in which a suspicion is raised: what the later ones build on comes first."""


def digests() -> dict[str, str]:
    """Of each operation, as this process computes it now: the first 16 hexadecimal digits of a SHA-256."""
    with np.errstate(all="ignore"):  # whatever a user's code has asked of NumPy
        return {name: _digest(operation.compute(np.random.default_rng(SEED))) for name, operation in OPERATIONS.items()}


def _digest(results: Results) -> str:
    digest = hashlib.sha256()
    for result in results:
        if isinstance(result, Tensor):
            tensor = result.detach().contiguous()
            result = (tensor.view(torch.int16) if tensor.element_size() == 2 else tensor).numpy()
        digest.update(np.ascontiguousarray(result).data)
    return digest.hexdigest()[:16]


def constants() -> dict[str, Any]:
    """The digests that every machine is to have, by operation, and the versions that they were made with."""
    committed: dict[str, Any] = json.loads(CONSTANTS.read_text())
    return committed


def versions() -> dict[str, str]:
    """Without a build's suffix: torch's for CUDA computes the same on the CPU."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in LIBRARIES}


def differing(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """The operations whose digests are not the same, each with whose it is: whom to suspect."""
    return [
        f"{name} ({operation.made_by}; {operation.steered_by} is to make it the same)"
        for name, operation in OPERATIONS.items()
        if here.get(name) != there.get(name)
    ]


@functools.cache
def refuse_others() -> None:
    """Before anything is trained, once a process. Raises: ConfigError if an operation has other bits here."""
    committed = constants()
    if not (others := differing(digests(), committed["digests"])):
        return
    made, here = committed["versions"], versions()
    versus = "; ".join(f"{name} {here[name]} instead of {made[name]}" for name in here if here[name] != made[name])
    because = f"this is {versus}" if versus else "the versions are the same: a fault of this machine or of rlloss"
    raise ConfigError(
        f"numerics={PORTABLE}: other bits than elsewhere in {'; '.join(others)}. {because}; use numerics=native"
    )


if __name__ == "__main__":
    from rlloss.train.numerics import require
    from rlloss.train.switches import portable_kernels

    require()
    torch.set_num_threads(1)
    with portable_kernels():
        sys.stdout.write(json.dumps({"versions": versions(), "digests": digests()}, indent=2) + "\n")
