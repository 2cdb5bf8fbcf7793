"""The update: epochs of minibatches over one rollout. The only place that steps an optimiser."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlloss.config.schema import Config
from rlloss.errors import NonFinite, RunFailed
from rlloss.losses.samples import LOSSES, Loss, clip_active
from rlloss.train import portable
from rlloss.train.conditions import Guard
from rlloss.train.policy import ActorCritic, Evaluation
from rlloss.train.precision import at_least_float32

TWICE = "optimizer=gradient_penalty: torch cannot differentiate the loss twice"

Evaluate = Callable[[Mapping[str, Tensor], Tensor, Tensor], Evaluation]


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


class Terms(NamedTuple):
    """One forward pass, with its graph."""

    logp: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    total_loss: Tensor


def update(
    stepper: "Stepper", batch: Batch, config: Config, rng: np.random.Generator, after_step: Callable[[], None]
) -> dict[str, float]:
    """``update_epochs`` passes over ``batch`` in shuffled minibatches; stops early past ``target_kl``.

    ``after_step`` is called after every optimiser step, a skipped one included. Returns the iteration's metrics.
    """
    steps: list[Step] = []
    for _ in range(config.update_epochs):
        steps += stepper.epoch(shuffled(batch, config.num_minibatches, rng, norm_adv=config.norm_adv), after_step)
        if config.target_kl is not None and _mean_kl(steps[-config.num_minibatches :]) > config.target_kl:
            break
    return metrics(steps, config)


def shuffled(batch: Batch, num_minibatches: int, rng: np.random.Generator, *, norm_adv: bool) -> Batch:
    """The batch in a new order, [M, B, ...]; advantages normalised within each minibatch: (A - mean) / (std + 1e-8)."""
    order = torch.from_numpy(rng.permutation(len(batch.obs))).to(batch.obs.device)
    epoch = Batch(*(column.index_select(0, order).view(num_minibatches, -1, *column.shape[1:]) for column in batch))
    if norm_adv:
        A = epoch.advantages
        epoch = epoch._replace(advantages=(A - A.mean(1, keepdim=True)) / (A.std(1, keepdim=True) + 1e-8))
    return epoch


def split(epoch: Batch) -> Iterator[Batch]:
    """The minibatches of [M, B, ...]."""
    return map(Batch._make, zip(*(column.unbind() for column in epoch), strict=True))


@dataclass(frozen=True)
class Objective:
    """A minibatch's loss, as a pure function of the policy's named parameters.

    ``total_loss = policy_loss - ent_coef * entropy + vf_coef * value_loss``, each a mean over the minibatch.
    """

    evaluate: Evaluate
    loss: Loss
    context: Callable[[], AbstractContextManager[None]]  # of the forward pass: autocast, or nothing
    clip_coef: float
    vf_coef: float
    ent_coef: float
    offset: float
    clip_vloss: bool

    def __call__(self, parameters: Mapping[str, Tensor], minibatch: Batch) -> Terms:
        with self.context():
            return self.terms(parameters, minibatch)

    def terms(self, parameters: Mapping[str, Tensor], minibatch: Batch) -> Terms:
        """Without the context."""
        new = self.evaluate(parameters, minibatch.obs, minibatch.actions)
        policy_loss = self.policy_loss(new.logp, minibatch)
        value_loss = self.value_losses(new.values, minibatch).mean()
        entropy = new.entropy.mean()
        return Terms(new.logp, policy_loss, value_loss, entropy, self.total(policy_loss, value_loss, entropy))

    def policy_loss(self, logp: Tensor, minibatch: Batch) -> Tensor:
        loss = self.loss(logp, minibatch.old_logp, minibatch.advantages, clip_coef=self.clip_coef).mean()
        return loss + self.offset if self.offset else loss

    def total(self, policy_loss: Tensor, value_loss: Tensor, entropy: Tensor) -> Tensor:
        return policy_loss - self.ent_coef * entropy + self.vf_coef * value_loss

    def value_losses(self, values: Tensor, minibatch: Batch) -> Tensor:
        """Per-sample ``(V - R)^2 / 2``; with ``clip_vloss`` the larger of it and V within clip_coef of V_old."""
        errors = (values - minibatch.returns) ** 2
        if self.clip_vloss:
            change = (values - minibatch.old_values).clamp(-self.clip_coef, self.clip_coef)
            errors = torch.max(errors, (minibatch.old_values + change - minibatch.returns) ** 2)
        return 0.5 * errors


@dataclass
class Stepper:
    """One optimiser step on a minibatch's total loss, its gradient clipped; none where the guard objects to the loss.

    ``loss_scale`` multiplies the loss before its backward pass, and divides the gradient after.
    """

    policy: ActorCritic
    optimizer: torch.optim.Optimizer
    objective: Objective
    guard: Guard
    max_grad_norm: float
    finite_only: bool = False
    loss_scale: float = 1.0

    def epoch(self, epoch: Batch, after_step: Callable[[], None]) -> list[Step]:
        """A step on each minibatch of [M, B, ...]."""
        steps = []
        for minibatch in split(epoch):
            steps.append(self(minibatch))
            after_step()
        return steps

    def __call__(self, minibatch: Batch) -> Step:
        terms = self.forward(minibatch)
        logp, policy_loss, value_loss, entropy = (x.detach() for x in terms[:4])
        if not self.guard(policy_loss, terms.total_loss):
            unknown = torch.full_like(policy_loss, math.nan)
            return Step(minibatch, logp, policy_loss, value_loss, entropy, unknown, evaluations=1, skipped="guard")
        grad_norm, evaluations, skipped = self.take(terms, minibatch)
        return Step(minibatch, logp, policy_loss, value_loss, entropy, grad_norm, evaluations, skipped)

    def forward(self, minibatch: Batch) -> Terms:
        """The loss's terms at the parameters as they are."""
        return self.objective(self.policy.named, minibatch)

    def refuse_nonfinite(self, terms: Terms, grad_norm: Tensor | None = None) -> None:
        """Before the parameters move. Raises: NonFinite if ``finite_only`` and a loss or the gradient is not finite."""
        if not self.finite_only:
            return
        total = terms.total_loss.item()
        norm = 0.0 if grad_norm is None else grad_norm.item()
        if math.isfinite(total) and math.isfinite(norm):
            return
        parts = {"policy_loss": terms.policy_loss, "value_loss": terms.value_loss, "entropy_loss": terms.entropy}
        values = {name: part.item() for name, part in parts.items()} | {"total_loss": total, "grad_norm": norm}
        name, value = next((name, value) for name, value in values.items() if not math.isfinite(value))
        raise NonFinite(f"{name} is {value}")

    def take(self, terms: Terms, minibatch: Batch) -> tuple[Tensor, int, str]:
        """The step itself: the gradient's norm, how often the loss was evaluated, and who skipped the step, if any."""
        norm = self.backward(terms)
        self.refuse_nonfinite(terms, norm)
        self.optimizer.step()
        return norm, 1, ""

    def backward(self, terms: Terms) -> Tensor:
        """The clipped gradient in the place of the old one. Returns: its norm before clipping."""
        return clip_grad_norm_(self.gradient_of(terms), self.max_grad_norm)

    def gradient_of(self, terms: Terms) -> Tensor:
        """The total loss's gradient, in the place of the old one."""
        gradient = self.cleared_gradient()
        scale = self.loss_scale
        (terms.total_loss if scale == 1 else terms.total_loss * scale).backward()  # type: ignore[no-untyped-call]
        if scale != 1:
            gradient.div_(scale)
        return gradient

    def cleared_gradient(self) -> Tensor:
        gradient = self.policy.flat.grad
        assert gradient is not None
        return gradient.zero_()


