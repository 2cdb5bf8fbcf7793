"""Claims about conditions: twin runs under each of them, and whether they stay the same or part, and at which decision.

A claim in experiments/ names its conditions and what it expects; everything that such claims share is here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlloss import figures, stats
from rlloss.claims import PAPER_STEPS, Finding, Overrides, seeds_of
from rlloss.runs import RunFolder
from rlloss.verify import Verdict, compare

FORMULATIONS = ("loss=ppo_clip", "loss=reinforce")
EXPECTED = {True: "the same", False: "parted", None: "either"}
JUDGED = ("IDENTICAL", "ROUNDING", "DIVERGED")  # verdicts on two whole runs


@dataclass(frozen=True)
class Condition:
    """``same``: whether the twins must stay the same; None: either will do, it is reported."""

    overrides: Overrides
    same: bool | None


Conditions = Mapping[str, Condition]


def twin_runs(
    conditions: Conditions,
    preset: str,
    *,
    steps: int = 20_000,
    seeds: Sequence[int] = (1, 2),
    twins: Sequence[str] = FORMULATIONS,
) -> list[Overrides]:
    """For every condition and seed a run of each twin, one after the other.

    ``steps`` and ``seeds`` are the quick preset's; the paper preset has its own.
    """
    budget, every = (PAPER_STEPS, 500) if preset == "paper" else (steps, 20)
    return [
        (*condition.overrides, f"seed={seed}", twin, f"total_timesteps={budget}", f"snapshot_every={every}")
        for condition, seed, twin in product(conditions.values(), seeds_of(preset, seeds), twins)
    ]


def pairs(conditions: Conditions, runs: Sequence[RunFolder]) -> list[tuple[str, RunFolder, RunFolder]]:
    """(condition, run, its twin) for the runs of ``twin_runs``, in their order."""
    seeds = len(runs) // (2 * len(conditions))
    names = [name for name in conditions for _ in range(seeds)]
    return list(zip(names, runs[0::2], runs[1::2], strict=True))


def families(runs: Sequence[RunFolder], size: int) -> list[Sequence[RunFolder]]:
    """Runs in groups of ``size``: those of one condition and seed, one per loss."""
    return [runs[i : i + size] for i in range(0, len(runs), size)]


def are_same(verdict: Verdict) -> bool:
    """Identical parameters at every step, and no condition that decided otherwise for one of them."""
    return verdict.verdict == "IDENTICAL" and not verdict.cause


def judge_twins(conditions: Conditions, runs: Sequence[RunFolder], *, decided: bool = False) -> Finding:
    """A row per condition. Holds if every pair can be judged and is as its condition expects.

    Where a pair parts, the cause is named if it is a decision, or an optimiser's number of evaluations. ``decided``: in
    every condition something must have been decided, or nothing was put to the test. Where a run stopped early, a
    column says after how many iterations.
    """
    rows = []
    for name, a, b in pairs(conditions, runs):
        verdict, expected = compare(a, b), conditions[name].same
        same, judged = are_same(verdict), verdict.verdict in JUDGED
        rows.append(
            {
                "condition": name,
                "same": same,
                "judged": judged,
                "as expected": judged and (expected is None or same == expected),
                "idle": decided and not (a.decisions or b.decisions),
                "cause": verdict.cause,
                "first decision": first_decision(verdict),
                "iterations": (len(a.metrics), len(b.metrics)),
                "stopped": any(d.decision.startswith("stop") for run in (a, b) for d in run.decisions),
                "seed": a.config["seed"],
                "return": stats.training_return(a),
                "return of its twin": stats.training_return(b),
                "apart": distance(a, b) if judged else np.nan,
            }
        )
    table = pd.DataFrame(rows)
    grouped = table.groupby("condition", sort=False)
    evidence = pd.DataFrame(
        {
            "the same": [f"{part['same'].sum()} of {len(part)}" for _, part in grouped],
            "expected": [EXPECTED[conditions[str(name)].same] for name, _ in grouped],
            "first decision that differs (first seed)": [
                next(iter(part.loc[~part["same"], "first decision"]), "none") for _, part in grouped
            ],
            **(
                {"iterations (first seed)": ["{} and {}".format(*part["iterations"].iloc[0]) for _, part in grouped]}
                if table["stopped"].any()
                else {}
            ),
            "parameters apart at the end": [part["apart"].max() for _, part in grouped],
            "return": [part["return"].mean() for _, part in grouped],
            "return of its twin": [part["return of its twin"].mean() for _, part in grouped],
        },
        index=pd.Index([name for name, _ in grouped], name="condition"),
    ).reset_index()
    holds = bool(table["as expected"].all() and not table["idle"].any())
    parted = table[table["judged"] & ~table["same"]]
    named = int((parted["cause"] != "").sum())
    summary = f"{table['as expected'].sum()} of {len(table)} pairs as expected; {len(parted)} parted"
    if named:
        first = parted[parted["cause"] != ""].iloc[0]
        summary += f", {named} at a decision that is named; {first['condition']}: {first['cause']}"
    if not table["judged"].all():
        summary += f"; {int((~table['judged']).sum())} cannot be judged: a run is unfinished or not finite"
    return Finding(holds, summary, evidence)


def first_decision(verdict: Verdict) -> str:
    """A verdict's cause, for a table; where runs part without one, the optimiser step from which they differ."""
    if verdict.verdict not in JUDGED:
        return f"cannot be judged: {verdict.reason}"
    if verdict.cause or verdict.first_difference is None:
        return verdict.cause or "none"
    return f"none: other parameters from step {verdict.first_difference}"


