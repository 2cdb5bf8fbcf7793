"""Claims about twins: runs equal in everything but the loss, one after the other. Do they stay one run?

A claim in experiments/ names its settings and what it expects; everything that such claims share is here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlloss import figures, stats
from rlloss.claims.claim import PAPER_STEPS, Finding, Overrides, seeds_of
from rlloss.runs.reader import RunFolder, covered, distance
from rlloss.verdicts import JUDGED
from rlloss.verify import RunComparison, compare_runs

PAIR = ("ppo_clip", "reinforce")
TWINS = tuple(f"loss={loss}" for loss in PAIR)
EXPECTED = {True: "the same", False: "parted", None: "either"}
COUNTS = ("first step that differs", "first iteration with other actions")  # of a verdict's row; missing where none is


@dataclass(frozen=True)
class Setting:
    """What twins share. ``same``: whether they must stay the same; None: either will do, it is reported."""

    overrides: Overrides
    same: bool | None


Settings = Mapping[str, Setting]
Pair = tuple[RunFolder, RunFolder]


def twin_runs(
    settings: Settings,
    preset: str,
    *,
    steps: int = 20_000,
    seeds: Sequence[int] = (1, 2),
    twins: Sequence[str] = TWINS,
) -> list[Overrides]:
    """For every setting and seed a run of each twin, one after the other.

    ``steps`` and ``seeds`` are the quick preset's; the paper preset has its own.
    """
    budget, every = (PAPER_STEPS, 500) if preset == "paper" else (steps, 20)
    return [
        (*setting.overrides, f"seed={seed}", twin, f"total_timesteps={budget}", f"snapshot_every={every}")
        for setting, seed, twin in product(settings.values(), seeds_of(preset, seeds), twins)
    ]


def families(runs: Sequence[RunFolder], size: int) -> list[Sequence[RunFolder]]:
    """Runs in groups of ``size``: those of one setting and seed, one per loss."""
    return [runs[i : i + size] for i in range(0, len(runs), size)]


def pairs(runs: Sequence[RunFolder]) -> list[Pair]:
    """Each run and the twin that follows it."""
    return [(a, b) for a, b in families(runs, 2)]


def by_setting(settings: Iterable[str], runs: Sequence[RunFolder]) -> dict[str, list[Pair]]:
    """The pairs of each setting, a seed each; the runs are listed setting by setting, with equally many seeds."""
    names = list(settings)
    return dict(zip(names, map(pairs, families(runs, len(runs) // len(names))), strict=True))


def verdict_row(verdict: RunComparison) -> dict[str, object]:
    """What a claim's table says of one pair; its columns of whole numbers are ``COUNTS``."""
    first, last = (verdict.drift[0], verdict.drift[-1]) if verdict.drift else (None, None)
    return {
        "verdict": verdict.verdict,
        "identical": verdict.holds,
        "steps compared": verdict.steps,
        "first step that differs": verdict.first_difference,
        "difference then": first.max_abs if first else 0.0,
        "median ulp": first.median_ulp if first else 0,
        "first iteration with other actions": verdict.first_other_actions,
        "difference at the end": last.max_abs if last else 0.0,
    }


def agreement(table: pd.DataFrame, by: Sequence[str], means: Sequence[str], identical: str) -> pd.DataFrame:
    """A row per group of verdicts' rows: how many are identical, over how many steps in all, and the means of columns.

    ``identical`` is the heading of the first column.
    """
    grouped = table.groupby(list(by), sort=False)
    evidence = grouped[list(means)].mean()
    same = grouped["identical"].agg(["sum", "size"])
    evidence.insert(0, identical, [f"{row.sum} of {row.size}" for row in same.itertuples()])
    evidence.insert(1, "steps compared", grouped["steps compared"].sum())
    return evidence


