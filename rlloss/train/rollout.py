"""Collecting experience: ``collect`` steps the environments, ``gae`` estimates advantages."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlloss.errors import EnvironmentFailed, NonFinite
from rlloss.runs.rows import Episode
from rlloss.train.policy import ActorCritic
from rlloss.train.precision import PRECISIONS, Precision, at_least_float32
from rlloss.train.replay import Played
from rlloss.train.vector import Environments

Array = NDArray[np.floating]
FP32 = PRECISIONS["fp32"]
MEND = "mend it, and the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class Rollout:
    """One iteration's experience. T = num_steps, E = num_envs; torch tensors have T*E samples, time-major."""

    obs: Tensor  # [T*E, obs_size], or images, uint8 [T*E, channels, height, width]
    actions: Tensor  # [T*E, ...], int64 or floating: what the head made, not yet what the environment executed
    logp: Tensor  # [T*E], of the policy that acted, recomputed by torch in one batch
    values: Array  # [T, E], V(s_t)
    next_values: Array  # [T, E], V(s_{t+1}) with 0 after a termination and V(final observation) at a time limit
    rewards: Array  # [T, E], as the wrappers hand them out
    dones: NDArray[np.bool_]  # [T, E], terminated or truncated
    episodes: list[Episode]
    digests: dict[str, str]  # of what the policy did and of what the environments returned, by their metric's name


