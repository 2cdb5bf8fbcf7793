"""One loss by itself: to which changes of a batch its gradient is blind, and whether its derivatives are its own.

Each question changes a batch in one way, and compares the gradients before and after. What a trainer takes for
granted (padding, the order of the samples, micro-batches) is often not so, and never raises an error.
"""

import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlloss.check.comparison import CLIP_COEF, AnyLoss
from rlloss.check.derivatives import Derivatives, derivatives_of, reason
from rlloss.check.measure import Array, measure, refuse_outer
from rlloss.check.numbers import numbers_of
from rlloss.check.padding import UNDER_MASK, under_mask
from rlloss.check.probes import Probe, random_batch
from rlloss.check.survey import check_settings, groups_of
from rlloss.check.text import LABEL, WIDTH
from rlloss.errors import LossError
from rlloss.losses.formulation import Formulation, dtype_name, resolve

DTYPES = (torch.float64, torch.float32)  # coarser ones cannot tell rounding from a change
YES, ROUNDING, NO, NOT_TRIED = "yes", "up to rounding", "NO", "not tried"
SAMPLES, ANSWERS = 100, 16  # of the largest batch
CHANGED = 1e-5  # of the gradient's norm: more is a change; float32 rounds a hundredth of that
Gradient = Callable[[Probe], Array]


@dataclass(frozen=True)
class Trait:
    """One question: whether the gradient stays the same under one kind of change, and if not, by how much it moves."""

    name: str
    asks: str  # what was done to the batches
    verdict: str  # yes: to the last bit; up to rounding; NO; not tried
    change: float  # the largest seen, relative to the gradient's norm (L2); inf: it became infinite or NaN
    example: str = ""  # of a NO: the smallest batch that shows it, and what was done to it
    factors: tuple[float, ...] = ()  # by what the example's gradient is multiplied: one number, or one per sequence
    why: tuple[str, ...] = ()  # in words: what becomes of the gradient, elsewhere too


@dataclass(frozen=True)
class Alone:
    """What ``examine`` found about one loss."""

    loss: str
    sequence: bool
    clip_coef: float
    dtypes: tuple[str, ...]
    seed: int
    traits: tuple[Trait, ...]
    derivatives: Derivatives
    left_out: tuple[str, ...]  # what was not tried, and why
    groups: int = 1  # divides the number of samples, or of answers, of all that was tried

    def trait(self, name: str) -> Trait:
        return next(trait for trait in self.traits if trait.name == name)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a change that is no number is null there."""
        kinds = {"true_loss": self.derivatives.true_loss, "second_order": self.derivatives.second_order}
        return {**asdict(self), "derivatives": {**kinds, **asdict(self.derivatives)}}


def examine(
    loss: AnyLoss, *, clip_coef: float | None = CLIP_COEF, dtypes: Sequence[torch.dtype] = DTYPES, seed: int = 0
) -> Alone:
    """One loss by itself: what its gradient does not depend on, and whether it is a true loss, of second order too.

    Args: a loss as ``compare`` takes it; ``clip_coef`` (None: 0.2); the dtypes, of which float64 and float32 are used
        (both, if neither is among them); the seed of the random batches.
    Raises: LossError (a ValueError) for a loss that cannot be used, in one line that names it.
    """
    clip_coef = CLIP_COEF if clip_coef is None else clip_coef
    check_settings(clip_coef, dtypes)
    fine = [dtype for dtype in dtypes if dtype in DTYPES] or list(DTYPES)
    with warnings.catch_warnings():  # of the user's function: they are about batches that nobody trains on
        warnings.simplefilter("ignore")
        formulation = resolve(loss)
        refuse_outer(formulation, clip_coef)
        groups = groups_of((formulation,), clip_coef, numbers_of(formulation.function))
        taken, left_out = _taken(formulation, fine, clip_coef, groups)
        probes = [p for dtype in taken for p in batches(dtype, seed, sequence=formulation.sequence, groups=groups)]
        finite = _finite(formulation, probes, clip_coef, left_out)
        questions = OF_SEQUENCES if formulation.sequence else OF_SAMPLES
        traits = tuple(_answer(question, formulation, finite, clip_coef, left_out) for question in questions)
        derivatives = derivatives_of(formulation, clip_coef, seed)
        if old := formulation.old_policies():
            left_out.append(f"another number for {old[0]} than for {' or '.join(old[1:])}: all got the one old policy")
    return Alone(
        formulation.name,
        formulation.sequence,
        clip_coef,
        tuple(map(dtype_name, taken)),
        seed,
        traits,
        derivatives,
        tuple(dict.fromkeys(left_out)),
        groups,
    )


def _taken(
    loss: Formulation, dtypes: Sequence[torch.dtype], clip_coef: float, groups: int
) -> tuple[list[torch.dtype], list[str]]:
    """The dtypes that a loss takes, and in words those that it does not. Raises: the first's LossError if all."""
    taken, errors = [], {}
    for dtype in dtypes:
        ordinary = batches(dtype, 0, sequence=loss.sequence, groups=groups)[-1]
        try:
            first, again = (measure(loss, ordinary, clip_coef).gradient for _ in range(2))
        except LossError as error:
            errors[dtype] = error
            continue
        if not np.array_equal(first, again, equal_nan=True):
            raise LossError(
                f"{loss.name} gives another gradient when called again; one that is random, or keeps a state from call "
                "to call, cannot be examined"
            )
        taken.append(dtype)
    if not taken:
        raise next(iter(errors.values()))
    return taken, [f"{dtype_name(d)}: {reason(loss, error)}" for d, error in errors.items()]


