"""Vector environments: one Gymnasium environment per seed, reset within the step that ends an episode."""

from collections.abc import Sequence

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlloss.config import ConfigError, EnvConfig

EXTRAS = {"box2d": "box2d", "mujoco": "mujoco"}  # part of the entry point -> extra of this package


def make_envs(config: EnvConfig, num_envs: int) -> SyncVectorEnv:
    """``num_envs`` copies, in one process.

    SAME_STEP autoreset: the step that ends an episode returns the next episode's first observation, and the last one
    in ``info["final_obs"]``. (Gymnasium's default, NEXT_STEP, would put a transition without an action in the data.)

    Raises: ConfigError if the environment is unknown or not installed, or its observations are not a flat Box.
    """

    def make() -> gymnasium.Env[np.ndarray, object]:
        return gymnasium.make(config.id, disable_env_checker=True, **config.kwargs)

    try:
        envs = SyncVectorEnv([make] * num_envs, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ConfigError(_why_not(config, error)) from error
    space = envs.single_observation_space
    if not (isinstance(space, spaces.Box) and len(space.shape) == 1):
        envs.close()
        raise ConfigError(f"env.id={config.id}: observation space {space} is not supported; it must be a 1-D Box")
    return envs


def _why_not(config: EnvConfig, error: Exception) -> str:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, TypeError):
        return f"env.kwargs={config.kwargs}: {config.id} does not take them ({first})"
    spec = gymnasium.registry.get(config.id)
    entry = str(spec.entry_point) if spec else config.id
    for part, extra in EXTRAS.items():
        if part in entry and not isinstance(error, gymnasium.error.NameNotFound):
            return f"env.id={config.id} is not installed; pip install 'rlloss[{extra}]'"
    return f"env.id={config.id}: {first}"


def reset(envs: SyncVectorEnv, seeds: Sequence[int]) -> np.ndarray:
    """First observations, [envs, obs_size]; environment i draws from ``seeds[i]`` from now on."""
    return np.array(envs.reset(seed=list(seeds))[0])
