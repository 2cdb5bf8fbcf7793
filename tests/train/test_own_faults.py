"""Environments and wrappers of a user's own that cannot be imported or made: one line that says where, exit code 2."""

import re
import subprocess
import sys

import pytest

ENV = """
import gymnasium, numpy as np
class Env(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    def __init__(self):
        {body}
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed); {reset}
        return np.zeros(2, np.float32), {{}}
    def step(self, action):
        return np.zeros(2, np.float32), 1.0, True, False, {{}}
gymnasium.register("Mine-v0", Env)
class Wrapper(gymnasium.Wrapper):
    def __init__(self, env):
        super().__init__(env)
        {wrapper}
{last}
"""
FAULTS = {
    "of an environment": (
        {"body": "open('levels.txt')"},
        "env.id=mine:Mine-v0: cannot be made; it raised FileNotFoundError: .*levels.txt.* \\(mine.py, line 7\\)"),
    "a type": ({"body": "len(3)"}, "cannot be made; it raised TypeError: object of type .* \\(mine.py, line 7\\)$"),
    "at import": ({"last": "1 / 0"}, "env.id=mine:Mine-v0: cannot be made; it raised ZeroDivisionError: .*line 18\\)"),
    "a syntax": ({"last": "def"}, "env.id=mine:Mine-v0: cannot be made; it raised SyntaxError: .*mine.py, line 18\\)$"),
    "of a first reset": (
        {"reset": "{}['map']"}, r"env.id=Mine-v0: reset raised KeyError: 'map' \(mine.py, line 9\)$"),
    "of a wrapper": (
        {"wrapper": "raise KeyError('size')"},
        "env.wrappers=.*: mine:Mine-v0 cannot be wrapped so; it raised KeyError: .*mine.py, line 17\\)$"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_before_the_run_is_one_line(fault, tmp_path):
    given, words = FAULTS[fault]
    parts = {"body": "pass", "reset": "pass", "wrapper": "pass", "last": "", **given}
    (tmp_path / "mine.py").write_text(ENV.format(**parts))
    command = [sys.executable, "-m", "rlloss", "train", "env.id=mine:Mine-v0", "run_dir=run", "total_timesteps=512"]
    more = ["env.wrappers=[mine:Wrapper]"] if "wrapper" in given else []
    more += ["env.check=false"] if "reset" in given else []
    done = subprocess.run([*command, *more], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.search(words, line), line
    assert not (tmp_path / "run").exists()


LATE = """
import gymnasium, numpy as np
class Env(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {{}}
    def step(self, action):
        self.steps += 1
        obs, reward = np.zeros(2, np.float32), 1.0
        if self.steps == {at}:
            {fault}
        return obs, reward, False, self.steps == 50, {{}}
gymnasium.register("Late-v0", Env)
"""
LATER = {
    "one number in place of two": (
        20,
        "obs = np.float32(0.7)",
        r"observation of the shape \(\) in the place of one of",
    ),
    "none at a time limit": (50, "obs = None", r"observation of the shape \(\) in the place of one of \(2,\)"),
    "three at a time limit": (
        50,
        "obs = np.zeros(3)",
        r"observation of the shape \(3,\) in the place of one of \(2,\)",
    ),
    "a reward beyond float32": (20, "reward = 1e300", r"reward 1e\+300 from environment 0, at environment step 40"),
}


@pytest.mark.parametrize("fault", LATER)
def test_a_fault_of_a_later_step_is_named_where_it_is(fault, tmp_path):
    """It was stretched, a traceback, or a policy loss that is nan."""
    at, body, words = LATER[fault]
    (tmp_path / "late.py").write_text(LATE.format(at=at, fault=body))
    command = [sys.executable, "-m", "rlloss", "train", "env.id=late:Late-v0", "run_dir=run", "total_timesteps=512",
               "num_envs=2", "num_steps=64", "env.check=false"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert re.search(words, done.stderr), done.stderr
    assert "environment step" in done.stderr
    assert "Warning" not in done.stderr
