"""Could two losses have trained differently where these runs went? What ``rlloss verify`` asks of an identical pair."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rlloss.check.measure import contrast, measure
from rlloss.check.probes import grid
from rlloss.check.regions import regions
from rlloss.errors import LossError
from rlloss.losses.formulation import resolve

ON_POLICY = 1e-4  # as near to 1 as this, a ratio is one of old and new log-probabilities from batches of two sizes
SIGNS = {"positive": 1, "negative": -1}
Reached = Mapping[str, tuple[float, float]]
"""The least and the greatest ratio of a pair's samples, for ``positive`` and for ``negative`` advantages."""


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


def put_to_the_test(a: str, b: str, clip_coef: float, reached: Reached) -> Power:
    """Whether runs whose ratios went this far could have told loss ``a`` from loss ``b``.

    - Losses that ``rlloss check`` finds different: if they differ at a ratio that was reached.
    - Losses that it finds the same, and that cut gradients: if they do so at a ratio that was reached; inside the
      clip's interval almost all losses are one.
    - Losses that it finds the same, and that never cut: if any ratio left 1.

    ``reached`` is a range: a difference in a narrow strip within it counts as reached though no sample may lie there.
    """
    try:
        known = _difference(a, b, clip_coef)
    except LossError as error:
        return Power(None, f"not known: {error}")
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
        return Power(False, "every ratio was 1")
    if 1 - clip_coef <= low and high <= 1 + clip_coef:
        return Power(False, f"no ratio left {1 - clip_coef:g} … {1 + clip_coef:g}")
    went = [f"{low:.3g} … {high:.3g} where A {'<>'[SIGNS[name] > 0]} 0" for name, (low, high) in reached.items()]
    return Power(False, "; ".join(filter(None, (needed, f"ratios stayed within {' and '.join(went)}"))))


def _off_policy(ratio: float) -> float:
    return 1.0 if abs(ratio - 1) < ON_POLICY else ratio


@functools.cache
def _difference(a: str, b: str, clip_coef: float) -> Difference:
    """Raises: LossError for a loss that is not there or cannot be measured, sequence losses among them."""
    f, g = resolve(a), resolve(b)
    if f.sequence or g.sequence:
        raise LossError("sequence losses have no grid of ratios and advantages")
    probe = grid(torch.float64, clip_coef)
    left, right = measure(f, probe, clip_coef), measure(g, probe, clip_coef)
    found = contrast(left, right)
    ratio, A = (x.double().numpy() for x in (probe.ratio, probe.advantages))
    cut = ((left.gradient == 0) | (right.gradient == 0)) & (A != 0) & (ratio > 0)
    where = "; ".join(regions(f, g, [found], clip_coef, bisect=False))
    return Difference(ratio, np.sign(A), found.real, cut, where)
