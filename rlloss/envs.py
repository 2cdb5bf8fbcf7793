"""Vector environments: one Gymnasium environment per seed, reset within the step that ends an episode."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlloss.config import ConfigError
from rlloss.schema import EnvConfig

EXTRAS = {"box2d": "box2d", "mujoco": "mujoco"}  # part of the entry point -> extra of this package

Array = NDArray[np.floating]


class Environments:
    """Copies of one environment, stepped one after the other in this process.

    Autoreset within the step: the step that ends an episode yields the next episode's first observation; the last
    observation of an episode cut by its time limit is handed over separately, for bootstrapping. Gymnasium's
    SyncVectorEnv can do the same (SAME_STEP) but takes a third longer per step, which is half of a training run's time
    at this size; here transitions are written straight into the rollout's arrays, and the state is a plain list.

    Each environment draws from its own seed, so the length of one's episodes never shifts another's resets.
    """

    def __init__(self, envs: Sequence[gymnasium.Env[Any, Any]], seeds: Sequence[int]) -> None:
        self.envs = list(envs)
        self.action_space = self.envs[0].action_space
        self.clip = isinstance(self.action_space, spaces.Box)
        self.obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds, strict=True)])

    def __len__(self) -> int:
        return len(self.envs)

    def step(
        self,
        actions: NDArray[Any],
        obs: Array,
        rewards: Array,
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> dict[int, Array]:
        """Step every environment and write [envs, ...] results into the four arrays.

        Box actions are clipped to the environment's bounds. Returns the last observations of the episodes that a time
        limit cut, by environment.
        """
        cut: dict[int, Array] = {}
        executed = np.clip(actions, self.action_space.low, self.action_space.high) if self.clip else actions.tolist()  # type: ignore[attr-defined]
        for i, (env, action) in enumerate(zip(self.envs, executed, strict=True)):
            after, rewards[i], ended, cut_off, _ = env.step(action)
            terminated[i], truncated[i] = ended, cut_off
            if ended or cut_off:
                if not ended:
                    cut[i] = after
                after, _ = env.reset()
            obs[i] = after
        return cut

    def close(self) -> None:
        for env in self.envs:
            env.close()


def make_envs(config: EnvConfig, seeds: Sequence[int]) -> Environments:
    """One copy per seed.

    Raises: ConfigError if the environment is unknown or not installed, or its observations are not a 1-D Box.
    """
    try:
        envs = [gymnasium.make(config.id, disable_env_checker=True, **config.kwargs) for _ in seeds]
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ConfigError(_why_not(config, error)) from error
    space = envs[0].observation_space
    if not (isinstance(space, spaces.Box) and len(space.shape) == 1):
        raise ConfigError(f"env.id={config.id}: observation space {space} is not supported; it must be a 1-D Box")
    return Environments(envs, seeds)


def _why_not(config: EnvConfig, error: Exception) -> str:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, TypeError):
        return f"env.kwargs={config.kwargs}: {config.id} does not take them ({first})"
    spec = gymnasium.registry.get(config.id)
    for part, extra in EXTRAS.items():
        if spec and part in str(spec.entry_point):
            return f"env.id={config.id} is not installed; pip install 'rlloss[{extra}]'"
    return f"env.id={config.id}: {first}"
