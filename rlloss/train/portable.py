"""What numerics=portable computes otherwise within a process: functions whose bits hang on the CPU's maker or on libm.

torch's square root is MKL's, which refines each CPU's own approximation of its reciprocal, and is not always the
nearest float; expm1, log1p and what builds on them are the C library's in float32, and change with its version. Each is
replaced by one that is made of correctly rounded operations and of functions that were the same wherever tried.

They are replaced below autograd, where every way to call a function has become one of torch's operations, and where
the derivatives of others, as of x ** 1.5, ask for them, too.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rlloss.config.schema import Config
from rlloss.errors import ConfigError, RunFailed, Unportable
from rlloss.losses.samples import LOSSES, Loss
from rlloss.train.numerics import PORTABLE
from rlloss.train.policy import numpys_tanh

LARGE = 1.0  # from which on exp(x) - 1 loses no digit of expm1(x) that matters


def tanh(x: NDArray[Any]) -> Callable[[], object]:
    """``policy.numpys_tanh`` by way of torch, whose own does not come from the C library. Of float32 or float64.

    By a tensor of its own every time: to whoever listens to torch, one that NumPy writes to between two operations has
    changed for no reason.
    """
    return lambda: torch.from_numpy(x).tanh_()


def actors_tanh(config: Config) -> Callable[[NDArray[Any]], Callable[[], object]]:
    """The one that a run's policy acts with."""
    return tanh if config.numerics.name == PORTABLE else numpys_tanh


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1, in float64 whatever the dtype of ``x``: 2 t / (1 - t) with t = tanh(x / 2), beyond 1 exp(x) - 1."""
    x = x.double()
    t = torch.tanh(x / 2)
    return torch.where(x < LARGE, 2 * t / (1 - t), torch.exp(x) - 1)


def _log(x: Tensor) -> Tensor:
    """In float64, by the C library: torch's own, MKL's, has other bits for one number in a million."""
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.asarray(np.log(x.detach().double().numpy())))


def _log1p(x: Tensor) -> Tensor:
    """log(1 + x) in float64, with what rounding took from 1 + x."""
    x = x.double()
    u = 1 + x
    return torch.where(u.isfinite(), _log(u) - ((u - 1) - x) / u, _log(u))


def exact_root(x: Tensor) -> Tensor:
    """Correctly rounded, as NumPy's is; of halves by way of float32, which rounds them to the same."""
    wide = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.asarray(np.sqrt(wide.numpy())))


def _decayed(x: Tensor) -> Tensor:
    return torch.exp(-x.double().abs())


def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    scaled = x.double() * beta
    return torch.where(scaled > threshold, x.double(), (scaled.clamp(min=0) + _log1p(_decayed(scaled))) / beta)


