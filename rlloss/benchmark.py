"""Environment steps per second: the bare vector environment, this trainer recorded or not, and installed peers.

Every contestant runs once per round, in turn, so that a machine whose speed drifts slows all of them alike; ratios are
taken within a round. Same task for all: CartPole-v1, 4 environments x 128 steps, 4 epochs x 4 minibatches, one thread.
"""

import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import torch
from gymnasium.vector import SyncVectorEnv
from tqdm import tqdm

from rlloss.config.schema import Config
from rlloss.runs.reader import RunFolder
from rlloss.train.loop import train

RECORDED, UNRECORDED, BARE, SB3 = (
    "rlloss, recorded",
    "rlloss, not recorded",
    "bare SyncVectorEnv",
    "Stable-Baselines3",
)


CHECKS = (
    "rlloss check ppo_clip reinforce",
    "rlloss check ppo_clip klip",
    "rlloss check ppo_clip cispo",
    "rlloss check grpo dapo",
    "rlloss check gspo gspo_token",
    "rlloss check",
)


SWEPT = 8  # runs of the sweep that is timed
BARE_LOOP, SWEEP = "bare loop", "rlloss train --multirun"
BARE_CODE = """
import sys
from pathlib import Path
from rlloss.config.schema import Config
from rlloss.train.loop import train
folder, timesteps, *seeds = sys.argv[1:]
for seed in map(int, seeds):
    train(Config(total_timesteps=int(timesteps), seed=seed), Path(folder) / str(seed))
"""


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

GRAPH_WIDTHS = (1280, 390)  # pixels: a laptop, a telephone
MOVES = 300  # of the sliders in turn, all over their ranges, per page and round
SETTLE_MS = 1000  # after loading, before anybody could have found the slider
DRAG = """async (moves) => {
  const ranges = [...document.querySelectorAll("input[type=range]")], times = [];
  for (let i = 0; i < moves; i++) {
    await new Promise(requestAnimationFrame); // as a pointer's moves come: one a frame
    const range = ranges[i % ranges.length], low = Number(range.min), high = Number(range.max);
    range.value = low + ((high - low) * ((i * 61) % moves)) / moves;
    const start = performance.now();
    range.dispatchEvent(new Event("input", { bubbles: true }));
    document.documentElement.getBoundingClientRect(); // or style and layout would be left for later
    times.push(performance.now() - start);
  }
  return times;
}"""


def benchmark(rounds: int, timesteps: int) -> pd.DataFrame:
    """A row per contestant: median, lowest and highest steps/s, and the median over rounds of the ratio to rlloss."""
    contestants: dict[str, Callable[[int], float]] = {BARE: _bare, UNRECORDED: _unrecorded, RECORDED: _recorded}
    if importlib.util.find_spec("stable_baselines3") is not None:
        contestants[SB3] = _stable_baselines3
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    with tqdm(total=rounds * len(contestants), unit="run", disable=None) as bar:
        for contestant in contestants.values():
            contestant(1024)  # imports, allocator and caches are warm before anything counts
        for _ in range(rounds):
            for name, contestant in contestants.items():
                bar.set_postfix_str(name)
                speeds[name].append(contestant(timesteps))
                bar.update()
    return pd.DataFrame(
        {
            "contestant": name,
            "steps/s, median": round(statistics.median(values)),
            "lowest": round(min(values)),
            "highest": round(max(values)),
            "rlloss, recorded / this": round(
                statistics.median(ours / value for ours, value in zip(speeds[RECORDED], values, strict=True)), 3
            ),
            "rounds": rounds,
        }
        for name, values in speeds.items()
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


def benchmark_sweep(rounds: int, timesteps: int) -> pd.DataFrame:
    """Eight CartPole runs as a sweep on one worker and on two, beside bare loops over the same runs: a row each.

    A bare loop is a process that trains and records its share of the runs and does nothing else; with two workers,
    two of them run at once.

    - ``seconds``: the whole command's, the start of Python included.
    - ``overhead``: the time in which workers did not train over the time in which they did, as the runs measured it:
      seconds x workers / sum of the runs' seconds - 1.
    - ``its own``: the overhead that a bare loop of the same round does not have: (1 + overhead) / (1 + the bare
      loop's) - 1.
    - ``time over the bare loop's``, and ``throughput``, one worker's time over that of two: these compare commands
      that ran minutes apart in one round, so they are only as steady as the machine.
    """
    contestants = [(name, workers) for workers in (1, 2) for name in (BARE_LOOP, SWEEP)]
    seconds: dict[tuple[str, int], list[float]] = {contestant: [] for contestant in contestants}
    overheads: dict[tuple[str, int], list[float]] = {contestant: [] for contestant in contestants}
    with tqdm(total=rounds * len(contestants), unit="sweep", disable=None) as bar:
        # every other round backwards: a machine that grows slower or faster steadily then wrongs none of them
        turns = [turn for i in range(rounds) for turn in (contestants[::-1] if i % 2 else contestants)]
        for name, workers in turns:
            with tempfile.TemporaryDirectory() as folder:
                time_it = _sweep_seconds if name == SWEEP else _bare_seconds
                wall = time_it(workers, timesteps, folder)
                seconds[name, workers].append(wall)
                overheads[name, workers].append(workers * wall / _training_seconds(folder) - 1)
            bar.update()

    def own(name: str, workers: int) -> float:
        pairs = zip(overheads[name, workers], overheads[BARE_LOOP, workers], strict=True)
        return statistics.median((1 + overhead) / (1 + bare) - 1 for overhead, bare in pairs)

    def ratio(one: tuple[str, int], other: tuple[str, int]) -> float:
        return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))

    return pd.DataFrame(
        {
            "contestant": name,
            "workers": workers,
            "runs": SWEPT,
            "env steps each": timesteps,
            "seconds, median": round(statistics.median(seconds[name, workers]), 1),
            "throughput over one worker": round(ratio((name, 1), (name, workers)), 3),
            "time over the bare loop's": round(ratio((name, workers), (BARE_LOOP, workers)), 3),
            "overhead": round(statistics.median(overheads[name, workers]), 3),
            "its own": round(own(name, workers), 3),
            "rounds": rounds,
        }
        for name, workers in contestants
    )


