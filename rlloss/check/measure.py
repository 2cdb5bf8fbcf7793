"""A loss on a probe: its gradient, bit by bit; and two gradients beside each other: equal, or unequal for what reason.

Where bits differ, the difference is held against the rounding of the terms that autograd summed: the sum of their
absolute values (``Measurement.terms``), not what was left of them. Where terms cancel, an ulp of the rest says nothing.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial, reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlloss.check.probes import Probe, ulps_from
from rlloss.errors import LossError
from rlloss.losses.formulation import Formulation, dtype_name

# What counts as rounding, of which no more is meant than: not told apart from rounding. Each is relative to the terms.
ULPS_OF_ROUNDING = 4  # units in the last place: eight operations that round to half a unit, which no loss here exceeds
LOGP_ROUNDINGS = 16  # times (1 + |logp| + |old_logp|) * eps: exp turns a log-probability's rounding into the ratio's,
# and a loss that forms the ratio by other operations (of both logs, of sums over a sequence) makes a few of them
SHRINKS = 2**20  # times, at least, from float32 to float64, which have 29 digits between them: then it is rounding
SMALL = 2**-40  # of the terms in float64, 4,096 of its units: what is proved to be one gradient differs so by rounding
MOST_ROUNDINGS = 2.0**20  # of which a difference may consist
EPS_64 = torch.finfo(torch.float64).eps
AS_MANY = 4  # times the roundings of a long format may be those of a short one, of which fewer cancel
NEXT_TO_NOTHING = 1e-6  # of the largest difference, each relative to its terms
COARSE = 1 / 16  # of the terms, where 16 such roundings would be more: bfloat16 and float16 have too few digits for 16
COARSEST = 1 / 2  # of the terms, where even one would: half of a gradient is never called rounding

Array = NDArray[np.float64]


class Margin(NamedTuple):
    """What more than usual is rounding, where something is known of two losses.

    ``shortest``: a format in which one computes something whatever its inputs are. ``roundings``: so many of them, in
    every format: a difference that shrinks with the format as rounding does. ``proved``: they are one gradient in exact
    arithmetic, so that whatever data that move by their rounding explain is rounding.
    """

    shortest: torch.dtype | None = None
    roundings: float = 0.0
    proved: bool = False


USUAL = Margin()
MOVES = (1.0, -4.0, 4.0)  # of one advantage: beyond all others, too, for ranks
OUTER_AT = 48  # samples
COMMON = 2.5  # of log-ratios and advantages
DRAWS, MOVED = 4, 8  # of how data are rounded; by so many roundings, so that what is left of them is not rounded away


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within: of how many numbers the largest tensor is that is made."""

    numbers = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first operation within would load torch's compiler, which takes a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        self.numbers = max([self.numbers, *(x.numel() for x in made if isinstance(x, Tensor))])
        return result


def refuse_outer(loss: Formulation, clip_coef: float) -> None:
    """Raises: LossError for a per-sample loss that makes N × N numbers of N samples: far too many for large batches.

    That is what [N] and [N, 1] come to together.
    """
    sizes = () if loss.sequence else (OUTER_AT, 2 * OUTER_AT)
    found = []
    for n in sizes:
        logp = torch.linspace(-2, -0.1, n, requires_grad=True)
        with suppress(LossError), _Largest() as made:  # type: ignore[no-untyped-call]
            loss(logp, logp.detach() - 0.1, torch.linspace(-1, 1, n), clip_coef=clip_coef)
        found.append(made.numbers)
    if sizes and all(numbers >= n * n for numbers, n in zip(found, sizes, strict=True)) and found[1] > 3 * found[0]:
        raise LossError(
            f"{loss.name} makes N × N numbers of a batch of N, too many for the batches that are tried, of 65,536; if "
            "every sample does not meet every other on purpose, [N] and [N, 1] do so together: squeeze one of them"
        )


