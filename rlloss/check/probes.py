"""Where losses are compared: grids over the (ratio, A) plane, random batches of many sizes, and sequences.

All log-probabilities are 0 or less, as those of discrete actions are, so that any loss can take them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from rlloss.check import masks
from rlloss.check.numbers import between, ratio_bounds
from rlloss.losses.formulation import Formulation

SIZES = (1, 2, 3, 7, 64, 100, 128, 1000, 1024)  # powers of two, whose 1/N is exact, and others
FEW = (1.0, -1.0, 0.5, -2.0, 0.0)  # advantages, of the grid inside answers
ADVANTAGES = (1.0, 0.5, 2.0, 0.1, 1.3, 0.7, 1e-3, 100.0, 1e-6, 1e4)  # each with both signs; and 0
ANCHORS = (1.0, 0.5, 2.0, 3.0, 5.0, 10.0)  # beside the two bounds: places where losses are known to bend
SHAPES = ((1, 8), (2, 8), (3, 7), (4, 16), (8, 64))  # batch, tokens
THROUGH, SHAPES_THROUGH = (64, 100), ((3, 7), (4, 16))  # through a network: a power of two and another
TIES = 8  # rounding ties per bound
LOG_PROBABILITIES = (0.0, -0.01, -0.1, -0.5, -1.0, -1.5, *(-float(i) - 0.05 for i in range(2, 41)))
PROBABILITIES = (0.99, 0.9, 0.5, 0.2, 0.1, 0.05, 0.01, 1e-3, 1e-4)
MOST_ADVANTAGE = 1e6  # beyond which a number is none
MOST_RARE = 60.0  # beyond which a number is no log-probability
LONGEST = 8_192  # tokens: of the longest answer that a number of the losses is tried with
MOST_ANSWERS = 1_025  # of the largest batch that a number of the losses is tried with
FARTHEST = 300.0  # log-ratio of an answer, that a number of the losses is tried with
LONG = 3_000  # tokens of an answer that is tried in any case
LEAST_KL, MOST_KL, MOST_SPREADS = 1e-4, 0.1, 16  # of a mean KL that a number may be a bound of
NEARLY = (0.08, 0.03, 0.005)  # spreads of log-ratios, as of a policy that has hardly moved: few are clipped, or none


@dataclass(frozen=True)
class Probe:
    """A batch on which two losses are compared. Tensors are [N]; for sequences [batch, tokens], advantages [batch] or,
    for losses that take one of each token, as the others.
    """

    name: str
    on_policy: bool  # logp equals old_logp: the first minibatch
    logp: Tensor
    old_logp: Tensor
    advantages: Tensor
    mask: Tensor | None = None
    grid: bool = False  # a systematic grid, from which regions are read
    extreme: bool = False  # ratios so tiny or huge that they leave the dtype's range
    hollow: bool = False  # with empty answers, of which a mean is nan
    rare: bool = False  # one number after another, some of which no training meets
    network: bool = False  # to be run through a network, too

    @property
    def dtype(self) -> torch.dtype:
        return self.logp.dtype

    @property
    def ratio(self) -> Tensor:
        return torch.exp(self.logp - self.old_logp)

    @property
    def sample_advantages(self) -> Tensor:
        """The advantages in the shape of logp."""
        alike = self.advantages.shape == self.logp.shape
        return self.advantages if alike else self.advantages.unsqueeze(1).expand_as(self.logp)

    @property
    def ordinary(self) -> bool:
        """Whether a training might have this batch."""
        return not self.grid and not self.extreme and not self.rare and not self.hollow

    def loss(self, formulation: Formulation, logp: Tensor, clip_coef: float) -> Tensor:
        """A loss of this batch, with ``logp`` in the place of the batch's own. Raises: LossError."""
        return formulation(logp, self.old_logp, self.advantages, self.mask, clip_coef=clip_coef)


