"""Whether gradients that differ are one another's multiples, in words."""

import math

import torch
from torch import Tensor

from rlloss.bisect.align import LEAF, begins_at_once, behind, computing, paired
from rlloss.bisect.incoming import outside
from rlloss.bisect.passes import gradients_of
from rlloss.bisect.saying import place_of, subject
from rlloss.watch.tape import Joint, Tape

ROUNDINGS = 8  # in ulp: of a sum of gradients, and of a factor that is taken away from it again
FEW = 4  # numbers, of which less are one another's multiples by chance


def scaled(a: Tape, b: Tape) -> str:
    """Whether the first gradients that differ are one another's multiples, in each backward pass by one number."""
    factors: dict[int, float] = {}
    for joint, other in paired(a.joints, b.joints):
        if joint.backward in factors or joint.gradient.digest == other.gradient.digest:
            continue
        one, two = a.values.get(joint.gradient.digest), b.values.get(other.gradient.digest)
        if one is None or two is None or one.shape != two.shape:
            return ""
        factor = factor_of(one.double(), two.double(), least=1)  # which all parameters' gradients must have
        if factor is None or abs(factor - 1) < 1e-5:
            return ""
        factors[joint.backward] = factor
    if not factors or not all(_explained(factors, *pair, a, b) for pair in paired(a.joints, b.joints)):
        return ""
    if _differing_numbers(a, b) < FEW:
        return ""
    said = ", ".join(f"{factor:.6g}" for factor in factors.values())
    if len(factors) > 1 and max(factors.values()) - min(factors.values()) > 1e-5:
        return (f"another normaliser in each of {len(factors)} backward passes: b has the gradients of a times {said}; "
                "a mean of means weighs every micro-batch alike, however many samples it has")  # fmt: skip
    (at, factor), *_ = factors.items()
    passes = sorted({joint.backward for joint in a.joints if joint.node == LEAF})
    alone = at in passes and len(factors) < len(passes)
    of = f" in backward pass {passes.index(at) + 1} of {len(passes)}" if alone else ""
    return f"b has the gradient of a times {factor:.6g}{of}: another coefficient, another mean or norm, or a hook"


def _differing_numbers(a: Tape, b: Tape) -> int:
    """How many numbers of the parameters' gradients are others."""
    pairs = ((x, y) for x, y in paired(a.joints, b.joints) if x.node == LEAF and x.gradient.digest != y.gradient.digest)
    values = [a.values.get(x.gradient.digest) for x, _ in pairs]
    return sum(int(value.count_nonzero()) for value in values if value is not None)


def undone(a: Tape, b: Tape) -> str:
    """In words: whether what is computed after the backward pass makes one run's gradient of the other's; or ""."""
    for which, tape, other in (("b", b, a), ("a", a, b)):
        mine, there = gradients_of(tape), gradients_of(other)
        wanted = [x for name, (x, _) in there.items() if name in mine and not torch.equal(x, mine[name][0])]
        for entry in behind(computing(tape.entries)):
            made = (tape.values.get(number.digest) for number in entry.outputs)
            if any(_is_but_rounded(x, total) for x in made if x is not None for total in wanted):
                return f", which {which} takes away again by {entry.op} at {place_of(entry)}"
    return ""


def _is_but_rounded(made: Tensor, total: Tensor) -> bool:
    if made.numel() != total.numel() or not made.is_floating_point() or total.is_complex() or not total.count_nonzero():
        return False
    off = (made.flatten().double() - total.flatten()).abs().max()
    return bool(off <= ROUNDINGS * torch.finfo(made.dtype).eps * total.abs().max())


def scaled_once(joint: Joint, other: Joint, one: Tensor, two: Tensor, a: Tape, b: Tape) -> str:
    """Whether all that differs does so by one tensor whose gradient is a multiple of the other run's.

    One number is always another's multiple: then by the same operations, of the same data.
    """
    uses = [sorted(node for node, _, _ in each.consumers) for each in (joint, other)]
    if (one.numel() == 1 and (uses[0] != uses[1] or joint.node == LEAF)) or not begins_at_once(a, b):
        return ""
    if one.numel() > 1:
        factor = factor_of(one.double(), two.double())
    else:
        factor = float(two / one) if one.all() and two.all() and outside(a) == outside(b) else None
    if factor is None or abs(factor - 1) < 1e-5 or not math.isfinite(factor):
        return ""
    return (f"the gradient of {subject(joint)} is that of a times {factor:.6g} in b: another coefficient, mean or "
            "norm, or a hook")  # fmt: skip


def _explained(factors: dict[int, float], joint: Joint, other: Joint, a: Tape, b: Tape) -> bool:
    """Whether a parameter's gradient differs by the factor of its backward pass, and by nothing else."""
    one, two = a.values.get(joint.gradient.digest), b.values.get(other.gradient.digest)
    if joint.node != LEAF or one is None or two is None or not one.count_nonzero():
        return True
    expected = factors.get(joint.backward, 1.0) * one.double()
    return bool((two.double() - expected).abs().max() <= 1e-3 * expected.abs().max())


def factor_of(one: Tensor, two: Tensor, least: int = FEW) -> float | None:
    """The number by which the first is multiplied to get the second; None if there is none."""
    if one.count_nonzero() < least or bool(((one == 0) != (two == 0)).any()):
        return None
    ratios = two[one != 0] / one[one != 0]
    middle = float(ratios.median())
    spread = (ratios - middle).abs().max()
    return middle if bool(spread <= 1e-5 * abs(middle)) and math.isfinite(middle) else None
