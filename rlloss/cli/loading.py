"""How a command loads what it needs."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from rlloss.train.numerics import is_own


@contextmanager
def unswept() -> Iterator[None]:
    """Within, a command loads modules, whose objects stay: looking for garbage among them takes time, now and later.

    In somebody else's process nothing is changed.
    """
    if not is_own():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
