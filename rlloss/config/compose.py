"""How overrides become a checked Config. Only this module composes with Hydra; the keys are in config/schema.py."""

import copy
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    UnsupportedValueType,
    ValidationError,
)

from rlloss.config.choices import choices, data_dir, groups
from rlloss.config.group import MISSING
from rlloss.config.mistakes import closest, other_choice, unknown_key, wrong_value
from rlloss.config.schema import GROUPS, VARIANTS, Config
from rlloss.errors import ConfigError

SEARCHPATH = "hydra.searchpath"

_store = ConfigStore.instance()
_store.store("config_schema", Config(**dict.fromkeys(GROUPS, MISSING)))  # Hydra's defaults list fills the groups
for _group, _variants in VARIANTS.items():
    for _variant in _variants:
        if _variant().name != MISSING:
            _store.store(f"{_variant().name}_schema", _variant, group=_group)


def load(overrides: Sequence[str] = ()) -> Config:
    """The config that ``rlloss train OVERRIDES`` runs, checked.

    ``hydra.searchpath=[file://DIR]`` among the overrides adds a folder of configs to ours.

    Raises: ConfigError with one line naming key, value and remedy.
    """
    if isinstance(overrides, str | Mapping) or not all(isinstance(override, str) for override in overrides):
        raise TypeError(f"load takes a list of overrides, as load(['seed=1', 'loss=reinforce']), not {overrides!r}")
    parsed = parse_overrides(overrides)
    folders = search_path(parsed)
    _reject_unknown_keys(parsed, folders)
    group_names = groups(folders)
    try:
        chosen = tuple(o.input_line for o in parsed if o.key_or_group in group_names)
        config = copy.deepcopy(_compose_groups(chosen, folders))
        for override in parsed:
            if override.key_or_group not in group_names and not is_hydras(override):
                _set(config, override)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_own_mistake(parsed, folders) or _in_words(error, parsed)) from error
    except yaml.YAMLError as error:
        from rlloss.config.own import not_yaml  # here, since mistakes are rare

        where = not_yaml(error) or f"a config below {', '.join(map(str, folders))} is no YAML"
        raise ConfigError(where) from error
    try:
        return to_config(config)
    except (HydraException, OmegaConfBaseException) as error:
        where = _own_file(getattr(error, "full_key", None) or "", parsed, folders)
        raise ConfigError(_own_mistake(parsed, folders) or f"{where}{_in_words(error, parsed)}") from error
    except ConfigError as error:
        raise ConfigError(f"{_own_file(str(error).partition('=')[0], parsed, folders)}{error}") from error


def _chosen(overrides: Sequence[Override], folders: tuple[Path, ...]) -> list[tuple[str, str]]:
    """The groups and choices that overrides name, where a file of the user's may stand behind them."""
    given = [(o.key_or_group, str(o.value())) for o in overrides if o.key_or_group in groups(folders)]
    return given if folders else []


def _own_mistake(overrides: Sequence[Override], folders: tuple[Path, ...]) -> str:
    from rlloss.config.own import mistake

    return mistake(_chosen(overrides, folders), folders, known_keys())


def _own_file(key: str, overrides: Sequence[Override], folders: tuple[Path, ...]) -> str:
    """The user's file that sets a key, as the beginning of a message about it; empty if an override or none does."""
    from rlloss.config.own import setting

    given = any(override.key_or_group == key for override in overrides)
    path = "" if given else setting(key, _chosen(overrides, folders), folders)
    return f"{path}: " if path else ""


def _set(config: DictConfig, override: Override) -> None:
    """One key of the composed config. Raises: ConfigError for a value that is not of the key's type."""
    key, value, text = override.key_or_group, override.value(), str(override.input_line)
    try:
        OmegaConf.update(config, key, value, merge=True, force_add=bool(override.is_add() or override.is_force_add()))
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise ConfigError(f"{text}: {other_choice(key) or one_line(error)}") from error
    except (ValidationError, UnsupportedValueType) as error:
        raise ConfigError(wrong_value(key, value, text) or f"{text}: {one_line(error)}") from error


