"""The shortest step of an optimiser is its own step to the last bit, with and without vector code."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rlloss.train import optimizers
from rlloss.train.optimizers import OPTIMIZERS, shortest_step

KINDS = {
    "adam": OPTIMIZERS["adam"],
    "rmsprop": OPTIMIZERS["rmsprop"],
    "rmsprop, exact": (optimizers.RMSprop, {}),
    "sgd": OPTIMIZERS["sgd"],
}
USUAL = ({}, {"weight_decay": 0.3, "eps": 1e-5}, {"eps": 1e-5, "lr": 2.5e-4})
RARE = {
    "adam": ({"betas": (0.3, 0.7)}, {"amsgrad": True}, {"maximize": True}),
    "rmsprop": ({"alpha": 0.3}, {"momentum": 0.9}, {"centered": True}),
    "rmsprop, exact": ({"alpha": 0.3}, {"momentum": 0.9, "weight_decay": 0.1}),
    "sgd": ({"momentum": 0.9},),
}
SIZES = (1, 3, 17, 4099)


def left(kind, dtype, options, size, *, short):
    """The bytes of parameters and state after every step."""
    make, fixed = KINDS[kind]
    options = {name: value for name, value in options.items() if kind != "sgd" or name != "eps"}
    rng = np.random.default_rng(size)
    leaf = torch.from_numpy(rng.standard_normal(size)).to(dtype).requires_grad_()
    optimizer = make([leaf], **{"lr": 0.01} | fixed | options)
    step = shortest_step(optimizer) if short else optimizer.step
    for i in range(30):
        gradient = rng.standard_normal(size) * 10 ** rng.uniform(-12, 6)
        if i % 10 == 4:
            gradient *= 0
        if i == 25:
            gradient[::2], gradient[1::2] = np.inf, np.nan
        leaf.grad = torch.from_numpy(gradient).to(dtype)
        optimizer.param_groups[0]["lr"] *= 0.99
        with np.errstate(all="ignore"):
            step()
        state = [x.numpy().tobytes() for _, x in sorted(optimizer.state[leaf].items()) if isinstance(x, torch.Tensor)]
        yield leaf.detach().numpy().tobytes(), *state


def parting():
    """Where the two ways part: of every kind, option, format and size."""
    for kind in KINDS:
        for options in (*USUAL, *RARE[kind]):
            for dtype in (torch.float32, torch.float64):
                for size in SIZES:
                    long, short = (list(left(kind, dtype, options, size, short=s)) for s in (False, True))
                    steps = [i for i, pair in enumerate(zip(long, short, strict=True)) if pair[0] != pair[1]]
                    if steps:
                        yield kind, options, str(dtype), size, steps[0]


def test_the_shortest_step_is_torchs_own_here():
    assert list(parting()) == []


@pytest.mark.parametrize("numpys", [pytest.param("", marks=pytest.mark.slow, id="NumPy's vector code"),
                                    pytest.param("X86_V3", id="none of NumPy's")])  # fmt: skip
def test_the_shortest_step_is_torchs_own_without_vector_code(numpys):
    """There Adam's is NumPy's."""
    code = (
        "import torch; from rlloss.train import optimizers; from tests.train.test_optimizers import parting\n"
        "assert isinstance(optimizers._adam(), optimizers._AdamInNumPy)\n"
        "print(list(parting()))"
    )
    wanted = {
        "ATEN_CPU_CAPABILITY": "default",
        "OMP_NUM_THREADS": "1",
        "NPY_DISABLE_CPU_FEATURES": numpys,
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=wanted, capture_output=True)
    assert (done.stdout.decode().strip(), done.returncode) == ("[]", 0), done.stderr.decode()


def test_who_listens_to_steps_hears_every_one():
    leaf = torch.zeros(3, requires_grad=True)
    optimizer = OPTIMIZERS["rmsprop"][0]([leaf], lr=0.01)
    step, heard = shortest_step(optimizer), []
    leaf.grad = torch.ones(3)
    step()
    optimizer.register_step_post_hook(lambda *_: heard.append(leaf.detach().clone()))
    step()
    step()
    assert len(heard) == 2
    assert torch.equal(heard[-1], leaf)
