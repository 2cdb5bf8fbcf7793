"""Are two losses one gradient? Settled without training: point by point, batch by batch, then through a network."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rlloss.check import counterexample, regions, sizes
from rlloss.check.derivatives import is_true_loss
from rlloss.check.measure import (
    USUAL,
    Contrast,
    Margin,
    array,
    contrast,
    describe,
    in_short_formats,
    measure,
    shrinking,
    small,
)
from rlloss.check.numbers import numbers_of
from rlloss.check.padding import compare_padding
from rlloss.check.probes import LONGEST, Probe, random_batch, random_sequences
from rlloss.check.result import ANY_SIZE, FEW, ONE_OLD_POLICY, SIZES, TOKENS, Comparison, Part, Proof, Values
from rlloss.check.survey import (
    Survey,
    changing,
    check_kinds,
    check_settings,
    groups_of,
    survey,
    together,
    unlike_in_float16,
    usable,
)
from rlloss.errors import LossError
from rlloss.losses.formulation import ANSWERS, Formulation, asked_of_tokens, dtype_name, resolve
from rlloss.verdicts import Verdict

if TYPE_CHECKING:
    from rlloss.check.prove import Prover

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
CLIP_COEF = 0.2
VANISHING = 1e-30  # a gradient of float64 that is smaller, or its inverse larger, than any of a training
MOST_TOKENS = 10**6  # of an answer: a larger number in a loss counts none

AnyLoss = str | Callable[..., Any]


def compare(
    f: AnyLoss,
    g: AnyLoss,
    *,
    clip_coef: float | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    seed: int = 0,
    prove: bool = True,
) -> Comparison:
    """Compare the gradients of two losses: IDENTICAL, EQUAL or DIFFERENT, and everything said in ``Comparison``.

    - IDENTICAL: equal to the last bit on everything tried where both are finite.
    - EQUAL: not that, but never further apart than rounding explains; ``ulp`` says how far.
    - DIFFERENT: further apart somewhere; ``regions`` and ``example`` say where.

    Args: two losses, each a name of the zoo (``rlloss check --list``), ``file.py:function``,
        ``module:function``, or a function ``(logp, old_logp, advantages, *, clip_coef)`` that returns per-sample
        losses or their mean (with ``mask`` after ``advantages``: a sequence loss); ``clip_coef``, handed to both (None:
        0.2, and what is proved is proved for every number between 0 and 1); the dtypes to try, the first of which
        decides the regions; the seed of the random batches; ``prove``, whether to prove at all.
    Raises: LossError (a ValueError) for a loss that cannot be used, in one line that names it.
    """
    left, right = asked_of_tokens(resolve(f), resolve(g))
    check_kinds(left, right)
    prover = _prover(clip_coef) if prove else None
    clip_coef = CLIP_COEF if clip_coef is None else clip_coef
    check_settings(clip_coef, dtypes)
    before = [numbers_of(loss.function) for loss in (left, right)]
    a, b, dtypes, left_out = surveyed(left, right, clip_coef, dtypes, seed, prover)
    known = settle(a, b, clip_coef, dtypes, prover, changing((left, right), before))
    contrasts, found = known.contrasts, known.found
    tried_at = [*contrasts, *([found] if found else [])]
    parts = {on: part(tried_at, a, b, on_policy=on, margin=known.margin) for on in (True, False)}
    return Comparison(
        a=left.name,
        b=right.name,
        clip_coef=clip_coef,
        dtypes=tuple(map(dtype_name, dtypes)),
        on_policy=parts[True],
        off_policy=parts[False],
        regions=regions_of(left, right, contrasts, clip_coef),
        edges=regions.edges(contrasts),
        factor=sizes.factor(a.measurements, b.measurements, contrasts),
        size=sizes.size(a.measurements, b.measurements, contrasts),
        example=counterexample.example(left, right, found) if found is not None else None,
        values=values(a, b, clip_coef),
        not_finite=not_finite(a, b, contrasts),
        tried=tried(a.probes),
        seed=seed,
        proof=_of_one_old_policy(known.proof, left, right),
        padding=compare_padding(left, right, clip_coef),
        left_out=left_out,
        rounding=known.rounding,
        called=(*called(left, clip_coef), *called(right, clip_coef), *filter(None, [known.elsewhere])),
        single=prover is None or prover.may_shorten(left, right),
        digits=digits(left, right, known),
        alone_in=_alone_in(left, right, tried_at, dtypes),
        only_of_tokens=_only_of_tokens(tried_at),
    )


def surveyed(
    left: Formulation,
    right: Formulation,
    clip_coef: float,
    dtypes: Sequence[torch.dtype],
    seed: int,
    prover: "Prover | None",
) -> tuple[Survey, Survey, tuple[torch.dtype, ...], tuple[str, ...]]:
    """Both losses on all batches that both take, in the dtypes that both take; and in words what that leaves out."""
    numbers = sorted({*numbers_of(left.function, right.function), *(prover.numbers(left, right) if prover else ())})
    how = seed, numbers, groups_of((left, right), clip_coef, numbers)
    taken, refused = usable((left, right), clip_coef, dtypes, *how)
    a, b, sizes_refused = together(*(survey(loss, clip_coef, taken, *how) for loss in (left, right)))
    return a, b, taken, (*refused, *sizes_refused, *longer_answers(left, right))


def longer_answers(*losses: Formulation) -> Iterator[str]:
    """In words: a number in the losses' code that may count tokens, and more of them than any answer has."""
    if losses[0].sequence:
        large = [n for n in numbers_of(*(loss.function for loss in losses)) if LONGEST < n <= MOST_TOKENS]
        whole = [int(n) for n in large if n.is_integer()]
        if whole:
            yield f"answers of more than {LONGEST:,} tokens; {min(whole):,} is a number in their code"


