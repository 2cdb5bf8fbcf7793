"""Where the runs of a sweep go: to this machine's cores, or as jobs to a Slurm cluster."""

import importlib.util
import io
import itertools
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import joblib
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlloss.config.compose import SEARCHPATH, compose_all, is_hydras, load, one_line, parse_overrides
from rlloss.config.schema import Config
from rlloss.errors import ConfigError, lookup
from rlloss.runs.place import is_finished, run_folder
from rlloss.runs.reader import RunFolder, digest_count
from rlloss.signals import asked_to_stop, listening, terminated
from rlloss.sweep.run import Outcome, Run, check_all, check_elsewhere, check_folders, kept, progress_bar, run_in
from rlloss.train.numerics import in_children

if TYPE_CHECKING:
    from submitit import AutoExecutor

CORES: dict[str, Any] = {"joblib": -1, "basic": 1}  # launchers on this machine, with their processes; -1: one per core
SLURM = ("slurm", "submitit_slurm")  # the launcher in configs/, and the one in Hydra's plugin that it is made from


class Job(NamedTuple):
    """One run of a sweep: its overrides, and the config that they make."""

    overrides: tuple[str, ...]
    config: Config


def jobs_of(overrides: Sequence[Sequence[str]]) -> list[Job]:
    """Raises: ConfigError for bad overrides."""
    return [Job(tuple(job), load(job)) for job in overrides]


def split_sweep(overrides: Sequence[str]) -> tuple[list[Job], list[str]]:
    """The jobs of a sweep, in the order of Hydra's basic sweeper, and the overrides that are Hydra's own.

    Raises: ConfigError for bad overrides.
    """
    parsed = parse_overrides(overrides)
    listed = {o.get_key_element(): _values(o) for o in parsed if not is_hydras(o) or o.key_or_group == SEARCHPATH}
    hydras = [str(o.input_line) for o in parsed if is_hydras(o) and o.key_or_group != SEARCHPATH]
    return jobs_of(list(itertools.product(*listed.values()))), hydras


def _values(override: Override) -> list[str]:
    """One override for each value that this one lists. Raises: ConfigError for a sweep over no value."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if override.is_interval_sweep() or isinstance(override.value(), Glob):
        kind = "interval" if override.is_interval_sweep() else "glob"
        raise ConfigError(f"{override.input_line}: {kind} is not supported here; list the choices with commas")
    try:
        listed = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    except (TypeError, ValueError) as error:  # as of range with a step of 0
        raise ConfigError(f"{override.input_line}: {one_line(error)}; list the values with commas") from error
    if not listed:
        raise ConfigError(f"{override.input_line}: sweeps over nothing; give at least one value")
    return listed


def quoted(key: str, value: str) -> str:
    """An override that gives ``key`` exactly this text, whatever characters it holds."""
    literal = value.replace("${", r"\${")
    return f"{key}={QuotedString(literal, Quote.single).with_quotes()}"


def sweep(jobs: Sequence[Job], hydras: Sequence[str] = ()) -> list[Outcome]:
    """Every run that is not finished, through the launcher that ``hydras`` names (joblib, on all cores).

    Everything is checked before the first run starts. Failures are returned, not raised; one leaves the others running.
    Raises: ConfigError for runs that share a folder or cannot be run, for a launcher that is missing or refuses.
    """
    check_folders([job.config for job in jobs])
    name, settings = _launcher(hydras)
    todo = [job for job in jobs if not is_finished(job.config)]
    # Longest first, so that no core idles at the end beside one long run.
    todo.sort(key=lambda job: -job.config.total_timesteps)
    configs = [job.config for job in todo]
    outcomes: dict[Path, Outcome] = {}
    if not configs:
        pass
    elif name in SLURM:
        executor = _executor(name, todo[0], hydras)
        check_elsewhere(configs)
        with progress_bar(configs), terminated("interrupted; its jobs are cancelled, and the same command goes on"):
            outcomes = _on_slurm(configs, executor)
    else:
        if settings.keys() - {"n_jobs"}:  # Hydra has the schema; joblib hands on whatever it does not know
            _composed(name, todo[0], hydras)
        parallel = _parallel({"n_jobs": CORES[name], **settings}, len(todo))
        kinds = _by_numerics(configs)
        with workers(parallel) as run:
            with terminated("interrupted before its first run; the same command begins again"):
                for kind in kinds:
                    check_all(kind, joblib.effective_n_jobs(parallel.n_jobs), run)
            with progress_bar(configs):
                for kind in reversed(kinds):  # those first whose processes are there already
                    outcomes |= _on_cores(kind, run)
    folders = [run_folder(job.config) for job in jobs]
    return [outcomes[folder] if folder in outcomes else kept(folder) for folder in folders]


def _launcher(hydras: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The launcher's name and settings. Raises: ConfigError for an unknown launcher, or another of Hydra's keys."""
    name = "joblib"
    settings: dict[str, Any] = {}
    for override in parse_overrides(hydras):
        key, line = override.key_or_group, override.input_line
        if override.is_sweep_override():
            raise ConfigError(f"{line}: all runs of a sweep go one way; give one value")
        if key == "hydra/launcher":
            name = str(override.value())
        elif key.startswith("hydra.launcher."):
            settings[key.removeprefix("hydra.launcher.")] = override.value()
        else:
            raise ConfigError(f"{line}: of Hydra's own keys a sweep takes hydra/launcher and hydra.launcher.*")
    lookup(CORES | dict.fromkeys(SLURM), "hydra/launcher", name)
    return name, settings


