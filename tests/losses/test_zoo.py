"""The rest of the zoo: each loss's gradient against its formula, worked out by hand; fixed values; sequence losses."""

import math

import pytest
import sympy as sp
import torch
from hypothesis import given, settings, strategies as st

from rlloss.losses import LOSSES, SEQUENCE_LOSSES

EPS = 0.2


def passes(r, A):
    """Whether PPO's clip lets the gradient through."""
    return not ((A > 0 and r > 1 + EPS) or (A < 0 and r < 1 - EPS))


def softmin_gradient(r, A):
    """Of |A| s log(exp(-r sign(A) / s) + exp(-clip(r) sign(A) / s)), s = 0.05, by the chain rule."""
    s, sign = 0.05, math.copysign(1, A) if A else 0
    clipped = min(max(r, 1 - EPS), 1 + EPS)
    share = 1 / (1 + math.exp(sign * (r - clipped) / s)) if abs(r - clipped) < 30 else float(sign * (r - clipped) < 0)
    inside = 1 if r == clipped else 0
    return -abs(A) * sign * r * (share + (1 - share) * inside)


def gate(r, A, shape):
    d = (r - (1 + EPS) if A > 0 else (1 - EPS) - r) / 0.05
    return min(max(d, 0), 1) if shape == "linear" else 1 / (1 + math.exp(-d))


# d loss / d logp of one sample, from its ratio r, advantage A and logp
GRADIENTS = {
    **dict.fromkeys(
        ("ppo_clip", "reinforce", "reinforce_logratio", "reinforce_textbook", "reinforce_mask", "ppo_masked", "ppo_max",
         "ppo_log_clamp", "ppo_clip_offset", "ppo_clip_ulp", "klip", "klip_matched"),
        lambda r, A, logp: -A * r * passes(r, A),
    ),
    "klip_linear_gate": lambda r, A, logp: -A * r * (1 - gate(r, A, "linear")),
    "klip_sigmoid_gate": lambda r, A, logp: -A * r * (1 - gate(r, A, "sigmoid")),
    "ppo_softmin": lambda r, A, logp: softmin_gradient(r, A),
    "dual_clip": lambda r, A, logp: -A * r * (passes(r, A) and not (A < 0 and r > 3)),
    "clip_higher": lambda r, A, logp: -A * r * (not ((A > 0 and r > 1.28) or (A < 0 and r < 0.8))),
    "two_sided_mask": lambda r, A, logp: -A * r * (1 - EPS <= r <= 1 + EPS),
    "cispo": lambda r, A, logp: -A * min(max(r, 1 - EPS), 1 + EPS),
    "cispo_upper": lambda r, A, logp: -A * min(r, 1 + EPS),
    "truncated_is": lambda r, A, logp: -A * min(r, 2),
    **dict.fromkeys(("ppo_unclipped", "reinforce_unclipped"), lambda r, A, logp: -A * r),
    "reinforce_undetached": lambda r, A, logp: -A * r * (1 + logp),
    **dict.fromkeys(("on_policy_ratio", "reinforce_plain", "a2c"), lambda r, A, logp: -A),
    "spo": lambda r, A, logp: -(A - abs(A) / EPS * (r - 1)) * r,
    "ppo_kl_penalty": lambda r, A, logp: -A * r + (r - 1),
}  # fmt: skip


def test_every_loss_has_its_gradient_worked_out():
    assert set(GRADIENTS) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=100, deadline=None)
@given(
    logratio=st.one_of(st.floats(-2.5, 2.5), st.sampled_from([0.0, 0.1, -0.1, 0.21, 0.27, -0.2, -0.25, 0.8, 1.2])),
    A=st.sampled_from([1.0, -1.0, 0.3, -2.5]),
    logp=st.floats(-5, -0.01),
)
def test_gradient_is_the_formulas(name, logratio, A, logp):
    leaf = torch.tensor([logp], dtype=torch.float64, requires_grad=True)
    old_logp = leaf.detach() - logratio
    LOSSES[name](leaf, old_logp, torch.tensor([A], dtype=torch.float64), clip_coef=EPS).sum().backward()
    ratio = math.exp(logp - old_logp.item())
    if min(abs(ratio - edge) for edge in (1 - EPS, 1 + EPS, 1.28, 2, 3)) < 1e-9:
        return  # which side of an edge this is, is settled in test_samples.py and check/test_check.py
    assert leaf.grad.item() == pytest.approx(GRADIENTS[name](ratio, A, logp), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("sign", "expected"), [(1, 0.3233670), (-1, -0.3233670)])
