"""How long commands take that compute next to nothing, beside ``import torch``, without which none can be had."""

import statistics
import sys
import tempfile
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from rlloss.benchmark.processes import Taken, measured

BARE = "import torch"
COMMANDS = {
    BARE: ("-c", "import torch"),
    "rlloss train total_timesteps=512": ("-m", "rlloss", "train", "total_timesteps=512", "run_dir=run"),
    "rlloss check ppo_clip reinforce --no-proof": ("-m", "rlloss", "check", "ppo_clip", "reinforce", "--no-proof"),
    "rlloss check ppo_clip reinforce": ("-m", "rlloss", "check", "ppo_clip", "reinforce"),
}


def benchmark_startup(rounds: int) -> pd.DataFrame:
    """A row per command: seconds of the whole process, their ratio to ``import torch`` (median over rounds), memory."""
    found: dict[str, list[Taken]] = {name: [] for name in COMMANDS}
    with tqdm(total=rounds * len(COMMANDS), unit="command", disable=None) as bar:
        for turn in range(-1, rounds):  # in the first one files are read from the disk
            for name in COMMANDS:
                with tempfile.TemporaryDirectory() as folder:
                    taken = measured([sys.executable, *COMMANDS[name]], Path(folder))
                if turn >= 0:
                    found[name].append(taken)
                    bar.update()
    seconds = {name: [taken.seconds for taken in each] for name, each in found.items()}
    return pd.DataFrame(
        {
            "command": name,
            "seconds, median": round(statistics.median(values), 2),
            "lowest": round(min(values), 2),
            "highest": round(max(values), 2),
            f"times {BARE}": round(statistics.median(a / b for a, b in zip(values, seconds[BARE], strict=True)), 2),
            "MB": round(max(taken.megabytes for taken in found[name])),
            "rounds": rounds,
        }
        for name, values in seconds.items()
    )
