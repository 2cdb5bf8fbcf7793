"""A watched training in which one thing can be wrong: PPO's loss on made-up samples, in micro-batches."""

import numpy as np
import torch
from torch import nn

import rlloss

SAMPLES, MICRO = 48, 3


def data(step, generator):
    """States, actions, log-probabilities of then, advantages, and how the samples are spread over micro-batches."""
    return {
        "x": torch.randn(SAMPLES, 6, generator=generator),
        "action": torch.randint(4, (SAMPLES,), generator=generator),
        "old": torch.randn(SAMPLES, generator=generator) * 0.3 - 1.4,
        "advantages": torch.randn(SAMPLES, generator=generator),
    }


def ppo(logp, old, advantages):
    ratio = torch.exp(logp - old)
    return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)


def weighted(logp, old, advantages):
    with torch.no_grad():
        ratio = torch.exp(logp - old)
        clipped = ratio.clamp(0.8, 1.2)
        return torch.where(ratio * advantages <= clipped * advantages, ratio, 0.0)


def matched(logp, old, advantages):
    w = weighted(logp, old, advantages)
    return -((w * logp) * advantages)


def textbook(logp, old, advantages):
    w = weighted(logp, old, advantages)
    return -((w * advantages) * logp)


def two_sided(logp, old, advantages):
    ratio = torch.exp(logp - old)
    inside = torch.where(ratio == ratio.clamp(0.8, 1.2), ratio, 0.0).detach()
    return -((inside * logp) * advantages)


def detached(logp, old, advantages):
    ratio = torch.exp(logp - old)
    w = ratio.detach()
    return -((w * logp) * advantages)


def attached(logp, old, advantages):
    ratio = torch.exp(logp - old)
    w = ratio
    return -((w * logp) * advantages)


def unclamped(logp, old, advantages):
    loss = -((torch.exp(logp - old).detach() * logp) * advantages)
    return loss * 1


def clamped(logp, old, advantages):
    loss = -((torch.exp(logp - old).detach() * logp) * advantages)
    return loss.clamp(-1.0, 1.0)


def overflowing(logp, old, advantages):
    return ppo(logp, old, advantages) + 0 * torch.log((logp - logp.min()) * 0)


def with_kl(logp, old, advantages):
    ratio = torch.exp(logp - old)
    kl = torch.exp(old - logp) - (old - logp) - 1
    return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) + 0.04 * kl


def weighted_with_kl(logp, old, advantages):
    kl = torch.exp(old - logp) - (old - logp) - 1
    w = weighted(logp, old, advantages)
    return -((w * logp) * advantages) + 0.04 * kl


def train(folder, *, steps=20, loss=ppo, fault="", at=6, trace=0, lr=1e-2, fused=False, scaled=False, **options):
    """``fault`` happens from optimiser step ``at`` on, or at it."""
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
    with rlloss.watch(model, optimizer, folder, trace=trace, **options):
        for step in range(1, steps + 1):
            now = step >= at
            batch = data(step, generator)
            if fault == "minibatch order" and step == at:
                order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))
                batch = {name: values[order] for name, values in batch.items()}
            if fault == "an ulp" and step == at:
                with torch.no_grad():
                    weight = model[0].weight
                    weight[1, 3] = torch.nextafter(weight[1, 3], torch.tensor(9.0))
            if fault == "learning rate" and now:
                optimizer.param_groups[0]["lr"] = lr / 2
            if fault == "weight decay" and step == at:
                optimizer.param_groups[0]["weight_decay"] = 0.1
            if fault == "draw" and step == at:
                torch.randn(1)
                np.random.default_rng(0)
            if not (fault == "zero_grad" and now):
                optimizer.zero_grad()
            micro = list(torch.arange(SAMPLES).split([8, 16, 24]))
            if fault == "accumulation" and now:
                micro = micro[::-1]
            if fault == "one pass" and now:
                micro = [torch.arange(SAMPLES)]
            if fault == "frozen" and step == at:
                model[0].requires_grad_(False)
            for rows in micro:
                part = {name: values[rows] for name, values in batch.items()}
                logp = model(part["x"]).log_softmax(-1).gather(-1, part["action"].unsqueeze(-1)).squeeze(-1)
                chosen = loss if now or loss in (ppo, detached, unclamped, with_kl) else ppo
                losses = chosen(logp, part["old"], part["advantages"])
                total = losses.mean() / MICRO if fault == "mean of means" and now else losses.sum() / SAMPLES
                if fault == "overflow" and step == at:
                    total = total * float("inf")
                scaler.scale(total).backward()
            scaler.step(optimizer)
            scaler.update()