def test_two_sided_cispo_on_rlaxs_example(sign, expected):
    logits = torch.tensor([[1.0, 1, 1], [2, 0, 0], [-1, -2, -3]])
    old_logits = torch.tensor([[1.0, 1, 1], [2, 0, 0], [-3, -2, -1]])
    actions = torch.tensor([[0], [1], [2]])
    logp, old_logp = (torch.log_softmax(x, -1).gather(-1, actions).squeeze(-1) for x in (logits, old_logits))
    A = sign * torch.tensor([0.3, 0.2, 0.1])
    assert LOSSES["cispo"](logp, old_logp, A, clip_coef=EPS).mean().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_per_sample_and_checks_its_inputs(name):
    logp, old_logp, A = -torch.rand(3, 5) - 0.1, -torch.rand(3, 5) - 0.1, torch.randn(3, 5)
    together = LOSSES[name](logp, old_logp, A, clip_coef=EPS)
    assert together.shape == A.shape
    row = LOSSES[name](logp[1], old_logp[1], A[1], clip_coef=EPS)
    assert torch.allclose(together[1], row, rtol=1e-6), "a sample's loss must not depend on the others"
    with pytest.raises(ValueError, match=r"\(3, 5\), \(5,\) and \(3, 5\)"):
        LOSSES[name](logp, old_logp[0], A, clip_coef=EPS)
    with pytest.raises(TypeError, match="float64"):
        LOSSES[name](logp, old_logp.double(), A, clip_coef=EPS)


def test_klip_leaves_a_residue_where_one_over_n_is_no_power_of_two():
    """science.md, section 5: thousands of clipped samples keep a gradient at N = 1000, none at N = 1024."""

    def left_over(name, n):
        generator = torch.Generator().manual_seed(n)
        old_logp = -3 * torch.rand(n, generator=generator)
        logp = (old_logp + 0.5 * torch.randn(n, generator=generator)).requires_grad_()
        A = torch.randn(n, generator=generator)
        LOSSES[name](logp, old_logp, A, clip_coef=EPS).mean().backward()
        ratio = torch.exp(logp.detach() - old_logp)
        clipped = ((A > 0) & (ratio > 1.2 + 1e-6)) | ((A < 0) & (ratio < 0.8 - 1e-6))
        assert clipped.sum() > n / 10
        return int((logp.grad[clipped] != 0).sum())

    assert left_over("klip", 1000) > 20
    assert left_over("klip", 1024) == 0
    assert left_over("klip_matched", 1000) == 0


# ------------------------------------------------------------------------------------- the proof, symbolically

REGIONS = {  # of the open regions of the (ratio, A) plane: the sign of A, the ratio's clamped value
    "A > 0, below": (1, lambda r, eps: 1 - eps),
    "A > 0, inside": (1, lambda r, eps: r),
    "A > 0, above": (1, lambda r, eps: 1 + eps),
    "A < 0, below": (-1, lambda r, eps: 1 - eps),
    "A < 0, inside": (-1, lambda r, eps: r),
    "A < 0, above": (-1, lambda r, eps: 1 + eps),
}


@pytest.mark.parametrize("region", REGIONS)
def test_the_gradients_are_one_expression_on_each_open_region(region):
    """PPO, REINFORCE with the detached weight, the masked form and KLip: d/d logp, symbolically, minimum and all.

    In a region of known order the minimum is one of its branches. A stop-gradient is a symbol of its own while the
    derivative is taken, and takes its value afterwards.
    """
    sign, clamp = REGIONS[region]
    logp, old, stopped = sp.symbols("logp old stopped", real=True)
    eps, size = sp.symbols("epsilon size", positive=True)
    A, r = sign * size, sp.exp(logp - old)
    clamped = clamp(r, eps)
    # Which branch is the minimum: below the interval r < clamped, above it r > clamped; times A, whose sign is known.
    where = region.split()[-1]
    smaller_is_clamped = (where == "above") == (sign > 0) and where != "inside"
    ppo = -(clamped if smaller_is_clamped else r) * A
    weight = 0 if smaller_is_clamped else r

    def derivative(loss, value):
        return sp.simplify(sp.diff(loss, logp).subs(stopped, value))

    expected = sp.simplify(sp.diff(ppo, logp))
    assert expected == sp.simplify(0 if smaller_is_clamped else -A * r)
    assert sp.simplify(derivative(-(stopped * logp) * A, weight) - expected) == 0, "reinforce"
    assert sp.simplify(derivative(-(stopped * r) * A, 0 if smaller_is_clamped else 1) - expected) == 0, "ppo_masked"
    cut = sp.simplify(r - weight)
    assert sp.simplify(derivative(-r * A + stopped * (logp - old) * A, cut) - expected) == 0, "klip_matched"
    assert sp.simplify(derivative(-r * A + stopped * -(logp - old), -cut * A) - expected) == 0, "klip"
    # and the two that are wrong on purpose are not: CISPO's weight is clamped, the undetached one gains a term
    cispo = derivative(-(stopped * logp) * A, clamped)
    assert (sp.simplify(cispo - expected) == 0) is (where == "inside")
    assert sp.simplify(sp.diff(-(r * logp) * A, logp) - expected) != 0


