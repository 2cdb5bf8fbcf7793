"""One loss on everything that is tried: the probes that it takes, and a small network that it trains."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlloss.check.batches import sample_probes, sequence_probes
from rlloss.check.measure import Measurement, array, contrast, measure, refuse_outer
from rlloss.check.numbers import group_sizes, numbers_of
from rlloss.check.probes import Probe, in_whole, random_batch, random_sequences
from rlloss.errors import LossError
from rlloss.losses.formulation import Formulation, describe_inputs, dtype_name

FIRST, SMALL = 10, 1_024  # probes of at most so many numbers, of which a loss takes one if it takes their dtype


@dataclass(frozen=True)
class Survey:
    """One loss on every probe of every dtype that it takes, and its parameter gradients in a small network."""

    loss: Formulation
    probes: list[Probe]
    measurements: list[Measurement]
    networks: list["Through"]
    places: list[int]  # of these probes among all
    refused: Mapping[str, list[str]]  # why the others are not among them -> their names

    def on(self, places: set[int]) -> "Survey":
        """On these probes alone."""
        kept = [i for i, place in enumerate(self.places) if place in places]
        probes = [self.probes[i] for i in kept]
        through = {id(probe): gradient for probe, gradient in zip(networks(self.probes), self.networks, strict=True)}
        return replace(
            self,
            probes=probes,
            measurements=[self.measurements[i] for i in kept],
            networks=[through[id(probe)] for probe in networks(probes)],
            places=[self.places[i] for i in kept],
        )


def survey(
    loss: Formulation,
    clip_coef: float,
    dtypes: Sequence[torch.dtype],
    seed: int,
    numbers: Sequence[float] = (),
    groups: int = 1,
) -> Survey:
    """Measure a loss everywhere, also where ``numbers`` that losses are written with may be bounds.

    All batches are whole multiples of ``groups``. Those of a size that it does not take even so are left out.

    Raises: LossError; also for NaN on ordinary samples, and for random results.
    """
    refuse_outer(loss, clip_coef)
    places, probes, measurements = [], [], []
    refused: dict[str, list[str]] = {}
    everywhere = (p for dtype in dtypes for p in probes_of(dtype, clip_coef, seed, numbers, loss, groups))
    for place, probe in enumerate(everywhere):
        try:
            measured = measure(loss, probe, clip_coef)
        except LossError as error:
            if probe.grid:
                raise
            refused.setdefault(str(error).rpartition(", given ")[0], []).append(probe.name)
            continue
        # One sample or answer alone has no deviation: losses that normalise advantages themselves are NaN there.
        if probe.ordinary and len(probe.logp) > 1 and not np.isfinite(measured.gradient).all():
            raise LossError(f"{loss.name}: {_not_finite(probe, measured)}")
        places.append(place)
        probes.append(probe)
        measurements.append(measured)
    again = measure(loss, probes[0], clip_coef)
    if not np.array_equal(again.gradient, measurements[0].gradient, equal_nan=True):
        raise LossError(
            f"{loss.name} gives another gradient when called again; one that is random, or keeps a state from call to "
            "call, cannot be compared"
        )
    through = [network_gradient(loss, probe, clip_coef) for probe in networks(probes)]
    return Survey(loss, probes, measurements, through, places, refused)


def together(a: Survey, b: Survey) -> tuple[Survey, Survey, tuple[str, ...]]:
    """Both on the probes that both take; and in words which batches that leaves out, and why. Raises: LossError."""
    both = {*a.places} & {*b.places}
    kept = [probe for place, probe in zip(a.places, a.probes, strict=True) if place in both and probe.ordinary]
    refused = [(name, why) for s in (a, b) for why, names in s.refused.items() for name in names]
    if len({probe.on_policy for probe in kept}) < 2:
        raise LossError(f"{refused[0][1]}; of the batches that are tried too few have a size that it takes")
    reasons: dict[str, tuple[str, dict[str, None]]] = {}  # by what they have in common: all but the sizes
    for name, why in {name.split(",")[0]: why for name, why in reversed(refused)}.items():
        _, names = reasons.setdefault(re.sub(r"\d+", "", why), (why, {}))
        names[name.removeprefix("N = ")] = None
    words = [f"batches of {_listed([*names][::-1])}, as {why}" for why, names in reasons.values()]
    return a.on(both), b.on(both), tuple(words)


def _listed(names: Sequence[str]) -> str:
    """Sizes, as N = 1, 2, 7, and what batches are called."""
    sizes, others = ([name for name in names if name.isdigit() == number] for number in (True, False))
    return ", ".join([*(["N = " + ", ".join(sizes)] if sizes else []), *others])


def probes_of(
    dtype: torch.dtype, clip_coef: float, seed: int, numbers: Sequence[float], loss: Formulation, groups: int
) -> Iterator[Probe]:
    """Those that a loss can take."""
    if loss.sequence:
        found = sequence_probes(dtype, clip_coef, seed, numbers, tokens=loss.per_token)
    else:
        found = sample_probes(dtype, clip_coef, seed, numbers)
    return (in_whole(probe, groups) for probe in found)


def groups_of(losses: Sequence[Formulation], clip_coef: float, numbers: Sequence[float]) -> int:
    """A number that divides those of the samples, or answers, of all batches that the losses take; 1 for nearly all.

    One of ``numbers``, or the least common multiple of two, of which no power of two is a multiple.
    """
    sizes = [1, *group_sizes(numbers)]
    together = sorted({math.lcm(*pair) for pair in combinations_with_replacement(sizes, 2)}, key=lambda n: (n > 64, n))
    for groups in together:
        if (groups == 1 or groups & (groups - 1)) and all(_takes(loss, clip_coef, groups) for loss in losses):
            return groups
    return 1


def _takes(loss: Formulation, clip_coef: float, groups: int) -> bool:
    """Whether a loss takes a batch that is a multiple of these groups, and of a power of two that others divide."""
    for dtype in (torch.float64, torch.float32):  # some take no float64
        generator = torch.Generator().manual_seed(0)
        if loss.sequence:
            probe = random_sequences((64 * groups, 4), dtype, generator, 0.3, ragged=False)
        else:
            probe = random_batch(64 * groups, dtype, generator, 0.3)
        with suppress(LossError):
            measure(loss, probe, clip_coef)
            return True
    return False


def usable(
    losses: Sequence[Formulation],
    clip_coef: float,
    dtypes: Sequence[torch.dtype],
    seed: int,
    numbers: Sequence[float] = (),
    groups: int = 1,
) -> tuple[tuple[torch.dtype, ...], tuple[str, ...]]:
    """The dtypes that all losses take; and for each other one which loss refuses it, and how.

    Raises: LossError if there is none that all take.
    """
    taken, refused = [], []
    for dtype in dtypes:
        try:
            for loss in losses:
                probes = probes_of(dtype, clip_coef, seed, numbers, loss, groups)
                small = (probe for probe in probes if probe.ordinary and probe.logp.numel() <= SMALL)
                first = islice(small, FIRST + 2 * len(group_sizes(numbers)))
                _try_first(loss, first, clip_coef)
            taken.append(dtype)
        except LossError as error:
            refused.append((dtype, error))
    if not taken:
        raise refused[0][1]
    return tuple(taken), tuple(f"{dtype_name(dtype)}: {error}" for dtype, error in refused)


def _try_first(loss: Formulation, probes: Iterable[Probe], clip_coef: float) -> None:
    """Raises: LossError if a loss takes none of these: the first, or the last if they differ in more than sizes."""
    errors = []
    for probe in probes:
        try:
            measure(loss, probe, clip_coef)
        except LossError as error:
            errors.append(error)
        else:
            return
    first, last = (re.sub(r"\d+", "", str(error)) for error in (errors[0], errors[-1]))
    raise errors[0] if first == last else errors[-1]


def _not_finite(probe: Probe, measured: Measurement) -> str:
    i = int(np.flatnonzero(~np.isfinite(measured.gradient))[0])
    ratio, A = float(array(probe.ratio)[i]), float(array(probe.sample_advantages)[i])
    return (
        f"its gradient is {measured.gradient[i]} on an ordinary batch of {describe_inputs(probe.logp)}, "
        f"at ratio {ratio:.6g}, A = {A:.6g}"
    )


def networks(probes: Sequence[Probe]) -> list[Probe]:
    """The probes that are also run through a network: a power of two and another, on- and off-policy."""
    return [p for p in probes if p.network]


class Through(NamedTuple):
    """A batch whose log-probabilities are a network's, and the gradient of all its parameters."""

    batch: Probe
    gradient: Tensor


