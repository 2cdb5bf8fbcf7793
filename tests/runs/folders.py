"""Run folders that are cut short, and what they are compared by."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import yaml

from rlloss.config import load
from rlloss.runs import RunFolder, writer
from rlloss.runs.lock import LOCK
from rlloss.train import train


def content(path: Path) -> object:
    """A file without times and speeds, and without how often a checkpoint was made."""
    if path.name == "run.json":
        return {k: v for k, v in json.loads(path.read_text()).items() if k != "steps_per_second"}
    if path.name == "metrics.csv":
        return pd.read_csv(path, dtype=str).drop(columns="steps_per_second").to_csv()
    if path.name == "config.yaml":
        return yaml.safe_load(path.read_text()) | {"checkpoint_seconds": None}
    return path.read_bytes()


def files(folder: Path) -> dict[str, object]:
    """Everything in a run folder but TensorBoard's events, a file for each process, with times in them, and the lock,
    which a process that is killed once all is written leaves behind."""
    found = (path for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name and path.name != LOCK)
    return {path.relative_to(folder).as_posix(): content(path) for path in found}


class Kill(BaseException):
    """Ends a run in this process as a kill would: nothing that the writer does at its end is done."""


def cut_short(overrides: Sequence[str], folder: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until ``after`` iterations are done, and then leave everything as it is, the lock aside."""

    def killed(row):
        if row["iteration"] == after:
            raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(writer.RunWriter, "_leave", lambda self, error: None)
        with pytest.raises(Kill):
            train(load(list(overrides)), folder, killed)
    assert RunFolder(folder).recorded_status == "running"