def judge_identity(runs: Sequence[RunFolder]) -> Finding:
    """Holds if every pair is IDENTICAL and, in each setting, the clip was active and the losses' values differed."""
    table = pd.DataFrame(
        {
            **verdict_row(compare_runs(a, b)),
            "env": a.config["env.id"],
            "optimiser": a.config["optimizer.name"],
            "minibatch": a.config["num_envs"] * a.config["num_steps"] // a.config["num_minibatches"],
            "clip active": stats.mean_metric(a, "clip_active_frac"),
            "PPO loss": stats.mean_metric(a, "policy_loss"),
            "REINFORCE loss": stats.mean_metric(b, "policy_loss"),
            "return": stats.training_return(b),
        }
        for a, b in pairs(runs)
    )
    means = ["clip active", "PPO loss", "REINFORCE loss", "return"]
    evidence = agreement(table, ["env", "optimiser", "minibatch"], means, "identical")
    clipped = bool((evidence["clip active"] > 0).all())
    apart = bool((evidence["PPO loss"] != evidence["REINFORCE loss"]).all())
    least, most = evidence["clip active"].min(), evidence["clip active"].max()
    summary = (
        f"{table['identical'].sum()} of {len(table)} pairs identical at all {table['steps compared'].sum():,} "
        f"optimiser steps; clip active in {least:.2%} to {most:.1%} of samples"
    )
    return Finding(bool(table["identical"].all()) and clipped and apart, summary, evidence.reset_index())


def identity_figure(runs: Sequence[RunFolder]) -> Figure:
    """Per environment, of its first pair: the policy losses, the returns, the parameter distance."""
    chosen: dict[str, Pair] = {}
    for a, b in pairs(runs):
        chosen.setdefault(a.config["env.id"], (a, b))
    drawing, axes = figures.panels(3, len(chosen), figures.PAGE, 4.0, sharex="col")
    for column, (env, pair) in enumerate(chosen.items()):
        top, middle, bottom = axes[:, column]
        top.set_title(env)
        x = [run.metrics["env_steps"] for run in pair]
        figures.twin_curves(top, x, [run.metrics["policy_loss"] for run in pair], PAIR)
        curves = [stats.return_curve(run) for run in pair]
        figures.twin_curves(middle, [c[0] for c in curves], [c[1] for c in curves], PAIR)
        draw_distances(bottom, *pair)
        figures.steps_axis(bottom)
    for row, label in enumerate(("policy loss", "episodic return", r"parameter distance, $L_2$")):
        axes[row, 0].set_ylabel(label)
    curves_shown, distances_shown = (axes[row, 0].get_legend_handles_labels() for row in (0, 2))
    drawing.legend(
        curves_shown[0] + distances_shown[0], curves_shown[1] + distances_shown[1], loc="outside upper center", ncols=4
    )
    drawing.align_ylabels(axes[:, 0])
    return drawing


def draw_distances(axes: Axes, a: RunFolder, b: RunFolder) -> None:
    """How far training has moved the parameters, and how far the two runs are apart, both as L2 norms."""
    x, between = distance(a, b, 2)
    axes.plot(*covered(a, 2), color=figures.GREY, label="covered by training")
    axes.plot(x, between, color="black", linewidth=1.6, label="between the two runs", clip_on=False, zorder=5)
    axes.set_ylim(bottom=0)
    if not any(between):
        axes.annotate("exactly 0", (x[-1], 0), xytext=(0, 3), textcoords="offset points", ha="right", fontsize=7)


def are_same(verdict: RunComparison) -> bool:
    """Identical parameters at every step, put to the test, and no condition that decided otherwise for one of them."""
    return verdict.holds and not verdict.cause


