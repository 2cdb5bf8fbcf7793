"""``train(config)``: the loop. No Hydra and no command line in here."""

import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlloss import streams
from rlloss.conditions import BESTS, GUARDS, STOPS, ClosedForm, Condition, Plateau, make_schedule
from rlloss.config import ConfigError, check, lookup
from rlloss.envs import Environments, make_envs
from rlloss.logger import check_logger
from rlloss.losses import LOSSES
from rlloss.policy import ActorCritic, make_head
from rlloss.precision import Precision, make_precision
from rlloss.record import Recorder
from rlloss.rollout import Episode, Rollout, Sampler, collect, gae
from rlloss.runs import LAST_EPISODES, Decision
from rlloss.schema import Config
from rlloss.update import Batch, make_optimizer, update

Progress = Callable[[dict[str, Any]], None]


@dataclass
class State:
    """Everything that a run carries from one iteration to the next."""

    policy: ActorCritic
    optimizer: torch.optim.Optimizer
    schedule: ClosedForm | Plateau
    stop: Condition
    best: Condition
    precision: Precision
    scaler: torch.amp.GradScaler
    sampler: Sampler
    shuffle: np.random.Generator
    optimizer_steps: int = 0
    last_episodes: deque[Episode] = field(default_factory=lambda: deque(maxlen=LAST_EPISODES))


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


def train(config: Config, folder: Path | None = None, progress: Progress | None = None) -> Run:
    """Train one policy. With a ``folder`` the run is recorded there; ``progress`` gets each iteration's metrics.

    Raises: ConfigError, before anything is written, if the config cannot be run.
    """
    check(config)
    with deterministic(config), _prepared(config) as state, _recorder(folder, config, state.policy) as recorder:

        def after_step() -> None:
            state.optimizer_steps += 1
            if recorder is not None:
                recorder.step()

        start = time.perf_counter()
        for iteration in range(1, config.num_iterations + 1):
            began, learning_rate = time.perf_counter(), state.optimizer.param_groups[0]["lr"]
            rollout = collect(state.sampler, state.policy, config.num_steps, state.precision)
            batch = make_batch(rollout, config)
            metrics = update(state.policy, state.optimizer, batch, config, state.shuffle, after_step, state.scaler)
            state.last_episodes.extend(rollout.episodes)
            row = {"iteration": iteration, **counts(state), "learning_rate": learning_rate, **metrics}
            row |= {"explained_variance": explained_variance(batch), **episode_metrics(rollout.episodes)}
            decisions, stopped, kept = decide(state, row, config)
            row["actions_digest"] = hashlib.sha256(rollout.actions.cpu().numpy().data).hexdigest()[:16]
            row["steps_per_second"] = round(config.num_samples / (time.perf_counter() - began), 1)
            if recorder is not None:
                recorder.iteration(row, rollout.episodes, decisions)
                if kept:
                    recorder.keep_best(row)
            if progress is not None:
                progress(row)
            if stopped:
                break

        summary = summarise(state, time.perf_counter() - start)
        if recorder is not None:
            recorder.finish(checkpoint(state), summary)
        digest = hashlib.sha256(state.policy.raw().data).hexdigest()
        return Run(config, state.policy, digest, state.optimizer_steps, **summary)


def decide(state: State, row: dict[str, Any], config: Config) -> tuple[list[Decision], bool, bool]:
    """What the conditions make of an iteration's metrics: their decisions, whether to stop, whether it is the best."""
    guarded = row["guarded_steps"]
    skips = (
        ("guard", getattr(config.guard, "monitor", ""), guarded),
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
    return {"env_steps": state.sampler.env_steps, "optimizer_steps": state.optimizer_steps}


def summarise(state: State, seconds: float) -> dict[str, Any]:
    """What ``run.json`` says of a finished run."""
    finished = episode_metrics(list(state.last_episodes))
    return {
        "env_steps": state.sampler.env_steps,
        "steps_per_second": round(state.sampler.env_steps / seconds, 1),
        "episodic_return": finished["episodic_return"],
        "episodic_length": finished["episodic_length"],
    }


def validate(config: Config) -> None:
    """Everything that ``train`` checks before it writes. Raises: ConfigError."""
    check(config)
    with deterministic(config), _prepared(config):
        pass


@contextmanager
def deterministic(config: Config) -> Iterator[None]:
    """torch's global switches as this run needs them, and back afterwards."""
    if config.device != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs a fixed workspace for this
        if int(config.device.partition(":")[2] or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device={config.device}: this machine or torch build has none; use device=cpu")
    cores = os.cpu_count() or 1
    if config.torch_threads > cores:
        raise ConfigError(f"torch_threads={config.torch_threads}: this machine has {cores} cores; use no more")
    memory: Any = torch.utils.deterministic
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        memory.fill_uninitialized_memory,
    )
    torch.set_num_threads(config.torch_threads)
    torch.use_deterministic_algorithms(True)
    # Filling every new tensor with NaN guards against reads of uninitialised memory; no operation here makes any.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        memory.fill_uninitialized_memory = before[2]


@contextmanager
def _prepared(config: Config) -> Iterator[State]:
    lookup(LOSSES, "loss", config.loss.name)
    check_logger(config.logger.name)
    precision = make_precision(config.precision.name)
    stop, best = lookup(STOPS, "stop", config.stop.name), lookup(BESTS, "best", config.best.name)
    if config.guard.name not in GUARDS:
        raise ConfigError(f"guard={config.guard.name}: unknown; use one of {', '.join(GUARDS)}")
    envs = make_envs(config.env, streams.env_seeds(config.seed, config.num_envs), config.gamma)
    try:
        policy = ActorCritic(
            envs.obs.shape[1:],
            make_head(envs.action_space),
            hidden_sizes(config, envs),
            generator=streams.torch_stream(config.seed, streams.INITIALISATION),
            dtype=precision.dtype,
            device=config.device,
        )
        optimizer = make_optimizer(config.optimizer, policy, config.learning_rate)
        yield State(
            policy,
            optimizer,
            make_schedule(config, optimizer),
            stop(config),
            best(config),
            precision,
            precision.scaler(config.device),
            Sampler(envs, streams.numpy_stream(config.seed, streams.ACTIONS)),
            streams.numpy_stream(config.seed, streams.SHUFFLE),
        )
    finally:
        envs.close()


def hidden_sizes(config: Config, envs: Environments) -> list[int]:
    """Those of the config; for images none, since the convolutions end in a layer of their own.

    Raises: ConfigError if the config asks for others above convolutions.
    """
    if envs.obs.ndim == 2:
        return config.hidden_sizes
    if config.hidden_sizes != Config().hidden_sizes:
        raise ConfigError(
            f"hidden_sizes={config.hidden_sizes}: {config.env.id} shows images, whose network has its own sizes; "
            "leave it out"
        )
    return []


def _recorder(folder: Path | None, config: Config, policy: ActorCritic) -> Any:
    return nullcontext() if folder is None else Recorder(folder, config, policy)


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
    """1 - Var(returns - values) / Var(returns); nan if the returns do not vary."""
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


def checkpoint(state: State) -> dict[str, Any]:
    """Parameters, optimiser, schedule and random streams. The environments' own state is not in it."""
    return {
        "parameters": state.policy.flat.detach().cpu(),
        "layout": state.policy.layout,
        "optimizer": state.optimizer.state_dict(),
        "schedule": {k: v for k, v in state.schedule.scheduler.state_dict().items() if k != "lr_lambdas"},
        "action_stream": state.sampler.rng.bit_generator.state,
        "shuffle_stream": state.shuffle.bit_generator.state,
    }
