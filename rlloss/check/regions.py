"""Where two gradients differ: which of ratio, A, log π, length and mask decides, and from where to where."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rlloss.check.measure import Contrast, array, contrast, describe, measure, mixes, telling
from rlloss.check.numbers import counts, numbers_of
from rlloss.check.probes import LONG, LONGEST, Probe, at_ratio, random_sequences
from rlloss.losses.formulation import Formulation

MOST_RANGES = 4  # named per sign of A
MOSTLY = 0.95  # of a region's samples: then it does not depend on |A|
LOGS = (-0.02, -0.3, -0.7, -1.2, -2.0, -2.6, -3.5, -5.0, -7.0, -10.0, -15.0, -25.0, -39.0)  # of log π
SIGNS = ((1, "A > 0"), (-1, "A < 0"), (0, "A = 0"))


class Edge(NamedTuple):
    """Between two neighbouring ratios of the grid: at one the losses agree, at the other they do not."""

    agree: float
    differ: float
    advantage: float  # with which they differ


def regions(
    f: Formulation, g: Formulation, contrasts: Sequence[Contrast], clip_coef: float, *, bisect: bool = True
) -> tuple[str, ...]:
    """Where they really differ: ranges of log π if it decides, else of the ratio, for each sign of A.

    ``bisect``: edges of ranges are found by bisection, and log π and lengths are asked about. For sequence losses: of
    a token that is an answer by itself; then the kinds of batches, by their lengths and masks. Where none of that
    shows anything, a sample of the batches that do.
    """
    real = [c for c in contrasts if c.real.any()]
    if not real:
        return ()
    if f.sequence:
        return _of_sequences(f, g, [contrasts[i] for i in telling(contrasts)], clip_coef, bisect=bisect)
    if mixes(f, clip_coef) or mixes(g, clip_coef):  # then a sample's own numbers do not decide
        ordinary = sorted(real, key=lambda c: not c.probe.ordinary)
        return tuple(describe(c.probe, int(c.real.argmax())) for c in ordinary[:MOST_RANGES])
    on_grid = next((c for c in real if c.probe.grid), None)
    return (
        (by_rarity(f, g, clip_coef) if bisect else ())
        or (by_ratio(f, g, on_grid, clip_coef, bisect=bisect) if on_grid is not None else ())
        or tuple(describe(c.probe, int(c.real.argmax())) for c in real[:MOST_RANGES])
    )


def by_ratio(f: Formulation, g: Formulation, c: Contrast, clip_coef: float, *, bisect: bool = True) -> tuple[str, ...]:
    """Ranges of the ratio, read from a grid."""
    ratio, A = (array(x) for x in (c.probe.ratio, c.probe.sample_advantages))
    texts = []
    for sign, name in SIGNS:
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


# --------------------------------------------------------------------------------------------------------- log π


def by_rarity(f: Formulation, g: Formulation, clip_coef: float) -> tuple[str, ...]:
    """Ranges of log π for each sign of A, if a few ratios and advantages differ at some log π and agree at others."""
    few = (0.5, 0.7, 0.95, 1.0, 1.05, 1.5, 2.0)
    texts: dict[str, list[str]] = {}
    decides = False
    for sign, name in SIGNS[:2]:
        ranges: dict[str, list[float]] = {}
        somewhere = []
        for ratio in few:
            differs = _differ_at(f, g, ratio, float(sign), LOGS, clip_coef)
            if not any(differs.values()):
                continue
            somewhere.append(ratio)
            for text in _rarity_ranges(f, g, ratio, float(sign), differs, clip_coef):
                ranges.setdefault(text, []).append(ratio)
        for text, at in ranges.items():
            decides |= text != ""
            where = "at any ratio" if at == somewhere else f"at ratios like {', '.join(f'{r:g}' for r in at[:3])}"
            texts.setdefault(f"{text or 'any log π'} {where}", []).append(name)
    if not decides:
        return ()
    return tuple(f"{' and '.join(names)}: {text}" for text, names in texts.items())


def _differ_at(
    f: Formulation, g: Formulation, ratio: float, A: float, logs: Sequence[float], clip_coef: float
) -> dict[float, bool]:
    """At which log π they differ, each tried by itself in one batch, where log π and its old value are possible."""
    logp = torch.tensor(logs, dtype=torch.float64)
    old_logp = logp - np.log(ratio)
    possible = old_logp <= 0
    logp, old_logp = logp[possible], old_logp[possible]
    if not len(logp):
        return {}
    probe = Probe("log π", False, logp, old_logp, torch.full_like(logp, A))
    real = contrast(measure(f, probe, clip_coef), measure(g, probe, clip_coef)).real
    return dict(zip(logp.tolist(), real.tolist(), strict=True))


def _rarity_ranges(
    f: Formulation, g: Formulation, ratio: float, A: float, differs: dict[float, bool], clip_coef: float
) -> Iterator[str]:
    """``log π < -3`` and the like; "" if they differ at every log π."""
    if all(differs.values()):
        yield ""
        return
    logs = sorted(differs)
    for low, high in itertools.pairwise(logs):
        if differs[low] != differs[high]:
            side = differs[low]
            for _ in range(50):
                middle = (low + high) / 2
                if _differ_at(f, g, ratio, A, (middle,), clip_coef).get(middle, side) == side:
                    low = middle
                else:
                    high = middle
            yield f"log π {'<' if side else '>'} {high:.5g}"


# ------------------------------------------------------------------------------------------------------ sequences


def _of_sequences(
    f: Formulation, g: Formulation, real: Sequence[Contrast], clip_coef: float, *, bisect: bool
) -> tuple[str, ...]:
    texts: list[str] = []
    tokens = next((c for c in real if c.probe.grid and c.probe.logp.shape[1] == 1), None)
    if tokens is not None:
        left, right = of_tokens(f), of_tokens(g)
        rarity = by_rarity(left, right, clip_coef) if bisect else ()
        texts += rarity or by_ratio(left, right, tokens, clip_coef, bisect=bisect)
    if not texts and bisect:
        shortest = min((c.probe.logp.shape[1] for c in real if _is_full(c.probe)), default=0)
        texts += [text for length, text in by_length(f, g, clip_coef) if length <= shortest]
    kinds = sorted({_kind(c.probe) for c in real}, reverse=True)
    plain = [kind for kind in kinds if kind.endswith("lengths")]
    return (*texts, *(plain or kinds))


def of_tokens(loss: Formulation) -> Formulation:
    """A sequence loss as one of samples, each an answer of one token."""

    def function(
        logp: torch.Tensor, old_logp: torch.Tensor, advantages: torch.Tensor, *, clip_coef: float
    ) -> torch.Tensor:
        tokens, old = logp.unsqueeze(1), old_logp.unsqueeze(1)
        return loss(tokens, old, advantages, torch.ones_like(tokens, dtype=torch.bool), clip_coef=clip_coef)

    return Formulation(loss.name, function)


def _is_full(probe: Probe) -> bool:
    return probe.mask is not None and bool(probe.mask.all())


def by_length(f: Formulation, g: Formulation, clip_coef: float) -> Iterator[tuple[int, str]]:
    """From which length of answers on they differ, or up to which, if answers of equal lengths show it: the shortest
    that differ, and in words.
    """

    def differ(n: int) -> bool:
        generator = torch.Generator().manual_seed(3)
        probe = random_sequences((2, n), torch.float64, generator, 0.3, ragged=False)
        return bool(contrast(measure(f, probe, clip_coef), measure(g, probe, clip_coef)).real.any())

    lengths = sorted({1, 2, 8, 64, LONG, *counts(numbers_of(f.function, g.function), LONGEST)})
    differs = [differ(n) for n in lengths]
    for i in range(len(lengths) - 1):
        low, high = lengths[i], lengths[i + 1]
        if differs[i] == differs[i + 1]:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            if differ(middle) == differs[i]:
                low = middle
            else:
                high = middle
        yield (high, f"answers of {high} tokens and more") if differs[i + 1] else (1, f"answers of up to {low} tokens")


def _kind(probe: Probe) -> str:
    assert probe.mask is not None
    rows = probe.mask
    if not rows.any(1).all():
        lengths = "an empty answer"
    elif bool((rows[:, 1:] & ~rows[:, :-1]).any()):
        lengths = "holes" if bool((rows[:, 0] & (rows[:, 1:] & ~rows[:, :-1]).any(1)).any()) else "late starts"
    else:
        lengths = "equal lengths" if rows.all() else "unequal lengths"
    return f"{'on' if probe.on_policy else 'off'}-policy, {lengths}"


# ----------------------------------------------------------------------------------------------------- on a grid


def edges(contrasts: Sequence[Contrast]) -> tuple[float, ...]:
    """The ratios at which one gradient jumps an ulp before the other, to six digits."""
    for c in contrasts:
        if c.probe.grid and c.edge.any():
            return tuple(sorted({float(f"{x:.6g}") for x in array(c.probe.ratio)[c.edge]}))
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
