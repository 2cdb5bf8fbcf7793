"""The smallest example on which two gradients differ: Hypothesis searches for it."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, find, settings, strategies as st
from hypothesis.errors import NoSuchExample
from numpy.typing import NDArray

from rlloss.check.measure import USUAL, Array, Contrast, Margin, array, contrast, measure
from rlloss.check.probes import Probe, at_ratio, bounds, ulps_from
from rlloss.check.result import Example
from rlloss.errors import LossError
from rlloss.losses.formulation import Formulation, dtype_name


class AtBound(NamedTuple):
    """The ratio that lies ``ulps`` beside a bound, in whichever dtype."""

    side: int  # -1: the lower bound, 1: the upper
    ulps: int


# Simplest first: Hypothesis shrinks towards the beginning of a list.
RATIOS: tuple[float | AtBound, ...] = (
    2.0, 0.5, 4.0, 0.25, 1.0, 1.1, 0.9, 1.5, 0.7, 10.0, 0.1, 1.25, 0.75, 1.21, 0.79, 1.201, 0.799,
    *(AtBound(side, ulps) for ulps in (1, -1, 0, 2, -2) for side in (1, -1)),
    *(round(math.exp(x / 8), 4) for x in range(-24, 25) if x % 8),
)  # fmt: skip
SEQUENCE_RATIOS = (1.0, *RATIOS)  # how sequences are averaged shows on-policy already
# In 64ths, so that copies of one add up exactly: what is left of a reward that is its group's mean is rounding alone.
ADVANTAGES = (
    1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 0.0, 0.25, -0.25, 1.75, -1.75, 10.0, -10.0,
    *(sign * i / 64 for i in range(5, 155, 3) for sign in (1, -1)),
)  # fmt: skip
TOPS = (-2.0, -1.0, -0.5, -3.0)
COPIES = (1, 2, 3, 4, 5, 7, 10, 100)
LENGTHS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 2), (3, 5), (1, 1, 2))

BESIDE = 1e-4  # nearer to a clip bound than this, six digits do not show on which side of it a ratio lies

SETTINGS = settings(
    max_examples=150,
    database=None,
    derandomize=True,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


class Sample(NamedTuple):
    """What Hypothesis draws: ``n`` copies of one sample, or two or three sequences of given lengths."""

    dtype: torch.dtype
    n: int
    ratio: float | AtBound
    advantage: float
    top: float  # the greater of logp and old_logp, unless the ratio must be reached exactly
    lengths: tuple[int, ...] = ()

    def probe(self, clip_coef: float) -> Probe:
        if isinstance(self.ratio, AtBound):
            edge = bounds(self.dtype, clip_coef)[self.ratio.side > 0]
            logp, old_logp = at_ratio(ulps_from(edge, self.ratio.ulps).reshape(1))
        else:
            pair = torch.tensor([[self.top], [self.top - abs(math.log(self.ratio))]], dtype=torch.float64).to(
                self.dtype
            )
            logp, old_logp = pair if self.ratio > 1 else pair.flip(0)
        A = torch.tensor([self.advantage], dtype=torch.float64).to(self.dtype)
        on_policy = bool(logp == old_logp)
        if not self.lengths:
            return Probe("example", on_policy, logp.repeat(self.n), old_logp.repeat(self.n), A.repeat(self.n))
        shape = (len(self.lengths), max(self.lengths) + 1)  # one column that no sequence uses
        mask = torch.arange(shape[1]) < torch.tensor(self.lengths).unsqueeze(1)
        moved = torch.where(torch.arange(shape[1]) == 0, logp, old_logp)  # each first token has the ratio
        return Probe("example", on_policy, moved.repeat(shape[0], 1), old_logp.expand(shape), A.repeat(shape[0]), mask)


def search(
    f: Formulation, g: Formulation, clip_coef: float, dtypes: Sequence[torch.dtype], contrasts: Sequence[Contrast]
) -> Contrast | None:
    """The smallest difference: a real one if there is any, else one of rounding. None if none is found.

    Looks even where the probes found nothing, so that a verdict of IDENTICAL has survived the search as well. Where it
    finds nothing but the probes did, one of their samples stands in.
    """

    def contrasted(sample: Sample) -> Contrast:
        probe = sample.probe(clip_coef)
        return contrast(measure(f, probe, clip_coef), measure(g, probe, clip_coef))

    def differs(sample: Sample) -> bool:
        with suppress(LossError):  # of a batch of a size that one does not take
            return contrasted(sample).unequal
        return False

    def differs_really(sample: Sample) -> bool:
        with suppress(LossError):
            return bool(contrasted(sample).real.any())
        return False

    samples = draw(dtypes, sequence=f.sequence)
    found = None
    known = any(c.real.any() for c in contrasts)
    for holds in (differs_really,) if known else (differs, differs_really):
        try:
            found = contrasted(simplify(find(samples, holds, settings=SETTINGS), holds))
        except NoSuchExample:
            break
    return found or alone(f, g, clip_coef, [c for c in contrasts if c.real.any() or (c.unequal and not known)])


def alone(
    f: Formulation, g: Formulation, clip_coef: float, contrasts: Sequence[Contrast], margin: Margin = USUAL
) -> Contrast | None:
    """The plainest sample, token or answer of any probe, by itself; the smallest batch if none differs so."""
    known = any(c.real.any() for c in contrasts)
    found: list[tuple[tuple[float, ...], Contrast]] = []
    for c in contrasts:
        for single in smaller(c.probe, plainest(c)):
            try:
                result = contrast(measure(f, single, clip_coef), measure(g, single, clip_coef), margin)
            except LossError:  # as above
                continue
            if result.real.any() or (result.unequal and not known):
                i = plainest(result)
                found.append(((single.logp.numel(), *(float(column[i]) for column in _plainness(result))), result))
                break
    if found:
        return min(found, key=lambda entry: entry[0])[1]
    usual = [c for c in contrasts if not c.probe.extreme] or contrasts  # a ratio of inf says little
    return min(usual, key=lambda c: c.probe.logp.numel(), default=None)


def plainest(c: Contrast) -> int:
    """The element that really differs and is the plainest; if none does, that which differs most."""
    real = np.flatnonzero(c.real)
    return int(real[np.lexsort([column[real] for column in _plainness(c)[::-1]])[0]]) if len(real) else worst(c)


def _plainness(c: Contrast) -> tuple[Array, ...]:
    """What makes an element of an example plain, first things first: it is no neighbour of a clip bound, its numbers
    take few digits, it is not far from ratio 1 and A = 1."""
    ratio, A, logp = (array(x) for x in (c.probe.ratio, c.probe.sample_advantages, c.probe.logp))
    beside = np.minimum(np.abs(ratio - 1 + c.clip_coef), np.abs(ratio - 1 - c.clip_coef)) < BESIDE
    with np.errstate(divide="ignore", invalid="ignore"):
        far = np.nan_to_num(np.abs(np.log(ratio)) + np.abs(np.log(np.abs(A))), nan=np.inf)
    return (
        beside.astype(float),
        _digits(ratio).astype(float),
        _digits(A).astype(float),
        far,
        (A < 0).astype(float),
        _digits(logp).astype(float),
    )


def _digits(x: Array) -> NDArray[np.int_]:
    """How many significant decimal digits say a number to nine; nine if as many as that do not."""
    needed = np.full(len(x), 9)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.where(x == 0, 0, np.floor(np.log10(np.abs(x))))
        for d in range(8, 0, -1):
            unit = 10.0 ** (exponent - d + 1)
            needed[np.abs(np.round(x / unit) * unit - x) <= 1e-9 * np.abs(x)] = d
    return needed


def smaller(probe: Probe, i: int) -> Iterator[Probe]:
    """Element ``i`` of a probe as a batch of its own; of sequences its answer, too, and that with another one."""
    if probe.mask is None:
        logp, old_logp, A = (x[i : i + 1] for x in (probe.logp, probe.old_logp, probe.advantages))
        yield Probe("example", bool(logp == old_logp), logp, old_logp, A)
        return
    row, column = divmod(i, probe.logp.shape[1])
    longest = probe.logp.shape[1]
    for rows, columns in (
        (slice(row, row + 1), slice(column, column + 1)),
        (slice(row, row + 1), slice(0, longest)),
        (slice(max(row - 1, 0), row + 1), slice(0, longest)),
    ):
        logp, old_logp, mask = (x[rows, columns] for x in (probe.logp, probe.old_logp, probe.mask))
        A = probe.advantages[rows] if probe.advantages.dim() == 1 else probe.advantages[rows, columns]
        yield Probe("example", bool(((logp == old_logp) | ~mask).all()), logp, old_logp, A, mask)


def worst(c: Contrast) -> int:
    """The element that differs most: really, at an edge, by a subnormal, by the most ulp."""
    return int(np.select([c.real, c.edge, c.subnormal], [np.inf, 1e300, 1e299], c.ulp).argmax())


def simplify(sample: Sample, holds: Callable[[Sample], bool]) -> Sample:
    """Each coordinate's first value that still serves: Hypothesis halves its way through a list and may pass it by."""

    def first(candidates: Iterable[Sample]) -> Sample:
        return next((candidate for candidate in candidates if holds(candidate)), sample)

    for _ in range(2):  # a simpler coordinate can make room for another's
        if not sample.lengths:
            sample = first(sample._replace(n=n) for n in COPIES)
        sample = first(sample._replace(ratio=ratio) for ratio in (SEQUENCE_RATIOS if sample.lengths else RATIOS))
        sample = first(sample._replace(advantage=A) for A in ADVANTAGES)
        sample = first(sample._replace(top=top) for top in TOPS)
    return sample


