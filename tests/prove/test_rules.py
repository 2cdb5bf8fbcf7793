"""Every rule of rounded arithmetic, on all pairs of numbers of a whole 8-bit format; and wrong rules, which are caught.

The format has 4 bits of exponent and 3 of fraction, as float8_e4m3 has, and rounds to nearest, ties to even. What the
rules leave out is left out here: results that overflow, and terms whose halves are subnormal.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from rlloss.prove import rounded
from rlloss.prove.rounded import ONE, RULES, ZERO, Term, add, divide, multiply, named

SMALLEST_NORMAL, LARGEST, FRACTION = 2.0**-6, 240.0, 3


def fl(x):
    """Rounded to the format; nan where it overflows. Exact in float64, which has the bits for any sum and product."""
    x = np.asarray(x, dtype=np.float64)
    _, exponent = np.frexp(x)
    unit = np.ldexp(1.0, np.maximum(exponent - 1, -6) - FRACTION)
    rounded_x = np.round(x / unit) * unit  # numpy rounds ties to even
    return np.where(np.abs(rounded_x) > LARGEST, np.nan, rounded_x)


NUMBERS = np.unique(fl([s * m * 2.0**e for s in (-1, 1) for e in range(-9, 8) for m in np.arange(0, 16) / 8]))
NUMBERS = NUMBERS[np.isfinite(NUMBERS)]
OPERATIONS = {
    "mul": lambda a, b: fl(a * b),
    "add": lambda a, b: fl(a + b),
    "div": lambda a, b: fl(np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)),
    "exp": lambda x: fl(np.exp(x)),
}
PAIRS = tuple(x.ravel() for x in np.meshgrid(NUMBERS, NUMBERS))


def violations(rule, operation, *arguments):
    """In how many places a rule does not hold where the result is finite."""
    result = operation(*arguments)
    finite = np.isfinite(result)
    broken = [
        given & ~np.broadcast_to(follows, result.shape) & finite
        for given, follows in rule(operation, result, *arguments)
    ]
    return sum(int(np.broadcast_to(b, result.shape).sum()) for b in broken)


def test_the_format_is_that_of_torch():
    torch = pytest.importorskip("torch")
    own = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).double().numpy()
    assert set(NUMBERS) == set(own[np.abs(own) <= LARGEST])
    x = torch.linspace(-250, 250, 100_001, dtype=torch.float64)
    theirs = x.float().to(torch.float8_e4m3fn).double().numpy()
    small = np.abs(x.numpy()) < 230  # torch's goes on to 448
    assert np.array_equal(fl(x.float().double().numpy())[small], theirs[small])


@pytest.mark.parametrize("name", RULES)
def test_a_rule_holds_for_all_pairs(name):
    arguments = (NUMBERS,) if name == "exp" else PAIRS
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        assert violations(RULES[name], OPERATIONS[name], *arguments) == 0
    assert len(NUMBERS) > 200


def test_rounding_turns_no_order_of_products_around():
    a, x, y = (t.ravel() for t in np.meshgrid(NUMBERS, NUMBERS[::3], NUMBERS[::2]))
    m, n = fl(a * x), fl(a * y)
    finite = np.isfinite(m) & np.isfinite(n)
    for given, follows in rounded._products_in_order(m, n, a, x, y):
        assert not (given & ~follows & finite).any()


WRONG = {
    "a product of positive numbers is positive": ("mul", lambda mul, m, a, b: [((a > 0) & (b > 0), m > 0)]),
    "a product is no larger than its larger factor": ("mul", lambda mul, m, a, b: [(a <= 1, m <= b)]),
    "a sum grows": ("add", lambda add, s, a, b: [(b > 0, s > a)]),
    "a difference is exact": ("add", lambda add, s, a, b: [(b < 0, s == a + b)]),
    "products are exact": ("mul", lambda mul, m, a, b: [(True, m == a * b)]),
    "a quotient is a product with the inverse": (
        "div",
        lambda div, q, a, b: [(b != 0, q == OPERATIONS["mul"](a, div(np.ones_like(b), b)))],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_rule_that_is_wrong_on_purpose_is_caught(name):
    operation, rule = WRONG[name]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        assert violations(rule, OPERATIONS[operation], *PAIRS) > 0


# ----------------------------------------------------------------------------- what the normal form takes for granted

SCALES = [Fraction(s) for s in ("1", "-1", "1/2", "-1/2", "2", "-2")]
NORMAL = NUMBERS[(np.abs(NUMBERS) >= 4 * SMALLEST_NORMAL) & (np.abs(NUMBERS) <= LARGEST / 4)]


def value(term, inputs):
    """A term computed in the format, operation by operation."""
    if not term.scale:
        return np.zeros(1)
    return float(term.scale) * body_value(term.body, inputs)


def body_value(body, inputs):
    if body.op == "one":
        return np.ones(1)
    if body.op == "input":
        return inputs[body.name]
    return OPERATIONS[body.op](*(value(x, inputs) for x in body.args))


def compared(term, operation, x, y, inputs):
    """Whether the normal form of an operation has the operation's own value wherever it is finite and normal."""
    plain = operation(value(x, inputs), value(y, inputs))
    ours = np.broadcast_to(value(term, inputs), plain.shape)
    exactly_0 = (plain == 0) if operation is OPERATIONS["add"] else np.zeros(1, bool)  # a product only underflows to 0
    regular = np.isfinite(plain) & np.isfinite(ours) & ((np.abs(plain) >= 4 * SMALLEST_NORMAL) | exactly_0)
    regular &= np.abs(ours) <= LARGEST / 4
    return np.array_equal(ours[regular], plain[regular]), int(regular.sum())


