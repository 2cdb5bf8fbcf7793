"""The metrics of a run: one table, from which the logger, the monitors and the glossary are made."""

from typing import NamedTuple


class Metric(NamedTuple):
    """A column of metrics.csv."""

    sentence: str  # what it is, as the glossary prints it
    unit: str = ""
    tag: str = ""  # TensorBoard's: CleanRL's name, which half of the field's dashboards expect
    monitored: bool = False  # whether a condition may read it


METRICS: dict[str, Metric] = {
    "iteration": Metric("iteration, counted from 1"),
    "env_steps": Metric("steps of all environments so far", "steps"),
    "optimizer_steps": Metric("optimiser steps so far, skipped ones included", "steps"),
    "learning_rate": Metric("learning rate of this iteration's steps", tag="charts/learning_rate"),
    "policy_loss": Metric("value of the loss that is trained", tag="losses/policy_loss", monitored=True),
    "value_loss": Metric("½(V − R)², clipped if `clip_vloss`", tag="losses/value_loss", monitored=True),
    "entropy_loss": Metric("the policy's entropy", "nats", "losses/entropy", monitored=True),
    "total_loss": Metric(
        "policy_loss − ent_coef · entropy_loss + vf_coef · value_loss", tag="losses/total_loss", monitored=True
    ),
    "ppo_clip_loss": Metric("the value of `ppo_clip` on the same samples, whichever loss is trained", monitored=True),
    "reinforce_loss": Metric("the value of `reinforce` on the same samples", monitored=True),
    "approx_kl": Metric(
        "KL(π_old ‖ π) by the estimator k3, mean(ρ − 1 − log ρ)", "nats", "losses/approx_kl", monitored=True
    ),
    "old_approx_kl": Metric("the same by k1, mean(−log ρ)", "nats", "losses/old_approx_kl", monitored=True),
    "ratio_outside_frac": Metric(
        "samples with |ρ − 1| > ε, which CleanRL and Stable-Baselines3 call the clip fraction",
        "fraction", "losses/clipfrac", monitored=True,
    ),
    "clip_active_frac": Metric(
        "samples whose gradient the clip cuts, as verl and TRL count them",
        "fraction", "losses/clip_active_frac", monitored=True,
    ),
    "clip_active_steps": Metric("optimiser steps with such a sample", "count"),
    "clip_active_epochs": Metric("epochs with such a sample", "count"),
    "positive_ratio_min": Metric("smallest ratio ρ of a sample with A > 0, at most 1"),
    "positive_ratio_max": Metric("largest ratio ρ of a sample with A > 0, at least 1"),
    "negative_ratio_min": Metric("smallest ratio ρ of a sample with A < 0, at most 1"),
    "negative_ratio_max": Metric("largest ratio ρ of a sample with A < 0, at least 1"),
    "grad_norm": Metric("L2 norm of the whole gradient before clipping", tag="losses/grad_norm", monitored=True),
    "evaluations": Metric("evaluations of the loss in this iteration", "count"),
    "skipped_steps": Metric("optimiser steps that the guard or GradScaler forbade", "count"),
    "guarded_steps": Metric("skipped steps that the guard forbade", "count"),
    "explained_variance": Metric("1 − Var(R − V) / Var(R)", tag="losses/explained_variance", monitored=True),
    "episodic_return": Metric("mean undiscounted return of the episodes that finished", monitored=True),
    "episodic_length": Metric("mean length of the episodes that finished", "steps", monitored=True),
    "episodes": Metric("episodes that finished", "count"),
    "actions_digest": Metric("SHA-256 of the iteration's actions, its first 16 digits"),
    "observations_digest": Metric("the same of the observations that the environments returned"),
    "rewards_digest": Metric("the same of the rewards that they returned"),
    "ends_digest": Metric("the same of which steps terminated or truncated an episode"),
    "steps_per_second": Metric("environment steps per second, recording included", "1/s", "charts/SPS"),
}  # fmt: skip
"""By column, in the order of metrics.csv. Every loss metric is a mean over all minibatches of the iteration, each taken
before its optimiser step; episodes count in the iteration in which they finish."""

DIGESTS = tuple(name for name in METRICS if name.endswith("_digest"))
"""The metrics that are text."""

MONITORS = tuple(name for name, metric in METRICS.items() if metric.monitored)
"""The metrics that a condition may read."""
