"""The optimiser step with all but the policy loss differentiated by hand: the same numbers in autograd's own order.

Autograd's bookkeeping takes longer than the arithmetic of a network this small. The policy loss, which is what this
project is about, is left to autograd, from the log-probabilities on; what lies before and beside it is written out:
two towers of tanh layers, a softmax head and the value loss. Every operation is the one that autograd would make, in
its order, so that the parameters are the same to the last bit; what cannot be done so is left to ``Stepper``.
"""

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlloss.config.schema import Config
from rlloss.train.policy import ActorCritic, CategoricalHead
from rlloss.train.torsos import VectorTorso
from rlloss.train.update import Batch, Objective, Stepper, Terms

Array = NDArray[np.floating[Any]]


def applies(config: Config, policy: ActorCritic) -> bool:
    """Whether this run's step can be made so: float32 or float64 throughout, a vector, one choice, one CPU thread."""
    return (
        config.update == "auto"
        and isinstance(policy.torso, VectorTorso)
        and isinstance(policy.head, CategoricalHead)
        and config.precision.name in ("fp32", "fp64")
        and config.precision.loss_scale == 1
        and config.device == "cpu"
        and config.torch_threads == 1
    )


class Tower:
    """Linear layers with tanh between them, on parameters that share the policy's storage.

    Gradients are made in buffers of their own and copied afterwards: written straight into the policy's flat gradient,
    where they are not aligned, matrix products would round otherwise.
    """

    def __init__(self, policy: ActorCritic, name: str) -> None:
        self.layers = [tuple(policy.named[part].detach() for part in parts) for parts in policy.towers[name]]
        self.gradients = [tuple(map(torch.empty_like, parts)) for parts in self.layers]
        self._inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self._inputs = []
        for i, (weight, bias) in enumerate(self.layers):
            x = x.tanh_() if i else x
            self._inputs.append(x)
            x = torch.addmm(bias, x, weight.t())
        return x

    def backward(self, gradient: Tensor) -> None:
        """Fill ``gradients``, for the gradient of what ``forward`` returned last."""
        for i in range(len(self.layers) - 1, -1, -1):
            of_weight, of_bias = self.gradients[i]
            torch.mm(gradient.t(), self._inputs[i], out=of_weight)
            torch.sum(gradient, 0, out=of_bias)
            if i:
                gradient = torch.ops.aten.tanh_backward(gradient.mm(self.layers[i][0]), self._inputs[i])


@dataclass
class HandStepper(Stepper):
    """The step of ``Stepper``, to the last bit, where ``applies``."""

    _towers: dict[str, Tower] = field(init=False)
    _parts: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._towers = {name: Tower(self.policy, name) for name in self.policy.towers}
        made = {
            name: part.view(-1)
            for tower, names in self.policy.towers.items()
            for pair, parts in zip(names, self._towers[tower].gradients, strict=True)
            for name, part in zip(pair, parts, strict=True)
        }
        self._parts = [made[name] for name in self.policy.layout]
        sizes = [0, *accumulate(len(part) for part in self._parts)]
        assert sizes[:-1] == [offset for offset, _ in self.policy.layout.values()]

    def forward(self, minibatch: Batch) -> Terms:
        """The terms, of which the policy loss alone has a graph, down to ``logp``."""
        with torch.no_grad(), np.errstate(all="ignore"):  # as torch, which warns of no overflow
            self._log_probs = torch.log_softmax(self._towers["actor"].forward(minibatch.obs), -1)
            self._probs = self._log_probs.exp()
            entropy = -(self._probs * self._log_probs).sum(-1)
            self._actions = minibatch.actions.unsqueeze(-1)
            logp = self._log_probs.gather(-1, self._actions).squeeze(-1)
            values = self._towers["critic"].forward(minibatch.obs).squeeze(-1)
            self._errors = ValueErrors(values.numpy(), minibatch, self.objective)
            value_loss, mean_entropy = self._errors.losses().mean(), entropy.mean()
        policy_loss = self.objective.policy_loss(logp.requires_grad_(), minibatch)
        total = self.objective.total(policy_loss.detach(), value_loss, mean_entropy)
        return Terms(logp, policy_loss, value_loss, mean_entropy, total)

    def gradient_of(self, terms: Terms) -> Tensor:
        """The total loss's gradient, in the place of the old one."""
        gradient = self.policy.flat.grad
        assert gradient is not None
        (of_logp,) = torch.autograd.grad(terms.policy_loss, terms.logp)
        with torch.no_grad(), np.errstate(all="ignore"):
            self._towers["actor"].backward(self._of_outputs(of_logp))
            self._towers["critic"].backward(torch.from_numpy(self._errors.gradient()[:, None]))
            return torch.cat(self._parts, out=gradient)

    def _of_outputs(self, of_logp: Tensor) -> Tensor:
        """The gradient of the actor's outputs: of log pi, and of the entropy by both its factors."""
        log_probs, probs = self._log_probs, self._probs
        kind = probs.numpy().dtype.type
        share = kind(self.objective.ent_coef) / kind(len(of_logp))
        gradient = torch.zeros_like(log_probs).scatter_(1, self._actions, of_logp.unsqueeze(1))
        total = gradient.numpy()
        total += probs.numpy() * share
        total += (log_probs.numpy() * share) * probs.numpy()
        return torch._log_softmax_backward_data(gradient, log_probs, -1, log_probs.dtype)


class ValueErrors:
    """``Objective.value_losses`` and its gradient, times vf_coef, of the mean over a minibatch."""

    def __init__(self, values: Array, minibatch: Batch, objective: Objective) -> None:
        self._kind, self._clipped, vf_coef = values.dtype.type, objective.clip_vloss, objective.vf_coef
        self._scale = self._kind(vf_coef) / self._kind(len(values)) * self._kind(0.5)
        returns = minibatch.returns.numpy()
        self._error = values - returns
        self._squared = self._error * self._error
        if self._clipped:
            old, width = minibatch.old_values.numpy(), self._kind(objective.clip_coef)
            self._change = values - old
            kept = np.minimum(np.maximum(self._change, -width), width)
            self._inside = (self._change >= -width) & (self._change <= width)
            self._other_error = old + kept - returns
            self._other_squared = self._other_error * self._other_error

    def losses(self) -> Tensor:
        larger = np.maximum(self._squared, self._other_squared) if self._clipped else self._squared
        return 0.5 * torch.from_numpy(larger)

    def gradient(self) -> Array:
        """[samples]. Where both squares are equal each gets half, as torch.max gives it."""
        two, zero = self._kind(2), self._kind(0)
        if not self._clipped:
            return np.asarray(self._scale * (two * self._error))
        share = np.where(self._squared == self._other_squared, self._scale / two, self._scale)
        mine = np.where(self._squared < self._other_squared, zero, share) * (two * self._error)
        other = np.where(self._other_squared < self._squared, zero, share) * (two * self._other_error)
        return np.asarray(np.where(self._inside, other, zero) + mine)
