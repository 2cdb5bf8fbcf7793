"""Configs: defaults, folder names, and one clear line for every kind of bad input."""

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from rlloss.config import (
    ConfigError,
    check,
    choices,
    data_dir,
    flat_keys,
    groups,
    known_keys,
    load,
    run_folder,
    to_config,
)
from rlloss.schema import Config


def test_hydras_defaults_are_those_of_the_dataclass():
    assert load() == Config()


def test_defaults_are_cleanrls():
    c = Config()
    assert (c.total_timesteps, c.num_envs, c.num_steps, c.update_epochs, c.num_minibatches) == (500_000, 4, 128, 4, 4)
    assert (c.learning_rate, c.gamma, c.gae_lambda, c.clip_coef, c.vf_coef) == (2.5e-4, 0.99, 0.95, 0.2, 0.5)
    assert (c.ent_coef, c.max_grad_norm, c.norm_adv, c.clip_vloss, c.target_kl) == (0.01, 0.5, True, True, None)
    assert (c.optimizer.eps, c.schedule.name) == (1e-5, "linear")


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g in groups() for c in choices(g)])
def test_every_choice_of_every_group_composes(group, choice):
    assert group in [key.split(".")[0] for key in flat_keys(load([f"{group}={choice}"]))]


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss=reinforce", "seed=3", "optimizer=sgd", "optimizer.momentum=0", "hidden_sizes=[8,8]"],
        ["run_dir='x/${loss.name}'", "target_kl=0.1", "optimizer.betas=[0.8,0.9]", "hydra.launcher.n_jobs=1"],
        ["+env.kwargs.sutton_barto_reward=true", "env=cartpole", "target_kl=null", "++seed=4", "learning_rate=1e-3"],
    ],
)
def test_load_is_hydras_own_composition(overrides):
    ours = load(overrides)
    with initialize_config_dir(str(data_dir("configs").resolve()), version_base="1.3"):
        assert ours == to_config(compose("config", overrides))


BAD = {
    "+new.key=3": "+new.key=3: unknown key new.key",
    "++total=3": "unknown key total",
    "num_env=3": "num_env=3: unknown key num_env; did you mean num_envs",
    "optimiser=sgd": "did you mean optimizer",
    "env.foo=1": "unknown key env.foo",
    "optimizer.alpha=0.3": "optimizer.alpha",
    "~loss": "~loss: no key can be removed",
    "num_envs": "an override reads key=value",
    "hidden_sizes=[1": "an override reads key=value",
    "loss=foo": "loss=foo: no such loss; use one of a2c, cispo",
    "env=3": "env=3: no such env; use one of acrobot, breakout, cartpole",
    "loss=": "no such loss",
    "num_envs=four": "num_envs: Value 'four'",
    "seed=1.5": "seed: Value '1.5'",
    "target_kl=x": "target_kl: Value 'x'",
    "clip_vloss=maybe": "clip_vloss: Value 'maybe'",
    "hidden_sizes=3": "hidden_sizes",
    "hidden_sizes=[]": "hidden_sizes=[]",
    "hidden_sizes=[0]": "each 1 or greater",
    "run_dir=${nothing}": "run_dir: Interpolation key 'nothing' not found",
    "seed=1,2": "seed=1,2: several values are a sweep; add --multirun",
    "loss=ppo_clip,reinforce": "add --multirun",
    "num_envs=0": "num_envs=0: must be greater than 0",
    "num_steps=-1": "num_steps=-1: must be greater than 0",
    "learning_rate=0": "learning_rate=0.0: must be greater than 0",
    "learning_rate=inf": "learning_rate=inf: must be a finite number",
    "vf_coef=inf": "vf_coef=inf: must be a finite number",
    "learning_rate=nan": "learning_rate=nan: must be greater than 0",
    "seed=-1": "seed=-1: must be 0 or greater",
    "gamma=1.5": "gamma=1.5: must lie between 0 and 1",
    "target_kl=0": "target_kl=0.0: must be greater than 0, or null",
    "num_minibatches=3": "num_minibatches=3 does not divide the batch of 512 = num_envs 4 x num_steps 128; use one",
    "num_minibatches=512": "norm_adv=false",
    "total_timesteps=100": "total_timesteps=100 is less than one iteration of 512",
}


@pytest.mark.parametrize("override", BAD)
def test_bad_input_is_one_line_naming_key_and_remedy(override):
    with pytest.raises(ConfigError) as caught:
        load([override])
    message = str(caught.value)
    assert BAD[override] in message
    assert "\n" not in message


def test_environment_keywords_may_be_added():
    assert load(["+env.kwargs.sutton_barto_reward=true"]).env.kwargs == {"sutton_barto_reward": True}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_only_divisors_of_the_batch_pass(num_envs, num_steps, num_minibatches):
    config = Config(num_envs=num_envs, num_steps=num_steps, num_minibatches=num_minibatches, norm_adv=False)
    if (num_envs * num_steps) % num_minibatches:
        with pytest.raises(ConfigError, match="does not divide"):
            check(config)
    else:
        check(config)
        assert config.minibatch_samples * num_minibatches == num_envs * num_steps


def test_folder_names_say_environment_condition_loss_and_seed():
    assert run_folder(load()).as_posix() == "results/runs/CartPole-v1__ppo_clip__seed-1"
    overrides = ["env=pendulum", "optimizer=sgd", "hidden_sizes=[32,32]", "loss=reinforce", "seed=7", "run_root=r"]
    assert (
        run_folder(load(overrides)).as_posix() == "r/Pendulum-v1__optimizer-sgd__hidden_sizes-32-32__reinforce__seed-7"
    )
    assert run_folder(load(["run_dir=somewhere"])).as_posix() == "somewhere"


def test_every_key_changes_the_folder_name():
    changes = {
        "env.id": "env=acrobot", "loss.name": "loss=reinforce", "optimizer.name": "optimizer=sgd",
        "schedule.name": "schedule=constant", "precision.name": "precision=fp64", "device": "device=cuda",
        "env.kwargs": "+env.kwargs.x=1", "env.wrappers": "env.wrappers=[sign_reward]",
        "hidden_sizes": "hidden_sizes=[8]", "target_kl": "target_kl=0.1",
        "norm_adv": "norm_adv=false", "clip_vloss": "clip_vloss=false", "optimizer.betas": "optimizer.betas=[0.8,0.9]",
        "num_minibatches": "num_minibatches=2", "gamma": "gamma=0.5", "gae_lambda": "gae_lambda=0.5",
    }  # fmt: skip
    names = {run_folder(load())}
    keys = [key for key in flat_keys(Config()) if key not in ("run_root", "run_dir")]
    for key in keys:
        value = flat_keys(Config())[key]
        override = changes.get(key) or f"{key}={(value or 1) * 2}"
        names.add(run_folder(load([override])))
    assert len(names) == len(keys) + 1


def test_long_names_stay_within_what_file_systems_allow():
    overrides = [
        f"{key}={value}" for key, value in flat_keys(Config()).items() if key in known_keys() and "." not in key
    ]
    changed = [o for o in overrides if o.split("=")[0] in ("gamma", "gae_lambda", "clip_coef", "vf_coef", "ent_coef")]
    changed = [o.split("=")[0] + "=0.123456789012345678" for o in changed]
    sizes = f"hidden_sizes=[{','.join(['100'] * 60)}]"
    a, b = (run_folder(load([*changed, sizes, f"seed={seed}"])).name for seed in (1, 2))
    assert len(a) < 255
    assert a != b
