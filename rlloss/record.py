"""The run folder: what a run leaves behind, written so that a kill at any moment leaves whole rows and whole files.

- ``config.yaml``: the resolved config.
- ``run.json``: status, counts, speed, versions, machine, final digest; see provenance.py.
- ``metrics.csv``: a row per iteration. ``episodes.csv``: a row per finished episode.
- ``digests.bin``: 32 bytes per optimiser step, the SHA-256 of all parameters after it.
- ``snapshots/*.safetensors``: parameters at step 0, at every ``snapshot_every``-th step and at the end, keyed by step.
- ``decisions.csv``: a row per decision of a condition, if there was any: what it read, and what it decided.
- ``checkpoint.pt``: parameters, optimiser and random streams at the end.
- ``events.out.tfevents.*``: the same for TensorBoard, with ``logger=tensorboard``.
- ``best.pt``: the parameters that ``best=metric`` kept, as they are after the update of the best iteration, and its
  metrics: the loss and the return in them are those of the policy before that update.
"""

import csv
import hashlib
import io
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.numpy import save_file

from rlloss.config import ConfigError, check_folder, to_yaml
from rlloss.envs import simulator_version
from rlloss.logger import LOGGERS
from rlloss.policy import ActorCritic
from rlloss.provenance import versions
from rlloss.rollout import Episode
from rlloss.runs import Decision, RunFolder, to_json
from rlloss.schema import Config

SNAPSHOTS_PER_FILE = 50
FLUSH_SECONDS = 30  # a kill loses at most this much of the snapshots
RESULTS = (
    "run.json", "metrics.csv", "episodes.csv", "decisions.csv", "digests.bin", "checkpoint.pt", "best.pt",
)  # fmt: skip


def fingerprint(device: str, env_id: str) -> dict[str, dict[str, str]]:
    """Versions and machine: what decides whether two machines can be expected to agree to the last bit."""
    machine = {
        "architecture": platform.machine(),
        "system": platform.system(),
        "cpu": _cpu_model(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
    }
    return {"versions": {**versions(), "torch": torch.__version__, **simulator_version(env_id)}, "machine": machine}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _replace(path: Path, data: bytes) -> None:
    """Write a whole file, or leave the old one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def _save(document: Mapping[str, Any], path: Path) -> None:
    """torch.save, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    torch.save(dict(document), partial)
    os.replace(partial, path)


class Recorder:
    """Writes one run folder. A context manager: leaving it by an exception records ``failed`` with the reason.

    Memory is bounded: digests wait for the end of their iteration, snapshots for their file to fill up.

    Raises: ConfigError if the folder holds another run, or one that another process is writing.
    """

    def __init__(self, folder: Path, config: Config, policy: ActorCritic) -> None:
        check_folder(folder, config)
        self.folder, self.config, self.policy = folder, config, policy
        self.optimizer_steps = 0
        self.last_digest = b""
        self._digests = bytearray()
        self._snapshots: dict[str, np.ndarray] = {}
        self._flushed = time.monotonic()
        self._tables: dict[str, BinaryIO] = {}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ConfigError(f"run_dir={self.folder}: another process is writing this run; wait for it") from error
        try:
            check_folder(self.folder, self.config)  # again: another process may have been quicker to the lock
            if RunFolder(self.folder).status == "finished":
                raise ConfigError(f"run_dir={self.folder}: is finished already; remove the folder to run it again")
            _replace(self.folder / "config.yaml", to_yaml(self.config).encode())
            self._clear()
        except BaseException:
            self._lock.release()
            raise
        self._write_run("running")
        self._digest_file = (self.folder / "digests.bin").open("ab")
        self._logger = LOGGERS[self.config.logger.name](self.folder)
        self._snapshot()
        self._flush_snapshots()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._digest_file.close()
        self._logger.close()
        for file in self._tables.values():
            file.close()
        if error is not None:
            self._flush_snapshots()
            self._write_run("failed", error=f"{type(error).__name__}: {error}")
        self._lock.release()

    def _clear(self) -> None:
        """An unfinished run starts over: its old rows must not precede the new ones."""
        for path in [*(self.folder / name for name in RESULTS), *(self.folder / "snapshots").glob("*.safetensors*")]:
            path.unlink(missing_ok=True)
        (self.folder / "snapshots").mkdir(exist_ok=True)

    def step(self) -> None:
        """After every optimiser step: the digest of all parameters, and a snapshot where one is due."""
        self.optimizer_steps += 1
        self.last_digest = hashlib.sha256(self.policy.raw().data).digest()
        self._digests += self.last_digest
        if self.config.snapshot_every and self.optimizer_steps % self.config.snapshot_every == 0:
            self._snapshot()

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

    def keep_best(self, row: Mapping[str, Any]) -> None:
        """Keep the parameters as they are now, as the best so far."""
        best = {"parameters": self.policy.flat.detach().cpu(), "metrics": dict(row)}
        _save(best, self.folder / "best.pt")

    def finish(self, checkpoint: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """After the last iteration. Only this makes the run ``finished``."""
        self._snapshot()
        self._flush_snapshots()
        _save(checkpoint, self.folder / "checkpoint.pt")
        self._write_run("finished", **summary)

    def _parameters(self) -> np.ndarray:
        """A copy; of bfloat16, which NumPy does not know, in float32, which holds it exactly."""
        flat = self.policy.flat.detach().cpu()
        return (flat.float() if flat.dtype == torch.bfloat16 else flat).numpy().copy()

    def _snapshot(self) -> None:
        self._snapshots[f"{self.optimizer_steps:09d}"] = self._parameters()
        if len(self._snapshots) == SNAPSHOTS_PER_FILE or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush_snapshots()

    def _flush_snapshots(self) -> None:
        if not self._snapshots:
            return
        path = self.folder / "snapshots" / f"{min(self._snapshots)}.safetensors"
        partial = path.with_suffix(".safetensors.partial")
        layout = {name: [offset, list(shape)] for name, (offset, shape) in self.policy.layout.items()}
        save_file(self._snapshots, partial, metadata={"layout": json.dumps(layout)})
        os.replace(partial, path)
        self._snapshots.clear()
        self._flushed = time.monotonic()

    def _append(self, name: str, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
        """One unbuffered write per call, so that a kill leaves whole rows."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if name not in self._tables:
            self._tables[name] = (self.folder / name).open("ab", buffering=0)
            writer.writerow(header)
        writer.writerows(rows)
        self._tables[name].write(text.getvalue().encode())

    def _write_run(self, status: str, **more: Any) -> None:
        run = {
            "status": status,
            "optimizer_steps": self.optimizer_steps,
            "final_digest": self.last_digest.hex(),
            **more,
        }
        run |= fingerprint(self.config.device, self.config.env.id)
        _replace(self.folder / "run.json", (to_json(run) + "\n").encode())
