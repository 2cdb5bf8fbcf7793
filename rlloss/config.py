"""Structured configs: every key, its default, its unit; the checks across fields; how overrides become a Config.

The keys are CleanRL's family and the defaults are those of its ``ppo.py``.
"""

import copy
import difflib
import functools
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlloss.runs import WHERE_KEYS, read_config


class ConfigError(ValueError):
    """Bad input: one line that names the key, the value and the remedy. The command line exits with 2."""


@dataclass
class LossConfig:
    name: str = MISSING  # an entry of rlloss.losses.LOSSES
    offset: float = 0.0  # a constant added to the policy loss: another value, the same gradient


@dataclass
class EnvConfig:
    id: str = MISSING  # Gymnasium's environment id
    kwargs: dict[str, Any] = field(default_factory=dict)  # passed to gymnasium.make


@dataclass
class OptimizerConfig:
    """``name`` is the config group's choice; every other key is passed to the torch.optim class as it stands."""

    name: str = MISSING


@dataclass
class AdamConfig(OptimizerConfig):
    name: str = "adam"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-5  # PPO's customary value; torch's own default is 1e-8
    weight_decay: float = 0.0


@dataclass
class SGDConfig(OptimizerConfig):
    name: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0


@dataclass
class RMSpropConfig(OptimizerConfig):
    name: str = "rmsprop"
    alpha: float = 0.99  # smoothing constant of the squared gradient
    eps: float = 1e-5
    momentum: float = 0.0
    weight_decay: float = 0.0


@dataclass
class LBFGSConfig(OptimizerConfig):
    name: str = "lbfgs"
    max_iter: int = 4  # iterations per optimiser step
    max_eval: int | None = None  # evaluations of the loss per optimiser step; null: 1.25 * max_iter
    tolerance_grad: float = 1e-7
    tolerance_change: float = 1e-9
    history_size: int = 10
    line_search_fn: str | None = None  # or strong_wolfe, which reads the loss's value


@dataclass
class ScheduleConfig:
    name: str = MISSING  # constant; linear: learning_rate falls to 0 over the run; plateau


@dataclass
class PlateauConfig(ScheduleConfig):
    """torch's ReduceLROnPlateau, stepped once per iteration; its own defaults."""

    name: str = "plateau"
    monitor: str = "policy_loss"  # any of MONITORS
    mode: str = "min"  # or max
    factor: float = 0.1
    patience: int = 10  # iterations
    threshold: float = 1e-4
    threshold_mode: str = "rel"  # or abs
    cooldown: int = 0  # iterations
    min_lr: float = 0.0
    eps: float = 1e-8


@dataclass
class StopConfig:
    name: str = MISSING  # never, threshold, no_improvement


@dataclass
class ThresholdStopConfig(StopConfig):
    """Stop after the first iteration whose metric is at or beyond ``threshold``."""

    name: str = "threshold"
    monitor: str = "policy_loss"  # any of MONITORS
    mode: str = "min"  # stop at or below the threshold; max: at or above it
    threshold: float = 0.0


@dataclass
class NoImprovementStopConfig(StopConfig):
    """Stop once the metric has not been better than its best by more than ``min_delta`` for ``patience`` iterations."""

    name: str = "no_improvement"
    monitor: str = "policy_loss"  # any of MONITORS
    mode: str = "min"  # or max
    patience: int = 10  # iterations
    min_delta: float = 0.0


@dataclass
class GuardConfig:
    name: str = MISSING  # none, finite


@dataclass
class FiniteGuardConfig(GuardConfig):
    """Skip an optimiser step whose loss is not a finite number."""

    name: str = "finite"
    monitor: str = "total_loss"  # or policy_loss


@dataclass
class BestConfig:
    name: str = MISSING  # none, metric


@dataclass
class MetricBestConfig(BestConfig):
    """Keep the parameters after the iteration whose metric is the best of the run, as best.pt."""

    name: str = "metric"
    monitor: str = "policy_loss"  # any of MONITORS
    mode: str = "min"  # or max


@dataclass
class PrecisionConfig:
    name: str = MISSING  # fp32 or fp64: the dtype of parameters, rollout and update