def _finite(
    loss: Formulation, probes: Sequence[Probe], clip_coef: float, left_out: list[str]
) -> list[tuple[Probe, Array]]:
    """The batches on which a loss has a finite gradient, with it. One sample has no standard deviation, for example."""
    found = []
    for probe in probes:
        try:
            gradient = _gradient(loss, clip_coef)(probe)
        except LossError as error:
            left_out.append(f"{probe.name}: {reason(loss, error)}")
            continue
        if np.isfinite(gradient).all():
            found.append((probe, gradient))
        else:
            left_out.append(f"{probe.name}: its gradient is not finite there")
    return found


def _gradient(loss: Formulation, clip_coef: float) -> Gradient:
    return lambda probe: measure(loss, probe, clip_coef).gradient.reshape(tuple(probe.logp.shape))


# ------------------------------------------------------------------------------------------------------- batches


def batches(dtype: torch.dtype, seed: int, *, sequence: bool, groups: int = 1) -> list[Probe]:
    """The batches that are changed, the smallest first, so that the first that tells is the smallest example.

    ``groups``: divides the number of samples, or of answers, of each.
    """
    generator = torch.Generator().manual_seed(seed)
    if sequence:
        lengths = [[1], [1, 1], [1, 2], [2, 4, 1, 3], [5, 5, 5, 5]]
        lengths += [torch.randint(1, 12, (n,), generator=generator).tolist() for n in (8, ANSWERS)]
        return [_sequences((each * groups)[: _in_whole(len(each), groups)], dtype, generator) for each in lengths]
    sizes = dict.fromkeys(_in_whole(n, groups) for n in (1, 2, 3, 4, 7, 64, SAMPLES))
    return [_samples(n, dtype, generator) for n in sizes]


def _in_whole(n: int, groups: int) -> int:
    return math.ceil(n / groups) * groups


def _samples(n: int, dtype: torch.dtype, generator: torch.Generator) -> Probe:
    """N samples; on-policy if there are few, so that no clip leaves an example without a gradient."""
    name = f"{n} sample{'s' if n > 1 else ''}"
    return replace(random_batch(n, dtype, generator, 0.0 if n < 4 else 0.3), name=name)


