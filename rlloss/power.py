"""Could two losses have trained differently where these runs went? What ``rlloss verify`` asks of an identical pair.

Where the losses differ, ``rlloss.check.power`` finds out with torch, which takes longer to load than most runs take to
compare. So it is asked in a process of its own, while the runs are being read.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlloss.runs.provenance import loss_source

ON_POLICY = 1e-4  # as near to 1 as this, a ratio is one of old and new log-probabilities from batches of two sizes
SIGNS = {"positive": 1, "negative": -1}
Reached = Mapping[str, tuple[float, float]]
"""The least and the greatest ratio of a pair's samples, for ``positive`` and for ``negative`` advantages."""
Pair = tuple[str, str, float]
"""Two losses by name, and clip_coef."""


class Power(NamedTuple):
    """``tested``: whether the pair could have differed; None if that is not known. ``why`` it could not, or why not."""

    tested: bool | None
    why: str = ""


class Difference(NamedTuple):
    """Two losses on the grid of ratios and advantages: arrays of one length."""

    ratio: NDArray[np.float64]
    sign: NDArray[np.float64]  # of the advantage
    differs: NDArray[np.bool_]  # the gradients differ, by more than rounding and edges explain
    cut: NDArray[np.bool_]  # one of them is 0, though the advantage is not
    where: str  # the regions in which they differ
    unusual: bool  # whether they do so where the advantage is large alone


class Unknown(Exception):
    """Why it is not known where two losses differ."""


_found: dict[tuple[Any, ...], Difference | str] = {}  # in this process, of the sources as they were
_asked: dict[Pair, "subprocess.Popen[str]"] = {}  # in others


@contextmanager
def asked(pairs: Iterable[Pair]) -> Iterator[None]:
    """Within: ``difference`` has the answers from another process, at work at once. None, if torch is loaded here."""
    todo = sorted(pair for pair in set(pairs) if _with_sources(pair) not in _found)
    if not todo or "torch" in sys.modules:
        yield
        return
    command = [sys.executable, "-m", "rlloss.check.power", json.dumps(todo)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        _asked.update(dict.fromkeys(todo, process))
        try:
            yield
        finally:
            process.kill()
            _asked.clear()


def difference(pair: Pair) -> Difference:
    """Raises: Unknown for losses that cannot be compared, or where torch is not installed."""
    if pair in _asked:
        process = _asked[pair]
        answers = process.communicate()[0]
        if process.returncode == 0:
            _found.update(zip(map(_with_sources, _asked), map(_read, json.loads(answers)), strict=True))
        _asked.clear()
    key = _with_sources(pair)
    if key not in _found:
        try:
            from rlloss.check.power import find  # here, since it needs torch
        except ImportError as error:
            raise Unknown(str(error)) from error
        _found[key] = _read(find(*pair))
    found = _found[key]
    if isinstance(found, str):
        raise Unknown(found)
    return found


def _with_sources(pair: Pair) -> tuple[Any, ...]:
    """A pair, and what its losses' names stand for now: a file may be edited within the life of a process."""
    return (*pair, *map(loss_source, pair[:2]))


def _read(found: Mapping[str, Any] | str) -> Difference | str:
    if isinstance(found, str):
        return found
    ratio, sign, differs, cut = (np.array(found[name]) for name in ("ratio", "sign", "differs", "cut"))
    return Difference(ratio, sign, differs, cut, found["where"], found["unusual"])


def put_to_the_test(a: str, b: str, clip_coef: float, reached: Reached) -> Power:
    """Whether runs whose ratios went this far could have told loss ``a`` from loss ``b``.

    - Losses that ``rlloss check`` finds different: if they differ at a ratio that was reached.
    - Losses that it finds the same, and that cut gradients: if they do so at a ratio that was reached; inside the
      clip's interval almost all losses are one.
    - Losses that it finds the same, and that never cut: if any ratio left 1.

    ``reached`` is a range: a difference in a narrow strip within it counts as reached though no sample may lie there.
    """
    try:
        known = difference((a, b, clip_coef))
    except Unknown as error:
        return Power(None, f"not known: {error}")
    if known.unusual:
        return Power(None, "not known: the losses differ at large |A| alone, and how large it was is not recorded")
    there = np.zeros(len(known.ratio), bool)
    reached = {name: (_off_policy(low), _off_policy(high)) for name, (low, high) in reached.items()}
    for name, sign in SIGNS.items():
        low, high = reached[name]
        there |= (known.sign == sign) & (low <= known.ratio) & (known.ratio <= high)
    if known.differs.any():
        tested, needed = (known.differs & there).any(), f"the losses differ at {known.where} alone"
    elif known.cut.any():
        tested, needed = (known.cut & there).any(), ""
    else:
        tested, needed = (there & (known.ratio != 1)).any(), ""
    if tested:
        return Power(True)
    low, high = min(low for low, _ in reached.values()), max(high for _, high in reached.values())
    if low == high == 1:
        return Power(False, f"no ratio was further from 1 than {ON_POLICY:g}")
    if 1 - clip_coef <= low and high <= 1 + clip_coef:
        return Power(False, f"no ratio left {1 - clip_coef:g} … {1 + clip_coef:g}")
    went = [f"{low:.3g} … {high:.3g} where A {'<>'[SIGNS[name] > 0]} 0" for name, (low, high) in reached.items()]
    return Power(False, "; ".join(filter(None, (needed, f"ratios stayed within {' and '.join(went)}"))))


def _off_policy(ratio: float) -> float:
    return 1.0 if abs(ratio - 1) < ON_POLICY else ratio
