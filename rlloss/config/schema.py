"""Structured configs: every key, its default and unit. The keys are CleanRL's family, the defaults its ``ppo.py``'s.

Each group checks its own keys, in its method ``validate``; Config checks what concerns several. A check needs no
environment and no machine: what these refuse is refused by ``rlloss.train``.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from typing import Any, get_type_hints

from rlloss.config.group import MISSING, Group, one_of
from rlloss.config.metrics import MONITORS
from rlloss.config.optimizers import (
    AdamConfig,
    GradientPenaltyConfig,
    LBFGSConfig,
    OptimizerConfig,
    RMSpropConfig,
    RuleConfig,
    SAMConfig,
    SGDConfig,
)  # fmt: skip
from rlloss.errors import ConfigError

MODES = ("min", "max")


def not_negative(group: str, **values: float) -> None:
    for key, value in values.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"{group}.{key}={value}: must be 0 or greater, and finite")


class Monitoring(Group):
    """A condition that reads a metric, ``monitor``, and wants it low or high, ``mode``."""

    group = ""
    monitor: str
    mode: str

    def validate(self) -> None:
        one_of(f"{self.group}.monitor", self.monitor, MONITORS)
        one_of(f"{self.group}.mode", self.mode, MODES)


@dataclass
class LossConfig(Group):
    name: str = MISSING  # an entry of rlloss.losses.LOSSES
    offset: float = 0.0  # a constant added to the policy loss: another value, the same gradient

    def validate(self) -> None:
        if not math.isfinite(self.offset):
            raise ConfigError(f"loss.offset={self.offset}: must be a finite number")


@dataclass
class EnvConfig(Group):
    id: str = MISSING  # Gymnasium's environment id
    kwargs: dict[str, Any] = field(default_factory=dict)  # passed to gymnasium.make
    # entries of rlloss.train.wrappers.WRAPPERS, module:Wrapper, or {wrapper: module:Wrapper, argument: value}; the
    # innermost first
    wrappers: list[Any] = field(default_factory=list)
    timeout: float = 300.0  # seconds after which a step that has not returned fails the run; 0: never
    check: bool = True  # ask an environment that is not Gymnasium's own, before the run, whether it answers twice alike

    def validate(self) -> None:
        if not 0 <= self.timeout < math.inf:
            raise ConfigError(f"env.timeout={self.timeout}: must be a number of seconds, or 0 for no limit")


@dataclass
class ScheduleConfig(Group):
    name: str = MISSING  # constant; linear: learning_rate falls to 0 over the run; plateau


OVER_THE_RUN = ("linear",)  # the schedules whose learning rate depends on total_timesteps


@dataclass
class PlateauConfig(Monitoring, ScheduleConfig):
    """torch's ReduceLROnPlateau, stepped once per iteration; its own defaults."""

    group = "schedule"

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

    def validate(self) -> None:
        super().validate()
        one_of("schedule.threshold_mode", self.threshold_mode, ("rel", "abs"))
        not_negative(
            "schedule", patience=self.patience, threshold=self.threshold, cooldown=self.cooldown, min_lr=self.min_lr,
            eps=self.eps,
        )  # fmt: skip
        if not 0 < self.factor < 1:
            raise ConfigError(f"schedule.factor={self.factor}: must lie between 0 and 1")


@dataclass
class StopConfig(Group):
    name: str = MISSING  # never, threshold, no_improvement


@dataclass
class ThresholdStopConfig(Monitoring, StopConfig):
    """Stop after the first iteration whose metric is at or beyond ``threshold``."""

    group = "stop"

    name: str = "threshold"
    monitor: str = "policy_loss"  # any of MONITORS
    mode: str = "min"  # stop at or below the threshold; max: at or above it
    threshold: float = 0.0

    def validate(self) -> None:
        super().validate()
        if math.isnan(self.threshold):
            raise ConfigError("stop.threshold=nan: must be a number")


