"""The numbers that a loss is written with: its own bounds, thresholds and lengths, at which it is then tried.

They are read from the function's code, and that of the helpers and constants it names. So they are found in a loss
that no graph can hold, too.
"""

import argparse
import functools
import inspect
import itertools
import math
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

MOST = 40  # numbers of one loss; more are a table, and no bounds
DEPTH = 3  # helpers of helpers
LARGEST_GROUP = 64  # answers
MANY = 65_536  # samples: of the largest batch that is tried
LIBRARIES = ("torch", "numpy", *sys.stdlib_module_names)  # whose constants are no bounds of a loss
HOLDERS = (dict, list, tuple, torch.Tensor, np.generic, types.SimpleNamespace, argparse.Namespace)  # theirs, of numbers


def numbers_of(*functions: Callable[..., Any]) -> tuple[float, ...]:
    """All numbers other than 0 in these functions' code, in order; ``MOST`` of each function at most."""
    found: set[float] = set()
    for function in functions:
        mine: dict[float, None] = {}
        for x in _numbers(function, DEPTH, set()):
            if math.isfinite(x) and x != 0 and len(mine) < MOST:
                mine[float(x)] = None
        found |= set(mine)
    return tuple(sorted(found))


def counts(numbers: Sequence[float], most: int, products_of: int = 8) -> set[int]:
    """Numbers that may count samples or tokens, and their neighbours: a loss may change there, as in ``x[:100]``.

    And products of two, as of answers of 4 times 1024 tokens: so many of the smallest, and as many of the largest. And
    sums of two, as of 24 samples and 16 others.
    """
    whole = sorted({int(abs(x)) for x in numbers if float(x).is_integer() and 1 < abs(x) <= most})
    products = sorted({n for n in _products(whole) if n <= most} - set(whole))
    sums = sorted({x + y for x, y in itertools.combinations(whole, 2)} - {*whole, *products})
    few = {*products[:products_of], *products[-products_of:], *sums[:products_of], *sums[-products_of:]}
    few = {n for n in few if n <= most}
    return {n + by for n in (*whole, *few) if n > 3 for by in (-1, 0, 1)}


def sample_counts(numbers: Sequence[float]) -> set[int]:
    """The same of samples, of which a small batch takes no time."""
    return counts(numbers, MANY, products_of=100)


def _products(whole: Sequence[int]) -> set[int]:
    return {x * y for x, y in itertools.combinations_with_replacement(whole, 2)}


def untried_numbers(*functions: Callable[..., Any]) -> tuple[int, ...]:
    """Whole numbers in these functions' code, and products of two, that may count samples, and are not tried."""
    found = {x for function in functions for x in _numbers(function, DEPTH, set())}
    whole = {int(x) for x in found if 1 < x < math.inf and float(x).is_integer()}
    few = sorted(x for x in whole if x <= MANY)[-MOST:]
    made = _products(few) | {x + y for x, y in itertools.combinations(few, 2)}
    tried = sample_counts(numbers_of(*functions))
    return tuple(sorted(n for n in whole | made if n > 3 and n not in tried))


def group_sizes(numbers: Sequence[float]) -> list[int]:
    """Numbers that may count the answers of a group, of which the usual batches do not hold two."""
    return sorted({int(x) for x in numbers if float(x).is_integer() and 4 < x <= LARGEST_GROUP})


