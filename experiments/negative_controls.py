"""Losses that are not PPO's, though they look it, part from it: at which optimiser step does `rlloss verify` see it?"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlloss import figures, stats
from rlloss.claims import Claim, Finding, Overrides, seeds_of, shared_budget
from rlloss.runs import RunFolder
from rlloss.twins import families
from rlloss.verify import compare

REFERENCE = "ppo_clip"
CONTROLS = ("reinforce_undetached", "two_sided_mask", "cispo", "ppo_clip_ulp")
LOSSES = (REFERENCE, *CONTROLS)
ENVS = ("cartpole", "pendulum")
FAST = ("learning_rate=0.003",)


def runs(preset: str) -> list[Overrides]:
    return [
        (f"env={env}", *FAST, f"seed={seed}", f"loss={loss}", *shared_budget(preset, env))
        for env, seed, loss in product(ENVS, seeds_of(preset, (1, 2)), LOSSES)
    ]


def judge(runs: Sequence[RunFolder]) -> Finding:
    """Holds if every control is seen to differ from ppo_clip, and its actions or parameters stay different."""
    rows = []
    for family in families(runs, len(LOSSES)):
        for run in family[1:]:
            verdict = compare(family[0], run)
            drift = verdict.drift
            rows.append(
                {
                    "env": run.config["env.id"],
                    "loss": run.loss,
                    "seed": run.config["seed"],
                    "verdict": verdict.verdict,
                    "first step that differs": verdict.first_difference,
                    "of": verdict.steps,
                    "first iteration with other actions": verdict.first_other_actions,
                    "difference at the end": drift[-1].max_abs if drift else 0.0,
                    "return": stats.training_return(run),
                    "return with ppo_clip": stats.training_return(family[0]),
                }
            )
    counts = ["first step that differs", "first iteration with other actions"]
    evidence = pd.DataFrame(rows).astype(dict.fromkeys(counts, "Int64"))
    seen = evidence["verdict"].isin(["ROUNDING", "DIVERGED"]) & evidence["first step that differs"].notna()
    latest = evidence.groupby("loss", sort=False)["first step that differs"].max()
    steps = ", ".join(f"{loss} by step {step}" for loss, step in latest.items())
    summary = f"{seen.sum()} of {len(seen)} pairs are seen to differ: {steps}"
    return Finding(bool(seen.all()), summary, evidence)


def figure(runs: Sequence[RunFolder]) -> Figure:
    """The first environment and seed: how far each control's parameters are from PPO's, and what it comes to learn."""
    family = families(runs, len(LOSSES))[0]
    drawing, axes = figures.panels(2, 1, figures.COLUMN, 3.9, sharex="col")
    top, bottom = axes[:, 0]
    reference = family[0]
    x = np.array(reference.snapshot_steps) * reference.info["env_steps"] / reference.info["optimizer_steps"]
    for run in family:
        colour, label = figures.COLOURS[run.loss], figures.LABELS[run.loss]
        bottom.plot(*stats.return_curve(run), color=colour, linewidth=0.9)
        if run is not reference:
            apart = np.array([np.abs(run.snapshot(s) - reference.snapshot(s)).max() for s in reference.snapshot_steps])
            first = compare(reference, run).first_difference
            top.plot(x[apart > 0], apart[apart > 0], color=colour, linewidth=0.9, label=f"{label}: from step {first}")
    top.plot([], [], color=figures.COLOURS[REFERENCE], label=figures.LABELS[REFERENCE])
    top.set_yscale("log")
    top.set_ylabel("largest difference\nfrom PPO clip's run")
    bottom.set_ylabel("episodic return")
    figures.steps_axis(bottom)
    return figures.finish(drawing, axes, columns=1)


CLAIM = Claim(
    sentence=(
        "A forgotten detach, a mask that ignores the advantage's sign, CISPO's clipped weight, and every advantage "
        "moved by one unit in the last place: each trains to other parameters than clipped PPO, and is seen to."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=50,
)
