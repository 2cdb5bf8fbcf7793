"""Exact arithmetic: polynomials with the laws of exp in their normal form, signs by factors, lattices of exponents."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

from rlloss.graph.tape import Held
from rlloss.prove import polynomials as poly
from rlloss.prove.diagrams import Diagrams, TooManyCases
from rlloss.prove.exact import NAN, Exact, Limit, value_at
from rlloss.prove.polynomials import ONE, ZERO, exp, log, number, power, variable
from rlloss.prove.question import Question, coordinates, lattice

X, Y, A, EPS = (variable(name) for name in ("logp[0]", "old[0]", "A[0]", "ε"))


def test_the_laws_of_exp_are_the_normal_form():
    assert exp(ZERO) == ONE
    assert exp(X + Y) == exp(X) * exp(Y)
    assert exp(X - X) == ONE
    assert exp(X + X) == exp(X) * exp(X)
    half = number(0.5) * X
    assert exp(half) * exp(half) == exp(X)
    assert exp(log(ONE - EPS)) == ONE - EPS
    assert log(exp(X) * exp(-Y)) == X - Y
    assert exp(X) != exp(Y)
    assert log(A * A) != log(A) + log(A), "of a negative number"
    assert log(number(3) * exp(X) * A) == X + log(number(3)) + log(A)


def test_numbers_are_what_their_authors_wrote():
    assert number(0.2) == number(Fraction(1, 5))
    assert (ONE - number(0.2)) == number(0.8)
    assert (number(0.1) + number(0.2)) == number(0.3)  # unlike floats
    assert number(1 - 0.9) == number(0.1)
    assert number(1 / 3) == number(Fraction(1, 3))
    assert number(1.28) != number(1.2801)
    assert number(1.0 + 1e-12) != ONE
    single = Held(1.2000000476837158, 2**-23)  # 1.2 in float32
    assert number(single) == number(1.2) != number(float(single))
    assert number(Held(1.2801, 2**-23)) != number(Held(1.28, 2**-23))


def test_powers_and_inverses():
    assert power(exp(X), -1) * exp(X) == ONE
    assert power(X + ONE, 2) == X * X + X + X + ONE
    assert power(number(4), Fraction(1, 2)) == number(2)
    assert power(number(Fraction(2, 3)), -1) == number(1.5)
    assert power(number(2) * X + ONE, -1) == number(0.5) * power(X + number(0.5), -1)
    with pytest.raises(ValueError, match="power"):
        power(X, Fraction(1, 3))


def test_a_sign_is_taken_apart_into_its_factors():
    on = Exact()
    ratio = exp(X - Y)
    one = on.order(ratio * A, (ONE + EPS) * A)  # of ratio A and (1 + eps) A
    other = on.cases.apply(lambda a, b: a * b, on.sign(ratio - ONE - EPS), on.sign(A))
    assert one == other
    assert {p.key for p in on.cases.atoms} == {"1*A[0]", next(p.key for p in on.cases.atoms if "exp" in p.key)}


def test_logarithms_are_asked_as_what_they_are_logarithms_of():
    on = Exact()
    assert on.order(X - Y, log(ONE - EPS)) == on.order(exp(X - Y), ONE - EPS)
    assert on.order(X, Y) == on.order(exp(X), exp(Y))
    assert on.order(X - Y, ZERO) == on.order(exp(X - Y), ONE)


def test_what_is_known_of_a_sign_needs_no_case():
    on = Exact()
    assert on.sign(exp(X) + EPS) == 1
    assert on.sign(ONE - EPS) == 1
    assert on.sign(EPS - number(2)) == -1
    assert on.sign(ONE - number(2) * EPS) not in (-1, 0, 1)
    assert on.sign(A * A) != 1, "A may be 0"


def test_infinities_are_followed_and_nan_is_nan():
    on = Exact()
    inf = on.constant(math.inf)
    assert on.add(inf, X) == inf
    assert on.add(inf, on.neg(inf)) == NAN
    assert on.function("exp", on.constant(-math.inf)) == ZERO
    assert on.div(X, inf) == ZERO
    assert on.order(inf, X) == 1
    assert value_at(on.cases, on.mul(inf, A), {"A[0]": -2.0}) == -math.inf
    assert math.isnan(value_at(on.cases, on.mul(inf, A), {"A[0]": 0.0}))
    assert on.div(ONE, ZERO) == Limit(1)


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=5),
    st.lists(st.integers(-3, 3), min_size=5, max_size=5),
)
def test_a_lattice_spans_what_it_is_made_of_and_nothing_else(vectors, times):
    rows = [tuple(map(Fraction, v)) for v in vectors]
    basis = lattice(v for v in rows if any(v))
    for v in rows:
        powers = coordinates(v, basis)
        assert powers is not None
        total = [sum(n * b[i] for n, b in zip(powers, basis, strict=True)) for i in range(3)]
        assert tuple(total) == v
    mixed = tuple(sum(n * v[i] for n, v in zip(times, rows, strict=False)) for i in range(3))
    assert coordinates(mixed, basis) is not None
    for b in basis:
        assert coordinates(tuple(x / 2 for x in b), basis) is None, "half of a basis vector is in no lattice of it"


POLYNOMIALS = st.recursive(
    st.sampled_from([X, Y, A, EPS, ONE, number(0.5), number(-3)]),
    lambda inner: (
        st.builds(lambda a, b: a + b, inner, inner)
        | st.builds(lambda a, b: a * b, inner, inner)
        | st.builds(lambda a: -a, inner)
        | st.builds(lambda a: exp(number(0.25) * a), st.sampled_from([X, Y, X - Y, X + number(1)]))
    ),
    max_leaves=8,
)
PLACES = st.fixed_dictionaries(
    {"logp[0]": st.floats(-2, 0), "old[0]": st.floats(-2, 0), "A[0]": st.floats(-2, 2), "ε": st.floats(0.05, 0.95)}
)


@given(POLYNOMIALS, POLYNOMIALS, PLACES)
@settings(max_examples=200)
def test_arithmetic_has_the_value_of_floats(p, q, at):
    def value(x):
        return poly.evaluate(x, at, {})

    scale = 1 + abs(value(p)) + abs(value(q)) + sum(abs(float(c)) for _, c in (p * q).terms) * 100
    assert value(p + q) == pytest.approx(value(p) + value(q), abs=1e-9 * scale)
    assert value(p * q) == pytest.approx(value(p) * value(q), abs=1e-9 * scale * scale)
    on = Exact()
    sign, x = value_at_sign(on, p, at), value(p)
    if abs(x) > 1e-6 * scale:
        assert sign == (1 if x > 0 else -1)


def value_at_sign(on, p, at):
    diagram = on.sign(p)
    while not isinstance(diagram, int):
        x = poly.evaluate(on.cases.atoms[diagram.atom], at, {})
        diagram = diagram.branches[(x > 0) - (x < 0) + 1]
    return diagram


# -------------------------------------------------------------------------------------------------------- questions


def answer(diagram_of, allow=lambda p: True, epsilon=None):
    on = Exact()
    return Question(on.cases, on.cases.apply(lambda s: int(s > 0), diagram_of(on)), epsilon).ask(allow)


def test_a_case_that_cannot_occur_and_one_that_can():
    ratio = exp(X - Y)

    def outside(on):  # above 1 + eps and below 1 - eps
        return on.cases.apply(min, on.sign(ratio - ONE - EPS), on.sign(ONE - EPS - ratio))

    assert answer(outside).found is None
    found = answer(lambda on: on.sign(ratio - ONE - EPS)).found
    assert math.exp(found.inputs["logp[0]"] - found.inputs["old[0]"]) > 1 + found.inputs["ε"]


@pytest.mark.parametrize(
    ("p", "possible"),
    [
        (exp(X) - ONE, False),  # a probability above 1
        (exp(X) - number(0.5), True),
        (X * X - number(100), True),  # log-probabilities themselves
        (exp(X) - ONE - X, True),
        (ONE + X - exp(X), False),  # exp x >= 1 + x
        (exp(X - Y) - exp(number(3)), True),
        (exp(number(3)) - number(20.0856), False),  # e^3 = 20.08553…
        (exp(number(3)) - number(20.0855), True),
    ],
)
def test_what_is_known_of_exponentials(p, possible):
    assert (answer(lambda on: on.sign(p)).found is not None) == possible


def test_ties_are_asked_apart():
    on = Exact()
    at_bound = on.cases.apply(lambda s: int(s == 0), on.sign(exp(X - Y) - ONE - EPS))
    assert Question(on.cases, at_bound).ask(lambda p: False).found is None
    found = Question(on.cases, at_bound).ask(lambda p: True).found
    assert [sign for _, sign in found.path] == [0]


def test_clip_coef_may_be_one_number():
    half = number(0.5) - EPS
    assert answer(lambda on: on.sign(half)).found is not None
    assert answer(lambda on: on.sign(half), epsilon=Fraction(3, 4)).found is None


def test_a_diagram_that_grows_too_large_says_so():
    cases = Diagrams(limit=50)
    signs = [cases.sign(f"x{i}") for i in range(12)]
    with pytest.raises(TooManyCases, match="50"):
        cases.apply(lambda *x: x, *signs)