def _sweep_seconds(workers: int, timesteps: int, folder: str) -> float:
    seeds = ",".join(map(str, range(1, SWEPT + 1)))
    overrides = [f"seed={seeds}", f"total_timesteps={timesteps}", f"run_root={folder}"]
    command = [sys.executable, "-m", "rlloss", "train", "--multirun", *overrides, f"hydra.launcher.n_jobs={workers}"]
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def _training_seconds(folder: str) -> float:
    """Of all runs below ``folder`` together, as each took its own time."""
    runs = [RunFolder(path.parent).info for path in Path(folder).rglob("run.json")]
    return float(sum(run["env_steps"] / run["steps_per_second"] for run in runs))


def _bare_seconds(workers: int, timesteps: int, folder: str) -> float:
    start = time.perf_counter()
    loops = [
        subprocess.Popen([sys.executable, "-c", BARE_CODE, folder, str(timesteps), *map(str, seeds)])
        for seeds in (range(1 + worker, SWEPT + 1, workers) for worker in range(workers))
    ]
    for loop in loops:
        if loop.wait():
            raise subprocess.CalledProcessError(loop.returncode, loop.args)
    return time.perf_counter() - start


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


def benchmark_graph(rounds: int) -> pd.DataFrame:
    """Milliseconds that a slider's move takes in Chromium, on pages of ``rlloss graph``: a row per page.

    From the move to the end of scripts, style and layout, as a browser does them once a frame; at 60 frames a second
    there are 16.7 ms for it. The zoo's losses are ranked by their operations, and the largest are taken.
    Raises: ConfigError where Chromium or playwright is missing.
    """
    from rlloss.graph.browser import chromium
    from rlloss.graph.graph import trace
    from rlloss.graph.page import page
    from rlloss.losses.formulation import ZOO

    zoo = sorted((trace(name) for name in ZOO), key=lambda graph: -len(graph.nodes))
    subjects = [(trace("ppo_clip"), trace("reinforce")), *((graph,) for graph in zoo[:2])]
    rows = []
    total = len(subjects) * len(GRAPH_WIDTHS) * rounds
    with (
        chromium() as browser,
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=total, unit="page", disable=None) as bar,
    ):
        for graphs in subjects:
            name = " and ".join(graph.title for graph in graphs)
            bar.set_postfix_str(name)
            path = Path(folder) / "page.html"
            path.write_text(page(graphs), encoding="utf-8")
            for width in GRAPH_WIDTHS:
                times: list[float] = []
                for _ in range(rounds):
                    tab = browser.new_page(viewport={"width": width, "height": 900})
                    tab.goto(path.as_uri())
                    tab.wait_for_timeout(SETTLE_MS)
                    times += tab.evaluate(DRAG, MOVES)
                    tab.close()
                    bar.update()
                low, middle, high, top = np.quantile(times, [0, 0.5, 0.95, 1])
                rows.append(
                    {
                        "page": name,
                        "numbers": sum(len(graph.nodes) for graph in graphs),
                        "window, px": width,
                        "KB": round(path.stat().st_size / 1000),
                        "moves": len(times),
                        "ms, median": round(middle, 1),
                        "lowest": round(low, 1),
                        "95th percentile": round(high, 1),
                        "highest": round(top, 1),
                        "moves over 16 ms": int(np.sum(np.array(times) > 16)),
                    }
                )
    return pd.DataFrame(rows)


def _config(timesteps: int) -> Config:
    return Config(total_timesteps=timesteps)


def _bare(timesteps: int) -> float:
    """Gymnasium's vector environment under random actions: what the fastest possible agent would see."""
    config = _config(timesteps)
    envs = SyncVectorEnv([lambda: gymnasium.make(config.env.id)] * config.num_envs)
    envs.reset(seed=1)
    actions = np.random.default_rng(1).integers(0, 2, (timesteps // config.num_envs, config.num_envs))
    start = time.perf_counter()
    for action in actions:
        envs.step(action)
    return timesteps / (time.perf_counter() - start)


def _unrecorded(timesteps: int) -> float:
    return train(_config(timesteps)).steps_per_second


def _recorded(timesteps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return train(_config(timesteps), Path(folder) / "run").steps_per_second


def _stable_baselines3(timesteps: int) -> float:
    """The same algorithm and hyperparameters, value clipping and annealing included."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = _config(timesteps)
    model = PPO(
        "MlpPolicy",
        make_vec_env(config.env.id, n_envs=config.num_envs, seed=1),
        learning_rate=lambda remaining: config.learning_rate * remaining,
        n_steps=config.num_steps,
        batch_size=config.minibatch_samples,
        n_epochs=config.update_epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_coef,
        clip_range_vf=config.clip_coef,
        ent_coef=config.ent_coef,
        vf_coef=config.vf_coef,
        max_grad_norm=config.max_grad_norm,
        seed=1,
        device="cpu",
    )
    start = time.perf_counter()
    model.learn(timesteps)
    speed: float = model.num_timesteps / (time.perf_counter() - start)
    torch.set_num_threads(threads)
    return speed
