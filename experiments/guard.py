"""A guard that skips a step whose loss is not a finite number parts two formulations that are one run without it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlloss import figures
from rlloss.claims import Claim, Finding, Overrides
from rlloss.runs import RunFolder
from rlloss.twins import Condition, are_same, first_decision, pairs, twin_runs
from rlloss.verify import compare

# A learning rate that is far too large, in float16: log-densities leave its range in about half of the seeds.
WILD = ("env=pendulum", "precision=fp16", "learning_rate=0.3")
WITHOUT, WITH = "no guard", "guard on the policy loss"
CONDITIONS = {
    WITHOUT: Condition(WILD, same=None),
    WITH: Condition((*WILD, "guard=finite", "guard.monitor=policy_loss"), same=None),
}
QUICK_SEEDS = range(1, 6)


def runs(preset: str) -> list[Overrides]:
    if preset == "paper":
        return twin_runs(CONDITIONS, preset)
    return twin_runs(CONDITIONS, preset, steps=3_000, seeds=QUICK_SEEDS)


def skipped(run: RunFolder) -> int:
    return int(run.metrics["skipped_steps"].sum())


def judge(runs: Sequence[RunFolder]) -> Finding:
    """Holds if of the pairs that are the same without the guard, those that it treats unequally part at its decision.

    There must be one. The other pairs are the control: where the guard has no step to skip, it changes nothing. A pair
    that parts without the guard as well says nothing about it.
    """
    rows = []
    both = pairs(CONDITIONS, runs)
    seeds = len(both) // 2
    for (_, a, b), (_, c, d) in zip(both[:seeds], both[seeds:], strict=True):
        free, guarded = compare(a, b), compare(c, d)
        rows.append(
            {
                "seed": a.config["seed"],
                "the same without guard": are_same(free),
                "the same with guard": are_same(guarded),
                "steps skipped, PPO": skipped(c),
                "steps skipped, REINFORCE": skipped(d),
                "of": guarded.steps,
                "first decision that differs": first_decision(guarded),
            }
        )
    evidence = pd.DataFrame(rows)
    unequal = evidence["steps skipped, PPO"] != evidence["steps skipped, REINFORCE"]
    named = evidence["first decision that differs"].str.contains("guard on policy_loss")
    parted = ~evidence["the same with guard"]
    shown = unequal & named & parted & evidence["the same without guard"]
    idle = evidence.loc[~unequal]
    holds = shown.any() and bool((named & parted)[unequal & evidence["the same without guard"]].all())
    holds &= bool((idle["the same with guard"] == idle["the same without guard"]).all())
    summary = (
        f"{(named & parted).sum()} of {len(evidence)} pairs part at the guard, "
        f"{shown.sum()} of them identical without it"
        + (f"; {evidence.loc[shown, 'first decision that differs'].iloc[0]}" if shown.any() else "")
    )
    return Finding(bool(holds), summary, evidence)


def figure(runs: Sequence[RunFolder]) -> Figure:
    """One seed, guarded: the policy loss of each minibatch's mean, and how many steps the guard has forbidden."""
    chosen = max(
        (pair for pair in pairs(CONDITIONS, runs) if pair[0] == WITH), key=lambda p: abs(skipped(p[1]) - skipped(p[2]))
    )
    drawing, axes = figures.panels(2, 1, figures.COLUMN, 3.0, sharex="col")
    top, bottom = axes[:, 0]
    pair = chosen[1:]
    x = [run.metrics["env_steps"] for run in pair]
    losses = [run.loss for run in pair]
    figures.twin_curves(top, x, [run.metrics["policy_loss"].replace([np.inf, -np.inf], np.nan) for run in pair], losses)
    figures.twin_curves(bottom, x, [run.metrics["skipped_steps"].cumsum() for run in pair], losses)
    for run in pair:
        lost = run.metrics.loc[~np.isfinite(run.metrics["policy_loss"]), "env_steps"]
        if len(lost):
            label = f"{figures.LABELS[run.loss]}: not a number"
            top.plot(lost, 0 * lost, "x", color=figures.COLOURS[run.loss], markersize=4, label=label)
    top.set_ylabel("policy loss")
    bottom.set_ylabel("steps skipped")
    figures.steps_axis(bottom)
    return figures.finish(drawing, axes, columns=1)


CLAIM = Claim(
    sentence=(
        "Where a log-probability leaves float16's range, REINFORCE's loss is 0 · (-inf), not a number, and PPO's is "
        "finite, while their gradients are the same: a guard that skips such steps parts runs identical without it."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=130,
)