def _sequences(lengths: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Probe:
    """Answers of these lengths, padded to the longest; in large batches with a hole, as a tool's words leave one."""
    rows, width = len(lengths), max(lengths)
    flat = _samples(rows * width, dtype, generator)
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    if rows > 4 and width > 2:
        mask[mask.sum(1).argmax(), 1] = False
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64).to(dtype)
    logp, old_logp = flat.logp.view(rows, width), flat.old_logp.view(rows, width)
    return Probe(_answers(mask.sum(1).tolist()), flat.on_policy, logp, old_logp, advantages, mask)


def _answers(lengths: Sequence[int]) -> str:
    if len(lengths) == 2 and lengths[0] != lengths[1]:
        return f"answers of {lengths[0]} and {lengths[1]} tokens"
    answers = f"{len(lengths)} answer{'s' if len(lengths) > 1 else ''}"
    if min(lengths) != max(lengths):
        return f"{answers} of {min(lengths)} to {max(lengths)} tokens"
    return f"{answers} of {lengths[0]} token{'s' if lengths[0] > 1 else ''}"


# ----------------------------------------------------------------------------------------------------- questions


@dataclass(frozen=True)
class Trial:
    """One batch before and after one change, element by element."""

    probe: Probe
    how: str  # what was done to it
    before: Array
    after: Array
    kind: str = ""  # the kind of change, where some kinds can matter and others not
    expected: tuple[float, str] | None = None  # a factor, and what it would mean
    scale: float | None = None  # that a difference is held against; None: the norm of the gradient before

    @property
    def change(self) -> float:
        """The difference relative to the gradient; inf if it is not finite afterwards."""
        if np.array_equal(self.before, self.after):
            return 0.0
        if not np.isfinite(self.after).all():
            return math.inf
        scale = self.scale or float(np.linalg.norm(self.before)) or float(np.linalg.norm(self.after))
        return float(np.linalg.norm(self.after - self.before)) / scale

    @property
    def factors(self) -> tuple[float, ...]:
        """The number by which the gradient was multiplied, or one for each sequence; () if it is no multiple."""
        rows = [slice(None)] if self.before.ndim == 1 else range(len(self.before))
        found: list[float] = []
        if not np.isfinite(self.after).all():
            return ()
        for row in rows:
            x, y = np.atleast_1d(self.before[row]), np.atleast_1d(self.after[row])
            moving = x != 0
            if not moving.any() and not y.any():
                continue
            multiples = y[moving] / x[moving]
            if y[~moving].any() or np.ptp(multiples) > CHANGED * np.abs(multiples).max():
                return ()
            found.append(float(np.median(multiples)))
        same = np.ptp(found) <= CHANGED * np.abs(found).max() if found else False
        return (found[0],) if same else tuple(found)


def _padded(gradient: Gradient, probe: Probe, before: Array) -> Iterator[Trial]:
    width = probe.logp.shape[1]
    for more in (1, 3, width):
        wider = _widened(probe, more)
        how = f"padded from {width} column{'s' if width > 1 else ''} to {width + more}"
        expected = (width / (width + more), "it is divided by the width")
        yield Trial(probe, how, np.pad(before, ((0, 0), (0, more))), gradient(wider), expected=expected)


def _widened(probe: Probe, more: int) -> Probe:
    """With more columns, masked, of the log-probability -1."""
    assert probe.mask is not None
    logp, old_logp = (torch.nn.functional.pad(x, (0, more), value=-1.0) for x in (probe.logp, probe.old_logp))
    mask = torch.nn.functional.pad(probe.mask, (0, more), value=False)
    return replace(probe, logp=logp, old_logp=old_logp, mask=mask)