def _composed(name: str, job: Job, hydras: Sequence[str]) -> Any:
    """Hydra's node ``hydra.launcher``. Raises: ConfigError for settings that the launcher has not, or of another type.

    The launcher's own node, without the settings, says which there are.
    """
    try:
        return compose_all([*job.overrides, *hydras]).hydra.launcher
    except ConfigError as error:
        plain = compose_all([*job.overrides, f"hydra/launcher={name}"]).hydra.launcher
        for override in parse_overrides(hydras):
            key = override.key_or_group.removeprefix("hydra.launcher.")
            if key != override.key_or_group and key.partition(".")[0] not in plain and not override.is_add():
                keys = ", ".join(str(each) for each in plain if not str(each).startswith("_"))
                raise ConfigError(f"{override.input_line}: launcher {name} has no {key}; it has {keys}") from error
        raise


def _parallel(settings: Mapping[str, Any], runs: int) -> Any:
    """The joblib.Parallel that these settings make. Raises: ConfigError for those that joblib does not take.

    More processes than runs would only be started; two are enough for the runs to be in other processes than this.
    """
    n_jobs = settings["n_jobs"]
    if type(n_jobs) is not int or n_jobs == 0:
        raise ConfigError(f"hydra.launcher.n_jobs={n_jobs}: must be a number of processes, or -1 for one per core")
    try:
        return joblib.Parallel(**{"batch_size": 1, **settings, "n_jobs": min(n_jobs, max(2, runs))})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"hydra/launcher=joblib: {one_line(error)}") from error


def _by_numerics(configs: Sequence[Config]) -> list[list[Config]]:
    kinds: dict[str, list[Config]] = {}
    for config in configs:
        kinds.setdefault(config.numerics.name, []).append(config)
    return list(kinds.values())


@contextmanager
def workers(parallel: Any) -> Iterator[Run]:
    """Within: what makes calls in joblib's processes, all of them started as runs of one numerics need it.

    joblib keeps its processes, whose environment is the one that they were started with: a pool is shut down before it
    would be handed runs of other numerics. Where one process is asked for, joblib makes the calls in this one, which
    may be none that can.
    """
    pool = ""  # the numerics that the processes were started for, where this process itself could not compute them

    def run(numerics: str, calls: Iterable[Any]) -> list[Any]:
        nonlocal pool
        with in_children(numerics) as elsewhere:
            needed = numerics if elsewhere else ""
            if needed != pool:
                get_reusable_executor().shutdown()
            pool = needed
            if not elsewhere or joblib.effective_n_jobs(parallel.n_jobs) > 1:
                try:
                    return list(parallel(calls))
                except multiprocessing.TimeoutError as error:
                    setting = f"hydra.launcher.timeout={parallel.timeout}"
                    raise ConfigError(f"{setting}: a run took longer; use more seconds, or leave it out") from error
            executor = get_reusable_executor(max_workers=1)
            futures = [executor.submit(function, *args, **kwargs) for function, args, kwargs in calls]
            return [future.result() for future in futures]

    try:
        yield run
    finally:
        if pool:
            get_reusable_executor().shutdown()


def _on_cores(configs: Sequence[Config], run: Run) -> dict[Path, Outcome]:
    """What came of the runs, by folder. Where a killed worker takes joblib's pool along, launch again what is left.

    The runs that it interrupted go on, one at a time, so that only the one that kills its worker fails: once it comes
    no further than before. If none had begun, as where memory is short already for the imports, all that are left go
    again. Being asked to stop is handed on to the workers, each of which ends its run after the iteration.
    """
    outcomes: dict[Path, Outcome] = {}
    batches, here = [list(configs)], Path.cwd()
    with listening(forward=_signal_workers):
        while batches:
            batch = batches.pop(0)
            before = {run_folder(config): _touched(config) for config in batch}
            reached = {folder: digest_count(folder) for folder in before}
            try:
                calls = [joblib.delayed(run_in)(here, config) for config in batch]
                outcomes |= zip(before, run(batch[0].numerics.name, calls), strict=True)
            except BrokenProcessPool as error:
                if signum := asked_to_stop():
                    ended = [run_folder(config) for config in batch if not is_finished(config)]
                    outcomes |= {folder: Outcome(str(folder)) for folder in before}
                    outcomes |= {
                        folder: Outcome(str(folder), "its process was ended", signum=signum) for folder in ended
                    }
                elif len(batch) == 1 and digest_count(*before) <= reached[next(iter(before))]:
                    (folder,) = before
                    outcomes[folder] = Outcome(str(folder), f"its process was killed ({one_line(error)})")
                else:
                    batches += _again(batch, before)
    return outcomes


