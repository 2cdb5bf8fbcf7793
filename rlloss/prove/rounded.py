"""Rounded arithmetic, of any floating-point format: which gradients are the same roundings in the same order.

A number is a term: what was rounded, of what. Two terms are the same number in every format if they are written the
same after rules that are exact in IEEE arithmetic: products and sums commute, signs and powers of two move out of
products and sums, times 1, plus 0, x + (-x) = 0, and b/2 + b/2 = b. What else holds of rounded numbers (rounding never
turns an order around, a product of two positive numbers is not negative) the solver is told as facts.

Left out, and tried instead: numbers that are not finite, the sign of zero, and subnormal numbers, whose halves round.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import z3

from rlloss.prove import polynomials as poly
from rlloss.prove.backward import NotFollowed
from rlloss.prove.diagrams import Diagram, Diagrams
from rlloss.prove.exact import known_sign
from rlloss.prove.keyed import Keyed
from rlloss.prove.polynomials import Polynomial

LARGEST_WHOLE = 16  # up to which float8_e4m3, and every longer format, has all whole numbers
EFFORT = 30_000_000  # of Z3, in its own units, for one question: some seconds, and the same answer on any machine


@dataclass(frozen=True, eq=False)
class Body(Keyed):
    """A number without its sign and its power of two.

    ``op``: ``input``, ``number`` (a constant, or what Python computed from clip_coef), or the operation that rounds.
    """

    op: str
    args: tuple["Term", ...] = ()
    name: str = ""
    between: tuple[Fraction | None, Fraction | None] = (None, None)  # numbers: what it is not below, not above

    @cached_property
    def key(self) -> str:
        return (
            f"{self.op} {self.name}({', '.join(x.key for x in self.args)})" if self.args else f"{self.op} {self.name}"
        )


@dataclass(frozen=True, eq=False)
class Term(Keyed):
    """``scale`` * body, the scale plus or minus a power of two; 0 has the scale 0 and the body ``one``."""

    scale: Fraction
    body: Body

    @cached_property
    def key(self) -> str:
        return self.body.key if self.scale == 1 else f"{self.scale} {self.body.key}"

    def times(self, scale: Fraction) -> "Term":
        return Term(self.scale * scale, self.body) if self.scale * scale else ZERO


UNIT = Body("one")
ZERO, ONE = Term(Fraction(0), UNIT), Term(Fraction(1), UNIT)


def is_power_of_two(x: Fraction) -> bool:
    n, d = abs(x.numerator), x.denominator
    return n > 0 and n & (n - 1) == 0 and d & (d - 1) == 0


def named(name: str) -> Term:
    return Term(Fraction(1), Body("input", name=name))


def multiply(x: Term, y: Term) -> Term:
    """A rounded product, its sign and powers of two outside, its factors in order; exact times 0 and a power of two."""
    scale = x.scale * y.scale
    if not scale:
        return ZERO
    factors = sorted((b for b in (x.body, y.body) if b != UNIT), key=lambda b: b.key)
    if len(factors) < 2:
        return Term(scale, factors[0] if factors else UNIT)
    return Term(scale, Body("mul", tuple(Term(Fraction(1), b) for b in factors)))


def add(x: Term, y: Term) -> Term:
    """A rounded sum; exact where one is 0, or where both are the same number times powers of two that sum to one."""
    if not x.scale or not y.scale:
        return y if not x.scale else x
    if x.body == y.body and (not (total := x.scale + y.scale) or is_power_of_two(total)):
        return Term(total, x.body) if total else ZERO
    x, y = sorted((x, y), key=lambda t: (t.body.key, t.scale))
    return Term(x.scale, Body("add", (x.times(1 / x.scale), y.times(1 / x.scale))))


def divide(x: Term, y: Term) -> Term:
    """A rounded quotient; exact for 0, for a number by itself, and for a division by a power of two."""
    if not y.scale:
        raise NotFollowed("a division by 0")
    if not x.scale:
        return ZERO
    scale = x.scale / y.scale
    if y.body == UNIT or x.body == y.body:
        return Term(scale, x.body if y.body == UNIT else UNIT)
    return Term(scale, Body("div", (Term(Fraction(1), x.body), Term(Fraction(1), y.body))))


@dataclass(frozen=True)
class Order:
    """What is asked of two terms: the sign of their difference."""

    x: Term
    y: Term


class Rounded:
    """Arithmetic on terms, for ``rlloss.prove.backward``."""

    rounds = True

    def __init__(self) -> None:
        self.cases = Diagrams()

    def constant(self, x: float) -> Term:
        value = Fraction(repr(float(x))) if x == x and abs(x) != float("inf") else None
        if value is None:
            raise NotFollowed(f"the number {x}")
        if not value or is_power_of_two(value):
            return Term(value, UNIT) if value else ZERO
        low, high = _powers_around(abs(value))
        return Term(Fraction(1 if value > 0 else -1), Body("number", name=repr(abs(float(x))), between=(low, high)))

    def python(self, formula: str, exact: Polynomial) -> Term:
        """A number that Python computed from clip_coef: its sign, and on which side of 1 it lies, are known at most."""
        sign = known_sign(exact)
        if sign is None:
            return named(f"number {formula}")
        beside_1 = known_sign(exact - poly.ONE) if sign > 0 and exact != poly.ONE else None
        bounds = {None: (ZERO.scale, None), 1: (ONE.scale, None), -1: (ZERO.scale, ONE.scale)}[beside_1]
        return Term(Fraction(sign), Body("number", name=formula, between=bounds))

    def operand(self, x: Term) -> Term:
        """A number as an operand. PyTorch computes with it in float32 where tensors are shorter, and rounds it to the
        tensors' format where it bounds or is compared: two numbers, then."""
        if x.body.op != "number" or _in_every_format(x.body):
            return x
        return Term(x.scale, Body("operand", name=x.body.name, between=x.body.between))

    def near(self, name: str, *values: Term) -> Term:
        """A cast, and the next number; 0 and powers of two are in every format."""
        if name.startswith("cast") and values[0].body == UNIT:
            return values[0]
        return self._rounded(name, *values)

    def add(self, x: Term, y: Term) -> Term:
        return add(x, y)

    def neg(self, x: Term) -> Term:
        return x.times(Fraction(-1))

    def mul(self, x: Term, y: Term) -> Term:
        return multiply(x, y)

    def div(self, x: Term, y: Term) -> Term:
        return divide(x, y)

    def power(self, x: Term, exponent: float) -> Term:
        return self._rounded(f"pow {exponent:g}", x)

    def powered(self, x: Term, exponent: Term) -> Term:
        return self._rounded("pow", x, exponent)

    def function(self, name: str, x: Term) -> Term:
        return ONE if name == "exp" and not x.scale else self._rounded(name, x)

    def _rounded(self, op: str, *args: Term) -> Term:
        return Term(Fraction(1), Body(op, args))

    def order(self, x: Term, y: Term) -> Diagram:
        if x == y:
            return 0
        if x.body == y.body == UNIT:
            return (x.scale > y.scale) - (x.scale < y.scale)
        scale = next(abs(t.scale) for t in (x, y) if t.scale)
        x, y = x.times(1 / scale), y.times(1 / scale)
        # -x < -y as y < x: one question for both
        if (x.scale <= 0 and y.scale <= 0) or (x.scale * y.scale <= 0 and x.scale + y.scale < 0):
            x, y = y.times(Fraction(-1)), x.times(Fraction(-1))
        if x.key <= y.key:
            return self.cases.sign(Order(x, y))
        return self.cases.apply(lambda s: -s, self.cases.sign(Order(y, x)), key="minus")

    def total(self, name: str, values: Sequence[Diagram], over: str = "") -> Diagram:
        """A sum, or whatever goes over several numbers: the same where they are, and lie in memory as they do."""
        if len(values) == 1 and name in ("sum", "mean", "cumsum", "prod"):
            return values[0]
        op = f"{name} {over}"
        return self.cases.apply(lambda *terms: self._rounded(op, *terms), *values, key=(op, len(values)))

    def differs(self, x: Term, y: Term) -> Diagram:
        """0 where two terms are one; else what they are, for the solver to tell apart."""
        return 0 if x == y else (x, y)