@pytest.mark.parametrize("form", [multiply, add, divide])
def test_the_normal_form_has_the_value_of_the_operation(form):
    operation = OPERATIONS[{multiply: "mul", add: "add", divide: "div"}[form]]
    grid = tuple(t.ravel() for t in np.meshgrid(NORMAL, NORMAL))
    inputs = {"x": grid[0], "y": grid[1]}
    tried = 0
    for s, t in itertools.product(SCALES, repeat=2):
        for left, right in (("x", "y"), ("y", "x"), ("x", "x")):
            x, y = named(left).times(s), named(right).times(t)
            same, count = compared(form(x, y), operation, x, y, inputs)
            assert same, f"{form.__name__}({x.key}, {y.key})"
            tried += count
    assert tried > 1_000_000


def test_the_normal_form_of_simple_numbers():
    x, y = named("x"), named("y")
    assert multiply(x, ONE) == x
    assert multiply(x, ZERO) == ZERO == multiply(ZERO, y)
    assert add(x, ZERO) == x
    assert add(x.times(Fraction(1, 2)), x.times(Fraction(1, 2))) == x
    assert add(x, x.times(Fraction(-1))) == ZERO
    assert add(x, x.times(Fraction(2))) != x.times(Fraction(3)), "3 x rounds"
    assert multiply(multiply(x, y), y) != multiply(x, multiply(y, y)), "products do not associate"
    assert divide(x, x) == ONE


def test_a_normal_form_that_is_wrong_on_purpose_is_caught():
    def associative(x, y):
        return multiply(x, y) if y.body.op != "mul" else multiply(multiply(x, y.body.args[0]), y.body.args[1])

    grid = {"x": NORMAL[:, None] + 0 * NORMAL, "y": NORMAL + 0 * NORMAL[:, None]}
    x, y = named("x"), named("y")
    inner = multiply(y, y)
    assert compared(multiply(x, inner), OPERATIONS["mul"], x, inner, grid)[0]
    assert not compared(associative(x, inner), OPERATIONS["mul"], x, inner, grid)[0]

    def three(x, y):
        return Term(x.scale + y.scale, x.body)

    double = x.times(Fraction(2))
    assert not compared(three(x, double), OPERATIONS["add"], x, double, grid)[0]


def test_half_of_a_subnormal_rounds_and_is_left_out():
    """Why a proof of bits names subnormal halves: b/2 + b/2 is not b there."""
    smallest = 2.0**-9
    assert fl(smallest / 2) + fl(smallest / 2) != smallest
    assert math.isclose(fl(3 * smallest / 2), 2 * smallest)
