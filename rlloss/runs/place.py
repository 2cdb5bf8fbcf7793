"""Where a run belongs: the name of its folder, and what may not be written over."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from rlloss.config.schema import OVER_THE_RUN, VARIANTS, Config
from rlloss.errors import ConfigError
from rlloss.runs.lock import LOCK
from rlloss.runs.reader import WHERE_KEYS, RunFolder, read_config

LENGTH = "total_timesteps"
LONGEST_NAME = 200  # characters of a run folder's name; file systems allow 255 bytes


def run_folder(config: Config) -> Path:
    """``run_dir``, or a folder below ``run_root`` whose name says environment, setting, loss and seed.

    The setting is every key that differs from its default. A name too long for a file system ends in a hash of it.
    """
    if config.run_dir is not None:
        return Path(config.run_dir)
    default = Config(**{group: type(getattr(config, group))() for group in VARIANTS}).flat()
    default |= {f"{group}.name": getattr(Config(), group).name for group in VARIANTS}
    named = ("env.id", "loss.name", "seed", *WHERE_KEYS)
    setting = [
        f"{key.removesuffix('.name')}-{_slug(value)}"
        for key, value in config.flat().items()
        if key not in named and value != default.get(key)
    ]
    parts = [_slug(config.env.id), *setting, _slug(config.loss.name), f"seed-{config.seed}"]
    name = "__".join(parts)
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Path(config.run_root) / name


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config, nested, as its run folder has it: flat."""
    return read_config(yaml.safe_dump(dict(config)))


def config_digest(config: Mapping[str, Any]) -> str:
    """The SHA-256 of a config as ``recorded`` and as ``RunFolder`` have it: without what says where it is recorded."""
    return hashlib.sha256(json.dumps(dict(config), sort_keys=True, default=str).encode()).hexdigest()


def check_folder(folder: Path, config: Config) -> None:
    """Raises: ConfigError if ``folder`` holds something other than a run of this config."""
    refuse_another(folder, asdict(config))


def refuse_another(folder: Path, config: Mapping[str, Any]) -> None:
    """The same for a config as a nested mapping."""
    try:
        is_there = folder.exists()
    except OSError as error:  # a name too long
        raise ConfigError(f"run_dir={folder}: {error.strerror}; name another run_root or run_dir") from error
    if not is_there:
        _refuse_unwritable(folder)
        return
    if not folder.is_dir():
        raise ConfigError(f"run_dir={folder}: is a file; name a folder")
    if not (folder / "config.yaml").exists():
        if any(_not_ours(path) for path in folder.iterdir()):
            raise ConfigError(f"run_dir={folder}: is not empty and holds no run; name another folder")
        return
    there, here = RunFolder(folder).config, recorded(config)
    if not there:
        raise ConfigError(
            f"run_dir={folder}: its config.yaml cannot be read; name another run_dir, or remove that folder"
        )
    since = {**Config().flat(), **there}  # a key that came after that run was made had its default
    differing = [key for key in {**there, **here} if since.get(key) != here.get(key)]
    if differing == [LENGTH] and _longer(there, here):
        if here.get("schedule.name") in OVER_THE_RUN:
            raise ConfigError(
                f"run_dir={folder}: holds a run of {LENGTH}={there[LENGTH]}, over which schedule="
                f"{here['schedule.name']} spreads the learning rate; one of {here[LENGTH]} differs from it from its "
                "first step on; name another run_dir, or train with schedule=constant"
            )
        return
    if differing:
        key = differing[0]
        more = f" (and {len(differing) - 1} more keys)" if len(differing) > 1 else ""
        raise ConfigError(
            f"run_dir={folder}: holds a run with another config, {key}={there.get(key)} instead of "
            f"{here.get(key)}{more}; name another run_dir, or remove that folder"
        )


def goes_on(run: RunFolder, config: Mapping[str, Any]) -> bool:
    """Whether this config, whose run the folder holds, asks for more environment steps than that run was to take."""
    return _longer(run.config, recorded(config))


def _longer(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    before, now = there.get(LENGTH), here.get(LENGTH)
    return isinstance(before, int) and isinstance(now, int) and before < now


def is_finished(config: Config) -> bool:
    """Whether the run of this config, all of its environment steps, is finished."""
    run = RunFolder(run_folder(config))
    return run.status == "finished" and not _longer(run.config, config.flat())


def _refuse_unwritable(folder: Path) -> None:
    """Raises: ConfigError for a folder that cannot be made: no permission, a file system that is read only, a file."""
    if link := next((path for path in (folder, *folder.parents) if path.is_symlink() and not path.exists()), None):
        raise ConfigError(f"run_dir={folder}: {link} is a link to nothing; name another run_root or run_dir")
    parent = next(path for path in folder.absolute().parents if path.exists())
    if not parent.is_dir():
        raise ConfigError(f"run_dir={folder}: {parent} is a file; name another run_root or run_dir")
    if not os.access(parent, os.W_OK | os.X_OK) or parent.is_relative_to("/proc"):
        raise ConfigError(f"run_dir={folder}: {parent} cannot be written to; name another run_root or run_dir")


def _not_ours(path: Path) -> bool:
    """Whether a file is more than what a run killed at its very start leaves behind."""
    empty = path.name == "snapshots" and path.is_dir() and not any(path.iterdir())
    return not (path.name == ".lock" or path.name.startswith(LOCK) or path.suffix == ".partial" or empty)


def _slug(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")
