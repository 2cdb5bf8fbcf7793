"""What numerics=portable computes otherwise within a process: functions whose bits hang on the CPU's maker or on libm.

torch's square root is MKL's, which refines each CPU's own approximation of its reciprocal, and is not always the
nearest float; expm1, log1p and what builds on them are the C library's in float32, and change with its version. Each is
replaced by one that is made of correctly rounded operations and of functions that were the same wherever tried.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rlloss.config.schema import Config
from rlloss.errors import ConfigError
from rlloss.losses.samples import Loss
from rlloss.train.numerics import PORTABLE

LARGE = 1.0  # from which on exp(x) - 1 loses no digit of expm1(x) that matters


def tanh(x: NDArray[Any]) -> NDArray[Any]:
    """np.tanh by way of torch, whose own does not come from the C library. Of float32 or float64."""
    out: NDArray[Any] = torch.tanh(torch.from_numpy(x)).numpy()
    return out


def actors_tanh(config: Config) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """The one that a run's policy acts with."""
    return tanh if config.numerics.name == PORTABLE else np.tanh


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1, in float64 whatever the dtype of ``x``: 2 t / (1 - t) with t = tanh(x / 2), beyond 1 exp(x) - 1."""
    x = x.double()
    t = torch.tanh(x / 2)
    return torch.where(x < LARGE, 2 * t / (1 - t), torch.exp(x) - 1)


def _log(x: Tensor) -> Tensor:
    """In float64, by the C library: torch's own, MKL's, has other bits for one number in a million."""
    return torch.from_numpy(np.asarray(np.log(x.double().numpy())))


def _log1p(x: Tensor) -> Tensor:
    """log(1 + x) in float64, with what rounding took from 1 + x."""
    x = x.double()
    u = 1 + x
    return torch.where(u.isfinite(), _log(u) - ((u - 1) - x) / u, _log(u))


def _decayed(x: Tensor) -> Tensor:
    return torch.exp(-x.double().abs())


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded, as NumPy's is; of halves by way of float32, which rounds them to the same."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return torch.from_numpy(np.asarray(np.sqrt(wide.numpy())))


def _function(value: Callable[[Tensor], Tensor], derivative: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """A differentiable function. ``derivative`` gets its argument and its value, and is torch's own formula."""

    class Portable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            with np.errstate(all="ignore"):
                out = value(x.detach().cpu().contiguous()).to(x.device, x.dtype)
            ctx.save_for_backward(x, out)
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            x, out = ctx.saved_tensors
            return grads[0] * derivative(x, out)

    apply: Callable[..., Any] = Portable.apply
    return lambda input: apply(input)


sqrt = _function(_sqrt, lambda x, out: 1 / (2 * out))
THRESHOLD = 20  # above which torch's softplus is its argument

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": sqrt,
    "expm1": _function(expm1, lambda x, out: out + 1),
    "log1p": _function(_log1p, lambda x, out: 1 / (x + 1)),
    "softplus": _function(
        lambda x: torch.where(
            x > THRESHOLD, x.double(), x.double().clamp(min=0) + _log1p(torch.exp(-x.double().abs()))
        ),
        lambda x, out: torch.where(x > THRESHOLD, 1.0, torch.sigmoid(x)),
    ),
    "logsigmoid": _function(
        lambda x: x.double().clamp(max=0) - _log1p(_decayed(x)),
        lambda x, out: torch.sigmoid(-x),
    ),
}


def _log_of(x: Tensor) -> Any:
    return _log64(x) if x.dtype == torch.float64 else torch.log(x)


_log64 = _function(_log, lambda x, out: 1 / x)


def _logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Any:
    if x.dtype != torch.float64:
        return torch.logsumexp(x, dim, keepdim)
    largest = x.amax(dim, keepdim=True).detach()
    largest = torch.where(largest.isfinite(), largest, 0.0)
    out = _log64((x - largest).exp().sum(dim, keepdim=True)) + largest
    return out if keepdim else out.squeeze(dim)


def _pow(x: Any, exponent: Any) -> Any:
    return sqrt(x) if isinstance(x, Tensor) and exponent == 0.5 else torch.pow(x, exponent)


