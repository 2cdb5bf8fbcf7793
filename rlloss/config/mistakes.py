"""Answers to what people mistype: a key of another library, a value of another type, a key of a choice not made.

Every answer is one line that names the key, the value and the remedy.
"""

import difflib
import types
import typing
from collections.abc import Collection, Sequence
from dataclasses import is_dataclass
from typing import Any

from rlloss.config.schema import VARIANTS, Config

ELSEWHERE = {  # a key of other libraries -> what it is called here
    "lr": "learning_rate",
    "alpha": "learning_rate",
    "n_steps": "num_steps",
    "rollout_length": "num_steps",
    "horizon": "num_steps",
    "n_envs": "num_envs",
    "num_workers": "num_envs",
    "num_environments": "num_envs",
    "n_epochs": "update_epochs",
    "epochs": "update_epochs",
    "ppo_epochs": "update_epochs",
    "num_epochs": "update_epochs",
    "batch_size": "num_minibatches; a minibatch has num_envs * num_steps / num_minibatches samples",
    "minibatch_size": "num_minibatches; a minibatch has num_envs * num_steps / num_minibatches samples",
    "n_minibatches": "num_minibatches",
    "total_steps": "total_timesteps",
    "timesteps": "total_timesteps",
    "max_steps": "total_timesteps",
    "steps": "total_timesteps",
    "clip_range": "clip_coef",
    "clip_eps": "clip_coef",
    "clip_epsilon": "clip_coef",
    "clip_param": "clip_coef",
    "cliprange": "clip_coef",
    "epsilon": "clip_coef",
    "clip_range_vf": "clip_vloss",
    "entropy_coef": "ent_coef",
    "entropy_coeff": "ent_coef",
    "value_coef": "vf_coef",
    "vf_loss_coeff": "vf_coef",
    "discount": "gamma",
    "lam": "gae_lambda",
    "lambda": "gae_lambda",
    "lambda_": "gae_lambda",
    "normalize_advantage": "norm_adv",
    "norm_advantages": "norm_adv",
    "max_grad": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "kl_target": "target_kl",
    "net_arch": "hidden_sizes",
    "hidden_size": "hidden_sizes",
    "hidden_dim": "hidden_sizes",
    "cuda": "device=cuda, or device=cpu",
    "gpu": "device=cuda, or device=cpu",
    "algo": "loss",
    "algorithm": "loss",
    "policy_loss": "loss",
    "env_id": "env.id, for any registered id; env, for a config of ours",
    "env_name": "env.id, for any registered id; env, for a config of ours",
    "gym_id": "env.id, for any registered id; env, for a config of ours",
    "anneal_lr": "schedule=linear, or schedule=constant",
    "lr_schedule": "schedule",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "optim": "optimizer",
    "early_stopping": "stop",
    "dtype": "precision",
    "amp": "precision",
    "track": "logger=tensorboard",
    "wandb": "logger=tensorboard",
    "tensorboard": "logger=tensorboard",
    "log_dir": "run_dir, for one run; run_root, for many",
    "logdir": "run_dir, for one run; run_root, for many",
    "output_dir": "run_dir, for one run; run_root, for many",
    "save_freq": "snapshot_every",
    "threads": "torch_threads",
    "random_seed": "seed",
}
SAYS = {  # what a value that is not there or not right should be, where its type does not say it
    "max_grad_norm": "inf switches clipping off",
    "target_kl": "null sets no limit",
    "run_dir": "leave it out to have the folder named after the run",
    "num_envs": "the number of copies of the environment",
}
FEW = 8  # choices, of which all are named
KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
NOTHING = ("none", "None", "nil", "NaN", "off", "no", "")


def unknown_key(key: str, known: Collection[str]) -> str:
    """What to write in the place of a key that is not there."""
    bare = key.removeprefix("--").replace("-", "_")
    if bare in ELSEWHERE:
        return f"here it is {ELSEWHERE[bare]}"
    if bare in known:
        return f"write {bare}, without dashes"
    close = difflib.get_close_matches(bare, known, 3)
    tails = [name for name in known if name.rpartition(".")[2] == bare.rpartition(".")[2]]
    found = list(dict.fromkeys([*tails[:3], *close]))[:3]
    return f"did you mean {' or '.join(found)}?" if found else "`rlloss train --cfg job` prints every key"


def closest(value: str, offered: Sequence[str]) -> str:
    """The choices that a value resembles; all, if they are few or none does."""
    if len(offered) <= FEW:
        return f"use one of {', '.join(offered)}"
    low = value.lower()
    found = [name for name in offered if low and (name.startswith(low) or low in name.split("_"))]
    found += [name for name in difflib.get_close_matches(low, offered, 3, 0.5) if name not in found]
    return f"did you mean {' or '.join(found[:3])}?" if found else f"use one of {', '.join(offered)}"


def other_choice(key: str) -> str:
    """For a key that only other choices of its group have: which, and how to make one. Empty if there is none."""
    group, _, name = key.partition(".")
    having = [kind().name for kind in VARIANTS.get(group, ()) if name in typing.get_type_hints(kind)]
    if not having:
        return ""
    choice = " or ".join(f"{group}={each}" for each in having)
    return f"only {choice} has that key; add {choice}"


def type_of(key: str) -> Any:
    """The type of a key's value, by the schema; None for a key that is not in it."""
    node: Any = Config
    group, _, rest = key.partition(".")
    if rest and group in VARIANTS:
        kinds = [kind for kind in VARIANTS[group] if rest in typing.get_type_hints(kind)]
        return typing.get_type_hints(kinds[0])[rest] if kinds else None
    for part in key.split("."):
        hints = typing.get_type_hints(node) if is_dataclass(node) else {}
        if part not in hints:
            return None
        node = hints[part]
    return node


def wrong_value(key: str, value: object, text: str) -> str:
    """The line for a value of another type than the key's; empty if the type is not the trouble."""
    kind = type_of(key)
    if kind is None or is_dataclass(kind):
        return ""
    optional = isinstance(kind, types.UnionType) and type(None) in typing.get_args(kind)
    if optional:
        kind = next(each for each in typing.get_args(kind) if each is not type(None))
    remedy = _remedy(key, kind, value, optional=optional)
    if typing.get_origin(kind) is dict:
        return f"{text}: must be names with their values; write {key}.NAME=VALUE, once for each"
    what = f"a list of {_plural(kind)}" if typing.get_origin(kind) is list else KINDS.get(kind, str(kind))
    return f"{text}: must be {what}{', or null' if optional else ''}; {remedy}"


def _plural(kind: Any) -> str:
    (item,) = typing.get_args(kind)
    return {int: "whole numbers", float: "numbers"}.get(item, "names")


def _remedy(key: str, kind: Any, value: object, *, optional: bool) -> str:
    if typing.get_origin(kind) is list:
        return f"write {key}=[{value}]" if isinstance(value, int | float | str) else f"write {key}=[a,b]"
    if optional and value in NOTHING:
        return f"write {key}=null"
    if kind is int and isinstance(value, float) and value.is_integer():
        return f"write {key}={int(value)}"
    if kind is int and isinstance(value, str) and value.replace("_", "").replace("'", "").isdecimal():
        return f"write {key}={int(value.replace('_', '').replace(chr(39), ''))}"
    if kind is bool and isinstance(value, int | float | str):
        return f"write {key}=true or {key}=false"
    if key in SAYS:
        return SAYS[key]
    default = Config().flat().get(key)
    return f"{default} by default" if default is not None else "`rlloss train --cfg job` prints every key"
