"""Kills runs for real, and has the same command go on: run by test_kills.py as a process that has torch loaded once.

    python -m tests.runs.killing random SETTING KILLS SEED FOLDER
    python -m tests.runs.killing writes SETTING EVERY SEED FOLDER

Every training is a forked process. Prints a line of JSON for each run that was killed and then finished.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from rlloss.config import load
from rlloss.runs import RunFolder
from rlloss.train import train
from rlloss.train.checkpoint import unpack

SETTINGS: dict[str, tuple[str, ...]] = {
    "cartpole": ("total_timesteps=8192", "snapshot_every=7"),
    "tiny": ("num_envs=2", "num_steps=50", "total_timesteps=600", "snapshot_every=3", "best=metric"),
    "plateau": ("env=pendulum", "total_timesteps=8192", "schedule=plateau", "schedule.patience=1", "stop=never"),
    "early stop": ("total_timesteps=8192", "stop=no_improvement", "stop.monitor=episodic_return", "stop.mode=max",
                   "stop.patience=9"),
    "lunarlander": ("env=lunarlander", "total_timesteps=6144", "best=metric", "best.monitor=episodic_return",
                    "best.mode=max", "num_envs=3"),
    "halfcheetah": ("env=halfcheetah", "total_timesteps=6144", "num_envs=2", "num_steps=256", "num_minibatches=8"),
    "breakout": ("env=breakout", "total_timesteps=512", "num_envs=2", "num_steps=32", "num_minibatches=2",
                 "update_epochs=1"),
    "grad scaler": ("precision=fp16_scaled", "total_timesteps=4096"),
    "lbfgs": ("optimizer=lbfgs", "total_timesteps=4096", "num_minibatches=2", "max_grad_norm=inf"),
    "bf16": ("precision=bf16", "env=pendulum", "total_timesteps=4096"),
    "tensorboard": ("logger=tensorboard", "env=mountaincar", "total_timesteps=4096", "num_steps=64"),
}  # fmt: skip
BETWEEN = "checkpoint_seconds=0.05"
WRITES = {"write", "fsync", "replace", "truncate", "unlink", "mkdir", "open", "link", "rename", "writelines", "flush"}

WRITERS = ("rlloss/runs/", "pathlib", "filelock")  # whose calls count


def forked(work: Callable[[], None]) -> int:
    """The process id of a child that does this and ends; 1 is its exit code if it raised."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def run(setting: str, folder: Path, *more: str, before: Callable[[], None] = lambda: None) -> int:
    def work() -> None:
        config = load([*SETTINGS[setting], *more])
        before()
        train(config, folder)

    return forked(work)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def power_loss(folder: Path, rng: random.Random) -> None:
    """What had not reached the disk is gone, in part: the tails after the checkpoint, and the files half written."""
    kept = {"digests.bin": 0, "metrics.csv": 0, "episodes.csv": 0, "decisions.csv": 0}
    if (folder / "checkpoint.safetensors").exists():
        written = unpack(folder / "checkpoint.safetensors")["written"]
        kept["digests.bin"] = written["optimizer_steps"] * 32
        for name, rows in written["rows"].items():
            lines = (folder / name).read_bytes().splitlines(keepends=True)
            kept[name] = sum(map(len, lines[: rows + 1]))
    for path in [*(folder / name for name in kept), *folder.rglob("*.partial")]:
        if path.exists():
            os.truncate(path, rng.randint(min(kept.get(path.name, 0), path.stat().st_size), path.stat().st_size))


def killed_at_random(setting: str, kills: int, seed: int, home: Path) -> Iterator[dict[str, object]]:
    rng = random.Random(seed)
    start = time.monotonic()
    assert ended(run(setting, home / "whole")) == 0
    seconds = time.monotonic() - start
    while kills > 0:
        folder, resumed, times = home / f"killed-{kills}", 0, 0
        for _ in range(min(kills, rng.choice((1, 1, 2)))):
            pid = run(setting, folder, BETWEEN)
            if rng.random() < 0.7:  # past a checkpoint; else anywhere, the very start included
                while not (folder / "checkpoint.safetensors").exists() and not os.waitid(
                    os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
                ):
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.5) * seconds)
            else:
                time.sleep(rng.uniform(0, 1) * seconds)
            os.kill(pid, signal.SIGKILL)
            if ended(pid) == -signal.SIGKILL:
                times += 1
                resumed += (folder / "checkpoint.safetensors").exists()
                if rng.random() < 0.5:
                    power_loss(folder, rng)
        kills -= times
        if times:
            code = 0 if RunFolder(folder).status == "finished" else ended(run(setting, folder))
            yield {"folder": str(folder), "kills": times, "resumed": resumed, "exit": code}


def killed_at_writes(setting: str, every: int, seed: int, home: Path) -> Iterator[dict[str, object]]:
    """One kill before each call that writes, or before every ``every``-th of them."""
    assert ended(run(setting, home / "whole")) == 0
    n = seed % every
    while True:
        folder = home / f"killed-{n}"

        def before(n: int = n) -> None:
            left = n

            def profile(frame: FrameType, event: str, arg: object) -> None:
                nonlocal left
                writing = event == "c_call" and getattr(arg, "__name__", "") in WRITES
                if writing and any(part in frame.f_code.co_filename for part in WRITERS):
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1

            sys.setprofile(profile)

        if ended(run(setting, folder, "checkpoint_seconds=0", before=before)) != -signal.SIGKILL:
            return  # there is no such call
        resumed = (folder / "checkpoint.safetensors").exists()
        status = RunFolder(folder).status
        code = 0 if status == "finished" else ended(run(setting, folder))
        yield {"folder": str(folder), "kills": 1, "resumed": int(resumed), "exit": code, "status": status}
        n += every


if __name__ == "__main__":
    train(load(SETTINGS["tiny"]))  # so that no child has anything left to import
    how, setting, number, seed, home = sys.argv[1:]
    for done in {"random": killed_at_random, "writes": killed_at_writes}[how](
        setting, int(number), int(seed), Path(home)
    ):
        print(json.dumps(done), flush=True)
