"""Losses on whole sequences of tokens, as language models are trained: GRPO and its relatives, without a KL term.

Contract: ``loss(logp, old_logp, advantages, mask, *, clip_coef) -> scalar``. ``logp``, ``old_logp`` are [batch, tokens]
of one floating dtype; ``advantages`` are [batch], one per sequence; ``mask`` is [batch, tokens], True where a
token counts. They return a scalar because how they average is what tells them apart. The Gymnasium loop has no
sequences: these are for ``rlloss check``.

Notation: as in ``rlloss.losses``; i counts sequences, t their tokens, |o_i| the tokens of sequence i that count.
"""

import torch
from torch import Tensor

from rlloss.losses.samples import CLIP_HIGHER, Loss, cispo_upper, truncated_is

TAU_POSITIVE = 1.0  # SAPO's temperature for A > 0
TAU_NEGATIVE = 1.05  # and for the others, whose gate closes a little sooner


def _check(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> None:
    """Raises: ValueError for shapes, TypeError for dtypes that do not fit together."""
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


def _logratio(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """logp - old_logp, 0 where the mask is False, after ``_check``."""
    _check(logp, old_logp, advantages, mask)
    return torch.where(mask, logp - old_logp, 0.0)


def _means(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean over each sequence's tokens, 0 for a sequence without any. ``tokens`` is 0 where the mask is False."""
    return tokens.sum(1) / mask.sum(1).clamp(min=1)


def _clipped(ratio: Tensor, advantages: Tensor, lower: float, upper: float) -> Tensor:
    """PPO's ``-min(ratio * A, clamp(ratio, lower, upper) * A)``."""
    return -torch.min(ratio * advantages, ratio.clamp(lower, upper) * advantages)


def _tokens(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, lower: float, upper: float) -> Tensor:
    """Each token's clipped loss, with its sequence's advantage; 0 where the mask is False."""
    ratio = torch.exp(_logratio(logp, old_logp, advantages, mask))
    return torch.where(mask, _clipped(ratio, advantages.unsqueeze(1), lower, upper), 0.0)


def _tokens_of(
    loss: Loss, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, clip_coef: float
) -> Tensor:
    """Each token's loss by a formula of ``rlloss.losses.samples``; 0 where the mask is False.

    The padding is replaced before it enters the formula: behind it, a gradient of 0 * inf would be NaN.
    """
    _check(logp, old_logp, advantages, mask)
    counted, old_counted = torch.where(mask, logp, 0.0), torch.where(mask, old_logp, 0.0)
    A = advantages.unsqueeze(1).expand_as(logp)
    return torch.where(mask, loss(counted, old_counted, A, clip_coef=clip_coef), 0.0)


def _token_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean over all tokens of the batch, 0 without any."""
    return tokens.sum() / mask.sum().clamp(min=1)


def grpo(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_coef: float) -> Tensor:
    """GRPO: the mean over sequences of the mean over a sequence's tokens of the clipped loss.

    A token of a long answer weighs less than one of a short answer: 1 / (batch * |o_i|).

    Args: the module's contract; ``clip_coef``, the half-width eps of the interval.
    Returns: a scalar.
    Raises: ValueError for shapes, TypeError for dtypes that do not fit together.
    Source: Shao et al. 2024, "DeepSeekMath", arXiv 2402.03300, equation 3.
    """
    tokens = _tokens(logp, old_logp, advantages, mask, 1 - clip_coef, 1 + clip_coef)
    return _means(tokens, mask).mean()


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
    return _token_mean(tokens, mask)


def gspo(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_coef: float) -> Tensor:
    """GSPO: the clipped loss of whole sequences, whose ratio is the geometric mean of their tokens' ratios.

    ``s_i = exp(sum_t logratio_it / |o_i|)``; a sequence is clipped as a whole, and all its tokens get one weight.

    Args, Returns, Raises: as ``grpo``.
    Source: Zheng et al. 2025, "Group Sequence Policy Optimization", arXiv 2507.18071, equations 5 and 7.
    """
    logratio = _logratio(logp, old_logp, advantages, mask)
    ratio = torch.exp(_means(logratio, mask))
    return _clipped(ratio, advantages, 1 - clip_coef, 1 + clip_coef).mean()


def token_mean(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_coef: float) -> Tensor:
    """PPO's clipped loss, averaged over all tokens of the batch: ``sum_it loss_it / sum_i |o_i|``.

    ``dapo`` with one eps for both bounds. Not ``dr_grpo``, whose divisor is fixed.

    Args, Returns, Raises: as ``grpo``.
    Source: verl's default ``loss_agg_mode``, token-mean; TRL's ``loss_type`` bnpo.
    """
    return _token_mean(_tokens(logp, old_logp, advantages, mask, 1 - clip_coef, 1 + clip_coef), mask)


def seq_mean_token_sum(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_coef: float) -> Tensor:
    """The mean over sequences of the sum over a sequence's tokens of the clipped loss.

    A sequence's gradient is |o_i| times that of ``grpo``; the whole is ``dr_grpo`` times the width of the batch.
    A sequence without a token counts in the divisor; newer versions of verl leave it out.

    Args, Returns, Raises: as ``grpo``.
    Source: verl's ``loss_agg_mode`` seq-mean-token-sum.
    """
    return _tokens(logp, old_logp, advantages, mask, 1 - clip_coef, 1 + clip_coef).sum(1).mean()


def gspo_token(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_coef: float) -> Tensor:
    """GSPO-token: the ratio of the sequence as a number, and the gradient through each token on its own.

    ``s_it = sg(s_i) * exp(logp_it - sg(logp_it))``, s_i as in ``gspo``, averaged as in ``grpo``. Made for advantages
    that differ within a sequence. With one per sequence, as here, value and gradient are those of ``gspo`` up to
    rounding, and the detached ratio does no harm: the slope of the value is the gradient.

    Args, Returns, Raises: as ``grpo``.
    Source: Zheng et al. 2025, arXiv 2507.18071, equations 13 and 14; what verl's ``loss_mode`` gspo computes, and TRL's
        ``importance_sampling_level`` sequence_token.
    """
    logratio = _logratio(logp, old_logp, advantages, mask)
    ratio = torch.exp(_means(logratio, mask)).detach()
    counted = torch.where(mask, logp, 0.0)
    token_ratio = ratio.unsqueeze(1) * torch.exp(counted - counted.detach())
    tokens = _clipped(token_ratio, advantages.unsqueeze(1), 1 - clip_coef, 1 + clip_coef)
    return _means(torch.where(mask, tokens, 0.0), mask).mean()


def gmpo(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_coef: float) -> Tensor:
    """GMPO: ``-(g_i * A)``, g_i the geometric mean of a sequence's token ratios, each clipped before.

    ``g_i = exp(sum_t c_it / |o_i|)`` with c = min(logratio, eps) for A > 0 and max(logratio, -eps) otherwise: the
    paper's minimum of signed powers, whose log takes the sign out. ``clip_coef`` is the half-width of the log-ratio, so
    the ratio's interval is [e^-eps, e^eps]: the paper trains with 0.4. Unlike ``gspo``, a token is clipped alone.

    Args, Returns, Raises: as ``grpo``.
    Source: Zhao et al. 2025, "Geometric-Mean Policy Optimization", arXiv 2507.20673, equation 4; verl's ``loss_mode``
        geo_mean.
    """
    logratio = _logratio(logp, old_logp, advantages, mask)
    upwards = advantages.unsqueeze(1) > 0
    clipped = torch.where(upwards, logratio.clamp(max=clip_coef), logratio.clamp(min=-clip_coef))
    ratio = torch.exp(_means(clipped, mask))
    return torch.where(mask.any(1), -(ratio * advantages), 0.0).mean()


def _gate(ratio: Tensor, tau: float) -> Tensor:
    """SAPO's ``sigmoid(tau * (ratio - 1)) * (4 / tau)``, whose slope at ratio 1 is 1 for every tau."""
    return torch.sigmoid(tau * (ratio - 1)) * (4 / tau)


def sapo(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_coef: float) -> Tensor:
    """SAPO: ``-(f(ratio) * A)`` with a soft gate in place of the clip, averaged as in ``grpo``. Ignores ``clip_coef``.

    ``f(r) = sigmoid(tau * (r - 1)) * (4 / tau)``, tau = ``TAU_POSITIVE`` for A > 0, else ``TAU_NEGATIVE``. Gradient:
    ``-A * f'(ratio) * ratio``; f' is 1 at ratio 1 and fades on both sides, for both signs of A, and nothing is cut.
    On-policy it is that of ``grpo``, though the value is 2 / tau times as large.

    Args, Returns, Raises: as ``grpo``.
    Source: Gao et al. 2025, "Soft Adaptive Policy Optimization", arXiv 2511.20347, equations 5 and 6; TRL's
        ``loss_type`` sapo, with its default temperatures, which are the paper's.
    """
    ratio = torch.exp(_logratio(logp, old_logp, advantages, mask))
    A = advantages.unsqueeze(1)
    gated = torch.where(A > 0, _gate(ratio, TAU_POSITIVE), _gate(ratio, TAU_NEGATIVE))
    return _means(torch.where(mask, -(gated * A), 0.0), mask).mean()


def cispo_upper_tokens(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_coef: float) -> Tensor:
    """CISPO on sequences: ``cispo_upper``, ``-((sg(min(ratio, 1 + eps)) * logp) * A)``, averaged over all tokens.

    The weight is clipped, no token falls silent; ``token_mean`` cuts. Not a true loss.

    Args, Returns, Raises: as ``grpo``.
    Source: MiniMax 2025, "MiniMax-M1", arXiv 2506.13585, equations 4 and 5, without a lower bound as they trained it;
        TRL's ``loss_type`` cispo, whose ``epsilon_high`` is the cap itself, here 1 + ``clip_coef``.
    """
    return _token_mean(_tokens_of(cispo_upper, logp, old_logp, advantages, mask, clip_coef), mask)


def truncated_is_tokens(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_coef: float
) -> Tensor:
    """``truncated_is``, ``-((sg(min(ratio, c)) * logp) * A)`` with c = ``TRUNCATION``, averaged over all tokens.

    ``cispo_upper_tokens`` with a cap that no eps moves: a correction of what the sampler did, not a trust region.
    Ignores ``clip_coef``. Not a true loss.

    Args, Returns, Raises: as ``grpo``.
    Source: verl's rollout correction, ``rollout_is`` token with ``loss_type`` reinforce, whose default cap is 2.
    """
    return _token_mean(_tokens_of(truncated_is, logp, old_logp, advantages, mask, clip_coef), mask)


def rloo(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_coef: float) -> Tensor:
    """RLOO: REINFORCE on whole sequences, ``-(A * sum_t logp_t)``, averaged over sequences.

    What gives it its name is in the advantages, which come from outside: a sequence's reward less the mean of the other
    rewards of its group. Ignores ``old_logp`` and ``clip_coef``: this is the paper's estimator, for one update a batch.
    TRL's RLOOTrainer clips the ratio of whole sequences, exp(sum_t logratio_t), and so agrees with it on-policy alone,
    as does ``seq_mean_token_sum``.

    Args, Returns, Raises: as ``grpo``.
    Source: Ahmadian et al. 2024, "Back to Basics", arXiv 2402.14740; Kool et al. 2019 for the baseline.
    """
    _check(logp, old_logp, advantages, mask)
    return -(advantages * torch.where(mask, logp, 0.0).sum(1)).mean()


SEQUENCE_LOSSES: dict[str, Loss] = {
    loss.__name__: loss
    for loss in (
        grpo, dr_grpo, dapo, gspo, token_mean, seq_mean_token_sum, gspo_token, gmpo, sapo, cispo_upper_tokens,
        truncated_is_tokens, rloo,
    )
}  # fmt: skip
"""Every sequence loss, by the name that ``rlloss check NAME`` selects."""
