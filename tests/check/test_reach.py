"""How far a verdict reaches: what was tried, in which format, and of which policies, rewards and sizes it is said."""

import math

import numpy as np
import pytest
import torch

from rlloss.check import compare
from rlloss.check.alone import examine
from rlloss.check.comparison import DTYPES
from rlloss.verdicts import Verdict
from tests.check.test_cases import found
from tests.examples.users_losses import plain

STEPS, MINIBATCH = 32, 4096


def clipped(logp, old_logp, advantages, clip_coef=0.2):
    ratio = torch.exp(logp - old_logp)
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantages).mean()


def decoupled(logp, prox_logp, behav_logp, advantages, clip_coef=0.2):
    ratio, weight = torch.exp(logp - prox_logp), torch.exp(prox_logp - behav_logp).detach()
    return -(weight * torch.min(ratio * advantages, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantages)).mean()


def corrected(logp, old_logp, advantages, clip_coef=0.2, rollout_log_probs=None):
    weight = 1.0 if rollout_log_probs is None else torch.exp(old_logp - rollout_log_probs)
    return weight * clipped(logp, old_logp, advantages, clip_coef)


@pytest.mark.slow
def test_a_second_old_policy_is_not_the_first():
    """It was given the same numbers, without a word, and "proved for every input"."""
    result, said = found(clipped, decoupled)
    assert result.verdict == Verdict.IDENTICAL
    assert "IDENTICAL, proved for every input of one old policy, dtype and batch size" in said
    assert "decoupled with one old policy for prox_logp and behav_logp: what they differ by was not tried" in said
    assert any("behav_logp: all got the one old policy" in line for line in examine(decoupled).left_out)


@pytest.mark.slow
def test_what_stays_none_is_said():
    _, said = found(clipped, corrected)
    assert "corrected with rollout_log_probs=None, as by default: not tried otherwise" in said
    assert "called" not in found(clipped, clipped)[1]


@pytest.mark.parametrize("bound", [5.0, pytest.param(20.0, marks=pytest.mark.slow)])
def test_a_bound_of_rewards_is_tried_on_both_sides(bound):
    """NumPy hides it from a proof, and no advantage of an ordinary batch comes near it."""

    def capped(logp, old_logp, rewards, mask, *, clip_coef):
        A = torch.from_numpy(np.clip(rewards.numpy(), -bound, bound))
        return plain(logp, old_logp, A - A.mean(), mask, clip_coef=clip_coef)

    def free(logp, old_logp, rewards, mask, *, clip_coef):
        return plain(logp, old_logp, rewards - rewards.mean(), mask, clip_coef=clip_coef)

    result, said = found(capped, free, (torch.float64, torch.float32))
    assert result.verdict == Verdict.DIFFERENT
    assert "among (" in said, "the advantages of the other answers decide"


@pytest.mark.slow
def test_an_example_shows_every_reward_that_decides():
    def centred(bound):
        def loss(logp, old_logp, rewards, mask, *, clip_coef):
            A = rewards.clamp(-bound, bound)
            return plain(logp, old_logp, A - A.mean(), mask, clip_coef=clip_coef)

        return loss

    result, said = found(centred(5.0), centred(math.inf))
    assert result.verdict == Verdict.DIFFERENT
    assert any(abs(A) > 5 for A in result.example.advantages)
    assert "among (" in said


