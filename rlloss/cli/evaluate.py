"""``rlloss evaluate``: what a trained policy reaches."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from rlloss import stats, tables
from rlloss.cli.arguments import Parser
from rlloss.cli.exits import Exit
from rlloss.cli.paths import one_run, output_file
from rlloss.errors import ConfigError
from rlloss.runs.reader import to_json

FRAME_MS = 33  # of a video, where the environment does not say


def run(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    if options.episodes < 1:
        raise ConfigError(f"--episodes={options.episodes}: must be 1 or greater")
    if options.seed < 0:
        raise ConfigError(f"--seed={options.seed}: must be 0 or greater")
    if options.video is not None and options.video.suffix != ".gif":
        raise ConfigError(f"--video={options.video}: name a .gif file")
    output_file("--video", options.video)
    one_run(options.run)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pictures go into a file, and need no screen
    from rlloss.train.evaluation import load_policy, play  # here, since it needs torch
    from rlloss.train.faults import staying

    with staying(ConfigError, f"RUN={options.run}: its environment "):
        trained = load_policy(options.run, best=options.best)
        frames: list[NDArray[Any]] | None = [] if options.video is not None else None
        episodes = play(trained, options.episodes, options.seed, greedy=not options.sampled, frames=frames)
        played = pd.DataFrame(list(tqdm(episodes, total=options.episodes, unit="episode", disable=None)))
    if frames:
        write_gif(frames, options.video)
    spread = interval(played["episodic_return"].to_numpy())
    if options.json:
        mean = float(played["episodic_return"].mean())
        print(to_json({"mean": mean, "interval": spread, "episodes": played.to_dict("records")}))
        return Exit.HOLDS
    print(tables.text(played.rename(columns={"episodic_return": "return", "episodic_length": "length"})))
    print(f"\n{summary(played, spread)}; {'sampled' if options.sampled else 'greedy'}, seed {options.seed}")
    if frames:
        print(f"the first episode: {options.video}")
    return Exit.HOLDS


def parser() -> Parser:
    verb = Parser(prog="rlloss evaluate", description="Play a finished run's policy.")
    verb.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    verb.add_argument("--episodes", type=int, default=10, metavar="N", help="how many (default: 10)")
    verb.add_argument("--seed", type=int, default=0, help="of the episodes' resets and of sampled actions (default: 0)")
    kind = verb.add_mutually_exclusive_group()
    kind.add_argument("--greedy", action="store_true", help="the likeliest action, always (the default)")
    kind.add_argument("--sampled", action="store_true", help="actions as in training")
    verb.add_argument("--best", action="store_true", help="the policy that best=metric kept, not the last")
    verb.add_argument("--video", type=Path, metavar="FILE.gif", help="also draw the first episode")
    verb.add_argument("--json", action="store_true", help="the result for programs, on standard output")
    return verb


def interval(returns: NDArray[np.float64]) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of the mean, from a seeded generator; none for fewer than ``stats.FEWEST``."""
    if len(returns) < stats.FEWEST:
        return None
    draws = np.random.default_rng(0).choice(returns, (stats.RESAMPLES, len(returns)))
    low, high = np.quantile(draws.mean(1), [(1 - stats.CONFIDENCE) / 2, (1 + stats.CONFIDENCE) / 2])
    return float(low), float(high)


def summary(played: pd.DataFrame, spread: tuple[float, float] | None) -> str:
    within = f" [{spread[0]:.2f}, {spread[1]:.2f}]" if spread else ""
    length = played["episodic_length"].mean()
    return f"return {played['episodic_return'].mean():.2f}{within} over {len(played)} episodes of {length:.1f} steps"


def write_gif(frames: Sequence[NDArray[Any]], path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others, duration=FRAME_MS, loop=0)
