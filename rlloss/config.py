"""How overrides become a checked Config (rlloss/schema.py has the keys), and where its run belongs."""

import copy
import difflib
import functools
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
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
from rlloss.schema import MONITORS, VARIANTS, Config, LBFGSConfig, PlateauConfig


class ConfigError(ValueError):
    """Bad input: one line that names the key, the value and the remedy. The command line exits with 2."""


POSITIVE = (
    "total_timesteps", "num_envs", "num_steps", "update_epochs", "num_minibatches", "learning_rate", "max_grad_norm",
    "torch_threads",
)  # fmt: skip
NON_NEGATIVE = ("seed", "vf_coef", "ent_coef", "clip_coef", "snapshot_every")
FRACTION = ("gamma", "gae_lambda")
LONGEST_NAME = 200  # characters of a run folder's name; file systems allow 255 bytes

_store = ConfigStore.instance()
_GROUPS = ("loss", "env", "optimizer", "schedule", "precision", "stop", "guard", "best", "logger")
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
            if override.key_or_group not in groups() and not is_hydras(override):
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
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        raise ConfigError(f"device={config.device}: unknown; use cpu or cuda")
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
    if config.precision.name == "fp16_scaled":
        if isinstance(config.optimizer, LBFGSConfig):
            raise ConfigError(
                "optimizer=lbfgs precision=fp16_scaled: torch's GradScaler takes one evaluation of the loss a step, "
                "L-BFGS needs several; use precision=fp16_autocast, or another optimizer"
            )
        if config.precision.loss_scale != 1:
            raise ConfigError(
                f"precision.loss_scale={config.precision.loss_scale} with precision=fp16_scaled: GradScaler has a "
                "scale of its own; leave it out, or use precision=fp16_autocast"
            )
    if not 0 < config.precision.loss_scale < math.inf or math.frexp(config.precision.loss_scale)[0] != 0.5:
        raise ConfigError(f"precision.loss_scale={config.precision.loss_scale}: must be a power of two")
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


def is_hydras(override: Override) -> bool:
    """Whether an override is for Hydra itself, not for the run."""
    return override.key_or_group.startswith(("hydra.", "hydra/")) or override.key_or_group == "hydra"


def _reject_unknown_keys(overrides: Sequence[Override]) -> None:
    """A misspelt key must not start a run; Hydra alone would accept ``+new.key=3`` even on a structured config."""
    known, group_names = known_keys(), groups()
    for override in overrides:
        key, text = override.key_or_group, override.input_line
        if is_hydras(override) or key.startswith("env.kwargs."):
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