def _softplus_backward(grad: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    scaled = x * beta
    return torch.where(scaled > threshold, grad, grad * torch.sigmoid(scaled))


def _log_sigmoid(x: Tensor) -> Tensor:
    return x.double().clamp(max=0) - _log1p(_decayed(x))


def _pow(x: Tensor, exponent: Any) -> Tensor:
    return exact_root(x) if exponent == 0.5 else torch.pow(x, exponent)


def _log_of(x: Tensor) -> Tensor:
    return _log(x) if x.dtype == torch.float64 else torch.log(x)


def _logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    if x.dtype != torch.float64:
        return torch.logsumexp(x, dim, keepdim)
    largest = x.amax(dim, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, 0.0)
    out = _log((x - largest).exp().sum(dim, keepdim=True)) + largest
    return out if keepdim else out.squeeze(dim)


aten = torch.ops.aten
REPLACED: dict[Any, Callable[..., Tensor]] = {
    aten.sqrt.default: exact_root,
    aten.pow.Tensor_Scalar: _pow,
    aten.log.default: _log_of,
    aten.expm1.default: expm1,
    aten.log1p.default: _log1p,
    aten.logsumexp.default: _logsumexp,
    aten.softplus.default: _softplus,
    aten.softplus_backward.default: _softplus_backward,
}
IN_PLACE: dict[Any, Callable[..., Tensor]] = {
    aten.sqrt_.default: exact_root,
    aten.pow_.Scalar: _pow,
    aten.log_.default: _log_of,
    aten.expm1_.default: expm1,
    aten.log1p_.default: _log1p,
}
CHANGED = {operation.overloadpacket for operation in (*REPLACED, *IN_PLACE)}


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


class Portable(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within: torch's operations in ``REPLACED`` are those of the replacements. ``used``: some was asked for.

    ``strict``: Unportable is raised for every other one that is not in ``SAME``.
    """

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.strict, self.used = strict, False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first operation within would load torch's compiler, which takes a second

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in REPLACED:
            self.used = True
            return REPLACED[func](*args, **kwargs).to(args[0].device, args[0].dtype)
        if func in IN_PLACE:
            self.used = True
            return args[0].copy_(IN_PLACE[func](*args, **kwargs))
        if func is aten.log_sigmoid_forward.default:
            self.used = True
            return _log_sigmoid(args[0]).to(args[0].device, args[0].dtype), args[0].new_empty(0)
        if func is aten.log_sigmoid_backward.default:
            return args[0] * torch.sigmoid(-args[1])
        if self.strict:
            name = func.overloadpacket.__name__.rstrip("_")
            if name not in SAME or (func.overloadpacket in CHANGED and "out" in func._overloadname):
                raise Unportable(name)
        return func(*args, **kwargs)


class ExactRoots(TorchFunctionMode):
    """Within: the square roots that an optimiser takes are exact. Above autograd, where a call costs a tenth."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.sqrt, torch.sqrt):
            return exact_root(args[0]).to(args[0].device, args[0].dtype)
        if func is Tensor.sqrt_:
            return args[0].copy_(exact_root(args[0]))
        return func(*args, **(kwargs or {}))


class LossApart:
    """A loss with a graph of its own, whose forward and backward pass are computed under ``Portable``.

    ``used``: some of torch's operations were replaced. Nothing goes through it twice: it has no second derivatives.
    Calls raise RunFailed for an operation that is not known to be the same everywhere.
    """

    def __init__(self, loss: Loss, name: str) -> None:
        self.loss, self.name, self.used = loss, name, False

    def __call__(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
        losses: Tensor = _Apart.apply(logp, old_logp, advantages, clip_coef, self)  # type: ignore[no-untyped-call]
        return losses

    @contextmanager
    def portable(self) -> Iterator[None]:
        mode = Portable(strict=True)
        try:
            with mode:
                yield
        except Unportable as error:
            raise RunFailed(
                f"loss={self.name} numerics={PORTABLE}: torch's {error} is not known to have the same bits on every "
                "CPU; write the loss without it, or use numerics=native"
            ) from error
        finally:
            self.used = self.used or mode.used


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logp: Tensor, old_logp: Tensor, advantages: Tensor, clip_coef: float, apart: LossApart
    ) -> Tensor:
        ctx.apart, ctx.leaf = apart, logp.detach().requires_grad_()
        with torch.enable_grad(), apart.portable():
            ctx.losses = apart.loss(ctx.leaf, old_logp, advantages, clip_coef=clip_coef)
        losses: Tensor = ctx.losses
        return losses.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        gradient = None
        if ctx.losses.requires_grad:
            with ctx.apart.portable():
                (gradient,) = torch.autograd.grad(ctx.losses, ctx.leaf, grads[0], allow_unused=True)
        return gradient, None, None, None, None


def portable_loss(loss: Loss, name: str) -> Loss:
    """The loss with the functions of this module in the place of torch's, in both directions.

    It is asked on a few samples first, some beyond the clip. A loss of ours that needs none of them stays as it is; one
    of a user's is held against ``SAME`` at every step, since it may have branches that the samples do not take.

    Raises: ConfigError for an operation of torch that is not known to be the same everywhere.
    """
    apart = LossApart(loss, name)
    logp = torch.linspace(-2, -0.1, 16, requires_grad=True)
    old_logp, advantages = torch.linspace(-1.5, -0.6, 16), torch.linspace(-1, 1, 16).roll(5)
    try:
        apart(logp, old_logp, advantages, clip_coef=0.2).sum().backward()  # type: ignore[no-untyped-call]
    except RunFailed as error:
        raise ConfigError(str(error)) from error
    return apart if apart.used or name not in LOSSES else loss


def refuse_second_derivatives(loss: Loss, name: str) -> None:
    """Raises: ConfigError for a loss apart, which has none."""
    if isinstance(loss, LossApart):
        raise ConfigError(
            f"optimizer=gradient_penalty numerics={PORTABLE}: second derivatives of loss={name} are to be had in "
            "native numerics alone; use numerics=native, or optimizer=sam"
        )
