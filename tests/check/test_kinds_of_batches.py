"""Pairs that differ on batches of one kind alone, which trainers meet; and pairs that rounding alone tells apart."""

import functools
from dataclasses import dataclass, field

import pytest
import torch
from torch.nn import functional as F

from rlloss.check import compare
from rlloss.check.text import text
from rlloss.errors import LossError
from rlloss.verdicts import Verdict
from tests.helpers import a_few_fast

F64 = (torch.float64,)


def plain(logp, old_logp, advantages):
    ratio = torch.exp(logp - old_logp)
    return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)


def twice(where):
    """Twice the loss of a batch on which ``where`` holds, decided in Python."""

    def loss(logp, old_logp, advantages):
        by = 2 if len(advantages) > 3 and bool(where((logp - old_logp).detach(), advantages)) else 1
        return by * plain(logp, old_logp, advantages)

    return loss


def k3(d):
    return (torch.exp(d) - 1 - d).mean()


SAMPLES = {
    "hardly moved": twice(lambda d, A: 0 < d.abs().mean() < 0.02),
    "few clipped": twice(lambda d, A: 0 < ((d.exp() - 1).abs() > 0.2).double().mean() < 0.03),
    "0 and 1": twice(lambda d, A: ((A == 0) | (A == 1)).all()),
    "-1 and 1": twice(lambda d, A: (A.abs() == 1).all()),
    "one alone": twice(lambda d, A: (A != 0).sum() == 1),
    "whitened": twice(lambda d, A: A.mean().abs() < 1e-3 and (A.std() - 1).abs() < 1e-3),
    "a target of KL": lambda *a: (
        (0 if 0.012 < (d := a[0] - a[1]).exp().sub(1).sub(d).mean() < 0.015 else 1) * plain(*a)
    ),
    "huge scores": lambda logp, old, A: plain(logp, old, torch.from_numpy(A.numpy().clip(-20_000, 20_000))),
}


@pytest.mark.parametrize("name", a_few_fast(SAMPLES))
def test_batches_of_samples(name):
    result = compare(plain, SAMPLES[name], dtypes=F64)
    assert result.verdict == Verdict.DIFFERENT, text(result)


def test_a_proof_of_small_batches_goes_for_all_only_where_none_is_decided_in_python():
    """len(A) > 3 hid a branch on values from the traces of three samples."""
    result = compare(plain, twice(lambda d, A: (A == 0.123).all()), dtypes=F64)
    assert "batches of 1 to 3" in result.proof.scope, text(result)
    assert "batch size" in compare(plain, lambda *a: 1.0 * plain(*a), dtypes=F64).proof.scope


def mean(logp, old_logp, advantages, mask):
    terms = plain(logp, old_logp, advantages[:, None]) * mask
    return terms.sum() / mask.sum().clamp(min=1)


def twice_masked(where):
    def loss(logp, old_logp, advantages, mask):
        by = 2 if mask.shape[1] > 3 and bool(where(mask.bool())) else 1
        return by * mean(logp, old_logp, advantages, mask)

    return loss


