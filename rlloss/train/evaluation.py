"""A trained policy at work: loaded from its run folder, and played for some episodes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from rlloss.config.schema import Config, EnvConfig, config_of
from rlloss.errors import ConfigError
from rlloss.runs.agreement import disagreement
from rlloss.runs.reader import RunFolder
from rlloss.runs.watched import refuse_record
from rlloss.train import streams
from rlloss.train.checkpoint import unpack
from rlloss.train.envs import make_env
from rlloss.train.faults import close_all
from rlloss.train.policy import ActorCritic, make_head
from rlloss.train.portable import actors_tanh
from rlloss.train.precision import make_precision
from rlloss.train.spaces import executable, flattened, is_image, one_line
from rlloss.train.wrappers import Env, freeze, layers, make_wrapper, pooled, wrapped

LONGEST = 100_000  # steps, after which an episode that does not end is cut


@dataclass(frozen=True)
class TrainedPolicy:
    """The policy of a finished run, with the statistics of its wrappers, which change no more.

    The statistics are those of all copies of the environment together, as of one that saw all that they saw.
    """

    config: Config
    policy: ActorCritic
    statistics: Mapping[str, Mapping[str, Any]]
    env: Env  # of its own: the wrappers through which ``act`` sends an observation

    def make_env(self, render_mode: str | None = None) -> Env:
        """The run's environment in its wrappers, their statistics frozen. Raises: ConfigError, as training does."""
        return _make_env(self.config, self.statistics, render_mode)

    def act(self, obs: Any, *, greedy: bool = True, rng: np.random.Generator | None = None) -> Any:
        """The action for one observation as the environment itself returns it, for its ``step``.

        ``greedy``: the likeliest action; else a sample, drawn from ``rng``.

        Raises: ConfigError where a wrapper needs more than one observation; use ``make_env`` and ``act_on`` there.
        """
        _refuse_other_shape(obs, self.env.unwrapped.observation_space)
        for layer in reversed(list(layers(self.env))):
            if isinstance(layer, gymnasium.wrappers.FlattenObservation):
                obs = _flat(obs, layer.env.observation_space)
            elif isinstance(layer, gymnasium.ObservationWrapper):
                obs = layer.observation(obs)
            elif isinstance(layer, gymnasium.Wrapper) and layer.observation_space != layer.env.observation_space:
                raise ConfigError(
                    f"{type(layer).__name__} needs more than one observation; play policy.make_env() with act_on"
                )
        return self.act_on(obs, greedy=greedy, rng=rng)

    def act_on(self, obs: Any, *, greedy: bool = True, rng: np.random.Generator | None = None) -> Any:
        """The same for an observation of ``make_env()``, in its wrappers."""
        if rng is not None and not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng={rng!r}: must be a generator, as numpy.random.default_rng(0) makes one")
        _refuse_other_shape(obs, self.env.observation_space)
        actor, head = self.policy.actor(), self.policy.head
        noise = head.noise(rng or np.random.default_rng(), 1, 1)[0]
        dtype = np.uint8 if is_image(self.env.observation_space) else actor.dtype
        actions = actor.act(np.asarray(obs, dtype)[None], np.zeros_like(noise) if greedy else noise)
        return executable(self.env.action_space)(actions)[0]


def _refuse_other_shape(obs: Any, space: gymnasium.Space[Any]) -> None:
    """Raises: ConfigError for an observation that is none of a Box, or that is not a number somewhere."""
    if not isinstance(space, gymnasium.spaces.Box):
        return
    if np.shape(obs) != space.shape or np.asarray(obs).dtype.kind not in "biuf":
        what = f"of shape {np.shape(obs)}" if np.shape(obs) or isinstance(obs, float | int) else repr(obs)
        raise ConfigError(f"act: the observation is {what}; it must be one array of numbers, of shape {space.shape}")
    if np.isnan(obs).any():
        raise ConfigError("act: the observation holds nan; a policy has no answer to that")


def _flat(obs: Any, space: gymnasium.Space[Any]) -> Any:
    """Raises: ConfigError for an observation that is none of the space's."""
    try:
        return gymnasium.spaces.flatten(space, obs)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise ConfigError(
            f"act: the observation is {' '.join(repr(obs).split())[:80]}; it must be one of {one_line(space)}"
        ) from error