def _under_mask(gradient: Gradient, probe: Probe, before: Array) -> Iterator[Trial]:
    """Other numbers where the mask is False, which must reach nothing, and whose own gradient must be 0."""
    probe = _widened(probe, 1)
    assert probe.mask is not None
    counted = np.where(probe.mask.numpy(), gradient(probe), 0.0)  # again: the width may matter, which is not asked here
    for kind, numbers in UNDER_MASK.items():
        yield Trial(probe, f"{kind} under the mask", counted, gradient(under_mask(probe, *numbers)), kind)


def _with_empty(gradient: Gradient, probe: Probe, before: Array) -> Iterator[Trial]:
    assert probe.mask is not None
    rows = len(before)
    logp, old_logp = (torch.cat([x, torch.full_like(x[:1], -1.0)]) for x in (probe.logp, probe.old_logp))
    mask = torch.cat([probe.mask, torch.zeros_like(probe.mask[:1])])
    advantages = torch.cat([probe.advantages, torch.full_like(probe.advantages[:1], 0.5)])
    batch = replace(probe, logp=logp, old_logp=old_logp, advantages=advantages, mask=mask)
    expected = (rows / (rows + 1), "it counts in the divisor")
    how = "beside one without a token"
    yield Trial(probe, how, np.pad(before, ((0, 1), (0, 0))), gradient(batch), expected=expected)


def _rows(probe: Probe, rows: slice | Tensor) -> Probe:
    mask = None if probe.mask is None else probe.mask[rows]
    logp, old_logp, advantages = probe.logp[rows], probe.old_logp[rows], probe.advantages[rows]
    return replace(probe, logp=logp, old_logp=old_logp, advantages=advantages, mask=mask)


def _reordered(gradient: Gradient, probe: Probe, before: Array) -> Iterator[Trial]:
    rows = len(before)
    if rows == 1:
        return
    for how, order in (
        ("in reverse", torch.arange(rows).flip(0)),
        ("shuffled", torch.randperm(rows, generator=torch.Generator().manual_seed(rows))),
    ):
        yield Trial(probe, how, before[order.numpy()], gradient(_rows(probe, order)))


