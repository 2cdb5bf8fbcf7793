"""How environments get back to where they were in a process that is gone: by playing the same actions again.

That works for all that answer alike for equal streams of random numbers and equal actions, whatever they are made of.
An environment is played from a reset not long ago: from its interior just before that reset, as far as it is plain
data. What it then answers, and what its interior then is, is held against what was kept.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlloss.train.faults import close_all, raised
from rlloss.train.interior import Interior, capture, changed, differences, give_back
from rlloss.train.wrappers import Env

RENEWED = 1000  # steps of an environment after which its next reset becomes the one from which it is played
REMEDY = "keep what changes in numbers, arrays and generators of the instance, and draw from self.np_random"


class ReplayDiffers(Exception):
    """Environments that are not where they were, in words: which, and what differs."""


class Origin(NamedTuple):
    """A reset: the number of steps before it, and the interior just before it; None for the first one, by its seed."""

    step: int
    interior: Interior | None


class Played(NamedTuple):
    """Consecutive steps of all environments: what they were handed, and what they answered."""

    actions: NDArray[Any]  # [T, E, ...], the policy's
    rewards: NDArray[Any]  # [T, E]
    ends: NDArray[np.bool_]  # [T, E]


class Journal:
    """The steps since each environment's origin.

    Args: each environment's interior after its first reset. What has not changed since is the environment's to know,
    and may be mended between two processes; only what has is kept.
    """

    def __init__(self, initial: Sequence[Interior]) -> None:
        self._initial = initial
        self.steps = 0  # of each environment
        self.origins = [Origin(0, None)] * len(initial)
        self._first = 0  # the step of the oldest entry
        self._entries: deque[Played] = deque()

    def is_due(self, i: int) -> bool:
        """Whether the reset that follows is to be the one from which this environment is played."""
        return self.steps - self.origins[i].step >= RENEWED

    def begin(self, i: int, env: Env) -> None:
        """The reset that follows is that one."""
        self.origins[i] = Origin(self.steps, self.changed(i, env))

    def changed(self, i: int, env: Env) -> Interior:
        return changed(capture(env), self._initial[i])

    def add(self, played: Played) -> None:
        """The steps of an iteration. Iterations before every origin are dropped."""
        self._entries.append(played)
        while len(self._entries) > 1 and self._first + len(self._entries[0].rewards) <= self._oldest:
            self._first += len(self._entries.popleft().rewards)

    @property
    def _oldest(self) -> int:
        return min(origin.step for origin in self.origins)

    def state_dict(self) -> dict[str, Any]:
        since = self._oldest - self._first
        played = [np.concatenate(column)[since:] for column in zip(*self._entries, strict=True)]
        return {
            "steps": self.steps,
            "first": self._oldest,
            "origins": [list(origin) for origin in self.origins],
            "played": [_narrow(played[0]), *played[1:]],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps, self._first = state["steps"], state["first"]
        self.origins = [Origin(*origin) for origin in state["origins"]]
        self._entries = deque([_played(state)])


def _narrow(actions: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers in as few bytes as hold them; ``_played`` widens them again."""
    if actions.dtype.kind != "i":
        return actions
    fits = (kind for kind in (np.int8, np.int16, np.int32) if np.abs(actions).max(initial=0) <= np.iinfo(kind).max)
    return actions.astype(next(fits, np.int64))


def _played(state: Mapping[str, Any]) -> Played:
    actions, rewards, ends = state["played"]
    return Played(actions.astype(np.int64) if actions.dtype.kind == "i" else actions, rewards, ends)


def replay(
    make: Callable[[], Env],
    seeds: Sequence[int],
    executable: Callable[[NDArray[Any]], Any],
    state: Mapping[str, Any],
) -> list[Env]:
    """New environments, where those were of which ``state`` is.

    Raises: ReplayDiffers if one of them answers otherwise.
    """
    envs: list[Env] = []
    try:
        for i, seed in enumerate(seeds):
            envs.append(_replay_one(make, seed, executable, state, i))
    except BaseException:
        close_all(envs)
        raise
    return envs


def _replay_one(
    make: Callable[[], Env], seed: int, executable: Callable[[NDArray[Any]], Any], state: Mapping[str, Any], i: int
) -> Env:
    """One environment: with everything plain given back before the reset or, if that fails, with its streams alone."""
    origin, played = Origin(*state["origins"][i]), _played(state)
    since = origin.step - state["first"]
    own = Played(*(column[since:, i] for column in played))
    actions = executable(own.actions) if len(own.actions) else []
    first = ""
    for streams_only in (False, True) if origin.interior is not None else (False,):
        found, env, interior = _play(make, seed, origin, actions, own, state["obs"][i], streams_only)
        others = differences(state["interiors"][i], interior) if not found else []
        if others:  # what is not even the same from one replay to the next, a clock say, is no state
            again, second, interior_again = _play(make, seed, origin, actions, own, state["obs"][i], streams_only)
            close_all([second])
            moving = [] if again else changed(interior, interior_again)
            others = [path for path in others if path not in moving]
        if not found and not others:
            return env
        close_all([env])
        first = first or found or f"its {', '.join(path.partition('.')[2] for path in others[:3])} differs"
    raise ReplayDiffers(f"environment {i}, played again for {len(own.rewards)} steps, is not where it was: {first}")


def _play(
    make: Callable[[], Env],
    seed: int,
    origin: Origin,
    actions: Sequence[Any],
    own: Played,
    obs: NDArray[Any],
    streams_only: bool,
) -> tuple[str, Env, Interior]:
    """A new environment after the steps: what it answered otherwise, if anything, itself, and its interior."""
    env = make()
    found = ""
    try:
        now, _ = env.reset(seed=seed)
        if origin.interior is not None:
            give_back(env, origin.interior, streams_only=streams_only)
            now, _ = env.reset()
        for t, action in enumerate(actions):
            now, reward, terminated, truncated, _ = env.step(action)
            if np.float64(reward).tobytes() != own.rewards[t].tobytes() or bool(terminated or truncated) != own.ends[t]:
                return f"it returned another reward or end in step {t + 1}", env, {}
            if own.ends[t]:
                now, _ = env.reset()
        if np.asarray(now, obs.dtype).tobytes() != obs.tobytes():
            found = "it returned another observation"
        return found, env, {} if found else capture(env)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"it {raised(error)}", env, {}
