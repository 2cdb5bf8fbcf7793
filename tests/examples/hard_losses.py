"""Losses that a proof finds hard: operations beyond arithmetic, and what no graph holds."""

import torch


def _ppo(ratio, A, eps):
    return -torch.min(ratio * A, ratio.clamp(1 - eps, 1 + eps) * A)


def strict_above(logp, old_logp, advantages, *, clip_coef):
    """The clip sets in at the upper bound itself."""
    ratio = torch.exp(logp - old_logp)
    cut = ((advantages > 0) & (ratio >= 1 + clip_coef)) | ((advantages < 0) & (ratio < 1 - clip_coef))
    return -(torch.where(cut, 0.0, ratio) * advantages)


# ----------------------------------------------------------------------------------------- what no graph holds


def numpy(logp, old_logp, advantages, *, clip_coef):
    """A weight by way of NumPy; torch's own exp, since NumPy's rounds otherwise on some processors."""
    weight = torch.from_numpy(torch.exp(logp - old_logp).detach().numpy().copy())
    return -((weight * logp) * advantages)


def python_if(logp, old_logp, advantages, *, clip_coef):
    if (logp - old_logp).abs().max() > 3:
        return -logp * advantages
    return _ppo(torch.exp(logp - old_logp), advantages, clip_coef)


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, eps):
        return x.clamp(1 - eps, 1 + eps)

    @staticmethod
    def backward(ctx, up):
        return up, None


def own_function(logp, old_logp, advantages, *, clip_coef):
    """A clamp with a straight-through gradient."""
    return -_Straight.apply(torch.exp(logp - old_logp), clip_coef) * advantages


def median(logp, old_logp, advantages, *, clip_coef):
    return _ppo(torch.exp(logp - old_logp), advantages - advantages.median(), clip_coef)


def ranked(logp, old_logp, advantages, *, clip_coef):
    return _ppo(torch.exp(logp - old_logp), advantages.sort().values, clip_coef)


# -------------------------------------------------------------------- operations that are followed, in two spellings


def _grouped(normalise):
    def loss(logp, old_logp, advantages, *, clip_coef):
        return _ppo(torch.exp(logp - old_logp), normalise(advantages), clip_coef)

    return loss


def _variance(x):
    return ((x - x.mean()) ** 2).sum() / max(len(x) - 1, 1)


def _on_tokens(weigh):
    def loss(logp, old_logp, advantages, mask, *, clip_coef):
        ratio = torch.where(mask, logp - old_logp, 0.0).exp()
        token = torch.where(mask, _ppo(ratio, advantages.unsqueeze(1), clip_coef), 0.0)
        return weigh(token, mask, ratio)

    return loss


def _last(token, mask, ratio):
    last = (mask.sum(1) - 1).clamp(min=0)
    return token.gather(1, last.unsqueeze(1)).mean()


def _last_by_index(token, mask, ratio):
    last = (mask.sum(1) - 1).clamp(min=0)
    return torch.stack([token[i, last[i]] for i in range(len(token))]).mean()


def _first(token, mask, ratio):
    return token[:, 0].mean()


def _prefix(token, mask, ratio):
    return token.cumsum(1).sum() / mask.sum().clamp(min=1)


def _prefix_by_weights(token, mask, ratio):
    width = token.shape[1]
    return (token * torch.arange(width, 0, -1, dtype=token.dtype)).sum() / mask.sum().clamp(min=1)


def _summed(token, mask, ratio):
    return token.sum() / mask.sum().clamp(min=1)


def _product(token, mask, ratio):
    return (ratio.prod(1) * token.sum(1).detach()).mean()


def _product_by_log(token, mask, ratio):
    return (torch.exp(ratio.log().sum(1)) * token.sum(1).detach()).mean()


def _product_of_two(token, mask, ratio):
    return (ratio[:, 0] * token.sum(1).detach()).mean()


def _attended(token, mask, ratio):
    return (torch.softmax(ratio.detach(), 1) * token).sum(1).mean()


def _attended_by_exp(token, mask, ratio):
    e = ratio.detach().exp()
    return ((e / e.sum(1, keepdim=True)) * token).sum(1).mean()


def _attended_to_all(token, mask, ratio):
    return token.mean(1).mean()


def _measured(logp, old_logp, advantages, *, clip_coef):
    ratio = torch.exp(logp - old_logp)
    metrics = {"kl": (old_logp - logp).mean().item(), "finite": bool(torch.isfinite(ratio).all())}
    return _ppo(ratio, advantages, clip_coef), metrics


def _assigned(logp, old_logp, advantages, *, clip_coef):
    """Numbers assigned in place, at places that the data decides and at all; their gradient is 0 either way."""
    ratio = torch.exp(logp - old_logp).clone()
    ratio[advantages == 0] = 1.0
    objective = torch.min(ratio * advantages, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantages)
    objective *= -1
    return objective


def _cast(logp, old_logp, advantages, *, clip_coef):
    return _ppo((logp.float() - old_logp.float()).exp().double(), advantages, clip_coef)


def _weighted_by_item(logp, old_logp, advantages, *, clip_coef):
    ratio = torch.exp(logp - old_logp)
    return _ppo(ratio, advantages * ratio.detach().mean().item(), clip_coef)


def _weighted(logp, old_logp, advantages, *, clip_coef):
    ratio = torch.exp(logp - old_logp)
    return _ppo(ratio, advantages * ratio.detach().mean(), clip_coef)


def _halved(logp, old_logp, advantages, *, clip_coef):
    return 0.5 * _ppo(torch.exp(logp - old_logp), advantages, clip_coef)


FOLLOWED = {
    "std": (_grouped(lambda x: x / (x.std() + 1)), _grouped(lambda x: x / (_variance(x).sqrt() + 1))),
    "var": (_grouped(lambda x: x * (x.var() + 1)), _grouped(lambda x: x * (_variance(x) + 1))),
    "gather": (_on_tokens(_last), _on_tokens(_last_by_index)),
    "cumsum": (_on_tokens(_prefix), _on_tokens(_prefix_by_weights)),
    "prod": (_on_tokens(_product), _on_tokens(_product_by_log)),
    "softmax": (_on_tokens(_attended), _on_tokens(_attended_by_exp)),
    "item": (_weighted, _weighted_by_item),
    "metrics": ("ppo_clip", _measured),
    "cast": ("ppo_clip", _cast),
    "assignment": ("ppo_clip", _assigned),
}
"""Pairs that are one loss in two spellings, by the operation that the first one uses."""

WRONG = {
    "std": _grouped(lambda x: x / (x.std() + 1.001)),
    "var": _grouped(lambda x: x * (x.var(unbiased=False) + 1)),
    "gather": _on_tokens(_first),
    "cumsum": _on_tokens(_summed),
    "prod": _on_tokens(_product_of_two),
    "softmax": _on_tokens(_attended_to_all),
    "item": _halved,
    "metrics": _halved,
    "cast": _halved,
    "assignment": _halved,
}
"""A third that is another."""
