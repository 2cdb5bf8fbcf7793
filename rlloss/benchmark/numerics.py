"""Steps per second in both numerics."""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from rlloss.runs.reader import RunFolder

NUMERICS = ("native", "portable")
IN_NUMERICS = {  # what is trained in both; images take a sixtieth of the others' steps
    "CartPole": "env=cartpole",
    "Pendulum": "env=pendulum",
    "LunarLander": "env=lunarlander",
    "HalfCheetah": "env=halfcheetah",
    "CartPole, RMSprop": "optimizer=rmsprop",
    "CartPole, L-BFGS": "optimizer=lbfgs",
    "CartPole, fp64": "precision=fp64",
    "CartPole, bf16 autocast": "precision=bf16_autocast",
    "CartPole, fp16 scaled": "precision=fp16_scaled",
    "Breakout, from pixels": "env=breakout",
}
OF_PIXELS = 60


def benchmark_numerics(rounds: int, timesteps: int) -> pd.DataFrame:
    """Environment steps per second in native and in portable numerics, in turn, each run in a process of its own.

    A row per setting. ``portable / native`` is the median over rounds of the ratio within a round.
    """
    speeds: dict[tuple[str, str], list[float]] = {(name, kind): [] for name in IN_NUMERICS for kind in NUMERICS}
    with tqdm(total=rounds * len(speeds), unit="run", disable=None) as bar:
        # every other round backwards: a machine that grows slower or faster steadily then wrongs neither
        for name, kind in [turn for i in range(rounds) for turn in (list(speeds)[::-1] if i % 2 else speeds)]:
            bar.set_postfix_str(f"{name}, {kind}")
            steps = max(512, timesteps // OF_PIXELS if "pixels" in name else timesteps)
            with tempfile.TemporaryDirectory() as folder:
                overrides = [IN_NUMERICS[name], f"numerics={kind}", f"total_timesteps={steps}", f"run_dir={folder}/run"]
                command = [sys.executable, "-m", "rlloss", "train", *overrides]
                subprocess.run(command, capture_output=True, check=True)
                speeds[name, kind].append(RunFolder(Path(folder) / "run").info["steps_per_second"])
            bar.update()
    rows = []
    for name in IN_NUMERICS:
        native, portable = (speeds[name, kind] for kind in NUMERICS)
        ratios = [b / a for a, b in zip(native, portable, strict=True)]
        rows.append(
            {
                "setting": name,
                "native, steps/s": round(statistics.median(native)),
                "portable, steps/s": round(statistics.median(portable)),
                "portable / native": round(statistics.median(ratios), 2),
                "lowest": round(min(ratios), 2),
                "highest": round(max(ratios), 2),
                "rounds": rounds,
            }
        )
    return pd.DataFrame(rows)
