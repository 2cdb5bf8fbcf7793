"""Second derivatives differ where gradients are equal to the last bit: a detached weight is a constant to autograd."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rlloss import figures, stats
from rlloss.claims import PAPER_STEPS, Claim, Finding, Overrides, seeds_of
from rlloss.claims.twins import COUNTS, families, verdict_row
from rlloss.runs import RunFolder
from rlloss.runs.reader import common_snapshots
from rlloss.verdicts import Verdict
from rlloss.verify import compare_runs

# The masked form is the control of the cause: it detaches the mask alone, so the second backward pass sees the ratio.
PAIR = ("ppo_clip", "reinforce")
LOSSES = (*PAIR, "ppo_masked")
ADAM, SGD = ("num_steps=125", "learning_rate=0.003"), ("num_steps=125", "learning_rate=0.1", "optimizer.base=sgd")
PENALTY, NO_PENALTY = (("optimizer=gradient_penalty", f"optimizer.penalty_coef={coef}") for coef in (0.1, 0))
PARTS = ("Adam, gradient penalty", "SGD, gradient penalty")  # where REINFORCE must part from PPO
TRAININGS: dict[str, Overrides] = {
    "Adam": ADAM,
    "Adam, SAM": ("optimizer=sam", *ADAM),
    "Adam, gradient penalty of weight 0": (*NO_PENALTY, *ADAM),
    "Adam, gradient penalty": (*PENALTY, *ADAM),
    "SGD, SAM": ("optimizer=sam", *SGD),
    "SGD, gradient penalty": (*PENALTY, *SGD),
}

# One step of SGD on the policy loss alone, p1 = p0 - learning_rate * vector, shows the vector that a rule steps with;
# entropy is below 1, so the run stops there. Three rules from the same p0 show g, g + coef * H g, and the gradient at
# p0 + rho * g / |g|: hence H g by autograd, and by a finite difference of gradients.
COEF, RHO = 1.0, 1e-6
STEP = ("update_epochs=1", "num_minibatches=1", "stop=threshold", "stop.monitor=entropy_loss",
        "stop.threshold=1", "precision=fp64", "max_grad_norm=inf", "learning_rate=1", "vf_coef=0", "ent_coef=0",
        "optimizer.base=sgd")  # fmt: skip
PROBES: dict[str, Overrides] = {
    "gradient": (*NO_PENALTY, *STEP),
    "autograd": (PENALTY[0], f"optimizer.penalty_coef={COEF}", *STEP),
    "difference": ("optimizer=sam", f"optimizer.rho={RHO}", *STEP),
}
TRUE, WRONG = 1e-4, 1e-2  # relative errors of H g: at most that of a derivative, at least that of something else
ERROR = "relative error of H g"
SHOWN, LEAST = ("Adam, SAM", "Adam, gradient penalty"), 1e-6  # of the figure
COLUMNS = ["condition", "loss", "identical to ppo_clip", "first step that differs", "difference at the end", "return",
           ERROR]  # fmt: skip

Family = Sequence[RunFolder]
Vector = NDArray[np.float64]


def runs(preset: str) -> list[Overrides]:
    steps, every, seeds = (PAPER_STEPS, 500, seeds_of(preset, ())) if preset == "paper" else (6000, 8, (1,))
    return [
        (*overrides, f"seed={seed}", f"loss={loss}", f"total_timesteps={steps}", f"snapshot_every={every}")
        for overrides in (*TRAININGS.values(), *PROBES.values())
        for seed in seeds
        for loss in LOSSES
    ]


def split(runs: Sequence[RunFolder]) -> tuple[dict[str, list[Family]], dict[str, list[Family]]]:
    """The families, one run per loss, of each training and of each probe: a family per seed."""
    names, found = [*TRAININGS, *PROBES], families(runs, len(LOSSES))
    each = len(found) // len(names)
    by_name = {name: found[i * each : (i + 1) * each] for i, name in enumerate(names)}
    return {name: by_name[name] for name in TRAININGS}, {name: by_name[name] for name in PROBES}


def judge(runs: Sequence[RunFolder]) -> Finding:
    """Holds if REINFORCE alone parts, with a penalty alone and at the first step, and only its H g is no derivative.

    All losses must have the same gradients, at p0 and at the point beside it, to the last bit.
    """
    trainings, probes = split(runs)
    rows = pd.DataFrame(
        [row for name, found in trainings.items() for family in found for row in verdicts(name, family)]
    )
    errors = product_errors(probes)
    expected = rows["as expected"]
    evidence = pd.concat([summed(rows), errors_table(errors)], ignore_index=True)[COLUMNS]
    parted = rows[rows["condition"].isin(PARTS) & (rows["loss"] == "reinforce")]
    summary = (
        f"{expected.sum()} of {len(expected)} pairs as expected; with a penalty REINFORCE parts from PPO by step "
        f"{parted['first step that differs'].max():.0f} and ends {parted['difference at the end'].max():.2g} apart; "
        f"H g by autograd is off by {errors['reinforce'].min():.2g} |H g| for REINFORCE, by "
        f"{errors['ppo_clip'].max():.0e} |H g| for PPO"
    )
    right = (errors[["ppo_clip", "ppo_masked"]] < TRUE).all(axis=None) and (errors["reinforce"] > WRONG).all()
    same = all(equal_bits(family) for name in ("gradient", "difference") for family in probes[name])
    holds = bool(expected.all()) and bool(right) and same
    return Finding(holds, summary, evidence.astype(dict.fromkeys(COUNTS[:1], "Int64")))


def equal_bits(family: Family) -> bool:
    return len({run.info["final_digest"] for run in family}) == 1


def verdicts(name: str, family: Family) -> list[dict[str, object]]:
    """A row for each of the other losses against PPO, which all of them have to equal but REINFORCE with a penalty."""
    rows = []
    for loss, run in zip(LOSSES[1:], family[1:], strict=True):
        verdict = compare_runs(family[0], run)
        parted = verdict.verdict in (Verdict.ROUNDING, Verdict.DIVERGED) and verdict.first_difference == 1
        expected = parted if name in PARTS and loss == "reinforce" else verdict.holds
        about = {"condition": name, "loss": loss, "return": stats.training_return(run), "as expected": expected}
        rows.append({**verdict_row(verdict), **about})
    return rows


def summed(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per condition and loss, over the seeds."""
    grouped = rows.groupby(["condition", "loss"], sort=False)
    table = grouped.agg(
        {"first step that differs": "max", "difference at the end": "max", "return": "mean"}
    ).reset_index()
    table["identical to ppo_clip"] = [f"{part['identical'].sum()} of {len(part)}" for _, part in grouped]
    return table


