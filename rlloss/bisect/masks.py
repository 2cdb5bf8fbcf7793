"""Whether one run alone has no gradient for some numbers, by which operation, and what those have in common."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from rlloss.bisect.align import computing, paired, ulps
from rlloss.bisect.saying import assigned, name_of, plain, shortened
from rlloss.watch.tape import Entry, Joint, Tape

CLAMPS = re.compile("Clamp|Hardtanh|Relu")
FEW_ULPS = 4  # to which what is not masked agrees, multiplied in another order
FEW = 4  # elements, of which less have a rule in common by chance
BY_CHANCE = 0.01  # how likely a rule may be that says nothing


def masked(joint: Joint, a: Tape, b: Tape) -> str:
    """Whether one run alone has no gradient where the other has one, and both have the same elsewhere."""
    pairs = [  # of all micro-batches
        (x, y)
        for x, y in paired(a.joints, b.joints)
        if (x.node, x.where, x.gradient.shape[1:]) == (joint.node, joint.where, joint.gradient.shape[1:])
    ]
    one, two = (_joined(tape, [pair[i].gradient.digest for pair in pairs]) for i, tape in enumerate((a, b)))
    if one is None or two is None or one.dtype != two.dtype:
        return ""
    for which, tape, place, zero, full in (("b", b, 1, two, one), ("a", a, 0, one, two)):
        cut = (zero == 0) & (full != 0)
        if bool(cut.any()) and bool((ulps(zero, full)[~cut] <= FEW_ULPS).all()):
            other = "a" if which == "b" else "b"
            mine = next(pair[place] for pair in pairs if pair[0] is joint)
            cutter = _cutter(tape, mine)
            if not zero.any() and not cutter:
                continue  # it may cancel
            rule = _rule(cut, full != 0, joint, a, b) if int(cut.sum()) >= FEW else ""
            return (f"{which} has no gradient for {int(cut.sum())} of {cut.numel()} numbers for which {other} has one"
                    f"{cutter}{rule}")  # fmt: skip
    return ""


def _joined(tape: Tape, digests: Sequence[str]) -> Tensor | None:
    """Numbers one after the other; None if one is not kept."""
    values = [tape.values.get(digest) for digest in digests]
    return torch.cat([value.reshape(-1) for value in values if value is not None]) if None not in values else None


def _cutter(tape: Tape, joint: Joint) -> str:
    """By which operation: the clamp between the loss and the tensor that passes on less than it gets, if one does."""
    path = _towards_the_loss(tape, joint)
    clamps = [j for j in tape.joints if j.sequence in path and CLAMPS.match(j.node) and _cuts(tape, j)]
    return f": cut by {plain(clamps[-1].node)} at {shortened(clamps[-1].where)}" if clamps else ""


def _cuts(tape: Tape, clamp: Joint) -> bool:
    """Whether what goes into it has no gradient somewhere where what comes out has one."""
    behind = _joined(tape, [clamp.gradient.digest])
    into = [j for j in tape.joints if j.backward == clamp.backward and clamp.sequence in {s for _, s, _ in j.consumers}]
    for gradient in (_joined(tape, [j.gradient.digest]) for j in into):
        if behind is not None and gradient is not None and gradient.numel() == behind.numel():
            return bool(((gradient == 0) & (behind != 0)).any())
    return False


def _towards_the_loss(tape: Tape, joint: Joint) -> set[int]:
    """The sequence numbers of all nodes through which a gradient comes to a tensor."""
    consumers = {j.sequence: j.consumers for j in tape.joints if j.backward == joint.backward}
    found: set[int] = set()
    todo = [sequence for _, sequence, _ in joint.consumers]
    while todo:
        sequence = todo.pop()
        if sequence not in found:
            found.add(sequence)
            todo += [following for _, following, _ in consumers.get(sequence, [])]
    return found


def _rule(cut: Tensor, of: Tensor, joint: Joint, a: Tape, b: Tape) -> str:
    """A number on the way to the loss that both have and that says which elements are cut: those outside some bounds.

    One that its author named before others, what is clamped after what is not, and the last of the forward pass first.
    """
    there = {number.digest for entry in b.entries for number in entry.outputs}
    lines = {j.where for j in a.joints if j.sequence in _towards_the_loss(a, joint)}
    made: dict[tuple[str, str], list[Entry]] = {}
    for entry in computing(a.entries):
        if not entry.node and entry.outputs and entry.outputs[0].digest in there and entry.where in lines:
            made.setdefault((entry.op, entry.where), []).append(entry)
    last_first = list(made.values())[::-1]
    for entries in sorted(last_first, key=lambda e: (not assigned(e[0].where), e[0].op.startswith("clamp"))):
        value = _joined(a, [entry.outputs[0].digest for entry in entries])
        if value is None or value.numel() != cut.numel() or not value.is_floating_point():
            continue
        inside, outside = value[~cut & of].double(), value[cut].double()
        if _chance(inside, outside) * len(made) > BY_CHANCE:
            continue
        low, high = (float(inside.min()), float(inside.max())) if len(inside) else (math.nan, math.nan)
        if bool(((outside < low) | (outside > high)).all()):
            below, above = int((outside < low).sum()), int((outside > high).sum())
            sides = [f"{n} {word}" for n, word in ((below, f"below {low:.6g}"), (above, f"above {high:.6g}")) if n]
            return f"; exactly those where {name_of(entries[0], a)} is {' or '.join(sides)}, and no other's"
    return ""


def _chance(inside: Tensor, outside: Tensor) -> float:
    """How likely none of the numbers outside would lie between those inside, if it had nothing to do with it.

    Of numbers that are all others: those inside are next to each other in the order of all.
    """
    kept, cut = len(torch.unique(inside)), len(torch.unique(outside))
    return (cut + 1) / math.comb(kept + cut, kept)
