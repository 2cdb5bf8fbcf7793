"""``rlloss benchmark``: how fast."""

import argparse
from pathlib import Path

from rlloss import tables
from rlloss.benchmark import benchmark, benchmark_check, benchmark_graph, benchmark_numerics, benchmark_sweep
from rlloss.cli.exits import Exit
from rlloss.errors import ConfigError


def run(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    if options.rounds < 1:
        raise ConfigError(f"--rounds={options.rounds}: must be 1 or greater")
    timesteps = (102_400 if options.of == "sweep" else 20_480) if options.timesteps is None else options.timesteps
    if timesteps < 512:
        raise ConfigError(f"--timesteps={timesteps}: must be at least one iteration of 512")
    if options.of in ("check", "graph"):
        table = (benchmark_check if options.of == "check" else benchmark_graph)(options.rounds)
    else:
        of = {"sweep": benchmark_sweep, "numerics": benchmark_numerics, "train": benchmark}[options.of]
        table = of(options.rounds, timesteps)
    print(tables.text(table))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.output, index=False)
        print(f"written to {options.output}")
    return Exit.HOLDS


def parser() -> argparse.ArgumentParser:
    bench = argparse.ArgumentParser(prog="rlloss benchmark")
    bench.add_argument("--of", choices=("train", "check", "sweep", "graph", "numerics"), default="train",
                       help="what to time (default: train)")  # fmt: skip
    bench.add_argument("--rounds", type=int, default=5, help="rounds; in each, every contestant runs once (default: 5)")
    bench.add_argument("--timesteps", type=int, metavar="N",
                       help="environment steps per run (default: 20480, of a sweep's runs 102400)")  # fmt: skip
    bench.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the table as CSV")
    return bench
