"""What every sweep does, wherever its runs go: check all, run one and say what came of it, show one bar over all."""

import os
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool
from tqdm import tqdm

from rlloss.config.schema import Config, NumericsConfig
from rlloss.errors import ConfigError, EnvironmentFailed, Interrupted, RunFailed
from rlloss.runs.place import check_folder, is_finished, run_folder
from rlloss.runs.provenance import made_otherwise
from rlloss.runs.reader import CHECKPOINT, RunFolder, digest_count
from rlloss.signals import asked_to_stop, listen, setting_up

POLL_SECONDS = 0.5
Run = Callable[[str, Iterable[Any]], list[Any]]
"""What makes joblib's delayed calls, for runs of some numerics, and returns their results."""


@dataclass(frozen=True)
class Outcome:
    """What came of one run. ``reason`` is empty unless it failed."""

    folder: str
    reason: str = ""
    traceback: str = ""
    signum: int = 0  # of the signal that asked the run to stop, or not to begin


def is_begun(config: Config) -> bool:
    """Whether there is something of this run to go on from."""
    return (run_folder(config) / CHECKPOINT).exists()


def plan(configs: Sequence[Config]) -> str:
    """What is to be done, in words: how many runs are finished, go on where they were cut, or begin."""
    todo = [config for config in configs if not is_finished(config)]
    cut = sum(map(is_begun, todo))
    counts = [f"{len(configs) - len(todo)} of them finished already"]
    counts += [f"{cut} go on where they were cut"] if cut else []
    counts += [f"{len(todo) - cut} begin"] if todo else []
    return f"{len(configs)} runs, {', '.join(counts)}"


def kept(folder: Path) -> Outcome:
    """What came of a run that was finished before, and is not run again: since then it may have lost a file."""
    damage = RunFolder(folder).damage
    return Outcome(str(folder), f"{damage}; remove the folder to run it again" if damage else "")


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

    It ends early where the process has been asked to stop (``signals.listen``).

    Worker processes lose an exception's frames on the way home, so the traceback travels as text.
    """
    from rlloss.train.loop import train  # here, so that `verify` and `report` need not wait for torch

    folder = run_folder(config)
    try:
        check_folder(folder, config)
        if not is_finished(config):
            if signum := asked_to_stop():
                return Outcome(str(folder), "has not begun", signum=signum)
            with setting_up() as begins:
                train(config, folder, asked_to_stop=asked_to_stop, begins=begins)
    except Interrupted as error:
        return Outcome(str(folder), str(error), signum=error.signum)
    except EnvironmentFailed as error:
        cause = error.__cause__ or error
        return Outcome(str(folder), str(error), "".join(traceback.format_exception(cause)))
    except (ConfigError, RunFailed) as error:
        return Outcome(str(folder), str(error))
    except OSError as error:
        if error.filename is None:
            return Outcome(str(folder), f"{type(error).__name__}: {error}", traceback.format_exc())
        return Outcome(str(folder), f"{error.filename}: {error.strerror}; name another run_root or run_dir")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() in somebody's program ends that run, and not the others
        return Outcome(str(folder), f"{type(error).__name__}: {error}", traceback.format_exc())
    return Outcome(str(folder))


def run_in(folder: Path, config: Config) -> Outcome:
    """``run_one`` in a worker: joblib keeps its processes, which stay in the folder in which they were started."""
    os.chdir(folder)
    if not asked_to_stop():
        listen()
    return run_one(config)


def check_folders(configs: Sequence[Config]) -> None:
    """Raises: ConfigError for two runs in one folder, and for a folder that holds something else."""
    first: dict[Path, Config] = {}
    for config in configs:
        folder = run_folder(config)
        if folder in first:
            raise ConfigError(_shared(folder, first[folder], config))
        first[folder] = config
        check_folder(folder, config)


def _shared(folder: Path, one: Config, other: Config) -> str:
    """Why two runs of a sweep are in one folder, with the remedy."""
    a, b = one.flat(), other.flat()
    differing = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    if not differing:
        return f"{folder}: the sweep lists this run twice; give each value once"
    keys = "".join(f"_${{{key}}}" for key in differing)
    what = f"runs of this sweep that differ in {', '.join(differing)} share it"
    return f"run_dir={folder}: {what}; leave run_dir out, or end it with {keys}"


def check_elsewhere(configs: Sequence[Config]) -> None:
    """The same for runs made on other machines, in this process. What a login node need not have is left to the jobs:
    device, threads, numerics, and memory for a batch.
    """
    native = NumericsConfig("native")
    here = [
        replace(c, device="cpu", torch_threads=1, numerics=native, num_steps=min(c.num_steps, 2), num_minibatches=1)
        for c in configs
    ]
    check_all(here, 1, lambda numerics, calls: list(joblib.Parallel(n_jobs=1)(calls)))


def check_all(configs: Sequence[Config], n_jobs: int, run: Run) -> None:
    """Everything that ``train`` checks, for all configs before the first of them runs, in ``n_jobs`` processes.

    joblib keeps these processes for the runs. They import torch, which takes seconds, all at once while they check;
    this process never needs it. The configs are of one numerics. Raises: ConfigError for a config that cannot be run.
    """
    distinct = list({repr(replace(config, seed=0, run_dir=None)): config for config in configs}.values())
    shares = [distinct[i::n_jobs] or distinct[:1] for i in range(min(n_jobs, len(configs)))]
    try:
        run(configs[0].numerics.name, [joblib.delayed(_validate)(Path.cwd(), share) for share in shares])
    except BrokenProcessPool as error:
        raise ConfigError(
            f"{n_jobs} worker processes: one was killed before the first run, as where memory is short; use fewer, "
            "with hydra.launcher.n_jobs or --jobs"
        ) from error


def _validate(folder: Path, configs: Sequence[Config]) -> None:
    os.chdir(folder)
    from rlloss.train.loop import validate

    for config in configs:
        validate(config)


@contextmanager
def progress_bar(configs: Sequence[Config]) -> Iterator[None]:
    """One bar over the environment steps of several runs, read off the sizes of their digest files."""
    total = sum(config.num_iterations * config.num_samples for config in configs)
    stop = threading.Event()

    def env_steps(config: Config) -> int:
        return digest_count(run_folder(config)) * config.num_samples // (config.update_epochs * config.num_minibatches)

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