class Played(NamedTuple):
    """An episode of an evaluation. The return is undiscounted, of the environment's own rewards."""

    episode: int  # from 1
    seed: int  # of its reset
    episodic_return: float
    episodic_length: int


class Score(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds up an episode's rewards, innermost: as the environment itself gives them."""

    total = 0.0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.total = 0.0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self.total += float(result[1])
        return result


def load_policy(run: RunFolder | Path | str, *, best: bool = False) -> TrainedPolicy:
    """The policy of a finished run; ``best``: the one that ``best=metric`` kept.

    Raises: ConfigError for a run that is not finished, that kept no best policy, or that is a record of watch.
    """
    run = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    refuse_record(run, "rlloss knows neither its policy nor its environment")
    if run.status == "finished" and (why := run.damage or disagreement(run)):
        raise ConfigError(f"RUN={run.path}: {why}; train it again")
    name = "best.safetensors" if best else "checkpoint.safetensors"
    if not (run.path / "config.yaml").is_file():
        raise ConfigError(f"RUN={run.path}: no run there; name a run's folder")
    if not (run.path / name).is_file():
        ended = "train it with best=metric" if best else "another trainer's run has none"
        why = ended if run.status == "finished" else f"it is {run.status}; train it to its end"
        raise ConfigError(f"RUN={run.path}: has no {name}; {why}")
    try:
        config = config_of(yaml.safe_load((run.path / "config.yaml").read_bytes()))
    except (yaml.YAMLError, AttributeError) as error:
        raise ConfigError(f"RUN={run.path}: its config.yaml cannot be read") from error
    state = unpack(run.path / name)
    copies = state.get("statistics") or state.get("experience", {}).get("statistics") or [{}]
    statistics = pooled(copies)
    env = _make_env(config, statistics)
    policy = ActorCritic(
        env.observation_space.shape or (),
        make_head(env.action_space),
        [] if is_image(env.observation_space) else config.hidden_sizes,
        generator=streams.torch_stream(config.seed, streams.INITIALISATION),
        dtype=make_precision(config.precision.name).dtype,
        tanh=actors_tanh(config),
    )
    if state["parameters"].shape != policy.flat.shape:
        raise ConfigError(f"RUN={run.path}: {name} has {len(state['parameters'])} parameters, not {len(policy.flat)}")
    with torch.no_grad():
        policy.flat.copy_(state["parameters"])
    return TrainedPolicy(config, policy, statistics, env)


def _make_env(config: Config, kept: Mapping[str, Mapping[str, Any]], render_mode: str | None = None) -> Env:
    kwargs = config.env.kwargs | ({"render_mode": render_mode} if render_mode else {})
    try:
        env: Env = Score(make_env(EnvConfig(config.env.id, kwargs)))
    except ConfigError as error:
        if render_mode and "render_mode" in str(error):
            raise ConfigError(f"--video: {config.env.id} takes no render_mode, so it draws no pictures") from error
        raise
    env = wrapped(env, [make_wrapper(entry) for entry in config.env.wrappers], config.gamma)
    freeze(env, kept)
    return flattened(env, config.env.id)


def play(
    trained: TrainedPolicy,
    episodes: int,
    seed: int = 0,
    *,
    greedy: bool = True,
    frames: list[NDArray[Any]] | None = None,
) -> Iterator[Played]:
    """Episodes, each from a reset with a seed of its own. ``frames`` gets the pictures of the first.

    Raises: ConfigError for pictures of an environment that draws none.
    """
    env = trained.make_env("rgb_array" if frames is not None else None)
    score = next(layer for layer in layers(env) if isinstance(layer, Score))
    rng = streams.numpy_stream(seed, streams.ACTIONS)
    try:
        for episode in range(1, episodes + 1):
            reset = streams.env_seed(seed, episode - 1)
            obs, _ = env.reset(seed=reset)
            length, ended = 0, False
            while not ended and length < LONGEST:
                if frames is not None and episode == 1:
                    frames.append(_picture(env))
                obs, _, terminated, truncated, _ = env.step(trained.act_on(obs, greedy=greedy, rng=rng))
                length, ended = length + 1, bool(terminated or truncated)
            yield Played(episode, reset, score.total, length)
    finally:
        close_all([env])


def _picture(env: Env) -> NDArray[Any]:
    try:
        return np.asarray(env.unwrapped.render(), np.uint8)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"--video: {env.spec.id if env.spec else env} draws no pictures ({error})") from error
