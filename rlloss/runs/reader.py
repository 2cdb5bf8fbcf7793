"""Reading run folders. Analysis starts here: it never imports the trainer, so runs made elsewhere can be analysed.

A file that cannot be read as what it should be raises ``Damaged``, with its name; ``RunFolder.damage`` asks them all.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from rlloss.config.metrics import DIGESTS, METRICS
from rlloss.errors import ConfigError
from rlloss.runs.lock import LOCK, is_held
from rlloss.runs.rows import Decision, Episode

if TYPE_CHECKING:
    import pandas as pd

DIGEST_BYTES = 32
CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
CHECKPOINTS = "checkpoints"  # the folder of those that are kept
MARKS = {LOCK, ".lock", "config.yaml", "run.json", "metrics.csv", "episodes.csv", "digests.bin"}  # every run has these
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster; both make plain data alone
LARGEST = {"config.yaml": 1 << 20, "run.json": 1 << 24}  # bytes, above which a file is not read
LARGEST_TABLE = 1 << 31  # that of the others
DEEPEST = 50  # levels of a config
FLOATS = ("F16", "F32", "F64")  # as safetensors names those that NumPy has
LAST_EPISODES = 100  # over which a finished run's return is averaged
LOSS = "loss"  # among the versions in run.json: the digest of the loss's source, in which twins may differ
OF_RECORDS = ("options_digest", "options", "gradient_digest")  # in the rows of a watched run, and no numbers either
# Where and how a run is recorded and watched over: not part of what it is.
WHERE_KEYS = ("run_root", "run_dir", "checkpoint_seconds", "keep_checkpoints", "env.timeout")


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
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def read_config(text: str) -> dict[str, Any]:
    """A run's ``config.yaml`` as a flat dictionary, without the keys that only say where it is recorded.

    Raises: ValueError for a text that is no YAML mapping.
    """
    try:
        _check_yaml(text)
        tree = yaml.load(text, LOADER)
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, Mapping) or not tree:
        raise ValueError("no mapping of keys to values")
    return {key: value for key, value in flatten(tree).items() if key not in WHERE_KEYS}


def _check_yaml(text: str) -> None:
    """Raises: ValueError for what no run writes, and what could take more than any memory or stack holds."""
    depth = 0
    for event in yaml.parse(text, LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases, a few of which can stand for more than any memory holds")


class Damaged(ConfigError):
    """A file of a run folder that is missing or cannot be read as what it should be. The message names it."""

    def __init__(self, folder: Path, name: str, why: str) -> None:
        super().__init__(f"{folder.name}/{name} {why}")


STATUSES = ("running", "finished", "interrupted", "failed")
KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("status", "error", "final_digest", "initial_digest", "config_digest"), str),
    **dict.fromkeys(("flattened", "hash", "changed_after"), str),
    **dict.fromkeys(("optimizer_steps", "env_steps"), int),
    **dict.fromkeys(("steps_per_second", "episodic_return", "episodic_length"), (int, float, type(None))),
    **dict.fromkeys(("versions", "machine", "operations", "files", "optimizers", "groups"), dict),
    "seconds": (int, float),
}
"""What each key of run.json holds, where it is there."""


class Snapshot(NamedTuple):
    """Where a step's parameters lie, and what they are."""

    path: Path
    key: str
    parameters: int
    dtype: str  # as safetensors names it


