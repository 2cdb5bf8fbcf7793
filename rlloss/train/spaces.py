"""Observations as vectors or images, and actions as a policy makes them: what any of Gymnasium's spaces becomes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces, wrappers
from numpy.typing import NDArray

from rlloss.errors import ConfigError
from rlloss.train.torsos import SMALLEST_IMAGE
from rlloss.train.wrappers import Env

Space = spaces.Space[Any]


def is_image(space: Space) -> bool:
    """Whether observations are uint8 images, [channels, height, width], large enough for the network."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        return False
    return min(space.shape[1:]) >= SMALLEST_IMAGE


def flattened(env: Env, env_id: str) -> Env:
    """The environment with observations that a network takes: images and vectors as they are, all else flattened.

    Gymnasium's own flattening: a Discrete observation becomes one-hot, a Dict or Tuple its parts one after another.

    Raises: ConfigError for a space without a fixed size, without a number, or of images too small for the network.
    """
    space = env.observation_space
    if space.is_np_flattenable and not spaces.flatdim(space):
        raise ConfigError(
            f"env.id={env_id}: observation space {one_line(space)} has no numbers; a policy needs one at least, "
            "which may be constant"
        )
    if is_image(space) or (isinstance(space, spaces.Box) and len(space.shape) == 1):
        return env
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3:
        raise ConfigError(
            f"env.id={env_id}: observation space {one_line(space)} is not supported; images must be a uint8 Box of "
            f"[channels, height, width] with at least {SMALLEST_IMAGE} pixels either way"
        )
    if not space.is_np_flattenable:
        raise ConfigError(
            f"env.id={env_id}: observation space {one_line(space)} has no fixed size; it must flatten to a vector"
        )
    return wrappers.FlattenObservation(env)


def flattening(env: Env) -> str:
    """What ``flattened`` did, in words; empty if nothing."""
    if not isinstance(env, wrappers.FlattenObservation):
        return ""
    return f"{one_line(env.env.observation_space)}, flattened to {math.prod(env.observation_space.shape or ())} numbers"


def one_line(space: Space) -> str:
    return " ".join(str(space).split())


def executable(space: Space) -> Callable[[NDArray[Any]], Any]:
    """From a head's actions [envs, ...] to a sequence of what each environment's ``step`` takes.

    Box actions are clipped to the space's bounds; discrete ones count from the space's start.
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return (lambda actions: (actions + start).tolist()) if start else (lambda actions: actions.tolist())
    shape, dtype = space.shape or (), space.dtype
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
        if len(shape) == 1:
            return lambda actions: np.clip(actions, low, high).astype(dtype, copy=False)
        return lambda actions: np.clip(actions.reshape(-1, *shape), low, high).astype(dtype, copy=False)
    begin = getattr(space, "start", 0)
    return lambda actions: (actions.reshape(-1, *shape) + begin).astype(dtype)
