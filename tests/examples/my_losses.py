"""Losses as people write them, to be held against the zoo: `rlloss check ppo_clip tests/examples/my_losses.py:NAME`."""

from functools import partial

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


def _ppo(ratio, A, eps):
    return -torch.min(ratio * A, ratio.clamp(1 - eps, 1 + eps) * A)


def old_first(old_log_prob, log_prob, advantages, *, clip_coef):
    """A trainer's names, in its order."""
    return _ppo((log_prob - old_log_prob).exp(), advantages, clip_coef)


def without_clip_coef(logp, old_logp, advantages):
    """There is nothing to clip."""
    return -(logp - old_logp).exp() * advantages


def positions_alone(x, y, z):
    """Names that say nothing: the places decide."""
    return _ppo((x - y).exp(), z, 0.2)


def positional_only(adv, logp_old, logp, clip_ratio=0.1, /):
    return _ppo((logp - logp_old).exp(), adv, clip_ratio)


def keywords_only(*, epsilon_low, epsilon_high, adv, old_logps, logps):
    ratio = (logps - old_logps).exp()
    return -torch.min(ratio * adv, ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * adv)


def scaled(scale, logp, old_logp, advantages, clip_coef):
    return _ppo((logp - old_logp).exp(), scale * advantages, clip_coef)


partial_loss = partial(scaled, 1.0)


class Trainer:
    name = "trainer"

    def loss(self, old_logp, logp, advantages, *, clip_coef):
        return _ppo((logp - old_logp).exp(), advantages, clip_coef)

    @staticmethod
    def static_loss(logp, old_logp, advantages, *, clip_coef):
        return _ppo((logp - old_logp).exp(), advantages, clip_coef)

    @classmethod
    def class_loss(cls, logp, old_logp, advantages, *, clip_coef):
        return cls.static_loss(logp, old_logp, advantages, clip_coef=clip_coef)

    @property
    def broken(self):
        return {}["gone"]


trainer = Trainer()


class PolicyLoss(torch.nn.Module):
    """A loss as a module, its parameters those of ``forward``."""

    def forward(self, old_log_probs, log_probs, advantages, clip_eps=0.1):
        return _ppo((log_probs - old_log_probs).exp(), advantages, clip_eps)


policy_loss = PolicyLoss()


def trainer_names(old_log_prob, log_prob, advantages, response_mask, *, clip_coef=0.1):
    """`token_mean` with the names and the order that a trainer uses; advantages per token or per sequence."""
    A = advantages if advantages.ndim == 2 else advantages.unsqueeze(1)
    token = _ppo((log_prob - old_log_prob).exp(), A, clip_coef)
    return (token * response_mask).sum() / response_mask.sum()


def one_minus_mask(logp, old_logp, advantages, mask, *, clip_coef):
    """A float mask: torch subtracts no booleans."""
    token = _ppo((logp - old_logp).exp(), advantages.unsqueeze(1), clip_coef)
    return (token - token * (1 - mask)).sum() / mask.sum()


def integer_mask(logp, old_logp, advantages, mask, *, clip_coef):
    """A mask that is also used to look something up, and one from which 1 is subtracted."""
    weights = torch.tensor([0, 1], dtype=logp.dtype)[1 + (mask - 1)]
    return (_ppo((logp - old_logp).exp(), advantages.unsqueeze(1), clip_coef) * weights).sum() / mask.sum()


def column_of_advantages(logp, old_logp, advantages, mask, *, clip_coef):
    """One advantage a sequence, in a column, which broadcasts."""
    token = _ppo((logp - old_logp).exp(), advantages, clip_coef)
    return (token * mask).sum() / mask.sum()


def advantages_per_token(log_probs, old_log_probs, advantages, loss_mask, clip_eps):
    """Tokens picked out of tensors of one shape, and a mask that is a number."""
    picked = loss_mask > 0
    token = _ppo((log_probs - old_log_probs)[picked].exp(), advantages[picked], clip_eps)
    return token.sum() / (loss_mask.numel() - (1 - loss_mask).sum())


def in_float32(logp, old_logp, advantages, mask, *, clip_coef):
    """Computed in float32 whatever comes, so that a trial in float64 tells nothing."""
    return token_mean(logp.float(), old_logp.float(), advantages.float(), mask, clip_coef=clip_coef)
