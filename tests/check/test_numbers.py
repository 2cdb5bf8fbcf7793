"""The numbers that a loss is written with, wherever they stand."""

import functools

from rlloss.check.numbers import between, numbers_of, ratio_bounds

LIMIT = 7.5


class Settings:
    cap = 3.25


CONFIG = {"floor": 0.125}


def helper(x, most=19):
    return min(x, most)


def loss(x, *, clip_coef=0.3):
    """A docstring of 99 is no number."""
    inner = lambda y: y * 1.75  # noqa: E731
    return helper(x) + LIMIT + Settings.cap + CONFIG["floor"] + inner(x) + (1 - clip_coef)


class Callable:
    def __init__(self):
        self.bound = 11.5

    def __call__(self, x):
        return x + self.bound + 2.5


def test_constants_defaults_globals_helpers_classes_and_closures():
    assert {19, 0.3, 7.5, 3.25, 0.125, 1.75, 1} <= set(numbers_of(loss))
    assert 99 not in numbers_of(loss)

    def made(bound):
        return lambda x: x + bound

    assert 6.5 in numbers_of(made(6.5))
    assert {5.5, 19} <= set(numbers_of(functools.partial(helper, most=5.5)))
    assert {11.5, 2.5} <= set(numbers_of(Callable()))


def test_bounds_lie_where_numbers_can_put_them():
    bounds = ratio_bounds([1.28, 0.05], 0.2)
    for expected in (0.8, 1.2, 1.28, 1.05, 0.95, 1.2 * 1.28, 1.25, 1.2 * 0.05):
        assert any(abs(b - expected) < 1e-9 for b in bounds), expected
    assert between([1.0, 2.0, 4.0]) == [1.0, 1.5, 2.0, 3.0, 4.0]
    assert ratio_bounds([], 0.2) == [0.8, 1.2]