@dataclass(frozen=True)
class Measurement:
    """A loss on a probe. On a grid the gradient is that of the sum (the mean times N, a power of two).

    What only unequal losses need, ``nearby``, ``terms`` and ``data_terms``, is measured when first asked for.
    """

    loss: Formulation
    probe: Probe
    clip_coef: float
    gradient: Array  # d loss / d logp, exactly as autograd returned it
    values: Array  # per-sample losses, or the one scalar

    def nearby(self, rounded: torch.dtype) -> tuple[Array, Array]:
        """The gradient with every logp an ulp lower, and an ulp higher (``nudge``)."""
        if rounded not in self._nearby:
            below, above = (
                gradient_of(self.loss, self.probe, nudge(self.probe, side, rounded), self.clip_coef)[0]
                for side in (-1, 1)
            )
            self._nearby[rounded] = below, above
        return self._nearby[rounded]

    @cached_property
    def _nearby(self) -> dict[torch.dtype, tuple[Array, Array]]:
        return {}

    @cached_property
    def terms(self) -> Array:
        """The gradient as a sum over all paths to logp, every term with its absolute value; 0 where that overflows."""
        _, total, logp, _ = gradient_of(self.loss, self.probe, self.probe.logp, self.clip_coef)
        for node in nodes_of(total.grad_fn):
            node.register_hook(_absolute)
        (terms,) = torch.autograd.grad(total, logp)
        return np.nan_to_num(array(terms.abs()), nan=0.0, posinf=0.0)

    @cached_property
    def data_terms(self) -> Array:
        """How far the gradient goes with the data's own rounding, in units of that: what ``terms`` knows nothing of.

        Rewards that are nearly their mean cancel before logp is met, and their rounding is what is left. So each is
        moved by a few roundings of it, up or down at random, and then the other way, and four times as far. Where that
        does not move the gradient further, it jumps, as where rewards are equal no more: that is no rounding.
        """
        found = np.zeros_like(self.gradient)
        for near, far in self._moved:
            for change in (np.minimum, np.maximum):
                once, more = change(*near), change(*far)
                found = np.fmax(found, np.where(more >= 2 * once, once, 0.0))
        return found / self._step

    @cached_property
    def data_moves(self) -> Array:
        """The same, jumps included."""
        return reduce(np.fmax, [change for near, _ in self._moved for change in near]) / self._step

    @property
    def _step(self) -> float:
        return MOVED * torch.finfo(self.probe.dtype).eps

    @cached_property
    def _moved(self) -> list[tuple[list[Array], list[Array]]]:
        """How far the gradient goes with the data, by ``_step`` and by four of it, each to both sides."""
        generator = torch.Generator().manual_seed(0)
        found = []
        A = self.probe.advantages
        for way in (
            *(torch.randint(0, 2, A.shape, generator=generator).to(A.dtype) * 2 - 1 for _ in range(DRAWS)),
            torch.sign(A),  # their mean moves, and
            torch.sign(A.abs().double() - A.abs().double().mean()).to(A.dtype),  # their deviation
        ):
            near, far = (
                [self._change(1 + sign * size * way) for sign in (1, -1)] for size in (self._step, 4 * self._step)
            )
            found.append((near, far))
        return found

    def _change(self, factors: Tensor) -> Array:
        """By how much the gradient changes with these multiples of the data; 0 where that is not finite."""
        probe = replace(self.probe, advantages=self.probe.advantages * factors)
        with np.errstate(invalid="ignore", over="ignore"):
            change = np.abs(gradient_of(self.loss, probe, probe.logp, self.clip_coef)[0] - self.gradient)
        return np.nan_to_num(change, nan=0.0, posinf=0.0)


@dataclass(frozen=True)
class Contrast:
    """Two measurements on one probe, element by element: equal, or unequal for one of five reasons."""

    probe: Probe
    ulp: Array  # the rounding, in units in the last place of the terms; 0 for all others
    edge: NDArray[np.bool_]  # one gradient jumps within an ulp of logp: a clip bound, a rounding tie
    subnormal: NDArray[np.bool_]  # the gradient is subnormal on its way, and loses digits
    not_finite: NDArray[np.bool_]  # a gradient is infinite or NaN
    real: NDArray[np.bool_]  # explained by nothing
    clip_coef: float  # what both losses got
    size: Array  # of what no rounding explains: the difference, relative to the terms
    share: Array  # of the same: the difference, relative to the largest terms of the batch

    @property
    def common(self) -> NDArray[np.bool_]:
        """Where a sample's numbers are such that no operation saturates or overflows, in float32 at least."""
        p = self.probe
        with np.errstate(divide="ignore", invalid="ignore"):
            moderate = np.abs(array(p.logp - p.old_logp)) <= COMMON
        A = np.abs(array(p.sample_advantages))
        result: NDArray[np.bool_] = moderate & (array(p.logp) >= -2 * COMMON) & (A <= COMMON)
        return result

    @property
    def unequal(self) -> bool:
        """Whether any bit differs where both gradients are finite."""
        return bool(self.ulp.any() or self.edge.any() or self.subnormal.any() or self.real.any())


