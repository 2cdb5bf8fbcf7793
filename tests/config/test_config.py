"""Configs: defaults, folder names, and one clear line for every kind of bad input."""

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings, strategies as st

from rlloss.config.choices import choices, data_dir, groups
from rlloss.config.compose import known_keys, load, to_config
from rlloss.config.schema import Config
from rlloss.errors import ConfigError
from rlloss.runs.place import run_folder
from rlloss.runs.reader import WHERE_KEYS


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
    assert group in [key.split(".")[0] for key in load([f"{group}={choice}"]).flat()]


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
    "hidden_sizes=[1": "hidden_sizes=[1: brackets or quotes do not close",
    "run_dir=out=1": """run_dir=out=1: the value has to be quoted: 'run_dir="out=1"'""",
    "run_dir=out,1": "'run_dir=\"…\"' for one value with commas",
    "--seed=3": "--seed=3: keys have no dashes before them; write seed=3",
    "loss=foo": "loss=foo: no such loss; use one of a2c, cispo",
    "env=3": "env=3: no such env; use one of acrobot, breakout, cartpole",
    "loss=": "no such loss",
    "loss=ppo": "loss=ppo: no such loss; did you mean ppo_clip",
    "loss=PPO_clip": "did you mean ppo_clip",
    "loss=grpo_": "no such loss",
    "optimizer=adamw": "no such optimizer; use one of adam, gradient_penalty, lbfgs, rmsprop, sam, sgd",
    "precision=float16": "precision=float16: no such precision; use one of",
    "schedule=cosine": "schedule=cosine: no such schedule; use one of constant, linear, plateau",
    "env=CartPole-v1": "env=CartPole-v1: an id is given as env.id=CartPole-v1, or env=cartpole",
    "env=my_envs:Corridor-v0": "env=my_envs:Corridor-v0: an id is given as env.id=my_envs:Corridor-v0",
    "env=cart_pole": "did you mean cartpole",
    "lr=0.1": "lr=0.1: unknown key lr; here it is learning_rate",
    "batch_size=64": "here it is num_minibatches; a minibatch has num_envs * num_steps / num_minibatches samples",
    "cuda=true": "here it is device=cuda",
    "algo=ppo": "here it is loss",
    "n_steps=128": "here it is num_steps",
    "clip_range=0.1": "here it is clip_coef",
    "lam=0.9": "here it is gae_lambda",
    "net_arch=[64]": "here it is hidden_sizes",
    "total_steps=100": "here it is total_timesteps",
    "anneal_lr=true": "here it is schedule=linear",
    "patience=3": "did you mean schedule.patience or stop.patience",
    "num_envs=four": "num_envs=four: must be a whole number",
    "num_envs=null": "num_envs=null: must be a whole number",
    "seed=1.5": "seed=1.5: must be a whole number",
    "seed=true": "seed=true: must be a whole number",
    "total_timesteps=1e4": "total_timesteps=1e4: must be a whole number; write total_timesteps=10000",
    "learning_rate=small": "learning_rate=small: must be a number; 0.00025 by default",
    "target_kl=x": "target_kl=x: must be a number, or null; null sets no limit",
    "target_kl=none": "target_kl=none: must be a number, or null; write target_kl=null",
    "max_grad_norm=null": "max_grad_norm=null: must be a number; inf switches clipping off",
    "max_grad_norm=none": "max_grad_norm=none: must be a number; inf switches clipping off",
    "clip_vloss=maybe": "clip_vloss=maybe: must be true or false; write clip_vloss=true or clip_vloss=false",
    "hidden_sizes=3": "hidden_sizes=3: must be a list of whole numbers; write hidden_sizes=[3]",
    "hidden_sizes=[a]": "hidden_sizes=[a]: must be a list of whole numbers",
    "env.wrappers=sign_reward": "env.wrappers=sign_reward: must be a list of names; write env.wrappers=[sign_reward]",
    "schedule.patience=3": "schedule.patience=3: only schedule=plateau has that key; add schedule=plateau",
    "optimizer.momentum=0.5": "only optimizer=sgd or optimizer=rmsprop or optimizer=sam or",
    "stop.min_delta=1": "only stop=no_improvement has that key",
    "on_nonfinite=ignore": "on_nonfinite=ignore: unknown; use one of fail, record",
    "run_dir=${hydra:job.num}": "${...} takes keys of the config, as ${seed} or ${loss.name}",
    "hidden_sizes=[]": "hidden_sizes=[]",
    "hidden_sizes=[0]": "each 1 or greater",
    "run_dir=${nothing}": "${...} takes keys of the config, as ${seed} or ${loss.name}",
    "hydra.searchpath=[file:///nowhere]": "no folder /nowhere; name one with configs",
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
    "optimizer.betas=[0.9,0.9,0.9]": "optimizer.betas=[0.9, 0.9, 0.9]: must be two numbers, each 0 or greater and less",
    "optimizer.weight_decay=-1": "optimizer.weight_decay=-1.0: must be a finite number, 0 or greater",
    "optimizer.eps=nan": "optimizer.eps=nan: must be a finite number",
    "optimizer=lbfgs optimizer.history_size=0": "optimizer.history_size=0: must be 1 or greater",
    "optimizer=lbfgs optimizer.max_iter=-1": "optimizer.max_iter=-1: must be 1 or greater",
    "optimizer=rmsprop optimizer.alpha=2": "optimizer.alpha=2.0: must lie between 0 and 1",
    "optimizer=sgd optimizer.nesterov=true optimizer.momentum=0": "optimizer.nesterov=true: needs a momentum",
    "optimizer=sam optimizer.betas=[2,3]": "optimizer.betas=[2.0, 3.0]: must be two numbers",
    "schedule=plateau schedule.cooldown=-5": "schedule.cooldown=-5: must be 0 or greater",
    "schedule=plateau schedule.min_lr=nan": "schedule.min_lr=nan: must be 0 or greater",
    "stop=threshold stop.threshold=nan": "stop.threshold=nan: must be a number",
    "stop=no_improvement stop.min_delta=-1": "stop.min_delta=-1.0: must be 0 or greater",
    "env.kwargs=5": "env.kwargs=5: must be names with their values; write env.kwargs.NAME=VALUE, once for each",
    "total_timesteps=100": "total_timesteps=100 is less than one iteration of 512",
}


