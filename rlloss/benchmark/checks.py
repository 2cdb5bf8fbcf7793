"""Seconds that ``rlloss check`` takes."""

import statistics
import subprocess
import sys
import time

import pandas as pd
from tqdm import tqdm

CHECKS = (
    "rlloss check ppo_clip reinforce",
    "rlloss check ppo_clip klip",
    "rlloss check ppo_clip cispo",
    "rlloss check grpo dapo",
    "rlloss check gspo gspo_token",
    "rlloss check",
)


def benchmark_check(rounds: int) -> pd.DataFrame:
    """Wall-clock seconds of ``rlloss check`` in a process of its own, imports included: a row per command."""
    seconds: dict[str, list[float]] = {command: [] for command in CHECKS}
    with tqdm(total=rounds * len(CHECKS), unit="run", disable=None) as bar:
        for command in CHECKS * rounds:
            bar.set_postfix_str(command)
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", *command.split()], stdout=subprocess.DEVNULL, check=False)
            seconds[command].append(time.perf_counter() - start)
            bar.update()
    return pd.DataFrame(
        {
            "command": command,
            "seconds, median": round(statistics.median(values), 2),
            "lowest": round(min(values), 2),
            "highest": round(max(values), 2),
            "runs": rounds,
        }
        for command, values in seconds.items()
    )
