"""Exact arithmetic: the numbers of a proof for every input, without rounding.

A number is a polynomial (``rlloss.prove.polynomials``). What decides a case is the sign of a polynomial; it is taken
apart into the signs of its factors, so that ``ratio * A < (1 + eps) * A`` asks for the signs of A and ratio - 1 - eps,
and logarithms are asked as what they are logarithms of: ``logratio < log(1 - eps)`` is ``ratio < 1 - eps``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import localcontext
from fractions import Fraction

from rlloss.prove import polynomials as poly
from rlloss.prove.backward import SPREADS, NotFollowed
from rlloss.prove.diagrams import Case, Diagram, Diagrams
from rlloss.prove.polynomials import ONE, ZERO, Numbers, Polynomial, Quantity, T

MOST_TERMS = 400  # of a polynomial


@dataclass(frozen=True)
class Limit:
    """What is no number but has a place in the arithmetic: inf, -inf, or nan (0)."""

    sign: int


NAN = Limit(0)
Number = Polynomial | Limit


class Exact:
    """Arithmetic on polynomials, for ``rlloss.prove.backward``.

    Every number on the way is taken to be finite: what is divided by does not vanish, what has a logarithm is positive.
    Infinities that the author wrote down, as ``masked_fill(…, -inf)``, are followed as IEEE arithmetic has them.
    """

    rounds = False

    def __init__(self) -> None:
        self.cases = Diagrams()

    def constant(self, x: float) -> Number:
        if math.isfinite(x):
            return poly.number(x)  # a tensor's number keeps how rough it is
        return NAN if math.isnan(x) else Limit(1 if x > 0 else -1)

    def operand(self, x: Number) -> Number:
        return x

    def near(self, name: str, *values: Number) -> Number:
        return values[0]

    def add(self, x: Number, y: Number) -> Number:
        if isinstance(x, Limit) or isinstance(y, Limit):
            limits = {v for v in (x, y) if isinstance(v, Limit)}
            return limits.pop() if len(limits) == 1 else NAN
        return _small(x + y)

    def neg(self, x: Number) -> Number:
        return Limit(-x.sign) if isinstance(x, Limit) else -x

    def mul(self, x: Number, y: Number) -> Number | Diagram:
        if isinstance(x, Limit) or isinstance(y, Limit):
            return self.cases.apply(lambda a, b: Limit(a * b), self.sign(x), self.sign(y))
        return _small(x * y)

    def div(self, x: Number, y: Number) -> Number | Diagram:
        if isinstance(y, Limit):
            return NAN if isinstance(x, Limit) or not y.sign else ZERO
        if not y:
            return self.cases.apply(Limit, self.sign(x))  # of 0 / 0: nan
        return self.mul(x, poly.inverse(y))

    def power(self, x: Number, exponent: float) -> Number:
        if isinstance(x, Limit):
            raise NotFollowed("a power of infinity")
        if exponent < 0 and not x:
            return Limit(1)
        try:
            return _small(poly.power(x, Fraction(repr(exponent)) if exponent % 1 else int(exponent)))
        except ValueError as error:
            raise NotFollowed(f"a power of {exponent:g}") from error

    def powered(self, x: Number, exponent: Number) -> Number:
        """x to a power that is computed: of what follows from the shape and the mask alone, a number."""
        known = None if isinstance(exponent, Limit) else exponent.constant
        if known is None:
            raise NotFollowed("a power whose exponent is computed")
        if isinstance(x, Limit):
            raise NotFollowed("a power of infinity")
        try:
            return _small(poly.power(x, known))
        except ValueError as error:
            raise NotFollowed(f"a power of {float(known):g}") from error

    def function(self, name: str, x: Number) -> Number:
        if name not in FUNCTIONS:
            raise NotFollowed(name)
        if isinstance(x, Limit):
            return self._at_infinity(name, x)
        if name in ("log", "log1p"):
            argument = (x + ONE if name == "log1p" else x).constant
            if argument is not None and argument <= 0:
                return Limit(-1) if argument == 0 else NAN
        return _small(FUNCTIONS[name](x))

    def _at_infinity(self, name: str, x: Limit) -> Number:
        if x == NAN:
            return NAN
        below, above = AT_INFINITY[name]
        return self.constant(below if x.sign < 0 else above)

    def order(self, x: Number, y: Number) -> Diagram:
        if isinstance(x, Limit) or isinstance(y, Limit):
            places = [v.sign if isinstance(v, Limit) else 0 for v in (x, y)]
            return (places[0] > places[1]) - (places[0] < places[1])
        return self.sign(x - y)

    def sign(self, p: Number) -> Diagram:
        """The sign of a number, from the signs of its factors."""
        if isinstance(p, Limit):
            return p.sign
        if not p:
            return 0
        if (constant := p.constant) is not None:
            return 1 if constant > 0 else -1
        p = of_logarithms(p)
        if (constant := p.constant) is not None:
            return (constant > 0) - (constant < 0)
        shared, rest = poly.split(p)
        result: Diagram = 1
        for q, n in shared:
            if q.kind not in ("exp", "sqrt") and not _positive(q):
                sign = self.cases.sign(poly.single(q))
                result = self._times(result, sign if int(n) % 2 else self._times(sign, sign))
            elif q.kind == "sqrt":  # not negative; 0 only where its argument is
                result = self._times(result, self.cases.select(self.sign(_argument(q)), 0, 0, 1))
        return self._times(result, self._primitive(rest))

    def differs(self, x: Number, y: Number) -> Diagram:
        """1 where two numbers differ, else 0; 0 also where either is none (``undefined``)."""
        if isinstance(x, Limit) or isinstance(y, Limit):
            return 0
        return self.cases.apply(abs, self.sign(x - y))

    @staticmethod
    def undefined(x: Number, y: Number) -> int:
        """1 where one is infinite or nan and the other is not that, too."""
        return int(x != y and (isinstance(x, Limit) or isinstance(y, Limit)))

    def _times(self, x: Diagram, y: Diagram) -> Diagram:
        return self.cases.apply(lambda a, b: a * b, x, y, key="times")

    def _primitive(self, p: Polynomial) -> Diagram:
        if (constant := p.constant) is not None:
            return 1 if constant > 0 else -1
        known = known_sign(p)
        if known is not None:
            return known
        if p.terms[0][1] < 0:  # a polynomial and its negative ask the same question
            return self._times(-1, self.cases.sign(-p))
        return self.cases.sign(p)

    def total(self, name: str, values: Sequence[Diagram], over: str = "") -> Diagram:
        return self._total(name, list(values))

    def _total(self, name: str, values: list[Diagram]) -> Diagram:
        apply = self.cases.apply
        if name in ("sum", "cumsum"):
            total: Diagram = ZERO
            for x in values:
                total = apply(self.add, total, x)
            return total
        if name == "mean":
            return apply(lambda x: self.mul(x, poly.number(Fraction(1, len(values)))), self._total("sum", values))
        if name == "prod":
            product: Diagram = ONE
            for x in values:
                product = apply(self.mul, product, x)
            return product
        if name in SPREADS:
            divisor = len(values) if name.endswith("_n") else len(values) - 1
            if not divisor:
                return NAN
            mean = self._total("mean", values)
            squares = [apply(lambda x, m: self.mul(x - m, x - m), x, mean) for x in values]
            variance = apply(lambda x: self.mul(x, poly.number(Fraction(1, divisor))), self._total("sum", squares))
            return variance if name.startswith("var") else apply(lambda x: self.power(x, 0.5), variance)
        first, *rest = values if name in ("softmax", "log_softmax") else [ZERO, *values]
        mass = self._total("sum", [apply(lambda x: self.function("exp", x), x) for x in rest])
        if name == "softmax":
            return apply(lambda x, m: self.div(self.function("exp", x), m), first, mass)
        logs = apply(lambda m: self.function("log", m), mass)
        return logs if name == "logsumexp" else apply(lambda x, m: self.add(x, self.neg(m)), first, logs)


def value_at(
    cases: Diagrams,
    diagram: Diagram,
    inputs: Mapping[str, float],
    numbers: Numbers[T] = poly.FLOATS,  # type: ignore[assignment]
) -> T:
    """What a diagram comes to where its variables have these values. Raises: as ``polynomials.evaluate``."""
    known: dict[Quantity, T] = {}
    while isinstance(diagram, Case):
        x = poly.evaluate(cases.atoms[diagram.atom], inputs, known, numbers)  # type: ignore[arg-type]
        diagram = diagram.branches[(x > 0) - (x < 0) + 1]
    if isinstance(diagram, Limit):
        return numbers.number(diagram.sign * math.inf if diagram.sign else math.nan)
    return poly.evaluate(diagram, inputs, known, numbers)


def differ_at(cases: Diagrams, x: Diagram, y: Diagram, inputs: Mapping[str, float]) -> bool:
    """Whether two diagrams differ there in the first half of ``DIGITS`` digits, or cannot be told apart."""
    with localcontext() as context:
        context.prec = DIGITS
        try:
            one, other = (value_at(cases, diagram, inputs, poly.DECIMALS) for diagram in (x, y))
            return abs(one - other) > max(abs(one), abs(other)).scaleb(-DIGITS // 2)
        except (ArithmeticError, ValueError):  # an infinity, say
            return True


def _sigmoid(x: Polynomial) -> Polynomial:
    return poly.inverse(ONE + poly.exp(-x))


AT_INFINITY = {
    "exp": (0.0, math.inf), "expm1": (-1.0, math.inf), "log": (math.nan, math.inf), "log1p": (math.nan, math.inf),
    "sqrt": (math.nan, math.inf), "sigmoid": (0.0, 1.0), "logsigmoid": (-math.inf, 0.0), "softplus": (0.0, math.inf),
    "tanh": (-1.0, 1.0),
}  # fmt: skip
FUNCTIONS: dict[str, Callable[[Polynomial], Polynomial]] = {
    "exp": poly.exp,
    "expm1": lambda x: poly.exp(x) - ONE,
    "log": poly.log,
    "log1p": lambda x: poly.log(ONE + x),
    "sqrt": poly.sqrt,
    "sigmoid": _sigmoid,
    "logsigmoid": lambda x: -poly.log(ONE + poly.exp(-x)),
    "softplus": lambda x: poly.log(ONE + poly.exp(x)),
    "tanh": lambda x: ONE - poly.number(2) * poly.inverse(ONE + poly.exp(x + x)),
}


def _small(p: Polynomial) -> Polynomial:
    if len(p.terms) > MOST_TERMS:
        raise NotFollowed(f"a polynomial of more than {MOST_TERMS} terms")
    return p


def _argument(q: Quantity) -> Polynomial:
    assert q.of is not None
    return q.of


def _positive(q: Quantity) -> bool:
    """Whether a quantity is positive in the whole domain, by what it is."""
    if q.kind == "inverse":
        return known_sign(_argument(q)) == 1
    return q.kind == "exp" or (q.kind == "var" and q.name == EPSILON)


EPSILON = "ε"
MOST_POWER = 64  # of an exponential
DIGITS = 80  # to which what a solver found is computed once more


def known_sign(p: Polynomial) -> int | None:
    """The sign of a sum of positive quantities, or of a line in ε over (0, 1); None if neither tells."""
    if all(_positive(q) or (q.kind == "sqrt") for m, _ in p.terms for q, _ in m):
        signs = {c > 0 for _, c in p.terms}
        constant = dict(p.terms).get((), Fraction(0))
        if len(signs) == 1 and (constant or any(all(_positive(q) for q, _ in m) for m, _ in p.terms)):
            return 1 if signs == {True} else -1
    if p.quantities == {Quantity("var", EPSILON)} and all(n == 1 for m, _ in p.terms for _, n in m):
        terms = dict(p.terms)
        at_0 = terms.get((), Fraction(0))
        at_1 = sum(terms.values(), Fraction(0))
        if at_0 >= 0 and at_1 >= 0:
            return 1
        if at_0 <= 0 and at_1 <= 0:
            return -1
    return None


def of_logarithms(p: Polynomial) -> Polynomial:
    """A sum of log-probabilities, logarithms and a number as the exponential of it, minus 1: of the same sign."""
    linear = all(len(m) == 1 and m[0][1] == 1 and is_logarithm(m[0][0]) for m, _ in p.terms if m)
    if not linear:
        return p
    scale = poly.content(c for _, c in p.terms)
    whole = poly.polynomial({m: c / scale for m, c in p.terms})
    if any(abs(c) > MOST_POWER for _, c in whole.terms):  # as beside the logarithm of a bound, a float
        return p
    up = poly.polynomial({m: c for m, c in whole.terms if c > 0})
    down = poly.polynomial({m: -c for m, c in whole.terms if c < 0})
    return poly.exp(up) - poly.exp(down)


def is_logarithm(q: Quantity) -> bool:
    return q.kind == "log" or (q.kind == "var" and q.name.startswith(("logp", "old")))
