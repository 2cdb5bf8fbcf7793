"""The textbook order, w A log pi, gives PPO's gradient only where 1/N is a power of two; elsewhere it drifts."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlloss import figures, stats
from rlloss.claims import PAPER_SEEDS, PAPER_STEPS, Claim, Finding, Overrides
from rlloss.runs import RunFolder
from rlloss.verify import Verdict, compare

LOSSES = ("ppo_clip", "reinforce_textbook")
FAST = ("learning_rate=0.001",)
CONDITIONS: dict[str, Overrides] = {
    "minibatch 128, float32, Adam": ("num_steps=128", *FAST),
    "minibatch 125, float32, Adam": ("num_steps=125", *FAST),
    "minibatch 125, float64, Adam": ("num_steps=125", "precision=fp64", *FAST),
    "minibatch 125, float32, SGD": ("num_steps=125", "optimizer=sgd", "learning_rate=0.03"),
}
FEW_ULP = 4.0  # median over the parameters that differ; a loss scaled by 1.001 begins with 8 or more
CHAOS = "minibatch 125, float32, Adam"
COLOURS = dict(zip(CONDITIONS, (figures.GREY, figures.VERMILION, figures.BLUE, figures.ORANGE), strict=True))


def runs(preset: str) -> list[Overrides]:
    # Snapshots show how large the difference was at first; dense ones would fill the disk in the long runs.
    seeds, steps, every = (PAPER_SEEDS, PAPER_STEPS, 50) if preset == "paper" else ((1,), 40_000, 4)
    return [
        (*overrides, f"seed={seed}", f"loss={loss}", f"total_timesteps={steps}", f"snapshot_every={every}")
        for overrides, seed, loss in product(CONDITIONS.values(), seeds, LOSSES)
    ]


def by_condition(runs: Sequence[RunFolder]) -> list[tuple[str, RunFolder, RunFolder]]:
    seeds = len(runs) // (len(CONDITIONS) * len(LOSSES))
    names = [name for name in CONDITIONS for _ in range(seeds)]
    return list(zip(names, runs[0::2], runs[1::2], strict=True))


def as_expected(name: str, verdict: Verdict) -> bool:
    """Equal at 128. At 125 the difference begins as a few ulp; with float32 and Adam chaos then takes over."""
    if "minibatch 128" in name:
        return verdict.verdict == "IDENTICAL"
    if not verdict.drift or verdict.drift[0].median_ulp > FEW_ULP:
        return False
    drifted = verdict.verdict in ("ROUNDING", "DIVERGED") and verdict.onset == "small"
    return drifted and (name != CHAOS or (verdict.verdict == "DIVERGED" and verdict.first_other_actions is not None))


def judge(runs: Sequence[RunFolder]) -> Finding:
    rows, expected = [], []
    for name, a, b in by_condition(runs):
        verdict = compare(a, b)
        expected.append(as_expected(name, verdict))
        first, last = (verdict.drift[0], verdict.drift[-1]) if verdict.drift else (None, None)
        rows.append(
            {
                "condition": name,
                "seed": a.config["seed"],
                "verdict": verdict.verdict,
                "first step that differs": verdict.first_difference,
                "difference then": first.max_abs if first else 0.0,
                "median ulp": first.median_ulp if first else 0,
                "first iteration with other actions": verdict.first_other_actions,
                "difference at the end": last.max_abs if last else 0.0,
                "as expected": expected[-1],
            }
        )
    counts = ["first step that differs", "first iteration with other actions"]
    evidence = pd.DataFrame(rows).astype(dict.fromkeys(counts, "Int64"))
    chaos = evidence[evidence["condition"] == CHAOS]
    summary = (
        f"{sum(expected)} of {len(expected)} pairs as expected; float32 with Adam: "
        f"first difference {chaos['difference then'].median():.1e}, "
        f"other actions from iteration {chaos['first iteration with other actions'].median():.0f}, "
        f"{chaos['difference at the end'].median():.2f} apart at the end"
    )
    return Finding(all(expected), summary, evidence)


def figure(runs: Sequence[RunFolder]) -> Figure:
    """The growth of the difference (first seed), and the returns of the pair that chaos parts."""
    drawing, axes = figures.panels(2, 1, figures.COLUMN, 3.9, sharex="col", height_ratios=(3, 2))
    top, bottom = axes[:, 0]
    shown: dict[str, tuple[RunFolder, RunFolder]] = {}
    for name, a, b in by_condition(runs):
        shown.setdefault(name, (a, b))
    for name, (a, b) in shown.items():
        verdict = compare(a, b)
        scale = a.info["env_steps"] / a.info["optimizer_steps"]
        steps = np.array([row.step for row in verdict.drift]) * scale
        sizes = np.array([row.max_abs for row in verdict.drift])
        if len(sizes):
            top.plot(steps[sizes > 0], sizes[sizes > 0], color=COLOURS[name], linewidth=0.9, label=name)
        else:
            top.plot([], [], color=COLOURS[name], label=f"{name}: exactly 0")
        if verdict.first_other_actions:
            x = (verdict.first_other_actions - 1) * a.config["num_envs"] * a.config["num_steps"]
            top.plot(x, np.interp(x, steps, sizes), "o", color=COLOURS[name], markersize=4, zorder=6)
    top.plot([], [], "o", color="black", markersize=4, label="first different action")
    top.set_yscale("log")
    top.set_ylabel(r"largest parameter difference")
    curves = [stats.return_curve(run) for run in shown[CHAOS]]
    figures.twin_curves(bottom, [c[0] for c in curves], [c[1] for c in curves], LOSSES)
    bottom.set_ylabel("episodic return")
    bottom.set_title(CHAOS, loc="left")
    bottom.legend(loc="lower right")
    figures.steps_axis(bottom)
    return figures.finish(drawing, axes, columns=1)


CLAIM = Claim(
    sentence=(
        "In the textbook order of multiplication, w A log pi, the REINFORCE form follows PPO to the last bit where "
        "one over the minibatch size is a power of two; elsewhere it differs by rounding, and chaos through the "
        "environment then takes the runs apart."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=40,
)
