"""Losses as people write them, to be held against the zoo: `rlloss check ppo_clip tests/examples/my_losses.py:NAME`."""

import torch


def group_update(logp, old_logp, advantages, *, clip_coef):
    """The mean of a clipped loss, returned with metrics, the ratio from a difference of logs."""
    logratio = logp - old_logp
    ratio = logratio.exp()
    clipped = torch.clamp(ratio, 1 - clip_coef, 1 + clip_coef)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
    return loss, {"kl": -logratio.mean().item()}


def detached_ratio(logp, old_logp, advantages, *, clip_coef):
    """PPO with its ratio detached, as is proposed time and again: nothing is left to train."""
    ratio = torch.exp(logp - old_logp).detach()
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantages)


def sign_forgotten(logp, old_logp, advantages, *, clip_coef):
    """The objective that is to be maximised, minimised."""
    ratio = torch.exp(logp - old_logp)
    return torch.min(ratio * advantages, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantages)


def summed(logp, old_logp, advantages, *, clip_coef):
    """A sum where the others average."""
    return group_update(logp, old_logp, advantages, clip_coef=clip_coef)[0] * len(logp)


def minimum_of_ratios(logp, old_logp, advantages, *, clip_coef):
    """The smaller ratio, not the smaller product: for A < 0 the clip is on the wrong side."""
    ratio = torch.exp(logp - old_logp)
    return -torch.min(ratio, ratio.clamp(1 - clip_coef, 1 + clip_coef)) * advantages


def token_mean(logp, old_logp, advantages, mask, *, clip_coef):
    """A sequence loss: the mean of PPO's clipped loss over all tokens of the batch, as in DAPO, with PPO's bounds."""
    ratio = torch.exp(logp - old_logp)
    A = advantages.unsqueeze(1)
    tokens = -torch.min(ratio * A, ratio.clamp(1 - clip_coef, 1 + clip_coef) * A)
    return (tokens * mask).sum() / mask.sum()
