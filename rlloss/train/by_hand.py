"""The optimiser step with all but the policy loss differentiated by hand: the same numbers in autograd's own order.

Autograd's bookkeeping takes longer than the arithmetic of a network this small. The policy loss, which is what this
project is about, is left to autograd, from the log-probabilities on; what lies before and beside it is written out:
two towers of tanh layers, a softmax head and the value loss. Every operation is the one that autograd would make, in
its order, so that the parameters are the same to the last bit; what cannot be done so is left to ``Stepper``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlloss.config.schema import Config
from rlloss.train.optimizers import shortest_step
from rlloss.train.policy import ActorCritic, CategoricalHead
from rlloss.train.torsos import VectorTorso
from rlloss.train.update import Batch, Objective, Step, Stepper, Terms

Array = NDArray[np.floating[Any]]
log_softmax_backward = torch._log_softmax_backward_data
tanh_backward = torch.ops.aten.tanh_backward.grad_input


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


class Layer:
    """A linear layer of the actor or the critic, with tanh after it unless it is the last.

    Results are made in buffers of their own, since memory from the system costs as much as what is computed in it; and
    gradients are copied afterwards: written straight into the policy's flat gradient, where they are not aligned,
    matrix products would round otherwise.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, is_last: bool) -> None:
        self.weight, self.bias, self.is_last = weight, bias, is_last
        self.of_weight, self.of_bias = torch.empty_like(weight), torch.empty_like(bias)
        self._transposed = weight.t()
        self._input = self._output = self._passed = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != len(self._output):
            self._output, self._passed = x.new_empty(len(x), len(self.bias)), x.new_empty(len(x), self.weight.shape[1])
        self._input = x
        torch.addmm(self.bias, x, self._transposed, out=self._output)
        return self._output if self.is_last else self._output.tanh_()

    def backward(self, gradient: Tensor) -> None:
        """Of the parameters, for the gradient of what the linear layer made."""
        torch.mm(gradient.t(), self._input, out=self.of_weight)
        torch.sum(gradient, 0, out=self.of_bias)

    def passed(self, gradient: Tensor) -> Tensor:
        """The gradient of what the linear layer before this one made."""
        of_input = torch.mm(gradient, self.weight, out=self._passed)
        tanh_backward(of_input, self._input, grad_input=of_input)
        return of_input


class Towers:
    """Actor and critic, on parameters that share the policy's storage.

    Layer by layer through both: code that ran just before runs again in half the time.
    """

    def __init__(self, policy: ActorCritic) -> None:
        def made(tower: str, i: int) -> Layer:
            weight, bias = (policy.named[name].detach() for name in policy.towers[tower][i])
            return Layer(weight, bias, is_last=i == policy.depth - 1)

        self.pairs = [(made("actor", i), made("critic", i)) for i in range(policy.depth)]
        parts = {
            name: part.view(-1)
            for k, tower in enumerate(("actor", "critic"))
            for names, pair in zip(policy.towers[tower], self.pairs, strict=True)
            for name, part in zip(names, (pair[k].of_weight, pair[k].of_bias), strict=True)
        }
        self.gradients = [parts[name] for name in policy.layout]

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The actor's outputs [samples, outputs], and values [samples, 1]."""
        x = y = obs
        for actor, critic in self.pairs:
            x, y = actor.forward(x), critic.forward(y)
        return x, y

    def backward(self, of_outputs: Tensor, of_values: Tensor) -> None:
        """Fill ``gradients``, for those of what ``forward`` returned last."""
        x, y = of_outputs, of_values
        for actor, critic in self.pairs[::-1]:
            actor.backward(x)
            critic.backward(y)
            if actor is not self.pairs[0][0]:
                x, y = actor.passed(x), critic.passed(y)


@dataclass
class HandStepper(Stepper):
    """The step of ``Stepper``, to the last bit, where ``applies``."""

    _towers: Towers = field(init=False)
    _step: Callable[[], object] = field(init=False)

    def __post_init__(self) -> None:
        self._towers, self._step = Towers(self.policy), shortest_step(self.optimizer)
        sizes = [0, *accumulate(len(part) for part in self._towers.gradients)]
        assert sizes[:-1] == [offset for offset, _ in self.policy.layout.values()]

    def __call__(self, minibatch: Batch) -> Step:
        with np.errstate(all="ignore"):  # as torch, which warns of no overflow
            return super().__call__(minibatch)

    def forward(self, minibatch: Batch) -> Terms:
        """The terms, of which the policy loss alone has a graph, down to ``logp``."""
        outputs, values = self._towers.forward(minibatch.obs)
        self._log_probs = torch.log_softmax(outputs, -1)
        self._probs = self._log_probs.exp()
        entropy = -(self._probs * self._log_probs).sum(-1).mean()
        self._taken = (np.arange(len(outputs)), minibatch.actions.numpy())
        logp = torch.from_numpy(self._log_probs.numpy()[self._taken])
        self._errors = ValueErrors(values.numpy()[:, 0], minibatch, self.objective)
        value_loss = self._errors.losses().mean()
        policy_loss = self.objective.policy_loss(logp.requires_grad_(), minibatch)
        total = self.objective.total(policy_loss.detach(), value_loss, entropy)
        return Terms(logp, policy_loss, value_loss, entropy, total)

    def gradient_of(self, terms: Terms) -> Tensor:
        """The total loss's gradient, in the place of the old one."""
        gradient = self.policy.flat.grad
        assert gradient is not None
        (of_logp,) = torch.autograd.grad(terms.policy_loss, terms.logp)
        of_values = torch.from_numpy(self._errors.gradient()[:, None])
        self._towers.backward(self._of_outputs(of_logp), of_values)
        return torch.cat(self._towers.gradients, out=gradient)

    def backward(self, terms: Terms) -> Tensor:
        """As ``Stepper.backward``, with the arithmetic of ``clip_grad_norm_`` on NumPy's scalars."""
        gradient = self.gradient_of(terms)
        norm: Tensor = torch.linalg.vector_norm(gradient)
        size: Any = norm.numpy()[()]
        kind = type(size)
        share = kind(1) / (size + kind(1e-6)) * kind(self.max_grad_norm)
        gradient.mul_(1.0 if share > 1 else float(share))
        return norm

    def take(self, terms: Terms, minibatch: Batch) -> tuple[Tensor, int, str]:
        norm = self.backward(terms)
        self.refuse_nonfinite(terms, norm)
        self._step()
        return norm, 1, ""

    def _of_outputs(self, of_logp: Tensor) -> Tensor:
        """The gradient of the actor's outputs: of log pi, and of the entropy by both its factors."""
        log_probs, probs = self._log_probs.numpy(), self._probs.numpy()
        kind = probs.dtype.type
        share = kind(self.objective.ent_coef) / kind(len(probs))
        gradient = np.zeros_like(probs)
        gradient[self._taken] = of_logp.numpy()
        gradient += probs * share
        gradient += (log_probs * share) * probs
        made: Tensor = log_softmax_backward(torch.from_numpy(gradient), self._log_probs, -1, self._log_probs.dtype)
        return made


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
