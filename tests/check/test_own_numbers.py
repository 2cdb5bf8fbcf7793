"""Losses that differ beside a number of their own, or on batches of a kind: where no proof sees it, it is tried."""

import types

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rlloss.check.batches import sample_probes, sequence_probes
from rlloss.check.numbers import counts, numbers_of, untried_numbers
from rlloss.verdicts import Verdict
from tests.check.test_cases import found
from tests.examples.users_losses import plain
from tests.helpers import a_few_fast

F64 = (torch.float64,)
SIZE, MINIBATCHES, ROWS, WIDTH = 50, 100, 4, 1024
settings = types.ModuleType("settings")
settings.LONGEST = 4096
LIMIT, LIMIT_TENSOR = np.int64(4096), torch.tensor(4096)


def opened(loss):
    """A loss of samples with a branch of Python's on a value, which no graph holds."""

    def with_a_branch(logp, old_logp, advantages, *, clip_coef):
        if float(logp.detach().mean()) > 0:
            return logp * 0
        return loss(logp, torch.exp(logp - old_logp), advantages)

    return with_a_branch


def clipped(ratio, A):
    return -torch.min(ratio * A, ratio.clamp(0.8, 1.2) * A)


def filtered(keep):
    return opened(lambda logp, ratio, A: clipped(ratio, torch.where(keep(A), A, 0.0)))


def of_samples(weight):
    return opened(lambda logp, ratio, A: clipped(ratio, A) * weight(logp))


def of_answers(advantages=lambda A: A, kept=lambda logp, old, A, mask: mask):
    """A loss of answers, whose advantages and mask are made of those given."""

    def loss(logp, old_logp, rewards, mask, *, clip_coef):
        mask = kept(logp.detach(), old_logp, rewards, mask)
        return plain(logp, old_logp, advantages(rewards), mask, clip_coef=clip_coef)

    return loss


def weighted(weight):
    def loss(logp, old_logp, advantages, mask, *, clip_coef):
        return plain(logp, old_logp, advantages * weight(logp, mask), mask, clip_coef=clip_coef)

    return loss


def groups(A, size=4):
    return A.view(-1, size)


def normalised(A):
    A = groups(A)
    return ((A - A.mean(1, keepdim=True)) / (A.std(1, keepdim=True) + 1e-6)).view(-1)


def without_equal(logp, old_logp, A, mask):
    varies = groups(A).std(1, keepdim=True) > 0
    return mask & varies.expand(-1, 4).reshape(-1, 1)


def best(tie):
    def shares(A):
        g = groups(A)
        top = F.one_hot(g.argmax(1), 4).to(A.dtype) if tie else (g == g.amax(1, keepdim=True)).to(A.dtype)
        return top.view(-1)

    return of_answers(shares)


def of_positive_groups(weight):
    def halved(A):
        return A * torch.where((groups(A) > 0).all(1), weight, 1.0).repeat_interleave(4)

    return of_answers(halved)


def far_apart(threshold):
    def near(logp, old_logp, A, mask):
        total = torch.where(mask, old_logp - logp, 0.0).sum(1)
        return mask & (float(total.max()) < 1e9) & (total < threshold).unsqueeze(1)

    return of_answers(kept=near)


def up_to(longest):
    return weighted(lambda logp, mask: (mask.sum(1) <= longest()).to(logp.dtype))


def of_padded(logp, mask):
    return torch.where((mask.sum(1) > 100) & ~mask.all(1), 0.5, 1.0)


def about_the_mean(limit):
    def penalised(logp, mask):
        lengths = mask.sum(1).to(logp.dtype)
        return 1 + 1e-3 * (lengths - lengths.mean()).clamp(-limit, limit)

    return weighted(penalised)


def either(first):
    """An advantage of each answer or of each token."""

    def loss(logp, old_logp, advantages, mask, *, clip_coef):
        A = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
        ratio = torch.where(mask, logp - old_logp, 0.0).exp()
        return torch.where(mask, clipped(ratio, A[:, :1] if first else A), 0.0).sum() / mask.sum().clamp(min=1)

    return loss


DIFFER = {
    "outliers above 5 and 5.5": (filtered(lambda A: A <= 5.0), filtered(lambda A: A <= 5.5)),
    "at 3 and above it": (filtered(lambda A: A < 3.0), filtered(lambda A: A <= 3.0)),
    "tokens that are certain": (
        of_samples(lambda logp: 1), of_samples(lambda logp: (logp.detach() != 0).to(logp.dtype))),
    "a probability": (
        of_samples(lambda logp: 1), of_samples(lambda logp: (logp.detach().exp() <= 0.9995).to(logp.dtype))),
    "a product": (of_samples(lambda logp: 1), of_samples(lambda logp: 2 if len(logp) == SIZE * MINIBATCHES else 1)),
    "groups of equal rewards": (of_answers(normalised), of_answers(normalised, without_equal)),
    "ties of the best": (best(True), best(False)),
    "groups that are all above 0": (of_positive_groups(1.0), of_positive_groups(0.5)),
    "a mean reward": (
        of_answers(), of_answers(lambda A: A * (0.5 if float(A.mean()) > 2 else 1))),
    "sums of log-ratios": (far_apart(100.0), far_apart(150.0)),
    "answers of a product": (weighted(lambda logp, mask: 1), up_to(lambda: ROWS * WIDTH)),
    "answers of NumPy's number": (weighted(lambda logp, mask: 1), up_to(lambda: int(LIMIT))),
    "answers of a tensor": (weighted(lambda logp, mask: 1), up_to(lambda: LIMIT_TENSOR)),
    "answers of a module": (weighted(lambda logp, mask: 1), up_to(lambda: settings.LONGEST)),
    "answers of 8192": (weighted(lambda logp, mask: 1), up_to(lambda: 8192)),
    "long answers that are padded": (weighted(lambda logp, mask: 1), weighted(of_padded)),
    "a penalty about the mean length": (about_the_mean(500), about_the_mean(1e9)),
    "batches of 300": (
        weighted(lambda logp, mask: 1), weighted(lambda logp, mask: 1.5 if 200 <= len(logp) < 400 else 1)),
    "an advantage of each token": (either(False), either(True)),
}  # fmt: skip