def draw(dtypes: Sequence[torch.dtype], *, sequence: bool) -> st.SearchStrategy[Sample]:
    return st.builds(
        Sample,
        st.sampled_from(dtypes),
        st.just(1) if sequence else st.sampled_from(COPIES),
        st.sampled_from(SEQUENCE_RATIOS if sequence else RATIOS),
        st.sampled_from(ADVANTAGES),
        st.sampled_from(TOPS),
        st.sampled_from(LENGTHS) if sequence else st.just(()),
    )


def example(f: Formulation, g: Formulation, found: Contrast) -> Example:
    """What was found, in numbers: the element that differs most."""
    probe, clip_coef = found.probe, found.clip_coef
    i = worst(found)
    why = (
        "different" if found.real[i] else "edge" if found.edge[i] else "subnormal" if found.subnormal[i] else "rounding"
    )
    x, y = (float(measure(loss, probe, clip_coef).gradient[i]) for loss in (f, g))
    inputs = (probe.ratio, probe.sample_advantages, probe.logp, probe.old_logp)
    ratio, A, logp, old = (float(t.double().flatten()[i]) for t in inputs)
    every = tuple(array(probe.advantages).tolist()) if probe.advantages.dim() == 1 else ()
    advantages = every if len(set(every)) > 1 else ()
    if probe.mask is None:
        mine = (why, dtype_name(probe.dtype), len(probe.logp), ratio, A, logp, old, clip_coef, (x, y))
        return Example(*mine, advantages=advantages)
    ratios = tuple(tuple(row[counts].tolist()) for row, counts in zip(probe.ratio, probe.mask, strict=True))
    token = (i // probe.logp.shape[1] + 1, i % probe.logp.shape[1] + 1)
    padded = not bool(probe.mask.flatten()[i])
    mine = (why, dtype_name(probe.dtype), 1, ratio, A, logp, old, clip_coef, (x, y))
    return Example(*mine, ratios, token, padded, masks_of(probe), advantages)


def masks_of(probe: Probe) -> tuple[str, ...]:
    """Each answer's mask, 1 for a token that counts; nothing where all start at once and have no hole."""
    assert probe.mask is not None
    plain = all(bool((row[:-1] >= row[1:]).all()) for row in probe.mask)
    return () if plain else tuple("".join("01"[int(t)] for t in row) for row in probe.mask)
