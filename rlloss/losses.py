"""The loss formulations: pure functions of log-probabilities and advantages, and the table of them.

Contract: ``loss(logp, old_logp, advantages, *, clip_coef) -> per-sample losses``. All tensors have one shape and one
floating dtype; every loss is minimised; the caller takes the mean. Only ``logp`` carries a gradient.

Notation: ``ratio = exp(logp - old_logp)``, ``A = advantages``, ``eps = clip_coef``, ``sg`` = stop-gradient (detach).

The order of multiplication is part of each formula. Autograd multiplies the incoming gradient (-1/N, from the mean and
the sign) by the factors from the outside in, and floating-point products do not associate. Losses that are meant to
be equal to the last bit therefore write the same products in the same order.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["LOSSES", "ppo_clip", "reinforce", "reinforce_mask", "reinforce_textbook"]

Loss = Callable[..., Tensor]


def _ratio(logp: Tensor, old_logp: Tensor, advantages: Tensor) -> Tensor:
    """exp(logp - old_logp), after checking that the three tensors fit together."""
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


LOSSES: dict[str, Loss] = {
    "ppo_clip": ppo_clip,
    "reinforce": reinforce,
    "reinforce_textbook": reinforce_textbook,
    "reinforce_mask": reinforce_mask,
}
"""Every formulation, by the name that ``loss=NAME`` selects. A new one: a function, a line here, a yaml."""
