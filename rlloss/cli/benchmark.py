"""``rlloss benchmark``: how fast."""

import importlib
from pathlib import Path

from rlloss import figures, tables
from rlloss.cli.arguments import Parser
from rlloss.cli.exits import Exit
from rlloss.cli.paths import output_file
from rlloss.errors import ConfigError

OF = {  # what is timed -> its module of rlloss.benchmark, and the function
    "train": ("training", "benchmark"),
    "check": ("checks", "benchmark_check"),
    "sweep": ("sweeps", "benchmark_sweep"),
    "graph": ("pages", "benchmark_graph"),
    "numerics": ("numerics", "benchmark_numerics"),
    "watch": ("watching", "benchmark_watch"),
    "parts": ("parts", "benchmark_parts"),
    "scaling": ("scaling", "benchmark_scaling"),
    "startup": ("startup", "benchmark_startup"),
    "seeds": ("seeds", "benchmark_seeds"),
    "stacking": ("stacking", "benchmark_stacking"),
}
TRAINED = ("train", "sweep", "numerics", "seeds")  # for so many environment steps


def run(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    if options.rounds < 1:
        raise ConfigError(f"--rounds={options.rounds}: must be 1 or greater")
    timesteps = (102_400 if options.of == "sweep" else 20_480) if options.timesteps is None else options.timesteps
    if timesteps < 512:
        raise ConfigError(f"--timesteps={timesteps}: must be at least one iteration of 512")
    output_file("-o", options.output)
    module, function = OF[options.of]
    peers = dict(map(peer, options.peer))
    if peers and options.of != "train":
        raise ConfigError(f"--peer: trains beside rlloss in --of train, not in --of {options.of}")
    home = importlib.import_module(f"rlloss.benchmark.{module}")
    budget = (options.rounds, timesteps) if options.of in TRAINED else (options.rounds,)
    table = getattr(home, function)(*budget, **({"peers": peers} if peers else {}))
    print(tables.text(table))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.output, index=False)
        print(f"written to {options.output}")
        if hasattr(home, "figure"):
            with figures.style():
                drawn = figures.save(home.figure(table), options.output.with_suffix(""))
            print(f"written to {' '.join(map(str, drawn))}")
    return Exit.HOLDS


def peer(text: str) -> tuple[str, str]:
    """Its name and its command. Raises: ConfigError for one that takes no number of steps."""
    name, _, command = text.partition("=")
    if not name or "{timesteps}" not in command:
        raise ConfigError(f"--peer={text}: give NAME=COMMAND, with {{timesteps}} where the command takes that number")
    return name, command


def parser() -> Parser:
    bench = Parser(prog="rlloss benchmark")
    bench.add_argument("--of", choices=OF, default="train",
                       help="what to time (default: train)")  # fmt: skip
    bench.add_argument("--rounds", type=int, default=5, help="rounds; in each, every contestant runs once (default: 5)")
    bench.add_argument("--timesteps", type=int, metavar="N",
                       help="environment steps per run (default: 20480, of a sweep's runs 102400)")  # fmt: skip
    bench.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND",
                       help="another trainer, its command with {timesteps} where that number goes")  # fmt: skip
    bench.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the table as CSV")
    return bench