def _of_one_old_policy(proof: Proof | None, *losses: Formulation) -> Proof | None:
    """A proof with what it is about, where a loss takes several old policies and has got one."""
    if proof is None or not any(loss.old_policies() for loss in losses):
        return proof
    return replace(proof, scope=proof.scope.replace("every input", f"every input{ONE_OLD_POLICY}", 1))


def regions_of(f: Formulation, g: Formulation, contrasts: Sequence[Contrast], clip_coef: float) -> tuple[str, ...]:
    """Where they differ, as finely as batches of a few samples tell if both losses take these."""
    try:
        return regions.regions(f, g, contrasts, clip_coef)
    except LossError:
        return regions.regions(f, g, contrasts, clip_coef, bisect=False)


def called(loss: Formulation, clip_coef: float) -> Iterator[str]:
    """In words: with what a loss was called that its author may not expect, as a half-width that is not its default."""
    if other := [f"{name}={clip_coef:g}, whose default is {its:g}" for name, its in loss.widths() if its != clip_coef]:
        yield f"{loss.name} with {' and '.join(other)}: --clip-coef is handed to both losses"
    if old := loss.old_policies():
        yield (f"{loss.name} with one old policy for {' and '.join(old)}: what they differ by was not tried; a loss of "
               "two old policies is compared by wrapping it")  # fmt: skip
    if absent := loss.absent():
        yield f"{loss.name} with {' and '.join(f'{name}=None' for name in absent)}, as by default: not tried otherwise"