MASKS = {
    "late and holes": twice_masked(lambda m: (~m[:, 0] & (m[:, 1:] & ~m[:, :-1]).sum(1).ge(2)).any()),
    "a last column with holes": twice_masked(lambda m: (m[:, -1] & ~m.all(1)).any()),
    "an empty first column": twice_masked(lambda m: ~m[:, 0].any()),
    "a wide batch": twice_masked(lambda m: ~m[:, m.shape[1] // 2 :].any()),
    "one token each": twice_masked(lambda m: (m.sum(1) == 1).all()),
    "one length": twice_masked(lambda m: 1 < m.sum(1).min() == m.sum(1).max() < m.shape[1]),
    "two empty": twice_masked(lambda m: (~m.any(1)).sum() == 2),
    "one alone": twice_masked(lambda m: len(m) > 2 and m.any(1).sum() == 1),
    "nearly all in one": twice_masked(lambda m: len(m) > 2 and 0.9 > m.sum(1).max() / m.sum() > 0.7),
}


@pytest.mark.parametrize("name", a_few_fast(MASKS))
def test_masks(name):
    result = compare(mean, MASKS[name], dtypes=F64)
    assert result.verdict == Verdict.DIFFERENT, text(result)
    assert not result.only_of_tokens


@dataclass
class Inner:
    most: int = 4500


@dataclass
class Trainer:
    inner: Inner = field(default_factory=Inner)

    def __call__(self, logp, old_logp, advantages, mask):
        return mean(logp, old_logp, advantages, mask * (torch.arange(mask.shape[1]) < self.inner.most))

    def loss(self, logp, old_logp, advantages, mask):
        return self(logp, old_logp, advantages, mask)


def at_most(tokens):
    def decorate(loss):
        @functools.wraps(loss)
        def cut(logp, old_logp, advantages, mask):
            return loss(logp, old_logp, advantages, mask * (torch.arange(mask.shape[1]) < tokens))

        return cut

    return decorate


@pytest.mark.slow
@pytest.mark.parametrize("loss", [Trainer(), Trainer().loss, at_most(4500)(mean)], ids=["object", "method", "wrapped"])
def test_numbers_of_objects_methods_and_decorators(loss):
    result = compare(mean, loss, dtypes=F64)
    assert result.verdict == Verdict.DIFFERENT, text(result)


def with_rewards(change):
    def loss(logp, old_logp, advantages):
        return plain(logp, old_logp, change(advantages))

    return loss


def in_place(A):
    A = A.clone()
    A -= A.mean()
    A /= A.std() + 1e-8
    return A


def by_numpy(A):
    a = A.double().numpy()
    return torch.from_numpy((a - a.mean()) / (a.std(ddof=1) + 1e-8)).to(A.dtype)


def whitened(A):
    return (A - A.mean()) / (A.std() + 1e-8)


SAME = {
    "in place": (whitened, in_place),
    "by NumPy": (whitened, by_numpy),
    "by its norm": (whitened, lambda A: (A - A.mean()) / ((A - A.mean()).norm() / (len(A) - 1) ** 0.5 + 1e-8)),
    "centred twice": (lambda A: A - A.mean(), lambda A: (A - A.mean()) - (A - A.mean()).mean()),
    "without its own": (lambda A: A - (A.sum() - A) / (len(A) - 1), lambda A: (A - A.mean()) * len(A) / (len(A) - 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_what_is_left_of_equal_rewards_is_rounding(name):
    """Inside a clip, the sign of what is left decides; it is that of no number."""
    result = compare(*map(with_rewards, SAME[name]))
    assert result.verdict == Verdict.EQUAL, text(result)


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda A: A - A.median(), lambda A: (A - A.mean()) / (A.std() + 1e-4)])
def test_another_baseline_or_epsilon_is_no_rounding(change):
    assert compare(with_rewards(whitened), with_rewards(change)).verdict == Verdict.DIFFERENT


def test_a_gradient_that_a_hook_clips_is_proved_to_be_nothing():
    def hooked(logp, old_logp, advantages):
        ratio = torch.exp(logp - old_logp)
        ratio.register_hook(lambda g: g.clamp(-50, 50))
        return -ratio * advantages

    result = compare(lambda logp, old, A: -torch.exp(logp - old) * A, hooked, dtypes=F64)
    assert result.verdict == Verdict.DIFFERENT
    assert result.proof.exact == "open"
    assert "a hook" in result.proof.why
    assert not result.digits


def test_what_differs_in_every_format_is_said_of_none_alone():
    def small_and_sure(logp, old_logp, advantages):
        ratio = torch.exp(logp - old_logp)
        where = (ratio < 0.1) & (old_logp > -0.05) & (advantages > 0)
        return torch.where(torch.from_numpy(where.detach().numpy()), 0.0, plain(logp, old_logp, advantages))

    result = compare(plain, small_and_sure, dtypes=(torch.float64, torch.float32))
    assert result.verdict == Verdict.DIFFERENT
    assert not result.alone_in


def test_a_list_of_numbers_is_no_loss_and_its_first():
    with pytest.raises(LossError, match=r"returned a list of .* numbers, .* torch\.stack"):
        compare(plain, lambda *a: list(plain(*a)))


def test_logarithms_of_bounds_end_in_no_power_of_them():
    """exp was raised to the numerator of a float: no answer in minutes."""

    def dual(logp, old_logp, advantages):
        return torch.where(advantages < 0, torch.min(loss := plain(logp, old_logp, advantages), -3 * advantages), loss)

    def of_logs(logp, old_logp, advantages):
        d, bounds = logp - old_logp, torch.tensor([0.8, 1.2, 3.0], dtype=logp.dtype).log().tolist()
        d = torch.where(advantages < 0, d.clamp(bounds[0], bounds[2]), d.clamp(max=bounds[1]))
        return -d.exp() * advantages

    result = compare(dual, of_logs, dtypes=F64)
    assert result.verdict == Verdict.EQUAL, text(result)


def test_softplus_is_a_sigmoid():
    """Digits are lost, as is said: the example is of one sample, of which the proof is."""

    def sigmoid(logp, old_logp, advantages):
        return -torch.sigmoid(torch.where(advantages > 0, 1.0, 1.5) * (torch.exp(logp - old_logp) - 1)) * advantages

    def softplus(logp, old_logp, advantages):
        x = torch.where(advantages > 0, 1.0, 1.5) * (torch.exp(logp - old_logp) - 1)
        return -torch.exp(-F.softplus(-x)) * advantages

    result = compare(sigmoid, softplus)
    said = text(result)
    assert result.verdict == Verdict.EQUAL or "DIFFERENT as computed" in said, said
