"""The optimiser step with all but the policy loss differentiated by hand: the same numbers in autograd's own order.

Autograd's bookkeeping takes longer than the arithmetic of a network this small. The policy loss, which is what this
project is about, is left to autograd, from the log-probabilities on; what lies before and beside it is written out:
two towers of tanh layers, a softmax head and the value loss. Every operation is the one that autograd would make, in
its order, so that the parameters are the same to the last bit; what cannot be done so is left to ``Stepper``.
"""

import math
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
engine: Any = torch.autograd.Variable._execution_engine
ALIGNMENT = 64  # bytes, at multiples of which torch's own memory begins


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


class Linear:
    """One tower's linear layer, and the gradient of its parameters.

    The gradient is copied afterwards: written straight into the policy's flat gradient, where it is not aligned, matrix
    products would round otherwise.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias
        self.of_weight, self.of_bias = torch.empty_like(weight), torch.empty_like(bias)
        self._transposed = weight.t()

    def forward(self, x: Tensor, out: Tensor) -> None:
        torch.addmm(self.bias, x, self._transposed, out=out)

    def backward(self, gradient: Tensor, x: Tensor) -> None:
        """Of the weight, where what it made of ``x`` has that gradient."""
        torch.mm(gradient.t(), x, out=self.of_weight)

    def passed(self, gradient: Tensor, out: Tensor) -> None:
        """On to what it was given."""
        torch.mm(gradient, self.weight, out=out)


class Pair:
    """Two arrays of one shape, the actor's and the critic's, for what is done to both at once.

    Each begins where memory of its own might, since matrix products round otherwise elsewhere; between them are zeros.
    ``whole`` is all of it, ``both`` [2, *shape].
    """

    def __init__(self, like: Tensor, *shape: int) -> None:
        unit, size = ALIGNMENT // like.element_size(), math.prod(shape)
        apart = -(-size // unit) * unit
        self.whole = like.new_zeros(2 * apart)
        self.both = self.whole.view(2, apart)[:, :size].view(2, *shape)
        self.actor, self.critic = self.both.unbind()


class Towers:
    """Actor and critic, on parameters that share the policy's storage.

    Layer by layer through both: code that ran just before runs again in half the time. Results are made in buffers,
    since memory from the system costs as much as what is computed in it.
    """

    def __init__(self, policy: ActorCritic) -> None:
        def linear(tower: str, i: int) -> Linear:
            weight, bias = (policy.named[name].detach() for name in policy.towers[tower][i])
            return Linear(weight, bias)

        self._layers = [(linear("actor", i), linear("critic", i)) for i in range(policy.depth)]
        self._of_biases = [Pair(actor.bias, len(actor.bias)) for actor, _ in self._layers[:-1]]
        for (actor, critic), pair in zip(self._layers, self._of_biases, strict=False):
            actor.of_bias, critic.of_bias = pair.actor, pair.critic
        parts = {
            name: part.view(-1)
            for k, tower in enumerate(("actor", "critic"))
            for names, layers in zip(policy.towers[tower], self._layers, strict=True)
            for name, part in zip(names, (layers[k].of_weight, layers[k].of_bias), strict=True)
        }
        self.gradients = [parts[name] for name in policy.layout]
        self._samples = 0

    def _make_room(self, like: Tensor) -> None:
        self._samples = len(like)
        self._hidden, self._passed = (
            [Pair(like, len(like), len(actor.bias)) for actor, _ in self._layers[:-1]] for _ in range(2)
        )
        actor, critic = self._layers[-1]
        self._outputs, self._values = (like.new_empty(len(like), len(last.bias)) for last in (actor, critic))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The actor's outputs [samples, outputs], and values [samples, 1]."""
        if len(obs) != self._samples:
            self._make_room(obs)
        self._obs = x = y = obs
        for (actor, critic), made in zip(self._layers, self._hidden, strict=False):
            actor.forward(x, made.actor)
            critic.forward(y, made.critic)
            made.whole.tanh_()
            x, y = made.actor, made.critic
        actor, critic = self._layers[-1]
        actor.forward(x, self._outputs)
        critic.forward(y, self._values)
        return self._outputs, self._values

    def backward(self, of_outputs: Tensor, of_values: Tensor) -> None:
        """Fill ``gradients``, for those of what ``forward`` returned last."""
        x, y = of_outputs, of_values
        actor, critic = self._layers[-1]
        torch.sum(x, 0, out=actor.of_bias)
        torch.sum(y, 0, out=critic.of_bias)
        for i in reversed(range(len(self._hidden))):
            given, passed = self._hidden[i], self._passed[i]
            actor.backward(x, given.actor)
            critic.backward(y, given.critic)
            actor.passed(x, passed.actor)
            critic.passed(y, passed.critic)
            tanh_backward(passed.whole, given.whole, grad_input=passed.whole)
            torch.sum(passed.both, 1, out=self._of_biases[i].both)
            (actor, critic), x, y = self._layers[i], passed.actor, passed.critic
        actor.backward(x, self._obs)
        critic.backward(y, self._obs)