@pytest.mark.parametrize("override", BAD)
def test_bad_input_is_one_line_naming_key_and_remedy(override):
    with pytest.raises(ConfigError) as caught:
        load(override.split(" "))
    message = str(caught.value)
    assert BAD[override] in message
    assert "\n" not in message


OWN = {  # file below a user's folder -> its content, and what is said
    "env/extra": ("id: CartPole-v1\nfoo: 1\n", "foo: 1: unknown key; env has id, kwargs, wrappers, timeout, check"),
    "env/empty": ("", "has no id; write id: ..., as id: CartPole-v1"),
    "env/list": ("- a\n- b\n", "holds a list; a config reads KEY: VALUE, a line each"),
    "env/text": ("just text\n", "holds one value; a config reads"),
    "env/type": ("id: CartPole-v1\ntimeout: soon\n", "timeout: soon: must be a number; 300.0 by default"),
    "env/twice": ("id: A\nid: B\n", ", line 2: is no YAML: found duplicate key id"),
    "env/open": ("id: [CartPole-v1\n", ", line 2: is no YAML: expected ',' or ']'"),
    "env/refers": ("id: ${nope}\n", "env.id: Interpolation key 'nope' not found: ${...} takes keys of the config"),
    "env/kwargs": ("id: CartPole-v1\nkwargs: 5\n", "kwargs: 5: must be names with their values"),
    "loss/own": ("name: mine.py:my_loss\nofset: 1\n", "ofset: 1: unknown key; loss has name, offset"),
    "optimizer/bare": ("name: adam\nlr: 1\n", "lr: 1: unknown key; here it is learning_rate"),
    "optimizer/own": ("defaults: [adam]\nepss: 3\n", "epss: 3: unknown key; optimizer has name, betas, eps, weight_"),
    "schedule/own": (
        "name: plateau\nmonitor: policy_loss\n",
        "monitor: policy_loss: a key of plateau alone; begin the file with 'defaults: [plateau_schema]'",
    ),
    "experiment/typo": ("# @package _global_\nlearning_rat: 1\n", "learning_rat: 1: unknown key; did you mean learn"),
    "experiment/type": ("# @package _global_\nlearning_rate: fast\n", "learning_rate: fast: must be a number"),
    "experiment/range": ("# @package _global_\nnum_envs: -2\n", "num_envs=-2: must be greater than 0"),
    "experiment/bare": ("learning_rate: 1\n", "begin the file with # @package _global_ to set any"),
    "experiment/inner": ("# @package _global_\nenv: {foo: 1}\n", "env.foo: 1: unknown key; env has id"),
    "experiment/choice": ("# @package _global_\nenv: cartpole\n", "write 'defaults: [override /env: cartpole]'"),
    "experiment/other": (
        "# @package _global_\noptimizer: {alpha: 1}\n",
        "optimizer.alpha: 1: only optimizer=rmsprop has that key; add optimizer=rmsprop",
    ),
    "experiment/nothing": (
        "# @package _global_\ndefaults:\n  - override /env: cartpol\n",
        "defaults: env: cartpol: no such env; did you mean cartpole",
    ),
}


