"""A loss by its name: one of ours, or a function in somebody's file or module, called with care."""

import difflib
import importlib
import inspect
import logging
import random
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import CoroutineType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlloss import lazy
from rlloss.errors import PASSED_ON, ConfigError, LossError, lookup
from rlloss.losses.samples import LOSSES, Loss
from rlloss.losses.sequences import SEQUENCE_LOSSES
from rlloss.losses.signature import BY_POSITION, Binding, bind, meaning, refuse_parts, signature_of

# What a sequence loss may take in place of the contract's mask and advantages, in the order in which it is tried.
MASK_FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bool": lambda mask, logp: mask.clone(),
    "float": lambda mask, logp: mask.to(logp.dtype),
    "int64": lambda mask, logp: mask.long(),
}
ADVANTAGE_FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "[batch]": lambda advantages, logp: advantages.clone(),
    "[batch, 1]": lambda advantages, logp: advantages.unsqueeze(1).clone(),
    "[batch, tokens]": lambda advantages, logp: advantages.unsqueeze(1).expand_as(logp).clone(),
}
"""Of one advantage an answer."""
ANSWERS = (3, 48, 64, 70, 100)  # of a batch that is tried; the first for all but losses that take theirs in groups
IN_PLACE = "a leaf Variable that requires grad"  # how autograd begins to say that it may not be changed

_said: set[str] = set()  # the losses of which this process has said that they do not answer twice alike
log = logging.getLogger("rlloss")


