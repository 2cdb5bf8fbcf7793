"""What Python code hands in wrongly: one clear line, as on the command line."""

from dataclasses import replace

import numpy as np
import pytest

import rlloss
from rlloss.config import Config, load
from rlloss.errors import ConfigError
from tests.helpers import SHORT


@pytest.mark.parametrize("overrides", ["seed=1", {"seed": 1}, [1], [None]])
def test_load_takes_a_list_of_overrides(overrides):
    with pytest.raises(TypeError, match="load takes a list of overrides, as load"):
        load(overrides)


@pytest.mark.parametrize("config", [["seed=1"], "seed=1", None, {"seed": 1}])
def test_train_takes_a_config(config):
    with pytest.raises(TypeError, match="train takes a Config, as rlloss"):
        rlloss.train(config)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("learning_rate", "abc", "learning_rate='abc': must be a number; 0.00025 by default"),
        ("num_envs", 4.0, "num_envs=4.0: must be a whole number; 4 by default"),
        ("norm_adv", "no", "norm_adv='no': must be True or False; True by default"),
        ("run_root", 3, "run_root=3: must be text"),
        ("hidden_sizes", None, "hidden_sizes=None: must be a list of whole numbers"),
        ("hidden_sizes", [8.5], "must be a list of whole numbers"),
        ("loss", "reinforce", "loss='reinforce': must be a LossConfig, as rlloss.config.load(['loss=...']) has it"),
    ],
)
def test_a_value_of_another_type_is_named(key, value, said):
    with pytest.raises(ConfigError) as caught:
        replace(Config(), **{key: value}).validate()
    assert said in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("seed", np.int64(1)), ("learning_rate", np.float32(0.5))])
def test_numpys_numbers_are_named_with_the_right_ones(key, value):
    """A learning rate of float32 was taken, and gave another trajectory than the number that config.yaml has of it."""
    with pytest.raises(ConfigError) as caught:
        rlloss.train(replace(load(list(SHORT)), **{key: value}))
    assert str(caught.value).endswith(f"of Python's own; give {key}={value.item()!r}")


def test_a_whole_number_and_a_tuple_are_taken_for_what_they_stand_for():
    runs = [
        rlloss.train(replace(load(list(SHORT)), gamma=gamma, hidden_sizes=sizes))
        for gamma, sizes in ((1, (8, 8)), (1.0, [8, 8]))
    ]
    assert runs[0].final_digest == runs[1].final_digest


@pytest.mark.parametrize(
    ("obs", "said"),
    [
        (np.zeros(5), "of shape (5,); it must be one array of numbers, of shape (4,)"),
        (np.zeros((2, 4)), "of shape (2, 4); it must be one array"),
        (np.full(4, np.nan), "holds nan"),
        ("abc", "is 'abc'; it must be one array"),
        (None, "is None; it must be one array"),
    ],
)
def test_a_policy_says_what_it_cannot_act_on(obs, said, make_run):
    policy = rlloss.load_policy(make_run(*SHORT).path)
    with pytest.raises(ConfigError) as caught:
        policy.act(obs)
    assert said in str(caught.value)
    assert policy.act([0, 0, 0, 0]) in (0, 1)
    with pytest.raises(TypeError, match="rng=3: must be a generator"):
        policy.act(np.zeros(4), greedy=False, rng=3)
