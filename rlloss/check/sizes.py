"""How large a difference is: relative to the gradient, in its direction, and by which factor if it has one."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rlloss.check.measure import Array, Contrast, Measurement, array, mixes, telling
from rlloss.check.probes import Probe
from rlloss.check.result import Size

ORDINARY = 48  # numbers of a batch, of which less say little of another's
CANCELLED = 1e3  # times the gradient: terms beyond have cancelled, and their rest has no ratio worth the name
TOLERANCE = 1e3  # in units of the dtype's rounding


def size(a: Sequence[Measurement], b: Sequence[Measurement], contrasts: Sequence[Contrast]) -> Size | None:
    """On the batch in which most samples differ, of an ordinary size if there is any; None if nothing differs.

    Where no ordinary batch differs, of the samples that do: others, as of a huge ratio, would hide them.
    """
    real = [i for i in telling(contrasts) if np.isfinite(a[i].gradient).all()]
    real = [i for i in real if np.isfinite(b[i].gradient).all() and a[i].gradient.any()]
    if not real:
        return None

    def usual(i: int) -> tuple[bool, bool, bool, float]:
        p, share = contrasts[i].probe, float(contrasts[i].real.mean())
        return p.ordinary, p.ordinary and p.logp.numel() >= ORDINARY, not p.grid and not p.extreme, share

    i = max(real, key=usual)
    ordinary = contrasts[i].probe.ordinary
    chosen = slice(None) if ordinary else contrasts[i].real
    x, y = a[i].gradient[chosen], b[i].gradient[chosen]
    scale = max(np.abs(x).max(initial=0), np.abs(y).max(initial=0)) or 1.0  # or else tiny ones have squares of 0
    x, y = x / scale, y / scale
    norms = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    cosine = float(x @ y) / (norms[0] * norms[1]) if all(norms) else math.nan
    largest = max(float(contrasts[i].size.max()) for i in real)
    return Size(float(np.linalg.norm(y - x)) / (norms[0] or norms[1]), cosine, ordinary, largest)


# The names of what a gradient may be multiplied by, from the plainest on, each as a number per element of a probe.


def _tokens(probe: Probe) -> Array:
    """How many tokens the answer of each token has."""
    assert probe.mask is not None
    lengths = probe.mask.sum(1, keepdim=True).expand_as(probe.mask)
    return array(lengths)


SAMPLES: Mapping[str, Callable[[Probe], Array | float]] = {
    "": lambda p: 1.0,
    "N": lambda p: p.logp.numel(),
    "1 / N": lambda p: 1 / p.logp.numel(),
    "N / (N - 1)": lambda p: p.logp.numel() / max(p.logp.numel() - 1, 1),
    "(N - 1) / N": lambda p: (p.logp.numel() - 1) / p.logp.numel(),
}
"""Of samples: N of them in a batch."""
ANSWERS: Mapping[str, Callable[[Probe], Array | float]] = {
    "": lambda p: 1.0,
    "|o_i|": _tokens,
    "1 / |o_i|": lambda p: 1 / np.maximum(_tokens(p), 1),
    "T": lambda p: p.logp.shape[1],
    "1 / T": lambda p: 1 / p.logp.shape[1],
    "|o_i| / T": lambda p: _tokens(p) / p.logp.shape[1],
    "T / |o_i|": lambda p: p.logp.shape[1] / np.maximum(_tokens(p), 1),
    "N": lambda p: len(p.logp),
    "1 / N": lambda p: 1 / len(p.logp),
    "N / (N - 1)": lambda p: len(p.logp) / max(len(p.logp) - 1, 1),
    "(N - 1) / N": lambda p: (len(p.logp) - 1) / len(p.logp),
    "S": lambda p: max(int(_mask(p).sum()), 1),
    "1 / S": lambda p: 1 / max(int(_mask(p).sum()), 1),
    "S / N": lambda p: max(int(_mask(p).sum()), 1) / len(p.logp),
    "N / S": lambda p: len(p.logp) / max(int(_mask(p).sum()), 1),
    "N |o_i| / S": lambda p: len(p.logp) * _tokens(p) / max(int(_mask(p).sum()), 1),
    "S / (N |o_i|)": lambda p: max(int(_mask(p).sum()), 1) / (len(p.logp) * np.maximum(_tokens(p), 1)),
    "S / (N T)": lambda p: max(int(_mask(p).sum()), 1) / p.logp.numel(),
    "N T / S": lambda p: p.logp.numel() / max(int(_mask(p).sum()), 1),
    "N T": lambda p: p.logp.numel(),
    "1 / (N T)": lambda p: 1 / p.logp.numel(),
}
"""Of N answers of |o_i| tokens each, S in all, padded to T."""
MEANING = {"|o_i|": "its answer's number of tokens", "T": "the width of the batch", "S": "all tokens of the batch"}


def _mask(probe: Probe) -> torch.Tensor:
    assert probe.mask is not None
    return probe.mask


class Multiple(NamedTuple):
    """y / x at the places of a probe where a gradient is not 0, and the sign of A there."""

    probe: Probe
    values: Array
    place: NDArray[np.intp]
    sign: Array

    def over(self, of: Array | float) -> Array:
        """The values divided by something that a probe has once, or once for each of its elements."""
        flat = np.asarray(of, dtype=np.float64)
        divided: Array = self.values / (flat.ravel()[self.place] if flat.ndim else float(flat))
        return divided


def factor(a: Sequence[Measurement], b: Sequence[Measurement], contrasts: Sequence[Contrast]) -> str | None:
    """What b's gradient is a's times, if that is one expression everywhere, or one per sign of A; else None."""
    if not any(c.real.any() for c in contrasts):
        return None
    dtype = contrasts[0].probe.dtype
    tolerance = TOLERANCE * torch.finfo(dtype).eps
    multiples = [
        _multiple(x, y, c)
        for x, y, c in zip(a, b, contrasts, strict=True)
        if c.probe.dtype == dtype and not c.probe.extreme and len(c.probe.logp) > 1
    ]
    if not any(m.values.size for m in multiples):
        return None
    names = ANSWERS if contrasts[0].probe.mask is not None else SAMPLES
    for name, of in names.items():
        number = _one_number(np.concatenate([m.over(of(m.probe)) for m in multiples]), tolerance)
        if number is not None:
            return _written(number, name, tolerance)
    values, signs = (np.concatenate(column) for column in zip(*((m.values, m.sign) for m in multiples), strict=True))
    return _per_sign(values, signs, tolerance)


def _multiple(a: Measurement, b: Measurement, c: Contrast) -> Multiple:
    x, y = a.gradient, b.gradient
    moving = np.isfinite(x) & np.isfinite(y) & ((x != 0) | (y != 0)) & ~c.edge & ~c.subnormal
    if moving.any():
        terms = np.fmax(a.terms, a.data_terms) if mixes(a.loss, a.clip_coef) else a.terms
        moving &= terms < CANCELLED * np.abs(x)
    place = np.flatnonzero(moving)
    return Multiple(c.probe, y[place] / x[place], place, np.sign(array(c.probe.sample_advantages))[place])


def _one_number(scaled: Array, tolerance: float) -> float | None:
    return float(np.median(scaled)) if np.ptp(scaled) <= tolerance * np.abs(scaled).max() else None


def _written(number: float, name: str, tolerance: float) -> str | None:
    one = abs(number - 1) <= tolerance
    if not name:
        return None if one else told(number)  # where they differ, a multiple does not explain it
    meaning = next((f", {text}" for key, text in MEANING.items() if key == name), "")
    return f"{name}{meaning}" if one else f"{told(number)} × {name}"


def told(number: float) -> str:
    """As many digits as tell it from 1, six at least."""
    return next((text for d in range(6, 17) if float(text := f"{number:.{d}g}") != 1 or number == 1), f"{number!r}")


def _per_sign(multiples: Array, signs: Array, tolerance: float) -> str | None:
    numbers = {}
    for sign, name in ((1, "A > 0"), (-1, "A < 0")):
        mine = multiples[signs == sign]
        number = _one_number(mine, tolerance) if mine.size else None
        if number is None:
            return None
        numbers[name] = number
    return ", ".join(f"{told(number)} where {name}" for name, number in numbers.items())
