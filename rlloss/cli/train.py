"""``rlloss train``: one run, or with --multirun a sweep."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rlloss import tables
from rlloss.cli.arguments import Parser
from rlloss.cli.exits import Exit
from rlloss.cli.loading import unswept
from rlloss.config.choices import choices, groups
from rlloss.config.compose import SEARCHPATH, load, searchpath_of
from rlloss.config.schema import Config
from rlloss.errors import ConfigError, Interrupted
from rlloss.runs.place import check_folder, is_finished, run_folder
from rlloss.runs.reader import RunFolder
from rlloss.signals import asked_to_stop, listening, setting_up
from rlloss.sweep.run import Outcome, is_begun, kept, others_note, plan
from rlloss.train.numerics import PORTABLE, relaunch

USAGE = """\
usage: rlloss train [key=value ...] [--multirun] [--cfg job]

One run; with --multirun, a sweep over comma-separated values, on all cores. A finished run is not run again, and one
that was cut short goes on where it was: Ctrl-C and SIGTERM end it after its iteration, a second one at once, and
while it is set up already the first one does.

  rlloss train loss=reinforce seed=3
  rlloss train --multirun loss=ppo_clip,reinforce env=cartpole,acrobot seed=1,2,3
  rlloss train --multirun seed=1,2,3 hydra/launcher=slurm hydra.launcher.partition=cpu     on a Slurm cluster
  rlloss train --cfg job            every key with its value
  rlloss train env.id=my_module:My-v0 env.kwargs.size=8 loss=mine.py:my_loss     what is yours
  rlloss train --config-dir conf env=mine +experiment=long                       your own configs beside ours

groups:
{groups}
Keys, defaults and units: rlloss/config/schema.py. Exit code: 0 finished, 1 a run failed, 2 bad input,
130 and 143 interrupted by Ctrl-C and by SIGTERM."""


def run(arguments: list[str]) -> int:
    options, unknown = parser().parse_known_intermixed_args(arguments)
    if options.config_dir:
        options.overrides.append(searchpath_of([Path(folder) for folder in options.config_dir]))
    if unknown:
        raise ConfigError(f"{unknown[0]}: unknown option; keys have no dashes: key=value")
    if options.help:
        print(USAGE.format(groups="".join(f"  {g}={'|'.join(choices(g))}\n" for g in groups())))
        return Exit.HOLDS
    if options.multirun:
        if options.cfg:
            raise ConfigError(f"--cfg {options.cfg}: shows one config; leave --multirun out, and name one of the runs")
        return train_sweep(options.overrides)
    config = load(options.overrides)
    if options.cfg:
        from rlloss.sweep.launchers import config_text  # here, since one run does without joblib

        print(config_text(options.cfg, options.overrides), end="")
        return Exit.HOLDS
    hydras = [text for text in options.overrides if text.lstrip("+").startswith(("hydra.", "hydra/"))]
    if hydras := [text for text in hydras if not text.lstrip("+").startswith(SEARCHPATH)]:
        raise ConfigError(f"{hydras[0]}: Hydra's own keys steer a sweep; add --multirun, or leave it out")
    return train_one(config)


def parser() -> Parser:
    """Those of Hydra's flags that make sense here; its overrides may stand before or after them."""
    train = Parser(prog="rlloss train", add_help=False)
    train.add_argument("overrides", nargs="*")
    train.add_argument("-m", "--multirun", action="store_true")
    train.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    train.add_argument("-cd", "--config-dir", metavar="DIR", action="append", default=[])
    train.add_argument("-h", "--help", action="store_true")
    return train


