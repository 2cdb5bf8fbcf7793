"""Losses as their users had them when a comparison misjudged them. Each stands for a kind; test_cases.py says which."""

import math

import torch


def _surrogate(ratio, A, low, high):
    return -torch.minimum(ratio * A, ratio.clamp(low, high) * A)


def _logratio(logp, old_logp, mask):
    return torch.where(mask, logp - old_logp, 0.0)


def _over_all(token, mask):
    return torch.where(mask, token, 0.0).sum() / mask.sum().clamp(min=1)


def plain(logp, old_logp, advantages, mask, *, clip_coef):
    ratio = _logratio(logp, old_logp, mask).exp()
    return _over_all(_surrogate(ratio, advantages[:, None], 1 - clip_coef, 1 + clip_coef), mask)


def log_ratio_within(bound):
    def loss(logp, old_logp, advantages, mask, *, clip_coef):
        ratio = _logratio(logp, old_logp, mask).clamp(-bound, bound).exp()
        return _over_all(_surrogate(ratio, advantages[:, None], 1 - clip_coef, 1 + clip_coef), mask)

    return loss


def without_rare(logp, old_logp, advantages, mask, *, clip_coef):
    ratio = _logratio(logp, old_logp, mask).exp()
    token = _surrogate(ratio, advantages[:, None], 1 - clip_coef, 1 + clip_coef)
    return _over_all(torch.where(logp.detach() > -9, token, 0.0), mask)


def mask_as_factor(logp, old_logp, advantages, mask, *, clip_coef):
    token = _surrogate((logp - old_logp).exp(), advantages[:, None], 1 - clip_coef, 1 + clip_coef)
    return (token * mask).sum() / mask.sum().clamp(min=1)


def upper_bound(high):
    def loss(logp, old_logp, advantages, mask, *, clip_coef):
        return _over_all(_surrogate(_logratio(logp, old_logp, mask).exp(), advantages[:, None], 0.8, high), mask)

    return loss


def gspo_wider(logp, old_logp, advantages, mask, *, clip_coef):
    s = (_logratio(logp, old_logp, mask).sum(1) / mask.sum(1).clamp(min=1)).exp()
    return _surrogate(s, advantages, 1 - clip_coef, 1.01 * (1 + clip_coef)).mean()


def micro_batches(logp, old_logp, advantages, mask, *, clip_coef):
    """Two parts, each a mean over its tokens, weighted by a quotient of two counts: a float32, whatever the dtype."""
    half, total = max(1, len(logp) // 2), 0.0
    for part in (slice(0, half), slice(half, None)):
        if len(logp[part]):
            share = mask[part].sum() / mask.sum().clamp(min=1)
            total = total + share * plain(logp[part], old_logp[part], advantages[part], mask[part], clip_coef=clip_coef)
    return total


def normalised_inside(logp, old_logp, rewards, mask, *, clip_coef):
    A = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    ratio = _logratio(logp, old_logp, mask).exp()
    token = torch.where(mask, _surrogate(ratio, A[:, None], 1 - clip_coef, 1 + clip_coef), 0.0)
    return (token.sum(1) / mask.sum(1).clamp(min=1)).mean()


def summed_per_answer(logp, old_logp, advantages, mask, *, clip_coef):
    ratio = _logratio(logp, old_logp, mask).exp()
    token = torch.where(mask, _surrogate(ratio, advantages[:, None], 1 - clip_coef, 1 + clip_coef), 0.0)
    return token.sum(1).mean()


def other_names(old_log_prob, log_prob, advantages, response_mask, *, clip_coef=0.2):
    A = advantages if advantages.ndim == 2 else advantages[:, None]
    token = _surrogate((log_prob - old_log_prob).exp(), A, 1 - clip_coef, 1 + clip_coef)
    return (token * response_mask).sum() / response_mask.sum()


def first_tokens(most):
    def loss(logp, old_logp, advantages, mask, *, clip_coef):
        return plain(logp[:, :most], old_logp[:, :most], advantages, mask[:, :most], clip_coef=clip_coef)

    return loss


def length_by_count(logp, old_logp, advantages, mask, *, clip_coef):
    """Takes a mask for a length: wrong where it has holes or starts late."""
    filled = torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True)
    return plain(logp, old_logp, advantages, filled, clip_coef=clip_coef)


def without_equal_groups(logp, old_logp, advantages, mask, *, clip_coef):
    """Answers with an advantage of 0 do not count, in the denominator either."""
    return plain(logp, old_logp, advantages, mask & (advantages != 0)[:, None], clip_coef=clip_coef)


