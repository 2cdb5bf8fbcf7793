"""The state of a run: complete, and the same after a way through a file."""

import pytest
import torch

from rlloss.config import load
from rlloss.errors import ConfigError
from rlloss.train import iterate
from rlloss.train.checkpoint import pack, unpack
from rlloss.train.state import prepared
from rlloss.train.switches import deterministic

SHORT = ("num_envs=2", "num_steps=50", "total_timesteps=1200", "learning_rate=0.003")
SETTINGS = {
    "adam": (),
    "sgd": ("optimizer=sgd", "schedule=constant"),
    "rmsprop": ("optimizer=rmsprop",),
    "lbfgs": ("optimizer=lbfgs", "max_grad_norm=inf"),
    "sam": ("optimizer=sam",),
    "gradient penalty": ("optimizer=gradient_penalty", "optimizer.base=sgd", "loss=reinforce"),
    "plateau": ("schedule=plateau", "schedule.patience=0", "loss=reinforce"),
    "stop and best": ("stop=no_improvement", "stop.patience=6", "best=metric"),
    "grad scaler": ("precision=fp16_scaled",),
    "bf16": ("precision=bf16",),
    "gaussian": ("env=pendulum", "precision=fp64"),
}


def rows(state, count):
    """What ``count`` iterations leave behind, without the clock."""
    done = [iterate(state, lambda: None) for _ in range(count)]
    return [
        ({k: v for k, v in d.row.items() if k != "steps_per_second"}, d.episodes, d.decisions, d.stopped, d.kept)
        for d in done
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_state_that_went_through_a_file_goes_on_to_the_same_bits(tmp_path, name):
    config = load([*SHORT, *SETTINGS[name]])
    with deterministic(config), prepared(config) as first, prepared(config) as second:
        rows(first, 3)
        (tmp_path / "state").write_bytes(pack(first.state_dict()))
        second.load_state_dict(unpack(tmp_path / "state"))
        expected, found = rows(first, 6), rows(second, 6)
        assert repr(found) == repr(expected), "rows, episodes and decisions"
        assert torch.equal(first.policy.flat, second.policy.flat)
        assert first.iteration == second.iteration == 9
        assert first.optimizer_steps == second.optimizer_steps == 9 * 16
        assert first.last_episodes == second.last_episodes
        assert pack(first.state_dict()) == pack(second.state_dict())


def test_what_is_no_checkpoint_is_named(tmp_path):
    for content in (b"", b"cut short", pack([1.0])[:40]):
        (tmp_path / "state").write_bytes(content)
        with pytest.raises(ConfigError, match="is no checkpoint that can be read"):
            unpack(tmp_path / "state")


def test_a_tree_comes_back_as_it_was(tmp_path):
    tree = {0: {"a": torch.ones(2, dtype=torch.bfloat16), "n": None}, "list": [1, 2.5, float("inf"), "x", True]}
    (tmp_path / "state").write_bytes(pack(tree))
    back = unpack(tmp_path / "state")
    assert back["list"] == tree["list"]
    assert back[0]["n"] is None
    assert torch.equal(back[0]["a"], tree[0]["a"])
    assert back[0]["a"].dtype == torch.bfloat16
