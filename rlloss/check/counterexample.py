"""Where two gradients differ: the regions of the (ratio, A) plane, and the smallest example that Hypothesis finds."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, find, settings, strategies as st
from hypothesis.errors import NoSuchExample
from numpy.typing import NDArray

from rlloss.check.measure import Contrast, contrast, describe, measure
from rlloss.check.probes import Probe, at_ratio, bounds, ulps_from
from rlloss.check.result import Example
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
ADVANTAGES = (
    1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 0.0, 0.3, -0.3, 1.7, -1.7, 10.0, -10.0,
    *(sign * round(0.07 + 0.0531 * i, 4) for i in range(50) for sign in (1, -1)),
)  # fmt: skip
TOPS = (-2.0, -1.0, -0.5, -3.0)
COPIES = (1, 2, 3, 4, 5, 7, 10, 100)
LENGTHS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 2), (3, 5), (1, 1, 2))
MOST_RANGES = 4  # named per sign of A
MOSTLY = 0.95  # of a region's samples: then it does not depend on |A|

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
        return contrasted(sample).unequal

    def differs_really(sample: Sample) -> bool:
        return bool(contrasted(sample).real.any())

    samples = draw(dtypes, sequence=f.sequence)
    found = None
    known = any(c.real.any() for c in contrasts)
    for holds in (differs_really,) if known else (differs, differs_really):
        try:
            found = contrasted(simplify(find(samples, holds, settings=SETTINGS), holds))
        except NoSuchExample:
            break
    return found or alone(f, g, clip_coef, [c for c in contrasts if c.real.any() or (c.unequal and not known)])


def alone(f: Formulation, g: Formulation, clip_coef: float, contrasts: Sequence[Contrast]) -> Contrast | None:
    """The first differing sample of a probe, alone in its batch; the smallest batch if it differs in company only."""
    for c in contrasts:
        if c.probe.mask is None:
            i = worst(c)
            logp, old_logp, A = (x[i : i + 1] for x in (c.probe.logp, c.probe.old_logp, c.probe.advantages))
            single = Probe("example", c.probe.on_policy, logp, old_logp, A)
            result = contrast(measure(f, single, clip_coef), measure(g, single, clip_coef))
            if result.unequal:
                return result
    return min(contrasts, key=lambda c: c.probe.logp.numel(), default=None)


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


def example(f: Formulation, g: Formulation, found: Contrast, clip_coef: float) -> Example:
    """What was found, in numbers: the element that differs most."""
    probe = found.probe
    i = worst(found)
    why = (
        "different" if found.real[i] else "edge" if found.edge[i] else "subnormal" if found.subnormal[i] else "rounding"
    )
    x, y = (float(measure(loss, probe, clip_coef).gradient[i]) for loss in (f, g))
    inputs = (probe.ratio, probe.sample_advantages, probe.logp, probe.old_logp)
    ratio, A, logp, old = (float(t.double().flatten()[i]) for t in inputs)
    if probe.mask is None:
        return Example(why, dtype_name(probe.dtype), len(probe.logp), ratio, A, logp, old, (x, y))
    ratios = tuple(tuple(row[counts].tolist()) for row, counts in zip(probe.ratio, probe.mask, strict=True))
    token = (i // probe.logp.shape[1] + 1, i % probe.logp.shape[1] + 1)
    return Example(why, dtype_name(probe.dtype), 1, ratio, A, logp, old, (x, y), ratios, token)


class Edge(NamedTuple):
    """Between two neighbouring ratios of the grid: at one the losses agree, at the other they do not."""

    agree: float
    differ: float
    advantage: float  # with which they differ


def regions(
    f: Formulation, g: Formulation, contrasts: Sequence[Contrast], clip_coef: float, *, bisect: bool = True
) -> tuple[str, ...]:
    """In which ranges of the ratio they really differ, for each sign of A.

    Read from the grid of the first dtype in which they differ there; the edges are then found by bisection. Where the
    grid shows nothing, a sample from each of the first batches that do. For sequence losses: the kinds of batches.
    """
    real = [c for c in contrasts if c.real.any()]
    if f.sequence:
        return tuple(sorted({_kind(c.probe) for c in real}, reverse=True))
    c = next((c for c in real if c.probe.grid), None)
    if c is None:
        return tuple(describe(c.probe, int(c.real.argmax())) for c in real[:MOST_RANGES])
    ratio, A = (x.double().numpy() for x in (c.probe.ratio, c.probe.advantages))
    texts = []
    for sign, name in ((1, "A > 0"), (-1, "A < 0"), (0, "A = 0")):
        # Right at an edge some advantages differ and some do not: neither says where a region begins.
        chosen = (np.sign(A) == sign) & ~np.isin(ratio, ratio[c.edge])
        ranges = []
        for low, high in _runs(ratio[chosen], A[chosen], c.real[chosen])[:MOST_RANGES]:
            if bisect:
                low, high = (refine(f, g, edge, c.probe.dtype, clip_coef) for edge in (low, high))
            ranges.append(_range(low, high))
        if ranges:
            there = chosen & np.isin(ratio, ratio[chosen & c.real])
            some = "" if c.real[there].mean() > MOSTLY else ", for some |A| only"
            texts.append(f"{name}: {' or '.join(dict.fromkeys(ranges))}{some}")
    return tuple(texts)


def _kind(probe: Probe) -> str:
    assert probe.mask is not None
    lengths = "equal" if probe.mask.all() else "unequal"
    return f"{'on' if probe.on_policy else 'off'}-policy, {lengths} lengths"


def edges(contrasts: Sequence[Contrast]) -> tuple[float, ...]:
    """The ratios at which one gradient jumps an ulp before the other, to six digits."""
    for c in contrasts:
        if c.probe.grid and c.edge.any():
            return tuple(sorted({float(f"{x:.6g}") for x in c.probe.ratio.double().numpy()[c.edge]}))
    return ()


def _runs(
    ratio: NDArray[np.float64], A: NDArray[np.float64], real: NDArray[np.bool_]
) -> list[tuple[Edge | None, Edge | None]]:
    """Maximal ranges of neighbouring ratios that all differ for some |A|: the edge below and above, None if open."""
    columns, place = np.unique(ratio, return_inverse=True)
    differs = np.zeros(len(columns), bool)
    np.logical_or.at(differs, place, real)
    # Curves that merely cross agree at a single ratio, give or take rounding: no region of its own, unless that is 1.
    gaps = np.flatnonzero(np.diff(differs.astype(int), prepend=1, append=1))
    for start, end in zip(gaps[0::2], gaps[1::2], strict=True):
        inside = columns[start:end]
        if start > 0 and end < len(columns) and np.ptp(inside) < 1e-6 * inside[0] and 1 not in inside:
            differs[start:end] = True
    strongest = np.ones(len(columns))
    strongest[place[real]] = A[real]
    changes = np.flatnonzero(np.diff(differs.astype(int), prepend=0, append=0))
    runs = []
    for start, end in zip(changes[0::2], changes[1::2], strict=True):
        low = Edge(columns[start - 1], columns[start], strongest[start]) if start > 0 else None
        high = Edge(columns[end], columns[end - 1], strongest[end - 1]) if end < len(columns) else None
        runs.append((low, high))
    return runs


def refine(f: Formulation, g: Formulation, edge: Edge | None, dtype: torch.dtype, clip_coef: float) -> Edge | None:
    """Bisect an edge down to neighbouring ratios, as far as logarithms of the dtype tell them apart."""
    if edge is None or edge.agree == 0:
        return edge
    agree, differ = edge.agree, edge.differ
    for _ in range(60):
        middle = (agree + differ) / 2
        if not min(agree, differ) < middle < max(agree, differ) or abs(agree - differ) < 1e-9 * middle:
            break
        logp, old_logp = at_ratio(torch.tensor([middle], dtype=torch.float64).to(dtype))
        A = torch.tensor([edge.advantage], dtype=torch.float64).to(dtype)
        probe = Probe("edge", False, logp.repeat(4), old_logp.repeat(4), A.repeat(4))
        if contrast(measure(f, probe, clip_coef), measure(g, probe, clip_coef)).real.any():
            differ = middle
        else:
            agree = middle
    return Edge(agree, differ, edge.advantage)


def _range(low: Edge | None, high: Edge | None) -> str:
    if low is None and high is None:
        return "every ratio"
    if high is None:
        assert low is not None
        return f"ratio > {low.agree:.5g}"
    if low is None:
        return f"ratio < {high.agree:.5g}"
    if high.agree - low.agree < 1e-5 * high.agree:
        return f"ratio within {high.agree - low.agree:.1g} of {low.differ:.5g}"
    return f"{low.agree:.5g} < ratio < {high.agree:.5g}"
