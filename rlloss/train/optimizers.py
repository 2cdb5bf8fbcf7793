"""torch's own optimisers, without what would load its compiler at the first step: a second of every run's start."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from rlloss.config.optimizers import OptimizerConfig
from rlloss.errors import ConfigError, lookup
from rlloss.train.numerics import PORTABLE
from rlloss.train.policy import ActorCritic
from rlloss.train.portable import ExactRoots, exact_root

Entries = dict[str, Any]
Arithmetic = Callable[[Tensor, Tensor, Entries, Entries], None]
"""On a parameter, by its gradient and what the optimiser has of it: its state, and its group's options."""


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
    """``optimizer.step``; of Adam and RMSprop the arithmetic alone: the same step in a third of the time.

    The first step, which makes the state, every one that somebody listens to, and options that neither is used with
    here take the long way.
    """
    arithmetic = next((make() for kind, make in ARITHMETIC.items() if isinstance(optimizer, kind)), None)
    if arithmetic is None:
        return lambda: optimizer.step()  # looked up at every step, since schedulers of torch's wrap it later

    def step() -> None:
        (group,) = optimizer.param_groups
        (parameter,) = group["params"]
        state = optimizer.state[parameter]
        listeners = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        listeners = listeners or _global_optimizer_pre_hooks or _global_optimizer_post_hooks
        if not state or listeners or any(map(group.get, UNUSUAL)):
            optimizer.step()
            return
        with torch.no_grad():
            state["step"] += 1
            arithmetic(parameter, parameter.grad, state, group)

    return step


UNUSUAL = ("amsgrad", "momentum", "centered", "maximize")


def _adam() -> Arithmetic:
    """By torch's fused kernel, or NumPy where that takes its roots one by one."""
    return _AdamInNumPy() if torch.backends.cpu.get_cpu_capability() == "DEFAULT" else _fused_adam


def _fused_adam(parameter: Tensor, gradient: Tensor, state: Entries, group: Entries) -> None:
    beta1, beta2 = group["betas"]
    torch._fused_adam_(
        [parameter], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
        lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False,
    )  # fmt: skip


class _AdamInNumPy:
    """The fused kernel to the last bit, where it has no vector code, in two fifths of the time.

    m += (g - m) (1 - beta1), the other way from g where that is half or more; v = v beta2 + ((1 - beta2) g) g;
    p -= (step_size m) / (sqrt(v) / sqrt(1 - beta2^t) + eps).
    """

    def __init__(self) -> None:
        self._made: NDArray[Any] = np.empty((2, 0))

    def __call__(self, parameter: Tensor, gradient: Tensor, state: Entries, group: Entries) -> None:
        p, g, m, v = (x.detach().numpy() for x in (parameter, gradient, state["exp_avg"], state["exp_avg_sq"]))
        if self._made[0].shape != p.shape or self._made.dtype != p.dtype:
            self._made = np.empty((2, *p.shape), p.dtype)
        x, y = self._made
        (beta1, beta2), taken, number = group["betas"], state["step"].item(), p.dtype.type
        if decay := group["weight_decay"]:
            g = g + np.multiply(p, number(decay), x)
        np.subtract(g, m, x)
        share = number(1 - beta1)
        if share < 0.5:
            m += np.multiply(x, share, x)
        else:
            np.add(g, np.multiply(x, share - number(1), x), m)
        v *= number(beta2)
        np.multiply(g, number(1 - beta2), x)
        v += np.multiply(x, g, x)
        np.sqrt(v, x)
        x /= number(math.sqrt(1 - beta2**taken))
        x += number(group["eps"])
        np.multiply(m, number(group["lr"] / (1 - beta1**taken)), y)
        p -= np.divide(y, x, y)


def _rmsprop(root: Callable[[Tensor], Tensor] = torch.sqrt) -> Arithmetic:
    def arithmetic(parameter: Tensor, gradient: Tensor, state: Entries, group: Entries) -> None:
        alpha, squares = group["alpha"], state["square_avg"]
        if decay := group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=decay)
        squares.mul_(alpha).addcmul_(gradient, gradient, value=1 - alpha)
        parameter.addcdiv_(gradient, root(squares).add_(group["eps"]), value=-group["lr"])

    return arithmetic


ARITHMETIC: dict[type[Optimizer], Callable[[], Arithmetic]] = {
    torch.optim.Adam: _adam,
    RMSprop: lambda: _rmsprop(exact_root),
    torch.optim.RMSprop: _rmsprop,
}
"""What a step of each comes to. The first that fits counts."""
