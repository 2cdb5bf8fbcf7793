"""Watch a PyTorch function compute, and write down every operation on every number.

A TorchFunctionMode sees each operation under the name by which the author called it. A tensor is an array of numbers,
each a node of its own: the tape keeps, beside every tensor, an integer tensor of that shape with its numbers' nodes.
Operations that only move numbers (stack, unsqueeze, indexing) are replayed on those integers and leave no node.
Python floats are followed too, as ``Symbol``: ``1 - clip_coef`` must move when the slider of ``clip_coef`` does.
"""

import contextlib
import functools
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlloss.errors import GraphError
from rlloss.graph.ops import FOLLOWED, OPS
from rlloss.losses import formulation

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
LEAVING = {
    "__bool__",
    "__int__",
    "__index__",
    "__float__",
    "__complex__",
    "__contains__",
    "nonzero",
    "tolist",
    "numpy",
    "__array__",
    "equal",
    "allclose",
}  # values that reach Python, where no tape can follow
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
MACHINERY = (  # whose frames are between the author's line and the tape
    str(Path(torch.__file__).parent), str(mock.__file__), str(contextlib.__file__), str(functools.__file__), __file__,
    str(Path(__file__).with_name("graph.py")), str(formulation.__file__),
)  # fmt: skip
IN_PLACE = re.compile(r"__setitem__|__i(add|sub|mul|div|truediv|pow|and|or|xor|floordiv|mod)__|\w*[a-z]_")
MATH = {"exp": "exp", "expm1": "expm1", "log": "log", "log1p": "log1p", "sqrt": "sqrt"}

FINITE = ("isfinite", "isnan")  # what these ask has one answer in exact arithmetic

Arg = int | float  # the number of a node, or a constant


@dataclass
class Operation:
    """One number of a trace. ``cut``: the author stopped the gradient here, by detach or torch.no_grad."""

    op: str
    args: tuple[Arg, ...]
    value: float
    requires_grad: bool = False
    cut: bool = False
    number: bool = False  # a Python number: no part of autograd's graph
    fixed: bool = False  # the same in every batch of this shape and mask, and in exact arithmetic
    name: str = ""
    over: str = (
        ""  # of a reduction: how its numbers lie in memory, which decides the order of adding; of a cast: to what
    )
    scope: str = ""  # the helper function in which it was computed
    line: str = ""


class Held(float):
    """A number that a tensor holds: of its dtype, where a Python number has that of the operation. ``eps``: to which
    it was rounded."""

    eps: float

    def __new__(cls, value: float, eps: float) -> "Held":
        self = super().__new__(cls, value)
        self.eps = eps
        return self


class Symbol(float):
    """A Python float that remembers how it was computed."""

    tape: "Tape"
    node: int

    def __new__(cls, value: float, tape: "Tape", node: int) -> "Symbol":
        self = super().__new__(cls, value)
        self.tape, self.node = tape, node
        return self

    def __neg__(self) -> float:
        return self.tape.number("neg", self)

    __hash__ = float.__hash__

    def __bool__(self) -> bool:
        self.tape.decide(self.node, "bool of a number")
        return float(self) != 0


