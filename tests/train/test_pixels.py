"""Images through the whole loop, on a small environment of its own that needs no extra."""

import gymnasium
import numpy as np
import pytest
import torch

from rlloss.config import load
from rlloss.config.schema import EnvConfig
from rlloss.errors import ConfigError
from rlloss.runs import RunFolder
from rlloss.train import streams, train
from rlloss.train.envs import make_envs
from rlloss.train.policy import ActorCritic, make_head
from rlloss.train.rollout import Experience, collect
from tests.helpers import assert_identical_though_clipped


class Pixels(gymnasium.Env):
    """A bright column that the actions move; reward 1 where it moves towards the middle, the end at the edge."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, side=36, dtype=np.uint8):
        self.observation_space = gymnasium.spaces.Box(0, 255, (1, side, side), dtype)

    def image(self):
        image = np.zeros(self.observation_space.shape, self.observation_space.dtype)
        image[0, :, self.column] = 200
        return image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.column = int(self.np_random.integers(10, 26))
        return self.image(), {}

    def step(self, action):
        reward = float((self.column < 18) == bool(action))
        self.column += 2 * int(action) - 1
        return self.image(), reward, self.column in (0, 35), False, {}


gymnasium.register("Pixels-v0", Pixels, max_episode_steps=30)
PIXELS = (
    "env.id=Pixels-v0",
    "num_envs=2",
    "num_steps=25",
    "num_minibatches=2",
    "total_timesteps=150",
    "learning_rate=0.003",
)


def test_images_are_stored_as_bytes_and_final_ones_are_valued_at_time_limits():
    envs = make_envs(EnvConfig("Pixels-v0"), streams.env_seeds(1, 2))
    policy = ActorCritic((1, 36, 36), make_head(envs.action_space), (), generator=torch.Generator().manual_seed(1))
    rollout = collect(Experience(envs, np.random.default_rng(1)), policy, 40)
    assert rollout.obs.dtype == torch.uint8
    assert rollout.obs.shape == (80, 1, 36, 36)
    assert rollout.rewards.dtype == rollout.values.dtype == np.float32
    new = policy.evaluate(policy.named, rollout.obs, rollout.actions)
    torch.testing.assert_close(torch.from_numpy(rollout.values).flatten(), new.values.detach())
    torch.testing.assert_close(rollout.logp, new.logp.detach())
    obs, actions = rollout.obs.view(40, 2, 1, 36, 36), rollout.actions.view(40, 2)
    for env in range(2):
        assert rollout.dones[29, env], "cut by its time limit"
        column = int(obs[29, env, 0, 0].argmax()) + 2 * int(actions[29, env]) - 1
        final = torch.zeros(1, 1, 36, 36, dtype=torch.uint8)
        final[0, 0, :, column] = 200
        assert rollout.next_values[29, env] == pytest.approx(policy.values(final).item(), abs=1e-5)
        assert rollout.next_values[29, env] != 0


@pytest.mark.parametrize(
    "settings", [(), ("precision=fp64",), pytest.param(("precision=bf16_autocast",), marks=pytest.mark.slow)]
)
def test_formulations_are_identical_on_images(tmp_path, settings):
    for loss in ("ppo_clip", "reinforce"):
        train(load([*PIXELS, *settings, f"loss={loss}"]), tmp_path / loss)
    a, b = (RunFolder(tmp_path / loss) for loss in ("ppo_clip", "reinforce"))
    assert_identical_though_clipped(a, b)
    assert len(a.digests) == 24
    assert not np.array_equal(a.snapshot(0), a.snapshot(24))


def test_a_policy_learns_from_images():
    run = train(load([*PIXELS, "total_timesteps=2000", "num_steps=50", "learning_rate=0.001", "gamma=0.5"]))
    assert run.episodic_return / run.episodic_length > 0.75, "0.5 at random"


def test_hidden_sizes_are_not_for_images():
    with pytest.raises(ConfigError, match=r"hidden_sizes=\[32\]: Pixels-v0 shows images.*leave it out"):
        train(load([*PIXELS, "hidden_sizes=[32]"]))


@pytest.mark.parametrize("kwargs", [{"side": 35}])
def test_images_that_the_network_cannot_take_are_named(kwargs):
    with pytest.raises(ConfigError, match=r"uint8 Box of .* at least 36 pixels either way"):
        make_envs(EnvConfig("Pixels-v0", kwargs=kwargs), [1])
