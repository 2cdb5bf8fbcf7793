"""Values that leave a graph, to Python or NumPy, in ways that are not seen: what they decide there is not proved."""

import json
import math
from decimal import Decimal

import numpy as np
import pytest
import torch

from rlloss.check import compare
from tests.check.test_prove import settle


def ppo(logp, old_logp, advantages, clip_coef=0.2):
    ratio = torch.exp(logp - old_logp)
    clipped = torch.clamp(ratio, 1 - clip_coef, 1 + clip_coef)
    return -torch.min(ratio * advantages, clipped * advantages).mean()


def halved(when):
    def loss(logp, old_logp, advantages, clip_coef=0.2):
        return ppo(logp, old_logp, advantages, clip_coef) * (0.5 if when(advantages) else 1.0)

    return loss


def around_seven(A):
    return (A > 5) & (A < 9)


NUMBERS = {
    "abs": lambda x: abs(x) == 7,
    "round": lambda x: round(x) == 7,
    "int": lambda x: int(x) == 7,
    "floor division": lambda x: x // 1 == 7,
    "remainder": lambda x: x % 100 == 7,
    "divmod": lambda x: divmod(x, 1)[0] == 7,
    "math.floor": lambda x: math.floor(x) == 7,
    "math.isclose": lambda x: math.isclose(x, 7),
    "math.tanh": lambda x: math.tanh(x - 7) == 0,
    "math.log": lambda x: 3.9 < math.log(1 + x * x) < 4,
    "f-string": lambda x: f"{x:.1f}" == "7.0",
    "percent": lambda x: "%.1f" % x == "7.0",  # noqa: UP031
    "str": lambda x: str(x) == "7.0",
    "key": lambda x: {7.0: True}.get(x, False),
    "json": lambda x: json.dumps([x]) == "[7.0]",
    "decimal": lambda x: Decimal(x) == 7,
    "np.float64": lambda x: np.float64(x) == 7,
    "np.sqrt": lambda x: np.sqrt(x * x) == 7,
    "np.where": lambda x: bool(np.where(np.abs(x - 7) < 1, True, False)),
    "np.array": lambda x: np.array([x])[0] == 7,
    "is_integer": lambda x: x.is_integer() and x == 7,
    "range": lambda x: 6 in range(int(x)),
    "isinstance": lambda x: isinstance(x, float) and round(x) == 7,
}
SIZES = {
    "numel": lambda A: A[around_seven(A)].numel() == A.numel(),
    "len": lambda A: len(A[around_seven(A)]) == len(A),
    "shape": lambda A: A.masked_select(around_seven(A)).shape == A.shape,
    "size of what is made of it": lambda A: (2 * A[around_seven(A)]).size(0) == A.numel(),
    "where": lambda A: len(torch.where(around_seven(A))[0]) == len(A),
    "argwhere": lambda A: torch.argwhere(around_seven(A)).size(0) == len(A),
    "unique": lambda A: around_seven(A).unique().numel() == 1 and len(A) == 77,
    "bincount": lambda A: torch.bincount(A.clamp(0, 20).long()).numel() == 8,
    "repeat_interleave": lambda A: torch.repeat_interleave(A, A.clamp(0, 20).long()).numel() == 7 * len(A),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_leaves_is_no_constant(name):
    proof, _ = settle(ppo, halved(lambda A: NUMBERS[name](A.mean().item())))
    assert (proof.exact, proof.bitwise) == ("open", "open")


@pytest.mark.parametrize("name", SIZES)
def test_how_many_the_data_select_is_no_constant(name):
    proof, _ = settle(ppo, halved(SIZES[name]))
    assert (proof.exact, proof.bitwise) == ("open", "open")
    assert "how many are selected decides in Python" in proof.why


def test_a_sum_of_nothing_is_no_zero():
    """No sample of the batch that is followed is selected."""

    def more(logp, old_logp, advantages, clip_coef=0.2):
        return ppo(logp, old_logp, advantages, clip_coef) - logp[around_seven(advantages)].sum()

    assert settle(ppo, more)[0].exact == "open"


def scaled(logp, old_logp, advantages, clip_coef=0.2):
    return ppo(logp, old_logp, advantages, clip_coef) * (1 - 0.5 * math.exp(-(advantages.mean().item() ** 2)))


def scaled_otherwise(logp, old_logp, advantages, clip_coef=0.2):
    square = advantages.mean().detach().square()
    return ppo(logp, old_logp, advantages, clip_coef) * (1 - torch.exp(-square) / 2)


def wider(logp, old_logp, advantages, clip_coef=0.2):
    return ppo(logp, old_logp, advantages, clip_coef * (1 + 0 * advantages.mean().item()))


def logged(logp, old_logp, advantages, clip_coef=0.2):
    ratio = torch.exp(logp - old_logp)
    said = {"kl": (old_logp - logp).mean().item(), "high": ratio[ratio > 1.2].mean()}
    return ppo(logp, old_logp, advantages, clip_coef) if said else None


@pytest.mark.parametrize(("one", "other"), [(scaled, scaled_otherwise), (ppo, wider), (ppo, logged)])
def test_arithmetic_on_numbers_is_followed_and_logging_them_decides_nothing(one, other):
    proof, refutation = settle(one, other)
    assert (proof.exact, refutation) == ("proved", None)


def counted(start):
    """A coefficient that falls after so many calls."""
    state = {"calls": start}

    def loss(logp, old_logp, advantages, clip_coef=0.2):
        state["calls"] += 1
        return ppo(logp, old_logp, advantages, clip_coef) * (1.0 if state["calls"] < 100_000 else 0.5)

    return loss


class Counting:
    calls = 3

    def loss(self, logp, old_logp, advantages, clip_coef=0.2):
        self.calls += 1
        return ppo(logp, old_logp, advantages, clip_coef) * (1.0 if self.calls < 100_000 else 0.5)


@pytest.mark.parametrize("loss", [counted(7), Counting().loss])
def test_nothing_is_proved_of_a_loss_that_counts_its_calls(loss):
    found = compare(ppo, loss)
    assert (found.verdict, found.proof.exact) == ("IDENTICAL", "open")
    assert "keeps a state" in found.proof.why


def halved_in_float16(logp, old_logp, advantages, clip_coef=0.2):
    return ppo(logp, old_logp, advantages, clip_coef / 2 if logp.dtype == torch.float16 else clip_coef)


def test_a_proof_for_every_format_is_tried_in_one_that_was_not_asked_for():
    found = compare(ppo, halved_in_float16)
    assert (found.proof.exact, found.proof.bitwise) == ("proved", "open")
    assert found.proof.bits_why == "in float16 they differ, as on a batch of N = 64"
    assert compare(ppo, wider).proof.bits_why != found.proof.bits_why
