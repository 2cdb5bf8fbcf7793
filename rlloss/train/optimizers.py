"""torch's own optimisers, without what would load its compiler at the first step: a second of every run's start."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import (
    Optimizer,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from rlloss.config.optimizers import OptimizerConfig
from rlloss.errors import ConfigError, lookup
from rlloss.train.numerics import PORTABLE
from rlloss.train.policy import ActorCritic
from rlloss.train.portable import ExactRoots


def uncompiled(kind: type[Optimizer]) -> type[Optimizer]:
    """The optimiser, to the last bit, whose methods tell torch's compiler nothing when it is not at work.

    Each of torch's methods is wrapped in one that imports the compiler, to keep out of what is compiled. Here the
    methods within the wrappers are called, and ``step``, which its wrapper also shields from autograd, without it.
    """
    told = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in told}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})


_RMSprop: Any = uncompiled(torch.optim.RMSprop)
_LBFGS: Any = uncompiled(torch.optim.LBFGS)


class RMSprop(_RMSprop):  # type: ignore[misc]
    """torch's own, with a square root that is exact: Adam's is, where it is fused, and RMSprop has no fused form."""

    def step(self, closure: Any = None) -> Any:
        with ExactRoots():
            return super().step(closure)


class LBFGS(_LBFGS):  # type: ignore[misc]
    """torch's own, with the square root of its line search exact. Without a line search it takes none."""

    def step(self, closure: Any) -> Any:
        def evaluate() -> Any:
            with torch._C.DisableTorchFunction():  # the loss is none of an optimiser's own
                return closure()

        if self.param_groups[0]["line_search_fn"] is None:
            return super().step(closure)
        with ExactRoots():
            return super().step(evaluate)


# Fused, because it is the fastest at this size, and because its square root is exact on every CPU.
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "adam": (uncompiled(torch.optim.Adam), {"fused": True}),
    "sgd": (uncompiled(torch.optim.SGD), {"fused": True}),
    "rmsprop": (_RMSprop, {}),
    "lbfgs": (_LBFGS, {}),
}
PORTABLE_FORMS: dict[str, Callable[..., Optimizer]] = {"rmsprop": RMSprop, "lbfgs": LBFGS}


def make_optimizer(
    config: OptimizerConfig, policy: ActorCritic, learning_rate: float, numerics: str = "native"
) -> Optimizer:
    """torch's own optimiser over the flat parameter vector.

    Raises: ConfigError for an unknown name or for values that torch rejects.
    """
    name, settings = config.torch_optimizer()
    kind, fixed = lookup(OPTIMIZERS, "optimizer", name)
    if numerics == PORTABLE:
        kind = PORTABLE_FORMS.get(name, kind)
    try:
        return kind([policy.flat], lr=learning_rate, **settings, **fixed)
    except (ValueError, IndexError, TypeError) as error:
        raise ConfigError(f"optimizer={config.name} with {settings}: {error}") from error


def shortest_step(optimizer: Optimizer) -> Callable[[], object]:
    """``optimizer.step``; of Adam its fused kernel alone, which is the same step in a third of the time.

    Adam's first step, which makes its state, and every one that somebody listens to take the long way.
    """
    if not isinstance(optimizer, torch.optim.Adam):
        return lambda: optimizer.step()  # looked up at every step, since schedulers of torch's wrap it later

    def step() -> None:
        (group,) = optimizer.param_groups
        (parameter,) = group["params"]
        state = optimizer.state[parameter]
        listeners = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        if not state or listeners or _global_optimizer_pre_hooks or _global_optimizer_post_hooks or group["amsgrad"]:
            optimizer.step()
            return
        (beta1, beta2), taken = group["betas"], [state["step"]]
        with torch.no_grad():
            taken[0] += 1
            torch._fused_adam_(
                [parameter], [parameter.grad], [state["exp_avg"]], [state["exp_avg_sq"]], [], taken,
                lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
                amsgrad=False, maximize=group["maximize"],
            )  # fmt: skip

    return step
