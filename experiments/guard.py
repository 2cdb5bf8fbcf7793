"""A guard that skips a step whose loss is not a finite number parts two formulations that are one run without it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlloss import figures
from rlloss.claims import Claim, Finding, Overrides
from rlloss.claims.twins import Setting, are_same, by_setting, first_decision, twin_runs
from rlloss.runs import RunFolder
from rlloss.verify import compare_runs

# A learning rate that is far too large, in float16: log-densities leave its range in about half of the seeds.
WILD = ("env=pendulum", "precision=fp16", "learning_rate=0.3", "on_nonfinite=record")
WITHOUT, WITH = "no guard", "guard on the policy loss"
SETTINGS = {
    WITHOUT: Setting(WILD, same=None),
    WITH: Setting((*WILD, "guard=finite", "guard.monitor=policy_loss"), same=None),
}
QUICK_SEEDS = range(1, 6)


def runs(preset: str) -> list[Overrides]:
    if preset == "paper":
        return twin_runs(SETTINGS, preset)
    return twin_runs(SETTINGS, preset, steps=3_000, seeds=QUICK_SEEDS)


def skipped(run: RunFolder) -> int:
    return int(run.metrics["skipped_steps"].sum())


def judge(runs: Sequence[RunFolder]) -> Finding:
    """Holds if every pair that is identical without the guard, but in which it skips other steps, parts at such a step.

    There must be such a pair. The other pairs are the control: where the guard has no step to skip, it changes nothing.
    A pair that parts without the guard as well says nothing about it.
    """
    rows = []
    found = by_setting(SETTINGS, runs)
    for (a, b), (c, d) in zip(found[WITHOUT], found[WITH], strict=True):
        free, guarded = compare_runs(a, b), compare_runs(c, d)
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
    pair = max(by_setting(SETTINGS, runs)[WITH], key=lambda pair: abs(skipped(pair[0]) - skipped(pair[1])))
    drawing, axes = figures.panels(2, 1, figures.COLUMN, 3.0, sharex="col")
    top, bottom = axes[:, 0]
    x = [run.metrics["env_steps"] for run in pair]
    losses = [run.loss for run in pair]
    figures.twin_curves(top, x, [run.metrics["policy_loss"].replace([np.inf, -np.inf], np.nan) for run in pair], losses)
    figures.twin_curves(bottom, x, [run.metrics["skipped_steps"].cumsum() for run in pair], losses)
    for run, colour in zip(pair, figures.colours(losses), strict=True):
        lost = run.metrics.loc[~np.isfinite(run.metrics["policy_loss"]), "env_steps"]
        if len(lost):
            label = f"{figures.label(run.loss)}: not a number"
            top.plot(lost, 0 * lost, "x", color=colour, markersize=4, label=label)
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
