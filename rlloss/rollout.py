"""Collecting experience: ``collect`` steps the environments, ``gae`` estimates advantages."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlloss.envs import Environments
from rlloss.policy import ActorCritic
from rlloss.precision import PRECISIONS, Precision, at_least_float32

Array = NDArray[np.floating]
FP32 = PRECISIONS["fp32"]


class Episode(NamedTuple):
    """A finished episode. ``env_steps`` counts the steps of all environments up to and including its last."""

    env_steps: int
    env: int
    episodic_return: float  # undiscounted, of the environment's own rewards
    episodic_length: int


@dataclass(frozen=True)
class Rollout:
    """One iteration's experience. T = num_steps, E = num_envs; torch tensors have T*E samples, time-major."""

    obs: Tensor  # [T*E, obs_size], or images, uint8 [T*E, channels, height, width]
    actions: Tensor  # [T*E], int64, or [T*E, action_size]
    logp: Tensor  # [T*E], of the policy that acted, recomputed by torch in one batch
    values: Array  # [T, E], V(s_t)
    next_values: Array  # [T, E], V(s_{t+1}) with 0 after a termination and V(final observation) at a time limit
    rewards: Array  # [T, E], as the wrappers hand them out
    dones: NDArray[np.bool_]  # [T, E], terminated or truncated
    episodes: list[Episode]


class Sampler:
    """The environments, the stream of action noise and the running episodes: everything that ``collect`` advances."""

    def __init__(self, envs: Environments, rng: np.random.Generator) -> None:
        self.envs = envs
        self.rng = rng
        self.returns = np.zeros(len(envs))  # of the running episodes
        self.lengths = np.zeros(len(envs), dtype=np.int64)
        self.env_steps = 0

    def finished(self, rewards: Array, dones: NDArray[np.bool_]) -> list[Episode]:
        """Returns and lengths of the episodes that ended in these [T, E] steps; the rest is carried over.

        ``rewards`` are the environment's own, whatever wrappers made of them.
        """
        num_steps, num_envs = rewards.shape
        episodes = []
        for env in range(num_envs):
            start = 0
            for end in (np.flatnonzero(dones[:, env]) + 1).tolist():
                episodic_return = self.returns[env] + rewards[start:end, env].sum()
                length = self.lengths[env] + end - start
                steps = self.env_steps + end * num_envs
                episodes.append(Episode(steps, env, float(episodic_return), int(length)))
                self.returns[env], self.lengths[env], start = 0.0, 0, end
            self.returns[env] += rewards[start:, env].sum()
            self.lengths[env] += num_steps - start
        self.env_steps += num_steps * num_envs
        return sorted(episodes)


def collect(sampler: Sampler, policy: ActorCritic, num_steps: int, precision: Precision = FP32) -> Rollout:
    """Act for ``num_steps`` steps in every environment.

    Actions come from a forward pass per step, in NumPy except for images; log-probabilities and values are recomputed
    by torch in one batch each, so the ratio of the first minibatch is 1 up to the rounding of two batch sizes.
    """
    envs, actor = sampler.envs, policy.sampler()
    num_envs, space = len(envs), envs.action_space
    shape: tuple[int, ...] = space.shape or ()
    dtype = actor.dtype
    noise = policy.head.noise(sampler.rng, num_steps, num_envs)
    obs = np.empty((num_steps + 1, *envs.obs.shape), envs.obs.dtype if envs.obs.dtype == np.uint8 else dtype)
    actions = np.empty((num_steps, num_envs, *shape), np.int64 if isinstance(space, spaces.Discrete) else dtype)
    rewards = np.empty((num_steps, num_envs))
    raw_rewards = np.empty_like(rewards) if envs.rescaled else rewards
    terminated, truncated = np.empty((2, num_steps, num_envs), np.bool_)
    cut: dict[tuple[int, int], Array] = {}  # (step, env) -> last observation before a time limit's reset

    obs[0] = envs.obs
    for t in range(num_steps):
        actions[t] = actor.act(obs[t], noise[t])
        last = envs.step(actions[t], obs[t + 1], rewards[t], terminated[t], truncated[t])
        cut |= {(t, env): final for env, final in last.items()}
        if envs.rescaled:
            raw_rewards[t] = envs.raw_rewards()
    envs.obs = obs[-1]

    dones = terminated | truncated

    def held(array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array).to(policy.flat.device)
        return tensor.to(policy.flat.dtype) if tensor.is_floating_point() else tensor

    with torch.no_grad(), precision.forward(policy.flat.device.type):
        b_obs = held(obs.reshape(-1, *obs.shape[2:]))
        values = at_least_float32(policy.values(b_obs)).cpu().numpy().reshape(num_steps + 1, num_envs)
        next_values = np.where(dones, 0, values[1:])
        if cut:
            final_obs = held(np.stack(list(cut.values())).astype(obs.dtype))
            final_values = at_least_float32(policy.values(final_obs)).cpu().numpy()
            next_values[tuple(zip(*cut, strict=True))] = final_values
        b_obs = b_obs[: num_steps * num_envs]
        b_actions = held(actions.reshape(num_steps * num_envs, *shape))
        logp, _ = policy.logp_entropy(b_obs, b_actions)
    return Rollout(
        b_obs, b_actions, logp, values[:-1], next_values, rewards.astype(dtype), dones,
        sampler.finished(raw_rewards, dones),
    )  # fmt: skip


def gae(
    rewards: Array, values: Array, next_values: Array, dones: NDArray[np.bool_], *, gamma: float, gae_lambda: float
) -> Array:
    """Generalised advantage estimates, [T, E]: ``A_t = delta_t + gamma * lambda * A_{t+1}`` within an episode,

    ``delta_t = r_t + gamma * V(s_{t+1}) - V(s_t)``. ``next_values`` holds V(s_{t+1}): 0 after a termination, that of
    the final observation at a time limit. The recursion stops at the end of every episode.

    Source: Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation".
    """
    deltas = rewards + np.asarray(gamma, rewards.dtype) * next_values - values
    carry = np.where(dones, 0, np.asarray(gamma * gae_lambda, rewards.dtype))
    advantages = np.empty_like(deltas)
    running = np.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        running = deltas[t] + carry[t] * running
        advantages[t] = running
    return advantages
