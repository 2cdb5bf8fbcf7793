"""Whole trainings, independent of each other: what must be equal to the last bit, and what must not be."""

import numpy as np
import pytest

from rlloss.config import load
from rlloss.train import train
from rlloss.verify import compare_runs
from tests.helpers import assert_identical_though_clipped

ENVS = ("cartpole", "acrobot", "mountaincar", "pendulum")


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_formulations_are_identical_in_every_environment(make_run, env, optimizer):
    """Minibatches of 25, and a learning rate at which ratios leave the interval."""
    settings = (f"env={env}", f"optimizer={optimizer}", f"learning_rate={0.2 if optimizer == 'sgd' else 0.01}")
    assert_identical_though_clipped(make_run(*settings), make_run(*settings, "loss=reinforce"))


@pytest.mark.parametrize(
    "settings", [("precision=fp64",), ("clip_vloss=false", "norm_adv=false"), ("target_kl=0.001",)]
)
def test_formulations_are_identical_under_other_settings(make_run, settings):
    assert compare_runs(make_run(*settings), make_run(*settings, "loss=reinforce")).verdict == "IDENTICAL"


def test_both_values_are_recorded_whichever_loss_is_trained(make_run):
    a, b = make_run(), make_run("loss=reinforce")
    for column in ("ppo_clip_loss", "reinforce_loss", "value_loss", "entropy_loss", "approx_kl", "grad_norm"):
        assert (a.metrics[column] == b.metrics[column]).all(), column
    np.testing.assert_allclose(a.metrics["policy_loss"], a.metrics["ppo_clip_loss"], atol=1e-6)
    np.testing.assert_allclose(b.metrics["policy_loss"], b.metrics["reinforce_loss"], atol=1e-6)


@pytest.mark.parametrize(("num_steps", "verdict"), [(64, "IDENTICAL"), (60, "not")])
def test_textbook_order_is_identical_at_powers_of_two_only(make_run, num_steps, verdict):
    runs = (make_run(f"num_steps={num_steps}", *loss) for loss in ((), ("loss=reinforce_textbook",)))
    assert (compare_runs(*runs).verdict == "IDENTICAL") is (verdict == "IDENTICAL")


def test_seeds_give_different_runs(make_run):
    digests = {make_run(f"seed={seed}").info["final_digest"] for seed in (1, 2, 3)}
    assert len(digests) == 3


@pytest.mark.parametrize("change", ["update_epochs=3", "learning_rate=0.001", "loss=reinforce_mask"])
def test_a_change_to_the_update_leaves_the_first_rollout_alone(make_run, change):
    """Initialisation, environments and action noise do not depend on the update, nor on its shuffling."""
    a, b = make_run(), make_run(change)
    assert a.metrics["actions_digest"][0] == b.metrics["actions_digest"][0]
    assert np.array_equal(a.snapshot(0), b.snapshot(0))


def test_the_number_of_environments_does_not_shift_the_initialisation(make_run):
    assert np.array_equal(make_run("num_envs=4").snapshot(0), make_run().snapshot(0))


def test_global_switches_of_torch_are_put_back():
    import torch

    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    train(load(["num_steps=50", "total_timesteps=200"]))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_cuda_is_refused_where_there_is_none():
    import torch

    from rlloss.errors import ConfigError

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ConfigError, match=r"device=cuda: .* use device=cpu"):
        train(load(["device=cuda"]))


@pytest.mark.slow
@pytest.mark.parametrize("env", ENVS)
def test_formulations_stay_identical_over_a_long_run(make_run, env):
    settings = (f"env={env}", "total_timesteps=50000", "num_envs=4", "num_steps=125", "snapshot_every=0")
    verdict = compare_runs(make_run(*settings), make_run(*settings, "loss=reinforce"))
    assert verdict.verdict == "IDENTICAL"
    assert verdict.steps == 1600
