"""All batches on which two losses are compared, in order: an ordinary one first."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from rlloss.check import masks
from rlloss.check.kinds import REWARDED, graded, own_mean_log_ratios, own_means, rewards
from rlloss.check.numbers import MANY, counts, group_sizes, sample_counts
from rlloss.check.probes import (
    LONG,
    LONGEST,
    MOST_ANSWERS,
    NEARLY,
    SHAPES,
    SIZES,
    Probe,
    as_answers,
    extremes,
    grid,
    grid_of,
    masked,
    own_advantages,
    own_advantages_of_samples,
    own_log_ratios,
    own_spreads,
    padded,
    random_batch,
    random_sequences,
    rare,
    sequence_grid,
    with_mask,
    with_own_advantages,
)


def hostile_sequences(
    dtype: torch.dtype, clip_coef: float, generator: torch.Generator, numbers: Sequence[float]
) -> Iterator[Probe]:
    """What trainers meet: holes, late starts and empty answers, equal rewards, long answers, rare and remote tokens."""
    for spread in (0.0, 0.5):
        batch = random_sequences((4, 9), dtype, generator, spread, ragged=True)
        yield from masked(batch, generator)
        some = batch.advantages.clone()
        some[::2] = 0
        yield replace(batch, name="4 x 9, some A = 0", advantages=some)
        yield replace(batch, name="4 x 9, all A = 0", advantages=torch.zeros_like(some))
        yield replace(batch, name="4 x 9, all A equal", advantages=torch.full_like(some, 0.75))
        for group in (2, 4, *group_sizes(numbers)):
            batch = random_sequences((2 * group, 4), dtype, generator, spread, ragged=True)
            batch.advantages[:group] = 0.75  # rewards of which the other group's differ
            yield replace(batch, name=f"{batch.name}, A equal in one half")
        yield from rewards(random_sequences((REWARDED, 3), dtype, generator, spread, ragged=True), generator)
    for on_policy in (True, False):
        yield as_answers(rare(dtype, clip_coef, numbers, on_policy=on_policy), 4)
    yield as_answers(extremes(dtype), 4)
    for n in sorted({LONG, *counts(numbers, LONGEST)}):
        for spread in (0.3, 0.0):
            yield random_sequences((2, n), dtype, generator, spread, ragged=False)
        uneven = random_sequences((4, n + 2), dtype, generator, 0.3, ragged=True)
        yield with_mask(uneven, f"lengths of {n:,} to 1", partial(masks.uneven, longest=n))
    for n in sorted(n for n in counts(numbers, MOST_ANSWERS) if n > SHAPES[-1][0]):
        yield random_sequences((n, 2), dtype, generator, 0.3, ragged=False)
    yield own_log_ratios(dtype, generator, numbers)


def sample_probes(dtype: torch.dtype, clip_coef: float, seed: int, numbers: Sequence[float] = ()) -> Iterator[Probe]:
    """All probes of per-sample losses, an ordinary batch first."""
    generator = torch.Generator().manual_seed(seed)
    yield random_batch(64, dtype, generator, 0.3)
    yield grid(dtype, clip_coef)
    yield grid_of(numbers, dtype, clip_coef)
    for on_policy in (True, False):
        yield rare(dtype, clip_coef, numbers, on_policy=on_policy)
    for spread in (0.0, 0.3):
        for n in SIZES:
            batch = random_batch(n, dtype, generator, spread)
            if n > 3:  # the advantages of a real batch include 0, 1 and -1 at times
                batch.advantages[:3] = torch.tensor([0.0, 1.0, -1.0], dtype=dtype)
            yield batch
    for n in sorted(sample_counts(numbers) - set(SIZES)):
        yield random_batch(n, dtype, generator, 0.3)
    for spread in (0.0, 0.3):
        yield from rewards(random_batch(REWARDED, dtype, generator, spread), generator)
    for spread in (*NEARLY, *own_spreads(numbers)):
        yield random_batch(1000, dtype, generator, spread)
    for on_policy in (True, False):
        yield own_advantages_of_samples(dtype, clip_coef, numbers, on_policy=on_policy)
    yield random_batch(4096, dtype, generator, 1.0)  # far off-policy
    yield random_batch(MANY, dtype, generator, 0.3)  # against narrow strips
    yield extremes(dtype)
    for spread in (0.0, 0.3):
        yield from graded(random_batch(2 * REWARDED, dtype, generator, spread))
    yield from own_means(random_batch(REWARDED, dtype, generator, 0.3), numbers)


def sequence_probes(
    dtype: torch.dtype, clip_coef: float, seed: int, numbers: Sequence[float] = (), *, tokens: bool = False
) -> Iterator[Probe]:
    """All probes of sequence losses, an ordinary batch first; ``tokens``: also with an advantage of each token."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [*SHAPES, *((2 * n, 4) for n in group_sizes(numbers))]
    for spread in (0.3, 0.0, 1.0):
        for shape in shapes:
            for ragged in (False, True):
                yield random_sequences(shape, dtype, generator, spread, ragged=ragged)
    for spread in (*NEARLY, *own_spreads(numbers)):
        yield random_sequences(SHAPES[4], dtype, generator, spread, ragged=True)
    for length in (1, 2):
        yield sequence_grid(dtype, clip_coef, length, numbers)
    yield from hostile_sequences(dtype, clip_coef, generator, numbers)
    for spread in (0.3, 0.0):
        yield own_advantages(dtype, generator, numbers, spread)
    if tokens:
        for spread in (0.3, 0.0, 1.0):
            for ragged in (False, True):
                batch = random_sequences(SHAPES[3], dtype, generator, spread, ragged=ragged)
                yield with_own_advantages(batch, generator)
                yield with_own_advantages(with_mask(batch, "holes", masks.holes), generator)
    for spread in (0.0, 0.3):
        yield from graded(random_sequences((2 * REWARDED, 3), dtype, generator, spread, ragged=True))
        yield from padded(random_sequences((4, 24), dtype, generator, spread, ragged=True))
    yield from own_means(random_sequences((8, 24), dtype, generator, 0.3, ragged=True), numbers)
    yield from own_mean_log_ratios(random_sequences((8, 64), dtype, generator, 0.0, ragged=True), numbers)