def _symbolic(op: str, method: str, swapped: bool) -> Callable[[Symbol, Any], Any]:
    def operate(self: Symbol, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented  # a tensor's own operation takes over, and the tape sees it
        return self.tape.number(op, other, self) if swapped else self.tape.number(op, self, other)

    operate.__name__ = method
    return operate


def _compared(method: str) -> Callable[[Symbol, Any], Any]:
    plain = getattr(float, method)

    def compare(self: Symbol, other: Any) -> Any:
        if isinstance(other, int | float):
            self.tape.decide(self.node, "a comparison in Python")
            if isinstance(other, Symbol):
                self.tape.decide(other.node, "a comparison in Python")
        return plain(self, other)

    return compare


for _method in ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"):
    setattr(Symbol, _method, _compared(_method))

for _op, _stem in (("add", "add"), ("sub", "sub"), ("mul", "mul"), ("div", "truediv"), ("pow", "pow")):
    setattr(Symbol, f"__{_stem}__", _symbolic(_op, f"__{_stem}__", False))
    setattr(Symbol, f"__r{_stem}__", _symbolic(_op, f"__r{_stem}__", True))


@dataclass
class Tape:
    """What has been computed so far: the operations, and for each live tensor the nodes of its numbers."""

    title: str
    home: CodeType | None = None  # the traced function's code, to tell its helpers' scopes
    proving: bool = False  # also follow what no page shows, and refuse whatever a value decides outside of the graph
    decisions: list["GraphError"] = field(default_factory=list)  # what values decided in Python, where and how
    formats: set[str] = field(default_factory=set)  # floating dtypes in which something was computed
    operations: list[Operation] = field(default_factory=list)
    made: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (result, its nodes), to ask for gradients later
    constants: list[float] = field(default_factory=list)
    refusals: dict[int, "GraphError"] = field(default_factory=dict)  # nodes that no loss may depend on, and why
    _nodes: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _numbers: dict[tuple[str, tuple[Arg, ...]], Symbol] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------------------- numbers

    def add(self, operation: Operation) -> int:
        self.operations.append(operation)
        return len(self.operations) - 1

    def symbol(self, operation: Operation) -> Symbol:
        return Symbol(operation.value, self, self.add(operation))

    def number(self, op: str, *arguments: float) -> Symbol:
        """An operation on Python numbers. The same one twice is one node: no gradient tells them apart."""
        args: tuple[Arg, ...] = tuple(a.node if isinstance(a, Symbol) else float(a) for a in arguments)
        if (op, args) not in self._numbers:
            plain = [float(a) for a in arguments]
            value = getattr(math, op)(*plain) if op in MATH else _PLAIN[op](*plain)
            self._numbers[op, args] = self.symbol(Operation(op, args, value, number=True, fixed=self.fixed(args)))
        return self._numbers[op, args]

    def fixed(self, args: Iterable[Arg]) -> bool:
        """Whether numbers are the same in every batch of this shape and mask."""
        return all(not isinstance(a, int) or a < 0 or self.operations[a].fixed for a in args)

    def decide(self, node: int, how: str) -> None:
        """A value decides something in Python: if it is not fixed, this trace is the story of one batch only."""
        if self.proving and not self.operations[node].fixed:
            line = self.where()[1]
            self.decisions.append(
                GraphError(f"LOSS={self.title}: {how} decides in Python ({line or 'in torch'}); use torch.where")
            )

    # ------------------------------------------------------------------------------------------------- tensors

    def bind(self, tensor: Tensor, nodes: Tensor) -> None:
        self._nodes[id(tensor)] = (tensor, nodes)  # holding the tensor keeps its id its own

    def nodes(self, value: Any) -> Tensor:
        """The nodes of a tensor's or number's values; constants count down from -1."""
        if isinstance(value, Symbol):
            return torch.tensor(value.node)
        if isinstance(value, Tensor):
            if id(value) in self._nodes:
                return self._nodes[id(value)][1]
            floating = value.is_floating_point()
            if floating:
                self.formats.add(str(value.dtype))
            eps = torch.finfo(value.dtype).eps if floating else 0.0
            flat = [self._constant(Held(x, eps)) for x in value.detach().flatten().tolist()]
            return torch.tensor(flat, dtype=torch.int64).reshape(value.shape)
        return torch.tensor(self._constant(float(value)))

    def _constant(self, value: float) -> int:
        self.constants.append(value)
        return -len(self.constants)

    def argument(self, node: int) -> Arg:
        return node if node >= 0 else self.constants[-1 - node]

    def knows(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return any(map(self.knows, value))
        return isinstance(value, Symbol) or (isinstance(value, Tensor) and id(value) in self._nodes)

    def record(
        self, op: str, rows: Sequence[Sequence[int]], result: Tensor, where: tuple[str, str], over: str = ""
    ) -> None:
        """One operation for each number of ``result``; ``rows`` holds each one's arguments."""
        wanted = [self.operations[n].requires_grad for row in rows for n in row if n >= 0]
        stopped = op == "detach" or (not torch.is_grad_enabled() and FOLLOWED[op].slopes != ())
        cut = any(wanted) and not result.requires_grad and stopped
        if result.is_floating_point():
            self.formats.add(str(result.dtype))
        flat = result.detach().flatten().tolist()
        new = [
            self.add(Operation(op, tuple(map(self.argument, row)), float(value), result.requires_grad, cut,
                          fixed=op in FINITE or self.fixed(row), over=over, scope=where[0], line=where[1]))
            for row, value in zip(rows, flat, strict=True)
        ]  # fmt: skip
        nodes = torch.tensor(new, dtype=torch.int64).reshape(result.shape)
        self.bind(result, nodes)
        self.made.append((result, nodes))

    def refuse(self, result: Any, error: "GraphError") -> None:
        """An operation that no graph can hold: it matters only if the loss turns out to depend on it."""
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                node = self.add(Operation("unknown", (), math.nan))
                self.refusals[node] = error
                self.bind(tensor, torch.full(tensor.shape, node))

    def christen(self, frame: FrameType) -> None:
        """Give nodes the names of the author's variables; an outer function, which returns later, has the last word."""
        for name, value in frame.f_locals.items():
            if name[0] in "_." or not isinstance(value, Tensor) or id(value) not in self._nodes:
                continue
            nodes = self._nodes[id(value)][1]
            for index, node in zip(_indices(nodes.shape), nodes.flatten().tolist(), strict=True):
                if node >= 0 and self.operations[node].op != "input":
                    self.operations[node].name = name + index

    # --------------------------------------------------------------------------------------------------- frames

    def where(self) -> tuple[str, str]:
        """(helper function, "file.py, line n") of the operation that is being recorded."""
        frames: list[FrameType] = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not self.home:
            if not _is_machinery(frame):
                frames.append(frame)
            frame = frame.f_back
        if frame is None:
            return "", ""
        scope = frames[-1].f_code.co_name if frames else ""
        nearest = frames[0] if frames else frame
        return scope, f"{Path(nearest.f_code.co_filename).name}, line {nearest.f_lineno}"


def _is_machinery(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(MACHINERY) or frame.f_code.co_name.startswith("<")


def _indices(shape: Sequence[int]) -> Iterator[str]:
    """ "" for one number; "[0]", "[1]", … or "[0,0]", … for more."""
    if math.prod(shape) == 1:
        yield from [""] * math.prod(shape)
        return
    for index in torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, len(shape)).tolist():
        yield f"[{','.join(map(str, index))}]"


_PLAIN: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "neg": lambda a: -a,
}


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
        if known and name in LEAVING and self.tape.proving:
            self._leave(name, args)
        if known and IN_PLACE.fullmatch(name):
            if not self.tape.proving:
                raise self._unknown(f"{name} in place", "give the result a new name, as in x = x * 2")
            name = _out_of_place(name)
        with warnings.catch_warnings():
            if name in SPREADS:  # torch's about one sample; it is refused below, if the loss depends on it
                warnings.simplefilter("ignore")
            result = func(*args, **kwargs)
        if known and name == "setitem" and self.tape.proving:
            self._set(*args)
            return result
        if known and name == "item" and self.tape.proving and isinstance(result, int | float):
            (node,) = self.tape.nodes(args[0]).flatten().tolist()
            return Symbol(float(result), self.tape, node) if node >= 0 else result
        if known and _holds_tensor(result):
            try:
                # the method's operands come in another order than the function's
                ordered = [args[1], args[0], *args[2:]] if func is torch.Tensor.where else list(args)
                self._note(name, ordered, dict(kwargs), result)
            except GraphError as error:
                if not self.tape.proving or not self._is_fixed([*args, *kwargs.values()]):
                    self.tape.refuse(result, error)
        return result

    def _is_fixed(self, values: Any) -> bool:
        if isinstance(values, list | tuple):
            return all(map(self._is_fixed, values))
        return not self.tape.knows(values) or self.tape.fixed(self.tape.nodes(values).flatten().tolist())

    def _leave(self, name: str, args: Sequence[Any]) -> None:
        """A value goes where no tape follows: to Python's ``if``, to NumPy."""
        for value in args:
            if isinstance(value, Tensor | Symbol) and self.tape.knows(value):
                for node in self.tape.nodes(value).flatten().tolist():
                    if node >= 0:
                        self.tape.decide(node, {"__bool__": "a Python if"}.get(name, name))

    def _note(self, name: str, args: list[Any], kwargs: dict[str, Any], result: Any) -> None:
        tape = self.tape
        if name in FACTORIES or name in ("grad", "grad_fn"):
            fill = next((value for value in (*args, *kwargs.values()) if isinstance(value, Symbol)), None)
            if fill is not None and tape.proving:  # rounded to the tensor's format, as no operand is
                tape.record("number", [[fill.node]] * result.numel(), result, tape.where())
            elif fill is not None:
                tape.bind(result, torch.full(result.shape, fill.node))
            return
        if name in LAYOUT:
            self._move(name, args, kwargs, result)
            return
        if name in CASTS:
            self._cast(name, args[0], result)
            return
        if tape.proving and (self._beyond_pages(name, args, kwargs, result) or self._composed(name, args, result)):
            return
        op, values = self._operands(name, args, kwargs)
        where = tape.where()
        if isinstance(values, list):
            shaped = torch.broadcast_tensors(*map(tape.nodes, values))  # type: ignore[no-untyped-call]
            rows = torch.stack([nodes.flatten() for nodes in shaped], -1).tolist()
            tape.record(op, rows, result, where)
            return
        tensor, dims = values
        values_only = result[0] if isinstance(result, tuple) else result
        tape.record(op, _rows(tape.nodes(tensor), dims), values_only, where, _layout(tensor, dims))

    def _beyond_pages(self, name: str, args: list[Any], kwargs: dict[str, Any], result: Any) -> bool:
        """Operations that only a proof follows; whether this is one, and is noted."""
        tape, where = self.tape, self.tape.where()
        x = args[0] if args else kwargs.get("input")
        dim = args[1] if len(args) > 1 and not isinstance(args[1], bool) else kwargs.get("dim", kwargs.get("axis"))
        left = set(kwargs) - {"dim", "axis", "keepdim", "input"}
        if not isinstance(x, Tensor):
            return False
        if name in ("softmax", "log_softmax") and kwargs.get("dtype") is None and isinstance(dim, int):
            rows = _rows(tape.nodes(x), dim)
            places = _rows(torch.arange(x.numel()).reshape(x.shape), dim)
            ordered = {i: [n, *row] for row, at in zip(rows, places, strict=True) for n, i in zip(row, at, strict=True)}
            tape.record(name, [ordered[i] for i in range(x.numel())], result, where, _layout(x, dim))
        elif name == "cumsum" and isinstance(dim, int) and not left:
            rows = _rows(tape.nodes(x), dim)
            places = _rows(torch.arange(x.numel()).reshape(x.shape), dim)
            prefix = {at[i]: row[: i + 1] for row, at in zip(rows, places, strict=True) for i in range(len(row))}
            tape.record(name, [prefix[i] for i in range(x.numel())], result, where, _layout(x, dim))
        elif name in ("std", "var") and (divided := self._divided_by(args, kwargs)) is not None:
            tape.record(f"{name}{divided}", _rows(tape.nodes(x), dim), result, where, _layout(x, dim))
        elif name == "prod" and not left:
            tape.record(name, _rows(tape.nodes(x), dim), result, where, _layout(x, dim))
        else:
            return False
        return True

    def _composed(self, name: str, args: list[Any], result: Any) -> bool:
        """Operations that are others in one; whether this is one, and is noted."""
        tape, where = self.tape, self.tape.where()
        if name == "logaddexp" and len(args) == 2:
            shaped = torch.broadcast_tensors(*map(tape.nodes, args))  # type: ignore[no-untyped-call]
            tape.record("logsumexp", torch.stack([nodes.flatten() for nodes in shaped], -1).tolist(), result, where)
        elif name in ("nan_to_num", "real", "positive") and len(args) == 1:
            tape.record("same", [[node] for node in tape.nodes(args[0]).flatten().tolist()], result, where)
        else:
            return False
        return True

    def _set(self, target: Tensor, places: Any, value: Any) -> None:
        """``x[places] = value``: other nodes at some places, or a choice where the data says which places."""
        tape = self.tape
        before = tape.nodes(target)
        if self._is_fixed([places]):
            nodes = before.clone()
            nodes[places] = tape.nodes(value)
            tape.bind(target, nodes)
            return
        shaped = isinstance(places, Tensor) and places.dtype == torch.bool and places.shape == before.shape
        if not shaped or tape.nodes(value).numel() != 1:
            raise self._unknown("an assignment at places that depend on the data", "use torch.where")
        rows = zip(tape.nodes(places).flatten().tolist(), before.flatten().tolist(), strict=True)
        chosen = [[condition, int(tape.nodes(value)), node] for condition, node in rows]
        tape.record("where", chosen, target, tape.where())

    @staticmethod
    def _divided_by(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """What a variance divides by: "" for N - 1, which is torch's default, "_n" for N; None: not known."""
        correction = kwargs.get("unbiased", kwargs.get("correction", 1))
        known = set(kwargs) <= {"dim", "axis", "keepdim", "unbiased", "correction"} and correction in (0, 1)
        if not known or (len(args) > 1 and isinstance(args[1], bool)):
            return None
        return "" if correction else "_n"

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
        self.tape.record("detach", [[node] for node in nodes.flatten().tolist()], stopped, self.tape.where())
        return self.tape.nodes(stopped)

    def _cast(self, name: str, source: Tensor, result: Tensor) -> None:
        if result is source:
            return
        if result.dtype == source.dtype:
            self.tape.bind(result, self.tape.nodes(source))
            return
        rows = [[node] for node in self.tape.nodes(source).flatten().tolist()]
        if self.tape.proving and result.dtype == torch.bool:
            zero = self.tape.nodes(0.0).item()
            self.tape.record("ne", [[*row, int(zero)] for row in rows], result, self.tape.where())
            return
        if self.tape.proving and source.is_floating_point() and result.is_floating_point():
            self.tape.record("cast", rows, result, self.tape.where(), str(result.dtype))
            return
        if result.dtype != torch.float64 and source.is_floating_point():
            raise self._unknown(f"{name} to {result.dtype}", "graphs are in float64 throughout")
        self.tape.record("number", rows, result, self.tape.where())

    def _unknown(self, what: str, remedy: str) -> GraphError:
        _, line = self.tape.where()
        return GraphError(f"LOSS={self.tape.title}: the graph cannot follow {what} ({line or 'in torch'}); {remedy}")


def _out_of_place(name: str) -> str:
    """``mul`` for ``mul_`` and ``__imul__``, ``setitem`` for ``__setitem__``."""
    plain = name.strip("_")
    if plain == "setitem":
        return plain
    if name.startswith("__i"):
        plain = plain[1:]
    return {"truediv": "div"}.get(plain, plain)


def _holds_tensor(result: Any) -> bool:
    return isinstance(result, Tensor) or (isinstance(result, tuple | list) and any(map(_holds_tensor, result)))


def _rows(nodes: Tensor, dims: int | Sequence[int] | None) -> list[list[int]]:
    """For each number that a reduction over ``dims`` makes, the nodes that go into it."""
    if dims is None or nodes.ndim == 0:
        return [nodes.flatten().tolist()]
    gone = [d % nodes.ndim for d in ([dims] if isinstance(dims, int) else dims)]
    kept = [d for d in range(nodes.ndim) if d not in gone]
    size = math.prod(nodes.shape[d] for d in gone)
    rows: list[list[int]] = nodes.permute(*kept, *gone).reshape(-1, size).tolist()
    return rows


def _layout(tensor: Tensor, dims: int | Sequence[int] | None) -> str:
    return f"{tuple(tensor.shape)} by {tensor.stride()} over {dims}"


@contextmanager
def recording(tape: Tape) -> Iterator[None]:
    """Everything computed inside goes to the tape: tensors, Symbols, and ``math`` on Symbols."""

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and not _is_machinery(frame):
            tape.christen(frame)

    def follow(name: str) -> Callable[..., float]:
        plain: Callable[..., float] = getattr(math, name)

        def followed(x: float, *base: float) -> float:
            if not any(isinstance(number, Symbol) for number in (x, *base)):
                return plain(x, *base)
            return functools.reduce(functools.partial(tape.number, "div"), [tape.number(name, y) for y in (x, *base)])

        return followed

    before = sys.getprofile()
    with ExitStack() as stack:
        for name in MATH:
            stack.enter_context(mock.patch.object(math, name, follow(name)))
        stack.enter_context(Listener(tape))
        if not tape.proving:  # a proof needs no names
            sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(before)
