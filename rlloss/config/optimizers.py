"""The config group ``optimizer``: those of torch.optim, and rules that hand one of them another vector."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from rlloss.config.group import MISSING, Group, one_of
from rlloss.errors import ConfigError

COUNTS = ("max_iter", "max_eval", "history_size")
NON_NEGATIVE = ("eps", "weight_decay", "momentum", "tolerance_grad", "tolerance_change")


@dataclass
class OptimizerConfig(Group):
    """``name`` is the config group's choice; every other key is passed to the torch.optim class as it stands."""

    name: str = MISSING

    def validate(self) -> None:
        """What torch refuses in words of its own, or takes and then fails at the first step."""
        for key, value in ((item.name, getattr(self, item.name)) for item in fields(self)):
            if key in COUNTS and value is not None and value < 1:
                raise ConfigError(f"optimizer.{key}={value}: must be 1 or greater")
            if key in NON_NEGATIVE and not 0 <= value < math.inf:
                raise ConfigError(f"optimizer.{key}={value}: must be a finite number, 0 or greater")
            if key == "betas" and (len(value) != 2 or not all(0 <= beta < 1 for beta in value)):
                raise ConfigError(
                    f"optimizer.betas={value}: must be two numbers, each 0 or greater and less than 1, as [0.9,0.999]"
                )

    def torch_optimizer(self) -> tuple[str, dict[str, Any]]:
        """The torch.optim class that takes the steps, by the name of its choice here, and its arguments."""
        return self.name, {item.name: getattr(self, item.name) for item in fields(self) if item.name != "name"}


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

    def validate(self) -> None:
        super().validate()
        if self.nesterov and not self.momentum:
            raise ConfigError("optimizer.nesterov=true: needs a momentum; use optimizer.momentum=0.9, or leave it out")


@dataclass
class RMSpropConfig(OptimizerConfig):
    name: str = "rmsprop"
    alpha: float = 0.99  # smoothing constant of the squared gradient
    eps: float = 1e-5
    momentum: float = 0.0
    weight_decay: float = 0.0

    def validate(self) -> None:
        super().validate()
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"optimizer.alpha={self.alpha}: must lie between 0 and 1")


@dataclass
class LBFGSConfig(OptimizerConfig):
    name: str = "lbfgs"
    max_iter: int = 4  # iterations per optimiser step
    max_eval: int | None = None  # evaluations of the loss per optimiser step; null: 1.25 * max_iter
    tolerance_grad: float = 1e-7
    tolerance_change: float = 1e-9
    history_size: int = 10
    line_search_fn: str | None = None  # or strong_wolfe, which reads the loss's value

    def validate(self) -> None:
        super().validate()
        if self.line_search_fn not in (None, "strong_wolfe"):
            raise ConfigError(f"optimizer.line_search_fn={self.line_search_fn}: use strong_wolfe or null")


BASES: dict[str, tuple[str, ...]] = {"adam": ("betas", "eps", "weight_decay"), "sgd": ("momentum", "weight_decay")}
"""The optimisers that a rule with a gradient of its own can step with, and which of its keys are theirs."""


@dataclass
class RuleConfig(OptimizerConfig):
    """A rule that hands Adam or SGD another vector in the place of the gradient.

    ``strength`` names its own key: at 0 the rule is its base alone, to the last bit.
    """

    strength = ""

    base: str = "adam"  # or sgd: the optimiser that steps
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # of base=adam
    eps: float = 1e-5  # of base=adam
    momentum: float = 0.9  # of base=sgd
    weight_decay: float = 0.0

    def torch_optimizer(self) -> tuple[str, dict[str, Any]]:
        return self.base, {key: getattr(self, key) for key in BASES[self.base]}

    def validate(self) -> None:
        super().validate()
        one_of("optimizer.base", self.base, BASES)
        value, default = getattr(self, self.strength), type(self)()
        if not 0 <= value < math.inf:
            raise ConfigError(f"optimizer.{self.strength}={value}: must be a finite number, 0 or greater")
        for base, keys in BASES.items():
            for key in keys:
                if key not in BASES[self.base] and getattr(self, key) != getattr(default, key):
                    raise ConfigError(
                        f"optimizer.{key}={getattr(self, key)} with optimizer.base={self.base}: has no such key; "
                        f"leave it out, or use optimizer.base={base}"
                    )


@dataclass
class SAMConfig(RuleConfig):
    """Sharpness-aware minimisation: steps with the gradient at ``p + rho * g / |g|``, g the gradient at p.

    It evaluates gradients and nothing else, at two points a step. The clip of ``max_grad_norm`` is for the second.

    Source: Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization", algorithm 1 and
    its default rho. Lee and Yoon 2025, "Flat Reward in Policy Parameter Space Implies Robust Reinforcement Learning",
    train PPO with it.
    """

    strength = "rho"

    name: str = "sam"
    rho: float = 0.05  # distance of the second point, L2 norm over all parameters; 0: the base alone


@dataclass
class GradientPenaltyConfig(RuleConfig):
    """A penalty on the gradient's norm: steps on ``loss + penalty_coef / 2 * |g|^2``, whose gradient is g + coef * H g.

    H g, the Hessian-vector product, comes from a second backward pass through the first one ("double backpropagation").
    So it is the derivative of what autograd recorded, to which a detached factor is a constant. Of the rules with
    second derivatives this is the shortest to state, and it trains with either base. The norm is that of the gradient
    over the parameters; WGAN-GP's penalty, of the same name, has the gradient over the inputs.

    Source: Barrett and Dherin 2021, "Implicit Gradient Regularization" (the explicit form); Karakida et al. 2023,
    "Understanding Gradient Regularization in Deep Learning", for double backpropagation, and for the finite difference
    in its place, which is close to SAM.
    """

    strength = "penalty_coef"

    name: str = "gradient_penalty"
    penalty_coef: float = 0.1  # weight of half the squared gradient norm; 0: the base alone