@dataclass(frozen=True)
class RunFolder:
    """A run as it lies on disk, finished or not. Every property is read when first asked for.

    ``config`` and ``info`` are empty where their file cannot be read; every other property raises Damaged.
    ``until``: files of which no more than so many bytes are read, by name.
    """

    path: Path
    until: Mapping[str, int] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # for whoever has its name as a string

    @cached_property
    def config(self) -> dict[str, Any]:
        """Flat, with dotted keys."""
        try:
            return self._read_config()
        except Damaged:
            return {}

    def config_tree(self) -> dict[str, Any]:
        """``config.yaml`` as it is written, nested. Raises: Damaged."""
        text = self._text("config.yaml", required=True)
        try:
            read_config(text)
        except ValueError as error:
            raise Damaged(self.path, "config.yaml", f"cannot be read: {error}") from error
        tree: dict[str, Any] = yaml.load(text, LOADER)
        return tree

    def content(self, name: str) -> bytes:
        """Of a file of this folder. Raises: Damaged for one that is missing, too large, or a link that leads out."""
        return self._bytes(name, required=True)

    @cached_property
    def info(self) -> dict[str, Any]:
        """``run.json``."""
        try:
            return self._read_info()
        except Damaged:
            return {}

    @property
    def recorded_status(self) -> str:
        """What run.json says: ``running``, also of a run that was killed; ``missing`` where it cannot be read."""
        return str(self.info.get("status", "missing"))

    @cached_property
    def status(self) -> str:
        """``finished``, ``running``, ``interrupted``, ``failed``, or ``missing``.

        A run that was killed could not write down how it ended: it is interrupted, for its lock has no holder.
        """
        recorded = self.recorded_status
        return "interrupted" if recorded == "running" and not is_held(self.path) else recorded

    @property
    def standing(self) -> str:
        """The status in words: with the optimiser step at which a run was interrupted, and why one failed."""
        if self.status == "interrupted":
            return f"interrupted at step {len(self.digests):,}"
        if self.status == "failed" and "error" in self.info:
            return f"failed ({' '.join(str(self.info['error']).split())})"
        return self.status

    @property
    def loss(self) -> str:
        return str(self.config.get("loss.name", "unknown"))

    @property
    def hash(self) -> str:
        """By what its digests are made."""
        tensors = self.info.get("hash")
        return f"SHA-256 over the {tensors} of each tensor" if tensors else "SHA-256 of all parameters"

    @property
    def label(self) -> str:
        """The loss, with the constant that is added to it, if one is."""
        offset = self.config.get("loss.offset")
        return f"{self.loss} {offset:+g}" if isinstance(offset, int | float) and offset else self.loss

    @cached_property
    def digests(self) -> NDArray[np.void]:
        """[optimiser steps], 32 bytes each; of an unfinished run without a partial last record."""
        data = self._bytes("digests.bin", required=self.status == "finished")
        whole = len(data) - len(data) % DIGEST_BYTES
        if whole != len(data) and self.status == "finished":
            raise Damaged(self.path, "digests.bin", f"ends within a digest of {DIGEST_BYTES} bytes")
        return np.frombuffer(data[:whole], dtype=f"V{DIGEST_BYTES}")

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """A row per iteration; empty before the first. A run made elsewhere need not have every column."""
        table = self._table(
            "metrics.csv", required=self.status == "finished", dtype=dict.fromkeys([*DIGESTS, *OF_RECORDS], str)
        )
        self._check_numbers("metrics.csv", table, [name for name in METRICS if name not in DIGESTS])
        return table

    @cached_property
    def episodes(self) -> "pd.DataFrame":
        """A row per finished episode, with the columns of ``Episode``."""
        table = self._table("episodes.csv", required=self.status == "finished", columns=Episode._fields)
        self._check_numbers("episodes.csv", table, Episode._fields)
        return table

    @cached_property
    def decisions(self) -> list[Decision]:
        """What the conditions decided, in order; empty if they decided nothing."""
        table = self._table("decisions.csv", required=False, columns=Decision._fields)
        self._check_numbers("decisions.csv", table, ["iteration", "value"])
        rows = table[list(Decision._fields)] if len(table) else table
        return [Decision(*row) for row in rows.itertuples(index=False, name=None)]

    @cached_property
    def scalars(self) -> "pd.DataFrame":
        """What the user of ``rlloss.watch`` logged: step, name, value; empty if nothing."""
        table = self._table("scalars.csv", required=False, columns=("step", "name", "value"))
        self._check_numbers("scalars.csv", table, ("step", "value"))
        return table

    @cached_property
    def damage(self) -> str:
        """Which file is missing or cannot be read, and why; empty if all can. Reads the run as a whole."""
        try:
            self._read_config()
            info = self._read_info()
            if "hash" in info and info.get("optimizer_steps") == 0 and self.status == "finished":
                return f"{self.path}: no step of a watched optimiser was seen; watch the one that trains the model"
            listed = info.get("files", {})
            self._check_presence(listed)
            tables: dict[str, Sized] = {
                "metrics.csv": self.metrics,
                "episodes.csv": self.episodes,
                "decisions.csv": self.decisions,
                "scalars.csv": self.scalars,
            }
            for name, table in tables.items():
                if name not in self.until and listed.get(name) not in (None, len(table)):
                    raise Damaged(self.path, name, f"has {len(table)} rows of the {listed[name]} that were written")
            _ = self.digests
            for name, why in self._snapshot_files[1].items():
                raise Damaged(self.path, name, why)
        except Damaged as damaged:
            return str(damaged)
        return ""

    def _check_presence(self, listed: Mapping[str, Any]) -> None:
        for name in listed:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise Damaged(self.path, "run.json", f"lists a file that lies elsewhere, {name}")
            path = self.place(name)
            if not path.is_file():
                what = "is no file" if path.exists() else "is missing"
                raise Damaged(self.path, name, f"{what}, though run.json lists it")
            if path.suffix == ".safetensors" and path.parent == self.path:
                try:
                    with safe_open(path, framework="numpy"):
                        pass
                except (SafetensorError, ValueError, OSError) as error:
                    raise Damaged(self.path, name, f"cannot be read ({error})") from error

    def place(self, name: str) -> Path:
        """Where a file of this folder lies. Raises: Damaged for a link that leads out of it."""
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise Damaged(self.path, name, "is a link that leads elsewhere")
        return path

    def _bytes(self, name: str, *, required: bool) -> bytes:
        path = self.place(name)
        if not path.exists() and not required:
            return b""
        if not path.is_file():
            raise Damaged(self.path, name, "is no file" if path.exists() else "is missing")
        if path.stat().st_size > (largest := LARGEST.get(name, LARGEST_TABLE)):
            raise Damaged(
                self.path, name, f"has {path.stat().st_size:,} bytes, more than the {largest:,} that are read"
            )
        try:
            with path.open("rb") as file:
                return file.read(self.until.get(name, -1))
        except OSError as error:
            raise Damaged(self.path, name, f"cannot be read ({error.strerror})") from error

    def _text(self, name: str, *, required: bool) -> str:
        try:
            return self._bytes(name, required=required).decode()
        except UnicodeDecodeError as error:
            raise Damaged(self.path, name, f"is no text in UTF-8 (at byte {error.start})") from error

    def _read_config(self) -> dict[str, Any]:
        try:
            return read_config(self._text("config.yaml", required=True))
        except ValueError as error:
            if isinstance(error, Damaged):
                raise
            raise Damaged(self.path, "config.yaml", f"cannot be read: {error}") from error

    def _read_info(self) -> dict[str, Any]:
        try:
            info = json.loads(self._text("run.json", required=True))
        except (json.JSONDecodeError, RecursionError) as error:
            raise Damaged(self.path, "run.json", f"is no JSON ({error})") from error
        if not isinstance(info, dict):
            raise Damaged(self.path, "run.json", "is no JSON object")
        for key, kind in KINDS.items():
            if key in info and not isinstance(info[key], kind):
                raise Damaged(self.path, "run.json", f"has {key}: {info[key]!r}")
        if info.get("status") not in STATUSES:
            what = f"has status: {info['status']!r}" if "status" in info else "has no status"
            raise Damaged(self.path, "run.json", what)
        return info

    def _table(
        self, name: str, *, required: bool, columns: Sequence[str] = (), dtype: dict[str, type] | None = None
    ) -> "pd.DataFrame":
        """A CSV file whose rows are as long as its header. An unfinished run's last line may be cut short."""
        import pandas as pd  # here, since training and checking do without

        data = self._bytes(name, required=required)
        if not data and not required:
            return pd.DataFrame(columns=list(columns))
        if data and not data.endswith(b"\n"):
            if self.status == "finished":
                raise Damaged(self.path, name, "ends within a line")
            data = data[: data.rfind(b"\n") + 1]
        try:
            lengths = _fields(data)
            if len(ragged := np.flatnonzero(lengths != lengths[:1])):
                line = int(ragged[0])
                raise Damaged(self.path, name, f"has {lengths[line]} fields instead of {lengths[0]} in line {line + 1}")
            table: pd.DataFrame = pd.read_csv(io.BytesIO(data), dtype=dtype)
        except pd.errors.EmptyDataError as error:
            raise Damaged(self.path, name, "is empty") from error
        except UnicodeDecodeError as error:
            raise Damaged(self.path, name, f"is no text in UTF-8 (at byte {error.start})") from error
        except (csv.Error, ValueError, OverflowError) as error:
            if isinstance(error, Damaged):
                raise
            raise Damaged(self.path, name, f"is no table ({' '.join(str(error).split())})") from error
        if missing := [column for column in columns if column not in table]:
            raise Damaged(self.path, name, f"has no column {missing[0]}")
        return table

    def _check_numbers(self, name: str, table: "pd.DataFrame", columns: Iterable[str]) -> None:
        import pandas as pd

        for column in columns:
            if column in table and len(table) and not pd.api.types.is_numeric_dtype(table[column]):
                raise Damaged(self.path, name, f"has something other than numbers in its column {column}")

    @cached_property
    def _snapshot_files(self) -> tuple[dict[int, Snapshot], dict[str, str]]:
        """Where each step's parameters are; and the files that cannot be read as snapshots, with the reason."""
        where: dict[int, Snapshot] = {}
        damaged: dict[str, str] = {}
        for path in sorted((self.path / "snapshots").glob("*.safetensors")):
            try:
                self.place(f"snapshots/{path.name}")
                with safe_open(path, framework="numpy") as file:
                    for key in file.keys():  # noqa: SIM118, not a mapping
                        kept = file.get_slice(key)
                        if not key.isdecimal() or kept.get_dtype() not in FLOATS or len(kept.get_shape()) != 1:
                            what = f"{key}, {kept.get_dtype()} {kept.get_shape()}"
                            damaged[f"snapshots/{path.name}"] = f"holds {what}, not a step's vector of parameters"
                        else:
                            where[int(key)] = Snapshot(path, key, kept.get_shape()[0], kept.get_dtype())
            except Damaged:
                damaged[f"snapshots/{path.name}"] = "is a link that leads elsewhere"
            except (SafetensorError, ValueError, OSError) as error:
                damaged[f"snapshots/{path.name}"] = f"cannot be read ({error})"
        return where, damaged

    @property
    def snapshot_steps(self) -> list[int]:
        """The optimiser steps after which parameters were kept; 0 is the initialisation."""
        return sorted(self._snapshot_files[0])

    def snapshot(self, step: int) -> NDArray[np.floating]:
        """All parameters after ``step`` optimiser steps, as one vector."""
        kept = self._snapshot_files[0][step]
        with safe_open(kept.path, framework="numpy") as file:
            return np.asarray(file.get_tensor(kept.key))

    def snapshots(self) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """(optimiser step, all parameters) of every snapshot, in their order; each file is opened once."""
        where = self._snapshot_files[0]
        for path, steps in groupby(self.snapshot_steps, lambda step: where[step].path):
            with safe_open(path, framework="numpy") as file:
                for step in steps:
                    yield step, np.asarray(file.get_tensor(where[step].key))

    def snapshot_layout(self, step: int) -> dict[str, tuple[int, list[int]]]:
        """Name to [offset, shape] within that vector. Raises: Damaged."""
        path = self._snapshot_files[0][step].path
        try:
            with safe_open(path, framework="numpy") as file:
                return {
                    name: (int(at), [*map(int, shape)])
                    for name, (at, shape) in json.loads(file.metadata()["layout"]).items()
                }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Damaged(self.path, f"snapshots/{path.name}", "does not say where which parameter is") from error

    def snapshot_kind(self, step: int) -> str:
        """Of how many parameters a snapshot is, and of which dtype, without reading it: "9155 float32"."""
        kept = self._snapshot_files[0][step]
        return f"{kept.parameters} {kept.dtype.replace('F', 'float')}"