def of_losses(probes: Mapping[str, list[Family]], seed: int = 0) -> list[tuple[RunFolder, ...]]:
    """Of the seed at that place: for each loss its probes, in the order of PROBES."""
    return list(zip(*(probes[name][seed] for name in PROBES), strict=True))


def product_errors(probes: Mapping[str, list[Family]]) -> pd.DataFrame:
    """A row per seed, a column per loss: how far H g by autograd is from the difference of gradients, relatively."""
    errors = [
        [relative_error(*products(*probe)) for probe in of_losses(probes, seed)]
        for seed in range(len(probes["gradient"]))
    ]
    return pd.DataFrame(errors, columns=list(LOSSES))


def products(gradient: RunFolder, penalised: RunFolder, elsewhere: RunFolder) -> tuple[Vector, Vector]:
    """Hessian times gradient: as autograd has it, and as the finite difference of two gradients has it."""
    g, with_product, there = map(stepped_with, (gradient, penalised, elsewhere))
    return (with_product - g) / COEF, (there - g) * (np.linalg.norm(g) / RHO)


def stepped_with(run: RunFolder) -> Vector:
    """The vector that took the run's only step, whose learning rate is 1."""
    before, after = (run.snapshot(step).astype(np.float64) for step in (0, 1))
    difference: Vector = before - after
    return difference


