"""Whether two numbers that differ by little are one in exact arithmetic: then they differ by rounding alone.

Both are computed again, from what the network made of the samples on, in the machine's longest floating-point format.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlloss.bisect.align import computing, numbers_in
from rlloss.watch.tape import Entry, Number, Tape

Array = NDArray[np.longdouble]
APART = 2**-6  # of a dtype's eps, by which numbers are not the same: one ulp is at least half of it
MOST_DEEP = 64


def _sum_of(x: Array, y: Array, alpha: float = 1.0) -> Array:
    return x + alpha * y


def _where(condition: Array, x: Array, y: Array) -> Array:
    return np.asarray(np.where(condition != 0, x, y))


def _filled(x: Array, mask: Array, value: Any) -> Array:
    return np.asarray(np.where(mask != 0, value, x))


FUNCTIONS: Mapping[str, Callable[..., Array]] = {  # of PyTorch's operations, those that are functions of each number
    "add": _sum_of,
    "sub": lambda x, y, alpha=1.0: x - alpha * y,
    "rsub": lambda x, y, alpha=1.0: y - alpha * x,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": np.reciprocal,
    "abs": np.abs,
    "pow": np.power,
    "square": np.square,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "minimum": np.minimum,
    "maximum": np.maximum,
    "where": _where,
    "masked_fill": _filled,
}
SAME = ("view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "clone", "_to_copy", "expand", "detach", "alias")


def _makers(tape: Tape) -> dict[str, Entry]:
    """What made each number first. Zeros may be made by anything, and what is passed on is not made."""
    found: dict[str, Entry] = {}
    for entry in computing(tape.entries):
        for number in entry.outputs[:1]:
            value = tape.values.get(number.digest)
            if value is not None and value.count_nonzero() and number not in numbers_in(entry):
                found.setdefault(number.digest, entry)
    return found


class Unknown(Exception):
    """What a number is in exact arithmetic cannot be told."""


class _Exact:
    """The numbers of one tape. ``common``: those that both have, which may come from anywhere."""

    def __init__(self, tape: Tape, common: set[str]) -> None:
        self._tape, self._common = tape, common
        self._makers = _makers(tape)
        self._known: dict[str, Array] = {}
        self.is_whole = True  # each number on the way is computed again, or the same in both
        self.is_subnormal = False  # one on the way is so small that it has fewer digits

    def of(self, number: Number, deep: int = 0) -> Array:
        digest = number.digest
        if digest not in self._known:
            entry = self._makers.get(digest)
            self._known[digest] = self._given(digest) if entry is None else self._made(entry, digest, deep)
        return _shaped(self._known[digest], number.shape)

    def _made(self, entry: Entry, digest: str, deep: int) -> Array:
        value = self._tape.values[digest]
        if not value.is_floating_point():
            return self._recorded(digest)  # a decision, as which of two is the smaller: it was made of rounded numbers
        op, dtype = entry.op.partition(".")[0].rstrip("_"), entry.outputs[0].dtype
        self.is_subnormal |= bool(((value != 0) & (value.abs() < torch.finfo(value.dtype).tiny)).any())
        if op in SAME and deep < MOST_DEEP and len(numbers_in(entry)) == 1:
            return _shaped(self.of(numbers_in(entry)[0], deep + 1), entry.outputs[0].shape)
        if op == "nextafter":
            return self._recorded(digest)  # which means to be another
        if op not in FUNCTIONS or deep >= MOST_DEEP:
            return self._given(digest)
        given = [self.of(x, deep + 1) if isinstance(x, Number) else _rounded(x, dtype) for x in entry.inputs]
        try:
            with np.errstate(all="ignore"):
                return np.asarray(FUNCTIONS[op](*given), np.longdouble)
        except (TypeError, ValueError) as error:  # with an option that is not known here, as a rounding mode
            raise Unknown from error

    def _given(self, digest: str) -> Array:
        """What came in from outside, or was made by what is no function of single numbers."""
        self.is_whole &= digest in self._common or digest in self._tape.given
        return self._recorded(digest)

    def _recorded(self, digest: str) -> Array:
        value = self._tape.values.get(digest)
        if value is None or value.is_complex():
            raise Unknown
        return value.detach().double().numpy().astype(np.longdouble)


def _shaped(x: Array, shape: Sequence[int]) -> Array:
    return x.reshape(shape) if x.size == math.prod(shape) else np.broadcast_to(x, shape)


def _rounded(text: str, dtype: str) -> Any:
    """A number that is written in a program, as an operation of this dtype takes it."""
    try:
        return np.longdouble(torch.tensor(float(text), dtype=getattr(torch, dtype)).double().item())
    except (ValueError, TypeError, AttributeError) as error:
        raise Unknown from error


def same_exactly(a: Tape, b: Tape, one: Number, other: Number) -> tuple[bool | None, bool]:
    """Whether two numbers are the same in exact arithmetic; None if that cannot be told.

    Also whether numbers on the way are so small that they have fewer digits than others.
    """
    common = _all(a) & _all(b)
    ours, theirs = _Exact(a, common), _Exact(b, common)
    try:
        x, y = ours.of(one), theirs.of(other)
        scale, eps = np.abs(x).max(), torch.finfo(a.values[one.digest].dtype).eps
    except (Unknown, ValueError, KeyError, TypeError):
        return None, False
    subnormal = ours.is_subnormal or theirs.is_subnormal
    if np.finfo(np.longdouble).eps > eps * APART / 16 or x.shape != y.shape or not np.isfinite(scale):
        return None, subnormal
    if bool((np.abs(x - y) <= APART * eps * np.maximum(np.abs(x), scale * eps)).all()):
        return True, subnormal
    return (False if ours.is_whole and theirs.is_whole else None), subnormal


def _all(tape: Tape) -> set[str]:
    return {number.digest for entry in tape.entries for number in (*entry.outputs, *numbers_in(entry))}