def _fields(data: bytes) -> NDArray[np.intp]:
    """How many fields each line of a CSV file has. Raises: csv.Error, UnicodeDecodeError."""
    if not data.isascii() or any(character in data for character in (b'"', b"\r", b"\0")):
        return np.array([len(row) for row in csv.reader(io.StringIO(data.decode()), strict=True)], np.intp)
    characters = np.frombuffer(data, np.uint8)  # nothing but commas and ends of lines has a meaning: they are counted
    commas, ends = (np.flatnonzero(characters == ord(character)) for character in ",\n")
    return np.diff(np.searchsorted(commas, ends), prepend=0) + 1


def digest_count(folder: Path) -> int:
    """The optimiser steps that a run folder has digests of."""
    path = folder / "digests.bin"
    return path.stat().st_size // DIGEST_BYTES if path.exists() else 0


def common_snapshots(a: RunFolder, b: RunFolder) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
    """(optimiser step, parameters of a, parameters of b) at every snapshot that both runs have."""
    for step in sorted(set(a.snapshot_steps) & set(b.snapshot_steps)):
        yield step, a.snapshot(step).astype(np.float64), b.snapshot(step).astype(np.float64)


def distance(a: RunFolder, b: RunFolder, order: float = math.inf) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Environment steps, and how far apart the two runs' parameters are then, at every snapshot that both have.

    ``order`` of the norm: infinity, the largest difference of one parameter, or 2.
    """
    apart = [(step, np.linalg.norm(x - y, order)) for step, x, y in common_snapshots(a, b)]
    return _over_env_steps(a, apart)


def covered(run: RunFolder, order: float = math.inf) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Environment steps, and how far training has moved the parameters by then, as ``distance`` measures it."""
    start = run.snapshot(0).astype(np.float64)
    return _over_env_steps(run, [(step, np.linalg.norm(x - start, order)) for step, x, _ in common_snapshots(run, run)])


def _over_env_steps(run: RunFolder, rows: list[tuple[int, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    steps, values = np.array(rows).reshape(-1, 2).T
    return steps * (run.info["env_steps"] / run.info["optimizer_steps"]), values


def find_runs(folders: str | Path | Iterable[str | Path]) -> list[RunFolder]:
    """Every run in or below the folders, or the folder, by path, each once.

    A run is a folder with two of the files that every run has: so one that has lost a file is not overlooked, and a
    ``config.yaml`` of something else is. Raises: ConfigError for a folder that is not there.
    """

    def below(folder: Path) -> Iterator[Path]:
        for path, folders, files in os.walk(folder.resolve()):
            if len(MARKS.intersection([*folders, *files])) > 1:
                yield Path(path)

    several = [Path(folder) for folder in ([folders] if isinstance(folders, str | Path) else folders)]
    if missing := [folder for folder in several if not folder.is_dir()]:
        raise ConfigError(f"{missing[0]}: no such folder; name a run folder or one with runs below it")
    found = {path for folder in several for path in below(folder)}
    return [RunFolder(path) for path in sorted(found, key=natural)]


def natural(path: Path) -> list[tuple[int, str]]:
    """By which paths are sorted as people count: seed-2 before seed-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]
