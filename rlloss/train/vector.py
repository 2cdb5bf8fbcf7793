"""Vector environments: one Gymnasium environment per seed, reset within the step that ends an episode."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from rlloss.errors import PASSED_ON, ConfigError, EnvironmentFailed
from rlloss.train.faults import close_all, raised
from rlloss.train.interior import Interior, capture
from rlloss.train.replay import Journal, replay
from rlloss.train.spaces import executable, flattening, is_image
from rlloss.train.wrappers import Env, raw_recorder, statistics

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

    Args: what makes one, in its wrappers; the seeds, one for each; what is called with the first of them.
    """

    def __init__(
        self, make: Callable[[], Env], seeds: Sequence[int], room: Callable[[Env], None] = lambda env: None
    ) -> None:
        self.make, self.seeds = make, list(seeds)
        self.envs: list[Env] = []
        try:
            self.envs.append(make())
            room(self.envs[0])
            self.envs += [make() for _ in seeds[1:]]
        except BaseException:
            self.close()
            raise
        self.recorders = [recorder for env in self.envs if (recorder := raw_recorder(env)) is not None]
        self.rescaled = bool(self.recorders)
        self.action_space = self.envs[0].action_space
        self.executable = executable(self.action_space)
        self.images = is_image(self.envs[0].observation_space)
        self.flattened = flattening(self.envs[0])
        self.name = self.envs[0].spec.id if self.envs[0].spec else type(self.envs[0].unwrapped).__name__
        self.obs = np.stack([self._first(env, seed) for env, seed in zip(self.envs, seeds, strict=True)])
        self.journal = Journal([capture(env) for env in self.envs])
        self.stepping = False  # whether the environments, and not the policy's update, are at work

    def _first(self, env: Env, seed: int) -> Array:
        """The first observation. Raises: ConfigError for an environment whose reset raises."""
        try:
            return np.array(env.reset(seed=seed)[0])
        except PASSED_ON:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise ConfigError(f"env.id={self.name}: reset {raised(error)}") from error

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
        self.journal.steps += 1
        self._at = 0
        try:
            return self._step(actions, obs, rewards, terminated, truncated)
        except PASSED_ON:
            raise
        except BaseException as error:  # sys.exit() is none that ends this process
            raise EnvironmentFailed(f"environment {self._at} ({self.name}) {raised(error)}") from error

    def _step(
        self,
        actions: NDArray[Any],
        obs: Array,
        rewards: Array,
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> dict[int, Array]:
        """``_at``: the environment that is at work."""
        cut: dict[int, Array] = {}
        journal = self.journal
        for i, (env, action) in enumerate(zip(self.envs, self.executable(actions), strict=True)):
            self._at = i
            after, rewards[i], ended, cut_off, _ = env.step(action)
            terminated[i], truncated[i] = ended, cut_off
            if ended or cut_off:
                if not ended:
                    cut[i] = np.array(after)  # a copy: many environments write into one array for all their life
                    self._fits(cut[i])
                if journal.is_due(i):
                    journal.begin(i, env)
                after, _ = env.reset()
            obs[i] = self._fits(np.asarray(after))
        return cut

    def _fits(self, obs: Array) -> Array:
        """An observation of the right shape, where NumPy would stretch another. Raises: ValueError."""
        if obs.shape != self.obs.shape[1:]:
            raise ValueError(f"an observation of the shape {obs.shape} in the place of one of {self.obs.shape[1:]}")
        return obs

    def statistics(self) -> list[dict[str, dict[str, Any]]]:
        """What the wrappers of each copy have gathered: means, variances and counts."""
        return [statistics(env) for env in self.envs]

    def raw_rewards(self) -> list[SupportsFloat]:
        """[envs], the last step's rewards before any wrapper changed them; empty unless ``rescaled``."""
        return [recorder.reward for recorder in self.recorders]

    def state_dict(self) -> dict[str, Any]:
        """Where they are, for ``load_state_dict`` of others made alike."""
        return {"obs": self.obs, **self.journal.state_dict(), "interiors": self.interiors()}

    def interiors(self) -> list[Interior]:
        """Of each environment, as far as it has changed since its first reset."""
        return [self.journal.changed(i, env) for i, env in enumerate(self.envs)]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Play the environments again to where they were. Raises: ReplayDiffers, and these are as they were before."""
        envs = replay(self.make, self.seeds, self.executable, state)
        self.close()
        self.envs, self.obs = envs, state["obs"]
        self.recorders = [recorder for env in envs if (recorder := raw_recorder(env)) is not None]
        self.journal.load_state_dict(state)

    def close(self) -> None:
        close_all(self.envs)