@dataclass(frozen=True)
class Formulation:
    """A loss with the name by which its messages call it. ``sequence``: it takes a mask, on [batch, tokens].

    ``binding``: which of its parameters takes what. ``mask_form`` and ``advantage_form``: what a sequence loss is given
    (``MASK_FORMS``, ``ADVANTAGE_FORMS``). ``per_token``: it is asked with an advantage of each token, too.
    """

    name: str
    function: Callable[..., Any]
    sequence: bool = False
    binding: Binding = BY_POSITION
    mask_form: str = "bool"
    advantage_form: str = "[batch]"
    per_token: bool = False

    def __call__(
        self, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor | None = None, *, clip_coef: float
    ) -> Tensor:
        """The loss: per-sample, or a scalar if that is what the function returns. Sequence losses need a ``mask``.

        The function gets copies of all but logp: one that changes its inputs in place harms nobody. Of a logp that is
        a leaf it gets a copy, too, if it changes that: in training logp is none, and may be changed.

        Raises: LossError for an exception in the function and for a result that is no loss.
        """
        try:
            inputs = self._inputs(logp, old_logp, advantages, mask)
            result = self._call(inputs, clip_coef)
        except LossError as error:
            if not logp.is_leaf or IN_PLACE not in str(error):
                raise
            inputs = self._inputs(logp.clone(), old_logp, advantages, mask)
            result = self._call(inputs, clip_coef)
        self._check(result, inputs, clip_coef)
        loss: Tensor = result
        return loss

    def _inputs(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        inputs = {"logp": logp, "old_logp": old_logp.clone(), "advantages": advantages.clone()}
        if self.sequence:
            assert mask is not None, f"{self.name} is a sequence loss"
            inputs["mask"] = MASK_FORMS[self.mask_form](mask, logp)
            if advantages.dim() == 1:  # one an answer; one a token is what it is
                inputs["advantages"] = ADVANTAGE_FORMS[self.advantage_form](advantages, logp)
        return inputs

    def widths(self) -> list[tuple[str, float]]:
        """The parameters that ``clip_coef`` is handed to and that have a number by default, with that number."""
        signature = signature_of(self.function)
        if signature is None:
            return []
        mine = [name for name, role in self.binding.roles if role == "clip_coef"]
        defaults = ((name, signature.parameters[name].default) for name in mine)
        return [(name, its) for name, its in defaults if isinstance(its, int | float)]

    def old_policies(self) -> list[str]:
        """The parameters that the one old policy is handed to, if they are several."""
        mine = [name for name, role in self.binding.roles if role == "old_logp"]
        return mine if len(mine) > 1 else []

    def absent(self) -> list[str]:
        """The parameters that are called as data are, and stay at their default, None."""
        signature = signature_of(self.function)
        if signature is None:
            return []
        handed = {name for name, _ in self.binding.roles}
        none = (p.name for p in signature.parameters.values() if p.default is None and p.name not in handed)
        return [name for name in none if meaning(name) not in ("", "clip_coef", "foreign")]

    def unchecked(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip_coef: float) -> Tensor:
        """The per-sample function's own result, for torch's compiler, which cannot check every result."""
        inputs = {"logp": logp, "old_logp": old_logp.clone(), "advantages": advantages.clone()}
        arguments, keywords = self.binding.arguments({**inputs, "clip_coef": clip_coef})
        result: Any = self.function(*arguments, **keywords)
        return result[0] if isinstance(result, tuple | list) else result  # type: ignore[no-any-return]

    def _call(self, inputs: Mapping[str, Tensor], clip_coef: float) -> Any:
        """What the function returns, the first if it returns several."""
        arguments, keywords = self.binding.arguments({**inputs, "clip_coef": clip_coef})
        try:
            result = self.function(*arguments, **keywords)
        except PASSED_ON:
            raise
        except BaseException as error:  # sys.exit(), too, is a fault of the loss's
            raise LossError(f"{self.name} raised {describe(error)}, given {describe_inputs(inputs['logp'])}") from error
        samples = inputs["logp"].shape[0] if inputs["logp"].dim() else 1
        if isinstance(result, list) and len(result) == samples > 1 and all(map(_is_number, result)):
            raise LossError(
                f"{self.name} returned a list of {samples} numbers, given {describe_inputs(inputs['logp'])}; return "
                "torch.stack of it, or the loss first in a tuple"
            )
        if isinstance(result, CoroutineType):
            result.close()  # or Python warns that nobody awaited it
        return result[0] if isinstance(result, tuple | list) and result else result

    def _check(self, result: object, inputs: Mapping[str, Tensor], clip_coef: float) -> None:
        logp = inputs["logp"]
        if not isinstance(result, Tensor):
            raise LossError(
                f"{self.name} returned {type(result).__name__}; it must return a tensor, or one first of all"
            )
        shapes = [()] if self.sequence else [(), tuple(logp.shape)]
        if tuple(result.shape) not in shapes:
            wanted = "one loss per sample, or a scalar"
            if self.sequence:
                wanted = "a scalar: average over the tokens as training does, as in (loss * mask).sum() / mask.sum()"
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
            self._find_gradient(inputs, clip_coef)
            raise LossError(
                f"{self.name} has no gradient: its result does not depend on logp in a way that autograd sees; "
                "look for a detach, a .item(), a detour through NumPy or a torch.no_grad() too many"
            )

    def _find_gradient(self, inputs: Mapping[str, Tensor], clip_coef: float) -> None:
        """Raises: LossError if no name decided what old_logp is, and the gradient lies on it."""
        if "old_logp" not in self.binding.guessed:
            return
        moved = {role: x.detach().clone() for role, x in inputs.items()}
        moved["old_logp"].requires_grad_()
        result = self._call(moved, clip_coef)
        if isinstance(result, Tensor) and result.requires_grad:
            theirs, ours = self.binding.argument("old_logp"), self.binding.argument("logp")
            raise LossError(
                f"{self.name}: the gradient lies on its {theirs}, and none on the {ours}, which is taken for logp; "
                "name them logp and old_logp, or change their order"
            )


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe_inputs(logp: Tensor) -> str:
    return f"{tuple(logp.shape)} {dtype_name(logp.dtype)} inputs"


ZOO = LOSSES | SEQUENCE_LOSSES
"""Every loss of this package, by name."""


def resolve(loss: str | Callable[..., Any]) -> Formulation:
    """A formulation from a name of ours, from ``file.py:function`` or ``module:function``, or from a function.

    Parameters are known by their names (``rlloss.losses.signature``). A loss that has one for a mask is a sequence loss
    (``rlloss.losses.sequences``); a trial tells whether it takes that mask and advantages per sequence, or others.

    Raises: LossError if there is no such loss, if its signature cannot be understood, and if no trial succeeds.
    """
    if not isinstance(loss, str):
        function, name = loss, getattr(loss, "__name__", type(loss).__name__)
    elif ":" in loss:
        function, name = load_function(loss), loss
    else:
        if loss not in ZOO:
            raise unknown(loss, ZOO)
        function, name = ZOO[loss], loss
    binding = bind(function, name)
    formulation = Formulation(name, function, binding.takes_mask, binding)
    return _fitted(formulation) if formulation.sequence else formulation


def _fitted(formulation: Formulation) -> Formulation:
    """With the first forms of mask and advantages that a sequence loss takes. Raises: the first form's LossError."""
    first: LossError | None = None
    for answers, mask_form, advantage_form in product(ANSWERS, MASK_FORMS, ADVANTAGE_FORMS):
        candidate = replace(formulation, mask_form=mask_form, advantage_form=advantage_form)
        for dtype in (torch.float64, torch.float32):  # some compute in float32 whatever they are given
            try:
                _try(candidate, dtype, answers)
            except LossError as error:
                first = first or error
            else:
                return candidate
    assert first is not None
    raise first


def asked_of_tokens(*losses: Formulation) -> list[Formulation]:
    """The losses, asked with an advantage of each token, too, if all take that: GAE's, where rewards are dense."""
    try:
        for loss in losses:
            if not loss.sequence or (loss.advantage_form == "[batch]" and not _takes_both(loss)):
                return list(losses)
            _try(loss, torch.float32, ANSWERS[0], tokens=True)
    except (LossError, RuntimeError):
        return list(losses)
    return [replace(loss, per_token=True) for loss in losses]


def _takes_both(loss: Formulation) -> bool:
    """Whether one that takes an advantage of each answer means the same by that of each of its tokens."""
    logp, mask = torch.linspace(-2, -0.1, 15).view(3, 5), torch.ones(3, 5, dtype=torch.bool)
    each = torch.tensor([1, -0.5, 0.25])
    gradients: list[Tensor] = []
    for advantages in (each, each.unsqueeze(1).repeat(1, 5)):
        leaf = logp.clone().requires_grad_()
        result = loss(leaf, logp - 0.1, advantages, mask, clip_coef=0.2)
        gradients += torch.autograd.grad(result, leaf)
    one, other = gradients
    return torch.allclose(one, other)


def _try(formulation: Formulation, dtype: torch.dtype, answers: int, *, tokens: bool = False) -> None:
    """One call: sequences of five tokens, with holes in the mask; three, so that no [batch] passes for [tokens].

    ``tokens``: with an advantage of each token.
    """
    logp = torch.linspace(-2, -0.1, 5 * answers, dtype=dtype).view(answers, 5)
    three = [[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [1, 1, 0, 0, 0]]
    mask = torch.tensor([three[i % 3] for i in range(answers)], dtype=torch.bool)
    each = torch.tensor([1, -0.5, 0.25]).repeat(answers // 3 + 1)[:answers]
    advantages = torch.linspace(-1, 1, 5 * answers).view(answers, 5) if tokens else each
    formulation(logp.clone().requires_grad_(), logp - 0.1, advantages.to(dtype), mask, clip_coef=0.2)


def trainable(name: str) -> Loss:
    """The loss that ``loss=name`` trains: one of ``LOSSES``, ``file.py:function`` or ``module:function``.

    One that is not ours is tried on a few samples first, twice: logs, once a process, if it answers otherwise then.
    Raises: ConfigError for one that cannot train a policy.
    """
    if ":" not in name:
        return lookup(LOSSES, "loss", name)
    try:
        formulation = resolve(name)
        if formulation.sequence:
            raise LossError(f"{name} takes a mask: losses of sequences are for `rlloss check`; none trains here")
        with untouched_streams():
            first, again = _answer(formulation), _answer(formulation)
    except LossError as error:
        raise ConfigError(f"loss={str(error).removeprefix('LOSS=')}") from error
    if first != again and name not in _said:
        _said.add(name)
        log.warning(
            "note: loss=%s: gives another value or gradient when called again for the same samples: it is random or "
            "keeps a state, which no checkpoint holds; its runs need not repeat, nor go on to the same bits",
            name,
        )
    return formulation


def _answer(formulation: Formulation) -> tuple[bytes, bytes]:
    """The bytes of what a loss gives for eight samples, and of its gradient."""
    logp = torch.linspace(-2, -0.1, 8, requires_grad=True)
    result = formulation(logp, logp.detach() - 0.1, torch.linspace(-1, 1, 8), clip_coef=0.2)
    gradient: Tensor | None = None
    with suppress(RuntimeError):  # which training will meet, and say
        (gradient,) = torch.autograd.grad(result.sum(), logp, allow_unused=True)
    return bytes(result.detach().numpy().data), b"" if gradient is None else bytes(gradient.numpy().data)


@contextmanager
def untouched_streams() -> Iterator[None]:
    """Within: the global random streams are drawn from, and are afterwards where they were."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002


def unknown(loss: str, known: Iterable[str]) -> LossError:
    """The error for a name that is none of these: with those that resemble it, or else with all."""
    close = difflib.get_close_matches(loss, list(known), 3, 0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"use one of {', '.join(known)}"
    return LossError(f"LOSS={loss}: unknown; {hint} (your own: file.py:function)")


def load_function(spec: str) -> Callable[..., Any]:
    """The function of ``file.py:function``, ``module:function`` or ``file.py:Class.function``. Raises: LossError."""
    where, _, path = spec.rpartition(":")
    try:
        found: Any = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
    except LossError:
        raise
    except PASSED_ON:
        raise
    except BaseException as error:
        raise LossError(f"LOSS={spec}: importing {where} raised {describe(error)}") from error
    inside = where
    for attribute in path.split("."):
        owner = found
        try:
            found = getattr(owner, attribute)
        except AttributeError:
            has = _functions_of(owner)
            raise LossError(f"LOSS={spec}: {attribute} does not exist in {inside}; it has {has}") from None
        except PASSED_ON:
            raise
        except BaseException as error:
            raise LossError(f"LOSS={spec}: {attribute} of {inside} raised {describe(error)}") from error
        inside = attribute
    if not callable(found):
        raise LossError(f"LOSS={spec}: {path} is not a function in {where}; it has {_functions_of(owner)}")
    refuse_parts(found, f"LOSS={spec}")
    function: Callable[..., Any] = found
    return function


def _functions_of(owner: Any) -> str:
    """The public functions of a module, class or object, in words."""
    offered = {**vars(type(owner)), **getattr(owner, "__dict__", {})}
    plain = (staticmethod, classmethod)
    names = [
        n for n, value in offered.items() if n[0] != "_" and (inspect.isfunction(value) or isinstance(value, plain))
    ]
    return ", ".join(names) or "none"


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise LossError(f"LOSS={path}: no such file; name it as path/to/file.py:function")
    sys.path.insert(0, str(path.parent.resolve()))  # so that the file can import its neighbours
    return lazy.load_file(path, "rlloss_loss")


def _load_module(name: str) -> ModuleType:
    lazy.beside_the_user()
    return importlib.import_module(name)


def _is_number(x: object) -> bool:
    return isinstance(x, Tensor) and x.dim() == 0


def describe(error: BaseException) -> str:
    """An exception in one line, with the last place in the user's own code that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if f.filename not in (__file__, lazy.__file__) and "importlib" not in f.filename]
    ours = str(Path(lazy.__file__).parent)
    outside = [f for f in theirs if "site-packages" not in f.filename and not f.filename.startswith(ours)] or theirs
    place = f" ({Path(outside[-1].filename).name}, line {outside[-1].lineno})" if outside else ""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}{place}" if message else f"{type(error).__name__}{place}"
