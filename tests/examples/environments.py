"""Environments as users have them, sound and faulty; registered when this module is imported."""

import gymnasium
import numpy as np
from gymnasium import spaces

VECTOR = spaces.Box(-1, 1, (2,), np.float32)
OBSERVATIONS = {
    "vector": VECTOR,
    "double": spaces.Box(-1, 1, (2,), np.float64),
    "bytes": spaces.Box(0, 255, (2,), np.uint8),
    "matrix": spaces.Box(-1, 1, (2, 1), np.float32),
    "discrete": spaces.Discrete(9),
    "multidiscrete": spaces.MultiDiscrete([9, 2]),
    "multibinary": spaces.MultiBinary(2),
    "dict": spaces.Dict(position=VECTOR, goal=spaces.Discrete(2)),
    "tuple": spaces.Tuple((VECTOR, spaces.MultiBinary(3))),
    "empty": spaces.Box(-1, 1, (0,), np.float32),
    "empty rows": spaces.Box(-1, 1, (3, 0), np.float32),
    "empty image": spaces.Box(0, 255, (0, 84, 84), np.uint8),
    "empty dict": spaces.Dict(),
    "empty tuple": spaces.Tuple(()),
    "wide": spaces.Box(-1, 1, (300,), np.float32),
    "text": spaces.Sequence(spaces.Discrete(2)),
}
ACTIONS = {
    "discrete": spaces.Discrete(2),
    "from one": spaces.Discrete(2, start=1),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "table": spaces.MultiDiscrete([[2, 3], [2, 2]]),
    "multibinary": spaces.MultiBinary(2),
    "box": spaces.Box(-1, 1, (1,), np.float32),
    "matrix": spaces.Box(-1, 1, (2, 1), np.float32),
    "no box": spaces.Box(-1, 1, (0,), np.float32),
    "no choices": spaces.MultiDiscrete([]),
    "integers": spaces.Box(0, 3, (1,), np.int64),
}


class Line(gymnasium.Env):
    """Walk on a line, up where the first part of the action is large; 1 at the end, which is 8 steps away."""

    made = 0  # by all copies

    def __init__(self, obs="vector", act="discrete", fault="none"):
        self.kind, self.fault = obs, fault
        self.observation_space, self.action_space = OBSERVATIONS[obs], ACTIONS[act]
        self.buffer = np.zeros(2, np.float32)

    def observe(self):
        x = np.array([self.x / 8, self.t / 100], np.float32)
        if self.fault == "global generator":
            x[1] = np.random.rand()  # noqa: NPY002, the fault
        if self.fault == "class state":
            Line.made += 1
            x[1] = np.sin(Line.made) if self.t else 0
        if self.fault == "nan" and self.t == 3:
            x[0] = np.nan
        if self.fault == "shape":
            x = x.reshape(2, 1)
        if self.fault == "one buffer":
            self.buffer[:] = x
            x = self.buffer
        return {
            "vector": x.astype(np.float64) if self.fault == "dtype" else x,
            "double": x.astype(np.float64),
            "bytes": (255 * np.abs(x)).astype(np.uint8),
            "matrix": x.reshape(2, 1),
            "discrete": self.x,
            "multidiscrete": np.array([self.x, 0]),
            "multibinary": np.array([self.x % 2, 0], np.int8),
            "dict": {"position": x.astype(np.float64) if self.fault == "dtype" else x, "goal": 0},
            "tuple": (x, np.zeros(3, np.int8)),
            "empty": x[:0],
            "empty rows": np.zeros((3, 0), np.float32),
            "empty image": np.zeros((0, 84, 84), np.uint8),
            "empty dict": {},
            "empty tuple": (),
            "wide": np.tile(x, 150),
            "text": (0,),
        }[self.kind]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = int(self.np_random.integers(0, 3)), 0
        return self.observe() if self.fault == "old reset" else (self.observe(), {})

    def step(self, action):
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        if self.fault == "raises":
            raise RuntimeError("no licence")
        self.t += 1
        up = float([*np.ravel(action), 0][0]) > (1 if self.action_space == ACTIONS["from one"] else 0)
        self.x = int(np.clip(self.x + (1 if up else -1), 0, 8))
        reward = float(self.x == 8)
        if self.fault == "reward nan" and self.t == 5:
            reward = np.nan
        if self.fault == "reward text":
            reward = str(reward)
        if self.fault == "reward array":
            reward = np.array([reward])
        if self.fault == "old step":
            return self.observe(), reward, self.x == 8, {}
        ends = {"numpy ends": np.bool_, "whole ends": int, "text ends": str, "no ends": lambda end: end or None}
        end = ends.get(self.fault, bool)
        return self.observe(), reward, end(self.x == 8), end(False), {}

    def close(self):
        if self.fault == "close":
            raise RuntimeError("close boom")


class Unseeded(Line):
    """Its reset takes no seed."""

    def reset(self):
        return super().reset()


class Clock(gymnasium.Env):
    """Writes every observation, the time, into one array, and hands that out."""

    def __init__(self, copies=False):
        self.copies, self.buffer = copies, np.zeros(1, np.float32)
        self.observation_space, self.action_space = spaces.Box(0, 1, (1,), np.float32), spaces.Discrete(2)

    def observe(self):
        self.buffer[0] = self.t / 5
        return self.buffer.copy() if self.copies else self.buffer

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        return self.observe(), float(self.t), False, False, {}


class Noisy(gymnasium.ObservationWrapper):
    """Adds numbers that no seed sets."""

    def observation(self, observation):
        return observation + np.random.default_rng().normal(0, 0.1, observation.shape).astype(observation.dtype)


class Scale(gymnasium.ObservationWrapper):
    """A wrapper of a user's own, with an argument."""

    def __init__(self, env, factor=1.0):
        super().__init__(env)
        self.factor = factor

    def observation(self, observation):
        return observation * np.float32(self.factor)


gymnasium.register("Line-v0", entry_point=f"{__name__}:Line", max_episode_steps=30)
gymnasium.register("Clock-v0", entry_point=f"{__name__}:Clock", max_episode_steps=5)
gymnasium.register("Unseeded-v0", entry_point=f"{__name__}:Unseeded", max_episode_steps=30)
