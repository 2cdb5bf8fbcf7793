"""Backward passes: how many a step makes, which parameters they reach, and what the optimiser gets of them."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from rlloss.bisect.align import LEAF, after_backward, behind, computing, counting, numbers_in
from rlloss.bisect.found import Cause
from rlloss.bisect.incoming import another_option, came_in, stale_gradients
from rlloss.bisect.saying import gap_of
from rlloss.watch.tape import Joint, Tape

NEAR_ULPS = 64  # to which it may be rounding, or a term that small
FAR = 1e-2  # of the largest number: beyond which a difference is more than another writing's
COUNTS = 1e-3  # of the largest gradient: below which one may be rounding as a whole, as that of a key's bias


def unlike_passes(a: Tape, b: Tape) -> Cause | None:
    """The runs make another number of backward passes in the step: do the gradients add up to the same?"""
    ours, theirs = (gradients_of(tape) for tape in (a, b))
    passes = [len({joint.backward for joint in tape.joints if joint.node == LEAF}) for tape in (a, b)]
    if passes[0] == passes[1] or not all(passes) or set(ours) != set(theirs):
        return None
    if stale := stale_gradients(a, b):
        return stale
    if _taken_back(a, b):
        return None
    said = f"another accumulation: {passes[0]} | {passes[1]} backward passes in the step"
    handed = _handed_on(a, ours), _handed_on(b, theirs)
    for which, mine, other in (("a", *handed), ("b", *handed[::-1])):
        if lost := sorted(other - mine):  # what neither optimiser is given, as of another network, is no difference
            what = f"what the optimiser of {which} is given for {lost[0]} is not their sum"
            return Cause(
                f"{said}, and {what}: something changes a gradient between the passes, as zero_grad() or clipping, or "
                "a step was left out"
            )
    for name, (one, dtype) in ours.items():
        off = float((one - theirs[name][0]).abs().max())
        if off > NEAR_ULPS * torch.finfo(dtype).eps * float(one.abs().max()):
            return Cause(f"{said}, and those of {name} do not add up to the same, by {off:.2g}", decided=False)
    if all(torch.equal(one, theirs[name][0]) for name, (one, _) in ours.items()):
        return None  # to the last bit: not the cause
    words = f"{said}, whose gradients add up to the same but for rounding, or a term that small"
    if (after := after_backward(a, b)).kind == "option":
        return Cause(f"{words}; {another_option(after).words}", decided=False)
    return Cause(words)


def _taken_back(a: Tape, b: Tape) -> bool:
    """Whether the passes that are more are nothing to the optimiser: zero_grad() takes back what they made."""
    counted = [counting(tape) for tape in (a, b)]
    passes = [len({joint.backward for joint in each}) for each in counted]
    sums = [gradients_of(tape, each) for tape, each in zip((a, b), counted, strict=True)]
    return passes[0] == passes[1] and all(_handed_on(tape, x) == set(x) for tape, x in zip((a, b), sums, strict=True))


def changed_between(a: Tape, b: Tape) -> Cause | None:
    """With equal gradients, one run alone gives its optimiser something else."""
    ours, theirs = (gradients_of(tape) for tape in (a, b))
    same = set(ours) == set(theirs) and all(torch.equal(one, theirs[name][0]) for name, (one, _) in ours.items())
    if not ours or not same or stale_gradients(a, b):
        return None
    handed = _handed_on(a, ours), _handed_on(b, theirs)
    for which, mine, other in (("a", *handed), ("b", *handed[::-1])):
        if lost := sorted(other - mine):
            passes = len({joint.backward for joint in a.joints if joint.node == LEAF})
            made = f"the sum of its {passes} backward passes'" if passes > 1 else "that of its backward pass"
            return Cause(f"with equal gradients, what the optimiser of {which} is given for {lost[0]} is not {made}: "
                         "something changes it between, as zero_grad(), clipping, or a write by NumPy")  # fmt: skip
    return None


def _handed_on(tape: Tape, gradients: Mapping[str, tuple[Tensor, torch.dtype]]) -> set[str]:
    """The parameters of which an operation after the last backward pass reads the sum of the gradients.

    All, if not every number is kept that is read there.
    """
    read = [number for entry in behind(computing(tape.entries)) for number in numbers_in(entry)]
    if any(number.digest not in tape.values for number in read):
        return set(gradients)
    values = [_wide(tape.values[number.digest]).flatten() for number in read]

    passes = len({joint.backward for joint in tape.joints})

    def is_read(total: Tensor, dtype: torch.dtype) -> bool:
        flat = total.flatten()  # a value is kept once, in whichever shape it came first
        most = max(1e-3, passes * torch.finfo(dtype).eps) * float(flat.abs().max())
        return any(x.shape == flat.shape and float((x - flat).abs().max()) <= most for x in values)

    return {name for name, gradient in gradients.items() if is_read(*gradient)}


def gradients_of(tape: Tape, joints: Sequence[Joint] | None = None) -> dict[str, tuple[Tensor, torch.dtype]]:
    """Of each parameter, over all backward passes or these, with the dtype in which they were made."""
    found: dict[str, tuple[Tensor, torch.dtype]] = {}
    for joint in tape.joints if joints is None else joints:
        value = tape.values.get(joint.gradient.digest)
        if joint.node == LEAF and joint.name and value is not None:
            before, _ = found.get(joint.name, (torch.zeros(()), value.dtype))
            found[joint.name] = (
                before + (value.to(torch.complex128) if value.is_complex() else value.double()),
                value.dtype,
            )
    return found


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.complex128) if x.is_complex() else x.double()


def without_gradient(a: Tape, b: Tape, names: Collection[str]) -> Cause | None:
    """A parameter gets a gradient in one run alone: by what comes in, or by what is computed of the same.

    One of ``names`` if there are any: a gradient of what no optimiser moves, as of the critic in the actor's step, has
    changed nothing.
    """
    ours, theirs = ({j.name for j in tape.joints if j.node == LEAF and j.name} for tape in (a, b))
    for which, other, tape, missing in (("b", "a", b, ours - theirs), ("a", "b", a, theirs - ours)):
        missing = missing & set(names) if names else missing
        if not missing or not ours & theirs:
            continue
        if came := came_in(a, b):
            return came
        unread = missing - set(tape.read)
        name, more = min(unread or missing), f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        if unread:
            return Cause(f"the forward pass of {which} does not use {name}{more}, with which {other} computes its loss")
        return Cause(f"{which} has no gradient for {name}{more}, for which {other} has one: a frozen parameter, "
                     "torch.no_grad(), detach(), or a loss that does not hang on it")  # fmt: skip
    return None


def far_apart(a: Tape, b: Tape) -> bool:
    """Whether the gradient of some parameter that counts differs by more than rounding."""
    theirs = {joint.name: b.values.get(joint.gradient.digest) for joint in b.joints if joint.node == LEAF}
    pairs = [(a.values.get(j.gradient.digest), theirs.get(j.name)) for j in a.joints if j.node == LEAF]
    kept = [(x, y) for x, y in pairs if x is not None and y is not None and x.shape == y.shape]
    sizes = [float(x.double().abs().max()) if x.numel() else 0.0 for x, _ in kept]
    return any(size > COUNTS * max(sizes) and gap_of(x, y) > FAR for size, (x, y) in zip(sizes, kept, strict=True))
