"""The run folder: what a run leaves behind, written so that a kill at any moment leaves whole rows and whole files.

- ``config.yaml``: the resolved config.
- ``run.json``: status, counts, speed, versions, machine, the digests of the config, of the initial and of the last
  parameters; once finished, the files and their rows.
- ``metrics.csv``: a row per iteration. ``episodes.csv``: a row per finished episode.
- ``digests.bin``: 32 bytes per optimiser step, the SHA-256 of all parameters after it.
- ``snapshots/*.safetensors``: parameters at step 0, at every ``snapshot_every``-th step and at the end, keyed by step.
  Each file's metadata has ``layout``: name to [offset, shape] within that vector.
- ``decisions.csv``: a row per decision of a condition, if there was any: what it read, and what it decided.
- ``checkpoint.safetensors``: everything that the run carries from one iteration to the next, from time to time and at
  the end. It also holds how much of the other files there was: what a killed run has beyond that is cut off again.
- ``checkpoints/*.safetensors``: such files that stay, with ``keep_checkpoints``, by optimiser step.
- ``best.safetensors``: what ``best=metric`` kept: the parameters after the update of the best iteration, and its
  metrics; the loss and the return in them are those of the policy before that update.
- ``last_finite.safetensors``: of a run that failed at a number that is not finite, the last parameters that were.
- ``events.out.tfevents.*``: the metrics for TensorBoard, with ``logger=tensorboard``.

What ``rlloss.watch`` sees of somebody else's training has another digest, of the hashes of all tensors, a row of
metrics per optimiser step, and also these, which ``rlloss.runs.watched`` reads:

- ``tensors.json``: names, dtypes and shapes of the tensors, from which optimiser step on.
- ``tensors.bin``: the hash of each tensor at step 0 and after every optimiser step.
- ``before.bin``: the same just before a step, where a tensor had changed since the step before.
- ``gradients.bin``: the same of the gradients with which each step was made.
- ``scalars.csv``: what the user logged.

The writer takes mappings and named arrays. It knows no trainer, no policy and no environment.
"""

import csv
import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rlloss.errors import ConfigError, Interrupted, RunFailed
from rlloss.runs.lock import FolderLock
from rlloss.runs.logger import LOGGERS
from rlloss.runs.place import config_digest, goes_on, recorded, refuse_another
from rlloss.runs.reader import BEST, CHECKPOINT, CHECKPOINTS, DIGEST_BYTES, RunFolder, to_json
from rlloss.runs.rows import Decision, Episode

Arrays = Mapping[str, NDArray[Any]]

SNAPSHOTS_PER_FILE = 50
RESULTS = (
    "run.json", "metrics.csv", "episodes.csv", "decisions.csv", "digests.bin", CHECKPOINT, BEST,
    "last_finite.safetensors", "tensors.json", "tensors.bin", "before.bin", "gradients.bin", "scalars.csv",
    "trace.json", "trace.safetensors",
)  # fmt: skip
TABLES = ("metrics.csv", "episodes.csv", "decisions.csv", "scalars.csv")
STREAMS = ("tensors.bin", "before.bin", "gradients.bin")


class Written(NamedTuple):
    """How much of a run its files hold: what a checkpoint remembers, so that they can be cut back to it."""

    optimizer_steps: int = 0
    snapshots: int = 0
    rows: Mapping[str, int] = MappingProxyType({})  # of every table that has been begun
    lengths: Mapping[str, int] = MappingProxyType({})  # bytes of every other file that grows, but the digests

    def check(self) -> None:
        """Raises: ValueError for what no writer has written, as in a checkpoint from elsewhere."""
        counts = (self.optimizer_steps, self.snapshots, *self.rows.values(), *self.lengths.values())
        names_files = self.rows.keys() <= set(TABLES) and self.lengths.keys() <= set(STREAMS)
        if not all(type(count) is int and count >= 0 for count in counts) or not names_files:
            raise ValueError(f"{self} counts no files of a run")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has no such thing for folders
            raise
    finally:
        os.close(descriptor)


def _write(file: BinaryIO, data: bytes) -> None:
    """All of it, unbuffered. A disk that is nearly full takes a part, and says why only when asked for the rest."""
    while data:
        data = data[file.write(data) :]


