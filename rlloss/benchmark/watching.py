"""What ``rlloss.watch`` costs a step: plain models of several sizes, with steps of several lengths."""

import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xxhash
from torch import nn
from tqdm import tqdm

import rlloss
from rlloss.runs.reader import RunFolder

WIDTHS = {"20 k": (32, 96), "0.4 M": (128, 384), "1.5 M": (256, 768), "20 M": (1024, 2816)}  # inputs, hidden units
MILLISECONDS = (5, 20)
STEPS = 40  # per contestant and round
BARE, READ, WATCHED, WITH_GRADIENTS = "bare", "read", "watched", "watched, gradients too"


def benchmark_watch(rounds: int) -> pd.DataFrame:
    """Milliseconds of an optimiser step: bare, watched, and watched with gradients: a row per size and length.

    ``reading alone``: all parameters hashed before and after the step, by two hooks of one line. No record of what a
    step does and of what happens between two steps takes less.

    A model of three layers and Adam, on one thread. The batch is chosen so that a bare step takes about so long; where
    the smallest batch takes longer, the row says how long that is. Each contestant has a model of its own, and they
    take turns step by step, so that what a neighbour does to the machine meets all of them.
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
    contestants = {name: _training(inputs, hidden) for name in (BARE, READ, WATCHED, WITH_GRADIENTS)}
    _read(contestants[READ][1])
    batch = _batch(*contestants[BARE], wanted, inputs)
    medians: dict[str, list[float]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as home, ExitStack() as watches:
        for name in (WATCHED, WITH_GRADIENTS):
            watches.enter_context(rlloss.watch(*contestants[name], Path(home) / name, gradients=name == WITH_GRADIENTS))
        for _ in range(rounds):
            times: dict[str, list[float]] = {name: [] for name in contestants}
            for turn in range(STEPS):
                for name in list(contestants)[:: -1 if turn % 2 else 1]:
                    times[name].append(_step(*contestants[name], batch))
            for name, found in times.items():
                medians[name].append(1000 * statistics.median(found))
            bar.update()
        watches.close()
        last = RunFolder(Path(home) / WATCHED)
        growth = sum((last.path / name).stat().st_size for name in ("digests.bin", "tensors.bin", "metrics.csv"))
        steps = len(last.digests)
    bare = medians[BARE]
    more = {name: [x - y for x, y in zip(medians[name], bare, strict=True)] for name in (READ, WATCHED, WITH_GRADIENTS)}
    percent = {name: [100 * x / y for x, y in zip(more[name], bare, strict=True)] for name in more}
    return {
        "values": size,
        "tensors": sum(1 for _ in contestants[BARE][0].parameters()),
        "ms, bare": round(statistics.median(bare), 2),
        "reading alone, %": round(statistics.median(percent[READ]), 1),
        "watch, ms": round(statistics.median(more[WATCHED]), 2),
        "watch, %": round(statistics.median(percent[WATCHED]), 1),
        "lowest": round(min(percent[WATCHED]), 1),
        "highest": round(max(percent[WATCHED]), 1),
        "with gradients, %": round(statistics.median(percent[WITH_GRADIENTS]), 1),
        "bytes a step": round(growth / steps),
        "rounds": rounds,
    }


def _training(inputs: int, hidden: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, inputs)
    )
    return model, torch.optim.Adam(model.parameters())


def _read(optimizer: torch.optim.Optimizer) -> None:
    def read(*_: object) -> None:
        for parameter in optimizer.param_groups[0]["params"]:
            xxhash.xxh3_128_digest(parameter.detach().numpy())

    optimizer.register_step_pre_hook(read)
    optimizer.register_step_post_hook(read)


def _batch(model: nn.Module, optimizer: torch.optim.Optimizer, wanted: int, inputs: int) -> torch.Tensor:
    """As many samples as make a step of so many milliseconds."""
    samples = 1
    while samples < 1 << 15:
        batch = torch.randn(samples, inputs)
        took = 1000 * statistics.median(_step(model, optimizer, batch) for _ in range(5))
        if took >= wanted:
            return batch
        samples = max(samples + 1, int(samples * min(4.0, wanted / took)))
    return batch


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> float:
    """Seconds of a step."""
    start = time.perf_counter()
    optimizer.zero_grad()
    ((model(batch) - batch) ** 2).mean().backward()
    optimizer.step()
    return time.perf_counter() - start