def floored(logp, old_logp, advantages, *, clip_coef):
    """A small number beside both probabilities."""
    return _surrogate((logp.exp() + 1e-8) / (old_logp.exp() + 1e-8), advantages, 1 - clip_coef, 1 + clip_coef)


# -------------------------------------------------------------------------------------------------- of samples


def frequent_only(logp, old_logp, advantages, *, clip_coef):
    keep = torch.where(logp.detach() < -3.0, 0.0, 1.0).to(logp.dtype)
    return keep * _surrogate((logp - old_logp).exp(), advantages, 1 - clip_coef, 1 + clip_coef)


def upcast(logp, old_logp, advantages, *, clip_coef):
    ratio = (logp.float() - old_logp.float()).exp()
    return _surrogate(ratio, advantages.float(), 1 - clip_coef, 1 + clip_coef)


def soft_gate(scaled):
    def loss(logp, old_logp, advantages, *, clip_coef):
        tau = torch.where(advantages > 0, 1.0, 1.05).to(advantages.dtype)
        gate = torch.sigmoid(tau * ((logp - old_logp).exp() - 1))
        return -(gate * 4 / tau if scaled else gate) * advantages

    return loss


def less_the_mean(logp, old_logp, rewards):
    return -(rewards - rewards.mean()) * logp


def leave_one_out(logp, old_logp, rewards):
    return -(rewards - (rewards.sum() - rewards) / max(len(rewards) - 1, 1)) * logp


class Trainer:
    def method(self, logp, old_logp, advantages, *, clip_coef):
        return _surrogate((logp - old_logp).exp(), advantages, 1 - clip_coef, 1 + clip_coef)

    @staticmethod
    def static(logp, old_logp, advantages, *, clip_coef):
        return _surrogate((logp - old_logp).exp(), advantages, 1 - clip_coef, 1 + clip_coef)


def filled(logp, old_logp, advantages, mask, *, clip_coef):
    """What does not count is filled as a mask of logits is."""
    ratio = torch.exp(logp.masked_fill(~mask, -1e9) - old_logp.masked_fill(~mask, -1e9))
    return _over_all(_surrogate(ratio, advantages[:, None], 1 - clip_coef, 1 + clip_coef), mask)


def of_tokens(logp, old_logp, advantages, mask, *, clip_coef):
    """With an advantage of each token, as GAE's."""
    assert advantages.shape == logp.shape
    ratio = torch.exp(logp - old_logp)
    return _over_all(_surrogate(ratio, advantages, 1 - clip_coef, 1 + clip_coef), mask)


def of_last_tokens(logp, old_logp, advantages, mask, *, clip_coef):
    """Every token with the advantage of its answer's last place."""
    assert advantages.shape == logp.shape
    return of_tokens(logp, old_logp, advantages[:, -1:].expand_as(logp), mask, clip_coef=clip_coef)


def of_tokens_differently(logp, old_logp, advantages, mask, *, clip_coef):
    """``of_tokens``, written otherwise."""
    assert advantages.shape == logp.shape
    ratio, within = torch.exp(logp - old_logp), torch.exp(logp - old_logp).clamp(1 - clip_coef, 1 + clip_coef)
    return _over_all(torch.max(-advantages * ratio, -advantages * within), mask)


def outer(logp, old_logp, advantages, *, clip_coef):
    """[N] and [N, 1] are [N, N] together."""
    return -(torch.exp(logp - old_logp)[:, None] * advantages).mean()


def by_where(logp, old_logp, advantages, *, clip_coef):
    ratio = torch.exp(logp - old_logp)
    one, other = ratio * advantages, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantages
    return -torch.where(one < other, one, other)


def by_hand(logp, old_logp, advantages, *, clip_coef):
    """Normalised advantages, without torch's deviation."""
    centred = advantages - advantages.mean()
    deviation = torch.sqrt((centred * centred).sum() / (len(advantages) - 1))
    ratio, A = torch.exp(logp - old_logp), centred / (deviation + 1e-8)
    return -torch.min(ratio * A, ratio.clamp(1 - clip_coef, 1 + clip_coef) * A)