def measure(loss: Formulation, probe: Probe, clip_coef: float) -> Measurement:
    """The loss's gradient and values on a probe. Raises: LossError if the loss cannot be used."""
    gradient, _, _, result = gradient_of(loss, probe, probe.logp, clip_coef)
    return Measurement(loss, probe, clip_coef, gradient, array(result))


def gradient_of(loss: Formulation, probe: Probe, at: Tensor, clip_coef: float) -> tuple[Array, Tensor, Tensor, Tensor]:
    """The gradient at logp = ``at``; and what it is the gradient of, the leaf and the result, with their graph."""
    logp = at.clone().requires_grad_()
    with warnings.catch_warnings():  # of a deviation of one sample, say: whoever compares losses has not asked for it
        warnings.simplefilter("ignore")
        result = probe.loss(loss, logp, clip_coef)
    total = result.mean() * logp.numel() if probe.grid else result.mean()
    try:
        (gradient,) = torch.autograd.grad(total, logp, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise LossError(f"{loss.name}: autograd raised {' '.join(str(error).split())}") from error
    if gradient is None:
        raise LossError(f"{loss.name} has no gradient with respect to logp; it depends on something else alone")
    return array(gradient), total, logp, result


def mixes(loss: Formulation, clip_coef: float) -> bool:
    """Whether the gradient at one sample depends on another's advantage: as those of normalised rewards do."""
    try:
        return _mixes(loss, clip_coef)
    except TypeError:  # a callable object that cannot be hashed
        return _mixes.__wrapped__(loss, clip_coef)


@lru_cache(maxsize=128)
def _mixes(loss: Formulation, clip_coef: float) -> bool:
    generator = torch.Generator().manual_seed(3)
    shape = (8, 2) if loss.sequence else (8,)
    for dtype in (torch.float64, torch.float32):  # some take no float64
        logp, old_logp = (-0.1 - torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in "ab")
        A = torch.randn(8, generator=generator, dtype=torch.float64).to(dtype)
        probe = Probe("mixed", False, logp, old_logp, A, torch.ones(shape, dtype=torch.bool) if loss.sequence else None)
        moved = [replace(probe, advantages=A + by * torch.eye(8, dtype=dtype)[0]) for by in MOVES]
        try:
            x, *others = (gradient_of(loss, p, p.logp, clip_coef)[0].reshape(8, -1)[1:] for p in (probe, *moved))
        except LossError:
            continue
        return not all(np.array_equal(x, y, equal_nan=True) for y in others)
    return True


def nudge(probe: Probe, side: int, rounded: torch.dtype) -> Tensor:
    """logp moved down or up by one ulp, and by at least two ulp of the ratio, as it is ``rounded``."""
    eps = torch.finfo(rounded).eps
    moved = probe.logp + side * 2 * eps
    neighbour = ulps_from(probe.logp, side)
    if rounded != probe.dtype:
        neighbour = probe.logp + side * eps * (probe.logp.abs() + probe.old_logp.abs())
    return torch.minimum(moved, neighbour) if side < 0 else torch.maximum(moved, neighbour)


def nodes_of(root: Any) -> Iterator[Any]:
    """Every node of an autograd graph, once."""
    seen, todo = {root}, [root]
    while todo:
        node = todo.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)


def _absolute(grad_inputs: tuple[Tensor | None, ...], _: object) -> tuple[Tensor | None, ...]:
    """A hook that keeps terms from cancelling where autograd adds them up."""
    return tuple(None if g is None else g.abs() for g in grad_inputs)


def array(x: Tensor) -> Array:
    return x.detach().double().numpy().ravel()


