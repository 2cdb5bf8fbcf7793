"""``rlloss reproduce``: run the claims' experiments, judge them, draw the figures."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from joblib.externals.loky import get_reusable_executor

from rlloss.claims.claim import select
from rlloss.claims.reference import compare, made_with, other_versions, reference_dir
from rlloss.claims.report import report_claims
from rlloss.cli.arguments import Parser
from rlloss.cli.exits import Exit
from rlloss.cli.paths import output_folder
from rlloss.cli.report import add_claims, numerics_of, print_verdicts
from rlloss.cli.train import exit_code, print_note
from rlloss.errors import ConfigError
from rlloss.others import Training, run as others
from rlloss.runs.place import run_folder
from rlloss.sweep.launchers import Job, jobs_of, quoted, sweep
from rlloss.sweep.run import plan
from rlloss.train.envs import missing_extra
from rlloss.train.operations import differing, digests
from rlloss.train.switches import portable_kernels


def run(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    hydras = launcher_settings(options)
    output_folder("--runs", options.runs)
    output_folder("--report", options.report)
    numerics = numerics_of(options)
    claims = select(options.claim, numerics)
    where = quoted("run_root", str(options.runs))
    wanted: dict[Path, Job] = {}
    trainings: list[Training] = []  # by other people's trainers
    absent: dict[str, str] = {}  # claim -> what it needs and is not installed here; the others run all the same
    for claim in claims:
        jobs = jobs_of([[*overrides, where] for overrides in claim.runs(options.preset)])
        theirs = claim.others(options.preset)
        if needed := missing_extra(job.config.env for job in jobs) or others.missing(theirs):
            absent[claim.name] = needed
        else:
            wanted = {run_folder(job.config): job for job in jobs} | wanted
            trainings += theirs
    configs = [job.config for job in wanted.values()]
    besides = f", {len(trainings)} by other trainers" if trainings else ""
    print(f"{len(claims)} claims, {plan(configs)}{besides}; numerics={numerics}", flush=True)
    print_note(configs)
    code = exit_code(sweep(list(wanted.values()), hydras))
    get_reusable_executor().shutdown()  # its workers would end by themselves while others train, and it would warn
    others.run(trainings, options.runs)
    holds = print_verdicts(report_claims(claims, options.preset, options.runs, options.report, absent), options.report)
    same = print_comparison(
        options.report, options.preset, [claim.name for claim in claims if claim.name not in absent]
    )
    return code if holds and (same or not options.exact) else Exit.FAILS


def print_comparison(report: Path, preset: str, claims: Sequence[str]) -> bool:
    """How much of the report is as in the committed results. Returns whether all of it is."""
    folder = reference_dir(preset)
    if folder is None:
        print(f"no reference of --preset {preset} to compare with")
        return False
    comparison, suspects = compare(report, folder, claims), list[str]()
    if comparison.others:
        made = made_with(folder)
        with portable_kernels():
            suspects = [*other_versions(made["versions"]), *differing(digests(), made["operations"])]
    print(comparison.told(suspects))
    return not comparison.others


def parser() -> Parser:
    verb = Parser(prog="rlloss reproduce", description="Run every claim's experiments, judge them, draw the figures.")
    add_claims(verb)
    verb.add_argument("--runs", type=Path, default=Path("results/runs"), metavar="DIR", help="where runs go")
    verb.add_argument("--launcher", choices=("joblib", "slurm"), default="joblib",
                      help="where to run: on this machine's cores, or as Slurm jobs (default: joblib)")  # fmt: skip
    verb.add_argument("--jobs", type=int, metavar="N",
                      help="runs at a time (default: joblib all cores, slurm as many as the cluster lets)")  # fmt: skip
    verb.add_argument("--exact", action="store_true", help="exit 1 unless all is as in the committed results")
    verb.add_argument("settings", nargs="*", metavar="hydra.launcher.KEY=VALUE",
                      help="the launcher's settings: --launcher slurm hydra.launcher.partition=cpu")  # fmt: skip
    return verb


def launcher_settings(options: argparse.Namespace) -> list[str]:
    """Hydra's overrides for --launcher, --jobs and the settings."""
    for setting in options.settings:
        if not setting.lstrip("+").startswith("hydra.launcher."):
            raise ConfigError(f"{setting}: the claims say what runs; only hydra.launcher.KEY=VALUE can be set here")
    settings = [f"hydra/launcher={options.launcher}"]
    if options.jobs is not None:
        if options.jobs < 1:
            raise ConfigError(f"--jobs={options.jobs}: must be 1 or greater")
        key = "n_jobs" if options.launcher == "joblib" else "array_parallelism"
        settings.append(f"hydra.launcher.{key}={options.jobs}")
    return settings + list(options.settings)