def bounds(dtype: torch.dtype, clip_coef: float) -> tuple[Tensor, Tensor]:
    """1 - eps and 1 + eps as clamp rounds them."""
    ones = torch.ones((), dtype=dtype)
    return ones.clamp(max=1 - clip_coef), ones.clamp(min=1 + clip_coef)


def ulps_from(x: Tensor, ulps: int) -> Tensor:
    """The number ``ulps`` representable numbers above x, or below for a negative count."""
    towards = torch.full_like(x, math.copysign(math.inf, ulps))
    for _ in range(abs(ulps)):
        x = torch.nextafter(x, towards)
    return x


def at_ratio(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """(logp, old_logp) whose ratio is exactly ``ratio`` if any does it near the logarithm; else as near as that gets.

    old_logp is a power of two just large enough to keep logp negative: the grid of logp is then fine enough to reach
    every ratio near 1, and logp - old_logp is exact. Where exp, which rounds as it likes on each CPU, skips a ratio
    even so, a smaller old_logp makes the grid finer.
    """
    logratio = torch.log(ratio.double())
    log_old = torch.ceil(torch.log2(logratio.clamp(min=0.25) * 1.01))
    logp, old_logp, found = _near(ratio, logratio, -(2.0**log_old))
    for _ in range(4):
        log_old = torch.where((log_old > torch.log2(1.01 * logratio.clamp(min=1e-9)) + 1), log_old - 1, log_old)
        finer, finer_old, hit = _near(ratio, logratio, -(2.0**log_old))
        logp, old_logp = torch.where(hit & ~found, finer, logp), torch.where(hit & ~found, finer_old, old_logp)
        found = found | hit
    return logp, old_logp


def _near(ratio: Tensor, logratio: Tensor, old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logp within 8 ulp of ``old`` + ``logratio``, old_logp, and whether exp of their difference is ``ratio``."""
    old_logp, start = old.to(ratio.dtype), (old + logratio).to(ratio.dtype)
    best, found = start.clone(), torch.exp(start - old_logp) == ratio
    for direction in (-1, 1):
        candidate = start
        for _ in range(8):
            candidate = ulps_from(candidate, direction)
            hit = ~found & (torch.exp(candidate - old_logp) == ratio)
            best, found = torch.where(hit, candidate, best), found | hit
    return best, old_logp, found


def ratios(dtype: torch.dtype, clip_coef: float) -> Tensor:
    """The grid's ratios, ascending: the bounds exactly, their neighbours, and ever finer steps towards each anchor."""
    lower, upper = bounds(dtype, clip_coef)
    anchors = torch.stack([lower, upper, *(torch.tensor(a, dtype=dtype) for a in ANCHORS)])
    digits = round(-math.log2(torch.finfo(dtype).eps))
    steps = 2.0 ** -torch.arange(1, digits, dtype=torch.float64)
    near = (anchors.double()[:, None] * torch.cat([1 - steps, 1 + steps])).flatten().to(dtype)
    close = torch.cat([ulps_from(anchors, ulps) for ulps in (-2, -1, 0, 1, 2)])
    reach = 4 if dtype == torch.float16 else 30  # as a logarithm; float16 overflows at 11
    log_wide = torch.cat([torch.linspace(-4, 4, 161), torch.linspace(-reach, reach, 121)]).double()
    wide = torch.exp(log_wide).to(dtype)
    together: Tensor = torch.unique(torch.cat([near, close, wide]))
    return together


def ratios_of(numbers: Sequence[float], dtype: torch.dtype, clip_coef: float) -> Tensor:
    """Ratios on both sides of every bound that numbers can make, on it, and between each bound and the next."""
    theirs = ratio_bounds(numbers, clip_coef)
    beside = [bound * factor for bound in theirs for factor in (1 - 1e-3, 1 - 1e-6, 1 + 1e-6, 1 + 1e-3)]
    found = torch.tensor([*between(theirs), *beside], dtype=torch.float64)
    reach = 4 if dtype == torch.float16 else 30
    possible: Tensor = torch.unique(found[found.log().abs() < reach].to(dtype))
    return possible


def ties(dtype: torch.dtype, clip_coef: float) -> tuple[Tensor, Tensor]:
    """(ratio, A) just outside a bound whose product rounds to that of the bound: PPO's minimum ties there."""
    found: list[tuple[Tensor, Tensor]] = []
    for edge, side in zip(bounds(dtype, clip_coef), (-1, 1), strict=True):
        outside = ulps_from(edge, side)
        candidates = side * torch.linspace(0.5, 2, 4001, dtype=torch.float64).to(dtype)
        tied = torch.unique(candidates[outside * candidates == edge * candidates])[:TIES]
        found.append((outside.expand_as(tied), tied))
    return torch.cat([r for r, _ in found]), torch.cat([a for _, a in found])


def grid_of(numbers: Sequence[float], dtype: torch.dtype, clip_coef: float) -> Probe:
    """Every ratio at which losses with these numbers may bend, for a few advantages."""
    columns, few = ratios_of(numbers, dtype, clip_coef), torch.tensor(FEW, dtype=dtype)
    ratio, A = (x.flatten() for x in torch.meshgrid(columns, few, indexing="ij"))
    unique, place = torch.unique(ratio, return_inverse=True)
    size = 2 ** math.ceil(math.log2(len(ratio)))
    logp, old_logp = (_pad(x[place], size) for x in at_ratio(unique))
    return Probe("bounds", False, logp, old_logp, _pad(A, size), grid=True)


def _fits(advantage: float, dtype: torch.dtype) -> bool:
    """Whether a loss can compute with it: the range of float16 is small."""
    return dtype != torch.float16 or 1e-3 <= advantage <= 100


def grid(dtype: torch.dtype, clip_coef: float) -> Probe:
    """Every ratio of ``ratios`` with every advantage, and the ties; N is a power of two, so that 1/N is exact."""
    columns = ratios(dtype, clip_coef)
    sizes = [a for a in ADVANTAGES if _fits(a, dtype)]
    A = torch.tensor([0.0, *sizes, *(-a for a in sizes)], dtype=dtype)
    ratio, advantages = (x.flatten() for x in torch.meshgrid(columns, A, indexing="ij"))
    tie_ratio, tie_advantages = ties(dtype, clip_coef)
    ratio, advantages = torch.cat([tie_ratio, ratio]), torch.cat([tie_advantages, advantages])
    unique, place = torch.unique(ratio, return_inverse=True)
    logp, old_logp = (x[place] for x in at_ratio(unique))
    size = 2 ** math.ceil(math.log2(len(ratio)))
    return Probe("grid", False, _pad(logp, size), _pad(old_logp, size), _pad(advantages, size), grid=True)


def _pad(x: Tensor, size: int) -> Tensor:
    """Repeat the first entries, until there are ``size``."""
    return torch.cat([x, x[: size - len(x)]])


def extremes(dtype: torch.dtype) -> Probe:
    """Tiny and huge ratios, up to those that overflow the dtype or vanish in it."""
    largest = math.log(torch.finfo(dtype).max)
    sizes = torch.tensor([8, 0.2 * largest, 0.4 * largest, largest + 2, 1.2 * largest + 8], dtype=torch.float64)
    logratio, A = torch.meshgrid(
        torch.cat([sizes, -sizes, torch.zeros(6)]),
        torch.tensor([1.0, -1.0, 0.0, 0.5], dtype=torch.float64),
        indexing="ij",
    )
    old_logp = torch.where(logratio > 0, -1 - logratio, -1.0).flatten()
    logp = torch.where(logratio > 0, -1.0, -1 + logratio).flatten()
    return Probe("extremes", False, logp.to(dtype), old_logp.to(dtype), A.flatten().to(dtype), extreme=True)


def _few_ratios(clip_coef: float, *, on_policy: bool) -> list[float]:
    """1 on-policy; else some far from it, and on both sides of each bound."""
    lower, upper = 1 - clip_coef, 1 + clip_coef
    return [1.0] if on_policy else [0.5, 2.0, lower * 0.99, lower * 1.01, upper * 0.99, upper * 1.01]


def rare(dtype: torch.dtype, clip_coef: float, numbers: Sequence[float] = (), *, on_policy: bool = False) -> Probe:
    """A few ratios at log-probabilities from 0 down to -40, and on both sides of every number of the losses."""
    few = torch.tensor(_few_ratios(clip_coef, on_policy=on_policy), dtype=torch.float64)
    theirs = [-abs(x) for x in numbers if abs(x) < MOST_RARE] + [math.log(x) for x in numbers if 0 < x < 1]
    theirs = [x * factor for x in theirs for factor in (1 - 1e-3, 1 + 1e-3)]
    logs = torch.tensor([*LOG_PROBABILITIES, *theirs, *(math.log(x) for x in PROBABILITIES)], dtype=torch.float64)
    logp, ratio, A = (
        t.flatten()
        for t in torch.meshgrid(logs, few, torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64), indexing="ij")
    )
    old_logp = logp - ratio.log()
    possible = old_logp <= 0
    size = 2 ** math.ceil(math.log2(int(possible.sum())))
    logp, old_logp, A = (_pad(x[possible].to(dtype), size) for x in (logp, old_logp, A))
    return Probe("log π down to -40", on_policy, logp, old_logp, A, rare=True)


def random_batch(n: int, dtype: torch.dtype, generator: torch.Generator, spread: float) -> Probe:
    """N samples whose log-ratios have the given standard deviation; 0: on-policy."""
    old_logp = (-0.05 - 3 * torch.rand(n, generator=generator, dtype=torch.float64)).to(dtype)
    moved = old_logp.double() + spread * torch.randn(n, generator=generator, dtype=torch.float64)
    logp = moved.clamp(max=-1e-3).to(dtype)
    advantages = torch.randn(n, generator=generator, dtype=torch.float64).to(dtype)
    on_policy = spread == 0
    return Probe(f"N = {n}", on_policy, logp, old_logp, advantages, network=n in THROUGH)


def random_sequences(
    shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator, spread: float, *, ragged: bool
) -> Probe:
    """A batch of sequences; ``ragged``: of unequal lengths, padded. The advantages have mean 0, as a group's do."""
    batch, tokens = shape
    flat = random_batch(batch * tokens, dtype, generator, spread)
    lengths = torch.full((batch,), tokens)
    if ragged:
        lengths = torch.randint(1, tokens, (batch,), generator=generator)
        lengths[0] = tokens - 1  # never all equal to the width
    mask = torch.arange(tokens) < lengths.unsqueeze(1)
    A = torch.randn(batch, generator=generator, dtype=torch.float64)
    A = ((A - A.mean()) if batch > 1 else (64 * A).round() / 64).to(dtype)  # whose mean it is, exactly
    name = f"{batch} x {tokens}, {'unequal' if ragged else 'equal'} lengths"
    through = shape in SHAPES_THROUGH
    return Probe(name, spread == 0, flat.logp.view(shape), flat.old_logp.view(shape), A, mask, network=through)


def sequence_grid(dtype: torch.dtype, clip_coef: float, tokens: int, numbers: Sequence[float] = ()) -> Probe:
    """Ratios as those of the first token of an answer whose others have the ratio 1, for a few advantages."""
    columns = torch.unique(torch.cat([ratios(dtype, clip_coef)[::3], ratios_of(numbers, dtype, clip_coef)]))
    ratio, A = (x.flatten() for x in torch.meshgrid(columns, torch.tensor(FEW, dtype=dtype), indexing="ij"))
    unique, place = torch.unique(ratio, return_inverse=True)
    size = 2 ** math.ceil(math.log2(len(ratio)))
    first, old = (_pad(x[place], size).unsqueeze(1) for x in at_ratio(unique))
    rest = old.expand(size, tokens - 1)
    mask = torch.ones(size, tokens, dtype=torch.bool)
    logp, old_logp = torch.cat([first, rest], 1), old.expand(size, tokens).clone()
    return Probe(f"grid, answers of {tokens}", False, logp, old_logp, _pad(A, size), mask, grid=True)


def as_answers(probe: Probe, tokens: int) -> Probe:
    """The samples of a probe as answers of so many tokens, each with the advantage of its first sample."""
    shape = (len(probe.logp) // tokens, tokens)
    logp, old_logp = (x[: shape[0] * tokens].view(shape) for x in (probe.logp, probe.old_logp))
    mask = torch.ones(shape, dtype=torch.bool)
    A = probe.advantages[::tokens][: shape[0]].clone()
    return replace(
        probe, name=f"{probe.name}, in answers of {tokens}", logp=logp, old_logp=old_logp, advantages=A, mask=mask
    )


def in_whole(probe: Probe, groups: int) -> Probe:
    """With so many samples or answers that ``groups`` divides their number: the first ones once more."""
    old = len(probe.logp)
    size = math.ceil(old / groups) * groups
    if size == old:
        return probe
    logp, old_logp, A = (_again(x, size) for x in (probe.logp, probe.old_logp, probe.advantages))
    mask = None if probe.mask is None else _again(probe.mask, size)
    name = probe.name.replace(f"N = {old}", f"N = {size}").replace(f"{old} x ", f"{size} x ")
    return replace(probe, name=name, logp=logp, old_logp=old_logp, advantages=A, mask=mask)


def _again(x: Tensor, size: int) -> Tensor:
    return x[torch.arange(size) % len(x)]


def with_mask(probe: Probe, name: str, change: Callable[[Tensor], None]) -> Probe:
    assert probe.mask is not None
    mask = probe.mask.clone()
    change(mask)
    return replace(probe, name=f"{probe.name.split(',')[0]}, {name}", mask=mask)


def masked(batch: Probe, generator: torch.Generator) -> Iterator[Probe]:
    """A batch of a few answers of some nine tokens with other masks: those that trainers make, and any."""
    width = batch.logp.shape[1]
    yield with_mask(batch, "holes", masks.holes)
    yield with_mask(batch, "late starts", masks.late)
    yield with_mask(batch, "scattered", partial(masks.scattered, generator=generator))
    yield with_mask(batch, "an empty first column", partial(masks.within, first=1, last=width))
    yield with_mask(batch, "an empty last column", partial(masks.within, first=0, last=width - 1))
    yield with_mask(batch, "empty but for a third", partial(masks.within, first=0, last=width // 3))
    yield with_mask(batch, "one token each", partial(masks.within, first=0, last=1))
    yield with_mask(batch, "nearly all in one answer", masks.mostly_one)
    yield replace(with_mask(batch, "an empty answer", partial(masks.nothing, answers=1)), hollow=True)
    yield replace(with_mask(batch, "empty answers", partial(masks.nothing, answers=2)), hollow=True)
    yield replace(with_mask(batch, "one answer alone", partial(masks.nothing, answers=3)), hollow=True)


def padded(batch: Probe) -> Iterator[Probe]:
    """A batch of four longer answers, padded as trainers pad, and of several turns."""
    yield with_mask(batch, "some of full width", masks.ended)
    yield with_mask(batch, "padding on the left", masks.padded_left)
    for tokens in (1, 3):
        yield with_mask(batch, f"turns of {tokens}", partial(masks.turns, tokens=tokens))


def with_own_advantages(probe: Probe, generator: torch.Generator) -> Probe:
    """A batch of sequences with an advantage of each token."""
    A = torch.randn(probe.logp.shape, generator=generator, dtype=torch.float64).to(probe.dtype)
    return replace(probe, name=f"{probe.name}, an advantage a token", advantages=A)


def _beside(numbers: Sequence[float]) -> list[float]:
    """On both sides of every number, on it, and between each and the next; of both signs."""
    theirs = sorted({abs(x) for x in numbers if abs(x) <= MOST_ADVANTAGE})
    sizes = {*between(theirs), *(x * by for x in theirs for by in (0.9, 1.2))}
    return [sign * x for x in sorted(sizes) for sign in (1, -1)]


def _advantages_beside(numbers: Sequence[float], dtype: torch.dtype) -> list[float]:
    return [x for x in _beside(numbers) if _fits(abs(x), dtype)]


def own_advantages_of_samples(
    dtype: torch.dtype, clip_coef: float, numbers: Sequence[float], *, on_policy: bool
) -> Probe:
    """Samples whose advantages lie on both sides of every number that the losses are written with, at a few ratios."""
    columns = [0.0, *_advantages_beside(numbers, dtype)], _few_ratios(clip_coef, on_policy=on_policy)
    tensors = (torch.tensor(column, dtype=torch.float64) for column in columns)
    A, ratio = (x.flatten() for x in torch.meshgrid(*tensors, indexing="ij"))
    size = 2 ** math.ceil(math.log2(len(A)))
    logp, A = (_pad(x.to(dtype), size) for x in (-1 + 0 * A, A))
    old_logp = _pad((-1 - ratio.log()).to(dtype), size)
    return Probe("own numbers as advantages", on_policy, logp, old_logp, A, rare=True)


def own_advantages(dtype: torch.dtype, generator: torch.Generator, numbers: Sequence[float], spread: float) -> Probe:
    """The same of answers and their rewards."""
    beside = _advantages_beside(numbers, dtype)
    probe = random_sequences((max(8, 4 * math.ceil(len(beside) / 4)), 4), dtype, generator, spread, ragged=False)
    A = probe.advantages.clone()
    A[torch.randperm(len(A), generator=generator)[: len(beside)]] = torch.tensor(beside, dtype=torch.float64).to(dtype)
    return replace(probe, name="own numbers as advantages", advantages=A, rare=True)


def own_spreads(numbers: Sequence[float]) -> list[float]:
    """Spreads s of log-ratios whose mean KL, s² / 2, lies beside every number, as of a target, and between."""
    theirs = sorted({abs(x) for x in numbers if LEAST_KL <= abs(x) <= MOST_KL})
    sizes = {*between(theirs), *(x * by for x in theirs for by in (0.8, 1.25))} - {*theirs}
    return [math.sqrt(2 * x) for x in sorted(sizes)][:MOST_SPREADS]


def own_log_ratios(dtype: torch.dtype, generator: torch.Generator, numbers: Sequence[float]) -> Probe:
    """Answers whose log-ratios, all tokens of one together, lie on both sides of every number of the losses."""
    farthest = min(FARTHEST, 0.9 * math.log(torch.finfo(dtype).max))
    totals = torch.tensor([x for x in (0.0, *_beside(numbers)) if abs(x) <= farthest], dtype=torch.float64)
    totals = _again(totals, 8 * math.ceil(len(totals) / 8))  # in groups of any usual size
    totals = torch.cat([totals, totals])  # each with either sign of A
    probe = random_sequences((len(totals), 16), torch.float64, generator, 0.0, ragged=False)
    old_logp = probe.old_logp - (totals / 16).abs().unsqueeze(1)
    A = probe.advantages.abs() * torch.where(torch.arange(len(totals)) < len(totals) // 2, 1.0, -1.0)
    logp = old_logp + (totals / 16).unsqueeze(1)
    logp, old_logp, A = (x.to(dtype) for x in (logp, old_logp, A))
    return Probe("own numbers as log-ratios", False, logp, old_logp, A, probe.mask, rare=True)