class Choices:
    """The softmax over actions of a minibatch: log pi of those taken, the entropy, and the gradient of both."""

    def __init__(self, outputs: Tensor, ent_coef: float) -> None:
        self._log_probs, self._probs, self._product, self._gradient = (torch.empty_like(outputs) for _ in range(4))
        self._arrays = [x.numpy() for x in (self._log_probs, self._probs, self._product, self._gradient)]
        self._starts = np.arange(len(outputs)) * outputs.shape[1]
        kind = self._arrays[0].dtype.type
        self._share = kind(ent_coef) / kind(len(outputs))

    def forward(self, outputs: Tensor, actions: NDArray[Any], entropy: Tensor) -> Tensor:
        """Log pi [samples]; ``entropy`` [samples] is filled."""
        log_probs, probs, product, _ = self._arrays
        torch.log_softmax(outputs, -1, out=self._log_probs)
        torch.exp(self._log_probs, out=self._probs)
        np.multiply(probs, log_probs, product)
        torch.sum(self._product, -1, out=entropy)
        np.negative(entropy.numpy(), entropy.numpy())
        self._taken = self._starts + actions
        return torch.from_numpy(log_probs.take(self._taken))

    def gradient(self, of_logp: NDArray[Any]) -> Tensor:
        """Of the outputs: that of log pi, and of the entropy by both its factors."""
        log_probs, probs, product, gradient = self._arrays
        gradient.fill(0)
        gradient.put(self._taken, of_logp)
        gradient += np.multiply(probs, self._share, product)
        np.multiply(log_probs, self._share, product)
        gradient += np.multiply(product, probs, product)
        made: Tensor = log_softmax_backward(self._gradient, self._log_probs, -1, self._gradient.dtype)
        return made


class ValueErrors:
    """``Objective.value_losses`` and its gradient, times vf_coef, of the mean over a minibatch."""

    def __init__(self, values: Tensor, objective: Objective) -> None:
        self._of_values = torch.empty_like(values)
        self._gradient = self._of_values.numpy()[:, 0]
        kind, samples = self._gradient.dtype.type, len(values)
        self._clipped, self._width = objective.clip_vloss, kind(objective.clip_coef)
        self._half, self._two = kind(0.5), kind(2)
        self._scale = kind(objective.vf_coef) / kind(samples) * self._half
        self._error, self._squared, self._change, self._other_error, self._other_squared, self._share = np.empty(
            (6, samples), kind
        )
        self._outside, self._test = np.empty((2, samples), np.bool_)

    def forward(self, values: Array, returns: Array, old_values: Array, losses: Array) -> None:
        """[samples]; ``losses`` is filled."""
        error, squared, change, other = self._error, self._squared, self._change, self._other_error
        np.subtract(values, returns, error)
        np.multiply(error, error, squared)
        if self._clipped:
            np.subtract(values, old_values, change)
            np.minimum(np.maximum(change, -self._width, out=other), self._width, out=other)
            np.not_equal(change, other, self._outside)
            other += old_values
            other -= returns
            squared = np.maximum(squared, np.multiply(other, other, self._other_squared), out=losses)
        np.multiply(self._half, squared, losses)

    def gradient(self) -> Tensor:
        """[samples, 1], once after each ``forward``. Where both squares are equal each gets half, as of torch.max."""
        mine, other, share, test = self._error, self._other_error, self._share, self._test
        mine *= self._two
        if not self._clipped:
            np.multiply(self._scale, mine, self._gradient)
            return self._of_values
        other *= self._two
        share.fill(self._scale)
        np.putmask(share, np.equal(self._squared, self._other_squared, test), self._scale / self._two)
        np.copyto(self._change, share)
        np.putmask(share, np.less(self._squared, self._other_squared, test), 0)
        mine *= share
        np.putmask(self._change, np.less(self._other_squared, self._squared, test), 0)
        other *= self._change
        np.putmask(other, self._outside, 0)
        np.add(other, mine, self._gradient)
        return self._of_values