def by_torch(logp, old_logp, advantages, *, clip_coef):
    ratio, A = torch.exp(logp - old_logp), (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return -torch.min(ratio * A, ratio.clamp(1 - clip_coef, 1 + clip_coef) * A)


def per_answer(logp, old_logp, advantages, mask, *, clip_coef):
    """Of an empty answer 0 / 0."""
    ratio = torch.exp((logp - old_logp) * mask)
    token = _surrogate(ratio, advantages[:, None], 1 - clip_coef, 1 + clip_coef)
    return ((token * mask).sum(1) / mask.sum(1)).mean()


def in_chunks(logp, old_logp, advantages, *, clip_coef):
    losses = _surrogate(torch.exp(logp - old_logp), advantages, 1 - clip_coef, 1 + clip_coef)
    return torch.stack([chunk.mean() for chunk in losses.split(16_384)]).mean()


# ------------------------------------------------------------------------------- one gradient, written otherwise


def gspo_of_logs(logp, old_logp, advantages, mask, *, clip_coef):
    s = (_logratio(logp, old_logp, mask).sum(1) / mask.sum(1).clamp(min=1)).exp()
    return _surrogate(s, advantages, 1 - clip_coef, 1 + clip_coef).mean()


def gspo_of_products(power):
    """The geometric mean as the root of a product; another power of it is another loss."""

    def loss(logp, old_logp, advantages, mask, *, clip_coef):
        ratio = torch.where(mask, (logp - old_logp).exp(), 1.0)
        s = ratio.prod(1) ** (power / mask.sum(1).clamp(min=1))
        return _surrogate(s, advantages, 1 - clip_coef, 1 + clip_coef).mean()

    return loss


def ratio_in_single(high):
    """The ratio alone is made in float32, and the rest in the inputs' dtype."""

    def loss(logp, old_logp, advantages, *, clip_coef):
        ratio = (logp - old_logp).float().exp()
        return _surrogate(ratio, advantages, 1 - clip_coef, high + clip_coef)

    return loss


def logistic(logp, old_logp, advantages, *, clip_coef):
    return -torch.nn.functional.logsigmoid((logp - old_logp) * advantages)


def log_of_logistic(logp, old_logp, advantages, *, clip_coef):
    """What is nearly 1 has no digits left of how nearly."""
    return -torch.sigmoid((logp - old_logp) * advantages).log()


def baseline_of_others(logp, old_logp, rewards):
    """Leave-one-out: of one sample nan, since there are no others."""
    return -(rewards - (rewards.sum() - rewards) / (len(rewards) - 1)) * logp


def baseline_of_all(scaled):
    """The mean of all, scaled so that it is the same; it is not, unscaled."""

    def loss(logp, old_logp, rewards):
        factor = torch.tensor(len(rewards), dtype=rewards.dtype) / (len(rewards) - 1) if scaled else 1
        return -(rewards - rewards.mean()) * factor * logp

    return loss


def in_groups(by_view):
    """Rewards normalised among four answers, as group-relative losses are written: of other batches an error."""

    def loss(logp, old_logp, rewards, mask, *, clip_coef):
        groups = rewards.view(-1, 4)
        if by_view:
            A = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).view(-1)
        else:
            mean, std = groups.mean(1).repeat_interleave(4), groups.std(1).repeat_interleave(4)
            A = (rewards - mean) / (std + 1e-4)
        return plain(logp, old_logp, A, mask, clip_coef=clip_coef)

    return loss


def weighted(cap):
    """Advantage-weighted: of an advantage of 100 it is infinite, which no batch of a training has."""

    def loss(logp, old_logp, advantages, *, clip_coef):
        weight = torch.exp(advantages / 0.1)
        return -(weight if cap is None else weight.clamp(max=cap)) * logp

    return loss


def in_place(logp, old_logp, advantages, *, clip_coef):
    logp -= old_logp
    ratio = logp.exp_()
    return _surrogate(ratio, advantages, 1 - clip_coef, 1 + clip_coef)


def talkative(logp, old_logp, advantages, *, clip_coef):
    print("approximate KL", float((old_logp - logp).mean()))
    return _surrogate((logp - old_logp).exp(), advantages, 1 - clip_coef, 1 + clip_coef)


def surrogate_beyond(ratio):
    """A true loss up to this ratio, and beyond it one of log pi with a detached weight."""

    def loss(logp, old_logp, advantages, *, clip_coef):
        r = (logp - old_logp).exp()
        r = torch.where(r.detach() > ratio, r.detach() * logp, r)
        return _surrogate(r, advantages, 1 - clip_coef, 1 + clip_coef)

    return loss


def from_size_on(size, factor):
    """Another weight from so many samples on."""

    def loss(logp, old_logp, advantages, *, clip_coef):
        weight = factor if len(logp) >= size else 1.0
        return weight * _surrogate((logp - old_logp).exp(), advantages, 1 - clip_coef, 1 + clip_coef)

    return loss


