"""Vector environments: one Gymnasium environment per seed, reset within the step that ends an episode."""

import difflib
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from rlloss.config.schema import EnvConfig
from rlloss.errors import ConfigError, EnvironmentFailed, NotInstalled
from rlloss.lazy import beside_the_user
from rlloss.train.faults import Hanging, raised
from rlloss.train.interior import capture
from rlloss.train.replay import Journal, replay
from rlloss.train.spaces import executable, flattened, flattening, is_image
from rlloss.train.wrappers import Env, make_wrapper, raw_recorder, statistics, wrapped

EXTRAS = {"box2d": "box2d", "mujoco": "mujoco", "ale_py": "atari", "ALE/": "atari"}
"""Part of an environment's entry point, or of its id if that is not registered -> extra of this package."""

SIMULATORS = {"box2d": "box2d", "mujoco": "mujoco", "atari": "ale-py"}
"""Extra of this package -> the distribution whose version decides what its environments compute."""

Array = NDArray[np.floating]


class Environments:
    """Copies of one environment, stepped one after the other in this process.

    Autoreset within the step: the step that ends an episode yields the next episode's first observation; the last
    observation of an episode cut by its time limit is handed over separately, for bootstrapping. Gymnasium's
    SyncVectorEnv can do the same (SAME_STEP) but takes a third longer per step, which is half of a training run's time
    at this size; here transitions are written straight into the rollout's arrays, and the state is a plain list.

    Each environment draws from its own seed, so the length of one's episodes never shifts another's resets.

    ``rescaled``: whether wrappers change the rewards; ``raw_rewards`` then has those of the environment itself.
    ``journal``: what they need to be where they are in another process (``replay``).

    Args: what makes one, in its wrappers; the seeds, one for each.
    """

    def __init__(self, make: Callable[[], Env], seeds: Sequence[int]) -> None:
        self.make, self.seeds = make, list(seeds)
        self.envs = [make() for _ in seeds]
        self.recorders = [recorder for env in self.envs if (recorder := raw_recorder(env)) is not None]
        self.rescaled = bool(self.recorders)
        self.action_space = self.envs[0].action_space
        self.executable = executable(self.action_space)
        self.images = is_image(self.envs[0].observation_space)
        self.flattened = flattening(self.envs[0])
        self.name = self.envs[0].spec.id if self.envs[0].spec else type(self.envs[0].unwrapped).__name__
        self.obs = np.stack([np.array(env.reset(seed=seed)[0]) for env, seed in zip(self.envs, seeds, strict=True)])
        self.journal = Journal([capture(env) for env in self.envs])
        self.stepping = False  # whether the environments, and not the policy's update, are at work

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

        Actions are the policy's; ``spaces.executable`` says what an environment gets. Returns the last observations of
        the episodes that a time limit cut, by environment.

        Raises: EnvironmentFailed for one that raises, or that the watchdog finds hanging.
        """
        cut: dict[int, Array] = {}
        i, journal = 0, self.journal
        journal.steps += 1
        executed = self.executable(actions)
        try:
            for i, (env, action) in enumerate(zip(self.envs, executed, strict=True)):
                after, rewards[i], ended, cut_off, _ = env.step(action)
                terminated[i], truncated[i] = ended, cut_off
                if ended or cut_off:
                    if not ended:
                        cut[i] = np.array(after)  # a copy: many environments write into one array for all their life
                    if journal.is_due(i):
                        journal.begin(i, env)
                    after, _ = env.reset()
                obs[i] = after
        except (Exception, Hanging) as error:
            raise EnvironmentFailed(f"environment {i} ({self.name}) {raised(error)}") from error
        return cut

    def statistics(self) -> list[dict[str, dict[str, Any]]]:
        """What the wrappers of each copy have gathered: means, variances and counts."""
        return [statistics(env) for env in self.envs]

    def raw_rewards(self) -> list[SupportsFloat]:
        """[envs], the last step's rewards before any wrapper changed them; empty unless ``rescaled``."""
        return [recorder.reward for recorder in self.recorders]

    def state_dict(self) -> dict[str, Any]:
        """Where they are, for ``load_state_dict`` of others made alike."""
        interiors = [self.journal.changed(i, env) for i, env in enumerate(self.envs)]
        return {"obs": self.obs, **self.journal.state_dict(), "interiors": interiors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Play the environments again to where they were. Raises: ReplayDiffers, and these are as they were before."""
        envs = replay(self.make, self.seeds, self.executable, state)
        self.close()
        self.envs, self.obs = envs, state["obs"]
        self.recorders = [recorder for env in envs if (recorder := raw_recorder(env)) is not None]
        self.journal.load_state_dict(state)

    def close(self) -> None:
        for env in self.envs:
            env.close()


def make_envs(config: EnvConfig, seeds: Sequence[int], gamma: float = 0.99) -> Environments:
    """One copy per seed, in the wrappers that the config names. ``gamma`` is the run's discount.

    Observations that are neither vectors nor images are flattened (``spaces.flattened``).

    Raises: NotInstalled if packages are missing; ConfigError if the environment or a wrapper is unknown, if they do not
    go together, or if the observations have no fixed size.
    """
    wrap = [make_wrapper(entry) for entry in config.wrappers]

    def make() -> Env:
        bare = make_env(config)
        try:
            env = wrapped(bare, wrap, gamma)
        except gymnasium.error.DependencyNotInstalled as error:
            raise _why_not(config, error) from error
        except (gymnasium.error.Error, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"env.wrappers={config.wrappers}: {config.id} cannot be wrapped so ({error})") from error
        return flattened(env, config.id)

    return Environments(make, seeds)


def make_env(config: EnvConfig) -> Env:
    """The environment itself, without the config's wrappers. Raises: as ``make_envs``."""
    beside_the_user()
    try:
        with _quiet_simulators(config.id), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            env: Env = gymnasium.make(config.id, disable_env_checker=True, **config.kwargs)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise _why_not(config, error) from error  # which says more than any warning on the way
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return env


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
    if not torch.cpu.get_capabilities().get("avx", True):
        raise ConfigError(f"env.id={env_id}: MuJoCo needs a CPU with AVX, which this one has not; use another env")
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
    module, _, name = config.id.rpartition(":")
    if isinstance(error, TypeError):
        return ConfigError(f"env.kwargs={config.kwargs}: {config.id} does not take them ({first})")
    extra = _extra(config.id)
    if extra and isinstance(error, ImportError | gymnasium.error.DependencyNotInstalled):
        return NotInstalled(f"env.id={config.id} is not installed; pip install 'rlloss[{extra}]'")
    if isinstance(error, ModuleNotFoundError) and module and f"'{module}'" in first:
        return ConfigError(
            f"env.id={config.id}: no module {module} here or installed; call rlloss in the folder of {module}.py, "
            "or put that folder on PYTHONPATH"
        )
    if isinstance(error, gymnasium.error.NameNotFound):
        close = difflib.get_close_matches(name, gymnasium.registry, 2, 0.7)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        own = f"{module} registers {_registered(module)}" if module else f"one of your own: env.id=module:{name}"
        return ConfigError(f"env.id={config.id}: no such environment; {hint}{own}")
    return ConfigError(f"env.id={config.id}: {first}")


def _registered(module: str) -> str:
    """What a module has registered with Gymnasium, by the places that its entries point to."""
    ids = [id for id, spec in gymnasium.registry.items() if str(spec.entry_point).startswith(module.split(".")[0])]
    return ", ".join(ids) or "nothing"