def derivative(loss: Tensor, at: Tensor, one: Tensor) -> Tensor:
    """d loss / d at, by autograd: torch.autograd.grad without its checks in Python, a third of its time."""
    (made,) = engine.run_backward((loss,), (one,), False, False, (at,), False, accumulate_grad=False)
    return made  # type: ignore[no-any-return]


@dataclass
class HandStepper(Stepper):
    """The step of ``Stepper``, to the last bit, where ``applies``."""

    _towers: Towers = field(init=False)
    _step: Callable[[], object] = field(init=False)
    _samples: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._towers, self._step = Towers(self.policy), shortest_step(self.optimizer)
        sizes = [0, *accumulate(len(part) for part in self._towers.gradients)]
        assert sizes[:-1] == [offset for offset, _ in self.policy.layout.values()]
        self._kind: Any = self.policy.raw().dtype.type
        self._one = torch.ones((), dtype=self.policy.flat.dtype)

    def __call__(self, minibatch: Batch) -> Step:
        with np.errstate(all="ignore"):  # as torch, which warns of no overflow
            return super().__call__(minibatch)

    def _make_room(self, outputs: Tensor, values: Tensor) -> None:
        self._samples = len(outputs)
        self._choices = Choices(outputs, self.objective.ent_coef)
        self._errors = ValueErrors(values, self.objective)
        self._rows = outputs.new_empty(2, self._samples)
        self._entropy, self._value_losses = self._rows.unbind()
        self._sums = outputs.new_empty(2)

    def forward(self, minibatch: Batch) -> Terms:
        """The terms, of which the policy loss alone has a graph, down to ``logp``. Good until the next ones."""
        outputs, values = self._towers.forward(minibatch.obs)
        if len(outputs) != self._samples:
            self._make_room(outputs, values)
        logp = self._choices.forward(outputs, minibatch.actions.numpy(), self._entropy).requires_grad_()
        self._errors.forward(
            values.numpy()[:, 0], minibatch.returns.numpy(), minibatch.old_values.numpy(), self._value_losses.numpy()
        )
        policy_loss = self.objective.policy_loss(logp, minibatch)
        torch.sum(self._rows, 1, out=self._sums)
        kind = self._kind
        entropy, value_loss = self._sums.numpy() / kind(self._samples)
        ent_coef, vf_coef = kind(self.objective.ent_coef), kind(self.objective.vf_coef)
        wide: Any = np.float64 if policy_loss.dtype == torch.float64 else kind  # a user's loss may be wider than logp
        total = wide(policy_loss.item()) - ent_coef * entropy + vf_coef * value_loss
        return Terms(logp, policy_loss, *torch.from_numpy(np.array((value_loss, entropy, total))).unbind())

    def gradient_of(self, terms: Terms) -> Tensor:
        """The total loss's gradient, in the place of the old one."""
        gradient = self.policy.flat.grad
        assert gradient is not None
        of_logp = derivative(terms.policy_loss, terms.logp, self._one)
        self._towers.backward(self._choices.gradient(of_logp.numpy()), self._errors.gradient())
        return torch.cat(self._towers.gradients, out=gradient)

    def backward(self, terms: Terms) -> Tensor:
        """As ``Stepper.backward``, with the arithmetic of ``clip_grad_norm_`` in NumPy."""
        gradient = self.gradient_of(terms)
        norm: Tensor = torch.linalg.vector_norm(gradient)
        kind: Any = self._kind
        share = kind(1) / (kind(norm.item()) + kind(1e-6)) * kind(self.max_grad_norm)
        if not share >= 1:
            array = gradient.numpy()
            np.multiply(array, share, array)
        return norm

    def take(self, terms: Terms, minibatch: Batch) -> tuple[Tensor, int, str]:
        norm = self.backward(terms)
        self.refuse_nonfinite(terms, norm)
        self._step()
        return norm, 1, ""
