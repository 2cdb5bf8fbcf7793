"""What a sweep costs beyond bare loops over the same runs."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from rlloss.benchmark.processes import Taken, measured
from rlloss.runs.reader import RunFolder

SWEPT = 8  # runs of the sweep that is timed
BARE_LOOP, SWEEP = "bare loop", "rlloss train --multirun"
BARE_CODE = """
import sys
from pathlib import Path
from rlloss.config.schema import Config
from rlloss.train.loop import train
folder, timesteps, *seeds = sys.argv[1:]
for seed in map(int, seeds):
    train(Config(total_timesteps=int(timesteps), seed=seed), Path(folder) / str(seed))
"""


def benchmark_sweep(rounds: int, timesteps: int) -> pd.DataFrame:
    """Eight CartPole runs as a sweep on one worker and on two, beside bare loops over the same runs: a row each.

    A bare loop is a process that trains and records its share of the runs and does nothing else; with two workers,
    two of them run at once.

    - ``seconds``: the whole command's, the start of Python included.
    - ``overhead``: the time in which workers did not train over the time in which they did, as the runs measured it:
      seconds x workers / sum of the runs' seconds - 1.
    - ``its own``: the overhead that a bare loop of the same round does not have: (1 + overhead) / (1 + the bare
      loop's) - 1.
    - ``time over the bare loop's``, and ``throughput``, one worker's time over that of two: these compare commands
      that ran minutes apart in one round, so they are only as steady as the machine.
    """
    contestants = [(name, workers) for workers in (1, 2) for name in (BARE_LOOP, SWEEP)]
    seconds: dict[tuple[str, int], list[float]] = {contestant: [] for contestant in contestants}
    overheads: dict[tuple[str, int], list[float]] = {contestant: [] for contestant in contestants}
    with tqdm(total=rounds * len(contestants), unit="sweep", disable=None) as bar:
        # every other round backwards: a machine that grows slower or faster steadily then wrongs none of them
        turns = [turn for i in range(rounds) for turn in (contestants[::-1] if i % 2 else contestants)]
        for name, workers in turns:
            with tempfile.TemporaryDirectory() as folder:
                time_it = _sweep_seconds if name == SWEEP else _bare_seconds
                wall = time_it(workers, timesteps, folder)
                seconds[name, workers].append(wall)
                overheads[name, workers].append(workers * wall / sum(training_seconds(folder)) - 1)
            bar.update()

    def own(name: str, workers: int) -> float:
        pairs = zip(overheads[name, workers], overheads[BARE_LOOP, workers], strict=True)
        return statistics.median((1 + overhead) / (1 + bare) - 1 for overhead, bare in pairs)

    def ratio(one: tuple[str, int], other: tuple[str, int]) -> float:
        return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))

    return pd.DataFrame(
        {
            "contestant": name,
            "workers": workers,
            "runs": SWEPT,
            "env steps each": timesteps,
            "seconds, median": round(statistics.median(seconds[name, workers]), 1),
            "throughput over one worker": round(ratio((name, 1), (name, workers)), 3),
            "time over the bare loop's": round(ratio((name, workers), (BARE_LOOP, workers)), 3),
            "overhead": round(statistics.median(overheads[name, workers]), 3),
            "its own": round(own(name, workers), 3),
            "rounds": rounds,
        }
        for name, workers in contestants
    )


def _sweep_seconds(workers: int, timesteps: int, folder: str) -> float:
    return swept(SWEPT, workers, timesteps, folder).seconds


def swept(seeds: int, workers: int, timesteps: int, folder: str, *overrides: str) -> Taken:
    """``rlloss train --multirun`` of so many seeds, into ``folder``."""
    overrides += (f"seed={','.join(map(str, range(1, seeds + 1)))}", f"total_timesteps={timesteps}", "run_root=.")
    command = [sys.executable, "-m", "rlloss", "train", "--multirun", *overrides, f"hydra.launcher.n_jobs={workers}"]
    return measured(command, Path(folder))


def training_seconds(folder: str) -> list[float]:
    """Of every run below ``folder``, as each took its own time."""
    runs = [RunFolder(path.parent).info for path in Path(folder).rglob("run.json")]
    return [run["env_steps"] / run["steps_per_second"] for run in runs]


def _bare_seconds(workers: int, timesteps: int, folder: str) -> float:
    start = time.perf_counter()
    loops = [
        subprocess.Popen([sys.executable, "-c", BARE_CODE, folder, str(timesteps), *map(str, seeds)])
        for seeds in (range(1 + worker, SWEPT + 1, workers) for worker in range(workers))
    ]
    for loop in loops:
        if loop.wait():
            raise subprocess.CalledProcessError(loop.returncode, loop.args)
    return time.perf_counter() - start