def _again(batch: Sequence[Config], before: Mapping[Path, int]) -> list[list[Config]]:
    """What is left of a batch whose pool broke: the runs that had not begun, and each of the others by itself."""
    unfinished = [config for config in batch if not is_finished(config)]
    interrupted = [c for c in unfinished if _touched(c) != before[run_folder(c)]] or unfinished
    left = [config for config in unfinished if config not in interrupted]
    return [*([left] if left else []), *([config] for config in interrupted)]


def _signal_workers(signum: int) -> None:
    for worker in multiprocessing.active_children():
        if worker.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signum)


def _touched(config: Config) -> int:
    """When the run's status was last written; 0 if never."""
    path = RunFolder(run_folder(config)).path / "run.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def _executor(name: str, job: Job, hydras: Sequence[str]) -> "AutoExecutor":
    """submitit's executor with the settings in Hydra's node ``hydra.launcher``, which may refer to keys of the run.

    Raises: ConfigError for what is not installed, and for what Hydra or submitit rejects.
    """
    if not all(map(importlib.util.find_spec, ("submitit", "hydra_plugins.hydra_submitit_launcher"))):
        raise ConfigError(f"hydra/launcher={name}: its launcher is not installed; pip install 'rlloss[slurm]'")
    if absent := [program for program in ("sbatch", "srun") if shutil.which(program) is None]:
        raise ConfigError(
            f"hydra/launcher={name}: no {absent[0]} on this machine; run this where Slurm is installed, a login node "
            "say, or leave the launcher out to run on this machine's cores"
        )
    from submitit import AutoExecutor

    node = _composed(name, job, hydras)
    try:
        settings: Any = OmegaConf.to_container(node, resolve=True)
        del settings["_target_"]
        folder, retries = settings.pop("submitit_folder"), settings.pop("max_num_timeout")
        executor = AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=retries)
        executor.update_parameters(**{f"slurm_{key}": value for key, value in settings.items()})
    except (OmegaConfBaseException, NameError, ValueError) as error:  # submitit's for a name that it does not know
        raise ConfigError(one_line(error)) from error
    return executor


def _on_slurm(configs: Sequence[Config], executor: "AutoExecutor") -> dict[Path, Outcome]:
    """What came of the runs, by folder. Each is a job of an array; arrays of the size that the cluster takes follow
    one another, so that ``array_parallelism`` holds for all.

    A run whose job was killed goes on in another job, as long as each comes further than the one before.
    """
    from submitit.core.utils import FailedJobError

    from rlloss.sweep.slurm import Lost, QueuedJob, RunOne, array_size, nothing_left, outcomes_of

    outcomes: dict[Path, Outcome] = {}
    size = array_size()
    parts = [configs[i : i + size] for i in range(0, len(configs), size)]
    while parts:
        part = parts.pop(0)
        reached = [digest_count(run_folder(config)) for config in part]
        try:
            # where submitit prints what it raises
            with nothing_left(executor.folder), redirect_stderr(io.StringIO()):
                jobs = executor.map_array(RunOne(), part)  # type: ignore[no-untyped-call]
        except FailedJobError as error:
            lines = [line.removeprefix("sbatch: ") for line in str(error).splitlines() if line.startswith("sbatch:")]
            raise ConfigError(
                f"hydra/launcher=slurm: sbatch takes no jobs: {' '.join(lines) or one_line(error)}; mend that with "
                "hydra.launcher.KEY=VALUE, or leave the launcher out to run on this machine's cores"
            ) from error
        # submitit names its own class for the jobs of an array, whatever the executor's job_class
        queued = [QueuedJob(executor.folder, job.job_id) for job in jobs]
        found = outcomes_of(queued, part)
        outcomes |= zip(map(run_folder, part), found, strict=True)
        killed = [
            config
            for config, outcome, before in zip(part, found, reached, strict=True)
            if isinstance(outcome, Lost) and outcome.killed and digest_count(run_folder(config)) > before
        ]
        parts += [killed] if killed else []
    return outcomes


def config_text(what: str, overrides: Sequence[str]) -> str:
    """Hydra's ``--cfg job|hydra|all``. Raises: ConfigError for what Hydra rejects."""
    composed = compose_all(overrides)
    job = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    hydra = OmegaConf.masked_copy(composed.hydra, [key for key in composed.hydra if "help" not in key])
    return OmegaConf.to_yaml({"job": job, "hydra": {"hydra": hydra}, "all": composed}[what])
