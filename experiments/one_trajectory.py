"""Four formulations of clipped PPO, four computation graphs, one trajectory; and a fifth only where 1/N is exact."""

from collections.abc import Sequence
from itertools import product

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlloss import figures, stats
from rlloss.claims import Claim, Finding, Overrides, seeds_of, shared_budget
from rlloss.claims.twins import agreement, families, verdict_row
from rlloss.runs import RunFolder, distance
from rlloss.verify import compare_runs

REFERENCE = "ppo_clip"
SAME = ("reinforce", "ppo_masked", "klip_matched")
KLIP = "klip"
LOSSES = (REFERENCE, *SAME, KLIP)
ENVS = ("cartpole", "pendulum")
NUM_STEPS = (128, 125)  # minibatches of 128, a power of two, and of 125
FAST = ("learning_rate=0.003",)


def runs(preset: str) -> list[Overrides]:
    return [
        (f"env={env}", *FAST, f"num_steps={num_steps}", f"seed={seed}", f"loss={loss}", *shared_budget(preset, env))
        for env, num_steps, seed, loss in product(ENVS, NUM_STEPS, seeds_of(preset, (1,)), LOSSES)
    ]


def minibatch(run: RunFolder) -> int:
    return int(run.config["num_envs"] * run.config["num_steps"] // run.config["num_minibatches"])


def judge(runs: Sequence[RunFolder]) -> Finding:
    """Holds if the four are identical everywhere, KLip as published at powers of two and nowhere else."""
    rows = []
    for family in families(runs, len(LOSSES)):
        size = minibatch(family[0])
        for loss, run in zip(LOSSES[1:], family[1:], strict=True):
            row = verdict_row(compare_runs(family[0], run))
            rows.append(
                {
                    **row,
                    "env": run.config["env.id"],
                    "minibatch": size,
                    "loss": loss,
                    "clip active": stats.mean_metric(run, "clip_active_frac"),
                    "mean value of the loss": stats.mean_metric(run, "policy_loss"),
                    "as expected": row["identical"] == (loss in SAME or size & (size - 1) == 0),
                }
            )
    table, by = pd.DataFrame(rows), ["env", "minibatch", "loss"]
    evidence = agreement(table, by, ["clip active", "mean value of the loss"], "identical to ppo_clip")
    grouped = table.groupby(by, sort=False)
    evidence.insert(2, "first step that differs", grouped["first step that differs"].min().astype("Int64"))
    evidence["as expected"] = grouped["as expected"].all()
    four = table[table["loss"] != KLIP]
    parted = table[(table["loss"] == KLIP) & ~table["identical"]]
    summary = (
        f"{four['identical'].sum()} of {len(four)} pairs of the four losses identical at all "
        f"{four['steps compared'].sum():,} optimiser steps; KLip as published parts at minibatches of "
        f"{', '.join(map(str, sorted(set(parted['minibatch'])))) or 'no size'}"
    )
    clipped = bool((table["clip active"] > 0).all())
    return Finding(bool(table["as expected"].all()) and clipped, summary, evidence.reset_index())


def figure(runs: Sequence[RunFolder]) -> Figure:
    """The first environment and seed, per minibatch size: the losses' values, their distances from ppo_clip's run."""
    first = [f for f in families(runs, len(LOSSES)) if f[0].config["env.id"] == runs[0].config["env.id"]]
    chosen = {minibatch(family[0]): family for family in reversed(first)}
    sizes = sorted(chosen, reverse=True)
    drawing, axes = figures.panels(2, len(sizes), figures.TEXT, 3.2, sharex="col", sharey="row")
    for column, size in enumerate(sizes):
        top, bottom = axes[:, column]
        top.set_title(f"minibatch {size}")
        for run, colour in zip(chosen[size], figures.colours(LOSSES), strict=True):
            smooth = run.metrics["policy_loss"].rolling(5, min_periods=1).mean()
            top.plot(run.metrics["env_steps"], smooth, color=colour, linewidth=0.9, label=figures.label(run.loss))
        draw_distances(bottom, chosen[size])
        figures.steps_axis(bottom)
    axes[0, 0].set_ylabel("policy loss")
    axes[1, 0].set_ylabel("largest difference\nfrom PPO clip's run")
    return figures.finish(drawing, axes, columns=3)


def draw_distances(axes: Axes, family: Sequence[RunFolder]) -> None:
    """Each run's largest parameter difference from the first's; runs that are identical lie on zero together."""
    reference = family[0]
    for run, colour in list(zip(family, figures.colours(LOSSES), strict=True))[1:]:
        x, apart = distance(run, reference)
        same = not any(apart)
        axes.plot(x, apart, color=colour, linewidth=1.6 if same else 1.0, clip_on=False, zorder=4 if same else 5)
    zeros = sum(run.info["final_digest"] == reference.info["final_digest"] for run in family[1:])
    axes.annotate(f"{zeros} of {len(family) - 1} exactly 0", (x[-1], 0), xytext=(0, 3), textcoords="offset points",
                  ha="right", fontsize=7)  # fmt: skip
    axes.set_yscale("symlog", linthresh=1e-9)
    axes.set_yticks([0, 1e-8, 1e-6, 1e-4, 1e-2])
    axes.set_ylim(bottom=0)


CLAIM = Claim(
    sentence=(
        "Clipped PPO, REINFORCE with PPO's detached weight, PPO with a mask in place of the minimum, and KLip-PPO in "
        "PPO's order of multiplication train to the same bits; KLip-PPO as published does so only where one over the "
        "minibatch size is a power of two."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=30,
)
