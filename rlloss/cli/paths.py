"""Paths that a command is given, checked before it begins: each message names the option and what was typed."""

import os
from pathlib import Path

from rlloss.errors import ConfigError
from rlloss.runs.reader import MARKS, find_runs


def one_run(path: Path) -> Path:
    """The folder of one run. Raises: ConfigError for one that holds none."""
    if not path.is_dir():
        raise ConfigError(f"RUN={path}: no such folder; name a run's folder")
    if MARKS.intersection(os.listdir(path)):
        return path
    below = find_runs(path)
    if not below:
        raise ConfigError(f"RUN={path}: no run there; name a run's folder")
    first = os.path.join(path, below[0].path.relative_to(path.resolve()))
    raise ConfigError(f"RUN={path}: no run there; name one of the {len(below)} below it, as {first}")


def output_file(option: str, path: Path | None) -> None:
    """A file to be written; folders that are missing are made with it. Raises: ConfigError for what cannot be one."""
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder; name a file")
    _writable(option, path, path if path.exists() else _nearest(path))


def output_folder(option: str, path: Path | None) -> None:
    """A folder to be written into, made if it is missing. Raises: ConfigError for what cannot be one."""
    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{option} {path}: is a file; name a folder")
    _writable(option, path, path if path.exists() else _nearest(path))


def _nearest(path: Path) -> Path:
    """The folder that is there, of those above it; a file that stands in its place."""
    return next(parent for parent in path.absolute().parents if parent.exists())


def _writable(option: str, path: Path, there: Path) -> None:
    if there != path and not there.is_dir():
        raise ConfigError(f"{option} {path}: {there} is a file; name another path")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"{option} {path}: {there} cannot be written to; name another path")