def from_a_million_on(logp, old_logp, advantages, *, clip_coef):
    weight = 2.0 if len(logp) >= 10**6 else 1.0
    return weight * _surrogate((logp - old_logp).exp(), advantages, 1 - clip_coef, 1 + clip_coef)


def longer_than(most, factor):
    """Another weight for answers of more tokens."""

    def loss(logp, old_logp, advantages, mask, *, clip_coef):
        total = plain(logp, old_logp, advantages, mask, clip_coef=clip_coef)
        return total * factor if logp.shape[1] > most else total

    return loss


def from_size_on_in_floats(logp, old_logp, advantages, *, clip_coef):
    weight = 2.0 if logp.numel() > 1e5 else 1.0
    return weight * _surrogate((logp - old_logp).exp(), advantages, 1 - clip_coef, 1 + clip_coef)


def otherwise_in_halves(logp, old_logp, advantages, *, clip_coef):
    weight = 2.0 if logp.dtype == torch.float16 else 1.0
    return weight * _surrogate((logp - old_logp).exp(), advantages, 1 - clip_coef, 1 + clip_coef)


def in_groups_of(size):
    def loss(logp, old_logp, rewards, mask, *, clip_coef):
        groups = rewards.view(-1, size)
        return plain(logp, old_logp, (groups - groups.mean(1, keepdim=True)).view(-1), mask, clip_coef=clip_coef)

    return loss


def among_all_of_groups_of(size):
    """Batches of such groups alone are taken, and then their mean is that of the whole batch."""

    def loss(logp, old_logp, rewards, mask, *, clip_coef):
        assert len(rewards) % size == 0, f"no multiple of {size}"
        return plain(logp, old_logp, rewards - rewards.mean(), mask, clip_coef=clip_coef)

    return loss


def leave_one_out_of_four(logp, old_logp, rewards, mask, *, clip_coef):
    groups = rewards.view(-1, 4)
    others = (groups.sum(1, keepdim=True) - groups) / 3
    return -_over_all((logp - old_logp).exp() * (groups - others).view(-1)[:, None], mask)


def centred_of_four(logp, old_logp, rewards, mask, *, clip_coef):
    groups = rewards.view(-1, 4)
    return -_over_all((logp - old_logp).exp() * (groups - groups.mean(1, keepdim=True)).view(-1)[:, None], mask)


def medians_of_four(keeps_equal):
    """Less the median, which bfloat16 does not have; a group of equal rewards may keep its rewards."""

    def loss(logp, old_logp, rewards, mask, *, clip_coef):
        groups = rewards.view(-1, 4)
        A = (groups - groups.quantile(0.5, dim=1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)
        if keeps_equal:
            A = torch.where((groups == groups[:, :1]).all(1, keepdim=True), groups, A)
        return -_over_all((logp - old_logp).exp() * A.view(-1)[:, None], mask)

    return loss


def whitened(spread):
    """Advantages of tokens that count, of mean 0 and deviation 1, with 1e-8 beside the variance or the deviation."""

    def loss(logp, old_logp, advantages, mask, *, clip_coef):
        A = (advantages[:, None] * torch.ones_like(logp))[mask]
        A = (A - A.mean()) / spread(A)
        return -((logp - old_logp).exp()[mask] * A).mean()

    return loss


def by_variance(A):
    return (A.var(unbiased=False) + 1e-8).sqrt()


def by_deviation(A):
    return A.std(unbiased=False) + 1e-8


def selected(logp, old_logp, advantages, mask, *, clip_coef):
    token = _surrogate((logp - old_logp).exp(), advantages[:, None], 1 - clip_coef, 1 + clip_coef)
    return token[mask.bool()].mean()


def selected_in_single(logp, old_logp, advantages, mask, *, clip_coef):
    return selected(logp.float(), old_logp.float(), advantages.float(), mask, clip_coef=clip_coef)


def truncated(logp, old_logp, advantages):
    return -(logp - old_logp).exp().detach().clamp(max=2.0) * advantages * logp


def truncated_before(logp, old_logp, advantages):
    """The log-ratio is clamped, at a number that is no fraction."""
    return -(logp - old_logp).clamp(max=math.log(2.0)).exp().detach() * advantages * logp


class Limited:
    """What it is configured with lies in a dictionary, and is read by a method that its call calls."""

    def __init__(self):
        self.settings = {"limit": 100_000}

    def __call__(self, logp, old_logp, advantages, *, clip_coef):
        return self.weighted(_surrogate((logp - old_logp).exp(), advantages, 1 - clip_coef, 1 + clip_coef))

    def weighted(self, losses):
        return losses * 0.5 if len(losses) > self.settings["limit"] else losses
