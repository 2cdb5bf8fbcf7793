"""What is rounding and what is not is decided in exact arithmetic, for products and sums that were made up."""

import random

import pytest
import torch

from rlloss.bisect.exact import same_exactly
from rlloss.watch.tape import Tape

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
GIVEN = 5


def heard(formula, numbers):
    """The tape of a formula, and what it makes."""
    tape = Tape()
    with tape:
        result = formula(*numbers)
    return tape, tape.entries[-1].outputs[0], result


def numbers(dtype, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(64, generator=generator).add(0.5).to(dtype) for _ in range(GIVEN)]


def asked(dtype, one, other, seed=1):
    (a, x, made), (b, y, also) = (heard(formula, numbers(dtype, seed)) for formula in (one, other))
    return same_exactly(a, b, x, y)[0], torch.equal(made, also)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(5))
def test_one_product_in_any_order_is_the_same(dtype, seed):
    shuffled = list(range(GIVEN))
    random.Random(seed).shuffle(shuffled)

    def other(*values):
        product = values[shuffled[0]]
        for place in shuffled[1:]:
            product = product * values[place]
        return -product / 2 + -product / 2

    same, equal = asked(dtype, lambda a, b, c, d, e: -(a * b) * (c * (d * e)), other, seed)
    assert same
    assert not equal or shuffled == sorted(shuffled)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda a, b, c, d, e: (a + b) * c, lambda a, b, c, d, e: a * c + b * c),
        (lambda a, b, c, d, e: torch.exp(a - b), lambda a, b, c, d, e: torch.exp(a) / torch.exp(b)),
        (lambda a, b, c, d, e: torch.where(a < b, a, b) * c, lambda a, b, c, d, e: torch.minimum(a, b) * c),
        (lambda a, b, c, d, e: (a - b).square(), lambda a, b, c, d, e: a * a - 2 * a * b + b * b),
    ],
)
def test_one_function_in_two_forms_is_the_same(dtype, one, other):
    assert asked(dtype, one, other)[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_ulp_in_a_factor_and_a_small_coefficient_or_term_are_no_rounding(dtype):
    plain = lambda a, b, c, d, e: (a * b) * c  # noqa: E731
    eps = torch.finfo(dtype).eps
    for other in (
        lambda a, b, c, d, e: a * (b * torch.nextafter(c, 2 * c)),
        lambda a, b, c, d, e: a * (b * (c * (1 + 2 * eps))),
        lambda a, b, c, d, e: a * (b * c) + 2 * eps * d,
    ):
        assert asked(dtype, plain, other)[0] is False


def test_what_no_formula_says_is_not_decided_unless_both_have_it():
    plain = lambda a, b, c, d, e: torch.cumsum(a, 0) * (b * c)  # noqa: E731
    assert asked(torch.float32, plain, lambda a, b, c, d, e: (torch.cumsum(a, 0) * b) * c)[0]
    assert asked(torch.float32, plain, lambda a, b, c, d, e: (torch.cumsum(2 * a, 0) / 2 * b) * c)[0]
    assert asked(torch.float32, plain, lambda a, b, c, d, e: (torch.cumsum(1.5 * a, 0) / 1.5 * b) * c)[0] is None


def test_numbers_of_fewer_digits_are_said():
    def asked_at(scale):
        made = [x / scale for x in numbers(torch.float16)]
        a, x, _ = heard(lambda a, *rest: a * 0.7, made)
        b, y, _ = heard(lambda a, *rest: a / 2 * 0.7 + a / 2 * 0.7, made)
        return same_exactly(a, b, x, y)

    assert asked_at(2**14) == (True, True)
    assert asked_at(2**8) == (True, False)


def test_zeros_that_two_operations_make_decide_nothing():
    a, x, _ = heard(lambda a, b, *rest: (a - a) * b, numbers(torch.float32))
    b, y, _ = heard(lambda a, b, *rest: (b - b) * 2 * a, numbers(torch.float32))
    assert same_exactly(a, b, x, y)[0]
