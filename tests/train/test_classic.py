"""The copies of Gymnasium's classic tasks against Gymnasium's own: every bit of every step, and the state kept."""

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv, MountainCarEnv, PendulumEnv

from rlloss.config.schema import EnvConfig
from rlloss.errors import EnvironmentFailed
from rlloss.train import streams
from rlloss.train.classic import COPIES, ClassicEnvironments, has_copy
from rlloss.train.envs import make_envs
from rlloss.train.faults import Hanging
from rlloss.train.replay import Played
from rlloss.train.vector import Environments

TASKS = ("CartPole-v1", "MountainCar-v0", "Acrobot-v1", "Pendulum-v1")
SEEDS = streams.env_seeds(3, 4)


def making(env_id, **kwargs):
    return lambda: gymnasium.make(env_id, disable_env_checker=True, **kwargs)


def acting(env_id, obs, rng):
    """Actions that get far: long episodes as well as short ones, goals reached and time limits run into."""
    n = len(obs)
    if env_id == "Pendulum-v1":
        return rng.normal(size=(n, 1)).astype(np.float32) * 2
    if env_id == "CartPole-v1":
        upright = obs[:, 2] + obs[:, 3] * 0.5 + 0.02 * obs[:, 0] + 0.05 * obs[:, 1] > 0
        return np.where(rng.random(n) < np.linspace(0.02, 0.9, n), rng.integers(0, 2, n), upright)
    faster = obs[:, 1] > 0 if env_id == "MountainCar-v0" else obs[:, 5] > 0
    return np.where(rng.random(n) < np.linspace(0.1, 0.9, n), rng.integers(0, 3, n), np.where(faster, 2, 0))


def assert_alike(env_id, num_steps):
    """Both for so many steps each, and how many episodes a time limit cut and how many ended otherwise."""
    theirs, ours = Environments(making(env_id), SEEDS), ClassicEnvironments(making(env_id), SEEDS)
    rng, size = np.random.default_rng(1), theirs.obs.shape
    one, other = ([np.empty(size, np.float32), np.empty(4), *np.empty((2, 4), np.bool_)] for _ in range(2))
    cuts = ends = 0
    one[0][:] = theirs.obs
    for t in range(num_steps):
        actions = acting(env_id, one[0], rng)
        cut, also = theirs.step(actions, *one), ours.step(actions, *other)
        for a, b in zip((*one, *cut.values()), (*other, *also.values()), strict=True):
            assert (a.tobytes(), a.dtype) == (b.tobytes(), b.dtype), f"step {t}"
        assert list(cut) == list(also)
        cuts, ends = cuts + len(cut), ends + one[2].sum()
        if t % 499 == 0:
            assert repr(theirs.interiors()) == repr(ours.interiors())
            assert repr(theirs.journal.origins) == repr(ours.journal.origins)
    theirs.close()
    ours.close()
    return cuts, ends


@pytest.mark.parametrize("env_id", TASKS)
def test_every_bit_of_a_step_is_gymnasiums(env_id):
    cuts, ends = assert_alike(env_id, 5000)
    assert cuts
    assert ends or env_id == "Pendulum-v1"


@pytest.mark.slow
@pytest.mark.parametrize("env_id", TASKS)
def test_every_bit_of_a_million_steps_is_gymnasiums(env_id):
    assert_alike(env_id, 250_000)


def test_a_car_at_the_wall_is_kept_as_gymnasium_keeps_it():
    """Its velocity is then a whole number, and no float."""
    theirs, ours = (kind(making("MountainCar-v0"), SEEDS) for kind in (Environments, ClassicEnvironments))
    row = np.empty((4, 2), np.float32), np.empty(4), *np.empty((2, 4), np.bool_)
    at_the_wall, actions = 0, np.zeros(4, np.int64)
    for _ in range(190):
        for envs in (theirs, ours):
            envs.step(actions, *row)
        actions = np.where(row[0][:, 1] > 0, 2, 0)  # which swings it up, by way of the wall
        if (row[0][:, 0] <= np.float32(-1.2)).any():
            at_the_wall += 1
            assert repr(theirs.interiors()) == repr(ours.interiors())
    assert at_the_wall


def test_doubles_get_the_floats_that_gymnasium_returns():
    theirs, ours = (kind(making("Acrobot-v1"), SEEDS) for kind in (Environments, ClassicEnvironments))
    rows = [(np.empty((4, 6)), np.empty(4), *np.empty((2, 4), np.bool_)) for _ in range(2)]
    for envs, row in zip((theirs, ours), rows, strict=True):
        envs.step(np.array([0, 1, 2, 0]), *row)
    assert rows[0][0].tobytes() == rows[1][0].tobytes()


