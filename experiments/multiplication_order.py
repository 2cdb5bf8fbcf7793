"""The textbook order, w A log pi, gives PPO's gradient only where 1/N is a power of two; elsewhere it drifts."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlloss import figures, stats, tables
from rlloss.claims import PAPER_SEEDS, PAPER_STEPS, Claim, Finding, Overrides
from rlloss.claims.twins import COUNTS, by_setting, verdict_row
from rlloss.runs import RunFolder
from rlloss.verdicts import Verdict
from rlloss.verify import RunComparison, compare_runs

LOSSES = ("ppo_clip", "reinforce_textbook")
FAST = ("learning_rate=0.001",)
SETTINGS: dict[str, Overrides] = {
    "minibatch 128, float32, Adam": ("num_steps=128", *FAST),
    "minibatch 125, float32, Adam": ("num_steps=125", *FAST),
    "minibatch 125, float64, Adam": ("num_steps=125", "precision=fp64", *FAST),
    "minibatch 125, float32, SGD": ("num_steps=125", "optimizer=sgd", "learning_rate=0.03"),
}
COLUMNS = ["condition", "seed", "verdict", "first step that differs", "difference then", "median ulp",
           "first iteration with other actions", "difference at the end", "as expected"]  # fmt: skip
FEW_ULP = 4.0  # median over the parameters that differ; a loss scaled by 1.001 begins with 8 or more
CHAOS = "minibatch 125, float32, Adam"
COLOURS = dict(zip(SETTINGS, (figures.GREY, figures.VERMILION, figures.BLUE, figures.ORANGE), strict=True))


def runs(preset: str) -> list[Overrides]:
    # Snapshots show how large the difference was at first; dense ones would fill the disk in the long runs.
    seeds, steps, every = (PAPER_SEEDS, PAPER_STEPS, 50) if preset == "paper" else ((1,), 40_000, 4)
    return [
        (*overrides, f"seed={seed}", f"loss={loss}", f"total_timesteps={steps}", f"snapshot_every={every}")
        for overrides, seed, loss in product(SETTINGS.values(), seeds, LOSSES)
    ]


def as_expected(name: str, verdict: RunComparison) -> bool:
    """Equal at 128. At 125 the difference begins as a few ulp; with float32 and Adam chaos then takes over."""
    if "minibatch 128" in name:
        return verdict.holds
    if not verdict.drift or verdict.drift[0].median_ulp > FEW_ULP:
        return False
    drifted = verdict.verdict in (Verdict.ROUNDING, Verdict.DIVERGED) and verdict.onset == "small"
    return drifted and (
        name != CHAOS or (verdict.verdict == Verdict.DIVERGED and verdict.first_other_actions is not None)
    )


def judge(runs: Sequence[RunFolder]) -> Finding:
    rows = []
    for name, found in by_setting(SETTINGS, runs).items():
        for a, b in found:
            verdict = compare_runs(a, b)
            about = {"condition": name, "seed": a.config["seed"], "as expected": as_expected(name, verdict)}
            rows.append({**verdict_row(verdict), **about})
    evidence = pd.DataFrame(rows)[COLUMNS].astype(dict.fromkeys(COUNTS, "Int64"))
    expected = evidence["as expected"]
    chaos = evidence[evidence["condition"] == CHAOS]
    summary = (
        f"{expected.sum()} of {len(expected)} pairs as expected; float32 with Adam: "
        f"first difference {chaos['difference then'].median():.1e}, "
        f"other actions from iteration {chaos['first iteration with other actions'].median():.0f}, "
        f"{chaos['difference at the end'].median():.2f} apart at the end"
    )
    return Finding(bool(expected.all()), summary, evidence)


def figure(runs: Sequence[RunFolder]) -> Figure:
    """The growth of the difference (first seed), and the returns of the pair that chaos parts."""
    drawing, axes = figures.panels(2, 1, figures.COLUMN, 3.9, sharex="col", height_ratios=(3, 2))
    top, bottom = axes[:, 0]
    shown = {name: found[0] for name, found in by_setting(SETTINGS, runs).items()}
    for name, (a, b) in shown.items():
        verdict = compare_runs(a, b)
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


def facts(evidence: pd.DataFrame) -> dict[str, str]:
    parted = evidence[evidence["verdict"] != Verdict.IDENTICAL].iloc[0]
    return {
        "parted": parted["condition"],
        "first_step": tables.number(int(parted["first step that differs"])),
        "first_difference": tables.number(parted["difference then"]),
        "last_difference": tables.number(parted["difference at the end"]),
    }


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
    facts=facts,
)
