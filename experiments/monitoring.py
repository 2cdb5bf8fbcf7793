"""The logged policy loss says another thing of one and the same run for each formulation that it is trained with."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlloss import figures, tables
from rlloss.claims import Claim, Finding, Overrides, seeds_of, shared_budget
from rlloss.claims.twins import TWINS, are_same, pairs
from rlloss.runs import RunFolder
from rlloss.verify import compare_runs

METRICS = {"policy_loss": "policy loss", "total_loss": "total loss", "approx_kl": "approx. KL"}
WINDOW = 5  # iterations over which losses and returns are averaged before they are correlated
APART = 0.1  # the two correlations with the return, on average over seeds


def runs(preset: str) -> list[Overrides]:
    """The CartPole runs of identical_trajectories: nothing is trained for this claim."""
    base = ("env=cartpole", "learning_rate=0.003", "num_steps=128")
    budget = shared_budget(preset, "cartpole")
    return [(*base, f"seed={seed}", loss, *budget) for seed, loss in product(seeds_of(preset, (1, 2)), TWINS)]


def correlation(run: RunFolder, metric: str) -> float:
    """Pearson's, of the metric with the return of the episodes that finished in the same iterations."""
    smooth = run.metrics[[metric, "episodic_return"]].interpolate().rolling(WINDOW).mean().dropna()
    return float(np.corrcoef(smooth.to_numpy().T)[0, 1])


def judge(runs: Sequence[RunFolder]) -> Finding:
    """Holds if the pairs are identical, and their policy losses correlate with the same return differently."""
    rows, same = [], True
    for a, b in pairs(runs):
        same &= are_same(compare_runs(a, b))
        for metric in METRICS:
            left, right = (run.metrics[metric] for run in (a, b))
            rows.append(
                {
                    "metric": metric,
                    "PPO, mean": left.mean(),
                    "REINFORCE, mean": right.mean(),
                    "of unlike sign": float((np.sign(left) != np.sign(right)).mean()),
                    "PPO, correlation with return": correlation(a, metric),
                    "REINFORCE, correlation with return": correlation(b, metric),
                }
            )
    evidence = pd.DataFrame(rows).groupby("metric", sort=False).mean().reset_index()
    loss = evidence.set_index("metric").loc["policy_loss"]
    ppo, reinforce = (loss[f"{name}, correlation with return"] for name in ("PPO", "REINFORCE"))
    summary = (
        f"{'identical runs' if same else 'runs that differ'}; policy losses of unlike sign in "
        f"{loss['of unlike sign']:.0%} of iterations; their correlation with the return is {ppo:.2f} for PPO and "
        f"{reinforce:.2f} for REINFORCE"
    )
    return Finding(same and abs(ppo - reinforce) > APART, summary, evidence)


def figure(runs: Sequence[RunFolder]) -> Figure:
    """The first seed: each metric of both formulations over the return that they share."""
    drawing, axes = figures.panels(len(METRICS) + 1, 1, figures.COLUMN, 4.6, sharex=True)
    losses = [run.loss for run in runs[:2]]
    for panel, (metric, label) in zip(axes[:, 0], {**METRICS, "episodic_return": "return"}.items(), strict=True):
        x = [run.metrics["env_steps"] for run in runs[:2]]
        figures.twin_curves(panel, x, [run.metrics[metric].interpolate() for run in runs[:2]], losses)
        panel.set_ylabel(label)
    figures.steps_axis(axes[-1, 0])
    return figures.finish(drawing, axes, columns=2)


def facts(evidence: pd.DataFrame) -> dict[str, str]:
    loss = evidence.set_index("metric").loc["policy_loss"]
    return {
        "ppo_loss": tables.number(loss["PPO, mean"]),
        "reinforce_loss": tables.number(loss["REINFORCE, mean"]),
        "unlike": f"{loss['of unlike sign']:.0%}",
    }


CLAIM = Claim(
    sentence=(
        "Two runs with identical parameters log policy losses of another size, sign and trend: as a measure of "
        "progress the policy loss of one formulation contradicts that of the other."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=70,
    facts=facts,
)
