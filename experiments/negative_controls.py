"""Losses that are not PPO's, though they look it, part from it: at which optimiser step does `rlloss verify` see it?"""

from collections.abc import Sequence
from itertools import product

import pandas as pd
from matplotlib.figure import Figure

from rlloss import figures, stats, tables
from rlloss.claims import Claim, Finding, Overrides, seeds_of, shared_budget
from rlloss.claims.twins import COUNTS, families, verdict_row
from rlloss.runs import RunFolder, distance
from rlloss.verdicts import Verdict
from rlloss.verify import compare_runs

REFERENCE = "ppo_clip"
CONTROLS = ("reinforce_undetached", "two_sided_mask", "cispo", "ppo_clip_ulp")
LOSSES = (REFERENCE, *CONTROLS)
ENVS = ("cartpole", "pendulum")
FAST = ("learning_rate=0.003",)
COLUMNS = ["env", "loss", "seed", "verdict", "first step that differs", "of", "first iteration with other actions",
           "difference at the end", "return", "return with ppo_clip"]  # fmt: skip


def runs(preset: str) -> list[Overrides]:
    return [
        (f"env={env}", *FAST, f"seed={seed}", f"loss={loss}", *shared_budget(preset, env))
        for env, seed, loss in product(ENVS, seeds_of(preset, (1, 2)), LOSSES)
    ]


def judge(runs: Sequence[RunFolder]) -> Finding:
    """Holds if every control is seen to differ from ppo_clip, and its actions or parameters stay different."""
    rows = [
        {
            **verdict_row(compare_runs(family[0], run)),
            "env": run.config["env.id"],
            "loss": run.loss,
            "seed": run.config["seed"],
            "return": stats.training_return(run),
            "return with ppo_clip": stats.training_return(family[0]),
        }
        for family in families(runs, len(LOSSES))
        for run in family[1:]
    ]
    evidence = (
        pd.DataFrame(rows).rename(columns={"steps compared": "of"})[COLUMNS].astype(dict.fromkeys(COUNTS, "Int64"))
    )
    seen = evidence["verdict"].isin([Verdict.ROUNDING, Verdict.DIVERGED]) & evidence["first step that differs"].notna()
    latest = evidence.groupby("loss", sort=False)["first step that differs"].max()
    steps = ", ".join(f"{loss} by step {step}" for loss, step in latest.items())
    summary = f"{seen.sum()} of {len(seen)} pairs are seen to differ: {steps}"
    return Finding(bool(seen.all()), summary, evidence)


def figure(runs: Sequence[RunFolder]) -> Figure:
    """The first environment and seed: how far each control's parameters are from PPO's, and what it comes to learn."""
    family = families(runs, len(LOSSES))[0]
    drawing, axes = figures.panels(2, 1, figures.COLUMN, 3.9, sharex="col")
    top, bottom = axes[:, 0]
    reference, colours = family[0], figures.colours(LOSSES)
    for run, colour in zip(family, colours, strict=True):
        bottom.plot(*stats.return_curve(run), color=colour, linewidth=0.9)
        if run is not reference:
            x, apart = distance(run, reference)
            label = f"{figures.label(run.loss)}: from step {compare_runs(reference, run).first_difference}"
            top.plot(x[apart > 0], apart[apart > 0], color=colour, linewidth=0.9, label=label)
    top.plot([], [], color=colours[0], label=figures.label(REFERENCE))
    top.set_yscale("log")
    top.set_ylabel("largest difference\nfrom PPO clip's run")
    bottom.set_ylabel("episodic return")
    figures.steps_axis(bottom)
    return figures.finish(drawing, axes, columns=1)


def facts(evidence: pd.DataFrame) -> dict[str, str]:
    forgotten = evidence.set_index("loss").loc[["reinforce_undetached"]].iloc[0]
    return {
        "undetached_step": tables.number(int(forgotten["first step that differs"])),
        "undetached_return": tables.number(forgotten["return"]),
        "detached_return": tables.number(forgotten["return with ppo_clip"]),
    }


CLAIM = Claim(
    sentence=(
        "A forgotten detach, a mask that ignores the advantage's sign, CISPO's clipped weight, and every advantage "
        "moved by one unit in the last place: each trains to other parameters than clipped PPO, and is seen to."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=50,
    facts=facts,
)
