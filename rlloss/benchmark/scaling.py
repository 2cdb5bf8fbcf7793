"""Microseconds of an environment step and memory of a run, against its length, its environments and its networks."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator

import pandas as pd
from tqdm import tqdm

CODE = """
import json, resource, sys, tempfile, time
from pathlib import Path
from rlloss.config import load
from rlloss.train import train
ends = []
with tempfile.TemporaryDirectory() as folder:
    train(load(sys.argv[1:]), Path(folder) / "run", lambda row: ends.append((time.perf_counter(), row["env_steps"])))
(first, before), (last, after) = ends[0], ends[-1]
megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
sys.stdout.write(json.dumps([1e6 * (last - first) / (after - before), megabytes]))
"""
STEPS = 20_480  # of a run, where its length is not what varies; with many environments some iterations at least
ITERATIONS = 4
VARIED = {
    "length, environment steps": ("total_timesteps", (10_240, 102_400, 1_024_000)),
    "environments": ("num_envs", (1, 4, 32, 128, 512)),
    "width of both layers": ("hidden_sizes", (16, 64, 256, 1024)),
}


def settings() -> Iterator[tuple[str, int, list[str]]]:
    for what, (key, values) in VARIED.items():
        for value in values:
            envs = value if key == "num_envs" else 4
            steps = value if key == "total_timesteps" else max(STEPS, ITERATIONS * 128 * envs)
            overrides = [f"total_timesteps={steps}", f"num_envs={envs}"]
            yield what, value, overrides + ([f"hidden_sizes=[{value},{value}]"] if key == "hidden_sizes" else [])


def benchmark_scaling(rounds: int) -> pd.DataFrame:
    """A row per setting: microseconds of an environment step, its share of the update included, and peak memory.

    Each run has a process of its own and is recorded; time counts from the end of its first iteration.
    """
    cells = list(settings())
    found: dict[int, list[tuple[float, float]]] = {i: [] for i in range(len(cells))}
    with tqdm(total=rounds * len(cells), unit="run", disable=None) as bar:
        # every other round backwards: a machine that grows slower or faster steadily then wrongs none of them
        for i in [i for turn in range(rounds) for i in (reversed(found) if turn % 2 else found)]:
            what, value, overrides = cells[i]
            bar.set_postfix_str(f"{what} {value:,}")
            done = subprocess.run([sys.executable, "-c", CODE, *overrides], capture_output=True, text=True, check=True)
            found[i].append(tuple(json.loads(done.stdout.splitlines()[-1])))
            bar.update()
    return pd.DataFrame(
        {
            "varied": what,
            "value": value,
            "us per environment step": round(statistics.median(us for us, _ in found[i]), 1),
            "lowest": round(min(us for us, _ in found[i]), 1),
            "highest": round(max(us for us, _ in found[i]), 1),
            "MB": round(statistics.median(megabytes for _, megabytes in found[i])),
            "rounds": rounds,
        }
        for i, (what, value, _) in enumerate(cells)
    )
