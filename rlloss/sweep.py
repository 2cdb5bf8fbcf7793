"""What every sweep does, wherever its runs go: check all, run one and say what came of it, show one bar over all."""

import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool
from tqdm import tqdm

from rlloss.config import ConfigError, check_folder, run_folder
from rlloss.provenance import made_otherwise
from rlloss.runs import DIGEST_BYTES, RunFolder
from rlloss.schema import Config

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """What came of one run. ``reason`` is empty unless it failed."""

    folder: str
    reason: str = ""
    traceback: str = ""


def is_finished(config: Config) -> bool:
    return RunFolder(run_folder(config)).status == "finished"


def others_note(configs: Sequence[Config]) -> str:
    """Of finished runs, which are kept: how many were made by other versions, and by which. Empty if none was."""
    runs = [RunFolder(run_folder(config)) for config in configs]
    found = [differing for run in runs if run.status == "finished" and (differing := made_otherwise(run))]
    if not found:
        return ""
    many = f"{len(found)} finished runs were" if len(found) > 1 else "a finished run was"
    return f"note: {many} made by other versions ({'; '.join(found[0])}); remove the folders to make them again"


def run_one(config: Config) -> Outcome:
    """Train one config into its folder, unless that run is finished. Failures are returned, not raised.

    Worker processes lose an exception's frames on the way home, so the traceback travels as text.
    """
    from rlloss.train import train  # here, so that `verify` and `report` need not wait for torch

    folder = run_folder(config)
    try:
        check_folder(folder, config)
        if not is_finished(config):
            train(config, folder)
    except ConfigError as error:
        return Outcome(str(folder), str(error))
    except Exception as error:
        return Outcome(str(folder), f"{type(error).__name__}: {error}", traceback.format_exc())
    return Outcome(str(folder))


def check_folders(configs: Sequence[Config]) -> None:
    """Raises: ConfigError for two runs in one folder, and for a folder that holds something else."""
    folders = [run_folder(config) for config in configs]
    for folder, config in zip(folders, configs, strict=True):
        if folders.count(folder) > 1:
            raise ConfigError(
                f"run_dir={folder}: runs of this sweep share it; leave run_dir out, or put ${{loss.name}} in it"
            )
        check_folder(folder, config)


def check_all(configs: Sequence[Config], n_jobs: int, *, here: bool = True) -> None:
    """Everything that ``train`` checks, for all of these before the first of them runs, in ``n_jobs`` processes.

    Unless they run ``here``, device and threads are left to the jobs: a cluster's login node need not have them.

    Those are joblib's, which keeps them for the runs: so they import torch, which takes seconds, all at once and while
    they check, and this process needs no torch at all. Raises: ConfigError for a config that cannot be run.
    """
    if not here:
        configs = [replace(config, device="cpu", torch_threads=1) for config in configs]
    distinct = list({repr(replace(config, seed=0, run_dir=None)): config for config in configs}.values())
    shares = [distinct[i::n_jobs] or distinct[:1] for i in range(min(n_jobs, len(configs)))]
    try:
        joblib.Parallel(n_jobs=n_jobs, batch_size=1)(joblib.delayed(_validate)(share) for share in shares)
    except BrokenProcessPool as error:
        raise ConfigError(
            f"{n_jobs} worker processes: one was killed before the first run, as where memory is short; use fewer, "
            "with hydra.launcher.n_jobs or --jobs"
        ) from error


def _validate(configs: Sequence[Config]) -> None:
    from rlloss.train import validate

    for config in configs:
        validate(config)


@contextmanager
def progress_bar(configs: Sequence[Config]) -> Iterator[None]:
    """One bar over the environment steps of several runs, read off the sizes of their digest files."""
    total = sum(config.num_iterations * config.num_samples for config in configs)
    stop = threading.Event()

    def env_steps(config: Config) -> int:
        path = run_folder(config) / "digests.bin"
        steps = path.stat().st_size // DIGEST_BYTES if path.exists() else 0
        return steps * config.num_samples // (config.update_epochs * config.num_minibatches)

    def show(bar: "tqdm[Any]") -> None:
        bar.update(max(0, min(total, sum(map(env_steps, configs))) - bar.n))
        finished = sum(map(is_finished, configs))
        bar.set_postfix_str(f"{finished}/{len(configs)} finished")

    def watch() -> None:
        with tqdm(total=total, unit="step", unit_scale=True, disable=None, desc=f"{len(configs)} runs") as bar:
            while not stop.wait(POLL_SECONDS if not bar.disable else None):
                show(bar)
            show(bar)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
