"""``train(config)``: the loop. No Hydra and no command line in here."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from rlloss.config.schema import Config
from rlloss.errors import Interrupted, LossError, RunFailed
from rlloss.runs.rows import Decision, Episode
from rlloss.train.faults import staying, watchdog
from rlloss.train.policy import ActorCritic
from rlloss.train.recording import Recorder, recorder
from rlloss.train.rollout import Rollout, collect, gae
from rlloss.train.state import State, prepared
from rlloss.train.switches import deterministic, switches_kept
from rlloss.train.update import Batch, update

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Run:
    """What a finished run comes to. Returns are means over the last 100 finished episodes, nan if there were none."""

    config: Config
    policy: ActorCritic
    final_digest: str  # SHA-256 of all parameters, hexadecimal
    optimizer_steps: int
    env_steps: int
    steps_per_second: float  # environment steps, over the whole loop, recording included
    episodic_return: float
    episodic_length: float


class Iteration(NamedTuple):
    """What one iteration leaves: its row of metrics, finished episodes, and what the conditions made of it."""

    row: dict[str, Any]
    episodes: list[Episode]
    decisions: list[Decision]
    stopped: bool
    kept: bool  # the best iteration so far, whose parameters are kept


def train(
    config: Config,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    asked_to_stop: Callable[[], int] = lambda: 0,
    begins: Callable[[], None] = lambda: None,
) -> Run:
    """Train one policy. With a ``folder`` the run is recorded there; ``progress`` gets each iteration's metrics.

    A run in ``folder`` that was cut short, or that was to take fewer steps, goes on from its checkpoint, to the bits of
    one that never stopped. ``asked_to_stop`` is called after every iteration; it returns the number of a signal that
    asks the run to stop, or 0. ``begins`` is called once everything is made and checked, before anything is written.

    Raises: ConfigError, before anything is written, if the config cannot be run; RunFailed; Interrupted.
    """
    if not isinstance(config, Config):
        raise TypeError(f"train takes a Config, as rlloss.config.load(['seed=1']) makes one, not {config!r}")
    config.validate()
    folder = None if folder is None else Path(folder)
    with deterministic(config), prepared(config) as state, begun(folder, state, begins) as record, watched(state):
        start = time.perf_counter() - record.seconds
        while state.iteration < config.num_iterations and not state.stopped:
            began = time.perf_counter()
            done = iterate(state, record.step)
            state.stopped = done.stopped
            record.iteration(done.row, done.episodes, done.decisions, kept=done.kept)
            if progress is not None:
                progress(done.row)
            now = time.perf_counter()
            if state.iteration < config.num_iterations and not state.stopped:
                if signum := asked_to_stop():
                    raise Interrupted(record.interrupt(now - start), signum)
                record.checkpoint_if_due(now - start, now - began)
        summary = summarise(state, time.perf_counter() - start)
        record.finish(summary)
        digest = hashlib.sha256(state.policy.raw().data).hexdigest()
        return Run(config, state.policy, digest, state.optimizer_steps, **summary)


def begun(folder: Path | None, state: State, begins: Callable[[], None]) -> Recorder:
    begins()
    return recorder(folder, state)


def watched(state: State) -> AbstractContextManager[None]:
    """Within: a step of the environments that takes longer than ``env.timeout`` fails the run."""
    envs = state.experience.envs
    return watchdog(lambda: envs.journal.steps if envs.stepping else None, state.config.env.timeout)


def iterate(state: State, after_step: Callable[[], None]) -> Iteration:
    """Collect, update, decide. ``after_step`` is called after every optimiser step.

    Raises: NonFinite, with the parameters as they last were finite, unless ``on_nonfinite=record``.
    """
    config, finite_only = state.config, state.config.on_nonfinite == "fail"
    began, learning_rate = time.perf_counter(), state.optimizer.param_groups[0]["lr"]

    def stepped() -> None:
        state.optimizer_steps += 1
        after_step()

    own = f"loss={config.loss.name} or env.id={config.env.id}"
    with staying(), failing(), switches_kept(own, RunFailed), state.last_finite(enabled=finite_only):
        rollout = collect(state.experience, state.policy, config.num_steps, state.precision, finite_only=finite_only)
        batch = make_batch(rollout, config)
        metrics = update(state.stepper, batch, config, state.shuffle, stepped)
    state.iteration += 1
    state.last_episodes.extend(rollout.episodes)
    row = {"iteration": state.iteration, **counts(state), "learning_rate": learning_rate, **metrics}
    row |= {"explained_variance": explained_variance(batch), **episode_metrics(rollout.episodes)}
    decisions, stopped, kept = decide(state, row)
    row |= rollout.digests
    row["steps_per_second"] = round(config.num_samples / (time.perf_counter() - began), 1)
    return Iteration(row, rollout.episodes, decisions, stopped, kept)


@contextmanager
def failing() -> Iterator[None]:
    """Within: a loss that was fine when it was tried, and now is not, fails the run: that is no bad input any more."""
    try:
        yield
    except LossError as error:
        raise RunFailed(str(error)) from error


def decide(state: State, row: dict[str, Any]) -> tuple[list[Decision], bool, bool]:
    """What the conditions make of an iteration's metrics: their decisions, whether to stop, whether it is the best."""
    guarded = row["guarded_steps"]
    skips = (
        ("guard", getattr(state.config.guard, "monitor", ""), guarded),
        ("grad_scaler", "grad_norm", row["skipped_steps"] - guarded),
    )
    skipped = [
        Decision(row["iteration"], who, monitor, float(row[monitor]), f"skip {n} optimiser steps")
        for who, monitor, n in skips
        if n
    ]
    schedule, stop, best = (condition.after(row) for condition in (state.schedule, state.stop, state.best))
    decisions = [*skipped, *(decision for decision in (schedule, best, stop) if decision is not None)]
    return decisions, stop is not None, best is not None