@dataclass
class Config:
    """One run. Sizes are counts, ``total_timesteps`` counts environment steps summed over all environments."""

    loss: LossConfig = field(default_factory=lambda: LossConfig("ppo_clip"))
    env: EnvConfig = field(default_factory=lambda: EnvConfig("CartPole-v1"))
    optimizer: OptimizerConfig = field(default_factory=AdamConfig)
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig("linear"))
    precision: PrecisionConfig = field(default_factory=lambda: PrecisionConfig("fp32"))
    stop: StopConfig = field(default_factory=lambda: StopConfig("never"))
    guard: GuardConfig = field(default_factory=lambda: GuardConfig("none"))
    best: BestConfig = field(default_factory=lambda: BestConfig("none"))

    seed: int = 1  # parent of every random stream of the run
    total_timesteps: int = 500_000  # environment steps; whole iterations only, the remainder is not run
    num_envs: int = 4
    num_steps: int = 128  # steps per environment and iteration; the batch is num_envs * num_steps
    update_epochs: int = 4  # passes over the batch per iteration
    num_minibatches: int = 4  # minibatches per epoch; must divide the batch
    learning_rate: float = 2.5e-4
    gamma: float = 0.99  # discount per step
    gae_lambda: float = 0.95
    clip_coef: float = 0.2  # half-width of the ratio's clip interval, and of the value clip
    vf_coef: float = 0.5
    ent_coef: float = 0.01
    max_grad_norm: float = 0.5  # global L2 norm; inf switches clipping off
    norm_adv: bool = True  # normalise advantages per minibatch
    clip_vloss: bool = True
    target_kl: float | None = None  # stop an iteration's epochs once the epoch's mean approx_kl exceeds it
    hidden_sizes: list[int] = field(default_factory=lambda: [64, 64])  # of the actor and of the critic, tanh

    device: str = "cpu"  # or cuda
    torch_threads: int = 1  # more threads rarely help at these sizes, and change the bits
    snapshot_every: int = 500  # optimiser steps between parameter snapshots; 0: the first and the last only
    run_root: str = "results/runs"  # where runs without a run_dir go
    run_dir: str | None = None  # this run's folder; without it the name says what ran

    @property
    def num_samples(self) -> int:
        """Samples per iteration (the batch)."""
        return self.num_envs * self.num_steps

    @property
    def minibatch_samples(self) -> int:
        return self.num_samples // self.num_minibatches

    @property
    def num_iterations(self) -> int:
        return self.total_timesteps // self.num_samples


POSITIVE = (
    "total_timesteps", "num_envs", "num_steps", "update_epochs", "num_minibatches", "learning_rate", "max_grad_norm",
    "torch_threads",
)  # fmt: skip
NON_NEGATIVE = ("seed", "vf_coef", "ent_coef", "clip_coef", "snapshot_every")
FRACTION = ("gamma", "gae_lambda")
LONGEST_NAME = 200  # characters of a run folder's name; file systems allow 255 bytes

MONITORS = (
    "policy_loss", "value_loss", "entropy_loss", "total_loss", "ppo_clip_loss", "reinforce_loss", "approx_kl",
    "old_approx_kl", "ratio_outside_frac", "clip_active_frac", "grad_norm", "explained_variance", "episodic_return",
    "episodic_length",
)  # fmt: skip
"""The metrics that a condition may read."""

VARIANTS: dict[str, tuple[type[Any], ...]] = {
    "optimizer": (AdamConfig, SGDConfig, RMSpropConfig, LBFGSConfig),
    "schedule": (ScheduleConfig, PlateauConfig),
    "stop": (StopConfig, ThresholdStopConfig, NoImprovementStopConfig),
    "guard": (GuardConfig, FiniteGuardConfig),
    "best": (BestConfig, MetricBestConfig),
}
"""The groups whose choices have keys of their own."""

_store = ConfigStore.instance()
_GROUPS = ("loss", "env", "optimizer", "schedule", "precision", "stop", "guard", "best")
_store.store("config_schema", Config(**dict.fromkeys(_GROUPS, MISSING)))  # Hydra's defaults list fills the groups
for _group, _variants in VARIANTS.items():
    for _variant in _variants:
        if _variant().name != MISSING:
            _store.store(f"{_variant().name}_schema", _variant, group=_group)


def data_dir(name: str) -> Path:
    """The folder ``configs`` or ``experiments``: inside the installed package, or at the top of the checkout."""
    here = Path(__file__).parent
    return here / name if (here / name).is_dir() else here.parent / name