def contrast(a: Measurement, b: Measurement, margin: Margin = USUAL) -> Contrast:
    """Tell rounding from an edge, and both from a real difference, element by element."""
    x, y, probe = a.gradient, b.gradient, a.probe
    unequal = (x != y) & ~(np.isnan(x) & np.isnan(y))
    none = np.zeros_like(unequal)
    if not unequal.any():
        flat, same = none.astype(float), {"edge": none, "subnormal": none, "not_finite": none, "real": none}
        return Contrast(probe=probe, ulp=flat, **same, clip_coef=a.clip_coef, size=flat, share=flat)
    not_finite = unequal & ~(np.isfinite(x) & np.isfinite(y))
    terms = np.fmax(np.fmax(np.abs(x), np.abs(y)), np.fmax(a.terms, b.terms))
    rounded = coarser(probe.dtype, margin.shortest)
    subnormal = unequal & ~not_finite & _underflows(probe, terms, rounded)
    unequal &= ~(not_finite | subnormal)
    rounding, ulp = _rounding(x, y, terms, probe, margin)
    mixing = (unequal & ~rounding).any() and (mixes(a.loss, a.clip_coef) or mixes(b.loss, b.clip_coef))
    rounds = partial(_rounding, probe=probe, margin=margin, summed=len(x) if mixing else 1)
    if mixing:
        rounding, ulp = rounds(x, y, terms)
    edge, unexplained = none, unequal & ~rounding
    if unexplained.any():
        near_a, near_b = a.nearby(rounded), b.nearby(rounded)
        for left, right in ((near_a[0], y), (near_a[1], y), (x, near_b[0]), (x, near_b[1])):
            edge = edge | rounds(left, right, terms)[0]
        beside = [rounds(*pair, terms)[0] for pair in zip(near_a, near_b, strict=True)]
        # Where both jump, each to a value of its own, as to half of a gradient and to none.
        edge = edge | (beside[0] & beside[1] & array(probe.logp != probe.old_logp).astype(bool))
    if probe.on_policy and probe.dtype == torch.float64:
        edge = none  # not a place that is hit by chance: whole minibatches have the ratio 1
    if mixing and (unexplained & ~edge).any():
        moves = (m.data_moves if margin.proved else m.data_terms for m in (a, b))
        terms = np.fmax(terms, np.where(edge, 0.0, np.fmax(*moves)))
        of_data, ulp_of_data = rounds(x, y, terms)
        of_data &= unexplained & ~edge
        rounding, unexplained, ulp = rounding | of_data, unexplained & ~of_data, np.where(of_data, ulp_of_data, ulp)
    with np.errstate(invalid="ignore"):
        apart = np.abs(x - y)
    return Contrast(
        probe=probe,
        ulp=np.where(unequal & rounding, ulp, 0.0),
        edge=unexplained & edge,
        subnormal=subnormal,
        not_finite=not_finite,
        real=(real := unexplained & ~edge),
        clip_coef=a.clip_coef,
        size=np.divide(apart, terms, out=np.zeros_like(terms), where=real & (terms > 0)),
        share=np.divide(apart, terms.max(), out=np.zeros_like(terms), where=real & (terms > 0)),
    )


def _rounding(
    x: Array, y: Array, terms: Array, probe: Probe, margin: Margin, summed: int = 1
) -> tuple[NDArray[np.bool_], Array]:
    """Whether x - y is no more than rounding, and its size in units in the last place of the terms.

    ``summed``: of so many numbers, one after another, whose roundings add up as a random walk goes.
    """
    coarsest = coarser(probe.dtype, margin.shortest)
    eps = torch.finfo(coarsest).eps
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(x - y)
        ulp = np.ceil(apart / spacing(terms, coarsest))
    unit = (1 + array(probe.logp.abs() + probe.old_logp.abs())) * eps * max(1.0, math.sqrt(summed) / LOGP_ROUNDINGS)
    usual = np.minimum(np.maximum(unit, np.minimum(LOGP_ROUNDINGS * unit, COARSE)), COARSEST)
    allowed = np.maximum(usual, margin.roundings * eps) * terms
    return (ulp <= ULPS_OF_ROUNDING) | (apart <= allowed), ulp


def coarser(dtype: torch.dtype, other: torch.dtype | None) -> torch.dtype:
    """The one with fewer digits; None has none to compare."""
    return dtype if other is None or torch.finfo(other).eps <= torch.finfo(dtype).eps else other


