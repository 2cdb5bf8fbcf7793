"""Watch a PyTorch function compute, and write every operation on every number on a tape.

A TorchFunctionMode sees each operation under the name by which the author called it. Operations that only move numbers
(stack, unsqueeze, indexing) are replayed on the tape's integers and leave no node.
"""

import functools
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlloss.errors import GraphError
from rlloss.graph.ops import OPS
from rlloss.graph.tape import MATH, Item, Symbol, Tape, is_machinery, symbol_of

UNARY = {
    "neg": "neg", "negative": "neg", "exp": "exp", "expm1": "expm1", "log": "log", "log1p": "log1p", "sqrt": "sqrt",
    "abs": "abs", "absolute": "abs", "sign": "sign", "sigmoid": "sigmoid", "expit": "sigmoid", "tanh": "tanh",
    "relu": "relu", "softplus": "softplus", "log_sigmoid": "logsigmoid", "logsigmoid": "logsigmoid",
    "logical_not": "not", "__invert__": "not", "bitwise_not": "not", "isfinite": "isfinite", "isnan": "isnan",
    "detach": "detach", "data": "detach",
}  # fmt: skip
BINARY = {
    "add": "add", "sub": "sub", "subtract": "sub", "mul": "mul", "multiply": "mul", "div": "div", "divide": "div",
    "true_divide": "div", "pow": "pow", "float_power": "pow", "minimum": "minimum", "maximum": "maximum",
    "clamp_min": "clamp_min", "clamp_max": "clamp_max", "gt": "gt", "greater": "gt", "ge": "ge", "greater_equal": "ge",
    "lt": "lt", "less": "lt", "le": "le", "less_equal": "le", "eq": "eq", "__eq__": "eq", "ne": "ne", "__ne__": "ne",
    "not_equal": "ne", "logical_and": "and", "__and__": "and", "bitwise_and": "and", "logical_or": "or",
    "__or__": "or", "bitwise_or": "or", "nextafter": "nextafter",
}  # fmt: skip
SWAPPED = {"rsub": "sub", "__rsub__": "sub", "__rpow__": "pow"}
REDUCTIONS = {"sum": "sum", "mean": "mean", "amin": "amin", "amax": "amax", "logsumexp": "logsumexp", "all": "amin",
              "any": "amax"}  # fmt: skip
