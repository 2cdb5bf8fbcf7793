"""The loss formulations: pure functions of log-probabilities and advantages, and the table of them.

Contract: ``loss(logp, old_logp, advantages, *, clip_coef) -> per-sample losses``. All tensors have one shape and one
floating dtype; every loss is minimised; the caller takes the mean. Only ``logp`` carries a gradient.

Notation: ``ratio = exp(logp - old_logp)``, ``A = advantages``, ``eps = clip_coef``, ``sg`` = stop-gradient (detach).

The order of multiplication is part of each formula. Autograd multiplies the incoming gradient (-1/N, from the mean and
the sign) by the factors from the outside in, and floating-point products do not associate. Losses that are meant to
be equal to the last bit therefore write the same products in the same order.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[..., Tensor]

DUAL_CLIP = 3.0  # verl's default c
CLIP_HIGHER = 0.08  # what DAPO adds to the upper bound: 0.28 beside 0.2
TRUNCATION = 2.0  # the cap of verl's rollout correction
KL_COEF = 1.0  # PPO's beta before it is adapted
SOFTNESS = 0.05  # width of the soft gates, in units of the ratio
OFFSET = 5.0


def check_inputs(logp: Tensor, old_logp: Tensor, advantages: Tensor) -> None:
    """Raises: ValueError for shapes, TypeError for dtypes that do not fit together."""
    if not logp.shape == old_logp.shape == advantages.shape:
        raise ValueError(
            "logp, old_logp and advantages must have one shape, got "
            f"{tuple(logp.shape)}, {tuple(old_logp.shape)} and {tuple(advantages.shape)}; "
            "broadcasting would pair samples with the wrong advantages"
        )
    if not logp.dtype == old_logp.dtype == advantages.dtype or not logp.is_floating_point():
        raise TypeError(
            "logp, old_logp and advantages must have one floating dtype, got "
            f"{logp.dtype}, {old_logp.dtype} and {advantages.dtype}"
        )


def _ratio(logp: Tensor, old_logp: Tensor, advantages: Tensor) -> Tensor:
    check_inputs(logp, old_logp, advantages)
    return torch.exp(logp - old_logp)


def _clip(ratio: Tensor, clip_coef: float) -> Tensor:
    return ratio.clamp(1 - clip_coef, 1 + clip_coef)


def clip_active(ratio: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """Where PPO's clip cuts the gradient: (A > 0 and ratio > 1 + eps) or (A < 0 and ratio < 1 - eps).

    Strict inequalities, with the bounds rounded to the dtype of ``ratio``: at a bound the gradient still flows.

    Returns: a boolean tensor of the shape of ``ratio``.
    """
    clipped = _clip(ratio, clip_coef)
    return ((advantages > 0) & (ratio > clipped)) | ((advantages < 0) & (ratio < clipped))


def ppo_share(ratio: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """The share of the ratio's gradient that ``ppo_clip`` lets through: 1, 0 or, on a rounding tie, 1/2.

    ``min(ratio*A, clamp(ratio)*A)`` gives each branch half of the gradient where the products are equal. Inside the
    interval both halves arrive (share 1). Just outside it, the two products can round to the same number; then the half
    that goes to the clamped branch dies (share 1/2). Hence the share is decided on the very products that PPO compares.
    A NaN product compares false and has share 0.

    Returns: a tensor of the shape and dtype of ``ratio``, detached.
    """
    ratio = ratio.detach()
    clipped = _clip(ratio, clip_coef)
    unclipped_product, clipped_product = ratio * advantages, clipped * advantages
    direct = (unclipped_product < clipped_product).to(ratio.dtype)
    tie = (unclipped_product == clipped_product).to(ratio.dtype)
    inside = (ratio == clipped).to(ratio.dtype)
    return direct + tie * (0.5 + 0.5 * inside)


def _weight(share: Tensor, ratio: Tensor) -> Tensor:
    """share * ratio, and exactly 0 where the share is 0 although the ratio may have overflowed (0 * inf is NaN)."""
    return torch.where(share > 0, share * ratio, 0.0).detach()


def ppo_clip(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """Clipped surrogate objective of PPO, negated: ``-min(ratio * A, clamp(ratio, 1 - eps, 1 + eps) * A)``.

    Gradient with respect to logp, in backward order, for a mean over N samples: ``((-1/N) * A) * ratio``, or 0 where
    the clip is active. If ``ratio`` overflows while the clip is active the loss is finite but the gradient is NaN
    (0 * inf in the backward of exp); ``reinforce`` gives 0 there.

    Args: three tensors of one shape and one floating dtype; ``clip_coef``, the half-width eps of the interval.
    Returns: per-sample losses, of that shape and dtype.
    Raises: ValueError on unequal shapes, TypeError on unequal or non-floating dtypes.
    Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equation 7.
    """
    ratio = _ratio(logp, old_logp, advantages)
    return -torch.min(ratio * advantages, _clip(ratio, clip_coef) * advantages)


def reinforce(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """REINFORCE with PPO's detached weight, in PPO's order of multiplication: ``-((w * logp) * A)``.

    ``w = sg(share * ratio)`` with the share in {0, 1/2, 1} that PPO's ``min`` lets through (``ppo_share``). Gradient:
    ``((-1/N) * A) * w``, the same products in the same order as ``ppo_clip``, hence equal to the last bit for every N.
    The exception is a dtype in which half of ``A/N`` is subnormal (float16): there PPO's own tie rounds.

    Not a true loss: its value is not a function whose derivative is this gradient.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: the text that this project starts from; the share and the order are this project's.
    """
    ratio = _ratio(logp, old_logp, advantages)
    w = _weight(ppo_share(ratio, advantages, clip_coef=clip_coef), ratio)
    return -((w * logp) * advantages)


def reinforce_logratio(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """``reinforce`` on the number that PPO's ratio is made of: ``-((w * log ratio) * A)``.

    Gradient: that of ``reinforce``, and of ``ppo_clip``, to the last bit. It stays so where logp has other uses, as in
    a KL term that the trainer adds: autograd adds the gradients of a tensor in the reverse order of its uses, and this
    form uses logp once, where PPO does. ``reinforce`` uses it again, after the KL term, and is an ulp off there.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: this project's, from TRL's GRPOTrainer with ``beta`` above 0.
    """
    check_inputs(logp, old_logp, advantages)
    logratio = logp - old_logp
    ratio = torch.exp(logratio)
    w = _weight(ppo_share(ratio, advantages, clip_coef=clip_coef), ratio)
    return -((w * logratio) * advantages)


def reinforce_textbook(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """``reinforce`` in the order in which textbooks write it: ``-(w * A * logp)``.

    Gradient: ``(-1/N) * (w * A)``. Equal to ``ppo_clip`` to the last bit only where 1/N and every other factor of the
    incoming gradient is a power of two; elsewhere one or two ulp apart in about a quarter of the samples.

    Args, Returns, Raises: as ``ppo_clip``.
    """
    ratio = _ratio(logp, old_logp, advantages)
    w = _weight(ppo_share(ratio, advantages, clip_coef=clip_coef), ratio)
    return -((w * advantages) * logp)


def reinforce_mask(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """``reinforce`` with the literal rule: ``-((w * logp) * A)``, w = sg(ratio) where the clip is not active, else 0.

    Differs from ``ppo_clip`` by a factor of two exactly on the rounding ties just outside a bound (``ppo_share``):
    about one sample in 10^8 in float32, one in 3,000 in bfloat16.

    Args, Returns, Raises: as ``ppo_clip``.
    """
    ratio = _ratio(logp, old_logp, advantages)
    w = torch.where(clip_active(ratio, advantages, clip_coef=clip_coef), 0.0, ratio).detach()
    return -((w * logp) * advantages)


# ------------------------------------------------------------------------------------------- without a clip


def ppo_unclipped(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """The unclipped surrogate objective, negated: ``-ratio * A``. Ignores ``clip_coef``.

    The ratio must not be detached: it is the only path from this loss to the policy. Gradient: ``((-1/N)*A)*ratio``.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: Kakade and Langford 2002 (conservative policy iteration); Schulman et al. 2017, equation 6.
    """
    return -(_ratio(logp, old_logp, advantages) * advantages)


def reinforce_unclipped(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """Importance-weighted REINFORCE: ``-((sg(ratio) * logp) * A)``. Ignores ``clip_coef``.

    Here the ratio must be detached: the gradient flows through logp. It is that of ``ppo_unclipped``, to the last bit.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: Degris, White and Sutton 2012, "Off-Policy Actor-Critic" (the per-step weight).
    """
    return -((_ratio(logp, old_logp, advantages).detach() * logp) * advantages)


def reinforce_undetached(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """``reinforce_unclipped`` with the detach forgotten: ``-((ratio * logp) * A)``. Wrong on purpose.

    Gradient: ``-A * ratio * (1 + logp)``; the product rule adds the term in logp, which turns the gradient around
    wherever the action's probability is below 1/e. Ignores ``clip_coef``.

    Args, Returns, Raises: as ``ppo_clip``.
    """
    return -((_ratio(logp, old_logp, advantages) * logp) * advantages)


def on_policy_ratio(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """The ratio of the policy to itself: ``-exp(logp - sg(logp)) * A``. Ignores ``old_logp`` and ``clip_coef``.

    Its value is -A and its weight 1 wherever the policy is; the gradient is that of ``reinforce_plain``.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: TRL's GRPOTrainer with one update per batch; Foerster et al. 2018 (DiCE) for the operator.
    """
    check_inputs(logp, old_logp, advantages)
    return -(torch.exp(logp - logp.detach()) * advantages)


def reinforce_plain(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """REINFORCE with weight 1: ``-(logp * A)``. Ignores ``old_logp`` and ``clip_coef``.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: Williams 1992, "Simple Statistical Gradient-Following Algorithms".
    """
    check_inputs(logp, old_logp, advantages)
    return -(logp * advantages)


def a2c(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """The policy loss of A2C: ``-(A * logp)``. Ignores ``old_logp`` and ``clip_coef``.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning", in Stable-Baselines3's order.
    """
    check_inputs(logp, old_logp, advantages)
    return -(advantages * logp)


def spo(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """Simple Policy Optimization: ``-(ratio * A - |A| / (2 eps) * (ratio - 1)^2)``.

    A parabola in place of the clip. Its gradient is 0 at the bound that clips and points back beyond it.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: Xie et al. 2024, arXiv 2401.16025.
    """
    ratio = _ratio(logp, old_logp, advantages)
    return -(ratio * advantages - advantages.abs() / (2 * clip_coef) * (ratio - 1) ** 2)


def ppo_kl_penalty(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """PPO with a KL penalty in place of the clip: ``-ratio * A + beta * (ratio - 1 - logratio)``.

    The penalty is the k3 estimate of KL(old || new), whose gradient is beta * (ratio - 1). ``beta`` stays at
    ``KL_COEF``: the paper's adaptive rule doubles or halves it between iterations, and so only scales this term.
    Ignores ``clip_coef``.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: Schulman et al. 2017, section 4; the estimator: Schulman 2020, "Approximating KL Divergence".
    """
    ratio, logratio = _ratio(logp, old_logp, advantages), logp - old_logp
    return -(ratio * advantages) + KL_COEF * (torch.expm1(logratio) - logratio)


# --------------------------------------------------------------------------------- other weights, other clips


def two_sided_mask(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """``reinforce_mask`` with a mask that forgets the sign of A: w = 0 wherever the ratio leaves the interval.

    Wrong on purpose: it also silences the samples that PPO would pull back (A > 0 below, A < 0 above).

    Args, Returns, Raises: as ``ppo_clip``.
    """
    ratio = _ratio(logp, old_logp, advantages)
    w = torch.where(ratio == _clip(ratio, clip_coef), ratio, 0.0).detach()
    return -((w * logp) * advantages)


def cispo(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """CISPO with both bounds: ``-((sg(clamp(ratio, 1 - eps, 1 + eps)) * logp) * A)``.

    The weight is clipped, the gradient never cut: no sample falls silent. The variant of verl and of Tinker.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: MiniMax 2025, "MiniMax-M1", arXiv 2506.13585, equation 4.
    """
    w = _clip(_ratio(logp, old_logp, advantages), clip_coef).detach()
    return -((w * logp) * advantages)


def cispo_upper(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """CISPO with the upper bound alone: ``-((sg(min(ratio, 1 + eps)) * logp) * A)``.

    The variant that MiniMax trained with, and that of TRL and open-instruct. TRL's ``epsilon_high`` is the cap itself,
    here 1 + ``clip_coef``.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: as ``cispo``.
    """
    w = _ratio(logp, old_logp, advantages).clamp(max=1 + clip_coef).detach()
    return -((w * logp) * advantages)


def truncated_is(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """Truncated importance sampling: ``-((sg(min(ratio, c)) * logp) * A)``, c = ``TRUNCATION``. Ignores ``clip_coef``.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: Ionides 2008, "Truncated Importance Sampling"; IMPALA's rho-bar, Espeholt et al. 2018; verl's rollout
        correction, whose default cap is 2.
    """
    w = _ratio(logp, old_logp, advantages).clamp(max=TRUNCATION).detach()
    return -((w * logp) * advantages)


def dual_clip(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """Dual-clip PPO: for A < 0 the objective of ``ppo_clip`` is kept above ``c * A``, c = ``DUAL_CLIP``.

    The gradient is that of ``ppo_clip`` but for A < 0 and ratio > c, where it is 0 (and half of it at c exactly).

    Args, Returns, Raises: as ``ppo_clip``.
    Source: Ye et al. 2020, "Mastering Complex Control in MOBA Games", equation 5; verl's default, c = 3.
    """
    objective = -ppo_clip(logp, old_logp, advantages, clip_coef=clip_coef)
    return -torch.where(advantages < 0, torch.max(objective, DUAL_CLIP * advantages), objective)


def clip_higher(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """PPO with a higher upper bound: the ratio is clamped to [1 - eps, 1 + eps + ``CLIP_HIGHER``] (0.2 and 0.28).

    Args, Returns, Raises: as ``ppo_clip``.
    Source: Yu et al. 2025, "DAPO", arXiv 2503.14476, section 3.1.
    """
    ratio = _ratio(logp, old_logp, advantages)
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_coef, 1 + clip_coef + CLIP_HIGHER) * advantages)


# ------------------------------------------------------------------------------- ppo_clip in other people's words


def ppo_max(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """PPO as a maximum of negatives: ``max(-A * ratio, -A * clamp(ratio, 1 - eps, 1 + eps))``.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: OpenAI Baselines' ppo2 and CleanRL.
    """
    ratio = _ratio(logp, old_logp, advantages)
    return torch.max(-advantages * ratio, -advantages * _clip(ratio, clip_coef))


def ppo_log_clamp(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """PPO with the clamp on the log-ratio: ``-min(ratio * A, exp(clamp(logratio, log(1 - eps), log(1 + eps))) * A)``.

    The bounds are rounded in log space, so they can lie an ulp or two beside those of ``ppo_clip``, and a minimum over
    a stacked dimension gives a tie to one branch instead of half to each: it differs from PPO just there.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: torchrl's ClipPPOLoss.
    """
    ratio, logratio = _ratio(logp, old_logp, advantages), logp - old_logp
    clipped = torch.exp(logratio.clamp(math.log1p(-clip_coef), math.log1p(clip_coef)))
    return -torch.stack([ratio * advantages, clipped * advantages], -1).min(-1).values


def ppo_clip_offset(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """``ppo_clip + C`` with C = ``OFFSET``: another value, the same gradient.

    Args, Returns, Raises: as ``ppo_clip``.
    """
    return ppo_clip(logp, old_logp, advantages, clip_coef=clip_coef) + OFFSET


def ppo_clip_ulp(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """``ppo_clip`` with every advantage moved to the next number away from 0: the smallest change there is.

    A negative control: a comparison that does not see it compares too coarsely.

    Args, Returns, Raises: as ``ppo_clip``.
    """
    check_inputs(logp, old_logp, advantages)
    return ppo_clip(logp, old_logp, torch.nextafter(advantages, 2 * advantages), clip_coef=clip_coef)


def ppo_masked(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """PPO with a mask in place of the minimum: ``-(M * ratio) * A``, M = sg(1 where the clip is not active, else 0).

    Differs from ``ppo_clip`` on the rounding ties just outside a bound (``ppo_share``), as ``reinforce_mask`` does.

    Args, Returns, Raises: as ``ppo_clip``.
    """
    ratio = _ratio(logp, old_logp, advantages)
    active = clip_active(ratio, advantages, clip_coef=clip_coef)
    return -((torch.where(active, 0.0, 1.0).to(ratio.dtype) * ratio) * advantages)


def klip(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """KLip-PPO as published: ``-ratio * A + beta * (-logratio)``, beta = sg(-ratio * A) if the clip is active, else 0.

    Where the clip is active the two terms must cancel: ((1/N)*A)*ratio against (1/N)*(ratio*A). They do exactly if
    1/N is a power of two; elsewhere the rounding of the two products is left over as a gradient.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: Colletti and Holzinger 2026, "KLip-PPO", arXiv 2606.23932.
    """
    ratio = _ratio(logp, old_logp, advantages)
    active = clip_active(ratio, advantages, clip_coef=clip_coef).to(ratio.dtype)
    return _with_kl_term(ratio, logp - old_logp, advantages, active)


def klip_matched(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """``klip`` in PPO's order of multiplication: ``-(ratio * A) + (w * logratio) * A``.

    ``w = sg((1 - share) * ratio)`` is the part of the ratio that PPO's minimum cuts (``ppo_share``). The two terms are
    the same products in the same order and cancel exactly, for every N.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: the order is this project's.
    """
    ratio = _ratio(logp, old_logp, advantages)
    w = _weight(1 - ppo_share(ratio, advantages, clip_coef=clip_coef), ratio)
    return -(ratio * advantages) + (w * (logp - old_logp)) * advantages


def klip_linear_gate(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """``klip`` with a clip that sets in gradually: beta = sg(-ratio * A * gate), gate = clamp(d / s, 0, 1).

    ``d`` is how far the ratio lies beyond the bound that clips (``_beyond``), ``s`` = ``SOFTNESS``.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: as ``klip``; the width is this project's choice.
    """
    ratio = _ratio(logp, old_logp, advantages)
    gate = (_beyond(ratio, advantages, clip_coef) / SOFTNESS).clamp(0, 1)
    return _with_kl_term(ratio, logp - old_logp, advantages, gate)


def klip_sigmoid_gate(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """``klip`` with a sigmoid gate: beta = sg(-ratio * A * sigmoid(d / s)), d and s as in ``klip_linear_gate``.

    The gate is a half at the bound and small, but not 0, inside the interval: already the first minibatch differs.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: as ``klip``; the width is this project's choice.
    """
    ratio = _ratio(logp, old_logp, advantages)
    gate = torch.sigmoid(_beyond(ratio, advantages, clip_coef) / SOFTNESS)
    return _with_kl_term(ratio, logp - old_logp, advantages, gate)


def ppo_softmin(logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
    """PPO with a smooth minimum: ``|A| * s * logsumexp(-[ratio, clamp(ratio)] * sign(A) / s)``, s = ``SOFTNESS``.

    Args, Returns, Raises: as ``ppo_clip``.
    Source: as ``klip`` (their third gate); the width is this project's choice.
    """
    ratio = _ratio(logp, old_logp, advantages)
    both = torch.stack([ratio, _clip(ratio, clip_coef)]) * advantages.sign()
    return advantages.abs() * (SOFTNESS * torch.logsumexp(-both / SOFTNESS, 0))


def _with_kl_term(ratio: Tensor, logratio: Tensor, advantages: Tensor, gate: Tensor) -> Tensor:
    """``-ratio * A + beta * (-logratio)``, the per-sample k1 estimate of the KL divergence weighted by beta."""
    beta = torch.where(gate > 0, -ratio * advantages * gate, 0.0).detach()
    return -(ratio * advantages) + beta * (-logratio)


def _beyond(ratio: Tensor, advantages: Tensor, clip_coef: float) -> Tensor:
    """How far the ratio lies beyond the bound that clips this sign of A; negative inside, -inf for A = 0. Detached."""
    above, below = ratio - (1 + clip_coef), (1 - clip_coef) - ratio
    distance = torch.where(advantages > 0, above, below)
    return torch.where(advantages == 0, -torch.inf, distance).detach()


LOSSES: dict[str, Loss] = {
    loss.__name__: loss
    for loss in (
        ppo_clip, reinforce, reinforce_logratio, reinforce_textbook, reinforce_mask, ppo_masked, ppo_max,
        ppo_log_clamp, ppo_clip_offset, ppo_clip_ulp, klip, klip_matched, klip_linear_gate, klip_sigmoid_gate,
        ppo_softmin, dual_clip, clip_higher, two_sided_mask, cispo, cispo_upper, truncated_is, ppo_unclipped,
        reinforce_unclipped, reinforce_undetached, on_policy_ratio, reinforce_plain, a2c, spo, ppo_kl_penalty,
    )
}  # fmt: skip
"""Every formulation, by the name that ``loss=NAME`` selects. A new one: a function, a line here, a yaml."""