class Experience:
    """The environments, the stream of action noise and the running episodes: everything that ``collect`` advances."""

    def __init__(self, envs: Environments, rng: np.random.Generator) -> None:
        self.envs = envs
        self.rng = rng
        self.returns = np.zeros(len(envs))  # of the running episodes
        self.lengths = np.zeros(len(envs), dtype=np.int64)
        self.env_steps = 0

    def state_dict(self) -> dict[str, Any]:
        """All of it. ``statistics``, those of the wrappers, are there for whoever evaluates the policy."""
        return {
            "rng": self.rng.bit_generator.state,
            "returns": self.returns,
            "lengths": self.lengths,
            "env_steps": self.env_steps,
            "envs": self.envs.state_dict(),
            "statistics": self.envs.statistics(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises: ReplayDiffers, and nothing has changed."""
        self.envs.load_state_dict(state["envs"])
        self.rng.bit_generator.state = state["rng"]
        self.returns, self.lengths, self.env_steps = state["returns"], state["lengths"], state["env_steps"]

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


class Interaction(NamedTuple):
    """What the policy did and what the environments returned in T steps of E environments, as arrays."""

    obs: NDArray[Any]  # [T + 1, E, ...]: before every step, and after the last
    actions: NDArray[Any]  # [T, E, ...]
    rewards: Array  # [T, E], as the wrappers hand them out
    raw_rewards: Array  # [T, E], the environment's own
    terminated: NDArray[np.bool_]  # [T, E]
    truncated: NDArray[np.bool_]  # [T, E]
    cut: dict[tuple[int, int], Array]  # (step, environment) -> last observation before a time limit's reset

    def digests(self) -> dict[str, str]:
        """By their metric's name."""
        return {
            "actions_digest": _digest(self.actions),
            "observations_digest": _digest(self.obs, *self.cut.values()),
            "rewards_digest": _digest(self.rewards),
            "ends_digest": _digest(self.terminated, self.truncated),
        }


def collect(
    experience: Experience,
    policy: ActorCritic,
    num_steps: int,
    precision: Precision = FP32,
    *,
    finite_only: bool = False,
) -> Rollout:
    """Act for ``num_steps`` steps in every environment.

    Actions come from a forward pass per step, in NumPy except for images; log-probabilities and values are recomputed
    by torch in one batch each, so the ratio of the first minibatch is 1 up to the rounding of two batch sizes.

    Raises: NonFinite, if ``finite_only``, for the first observation or reward that is not a finite number.
    """
    done = interact(experience, policy, num_steps, finite_only=finite_only)
    dones = done.terminated | done.truncated

    def held(array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array).to(policy.flat.device)
        return tensor.to(policy.flat.dtype) if tensor.is_floating_point() else tensor

    with torch.no_grad(), precision.context(policy.flat.device.type):
        b_obs = held(done.obs.reshape(-1, *done.obs.shape[2:]))
        values = at_least_float32(policy.values(b_obs)).cpu().numpy().reshape(num_steps + 1, -1)
        next_values = np.where(dones, 0, values[1:])
        if done.cut:
            final_obs = held(np.stack(list(done.cut.values())).astype(done.obs.dtype))
            final_values = at_least_float32(policy.values(final_obs)).cpu().numpy()
            next_values[tuple(zip(*done.cut, strict=True))] = final_values
        b_obs = b_obs[: dones.size]
        b_actions = held(done.actions.reshape(dones.size, *done.actions.shape[2:]))
        logp, _ = policy.logp_entropy(b_obs, b_actions)
    episodes = experience.finished(done.raw_rewards, dones)
    rewards = done.rewards.astype(values.dtype)
    return Rollout(b_obs, b_actions, logp, values[:-1], next_values, rewards, dones, episodes, done.digests())


def interact(experience: Experience, policy: ActorCritic, num_steps: int, *, finite_only: bool) -> Interaction:
    """The steps themselves. Raises: as ``collect``."""
    envs, actor = experience.envs, policy.actor()
    num_envs, shape, dtype = len(envs), policy.head.shape, actor.dtype
    noise = policy.head.noise(experience.rng, num_steps, num_envs)
    obs = np.empty((num_steps + 1, *envs.obs.shape), np.uint8 if envs.images else dtype)
    actions = np.empty((num_steps, num_envs, *shape), np.int64 if policy.head.discrete else dtype)
    rewards = np.empty((num_steps, num_envs))
    raw_rewards = np.empty_like(rewards) if envs.rescaled else rewards
    terminated, truncated = np.empty((2, num_steps, num_envs), np.bool_)
    cut: dict[tuple[int, int], Array] = {}

    obs[0] = envs.obs
    t, envs.stepping = 0, True
    try:
        rows = zip(obs, noise, actions, obs[1:], rewards, terminated, truncated, strict=False)
        for t, (seen, drawn, chosen, *answers) in enumerate(rows):
            chosen[...] = actor.act(seen, drawn)
            if last := envs.step(chosen, *answers):
                cut |= {(t, env): final for env, final in last.items()}
            if envs.rescaled:
                raw_rewards[t] = envs.raw_rewards()
    except EnvironmentFailed as error:
        if finite_only:  # an environment that was handed nan may raise anything: the nan is the reason
            refuse_nonfinite(obs[: t + 1], rewards[:t], {}, experience.env_steps)
        where = f"at environment step {experience.env_steps + (t + 1) * num_envs}"
        raise EnvironmentFailed(f"{error}, {where}; {MEND}") from error.__cause__
    finally:
        envs.stepping = False
    if finite_only:
        refuse_nonfinite(obs, rewards, cut, experience.env_steps)
    envs.obs = obs[-1]
    envs.journal.add(Played(actions, rewards, terminated | truncated))
    return Interaction(obs, actions, rewards, raw_rewards, terminated, truncated, cut)


def refuse_nonfinite(obs: Array, rewards: Array, cut: Mapping[tuple[int, int], Array], env_steps: int) -> None:
    """Raises: NonFinite for the first number that is not finite: [T + 1, E, ...] observations, [T, E] rewards.

    ``env_steps`` counts those before these.
    """
    num_envs = obs.shape[1]
    with np.errstate(over="ignore"):
        held = rewards.astype(np.float64 if obs.dtype == np.float64 else np.float32)  # as they are trained with
    found = [(t, env, f"observation {obs[t, env][tuple(at)]}") for t, env, *at in _nonfinite(obs)[:1]]
    found += [(t + 1, env, f"reward {rewards[t, env]}") for t, env in _nonfinite(held)[:1]]
    found += [(t + 1, env, "last observation of an episode") for (t, env), last in cut.items() if len(_nonfinite(last))]
    if found:
        t, env, what = min(found)
        raise NonFinite(f"{what} from environment {env}, at environment step {env_steps + t * num_envs}")


def _nonfinite(array: NDArray[Any]) -> NDArray[np.intp]:
    """Where an array holds nan or an infinity; nowhere, if it holds integers."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return np.empty((0, array.ndim), np.intp)
    return np.argwhere(~np.isfinite(array))


def _digest(*arrays: NDArray[Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of some arrays' bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


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
    for delta, share, made in zip(deltas[::-1], carry[::-1], advantages[::-1], strict=True):
        running = np.add(delta, np.multiply(share, running, made), made)
    return advantages
