"""The ``rlloss`` command. Exit codes: 0 holds, 1 does not hold, 2 wrong usage or bad input."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rlloss import tables
from rlloss.config import (
    ConfigError,
    check_folder,
    choices,
    groups,
    load,
    run_folder,
)
from rlloss.graph_command import add_graph
from rlloss.launch import Job, jobs_of, print_config, quoted, split_sweep, sweep
from rlloss.runs import RunFolder, find_runs, to_json
from rlloss.schema import Config
from rlloss.sweep import Outcome, is_finished, others_note
from rlloss.verify import Verdict, verify

HOLDS, FAILS, BAD_INPUT = 0, 1, 2

TRAIN_USAGE = """\
usage: rlloss train [key=value ...] [--multirun] [--cfg job]

One run; with --multirun, a sweep over comma-separated values, on all cores. A finished run is not run again.

  rlloss train loss=reinforce seed=3
  rlloss train --multirun loss=ppo_clip,reinforce env=cartpole,acrobot seed=1,2,3
  rlloss train --multirun seed=1,2,3 hydra/launcher=slurm hydra.launcher.partition=cpu     on a Slurm cluster
  rlloss train --cfg job            every key with its value

groups:
{groups}
Keys, defaults and units: rlloss/schema.py. Exit code: 0 finished, 1 a run failed, 2 bad input."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Bad input is one line on standard error; a programming error keeps its traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["train"]:
            return train_command(arguments[1:])
        options = parser().parse_args(arguments)
        code: int = options.command(options)
        return code
    except ConfigError as error:
        print(f"rlloss: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return HOLDS
    except OSError as error:
        if error.filename is None:
            raise
        print(f"rlloss: {error.filename}: {error.strerror}; name another path", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("rlloss: interrupted; finished runs are kept; the same command runs the rest", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="rlloss",
        description="Do two policy-gradient losses train alike, to the last bit? Exit 0: holds, 1: not, 2: bad input.",
    )
    verbs = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    verbs.add_parser("train", help="one run, or with --multirun a sweep (`rlloss train --help`)", add_help=False)

    verify = verbs.add_parser("verify", help="do twin runs have identical parameters at every optimiser step?")
    verify.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run, or a folder with runs below it")
    verify.add_argument("--json", action="store_true", help="the verdicts for programs, on standard output")
    verify.set_defaults(command=verify_command)

    add_check(verbs)
    add_graph(verbs)
    for name, function, text in (
        ("reproduce", reproduce_command, "run every claim's experiments, judge them, draw the figures"),
        ("report", report_command, "judge and draw the claims from what has been run"),
    ):
        verb = verbs.add_parser(name, help=text, description=text.capitalize() + ".")
        verb.add_argument("--preset", choices=("quick", "paper"), default="quick", help="how much (default: quick)")
        verb.add_argument("--claim", action="append", metavar="NAME", help="only this claim; may be repeated")
        verb.add_argument("--report", type=Path, default=Path("results/report"), metavar="DIR", help="where to write")
        if name == "reproduce":
            verb.add_argument("--runs", type=Path, default=Path("results/runs"), metavar="DIR", help="where runs go")
            add_launcher(verb)
        else:
            verb.add_argument("runs", nargs="?", type=Path, default=Path("results/runs"), metavar="FOLDER")
            verb.add_argument("--readme", type=Path, metavar="FILE", help="only renew the generated parts of FILE")
        verb.set_defaults(command=function)

    bench = verbs.add_parser("benchmark", help="speed: of training beside its peers, checks, sweeps, graph pages")
    bench.add_argument(
        "--of", choices=("train", "check", "sweep", "graph"), default="train", help="what to time (default: train)"
    )
    bench.add_argument("--rounds", type=int, default=5, help="rounds; in each, every contestant runs once (default: 5)")
    bench.add_argument("--timesteps", type=int, metavar="N",
                       help="environment steps per run (default: 20480, of a sweep's runs 102400)")  # fmt: skip
    bench.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the table as CSV")
    bench.set_defaults(command=benchmark_command)
    return top


def add_launcher(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--launcher", choices=("joblib", "slurm"), default="joblib",
                      help="where to run: on this machine's cores, or as Slurm jobs (default: joblib)")  # fmt: skip
    verb.add_argument("--jobs", type=int, metavar="N",
                      help="runs at a time (default: joblib all cores, slurm as many as the cluster lets)")  # fmt: skip
    verb.add_argument("settings", nargs="*", metavar="hydra.launcher.KEY=VALUE",
                      help="the launcher's settings: --launcher slurm hydra.launcher.partition=cpu")  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- train


def train_command(arguments: list[str]) -> int:
    options = train_parser().parse_intermixed_args(arguments)
    if options.help:
        print(TRAIN_USAGE.format(groups="".join(f"  {g}={'|'.join(choices(g))}\n" for g in groups())))
        return HOLDS
    if options.multirun:
        if options.cfg:
            raise ConfigError(f"--cfg {options.cfg}: shows one config; leave --multirun out, and name one of the runs")
        return train_sweep(options.overrides)
    config = load(options.overrides)
    if options.cfg:
        print_config(options.cfg, options.overrides)
        return HOLDS
    hydras = [override for override in options.overrides if override.lstrip("+").startswith(("hydra.", "hydra/"))]
    if hydras:
        raise ConfigError(f"{hydras[0]}: Hydra's own keys steer a sweep; add --multirun, or leave it out")
    return train_one(config)


def train_parser() -> argparse.ArgumentParser:
    """Those of Hydra's flags that make sense here; its overrides may stand before or after them."""
    train = argparse.ArgumentParser(prog="rlloss train", add_help=False)
    train.add_argument("overrides", nargs="*")
    train.add_argument("-m", "--multirun", action="store_true")
    train.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    train.add_argument("-h", "--help", action="store_true")
    return train


def train_one(config: Config) -> int:
    """One run in this process, with a bar of its own; errors that are not the user's keep their traceback."""
    from tqdm import tqdm

    from rlloss.train import train

    folder = run_folder(config)
    check_folder(folder, config)
    if is_finished(config):
        print("This run is finished already; remove its folder to run it again.")
        print_note([config])
    else:
        total = config.num_iterations * config.num_samples
        with tqdm(total=total, unit="step", unit_scale=True, disable=None, desc=folder.name[-60:]) as bar:

            def progress(row: dict[str, object]) -> None:
                bar.update(config.num_samples)
                if row["episodes"]:
                    bar.set_postfix_str(f"return {tables.number(row['episodic_return'])}")

            train(config, folder, progress)
    print(tables.text(run_table([RunFolder(folder)])))
    print(f"written to {folder}")
    return HOLDS


def train_sweep(overrides: list[str]) -> int:
    """Hydra's --multirun, failures listed at the end."""
    jobs, hydras = split_sweep(overrides)
    print_note([job.config for job in jobs])
    failed = [outcome for outcome in sweep(jobs, hydras) if outcome.reason]
    first = jobs[0].config
    print(tables.text(run_table([RunFolder(run_folder(job.config)) for job in jobs])))
    print(f"written to {first.run_root if first.run_dir is None else 'their run_dir'}")
    report_failures(failed)
    return FAILS if failed else HOLDS


def print_note(configs: Sequence[Config]) -> None:
    """Runs that are kept from before may be no twins of those made now."""
    if note := others_note(configs):
        print(note, file=sys.stderr)


def report_failures(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        print(f"failed: {outcome.folder}: {outcome.reason}\n{outcome.traceback}".rstrip(), file=sys.stderr)


def run_table(runs: Sequence[RunFolder]) -> pd.DataFrame:
    """What came of some runs: a row each. The return is the mean over the last 100 episodes."""
    return pd.DataFrame(
        {
            "status": run.status,
            "env steps": run.info.get("env_steps"),
            "steps/s": run.info.get("steps_per_second"),
            "return": run.info.get("episodic_return"),
            "final digest": run.info.get("final_digest", "")[:12],
            "run": run.path.name,
        }
        for run in runs
    )


# --------------------------------------------------------------------------------------------------------- verify


def verify_command(options: argparse.Namespace) -> int:
    for folder in options.folders:
        if not folder.is_dir():
            raise ConfigError(f"FOLDER={folder}: no such folder; name a run folder or one with runs below it")
    runs = find_runs(options.folders)
    if len(runs) < 2:
        raise ConfigError(
            f"found {len(runs)} run(s) below {', '.join(map(str, options.folders))}; verify needs two or more"
        )
    verdicts, alone = verify(runs)
    if not verdicts:
        raise ConfigError(
            f"none of the {len(runs)} runs has a twin, a run equal in everything but the loss; "
            "name two run folders to compare just those"
        )
    holds = all(verdict.verdict == "IDENTICAL" for verdict in verdicts)
    if options.json:
        document = {"holds": holds, "pairs": [v.to_dict() for v in verdicts], "alone": [str(r.path) for r in alone]}
        print(to_json(document))
        return HOLDS if holds else FAILS
    print(tables.text(verdict_table(verdicts)))
    for verdict in verdicts:
        for text in (verdict.cause, verdict.reason):
            if text:
                print(f"\n{verdict.verdict}: {verdict.run_a} and {verdict.run_b}: {text}")
    counts = {name: sum(v.verdict == name for v in verdicts) for name in sorted({v.verdict for v in verdicts})}
    print("\n" + ", ".join(f"{count} {name}" for name, count in counts.items()) + f" of {len(verdicts)} pairs")
    if alone:
        print(f"not compared, for want of a twin: {', '.join(run.path.name for run in alone)}")
    return HOLDS if holds else FAILS


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Verdicts for people: a row per pair. The size of a difference is that at the first snapshot that shows it."""

    def row(verdict: Verdict) -> dict[str, object]:
        first, last = (verdict.drift[0], verdict.drift[-1]) if verdict.drift else (None, None)
        return {
            "verdict": verdict.verdict,
            "steps": verdict.steps,
            "first differs": verdict.first_difference,
            "by": f"{first.median_ulp:,.0f} ulp, {first.max_abs:.1e}" if first else "–",
            "at the end": f"{last.max_abs:.1e}" if last else "–",
            "actions differ": f"from iteration {verdict.first_other_actions}" if verdict.first_other_actions else "–",
            "pair": f"{Path(verdict.run_a).name} | {verdict.loss_b}",
        }

    table = pd.DataFrame([row(verdict) for verdict in verdicts])
    return table.astype({"first differs": "Int64"})


# ---------------------------------------------------------------------------------------------------------- check


def add_check(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    check = verbs.add_parser(
        "check",
        help="have two losses the same gradient? without training anything",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="""\
Compares losses' gradients, bit by bit, without training anything.

  rlloss check ppo_clip mine.py:loss     two losses: IDENTICAL, EQUAL (up to rounding) or DIFFERENT, and why
  rlloss check mine.py:loss              one loss against every loss of the zoo
  rlloss check                           the zoo, every loss against every other

A LOSS is a name of the zoo, file.py:function or module:function; the function takes
(logp, old_logp, advantages, *, clip_coef) and returns per-sample losses or their mean,
or (logp, old_logp, advantages, mask, *, clip_coef) on [batch, tokens] and returns a scalar.

Exit code: 0 the gradients agree (one loss: with one of the zoo at least), 1 they differ, 2 bad input.""",
    )
    check.add_argument("losses", nargs="*", metavar="LOSS")
    check.add_argument("--dtype", action="append", choices=("float64", "float32", "bfloat16", "float16"),
                       help="try this dtype; may be repeated (default: float64, float32, bfloat16)")  # fmt: skip
    check.add_argument("--clip-coef", type=float, default=0.2, metavar="X", help="handed to the losses (default: 0.2)")
    check.add_argument("--seed", type=int, default=0, help="of the random batches (default: 0)")
    check.add_argument("--bitwise", action="store_true", help="EQUAL is not enough: exit 0 for IDENTICAL alone")
    check.add_argument("--json", action="store_true", help="the result for programs, on standard output")
    check.add_argument("-o", "--output", type=Path, metavar="DIR", help="also write tables and figures there")
    check.add_argument("--list", action="store_true", help="the zoo: every name with its formula")
    check.set_defaults(command=check_command)


def check_command(options: argparse.Namespace) -> int:
    import torch

    dtypes = tuple(getattr(torch, name) for name in dict.fromkeys(options.dtype or ("float64", "float32", "bfloat16")))
    settings = {"clip_coef": options.clip_coef, "dtypes": dtypes, "seed": options.seed}
    if options.output is not None and options.output.exists() and not options.output.is_dir():
        raise ConfigError(f"-o {options.output}: is a file; name a folder")
    enough = ("IDENTICAL",) if options.bitwise else ("IDENTICAL", "EQUAL")
    torch.set_num_threads(1)
    if options.list:
        from rlloss.matrix import formulas

        print(formulas())
        return HOLDS
    if len(options.losses) == 2:
        return check_pair(options, settings, enough)
    return check_many(options, settings, enough)


def check_pair(options: argparse.Namespace, settings: dict[str, Any], enough: Sequence[str]) -> int:
    from rlloss.check import compare
    from rlloss.check_report import text

    result = compare(*options.losses, **settings)
    print(to_json(result.to_dict()) if options.json else text(result))
    if options.output is not None:
        from rlloss import figures
        from rlloss.check_figures import pair_figure

        stem = options.output / "__".join(re.sub(r"[^\w.-]+", "-", name) for name in options.losses)
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_name(stem.name + ".txt").write_text(text(result) + "\n")
        with figures.style():
            figures.save(pair_figure(*options.losses, clip_coef=options.clip_coef), stem)
        print(f"written to {stem}.txt, .pdf, .png and .svg", file=sys.stderr)
    return HOLDS if result.verdict in enough else FAILS


def check_many(options: argparse.Namespace, settings: dict[str, Any], enough: Sequence[str]) -> int:
    """One loss against the zoo, or all of some losses, or of the zoo, against each other."""
    from rlloss.matrix import against_zoo, classes, matrix, zoo

    names = options.losses if len(options.losses) > 1 else zoo()
    table = against_zoo(options.losses[0], **settings) if len(options.losses) == 1 else matrix(names, **settings)
    agree = table["on-policy"].isin(enough) & table["off-policy"].isin(enough)
    groups = None if len(options.losses) == 1 else classes(table, names)
    if options.json:
        print(to_json({"pairs": table.to_dict("records")}))
    elif groups is None:
        print(tables.text(table.drop(columns="a").rename(columns={"b": options.losses[0]})))
    else:
        if options.losses:
            print(tables.text(table), end="\n\n")
        for rule, rows in groups.groupby("same gradient", sort=False):
            print(f"same gradient {rule}:", *(f"  {members}" for members in rows["losses"]), sep="\n")
    if options.output is not None:
        write_many(options.output, table, groups, names)
    if not options.losses:
        return HOLDS
    return HOLDS if (agree.any() if groups is None else agree.all()) else FAILS


def write_many(folder: Path, table: pd.DataFrame, groups: pd.DataFrame | None, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if groups is None:
        table.to_csv(folder / "against_zoo.csv", index=False)
        print(f"written to {folder}/against_zoo.csv", file=sys.stderr)
        return
    from rlloss import figures
    from rlloss.check_figures import matrix_figure

    table.to_csv(folder / "equivalence_matrix.csv", index=False)
    groups.to_csv(folder / "equivalence_classes.csv", index=False)
    with figures.style():
        figures.save(matrix_figure(table, names), folder / "equivalence_matrix")
    print(f"written to {folder}/equivalence_matrix.csv, .pdf, .png, .svg and equivalence_classes.csv", file=sys.stderr)


# -------------------------------------------------------------------------------------------- reproduce and report


def reproduce_command(options: argparse.Namespace) -> int:
    from rlloss.claims import select
    from rlloss.envs import missing_extra
    from rlloss.report import report_claims

    hydras = launcher_settings(options)
    claims = select(options.claim)
    where = quoted("run_root", str(options.runs))
    wanted: dict[Path, Job] = {}
    absent: dict[str, str] = {}  # claim -> what it needs and is not installed here; the others run all the same
    for claim in claims:
        jobs = jobs_of([[*overrides, where] for overrides in claim.runs(options.preset)])
        if needed := missing_extra(job.config.env for job in jobs):
            absent[claim.name] = needed
        else:
            wanted = {run_folder(job.config): job for job in jobs} | wanted
    finished = sum(is_finished(job.config) for job in wanted.values())
    print(f"{len(claims)} claims, {len(wanted)} runs, {finished} of them finished already", flush=True)
    print_note([job.config for job in wanted.values()])
    failed = [outcome for outcome in sweep(list(wanted.values()), hydras) if outcome.reason]
    report_failures(failed)
    holds = report_claims(claims, options.preset, options.runs, options.report, absent)
    return HOLDS if holds and not failed else FAILS


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


def report_command(options: argparse.Namespace) -> int:
    from rlloss.claims import select
    from rlloss.readme import run_readme, update_readme
    from rlloss.report import report_claims

    if options.readme is not None:
        update_readme(options.readme, Path("results/reference"))
        run_readme(options.readme)
        print(f"renewed the generated parts of {options.readme}")
        return HOLDS
    if not options.runs.is_dir():
        raise ConfigError(f"{options.runs}: no such folder; name the one that the runs went to")
    return HOLDS if report_claims(select(options.claim), options.preset, options.runs, options.report) else FAILS


def benchmark_command(options: argparse.Namespace) -> int:
    from rlloss.benchmark import benchmark, benchmark_check, benchmark_graph, benchmark_sweep

    if options.rounds < 1:
        raise ConfigError(f"--rounds={options.rounds}: must be 1 or greater")
    timesteps = (102_400 if options.of == "sweep" else 20_480) if options.timesteps is None else options.timesteps
    if timesteps < 512:
        raise ConfigError(f"--timesteps={timesteps}: must be at least one iteration of 512")
    if options.of in ("check", "graph"):
        table = (benchmark_check if options.of == "check" else benchmark_graph)(options.rounds)
    else:
        table = (benchmark_sweep if options.of == "sweep" else benchmark)(options.rounds, timesteps)
    print(tables.text(table))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.output, index=False)
        print(f"written to {options.output}")
    return HOLDS


if __name__ == "__main__":
    sys.exit(main())