def _in_every_format(body: Body) -> bool:
    """Whether a number is a small whole one, which no format rounds."""
    try:
        x = float(body.name)
    except ValueError:
        return False
    return x.is_integer() and x <= LARGEST_WHOLE


def _powers_around(x: Fraction) -> tuple[Fraction, Fraction]:
    low = Fraction(1)
    while low > x:
        low /= 2
    while 2 * low <= x:
        low *= 2
    return low, 2 * low


class Asked:
    """Whether terms that are written differently can be different numbers, on any path of a diagram."""

    def __init__(self, cases: Diagrams, diagram: Diagram, effort: int = EFFORT) -> None:
        self.cases, self.diagram, self.effort = cases, diagram, effort
        self._functions: dict[tuple[str, int], Any] = {}
        self.bodies: dict[Body, Any] = {}

    def number(self, x: Term) -> Any:
        return z3.RealVal(str(x.scale)) * self.body(x.body) if x.scale else z3.RealVal(0)

    def body(self, b: Body) -> Any:
        """A body as a real number; an operation as an uninterpreted function of its arguments."""
        if b == UNIT:
            return z3.RealVal(1)
        if b not in self.bodies:
            if not b.args:
                self.bodies[b] = z3.Real(b.key)
            else:
                self.bodies[b] = self._function(b.op, len(b.args))(*map(self.number, b.args))
        return self.bodies[b]

    def _function(self, op: str, arity: int) -> Any:
        if (op, arity) not in self._functions:
            self._functions[op, arity] = z3.Function(op, *[z3.RealSort()] * (arity + 1))
        return self._functions[op, arity]

    def facts(self) -> Iterator[Any]:
        """What holds of rounded numbers, for every body that occurs. The tests try each rule on a whole format."""
        seen: set[Body] = set()
        while todo := [b for b in self.bodies if b not in seen]:
            for b in todo:
                seen.add(b)
                for x in b.args:
                    self.body(x.body)
        by_op: dict[tuple[str, int], list[Body]] = {}
        for b in seen:
            by_op.setdefault((b.op, len(b.args)), []).append(b)
            yield from self._about(b)
        for b, c in itertools.permutations(by_op.get(("mul", 2), []), 2):
            yield from self._products_in_order(b, c)

    def _about(self, b: Body) -> Iterator[Any]:
        value = self.body(b)
        low, high = b.between
        if low is not None:
            yield value >= z3.RealVal(str(low))
        if high is not None:
            yield value <= z3.RealVal(str(high))
        if b.op in RULES:
            operation = self._function(b.op, len(b.args))
            yield from follows(RULES[b.op](operation, value, *map(self.number, b.args)))

    def _products_in_order(self, b: Body, c: Body) -> Iterator[Any]:
        for i, j in itertools.product(range(2), range(2)):
            if b.args[i] == c.args[j]:
                a, x, y = (self.number(t) for t in (b.args[i], b.args[1 - i], c.args[1 - j]))
                yield from follows(_products_in_order(self.body(b), self.body(c), a, x, y))

    def proved(self) -> bool | None:
        """Whether no path leads to two different numbers; None if the solver cannot tell."""
        paths = [(path, leaf) for path, leaf in self.cases.paths(self.diagram) if leaf != 0]
        questions = [
            ([self._sign(order, sign) for order, sign in path], self.number(x) != self.number(y))
            for path, (x, y) in paths
        ]
        solver = z3.SolverFor("QF_UFLRA")
        solver.set("rlimit", self.effort)
        solver.add(*self.facts())
        for constraints, apart in questions:
            solver.push()
            solver.add(*constraints, apart)
            outcome = solver.check()
            solver.pop()
            if outcome != z3.unsat:
                return False if outcome == z3.sat else None
        return True

    def _sign(self, order: Any, sign: int) -> Any:
        x, y = self.number(order.x), self.number(order.y)
        return x > y if sign > 0 else x < y if sign < 0 else x == y


