"""Everything that a run carries from one iteration to the next, and how it begins."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rlloss.config.schema import Config
from rlloss.errors import ConfigError, NonFinite, lookup
from rlloss.runs.logger import check_logger
from rlloss.runs.reader import LAST_EPISODES
from rlloss.runs.rows import Episode
from rlloss.train import streams
from rlloss.train.conditions import BESTS, STOPS, Condition, make_schedule
from rlloss.train.envcheck import check_environment, refuse_unportable
from rlloss.train.envs import make_envs
from rlloss.train.faults import staying
from rlloss.train.memory import refuse_too_large
from rlloss.train.numerics import PORTABLE
from rlloss.train.optimizers import make_optimizer
from rlloss.train.policy import ActorCritic, make_head
from rlloss.train.portable import actors_tanh
from rlloss.train.precision import Precision, make_precision
from rlloss.train.rollout import Experience
from rlloss.train.steppers import make_stepper
from rlloss.train.switches import switches_kept
from rlloss.train.update import Stepper
from rlloss.train.vector import Environments

REMEDY = "last_finite.safetensors in its folder has the parameters before it; on_nonfinite=record goes on all the same"


@dataclass
class State:
    """A run between two iterations. What the config names is looked up once, here, and held as an object."""

    config: Config
    policy: ActorCritic
    optimizer: torch.optim.Optimizer
    precision: Precision
    scaler: torch.amp.GradScaler
    stepper: Stepper
    schedule: Condition
    stop: Condition
    best: Condition
    experience: Experience
    shuffle: np.random.Generator
    iteration: int = 0  # iterations done
    optimizer_steps: int = 0
    stopped: bool = False  # by a stop condition
    last_episodes: deque[Episode] = field(default_factory=lambda: deque(maxlen=LAST_EPISODES))

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors, arrays and numbers, between two iterations and after the first."""
        return {
            "iteration": self.iteration,
            "optimizer_steps": self.optimizer_steps,
            "stopped": self.stopped,
            "parameters": self.policy.flat.detach(),
            "layout": self.policy.layout,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "schedule": self.schedule.state_dict(),
            "stop": self.stop.state_dict(),
            "best": self.best.state_dict(),
            "experience": self.experience.state_dict(),
            "shuffle": self.shuffle.bit_generator.state,
            "last_episodes": list(self.last_episodes),
        }

    @contextmanager
    def last_finite(self, *, enabled: bool) -> Iterator[None]:
        """Within: an iteration, after which all parameters must be finite numbers.

        Raises: NonFinite with the iteration and optimiser step. The parameters are then those before that step, or, if
            it was found too late for that, those before the iteration.
        """
        if not enabled:
            yield
            return
        before, steps = self.policy.flat.detach().clone(), self.optimizer_steps
        try:
            yield
            if not torch.isfinite(self.policy.flat).all():
                raise NonFinite("parameters are not finite")
        except NonFinite as error:
            where = f"in iteration {self.iteration + 1}, at optimiser step {self.optimizer_steps + 1}"
            if not torch.isfinite(self.policy.flat).all():
                self.optimizer_steps = steps
                with torch.no_grad():
                    self.policy.flat.copy_(before)
            raise NonFinite(f"{error}, {where}; {REMEDY}") from error

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises: ReplayDiffers if the environments cannot be brought back there; then nothing has changed.
        """
        self.experience.load_state_dict(state["experience"])
        self.iteration, self.optimizer_steps, self.stopped = (
            state[name] for name in ("iteration", "optimizer_steps", "stopped")
        )
        with torch.no_grad():
            self.policy.flat.copy_(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for name in ("schedule", "stop", "best"):
            getattr(self, name).load_state_dict(state[name])
        self.shuffle.bit_generator.state = state["shuffle"]
        self.last_episodes = deque((Episode(*episode) for episode in state["last_episodes"]), maxlen=LAST_EPISODES)


@contextmanager
def prepared(config: Config) -> Iterator[State]:
    """The state before the first iteration. Raises: ConfigError for a config that cannot be run here."""
    check_logger(config.logger.name)
    precision = make_precision(config.precision.name)
    stop, best = lookup(STOPS, "stop", config.stop.name), lookup(BESTS, "best", config.best.name)
    refuse_too_large(config)
    with staying(ConfigError, f"env.id={config.env.id}: "), switches_kept(f"env.id={config.env.id}"):
        check_environment(config.env)
        envs = make_envs(
            config.env,
            streams.env_seeds(config.seed, config.num_envs),
            config.gamma,
            lambda env: refuse_too_large(config, env),
        )
    try:
        if config.numerics.name == PORTABLE:
            refuse_unportable(config.env.id, envs.envs[0])
        policy = ActorCritic(
            envs.obs.shape[1:],
            make_head(envs.action_space),
            hidden_sizes(config, envs),
            generator=streams.torch_stream(config.seed, streams.INITIALISATION),
            dtype=precision.dtype,
            device=config.device,
            tanh=actors_tanh(config),
        )
        optimizer = make_optimizer(config.optimizer, policy, config.learning_rate, config.numerics.name)
        scaler = precision.scaler(config.device)
        with switches_kept(f"loss={config.loss.name}"):
            stepper = make_stepper(config, policy, optimizer, precision, scaler)
        yield State(
            config=config,
            policy=policy,
            optimizer=optimizer,
            precision=precision,
            scaler=scaler,
            stepper=stepper,
            schedule=make_schedule(config, optimizer),
            stop=stop(config),
            best=best(config),
            experience=Experience(envs, streams.numpy_stream(config.seed, streams.ACTIONS)),
            shuffle=streams.numpy_stream(config.seed, streams.SHUFFLE),
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
