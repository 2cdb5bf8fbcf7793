"""``update=compiled``: the optimiser steps of an epoch as one graph, made machine code by torch's compiler.

Three times as fast as eager, with bits of its own: the compiler fuses operations, and the CPU's instructions decide
how. Forward pass, gradient (torch.func, which is autograd within the graph), clipping and Adam are in it; the
parameters come back after every step, for the digests.
"""

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlloss.config.schema import Config
from rlloss.errors import ConfigError, RunFailed
from rlloss.lazy import importable
from rlloss.losses.samples import LOSSES, Loss
from rlloss.train.policy import ActorCritic
from rlloss.train.torsos import VectorTorso
from rlloss.train.update import Batch, Objective, Step, Stepper, Terms, split

UNIFORM = {"cpp.enable_loop_tail_vec": False, "cpp.enable_tiling_heuristics": False}
"""Without two heuristics that look at a loss's operations to decide how a loop is vectorised. With them two losses of
one gradient may be computed by other instructions, of which exp and tanh have other last bits."""

Epoch = Callable[..., tuple[Tensor, Tensor, tuple[Tensor, ...]]]


def refuse_uncompilable(config: Config, policy: ActorCritic) -> None:
    """What ``Config.validate`` cannot know. Raises: ConfigError in one line, with the remedy."""
    compiler = os.environ.get("CXX", "g++")
    if not isinstance(policy.torso, VectorTorso):
        raise ConfigError(
            f"update=compiled: {config.env.id} shows images, whose network is not compiled; use update=auto"
        )
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"update=compiled: needs the C++ compiler {compiler}, which is not on PATH; install it, or use update=auto"
        )


def traceable(loss: Loss, name: str) -> Loss:
    """The loss as it is compiled. Raises: ConfigError for one that torch's compiler cannot trace as a whole."""
    if name in LOSSES:
        return loss
    from torch._dynamo.exc import TorchDynamoException  # here, since it loads the compiler, which takes a second

    samples = torch.linspace(-2, -0.1, 16), torch.linspace(-1.5, -0.6, 16), torch.linspace(-1, 1, 16)
    function: Loss = getattr(loss, "unchecked", loss)
    try:
        with importable():
            torch.compile(function, backend="eager", fullgraph=True)(*samples, clip_coef=0.2)
    except TorchDynamoException as error:
        raise ConfigError(
            f"loss={name} update=compiled: cannot be compiled ({_why(error)}); use update=auto"
        ) from error
    return function


