"""What a paired experiment costs: two losses, a number of seeds, on one worker and on two."""

import statistics
import tempfile

import pandas as pd
from tqdm import tqdm

from rlloss.benchmark.processes import Taken
from rlloss.benchmark.sweeps import swept, training_seconds

LOSSES = ("ppo_clip", "reinforce")
SEEDS = (1, 4, 16)
WORKERS = (1, 2)


def benchmark_seeds(rounds: int, timesteps: int) -> pd.DataFrame:
    """A row per number of seeds and of workers: ``rlloss train --multirun`` of both losses, Python's start included.

    - ``throughput over one worker``: of the sweep of the same round on one worker, the time over this one's.
    - ``a run's own seconds``: mean over runs of what each took by its own clock.
    - ``MB``: of the largest process.
    """
    cells = [(seeds, workers) for seeds in SEEDS for workers in WORKERS]
    found: dict[tuple[int, int], list[tuple[Taken, float]]] = {cell: [] for cell in cells}
    with tqdm(total=rounds * len(cells), unit="sweep", disable=None) as bar:
        # every other round backwards: a machine that grows slower or faster steadily then wrongs none of them
        for cell in [cell for turn in range(rounds) for cell in (cells[::-1] if turn % 2 else cells)]:
            bar.set_postfix_str("{} seeds, {} workers".format(*cell))
            found[cell].append(_sweep(*cell, timesteps))
            bar.update()
    return pd.DataFrame(
        {
            "seeds": seeds,
            "runs": seeds * len(LOSSES),
            "workers": workers,
            "env steps each": timesteps,
            "seconds, median": round(statistics.median(taken.seconds for taken, _ in found[seeds, workers]), 1),
            "a run's own seconds": round(statistics.median(own for _, own in found[seeds, workers]), 2),
            "throughput over one worker": round(
                statistics.median(
                    one.seconds / these.seconds
                    for (one, _), (these, _) in zip(found[seeds, 1], found[seeds, workers], strict=True)
                ),
                2,
            ),
            "MB": round(max(taken.megabytes for taken, _ in found[seeds, workers])),
            "rounds": rounds,
        }
        for seeds, workers in cells
    )


def _sweep(seeds: int, workers: int, timesteps: int) -> tuple[Taken, float]:
    with tempfile.TemporaryDirectory() as folder:
        taken = swept(seeds, workers, timesteps, folder, f"loss={','.join(LOSSES)}")
        return taken, statistics.mean(training_seconds(folder))