@pytest.mark.parametrize("env_id", TASKS)
def test_a_task_by_its_id_alone_gets_its_copy(env_id):
    with_copy = make_envs(EnvConfig(env_id), [1, 2])
    assert type(with_copy) is ClassicEnvironments
    assert {type(copy) for copy in with_copy._copies} == {COPIES[type(with_copy.envs[0].unwrapped)]}


@pytest.mark.parametrize(
    "config",
    [
        EnvConfig("CartPole-v1", kwargs={"sutton_barto_reward": True}),
        EnvConfig("Pendulum-v1", kwargs={"g": 9.81}),
        EnvConfig("Pendulum-v1", wrappers=["normalize_reward"]),
        EnvConfig("MountainCarContinuous-v0"),
        EnvConfig("tests.examples.environments:Line-v0"),
    ],
    ids=str,
)
def test_all_others_are_stepped_as_they_are(config):
    assert type(make_envs(config, [1])) is Environments


class Heavier(CartPoleEnv):
    def __init__(self):
        super().__init__()
        self.gravity = 20.0


def test_a_class_of_ones_own_has_no_copy():
    gymnasium.register("Heavier-v0", Heavier, max_episode_steps=100)
    try:
        assert not has_copy("Heavier-v0", making("Heavier-v0"))
    finally:
        del gymnasium.registry["Heavier-v0"]


def test_a_time_limit_of_ones_own_is_kept():
    envs = ClassicEnvironments(making("CartPole-v1", max_episode_steps=3), [1])
    row = (np.empty((1, 4), np.float32), np.empty(1), *np.empty((2, 1), np.bool_))
    late = []
    for _ in range(4):
        envs.step(np.array([1]), *row)
        late.append(bool(row[3][0]))
    assert late == [False, False, True, False]


@pytest.mark.parametrize(("kind", "task"), [(CartPoleEnv, "CartPole-v1"), (PendulumEnv, "Pendulum-v1")])
def test_a_release_of_gymnasium_that_computes_otherwise_is_noticed(monkeypatch, kind, task):
    """One rounding in one number is enough."""
    original = kind.step

    def step(self, action):
        result = original(self, action)
        self.state = np.nextafter(self.state, np.inf)
        return result

    assert has_copy(task, making(task))
    monkeypatch.setattr(kind, "step", step)
    assert not has_copy(task, making(task))


@pytest.mark.parametrize("env_id", TASKS)
@pytest.mark.parametrize(
    ("kept_by", "read_by"), [(Environments, ClassicEnvironments), (ClassicEnvironments, Environments)]
)
def test_where_one_stopped_the_other_goes_on(env_id, kept_by, read_by):
    first, second = (kind(making(env_id), SEEDS) for kind in (kept_by, read_by))
    rng, size = np.random.default_rng(1), first.obs.shape

    def play(envs, obs, num_steps):
        rows = []
        for _ in range(num_steps):
            actions = acting(env_id, obs, rng)
            obs, rewards, (terminated, truncated) = np.empty(size, np.float32), np.empty(4), np.empty((2, 4), np.bool_)
            envs.step(actions, obs, rewards, terminated, truncated)
            rows.append((actions, rewards, terminated | truncated, obs))
        columns = [np.stack(column) for column in zip(*rows, strict=True)]
        envs.obs = obs
        envs.journal.add(Played(*columns[:3]))
        return [column.tobytes() for column in columns]

    play(first, first.obs, 1700)
    second.load_state_dict(first.state_dict())
    state = rng.bit_generator.state
    expected = play(first, first.obs, 300)
    rng.bit_generator.state = state
    assert play(second, second.obs, 300) == expected


class Bonus(gymnasium.RewardWrapper):
    def reward(self, reward):
        return reward * 2


def wrapped_car():
    return Bonus(MountainCarEnv())


@pytest.mark.parametrize("entry_point", [wrapped_car, "tests.train.test_classic:wrapped_car"])
def test_an_environment_that_somebody_wrapped_under_its_entry_point_is_stepped_in_its_wrappers(entry_point):
    gymnasium.register("WrappedCar-v0", entry_point, max_episode_steps=50)
    try:
        envs = make_envs(EnvConfig("WrappedCar-v0"), [1])
        assert type(envs) is Environments
        row = (np.empty((1, 2), np.float32), np.empty(1), *np.empty((2, 1), np.bool_))
        envs.step(np.array([1]), *row)
        assert row[1][0] == -2
    finally:
        del gymnasium.registry["WrappedCar-v0"]


def test_a_copy_that_hangs_is_named(monkeypatch):
    def hangs(self, action):
        raise Hanging

    envs = make_envs(EnvConfig("CartPole-v1"), [1, 2])
    monkeypatch.setattr(COPIES[CartPoleEnv], "step", hangs)
    with pytest.raises(EnvironmentFailed, match=r"environment 0 \(CartPole-v1\)"):
        envs.step(np.array([1, 1]), np.empty((2, 4)), np.empty(2), *np.empty((2, 2), np.bool_))
