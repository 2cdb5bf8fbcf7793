"""Sweeps through Hydra's launchers: the runs of a list on this machine's cores, or as the jobs of a Slurm cluster."""

import functools
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import joblib
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Glob
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from joblib.externals.loky.process_executor import BrokenProcessPool
from omegaconf.errors import OmegaConfBaseException

from rlloss.config import ConfigError, data_dir, is_hydras, load, one_line, parse_overrides, run_folder, to_config
from rlloss.runs import RunFolder
from rlloss.schema import Config
from rlloss.sweep import Outcome, check_all, check_folders, is_finished, progress_bar, run_one

LOCAL = ("joblib", "basic", "submitit_local")  # launchers that run jobs on this machine
SLURM = ("slurm", "submitit_slurm")  # names of the launcher in configs/ and in Hydra's plugin


class Job(NamedTuple):
    """One run of a sweep: its overrides, and the config that they make."""

    overrides: tuple[str, ...]
    config: Config


def jobs_of(overrides: Sequence[Sequence[str]]) -> list[Job]:
    """Raises: ConfigError for bad overrides."""
    return [Job(tuple(job), load(job)) for job in overrides]


def split_sweep(overrides: Sequence[str]) -> tuple[list[Job], list[str]]:
    """The jobs of a sweep, split as Hydra's basic sweeper splits them, and the overrides that are Hydra's own.

    Raises: ConfigError for bad overrides.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parsed = parse_overrides(overrides)
    for override in parsed:
        if isinstance(override.value(), Glob):
            raise ConfigError(f"{override.input_line}: glob is not supported here; list the choices with commas")
    hydras = [str(override.input_line) for override in parsed if is_hydras(override)]
    (split,) = BasicSweeper.split_arguments([o for o in parsed if not is_hydras(o)], max_batch_size=None)
    return jobs_of(split), hydras


def quoted(key: str, value: str) -> str:
    """An override that gives ``key`` exactly this text, whatever characters it holds."""
    literal = value.replace("${", r"\${")
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), literal)
    return f"{key}='{escaped}'"


def sweep(jobs: Sequence[Job], hydras: Sequence[str] = ()) -> list[Outcome]:
    """Every run that is not finished, through the launcher that ``hydras`` names (joblib, on all cores).

    Everything is checked before the first run starts. Failures are returned, not raised; one leaves the others running.
    Raises: ConfigError for runs that share a folder or cannot be run, for a launcher that is missing or refuses.
    """
    check_folders([job.config for job in jobs])
    for override in hydras:
        if not override.lstrip("+").startswith(("hydra.launcher.", "hydra/launcher=")):
            raise ConfigError(f"{override}: of Hydra's own keys a sweep takes hydra/launcher and hydra.launcher.*")
    todo = [job for job in jobs if not is_finished(job.config)]
    # Longest first, so that no core idles at the end beside one long run.
    todo.sort(key=lambda job: -job.config.total_timesteps)
    outcomes: dict[Path, Outcome] = {}
    if todo:
        here = _settings(hydras)[0] in LOCAL
        check_all([job.config for job in todo], cores_of(hydras) or 1, here=here)
        with launcher(todo, hydras) as launch, progress_bar([job.config for job in todo]):
            outcomes = _launch_all(launch, todo)
    folders = [run_folder(job.config) for job in jobs]
    return [outcomes.get(folder, Outcome(str(folder))) for folder in folders]


# ------------------------------------------------------------------------------------------------ Hydra's launchers

Launch = Callable[[Sequence[Job]], list[Outcome]]


@contextmanager
def launcher(jobs: Sequence[Job], hydras: Sequence[str]) -> Iterator[Launch]:
    """A function that runs jobs through Hydra's launcher and waits for them. The launcher's settings may refer to
    keys of the first job. Raises: ConfigError for what Hydra, the launcher or Slurm rejects."""
    if n_jobs := cores_of(hydras):
        yield functools.partial(_on_cores, n_jobs=n_jobs)
        return
    name, given = _settings(hydras)
    settings = list(hydras)
    if name == "joblib" and "hydra.launcher.n_jobs" not in given:
        settings.append(f"hydra.launcher.n_jobs={os.cpu_count() or 1}")
    if name in SLURM:
        _need_slurm(name)
    with _refusals_are_bad_input():
        plugin = _instantiate([*jobs[0].overrides, *settings])

        def launch(batch: Sequence[Job], first: int = 0) -> list[Outcome]:
            returns = plugin.launch([list(job.overrides) for job in batch], initial_job_idx=first)
            return [_outcome(job, returned) for job, returned in zip(batch, returns, strict=True)]

        if name in SLURM:
            from rlloss.slurm import array_size, patient_jobs

            def launch_arrays(batch: Sequence[Job]) -> list[Outcome]:
                size = array_size()
                parts = [launch(batch[i : i + size], i) for i in range(0, len(batch), size)]
                return [outcome for part in parts for outcome in part]

            with patient_jobs():
                yield launch_arrays
        else:
            yield launch


def _settings(hydras: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The launcher's name, and what is set of ``hydra.launcher.*``."""
    name = next((o.partition("=")[2] for o in reversed(hydras) if o.startswith("hydra/launcher=")), "joblib")
    return name, dict(o.lstrip("+").split("=", 1) for o in hydras if not o.startswith("hydra/launcher="))


