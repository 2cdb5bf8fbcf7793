"""Before a run: does an environment that is not Gymnasium's own keep to the contract, and answer twice alike?"""

import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from rlloss.config.schema import EnvConfig
from rlloss.errors import ConfigError, Interrupted
from rlloss.train.envs import make_env
from rlloss.train.faults import close_all, raised, staying
from rlloss.train.wrappers import Copied, Env

STEPS = 64  # of each probe, over as many episodes as they take
SEED = 20_240_229
KNOWN = ("gymnasium.envs.", "ale_py.")  # entry points of environments that answer twice alike: tested here
COMPILERS = ("numba", "jax", "tensorflow", "taichi", "warp")  # at run time
LEAVE_OUT = "env.check=false leaves this check out"
NUMBERS, WHOLE = "biuf", "biu"  # kinds of NumPy's dtypes
FIELDS = ("observations", "rewards", "ends of episodes")

_untried: set[str] = set()  # of which this process has said so
_checked: set[tuple[str, str]] = set()  # in this process
log = logging.getLogger("rlloss")
Answer = tuple[bytes, bytes, bytes]
"""What one call returned: observation, reward and ends, as bytes, so that nan equals nan."""


def check_environment(config: EnvConfig) -> None:
    """Play an unknown environment for some steps: alone, again, and beside a copy of itself.

    Logs what spoils reproducibility, since training goes on all the same. Known environments, and ``env.check=false``,
    are left out; a config is checked once a process.

    Raises: ConfigError for an environment that breaks Gymnasium's contract.
    """
    what = config.id, repr(config.kwargs)
    if not config.check or what in _checked:
        return
    found = notes(config)
    _checked.add(what)
    for note in found:
        log.warning("note: env.id=%s: %s; %s", config.id, note, LEAVE_OUT)


def notes(config: EnvConfig) -> list[str]:
    """What spoils an environment's reproducibility, each with a remedy. Raises: ConfigError for a broken contract."""
    first = make_env(config)
    if _is_known(first):
        close_all([first])
        return []
    copies = [first, *(make_env(config) for _ in range(3))]
    bare = [env.unwrapped for env in copies]
    try:
        actions = _actions(bare[0])
        alone, again = _play(bare[:1], actions)[0], _play(bare[1:2], actions)[0]
        side_by_side = _play(bare[2:], actions)
        found = _compare(alone, again, side_by_side)
        _gymnasiums_own(bare[0], skip=bool(found))
        return found
    except _Fault as fault:
        raise ConfigError(f"env.id={config.id}: {fault}; {LEAVE_OUT}") from fault
    finally:
        close_all(copies)


class AsTrained(Copied):
    """An environment as the trainer takes it: observations are copied, and ends only asked whether they are true."""

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, bool(terminated), bool(truncated), info


class _Fault(Exception):
    """What an environment does that breaks the contract, with the remedy."""


def refuse_unportable(env_id: str, env: Env) -> None:
    """For runs that are to have the same bits everywhere. Of an unknown environment, logs that nobody has tried it.

    Raises: ConfigError for one that has loaded a compiler, which makes code for the CPU that it finds.
    """
    if _is_known(env):
        return
    if compilers := [name for name in COMPILERS if name in sys.modules]:
        raise ConfigError(
            f"env.id={env_id} numerics=portable: {compilers[0]} is loaded, which compiles for the CPU that it finds, "
            "with other bits on another; use numerics=native"
        )
    if env_id not in _untried:
        _untried.add(env_id)
        log.warning(
            "note: env.id=%s: whether it computes the same on every CPU is its own affair; `rlloss certify` this run, "
            "and a replay elsewhere tells",
            env_id,
        )


def _is_known(env: Env) -> bool:
    return env.spec is not None and str(env.spec.entry_point).startswith(KNOWN)


def _actions(env: Env) -> list[Any]:
    space = env.action_space
    space.seed(SEED)
    return [space.sample() for _ in range(STEPS)]


def _play(envs: Sequence[Env], actions: Sequence[Any]) -> list[list[Answer]]:
    """The same seeds and actions in every one of these copies, in turns."""
    answers: list[list[Answer]] = [[] for _ in envs]
    episodes = [0] * len(envs)
    for env, found in zip(envs, answers, strict=True):
        found.append(_reset(env, SEED))
    for action in actions:
        for i, (env, found) in enumerate(zip(envs, answers, strict=True)):
            answer, ended = _step(env, action)
            found.append(answer)
            if ended:
                episodes[i] += 1
                found.append(_reset(env, SEED + episodes[i]))
    return answers


def _reset(env: Env, seed: int) -> Answer:
    result = _called("reset", lambda: env.reset(seed=seed))
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise _Fault(f"reset returned {_kind(result)}; it must return (observation, info), info being a dict")
    _observed("reset", result[0], env.observation_space)
    return _bytes(result[0]), b"", b""


