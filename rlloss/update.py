"""The update: epochs of minibatches over one rollout. The only place that steps an optimiser."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlloss.conditions import passes_guard
from rlloss.config import ConfigError, lookup
from rlloss.losses import LOSSES, Loss, clip_active
from rlloss.policy import ActorCritic
from rlloss.precision import at_least_float32, make_precision
from rlloss.schema import Config, OptimizerConfig

# Fused, because it is the fastest at this size, and because its square root is exact on every CPU.
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {"fused": True}),
    "sgd": (torch.optim.SGD, {"fused": True}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "lbfgs": (torch.optim.LBFGS, {}),
}


class Batch(NamedTuple):
    """What an update sees of a rollout: S samples, or M minibatches of B as [M, B, ...]."""

    obs: Tensor
    actions: Tensor
    old_logp: Tensor
    advantages: Tensor
    returns: Tensor
    old_values: Tensor


class Step(NamedTuple):
    """What one optimiser step leaves for the metrics. All detached."""

    minibatch: Batch
    logp: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    grad_norm: Tensor  # before clipping; nan if the step was skipped
    evaluations: int = 1  # of the loss; L-BFGS needs several a step
    skipped: str = ""  # by whom, if it was: "guard" or "grad_scaler"


class Losses(NamedTuple):
    """One forward pass, with its graph."""

    logp: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    total_loss: Tensor


def make_optimizer(config: OptimizerConfig, policy: ActorCritic, learning_rate: float) -> torch.optim.Optimizer:
    """torch's own optimiser over the flat parameter vector.

    Raises: ConfigError for an unknown name or for values that torch rejects.
    """
    kind, fixed = lookup(OPTIMIZERS, "optimizer", config.name)
    settings = {key: value for key, value in asdict(config).items() if key != "name"}
    try:
        optimizer: torch.optim.Optimizer = kind([policy.flat], lr=learning_rate, **settings, **fixed)
    except (ValueError, IndexError, TypeError) as error:
        raise ConfigError(f"optimizer={config.name} with {settings}: {error}") from error
    return optimizer


def update(
    policy: ActorCritic,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: Config,
    rng: np.random.Generator,
    after_step: Callable[[], None],
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, float]:
    """``update_epochs`` passes over ``batch`` in shuffled minibatches; stops early past ``target_kl``.

    ``after_step`` is called after every optimiser step, a skipped one included. Returns the iteration's metrics.
    """
    loss = lookup(LOSSES, "loss", config.loss.name)
    steps: list[Step] = []
    for _ in range(config.update_epochs):
        for minibatch in shuffled(batch, config.num_minibatches, rng, norm_adv=config.norm_adv):
            steps.append(minibatch_step(policy, optimizer, minibatch, loss, config, scaler))
            after_step()
        if config.target_kl is not None and _mean_kl(steps[-config.num_minibatches :]) > config.target_kl:
            break
    return metrics(steps, config)


def shuffled(batch: Batch, num_minibatches: int, rng: np.random.Generator, *, norm_adv: bool) -> Iterator[Batch]:
    """The batch in a new order, as minibatches; advantages normalised within each, as (A - mean) / (std + 1e-8)."""
    order = torch.from_numpy(rng.permutation(len(batch.obs))).to(batch.obs.device)
    epoch = Batch(*(column[order].view(num_minibatches, -1, *column.shape[1:]) for column in batch))
    if norm_adv:
        A = epoch.advantages
        epoch = epoch._replace(advantages=(A - A.mean(1, keepdim=True)) / (A.std(1, keepdim=True) + 1e-8))
    return map(Batch._make, zip(*(column.unbind() for column in epoch), strict=True))


def minibatch_step(
    policy: ActorCritic,
    optimizer: torch.optim.Optimizer,
    minibatch: Batch,
    loss: Loss,
    config: Config,
    scaler: torch.amp.GradScaler | None = None,
) -> Step:
    """One optimiser step on the total loss, its gradient clipped; none where the guard objects to the loss."""
    first = forward(policy, minibatch, loss, config)
    logp, policy_loss, value_loss, entropy = (x.detach() for x in first[:4])
    if not passes_guard(config, policy_loss, first.total_loss):
        unknown = torch.full_like(policy_loss, math.nan)
        return Step(minibatch, logp, policy_loss, value_loss, entropy, unknown, evaluations=1, skipped="guard")
    norms: list[Tensor] = []
    skipped = ""

    def backward(losses: Losses) -> Tensor:
        gradient = policy.flat.grad
        assert gradient is not None
        gradient.zero_()
        if scaler is not None and scaler.is_enabled():
            scaler.scale(losses.total_loss).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
        else:
            scale = config.precision.loss_scale
            (losses.total_loss if scale == 1 else losses.total_loss * scale).backward()  # type: ignore[no-untyped-call]
            if scale != 1:
                gradient.div_(scale)
        norms.append(clip_grad_norm_(gradient, config.max_grad_norm))
        return losses.total_loss

    if isinstance(optimizer, torch.optim.LBFGS):  # evaluates the loss as often as it likes, the first time as here
        optimizer.step(lambda: backward(forward(policy, minibatch, loss, config) if norms else first))  # type: ignore[no-untyped-call]
    else:
        backward(first)
        if scaler is not None and scaler.is_enabled():
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            if scaler.get_scale() < before:  # an overflow: GradScaler left the parameters alone
                skipped = "grad_scaler"
        else:
            optimizer.step()
    return Step(minibatch, logp, policy_loss, value_loss, entropy, norms[0], len(norms), skipped)


def forward(policy: ActorCritic, minibatch: Batch, loss: Loss, config: Config) -> Losses:
    """``total_loss = policy_loss - ent_coef * entropy + vf_coef * value_loss``, each a mean over the minibatch."""
    with make_precision(config.precision.name).forward(config.device):
        new = policy.evaluate(minibatch.obs, minibatch.actions)
        policy_loss = loss(new.logp, minibatch.old_logp, minibatch.advantages, clip_coef=config.clip_coef).mean()
        if config.loss.offset:
            policy_loss = policy_loss + config.loss.offset
        value_loss = value_losses(new.values, minibatch, config).mean()
        entropy = new.entropy.mean()
        total_loss = policy_loss - config.ent_coef * entropy + config.vf_coef * value_loss
    return Losses(new.logp, policy_loss, value_loss, entropy, total_loss)


def value_losses(values: Tensor, minibatch: Batch, config: Config) -> Tensor:
    """Per-sample ``(V - R)^2 / 2``; with ``clip_vloss`` the larger of that and of V kept within clip_coef of V_old."""
    errors = (values - minibatch.returns) ** 2
    if config.clip_vloss:
        change = (values - minibatch.old_values).clamp(-config.clip_coef, config.clip_coef)
        errors = torch.max(errors, (minibatch.old_values + change - minibatch.returns) ** 2)
    return 0.5 * errors


def clip_grad_norm_(gradient: Tensor, max_norm: float) -> Tensor:
    """Scale ``gradient`` in place to at most ``max_norm`` (L2) and return its norm before.

    The arithmetic of torch.nn.utils.clip_grad_norm_ on one tensor, at a quarter of its overhead.
    """
    norm: Tensor = torch.linalg.vector_norm(gradient)
    gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _mean_kl(steps: list[Step]) -> float:
    logratio = torch.stack([step.logp - step.minibatch.old_logp for step in steps])
    return float((torch.expm1(logratio) - logratio).mean())


@torch.no_grad()
def metrics(steps: list[Step], config: Config) -> dict[str, float]:
    """Means over all minibatches of the iteration, each taken before its step.

    ``policy_loss`` is the value of the loss that is trained; ``ppo_clip_loss`` and ``reinforce_loss`` are the two
    formulations' own values on the same samples. ``approx_kl`` is the k3 estimator, mean(ratio - 1 - logratio),
    ``old_approx_kl`` k1, mean(-logratio), both in nats. ``ratio_outside_frac`` counts |ratio - 1| > clip_coef,
    ``clip_active_frac`` the samples whose gradient is really cut. ``grad_norm`` is taken before clipping.
    ``evaluations`` counts evaluations of the loss, ``skipped_steps`` the optimiser steps that the guard or GradScaler
    forbade, ``guarded_steps`` the guard's among them.
    """
    logp = at_least_float32(torch.stack([step.logp for step in steps]))
    old_logp = at_least_float32(torch.stack([step.minibatch.old_logp for step in steps]))
    advantages = at_least_float32(torch.stack([step.minibatch.advantages for step in steps]))
    logratio = logp - old_logp
    ratio = logratio.exp()

    def value_of(name: str) -> Tensor:
        return LOSSES[name](logp, old_logp, advantages, clip_coef=config.clip_coef).mean()

    def mean(column: str) -> Tensor:
        return at_least_float32(torch.stack([getattr(step, column) for step in steps])).to(logp.dtype).mean()

    policy_loss, value_loss, entropy = mean("policy_loss"), mean("value_loss"), mean("entropy")
    named = {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy_loss": entropy,
        "total_loss": policy_loss - config.ent_coef * entropy + config.vf_coef * value_loss,
        "ppo_clip_loss": value_of("ppo_clip"),
        "reinforce_loss": value_of("reinforce"),
        "approx_kl": (torch.expm1(logratio) - logratio).mean(),
        "old_approx_kl": -logratio.mean(),
        "ratio_outside_frac": ((ratio - 1).abs() > config.clip_coef).to(ratio.dtype).mean(),
        "clip_active_frac": clip_active(ratio, advantages, clip_coef=config.clip_coef).to(ratio.dtype).mean(),
        "grad_norm": mean("grad_norm"),
    }
    means = dict(zip(named, torch.stack(list(named.values())).tolist(), strict=True))
    return means | {
        "evaluations": sum(step.evaluations for step in steps),
        "skipped_steps": sum(bool(step.skipped) for step in steps),
        "guarded_steps": sum(step.skipped == "guard" for step in steps),
    }