def shrinking(contrasts: Sequence[Contrast]) -> float:
    """How many roundings explain what differs in float64 and in float32, if it shrinks from one to the other as
    rounding does, batch by batch; 0 if nothing differs, or if it does not.
    """
    fine, coarse = (
        [(c.probe.name, c.probe.on_policy, float(c.size.max())) for c in contrasts if c.probe.dtype == dtype]
        for dtype in (torch.float64, torch.float32)
    )
    if [batch[:2] for batch in fine] != [batch[:2] for batch in coarse]:
        return 0.0
    sizes = [(x, y) for (*_, x), (*_, y) in zip(fine, coarse, strict=True)]
    largest = max((x for x, _ in sizes), default=0.0)
    if not largest or any(SHRINKS * x > max(y, torch.finfo(torch.float32).eps) for x, y in sizes):
        return 0.0
    roundings = 2 * max(max(x / EPS_64, y / torch.finfo(torch.float32).eps) for x, y in sizes)
    return roundings if roundings <= MOST_ROUNDINGS else 0.0


def small(contrasts: Sequence[Contrast]) -> float:
    """How many roundings of float64 explain what differs in it, as in a sum of thousands; 0 if it is more than that."""
    sizes = [float(c.size.max()) for c in contrasts if c.probe.dtype == torch.float64 and not c.probe.extreme]
    return 2 * max(sizes) / torch.finfo(torch.float64).eps if 0 < max(sizes, default=0.0) <= SMALL else 0.0


def in_short_formats(contrasts: Sequence[Contrast]) -> float:
    """How many roundings explain what differs in short formats alone, by those of the formats in which nothing does;
    0 if the longest differs, too, or if there are no more of them than usual.
    """
    differ = {c.probe.dtype for c in contrasts if c.real.any()}
    longest = min((c.probe.dtype for c in contrasts), key=lambda dtype: torch.finfo(dtype).eps)
    if not differ or longest in differ:
        return 0.0
    most = max(float(c.ulp.max()) for c in contrasts if c.probe.dtype not in differ)
    return AS_MANY * most if most > ULPS_OF_ROUNDING else 0.0


def spacing(x: Array, dtype: torch.dtype) -> Array:
    """One unit in the last place of |x| in ``dtype``; below the normal range, the smallest subnormal."""
    info = torch.finfo(dtype)
    _, exponent = np.frexp(np.maximum(x, info.smallest_normal))
    unit: Array = np.ldexp(info.eps, exponent - 1)
    return unit


def _underflows(probe: Probe, terms: Array, rounded: torch.dtype) -> NDArray[np.bool_]:
    """Where the gradient, or A/N or the ratio on its way to it, loses digits because it is subnormal (float16: often).

    The ratio does so where a factor is ``rounded`` in a shorter format.
    """
    smallest = 4 * max(torch.finfo(dtype).smallest_normal for dtype in (probe.dtype, rounded))
    if rounded != probe.dtype:
        terms = np.fmin(terms, array(probe.ratio))
    incoming = np.abs(array(probe.sample_advantages)) / (1 if probe.grid else probe.logp.numel())
    lost: NDArray[np.bool_] = ((incoming != 0) & (incoming < smallest)) | (terms < smallest)
    return lost


def telling(contrasts: Sequence[Contrast]) -> list[int]:
    """The places of those that really differ, in the finest format that does, and not by next to nothing beside others:
    what differs so little may be the rounding of long sums.
    """
    real = [i for i, c in enumerate(contrasts) if c.real.any()]
    finest = min((torch.finfo(contrasts[i].probe.dtype).eps for i in real), default=0.0)
    real = [i for i in real if torch.finfo(contrasts[i].probe.dtype).eps == finest]
    largest = max((float(contrasts[i].size.max()) for i in real), default=0.0)
    return [i for i in real if contrasts[i].size.max() >= NEXT_TO_NOTHING * largest]


def describe(probe: Probe, i: int) -> str:
    """Element ``i`` of a probe in words."""
    ratio, A = float(array(probe.ratio)[i]), float(array(probe.sample_advantages)[i])
    return f"{dtype_name(probe.dtype)}, {probe.name}, ratio {ratio:.6g}, A = {A:.4g}"