# ------------------------------------------------------------------------------------------------- sequences


def ragged(seed=0):
    generator = torch.Generator().manual_seed(seed)
    old_logp = -3 * torch.rand(3, 4, generator=generator, dtype=torch.float64)
    logp = old_logp + 0.05 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    mask = torch.arange(4) < torch.tensor([[1], [2], [4]])
    return logp.requires_grad_(), old_logp, torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64), mask


TOKEN_WEIGHTS = {  # what a token of sequence i weighs, for lengths 1, 2 and 4 in a batch of 3, four columns wide
    "grpo": [1 / 3, 1 / 6, 1 / 12],
    "dr_grpo": [1 / 12, 1 / 12, 1 / 12],
    "dapo": [1 / 7, 1 / 7, 1 / 7],
    "token_mean": [1 / 7, 1 / 7, 1 / 7],
    "seq_mean_token_sum": [1 / 3, 1 / 3, 1 / 3],
}


@pytest.mark.parametrize("name", TOKEN_WEIGHTS)
def test_what_a_token_weighs(name):
    logp, old_logp, A, mask = ragged()
    loss = SEQUENCE_LOSSES[name](logp, old_logp, A, mask, clip_coef=EPS)
    loss.backward()
    ratio = torch.exp(logp - old_logp).detach()
    weights = torch.tensor(TOKEN_WEIGHTS[name], dtype=torch.float64).unsqueeze(1)
    expected = torch.where(mask, -A.unsqueeze(1) * ratio * weights, 0)
    assert torch.allclose(logp.grad, expected, rtol=1e-12, atol=0)
    assert loss.item() == pytest.approx(expected.sum().item(), rel=1e-12), "inside the interval the loss is its terms"


def test_gspo_weighs_all_tokens_of_a_sequence_with_the_mean_ratio():
    logp, old_logp, A, mask = ragged()
    SEQUENCE_LOSSES["gspo"](logp, old_logp, A, mask, clip_coef=EPS).backward()
    lengths = mask.sum(1)
    ratio = torch.exp(((logp - old_logp) * mask).sum(1) / lengths).detach()
    expected = torch.where(mask, (-A * ratio / lengths / 3).unsqueeze(1), 0)
    assert torch.allclose(logp.grad, expected, rtol=1e-12, atol=0)


def test_gspo_clips_a_sequence_as_a_whole_and_grpo_a_token_alone():
    old_logp = torch.full((1, 2), -1.0)
    mask, A = torch.ones(1, 2, dtype=torch.bool), torch.ones(1)

    def flows(name, logratios):
        logp = (old_logp + torch.tensor([logratios])).requires_grad_()
        SEQUENCE_LOSSES[name](logp, old_logp, A, mask, clip_coef=EPS).backward()
        return (logp.grad != 0).squeeze(0).tolist()

    assert flows("grpo", [0.5, 0.0]) == [False, True]
    assert flows("gspo", [0.5, 0.0]) == [False, False], "the mean log-ratio 0.25 is beyond log 1.2"
    assert flows("gspo", [0.5, -0.4]) == [True, True]
    assert flows("dapo", [0.24, 0.0]) == [True, True], "below the higher bound, log 1.28"
    assert flows("grpo", [0.24, 0.0]) == [False, True]


@pytest.mark.parametrize("name", SEQUENCE_LOSSES)
def test_padding_counts_for_nothing(name):
    logp, old_logp, A, mask = ragged()
    loss = SEQUENCE_LOSSES[name](logp, old_logp, A, mask, clip_coef=EPS)
    (gradient,) = torch.autograd.grad(loss, logp)
    for rubbish in (-7.0, -math.inf, math.nan):
        padded = torch.where(mask, logp.detach(), rubbish).requires_grad_()
        again = SEQUENCE_LOSSES[name](padded, old_logp, A, mask, clip_coef=EPS)
        assert torch.equal(again, loss)
        assert torch.equal(torch.autograd.grad(again, padded)[0], gradient)
    nothing = SEQUENCE_LOSSES[name](logp, old_logp, A, torch.zeros_like(mask), clip_coef=EPS)
    assert nothing.isfinite(), "a batch without a token that counts"


@pytest.mark.parametrize("name", SEQUENCE_LOSSES)
def test_sequence_losses_check_their_inputs(name):
    logp, old_logp, A, mask = ragged()
    loss = SEQUENCE_LOSSES[name]
    with pytest.raises(ValueError, match=r"advantages \[batch\], got .*\(3, 4\)"):
        loss(logp, old_logp, A.unsqueeze(1).expand(3, 4), mask, clip_coef=EPS)
    with pytest.raises(TypeError, match="boolean"):
        loss(logp, old_logp, A, mask.double(), clip_coef=EPS)
    with pytest.raises(TypeError, match="float32"):
        loss(logp, old_logp.float(), A, mask, clip_coef=EPS)
