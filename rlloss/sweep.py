"""Many runs: skip what is finished, run the rest on several cores, show one bar, and say what came of each."""

import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import joblib
from tqdm import tqdm

from rlloss.config import Config, ConfigError, run_folder
from rlloss.runs import DIGEST_BYTES, RunFolder

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """What came of one run. ``reason`` is empty unless it failed."""

    folder: Path
    reason: str = ""
    traceback: str = ""


def run_one(config: Config) -> Outcome:
    """Train one config into its folder, unless that run is finished. Failures are returned, not raised.

    Worker processes lose an exception's frames on the way home, so the traceback travels as text.
    """
    from rlloss.record import check_folder  # torch is imported in the worker, not in the process that waits
    from rlloss.train import train

    folder = run_folder(config)
    try:
        check_folder(folder, config)
        if RunFolder(folder).status != "finished":
            train(config, folder)
    except ConfigError as error:
        return Outcome(folder, str(error))
    except Exception as error:
        return Outcome(folder, f"{type(error).__name__}: {error}", traceback.format_exc())
    return Outcome(folder)


def run_all(configs: Sequence[Config], jobs: int) -> list[Outcome]:
    """Every config once, in ``jobs`` processes; one failure leaves the others running."""
    todo = [config for config in configs if RunFolder(run_folder(config)).status != "finished"]
    done = [Outcome(run_folder(config)) for config in configs if config not in todo]
    if not todo:
        return done
    with progress_bar(todo):
        # Longest first, so that no core idles at the end beside one long run.
        todo.sort(key=lambda config: -config.total_timesteps)
        return done + list(joblib.Parallel(n_jobs=jobs, batch_size=1)(joblib.delayed(run_one)(c) for c in todo))


@contextmanager
def progress_bar(configs: Sequence[Config]) -> Iterator[None]:
    """One bar over the environment steps of several runs, read off the sizes of their digest files."""
    total = sum(config.num_iterations * config.num_samples for config in configs)
    stop = threading.Event()

    def env_steps(config: Config) -> int:
        path = run_folder(config) / "digests.bin"
        steps = path.stat().st_size // DIGEST_BYTES if path.exists() else 0
        return steps * config.num_samples // (config.update_epochs * config.num_minibatches)

    def watch() -> None:
        finished = 0
        with tqdm(total=total, unit="step", unit_scale=True, disable=None, desc=f"{len(configs)} runs") as bar:
            while not stop.wait(POLL_SECONDS):
                bar.update(max(0, sum(map(env_steps, configs)) - bar.n))
                now = sum(RunFolder(run_folder(config)).status == "finished" for config in configs)
                if now != finished:
                    finished = now
                    bar.set_postfix_str(f"{finished}/{len(configs)} finished")
            bar.update(max(0, min(total, sum(map(env_steps, configs))) - bar.n))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
