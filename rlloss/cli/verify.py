"""``rlloss verify``: are twin runs one run?"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rlloss import tables
from rlloss.cli.arguments import Parser
from rlloss.cli.exits import Exit
from rlloss.errors import ConfigError
from rlloss.runs.reader import RunFolder, find_runs, to_json
from rlloss.verdicts import Verdict
from rlloss.verify import Drift, RunComparison, verify

FEW = 5  # pairs that are listed although they are identical
MOST = 30  # pairs that are listed though more fell short
GRAVEST = (Verdict.DIVERGED, Verdict.INCOMPLETE, Verdict.INCOMPARABLE, Verdict.ROUNDING, Verdict.IDENTICAL)


def run(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    if options.certificate:
        from rlloss.cli.certify import verify_certificate  # here, since it is another question

        return verify_certificate(options)
    if lone := [f"--{name}" for name in ("steps", "trust", "no-replay") if getattr(options, name.replace("-", "_"))]:
        raise ConfigError(f"{lone[0]}: is about a certificate; name it with --certificate FILE")
    if not options.folders:
        raise ConfigError("FOLDER: name two runs or more, or a folder with runs below it")
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
    damaged = {str(run.path): run.damage for run in alone if run.damage}
    holds = all(verdict.verdict == Verdict.IDENTICAL for verdict in verdicts) and not damaged
    if options.tested:
        holds = holds and all(verdict.tested for verdict in verdicts)
    if options.json:
        pairs, others = [v.to_dict() for v in verdicts], [str(run.path) for run in alone]
        print(to_json({"holds": holds, "pairs": pairs, "alone": others, "damaged": damaged}))
    else:
        print_verdicts(verdicts, alone, damaged.values(), every=options.all)
        if watched := sorted({run.hash for run in runs if "hash" in run.info}):
            print(f"digests are {' and '.join(watched)}")
    return Exit.HOLDS if holds else Exit.FAILS


def print_verdicts(
    verdicts: Sequence[RunComparison], alone: Sequence[RunFolder], damaged: Iterable[str], *, every: bool
) -> None:
    """What fell short comes first, the gravest first, each pair with its reason; what is too much is counted."""
    good = [verdict for verdict in verdicts if fully_identical(verdict)]
    bad = [verdict for verdict in verdicts if not fully_identical(verdict)]
    bad.sort(key=lambda verdict: GRAVEST.index(verdict.verdict))
    listed = [*bad, *good] if every or len(verdicts) <= FEW else bad[:MOST]
    if listed:
        print(tables.text(verdict_table(listed)), end="\n\n")
    counts = Counter(label(verdict) for verdict in [*bad, *good])
    print(", ".join(f"{count} {name}" for name, count in counts.items()) + f" of {len(verdicts)} pairs")
    if good:
        print(f"IDENTICAL at every optimiser step ({extent(good)})")
    if len(bad) > len(listed):
        print(f"{len(bad) - len(listed)} more fell short")
    if len(listed) < len(verdicts):
        print("--all lists them all, --json with everything that is known")
    if alone:
        names = [run.path.name for run in alone[:MOST]]
        more = f" and {len(alone) - MOST} more" if len(alone) > MOST else ""
        print(f"not compared, for want of a twin: {', '.join(names)}{more}")
    for why in damaged:
        print(f"{Verdict.INCOMPLETE}: {why}")


def fully_identical(verdict: RunComparison) -> bool:
    """Whether there is nothing more to say: identical, although the runs went where their losses differ."""
    return verdict.verdict == Verdict.IDENTICAL and verdict.tested is not False and not verdict.cause


def label(verdict: RunComparison) -> str:
    return f"{verdict.verdict}{' (not put to the test)' if verdict.tested is False else ''}"


def extent(verdicts: Sequence[RunComparison]) -> str:
    """Over how many steps pairs are identical, and what they were put to: the clip active in which share of samples."""
    steps = f"{sum(verdict.steps for verdict in verdicts):,} of them"
    reached = [verdict.put_to for verdict in verdicts if verdict.put_to]
    if not reached:
        return f"{steps}; how far their ratios went was not recorded"

    def share(part: str, whole: str | None = None) -> str:
        values = [put[part] / (put[whole] if whole else 1) for put in reached]
        least, most = (f"{value:.2%}" for value in (min(values), max(values)))
        return least if least == most else f"{least} to {most}"

    return (
        f"{steps}; clip active in {share('clip_active_frac')} of samples, "
        f"{share('clip_active_steps', 'optimizer_steps')} of steps, {share('clip_active_epochs', 'epochs')} of epochs"
    )


def parser() -> Parser:
    verify = Parser(prog="rlloss verify")
    verify.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="a run, or a folder with runs below it")
    verify.add_argument("--all", action="store_true", help="list all pairs, however many")
    verify.add_argument("--tested", action="store_true",
                        help="exit 1 unless every pair could have differed where its runs went")  # fmt: skip
    verify.add_argument("--json", action="store_true", help="the verdicts for programs, on standard output")
    certified = verify.add_argument_group("of one run, by its certificate")
    certified.add_argument("--certificate", type=Path, metavar="FILE",
                           help="is it intact, is it of the run in FOLDER, does a replay give it?")  # fmt: skip
    certified.add_argument("--steps", metavar="K:N",
                           help="play these steps alone, from the last checkpoint of FOLDER before them")  # fmt: skip
    certified.add_argument("--trust", action="store_true",
                           help="execute environments, wrappers and losses that it names")  # fmt: skip
    certified.add_argument("--no-replay", action="store_true", help="ask the first two questions alone")
    return verify


def verdict_table(verdicts: Sequence[RunComparison]) -> pd.DataFrame:
    """Verdicts for people: a row per pair; a column in which no pair has anything to say is left out.

    The size of a difference is that at the first snapshot that shows it.
    """

    def row(verdict: RunComparison) -> dict[str, object]:
        first, last = (verdict.drift[0], verdict.drift[-1]) if verdict.drift else (None, None)
        return {
            "verdict": verdict.verdict,
            "steps": verdict.steps,
            "first differs": verdict.first_difference,
            "by": size(first) if first else "–",
            "at the end": f"{last.max_abs:.1e}" if last else "–",
            "actions differ": actions(verdict),
            "clip active (samples, steps, epochs)": clipped(verdict.put_to) if verdict.put_to else "–",
            "pair": f"{Path(verdict.run_a).name} | {other(verdict)}",
            "why": why(verdict),
        }

    table = pd.DataFrame([row(verdict) for verdict in verdicts]).astype({"first differs": "Int64"})
    return table.loc[:, ~(table.isna() | (table == "–")).all()]


def other(verdict: RunComparison) -> str:
    """The second run of a pair, by what tells it from the first."""
    return Path(verdict.run_b).name if verdict.loss_a == verdict.loss_b else verdict.loss_b


def size(drift: Drift) -> str:
    ulp = "" if math.isnan(drift.median_ulp) else f"{drift.median_ulp:,.0f} ulp, "
    return f"{ulp}{drift.max_abs:.1e}"


def clipped(put_to: Mapping[str, Any]) -> str:
    """In which share of its samples, optimiser steps and epochs a pair had a sample whose gradient the clip cuts."""
    steps = put_to["clip_active_steps"] / put_to["optimizer_steps"]
    epochs = put_to["clip_active_epochs"] / put_to["epochs"]
    return f"{put_to['clip_active_frac']:.2%}, {steps:.0%}, {epochs:.0%}"


def actions(verdict: RunComparison) -> str:
    if "actions_digest" in verdict.not_recorded:
        return "not recorded"
    return f"from iteration {verdict.first_other_actions}" if verdict.first_other_actions else "–"


def why(verdict: RunComparison) -> str:
    untested = {False: f"not put to the test: {verdict.untested}", None: verdict.untested, True: ""}[verdict.tested]
    named = str(verdict.first_tensors) if verdict.first_tensors else ""
    return "; ".join(filter(None, (named, verdict.cause, verdict.reason, untested))) or "–"