def _alone_in(f: Formulation, g: Formulation, contrasts: Sequence[Contrast], dtypes: Sequence[torch.dtype]) -> str:
    """The dtype in which alone they differ, if finer ones were tried; or "".

    Not where the same numbers differ in the finest, too, of which the random batches in that one had none.
    """
    differing = [c for c in contrasts if c.real.any()]
    finest = min(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    found = {c.probe.dtype for c in differing}
    if len(found) != 1 or finest in found:
        return ""
    smallest = min(differing, key=lambda c: c.probe.logp.numel())
    return "" if differs_in(f, g, smallest, finest) else dtype_name(found.pop())


def _only_of_tokens(contrasts: Sequence[Contrast]) -> bool:
    differing = [c for c in contrasts if c.real.any()]
    return bool(differing) and all(c.probe.mask is not None and c.probe.advantages.dim() == 2 for c in differing)


def _prover(clip_coef: float | None) -> "Prover":
    from rlloss.check.prove import Prover  # here, since its solver takes a fifth of a second to load

    return Prover(clip_coef)


class Known(NamedTuple):
    """What trying two losses and proving them came to, each in the light of the other."""

    contrasts: list[Contrast]
    found: Contrast | None  # the example
    proof: Proof | None
    margin: Margin  # what more than usual is rounding
    rounding: str  # why, in words
    elsewhere: str  # in words: in which format one computes something else


def settle(
    a: Survey,
    b: Survey,
    clip_coef: float,
    dtypes: Sequence[torch.dtype],
    prover: "Prover | None",
    state: str = "",
) -> Known:
    """Look for an example, prove or refute, and tell rounding from a difference by what that shows.

    ``state``, in words: that of a loss that keeps one, of which nothing is proved.
    """
    f, g = a.loss, b.loss
    contrasts = contrast_all(a, b)
    found = counterexample.search(f, g, clip_coef, dtypes, contrasts)
    proof, refutation, shortest = None, None, None
    if prover is not None and state:
        proof = Proof("open", "open", why=state)
    elif prover is not None:
        proof, refutation = prover.prove_what_was_tried(f, g, contrasts, found)
        shortest = prover.shortest_format(f, g) if proof.holds else None
    shrinks = shrinking(contrasts) if refutation is None else 0.0
    holds = proof is not None and proof.holds
    proved = small(contrasts) if holds else 0.0
    in_short = in_short_formats(contrasts) if holds else 0.0
    margin = Margin(shortest, shrinks or proved or in_short, proved=holds)
    if margin != USUAL:
        contrasts, found = contrast_all(a, b, margin), again(f, g, found, margin)
    if proof is not None and proof.holds and _beyond_training(f, g, contrasts, proof):
        contrasts = [out_of_range(c) for c in contrasts]
        found = None if found is None else out_of_range(found)
    if margin != USUAL:
        real = [c for c in contrasts if c.real.any()]
        if real and (found is None or not found.real.any()):
            found = counterexample.alone(f, g, clip_coef, real, margin)
    rounding = rounding_in_words(margin, shrinks=shrinks > 0, in_short=not proved and in_short > 0)
    if proof is not None and proof.holds and found is not None and found.real.any() and not asked(found.probe):
        # What was found of a few samples goes for all sizes only if the loss computes the same of all.
        proof = replace(proof, scope=proof.scope.replace(ANY_SIZE, f"every input in {FEW}"))
    if refutation is not None and proof is not None:
        finest = in_finest(f, g, refutation, dtypes)
        if finest is None:
            proof = replace(proof, why=_only_in_float64(f, g, refutation))
        found = finest or found
    if proof is not None and proof.bitwise == "proved" and (why := unlike_in_float16(f, g, clip_coef)):
        proof = replace(proof, bitwise="open", bits_why=why)
    short = found is not None and found.real.any() and found.probe.dtype != torch.float64
    elsewhere = prover.elsewhere(f, g) if prover is not None and proof is not None and proof.holds and short else ""
    return Known(contrasts, found, proof, margin, rounding, elsewhere)


def _only_in_float64(f: Formulation, g: Formulation, refutation: Contrast) -> str:
    """What refutes a proof, where the formats that were asked for cannot tell it from rounding."""
    shown = counterexample.example(f, g, refutation)
    x, y = shown.gradients
    return f"in float64 they differ, as at ratio {shown.ratio:.6g}, A = {shown.advantage:.6g}: {x:.6g} and {y:.6g}"


def digits(f: Formulation, g: Formulation, known: Known) -> str:
    """In words: what becomes of the example of two that are proved to be one gradient, and yet differ; or ""."""
    c = known.found
    if c is None or not c.real.any() or known.proof is None or not known.proof.holds or not asked(c.probe):
        return ""
    if known.elsewhere:
        return ""
    i, p = counterexample.worst(c), c.probe
    if p.dtype == torch.float64:
        return "what differs is rounding, in float64 already: one of them loses its digits there"
    wide = replace(p, logp=p.logp.double(), old_logp=p.old_logp.double(), advantages=p.advantages.double())
    try:
        exact = [measure(loss, wide, c.clip_coef).gradient[i] for loss in (f, g)]
    except LossError:
        return ""
    computed = [measure(loss, p, c.clip_coef).gradient[i] for loss in (f, g)]
    off = [abs(x - y) for x, y in zip(computed, exact, strict=True)]
    loses = (f if off[0] > off[1] else g).name
    return (
        f"what differs is rounding: at the example float64 gives {exact[0]:.6g} and {exact[1]:.6g}, and {loses} loses "
        f"its digits in {dtype_name(p.dtype)}"
    )


def asked(probe: Probe) -> bool:
    """Whether a proof is asked about batches of this size, and does not conclude from smaller ones."""
    sizes = (SIZES[-1],) if probe.mask is None else TOKENS
    return all(n <= most for n, most in zip(probe.logp.shape, sizes, strict=True))


def _beyond_training(f: Formulation, g: Formulation, contrasts: Sequence[Contrast], proof: Proof) -> bool:
    """Whether all that differs does so at ratios that no training has, and is told to be rounding: by a proof that is
    about such batches, or since float64, whose range is wider, shows no difference but of what vanishes or overflows.
    """
    differing = [c for c in contrasts if c.real.any()]
    if not all(c.probe.extreme for c in differing):
        return False
    others = [c for c in differing if ANY_SIZE not in proof.scope and not asked(c.probe)]
    wide = [found for c in others if (found := differs_in(f, g, c, torch.float64)) is not None]
    return not any((found.real & _usual(f, g, found)).any() for found in wide)


def _usual(f: Formulation, g: Formulation, c: Contrast) -> NDArray[np.bool_]:
    x, y = (np.abs(measure(loss, c.probe, c.clip_coef).gradient) for loss in (f, g))
    larger: NDArray[np.bool_] = (np.maximum(x, y) > VANISHING) & (np.maximum(x, y) < 1 / VANISHING)
    return larger


def out_of_range(c: Contrast) -> Contrast:
    """What differs at ratios that no training has, of two that are proved to be one: as what is not finite there."""
    return replace(c, real=np.zeros_like(c.real), not_finite=c.not_finite | c.real) if c.probe.extreme else c


def rounding_in_words(margin: Margin, *, shrinks: bool, in_short: bool) -> str:
    """Why a difference that is larger than usual is rounding after all; "" if nothing is."""
    if margin.shortest is not None:
        return f"one factor is computed in {dtype_name(margin.shortest)}, whatever the inputs' dtype, and rounded so"
    if margin.roundings:
        many = f"some {margin.roundings:.1g} of its units"
        if in_short:
            return f"one gradient in exact arithmetic, and what differs in short formats is rounding, {many}"
        if not shrinks:
            return f"one gradient in exact arithmetic: what differs in float64 is rounding, {many}"
        return f"the difference shrinks from float32 to float64 as rounding does: {many}, in every format"
    return ""


def in_finest(f: Formulation, g: Formulation, refutation: Contrast, dtypes: Sequence[torch.dtype]) -> Contrast | None:
    """A refutation, which is in float64, in the finest of the dtypes that were asked for; None if it drowns there."""
    finest = min(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    if finest == torch.float64:
        return refutation
    return differs_in(f, g, refutation, finest)


def differs_in(f: Formulation, g: Formulation, c: Contrast, dtype: torch.dtype) -> Contrast | None:
    """The contrast of the same numbers in another dtype, if they differ there."""
    logp, old_logp, advantages = (x.to(dtype) for x in (c.probe.logp, c.probe.old_logp, c.probe.advantages))
    probe = replace(c.probe, logp=logp, old_logp=old_logp, advantages=advantages)
    found = contrast(measure(f, probe, c.clip_coef), measure(g, probe, c.clip_coef))
    return found if found.real.any() or found.not_finite.any() else None


def tried(probes: Sequence[Probe]) -> tuple[str, ...]:
    """In words: what a verdict rests on."""
    if probes[0].mask is not None:
        names = dict.fromkeys(probe.name.split(",")[0] for probe in probes)
        shapes = ", ".join(name for name in names if re.fullmatch(r"\d+ x \d+", name))
        batches = (
            f"batches of {shapes} tokens, of equal and unequal lengths, on- and off-policy; holes, late starts, empty "
            "answers, advantages of 0, of 0 and 1, and equal in a group; every ratio of a grid in answers of 1 and 2 "
            "tokens; log π from 0 to -40; the losses' own numbers as bounds, lengths, sizes, advantages and log-ratios"
        )
    else:
        points = next(probe.logp.numel() for probe in probes if probe.grid)
        sizes = ", ".join(map(str, sorted({probe.logp.numel() for probe in probes if probe.name.startswith("N")})))
        batches = (
            f"a grid of {points:,} (ratio, A) with both bounds and their neighbours, ratio 1, A = 0, rounding ties; "
            "ratios from 0 to inf and advantages, on both sides of the losses' own numbers; log π from 0 to -40; "
            f"random batches of N = {sizes}"
        )
    return (batches, "through a network of two layers to its parameters; and Hypothesis searched for an example")


def again(f: Formulation, g: Formulation, found: Contrast | None, margin: Margin) -> Contrast | None:
    """A contrast once more, now that more is known to be rounding."""
    if found is None:
        return None
    x, y = (measure(loss, found.probe, found.clip_coef) for loss in (f, g))
    return contrast(x, y, margin)


def contrast_all(a: Survey, b: Survey, margin: Margin = USUAL) -> list[Contrast]:
    return [contrast(x, y, margin) for x, y in zip(a.measurements, b.measurements, strict=True)]


def part(contrasts: Iterable[Contrast], a: Survey, b: Survey, *, on_policy: bool, margin: Margin = USUAL) -> Part:
    """The verdict on one half, from all that was tried there."""
    half = [c for c in contrasts if c.probe.on_policy == on_policy]
    worst = max(half, key=lambda c: c.ulp.max())
    furthest, moved = _network(a, b, on_policy=on_policy, margin=margin)
    differing = sum(int(c.real.sum()) for c in half)
    unequal = tuple(f"{dtype_name(c.probe.dtype)} {c.probe.name}" for c in half if c.unequal)
    close = Verdict.EQUAL if unequal or furthest else Verdict.IDENTICAL
    return Part(
        verdict=Verdict.DIFFERENT if differing or moved else close,
        samples=sum(int((~c.not_finite).sum()) for c in half),
        differing=differing,
        edges=sum(int(c.edge.sum()) for c in half),
        subnormal=sum(int(c.subnormal.sum()) for c in half),
        ulp=int(worst.ulp.max()),
        where=describe(worst.probe, int(worst.ulp.argmax())) if worst.ulp.any() else "",
        unequal=unequal,
        network=furthest,
    )


def _network(a: Survey, b: Survey, *, on_policy: bool, margin: Margin) -> tuple[float, bool]:
    """The largest relative difference of the parameters' gradients, and whether it is more than half of the digits.

    That is no difference where the samples of that very batch lie on an edge, or are rounded.
    """
    furthest, moved = 0.0, False
    for x, y in zip(a.networks, b.networks, strict=True):
        if x.batch.on_policy == on_policy and not torch.equal(x.gradient, y.gradient):
            one, other = x.gradient.double(), y.gradient.double()
            relative = float((one - other).norm()) / max(float(one.norm()), float(other.norm()))
            eps = max(torch.finfo(dtype).eps for dtype in (x.batch.dtype, margin.shortest or x.batch.dtype))
            furthest = max(furthest, relative)
            if relative > max(math.sqrt(eps), margin.roundings * eps):
                left, right = (measure(s.loss, x.batch, s.measurements[0].clip_coef) for s in (a, b))
                c = contrast(left, right, margin)
                moved = moved or bool(c.real.any()) or not c.unequal
    return furthest, moved


def not_finite(a: Survey, b: Survey, contrasts: Sequence[Contrast]) -> tuple[str, ...]:
    """In words: where one gradient is not a finite number and the other is, or is another one; for A > 0 and A < 0."""
    found: dict[str, list[str]] = {}
    for c, x, y in zip(contrasts, a.measurements, b.measurements, strict=True):
        if not c.not_finite.any():
            continue
        ratio, A = array(c.probe.ratio), array(c.probe.sample_advantages)
        for sign in (1, -1):
            for i in np.flatnonzero(c.not_finite & (np.sign(A) == sign))[:1]:
                gradients = (f"{g + 0.0:.4g} for {s.loss.name}" for g, s in ((x.gradient[i], a), (y.gradient[i], b)))
                batch = "" if c.probe.extreme else f", {c.probe.name}"
                text = f"at ratio {ratio[i]:.4g}, A = {A[i]:.4g}{batch} the gradient is {' and '.join(gradients)}"
                found.setdefault(text, []).append(dtype_name(c.probe.dtype))
    return tuple(f"{text} ({', '.join(dtypes)})" for text, dtypes in found.items())


def values(a: Survey, b: Survey, clip_coef: float) -> Values:
    """How the values differ, and what each is on a first minibatch."""
    widest, apart, sizes = a.probes[0].dtype, [], [1.0]
    batches: list[tuple[float, float]] = []  # off-policy, an ordinary one first
    for probe, x, y in zip(a.probes, a.measurements, b.measurements, strict=True):
        if probe.dtype == widest and not probe.grid and not probe.extreme:
            same = x.values.shape == y.values.shape
            one, other = (x.values, y.values) if same else (x.values.mean(), y.values.mean())
            apart.append(np.atleast_1d(np.where(np.isnan(one) & np.isnan(other), 0.0, other - one)))
            sizes += [float(np.nanmax(np.abs([*x.values.ravel(), *y.values.ravel(), 0.0])))]
            batches += [] if probe.on_policy else [(float(x.values.mean()), float(y.values.mean()))]
    difference, rounding = np.concatenate(apart), 64 * torch.finfo(widest).eps * max(sizes)
    constant = float(np.median(difference)) if np.ptp(difference) <= rounding else None
    shown = next((pair for pair in batches if abs(pair[0] - pair[1]) > rounding), batches[0])
    first = [first_minibatch(s.loss, widest, clip_coef) for s in (a, b)]
    return Values(
        batch=shown,
        first_minibatch=(first[0][0], first[1][0]),
        gradient_norm=(first[0][1], first[1][1]),
        constant=0.0 if constant is not None and abs(constant) <= rounding else constant,
        true_loss=(is_true_loss(a.loss, clip_coef), is_true_loss(b.loss, clip_coef)),
    )


def first_minibatch(loss: Formulation, dtype: torch.dtype, clip_coef: float) -> tuple[float, float]:
    """Mean loss and gradient norm where every ratio is 1 and the advantages have mean 0 and variance 1.

    Of 128 samples or 8 answers, or of the first other number that the loss takes; nan if it takes none.
    """
    for size in (8 if loss.sequence else 128, *ANSWERS[1:]):
        generator = torch.Generator().manual_seed(1)
        if loss.sequence:
            probe = random_sequences((size, 32), dtype, generator, 0.0, ragged=False)
        else:
            probe = random_batch(size, dtype, generator, 0.0)
        A = probe.advantages.double()
        normalised = ((A - A.mean()) / A.std()).to(dtype)
        probe = Probe(probe.name, True, probe.logp, probe.old_logp, normalised, probe.mask)
        with suppress(LossError):
            measured = measure(loss, probe, clip_coef)
            return float(measured.values.mean()), float(np.linalg.norm(measured.gradient))
    return math.nan, math.nan


def assert_same_gradient(
    f: AnyLoss,
    g: AnyLoss,
    *,
    bitwise: bool = False,
    proved: bool = False,
    clip_coef: float | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> None:
    """For test suites: raises AssertionError, with the short report, if the losses' gradients are DIFFERENT.

    ``bitwise=True`` also rejects EQUAL. ``proved=True`` also rejects what is not proved: in exact arithmetic, where a
    bound that is hit exactly may be an exception, and with ``bitwise=True`` to the last bit. The other arguments are
    those of ``compare``.
    """
    from rlloss.check.text import text  # which needs pandas, and a test that passes does not

    result = compare(f, g, clip_coef=clip_coef, dtypes=dtypes, prove=proved)
    known = result.proof is None or (result.proof.holds and (not bitwise or result.proof.bitwise == "proved"))
    if not result.holds or not known or (bitwise and result.verdict != Verdict.IDENTICAL):
        raise AssertionError("\n" + text(result))