def network_gradient(loss: Formulation, probe: Probe, clip_coef: float) -> Through:
    """The gradient of all parameters of a small softmax policy whose actions have the probe's advantages.

    ``old_logp`` comes from the same network with its weights moved a little, or not at all if on-policy.
    """
    generator = torch.Generator().manual_seed(probe.logp.numel())
    shape = probe.logp.shape

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(probe.dtype)

    obs, weights = draw(*shape, 6), [draw(6, 16) / 2, draw(16, 4) / 2]
    actions = torch.randint(0, 4, (*shape, 1), generator=generator)

    def logp(layers: Sequence[Tensor]) -> Tensor:
        logits = torch.tanh(obs @ layers[0]) @ layers[1]
        return torch.log_softmax(logits, -1).gather(-1, actions).squeeze(-1)

    old_logp = logp([w + (0 if probe.on_policy else 0.2) * draw(*w.shape) for w in weights])
    leaves = [w.requires_grad_() for w in weights]
    mine = logp(leaves)
    batch = replace(probe, logp=mine.detach(), old_logp=old_logp.detach())
    gradients = torch.autograd.grad(batch.loss(loss, mine, clip_coef).mean(), leaves)
    return Through(batch, torch.cat([g.flatten() for g in gradients]))


def unlike_in_float16(f: Formulation, g: Formulation, clip_coef: float) -> str:
    """In words: that two losses are others in a format in which they were not tried, as by a branch; or "".

    What is proved to the last bit is proved for every format.
    """
    for spread in (0.3, 0.0):
        for size in (1, 64):
            generator = torch.Generator().manual_seed(0)
            shape = (size // 8 + 1, 8)
            probe = (random_sequences(shape, torch.float16, generator, spread, ragged=False) if f.sequence
                     else random_batch(size, torch.float16, generator, spread))  # fmt: skip
            with suppress(LossError):
                if contrast(measure(f, probe, clip_coef), measure(g, probe, clip_coef)).unequal:
                    return f"in float16 they differ, as on a batch of {probe.name}"
    return ""


def changing(losses: Sequence[Formulation], before: Sequence[tuple[float, ...]]) -> str:
    """In words: a loss whose numbers are others after its calls than ``before``, as one that counts them; or ""."""
    for loss, numbers in zip(losses, before, strict=True):
        if other := sorted({*numbers} ^ {*numbers_of(loss.function)}):
            return (f"{loss.name} keeps a state: {other[0]:g}, which it reads or has read, changes from call to call, "
                    "as what counts them does")  # fmt: skip
    return ""


def check_kinds(left: Formulation, right: Formulation) -> None:
    if left.sequence != right.sequence:
        one, other = (left, right) if left.sequence else (right, left)
        raise LossError(
            f"{one.name} is a sequence loss, on [batch, tokens] with a mask, and {other.name} is per sample; "
            "compare two of a kind"
        )


def check_settings(clip_coef: float, dtypes: Sequence[torch.dtype]) -> None:
    if not 0 < clip_coef < 1:
        raise LossError(f"--clip-coef={clip_coef}: must lie between 0 and 1")
    if not dtypes:
        raise LossError("dtypes: needs at least one")
