"""The question of a proof as SMT-LIB, for any solver to judge again: written from the graph as it stands.

Nothing of the prover's own is used: no case distinction, no normal form. Operations are written as they were traced,
exp and log as functions of which only what is asserted is known.
"""

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import reduce
from typing import Any

import z3

from rlloss.graph.graph import Graph
from rlloss.prove import polynomials as poly
from rlloss.prove.backward import SPREADS, NotFollowed, gradients

LOGIC = "ALL"
MOST = 3  # exponentials up to which the law of sums is written out for all, needed or not


class NoCases:
    """``Diagrams`` without diagrams: a case is an if-then-else in the formula."""

    def apply(self, function: Callable[..., Any], *values: Any, key: Any = None) -> Any:
        return function(*values)

    def select(self, sign: Any, negative: Any, zero: Any, positive: Any) -> Any:
        return z3.If(sign < 0, negative, z3.If(sign == 0, zero, positive))


class Written:
    """Arithmetic on formulas, for ``rlloss.prove.backward``."""

    rounds = False

    def __init__(self) -> None:
        self.cases: Any = NoCases()
        self.exp, self.log = (z3.Function(name, z3.RealSort(), z3.RealSort()) for name in ("Exp", "Log"))
        self.exponents: dict[int, Any] = {}
        self.logarithms: dict[int, Any] = {}
        self.divisors: dict[int, Any] = {}
        self.roots: dict[int, tuple[Any, Any]] = {}

    def constant(self, x: float) -> Any:
        if x != x or abs(x) == float("inf"):
            raise NotFollowed(f"the number {x}")
        return z3.RealVal(str(poly.number(x).constant))

    def operand(self, x: Any) -> Any:
        return x

    def near(self, name: str, *values: Any) -> Any:
        return values[0]

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def neg(self, x: Any) -> Any:
        return -x

    def mul(self, x: Any, y: Any) -> Any:
        return x * y

    def div(self, x: Any, y: Any) -> Any:
        self.divisors[y.get_id()] = y
        return x / y

    def power(self, x: Any, exponent: float) -> Any:
        if exponent == 0.5:
            return self.function("sqrt", x)
        if exponent % 1:
            raise NotFollowed(f"a power of {exponent:g}")
        whole = reduce(lambda a, b: a * b, [x] * abs(int(exponent)), z3.RealVal(1))
        return whole if exponent >= 0 else self.div(z3.RealVal(1), whole)

    def powered(self, x: Any, exponent: Any) -> Any:
        return self.function("exp", exponent * self.function("log", x))

    def function(self, name: str, x: Any) -> Any:
        one = z3.RealVal(1)
        if name == "sqrt":
            self.roots.setdefault(x.get_id(), (x, z3.Real(f"root{len(self.roots)}")))
            return self.roots[x.get_id()][1]
        if name in ("log", "log1p"):
            x = x if name == "log" else one + x
            self.logarithms[x.get_id()] = x
            self.exponents[self.log(x).get_id()] = self.log(x)
            return self.log(x)
        if name == "sigmoid":
            return self.div(one, one + self.function("exp", -x))
        if name == "logsigmoid":
            return -self.function("log", one + self.function("exp", -x))
        if name == "softplus":
            return self.function("log", one + self.function("exp", x))
        if name == "tanh":
            return one - self.div(one + one, one + self.function("exp", x + x))
        if name not in ("exp", "expm1"):
            raise NotFollowed(name)
        self.exponents[x.get_id()] = x
        return self.exp(x) - one if name == "expm1" else self.exp(x)

    def order(self, x: Any, y: Any) -> Any:
        return x - y

    def total(self, name: str, values: Sequence[Any], over: str = "") -> Any:
        total, n = reduce(lambda a, b: a + b, values), z3.RealVal(len(values))
        if name in ("sum", "cumsum"):
            return total
        if name == "mean":
            return total / n
        if name == "prod":
            return reduce(lambda a, b: a * b, values)
        if name in SPREADS:
            squares = [(x - total / n) * (x - total / n) for x in values]
            divisor = len(values) if name.endswith("_n") else max(len(values) - 1, 1)
            variance = reduce(lambda a, b: a + b, squares) / z3.RealVal(divisor)
            return variance if name.startswith("var") else self.function("sqrt", variance)
        first, *rest = values if name in ("softmax", "log_softmax") else [z3.RealVal(0), *values]
        mass = reduce(lambda a, b: a + b, [self.function("exp", x) for x in rest])
        if name == "softmax":
            return self.div(self.function("exp", first), mass)
        logs = self.function("log", mass)
        return logs if name == "logsumexp" else first - logs

    def facts(self) -> list[Any]:
        """What is asserted of exp, log, roots and divisors."""
        e, xs = self.exp, list(self.exponents.values())
        facts = [e(x) > 0 for x in xs] + [d != 0 for d in self.divisors.values()]
        facts += [e(z3.RealVal(0)) == 1]
        facts += [z3.And(r >= 0, r * r == x) for x, r in self.roots.values()]
        facts += [z3.And(x > 0, e(self.log(x)) == x) for x in self.logarithms.values()]
        for x, y in itertools.combinations([z3.RealVal(0), *xs], 2):
            facts.append(z3.And((x < y) == (e(x) < e(y)), (x == y) == (e(x) == e(y))))
        for x, y, z in itertools.combinations_with_replacement(xs, 3):
            for total, one, other in dict.fromkeys(((x, y, z), (y, x, z), (z, x, y))):
                apart = z3.simplify(total - one - other)
                if len(xs) <= MOST or (z3.is_rational_value(apart) and apart.as_fraction() == 0):
                    facts.append(z3.Implies(total == one + other, e(total) == e(one) * e(other)))
        return facts


def question(left: Graph, right: Graph, fixed: dict[str, float], epsilon: Fraction | None) -> list[Any]:
    """What must hold for two graphs' gradients to differ; none of it can, if they are one.

    ``fixed``: inputs that are numbers, as a mask's. Raises: NotFollowed.
    """
    on = Written()
    sent = []
    for graph in (left, right):
        inputs = {
            i: on.constant(fixed[given.label]) if given.label in fixed else z3.Real(given.label)
            for i, given in enumerate(graph.inputs)
        }
        sent.append(gradients(graph, on, inputs, z3.RealVal(1)))
    eps = z3.Real("ε")
    domain = [z3.Real(given.label) <= 0 for given in left.inputs if given.label.startswith(("logp", "old"))]
    domain += [eps > 0, eps < 1] if epsilon is None else [eps == z3.RealVal(str(epsilon))]
    return [*domain, *on.facts(), z3.Or(*(x != y for x, y in zip(*sent, strict=True)))]


def smt_lib(title: str, questions: Sequence[tuple[str, list[Any]]]) -> str:
    """Questions as SMT-LIB: one ``check-sat`` each, ``unsat`` where there is one gradient."""
    blocks = []
    for name, asserted in questions:
        solver = z3.Solver()
        solver.add(*asserted)
        body = solver.to_smt2().split("\n", 1)[1].replace("ε", "epsilon")
        lines = [line for line in body.splitlines() if not line.startswith("(set-info")]
        blocks.append("\n".join([f'(echo "{name}")', "(push 1)", *lines, "(pop 1)"]))
    head = [f"; {title}", "; unsat: no input gives them two gradients", f"(set-logic {LOGIC})"]
    return "\n".join([*head, *blocks, ""])