def _step(env: Env, action: Any) -> tuple[Answer, bool]:
    result = _called("step", lambda: env.step(action))
    if not (isinstance(result, tuple) and len(result) == 5):
        raise _Fault(
            f"step returned {_kind(result)}; it must return (observation, reward, terminated, truncated, info): "
            "terminated where the task ended, truncated where a limit cut it"
        )
    obs, reward, terminated, truncated, _ = result
    _observed("step", obs, env.observation_space)
    if np.ndim(reward) > 0:
        raise _Fault(f"step returned a reward of shape {np.shape(reward)}; it must be a number: float(reward)")
    if np.asarray(reward).dtype.kind not in NUMBERS:
        raise _Fault(f"step returned the reward {reward!r}, {_type(reward)}; it must be a number: float(reward)")
    for name, end in (("terminated", terminated), ("truncated", truncated)):
        if np.ndim(end) > 0 or np.asarray(end).dtype.kind not in WHOLE or end not in (0, 1):
            raise _Fault(f"step returned {name}={end!r}, {_type(end)}; it must be a bool: bool({name})")
    return (_bytes(obs), _bytes(reward), _bytes([bool(terminated), bool(truncated)])), bool(terminated or truncated)


def _called(method: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Interrupted:  # by a signal, which is no fault of the environment
        raise
    except TypeError as error:
        if method == "reset" and "seed" in str(error):
            raise _Fault("reset takes no seed; it reads def reset(self, *, seed=None, options=None)") from error
        raise _Fault(f"{method} {raised(error)}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _Fault(f"{method} {raised(error)}") from error


def _observed(method: str, obs: Any, space: spaces.Space[Any]) -> None:
    """Raises: _Fault for an observation whose shape or dtype is not that of the space. Its bounds are not asked."""
    if isinstance(space, spaces.Dict) and isinstance(obs, Mapping):
        for key in space.keys() & obs.keys():
            _observed(method, obs[key], space[key])
    if isinstance(space, spaces.Tuple) and isinstance(obs, tuple):
        for part, inner in zip(obs, space, strict=False):
            _observed(method, part, inner)
    shape = getattr(space, "shape", None)
    if shape is not None and np.shape(obs) != shape:
        raise _Fault(
            f"{method} returned an observation of shape {np.shape(obs)}, observation_space has {shape}; make them one"
        )
    if isinstance(space, spaces.Box) and isinstance(obs, np.ndarray) and not np.can_cast(obs.dtype, space.dtype):
        raise _Fault(
            f"{method} returned an observation of {obs.dtype}, observation_space is of {space.dtype}; return "
            f"obs.astype(np.{space.dtype})"
        )


def _type(value: object) -> str:
    return f"of type {type(value).__name__}"


def _kind(result: object) -> str:
    return f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__


def _bytes(value: Any) -> bytes:
    if isinstance(value, Mapping):
        return b"".join(str(key).encode() + _bytes(part) for key, part in value.items())
    if isinstance(value, tuple):
        return b"".join(map(_bytes, value))
    return np.asarray(value, dtype=float if value is None else None).tobytes()


def _compare(alone: list[Answer], again: list[Answer], side_by_side: list[list[Answer]]) -> list[str]:
    """What is not the same the second time, or beside a copy: the first place of either."""
    if other := _first(alone, again):
        remedy = "draw from self.np_random, which reset(seed=...) sets, and not from a global generator or the clock"
        return [f"other {other} for the same seed and actions; {remedy}"]
    for copy in side_by_side:
        if other := _first(alone, copy):
            remedy = "keep what changes in the instance, not in its class or module"
            return [f"other {other} while a copy of it is played beside it; {remedy}"]
    return []


def _first(one: list[Answer], other: list[Answer]) -> str:
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            field = next(name for name, x, y in zip(FIELDS, a, b, strict=True) if x != y)
            return f"{field} (answer {i + 1})"
    return "" if len(one) == len(other) else "ends of episodes"


def _gymnasiums_own(env: Env, *, skip: bool) -> None:
    """Gymnasium's checker; ``skip``: what it says of determinism has been said. Its warnings are advice on style.

    It keeps observations, and objects to an array that is used again, and to an end that is True and no Python bool.
    """
    try:
        with warnings.catch_warnings(), staying(_Fault):
            warnings.simplefilter("ignore")
            check_env(
                AsTrained(env), skip_render_check=True, skip_close_check=True
            )  # which `close_all` says in fewer words
    except Interrupted:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if not (skip and "deterministic" in text.lower()):
            raise _Fault(f"Gymnasium's checker: {text}") from error
