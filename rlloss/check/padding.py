"""Does what lies under the mask reach the gradient? Numbers that no token has are put there, one kind after another."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from rlloss.check.measure import Array, measure
from rlloss.check.probes import Probe, random_sequences
from rlloss.check.result import Padding
from rlloss.errors import LossError
from rlloss.losses.formulation import Formulation

UNDER_MASK = {  # what lies under the mask: (logp, old_logp)
    "other numbers": (-0.3, -1.7),
    "a ratio that overflows (logp -1, old_logp -801)": (-1.0, -801.0),
    "-1e10": (-1e10, -1e10),
    "-1e10 in logp alone": (-1e10, -1.0),
    "-inf": (-math.inf, -math.inf),
    "nan": (math.nan, math.nan),
}
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-4}
"""Relative: what a number under the mask may move others by, added to them and multiplied by 0."""


def under_mask(probe: Probe, logp: float, old_logp: float) -> Probe:
    """A batch with these numbers wherever no token counts."""
    assert probe.mask is not None
    return replace(probe, logp=probe.logp.where(probe.mask, logp), old_logp=probe.old_logp.where(probe.mask, old_logp))


def batches(dtype: torch.dtype) -> Iterator[Probe]:
    """Batches with padding at their end, and with holes and a late start; what lies there is harmless."""
    for spread in (0.0, 0.3):
        probe = random_sequences((3, 6), dtype, torch.Generator().manual_seed(5), spread, ragged=True)
        assert probe.mask is not None
        yield probe
        holes = probe.mask.clone()
        holes[:, 1] = False
        holes[1, 0] = False
        empty = ~holes.any(1)  # an answer of nothing is another question: some losses divide by its length
        holes[empty] = probe.mask[empty]
        yield replace(probe, mask=holes)


def reaches(loss: Formulation, clip_coef: float) -> dict[str, tuple[float, float]]:
    """What under the mask changes a gradient, and from what to what, at the first element that changes.

    A gradient changes if it is not within rounding of what it was, or if one under the mask is not 0 any more.
    """
    found: dict[str, tuple[float, float]] = {}
    for batch in (*batches(torch.float64), *batches(torch.float32)):  # some take no float64
        try:
            before = measure(loss, batch, clip_coef).gradient
        except LossError:
            continue
        for name, numbers in UNDER_MASK.items():
            if name not in found and (change := _change(loss, under_mask(batch, *numbers), before, clip_coef)):
                found[name] = change
    return found


def _change(loss: Formulation, probe: Probe, before: Array, clip_coef: float) -> tuple[float, float] | None:
    try:
        after = measure(loss, probe, clip_coef).gradient
    except LossError:
        return None
    with np.errstate(invalid="ignore"):
        changed = ~(np.abs(after - before) <= CLOSE[probe.dtype] * np.maximum(1.0, np.abs(before)))
    changed &= np.isfinite(before)  # or it is not the padding's doing
    if not changed.any():
        return None
    i = int(changed.argmax())
    return float(before[i]), float(after[i])


def compare_padding(f: Formulation, g: Formulation, clip_coef: float) -> tuple[Padding, ...]:
    """Under which numbers below the mask the gradients of two sequence losses part; nothing for losses of samples."""
    if not f.sequence:
        return ()
    left, right = reaches(f, clip_coef), reaches(g, clip_coef)
    return tuple(
        Padding(name, logp, old_logp, left.get(name), right.get(name))
        for name, (logp, old_logp) in UNDER_MASK.items()
        if (name in left) != (name in right)
    )
