"""The run folder: what a run leaves behind, written so that a kill at any moment leaves whole rows and whole files.

- ``config.yaml``: the resolved config.
- ``run.json``: status, counts, speed, versions, machine, final digest; once finished, the files and their rows.
- ``metrics.csv``: a row per iteration. ``episodes.csv``: a row per finished episode.
- ``digests.bin``: 32 bytes per optimiser step, the SHA-256 of all parameters after it.
- ``snapshots/*.safetensors``: parameters at step 0, at every ``snapshot_every``-th step and at the end, keyed by step.
  Each file's metadata has ``layout``: name to [offset, shape] within that vector.
- ``decisions.csv``: a row per decision of a condition, if there was any: what it read, and what it decided.
- ``checkpoint.safetensors``: everything that the run carries from one iteration to the next, at the end.
- ``best.safetensors``: what ``best=metric`` kept: the parameters after the update of the best iteration, and its
  metrics; the loss and the return in them are those of the policy before that update.
- ``last_finite.safetensors``: of a run that failed at a number that is not finite, the last parameters that were.
- ``events.out.tfevents.*``: the metrics for TensorBoard, with ``logger=tensorboard``.

The writer takes mappings and named arrays. It knows no trainer, no policy and no environment.
"""

import csv
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import yaml
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors.numpy import save

from rlloss.errors import ConfigError, RunFailed
from rlloss.runs.logger import LOGGERS
from rlloss.runs.place import refuse_another
from rlloss.runs.reader import RunFolder, to_json
from rlloss.runs.rows import Decision, Episode

Arrays = Mapping[str, NDArray[Any]]

SNAPSHOTS_PER_FILE = 50
FLUSH_SECONDS = 30  # a kill loses at most this much of the snapshots
RESULTS = (
    "run.json", "metrics.csv", "episodes.csv", "decisions.csv", "digests.bin", "checkpoint.safetensors",
    "best.safetensors", "last_finite.safetensors",
)  # fmt: skip