@pytest.mark.parametrize("file", OWN)
def test_a_mistake_in_a_users_own_yaml_is_one_line_with_its_file(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, said = OWN[file]
    path = tmp_path / "conf" / f"{file}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load([f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "=".join(file.split("/"))])
    message = str(caught.value)
    assert message.startswith(f"conf/{file}.yaml"), message
    assert said in message
    assert "\n" not in message


def test_environment_keywords_may_be_added():
    for override in ("+env.kwargs.sutton_barto_reward=true", "env.kwargs={sutton_barto_reward: true}"):
        assert load([override]).env.kwargs == {"sutton_barto_reward": True}
    assert load(["env.kwargs={size: 3, at: {x: [1, 2]}}"]).env.kwargs == {"size": 3, "at": {"x": [1, 2]}}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_only_divisors_of_the_batch_pass(num_envs, num_steps, num_minibatches):
    config = Config(num_envs=num_envs, num_steps=num_steps, num_minibatches=num_minibatches, norm_adv=False)
    if (num_envs * num_steps) % num_minibatches:
        with pytest.raises(ConfigError, match="does not divide"):
            config.validate()
    else:
        config.validate()
        assert config.minibatch_samples * num_minibatches == num_envs * num_steps


def test_folder_names_say_environment_condition_loss_and_seed():
    assert run_folder(load()).as_posix() == "results/runs/CartPole-v1__ppo_clip__seed-1"
    overrides = ["env=pendulum", "optimizer=sgd", "hidden_sizes=[32,32]", "loss=reinforce", "seed=7", "run_root=r"]
    assert (
        run_folder(load(overrides)).as_posix() == "r/Pendulum-v1__optimizer-sgd__hidden_sizes-32-32__reinforce__seed-7"
    )
    assert run_folder(load(["run_dir=somewhere"])).as_posix() == "somewhere"
    ruled = ["optimizer=sam", "optimizer.rho=0.1", "optimizer.base=sgd", "run_root=r"]
    assert (
        run_folder(load(ruled)).as_posix()
        == "r/CartPole-v1__optimizer-sam__optimizer.base-sgd__optimizer.rho-0.1__ppo_clip__seed-1"
    )
    penalty = run_folder(load(["optimizer=gradient_penalty", "optimizer.penalty_coef=0.1", "run_root=r"]))
    assert penalty.as_posix() == "r/CartPole-v1__optimizer-gradient_penalty__ppo_clip__seed-1", "0.1 is the default"


@pytest.mark.parametrize("optimizer", ["sam", "gradient_penalty"])
def test_every_key_of_a_rule_changes_the_folder_name(optimizer):
    chosen = f"optimizer={optimizer}"
    changes = {"optimizer.base": ["optimizer.base=sgd"], "optimizer.betas": ["optimizer.betas=[0.8,0.9]"]}
    changes["optimizer.momentum"] = ["optimizer.base=sgd", "optimizer.momentum=0.5"]
    keys = [key for key in load([chosen]).flat() if key.startswith("optimizer.") and key != "optimizer.name"]
    names = {run_folder(load([chosen, *changes.get(key, [f"{key}=0.5"])])) for key in keys}
    assert len(names | {run_folder(load([chosen])), run_folder(load())}) == len(keys) + 2


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
    changes |= {"on_nonfinite": "on_nonfinite=record", "env.check": "env.check=false", "update": "update=autograd"}
    changes["compiler_heuristics"] = "compiler_heuristics=true update=compiled"
    keys = [key for key in Config().flat() if key not in WHERE_KEYS]
    for key in keys:
        value = Config().flat()[key]
        override = changes.get(key) or f"{key}={(value or 1) * 2}"
        names.add(run_folder(load(override.split())))
    assert len(names) == len(keys) + 1


def test_long_names_stay_within_what_file_systems_allow():
    overrides = [f"{key}={value}" for key, value in Config().flat().items() if key in known_keys() and "." not in key]
    changed = [o for o in overrides if o.split("=")[0] in ("gamma", "gae_lambda", "clip_coef", "vf_coef", "ent_coef")]
    changed = [o.split("=")[0] + "=0.123456789012345678" for o in changed]
    sizes = f"hidden_sizes=[{','.join(['100'] * 60)}]"
    a, b = (run_folder(load([*changed, sizes, f"seed={seed}"])).name for seed in (1, 2))
    assert len(a) < 255
    assert a != b
