"""Making environments: by the config's id, in its wrappers, one copy per seed."""

import difflib
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import gymnasium
import torch

from rlloss.config.schema import EnvConfig
from rlloss.errors import ConfigError, Interrupted, NotInstalled
from rlloss.lazy import beside_the_user
from rlloss.train.classic import ClassicEnvironments, has_copy
from rlloss.train.faults import raised
from rlloss.train.spaces import flattened
from rlloss.train.vector import Environments
from rlloss.train.wrappers import Env, make_wrapper, wrapped

EXTRAS = {"box2d": "box2d", "mujoco": "mujoco", "ale_py": "atari", "ALE/": "atari"}
"""Part of an environment's entry point, or of its id if that is not registered -> extra of this package."""

SIMULATORS = {"box2d": "box2d", "mujoco": "mujoco", "atari": "ale-py"}
"""Extra of this package -> the distribution whose version decides what its environments compute."""


def make_envs(
    config: EnvConfig, seeds: Sequence[int], gamma: float = 0.99, room: Callable[[Env], None] = lambda env: None
) -> Environments:
    """One copy per seed, in the wrappers that the config names. ``gamma`` is the run's discount.

    ``room`` is called with the first of them, before the others are made.

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
        except (ConfigError, Interrupted):
            raise
        except Exception as error:
            raise ConfigError(
                f"env.wrappers={config.wrappers}: {config.id} cannot be wrapped so; it {raised(error)}"
            ) from error
        return flattened(env, config.id)

    bare = not config.kwargs and not config.wrappers
    return (ClassicEnvironments if bare and has_copy(config.id, make) else Environments)(make, seeds, room)


def make_env(config: EnvConfig) -> Env:
    """The environment itself, without the config's wrappers. Raises: as ``make_envs``."""
    beside_the_user()
    try:
        with _quiet_simulators(config.id), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            env: Env = gymnasium.make(config.id, disable_env_checker=True, **config.kwargs)
    except (ConfigError, Interrupted):
        raise
    except Exception as error:
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
    if isinstance(error, TypeError) and config.kwargs:
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
    if isinstance(error, gymnasium.error.Error):
        return ConfigError(f"env.id={config.id}: {first}")
    return ConfigError(f"env.id={config.id}: cannot be made; it {raised(error)}")


def _registered(module: str) -> str:
    """What a module has registered with Gymnasium, by the places that its entries point to."""
    ids = [id for id, spec in gymnasium.registry.items() if str(spec.entry_point).startswith(module.split(".")[0])]
    return ", ".join(ids) or "nothing"