@dataclass
class CompiledStepper(Stepper):
    """Adam's steps on minibatches of one size.

    ``heuristics``: the compiler's own defaults, instead of ``UNIFORM``. ``checked``: the loss with all that is asked of
    its results, since what is compiled is asked nothing.
    """

    heuristics: bool = False
    checked: Loss | None = None
    _epoch: Epoch | None = field(init=False, default=None)

    def epoch(self, epoch: Batch, after_step: Callable[[], None]) -> list[Step]:
        """Raises: NonFinite, as ``Stepper``; RunFailed where the compiler fails."""
        (group,) = self.optimizer.param_groups
        state, flat = self._state(), self.policy.flat.detach()
        taken, (beta1, beta2) = int(state["step"]), group["betas"]
        counts = range(taken + 1, taken + len(epoch.obs) + 1)
        scales = [(group["lr"] / (1 - beta1**count), math.sqrt(1 - beta2**count)) for count in counts]
        scales_tensor = torch.tensor(scales, dtype=flat.dtype)
        exp_avg, exp_avg_sq, trail = self._compute(flat, state["exp_avg"], state["exp_avg_sq"], scales_tensor, *epoch)
        steps = []
        for minibatch, parameters, total, logp, *others in zip(split(epoch), *trail, strict=True):
            policy_loss, value_loss, entropy, norm = others
            self.refuse_nonfinite(Terms(logp, policy_loss, value_loss, entropy, total), norm)
            flat.copy_(parameters)
            state["step"] += 1
            steps.append(Step(minibatch, logp, policy_loss, value_loss, entropy, norm))
            after_step()
        state["exp_avg"].copy_(exp_avg)
        state["exp_avg_sq"].copy_(exp_avg_sq)
        return steps

    def _state(self) -> dict[str, Tensor]:
        """Adam's own, as its first step makes it."""
        state: dict[str, Tensor] = self.optimizer.state[self.policy.flat]
        if not state:
            flat = self.policy.flat.detach()
            state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(flat), "exp_avg_sq": torch.zeros_like(flat)}
            self.optimizer._opt_called = True  # type: ignore[attr-defined]  # lest a schedule misses its step()
        return state

    @torch.no_grad()
    def _compute(self, *tensors: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
        from torch._inductor.exc import InductorError

        is_first = self._epoch is None
        epoch = self._epoch = self._epoch or self._compiled(Batch(*tensors[4:]))
        try:
            with importable(), torch._dynamo.config.patch(error_on_recompile=not is_first):
                return epoch(*tensors)
        except (TorchDynamoException, InductorError, FailOnRecompileLimitHit) as error:
            why = _why(error) if is_first else "the loss is another in every epoch, as by a counter of its own"
            raise RunFailed(f"update=compiled: torch's compiler fails ({why}); use update=auto") from error

    def _compiled(self, epoch: Batch) -> Epoch:
        """Raises: LossError for a loss whose result on the first minibatch trains nothing."""
        if self.checked is not None:
            with torch.enable_grad():
                logp = epoch.old_logp[0].clone().requires_grad_()
                self.checked(logp, epoch.old_logp[0], epoch.advantages[0], clip_coef=self.objective.clip_coef)
        torch._dynamo.reset()  # what other runs of this process compiled counts towards a limit
        (group,) = self.optimizer.param_groups
        function = epoch_function(self.policy, self.objective, group, self.max_grad_norm)
        options: dict[str, Any] = {"cpp_wrapper": True} | ({} if self.heuristics else UNIFORM)
        if "ATEN_CPU_CAPABILITY" in os.environ:  # which the compiler does not ask of what it has kept
            options["fx_graph_cache"] = False
        compiled: Epoch = torch.compile(function, fullgraph=True, dynamic=False, options=options)
        return compiled


def _why(error: Exception) -> str:
    """The line of the compiler's report that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
    return lines[0][:200] if lines else type(error).__name__


def epoch_function(
    policy: ActorCritic, objective: Objective, settings: Mapping[str, Any], max_grad_norm: float
) -> Epoch:
    """M steps of Adam, as a pure function.

    Takes parameters [P], both averages [P], the step sizes and square roots of the second bias correction [M, 2], and
    the columns of a batch [M, B, ...]; returns both averages, and of every step parameters, total loss, logp, policy
    loss, value loss, entropy and the gradient's norm.
    """
    (beta1, beta2), eps, weight_decay = settings["betas"], settings["eps"], settings["weight_decay"]

    def named(flat: Tensor) -> dict[str, Tensor]:
        return {name: flat[at : at + math.prod(shape)].view(shape) for name, (at, shape) in policy.layout.items()}

    def total_loss(parameters: Mapping[str, Tensor], minibatch: Batch) -> tuple[Tensor, Terms]:
        terms = objective.terms(parameters, minibatch)
        return terms.total_loss, terms

    differentiated = torch.func.grad_and_value(total_loss, has_aux=True)

    def epoch(
        flat: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, scales: Tensor, *columns: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        trail = []
        for j in range(len(scales)):
            gradients, (_, terms) = differentiated(named(flat), Batch(*(column[j] for column in columns)))
            gradient = torch.cat([gradients[name].reshape(-1) for name in policy.layout])
            norm = torch.linalg.vector_norm(gradient)
            gradient = gradient * (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            if weight_decay:
                gradient = gradient + weight_decay * flat
            exp_avg = exp_avg + (gradient - exp_avg) * (1 - beta1)
            exp_avg_sq = exp_avg_sq * beta2 + gradient * gradient * (1 - beta2)
            flat = flat - scales[j, 0] * exp_avg / (exp_avg_sq.sqrt() / scales[j, 1] + eps)
            policy_loss, value_loss, entropy = terms.policy_loss, terms.value_loss, terms.entropy
            trail.append((flat, terms.total_loss, terms.logp, policy_loss, value_loss, entropy, norm))
        return exp_avg, exp_avg_sq, tuple(torch.stack(column) for column in zip(*trail, strict=True))

    return epoch
