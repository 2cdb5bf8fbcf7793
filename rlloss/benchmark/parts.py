"""Where the time of a rollout step and of a minibatch goes, beside the bare environment and the bare arithmetic."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch
from gymnasium.vector import SyncVectorEnv
from matplotlib.figure import Figure
from tqdm import tqdm

from rlloss import figures
from rlloss.config.schema import Config
from rlloss.train import by_hand, loop, rollout, update
from rlloss.train.policy import NumpyActor
from rlloss.train.recording import recorder
from rlloss.train.state import prepared
from rlloss.train.switches import deterministic
from rlloss.train.vector import Environments

ITERATIONS = 40  # per round
STEP, MINIBATCH = "rollout step", "minibatch"
BARE = {STEP: "bare SyncVectorEnv", MINIBATCH: "bare matrix products and tanh"}


class Clock:
    """Seconds spent within functions, by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - start

        return timed

    @contextmanager
    def within(self, parts: Mapping[str, tuple[Any, str]]) -> Iterator[None]:
        """Within, these functions are timed: by name, the attribute of an owner."""
        originals = {name: getattr(owner, attribute) for name, (owner, attribute) in parts.items()}
        try:
            for name, (owner, attribute) in parts.items():
                setattr(owner, attribute, self.around(name, originals[name]))
            yield
        finally:
            for name, (owner, attribute) in parts.items():
                setattr(owner, attribute, originals[name])


PARTS: dict[str, tuple[Any, str]] = {  # name -> what is timed
    "environments": (Environments, "step"),
    "actor": (NumpyActor, "act"),
    "rollout": (rollout, "interact"),
    "networks, forward": (by_hand.Towers, "forward"),
    "forward": (by_hand.HandStepper, "forward"),
    "policy loss": (update.Objective, "policy_loss"),
    "autograd of the policy loss": (by_hand, "derivative"),
    "networks, backward": (by_hand.Towers, "backward"),
    "backward": (by_hand.HandStepper, "gradient_of"),
    "gradient clipped": (by_hand.HandStepper, "backward"),
    "step": (by_hand.HandStepper, "take"),
    "update": (loop, "update"),
    "metrics": (update, "metrics"),
}


def benchmark_parts(rounds: int) -> pd.DataFrame:
    """A row per part: microseconds, medians over rounds, of a step of 4 CartPoles and of a minibatch of 128.

    Parts are timed within whole iterations, recorded. The rows that begin with ``bare`` are measured apart: Gymnasium's
    vector environment under random actions, and the matrix products and tanhs of a minibatch alone, one after another.
    """
    found: dict[tuple[str, str], list[float]] = {}
    with tqdm(total=rounds, unit="round", disable=None) as bar:
        for _ in range(rounds):
            for key, microseconds in _round().items():
                found.setdefault(key, []).append(microseconds)
            bar.update()
    return pd.DataFrame(
        {
            "of": of,
            "part": part,
            "us, median": round(statistics.median(values), 1),
            "lowest": round(min(values), 1),
            "highest": round(max(values), 1),
            "rounds": rounds,
        }
        for (of, part), values in found.items()
    )


def _round() -> dict[tuple[str, str], float]:
    config = Config(total_timesteps=512 * (ITERATIONS + 2))
    clock = Clock()
    with (
        tempfile.TemporaryDirectory() as home,
        deterministic(config),
        prepared(config) as state,
        recorder(Path(home) / "run", state) as record,
    ):
        loop.iterate(state, record.step)  # caches are warm before anything counts
        after_step = clock.around("digest and record", record.step)
        with clock.within(PARTS | {"Adam": (state.stepper, "_step")}):
            for _ in range(ITERATIONS):
                loop.iterate(state, after_step)
    steps, minibatches = ITERATIONS * config.num_steps, ITERATIONS * config.update_epochs * config.num_minibatches
    spent = clock.spent
    of_step = {name: spent[name] for name in ("environments", "actor")}
    of_step["the rest of the loop"] = spent["rollout"] - sum(of_step.values())
    of_minibatch = {
        "networks, forward": spent["networks, forward"],
        "policy loss": spent["policy loss"],
        "softmax, entropy and value loss": spent["forward"] - spent["networks, forward"] - spent["policy loss"],
        "autograd of the policy loss": spent["autograd of the policy loss"],
        "networks, backward": spent["networks, backward"],
        "softmax and value loss, backward": (
            spent["backward"] - spent["networks, backward"] - spent["autograd of the policy loss"]
        ),
        "clipping": spent["gradient clipped"] - spent["backward"],
        "Adam": spent["Adam"],
        "digest and record": spent["digest and record"],
        "metrics": spent["metrics"],
    }
    of_minibatch["shuffling and the rest"] = spent["update"] - sum(of_minibatch.values())
    return {
        **{(STEP, name): 1e6 * seconds / steps for name, seconds in of_step.items()},
        (STEP, BARE[STEP]): _bare_environment(config),
        **{(MINIBATCH, name): 1e6 * seconds / minibatches for name, seconds in of_minibatch.items()},
        (MINIBATCH, BARE[MINIBATCH]): _bare_arithmetic(config),
    }


def _bare_environment(config: Config, steps: int = 2000) -> float:
    envs = SyncVectorEnv([lambda: gymnasium.make(config.env.id)] * config.num_envs)
    envs.reset(seed=1)
    actions = np.random.default_rng(1).integers(0, 2, (steps, config.num_envs))
    start = time.perf_counter()
    for action in actions:
        envs.step(action)
    return 1e6 * (time.perf_counter() - start) / steps


def _bare_arithmetic(config: Config, times: int = 500) -> float:
    """Forward and backward through both networks: three products a layer, but for the first, and tanh."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    samples, sizes = config.minibatch_samples, [4, *config.hidden_sizes, 2]
    layers = [
        (torch.randn(samples, a), torch.randn(a, b), torch.randn(samples, b)) for a, b in itertools.pairwise(sizes)
    ]
    start = time.perf_counter()
    for _ in range(times):
        for _ in ("actor", "critic"):
            for i, (x, weight, gradient) in enumerate(layers):
                out = x @ weight
                x.t() @ gradient
                if i:
                    gradient @ weight.t()
                if i < len(layers) - 1:
                    out.tanh_()
    torch.set_num_threads(threads)
    return 1e6 * (time.perf_counter() - start) / times


def figure(table: pd.DataFrame) -> Figure:
    """Bars, the parts of a rollout step and of a minibatch, with what the bare work takes as a line."""
    drawing, axes = figures.panels(1, 2, figures.TEXT, 2.6, width_ratios=(1, 1))
    for panel, of in zip(axes[0], (STEP, MINIBATCH), strict=True):
        mine = table[table["of"] == of].set_index("part")["us, median"]
        parts = mine.drop(BARE[of])
        panel.barh(range(len(parts)), parts, color=figures.BLUE, height=0.62)
        panel.set_yticks(range(len(parts)), parts.index, fontsize=6)
        panel.invert_yaxis()
        panel.axvline(mine[BARE[of]], color=figures.VERMILION, linewidth=0.9)
        panel.set_xlabel(f"µs (line: {BARE[of]})", fontsize=7)
        panel.set_title(f"{of}: {parts.sum():,.0f} µs", loc="left")
        panel.set_axisbelow(True)
    return drawing
