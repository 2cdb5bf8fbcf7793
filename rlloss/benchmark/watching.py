"""What ``rlloss.watch`` costs a step: plain models of several sizes, with steps of several lengths."""

import statistics
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

import rlloss
from rlloss.runs.reader import RunFolder

WIDTHS = {"20 k": (32, 96), "0.4 M": (128, 384), "1.5 M": (256, 768), "20 M": (1024, 2816)}  # inputs, hidden units
MILLISECONDS = (5, 20)
STEPS = 40  # per contestant and round
BARE, WATCHED, WITH_GRADIENTS = "bare", "watched", "watched, gradients too"


def benchmark_watch(rounds: int) -> pd.DataFrame:
    """Milliseconds of an optimiser step: bare, watched, and watched with gradients: a row per size and length.

    A model of three layers and Adam, on one thread. The batch is chosen so that a bare step takes about so long; where
    the smallest batch takes longer, the row says how long that is. Contestants take turns, step by step in blocks.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cells = [(size, wanted) for size in WIDTHS for wanted in MILLISECONDS]
        with tqdm(total=len(cells) * rounds, unit="round", disable=None) as bar:
            return pd.DataFrame([_row(size, wanted, rounds, bar) for size, wanted in cells])
    finally:
        torch.set_num_threads(threads)


def _row(size: str, wanted: int, rounds: int, bar: "tqdm[Any]") -> dict[str, object]:
    inputs, hidden = WIDTHS[size]
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, inputs)
    )
    optimizer = torch.optim.Adam(model.parameters())
    batch = _batch(model, optimizer, wanted, inputs)
    times: dict[str, list[float]] = {name: [] for name in (BARE, WATCHED, WITH_GRADIENTS)}
    ratios: dict[str, list[float]] = {name: [] for name in (WATCHED, WITH_GRADIENTS)}
    with tempfile.TemporaryDirectory() as home:
        folders = (Path(home) / str(i) for i in count())
        for turn in range(rounds):
            medians = {}
            for name in list(times)[:: -1 if turn % 2 else 1]:
                if name == BARE:
                    medians[name] = _median(model, optimizer, batch)
                else:
                    with rlloss.watch(model, optimizer, next(folders), gradients=name == WITH_GRADIENTS):
                        medians[name] = _median(model, optimizer, batch)
            for name, median in medians.items():
                times[name].append(median)
            for name in ratios:
                ratios[name].append(medians[name] / medians[BARE] - 1)
            bar.update()
        last = RunFolder(next(iter(sorted(Path(home).iterdir()))))
        growth = sum((last.path / name).stat().st_size for name in ("digests.bin", "tensors.bin", "metrics.csv"))
        steps = len(last.digests)
    return {
        "values": size,
        "tensors": sum(1 for _ in model.parameters()),
        "ms, bare": round(statistics.median(times[BARE]), 2),
        "watch, ms": round(statistics.median(times[WATCHED]) - statistics.median(times[BARE]), 2),
        "watch, %": round(100 * statistics.median(ratios[WATCHED]), 1),
        "lowest": round(100 * min(ratios[WATCHED]), 1),
        "highest": round(100 * max(ratios[WATCHED]), 1),
        "with gradients, %": round(100 * statistics.median(ratios[WITH_GRADIENTS]), 1),
        "bytes a step": round(growth / steps),
        "rounds": rounds,
    }


def _batch(model: nn.Module, optimizer: torch.optim.Optimizer, wanted: int, inputs: int) -> torch.Tensor:
    """As many samples as make a step of so many milliseconds."""
    samples = 1
    while samples < 1 << 15:
        batch = torch.randn(samples, inputs)
        took = _median(model, optimizer, batch, steps=5)
        if took >= wanted:
            return batch
        samples = max(samples + 1, int(samples * min(4.0, wanted / took)))
    return batch


def _median(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor, steps: int = STEPS) -> float:
    """Milliseconds of a step."""
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        ((model(batch) - batch) ** 2).mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