@dataclass
class NoImprovementStopConfig(Monitoring, StopConfig):
    """Stop once the metric has for over ``patience`` iterations not been better than its best by ``min_delta``."""

    group = "stop"

    name: str = "no_improvement"
    monitor: str = "policy_loss"  # any of MONITORS
    mode: str = "min"  # or max
    patience: int = 10  # iterations
    min_delta: float = 0.0

    def validate(self) -> None:
        super().validate()
        not_negative("stop", patience=self.patience, min_delta=self.min_delta)


@dataclass
class GuardConfig(Group):
    name: str = MISSING  # none, finite


@dataclass
class FiniteGuardConfig(GuardConfig):
    """Skip an optimiser step whose loss is not a finite number."""

    name: str = "finite"
    monitor: str = "total_loss"  # or policy_loss

    def validate(self) -> None:
        one_of("guard.monitor", self.monitor, ("policy_loss", "total_loss"))


@dataclass
class BestConfig(Group):
    name: str = MISSING  # none, metric


@dataclass
class MetricBestConfig(Monitoring, BestConfig):
    """Keep the parameters after the iteration whose metric is the best of the run, as best.safetensors."""

    group = "best"

    name: str = "metric"
    monitor: str = "policy_loss"  # any of MONITORS
    mode: str = "min"  # or max


@dataclass
class PrecisionConfig(Group):
    # fp32, fp64, bf16, fp16: all of it; *_autocast: the forward pass alone; fp16_scaled: with torch's GradScaler
    name: str = MISSING
    loss_scale: float = 1.0  # the loss is multiplied by it before backward, the gradient divided after; a power of two

    def validate(self) -> None:
        if not 0 < self.loss_scale < math.inf or math.frexp(self.loss_scale)[0] != 0.5:
            raise ConfigError(f"precision.loss_scale={self.loss_scale}: must be a power of two")


@dataclass
class NumericsConfig(Group):
    name: str = MISSING  # native: as fast as this machine can; portable: the same bits on every x86-64 CPU


@dataclass
class LoggerConfig(Group):
    name: str = MISSING  # none, tensorboard


GROUPS = ("loss", "env", "optimizer", "schedule", "precision", "numerics", "stop", "guard", "best", "logger")
POSITIVE = (
    "total_timesteps", "num_envs", "num_steps", "update_epochs", "num_minibatches", "learning_rate", "max_grad_norm",
    "torch_threads",
)  # fmt: skip
NON_NEGATIVE = ("seed", "vf_coef", "ent_coef", "clip_coef", "snapshot_every", "keep_checkpoints", "checkpoint_seconds")
FRACTION = ("gamma", "gae_lambda")


