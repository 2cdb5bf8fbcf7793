"""How this trainer fills a run folder: an adaptor between its state and the writer, which knows no trainer."""

import functools
import hashlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from rlloss.config.schema import Config
from rlloss.errors import ConfigError, NonFinite
from rlloss.runs.machine import machine
from rlloss.runs.provenance import made_otherwise, versions
from rlloss.runs.reader import BEST, CHECKPOINT, RunFolder
from rlloss.runs.rows import Decision, Episode
from rlloss.runs.writer import Arrays, RunWriter, Written
from rlloss.train.checkpoint import pack, unpack
from rlloss.train.envs import simulator_version
from rlloss.train.operations import digests
from rlloss.train.policy import ActorCritic
from rlloss.train.replay import REMEDY, ReplayDiffers
from rlloss.train.state import State

DECIDE = ("source ", "loss ", "torch ", "numpy ")  # versions with which a run cannot be expected to go on alike
LARGEST_STATE = 64  # times the parameters: L-BFGS keeps 2 * history_size vectors of their size
SPARE_BYTES = 1 << 30  # for the environments

MISFITS = (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError)
"""What loading a checkpoint raises that is another run's, or damaged in a way that its sum does not show."""

log = logging.getLogger("rlloss")


class Recorder:
    """Is told of every optimiser step and every iteration. This one, of a run without a folder, records nothing."""

    seconds = 0.0  # that the run has taken in processes before this one

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def step(self) -> None:
        """After every optimiser step."""

    def iteration(
        self, row: Mapping[str, Any], episodes: Sequence[Episode], decisions: Sequence[Decision], *, kept: bool
    ) -> None:
        """After every iteration; ``kept``: the parameters are now those of the best."""

    def checkpoint_if_due(self, seconds: float, last: float) -> None:
        """Between two iterations: the run has taken ``seconds``, of which the ``last`` iteration."""

    def interrupt(self, seconds: float) -> str:
        """Keep where the run is. Returns: how to go on, in words."""
        return "interrupted; nothing of it was recorded"

    def finish(self, summary: Mapping[str, Any]) -> None:
        """After the last iteration."""