@dataclass
class ScaledStepper(Stepper):
    """Through torch's GradScaler, which skips the steps whose gradient overflows."""

    scaler: torch.amp.GradScaler = field(kw_only=True)

    def take(self, terms: Terms, minibatch: Batch) -> tuple[Tensor, int, str]:
        self.refuse_nonfinite(terms)  # an infinite gradient is GradScaler's to skip
        gradient = self.cleared_gradient()
        self.scaler.scale(terms.total_loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(gradient, self.max_grad_norm)
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        overflow = self.scaler.get_scale() < before  # then GradScaler has left the parameters alone
        return norm, 1, "grad_scaler" if overflow else ""


class ClosureStepper(Stepper):
    """For L-BFGS, which evaluates the loss as often as it likes, the first time at the parameters as they are."""

    def take(self, terms: Terms, minibatch: Batch) -> tuple[Tensor, int, str]:
        norms: list[Tensor] = []

        def evaluate() -> Tensor:
            now = self.objective(self.policy.named, minibatch) if norms else terms
            norms.append(self.backward(now))
            self.refuse_nonfinite(now, norms[-1])
            return now.total_loss

        self.optimizer.step(evaluate)  # type: ignore[arg-type]
        return norms[0], len(norms), ""


@dataclass
class SAMStepper(Stepper):
    """Steps with the gradient at ``p + rho * g / |g|``, where g is the gradient at p: see SAMConfig."""

    rho: float = field(kw_only=True)

    def take(self, terms: Terms, minibatch: Batch) -> tuple[Tensor, int, str]:
        flat, gradient = self.policy.flat.data, at_least_float32(self.gradient_of(terms))
        norm = torch.linalg.vector_norm(gradient)
        self.refuse_nonfinite(terms, norm)
        here = flat.clone()
        flat.add_(gradient * torch.where(norm > 0, self.rho / norm, 0.0))
        there = self.objective(self.policy.named, minibatch)
        norm = self.backward(there)
        flat.copy_(here)  # to the last bit, which taking the distance away again would not give
        self.refuse_nonfinite(there, norm)
        self.optimizer.step()
        return norm, 2, ""


@dataclass
class GradientPenaltyStepper(Stepper):
    """Steps with ``g + penalty_coef * H g``, H g by a second backward pass: see GradientPenaltyConfig."""

    penalty_coef: float = field(kw_only=True)

    def gradient_of(self, terms: Terms) -> Tensor:
        """The gradient of total_loss + penalty_coef / 2 * |its gradient|^2, in the place of the old one.

        Raises: RunFailed for a loss that torch cannot differentiate twice.
        """
        gradient, leaves, scale = self.cleared_gradient(), list(self.policy.named.values()), self.loss_scale
        try:
            first = torch.autograd.grad(
                terms.total_loss * scale, leaves, create_graph=True, allow_unused=True, materialize_grads=True
            )
            g = [part.detach() / scale for part in first]
            varying = [(part, vector) for part, vector in zip(first, g, strict=True) if part.requires_grad]
            # Adds scale * H g to the gradient, which is 0.
            torch.autograd.backward([part for part, _ in varying], [vector for _, vector in varying])
        except RuntimeError as error:
            why = str(error).partition("\n")[0]
            if not re.search("derivative|differentia", why):
                raise
            raise RunFailed(f"{TWICE} ({why}); optimizer=sam takes first derivatives alone") from error
        gradient.mul_(self.penalty_coef / scale)
        for leaf, part in zip(leaves, g, strict=True):
            assert leaf.grad is not None  # its place in the flat gradient
            leaf.grad.add_(part)
        return gradient


def clip_grad_norm_(gradient: Tensor, max_norm: float) -> Tensor:
    """Scale ``gradient`` in place to at most ``max_norm`` (L2) and return its norm before.

    The arithmetic of torch.nn.utils.clip_grad_norm_ on one tensor, at a quarter of its overhead.
    """
    norm: Tensor = torch.linalg.vector_norm(gradient)
    gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _mean_kl(steps: list[Step]) -> float:
    return float(k3(torch.stack([step.logp - step.minibatch.old_logp for step in steps])).mean())


def k3(logratio: Tensor) -> Tensor:
    """ratio - 1 - logratio, in float64: the difference of two numbers that are nearly the same."""
    return portable.expm1(logratio) - logratio.double()


@torch.no_grad()
def metrics(steps: list[Step], config: Config) -> dict[str, float]:
    """Means over all minibatches of the iteration, each taken before its step.

    ``policy_loss`` is the value of the loss that is trained; ``ppo_clip_loss`` and ``reinforce_loss`` are the two
    formulations' own values on the same samples. ``approx_kl`` is the k3 estimator, mean(ratio - 1 - logratio),
    ``old_approx_kl`` k1, mean(-logratio), both in nats. ``ratio_outside_frac`` counts |ratio - 1| > clip_coef,
    ``clip_active_frac`` the samples whose gradient is really cut, ``clip_active_steps`` and ``clip_active_epochs`` the
    optimiser steps and epochs that had one. ``positive_ratio_min`` and its kin say how far the ratio got from 1 where
    the advantage is positive, and where it is negative. ``grad_norm`` is taken before clipping.
    ``evaluations`` counts evaluations of the loss, ``skipped_steps`` the optimiser steps that the guard or GradScaler
    forbade, ``guarded_steps`` the guard's among them.
    """

    def stacked(columns: Iterable[tuple[Tensor, ...]]) -> Iterator[Tensor]:
        return (at_least_float32(torch.stack(column)) for column in zip(*columns, strict=True))

    logp, old_logp, advantages = stacked((x.logp, x.minibatch.old_logp, x.minibatch.advantages) for x in steps)
    of_steps = torch.stack(list(stacked((x.policy_loss, x.value_loss, x.entropy, x.grad_norm) for x in steps)))
    policy_loss, value_loss, entropy, grad_norm = of_steps.to(logp.dtype).mean(1)
    logratio = logp - old_logp
    ratio = logratio.exp()
    known = ~ratio.isnan()
    active = clip_active(ratio, advantages, clip_coef=config.clip_coef)

    def value_of(name: str) -> Tensor:
        return LOSSES[name](logp, old_logp, advantages, clip_coef=config.clip_coef).mean()

    def farthest(chosen: Tensor) -> tuple[Tensor, Tensor]:
        return torch.aminmax(torch.where(chosen & known, ratio, 1.0))

    positive, negative = farthest(advantages > 0), farthest(advantages < 0)
    named = {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy_loss": entropy,
        "total_loss": policy_loss - config.ent_coef * entropy + config.vf_coef * value_loss,
        "ppo_clip_loss": value_of("ppo_clip"),
        "reinforce_loss": value_of("reinforce"),
        "approx_kl": k3(logratio).mean().to(ratio.dtype),
        "old_approx_kl": -logratio.mean(),
        "ratio_outside_frac": ((ratio - 1).abs() > config.clip_coef).to(ratio.dtype).mean(),
        "clip_active_frac": active.to(ratio.dtype).mean(),
        "clip_active_steps": active.any(1).sum(),
        "clip_active_epochs": active.view(-1, config.num_minibatches * active.shape[1]).any(1).sum(),
        "positive_ratio_min": positive[0],
        "positive_ratio_max": positive[1],
        "negative_ratio_min": negative[0],
        "negative_ratio_max": negative[1],
        "grad_norm": grad_norm,
    }
    means = {name: value.item() for name, value in named.items()}
    return means | {
        "clip_active_steps": int(means["clip_active_steps"]),
        "clip_active_epochs": int(means["clip_active_epochs"]),
        "evaluations": sum(step.evaluations for step in steps),
        "skipped_steps": sum(bool(step.skipped) for step in steps),
        "guarded_steps": sum(step.skipped == "guard" for step in steps),
    }
