"""Playing a certified run again, all of it or from a checkpoint on, and holding every link of its chain against it."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlloss.config.schema import Config
from rlloss.errors import ConfigError
from rlloss.runs.certificate import Certificate, Chain
from rlloss.train.checkpoint import unpack
from rlloss.train.loop import iterate
from rlloss.train.operations import differing, digests
from rlloss.train.recording import LARGEST_STATE, SPARE_BYTES
from rlloss.train.replay import ReplayDiffers
from rlloss.train.state import State, prepared
from rlloss.train.switches import deterministic


@dataclass(frozen=True)
class Confirmation:
    """What playing a run again came to. Of the optimiser steps ``first`` to ``last``."""

    first: int
    last: int
    differs: tuple[int, int] | None  # the steps within which the first other parameters are
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

    ``progress`` gets the optimiser steps done, after every iteration.

    Raises: ConfigError for a config that cannot be run here, or a checkpoint that does not fit it; RunFailed.
    """
    links, began = certificate.links, time.perf_counter()
    last = min(step for step in links if step >= steps[1])
    with deterministic(config), prepared(config) as state:
        chain = Chain.begin(certificate.config)
        if checkpoint is not None:
            at, path = checkpoint
            _load(state, path)
            chain = Chain(bytes.fromhex(certificate.checkpoints[at]["chain"]), at)
        first = known = chain.step

        def after_step() -> None:
            nonlocal known
            value = chain.add(_digest(state))
            if chain.step in links and chain.step <= last:
                if links[chain.step] != value:
                    raise Other
                known = chain.step

        differs = None
        try:
            while chain.step < last and state.iteration < config.num_iterations and not state.stopped:
                state.stopped = iterate(state, after_step).stopped
                progress(chain.step)
            if chain.step < last:  # it ends before the certified one does
                differs = known + 1, last
        except Other:
            differs = known + 1, chain.step
        suspects = differing(digests(), certificate.document["operations"]) if differs else []
    return Confirmation(first + 1, last, differs, time.perf_counter() - began, suspects)


def _digest(state: State) -> bytes:
    return hashlib.sha256(state.policy.raw().data).digest()


def _load(state: State, path: Path) -> None:
    try:
        state.load_state_dict(unpack(path, largest=LARGEST_STATE * state.policy.flat.nbytes + SPARE_BYTES))
    except ReplayDiffers as error:
        raise ConfigError(f"{path}: {error}; leave --steps out to play the run from its start") from error
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: does not fit this run ({type(error).__name__}: {error})") from error
