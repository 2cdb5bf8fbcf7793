"""How long commands take that compute next to nothing, beside ``import torch``, without which none can be had."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from tqdm import tqdm

BARE = "import torch"
COMMANDS = {
    BARE: ("-c", "import torch"),
    "rlloss train total_timesteps=512": ("-m", "rlloss", "train", "total_timesteps=512", "run_dir=run"),
    "rlloss check ppo_clip reinforce --no-proof": ("-m", "rlloss", "check", "ppo_clip", "reinforce", "--no-proof"),
    "rlloss check ppo_clip reinforce": ("-m", "rlloss", "check", "ppo_clip", "reinforce"),
}


def benchmark_startup(rounds: int) -> pd.DataFrame:
    """A row per command: seconds of the whole process, and the median over rounds of the ratio to ``import torch``."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tqdm(total=rounds * len(COMMANDS), unit="command", disable=None) as bar:
        for turn in range(-1, rounds):  # in the first one files are read from the disk
            for name in COMMANDS:
                taken = _seconds(name)
                if turn >= 0:
                    seconds[name].append(taken)
                    bar.update()
    return pd.DataFrame(
        {
            "command": name,
            "seconds, median": round(statistics.median(values), 2),
            "lowest": round(min(values), 2),
            "highest": round(max(values), 2),
            f"times {BARE}": round(statistics.median(a / b for a, b in zip(values, seconds[BARE], strict=True)), 2),
            "rounds": rounds,
        }
        for name, values in seconds.items()
    )


def _seconds(name: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *COMMANDS[name]]
        start = time.perf_counter()
        subprocess.run(command, cwd=Path(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return time.perf_counter() - start