@dataclass
class Config:
    """One run. Sizes are counts, ``total_timesteps`` counts environment steps summed over all environments."""

    loss: LossConfig = field(default_factory=lambda: LossConfig("ppo_clip"))
    env: EnvConfig = field(default_factory=lambda: EnvConfig("CartPole-v1"))
    optimizer: OptimizerConfig = field(default_factory=AdamConfig)
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig("linear"))
    precision: PrecisionConfig = field(default_factory=lambda: PrecisionConfig("fp32"))
    numerics: NumericsConfig = field(default_factory=lambda: NumericsConfig("native"))
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
    on_nonfinite: str = "fail"  # end the run at the first number that is not finite; record: go on
    target_kl: float | None = None  # stop an iteration's epochs once the epoch's mean approx_kl exceeds it
    hidden_sizes: list[int] = field(default_factory=lambda: [64, 64])  # actor's and critic's, tanh; not for images

    update: str = "auto"  # by hand where it can be, to the same bits; autograd: nothing is; compiled: bits of its own
    compiler_heuristics: bool = (
        False  # true: update=compiled leaves to the compiler how loops are vectorised, loss by loss
    )
    device: str = "cpu"  # or cuda
    torch_threads: int = 1  # more threads rarely help at these sizes, and change the bits
    checkpoint_seconds: float = 30.0  # a killed run loses at most this much; 0: a checkpoint after every iteration
    keep_checkpoints: int = 0  # optimiser steps between checkpoints that are kept, to play a part again; 0: none
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

    def validate(self) -> None:
        """Everything that needs no environment.

        Raises: ConfigError for values out of range, minibatches that do not divide the batch, a budget below one
            iteration.
        """
        self._check_types()
        self._check_ranges()
        for group in GROUPS:
            getattr(self, group).validate()
        self._check_scaling()
        self._check_numerics()
        self._check_compiled()
        self._check_batch()

    def _check_types(self) -> None:
        """Hydra sees to the types of what it composes; this is for a Config that Python code made."""
        for key, kind in BASES.items():
            if not isinstance(getattr(self, key), kind):
                like = f"a {kind.__name__}, as rlloss.config.load(['{key}=...']) has it"
                raise ConfigError(f"{key}={getattr(self, key)!r}: must be {like}")
        for key, default in SCALARS.items():
            expected, what = EXPECTED[type(default)]
            value = getattr(self, key)
            if hasattr(value, "item"):  # NumPy's float32 would be computed with in float32, to other bits
                raise ConfigError(f"{key}={value!r}: must be {what} of Python's own; give {key}={value.item()!r}")
            if not isinstance(value, expected):
                raise ConfigError(f"{key}={getattr(self, key)!r}: must be {what}; {default!r} by default")
        if not isinstance(self.hidden_sizes, Sequence) or not all(isinstance(n, Integral) for n in self.hidden_sizes):
            raise ConfigError(
                f"hidden_sizes={self.hidden_sizes!r}: must be a list of whole numbers; [64, 64] by default"
            )

    def _check_ranges(self) -> None:
        for key in POSITIVE:
            if not getattr(self, key) > 0:
                raise ConfigError(f"{key}={getattr(self, key)}: must be greater than 0")
        for key in NON_NEGATIVE:
            if not getattr(self, key) >= 0:
                raise ConfigError(f"{key}={getattr(self, key)}: must be 0 or greater")
        for key in {*POSITIVE, *NON_NEGATIVE} - {"max_grad_norm"}:
            if isinstance(value := getattr(self, key), float) and not math.isfinite(value):
                raise ConfigError(f"{key}={getattr(self, key)}: must be a finite number")
        for key in FRACTION:
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"{key}={getattr(self, key)}: must lie between 0 and 1")
        if self.target_kl is not None and not self.target_kl > 0:
            raise ConfigError(f"target_kl={self.target_kl}: must be greater than 0, or null for no limit")
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ConfigError(f"hidden_sizes={self.hidden_sizes}: needs at least one size, each 1 or greater")
        one_of("on_nonfinite", self.on_nonfinite, ("fail", "record"))
        one_of("update", self.update, ("auto", "autograd", "compiled"))
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device={self.device}: unknown; use cpu or cuda")
        if self.run_dir == "":
            raise ConfigError("run_dir='': names no folder; leave it out to have the folder named after the run")

    def _check_scaling(self) -> None:
        if self.precision.name != "fp16_scaled":
            return
        if isinstance(self.optimizer, LBFGSConfig | RuleConfig):
            needs = {"lbfgs": "L-BFGS needs several", "sam": "SAM needs two"}
            raise ConfigError(
                f"optimizer={self.optimizer.name} precision=fp16_scaled: torch's GradScaler takes one evaluation and "
                f"one backward pass a step, {needs.get(self.optimizer.name, 'the penalty needs two backward passes')}; "
                "use precision=fp16_autocast, or another optimizer"
            )
        if self.precision.loss_scale != 1:
            raise ConfigError(
                f"precision.loss_scale={self.precision.loss_scale} with precision=fp16_scaled: GradScaler has a "
                "scale of its own; leave it out, or use precision=fp16_autocast"
            )

    def _check_numerics(self) -> None:
        if self.numerics.name != "portable":
            return
        for key, value, needed in (("device", self.device, "cpu"), ("torch_threads", self.torch_threads, 1)):
            if value != needed:
                raise ConfigError(
                    f"{key}={value} numerics=portable: the same bits everywhere are to be had with {key}={needed} "
                    "alone; use that, or numerics=native"
                )

    def _check_compiled(self) -> None:
        if self.update != "compiled":
            if self.compiler_heuristics:
                raise ConfigError("compiler_heuristics=true: is for update=compiled; leave it out, or add that")
            return
        for key, value, needed in (
            ("optimizer", self.optimizer.name, "adam"),
            ("precision", self.precision.name, "fp32 or fp64"),
            ("precision.loss_scale", self.precision.loss_scale, 1.0),
            ("guard", self.guard.name, "none"),
            ("numerics", self.numerics.name, "native"),
            ("device", self.device, "cpu"),
        ):
            if str(value) not in str(needed).split(" or "):
                raise ConfigError(
                    f"{key}={value} update=compiled: only {key}={needed} is compiled; use that, or update=auto"
                )

    def _check_batch(self) -> None:
        batch = self.num_samples
        of_what = f"{batch} = num_envs {self.num_envs} x num_steps {self.num_steps}"
        if batch % self.num_minibatches:
            divisors = ", ".join(str(n) for n in range(1, min(batch, 64) + 1) if batch % n == 0)
            raise ConfigError(
                f"num_minibatches={self.num_minibatches} does not divide the batch of {of_what}; use one of {divisors}"
            )
        if self.norm_adv and self.minibatch_samples < 2:
            fewer = "use a larger num_steps" if batch < 2 else f"use num_minibatches={batch // 2 or 1} or fewer"
            raise ConfigError(
                f"num_minibatches={self.num_minibatches} leaves minibatches of 1 sample, whose advantages have no "
                f"standard deviation; {fewer}, or norm_adv=false"
            )
        if self.num_iterations < 1:
            raise ConfigError(
                f"total_timesteps={self.total_timesteps} is less than one iteration of {of_what}; use at least {batch}"
            )

    def flat(self) -> dict[str, Any]:
        """One flat dictionary with dotted keys, in the order of declaration."""

        def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
            for item in fields(node):
                value = getattr(node, item.name)
                if is_dataclass(value):
                    yield from walk(value, f"{prefix}{item.name}.")
                else:
                    yield prefix + item.name, value

        return dict(walk(self, ""))