REPLACED: dict[Any, Callable[..., Any]] = {
    torch.sqrt: sqrt,
    Tensor.sqrt: sqrt,
    Tensor.sqrt_: lambda x: x.copy_(sqrt(x)),
    torch.pow: _pow,
    Tensor.pow: _pow,
    Tensor.__pow__: _pow,
    **dict.fromkeys((torch.expm1, torch.special.expm1, Tensor.expm1), FUNCTIONS["expm1"]),
    **dict.fromkeys((torch.log1p, torch.special.log1p, Tensor.log1p), FUNCTIONS["log1p"]),
    **dict.fromkeys((torch.log, Tensor.log), _log_of),
    **dict.fromkeys((torch.logsumexp, torch.special.logsumexp, Tensor.logsumexp), _logsumexp),
    F.softplus: FUNCTIONS["softplus"],
    F.logsigmoid: FUNCTIONS["logsigmoid"],
}


class PortableFunctions(TorchFunctionMode):
    """Within: calls of torch's functions in ``REPLACED`` are those of the replacements. ``used``: some was called."""

    used = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        replacement = REPLACED.get(func)
        if replacement is None:
            return func(*args, **(kwargs or {}))
        self.used = True
        return replacement(*args, **(kwargs or {}))


class RMSprop(torch.optim.RMSprop):
    """torch's own, with a square root that is exact: Adam's is, where it is fused, and RMSprop has no fused form."""

    def step(self, closure: Any = None) -> Any:
        with PortableFunctions():
            return super().step(closure)


class LBFGS(torch.optim.LBFGS):
    """torch's own, with the square root of its line search exact."""

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        with PortableFunctions():
            return super().step(closure)  # type: ignore[no-untyped-call]


SAME = frozenset(
    """
    add sub rsub mul div neg reciprocal abs sign sgn where clamp clamp_min clamp_max maximum minimum max min amax
    amin aminmax eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not
    any all isnan isinf isfinite exp tanh sigmoid log log_softmax _log_softmax softmax _softmax logsumexp sum mean
    var std pow square relu hardtanh sin cos erf rsqrt floor ceil round trunc cumsum sort argsort argmax argmin topk
    median lerp addcmul addcdiv masked_fill nan_to_num heaviside mm addmm bmm dot mv linalg_vector_norm threshold
    remainder fmod tanh_backward sigmoid_backward _log_softmax_backward_data _softmax_backward_data
    threshold_backward hardtanh_backward cat stack view _unsafe_view reshape slice select index gather index_select
    scatter scatter_add index_put index_add slice_backward select_backward index_backward
    value_selecting_reduction_backward detach alias clone copy _to_copy lift_fresh zeros_like ones_like full_like
    empty_like new_zeros new_ones new_full new_empty fill zero zeros ones full empty scalar_tensor arange linspace
    expand permute transpose unsqueeze squeeze nextafter t unbind split chunk unfold diagonal tril triu flip roll
    repeat numel item _local_scalar_dense is_nonzero
    """.split()  # noqa: SIM905, one word each
)
"""torch's operations that had the same bits on every CPU and with every C library tried, and those that only move
numbers. Left out, as not tried or not the same: gelu, mish, lgamma, digamma, atan and many more."""


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within: the names of the operations that torch's kernels are asked for, forward and backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.names.add(func.overloadpacket.__name__.rstrip("_"))
        return func(*args, **(kwargs or {}))


def portable_loss(loss: Loss, name: str) -> Loss:
    """The loss with the functions of this module in the place of torch's.

    It is asked on a few samples, some beyond the clip, what it computes. Raises: ConfigError for an operation of torch
    that is not known to be the same everywhere.
    """
    logp = torch.linspace(-2, -0.1, 16, requires_grad=True)
    old_logp, advantages = torch.linspace(-1.5, -0.6, 16), torch.linspace(-1, 1, 16).roll(5)
    with Operations() as operations, PortableFunctions() as functions:
        losses = loss(logp, old_logp, advantages, clip_coef=0.2)
    with operations:
        losses.sum().backward()  # type: ignore[no-untyped-call]
    if unknown := sorted(operations.names - SAME):
        raise ConfigError(
            f"loss={name} numerics={PORTABLE}: torch's {', '.join(unknown)} is not known to have the same bits on "
            "every CPU; write the loss without it, or use numerics=native"
        )
    if not functions.used:
        return loss

    def within(*args: Tensor, **kwargs: Any) -> Tensor:
        with PortableFunctions():
            return loss(*args, **kwargs)

    return within