def follows(rule: Iterator[tuple[Any, Any]]) -> Iterator[Any]:
    """A rule as what a solver is told."""
    for given, follows_from_it in rule:
        yield z3.Implies(given, follows_from_it)


Rule = Iterator[tuple[Any, Any]]  # (what is given, what follows)


def _product(mul: Any, m: Any, a: Any, b: Any) -> Rule:
    """Factors commute; 0 times x is 0, 1 times x is x; the sign is the product's, or the product is 0."""
    yield True, mul(b, a) == m
    yield (a == 0) | (b == 0), m == 0
    yield a == 1, m == b
    yield b == 1, m == a
    yield ((a >= 0) & (b >= 0)) | ((a <= 0) & (b <= 0)), m >= 0
    yield ((a >= 0) & (b <= 0)) | ((a <= 0) & (b >= 0)), m <= 0


def _sum(add: Any, s: Any, a: Any, b: Any) -> Rule:
    """Terms commute; x plus 0 is x, x plus -x is 0; the sign is the sum's."""
    yield True, add(b, a) == s
    yield a == 0, s == b
    yield b == 0, s == a
    yield a + b == 0, s == 0
    yield a + b >= 0, s >= 0
    yield a + b <= 0, s <= 0


def _quotient(div: Any, q: Any, a: Any, b: Any) -> Rule:
    """0 by x is 0, x by 1 is x, x by x is 1."""
    yield (a == 0) & (b != 0), q == 0
    yield b == 1, q == a
    yield (a == b) & (b != 0), q == 1


def _exponential(exp: Any, e: Any, x: Any) -> Rule:
    """exp is not negative, and 1 at 0."""
    yield True, e >= 0
    yield x == 0, e == 1


def _products_in_order(m: Any, n: Any, a: Any, x: Any, y: Any) -> Rule:
    """Of m = a x and n = a y: rounding turns no order around."""
    yield (a >= 0) & (x <= y), m <= n
    yield (a <= 0) & (x <= y), m >= n


RULES: dict[str, Callable[..., Rule]] = {"mul": _product, "add": _sum, "div": _quotient, "exp": _exponential}
"""What holds of one rounded operation: the operation, its result, its arguments."""
