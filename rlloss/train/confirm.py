"""Playing a certified run again, all of it or a part from a checkpoint on, and holding what comes out against it."""

import hashlib
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rlloss.config.schema import Config, LoggerConfig
from rlloss.errors import ConfigError
from rlloss.runs.certificate import Certificate, Chain, tables
from rlloss.runs.reader import RunFolder
from rlloss.train.checkpoint import unpack
from rlloss.train.loop import iterate, watched
from rlloss.train.operations import differing, digests
from rlloss.train.recording import MISFITS, largest_state, misfit, recorder
from rlloss.train.replay import ReplayDiffers
from rlloss.train.state import State, prepared
from rlloss.train.switches import deterministic

LONG = 1e9  # seconds


@dataclass(frozen=True)
class Confirmation:
    """What playing a run again came to. Of the optimiser steps ``first`` to ``last``."""

    first: int
    last: int
    differs: str  # what is not as certified, in words; empty if nothing is
    seconds: float
    suspects: list[str]  # operations whose digests are not those of the certificate


class Other(Exception):
    """A link that is another: nothing after it can be the same."""


def confirm(
    certificate: Certificate,
    config: Config,
    steps: tuple[int, int],
    checkpoint: tuple[int, Path] | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> Confirmation:
    """Train again until every link up to ``steps[1]`` is known, from the checkpoint on, or else from the start.

    Of a run that is played to its end, the end is held against the certificate, too: its number of steps, the final
    digest and, if it was played from its start, its tables. ``progress`` gets the optimiser steps done.

    Raises: ConfigError for a config that cannot be run here, or a checkpoint that does not fit it; RunFailed.
    """
    config = quiet(config)  # of what a run folder holds, its tables are all that is asked for
    links, began = certificate.links, time.perf_counter()
    last = min(step for step in links if step >= steps[1])
    with (
        tempfile.TemporaryDirectory() as home,
        deterministic(config),
        prepared(config) as state,
        watched(state),
    ):
        chain = Chain.begin(certificate.config)
        if checkpoint is not None:
            at, path = checkpoint
            load_checkpoint(state, path, at)
            chain = Chain(bytes.fromhex(certificate.checkpoints[at]["chain"]), at)
        first = known = chain.step
        whole = first == 0 and last == certificate.steps
        differs = ""
        with suppress(Other), recorder(Path(home) / "run" if whole else None, state) as record:

            def after_step() -> None:
                nonlocal known, differs
                record.step()
                value = chain.add(hashlib.sha256(state.policy.raw().data).digest())
                if chain.step in links and chain.step <= last:
                    if links[chain.step] != value:
                        differs = f"other parameters, first within optimiser steps {known + 1:,} to {chain.step:,}"
                        raise Other
                    known = chain.step

            while chain.step < last and not _has_ended(state):
                done = iterate(state, after_step)
                state.stopped = done.stopped
                record.iteration(done.row, done.episodes, done.decisions, kept=done.kept)
                progress(chain.step)
            if chain.step < last:
                differs = f"it ends after {chain.step:,} optimiser steps"
            elif last == certificate.steps:
                differs = _other_end(certificate, state, Path(home) / "run" if whole else None)
        suspects = differing(digests(), certificate.document["operations"]) if differs else []
    return Confirmation(first + 1, last, differs, time.perf_counter() - began, suspects)


def quiet(config: Config) -> Config:
    """The same run, without snapshots, checkpoints and a logger."""
    return replace(config, logger=LoggerConfig("none"), snapshot_every=0, keep_checkpoints=0, checkpoint_seconds=LONG)


def _has_ended(state: State) -> bool:
    return state.stopped or state.iteration >= state.config.num_iterations


def _other_end(certificate: Certificate, state: State, folder: Path | None) -> str:
    """In what a run that was played to its last certified step is another after all."""
    if not _has_ended(state) or state.optimizer_steps != certificate.steps:
        return f"it does not end after {certificate.steps:,} optimiser steps"
    if state.experience.env_steps != certificate.document["env_steps"]:
        return f"{state.experience.env_steps:,} environment steps, certified {certificate.document['env_steps']:,}"
    if hashlib.sha256(state.policy.raw().data).hexdigest() != certificate.document["final_digest"]:
        return "another final digest"
    made, theirs = tables(RunFolder(folder)) if folder else {}, certificate.document["tables"]
    other = [name for name in {**theirs, **made} if made.get(name) != theirs.get(name)] if folder else []
    return f"another {other[0]}" if other else ""


def load_checkpoint(state: State, path: Path, step: int) -> None:
    """Raises: ConfigError for a checkpoint that is of another run, or of another step."""
    try:
        state.load_state_dict(unpack(path, largest_state(state)))
        counts = (state.iteration, state.optimizer_steps, state.experience.env_steps)
        if not all(type(count) is int for count in counts) or state.optimizer_steps != step:
            raise ValueError(f"it is not of optimiser step {step:,}")
    except ReplayDiffers as error:
        raise ConfigError(f"{path}: {error}; leave --steps out to play the run from its start") from error
    except ConfigError:
        raise
    except MISFITS as error:
        raise ConfigError(f"{path.parent}: {misfit(path, error)}; remove it") from error