def train_one(config: Config) -> int:
    """One run in this process, with a bar of its own; errors that are not the user's keep their traceback."""
    folder = run_folder(config)
    check_folder(folder, config)
    if is_finished(config):
        if reason := kept(folder).reason:
            raise ConfigError(reason)
        print("This run is finished already; remove its folder to run it again.")
        print_note([config])
    else:
        if config.numerics.name == PORTABLE:
            relaunch()
        # here, so that a sweep's parent does without torch, and a finished run, too
        with unswept():
            from rlloss.train.faults import staying
            from rlloss.train.loop import train

        total = config.num_iterations * config.num_samples
        bar: tqdm[Any] = tqdm(total=total, unit="step", unit_scale=True, disable=None, desc=folder.name[-60:])
        if config.update == "compiled":
            bar.set_postfix_str("compiling, for half a minute the first time")
        with bar, told(), listening(), setting_up() as begins:

            def progress(row: dict[str, Any]) -> None:
                if not bar.n and row["env_steps"] > config.num_samples:  # a run that goes on
                    bar.initial = bar.n = row["env_steps"] - config.num_samples
                bar.update(config.num_samples)
                if row["episodes"]:
                    bar.set_postfix_str(f"return {tables.number(row['episodic_return'])}")

            with staying():
                train(config, folder, progress, asked_to_stop, begins)
    print(tables.text(run_table([RunFolder(folder)])))
    print_remarks([RunFolder(folder)])
    print(f"written to {folder}")
    return Exit.HOLDS


@contextmanager
def told() -> Iterator[None]:
    """Within: what the trainer has to say of a run that goes on stands above the bar."""
    log = logging.getLogger("rlloss")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with logging_redirect_tqdm([log]):
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def train_sweep(overrides: list[str]) -> int:
    """Hydra's --multirun, failures listed at the end."""
    from rlloss.sweep.launchers import split_sweep, sweep

    jobs, hydras = split_sweep(overrides)
    print_note([job.config for job in jobs])
    if any(is_begun(job.config) for job in jobs):
        print(plan([job.config for job in jobs]), file=sys.stderr, flush=True)
    outcomes = sweep(jobs, hydras)
    runs = [RunFolder(run_folder(job.config)) for job in jobs]
    print(tables.text(run_table(runs)))
    print_remarks(runs)
    print(f"written to {roots([job.config for job in jobs])}")
    return exit_code(outcomes)


def roots(configs: Sequence[Config]) -> str:
    """The folders that hold the runs of a sweep, in words."""
    found = dict.fromkeys(config.run_root if config.run_dir is None else "their run_dir" for config in configs)
    return " and ".join(found)


def print_remarks(runs: Sequence[RunFolder]) -> None:
    """What a user would want to know of runs that have finished, each remark once."""
    for remark in dict.fromkeys(remark for run in runs if run.status == "finished" for remark in remarks(run)):
        print(remark)


def remarks(run: RunFolder) -> Iterator[str]:
    if flattened := run.info.get("flattened"):
        yield f"observations: {flattened}"
    for group in ("schedule", "stop", "best"):
        monitor = run.config.get(f"{group}.monitor")
        if monitor and monitor in run.metrics and run.metrics[monitor].isna().all():
            choice = run.config[f"{group}.name"]
            yield f"note: {group}={choice} never decided anything: {monitor} was never a number in this run"


def print_note(configs: Sequence[Config]) -> None:
    """Runs that are kept from before may be no twins of those made now."""
    if note := others_note(configs):
        print(note, file=sys.stderr)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Name the runs that failed. Returns: the exit code. Raises: Interrupted if the sweep was asked to stop."""
    failed = [outcome for outcome in outcomes if outcome.reason and not outcome.signum]
    for outcome in failed:
        print(f"failed: {outcome.folder}: {outcome.reason}\n{outcome.traceback}".rstrip(), file=sys.stderr)
    if unfinished := [outcome for outcome in outcomes if outcome.signum]:
        what = f"interrupted; {len(unfinished)} of {len(outcomes)} runs are not finished"
        raise Interrupted(f"{what}; the same command goes on with them", unfinished[0].signum)
    return Exit.FAILS if failed else Exit.HOLDS


def run_table(runs: Sequence[RunFolder]) -> tables.Rows:
    """What came of some runs: a row each. The return is the mean over the last 100 episodes.

    A run is called by its folder's name; by its path where two have one name.
    """
    named = len({run.path.name for run in runs}) == len(runs)
    return [
        {
            "status": run.status,
            "env steps": run.info.get("env_steps"),
            "steps/s": run.info.get("steps_per_second"),
            "return": run.info.get("episodic_return"),
            "final digest": run.info.get("final_digest", "")[:12],
            "run": run.path.name if named else str(run.path),
        }
        for run in runs
    ]
