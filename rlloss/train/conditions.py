"""What may read a loss's *value*: schedules, stop rules, the guard, the keeper of the best checkpoint.

Each is PyTorch's own component where PyTorch has one, and reads one *named* metric of the iteration that has ended:
"plateau on policy_loss" and "plateau on episodic_return" are two configs and one mechanism. What a condition decides
is written down as a ``Decision``; ``rlloss verify`` finds in them why two runs parted.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from rlloss.config.schema import (
    Config,
    FiniteGuardConfig,
    MetricBestConfig,
    NoImprovementStopConfig,
    PlateauConfig,
    ThresholdStopConfig,
)
from rlloss.errors import lookup
from rlloss.runs.rows import Decision

Row = Mapping[str, Any]


class Condition(Protocol):
    """Looks at every iteration's row of metrics, and may decide something."""

    def after(self, row: Row) -> Decision | None: ...

    def state_dict(self) -> dict[str, Any]:
        """What it remembers from one iteration to the next."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def read(row: Row, monitor: str) -> float | None:
    """The monitored metric; None where there is none, as no episode finished in this iteration."""
    value = float(row[monitor])
    return None if monitor.startswith("episodic") and math.isnan(value) else value


# Iterations done, iterations in all -> factor of the learning rate.
FACTORS: dict[str, Callable[[int, int], float]] = {
    "constant": lambda done, total: 1.0,
    "linear": lambda done, total: 1.0 - done / total,
}


class Schedule:
    """A scheduler of torch's, which carries its own state."""

    scheduler: LRScheduler

    def state_dict(self) -> dict[str, Any]:
        return dict(self.scheduler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)


class ClosedForm(Schedule):
    """A learning rate that follows the iteration alone: torch's LambdaLR. It reads no metric and decides nothing."""

    def __init__(self, config: Config, optimizer: Optimizer) -> None:
        factor = FACTORS[config.schedule.name]
        self.scheduler = LambdaLR(optimizer, lambda done: factor(done, config.num_iterations))

    def after(self, row: Row) -> None:
        self.scheduler.step()


class Plateau(Schedule):
    """torch's ReduceLROnPlateau, stepped with the monitored metric once per iteration."""

    def __init__(self, config: Config, optimizer: Optimizer) -> None:
        assert isinstance(config.schedule, PlateauConfig)
        settings = {key: value for key, value in asdict(config.schedule).items() if key not in ("name", "monitor")}
        self.monitor, self.optimizer = config.schedule.monitor, optimizer
        self.scheduler = ReduceLROnPlateau(optimizer, **settings)

    def after(self, row: Row) -> Decision | None:
        value = read(row, self.monitor)
        if value is None:
            return None
        before = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step(value)  # type: ignore[arg-type]  # ReduceLROnPlateau's takes the metric
        after = self.optimizer.param_groups[0]["lr"]
        if after == before:
            return None
        return Decision(row["iteration"], "plateau", self.monitor, value, f"learning rate {before:g} -> {after:g}")


SCHEDULES: dict[str, Callable[[Config, Optimizer], Condition]] = {
    **dict.fromkeys(FACTORS, ClosedForm),
    "plateau": Plateau,
}


def make_schedule(config: Config, optimizer: Optimizer) -> Condition:
    """The schedule of the learning rate. Raises: ConfigError for an unknown name."""
    return lookup(SCHEDULES, "schedule", config.schedule.name)(config, optimizer)


class Remembering:
    """A condition that remembers the attributes named in ``memory``, numbers all."""

    memory: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.memory:
            setattr(self, name, state[name])


class Idle(Remembering):
    """Decides nothing: stop=never and best=none."""

    def __init__(self, config: Config) -> None:
        pass

    def after(self, row: Row) -> None:
        return None


class Threshold(Remembering):
    """Stops as soon as the metric is at or beyond ``threshold``: at most it with mode=min, at least with mode=max."""

    def __init__(self, config: Config) -> None:
        assert isinstance(config.stop, ThresholdStopConfig)
        self.config = config.stop

    def after(self, row: Row) -> Decision | None:
        value = read(row, self.config.monitor)
        reached = value is not None and (
            value <= self.config.threshold if self.config.mode == "min" else value >= self.config.threshold
        )
        if not reached:
            return None
        reason = f"stop: {'at most' if self.config.mode == 'min' else 'at least'} {self.config.threshold:g}"
        return Decision(row["iteration"], "threshold", self.config.monitor, float(value or 0.0), reason)


class NoImprovement(Remembering):
    """Stops once the metric has not improved on its best by more than ``min_delta`` for over ``patience`` iterations.

    As torch's ReduceLROnPlateau counts: ``patience`` iterations are let pass, the next one stops.
    """

    memory = ("best", "waited")

    def __init__(self, config: Config) -> None:
        assert isinstance(config.stop, NoImprovementStopConfig)
        self.config, self.best, self.waited = config.stop, math.nan, 0

    def after(self, row: Row) -> Decision | None:
        value = read(row, self.config.monitor)
        if value is None:
            return None
        sign = -1 if self.config.mode == "min" else 1
        first = math.isnan(self.best) and not math.isnan(value)
        if first or sign * (value - self.best) > self.config.min_delta:
            self.best, self.waited = value, 0
            return None
        self.waited += 1
        if self.waited <= self.config.patience:
            return None
        reason = f"stop: no better for {self.waited} iterations"  # without the value, in which twins may differ
        return Decision(row["iteration"], "no_improvement", self.config.monitor, value, reason)


STOPS: dict[str, Callable[[Config], Condition]] = {
    "never": Idle,
    "threshold": Threshold,
    "no_improvement": NoImprovement,
}


class Best(Remembering):
    """Marks the iterations after which the metric is the best so far; the recorder then keeps the parameters."""

    memory = ("best",)

    def __init__(self, config: Config) -> None:
        assert isinstance(config.best, MetricBestConfig)
        self.config, self.best = config.best, math.nan

    def after(self, row: Row) -> Decision | None:
        value = read(row, self.config.monitor)
        if value is None or math.isnan(value):
            return None
        sign = -1 if self.config.mode == "min" else 1
        if not (math.isnan(self.best) or sign * (value - self.best) > 0):
            return None
        self.best = value
        return Decision(row["iteration"], "best", self.config.monitor, value, "keep this checkpoint")


BESTS: dict[str, Callable[[Config], Condition]] = {"none": Idle, "metric": Best}


class Guard(Protocol):
    """Decides, before an optimiser step, whether it may be taken."""

    def __call__(self, policy_loss: Tensor, total_loss: Tensor) -> bool: ...


def unguarded(policy_loss: Tensor, total_loss: Tensor) -> bool:
    return True


def finite_policy_loss(policy_loss: Tensor, total_loss: Tensor) -> bool:
    return bool(torch.isfinite(policy_loss))


def finite_total_loss(policy_loss: Tensor, total_loss: Tensor) -> bool:
    return bool(torch.isfinite(total_loss))


def _finite(config: Config) -> Guard:
    assert isinstance(config.guard, FiniteGuardConfig)
    return finite_policy_loss if config.guard.monitor == "policy_loss" else finite_total_loss


GUARDS: dict[str, Callable[[Config], Guard]] = {"none": lambda config: unguarded, "finite": _finite}


def make_guard(config: Config) -> Guard:
    """Raises: ConfigError for an unknown name."""
    return lookup(GUARDS, "guard", config.guard.name)(config)
