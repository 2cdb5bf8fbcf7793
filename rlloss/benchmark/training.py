"""Environment steps per second: the bare vector environment, this trainer recorded or not, and installed peers.

Every contestant runs once per round, in turn, so that a machine whose speed drifts slows all of them alike; ratios are
taken within a round. Same task for all: CartPole-v1, 4 environments x 128 steps, 4 epochs x 4 minibatches, one thread.
"""

import gc
import importlib.util
import os
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import torch
from gymnasium.vector import SyncVectorEnv
from tqdm import tqdm

from rlloss.config.schema import Config
from rlloss.errors import ConfigError
from rlloss.train.loop import train

RECORDED, UNRECORDED, AUTOGRAD, COMPILED, BARE, SB3 = (
    "rlloss, recorded",
    "rlloss, not recorded",
    "rlloss, recorded, update=autograd",
    "rlloss, recorded, update=compiled",
    "bare SyncVectorEnv",
    "Stable-Baselines3",
)
SHORT = 2048  # steps of a peer's command that are taken off, with its start


def benchmark(rounds: int, timesteps: int, peers: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A row per contestant: median, lowest and highest steps/s, and the median over rounds of the ratio to rlloss.

    ``peers``: commands by name, with ``{timesteps}`` in them. Of what a command takes, what it takes for ``SHORT``
    steps is no training.
    """
    contestants: dict[str, Callable[[int], float]] = {
        BARE: _bare, UNRECORDED: _unrecorded, RECORDED: _recorded, AUTOGRAD: partial(_recorded, update="autograd"),
    }  # fmt: skip
    if shutil.which(os.environ.get("CXX", "g++")):
        contestants[COMPILED] = partial(_recorded, update="compiled")
    if importlib.util.find_spec("stable_baselines3") is not None:
        contestants[SB3] = _stable_baselines3
    if taken := [name for name in peers or {} if name in contestants]:
        raise ConfigError(f"--peer={taken[0]}: is a contestant's name already; use another")
    if timesteps <= SHORT:
        raise ConfigError(f"--timesteps={timesteps}: training is timed after its start; use more than {SHORT}")
    contestants |= {name: partial(_command, command) for name, command in (peers or {}).items()}
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    with tqdm(total=rounds * len(contestants), unit="run", disable=None) as bar:
        for contestant in reversed(contestants.values()):  # peers first: a command may be wrong
            contestant(2 * SHORT)  # imports, allocator and caches are warm before anything counts
        gc.collect()
        gc.freeze()  # what was imported is swept for garbage in nobody's turn
        try:
            for _ in range(rounds):
                for name, contestant in contestants.items():
                    bar.set_postfix_str(name)
                    speeds[name].append(contestant(timesteps))
                    bar.update()
        finally:
            gc.unfreeze()
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
    return _trained(_config(timesteps), None)


def _recorded(timesteps: int, update: str = "auto") -> float:
    with tempfile.TemporaryDirectory() as folder:
        return _trained(replace(_config(timesteps), update=update), Path(folder) / "run")


def _trained(config: Config, folder: Path | None) -> float:
    """Steps per second after the first iteration, in which what is compiled is compiled."""
    ends: list[float] = []
    train(config, folder, lambda row: ends.append(time.perf_counter()))
    return config.num_samples * (len(ends) - 1) / (ends[-1] - ends[0])


def _command(command: str, timesteps: int) -> float:
    """Raises: ConfigError for a command that fails."""

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        try:
            subprocess.run(shlex.split(command.replace("{timesteps}", str(steps))), capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"") or str(error).encode()
            last = said.decode(errors="replace").strip().splitlines()[-1:]
            raise ConfigError(f"--peer: {command} fails ({''.join(last)})") from error
        return time.perf_counter() - start

    return (timesteps - SHORT) / max(seconds(timesteps) - seconds(SHORT), 1e-9)


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
    model.learn(config.num_samples)  # as of the others, its first iteration does not count
    start = time.perf_counter()
    model.learn(timesteps - config.num_samples, reset_num_timesteps=False)
    speed: float = (timesteps - config.num_samples) / (time.perf_counter() - start)
    torch.set_num_threads(threads)
    return speed