@functools.cache
def _compose_groups(choices: tuple[str, ...], folders: tuple[Path, ...] = ()) -> DictConfig:
    """Hydra's composition of the groups, which takes a tenth of a second: once per choice, not once per run."""
    GlobalHydra.instance().clear()
    path = [searchpath_of(folders)] if folders else []
    with initialize_config_dir(str(data_dir("configs").resolve()), version_base="1.3"):
        return compose("config", [*choices, *path])


def searchpath_of(folders: Sequence[Path]) -> str:
    """The override that adds folders of configs to ours."""
    quoted = (QuotedString(f"file://{path.resolve()}", Quote.single).with_quotes() for path in folders)
    return f"{SEARCHPATH}=[{','.join(quoted)}]"


def compose_all(overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes, with its own node ``hydra``. Raises: ConfigError for what Hydra rejects."""
    GlobalHydra.instance().clear()
    parsed = parse_overrides(overrides)
    lines = [str(override.input_line) for override in parsed if override.key_or_group != SEARCHPATH]
    if folders := search_path(parsed):
        lines.append(searchpath_of(folders))
    try:
        with initialize_config_dir(str(data_dir("configs").resolve()), version_base="1.3", job_name="rlloss"):
            return compose("config", lines, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error


def search_path(overrides: Sequence[Override]) -> tuple[Path, ...]:
    """The folders of a user's own configs. Raises: ConfigError for one that is not there."""
    found: list[Path] = []
    for override in overrides:
        if override.key_or_group == SEARCHPATH:
            value = override.value()
            for entry in value if isinstance(value, list) else [value]:
                folder = Path(str(entry).removeprefix("file://")).resolve()
                if not folder.is_dir():
                    raise ConfigError(
                        f"{override.input_line}: no folder {folder}; name one with configs, as file://DIR"
                    )
                found.append(folder)
    return tuple(found)


def to_config(composed: Any) -> Config:
    """A composed (OmegaConf) config as a checked Config."""
    _reject_extra_nodes(composed)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    config.validate()
    return config


@functools.cache
def known_keys() -> list[str]:
    """Every key that an override may set, including those of the choices that are not selected."""
    variants = [Config(**{group: variant()}) for group, kinds in VARIANTS.items() for variant in kinds]
    return list(dict.fromkeys(key for config in variants for key in config.flat()))


def is_hydras(override: Override) -> bool:
    """Whether an override is for Hydra itself, not for the run."""
    return override.key_or_group.startswith(("hydra.", "hydra/")) or override.key_or_group == "hydra"


def _reject_unknown_keys(overrides: Sequence[Override], folders: tuple[Path, ...]) -> None:
    """A misspelt key must not start a run; Hydra alone would accept ``+new.key=3`` even on a structured config."""
    known, group_names = known_keys(), groups(folders)
    for override in overrides:
        key, text = override.key_or_group, override.input_line
        if is_hydras(override):
            continue
        if override.is_delete():
            raise ConfigError(f"{text}: no key can be removed; every key has a value")
        if override.is_sweep_override():
            raise ConfigError(
                f"{text}: several values are a sweep; add --multirun, or write {key}=[1,2] for a list and "
                f"'{key}=\"…\"' for one value with commas"
            )
        if key.startswith("env.kwargs."):
            continue
        if key in group_names:
            _reject_unknown_choice(override, folders)
        elif key not in known:
            raise ConfigError(f"{text}: unknown key {key}; {unknown_key(key, [*known, *group_names])}")


def _reject_unknown_choice(override: Override, folders: tuple[Path, ...]) -> None:
    group, choice, offered = override.key_or_group, override.value(), choices(override.key_or_group, folders)
    if choice in offered:
        return
    text = str(choice)
    if group == "env" and (re.search(r"-v\d+$", text) or ":" in text):
        ours = [name for name in offered if f"id: {text}\n" in _source("env", name, folders)]
        also = f", or env={ours[0]}" if ours else ""
        raise ConfigError(f"env={text}: an id is given as env.id={text}{also}")
    own = {
        "env": "; any registered id: env.id=ID or env.id=module:ID",
        "loss": "; one of your own: loss=file.py:function or loss=module:function",
    }
    raise ConfigError(f"{group}={text}: no such {group}; {closest(text, offered)}{own.get(group, '')}")


def _source(group: str, choice: str, folders: tuple[Path, ...]) -> str:
    paths = [folder / group / f"{choice}.yaml" for folder in (*folders, data_dir("configs"))]
    return next((path.read_text() + "\n" for path in paths if path.exists()), "")


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Hydra's overrides, with what people leave out: the + of an environment's argument and of a group of their own.

    ``loss=file.py:function`` becomes ``loss.name=file.py:function``: no yaml stands behind it.
    """
    parsed = [override for text in overrides for override in _parse(text)]
    folders = search_path(parsed)
    whole = []
    for override in parsed:
        key, text = override.key_or_group, str(override.input_line)
        added = bool(override.is_add() or override.is_force_add())
        arguments = key.startswith("env.kwargs.") or (key == "env.kwargs" and text.partition("=")[2].startswith("{"))
        if arguments and not added and not override.is_delete():
            text = f"++{text}"
        elif key == "loss" and ":" in text.partition("=")[2] and not override.is_sweep_override():
            text = f"loss.name={text.partition('=')[2]}"
        elif key in groups(folders) and key not in groups() and not added:
            text = f"+{text}"
        whole += _parse(text)
    return whole


def _parse(text: str) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides([text])
    except HydraException as error:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text}: an override reads key=value") from error
        if text.startswith("-"):
            raise ConfigError(f"{text}: keys have no dashes before them; write {text.lstrip('-')}") from error
        if (
            any(value.count(a) != value.count(b) for a, b in ("[]", "{}", "()"))
            or value.count("'") % 2
            or value.count('"') % 2
        ):
            raise ConfigError(f"{text}: brackets or quotes do not close") from error
        if re.fullmatch(r"\w+\(\s*\)", value):
            raise ConfigError(f"{text}: sweeps over nothing; give at least one value") from error
        values = [part.strip() for part in value.split(",")]
        if not all(values) and not set(value) & set("[{('\""):
            full = ",".join(filter(None, values))
            raise ConfigError(f"{text}: has a comma with no value beside it; write {key}={full}") from error
        quoted = value.replace('"', "")
        raise ConfigError(f"{text}: the value has to be quoted: '{key}=\"{quoted}\"'") from error


def _reject_extra_nodes(composed: Any) -> None:
    extra = sorted(set(composed) - {item.name for item in fields(Config)})
    if extra:
        raise ConfigError(f"unknown key {extra[0]}; {unknown_key(extra[0], known_keys())}")


def _in_words(error: BaseException, overrides: Sequence[Override]) -> str:
    """A message of Hydra's, with the override that it is about and the remedy, where these can be told."""
    text = one_line(error)
    key = str(getattr(error, "full_key", "") or "")
    about = [str(o.input_line) for o in overrides if key and o.key_or_group == key]
    if "interpolation" in text.lower():
        return f"{about[0] if about else text}: ${{...}} takes keys of the config, as ${{seed}} or ${{loss.name}}"
    return f"{about[0]}: {text}" if about and about[0] not in text else text


def one_line(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages span lines and wrap the cause: the cause's first line, and the key."""
    while isinstance(error.__cause__, HydraException | OmegaConfBaseException):
        error = error.__cause__
    key = getattr(error, "full_key", None)
    lines = str(error).splitlines()
    first = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return f"{key}: {first}" if key and key not in first else first