def judge_twins(settings: Settings, runs: Sequence[RunFolder], *, decided: bool = False) -> Finding:
    """A row per setting. Holds if every pair can be judged and is as its setting expects.

    Where a pair parts, the cause is named if it is a decision, or an optimiser's number of evaluations. ``decided``: in
    every setting something must have been decided, or nothing was put to the test. Where a run stopped early, a
    column says after how many iterations.
    """
    rows = []
    for name, a, b in [(name, a, b) for name, found in by_setting(settings, runs).items() for a, b in found]:
        verdict, expected = compare_runs(a, b), settings[name].same
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
                "apart": apart_at_the_end(a, b) if judged else np.nan,
            }
        )
    table = pd.DataFrame(rows)
    grouped = table.groupby("condition", sort=False)
    evidence = pd.DataFrame(
        {
            "the same": [f"{part['same'].sum()} of {len(part)}" for _, part in grouped],
            "expected": [EXPECTED[settings[str(name)].same] for name, _ in grouped],
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


def first_decision(verdict: RunComparison) -> str:
    """A verdict's cause, for a table; where runs part without one, the optimiser step from which they differ."""
    if verdict.verdict not in JUDGED:
        return f"cannot be judged: {verdict.reason}"
    if verdict.cause or verdict.first_difference is None:
        return verdict.cause or "none"
    return f"none: other parameters from step {verdict.first_difference}"


def apart_at_the_end(a: RunFolder, b: RunFolder) -> float:
    """The largest difference of a parameter at the end of both runs, wherever each of them stopped."""
    x, y = (run.snapshot(run.snapshot_steps[-1]).astype(np.float64) for run in (a, b))
    return float(np.abs(x - y).max())


def twin_figure(
    settings: Settings, runs: Sequence[RunFolder], columns: Mapping[str, str], *, labels: Sequence[str] = ()
) -> Figure:
    """The first seed of every setting, a column each; ``columns``: metric and its label, a row each.

    The last row is how far apart the parameters are.
    """
    shown = {name: found[0] for name, found in by_setting(settings, runs).items()}
    width = figures.TEXT if len(shown) < 4 else figures.PAGE
    drawing, axes = figures.panels(len(columns) + 1, len(shown), width, 1.15 * (len(columns) + 1) + 0.7, sharex="col")
    for column, (name, pair) in enumerate(shown.items()):
        axes[0, column].set_title(name, fontsize=7)
        for row, metric in enumerate(columns):
            draw_twins(axes[row, column], pair, metric, labels)
        draw_apart(axes[-1, column], *pair)
        figures.steps_axis(axes[-1, column])
    for row, label in enumerate((*columns.values(), "parameters apart")):
        axes[row, 0].set_ylabel(label, fontsize=7)
    return figures.finish(drawing, axes, columns=2)


def draw_twins(axes: Axes, pair: Pair, metric: str, labels: Sequence[str]) -> None:
    """A metric of both runs; where one stopped, its curve ends in a dot, and a diamond marks the checkpoint it kept."""
    x, y = [run.metrics["env_steps"] for run in pair], [run.metrics[metric].interpolate() for run in pair]
    losses = [run.loss for run in pair]
    figures.twin_curves(axes, x, y, losses, labels)
    for i, (run, colour) in enumerate(zip(pair, figures.colours(losses), strict=True)):
        if any(d.decision.startswith("stop") for d in run.decisions):
            axes.plot(x[i].iloc[-1], y[i].iloc[-1], "o", color=colour, markersize=3.5)
        if kept := [d.iteration for d in run.decisions if d.condition == "best"]:
            there = run.metrics["iteration"] == kept[-1]
            axes.plot(x[i][there], y[i][there], "D", color=colour, markersize=4.5 - i, zorder=4)
    if metric == "learning_rate":
        axes.set_yscale("log")


def draw_apart(axes: Axes, a: RunFolder, b: RunFolder) -> None:
    x, apart = distance(a, b)
    axes.plot(x, apart, color="black", linewidth=1.2, clip_on=False, zorder=5)
    axes.set_ylim(bottom=0)
    if not any(apart):
        axes.set_ylim(0, 1)
        axes.set_yticks([0])
        if len(x) > 1:  # one that stopped before the first snapshot leaves nothing to compare
            axes.annotate("exactly 0", (0, 0), xytext=(2, 3), textcoords="offset points", fontsize=6)
