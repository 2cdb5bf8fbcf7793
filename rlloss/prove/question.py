"""Is there an input at which a case occurs? Asked of Z3, over the real numbers.

The exponentials of a question become positive unknowns: the powers in which they occur span a lattice, and each vector
of its basis is one unknown, so that ``exp(logp)`` and ``exp(old_logp)`` of which only the ratio matters are one. What
is known of exponentials beside their laws is added where a logarithm and its exponential occur together.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import z3

from rlloss.prove import polynomials as poly
from rlloss.prove.backward import NotFollowed
from rlloss.prove.diagrams import Case, Diagram, Diagrams, Path
from rlloss.prove.exact import EPSILON, is_logarithm
from rlloss.prove.polynomials import Monomial, Polynomial, Quantity

EFFORT = 30_000_000  # of Z3, in its own units, for one question: some seconds, and the same answer on any machine
SIMPLE = tuple(map(Fraction, ("2", "1/2", "4", "1/4", "1", "3/2", "3/4", "10", "1/10")))
WISHES = {"A": (1, -1, 2, -2, Fraction(1, 2)), EPSILON: (Fraction(1, 5), Fraction(1, 2))}  # by the names of inputs
E_DIGITS = Fraction(1, 10**12)
MOST_EXPONENT = 700  # of e, in a number that is known
MOST_POWER = 200  # of one unknown in a polynomial


@dataclass(frozen=True)
class Found:
    """An input at which the case occurs: the values of the inputs by their labels, and the path of signs."""

    inputs: Mapping[str, float]
    path: Path


@dataclass(frozen=True)
class Answer:
    """``found``: where the case occurs; None and not ``undecided``: nowhere. ``undecided``: paths without an answer."""

    found: Found | None
    undecided: int = 0


def lattice(vectors: Iterable[tuple[Fraction, ...]]) -> list[tuple[Fraction, ...]]:
    """A basis, in echelon form, of all sums of whole multiples of some vectors (Hermite's normal form, by Euclid)."""
    rows = [list(v) for v in vectors]
    width = len(rows[0]) if rows else 0
    basis: list[tuple[Fraction, ...]] = []
    for column in range(width):
        while len(nonzero := [r for r in rows if r[column]]) > 1:
            pivot = min(nonzero, key=lambda r: abs(r[column]))
            for row in nonzero:
                if row is not pivot:
                    times = row[column] // pivot[column]
                    row[:] = [x - times * y for x, y in zip(row, pivot, strict=True)]
        for row in nonzero:
            basis.append(tuple(-x for x in row) if row[column] < 0 else tuple(row))
        rows = [r for r in rows if not r[column]]
    return basis


def coordinates(vector: Sequence[Fraction], basis: Sequence[Sequence[Fraction]]) -> list[int] | None:
    """A vector as whole multiples of a basis in echelon form; None if it is none."""
    left, found = list(vector), []
    for b in basis:
        column = next(i for i, x in enumerate(b) if x)
        times = left[column] / b[column]
        if times.denominator != 1:
            return None
        left = [x - times * y for x, y in zip(left, b, strict=True)]
        found.append(int(times))
    return None if any(left) else found


@dataclass
class Question:
    """Whether any of the diagram's paths to a leaf other than 0 can be gone."""

    cases: Diagrams
    diagram: Diagram
    epsilon: Fraction | None = None  # what clip_coef is; None: any number between 0 and 1
    effort: int = EFFORT
    unknowns: dict[Quantity, Any] = field(default_factory=dict)
    tangents: set[tuple[int, Fraction]] = field(
        default_factory=set
    )  # (basis vector, where exp is bounded by its slope)
    _last: list[tuple[int, Fraction]] = field(default_factory=list)

    # ------------------------------------------------------------------------------------------------ translation

    @cached_property
    def atoms(self) -> list[Polynomial]:
        """All quantities that decide in the diagram."""
        found: dict[int, None] = {}

        def walk(d: Diagram, seen: set[int]) -> None:
            if isinstance(d, Case) and id(d) not in seen:
                seen.add(id(d))
                found[d.atom] = None
                for branch in d.branches:
                    walk(branch, seen)

        walk(self.diagram, set())
        return [self.cases.atoms[i] for i in found]  # type: ignore[misc]

    @cached_property
    def polynomials(self) -> list[Polynomial]:
        """The atoms, and what the quantities in them are defined by."""
        todo, found = [*self.atoms], dict.fromkeys(self.atoms)
        while todo:
            for q in todo.pop().quantities:
                for p in definition(q):
                    if p not in found:
                        found[p] = None
                        todo.append(p)
        return list(found)

    @cached_property
    def exponentials(self) -> list[Quantity]:
        """All exponentials; e, if it is one of them, last, so that a basis has its powers by themselves."""
        found = {q for p in self.polynomials for m, _ in p.terms for q, _ in m if q.kind == "exp"}
        return sorted(found, key=lambda q: (not poly_of(q).variables, q.key))

    def vector(self, m: Monomial) -> tuple[Fraction, ...]:
        powers = dict(m)
        return tuple(Fraction(powers.get(q, 0)) for q in self.exponentials)

    @cached_property
    def basis(self) -> list[tuple[Fraction, ...]]:
        vectors = []
        for p in self.polynomials:
            first = self.vector(p.terms[0][0])
            vectors += [tuple(a - b for a, b in zip(self.vector(m), first, strict=True)) for m, _ in p.terms[1:]]
        return lattice(v for v in vectors if any(v))

    @cached_property
    def bases(self) -> list[z3.ArithRef]:
        return [z3.Real(f"x{i}") for i in range(len(self.basis))]

    def unknown(self, q: Quantity) -> z3.ArithRef:
        if q not in self.unknowns:
            self.unknowns[q] = z3.Real(q.key)
        return self.unknowns[q]

    def translate(self, p: Polynomial) -> z3.ArithRef:
        """p times a positive monomial that leaves no negative power."""
        first = self.vector(p.terms[0][0])
        rows = []
        for m, c in p.terms:
            apart = [a - b for a, b in zip(self.vector(m), first, strict=True)]
            powers = coordinates(apart, self.basis)
            assert powers is not None, "the basis spans all differences"
            rows.append((powers, [(q, n) for q, n in m if q.kind != "exp"], c))
        least = [min(column) for column in zip(*(powers for powers, _, _ in rows), strict=True)]
        if any(n - low > MOST_POWER for powers, _, _ in rows for n, low in zip(powers, least, strict=True)):
            raise NotFollowed("a power that large, as of a logarithm that is no fraction")
        total = []
        for powers, others, c in rows:
            factors = [self.bases[i] for i, n in enumerate(powers) for _ in range(n - least[i])]
            factors += [self.unknown(q) for q, n in others for _ in range(int(n))]
            product: Any = z3.RealVal(str(c))
            for factor in factors:
                product = product * factor
            total.append(product)
        return z3.Sum(total) if len(total) > 1 else total[0]

    # ------------------------------------------------------------------------------------------------- what is known

    def facts(self) -> Iterator[z3.BoolRef]:
        """The domain, the definitions of quantities, and what is known of exponentials."""
        yield from (x > 0 for x in self.bases)
        quantities = {q for p in self.polynomials for q in p.quantities}
        for q in sorted(quantities, key=lambda q: q.key):
            yield from self._facts_of(q)
        for i, vector in enumerate(self.basis):
            yield from self._facts_of_basis(i, vector)

    def _facts_of(self, q: Quantity) -> Iterator[z3.BoolRef]:
        if q.kind == "var" and q.name == EPSILON:
            if self.epsilon is not None:
                yield self.unknown(q) == z3.RealVal(str(self.epsilon))
            yield z3.And(self.unknown(q) > 0, self.unknown(q) < 1)
        elif q.kind == "var" and is_logarithm(q) and self._is_raw(q):
            yield self.unknown(q) <= 0
        elif q.kind == "inverse":
            yield self.translate_equal(poly.single(q) * poly_of(q), poly.ONE)
        elif q.kind == "sqrt":
            yield self.translate_equal(poly.single(q) * poly.single(q), poly_of(q))
            yield self.unknown(q) >= 0
        elif q.kind == "log":
            yield self.translate(poly_of(q)) > 0
            if self._is_raw(q):
                yield self._same_sign(poly_of(q) - poly.ONE, self.unknown(q))
        elif q.kind == "exp" and _is_log_of(q):
            yield self.translate_equal(poly.single(q), poly_of(_log_in(q)))
        if q.kind == "exp" and is_logarithm_monomial(poly_of(q)) and not _is_log_of(q):
            unit = tuple(Fraction(int(q == other)) for other in self.exponentials)
            powers = coordinates(unit, self.basis) if unit else None
            if powers is not None:  # the probability itself occurs, not only ratios of two
                yield self._power(powers) <= 1

    def _power(self, powers: Sequence[int]) -> z3.ArithRef:
        product: Any = z3.RealVal(1)
        for x, n in zip(self.bases, powers, strict=True):
            for _ in range(abs(n)):
                product = product * x if n > 0 else product / x
        return product

    def _is_raw(self, q: Quantity) -> bool:
        """Whether a quantity occurs by itself, not only within an exponential."""
        return any(q == r for p in self.polynomials for m, _ in p.terms for r, _ in m)

    def _same_sign(self, p: Polynomial, x: z3.ArithRef) -> z3.BoolRef:
        t = self.translate(p) if p else z3.RealVal(0)
        return z3.And((t > 0) == (x > 0), (t == 0) == (x == 0))

    def translate_equal(self, p: Polynomial, q: Polynomial) -> z3.BoolRef:
        difference = p - q
        return self.translate(difference) == 0 if difference else z3.BoolVal(True)

    def _facts_of_basis(self, i: int, vector: Sequence[Fraction]) -> Iterator[z3.BoolRef]:
        """A number that is a power of e is known; a logarithm that occurs itself lies as its exponential does."""
        x = self.bases[i]
        parts = [(poly_of(q), c) for q, c in zip(self.exponentials, vector, strict=True) if c]
        if all(p.constant is not None for p, _ in parts):
            exponent = sum(float((p.constant or 0) * c) for p, c in parts)
            if abs(exponent) > MOST_EXPONENT:
                return  # no float is that large, and no fact is missing that a proof would rest on
            value = Fraction(math.exp(exponent))
            yield z3.And(x > z3.RealVal(str(value * (1 - E_DIGITS))), x < z3.RealVal(str(value * (1 + E_DIGITS))))
            return
        u = self.exponent(i)
        if u is not None:
            yield z3.And((x > 1) == (u > 0), (x == 1) == (u == 0), x >= 1 + u, x * (1 - u) <= 1)
            yield z3.And((x == 1 + u) == (u == 0), (x * (1 - u) == 1) == (u == 0))  # it touches its slope there alone
            yield from (z3.And(*_tangent(x, u, at)) for j, at in sorted(self.tangents) if j == i)

    def exponent(self, i: int) -> z3.ArithRef | None:
        """What basis unknown ``i`` is the exponential of, if all that it is made of occurs by itself, too."""
        total = poly.ZERO
        for q, c in zip(self.exponentials, self.basis[i], strict=True):
            total = total + poly.number(c) * poly_of(q)
        raw = total.terms and all(self._is_raw(q) for m, _ in total.terms for q, _ in m)
        return self._plain(total) if raw else None

    def refine(self) -> bool:
        """The last answer's numbers are none of exp's: add what they violate. False if nothing is left to add."""
        new = set(self._last) - self.tangents
        self.tangents |= new
        return bool(new)

    def _plain(self, p: Polynomial) -> z3.ArithRef:
        total: Any = z3.RealVal(0)
        for m, c in p.terms:
            product: Any = z3.RealVal(str(c))
            for q, n in m:
                for _ in range(int(n)):
                    product = product * self.unknown(q)
            total = total + product
        return total

    # ------------------------------------------------------------------------------------------------------- asking

    def ask(self, allow_tie: Any) -> Answer:
        """A path whose zeros are all allowed by ``allow_tie(polynomial)``, the simplest numbers that go it."""
        solver = z3.SolverFor("QF_NRA")
        solver.set("rlimit", self.effort)
        solver.add(*self.facts())
        undecided = 0

        def walk(d: Diagram, path: Path) -> Found | None:
            nonlocal undecided
            if not isinstance(d, Case):
                if not d:
                    return None
                answer = self._simplest(solver, path)
                undecided += answer is None
                return answer if isinstance(answer, Found) else None
            p: Polynomial = self.cases.atoms[d.atom]  # type: ignore[assignment]
            t = self.translate(p)
            for sign, branch in ((1, d.branches[2]), (-1, d.branches[0]), (0, d.branches[1])):
                if branch == 0 or (sign == 0 and not allow_tie(p)):
                    continue
                solver.push()
                solver.add(t > 0 if sign > 0 else t < 0 if sign < 0 else t == 0)
                found = None
                if solver.check() != z3.unsat:
                    found = walk(branch, (*path, (p, sign)))
                solver.pop()
                if found:
                    return found
            return None

        return Answer(walk(self.diagram, ()), undecided)

    def _simplest(self, solver: z3.Solver, path: Path) -> Found | bool | None:
        """Simple numbers on this path if there are any; None if the solver cannot tell whether there are numbers.

        The first of a fixed list that serves is taken for one unknown after another: what a solver would choose itself
        depends on all that it was asked before.
        """
        outcome = solver.check()
        if outcome != z3.sat:
            return False if outcome == z3.unsat else None
        wishes: list[tuple[Any, Sequence[Fraction | int]]] = [
            (u, WISHES[q.name[0]]) for q, u in self.unknowns.items() if q.kind == "var" and q.name[0] in WISHES
        ]
        depth = solver.num_scopes()
        for unknown, values in [*sorted(wishes, key=lambda wish: str(wish[0])), *((x, SIMPLE) for x in self.bases)]:
            for value in values:
                solver.push()
                solver.add(unknown == z3.RealVal(str(value)))
                if solver.check() == z3.sat:
                    break
                solver.pop()
        solver.check()
        found = Found(self._values(solver.model()), path)
        solver.pop(solver.num_scopes() - depth)
        return found

    def _values(self, model: z3.ModelRef) -> dict[str, float]:
        """Inputs with these unknowns: what is given, and log-probabilities whose exponentials are as they should."""
        exponents = [(i, self.exponent(i)) for i in range(len(self.basis))]
        self._last = [
            (i, Fraction(_float(model.eval(u, model_completion=True))).limit_denominator(10**6))
            for i, u in exponents
            if u is not None
        ]
        values = {
            q.name: _float(model.eval(u, model_completion=True)) for q, u in self.unknowns.items() if q.kind == "var"
        }
        logs = [math.log(_float(model.eval(x, model_completion=True))) for x in self.bases]
        return {**self._logarithms(logs, values), **values}

    def _logarithms(self, logs: Sequence[float], known: Mapping[str, float]) -> dict[str, float]:
        """Numbers near -1 for log-probabilities, none above 0, such that each basis vector has its logarithm."""
        names = [_logarithm_of(q) for q in self.exponentials]
        values = {name: known.get(name, -1.0) for name in names}
        for vector, target in zip(reversed(self.basis), reversed(logs), strict=True):
            column = next(i for i, x in enumerate(vector) if x)
            rest = sum(float(c) * (values[n] if n else 1.0) for c, n in zip(vector, names, strict=True) if c)
            if names[column] not in known:
                values[names[column]] += (target - rest) / float(vector[column])
        most = max((v for n, v in values.items() if n not in known), default=0.0)
        ratios = all(sum(c for c, n in zip(v, names, strict=True) if n) == 0 for v in self.basis)
        if most > -0.01 and ratios and not any(n in known for n in names):
            values = {n: v - most - 1.0 for n, v in values.items()}
        return {n: v for n, v in values.items() if is_input(n)}


def _tangent(x: Any, u: Any, at: Fraction) -> Iterator[Any]:
    """exp lies above its tangent at a point, and so does exp of the negative."""
    for above, exponent, place in ((x, u, at), (1 / x, -u, -at)):
        least = Fraction(math.exp(place)) * (1 - E_DIGITS)
        yield above >= z3.RealVal(str(least)) * (1 + exponent - z3.RealVal(str(place)))


def _logarithm_of(q: Quantity) -> str:
    """The log-probability that an exponential is of; "" for e; else a name that is no input's."""
    p = poly_of(q)
    return p.terms[0][0][0][0].name if is_logarithm_monomial(p) else "" if p.constant is not None else q.key


def is_input(name: str) -> bool:
    return name.startswith(("logp", "old"))


def poly_of(q: Quantity) -> Polynomial:
    assert q.of is not None
    return q.of


def definition(q: Quantity) -> list[Polynomial]:
    """The polynomials that a question with this quantity must also hold."""
    if q.kind == "inverse":
        return [poly.single(q) * poly_of(q) - poly.ONE]
    if q.kind == "sqrt":
        return [poly.single(q) * poly.single(q) - poly_of(q)]
    if q.kind == "log":
        return [poly_of(q), poly_of(q) - poly.ONE] if poly_of(q) != poly.ONE else [poly_of(q)]
    if q.kind == "exp" and _is_log_of(q):
        return [poly.single(q) - poly_of(_log_in(q))]
    return []


def _is_log_of(q: Quantity) -> bool:
    """Whether an exponential is that of a logarithm alone."""
    (m, _), *more = poly_of(q).terms
    return not more and len(m) == 1 and m[0][0].kind == "log" and m[0][1] == 1


def _log_in(q: Quantity) -> Quantity:
    return poly_of(q).terms[0][0][0][0]


def is_logarithm_monomial(p: Polynomial) -> bool:
    return len(p.terms) == 1 and len(p.terms[0][0]) == 1 and is_logarithm(p.terms[0][0][0][0])


def _float(value: Any) -> float:
    if z3.is_algebraic_value(value):
        value = value.approx(20)
    return float(Fraction(value.numerator_as_long(), value.denominator_as_long()))
