"""A loss by its name: one of ours, or a function in somebody's file or module, called with care."""

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rlloss import lazy
from rlloss.errors import ConfigError, LossError, lookup
from rlloss.losses.samples import LOSSES, Loss
from rlloss.losses.sequences import SEQUENCE_LOSSES

CONTRACT = "(logp, old_logp, advantages, *, clip_coef)"
SEQUENCE_CONTRACT = "(logp, old_logp, advantages, mask, *, clip_coef)"


@dataclass(frozen=True)
class Formulation:
    """A loss with the name by which its messages call it. ``sequence``: it takes a mask, on [batch, tokens]."""

    name: str
    function: Callable[..., Any]
    sequence: bool = False

    def __call__(
        self, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor | None = None, *, clip_coef: float
    ) -> Tensor:
        """The loss: per-sample, or a scalar if that is what the function returns. Sequence losses need a ``mask``.

        The function gets copies of all but logp: one that changes its inputs in place harms nobody.

        Raises: LossError for an exception in the function and for a result that is no loss.
        """
        inputs = [old_logp.clone(), advantages.clone()]
        if self.sequence:
            assert mask is not None, f"{self.name} is a sequence loss"
            inputs.append(mask.clone())
        try:
            result = self.function(logp, *inputs, clip_coef=clip_coef)
        except Exception as error:
            raise LossError(f"{self.name} raised {describe(error)}, given {describe_inputs(logp)}") from error
        if isinstance(result, tuple | list) and result:
            result = result[0]
        self._check(result, logp)
        loss: Tensor = result
        return loss

    def _check(self, result: object, logp: Tensor) -> None:
        if not isinstance(result, Tensor):
            raise LossError(
                f"{self.name} returned {type(result).__name__}; it must return a tensor, or one first of all"
            )
        shapes = [()] if self.sequence else [(), tuple(logp.shape)]
        if tuple(result.shape) not in shapes:
            wanted = "a scalar" if self.sequence else "one loss per sample, or a scalar"
            raise LossError(
                f"{self.name} returned shape {tuple(result.shape)} for inputs of shape {tuple(logp.shape)}; "
                f"it must return {wanted}"
            )
        if not result.is_floating_point() or torch.finfo(result.dtype).eps > torch.finfo(logp.dtype).eps:
            raise LossError(
                f"{self.name} returned {result.dtype} for inputs of {logp.dtype}; "
                "compute in the inputs' dtype, or leave that dtype out with --dtype"
            )
        if not result.requires_grad:
            raise LossError(
                f"{self.name} has no gradient: its result does not depend on logp in a way that autograd sees; "
                "look for a detach, a .item(), a detour through NumPy or a torch.no_grad() too many"
            )


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe_inputs(logp: Tensor) -> str:
    return f"{tuple(logp.shape)} {dtype_name(logp.dtype)} inputs"


ZOO = LOSSES | SEQUENCE_LOSSES
"""Every loss of this package, by name."""


def resolve(loss: str | Callable[..., Any]) -> Formulation:
    """A formulation from a name of ours, from ``file.py:function`` or ``module:function``, or from a function.

    A loss that has a parameter called ``mask`` is a sequence loss (``rlloss.losses.sequences``).

    Raises: LossError if there is no such loss or if its signature is not that of the contract.
    """
    if not isinstance(loss, str):
        function, name = loss, getattr(loss, "__name__", type(loss).__name__)
    elif ":" in loss:
        function, name = load_function(loss), loss
    else:
        if loss not in ZOO:
            raise unknown(loss, ZOO)
        function, name = ZOO[loss], loss
    return Formulation(name, function, _takes_mask(function, name))


def trainable(name: str) -> Loss:
    """The loss that ``loss=name`` trains: one of ``LOSSES``, ``file.py:function`` or ``module:function``.

    One that is not ours is tried on a few samples first. Raises: ConfigError for one that cannot train a policy.
    """
    if ":" not in name:
        return lookup(LOSSES, "loss", name)
    try:
        formulation = resolve(name)
        if formulation.sequence:
            raise LossError(f"{name} takes a mask: losses of sequences are for `rlloss check`; none trains here")
        logp = torch.linspace(-2, -0.1, 8, requires_grad=True)
        formulation(logp, logp.detach() - 0.1, torch.linspace(-1, 1, 8), clip_coef=0.2)
    except LossError as error:
        raise ConfigError(f"loss={str(error).removeprefix('LOSS=')}") from error
    return formulation


def unknown(loss: str, known: Iterable[str]) -> LossError:
    """The error for a name that is none of these: with those that resemble it, or else with all."""
    close = difflib.get_close_matches(loss, list(known), 3, 0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"use one of {', '.join(known)}"
    return LossError(f"LOSS={loss}: unknown; {hint} (your own: file.py:function)")


def _takes_mask(function: Callable[..., Any], name: str) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C: the call itself will tell
        return False
    sequence = "mask" in signature.parameters
    try:
        signature.bind(*[None] * (4 if sequence else 3), clip_coef=0.2)
    except TypeError as error:
        contract = SEQUENCE_CONTRACT if sequence else CONTRACT
        raise LossError(f"{name} takes {signature}; a loss takes {contract} ({error})") from error
    return sequence


def load_function(spec: str) -> Callable[..., Any]:
    """The function of ``file.py:function`` or ``module:function``. Raises: LossError if there is none."""
    where, _, attribute = spec.rpartition(":")
    try:
        module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
    except LossError:
        raise
    except (Exception, SystemExit) as error:
        raise LossError(f"LOSS={spec}: importing {where} raised {describe(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        offered = [name for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_"]
        what = "is not a function" if hasattr(module, attribute) else "does not exist"
        raise LossError(f"LOSS={spec}: {attribute} {what} in {where}; it has {', '.join(offered) or 'none'}")
    loaded: Callable[..., Any] = function
    return loaded


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise LossError(f"LOSS={path}: no such file; name it as path/to/file.py:function")
    sys.path.insert(0, str(path.parent.resolve()))  # so that the file can import its neighbours
    return lazy.load_file(path, "rlloss_loss")


def _load_module(name: str) -> ModuleType:
    lazy.beside_the_user()
    return importlib.import_module(name)


def describe(error: BaseException) -> str:
    """An exception in one line, with the last place in the user's own code that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = (__file__, lazy.__file__)
    theirs = [frame for frame in frames if frame.filename not in ours and "importlib" not in frame.filename]
    outside = [frame for frame in theirs if "site-packages" not in frame.filename] or theirs
    place = f" ({Path(outside[-1].filename).name}, line {outside[-1].lineno})" if outside else ""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}{place}" if message else f"{type(error).__name__}{place}"