BASES: dict[str, type[Any]] = {key: get_type_hints(Config)[key] for key in GROUPS}


SCALARS = {item.name: item.default for item in fields(Config) if isinstance(item.default, int | float | str)}
EXPECTED: dict[type[Any], tuple[type[Any], str]] = {
    bool: (bool, "True or False"), int: (Integral, "a whole number"), float: (Real, "a number"), str: (str, "text"),
}  # fmt: skip


def config_of(tree: Mapping[str, Any]) -> Config:
    """A config from a run's ``config.yaml``, a nested mapping. Keys that it lacks have their defaults.

    Raises: ConfigError for a key that is not in the schema, as of a run by another version.
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        try:
            if key in GROUPS:
                kinds = {kind().name: kind for kind in VARIANTS.get(key, ())}
                base = BASES[key]
                value = kinds.get(value.get("name"), base)(**value)
            values[key] = value
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"config.yaml: {key}={value}: {error}; the run was made by another version") from error
    try:
        return Config(**values)
    except TypeError as error:
        raise ConfigError(f"config.yaml: {error}; the run was made by another version") from error


VARIANTS: dict[str, tuple[type[Any], ...]] = {
    "optimizer": (AdamConfig, SGDConfig, RMSpropConfig, LBFGSConfig, SAMConfig, GradientPenaltyConfig),
    "schedule": (ScheduleConfig, PlateauConfig),
    "stop": (StopConfig, ThresholdStopConfig, NoImprovementStopConfig),
    "guard": (GuardConfig, FiniteGuardConfig),
    "best": (BestConfig, MetricBestConfig),
}
"""The groups whose choices have keys of their own."""
