"""A loss that does not answer twice alike is named before its run, and that changes nothing of the run."""

import random

import numpy as np
import pytest
import torch

from rlloss.cli.main import main
from rlloss.config import load
from rlloss.losses import formulation
from rlloss.train import train
from tests.helpers import SHORT

LOSSES = """\
import random

import numpy as np
import torch

N = [0]


def plain(logp, old_logp, advantages, *, clip_coef):
    return -logp * advantages


def state(logp, old_logp, advantages, *, clip_coef):
    N[0] += 1
    return -logp * advantages * (1 + N[0] / 100)


def torchs(logp, old_logp, advantages, *, clip_coef):
    return -logp * advantages * torch.rand(1)


def pythons(logp, old_logp, advantages, *, clip_coef):
    return -logp * advantages * random.random()


def numpys(logp, old_logp, advantages, *, clip_coef):
    return -logp * advantages * np.random.rand()


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.rand(1)


def gradient_alone(logp, old_logp, advantages, *, clip_coef):
    return -Twice.apply(logp) * advantages
"""
NOTE = "gives another value or gradient when called again for the same samples"


@pytest.fixture
def there(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(LOSSES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(formulation, "_said", set())
    return tmp_path


@pytest.mark.parametrize(
    "loss",
    [
        "state",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("torchs", "pythons", "numpys", "gradient_alone")),
    ],
)
def test_a_loss_that_does_not_answer_twice_alike_is_named_once(there, capsys, loss):
    assert main(["train", *SHORT, f"loss=own.py:{loss}", "run_dir=r"]) == 0
    err = capsys.readouterr().err
    assert err.count(f"note: loss=own.py:{loss}: {NOTE}") == 1


@pytest.mark.slow
def test_nothing_is_said_of_one_that_does(there, capsys):
    assert main(["train", *SHORT, "loss=own.py:plain", "run_dir=r"]) == 0
    assert "note" not in capsys.readouterr().err


@pytest.mark.slow
def test_asking_twice_moves_no_stream_of_random_numbers(there):
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    for loss in ("torchs", "pythons", "numpys"):
        formulation.trainable(f"own.py:{loss}")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002
    own = train(load([*SHORT, "loss=own.py:plain"])).final_digest
    assert own == train(load([*SHORT, "loss=own.py:plain"])).final_digest