def counts(state: State) -> dict[str, int]:
    return {"env_steps": state.experience.env_steps, "optimizer_steps": state.optimizer_steps}


def summarise(state: State, seconds: float) -> dict[str, Any]:
    """What ``run.json`` says of a finished run."""
    finished = episode_metrics(list(state.last_episodes))
    return {
        "env_steps": state.experience.env_steps,
        "steps_per_second": round(state.experience.env_steps / seconds, 1),
        "episodic_return": finished["episodic_return"],
        "episodic_length": finished["episodic_length"],
    }


def validate(config: Config) -> None:
    """Everything that ``train`` checks before it writes. Raises: ConfigError."""
    config.validate()
    with deterministic(config), prepared(config):
        pass


def make_batch(rollout: Rollout, config: Config) -> Batch:
    """Advantages by GAE, returns = advantages + values, everything flattened to [samples]."""
    advantages = gae(
        rollout.rewards, rollout.values, rollout.next_values, rollout.dones,
        gamma=config.gamma, gae_lambda=config.gae_lambda,
    )  # fmt: skip

    def flat(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.reshape(-1)).to(rollout.logp.device, rollout.logp.dtype)

    return Batch(
        rollout.obs, rollout.actions, rollout.logp,
        flat(advantages), flat(advantages + rollout.values), flat(rollout.values),
    )  # fmt: skip


def explained_variance(batch: Batch) -> float:
    """1 - Var(returns - values) / Var(returns); nan if the returns do not vary, as those of one sample."""
    if len(batch.returns) < 2:
        return math.nan
    variance = float(batch.returns.var())
    return 1 - float((batch.returns - batch.old_values).var()) / variance if variance else math.nan


def episode_metrics(episodes: list[Episode]) -> dict[str, float]:
    """Mean undiscounted return and length of finished episodes (nan if none finished), and their number."""
    count = len(episodes)
    return {
        "episodic_return": sum(e.episodic_return for e in episodes) / count if count else math.nan,
        "episodic_length": sum(e.episodic_length for e in episodes) / count if count else math.nan,
        "episodes": count,
    }