def replace(path: Path, data: bytes) -> None:
    """Write a whole file, or leave the old one: the new one takes its name once it has reached the disk."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync(path.parent)


class RunWriter:
    """Writes one run folder. A context manager: leaving it by an exception records ``failed`` with the reason.

    Memory is bounded: digests wait for the end of their iteration, snapshots for their file to fill up.

    Args: the folder; the run's config, a nested mapping; ``facts``, what run.json holds from the start: versions and
        machine; the logger, an entry of ``LOGGERS``; ``resume``, which is asked, once the folder is this writer's, how
        much of the run in it is kept: what the checkpoint holds. None, or no ``resume``: the run starts over;
        ``extends``: a finished run may go on, too; how many snapshots a file holds.
    Raises: ConfigError if the folder holds another run, or one that another process is writing.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        facts: Mapping[str, Any],
        *,
        logger: str = "none",
        resume: Callable[[], Written | None] | None = None,
        extends: bool = False,
        snapshots_per_file: int = SNAPSHOTS_PER_FILE,
    ) -> None:
        refuse_another(folder, config)
        self.folder, self.config, self.facts, self.logger, self.resume = folder, config, facts, logger, resume
        self.extends, self.snapshots_per_file = extends, snapshots_per_file
        self._config_digest = config_digest(recorded(config))
        self.optimizer_steps = 0
        self.last_digest = b""
        self._digests = bytearray()
        self._snapshots: dict[str, NDArray[Any]] = {}  # of the file that is not full
        self._kept = 0  # snapshots in all
        self._unsaved = False  # whether some of them are in memory only
        self._layout: dict[str, tuple[int, list[int]]] = {}
        self._files: dict[str, BinaryIO] = {}  # that grow
        self._rows: dict[str, int] = {}  # written to each table
        self._progress: dict[str, Any] = {}  # what run.json says at the last checkpoint
        self._held: dict[str, bytes] = {}  # whole files that wait for the next checkpoint

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.folder)
        try:
            refuse_another(self.folder, self.config)  # again: another process may have been quicker to the lock
            run = RunFolder(self.folder)
            if run.recorded_status == "finished" and not (self.extends or goes_on(run, self.config)):
                raise ConfigError(f"run_dir={self.folder}: is finished already; remove the folder to run it again")
            written = self.resume() if self.resume else None
            if written is None:
                self._start_over()
            else:
                self._go_on(written, run)
            self._digest_file = (self.folder / "digests.bin").open("ab")
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError):
                raise self._lost(error) from error
            raise
        self._logger = LOGGERS[self.logger](self.folder, written is not None)
        return self

    def _start_over(self) -> None:
        """The checkpoint goes first: what it says of the other files must be true as long as it is there."""
        files = (self.folder / name for name in (CHECKPOINT, *RESULTS))
        for path in [*files, *self._snapshot_files(), *self._kept_checkpoints()]:
            path.unlink(missing_ok=True)
        self._tidy()
        self._write_config()
        self._write_run("running")

    def _go_on(self, written: Written, run: RunFolder) -> None:
        """Cut the files back to what the checkpoint holds.

        A finished run stops being one before it loses a byte, and gets another length after that. Raises: ConfigError,
        and nothing has changed, if the files hold less.
        """
        self.optimizer_steps, self._kept, self._rows = written.optimizer_steps, written.snapshots, dict(written.rows)
        self.facts = {key: _since(run.info.get(key), now, self.optimizer_steps) for key, now in self.facts.items()}
        lengths = self._lengths(written)
        beyond = self._reopen_snapshots()
        beyond += [path for path in self._kept_checkpoints() if path.stem > _name(written.optimizer_steps)]
        self._write_run("running")
        for path, length in lengths.items():
            os.truncate(path, length)
        kept = {*written.rows, *written.lengths}
        for path in [*beyond, *(self.folder / name for name in (*TABLES, *STREAMS) if name not in kept)]:
            path.unlink(missing_ok=True)
        for name in ("last_finite.safetensors", "trace.json", "trace.safetensors"):
            (self.folder / name).unlink(missing_ok=True)
        self._write_config()
        self._tidy()

    def _lengths(self, written: Written) -> dict[Path, int]:
        """How long each file that grows was at the checkpoint. Reads the last digest of then."""
        digests = self.folder / "digests.bin"
        lengths = {digests: written.optimizer_steps * DIGEST_BYTES}
        lengths |= {self.folder / name: _length_of(self.folder / name, 1 + n) for name, n in written.rows.items()}
        lengths |= {self.folder / name: length for name, length in written.lengths.items()}
        for path, length in lengths.items():
            if not path.is_file() or path.stat().st_size < length:
                raise self._short(path.name, "is shorter")
        if damage := RunFolder(self.folder, {path.name: length for path, length in lengths.items()}).damage:
            raise ConfigError(f"run_dir={self.folder}: {damage}; remove the folder to start over")
        with digests.open("rb") as file:
            file.seek(max(0, lengths[digests] - DIGEST_BYTES))
            self.last_digest = file.read(DIGEST_BYTES)
        return lengths

    def _reopen_snapshots(self) -> list[Path]:
        """Take the snapshots of the file that was not full back into memory. Returns: the files after it."""
        files = self._snapshot_files()
        full, rest = divmod(self._kept, self.snapshots_per_file)
        if len(files) < full + (rest > 0):
            raise self._short("snapshots/", "has fewer files")
        if rest:
            self._reopen(files[full], rest)
        return files[full + (rest > 0) :]

    def _short(self, name: str, what: str) -> ConfigError:
        return ConfigError(
            f"run_dir={self.folder}: {name} {what} than its checkpoint says; remove the folder to start over"
        )

    def _reopen(self, path: Path, kept: int) -> None:
        """Take the snapshots of the last file back into memory, without those after the checkpoint."""
        try:
            with safe_open(path, framework="numpy") as file:
                keys = sorted(file.keys())
                self._snapshots = {key: np.array(file.get_tensor(key)) for key in keys[:kept]}
                self._layout = json.loads(file.metadata()["layout"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"run_dir={self.folder}: snapshots/{path.name} cannot be read ({error})") from error
        if len(keys) < kept:
            raise self._short(f"snapshots/{path.name}", "has fewer snapshots")
        self._unsaved = len(keys) > kept

    def _snapshot_files(self) -> list[Path]:
        return sorted((self.folder / "snapshots").glob("*.safetensors"))

    def _kept_checkpoints(self) -> list[Path]:
        return sorted((self.folder / CHECKPOINTS).glob("*.safetensors"))

    def _tidy(self) -> None:
        for partial in self.folder.rglob("*.partial"):
            partial.unlink(missing_ok=True)
        (self.folder / "snapshots").mkdir(exist_ok=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Raises: RunFailed in the place of an OSError: a disk that is full, or gone, is no fault of the program."""
        for close in (self._digest_file.close, self._logger.close, *(table.close for table in self._files.values())):
            with suppress(OSError):  # every row has been flushed; what cannot be written now was no whole row
                close()
        if error is not None:
            with suppress(OSError, RunFailed):
                self._lock.check()  # what another process writes now is not this one's to touch
                self._leave(error)
        self._lock.release()
        if isinstance(error, OSError):
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> RunFailed:
        reason = f"cannot write to {self.folder}: {error.strerror}"
        return RunFailed(f"{reason}; free some space, or name another run_root; the same command then goes on")

    def _leave(self, error: BaseException) -> None:
        """Write down how the run ended, if it did not finish."""
        with suppress(OSError):
            self.flush_snapshots()
            self._write_held()
        if isinstance(error, Interrupted | KeyboardInterrupt):
            self._write_run("interrupted", **self._progress)
            return
        failure = self._lost(error) if isinstance(error, OSError) else error
        reason = str(failure) if isinstance(failure, RunFailed) else f"{type(failure).__name__}: {failure}"
        for partial in self.folder.rglob("*.partial"):
            partial.unlink(missing_ok=True)
        try:
            self._write_run("failed", error=reason, **self._progress)
        except OSError:  # in the place of what is there, whose blocks are still its own
            (self.folder / "run.json.partial").unlink(missing_ok=True)
            with suppress(OSError), (self.folder / "run.json").open("r+b") as file:
                file.truncate(file.write(self._run_json("failed", error=reason, **self._progress)))

    def step(self, parameters: Arrays) -> None:
        """After every optimiser step: the digest of all parameters, their bytes one after the other."""
        digest = hashlib.sha256()
        for array in parameters.values():
            digest.update(array.data)
        self.stepped(digest.digest())

    def stepped(self, digest: bytes) -> None:
        """The same, of whoever made the digest otherwise."""
        self.optimizer_steps += 1
        self.last_digest = digest
        self._digests += digest

    def snapshot(self, parameters: Arrays) -> None:
        """Keep the parameters as they are now, after ``optimizer_steps`` steps. Arrays of one floating dtype."""
        if not self._layout:
            offsets = np.cumsum([0, *(array.size for array in parameters.values())]).tolist()
            shaped = zip(parameters.items(), offsets, strict=False)
            self._layout = {name: (offset, list(array.shape)) for (name, array), offset in shaped}
        key = _name(self.optimizer_steps)
        if key in self._snapshots:
            return
        if len(self._snapshots) == self.snapshots_per_file:
            self._snapshots.clear()
        self._snapshots[key] = np.concatenate([x.ravel() for x in parameters.values()])
        self._kept, self._unsaved = self._kept + 1, True
        if len(self._snapshots) == self.snapshots_per_file:
            self.flush_snapshots()

    def flush_snapshots(self) -> None:
        """Write those that are in memory alone."""
        if self._unsaved:
            path = self.folder / "snapshots" / f"{min(self._snapshots)}.safetensors"
            replace(path, save(self._snapshots, metadata={"layout": json.dumps(self._layout)}))
            self._unsaved = False

    def iteration(
        self, row: Mapping[str, Any], episodes: Sequence[Episode], decisions: Sequence[Decision] = ()
    ) -> None:
        """After every iteration: its row of metrics, the episodes that finished in it, what conditions decided."""
        self._lock.check()
        self._digest_file.write(self._digests)
        self._digest_file.flush()
        self._digests.clear()
        self._append("episodes.csv", Episode._fields, episodes)
        if decisions:
            self._append("decisions.csv", Decision._fields, decisions)
        self._append("metrics.csv", tuple(row), [tuple(row.values())])
        self._logger.iteration(row, episodes)

    def extend(self, name: str, data: bytes) -> None:
        """One of ``STREAMS`` grows."""
        _write(self._opened(name), data)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of one of ``TABLES``, of equal keys."""
        self._append(name, tuple(rows[0]), [tuple(row.values()) for row in rows])

    def note(self, **facts: Any) -> None:
        """More of what run.json says as long as the run goes on, and afterwards."""
        self.facts = {**self.facts, **facts}
        self._write_run("running", **self._progress)

    def keep(self, name: str, data: bytes) -> None:
        """A whole file, in the place of an older one of that name."""
        self._lock.check()
        replace(self.folder / name, data)

    def keep_checkpoint(self, data: bytes) -> None:
        """One of the checkpoints that stay, from which a part of the run can be played again."""
        (self.folder / CHECKPOINTS).mkdir(exist_ok=True)
        self.keep(f"{CHECKPOINTS}/{_name(self.optimizer_steps)}.safetensors", data)

    def hold(self, name: str, data: bytes) -> None:
        """The same, but not before the next checkpoint, without which it would be of no use."""
        self._held[name] = data

    def _write_held(self) -> None:
        for name, data in self._held.items():
            replace(self.folder / name, data)
        self._held.clear()

    @property
    def written(self) -> Written:
        """How much the files hold, between two iterations."""
        return Written(self.optimizer_steps, self._kept, dict(self._rows))

    def checkpoint(self, data: bytes, **progress: Any) -> None:
        """Keep what the run needs to go on from here. It holds ``written``, and comes after all that this counts.

        ``progress`` stands in run.json as long as the run is running.
        """
        self._lock.check()
        for file in (self._digest_file, *self._files.values()):
            os.fsync(file.fileno())
        self.flush_snapshots()
        self._write_held()
        replace(self.folder / CHECKPOINT, data)
        self._progress = progress
        self._write_run("running", **progress)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """After the last iteration and its checkpoint. Only this makes the run ``finished``."""
        self.flush_snapshots()
        paths = [self.folder / name for name in RESULTS[1:]] + self._snapshot_files() + self._kept_checkpoints()
        names = [path.relative_to(self.folder).as_posix() for path in paths if path.exists()]
        self._lock.check()
        self._write_run("finished", **summary, files={name: self._rows.get(name) for name in names})

    def _append(self, name: str, header: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
        """One unbuffered write per call, so that a kill leaves whole rows."""
        if not rows and name in self._rows:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        file = self._opened(name)
        if name not in self._rows:
            writer.writerow(header)
        writer.writerows(rows)
        self._rows[name] = self._rows.get(name, 0) + len(rows)
        _write(file, text.getvalue().encode())

    def _opened(self, name: str) -> BinaryIO:
        if name not in self._files:
            self._files[name] = (self.folder / name).open("ab", buffering=0)
        return self._files[name]

    def _write_config(self) -> None:
        replace(self.folder / "config.yaml", yaml.safe_dump(dict(self.config), sort_keys=False).encode())

    def _write_run(self, status: str, **more: Any) -> None:
        replace(self.folder / "run.json", self._run_json(status, **more))

    def _run_json(self, status: str, **more: Any) -> bytes:
        counts = {"optimizer_steps": self.optimizer_steps, "final_digest": self.last_digest.hex()}
        whole = {"status": status, **counts, **more, "config_digest": self._config_digest, **self.facts}
        return (to_json(whole) + "\n").encode()


def _name(step: int) -> str:
    """By which what belongs to an optimiser step is known: names in the order of steps."""
    return f"{step:09d}"


def _length_of(path: Path, lines: int) -> int:
    """Bytes of a file's first lines; more than it has, if it has fewer lines."""
    length = 0
    with suppress(FileNotFoundError), path.open("rb") as file:
        for _ in range(lines):
            line = file.readline()
            if not line.endswith(b"\n"):
                return path.stat().st_size + 1
            length += len(line)
    return length


def _since(before: Any, now: Any, step: int) -> Any:
    """What a run was made by, where it went on with something else: both, with the optimiser step."""
    if isinstance(now, Mapping) and isinstance(before, Mapping):
        return {key: _since(before.get(key), value, step) for key, value in now.items()}
    if before in (None, now) or str(before).endswith(f" on {now}"):
        return before or now
    return f"{before}, from step {step} on {now}"
