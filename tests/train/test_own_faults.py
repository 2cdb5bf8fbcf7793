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
        super().reset(seed=seed)
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
    "of a wrapper": (
        {"wrapper": "raise KeyError('size')"},
        "env.wrappers=.*: mine:Mine-v0 cannot be wrapped so; it raised KeyError: .*mine.py, line 17\\)$"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_before_the_run_is_one_line(fault, tmp_path):
    given, words = FAULTS[fault]
    parts = {"body": "pass", "wrapper": "pass", "last": "", **given}
    (tmp_path / "mine.py").write_text(ENV.format(**parts))
    command = [sys.executable, "-m", "rlloss", "train", "env.id=mine:Mine-v0", "run_dir=run", "total_timesteps=512"]
    wrapped = ["env.wrappers=[mine:Wrapper]"] if "wrapper" in given else []
    done = subprocess.run([*command, *wrapped], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.search(words, line), line
    assert not (tmp_path / "run").exists()
