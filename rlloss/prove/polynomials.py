"""Exact numbers as polynomials with rational coefficients, in variables, exponentials and a few other quantities.

The laws of exp are built into the normal form: ``exp(a + b/2)`` is the monomial ``E(a) * E(b)^(1/2)``, so that
exp 0 = 1, exp of a sum, and exp of a logarithm need no rule. A monomial of an exponential may have any rational power,
all other quantities have whole powers from 1 on.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from math import gcd, isqrt
from typing import Generic, TypeVar

from rlloss.prove.keyed import Keyed

Power = int | Fraction


@dataclass(frozen=True, eq=False)
class Quantity(Keyed):
    """What a polynomial is in.

    ``kind``: ``var`` (an input, ``name``), ``exp`` (of ``of``, one monomial with coefficient 1), ``log``, ``sqrt`` or
    ``inverse`` (of ``of``; the domain holds where it is positive, not negative, not zero), ``exp`` of 1: e.
    """

    kind: str
    name: str = ""
    of: "Polynomial | None" = None

    @cached_property
    def key(self) -> str:
        """A name that is its own: the order of factors, and of quantities in a report."""
        return self.name if self.of is None else f"{self.kind}({self.of.key})"


Monomial = tuple[tuple[Quantity, Power], ...]


@dataclass(frozen=True, eq=False)
class Polynomial(Keyed):
    """A sum of monomials with their coefficients; immutable, hashable, and equal only if written the same."""

    terms: tuple[tuple[Monomial, Fraction], ...]  # in the order of their keys, no coefficient 0

    @cached_property
    def key(self) -> str:
        return " + ".join(f"{c}*{_name(m)}" for m, c in self.terms) or "0"

    def __add__(self, other: "Polynomial") -> "Polynomial":
        total = dict(self.terms)
        for m, c in other.terms:
            total[m] = total.get(m, Fraction(0)) + c
        return polynomial(total)

    def __neg__(self) -> "Polynomial":
        return Polynomial(tuple((m, -c) for m, c in self.terms))

    def __sub__(self, other: "Polynomial") -> "Polynomial":
        return self + -other

    def __mul__(self, other: "Polynomial") -> "Polynomial":
        total: dict[Monomial, Fraction] = {}
        for m, c in self.terms:
            for n, d in other.terms:
                product = times(m, n)
                total[product] = total.get(product, Fraction(0)) + c * d
        return polynomial(total)

    def __bool__(self) -> bool:
        return bool(self.terms)

    @property
    def constant(self) -> Fraction | None:
        """The number that it is, or None."""
        if not self.terms:
            return Fraction(0)
        return self.terms[0][1] if len(self.terms) == 1 and not self.terms[0][0] else None

    @cached_property
    def quantities(self) -> frozenset[Quantity]:
        """All that it is in, also within others."""
        direct = {q for m, _ in self.terms for q, _ in m}
        return frozenset(direct).union(*(q.of.quantities for q in direct if q.of is not None))

    @cached_property
    def variables(self) -> frozenset[str]:
        return frozenset(q.name for q in self.quantities if q.kind == "var")


def _name(m: Monomial) -> str:
    return "*".join(q.key if p == 1 else f"{q.key}^{p}" for q, p in m) or "1"


def times(m: Monomial, n: Monomial) -> Monomial:
    powers: dict[Quantity, Power] = dict(m)
    for q, p in n:
        powers[q] = powers.get(q, 0) + p
    return tuple(sorted(((q, p) for q, p in powers.items() if p), key=lambda pair: pair[0].key))


def polynomial(terms: Mapping[Monomial, Fraction]) -> Polynomial:
    return Polynomial(tuple(sorted(((m, c) for m, c in terms.items() if c), key=lambda pair: _name(pair[0]))))


def number(x: float | Fraction) -> Polynomial:
    """A number as its author meant it: 0.2 is 1/5, not the float beside it, and 1/3 computed by Python is a third.

    A number of a tensor (``Held``) is as rough as the tensor's dtype. Raises: ValueError unless finite.
    """
    if isinstance(x, Fraction | int):
        return polynomial({(): Fraction(x)})
    near, eps = Fraction(x), max(getattr(x, "eps", 0.0), sys.float_info.epsilon)
    digits = int(-math.log10(eps))
    for meant in (near.limit_denominator(round(eps**-0.375)), Fraction(f"{float(x):.{digits}g}")):
        if abs(meant - near) <= 2 * Fraction(eps) * abs(near):
            return polynomial({(): meant})
    return polynomial({(): Fraction(repr(float(x)))})


def single(q: Quantity, power: Power = 1) -> Polynomial:
    return Polynomial(((((q, power),), Fraction(1)),))


def variable(name: str) -> Polynomial:
    return single(Quantity("var", name))


ZERO, ONE = number(0), number(1)


def monomial(m: Monomial, c: Fraction = Fraction(1)) -> Polynomial:
    return polynomial({m: c})


def exp(u: Polynomial) -> Polynomial:
    """exp(u): one exponential for each monomial of u, to the power of its coefficient; x^c for c * log x."""
    result = ONE
    for m, c in u.terms:
        if len(m) == 1 and m[0][1] == 1 and m[0][0].kind == "log" and c.denominator == 1:
            assert m[0][0].of is not None
            result = result * power(m[0][0].of, int(c))
        else:
            result = result * single(Quantity("exp", of=monomial(m)), _whole(c))
    return result


def _whole(c: Fraction) -> Power:
    return int(c) if c.denominator == 1 else c


def log(x: Polynomial) -> Polynomial:
    """log(x): the exponents of what is positive for sure, and a quantity of its own for the rest.

    A product of others is not taken apart: of two negative numbers it has a logarithm, and they have none.
    """
    if len(x.terms) != 1 or x.terms[0][1] <= 0:
        return single(Quantity("log", of=x))
    (m, c), total = x.terms[0], ZERO
    rest = monomial(tuple((q, p) for q, p in m if q.kind != "exp"))
    for q, p in m:
        if q.kind == "exp" and q.of is not None:
            total = total + number(Fraction(p)) * q.of
    for factor in (number(c), rest):
        if factor != ONE:
            total = total + single(Quantity("log", of=factor))
    return total


def sqrt(x: Polynomial) -> Polynomial:
    return power(x, Fraction(1, 2))


def inverse(x: Polynomial) -> Polynomial:
    return power(x, -1)


def power(x: Polynomial, p: Power) -> Polynomial:
    """x^p. Raises: ValueError for a power that is not a multiple of 1/2, unless x is a product of exponentials."""
    if len(x.terms) == 1 and x.terms[0][1] == 1 and all(q.kind == "exp" for q, _ in x.terms[0][0]):
        return monomial(tuple((q, _whole(Fraction(n) * p)) for q, n in x.terms[0][0]))
    constant = x.constant
    if p < 0:
        if constant:
            return power(number(1 / constant), -p)
        if len(x.terms) == 1:  # the inverse of a product, factor by factor
            (m, _), result = x.terms[0], number(1 / x.terms[0][1])
            for q, n in m:
                one = single(q, -n) if q.kind == "exp" else power(single(Quantity("inverse", of=single(q))), int(n))
                result = result * one
            return power(result, -p)
        scale = x.terms[0][1]
        return power(number(1 / scale) * single(Quantity("inverse", of=number(1 / scale) * x)), -p)
    if Fraction(p).denominator == 1:
        result = ONE
        for _ in range(int(p)):
            result = result * x
        return result
    if Fraction(p).denominator == 2:
        root = _rational_root(constant) if constant is not None else None
        base = number(root) if root is not None else single(Quantity("sqrt", of=x))
        return power(base, int(2 * Fraction(p)))
    raise ValueError(f"the power {p}")


def _rational_root(x: Fraction) -> Fraction | None:
    if x < 0:
        return None
    top, bottom = isqrt(x.numerator), isqrt(x.denominator)
    return Fraction(top, bottom) if top * top == x.numerator and bottom * bottom == x.denominator else None


def split(p: Polynomial) -> tuple[Monomial, Polynomial]:
    """The greatest monomial that divides every term, and what is left, scaled so that its first coefficient is 1.

    The sign that the scaling takes away is not kept: ask for it with ``leading``.
    """
    common: dict[Quantity, Power] = dict(p.terms[0][0])
    for m, _ in p.terms[1:]:
        powers = dict(m)
        common = {q: _least(q, n, powers.get(q, 0)) for q, n in {**dict.fromkeys(powers, 0), **common}.items()}
        common = {q: n for q, n in common.items() if n}
    shared = tuple(sorted(common.items(), key=lambda pair: pair[0].key))
    inverse_of = tuple((q, -n) for q, n in shared)
    rest = polynomial({times(m, inverse_of): c / abs(p.terms[0][1]) for m, c in p.terms})
    scale = abs(rest.terms[0][1])
    return shared, polynomial({m: c / scale for m, c in rest.terms})


def _least(q: Quantity, a: Power, b: Power) -> Power:
    return min(a, b) if q.kind == "exp" else max(min(a, b), 0)


def content(values: Iterable[Fraction]) -> Fraction:
    """The greatest number of which all are whole multiples."""
    top, bottom = 0, 1
    for v in values:
        top, bottom = gcd(top, v.numerator), bottom * v.denominator // gcd(bottom, v.denominator)
    return Fraction(top, bottom)


T = TypeVar("T", float, Decimal)


@dataclass(frozen=True)
class Numbers(Generic[T]):
    """In what a polynomial is evaluated: ``number`` makes one of a fraction or of an input."""

    number: Callable[[Fraction | float], T]
    functions: Mapping[str, Callable[[T], T]]


def _decimal(x: Fraction | float) -> Decimal:
    return Decimal(x) if isinstance(x, float) else Decimal(x.numerator) / x.denominator


FLOATS: Numbers[float] = Numbers(
    float, {"exp": math.exp, "log": math.log, "sqrt": math.sqrt, "inverse": lambda x: 1 / x}
)
DECIMALS: Numbers[Decimal] = Numbers(
    _decimal, {"exp": Decimal.exp, "log": Decimal.ln, "sqrt": Decimal.sqrt, "inverse": lambda x: 1 / x}
)
"""To as many digits as the context has."""


def evaluate(
    p: Polynomial,
    inputs: Mapping[str, float],
    known: dict[Quantity, T],
    numbers: Numbers[T] = FLOATS,  # type: ignore[assignment]
) -> T:
    """p where its variables have these values. ``known``: the quantities that were computed so far.

    Raises: ArithmeticError, ValueError where there is no such number.
    """
    total = numbers.number(0.0)
    for m, c in p.terms:
        product = numbers.number(c)
        for q, n in m:
            if q not in known:
                inner = numbers.number(inputs[q.name]) if q.of is None else evaluate(q.of, inputs, known, numbers)
                known[q] = inner if q.kind == "var" else numbers.functions[q.kind](inner)
            product *= known[q] ** numbers.number(n) if n != 1 else known[q]
        total += product
    return total
