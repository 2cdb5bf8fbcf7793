"""Wrappers against their definitions, raw returns, what is not installed, and the optional environments themselves."""

import subprocess
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

from rlloss.config import load
from rlloss.config.schema import EnvConfig
from rlloss.errors import ConfigError
from rlloss.runs import RunFolder
from rlloss.train import streams, train
from rlloss.train.envs import make_envs, missing_extra
from rlloss.train.policy import ActorCritic, make_head
from rlloss.train.rollout import Experience, collect
from rlloss.train.wrappers import WRAPPERS
from tests.helpers import SHORT, assert_identical_though_clipped

NORMALIZED = ("normalize_observation", "normalize_reward")
PENDULUM = EnvConfig("Pendulum-v1", wrappers=list(NORMALIZED))


def rollout_of(config, num_steps, num_envs=2, gamma=0.99):
    envs = make_envs(config, streams.env_seeds(1, num_envs), gamma)
    first = envs.obs.copy()
    policy = ActorCritic(
        envs.obs.shape[1], make_head(envs.action_space), (8,), generator=torch.Generator().manual_seed(1)
    )
    return first, collect(Experience(envs, np.random.default_rng(1)), policy, num_steps), policy


class Running:
    """Mean and variance by their definitions, over all values so far and Gymnasium's pseudo-count of 1e-4 at (0, 1)."""

    def __init__(self):
        self.values = []

    def variance(self):
        x, n = np.array(self.values, np.float64), len(self.values) + 1e-4
        mean = x.sum(0) / n
        return mean, (((x - mean) ** 2).sum(0) + 1e-4 * (1 + mean**2)) / n

    def normalize(self, value):
        self.values.append(value)
        mean, variance = self.variance()
        return np.clip((value - mean) / np.sqrt(variance + 1e-8), -10, 10)


def test_normalisation_is_its_definition_per_environment_and_through_resets():
    """Replay the actions through the bare environment, and normalise by hand: observations, rewards, final ones too."""
    num_steps, gamma = 210, 0.9
    first, rollout, policy = rollout_of(PENDULUM, num_steps, gamma=gamma)
    obs, actions = (x.view(num_steps, 2, -1).numpy() for x in (rollout.obs, rollout.actions))
    for i, seed in enumerate(streams.env_seeds(1, 2)):
        env, statistics, returns, discounted = gymnasium.make("Pendulum-v1"), Running(), Running(), 0.0
        expected = statistics.normalize(env.reset(seed=seed)[0])
        np.testing.assert_allclose(first[i], expected, atol=1e-5)
        for t in range(num_steps):
            np.testing.assert_allclose(obs[t, i], expected, atol=2e-4)
            after, reward, _, truncated, _ = env.step(actions[t, i].clip(-2, 2))
            discounted = gamma * discounted + reward
            returns.values.append(discounted)
            scaled = np.clip(reward / np.sqrt(returns.variance()[1] + 1e-8), -10, 10)
            assert rollout.rewards[t, i] == pytest.approx(scaled, rel=1e-3, abs=1e-4)
            expected = statistics.normalize(after)
            if truncated:
                assert t == 199
                value = policy.values(torch.from_numpy(expected.astype(np.float32)).unsqueeze(0)).item()
                assert rollout.next_values[t, i] == pytest.approx(value, abs=1e-3), "the normalised final observation"
                expected = statistics.normalize(env.reset()[0])
    assert np.abs(rollout.rewards).max() < 10.001
    assert rollout.dones.sum() == 2


@pytest.mark.parametrize("wrappers", [("normalize_reward",), ("sign_reward",), ("normalize_reward", "sign_reward")])
def test_episodic_return_is_that_of_the_environments_own_rewards(wrappers):
    _, wrapped, _ = rollout_of(EnvConfig("Pendulum-v1", wrappers=list(wrappers)), 450)
    _, bare, _ = rollout_of(EnvConfig("Pendulum-v1"), 450)
    assert wrapped.episodes == bare.episodes, "these wrappers leave observations, hence actions, alone"
    assert len(bare.episodes) == 4
    assert not np.allclose(wrapped.rewards, bare.rewards)
    assert bare.episodes[0].episodic_return == pytest.approx(bare.rewards[:200, 0].sum(), rel=1e-5)


def test_reward_normalisation_uses_the_runs_discount(monkeypatch):
    seen = []
    monkeypatch.setitem(WRAPPERS, "normalize_reward", lambda env, gamma: seen.append(gamma) or env)
    train(load(["env.wrappers=[normalize_reward]", "num_envs=2", "num_steps=50", "total_timesteps=100", "gamma=0.7"]))
    assert seen == [0.7, 0.7]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env.wrappers=[nope]"], "env.wrappers=nope: unknown; use one of normalize_observation, normalize_reward"),
        (["env.wrappers=[atari_preprocessing]"], "CartPole-v1 cannot be wrapped so"),
        (["env.id=ALE/Breakout-v5", "+env.kwargs.nothing=1"], "env.kwargs"),
        (["env.id=ALE/NoSuchGame-v5"], "env.id=ALE/NoSuchGame-v5"),
    ],
)
def test_bad_environments_are_one_line(overrides, message):
    if "ALE" in overrides[0]:
        pytest.importorskip("ale_py", reason="pip install 'rlloss[atari]'")
    config = load(overrides).env
    with pytest.raises(ConfigError) as caught:
        make_envs(config, [1])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


