"""What a traced function computed: every number a node, and where each tensor's numbers are.

A tensor is an array of numbers, each a node of its own: the tape keeps, beside every tensor, an integer tensor of that
shape with its numbers' nodes. Python floats are followed too, as ``Symbol``: ``1 - clip_coef`` must move when the
slider of ``clip_coef`` does. Who listens to PyTorch and writes all this down is ``rlloss.graph.listen``.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from rlloss.errors import GraphError
from rlloss.graph.ops import FOLLOWED
from rlloss.losses import formulation

MACHINERY = (  # whose frames are between the author's line and the tape
    str(Path(torch.__file__).parent), str(mock.__file__), str(contextlib.__file__), str(functools.__file__), __file__,
    *(str(Path(__file__).with_name(f"{name}.py")) for name in ("graph", "listen", "follow")), str(formulation.__file__),
)  # fmt: skip
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
    """A number that a tensor holds: of its dtype, where a Python number has that of the operation.

    ``eps``: to which it was rounded. ``dtype``: that of a floating tensor of one dimension or more, which others are
    promoted to; "" for what promotes nothing.
    """

    eps: float
    dtype: str

    def __new__(cls, value: float, eps: float, dtype: str = "") -> "Held":
        self = super().__new__(cls, value)
        self.eps, self.dtype = eps, dtype
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
        if type(other) is Item or not isinstance(other, int | float):
            return NotImplemented  # an Item's or a tensor's own operation takes over, and the tape sees it
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


COMPARED = ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__")
for _method in COMPARED:
    setattr(Symbol, _method, _compared(_method))

for _op, _stem in (("add", "add"), ("sub", "sub"), ("mul", "mul"), ("div", "truediv"), ("pow", "pow")):
    setattr(Symbol, f"__{_stem}__", _symbolic(_op, f"__{_stem}__", False))
    setattr(Symbol, f"__r{_stem}__", _symbolic(_op, f"__r{_stem}__", True))


class Item:
    """What ``.item()`` gives of a number that varies from batch to batch.

    It follows arithmetic as ``Symbol`` does. But Python and NumPy read a float's value without asking, and it would
    decide something unseen: this is none, though it says that it is one. Who wants its value asks, and that is noted.
    """

    __class__ = property(lambda self: float)

    def __init__(self, symbol: Symbol) -> None:
        self.symbol = symbol

    def asked(self, how: str) -> float:
        self.symbol.tape.decide(self.symbol.node, how)
        return float.__pos__(self.symbol)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.asked("NumPy" if name.startswith("__array") else name), name)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return np.asarray(self.asked("NumPy"), *args)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """By which PyTorch takes it for an operand, and hands it to who listens."""
        return func(*symbol_of(args), **symbol_of(kwargs or {}))

    def __neg__(self) -> "Item":
        return Item(self.symbol.tape.number("neg", self.symbol))


def symbol_of(value: Any) -> Any:
    """The Symbol of an Item, also in lists, tuples and mappings; everything else as it is."""
    if type(value) is Item:
        return value.symbol
    if type(value) in (list, tuple):
        return type(value)(map(symbol_of, value))
    return {key: symbol_of(x) for key, x in value.items()} if type(value) is dict else value


def _followed(method: str) -> Callable[[Item, Any], Any]:
    def operate(self: Item, other: Any) -> Any:
        made = getattr(self.symbol, method)(symbol_of(other))
        return Item(made) if isinstance(made, Symbol) else made

    return operate


def _asking(method: str) -> Callable[..., Any]:
    how = "a comparison in Python" if method in COMPARED else {"__bool__": "a Python if"}.get(method, method.strip("_"))

    def ask(self: Item, *others: Any) -> Any:
        plain = [other.asked(how) if type(other) is Item else other for other in others]
        return getattr(self.asked(how), method)(*plain)

    return ask


for _stem in ("add", "sub", "mul", "truediv", "pow"):
    for _method in (f"__{_stem}__", f"__r{_stem}__"):
        setattr(Item, _method, _followed(_method))

for _method in (
    *COMPARED, "__float__", "__int__", "__trunc__", "__floor__", "__ceil__", "__round__", "__abs__", "__bool__",
    "__str__", "__repr__", "__format__", "__hash__", "__floordiv__", "__rfloordiv__", "__mod__", "__rmod__",
    "__divmod__", "__rdivmod__",
):  # fmt: skip
    setattr(Item, _method, _asking(_method))


@dataclass
class Tape:
    """What has been computed so far: the operations, and for each live tensor the nodes of its numbers."""

    title: str
    home: CodeType | None = None  # the traced function's code, to tell its helpers' scopes
    proving: bool = False  # also follow what no page shows, and refuse whatever a value decides outside of the graph
    decisions: list["GraphError"] = field(default_factory=list)  # what values decided in Python, where and how
    formats: set[str] = field(default_factory=set)  # floating dtypes in which something was computed
    promotes: bool = False  # whether an operation had tensors of two floating dtypes
    _dtypes: dict[int, str] = field(default_factory=dict)  # of nodes, as ``Held.dtype``
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
            dtype = promoting(value)
            flat = [self._constant(Held(x, eps, dtype)) for x in value.detach().flatten().tolist()]
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
        dtypes = {self._dtype(n) for row in rows for n in row} | {promoting(result)}
        self.promotes |= op != "cast" and len(dtypes - {""}) > 1
        flat = result.detach().flatten().tolist()
        new = [
            self.add(Operation(op, tuple(map(self.argument, row)), float(value), result.requires_grad, cut,
                          fixed=op in FINITE or self.fixed(row), over=over, scope=where[0], line=where[1]))
            for row, value in zip(rows, flat, strict=True)
        ]  # fmt: skip
        nodes = torch.tensor(new, dtype=torch.int64).reshape(result.shape)
        self.bind(result, nodes)
        self.made.append((result, nodes))
        self.holds(new, result)

    def holds(self, nodes: Sequence[int], tensor: Tensor) -> None:
        self._dtypes.update(dict.fromkeys(nodes, promoting(tensor)))

    def _dtype(self, node: int) -> str:
        return self._dtypes.get(node, "") if node >= 0 else getattr(self.argument(node), "dtype", "")

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
            if not is_machinery(frame):
                frames.append(frame)
            frame = frame.f_back
        if frame is None:
            return "", ""
        scope = frames[-1].f_code.co_name if frames else ""
        nearest = frames[0] if frames else frame
        return scope, f"{Path(nearest.f_code.co_filename).name}, line {nearest.f_lineno}"


def promoting(tensor: Tensor) -> str:
    """The dtype that a tensor promotes others to, if it may promote any."""
    return str(tensor.dtype) if tensor.is_floating_point() and tensor.ndim else ""


def is_machinery(frame: FrameType) -> bool:
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