def distance(a: RunFolder, b: RunFolder) -> float:
    """The largest difference of a parameter at the end of both runs, wherever each of them stopped."""
    x, y = (run.snapshot(run.snapshot_steps[-1]).astype(np.float64) for run in (a, b))
    return float(np.abs(x - y).max())


def twin_figure(
    conditions: Conditions, runs: Sequence[RunFolder], columns: Mapping[str, str], *, labels: Sequence[str] = ()
) -> Figure:
    """The first seed of every condition, a column each; ``columns``: metric and its label, a row each.

    The last row is how far apart the parameters are.
    """
    shown: dict[str, tuple[RunFolder, RunFolder]] = {}
    for name, a, b in pairs(conditions, runs):
        shown.setdefault(name, (a, b))
    width = figures.TEXT if len(shown) < 4 else figures.PAGE
    drawing, axes = figures.panels(len(columns) + 1, len(shown), width, 1.15 * (len(columns) + 1) + 0.7, sharex="col")
    for column, (name, pair) in enumerate(shown.items()):
        axes[0, column].set_title(name, fontsize=7)
        for row, metric in enumerate(columns):
            draw_twins(axes[row, column], pair, metric, labels)
        draw_apart(axes[-1, column], pair)
        figures.steps_axis(axes[-1, column])
    for row, label in enumerate((*columns.values(), "parameters apart")):
        axes[row, 0].set_ylabel(label, fontsize=7)
    return figures.finish(drawing, axes, columns=2)


def draw_twins(axes: Axes, pair: tuple[RunFolder, RunFolder], metric: str, labels: Sequence[str]) -> None:
    """A metric of both runs; where one stopped, its curve ends in a dot, and a diamond marks the checkpoint it kept."""
    for i, run in enumerate(pair):
        label = labels[i] if labels else figures.LABELS.get(run.loss, run.loss)
        wide = {"linewidth": 2.6, "alpha": 0.45} if i == 0 else {"linewidth": 0.9, "linestyle": (0, (4, 2))}
        x, y = run.metrics["env_steps"], run.metrics[metric].interpolate()
        colour = (figures.BLUE, figures.VERMILION)[i]
        axes.plot(x, y, color=colour, label=label, **wide)
        if any(d.decision.startswith("stop") for d in run.decisions):
            axes.plot(x.iloc[-1], y.iloc[-1], "o", color=colour, markersize=3.5)
        if kept := [d.iteration for d in run.decisions if d.condition == "best"]:
            there = run.metrics["iteration"] == kept[-1]
            axes.plot(x[there], y[there], "D", color=colour, markersize=4.5 - i, zorder=4)
    if metric == "learning_rate":
        axes.set_yscale("log")


def draw_apart(axes: Axes, pair: tuple[RunFolder, RunFolder]) -> None:
    a, b = pair
    common = [step for step in a.snapshot_steps if step in set(b.snapshot_steps)]
    x = np.array(common) * a.info["env_steps"] / a.info["optimizer_steps"]
    apart = [float(np.abs(a.snapshot(step) - b.snapshot(step)).max()) for step in common]
    axes.plot(x, apart, color="black", linewidth=1.2, clip_on=False, zorder=5)
    axes.set_ylim(bottom=0)
    if not any(apart):
        axes.set_ylim(0, 1)
        axes.set_yticks([0])
        if len(common) > 1:  # one that stopped before the first snapshot leaves nothing to compare
            axes.annotate("exactly 0", (0, 0), xytext=(2, 3), textcoords="offset points", fontsize=6)
