"""The actor-critic: separate tanh networks for policy and value, above a torso, on one flat parameter vector.

All parameters are views of one vector, and all gradients of another. One norm, one fused optimiser step, one digest and
one snapshot then cover everything, at a fraction of the cost of a dozen small tensors; ``layout`` keeps their names.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlloss.errors import ConfigError
from rlloss.train.precision import at_least_float32
from rlloss.train.torsos import VectorTorso, make_torso

Array = NDArray[np.floating]
Parameters = Mapping[str, Tensor]


class Head(Protocol):
    """A distribution over actions, given the actor's outputs.

    ``noise`` and ``sample`` run in NumPy, one environment step at a time; ``evaluate`` in torch, on whole batches.
    """

    outputs: int  # size of the actor's last layer
    shape: tuple[int, ...]  # of one action
    discrete: bool  # whether actions are whole numbers
    extra_shapes: dict[str, tuple[int, ...]]  # parameters beside the network's, initialised with 0

    def noise(self, rng: np.random.Generator, num_steps: int, num_envs: int) -> Array: ...

    def sample(self, out: Array, noise: Array, extra: dict[str, Array]) -> NDArray[np.generic]: ...

    def evaluate(self, out: Tensor, actions: Tensor, extra: dict[str, Tensor]) -> tuple[Tensor, Tensor]: ...


class CategoricalHead:
    """Softmax over ``n`` actions. Samples by Gumbel-max: argmax(logits + g), g standard Gumbel."""

    shape: tuple[int, ...] = ()
    discrete = True

    def __init__(self, n: int) -> None:
        self.outputs = n
        self.extra_shapes: dict[str, tuple[int, ...]] = {}

    def noise(self, rng: np.random.Generator, num_steps: int, num_envs: int) -> Array:
        return rng.gumbel(size=(num_steps, num_envs, self.outputs))

    def sample(self, out: Array, noise: Array, extra: dict[str, Array]) -> NDArray[np.generic]:
        actions: NDArray[np.generic] = (out + noise).argmax(-1)
        return actions

    def evaluate(self, out: Tensor, actions: Tensor, extra: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probability of the taken actions and entropy, each [samples], in nats."""
        log_probs = torch.log_softmax(out, -1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        logp = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return logp, entropy


class MultiCategoricalHead:
    """Several choices at once, independent given the state: a softmax over ``sizes[i]`` options for each.

    Samples by Gumbel-max within each; log-probability and entropy are sums over the choices.
    """

    discrete = True

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.shape: tuple[int, ...] = (len(self.sizes),)
        self.outputs = sum(self.sizes)
        self.extra_shapes: dict[str, tuple[int, ...]] = {}

    def noise(self, rng: np.random.Generator, num_steps: int, num_envs: int) -> Array:
        return rng.gumbel(size=(num_steps, num_envs, self.outputs))

    def sample(self, out: Array, noise: Array, extra: dict[str, Array]) -> NDArray[np.generic]:
        parts = np.split(out + noise, np.cumsum(self.sizes)[:-1], axis=-1)
        return np.stack([part.argmax(-1) for part in parts], -1)

    def evaluate(self, out: Tensor, actions: Tensor, extra: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probability of the taken actions and entropy, each [samples], in nats."""
        parts = [torch.log_softmax(part, -1) for part in torch.split(out, self.sizes, -1)]
        logp = torch.stack([p.gather(-1, actions[:, i : i + 1]).squeeze(-1) for i, p in enumerate(parts)])
        entropy = torch.stack([-(p.exp() * p).sum(-1) for p in parts])
        return logp.sum(0), entropy.sum(0)


class BernoulliHead:
    """``n`` switches, independent given the state, each on with probability sigmoid(output).

    Samples where output + l > 0, l standard logistic.
    """

    discrete = True

    def __init__(self, n: int) -> None:
        self.outputs = n
        self.shape: tuple[int, ...] = (n,)
        self.extra_shapes: dict[str, tuple[int, ...]] = {}

    def noise(self, rng: np.random.Generator, num_steps: int, num_envs: int) -> Array:
        return rng.logistic(size=(num_steps, num_envs, self.outputs))

    def sample(self, out: Array, noise: Array, extra: dict[str, Array]) -> NDArray[np.generic]:
        return (out + noise > 0).astype(np.int64)

    def evaluate(self, out: Tensor, actions: Tensor, extra: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probability of the taken actions and entropy, each [samples], in nats."""
        log_probs = torch.log_softmax(torch.stack([torch.zeros_like(out), out], -1), -1)  # of off and on
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1).sum(-1), entropy.sum(-1)


class GaussianHead:
    """Diagonal Gaussian over ``dim`` action components, with a learned standard deviation that ignores the state.

    Actions are not squashed: the density is that of the sampled action; the environment sees it clipped to its bounds.
    """

    discrete = False

    def __init__(self, dim: int) -> None:
        self.outputs = dim
        self.shape: tuple[int, ...] = (dim,)
        self.extra_shapes: dict[str, tuple[int, ...]] = {"actor.log_std": (dim,)}

    def noise(self, rng: np.random.Generator, num_steps: int, num_envs: int) -> Array:
        return rng.standard_normal((num_steps, num_envs, self.outputs))

    def sample(self, out: Array, noise: Array, extra: dict[str, Array]) -> Array:
        return (out + np.exp(extra["actor.log_std"]) * noise).astype(out.dtype)

    def evaluate(self, out: Tensor, actions: Tensor, extra: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-density of the taken actions and entropy, each [samples], in nats."""
        log_std = extra["actor.log_std"]
        z = (actions - out) * torch.exp(-log_std)
        logp = (-0.5 * z * z - log_std).sum(-1) - 0.5 * math.log(2 * math.pi) * self.outputs
        entropy = log_std.sum() + 0.5 * (1 + math.log(2 * math.pi)) * self.outputs
        return logp, entropy.expand_as(logp)


def make_head(action_space: spaces.Space[Any]) -> Head:
    """The head for an action space: Discrete, MultiDiscrete, MultiBinary, or a Box of floats of any shape.

    Raises: ConfigError for any other space, and for one with nothing to choose.
    """
    size = math.prod(action_space.shape or ())
    if not size:
        raise ConfigError(
            f"env: action space {' '.join(str(action_space).split())} has nothing to choose; it must have one "
            "component at least"
        )
    if isinstance(action_space, spaces.Discrete):
        return CategoricalHead(int(action_space.n))
    if isinstance(action_space, spaces.MultiDiscrete):
        return MultiCategoricalHead([int(n) for n in action_space.nvec.ravel()])
    if isinstance(action_space, spaces.MultiBinary):
        return BernoulliHead(size)
    if isinstance(action_space, spaces.Box) and action_space.dtype.kind == "f":
        return GaussianHead(size)
    raise ConfigError(
        f"env: action space {' '.join(str(action_space).split())} is not supported; it must be Discrete, "
        "MultiDiscrete, MultiBinary or a Box of floats; a wrapper can make it one: env.wrappers=[module:Wrapper]"
    )


class Evaluation(NamedTuple):
    logp: Tensor
    entropy: Tensor
    values: Tensor


class Actor(Protocol):
    """The policy as ``collect`` asks it for actions: arrays in, arrays out."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its arithmetic, float32 or float64."""
        ...

    def act(self, obs: NDArray[Any], noise: Array) -> NDArray[np.generic]:
        """Actions [envs, ...] for observations [envs, ...] and that step's noise."""
        ...


def numpys_tanh(x: Array) -> Callable[[], object]:
    """What takes tanh of an array in place."""
    return lambda: np.tanh(x, x)


class ActorCritic:
    """Actor and critic with hidden tanh layers above a torso, orthogonally initialised.

    ``obs_shape``: the size of a vector, for which the torso does nothing, or an image's [channels, height, width].
    Gains: sqrt(2) for hidden layers, 0.01 for the actor's output, 1 for the critic's; biases 0 (as CleanRL's).

    ``tanh``: of the actor in NumPy; for an array, what takes it in place.

    Attributes: ``flat``, the vector that the optimiser steps, with ``flat.grad``; ``named``, its parts by name, leaves
    that share its storage; ``layout``, name to (offset, shape).
    """

    def __init__(
        self,
        obs_shape: int | Sequence[int],
        head: Head,
        hidden_sizes: Sequence[int],
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        tanh: Callable[[Array], Callable[[], object]] = numpys_tanh,
    ) -> None:
        self.head, self.tanh = head, tanh
        self.torso = make_torso((obs_shape,) if isinstance(obs_shape, int) else obs_shape)
        self.depth = len(hidden_sizes) + 1
        shapes = dict(self.torso.shapes)
        for tower, outputs in (("actor", head.outputs), ("critic", 1)):
            sizes = [self.torso.features, *hidden_sizes, outputs]
            for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
                shapes[f"{tower}.{layer}.weight"] = (fan_out, fan_in)
                shapes[f"{tower}.{layer}.bias"] = (fan_out,)
        shapes |= head.extra_shapes
        self.layout: dict[str, tuple[int, tuple[int, ...]]] = {}
        size = 0
        for name, shape in shapes.items():
            self.layout[name] = (size, shape)
            size += math.prod(shape)
        self.flat = torch.nn.Parameter(torch.zeros(size, dtype=dtype, device=device))
        self.flat.grad = torch.zeros_like(self.flat)
        self.named = self._views(self.flat.data, self.flat.grad)
        self.towers = {
            tower: [(f"{tower}.{i}.weight", f"{tower}.{i}.bias") for i in range(self.depth)]
            for tower in ("actor", "critic")
        }
        self._initialise(generator)

    def _views(self, flat: Tensor, flat_grad: Tensor) -> dict[str, Tensor]:
        """Leaves that share the storage of ``flat`` and whose gradients share that of ``flat_grad``."""
        leaves: dict[str, Tensor] = {}
        for name, (offset, shape) in self.layout.items():
            part = slice(offset, offset + math.prod(shape))
            leaves[name] = flat[part].view(shape).requires_grad_()
            leaves[name].grad = flat_grad[part].view(shape)
        return leaves

    def _initialise(self, generator: torch.Generator) -> None:
        # Drawn in float32 whatever the dtype, so that runs of two precisions start from the same network.
        gains = {f"actor.{self.depth - 1}.weight": 0.01, f"critic.{self.depth - 1}.weight": 1.0}
        for name, leaf in self.named.items():
            if name.endswith(".weight"):
                weight = torch.empty(leaf.shape)
                torch.nn.init.orthogonal_(weight, gains.get(name, math.sqrt(2)), generator=generator)
                leaf.data.copy_(weight)

    def raw(self) -> Array:
        """All parameters as NumPy sees them, a view where it can; bfloat16, which it does not know, as its bits."""
        flat = self.flat.detach().cpu()
        return flat.view(torch.int16).numpy() if flat.dtype == torch.bfloat16 else flat.numpy()

    def features(self, obs: Tensor) -> Tensor:
        """What both towers see, [samples, features]."""
        return self.torso(obs, self.named)

    def _tower(self, tower: str, x: Tensor, parameters: Parameters) -> Tensor:
        for i, (weight, bias) in enumerate(self.towers[tower]):
            x = F.linear(torch.tanh(x) if i else x, parameters[weight], parameters[bias])
        return x.to(self.flat.dtype)  # under autocast: distributions and losses are computed in the parameters' dtype

    def logp_entropy(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of ``actions`` and entropies (nats), each [samples]."""
        return self.head.evaluate(self.act(obs), actions, self.extra(self.named))

    def values(self, obs: Tensor) -> Tensor:
        """State values, [samples], of observations [samples, ...]."""
        return self._tower("critic", self.features(obs), self.named).squeeze(-1)

    def evaluate(self, parameters: Parameters, obs: Tensor, actions: Tensor) -> Evaluation:
        """Log-probabilities of ``actions``, entropies (nats) and state values, each [samples]: a pure function.

        ``parameters``: ``named``, or tensors of those names and shapes.
        """
        x = self.torso(obs, parameters)  # once: towers share it
        logp, entropy = self.head.evaluate(self._tower("actor", x, parameters), actions, self.extra(parameters))
        return Evaluation(logp, entropy, self._tower("critic", x, parameters).squeeze(-1))

    def extra(self, parameters: Parameters) -> dict[str, Tensor]:
        """The head's own parameters."""
        return {name: parameters[name] for name in self.head.extra_shapes}

    def act(self, obs: Tensor) -> Tensor:
        """The actor's outputs, [samples, outputs]: what the head makes a distribution of."""
        return self._tower("actor", self.features(obs), self.named)

    def actor(self) -> Actor:
        """The actor with today's weights: in NumPy, since for a handful of vectors torch would mostly be overhead."""
        if not isinstance(self.torso, VectorTorso):
            return TorchActor(self)

        def array(leaf: Tensor) -> Array:
            return at_least_float32(leaf.detach()).cpu().numpy()

        layers = [(array(self.named[weight]).T, array(self.named[bias])) for weight, bias in self.towers["actor"]]
        extra = {name: array(leaf) for name, leaf in self.extra(self.named).items()}
        return NumpyActor(self.head, layers, extra, self.tanh)


class TorchActor(NamedTuple):
    """The actor in torch, for images. Its batch is always one observation per environment, so its bits do not vary."""

    policy: ActorCritic

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float64 if self.policy.flat.dtype == torch.float64 else np.float32)

    @torch.no_grad()
    def act(self, obs: NDArray[Any], noise: Array) -> NDArray[np.generic]:
        out = self.policy.act(torch.from_numpy(obs).to(self.policy.flat.device))
        extra = {
            name: at_least_float32(leaf).cpu().numpy() for name, leaf in self.policy.extra(self.policy.named).items()
        }
        return self.policy.head.sample(at_least_float32(out).cpu().numpy(), noise, extra)


class NumpyActor:
    """The actor as it is now: collect nothing with it after the parameters were stepped.

    Layers: weights [inputs, outputs] and biases [outputs]. Biases are written out for every environment, and results
    made in buffers: what NumPy does around an operation this small takes longer than the operation.
    """

    def __init__(
        self,
        head: Head,
        layers: list[tuple[Array, Array]],
        extra: dict[str, Array],
        tanh: Callable[[Array], Callable[[], object]],
    ) -> None:
        self.head, self.extra, self.tanh = head, extra, tanh
        self._layers = layers
        self._rows: list[tuple[Array, Array, Array, Callable[[], object]]] = []

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._layers[0][0].dtype

    def act(self, obs: NDArray[Any], noise: Array) -> NDArray[np.generic]:
        if not self._rows or len(obs) != len(self._rows[0][2]):
            self._make_room(len(obs))
        *hidden, (weight, bias, out, _) = self._rows
        for into, shift, made, tanh in hidden:
            np.dot(obs, into, made)
            obs = np.add(made, shift, made)
            tanh()
        np.dot(obs, weight, out)
        return self.head.sample(np.add(out, bias, out), noise, self.extra)

    def _make_room(self, num_envs: int) -> None:
        biases = [np.tile(bias, (num_envs, 1)) for _, bias in self._layers]
        made = [np.empty_like(bias) for bias in biases]
        weights = [weight for weight, _ in self._layers]
        self._rows = list(zip(weights, biases, made, map(self.tanh, made), strict=True))
