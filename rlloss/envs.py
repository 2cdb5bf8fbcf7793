"""Vector environments: one Gymnasium environment per seed, reset within the step that ends an episode."""

import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers
from numpy.typing import NDArray

from rlloss.config import ConfigError, lookup
from rlloss.schema import EnvConfig
from rlloss.torsos import SMALLEST_IMAGE

EXTRAS = {"box2d": "box2d", "mujoco": "mujoco", "ale_py": "atari", "ALE/": "atari"}
"""Part of an environment's entry point, or of its id if that is not registered -> extra of this package."""

SIMULATORS = {"box2d": "box2d", "mujoco": "mujoco", "atari": "ale-py"}
"""Extra of this package -> the distribution whose version decides what its environments compute."""

Array = NDArray[np.floating]
Env = gymnasium.Env[Any, Any]


class NotInstalled(ConfigError):
    """An environment whose packages are missing here. The message names the extra that brings them."""


class RawReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Remembers the last step's reward as it was before the wrappers around this one changed it."""

    reward: SupportsFloat = 0.0

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self.reward = result[1]
        return result


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
"""What ``env.wrappers`` may name: Gymnasium's own wrappers, given an environment and the run's discount.

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


class Environments:
    """Copies of one environment, stepped one after the other in this process.

    Autoreset within the step: the step that ends an episode yields the next episode's first observation; the last
    observation of an episode cut by its time limit is handed over separately, for bootstrapping. Gymnasium's
    SyncVectorEnv can do the same (SAME_STEP) but takes a third longer per step, which is half of a training run's time
    at this size; here transitions are written straight into the rollout's arrays, and the state is a plain list.

    Each environment draws from its own seed, so the length of one's episodes never shifts another's resets.

    ``rescaled``: whether wrappers change the rewards; ``raw_rewards`` then has those of the environment itself.
    """

    def __init__(self, envs: Sequence[Env], seeds: Sequence[int]) -> None:
        self.envs = list(envs)
        self.recorders = [recorder for env in envs for recorder in _raw_recorders(env)[-1:]]
        self.rescaled = bool(self.recorders)
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

    def raw_rewards(self) -> list[SupportsFloat]:
        """[envs], the last step's rewards before any wrapper changed them; empty unless ``rescaled``."""
        return [recorder.reward for recorder in self.recorders]

    def close(self) -> None:
        for env in self.envs:
            env.close()


def make_envs(config: EnvConfig, seeds: Sequence[int], gamma: float = 0.99) -> Environments:
    """One copy per seed, in the wrappers that the config names. ``gamma`` is the run's discount.

    Raises: NotInstalled if packages are missing; ConfigError if the environment or a wrapper is unknown, if they do not
    go together, or if the observations are neither a 1-D Box nor images, uint8 [channels, height, width].
    """
    wrap = [lookup(WRAPPERS, "env.wrappers", name) for name in config.wrappers]
    try:
        with _quiet_simulators(config.id):
            envs: list[Env] = [gymnasium.make(config.id, disable_env_checker=True, **config.kwargs) for _ in seeds]
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise _why_not(config, error) from error
    try:
        envs = [functools.reduce(lambda inner, outer: outer(inner, gamma), wrap, env) for env in envs]
    except gymnasium.error.DependencyNotInstalled as error:
        raise _why_not(config, error) from error
    except (gymnasium.error.Error, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"env.wrappers={config.wrappers}: {config.id} cannot be wrapped so ({error})") from error
    space = envs[0].observation_space
    if not (isinstance(space, spaces.Box) and (len(space.shape) == 1 or is_image(space))):
        raise ConfigError(
            f"env.id={config.id}: observation space {' '.join(str(space).split())} is not supported; it must be a 1-D "
            f"Box, or a uint8 Box of [channels, height, width] with at least {SMALLEST_IMAGE} pixels either way"
        )
    return Environments(envs, seeds)


def is_image(space: spaces.Box) -> bool:
    """Whether observations are uint8 images, [channels, height, width], large enough for the network."""
    return space.dtype == np.uint8 and len(space.shape) == 3 and min(space.shape[1:]) >= SMALLEST_IMAGE


def missing_extra(configs: Iterable[EnvConfig]) -> str:
    """The first of these environments that is not installed here, with the remedy; empty if all are.

    Raises: ConfigError if one cannot be made for another reason.
    """
    for config in {repr(config): config for config in configs}.values():
        try:
            make_envs(config, [0]).close()
        except NotInstalled as error:
            return str(error)
    return ""


def simulator_version(env_id: str) -> dict[str, str]:
    """The name and version of the simulator behind an environment; empty for those of Gymnasium itself."""
    simulator = SIMULATORS.get(_extra(env_id), "")
    try:
        return {simulator: importlib.metadata.version(simulator)} if simulator else {}
    except importlib.metadata.PackageNotFoundError:  # somebody else's build of it, under another name
        return {}


def _extra(env_id: str) -> str:
    """The extra of this package that brings an environment; empty if none does."""
    spec = gymnasium.registry.get(env_id)
    origin = str(spec.entry_point) if spec else env_id
    return next((extra for part, extra in EXTRAS.items() if part in origin), "")


def _raw_recorders(env: Env) -> list[RawReward]:
    """From the outermost to the innermost, which alone sees rewards that nothing has changed."""
    layers: list[RawReward] = []
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, RawReward):
            layers.append(env)
        env = env.env
    return layers


@contextmanager
def _quiet_simulators(env_id: str) -> Iterator[None]:
    """Load what ``env_id`` needs, without its banners, and without the log file that MuJoCo leaves where one stands.

    Gymnasium's MuJoCo models use an attribute that MuJoCo 4 calls deprecated, once per copy; later warnings are shown.
    """
    if env_id.startswith("ALE/"):
        atari = importlib.import_module("ale_py")
        atari.ALEInterface.setLoggerMode(atari.LoggerMode.Error)
        gymnasium.register_envs(atari)
    if not _is_mujoco(env_id):
        yield
        return
    log = importlib.import_module("mujoco").MjLogConfig.get()
    log.logto_file = log.logto_console = False
    log.set()
    try:
        yield
    finally:
        log.logto_console = True
        log.set()


def _is_mujoco(env_id: str) -> bool:
    spec = gymnasium.registry.get(env_id)
    return spec is not None and ".mujoco" in str(spec.entry_point)


def _why_not(config: EnvConfig, error: Exception) -> ConfigError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, TypeError):
        return ConfigError(f"env.kwargs={config.kwargs}: {config.id} does not take them ({first})")
    extra = _extra(config.id)
    if extra and isinstance(error, ImportError | gymnasium.error.DependencyNotInstalled):
        return NotInstalled(f"env.id={config.id} is not installed; pip install 'rlloss[{extra}]'")
    return ConfigError(f"env.id={config.id}: {first}")
