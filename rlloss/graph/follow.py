"""A listener for proofs: it follows more than a page shows, and minds where a value decides outside of the graph."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlloss.errors import GraphError
from rlloss.graph.listen import IN_PLACE, Listener, elementwise, layout, rows, single
from rlloss.graph.tape import Item, Symbol, Tape, symbol_of

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


SELECTING = {"__getitem__", "masked_select", "take_along_dim", "repeat_interleave", "index_select", "split", "narrow"}
FINDING = {"unique", "unique_consecutive", "argwhere", "bincount"}  # as many as there are in the data; where(c), too
SIZES = {"shape", "size", "numel", "nelement", "__len__", "nbytes", "__iter__"}


class ProofListener(Listener):
    """Follows assignments, casts, deviations, softmax and the like; keeps what the mask alone decides as constants."""

    def __init__(self, tape: Tape) -> None:
        super().__init__(tape)
        self._selected: dict[int, tuple[Tensor, list[int]]] = {}  # tensors whose size the data decide: by which nodes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        return super().__torch_function__(func, types, symbol_of(args), symbol_of(kwargs))

    def _heard(self, name: str, args: Sequence[Any]) -> str:
        if name in LEAVING:
            self._leave(name, args)
        if name in SIZES and (deciding := self._deciding(args)):
            self.tape.decide(deciding[0], "how many are selected")
        return _out_of_place(name) if IN_PLACE.fullmatch(name) else name

    def _written(self, name: str, args: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
        if name == "setitem":
            target, places, value = args
            self._set(target, places, value)
            return result
        if name == "item" and isinstance(result, int | float):
            (node,) = self.tape.nodes(args[0]).flatten().tolist()
            if node < 0:
                return result
            symbol = Symbol(float(result), self.tape, node)
            return symbol if self.tape.fixed([node]) else Item(symbol)
        written = super()._written(name, args, kwargs, result)
        if deciding := self._deciding([*args, *kwargs.values()]) or self._selecting(name, args, kwargs):
            self._select(name, result, deciding)
        return written

    def _deciding(self, values: Sequence[Any]) -> list[int]:
        """The nodes that decide the size of one of these, if the data do."""
        return next((self._selected[id(x)][1] for x in values if id(x) in self._selected), [])

    def _selecting(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> list[int]:
        """The nodes that decide how many numbers an operation gives."""
        if name in SELECTING:
            asked = [*args[1:], *kwargs.values()]
        else:
            asked = args[:1] if name in FINDING or (name == "where" and len(args) == 1) else []
        return [node for value in _tensors(asked) for node in self.tape.nodes(value).flatten().tolist()
                if not self.tape.fixed([node])]  # fmt: skip

    def _select(self, name: str, result: Any, deciding: list[int]) -> None:
        """No loss may depend on what is selected, nor on what is made of it: of an empty one a sum is 0, a constant."""
        self.tape.refuse(result, self._unknown(f"{name} of what the data select", "use torch.where"))
        self._selected |= {id(x): (x, deciding) for x in _tensors([result])}

    def _refuse(self, error: GraphError, values: Sequence[Any], result: Any) -> None:
        if not self._is_fixed(list(values)):
            super()._refuse(error, values, result)

    def _note(self, name: str, args: list[Any], kwargs: dict[str, Any], result: Any) -> None:
        if not (self._over_several(name, args, kwargs, result) or self._composed(name, args, result)):
            super()._note(name, args, kwargs, result)

    def _filled(self, fill: Symbol, result: Tensor) -> None:
        """A tensor full of a number is rounded to the tensor's format, as no operand is."""
        self.tape.record("number", [[fill.node]] * result.numel(), result, self.tape.where())

    def _leave(self, name: str, args: Sequence[Any]) -> None:
        """A value goes where no tape follows: to Python's ``if``, to NumPy."""
        for value in args:
            if isinstance(value, Tensor | Symbol) and self.tape.knows(value):
                for node in self.tape.nodes(value).flatten().tolist():
                    if node >= 0:
                        self.tape.decide(node, {"__bool__": "a Python if"}.get(name, name))

    def _over_several(self, name: str, args: list[Any], kwargs: dict[str, Any], result: Any) -> bool:
        """Operations on several numbers that only a proof follows; whether this is one, and is noted."""
        tape, where = self.tape, self.tape.where()
        x = args[0] if args else kwargs.get("input")
        dim = args[1] if len(args) > 1 and not isinstance(args[1], bool) else kwargs.get("dim", kwargs.get("axis"))
        left = set(kwargs) - {"dim", "axis", "keepdim", "input"}
        if not isinstance(x, Tensor):
            return False
        softened = name in ("softmax", "log_softmax") and kwargs.get("dtype") is None
        if isinstance(dim, int) and (softened or (name == "cumsum" and not left)):
            places = rows(torch.arange(x.numel()).reshape(x.shape), dim)
            made = {
                at[i]: [row[i], *row] if softened else row[: i + 1]
                for row, at in zip(rows(tape.nodes(x), dim), places, strict=True)
                for i in range(len(row))
            }
            tape.record(name, [made[i] for i in range(x.numel())], result, where, layout(x, dim))
        elif name in ("std", "var") and (divided := self._divided_by(args, kwargs)) is not None:
            tape.record(f"{name}{divided}", rows(tape.nodes(x), dim), result, where, layout(x, dim))
        elif name == "prod" and not left:
            tape.record(name, rows(tape.nodes(x), dim), result, where, layout(x, dim))
        else:
            return False
        return True

    def _composed(self, name: str, args: list[Any], result: Any) -> bool:
        """Operations that are others in one; whether this is one, and is noted."""
        tape, where = self.tape, self.tape.where()
        if name == "logaddexp" and len(args) == 2:
            tape.record("logsumexp", elementwise(tape, args), result, where)
        elif name in ("nan_to_num", "real", "positive") and len(args) == 1:
            tape.record("same", single(tape, args[0]), result, where)
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
        each = zip(tape.nodes(places).flatten().tolist(), before.flatten().tolist(), strict=True)
        chosen = [[condition, int(tape.nodes(value)), node] for condition, node in each]
        tape.record("where", chosen, target, tape.where())

    @staticmethod
    def _divided_by(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """What a variance divides by: "" for N - 1, which is torch's default, "_n" for N; None: not known."""
        correction = kwargs.get("unbiased", kwargs.get("correction", 1))
        known = set(kwargs) <= {"dim", "axis", "keepdim", "unbiased", "correction"} and correction in (0, 1)
        if not known or (len(args) > 1 and isinstance(args[1], bool)):
            return None
        return "" if correction else "_n"

    def _cast(self, name: str, source: Tensor, result: Tensor) -> None:
        tape = self.tape
        if result.dtype == torch.bool != source.dtype:
            zero = int(tape.nodes(0.0))
            tape.record("ne", [[*row, zero] for row in single(tape, source)], result, tape.where())
        elif result.dtype != source.dtype and source.is_floating_point() and result.is_floating_point():
            tape.record("cast", single(tape, source), result, tape.where(), str(result.dtype))
        else:
            super()._cast(name, source, result)


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    flat = [x for value in values for x in (value if isinstance(value, tuple | list) else [value])]
    return [x for x in flat if isinstance(x, Tensor)]


def _out_of_place(name: str) -> str:
    """``mul`` for ``mul_`` and ``__imul__``, ``setitem`` for ``__setitem__``."""
    plain = name.strip("_")
    if plain == "setitem":
        return plain
    if name.startswith("__i"):
        plain = plain[1:]
    return {"truediv": "div"}.get(plain, plain)
