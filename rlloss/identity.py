"""Claims that two formulations train to the same bits: pairs of runs, how they are judged, their figure.

Runs come in pairs, equal in everything but the loss, one after the other.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlloss import figures, stats
from rlloss.claims import Finding
from rlloss.runs import RunFolder
from rlloss.verify import compare

LOSSES = ("ppo_clip", "reinforce")


def pairs(runs: Sequence[RunFolder]) -> list[tuple[RunFolder, RunFolder]]:
    """Each run and the twin that follows it."""
    return list(zip(runs[0::2], runs[1::2], strict=True))


def judge(runs: Sequence[RunFolder]) -> Finding:
    """Holds if every pair is IDENTICAL and, in each condition, the clip was active and the losses' values differed."""
    rows = []
    for a, b in pairs(runs):
        verdict = compare(a, b)
        rows.append(
            {
                "env": a.config["env.id"],
                "optimiser": a.config["optimizer.name"],
                "minibatch": a.config["num_envs"] * a.config["num_steps"] // a.config["num_minibatches"],
                "identical": verdict.verdict == "IDENTICAL",
                "steps compared": verdict.steps,
                "clip active": stats.mean_metric(a, "clip_active_frac"),
                "PPO loss": stats.mean_metric(a, "policy_loss"),
                "REINFORCE loss": stats.mean_metric(b, "policy_loss"),
                "return": stats.training_return(b),
            }
        )
    table = pd.DataFrame(rows)
    grouped = table.groupby(["env", "optimiser", "minibatch"], sort=False)
    evidence = grouped[["clip active", "PPO loss", "REINFORCE loss", "return"]].mean()
    same = grouped["identical"].agg(["sum", "size"])
    evidence.insert(0, "identical", [f"{row.sum} of {row.size}" for row in same.itertuples()])
    evidence.insert(1, "steps compared", grouped["steps compared"].sum())
    clipped = bool((evidence["clip active"] > 0).all())
    apart = bool((evidence["PPO loss"] != evidence["REINFORCE loss"]).all())
    least, most = evidence["clip active"].min(), evidence["clip active"].max()
    summary = (
        f"{table['identical'].sum()} of {len(table)} pairs identical at all {table['steps compared'].sum():,} "
        f"optimiser steps; clip active in {least:.2%} to {most:.1%} of samples"
    )
    return Finding(bool(table["identical"].all()) and clipped and apart, summary, evidence.reset_index())


def figure(runs: Sequence[RunFolder]) -> Figure:
    """Per environment, of its first pair: the policy losses, the returns, the parameter distance."""
    chosen: dict[str, tuple[RunFolder, RunFolder]] = {}
    for a, b in pairs(runs):
        chosen.setdefault(a.config["env.id"], (a, b))
    drawing, axes = figures.panels(3, len(chosen), figures.PAGE, 4.0, sharex="col")
    for column, (env, pair) in enumerate(chosen.items()):
        top, middle, bottom = axes[:, column]
        top.set_title(env)
        x = [run.metrics["env_steps"] for run in pair]
        figures.twin_curves(top, x, [run.metrics["policy_loss"] for run in pair], LOSSES)
        curves = [stats.return_curve(run) for run in pair]
        figures.twin_curves(middle, [c[0] for c in curves], [c[1] for c in curves], LOSSES)
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
    start = a.snapshot(0)
    x = np.array(a.snapshot_steps) * a.info["env_steps"] / a.info["optimizer_steps"]
    covered = [np.linalg.norm(a.snapshot(step) - start) for step in a.snapshot_steps]
    between = [np.linalg.norm(a.snapshot(step) - b.snapshot(step)) for step in a.snapshot_steps]
    axes.plot(x, covered, color=figures.GREY, label="covered by training")
    axes.plot(x, between, color="black", linewidth=1.6, label="between the two runs", clip_on=False, zorder=5)
    axes.set_ylim(bottom=0)
    if not any(between):
        axes.annotate("exactly 0", (x[-1], 0), xytext=(0, 3), textcoords="offset points", ha="right", fontsize=7)