def _in_halves(gradient: Gradient, probe: Probe, before: Array) -> Iterator[Trial]:
    """Two micro-batches of as many rows each, whose losses are averaged."""
    rows = len(before)
    if rows % 2:
        return
    halves = [_rows(probe, half) for half in (slice(None, rows // 2), slice(rows // 2, None))]
    after = np.concatenate([gradient(half) / 2 for half in halves])
    if rows == 2 and not np.isfinite(after).all():
        return  # one sample alone has no standard deviation
    tokens = [int(half.mask.sum()) for half in halves if half.mask is not None]
    kind = ("as many tokens in both halves" if tokens[0] == tokens[1] else "more tokens in one half") if tokens else ""
    how = "one in each micro-batch" if rows == 2 else "half of them in each micro-batch"
    yield Trial(probe, how, before, after, kind, (0.5, "it is a sum over the batch"))


def _among_others(gradient: Gradient, probe: Probe, before: Array) -> Iterator[Trial]:
    """One row's gradient with other numbers in all other rows, of the same lengths."""
    rows = len(before)
    if rows == 1:
        return
    for i in dict.fromkeys((0, rows // 2, rows - 1)):
        mine = (torch.arange(rows) == i).view(-1, *[1] * (probe.logp.ndim - 1))
        changed = replace(
            probe,
            logp=torch.where(mine, probe.logp, 0.7 * probe.logp - 0.1),
            old_logp=torch.where(mine, probe.old_logp, 0.9 * probe.old_logp - 0.3),
            advantages=torch.where(mine.flatten(), probe.advantages, 1 - 2 * probe.advantages),
        )
        scale = float(np.linalg.norm(before)) / math.sqrt(rows)  # its own may be 0, behind a clip
        x, y = np.atleast_1d(before[i]), np.atleast_1d(gradient(changed)[i])
        yield Trial(probe, "other numbers in all but one", x, y, scale=scale)


def _shifted(gradient: Gradient, probe: Probe, before: Array) -> Iterator[Trial]:
    for by in (1, 3, 7):
        batch = replace(probe, logp=probe.logp - by, old_logp=probe.old_logp - by)
        yield Trial(probe, f"with logp and old_logp {by} lower", before, gradient(batch))


@dataclass(frozen=True)
class Question:
    name: str
    asks: str
    trials: Callable[[Gradient, Probe, Array], Iterator[Trial]]
    most: int = 1  # factors that say something: of the whole gradient, or of each half's


ORDER = "order"
SHIFT = Question("logp shifted", "one number added to logp and to old_logp", _shifted)
OF_SEQUENCES = (
    Question("padding", "the answers padded to more columns", _padded),
    Question("under mask", "anything under the mask: an overflowing ratio, -1e10, -inf, nan", _under_mask),
    Question("empty answer", "one more answer, without a token", _with_empty),
    Question(ORDER, "the answers in another order", _reordered),
    Question("split in two", "two micro-batches of as many answers, the mean of their losses", _in_halves, 2),
    Question("others", "one answer's gradient, with other numbers in the other answers", _among_others, 0),
    SHIFT,
)
OF_SAMPLES = (
    Question(ORDER, "the samples in another order", _reordered),
    Question("split in two", "two micro-batches of as many samples, the mean of their losses", _in_halves, 2),
    Question("others", "one sample's gradient, with other numbers in the other samples", _among_others, 0),
    SHIFT,
)


def _answer(
    question: Question,
    loss: Formulation,
    probes: Sequence[tuple[Probe, Array]],
    clip_coef: float,
    left_out: list[str],
) -> Trait:
    trials: list[Trial] = []
    for probe, before in probes:
        try:
            trials += question.trials(_gradient(loss, clip_coef), probe, before)
        except LossError as error:
            left_out.append(f"{question.name}, {probe.name}: {reason(loss, error)}")
    if not trials:
        return Trait(question.name, question.asks, NOT_TRIED, 0.0)
    changed = [trial for trial in trials if trial.change > CHANGED]
    largest = max(trial.change for trial in trials)
    if changed:
        return _no(question, trials, changed)
    coarse = [t for t in trials if t.change > 256 * torch.finfo(t.probe.dtype).eps]
    why = (f"off by {largest:.0e} in {dtype_name(coarse[0].probe.dtype)}",) if coarse else ()
    return Trait(question.name, question.asks, ROUNDING if largest else YES, largest, why=why)


def _no(question: Question, trials: Sequence[Trial], changed: Sequence[Trial]) -> Trait:
    """The smallest example of a change; a multiple counts as one only if every change is one."""
    first, dtype = changed[0], changed[0].probe.dtype
    multiples = all(trial.factors for trial in changed) and len(first.factors) <= question.most
    factors = first.factors if multiples else ()
    explained = [
        t.expected is not None and len(t.factors) == 1 and _close(t.factors[0], t.expected[0]) for t in changed
    ]
    why = [_effect(first, factors)]
    if multiples and first.expected is not None and all(explained):
        why[0] += f" ({first.expected[1]})"
    else:
        larger = [t for t in changed if t.probe.logp.numel() > first.probe.logp.numel() and math.isfinite(t.change)]
        worst = sorted(larger, key=lambda trial: trial.change)[-1:]
        why += [f"{t.probe.name}: off by {t.change:.2g} of its norm" for t in worst]
    bad = dict.fromkeys(trial.kind for trial in changed if trial.kind)
    fine = dict.fromkeys(trial.kind for trial in trials if trial.kind and trial.kind not in bad)
    kinds = [f"likewise with {', '.join(list(bad)[1:])}"] if len(bad) > 1 else []
    kinds += [f"unchanged with {', '.join(fine)}"] if fine else []
    why += ["; ".join(kinds)] if kinds else []
    example = f"{first.probe.name}, {first.how}"
    if dtype != trials[0].probe.dtype:
        example += f" ({dtype_name(dtype)})"
    largest = max(trial.change for trial in changed)
    return Trait(question.name, question.asks, NO, largest, example, factors, tuple(why))


def _close(x: float, y: float) -> bool:
    return math.isclose(x, y, rel_tol=CHANGED)


def _effect(trial: Trial, factors: Sequence[float]) -> str:
    """In words: what became of the gradient."""
    broken = ~np.isfinite(trial.after)
    unequal = broken | (trial.after != trial.before)
    mask = trial.probe.mask
    hidden = mask is not None and mask.shape == trial.before.shape and not (unequal & mask.numpy()).any()
    if broken.any() and hidden:
        return f"gradient {trial.after[broken][0]:g} at a masked position, and so for every parameter"
    if broken.any():
        return f"gradient {trial.after[broken][0]:g}"
    if hidden:
        return f"gradient {trial.after[unequal][0]:.3g} at a masked position"
    if not trial.after.any():
        return "gradient 0"
    if factors:
        return f"gradient times {' and '.join(f'{x:.6g}' for x in factors)}"
    return f"gradient off by {trial.change:.2g} of its norm"


# -------------------------------------------------------------------------------------------------------- words


def text(found: Alone) -> str:
    """The report on one loss, for the terminal: one answer a line, for a NO with its smallest example."""
    lines = [f"{found.loss} by itself: does its gradient stay the same?", ""]
    for trait in found.traits:
        lines += _labelled(trait.name, trait.verdict, _said(trait))
    lines += ["", *_labelled("true loss", *_true_loss(found.derivatives))]
    lines += _labelled("second order", *_second_order(found.derivatives))
    most = _in_whole(ANSWERS if found.sequence else SAMPLES, found.groups)
    batch = f"{found.groups} to {most} {'answers of 1 to 11 tokens' if found.sequence else 'samples'}"
    settings = f"{batch}; {', '.join(found.dtypes)}; clip_coef {found.clip_coef:g}; seed {found.seed}"
    more = [f"{len(found.left_out) - 3} more"] if len(found.left_out) > 3 else []
    for label, entries in (("left out", [*found.left_out[:3], *more]), ("tried", [settings])):
        for i, entry in enumerate(entries):
            lines += _wrapped(f"{label if i == 0 else '':<{LABEL}}", entry)
    return "\n".join(lines)


def _said(trait: Trait) -> list[str]:
    if trait.verdict != NO:
        return ["; ".join((trait.asks, *trait.why))]
    return [f"{trait.example}: {trait.why[0]}", *trait.why[1:]]


def _labelled(label: str, verdict: str, entries: Sequence[str]) -> list[str]:
    column = len(ROUNDING) + 2
    lines = []
    for i, entry in enumerate(entries):
        lines += _wrapped(f"{label:<{LABEL}}{verdict:<{column}}" if i == 0 else " " * (LABEL + column), entry)
    return lines


def _wrapped(first: str, entry: str) -> list[str]:
    return textwrap.wrap(entry, WIDTH, initial_indent=first, subsequent_indent=" " * len(first))


def _true_loss(d: Derivatives) -> tuple[str, list[str]]:
    if d.true_loss is None:
        return NOT_TRIED, [d.why]
    if d.true_loss:
        return YES, ["its gradient is the slope of its value"]
    return NO, ["a surrogate: its gradient is not the slope of its value"]


def _second_order(d: Derivatives) -> tuple[str, list[str]]:
    if d.second_order is None:
        return NOT_TRIED, [f"it cannot be differentiated twice: {d.why}" if d.gradient is not None else d.why]
    if d.second_order:
        return YES, ["autograd's Hessian is the slope of its gradient"]
    network = f" ({d.network:.2g} through a small network)" if d.network is not None else ""
    off = f"autograd's Hessian is off by {d.hessian:.2g} of its norm{network}"
    return NO, [f"{off}: Hessian-vector products, gradient penalties and MAML see another loss"]
