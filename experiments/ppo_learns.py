"""The loop that the other claims rest on is a PPO that learns: CleanRL's defaults reach CleanRL's returns."""

from collections.abc import Sequence
from itertools import product

import pandas as pd
from matplotlib.figure import Figure

from rlloss import figures, stats
from rlloss.claims import PAPER_STEPS, Claim, Finding, Overrides, seeds_of
from rlloss.runs import RunFolder

# Mean training return over the last 100 episodes that each preset must reach, and CleanRL's published return at 500k
# steps (its documentation's table for ppo.py: mean ± standard deviation over 3 seeds).
TARGETS = {
    "paper": {"CartPole-v1": 475.0, "Acrobot-v1": -90.0},
    "quick": {"CartPole-v1": 200.0},
}
CLEANRL = {"CartPole-v1": "490.04 ± 6.12", "Acrobot-v1": "-86.36 ± 1.32"}
STEPS = {"paper": PAPER_STEPS, "quick": 100_000}
ENVS = {"paper": ("cartpole", "acrobot"), "quick": ("cartpole",)}


def runs(preset: str) -> list[Overrides]:
    return [
        (f"env={env}", f"seed={seed}", f"total_timesteps={STEPS[preset]}")
        for env, seed in product(ENVS[preset], seeds_of(preset, (1, 2, 3)))
    ]


def judge(runs: Sequence[RunFolder]) -> Finding:
    preset = "paper" if runs[0].config["total_timesteps"] == STEPS["paper"] else "quick"
    returns = pd.Series(
        [stats.training_return(run) for run in runs], index=[run.config["env.id"] for run in runs], name="return"
    )
    rows = []
    for env in dict.fromkeys(returns.index):
        values = returns[returns.index == env]
        rows.append(
            {
                "env": env,
                "env steps": STEPS[preset],
                "seeds": len(values),
                "return, last 100 episodes": stats.mean_and_std(values),
                "at least": TARGETS[preset][env],
                "CleanRL at 500k": CLEANRL[env],
                "reached": bool(values.mean() >= TARGETS[preset][env]),
            }
        )
    evidence = pd.DataFrame(rows)
    summary = "; ".join(f"{r['env']} {r['return, last 100 episodes']} at {r['env steps']:,} steps" for r in rows)
    return Finding(bool(evidence["reached"].all()), summary, evidence)


def figure(runs: Sequence[RunFolder]) -> Figure:
    """Training return against environment steps, a line per seed."""
    envs = list(dict.fromkeys(run.config["env.id"] for run in runs))
    drawing, axes = figures.panels(1, len(envs), figures.COLUMN if len(envs) == 1 else figures.TEXT, 1.9)
    for column, env in enumerate(envs):
        for run in runs:
            if run.config["env.id"] == env:
                axes[0, column].plot(*stats.return_curve(run, 100), color=figures.BLUE, alpha=0.7, linewidth=0.9)
        axes[0, column].set_title(env)
        figures.steps_axis(axes[0, column])
    axes[0, 0].set_ylabel("episodic return")
    return drawing


CLAIM = Claim(
    sentence=(
        "With CleanRL's default hyperparameters the loop learns as PPO does: after 500,000 steps (paper preset) it "
        "reaches CleanRL's returns; after 100,000 (quick preset) it is on the way there."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=60,
)