def _numbers(thing: Any, depth: int, seen: set[int]) -> Iterator[float]:
    if isinstance(thing, bool) or depth < 0 or id(thing) in seen:
        return
    if isinstance(thing, int | float):
        yield thing
        return
    if isinstance(thing, np.integer | np.floating):
        yield thing.item()
        return
    if isinstance(thing, torch.Tensor):
        yield from thing.detach().flatten().tolist() if thing.numel() <= MOST and not thing.is_complex() else ()
        return
    seen.add(id(thing))
    if isinstance(thing, functools.partial):
        for inner in (thing.func, *thing.args, *thing.keywords.values()):
            yield from _numbers(inner, depth, seen)
    elif isinstance(thing, tuple | list | frozenset | dict):
        for inner in thing.values() if isinstance(thing, dict) else thing:
            yield from _numbers(inner, 0 if isinstance(thing, dict) else depth, seen)
    elif inspect.isclass(thing):  # a class of constants
        for inner in vars(thing).values():
            if isinstance(inner, int | float):
                yield from _numbers(inner, 0, seen)
    elif isinstance(thing, types.MethodType) and not inspect.isclass(thing.__self__):
        yield from _in_object(thing.__self__, depth, seen, thing.__name__)
    elif isinstance(thing, types.FunctionType | types.MethodType):
        yield from _in_function(thing, depth, seen)
        if hasattr(thing, "__wrapped__"):
            yield from _numbers(thing.__wrapped__, depth, seen)
    elif not isinstance(thing, types.ModuleType) and hasattr(thing, "__dict__"):
        yield from _in_object(thing, depth, seen)


def _in_function(function: Any, depth: int, seen: set[int]) -> Iterator[float]:
    if not hasattr(function, "__code__") or (function.__module__ or "").split(".")[0] == "torch":
        return
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield from _numbers(default, 0, seen)
    for cell in function.__closure__ or ():
        try:
            yield from _numbers(cell.cell_contents, depth - 1, seen)
        except ValueError:  # not assigned yet
            continue
    yield from _in_code(function.__code__, function.__globals__, depth, seen)


def _in_code(code: types.CodeType, names: dict[str, Any], depth: int, seen: set[int]) -> Iterator[float]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _in_code(constant, names, depth, seen)
        else:
            yield from _numbers(constant, 0, seen)
    for name in code.co_names:
        if not isinstance(thing := names.get(name), types.ModuleType):
            yield from _numbers(thing, depth - 1, seen)
        elif thing.__name__.partition(".")[0] not in LIBRARIES:
            for attribute in code.co_names:  # a module of constants, as a configuration
                yield from _numbers(vars(thing).get(attribute), depth - 1, seen)


def _in_object(thing: Any, depth: int, seen: set[int], *methods: str) -> Iterator[float]:
    """A callable object, or one whose method is: what it was configured with, and what its call and the methods it
    calls are written with.
    """
    for value in getattr(thing, "__dict__", {}).values():
        if isinstance(value, int | float):
            yield from _numbers(value, 0, seen)
        elif isinstance(value, HOLDERS) or type(value).__module__.partition(".")[0] not in LIBRARIES:
            yield from _numbers(value, depth - 1, seen)
    todo, kind = [*methods] or ["forward", "__call__"], type(thing)
    for name in todo:
        method = getattr(kind, name, None)
        if isinstance(method, types.FunctionType):
            todo += [other for other in method.__code__.co_names if other not in todo and hasattr(kind, other)]
            yield from _in_function(method, depth, seen)


def ratio_bounds(numbers: Sequence[float], clip_coef: float) -> list[float]:
    """Ratios at which a loss with these numbers may bend, ascending: the numbers, 1 beside them, their exponentials."""
    near = [1 - clip_coef, 1 + clip_coef]
    for x in numbers:
        size = min(abs(x), 20.0)  # beyond which an exponential is no ratio; -1e9 is what masks are filled with
        near += [abs(x), 1 + x, 1 - x, math.exp(size), math.exp(-size)]
        near += [b * abs(x) for b in (1 - clip_coef, 1 + clip_coef)] + [1 + clip_coef * x, 1 - clip_coef * x]
        near += [1 + clip_coef + x, 1 - clip_coef - x]
    # Bounds nearer to one another than a rounding are one.
    return sorted({round(x, 12) for x in near if 1e-9 < x < 1e9})


def between(bounds: Sequence[float]) -> list[float]:
    """The bounds, and numbers between each and the next."""
    middles = [(a + b) / 2 for a, b in itertools.pairwise(bounds)]
    return sorted({*bounds, *middles})