def load(overrides: Sequence[str] = ()) -> Config:
    """The config that ``rlloss train OVERRIDES`` runs, checked.

    Raises: ConfigError with one line naming key, value and remedy.
    """
    parsed = parse_overrides(overrides)
    _reject_unknown_keys(parsed)
    try:
        config = copy.deepcopy(_compose_groups(tuple(o.input_line for o in parsed if o.key_or_group in groups())))
        for override in parsed:
            if override.key_or_group not in groups() and not _is_hydras(override):
                added = bool(override.is_add())
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=added)
        return to_config(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error


@functools.cache
def _compose_groups(choices: tuple[str, ...]) -> DictConfig:
    """Hydra's composition of the groups, which takes a tenth of a second: once per choice, not once per run."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(data_dir("configs").resolve()), version_base="1.3"):
        return compose("config", list(choices))


def to_config(composed: Any) -> Config:
    """A composed (OmegaConf) config as a checked Config."""
    _reject_extra_nodes(composed)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    check(config)
    return config


def check(config: Config) -> None:
    """Checks that need no environment.

    Raises: ConfigError for values out of range, minibatches that do not divide the batch, a budget below one iteration.
    """
    for key in POSITIVE:
        if not getattr(config, key) > 0:
            raise ConfigError(f"{key}={getattr(config, key)}: must be greater than 0")
    for key in NON_NEGATIVE:
        if not getattr(config, key) >= 0:
            raise ConfigError(f"{key}={getattr(config, key)}: must be 0 or greater")
    for key in {*POSITIVE, *NON_NEGATIVE} - {"max_grad_norm"}:
        if not math.isfinite(getattr(config, key)):
            raise ConfigError(f"{key}={getattr(config, key)}: must be a finite number")
    for key in FRACTION:
        if not 0 <= getattr(config, key) <= 1:
            raise ConfigError(f"{key}={getattr(config, key)}: must lie between 0 and 1")
    if config.target_kl is not None and not config.target_kl > 0:
        raise ConfigError(f"target_kl={config.target_kl}: must be greater than 0, or null for no limit")
    if not config.hidden_sizes or min(config.hidden_sizes) < 1:
        raise ConfigError(f"hidden_sizes={config.hidden_sizes}: needs at least one size, each 1 or greater")
    _check_conditions(config)
    if config.run_dir == "":
        raise ConfigError("run_dir='': names no folder; leave it out to have the folder named after the run")
    batch = config.num_samples
    if batch % config.num_minibatches:
        divisors = ", ".join(str(n) for n in range(1, min(batch, 64) + 1) if batch % n == 0)
        raise ConfigError(
            f"num_minibatches={config.num_minibatches} does not divide the batch of {batch} = "
            f"num_envs {config.num_envs} x num_steps {config.num_steps}; use one of {divisors}"
        )
    if config.norm_adv and config.minibatch_samples < 2:
        raise ConfigError(
            f"num_minibatches={config.num_minibatches} leaves minibatches of 1 sample, whose advantages have no "
            "standard deviation; use fewer minibatches or norm_adv=false"
        )
    if config.num_iterations < 1:
        raise ConfigError(
            f"total_timesteps={config.total_timesteps} is less than one iteration of {batch} = "
            f"num_envs {config.num_envs} x num_steps {config.num_steps}; use at least {batch}"
        )


def _check_conditions(config: Config) -> None:
    for group in ("schedule", "stop", "guard", "best"):
        condition = getattr(config, group)
        allowed = {
            "monitor": ("policy_loss", "total_loss") if group == "guard" else MONITORS,
            "mode": ("min", "max"),
            "threshold_mode": ("rel", "abs"),
        }
        for key, values in allowed.items():
            value = getattr(condition, key, values[0])
            if value not in values:
                raise ConfigError(f"{group}.{key}={value}: unknown; use one of {', '.join(values)}")
        if getattr(condition, "patience", 0) < 0:
            raise ConfigError(f"{group}.patience={condition.patience}: must be 0 or greater")
    if isinstance(config.schedule, PlateauConfig) and not 0 < config.schedule.factor < 1:
        raise ConfigError(f"schedule.factor={config.schedule.factor}: must lie between 0 and 1")
    if isinstance(config.optimizer, LBFGSConfig) and config.optimizer.line_search_fn not in (None, "strong_wolfe"):
        raise ConfigError(f"optimizer.line_search_fn={config.optimizer.line_search_fn}: use strong_wolfe or null")
    if not math.isfinite(config.loss.offset):
        raise ConfigError(f"loss.offset={config.loss.offset}: must be a finite number")


def flat_keys(config: Config) -> dict[str, Any]:
    """The config as one flat dictionary with dotted keys, in the order of declaration."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for item in fields(node):
            value = getattr(node, item.name)
            if is_dataclass(value):
                yield from walk(value, f"{prefix}{item.name}.")
            else:
                yield prefix + item.name, value

    return dict(walk(config, ""))


def run_folder(config: Config) -> Path:
    """``run_dir``, or a folder below ``run_root`` whose name says environment, condition, loss and seed.

    The condition is every key that differs from its default. A name too long for a file system ends in a hash of it.
    """
    if config.run_dir is not None:
        return Path(config.run_dir)
    default = flat_keys(Config(**{group: type(getattr(config, group))() for group in VARIANTS}))
    default |= {f"{group}.name": getattr(Config(), group).name for group in VARIANTS}
    named = ("env.id", "loss.name", "seed", *WHERE_KEYS)
    condition = [
        f"{key.removesuffix('.name')}-{_slug(value)}"
        for key, value in flat_keys(config).items()
        if key not in named and value != default.get(key)
    ]
    parts = [_slug(config.env.id), *condition, config.loss.name, f"seed-{config.seed}"]
    name = "__".join(parts)
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Path(config.run_root) / name


def check_folder(folder: Path, config: Config) -> None:
    """Raises: ConfigError if ``folder`` holds something other than a run of this config."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"run_dir={folder}: is a file; name a folder")
    saved = folder / "config.yaml"
    if not saved.exists():
        if any(_not_ours(path) for path in folder.iterdir()):
            raise ConfigError(f"run_dir={folder}: is not empty and holds no run; name another folder")
        return
    there, here = read_config(saved.read_text()), read_config(to_yaml(config))
    differing = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if differing:
        key = differing[0]
        more = f" (and {len(differing) - 1} more keys)" if len(differing) > 1 else ""
        raise ConfigError(
            f"run_dir={folder}: holds a run with another config, {key}={there.get(key)} instead of "
            f"{here.get(key)}{more}; name another run_dir, or remove that folder"
        )


def _not_ours(path: Path) -> bool:
    """Whether a file is more than what a run killed at its very start leaves behind."""
    empty = path.name == "snapshots" and path.is_dir() and not any(path.iterdir())
    return not (path.name == ".lock" or path.suffix == ".partial" or empty)


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def lookup(table: dict[str, Any], key: str, name: str) -> Any:
    """``table[name]``. Raises: ConfigError naming the choices."""
    if name not in table:
        raise ConfigError(f"{key}={name}: unknown; use one of {', '.join(table)}")
    return table[name]


def _slug(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")


@functools.cache
def choices(group: str) -> list[str]:
    """What a config group offers, by the names of its yaml files."""
    return sorted(path.stem for path in (data_dir("configs") / group).glob("*.yaml"))


@functools.cache
def groups() -> list[str]:
    return sorted(path.name for path in data_dir("configs").iterdir() if path.is_dir() and choices(path.name))


@functools.cache
def known_keys() -> list[str]:
    """Every key that an override may set, including those of the choices that are not selected."""
    variants = [Config(**{group: variant()}) for group, kinds in VARIANTS.items() for variant in kinds]
    return list(dict.fromkeys(key for config in variants for key in flat_keys(config)))


def _is_hydras(override: Override) -> bool:
    return override.key_or_group.startswith(("hydra.", "hydra/")) or override.key_or_group == "hydra"


def _reject_unknown_keys(overrides: Sequence[Override]) -> None:
    """A misspelt key must not start a run; Hydra alone would accept ``+new.key=3`` even on a structured config."""
    known, group_names = known_keys(), groups()
    for override in overrides:
        key, text = override.key_or_group, override.input_line
        if _is_hydras(override) or key.startswith("env.kwargs."):
            continue
        if override.is_delete():
            raise ConfigError(f"{text}: no key can be removed; every key has a value")
        if key in group_names:
            _reject_unknown_choice(override)
        elif key not in known:
            close = difflib.get_close_matches(key, known + group_names, 3)
            hint = f"did you mean {' or '.join(close)}?" if close else "`rlloss train --cfg job` prints every key"
            raise ConfigError(f"{text}: unknown key {key}; {hint}")
        elif override.is_sweep_override():
            raise ConfigError(f"{text}: several values are a sweep; add --multirun, or quote a list as {key}=[1,2]")


def _reject_unknown_choice(override: Override) -> None:
    group, choice, offered = override.key_or_group, override.value(), choices(override.key_or_group)
    if override.is_sweep_override():
        raise ConfigError(f"{override.input_line}: several values are a sweep; add --multirun")
    if choice not in offered:
        raise ConfigError(f"{group}={choice}: no such {group}; use one of {', '.join(offered)}")


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(f"{one_line(error)}; an override reads key=value") from error


def _reject_extra_nodes(composed: Any) -> None:
    """The same for configs composed by Hydra itself, in the jobs of a sweep."""
    extra = sorted(set(composed) - {item.name for item in fields(Config)})
    if extra:
        raise ConfigError(f"unknown key {extra[0]}; `rlloss train --cfg job` prints every key")


def one_line(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages span lines and wrap the cause: the cause's first line, and the key."""
    while isinstance(error.__cause__, HydraException | OmegaConfBaseException):
        error = error.__cause__
    key = getattr(error, "full_key", None)
    lines = str(error).splitlines()
    first = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return f"{key}: {first}" if key and key not in first else first
