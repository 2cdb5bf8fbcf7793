"""Structured configs: every key, its default and unit. The keys are CleanRL's family, the defaults its ``ppo.py``'s."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class LossConfig:
    name: str = MISSING  # an entry of rlloss.losses.LOSSES
    offset: float = 0.0  # a constant added to the policy loss: another value, the same gradient


@dataclass
class EnvConfig:
    id: str = MISSING  # Gymnasium's environment id
    kwargs: dict[str, Any] = field(default_factory=dict)  # passed to gymnasium.make
    wrappers: list[str] = field(default_factory=list)  # entries of rlloss.envs.WRAPPERS, the innermost first


@dataclass
class OptimizerConfig:
    """``name`` is the config group's choice; every other key is passed to the torch.optim class as it stands."""

    name: str = MISSING


@dataclass
class AdamConfig(OptimizerConfig):
    name: str = "adam"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-5  # PPO's customary value; torch's own default is 1e-8
    weight_decay: float = 0.0


@dataclass
class SGDConfig(OptimizerConfig):
    name: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0


@dataclass
class RMSpropConfig(OptimizerConfig):
    name: str = "rmsprop"
    alpha: float = 0.99  # smoothing constant of the squared gradient
    eps: float = 1e-5
    momentum: float = 0.0
    weight_decay: float = 0.0


@dataclass
class LBFGSConfig(OptimizerConfig):
    name: str = "lbfgs"
    max_iter: int = 4  # iterations per optimiser step
    max_eval: int | None = None  # evaluations of the loss per optimiser step; null: 1.25 * max_iter
    tolerance_grad: float = 1e-7
    tolerance_change: float = 1e-9
    history_size: int = 10
    line_search_fn: str | None = None  # or strong_wolfe, which reads the loss's value


@dataclass
class ScheduleConfig:
    name: str = MISSING  # constant; linear: learning_rate falls to 0 over the run; plateau


@dataclass
class PlateauConfig(ScheduleConfig):
    """torch's ReduceLROnPlateau, stepped once per iteration; its own defaults."""

    name: str = "plateau"
    monitor: str = "policy_loss"  # any of MONITORS
    mode: str = "min"  # or max
    factor: float = 0.1
    patience: int = 10  # iterations
    threshold: float = 1e-4
    threshold_mode: str = "rel"  # or abs
    cooldown: int = 0  # iterations
    min_lr: float = 0.0
    eps: float = 1e-8


@dataclass
class StopConfig:
    name: str = MISSING  # never, threshold, no_improvement


@dataclass
class ThresholdStopConfig(StopConfig):
    """Stop after the first iteration whose metric is at or beyond ``threshold``."""

    name: str = "threshold"
    monitor: str = "policy_loss"  # any of MONITORS
    mode: str = "min"  # stop at or below the threshold; max: at or above it
    threshold: float = 0.0


@dataclass
class NoImprovementStopConfig(StopConfig):
    """Stop once the metric has for over ``patience`` iterations not been better than its best by ``min_delta``."""

    name: str = "no_improvement"
    monitor: str = "policy_loss"  # any of MONITORS
    mode: str = "min"  # or max
    patience: int = 10  # iterations
    min_delta: float = 0.0


@dataclass
class GuardConfig:
    name: str = MISSING  # none, finite


@dataclass
class FiniteGuardConfig(GuardConfig):
    """Skip an optimiser step whose loss is not a finite number."""

    name: str = "finite"
    monitor: str = "total_loss"  # or policy_loss


@dataclass
class BestConfig:
    name: str = MISSING  # none, metric


@dataclass
class MetricBestConfig(BestConfig):
    """Keep the parameters after the iteration whose metric is the best of the run, as best.pt."""

    name: str = "metric"
    monitor: str = "policy_loss"  # any of MONITORS
    mode: str = "min"  # or max


@dataclass
class PrecisionConfig:
    name: str = (
        MISSING  # fp32, fp64, bf16, fp16: of everything; *_autocast: of the forward pass; fp16_scaled: GradScaler
    )
    loss_scale: float = 1.0  # the loss is multiplied by it before backward, the gradient divided after; a power of two


@dataclass
class LoggerConfig:
    name: str = MISSING  # none, tensorboard


@dataclass
class Config:
    """One run. Sizes are counts, ``total_timesteps`` counts environment steps summed over all environments."""

    loss: LossConfig = field(default_factory=lambda: LossConfig("ppo_clip"))
    env: EnvConfig = field(default_factory=lambda: EnvConfig("CartPole-v1"))
    optimizer: OptimizerConfig = field(default_factory=AdamConfig)
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig("linear"))
    precision: PrecisionConfig = field(default_factory=lambda: PrecisionConfig("fp32"))
    stop: StopConfig = field(default_factory=lambda: StopConfig("never"))
    guard: GuardConfig = field(default_factory=lambda: GuardConfig("none"))
    best: BestConfig = field(default_factory=lambda: BestConfig("none"))
    logger: LoggerConfig = field(default_factory=lambda: LoggerConfig("none"))

    seed: int = 1  # parent of every random stream of the run
    total_timesteps: int = 500_000  # environment steps; whole iterations only, the remainder is not run
    num_envs: int = 4
    num_steps: int = 128  # steps per environment and iteration; the batch is num_envs * num_steps
    update_epochs: int = 4  # passes over the batch per iteration
    num_minibatches: int = 4  # minibatches per epoch; must divide the batch
    learning_rate: float = 2.5e-4
    gamma: float = 0.99  # discount per step
    gae_lambda: float = 0.95
    clip_coef: float = 0.2  # half-width of the ratio's clip interval, and of the value clip
    vf_coef: float = 0.5
    ent_coef: float = 0.01
    max_grad_norm: float = 0.5  # global L2 norm; inf switches clipping off
    norm_adv: bool = True  # normalise advantages per minibatch
    clip_vloss: bool = True
    target_kl: float | None = None  # stop an iteration's epochs once the epoch's mean approx_kl exceeds it
    hidden_sizes: list[int] = field(
        default_factory=lambda: [64, 64]
    )  # of the actor and of the critic, tanh; not for images

    device: str = "cpu"  # or cuda
    torch_threads: int = 1  # more threads rarely help at these sizes, and change the bits
    snapshot_every: int = 500  # optimiser steps between parameter snapshots; 0: the first and the last only
    run_root: str = "results/runs"  # where runs without a run_dir go
    run_dir: str | None = None  # this run's folder; without it the name says what ran

    @property
    def num_samples(self) -> int:
        """Samples per iteration (the batch)."""
        return self.num_envs * self.num_steps

    @property
    def minibatch_samples(self) -> int:
        return self.num_samples // self.num_minibatches

    @property
    def num_iterations(self) -> int:
        return self.total_timesteps // self.num_samples


MONITORS = (
    "policy_loss", "value_loss", "entropy_loss", "total_loss", "ppo_clip_loss", "reinforce_loss", "approx_kl",
    "old_approx_kl", "ratio_outside_frac", "clip_active_frac", "grad_norm", "explained_variance", "episodic_return",
    "episodic_length",
)  # fmt: skip
"""The metrics that a condition may read."""

VARIANTS: dict[str, tuple[type[Any], ...]] = {
    "optimizer": (AdamConfig, SGDConfig, RMSpropConfig, LBFGSConfig),
    "schedule": (ScheduleConfig, PlateauConfig),
    "stop": (StopConfig, ThresholdStopConfig, NoImprovementStopConfig),
    "guard": (GuardConfig, FiniteGuardConfig),
    "best": (BestConfig, MetricBestConfig),
}
"""The groups whose choices have keys of their own."""