@pytest.mark.parametrize("name", a_few_fast(DIFFER))
def test_a_difference_of_a_kind_is_found(name):
    result, said = found(*DIFFER[name], F64)
    assert result.verdict == Verdict.DIFFERENT, said


@pytest.mark.slow
def test_long_answers_are_tried_on_policy_too():
    result, _ = found(*DIFFER["answers of a product"], F64)
    assert result.on_policy.verdict == Verdict.DIFFERENT


@pytest.mark.slow
def test_a_loss_of_answers_is_given_no_advantage_of_a_token():
    """Its view of them would be another: each sample's advantage would meet every other's."""

    def viewed(logp, old_logp, advantages, mask, *, clip_coef):
        return plain(logp, old_logp, advantages.view(-1), mask, clip_coef=clip_coef)

    result, said = found(plain, viewed, F64)
    assert result.verdict == Verdict.IDENTICAL, said


def test_what_a_solver_finds_and_rounding_makes_refutes_no_proof():
    """1 - tanh² loses its digits where sigmoid has them: the two are one function."""

    def sigmoid(logp, old_logp, advantages, *, clip_coef):
        return -torch.sigmoid(4 * (logp - old_logp)) * advantages

    def tanh(logp, old_logp, advantages, *, clip_coef):
        return -0.5 * torch.tanh(2 * (logp - old_logp)) * advantages

    result, said = found(sigmoid, tanh, F64)
    assert result.proof.exact != "refuted", said


@pytest.mark.parametrize(("by", "exact"), [(1, "proved"), (1.0001, "refuted")])
def test_all_of_a_gradient_that_is_next_to_none_refutes_no_proof(by, exact):
    """At a ratio of 8, tanh is 1 in float64, too, and nothing is left of a gradient of 1e-12."""

    def sigmoid(logp, old_logp, advantages, *, clip_coef):
        return -torch.sigmoid(4 * (torch.exp(logp - old_logp) - 1)) * advantages

    def tanh(logp, old_logp, advantages, *, clip_coef):
        return -0.5 * by * torch.tanh(2 * (torch.exp(logp - old_logp) - 1)) * advantages

    result, said = found(sigmoid, tanh)
    assert (result.verdict, result.proof.exact) == (Verdict.DIFFERENT, exact), said
    assert ("DIFFERENT as computed, one gradient in exact arithmetic" in said) is (by == 1)


def test_softplus_is_its_argument_beyond_20():
    """PyTorch's has a threshold, and logsigmoid none: 2e-9 of the gradient."""

    def softplus(logp, old_logp, advantages, *, clip_coef):
        return F.softplus(old_logp - logp) * advantages

    def logsigmoid(logp, old_logp, advantages, *, clip_coef):
        return -F.logsigmoid(logp - old_logp) * advantages

    result, said = found(softplus, logsigmoid, F64)
    assert result.verdict == Verdict.DIFFERENT
    assert result.proof.exact == "refuted", said


def test_gradients_too_small_to_be_squared_have_a_size():
    def ndtr(logp, old_logp, advantages, *, clip_coef):
        return -torch.special.ndtr(logp - old_logp) * advantages

    def erf(logp, old_logp, advantages, *, clip_coef):
        return -0.5 * (1 + torch.erf((logp - old_logp) / 2**0.5)) * advantages

    result, _ = found(ndtr, erf, F64)
    assert result.on_policy.verdict == Verdict.EQUAL


def test_numbers_are_read_wherever_their_author_has_them():
    def loss(x):
        return x * LIMIT + LIMIT_TENSOR * settings.LONGEST + torch.pi

    assert numbers_of(loss) == (4096.0,)


def test_products_count_samples():
    assert {49, 50, 51, 100, 4999, 5000, 5001} <= counts([50.0, 100.0], 10_000)

    def loss(x):
        return x[: 300 * SIZE] if len(x) > WIDTH * MINIBATCHES else x

    assert WIDTH * MINIBATCHES in untried_numbers(loss)
    assert not {300 * SIZE, WIDTH, SIZE} & set(untried_numbers(loss))


def test_probes_say_whether_they_are_on_policy():
    """What is said of the first minibatch rests on it."""
    for probe in (
        *sample_probes(torch.float64, 0.2, 0, (0.3, 100.0)),
        *sequence_probes(torch.float64, 0.2, 0, (0.3, 100.0), tokens=True),
    ):
        same = bool((probe.logp == probe.old_logp).all())
        assert probe.on_policy == same, probe.name