def replace(path: Path, data: bytes) -> None:
    """Write a whole file, or leave the old one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


class RunWriter:
    """Writes one run folder. A context manager: leaving it by an exception records ``failed`` with the reason.

    Memory is bounded: digests wait for the end of their iteration, snapshots for their file to fill up.

    Args: the folder; the run's config, a nested mapping; ``facts``, what run.json holds from the start: versions and
        machine; the logger, an entry of ``LOGGERS``.
    Raises: ConfigError if the folder holds another run, or one that another process is writing.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], facts: Mapping[str, Any], *, logger: str = "none"
    ) -> None:
        refuse_another(folder, config)
        self.folder, self.config, self.facts, self.logger = folder, config, facts, logger
        self.optimizer_steps = 0
        self.last_digest = b""
        self._digests = bytearray()
        self._snapshots: dict[str, NDArray[Any]] = {}
        self._layout: dict[str, tuple[int, list[int]]] = {}
        self._flushed = -math.inf  # the first snapshot is written at once
        self._tables: dict[str, BinaryIO] = {}
        self._rows: dict[str, int] = {}  # written to each table

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ConfigError(f"run_dir={self.folder}: another process is writing this run; wait for it") from error
        try:
            refuse_another(self.folder, self.config)  # again: another process may have been quicker to the lock
            if RunFolder(self.folder).status == "finished":
                raise ConfigError(f"run_dir={self.folder}: is finished already; remove the folder to run it again")
            replace(self.folder / "config.yaml", yaml.safe_dump(dict(self.config), sort_keys=False).encode())
            self._clear()
        except BaseException:
            self._lock.release()
            raise
        self._write_run("running")
        self._digest_file = (self.folder / "digests.bin").open("ab")
        self._logger = LOGGERS[self.logger](self.folder)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Raises: RunFailed in the place of an OSError: a disk that is full, or gone, is no fault of the program."""
        for close in (self._digest_file.close, self._logger.close, *(table.close for table in self._tables.values())):
            with suppress(OSError):  # every row has been flushed; what cannot be written now was no whole row
                close()
        if error is not None:
            reason = str(error) if isinstance(error, RunFailed) else f"{type(error).__name__}: {error}"
            if isinstance(error, OSError):
                reason = f"cannot write to {self.folder}: {error.strerror}; free some space, or name another run_root"
            with suppress(OSError):
                self._flush_snapshots()
            self._write_failure(reason)
        self._lock.release()
        if isinstance(error, OSError):
            raise RunFailed(reason) from error

    def _write_failure(self, reason: str) -> None:
        """Say ``failed``, where a byte can still be written: in the place of what was being written, if need be."""
        for partial in self.folder.rglob("*.partial"):
            partial.unlink(missing_ok=True)
        try:
            self._write_run("failed", error=reason)
        except OSError:
            (self.folder / "run.json.partial").unlink(missing_ok=True)
            with suppress(OSError), (self.folder / "run.json").open("r+b") as file:  # its own blocks are still there
                file.truncate(file.write(self._run_json("failed", error=reason)))

    def _clear(self) -> None:
        """An unfinished run starts over: its old rows must not precede the new ones."""
        for path in [*(self.folder / name for name in RESULTS), *(self.folder / "snapshots").glob("*.safetensors*")]:
            path.unlink(missing_ok=True)
        (self.folder / "snapshots").mkdir(exist_ok=True)

    def step(self, parameters: Arrays) -> None:
        """After every optimiser step: the digest of all parameters, their bytes one after the other."""
        self.optimizer_steps += 1
        digest = hashlib.sha256()
        for array in parameters.values():
            digest.update(array.data)
        self.last_digest = digest.digest()
        self._digests += self.last_digest

    def snapshot(self, parameters: Arrays) -> None:
        """Keep the parameters as they are now, after ``optimizer_steps`` steps. Arrays of one floating dtype."""
        if not self._layout:
            offsets = np.cumsum([0, *(array.size for array in parameters.values())]).tolist()
            shaped = zip(parameters.items(), offsets, strict=False)
            self._layout = {name: (offset, list(array.shape)) for (name, array), offset in shaped}
        self._snapshots[f"{self.optimizer_steps:09d}"] = np.concatenate([x.ravel() for x in parameters.values()])
        if len(self._snapshots) == SNAPSHOTS_PER_FILE or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush_snapshots()

    def _flush_snapshots(self) -> None:
        if not self._snapshots:
            return
        path = self.folder / "snapshots" / f"{min(self._snapshots)}.safetensors"
        replace(path, save(self._snapshots, metadata={"layout": json.dumps(self._layout)}))
        self._snapshots.clear()
        self._flushed = time.monotonic()

    def iteration(
        self, row: Mapping[str, Any], episodes: Sequence[Episode], decisions: Sequence[Decision] = ()
    ) -> None:
        """After every iteration: its row of metrics, the episodes that finished in it, what conditions decided."""
        self._digest_file.write(self._digests)
        self._digest_file.flush()
        self._digests.clear()
        self._append("episodes.csv", Episode._fields, episodes)
        if decisions:
            self._append("decisions.csv", Decision._fields, decisions)
        self._append("metrics.csv", tuple(row), [tuple(row.values())])
        self._logger.iteration(row, episodes)

    def keep(self, name: str, data: bytes) -> None:
        """A whole file, in the place of an older one of that name."""
        replace(self.folder / name, data)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """After the last iteration. Only this makes the run ``finished``."""
        self._flush_snapshots()
        paths = [self.folder / name for name in RESULTS[1:]] + sorted((self.folder / "snapshots").glob("*.safetensors"))
        names = [path.relative_to(self.folder).as_posix() for path in paths if path.exists()]
        self._write_run("finished", **summary, files={name: self._rows.get(name) for name in names})

    def _append(self, name: str, header: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
        """One unbuffered write per call, so that a kill leaves whole rows."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if name not in self._tables:
            self._tables[name] = (self.folder / name).open("ab", buffering=0)
            writer.writerow(header)
        writer.writerows(rows)
        self._rows[name] = self._rows.get(name, 0) + len(rows)
        self._tables[name].write(text.getvalue().encode())

    def _write_run(self, status: str, **more: Any) -> None:
        replace(self.folder / "run.json", self._run_json(status, **more))

    def _run_json(self, status: str, **more: Any) -> bytes:
        counts = {"optimizer_steps": self.optimizer_steps, "final_digest": self.last_digest.hex()}
        return (to_json({"status": status, **counts, **more, **self.facts}) + "\n").encode()
