"""Listening to optimisers: when a step begins and ends, and when one was forbidden."""

import hashlib
import json
import operator
import sys
import weakref
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from rlloss.errors import ConfigError
from rlloss.runs.watched import RATES

FORMS = ("foreach", "fused", "capturable", "differentiable")  # by which the same step is computed
UNDECISIVE = frozenset(("params", *RATES, *FORMS))

_LISTENING: "list[Steps]" = []
_SCALED_STEP = GradScaler.step


class Steps:
    """Calls ``before()`` and ``after(optimizer, skipped)`` around every step of some optimisers.

    And ``elsewhere(name)`` once an optimiser that is none of them has trained one of the tensors.

    A step within another one is part of it, as where ``step`` calls ``super().step()`` or another optimiser's. A step
    that GradScaler forbids is a step all the same, ``skipped``: so the steps of two runs are counted alike.

    Args: the optimisers; None for all that train one of the tensors ``trained()``, once they are seen.
    Raises: ConfigError for something else than optimisers, or one whose steps another ``Steps`` reports.
    """

    def __init__(
        self,
        optimizers: Optimizer | Iterable[Optimizer] | None,
        trained: Callable[[], Iterable[Tensor]],
        before: Callable[[], None],
        after: Callable[[Optimizer, bool], None],
        elsewhere: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.optimizers = [] if optimizers is None else _inner(optimizers)
        self._late, self._trained, self._tell_before, self._tell_after = optimizers is None, trained, before, after
        self._tell_elsewhere = elsewhere
        self._others = weakref.WeakKeyDictionary[Optimizer, int]()  # seen, and of no concern while they have so many
        self._is_over = False
        self._running: FrameType | None = None  # the frame that made the step in progress
        self._made = 0
        for optimizer in self.optimizers:
            if any(other.is_ours(optimizer) for other in _LISTENING):
                raise ConfigError(f"optimizer={_named(optimizer)}: is watched already; close() the other watch first")

    def listen(self) -> None:
        if self._late:
            handles = [
                register_optimizer_step_pre_hook(self._begins),
                register_optimizer_step_post_hook(self._ends),
            ]
        else:
            handles = [optimizer.register_step_pre_hook(self._begins) for optimizer in self.optimizers]
            handles += [optimizer.register_step_post_hook(self._ends) for optimizer in self.optimizers]
            handles.append(register_optimizer_step_post_hook(self._strange))
        self._handles = handles
        _LISTENING.append(self)
        GradScaler.step = _scaled_step  # type: ignore[method-assign]  # it tells nobody that it forbade a step

    def stop(self, *, within: bool = False) -> None:
        """``within`` a hook, while torch goes through them: none is removed, and ours do nothing any more."""
        self._is_over = True
        if not within:
            self.remove()
        _LISTENING.remove(self)
        if not _LISTENING:
            GradScaler.step = _SCALED_STEP  # type: ignore[method-assign]
        self._running = None

    def remove(self) -> None:
        """All hooks, once it is over."""
        while self._handles:
            self._handles.pop().remove()

    def is_ours(self, optimizer: Optimizer) -> bool:
        """Whether steps of this optimiser are told, also where it is seen for the first time."""
        if any(optimizer is ours for ours in self.optimizers):
            return True
        if not self._late or self._is_another(optimizer):
            return False
        if _trains(optimizer, self._trained()):
            self.optimizers.append(optimizer)
            return True
        self._others[optimizer] = _tensors(optimizer)
        return False

    def _is_another(self, optimizer: Optimizer) -> bool:
        """Whether it was seen to train none of the tensors, and has been given no more since."""
        return self._others.get(optimizer) == _tensors(optimizer)

    def _begins(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        frame = sys._getframe(1)
        if not self._is_over and not self._is_within(frame) and self.is_ours(optimizer):
            self._running = frame
            self._tell_before()

    def _ends(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._is_over or sys._getframe(1) is not self._running:
            return
        self._running = None
        self._made += 1
        found_inf = getattr(optimizer, "found_inf", None)  # which GradScaler leaves with a fused optimiser
        self._tell_after(optimizer, found_inf is not None and bool(found_inf))

    def _strange(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """A step of any optimiser has ended."""
        if self._is_over or self._is_another(optimizer) or any(optimizer is ours for ours in self.optimizers):
            return
        if not self._is_within(sys._getframe(1)):  # a part of a step of ours
            self._others[optimizer] = _tensors(optimizer)
            if _trains(optimizer, self._trained()):
                self._tell_elsewhere(_named(optimizer))

    def _is_within(self, frame: FrameType) -> bool:
        """Whether this frame was called by a step in progress. One that ended by an exception calls nobody any more."""
        caller: FrameType | None = frame if self._running else None
        while caller is not None and caller is not self._running:
            caller = caller.f_back
        return caller is not None

    def count(self) -> int:
        """The steps that were made so far."""
        return self._made

    def skip(self, optimizer: Optimizer) -> None:
        """A step that was not made."""
        if self._is_over:
            return
        self._tell_before()
        self._tell_after(optimizer, True)


def _tensors(optimizer: Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def _trains(optimizer: Optimizer, tensors: Iterable[Tensor]) -> bool:
    """Whether an optimiser has one of these tensors."""
    ours = {id(tensor) for tensor in tensors}
    return any(id(tensor) in ours for group in optimizer.param_groups for tensor in group["params"])


def _scaled_step(self: GradScaler, optimizer: Optimizer, *args: Any, **kwargs: Any) -> float | None:
    """``GradScaler.step``, which does not call an optimiser whose gradients are not finite."""
    try:
        inner = innermost(optimizer)
    except ConfigError:  # no optimiser of torch's, and so none that is watched
        return _SCALED_STEP(self, optimizer, *args, **kwargs)
    listening = [(steps, steps.count()) for steps in _LISTENING if steps.is_ours(inner)]
    result = _SCALED_STEP(self, optimizer, *args, **kwargs)
    for steps, before in listening:
        if steps.count() == before:
            steps.skip(inner)
    return result


def innermost(optimizer: Any) -> Optimizer:
    """The optimiser within those that wrap it, as Accelerate's. Raises: ConfigError for what has no hooks."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer={type(optimizer).__name__}: is no torch.optim.Optimizer; give the one within it")
    if not hasattr(optimizer, "_optimizer_step_post_hooks"):
        raise ConfigError(
            f"optimizer={type(optimizer).__name__}: has no hooks, since its __init__ does not call super().__init__(); "
            "give the optimiser that it uses"
        )
    return optimizer


def _inner(optimizers: Optimizer | Iterable[Optimizer]) -> list[Optimizer]:
    several = not (isinstance(optimizers, Optimizer) or hasattr(optimizers, "optimizer"))
    found = [innermost(o) for o in (optimizers if several and isinstance(optimizers, Iterable) else [optimizers])]
    if not found:
        raise ConfigError("optimizer: an empty list; name one, or give None for all that train the model")
    return list({id(optimizer): optimizer for optimizer in found}.values())


def _named(optimizer: Optimizer) -> str:
    return type(optimizer).__name__


def options(optimizers: Iterable[Optimizer]) -> dict[str, Any]:
    """Class and options of every optimiser, by their places: what decides what a step makes of a gradient."""
    return {
        str(i): {
            "class": _named(optimizer),
            **{str(j): _plain(group) for j, group in enumerate(optimizer.param_groups)},
        }
        for i, optimizer in enumerate(optimizers)
    }


class Deciding:
    """The options that decide what a step computes, of each group, but for learning rates, which schedules change.

    Called after every step of one optimiser; they are written out again only where one of them is another object.
    """

    def __init__(self) -> None:
        self._seen: list[object] = []
        self._text = ""

    def __call__(self, optimizer: Optimizer) -> str:
        groups = optimizer.param_groups
        seen = [x for group in groups for option in group.items() if option[0] not in UNDECISIVE for x in option]
        if len(seen) != len(self._seen) or not all(map(operator.is_, seen, self._seen)):
            plain = [{key: x for key, x in _plain(group).items() if key not in UNDECISIVE} for group in groups]
            self._text = json.dumps(plain)
            self._seen = seen if all(map(_is_fixed, seen)) else []
        return self._text


def _is_fixed(x: object) -> bool:
    """Whether an object stays what it is, as a tensor does not."""
    return isinstance(x, bool | int | float | str | None) or (type(x) is tuple and all(map(_is_fixed, x)))


def options_digest(decide: str) -> str:
    return hashlib.sha256(decide.encode()).hexdigest()[:8]


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in group.items() if key != "params"}
    kept |= {key: tuple(value) for key, value in kept.items() if isinstance(value, list)}  # as JSON has made of one
    return {key: value if isinstance(value, bool | int | float | None) else str(value) for key, value in kept.items()}
