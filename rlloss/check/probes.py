"""Where losses are compared: grids over the (ratio, A) plane, random batches of many sizes, and sequences.

All log-probabilities are 0 or less, as those of discrete actions are, so that any loss can take them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlloss.losses.formulation import Formulation

SIZES = (1, 2, 3, 7, 64, 100, 128, 1000, 1024)  # powers of two, whose 1/N is exact, and others
ADVANTAGES = (1.0, 0.5, 2.0, 0.1, 1.3, 0.7, 1e-3, 100.0, 1e-6, 1e4)  # each with both signs; and 0
ANCHORS = (1.0, 0.5, 2.0, 3.0, 5.0, 10.0)  # beside the two bounds: places where losses are known to bend
SHAPES = ((1, 8), (2, 8), (3, 7), (4, 16), (8, 64))  # batch, tokens
TIES = 8  # rounding ties per bound


@dataclass(frozen=True)
class Probe:
    """A batch on which two losses are compared. Tensors are [N]; for sequences [batch, tokens], advantages [batch]."""

    name: str
    on_policy: bool  # logp equals old_logp: the first minibatch
    logp: Tensor
    old_logp: Tensor
    advantages: Tensor
    mask: Tensor | None = None
    grid: bool = False  # a systematic grid, from which regions are read
    extreme: bool = False  # ratios so tiny or huge that they leave the dtype's range

    @property
    def dtype(self) -> torch.dtype:
        return self.logp.dtype

    @property
    def ratio(self) -> Tensor:
        return torch.exp(self.logp - self.old_logp)

    @property
    def sample_advantages(self) -> Tensor:
        """The advantages in the shape of logp."""
        return self.advantages if self.mask is None else self.advantages.unsqueeze(1).expand_as(self.logp)

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


def ties(dtype: torch.dtype, clip_coef: float) -> tuple[Tensor, Tensor]:
    """(ratio, A) just outside a bound whose product rounds to that of the bound: PPO's minimum ties there."""
    found: list[tuple[Tensor, Tensor]] = []
    for edge, side in zip(bounds(dtype, clip_coef), (-1, 1), strict=True):
        outside = ulps_from(edge, side)
        candidates = side * torch.linspace(0.5, 2, 4001, dtype=torch.float64).to(dtype)
        tied = torch.unique(candidates[outside * candidates == edge * candidates])[:TIES]
        found.append((outside.expand_as(tied), tied))
    return torch.cat([r for r, _ in found]), torch.cat([a for _, a in found])


def grid(dtype: torch.dtype, clip_coef: float) -> Probe:
    """Every ratio of ``ratios`` with every advantage, and the ties; N is a power of two, so that 1/N is exact."""
    columns = ratios(dtype, clip_coef)
    sizes = [a for a in ADVANTAGES if dtype != torch.float16 or 1e-3 <= a <= 100]  # the range of float16 is small
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


def random_batch(n: int, dtype: torch.dtype, generator: torch.Generator, spread: float) -> Probe:
    """N samples whose log-ratios have the given standard deviation; 0: on-policy."""
    old_logp = (-0.05 - 3 * torch.rand(n, generator=generator, dtype=torch.float64)).to(dtype)
    moved = old_logp.double() + spread * torch.randn(n, generator=generator, dtype=torch.float64)
    logp = moved.clamp(max=-1e-3).to(dtype)
    advantages = torch.randn(n, generator=generator, dtype=torch.float64).to(dtype)
    on_policy = spread == 0
    return Probe(f"N = {n}", on_policy, logp, old_logp, advantages)


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
    A = (A - A.mean()).to(dtype) if batch > 1 else A.to(dtype)
    name = f"{batch} x {tokens}, {'unequal' if ragged else 'equal'} lengths"
    return Probe(name, spread == 0, flat.logp.view(shape), flat.old_logp.view(shape), A, mask)


def sample_probes(dtype: torch.dtype, clip_coef: float, seed: int) -> Iterator[Probe]:
    """All probes of per-sample losses, an ordinary batch first."""
    generator = torch.Generator().manual_seed(seed)
    yield random_batch(64, dtype, generator, 0.3)
    yield grid(dtype, clip_coef)
    for spread in (0.0, 0.3):
        for n in SIZES:
            batch = random_batch(n, dtype, generator, spread)
            if n > 3:  # the advantages of a real batch include 0, 1 and -1 at times
                batch.advantages[:3] = torch.tensor([0.0, 1.0, -1.0], dtype=dtype)
            yield batch
    yield random_batch(4096, dtype, generator, 1.0)  # far off-policy
    yield random_batch(65_536, dtype, generator, 0.3)  # many, against narrow strips
    yield extremes(dtype)


def sequence_probes(dtype: torch.dtype, seed: int) -> Iterator[Probe]:
    """All probes of sequence losses, an ordinary batch first."""
    generator = torch.Generator().manual_seed(seed)
    for spread in (0.3, 0.0, 1.0):
        for shape in SHAPES:
            for ragged in (False, True):
                yield random_sequences(shape, dtype, generator, spread, ragged=ragged)
    last = random_sequences((4, 16), dtype, generator, 0.3, ragged=True)
    assert last.mask is not None
    last.mask[1] = False
    yield replace(last, name="a sequence without a token", extreme=True)