ABSENT = {  # import that fails -> the extra that would bring it
    "Box2D": ("lunarlander", "box2d"),
    "mujoco": ("halfcheetah", "mujoco"),
    "imageio": ("hopper", "mujoco"),
    "ale_py": ("breakout", "atari"),
    "cv2": ("breakout", "atari"),
}


@pytest.mark.parametrize("package", ABSENT)
def test_what_is_not_installed_is_named_with_its_extra(package, monkeypatch):
    """None in sys.modules makes an import fail, so that this runs wherever the package is or is not installed."""
    env, extra = ABSENT[package]
    if package == "cv2":
        pytest.importorskip("ale_py", reason="pip install 'rlloss[atari]'")
    for name in [name for name in sys.modules if name.startswith(("gymnasium.envs.box2d", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    if package == "ale_py":  # an earlier import of it registered its games
        monkeypatch.delitem(gymnasium.registry, "ALE/Breakout-v5", raising=False)
    config = load([f"env={env}"]).env
    assert (
        missing_extra([EnvConfig("CartPole-v1"), config])
        == f"env.id={config.id} is not installed; pip install 'rlloss[{extra}]'"
    )
    assert missing_extra([EnvConfig("CartPole-v1")]) == ""


EXTRA_ENVS = {  # the package that it needs, and settings under which the clip is active within these few steps
    "lunarlander": ("Box2D", ()),
    "halfcheetah": ("mujoco", ()),
    "hopper": ("mujoco", ()),
    "invertedpendulum": ("mujoco", ()),
    "breakout": ("ale_py", ("num_steps=16", "total_timesteps=64", "update_epochs=2")),
}


@pytest.mark.parametrize("env", EXTRA_ENVS)
def test_formulations_are_identical_with_the_extras(make_run, env):
    package, settings = EXTRA_ENVS[env]
    pytest.importorskip(package, reason="comes with an extra")
    settings = (f"env={env}", "learning_rate=0.01", *settings)
    assert_identical_though_clipped(make_run(*settings), make_run(*settings, "loss=reinforce"))


@pytest.mark.parametrize(
    "env", [env if env == "halfcheetah" else pytest.param(env, marks=pytest.mark.slow) for env in EXTRA_ENVS]
)
def test_another_process_trains_to_the_same_bits_and_leaves_nothing_beside_its_run(make_run, env, tmp_path):
    package, settings = EXTRA_ENVS[env]
    pytest.importorskip(package, reason="comes with an extra")
    settings = (*SHORT, f"env={env}", "learning_rate=0.01", *settings)
    done = subprocess.run(
        [sys.executable, "-m", "rlloss", "train", *settings, "run_dir=there"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    here = make_run(*settings[len(SHORT) :])
    there = RunFolder(tmp_path / "there")
    assert np.array_equal(here.digests, there.digests)
    assert there.info["versions"][package.lower().replace("_", "-")], "the simulator's"


@pytest.mark.parametrize(("env", "package"), [("hopper", "mujoco"), ("breakout", "ale_py")])
def test_returns_with_extras_are_those_of_the_wrapped_environments_own_rewards(env, package):
    """Gymnasium's statistics beneath the reward wrapper, on the same actions."""
    pytest.importorskip(package, reason="comes with an extra")
    config = load([f"env={env}"]).env
    observing = [name for name in config.wrappers if name in ("atari_preprocessing", "frame_stack")]
    envs, bare = make_envs(config, [5]), make_envs(replace(config, wrappers=observing), [5])
    statistics = gymnasium.wrappers.RecordEpisodeStatistics(bare.envs[0])
    statistics.reset(seed=5)
    rng, total = np.random.default_rng(0), 0.0
    for _ in range(1200):
        discrete = isinstance(envs.action_space, gymnasium.spaces.Discrete)
        action = rng.integers(envs.action_space.n, size=1) if discrete else rng.normal(size=(1, 3))
        flags = np.empty((2, 1), bool)
        envs.step(action, np.empty_like(envs.obs), np.empty(1), *flags)
        clipped = int(action[0]) if discrete else np.clip(action[0], envs.action_space.low, envs.action_space.high)
        *_, terminated, truncated, info = statistics.step(clipped)
        total += float(envs.raw_rewards()[0])
        assert flags[:, 0].tolist() == [terminated, truncated]
        if terminated or truncated:
            assert total == pytest.approx(info["episode"]["r"], abs=1e-4)
            if total:
                return
            statistics.reset()
            total = 0.0
    pytest.fail("no episode with a reward finished")