def relative_error(product: Vector, difference: Vector) -> float:
    return float(np.linalg.norm(product - difference) / np.linalg.norm(difference))


def errors_table(errors: pd.DataFrame) -> pd.DataFrame:
    """A row per loss, the largest error of all seeds."""
    largest = errors.max()
    return pd.DataFrame({"condition": "one step of SGD, float64", "loss": largest.index, ERROR: largest.to_numpy()})


def figure(runs: Sequence[RunFolder]) -> Figure:
    """The first seed: both products, a dot per parameter; then what SAM and a penalty make of them, with Adam."""
    trainings, probes = split(runs)
    drawing, axes = figures.panels(2, 3, figures.PAGE, 3.5, sharex="col")
    axes[0, 0].set_title("one step: Hessian times gradient")
    for panel, probe, colour in zip(axes[:, 0], of_losses(probes), figures.colours(PAIR), strict=False):
        draw_products(panel, *products(*probe), colour)
        panel.set_ylabel(f"{figures.label(probe[0].loss)}\nby autograd, $10^{{-3}}$")
    axes[1, 0].set_xlabel("by a difference of gradients, $10^{-3}$")
    axes[1, 2].sharey(axes[1, 1])
    for (top, bottom), name in zip(axes.T[1:], SHOWN, strict=True):
        top.set_title(name)
        draw_returns(top, trainings[name][0])
        draw_apart(bottom, trainings[name][0])
        bottom.set_xlabel("optimiser steps")
    axes[0, 1].set_ylabel("episodic return")
    axes[1, 1].set_ylabel("largest difference\nfrom PPO clip's parameters")
    axes[1, 1].legend(loc="upper left")
    drawing.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    for column in axes.T[:2]:
        drawing.align_ylabels(column)
    return drawing


def draw_products(axes: Axes, product: Vector, difference: Vector, colour: str) -> None:
    """A dot per parameter, and the line on which both are equal."""
    axes.axline((0, 0), slope=1, color=figures.GREY, linewidth=0.6)
    axes.plot(1e3 * difference, 1e3 * product, "o", color=colour, markersize=1.6, markeredgewidth=0, rasterized=True)


def draw_returns(axes: Axes, family: Family) -> None:
    pair = family[: len(PAIR)]
    curves = [stats.return_curve(run) for run in pair]
    scale = pair[0].info["optimizer_steps"] / pair[0].info["env_steps"]
    figures.twin_curves(axes, [x * scale for x, _ in curves], [y for _, y in curves], PAIR)


def draw_apart(axes: Axes, family: Family) -> None:
    """On a logarithmic axis that has a place for 0: below LEAST it is linear."""
    styles: Sequence[dict[str, Any]] = ({"linewidth": 2.4, "alpha": 0.6}, {"linewidth": 1.0, "linestyle": (0, (1, 1))})
    equal = False
    for run, colour, style in zip(family[1:], figures.colours(LOSSES)[1:], styles, strict=True):
        steps, apart = zip(*((n, np.abs(x - y).max()) for n, x, y in common_snapshots(family[0], run)), strict=True)
        axes.plot(steps, apart, color=colour, label=figures.label(run.loss), **style)
        equal |= not any(apart)
    if equal:
        axes.annotate("exactly 0", (steps[-1], 0), xytext=(0, 4), textcoords="offset points", ha="right", fontsize=7)
    axes.set_yscale("symlog", linthresh=LEAST, linscale=0.6)
    axes.set_yticks([0, *(10.0**power for power in range(-6, 3, 2))])
    axes.set_ylim(-0.4 * LEAST, max(1.0, *axes.dataLim.intervaly))


CLAIM = Claim(
    sentence=(
        "Clipped PPO and its REINFORCE form have one gradient and two second derivatives: the detach hides the weight "
        "from the second backward pass. SAM, which evaluates gradients alone, leaves them identical; a penalty on the "
        "gradient's norm, which takes a Hessian-vector product, parts them at the first step, and leaves PPO identical "
        "to its masked form, whose ratio is not detached."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=125,
)
