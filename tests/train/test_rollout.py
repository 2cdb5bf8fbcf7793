"""Rollouts against Gymnasium's own vector environment and wrappers; GAE against its definition; truncation."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings, strategies as st

from rlloss.config import load
from rlloss.config.schema import Config, EnvConfig
from rlloss.train import streams, train
from rlloss.train.envs import make_envs
from rlloss.train.policy import ActorCritic, make_head
from rlloss.train.rollout import Experience, collect, gae


def make(env_id="CartPole-v1", num_envs=3, seed=1):
    envs = make_envs(EnvConfig(env_id), streams.env_seeds(seed, num_envs))
    policy = ActorCritic(
        envs.obs.shape[1], make_head(envs.action_space), (64, 64),
        generator=streams.torch_stream(seed, streams.INITIALISATION),
    )  # fmt: skip
    return Experience(envs, streams.numpy_stream(seed, streams.ACTIONS)), policy


def by_time(tensor, num_steps):
    return tensor.view(num_steps, -1, *tensor.shape[1:]).numpy()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCar-v0", "Pendulum-v1"])
def test_transitions_are_those_of_gymnasiums_vector_environment(env_id):
    """The same actions through SyncVectorEnv (SAME_STEP) give the same observations, rewards and episode ends."""
    experience, policy = make(env_id)
    first, num_steps = experience.envs.obs.copy(), 250
    rollout = collect(experience, policy, num_steps)
    reference = SyncVectorEnv([lambda: gymnasium.make(env_id)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    obs, _ = reference.reset(seed=streams.env_seeds(1, 3))
    assert np.array_equal(first, obs)
    low, high = (reference.single_action_space.low, reference.single_action_space.high) if env_id[0] == "P" else (0, 9)
    for t in range(num_steps):
        assert np.array_equal(by_time(rollout.obs, num_steps)[t], obs)
        action = by_time(rollout.actions, num_steps)[t].clip(low, high)
        obs, rewards, terminated, truncated, info = reference.step(action)
        assert np.array_equal(rollout.rewards[t], rewards.astype(np.float32))
        assert np.array_equal(rollout.dones[t], terminated | truncated)
        for env in range(3):
            value = 0.0
            if not terminated[env]:
                state = info["final_obs"][env] if truncated[env] else obs[env]
                value = policy.values(torch.from_numpy(state).unsqueeze(0)).item()
            assert rollout.next_values[t, env] == pytest.approx(value, abs=1e-5)
    assert rollout.dones.any()


def test_log_probabilities_and_values_belong_to_the_observations():
    experience, policy = make()
    rollout = collect(experience, policy, 40)
    new = policy.evaluate(policy.named, rollout.obs, rollout.actions)
    torch.testing.assert_close(rollout.logp, new.logp.detach())
    torch.testing.assert_close(torch.from_numpy(rollout.values).flatten(), new.values.detach())


def test_episodes_are_those_of_gymnasiums_statistics_wrapper():
    experience, policy = make()
    rollouts = [collect(experience, policy, 64) for _ in range(4)]  # episodes run across the seams
    actions = np.concatenate([by_time(r.actions, 64) for r in rollouts])
    expected = []
    for i, seed in enumerate(streams.env_seeds(1, 3)):
        env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("CartPole-v1"))
        env.reset(seed=seed)
        for t, action in enumerate(actions[:, i]):
            *_, terminated, truncated, info = env.step(int(action))
            if terminated or truncated:
                expected.append(((t + 1) * 3, i, info["episode"]["r"], info["episode"]["l"]))
                env.reset()
    episodes = [tuple(e) for r in rollouts for e in r.episodes]
    assert episodes == sorted(expected)
    assert len(episodes) > 10


def test_one_environment_never_shifts_another():
    """Environment 0 of a group of 3 starts and resets as if it were alone, given the same actions."""
    experience, policy = make(num_envs=3)
    actions = by_time(collect(experience, policy, 200).actions, 200)[:, 0]
    alone = make_envs(EnvConfig("CartPole-v1"), streams.env_seeds(1, 1))
    experience3, _ = make(num_envs=3)
    assert np.array_equal(alone.obs[0], experience3.envs.obs[0])
    together = by_time(collect(experience3, policy, 200).obs, 200)[:, 0]
    obs, scratch = np.empty((1, 4), np.float32), np.empty((3, 1))
    for t in range(199):
        alone.step(actions[t : t + 1], obs, scratch[0], *(np.empty(1, bool) for _ in range(2)))
        assert np.array_equal(obs[0], together[t + 1])


def test_streams_do_not_shift_each_other():
    keys = streams.INITIALISATION, streams.ACTIONS, streams.SHUFFLE
    draws = {tuple(streams.numpy_stream(1, key).integers(0, 2**62, 4)) for key in keys}
    assert len(draws) == 3
    assert streams.env_seeds(1, 8)[:2] == streams.env_seeds(1, 2)
    assert len(set(streams.env_seeds(1, 100) + streams.env_seeds(2, 100))) == 200


def naive_gae(rewards, values, next_values, dones, gamma, lam):
    """The definition: a discounted sum of the deltas up to the end of the episode, sample by sample."""
    deltas = rewards + gamma * next_values - values
    advantages = np.zeros_like(deltas)
    for t, env in np.ndindex(*deltas.shape):
        weight = 1.0
        for later in range(t, len(deltas)):
            advantages[t, env] += weight * deltas[later, env]
            weight *= gamma * lam
            if dones[later, env]:
                break
    return advantages


@settings(max_examples=50, deadline=None)
@given(
    steps=st.integers(1, 30),
    envs=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
)
def test_gae_is_its_definition(steps, envs, seed, gamma, lam):
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, steps, envs))
    dones = rng.random((steps, envs)) < 0.2
    ours = gae(rewards, values, next_values, dones, gamma=gamma, gae_lambda=lam)
    np.testing.assert_allclose(ours, naive_gae(rewards, values, next_values, dones, gamma, lam), atol=1e-10)


def test_gae_with_lambda_one_is_the_discounted_return():
    rewards, values = np.ones((10, 1)), np.zeros((10, 1))
    dones = np.zeros((10, 1), bool)
    dones[9] = True
    ours = gae(rewards, values, np.zeros((10, 1)), dones, gamma=0.9, gae_lambda=1.0)
    assert ours[0, 0] == pytest.approx((1 - 0.9**10) / (1 - 0.9))


class ConstantReward(gymnasium.Env):
    """Reward 1 for ever; only the time limit ends an episode."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), 1.0, False, False, {}


def test_time_limit_is_bootstrapped_to_the_value_of_an_infinite_horizon():
    """Stable-Baselines3's check: with gamma 0.98, reward 1 for ever is worth 1 / (1 - 0.98) = 50."""
    gymnasium.register("ConstantReward-v0", ConstantReward, max_episode_steps=100)
    config = load(
        ["total_timesteps=40960", "num_steps=256", "gamma=0.98", "learning_rate=0.003", "schedule=constant",
         "clip_vloss=false", "max_grad_norm=100", "norm_adv=false"]
    )  # fmt: skip
    config.env = EnvConfig("ConstantReward-v0")
    run = train(config)
    assert run.policy.values(torch.ones(1, 1)).item() == pytest.approx(50, abs=1)
    assert run.episodic_length == 100


def test_collect_casts_to_the_precision_of_the_policy():
    run = train(Config(total_timesteps=512, precision=load(["precision=fp64"]).precision))
    assert run.policy.flat.dtype == torch.float64
