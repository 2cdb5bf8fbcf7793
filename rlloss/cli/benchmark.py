"""``rlloss benchmark``: how fast."""

import argparse
import importlib
from pathlib import Path

from rlloss import tables
from rlloss.cli.exits import Exit
from rlloss.errors import ConfigError

OF = {  # what is timed -> its module of rlloss.benchmark, and the function
    "train": ("training", "benchmark"),
    "check": ("checks", "benchmark_check"),
    "sweep": ("sweeps", "benchmark_sweep"),
    "graph": ("pages", "benchmark_graph"),
    "numerics": ("numerics", "benchmark_numerics"),
    "watch": ("watching", "benchmark_watch"),
}
TRAINED = ("train", "sweep", "numerics")  # for so many environment steps


def run(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    if options.rounds < 1:
        raise ConfigError(f"--rounds={options.rounds}: must be 1 or greater")
    timesteps = (102_400 if options.of == "sweep" else 20_480) if options.timesteps is None else options.timesteps
    if timesteps < 512:
        raise ConfigError(f"--timesteps={timesteps}: must be at least one iteration of 512")
    module, function = OF[options.of]
    of = getattr(importlib.import_module(f"rlloss.benchmark.{module}"), function)
    table = of(options.rounds, timesteps) if options.of in TRAINED else of(options.rounds)
    print(tables.text(table))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.output, index=False)
        print(f"written to {options.output}")
    return Exit.HOLDS


def parser() -> argparse.ArgumentParser:
    bench = argparse.ArgumentParser(prog="rlloss benchmark")
    bench.add_argument("--of", choices=OF, default="train",
                       help="what to time (default: train)")  # fmt: skip
    bench.add_argument("--rounds", type=int, default=5, help="rounds; in each, every contestant runs once (default: 5)")
    bench.add_argument("--timesteps", type=int, metavar="N",
                       help="environment steps per run (default: 20480, of a sweep's runs 102400)")  # fmt: skip
    bench.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the table as CSV")
    return bench
