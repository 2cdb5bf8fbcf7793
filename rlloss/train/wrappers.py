"""What ``env.wrappers`` may name: Gymnasium's own wrappers as runs use them, and those of a user's module."""

import copy
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import wrappers

from rlloss.errors import ConfigError, Interrupted
from rlloss.lazy import beside_the_user
from rlloss.train.faults import raised

Env = gymnasium.Env[Any, Any]


class RawReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Remembers the last step's reward as it was before the wrappers around this one changed it."""

    reward: SupportsFloat = 0.0

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self.reward = result[1]
        return result


class Copied(gymnasium.ObservationWrapper[Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Hands on copies: many environments write every observation into one array, and wrappers keep some of them."""

    def __init__(self, env: Env) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self)  # by which Gymnasium's checker makes it anew
        gymnasium.ObservationWrapper.__init__(self, env)

    def observation(self, observation: Any) -> Any:
        return copy.deepcopy(observation)


def _normalize_observation(env: Env, gamma: float) -> Env:
    normalized = wrappers.NormalizeObservation(env)
    clip = functools.partial(np.clip, a_min=-10, a_max=10)
    return wrappers.TransformObservation(normalized, clip, normalized.observation_space)


def _normalize_reward(env: Env, gamma: float) -> Env:
    return wrappers.ClipReward(wrappers.NormalizeReward(RawReward(env), gamma), -10, 10)


def _sign_reward(env: Env, gamma: float) -> Env:
    return wrappers.TransformReward(RawReward(env), _sign)


def _sign(reward: SupportsFloat) -> float:
    return float(np.sign(float(reward)))


def _atari_preprocessing(env: Env, gamma: float) -> Env:
    return wrappers.AtariPreprocessing(env)


def _frame_stack(env: Env, gamma: float) -> Env:
    return wrappers.FrameStackObservation(env, 4)


WRAPPERS: dict[str, Callable[[Env, float], Env]] = {
    "normalize_observation": _normalize_observation,
    "normalize_reward": _normalize_reward,
    "sign_reward": _sign_reward,
    "atari_preprocessing": _atari_preprocessing,
    "frame_stack": _frame_stack,
}
"""Gymnasium's own wrappers, given an environment and the run's discount.

- ``normalize_observation``: (o - mean) / sqrt(var + 1e-8) over all observations so far, clipped to [-10, 10].
- ``normalize_reward``: r / sqrt(var + 1e-8) of the discounted return so far, clipped to [-10, 10].
- ``sign_reward``: -1, 0 or 1.
- ``atari_preprocessing``: up to 30 no-ops at a reset, 4 frames per step, the maximum of the last two in grey, 84x84.
  The environment itself must not skip frames: ``env.kwargs: {frameskip: 1}``. An episode is a game, not a life.
- ``frame_stack``: the last 4 observations, [4, ...].

Each copy of an environment has statistics of its own, as in CleanRL's ppo_continuous_action.py.

Sources: Engstrom et al. 2020, "Implementation Matters in Deep Policy Gradients"; Mnih et al. 2015, "Human-level control
through deep reinforcement learning"; Machado et al. 2018, "Revisiting the Arcade Learning Environment" (whole games).
"""


def make_wrapper(entry: str | Mapping[str, Any]) -> Callable[[Env, float], Env]:
    """One of ``WRAPPERS``, a ``module:Wrapper``, or a mapping of ``wrapper`` to either and of arguments to values.

    Raises: ConfigError for one that is not there.
    """
    settings = dict(entry) if isinstance(entry, Mapping) else {"wrapper": entry}
    name = settings.pop("wrapper", None)
    if not isinstance(name, str):
        raise ConfigError(f"env.wrappers={entry}: an entry with arguments reads {{wrapper: module:Name, key: value}}")
    if ":" not in name:
        if name not in WRAPPERS or settings:
            what = "takes no arguments" if name in WRAPPERS else "unknown"
            raise ConfigError(f"env.wrappers={name}: {what}; use one of {', '.join(WRAPPERS)}, or module:Wrapper")
        return WRAPPERS[name]
    kind = _load(name)
    return lambda env, gamma: kind(env, **settings)


def _load(name: str) -> Callable[..., Env]:
    where, _, attribute = name.rpartition(":")
    beside_the_user()
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        raise ConfigError(f"env.wrappers={name}: no module {error.name} here or installed") from error
    except Interrupted:
        raise
    except Exception as error:
        raise ConfigError(f"env.wrappers={name}: {where} cannot be imported; it {raised(error)}") from error
    if not hasattr(module, attribute):
        raise ConfigError(f"env.wrappers={name}: {where} has no {attribute}")
    loaded: Callable[..., Env] = getattr(module, attribute)
    return loaded


def wrapped(env: Env, wrap: Sequence[Callable[[Env, float], Env]], gamma: float) -> Env:
    """The environment in its wrappers, the innermost first. Raises: TypeError for what returns no environment."""

    def within(inner: Env, outer: Callable[[Env, float], Env]) -> Env:
        made = outer(inner, gamma)
        if not isinstance(made, gymnasium.Env):
            raise TypeError(f"a wrapper returned {type(made).__name__}, no environment")
        return made

    return functools.reduce(within, wrap, Copied(env) if wrap else env)


def layers(env: Env) -> Iterator[Env]:
    """The wrappers around an environment, the outermost first."""
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env


def raw_recorder(env: Env) -> RawReward | None:
    """The innermost, which alone sees rewards that nothing has changed; None if no wrapper changes rewards."""
    return next((layer for layer in reversed(list(layers(env))) if isinstance(layer, RawReward)), None)


def statistics(env: Env) -> dict[str, dict[str, Any]]:
    """The running statistics of an environment's wrappers: mean, variance and count, by the wrapper's name."""
    found: dict[str, dict[str, Any]] = {}
    for layer in layers(env):
        for name in ("obs_rms", "return_rms"):
            if name in vars(layer):
                rms = vars(layer)[name]
                found[name] = {"mean": np.array(rms.mean), "var": np.array(rms.var), "count": float(rms.count)}
    return found


def freeze(env: Env, kept: Mapping[str, Mapping[str, Any]]) -> None:
    """Give an environment's wrappers these statistics, and let them change no more."""
    for layer in layers(env):
        if isinstance(layer, wrappers.NormalizeObservation | wrappers.NormalizeReward):
            layer.update_running_mean = False
        for name, values in kept.items():
            if name in vars(layer):
                rms = vars(layer)[name]
                rms.mean, rms.var, rms.count = values["mean"], values["var"], values["count"]


def pooled(copies: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The statistics of several copies of an environment, as of one that saw all that they saw."""
    together = {}
    for name in copies[0]:
        counts = np.array([each[name]["count"] for each in copies])
        means, variances = (np.stack([each[name][key] for each in copies]) for key in ("mean", "var"))
        weights = (counts / counts.sum()).reshape(-1, *[1] * (means.ndim - 1))
        mean = (weights * means).sum(0)
        variance = (weights * (variances + (means - mean) ** 2)).sum(0)
        together[name] = {"mean": mean, "var": variance, "count": float(counts.sum())}
    return together