@pytest.mark.slow
def test_a_size_that_is_a_product_bounds_what_is_proved():
    def cut(logp, old_logp, advantages, clip_coef=0.2):
        most = STEPS * MINIBATCH
        return clipped(logp[:most], old_logp[:most], advantages[:most], clip_coef)

    assert (
        "every input, dtype and batch size below 131,072, a number in their code or a product" in found(clipped, cut)[1]
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_wider_clip_in_one_format_is_no_rounding(dtype):
    def wider(logp, old_logp, advantages):
        width = 0.25 if logp.dtype == dtype else 0.2
        ratio = torch.exp(logp - old_logp)
        return -torch.min(ratio * advantages, ratio.clamp(1 - width, 1 + width) * advantages)

    def same(logp, old_logp, advantages):
        return clipped(logp, old_logp, advantages)

    result, said = found(same, wider, DTYPES)
    assert result.proof.bitwise == "open"
    if dtype == torch.bfloat16:
        assert "DIFFERENT in bfloat16 alone: " in said
        assert "called in bfloat16 wider computes something else" in said
        assert result.digits == ""
    else:
        assert result.verdict == Verdict.IDENTICAL
        assert "to the last bit not proved: in float16 wider computes something else" in said


@pytest.mark.slow
def test_a_sample_on_an_edge_is_no_difference_of_a_network():
    """In bfloat16 one of 64 samples lies on a bound, and the parameters' gradients are a quarter apart."""

    def by_distance(logp, old_logp, advantages, clip_coef=0.2):
        ratio = torch.exp(logp - old_logp)
        inside = (torch.abs(ratio - 1) <= clip_coef).to(ratio.dtype).detach()
        return -(inside * ratio * advantages).mean()

    def by_clamp(logp, old_logp, advantages, clip_coef=0.2):
        ratio = torch.exp(logp - old_logp)
        inside = ratio == ratio.clamp(1 - clip_coef, 1 + clip_coef)
        return -(torch.where(inside, ratio, ratio.detach()) * advantages).mean()

    result, said = found(by_distance, by_clamp, DTYPES)
    assert result.verdict == Verdict.EQUAL
    assert result.off_policy.network > 0.1
    assert "edges at ratio 1.2" in said


def weighted(normalised):
    def loss(logp, old_logp, advantages):
        return -(normalised((logp - old_logp).detach()) * advantages * logp).sum()

    return loss


@pytest.mark.slow
def test_a_weight_that_vanishes_beside_a_ratio_that_no_training_has_is_no_difference():
    by_sum = weighted(lambda d: d.exp() / d.exp().sum())
    result, said = found(by_sum, weighted(lambda d: d.softmax(0)))
    assert (result.verdict, result.proof.exact) == (Verdict.EQUAL, "proved")
    assert "not finite at ratio 2.004e+123" in said
    other, _ = found(by_sum, weighted(lambda d: 1.001 * d.softmax(0)))
    assert other.verdict == Verdict.DIFFERENT


@pytest.mark.slow
def test_a_product_of_many_ratios_is_rounded_in_short_formats():
    def of_sequences(ratio_of):
        def loss(logp, old_logp, advantages, mask, *, clip_coef):
            return -(ratio_of((logp - old_logp) * mask) * advantages).mean()

        return loss

    by_sum = of_sequences(lambda d: d.sum(1).exp())
    result, said = found(by_sum, of_sequences(lambda d: d.exp().prod(1)), DTYPES)
    assert (result.verdict, result.proof.exact) == (Verdict.EQUAL, "proved")
    assert "shrinks from float32 to float64 as rounding does" in said
    other, _ = found(by_sum, of_sequences(lambda d: (1.01 * d).sum(1).exp()), DTYPES)
    assert other.verdict == Verdict.DIFFERENT


@pytest.mark.slow
def test_numbers_of_e_are_no_error():
    """log(10) is a fraction with which no power of e is one that a float holds."""

    def by_log(logp, old_logp, advantages):
        d = logp - old_logp
        return -(d.exp() * advantages).masked_fill(d > math.log(10.0), 0.0)

    def by_ratio(logp, old_logp, advantages):
        ratio = (logp - old_logp).exp()
        return -(ratio * advantages).masked_fill(ratio > 10.0, 0.0)

    result, said = found(by_log, by_ratio)
    assert result.verdict == Verdict.EQUAL
    assert "edges at ratio 10" in said


@pytest.mark.slow
def test_ranks_are_not_told_by_a_samples_own_numbers():
    def ranked(by_order):
        def loss(logp, old_logp, rewards):
            rank = rewards.argsort().argsort() if by_order else torch.searchsorted(rewards.sort()[0], rewards)
            return -((rank.to(logp.dtype) - rank.to(logp.dtype).mean()) * logp)

        return loss

    result, said = found(ranked(True), ranked(False))
    assert result.verdict == Verdict.DIFFERENT
    assert "log π <" not in said


@pytest.mark.slow
def test_the_size_of_a_difference_is_that_of_an_ordinary_batch():
    def hinge(relu):
        def loss(logp, old_logp, advantages, *, clip_coef):
            ratio = torch.exp(logp - old_logp)
            return advantages.abs() * relu(clip_coef - advantages.sign() * (ratio - 1))

        return loss

    soft = hinge(lambda x: torch.nn.functional.softplus(x, beta=200.0))
    result, said = found(hinge(torch.relu), soft, (torch.float64,))
    assert result.size.relative > 1e-3
    assert "no more than float32 rounds" not in said


@pytest.mark.slow
def test_what_is_dropped_is_all_of_its_own_gradient():
    """Beside a ratio of 1e12, on the grid, it was 5e-14 of a batch's gradient."""

    def dropping(logp, old_logp, advantages, mask, *, clip_coef):
        far = ((old_logp - logp) * mask).sum(1) > 2.0
        kept = ~((advantages < 0) & far)
        return plain(logp, old_logp, advantages * kept, mask, clip_coef=clip_coef)

    result, said = found(dropping, plain, (torch.float64,))
    assert not result.size.ordinary or result.size.relative > 1e-3
    assert result.size.relative > 1e-3
    assert "cosine of the two is nan" not in said


@pytest.mark.slow
def test_masks_that_differ_are_not_hidden_by_the_rounding_of_long_sums():
    def last_by_count(logp, old_logp, rewards, mask, *, clip_coef):
        at = (mask.sum(1) - 1).clamp(min=0).long()
        last = torch.zeros_like(logp)
        last[torch.arange(len(logp)), at] = rewards
        togo = (last * mask).flip(1).cumsum(1).flip(1)
        return -(togo * logp * mask).sum() / mask.sum().clamp(min=1)

    def all_of_it(logp, old_logp, rewards, mask, *, clip_coef):
        return -(rewards[:, None] * logp * mask).sum() / mask.sum().clamp(min=1)

    result, _ = found(last_by_count, all_of_it)
    assert result.verdict == Verdict.DIFFERENT
    assert set(result.regions) == {f"{on}-policy, {kind}" for on in ("on", "off") for kind in ("holes", "late starts")}


@pytest.mark.slow
def test_a_number_of_tokens_beyond_all_answers_is_named():
    def shorter(logp, old_logp, rewards, mask, *, clip_coef):
        penalty = ((12_288 - mask.sum(1)).to(logp.dtype) / 4096).clamp(min=-1, max=0)
        return plain(logp, old_logp, rewards + penalty, mask, clip_coef=clip_coef)

    _, said = found(shorter, plain)
    assert "left out answers of more than 8,192 tokens; 12,288 is a number in their code" in said


@pytest.mark.slow
def test_a_derivative_of_its_own_is_named():
    class Clipped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logp, old_logp, advantages):
            ratio = torch.exp(logp - old_logp)
            ctx.save_for_backward(ratio, advantages)
            return -ratio * advantages

        @staticmethod
        def backward(ctx, up):
            ratio, advantages = ctx.saved_tensors
            return -up * advantages * ratio, None, None

    def by_function(logp, old_logp, advantages):
        return Clipped.apply(logp, old_logp, advantages)

    result, said = found("ppo_unclipped", by_function)
    assert result.verdict != Verdict.DIFFERENT
    assert "not proved: by_function has a derivative of its own, by Clipped, an autograd.Function" in said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_a_scripted_minimum_has_no_gradient_where_its_sides_are_equal():
    """As PPO's are everywhere within the interval. From the second call on, when PyTorch has compiled it."""

    def ppo(logp: torch.Tensor, old_logp: torch.Tensor, advantages: torch.Tensor, clip_coef: float = 0.2):
        ratio = torch.exp(logp - old_logp)
        return -torch.min(ratio * advantages, torch.clamp(ratio, 1 - clip_coef, 1 + clip_coef) * advantages)

    scripted = torch.jit.script(ppo)
    gradients = []
    for _ in range(3):
        logp = torch.tensor([-1.0, -0.9], requires_grad=True)
        scripted(logp, torch.full((2,), -1.0), torch.ones(2)).sum().backward()
        gradients.append(logp.grad.tolist())
    assert gradients[0][0] == -1
    assert gradients[1:] == [[0, 0], [0, 0]]
    result, said = found("ppo_clip", scripted)
    assert result.verdict == Verdict.DIFFERENT
    assert "differ at A > 0: 0.8 < ratio < 1.2" in said


def penalised(kind):
    """A penalty on the way back to the old policy, with advantages of an answer or of each token."""

    def loss(logp, old_logp, advantages, mask, clip_coef=0.2):
        A = advantages if advantages.dim() == 2 else advantages[:, None]
        back = old_logp - logp
        terms = -A * logp + 0.04 * kind(back.exp() - back - 1)
        return (terms * mask).sum() / mask.sum()

    return loss


def test_a_difference_without_an_advantage_is_found_where_those_of_answers_are_those_of_tokens():
    """The solver names no advantage there, and the formulas name each token's."""
    one = compare(penalised(lambda penalty: penalty), penalised(lambda penalty: penalty.clamp(max=10)))
    assert one.verdict == "DIFFERENT"
    assert one.proof is not None
    assert one.proof.exact == "refuted"