def cores_of(hydras: Sequence[str]) -> int | None:
    """How many processes share the runs on this machine; None if Hydra's own launcher is to see to that.

    Raises: ConfigError for a number that is none.
    """
    name, given = _settings(hydras)
    if name != "joblib" or not given.keys() <= {"hydra.launcher.n_jobs"}:
        return None
    text = given.get("hydra.launcher.n_jobs", "-1")
    try:
        return int(joblib.effective_n_jobs(int(text)))
    except ValueError as error:
        raise ConfigError(
            f"hydra.launcher.n_jobs={text}: must be a number of processes, or -1 for one per core"
        ) from error


def _on_cores(batch: Sequence[Job], *, n_jobs: int) -> list[Outcome]:
    """What Hydra's joblib launcher does, without composing in the worker what is composed and checked already.

    That takes it some tenths of a second a run, which in a sweep of short runs is a good part of the whole.
    """
    return list(joblib.Parallel(n_jobs=n_jobs, batch_size=1)(joblib.delayed(run_one)(job.config) for job in batch))


def _instantiate(overrides: Sequence[str]) -> Any:
    """Hydra's multirun up to its sweeper, which takes products of values only, and drops what the jobs return."""
    version.setbase("1.3")
    GlobalHydra.instance().clear()
    search_path = create_config_search_path(str(data_dir("configs").resolve()))
    hydra = Hydra.create_main_hydra2("rlloss", search_path)
    try:
        config = hydra.compose_config("config", list(overrides), run_mode=RunMode.MULTIRUN)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=_callbacks(config))
        return Plugins.instance().instantiate_launcher(context, sweep_job, config)
    finally:
        GlobalHydra.instance().clear()


def _callbacks(config: Any) -> Any:
    from hydra._internal.callbacks import Callbacks

    return Callbacks(config)


def _need_slurm(name: str) -> None:
    if importlib.util.find_spec("submitit") is None or _plugin_is_missing():
        raise ConfigError(f"hydra/launcher={name}: its launcher is not installed; pip install 'rlloss[slurm]'")
    if shutil.which("sbatch") is None:
        raise ConfigError(
            f"hydra/launcher={name}: no sbatch on this machine; run this where Slurm is installed, a login node say, "
            "or leave the launcher out to run on this machine's cores"
        )


def _plugin_is_missing() -> bool:
    return importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None


@contextmanager
def _refusals_are_bad_input() -> Iterator[None]:
    """Jobs never raise (sweep_job): a ValueError is a launcher's complaint about its settings, and so is sbatch's."""
    try:
        yield
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(one_line(error)) from error
    except Exception as error:
        if type(error).__name__ != "FailedJobError":  # submitit's, which may not be installed
            raise
        said = [line for line in str(error).splitlines() if line.startswith("sbatch:")]
        raise ConfigError(" ".join(said) or one_line(error)) from error


def sweep_job(composed: object) -> Outcome:
    """One job of a sweep, wherever its launcher runs it."""
    return run_one(to_config(composed))


def _outcome(job: Job, returned: Any) -> Outcome:
    """What a launcher handed back for a job: Hydra's JobReturn, or a rlloss.slurm.Lost."""
    folder = str(run_folder(job.config))
    if not hasattr(returned, "status"):
        finished = is_finished(job.config)  # killed after its last step
        return Outcome(folder) if finished else Outcome(folder, returned.reason, returned.log)
    if returned.status is JobStatus.COMPLETED:
        outcome: Outcome = returned.return_value
        return outcome
    error = returned._return_value
    return Outcome(folder, f"{type(error).__name__}: {error}")


def _launch_all(launch: Launch, todo: Sequence[Job]) -> dict[Path, Outcome]:
    """Launch all; where a killed worker takes joblib's pool along, launch what is left.

    The runs that it interrupted go again, one at a time, so that only the one that kills its worker fails. If none
    had begun, as where memory is short already for the imports, all that are left do.
    """
    outcomes: dict[Path, Outcome] = {}
    batches = [list(todo)]
    while batches:
        batch = batches.pop(0)
        before = {run_folder(job.config): _touched(job) for job in batch}
        try:
            outcomes |= zip(before, launch(batch), strict=True)
        except BrokenProcessPool as error:
            if len(batch) == 1:
                (folder,) = before
                outcomes[folder] = Outcome(str(folder), f"its process was killed ({one_line(error)})")
                continue
            interrupted = [job for job in batch if _touched(job) != before[run_folder(job.config)]]
            interrupted = [job for job in interrupted if not is_finished(job.config)]
            interrupted = interrupted or [job for job in batch if not is_finished(job.config)]
            left = [job for job in batch if job not in interrupted and not is_finished(job.config)]
            batches += [*([left] if left else []), *([job] for job in interrupted)]
    return outcomes


def _touched(job: Job) -> int:
    """When the run's status was last written; 0 if never."""
    path = RunFolder(run_folder(job.config)).path / "run.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def print_config(what: str, overrides: Sequence[str]) -> None:
    """Hydra's ``--cfg job|hydra|all``. Raises: ConfigError for what Hydra rejects."""
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us, instead of Hydra's own sys.exit
    before, sys.argv = sys.argv, ["rlloss train", "--cfg", what, *overrides]
    try:
        configs = str(data_dir("configs").resolve())
        hydra.main(version_base="1.3", config_path=configs, config_name="config")(sweep_job)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(one_line(error)) from error
    finally:
        sys.argv = before