class FolderRecorder(Recorder):
    """Writes a run folder, and goes on with the run in it. Raises: ConfigError as the writer does."""

    def __init__(self, folder: Path, state: State) -> None:
        config = state.config
        self.state, self.policy, self.every = state, state.policy, config.snapshot_every
        self.folder, self.between = folder, config.checkpoint_seconds
        facts: dict[str, Any] = dict(fingerprint(config))
        facts["initial_digest"] = hashlib.sha256(state.policy.raw().data).hexdigest()
        if state.experience.envs.flattened:
            facts["flattened"] = state.experience.envs.flattened
        self.writer = RunWriter(folder, asdict(config), facts, logger=config.logger.name, resume=self._resume)

    def __enter__(self) -> Self:
        before = RunFolder(self.folder).recorded_status
        self.writer.__enter__()
        if self.state.iteration:
            log.info(
                "goes on after optimiser step %s, iteration %s of %s, where it was %s",
                f"{self.state.optimizer_steps:,}", f"{self.state.iteration:,}", f"{self.state.config.num_iterations:,}",
                "interrupted" if before == "running" else before,
            )  # fmt: skip
        else:
            self.writer.snapshot(arrays(self.policy))
        self._checkpointed = time.monotonic()
        self._kept_at = self.state.optimizer_steps
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, NonFinite):
            steps = self.state.optimizer_steps
            last = {"parameters": self.policy.flat, "layout": self.policy.layout, "optimizer_steps": steps}
            with suppress(OSError):
                self.writer.keep("last_finite.safetensors", pack(last))
        self.writer.__exit__(kind, error, tb)

    def step(self) -> None:
        """The digest of all parameters, and a snapshot where one is due."""
        self.writer.step({"parameters": self.policy.raw()})
        if self.every and self.writer.optimizer_steps % self.every == 0:
            self.writer.snapshot(arrays(self.policy))

    def iteration(
        self, row: Mapping[str, Any], episodes: Sequence[Episode], decisions: Sequence[Decision], *, kept: bool
    ) -> None:
        self.writer.iteration(row, episodes, decisions)
        if kept:
            metrics = {name: value for name, value in row.items() if name != "steps_per_second"}
            best = {"parameters": self.policy.flat, "layout": self.policy.layout, "metrics": metrics}
            best["statistics"] = self.state.experience.envs.statistics()
            self.writer.hold(BEST, pack(best))
        between, steps = self.state.config.keep_checkpoints, self.state.optimizer_steps
        if between and steps // between > self._kept_at // between:
            self.writer.keep_checkpoint(pack(self.state.state_dict()))
        self._kept_at = steps

    def checkpoint_if_due(self, seconds: float, last: float) -> None:
        """Before the next iteration would make the newest checkpoint older than ``checkpoint_seconds``."""
        if time.monotonic() - self._checkpointed + last >= self.between:
            self._checkpoint(seconds)

    def _checkpoint(self, seconds: float) -> None:
        data = pack({**self.state.state_dict(), "written": self.writer.written._asdict()})
        self.writer.checkpoint(data, seconds=round(seconds, 3))
        self._checkpointed = time.monotonic()

    def interrupt(self, seconds: float) -> str:
        self._checkpoint(seconds)
        done = f"optimiser step {self.state.optimizer_steps:,}, iteration {self.state.iteration:,}"
        total = f"{self.state.config.num_iterations:,}"
        return f"{self.folder}: interrupted after {done} of {total}; the same command goes on from there"

    def finish(self, summary: Mapping[str, Any]) -> None:
        written = self.writer.written._asdict()  # without the last snapshot, which a longer run has not
        self.writer.snapshot(arrays(self.policy))
        self.writer.checkpoint(pack({**self.state.state_dict(), "written": written}))
        self.writer.finish(summary)

    def _resume(self) -> Written | None:
        """Load the checkpoint of the folder into the state; None where there is none, or it is of no use.

        Raises: ConfigError for one that cannot be read, or that other versions made.
        """
        path, run = self.folder / CHECKPOINT, RunFolder(self.folder)
        if not path.is_file():
            if run.recorded_status != "missing":
                log.info("starts over: it was cut short before its first checkpoint")
            return None
        if others := [text for text in made_otherwise(run) if text.startswith(DECIDE)]:
            raise ConfigError(
                f"run_dir={self.folder}: was begun by other versions ({'; '.join(others)}), which may make other bits; "
                "go on with those, or remove the folder to start over"
            )
        saved = unpack(path, largest_state(self.state))
        try:
            written = Written(**saved["written"])
            written.check()
            self.state.load_state_dict(saved)
        except ReplayDiffers as error:
            if run.recorded_status == "finished":
                raise ConfigError(
                    f"run_dir={self.folder}: {error}, so that this finished run cannot go on; it is kept, and a longer "
                    f"one needs another folder. {REMEDY}"
                ) from error
            log.warning("note: %s: %s; the run starts over. %s", self.folder.name, error, REMEDY)
            return None
        except MISFITS as error:
            raise ConfigError(
                f"run_dir={self.folder}: {misfit(path, error)}; remove the folder to start over"
            ) from error
        took = run.info.get("seconds") or run.info.get("env_steps", 0) / (run.info.get("steps_per_second") or math.inf)
        self.seconds = float(took)
        return written


def recorder(folder: Path | None, state: State) -> Recorder:
    return Recorder() if folder is None else FolderRecorder(folder, state)


def largest_state(state: State) -> int:
    """The bytes above which a checkpoint cannot be one of this run's."""
    return LARGEST_STATE * state.policy.flat.nbytes + SPARE_BYTES


def misfit(path: Path, error: Exception) -> str:
    """In words."""
    return f"{path.name} does not fit this run ({type(error).__name__}: {' '.join(str(error).split())})"


def arrays(policy: ActorCritic) -> Arrays:
    """Every parameter by name. Of bfloat16, which NumPy does not know, in float32, which holds it exactly."""
    flat = policy.flat.detach().cpu()
    whole = (flat.float() if flat.dtype == torch.bfloat16 else flat).numpy()
    return {
        name: whole[offset : offset + math.prod(shape)].reshape(shape)
        for name, (offset, shape) in policy.layout.items()
    }


def fingerprint(config: Config) -> dict[str, dict[str, str]]:
    """Versions and machine: what decides whether two machines can be expected to agree to the last bit."""
    made_by = versions(config.loss.name, config.env.id, config.env.wrappers)
    return {
        "versions": made_by | {"torch": torch.__version__, **simulator_version(config.env.id)},
        "machine": machine(config.device),
        "operations": operations_of(config.numerics.name),
    }


@functools.cache
def operations_of(numerics: str) -> dict[str, str]:
    """A digest of what each kind of operation computes here, which a process finds out once for its numerics."""
    return digests()
