"""Which of its ways a run steps: by autograd, by hand, compiled, scaled, with a closure, or looking further."""

from dataclasses import replace
from functools import partial

import torch

from rlloss.config.optimizers import GradientPenaltyConfig, SAMConfig
from rlloss.config.schema import Config
from rlloss.losses.formulation import trainable
from rlloss.train import portable
from rlloss.train.by_hand import HandStepper, applies
from rlloss.train.compiled import CompiledStepper, refuse_uncompilable, traceable
from rlloss.train.conditions import make_guard
from rlloss.train.numerics import PORTABLE
from rlloss.train.policy import ActorCritic
from rlloss.train.precision import Precision
from rlloss.train.update import (
    ClosureStepper,
    GradientPenaltyStepper,
    Objective,
    SAMStepper,
    ScaledStepper,
    Stepper,
)  # fmt: skip


def make_objective(config: Config, policy: ActorCritic, precision: Precision) -> Objective:
    """Raises: ConfigError for an unknown loss, or one that has no portable form."""
    name = config.loss.name
    loss = trainable(name)
    if config.numerics.name == PORTABLE:
        loss = portable.portable_loss(loss, name)
        if isinstance(config.optimizer, GradientPenaltyConfig):
            portable.refuse_second_derivatives(loss, name)
    return Objective(
        evaluate=policy.evaluate,
        loss=loss,
        context=partial(precision.context, config.device),
        clip_coef=config.clip_coef,
        vf_coef=config.vf_coef,
        ent_coef=config.ent_coef,
        offset=config.loss.offset,
        clip_vloss=config.clip_vloss,
    )


def make_stepper(
    config: Config,
    policy: ActorCritic,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    scaler: torch.amp.GradScaler,
) -> Stepper:
    """The one way in which this run steps. Raises: ConfigError for an unknown loss or guard."""
    parts = (
        policy, optimizer, make_objective(config, policy, precision), make_guard(config), config.max_grad_norm,
        config.on_nonfinite == "fail",
    )  # fmt: skip
    if config.update == "compiled":
        refuse_uncompilable(config, policy)
        stepper = CompiledStepper(*parts, heuristics=config.compiler_heuristics)
        stepper.checked = stepper.objective.loss
        stepper.objective = replace(stepper.objective, loss=traceable(stepper.checked, config.loss.name))
        return stepper
    if scaler.is_enabled():
        return ScaledStepper(*parts, scaler=scaler)
    scale, rule = config.precision.loss_scale, config.optimizer
    if isinstance(rule, SAMConfig):
        return SAMStepper(*parts, scale, rho=rule.rho)
    if isinstance(rule, GradientPenaltyConfig):
        return GradientPenaltyStepper(*parts, scale, penalty_coef=rule.penalty_coef)
    if isinstance(optimizer, torch.optim.LBFGS):
        return ClosureStepper(*parts, scale)
    return (HandStepper if applies(config, policy) else Stepper)(*parts, scale)
