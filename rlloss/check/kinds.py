"""Batches as training has them: of rewards of a kind, and whose means and spreads are numbers of the losses."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlloss.check.numbers import between
from rlloss.check.probes import MOST_ADVANTAGE, MOST_RARE, Probe

REWARDED = 32  # samples or answers of a batch of rewards
GROUPS = (4, 8, 16)  # answers to one prompt
MOST_MEANS = 24  # numbers of the losses that are tried as a mean


def rewards(batch: Probe, generator: torch.Generator) -> Iterator[Probe]:
    """A batch whose advantages are rewards: 0 or 1, or -1 or 1, of which groups have ties; one alone that is not 0;
    whitened; all above 0, in one half or nearly.
    """
    zeros_and_ones = torch.randint(0, 2, (REWARDED,), generator=generator)
    sparse = torch.zeros(REWARDED)
    sparse[REWARDED // 3] = 1
    A = batch.advantages.double()
    above = torch.where(torch.arange(REWARDED) < REWARDED // 2, A.abs() + 0.1, A)
    kinds = {
        "A of 0 and 1": zeros_and_ones,
        "A of -1 and 1": 2 * zeros_and_ones - 1,
        "one A alone": sparse,
        "A whitened": (A - A.mean()) / A.std(),
        "A > 0 in one half": above,
        "A around 3": A + 3,
    }
    for kind, advantages in kinds.items():
        yield _with(batch, kind, advantages)


def graded(batch: Probe) -> Iterator[Probe]:
    """A batch whose advantages are the rewards of groups: all right but one, one alone, all, and none; of three levels;
    of one sign but for one; and in order.
    """
    for group in GROUPS:
        few = torch.zeros(4, group)
        few[0, 1:], few[1, -1], few[2] = 1, 1, 1
        right = few.flatten().repeat(-(-len(batch.logp) // (4 * group)))[: len(batch.logp)]
        yield _with(batch, f"groups of {group}, right or wrong", right)
        yield _with(batch, f"groups of {group}, A of -1 and 1", 2 * right - 1)
    levels = torch.tensor([0.0, 0.1, 1.0, 1.0, 0.1, 0.0, 0.0, 0.1])
    alone = torch.ones(len(batch.logp))
    alone[len(batch.logp) // 3] = -1
    A = batch.advantages.double()
    alike = {"A of three levels": levels.repeat(len(alone) // 8), "A > 0 but one": A.abs() * alone,
             "A < 0 but one": -A.abs() * alone, "A in order": A.sort().values,
             "all A = 1": torch.ones_like(alone), "all A = -1": -torch.ones_like(alone)}  # fmt: skip
    for kind, advantages in alike.items():
        yield _with(batch, kind, advantages)


def own_means(batch: Probe, numbers: Sequence[float]) -> Iterator[Probe]:
    """A batch whose mean of A, and of -log π, lies beside each number of the losses or between two; and one with such
    a standard deviation of A.
    """
    theirs = sorted({abs(x) for x in numbers if 1e-6 <= abs(x) <= MOST_ADVANTAGE})
    values = sorted({*between(theirs), *(x * by for x in theirs for by in (0.8, 1.1))} - {*theirs})
    A = batch.advantages.double()
    centred = A - A.mean()
    for value in values[:: -(-len(values) // MOST_MEANS) or 1]:
        if not value < torch.finfo(batch.dtype).max ** 0.5:
            continue
        likely = replace(batch, name=f"{_short(batch)}, means beside own numbers", rare=value > MOST_RARE)
        if value <= MOST_RARE:
            ratio = batch.logp.double() - batch.old_logp.double()
            old = batch.old_logp.double() * (value / -float(batch.old_logp.double().mean()))
            logp, old = (x.to(batch.dtype) for x in ((old + ratio).clamp(max=-1e-6), old))
            likely = replace(likely, logp=old.clone() if batch.on_policy else logp, old_logp=old)
        width = min(value / 4, 1.0)
        for mean in (value, -value):
            yield replace(likely, advantages=(mean + width * centred).to(batch.dtype))
        spread = (value / float(centred.std())) * centred
        yield replace(likely, name=f"{_short(batch)}, a spread beside own numbers", advantages=spread.to(batch.dtype))


def own_mean_log_ratios(batch: Probe, numbers: Sequence[float]) -> Iterator[Probe]:
    """Answers whose mean log-ratio lies beside each number of the losses or between two, of either sign."""
    assert batch.mask is not None
    theirs = sorted({abs(x) for x in numbers if 1e-4 <= abs(x) <= 3})
    values = sorted({*between(theirs), *(x * by for x in theirs for by in (0.8, 1.2))} - {*theirs})
    answers = len(batch.logp)
    for first in range(0, len(values), answers // 2):
        some = torch.tensor(values[first : first + answers // 2], dtype=torch.float64)
        means = torch.cat([some, -some, torch.zeros(answers - 2 * len(some))])
        logp = batch.old_logp.double() + means[:, None]
        lower = logp.clamp(min=0).amax(1, keepdim=True)  # no log-probability above 0
        logp, old = (x.to(batch.dtype) for x in (logp - lower, batch.old_logp.double() - lower))
        yield replace(batch, name=f"{_short(batch)}, own numbers as mean log-ratios", logp=logp, old_logp=old,
                      on_policy=False)  # fmt: skip


def _with(batch: Probe, kind: str, advantages: Tensor) -> Probe:
    return replace(batch, name=f"{_short(batch)}, {kind}", advantages=advantages.to(batch.dtype))


def _short(batch: Probe) -> str:
    return batch.name.partition(",")[0]
