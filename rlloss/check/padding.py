"""Does what lies under the mask reach the gradient? Numbers that no token has are put there, one kind after another."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from rlloss.check.measure import Array, measure
from rlloss.check.probes import Probe, random_sequences
from rlloss.check.result import Padding
from rlloss.errors import LossError
from rlloss.losses.formulation import Formulation

UNDER = (  # logp and old_logp of a padded token
    ("a ratio that overflows", -1.0, -801.0),
    ("-inf", -torch.inf, -torch.inf),
    ("nan", torch.nan, torch.nan),
    ("-1e10", -1e10, -1e10),
    ("other numbers", -3.0, -2.0),
)
CLOSE = 1e-12  # relative: what a number under the mask may move others by, added to them and multiplied by 0


@dataclass(frozen=True)
class Batch:
    """A batch with numbers under its mask that harm nobody."""

    name: str
    probe: Probe

    def with_under(self, logp: float, old_logp: float) -> Probe:
        p, mask = self.probe, self.probe.mask
        assert mask is not None
        return replace(p, logp=p.logp.where(mask, logp), old_logp=p.old_logp.where(mask, old_logp))


def batches() -> Iterator[Batch]:
    for on_policy in (True, False):
        spread = 0.0 if on_policy else 0.3
        probe = random_sequences((3, 6), torch.float64, torch.Generator().manual_seed(5), spread, ragged=True)
        assert probe.mask is not None
        yield Batch("padding at the end", probe)
        holes = probe.mask.clone()
        holes[:, 1] = False
        holes[1, 0] = False
        yield Batch("holes and a late start", replace(probe, mask=holes))


def reaches(loss: Formulation, clip_coef: float) -> dict[str, tuple[float, float]]:
    """What under the mask changes a gradient, and from what to what, at the first element that changes.

    A gradient changes if it is not within rounding of what it was, or if one under the mask is not 0 any more.
    """
    found: dict[str, tuple[float, float]] = {}
    for batch in batches():
        try:
            before = measure(loss, batch.probe, clip_coef).gradient
        except LossError:
            continue
        for name, logp, old_logp in UNDER:
            if name not in found and (change := _change(loss, batch.with_under(logp, old_logp), before, clip_coef)):
                found[name] = change
    return found


def _change(loss: Formulation, probe: Probe, before: Array, clip_coef: float) -> tuple[float, float] | None:
    try:
        after = measure(loss, probe, clip_coef).gradient
    except LossError:
        return None
    with np.errstate(invalid="ignore"):
        changed = ~(np.abs(after - before) <= CLOSE * np.maximum(1.0, np.abs(before)))
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
        for name, logp, old_logp in UNDER
        if (name in left) != (name in right)
    )
