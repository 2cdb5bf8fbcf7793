"""Reading run folders. Analysis starts here: it never imports the trainer, so runs made elsewhere can be analysed."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

DIGEST_BYTES = 32
LAST_EPISODES = 100  # over which a finished run's return is averaged
WHERE_KEYS = ("run_root", "run_dir")  # where a run is recorded: not part of what it is


def to_json(document: Any) -> str:
    """JSON as the standard has it: nan and infinities, which it cannot say, become null."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(document), indent=2, allow_nan=False)


def flatten(tree: Mapping[str, Any] | None, prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys; empty mappings stay as values."""
    flat: dict[str, Any] = {}
    for key, value in (tree or {}).items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def read_config(text: str) -> dict[str, Any]:
    """A run's ``config.yaml`` as a flat dictionary, without the keys that only say where it is recorded."""
    return {key: value for key, value in flatten(yaml.safe_load(text)).items() if key not in WHERE_KEYS}


class Decision(NamedTuple):
    """What a condition decided after reading a metric: a row of decisions.csv."""

    iteration: int
    condition: str  # plateau, threshold, no_improvement, best, guard, grad_scaler
    monitor: str  # the metric that it read
    value: float  # of that metric
    decision: str


@dataclass(frozen=True)
class RunFolder:
    """A run as it lies on disk, finished or not. Every property is read when first asked for."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Flat, with dotted keys; empty if the file cannot be read as a config."""
        try:
            return read_config((self.path / "config.yaml").read_text())
        except (OSError, ValueError, AttributeError, yaml.YAMLError):
            return {}

    @cached_property
    def info(self) -> dict[str, Any]:
        """``run.json``; empty if it is missing or cut short."""
        try:
            info = json.loads((self.path / "run.json").read_text())
        except (OSError, ValueError):
            return {}
        return info if isinstance(info, dict) else {}

    @property
    def status(self) -> str:
        """``finished``, ``running``, ``failed``, or ``missing``."""
        return str(self.info.get("status", "missing"))

    @property
    def loss(self) -> str:
        return str(self.config.get("loss.name"))

    @property
    def label(self) -> str:
        """The loss, with the constant that is added to it, if one is."""
        offset = self.config.get("loss.offset")
        return f"{self.loss} {offset:+g}" if offset else self.loss

    @cached_property
    def digests(self) -> NDArray[np.void]:
        """[optimiser steps], 32 bytes each; a partial last record is left out."""
        data = (self.path / "digests.bin").read_bytes() if (self.path / "digests.bin").exists() else b""
        whole = len(data) - len(data) % DIGEST_BYTES
        return np.frombuffer(data[:whole], dtype=f"V{DIGEST_BYTES}")

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """A row per iteration; empty before the first."""
        return self._table("metrics.csv", dtype={"actions_digest": str})

    @cached_property
    def episodes(self) -> pd.DataFrame:
        """A row per finished episode: env_steps, env, episodic_return, episodic_length."""
        return self._table("episodes.csv")

    @cached_property
    def decisions(self) -> list[Decision]:
        """What the conditions decided, in order; empty if they decided nothing."""
        rows = self._table("decisions.csv").itertuples(index=False, name=None)
        return [Decision(*row) for row in rows]

    def _table(self, name: str, **kwargs: Any) -> pd.DataFrame:
        try:
            table: pd.DataFrame = pd.read_csv(self.path / name, **kwargs)
        except (FileNotFoundError, pd.errors.EmptyDataError):
            return pd.DataFrame()
        return table

    @cached_property
    def _snapshot_files(self) -> dict[int, Path]:
        where: dict[int, Path] = {}
        for path in sorted((self.path / "snapshots").glob("*.safetensors")):
            try:
                with safe_open(path, framework="numpy") as file:
                    where |= {int(key): path for key in file.keys()}  # noqa: SIM118, not a mapping
            except (SafetensorError, ValueError):
                continue
        return where

    @property
    def snapshot_steps(self) -> list[int]:
        """The optimiser steps after which parameters were kept; 0 is the initialisation."""
        return sorted(self._snapshot_files)

    def snapshot(self, step: int) -> NDArray[np.floating]:
        """All parameters after ``step`` optimiser steps, as one vector."""
        with safe_open(self._snapshot_files[step], framework="numpy") as file:
            return np.asarray(file.get_tensor(f"{step:09d}"))


def find_runs(folders: Iterable[Path]) -> list[RunFolder]:
    """Every run in or below the folders, by path, each once.

    A run is a folder with a ``config.yaml`` and a ``run.json``, or what a kill at its start leaves: the lock alone.
    """

    def below(folder: Path) -> Iterator[Path]:
        for config in folder.resolve().rglob("config.yaml"):
            if (config.parent / "run.json").exists() or (config.parent / ".lock").exists():
                yield config.parent

    return [RunFolder(path) for path in sorted({path for folder in folders for path in below(folder)})]
