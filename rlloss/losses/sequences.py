"""Losses on whole sequences of tokens, as language models are trained: GRPO and its relatives, without a KL term.

Contract: ``loss(logp, old_logp, advantages, mask, *, clip_coef) -> scalar``. ``logp``, ``old_logp`` are [batch, tokens]
of one floating dtype; ``advantages`` are [batch], one per sequence; ``mask`` is [batch, tokens], True where a
token counts. They return a scalar because how they average is what tells them apart. The Gymnasium loop has no
sequences: these are for ``rlloss check``.

Notation: as in ``rlloss.losses``; i counts sequences, t their tokens, |o_i| the tokens of sequence i that count.
"""

import torch
from torch import Tensor

from rlloss.losses.samples import CLIP_HIGHER, Loss


def _logratio(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """logp - old_logp, 0 where the mask is False, after checking that the four tensors fit together."""
    if not logp.shape == old_logp.shape == mask.shape or logp.ndim != 2 or advantages.shape != logp.shape[:1]:
        raise ValueError(
            "logp, old_logp and mask must be [batch, tokens] and advantages [batch], got "
            f"{tuple(logp.shape)}, {tuple(old_logp.shape)}, {tuple(mask.shape)} and {tuple(advantages.shape)}"
        )
    if not logp.dtype == old_logp.dtype == advantages.dtype or not logp.is_floating_point():
        raise TypeError(
            "logp, old_logp and advantages must have one floating dtype, got "
            f"{logp.dtype}, {old_logp.dtype} and {advantages.dtype}"
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, got {mask.dtype}")
    return torch.where(mask, logp - old_logp, 0.0)


def _clipped(ratio: Tensor, advantages: Tensor, lower: float, upper: float) -> Tensor:
    """PPO's ``-min(ratio * A, clamp(ratio, lower, upper) * A)``."""
    return -torch.min(ratio * advantages, ratio.clamp(lower, upper) * advantages)


def _tokens(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, lower: float, upper: float) -> Tensor:
    """Each token's clipped loss, with its sequence's advantage; 0 where the mask is False."""
    ratio = torch.exp(_logratio(logp, old_logp, advantages, mask))
    return torch.where(mask, _clipped(ratio, advantages.unsqueeze(1), lower, upper), 0.0)


def grpo(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_coef: float) -> Tensor:
    """GRPO: the mean over sequences of the mean over a sequence's tokens of the clipped loss.

    A token of a long answer weighs less than one of a short answer: 1 / (batch * |o_i|).

    Args: the module's contract; ``clip_coef``, the half-width eps of the interval.
    Returns: a scalar.
    Raises: ValueError for shapes, TypeError for dtypes that do not fit together.
    Source: Shao et al. 2024, "DeepSeekMath", arXiv 2402.03300, equation 3.
    """
    tokens = _tokens(logp, old_logp, advantages, mask, 1 - clip_coef, 1 + clip_coef)
    return (tokens.sum(1) / mask.sum(1).clamp(min=1)).mean()


def dr_grpo(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_coef: float) -> Tensor:
    """Dr. GRPO: the sum of the clipped loss over all tokens, divided by batch times a fixed length.

    The fixed length is the width of the batch, the budget of tokens, whatever was used of it. Every token weighs the
    same, in every batch.

    Args, Returns, Raises: as ``grpo``.
    Source: Liu et al. 2025, "Understanding R1-Zero-Like Training", arXiv 2503.20783.
    """
    return _tokens(logp, old_logp, advantages, mask, 1 - clip_coef, 1 + clip_coef).sum() / mask.numel()


def dapo(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_coef: float) -> Tensor:
    """DAPO: the mean of the clipped loss over all tokens of the batch, with the higher upper bound of ``clip_higher``.

    Every token of a batch weighs the same, 1 / sum_i |o_i|; in a batch of longer answers, less.

    Args, Returns, Raises: as ``grpo``.
    Source: Yu et al. 2025, "DAPO", arXiv 2503.14476, equation 8.
    """
    tokens = _tokens(logp, old_logp, advantages, mask, 1 - clip_coef, 1 + clip_coef + CLIP_HIGHER)
    return tokens.sum() / mask.sum().clamp(min=1)


def gspo(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_coef: float) -> Tensor:
    """GSPO: the clipped loss of whole sequences, whose ratio is the geometric mean of their tokens' ratios.

    ``s_i = exp(sum_t logratio_it / |o_i|)``; a sequence is clipped as a whole, and all its tokens get one weight.

    Args, Returns, Raises: as ``grpo``.
    Source: Zheng et al. 2025, "Group Sequence Policy Optimization", arXiv 2507.18071, equations 5 and 7.
    """
    logratio = _logratio(logp, old_logp, advantages, mask)
    ratio = torch.exp(logratio.sum(1) / mask.sum(1).clamp(min=1))
    return _clipped(ratio, advantages, 1 - clip_coef, 1 + clip_coef).mean()


SEQUENCE_LOSSES: dict[str, Loss] = {"grpo": grpo, "dr_grpo": dr_grpo, "dapo": dapo, "gspo": gspo}
"""Every sequence loss, by the name that ``rlloss check NAME`` selects."""