SPREADS = ("std", "var", "std_mean", "var_mean")
LAYOUT = {
    "stack", "cat", "concat", "unsqueeze", "squeeze", "reshape", "view", "flatten", "ravel", "expand", "expand_as",
    "broadcast_to", "view_as", "reshape_as", "__getitem__", "select", "permute", "transpose", "movedim", "t", "T",
    "mT", "unbind", "chunk", "split", "repeat", "tile", "clone", "contiguous", "gather", "index_select",
    "masked_select", "take_along_dim", "narrow", "flip", "roll", "diagonal", "swapaxes", "unflatten", "hstack",
    "vstack", "atleast_1d",
}  # fmt: skip
SHAPED_AS = {"expand_as", "view_as", "reshape_as"}  # whose second argument gives a shape, not places
CASTS = {"to", "cpu", "double", "float", "half", "bfloat16", "type", "type_as", "int", "long", "bool"}
FACTORIES = {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_tensor"}
IN_PLACE = re.compile(r"__setitem__|__i(add|sub|mul|div|truediv|pow|and|or|xor|floordiv|mod)__|\w*[a-z]_")


class Listener(TorchFunctionMode):
    """Writes every operation on a tape. Raises: GraphError for one that the tape has no words for."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        known = self.tape.knows([*args, *kwargs.values()])
        if known:
            name = self._heard(name, args)
        with warnings.catch_warnings():
            if name in SPREADS:  # torch's about one sample; it is refused below, if the loss depends on it
                warnings.simplefilter("ignore")
            result = func(*args, **kwargs)
        # the method's operands come in another order than the function's
        ordered = [args[1], args[0], *args[2:]] if func is torch.Tensor.where else list(args)
        return self._written(name, ordered, kwargs, result) if known else result

    def _heard(self, name: str, args: Sequence[Any]) -> str:
        """The name of an operation that is about to be computed, by which it is written. Raises: GraphError."""
        if IN_PLACE.fullmatch(name):
            raise self._unknown(f"{name} in place", "give the result a new name, as in x = x * 2")
        return name

    def _written(self, name: str, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
        """What the function gets, once an operation is on the tape."""
        if _holds_tensor(result):
            try:
                self._note(name, args, dict(kwargs), result)
            except GraphError as error:
                self._refuse(error, [*args, *kwargs.values()], result)
        return result

    def _refuse(self, error: GraphError, values: Sequence[Any], result: Any) -> None:
        self.tape.refuse(result, error)

    def _is_fixed(self, values: Any) -> bool:
        """Whether values are the same in every batch of this shape and mask."""
        if isinstance(values, list | tuple):
            return all(map(self._is_fixed, values))
        return not self.tape.knows(values) or self.tape.fixed(self.tape.nodes(values).flatten().tolist())

    def _note(self, name: str, args: list[Any], kwargs: dict[str, Any], result: Any) -> None:
        tape = self.tape
        if name in FACTORIES or name in ("grad", "grad_fn"):
            fill = next((value for value in (*args, *kwargs.values()) if isinstance(value, Symbol)), None)
            if fill is not None:
                self._filled(fill, result)
            return
        if name in LAYOUT:
            self._move(name, args, kwargs, result)
            return
        if name in CASTS:
            self._cast(name, args[0], result)
            return
        op, values = self._operands(name, args, kwargs)
        if isinstance(values, list):
            tape.record(op, elementwise(tape, values), result, tape.where())
            return
        tensor, dims = values
        values_only = result[0] if isinstance(result, tuple) else result
        tape.record(op, rows(tape.nodes(tensor), dims), values_only, tape.where(), layout(tensor, dims))

    def _filled(self, fill: Symbol, result: Tensor) -> None:
        self.tape.bind(result, torch.full(result.shape, fill.node))

    def _operands(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> tuple[str, Any]:
        """The operation's own name with its operands in order: a list, or (tensor, dimensions) for a reduction."""
        kwargs = {k: v for k, v in kwargs.items() if (k, v) not in (("alpha", 1), ("inplace", False))}
        x = args[0] if args else kwargs.pop("input", None)
        if name in UNARY and not kwargs and len(args) <= 1:
            return UNARY[name], [x]
        if name in ("__rdiv__", "__rtruediv__"):
            return "rdiv", args
        if name in BINARY | SWAPPED:
            values = [*args, *(kwargs.pop(k) for k in ("other", "exponent", "min", "max") if k in kwargs)]
            if not kwargs and len(values) == 2:
                return (SWAPPED[name], values[::-1]) if name in SWAPPED else (BINARY[name], values)
        if name in ("square", "reciprocal", "rsqrt"):
            return "pow", [x, {"square": 2.0, "reciprocal": -1.0, "rsqrt": -0.5}[name]]
        if name in ("clamp", "clip"):
            low, high = ([*args[1:], None, None][:2][i] if len(args) > i + 1 else kwargs.get(k)
                         for i, k in enumerate(("min", "max")))  # fmt: skip
            if low is None or high is None:
                return ("clamp_max", [x, high]) if low is None else ("clamp_min", [x, low])
            return "clamp", [x, low, high]
        if name == "where" and len(args) == 3:
            return "where", args
        if name == "masked_fill" and len(args) == 3:
            return "where", [args[1], args[2], x]
        return self._reduction(name, x, args, kwargs)

    def _reduction(self, name: str, x: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[str, Any]:
        second = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", kwargs.get("other")))
        if name in ("min", "max"):
            if isinstance(second, Tensor):
                return f"{name}imum", [x, second]
            return (f"a{name}" if second is None else name), (x, second)
        if name in REDUCTIONS and kwargs.get("dtype") is None:
            return REDUCTIONS[name], (x, second)
        if name in SPREADS:
            raise self._unknown(name, "the few samples that it shows have none; let the advantages come normalised")
        given = [key for key in kwargs if key not in ("dim", "axis", "other", "keepdim")]
        raise self._unknown(f"{name} with {', '.join(given)}" if given else name, f"it can follow {', '.join(OPS)}")

    def _move(self, name: str, args: list[Any], kwargs: dict[str, Any], result: Any) -> None:
        """Numbers that change places: do to the nodes what was done to the numbers."""
        first, *rest = args
        if name not in SHAPED_AS and not self._is_fixed([*rest, *kwargs.values()]):
            raise self._unknown(f"{name} at places that depend on the data", "use torch.where")
        source = [self._stopped(t) for t in first] if isinstance(first, list | tuple) else self._stopped(first)
        if name in ("clone", "contiguous"):
            self.tape.bind(result, source)  # type: ignore[arg-type]
            return
        function = getattr(torch, name) if isinstance(source, list) else getattr(torch.Tensor, name)
        moved = function.__get__(source) if name in ("T", "mT") else function(source, *rest, **kwargs)
        for tensor, nodes in zip(*((r if isinstance(r, tuple) else (r,)) for r in (result, moved)), strict=True):
            self.tape.bind(tensor, nodes)

    def _stopped(self, tensor: Tensor) -> Tensor:
        """A tensor's nodes; under torch.no_grad behind nodes that stop the gradient, for moving numbers makes none."""
        nodes = self.tape.nodes(tensor)
        if torch.is_grad_enabled() or not tensor.requires_grad:
            return nodes
        stopped = tensor.detach()
        self.tape.record("detach", single(self.tape, tensor), stopped, self.tape.where())
        return self.tape.nodes(stopped)

    def _cast(self, name: str, source: Tensor, result: Tensor) -> None:
        if result is source:
            return
        if result.dtype == source.dtype:
            self.tape.bind(result, self.tape.nodes(source))
            return
        if result.dtype != torch.float64 and source.is_floating_point():
            raise self._unknown(f"{name} to {result.dtype}", "graphs are in float64 throughout")
        self.tape.record("number", single(self.tape, source), result, self.tape.where())

    def _unknown(self, what: str, remedy: str) -> GraphError:
        _, line = self.tape.where()
        return GraphError(f"LOSS={self.tape.title}: the graph cannot follow {what} ({line or 'in torch'}); {remedy}")


def _holds_tensor(result: Any) -> bool:
    return isinstance(result, Tensor) or (isinstance(result, tuple | list) and any(map(_holds_tensor, result)))


def single(tape: Tape, tensor: Tensor) -> list[list[int]]:
    """A row for each number of a tensor, with it alone."""
    return [[node] for node in tape.nodes(tensor).flatten().tolist()]


def elementwise(tape: Tape, values: Sequence[Any]) -> list[list[int]]:
    """A row for each number that an operation makes of broadcast tensors and numbers."""
    shaped = torch.broadcast_tensors(*map(tape.nodes, values))  # type: ignore[no-untyped-call]
    found: list[list[int]] = torch.stack([nodes.flatten() for nodes in shaped], -1).tolist()
    return found


def rows(nodes: Tensor, dims: int | Sequence[int] | None) -> list[list[int]]:
    """For each number that a reduction over ``dims`` makes, the nodes that go into it."""
    if dims is None or nodes.ndim == 0:
        return [nodes.flatten().tolist()]
    gone = [d % nodes.ndim for d in ([dims] if isinstance(dims, int) else dims)]
    kept = [d for d in range(nodes.ndim) if d not in gone]
    size = math.prod(nodes.shape[d] for d in gone)
    found: list[list[int]] = nodes.permute(*kept, *gone).reshape(-1, size).tolist()
    return found


def layout(tensor: Tensor, dims: int | Sequence[int] | None) -> str:
    return f"{tuple(tensor.shape)} by {tensor.stride()} over {dims}"


@contextmanager
def recording(listener: Listener) -> Iterator[None]:
    """Everything computed inside goes to the listener's tape: tensors, Symbols, and ``math`` on Symbols."""
    tape = listener.tape

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and not is_machinery(frame):
            tape.christen(frame)

    def follow(name: str) -> Callable[..., float]:
        plain: Callable[..., float] = getattr(math, name)

        def followed(*given: Any) -> Any:
            numbers = symbol_of(given)
            if not any(isinstance(number, Symbol) for number in numbers):
                return plain(*given)
            made = functools.reduce(functools.partial(tape.number, "div"), [tape.number(name, y) for y in numbers])
            return made if all(number is x for number, x in zip(numbers, given, strict=True)) else Item(made)

        return followed

    with ExitStack() as stack:
        for name in MATH:
            stack.enter_context(mock.patch.object(math, name, follow(name)))
        stack.enter_context(listener)
        if not tape.proving:  # a proof needs no names
            stack.enter_context(_profiling(profile))
        yield


@contextmanager
def _profiling(function: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    """Within: Python tells ``function`` of every call, in the place of a profiler that may run."""
    before: Any = sys.getprofile()
    sys.setprofile(function)
    try:
        yield
    finally:
        if before is None or callable(before):
            sys.setprofile(before)
        else:  # cProfile's, which is no function
            sys.setprofile(None)
            before.enable()
