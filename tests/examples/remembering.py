"""Environments that carry something over their resets, each in a place of its own; registered when this is imported."""

import itertools
import random
import time
from collections import deque, namedtuple
from types import SimpleNamespace

import gymnasium
import numpy as np
from gymnasium import spaces

Mood = namedtuple("Mood", "level since")
TIMES_ENDED = itertools.count()  # of all copies: no attribute of any


class Opaque:
    """State that no attribute shows."""

    __slots__ = ("count",)

    def __init__(self):
        self.count = 0


class Remembering(gymnasium.Env):
    """Rewards what is at the place named ``where``, which every episode changes."""

    def __init__(self, where="counter"):
        self.where = where
        self.observation_space, self.action_space = spaces.Box(-9, 9, (2,), np.float32), spaces.Discrete(3)
        self.begin(0)

    def begin(self, seed):
        self.counter, self.mood, self.table = 0, Mood(0, 0.0), np.zeros(4)
        self.inner = SimpleNamespace(levels=[0, {"best": 0.0}], seen=set())
        self.recent = deque([0.0], maxlen=3)
        self.numpy, self.python = np.random.default_rng(seed), random.Random(seed)
        self.legacy = np.random.RandomState(seed % 2**32)
        self.shared = self.numpy
        self.opaque = Opaque()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.begin(seed)
        self.t, self.last = 0, self.remember()
        self.started = time.perf_counter()
        return self.observe(), {}

    def remember(self):
        """What this episode's rewards are made of, carried over from the episodes before."""
        self.counter += 1
        self.mood = Mood(self.mood.level + 1, self.mood.since + 0.5)
        self.table[self.counter % 4] += 1
        self.inner.levels[1]["best"] += 0.25
        self.inner.seen.add(self.counter % 7)
        self.recent.append(self.np_random.random())
        self.opaque.count += 1
        return {
            "counter": lambda: self.counter,
            "named tuple": lambda: self.mood.level,
            "array": lambda: self.table[1],
            "object": lambda: self.inner.levels[1]["best"],
            "set": lambda: len(self.inner.seen),
            "deque": lambda: sum(self.recent),
            "generator": lambda: self.numpy.random(),
            "shared generator": lambda: self.numpy.random() + self.shared.random(),
            "legacy generator": lambda: self.legacy.rand(),
            "random": lambda: self.python.random(),
            "slots": lambda: self.opaque.count,
            "global": lambda: next(TIMES_ENDED),
        }[self.where]()

    def observe(self):
        return np.array([np.sin(self.last), self.t / 9], np.float32)

    def step(self, action):
        self.t += 1
        done = self.t > 7 + 2 * action + self.np_random.integers(3)
        return self.observe(), float(np.cos(self.last) * action), bool(done), False, {}


gymnasium.register("Remembering-v0", entry_point=f"{__name__}:Remembering", max_episode_steps=30)
