"""Two tapes side by side: the first operation that made another result, or the first gradient that is another.

Of one program every operation has its counterpart, in order. Two *formulations* are two programs, each right by itself:
what they share is found by value, the last number that both compute and the gradients of the tensors that both have.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlloss.watch.tape import OPTIMIZER_STEP, SILENT, STATISTICS, UNREADABLE, Entry, Joint, Number, Tape, written

LEAF = "AccumulateGrad"  # autograd's node of a parameter
DRAWS = (
    "rand", "normal", "uniform", "bernoulli", "multinomial", "native_dropout", "exponential", "random", "poisson",
    "binomial", "geometric", "cauchy", "log_normal", "_standard_gamma", "_sample_dirichlet",
)  # fmt: skip
MARK_BEGINS, MARK_ENDS = "profiler._record_function_enter", "profiler._record_function_exit"  # of PyTorch's profiler
ITEM = "_local_scalar_dense"  # by which a tensor's number goes to Python
Kind = Literal["operation", "input", "option", "gradient", "program", "none"]


@dataclass(frozen=True)
class Split:
    """Where two tapes part. ``kind``:

    - operation: ``ours`` and ``theirs`` have equal inputs and another output, the ``place``-th.
    - input: they have another input, the ``place``-th, that no operation before them made: data, or a parameter.
    - option: the ``place``-th of their inputs is no tensor, and another.
    - program: after the last backward pass, with gradients that are all equal, one computes something else.
    - gradient: of two programs: ``joint`` and ``other_joint`` are the first gradients of one tensor that differ.
    - none: nowhere.

    ``a`` and ``b``: digests of the numbers that differ. ``last``: of the forward pass, the last that both have before.
    """

    kind: Kind
    ours: Entry | None = None
    theirs: Entry | None = None
    place: int = 0
    joint: Joint | None = None
    other_joint: Joint | None = None
    last: Entry | None = None
    a: str = ""
    b: str = ""


def split(a: Tape, b: Tape) -> Split:
    """Where two tapes part."""
    return aligned(a, b, *(computing(tape.entries) for tape in (a, b)))


def live(tape: Tape, *, parts: bool = False) -> set[int]:
    """The entries, by identity, whose numbers reach a parameter by the operations that were heard; all, if none is
    written to.

    A draw that goes to Python decides something there; what else goes there is logged, as a rule. ``parts``: so does
    what is written into a part of a tensor, which is read as a whole.
    """
    found: set[int] = set()
    known = {number.digest for entry in tape.entries if not _writes(entry) for number in numbers_in(entry)}
    read = {number.digest for entry in tape.entries if entry.op == ITEM for number in numbers_in(entry)}
    drawn = {n.digest for entry in tape.entries if entry.op.startswith(DRAWS) for n in entry.outputs}
    needed = read & drawn
    for entry in reversed(tape.entries):
        in_part = parts and _writes(entry) and all(number.digest not in known for number in entry.outputs)
        if entry.to or in_part or any(number.digest in needed for number in entry.outputs):
            found.add(id(entry))
            needed |= {number.digest for number in numbers_in(entry)}
    return found or {id(entry) for entry in tape.entries}


def _writes(entry: Entry) -> bool:
    """Whether it writes in place to something that has no name."""
    return not entry.to and entry.op.partition(".")[0].endswith("_")


def aligned(a: Tape, b: Tape, ours: Sequence[Entry], theirs: Sequence[Entry]) -> Split:
    """Where these entries of two tapes part."""
    one_program = [kind_of(entry) for entry in ours] == [kind_of(entry) for entry in theirs]
    found = _lockstep(ours, theirs) if one_program else None
    return found if found and not _reordered(found, ours, theirs) else _by_value(a, b, ours, theirs)


def _reordered(found: Split, ours: Sequence[Entry], theirs: Sequence[Entry]) -> bool:
    """Whether what each makes here the other makes elsewhere: the same, in another order."""
    if found.ours is None or found.theirs is None:
        return False
    draws = found.kind == "operation" and found.ours.op.startswith(DRAWS)  # of generators of their own
    if not draws and found.kind not in ("input", "option"):
        return False
    return _is_among(found.ours, theirs) and _is_among(found.theirs, ours)


def _is_among(entry: Entry, others: Sequence[Entry]) -> bool:
    """Whether one of them is the same operation, of the same, with the same result."""
    return any((x.op, x.inputs, x.outputs) == (entry.op, entry.inputs, entry.outputs) for x in others)


def computing(entries: Sequence[Entry]) -> list[Entry]:
    """Without what makes no number."""
    return [entry for entry in entries if entry.op.partition(".")[0] not in SILENT]


def kind_of(entry: Entry) -> tuple[object, ...]:
    return (entry.op, *((number.shape, number.dtype) for number in entry.outputs))


def _lockstep(ours: Sequence[Entry], theirs: Sequence[Entry]) -> Split:
    """Where two tapes of one program part: by the first difference whose consequences are not all seen to end.

    They end where what is computed of them is the same, as behind a factor of 0 or a bound that nothing reaches. What
    goes to Python, or is read by nothing that was heard, may go on elsewhere.
    """
    found: list[Split] = []
    forward: dict[int, Split] = {}  # by autograd's number of the node that it makes: another option
    follows: dict[tuple[str, str], set[int]] = {}  # from which of them, by the two digests of a number
    read = {number.digest for entry in ours for number in numbers_in(entry)}
    goes_on: set[int] = set()
    pending: set[int] = set()  # in place, to something that nothing has read yet
    last = None
    for x, y in zip(ours, theirs, strict=False):
        mine = {i for one, other in _pairs(x.inputs, y.inputs) for i in follows.get((one.digest, other.digest), ())}
        unlike = [(one, other) for one, other in _pairs(x.outputs, y.outputs) if one.digest != other.digest]
        hidden = bool(x.to) and x.op.startswith(STATISTICS)  # to which it writes, and says nothing
        new = _parts_at(x, y, follows, last)
        if new and new.kind == "option" and not x.node and x.sequence >= 0:
            forward.setdefault(x.sequence, new)
        if new and (unlike or new.kind == "input" or not x.outputs or hidden):
            mine.add(len(found))
            found.append(new)
            if new.kind == "input":  # by way of what is not heard, it may follow from those before
                pending.clear()  # into a part of it, say
                mine |= set(range(len(found)))
                follows[new.a, new.b] = set(range(len(found)))
        for one, other in unlike:
            follows.setdefault((one.digest, other.digest), set()).update(mine)
        if x.op == ITEM or hidden or (x.to and unlike) or any(one.digest not in read for one, _ in unlike):
            (pending if _writes(x) else goes_on).update(mine)
        last = last if x.node else x
    lasting = [split for i, split in enumerate(found) if i in goes_on | pending] or found
    first = lasting[0] if lasting else Split("none")
    if first.kind == "option" and first.ours and first.ours.node:  # what a number makes of a gradient is its author's
        return forward.get(first.ours.sequence, first)
    return first


def _pairs(
    ours: Sequence[Number | str] | Sequence[Number], theirs: Sequence[Number | str] | Sequence[Number]
) -> list[tuple[Number, Number]]:
    pairs = zip(ours, theirs, strict=False)
    return [(one, other) for one, other in pairs if isinstance(one, Number) and isinstance(other, Number)]


def _parts_at(x: Entry, y: Entry, known: Collection[tuple[str, str]], last: Entry | None) -> Split | None:
    """In what else two operations differ than in numbers that are known to."""
    if len(x.inputs) != len(y.inputs):  # lists of tensors: none is the counterpart of another
        return Split("option", x, y, min(len(x.inputs), len(y.inputs)), last=last)
    alike = True
    for place, (one, other) in enumerate(zip(x.inputs, y.inputs, strict=True)):
        if isinstance(one, Number) and isinstance(other, Number):
            if one.digest != other.digest and (one.digest, other.digest) not in known:
                return Split("input", x, y, place, last=last, a=one.digest, b=other.digest)
            alike &= one.digest == other.digest
        elif one != other:
            return Split("option", x, y, place, last=last)
    for place, (one, other) in enumerate(_pairs(x.outputs, y.outputs) if alike else []):
        if one.digest != other.digest:
            readable = all(number.digest != UNREADABLE for number in numbers_in(x))
            return Split("operation" if readable else "input", x, y, place, last=last, a=one.digest, b=other.digest)
    return None


def _by_value(a: Tape, b: Tape, ours: Sequence[Entry], theirs: Sequence[Entry]) -> Split:
    reach, their_reach = live(a), live(b)
    x, last = _first_alone([entry for entry in ours if id(entry) in reach], theirs)
    y, _ = _first_alone([entry for entry in theirs if id(entry) in their_reach], ours)
    if found := first_gradients(a, b):
        joint, other = found
        return Split("gradient", x, y, 0, joint, other, last, joint.gradient.digest, other.gradient.digest)
    return _after(behind(ours), behind(theirs))


def after_backward(a: Tape, b: Tape) -> Split:
    """Where two tapes part after their last backward passes: by an option, if by one at all, whatever the gradients."""
    ours, theirs = (behind(computing(tape.entries)) for tape in (a, b))
    for x, y in zip(ours, theirs, strict=False):
        if kind_of(x) != kind_of(y) or len(x.inputs) != len(y.inputs):
            break
        if option := other_option(x, y, alike=False):
            return option
    return Split("none")


def _after(ours: Sequence[Entry], theirs: Sequence[Entry]) -> Split:
    """What two programs compute with equal gradients, up to the first operation that only one of them has."""
    alike = 0  # as far as both compute the same kinds of numbers
    while alike < min(len(ours), len(theirs)) and kind_of(ours[alike]) == kind_of(theirs[alike]):
        alike += 1
    found = _lockstep(ours[:alike], theirs[:alike])
    x, y = found.ours, found.theirs
    if found.kind == "input" and x and y and written(x.where) != written(y.where):
        return Split("program", x, y)  # of two lines, by chance of one kind
    if _reordered(found, ours, theirs):
        found = _whatever_the_order(ours, theirs)
    if found.kind != "none" or alike == len(ours) == len(theirs):
        return found
    x, y = (each[alike] if alike < len(each) else None for each in (ours, theirs))
    return Split("program", x, y)


def _whatever_the_order(ours: Sequence[Entry], theirs: Sequence[Entry]) -> Split:
    """Of what both compute of the same tensors: the first that is given another number, or made another result."""
    there: dict[tuple[object, ...], list[Entry]] = {}
    for entry in theirs:
        there.setdefault((entry.op, *numbers_in(entry)), []).append(entry)
    for x in ours:
        alike = there.get((x.op, *numbers_in(x)), [])
        same = [y for y in alike if y.inputs == x.inputs]
        if not same and alike and (option := other_option(x, alike[0])):
            return option
        if same and all(y.outputs != x.outputs for y in same):
            return Split("operation", x, same[0], a=x.outputs[0].digest, b=same[0].outputs[0].digest)
    return Split("none")


def other_option(ours: Entry, theirs: Entry, *, alike: bool = True) -> Split | None:
    """Of one operation in both runs: the first input that is no tensor and another. ``alike``: of the same tensors."""
    if len(ours.inputs) != len(theirs.inputs) or (alike and numbers_in(ours) != numbers_in(theirs)):
        return None
    pairs = zip(ours.inputs, theirs.inputs, strict=True)
    differ = (i for i, (x, y) in enumerate(pairs) if x != y and not (isinstance(x, Number) or isinstance(y, Number)))
    return next((Split("option", ours, theirs, i) for i in differ), None)


def first_gradients(a: Tape, b: Tape) -> tuple[Joint, Joint] | None:
    """The gradients of one tensor with which the difference begins: from a leaf up towards the loss.

    As long as both graphs use a tensor alike, a difference came from a gradient further up. It begins where they use
    one otherwise, or where all that comes from above is equal. Between, formulations may differ and mean the same.
    """
    return next(_begins(a, b), None)


def begins_at_once(a: Tape, b: Tape) -> bool:
    """Whether all gradients of parameters that differ do so by one of the tensors above, where they begin to."""
    return len({id(joint) for joint, _ in _begins(a, b)}) == 1


def _begins(a: Tape, b: Tape) -> Iterator[tuple[Joint, Joint]]:
    """Of each parameter whose gradient differs."""
    pairs = paired(a.joints, b.joints)
    partner = {(joint.backward, joint.sequence, joint.number): (joint, other) for joint, other in pairs}
    for joint, other in pairs:
        if joint.node == LEAF and joint.gradient.digest != other.gradient.digest and not _add_up(joint, other, a, b):
            yield _highest(joint, other, partner, a)


def _add_up(joint: Joint, other: Joint, a: Tape, b: Tape) -> bool:
    """Whether the backward passes add up to the same bits, in whichever order they come."""
    totals = []
    for tape, leaf in ((a, joint), (b, other)):
        passes = [j for j in tape.joints if (j.node, j.number, j.name) == (LEAF, leaf.number, leaf.name)]
        values = [tape.values.get(j.gradient.digest) for j in passes]
        if len(passes) < 2 or len({j.backward for j in passes}) < len(passes) or any(x is None for x in values):
            return False
        totals.append(sum(x.flatten() for x in values if x is not None))
    return bool(torch.equal(*totals))  # type: ignore[arg-type]


def _highest(
    joint: Joint, other: Joint, partner: Mapping[tuple[int, int, str], tuple[Joint, Joint]], a: Tape
) -> tuple[Joint, Joint]:
    while used(joint) == used(other):
        above = [partner[place] for place in _above(a, joint) if place in partner]
        if len(above) < len(joint.consumers):
            break
        others = [(x, y) for x, y in above if x.gradient.digest != y.gradient.digest]
        if not others:
            break
        joint, other = others[0]
    return joint, other


def used(joint: Joint) -> list[tuple[str, str]]:
    """By which operations: their nodes and lines, without the lines' numbers."""
    return sorted((node, written(where)) for node, _, where in joint.consumers)


def _above(tape: Tape, joint: Joint) -> list[tuple[int, int, str]]:
    """The places of the joints that pass a gradient on to this one."""
    sequences = {sequence for _, sequence, _ in joint.consumers}
    found = (j for j in tape.joints if j.backward == joint.backward and j.sequence in sequences)
    return [(j.backward, j.sequence, j.number) for j in found]


def _first_alone(ours: Sequence[Entry], theirs: Sequence[Entry]) -> tuple[Entry | None, Entry | None]:
    """The first operation of the forward pass that makes a number which the other never has, and the one before it."""
    there = {number.digest for entry in theirs if not entry.node for number in (*entry.outputs, *numbers_in(entry))}
    last = None
    for entry in ours[: len(ours) - len(behind(ours))]:
        if not entry.node and entry.outputs:
            if any(number.digest not in there for number in entry.outputs):
                return entry, last
            last = entry
    return None, last


def counting(tape: Tape) -> list[Joint]:
    """The gradients of leaves that the optimiser is given: without those that zero_grad() took back before the last
    backward pass that reaches a leaf, as of one that is made to log a norm.
    """
    sums = [entry for entry in tape.entries if entry.node == LEAF and entry.op.startswith("add")]
    found: list[Joint] = []
    leaves: dict[tuple[str, str], list[Joint]] = {}
    for joint in tape.joints:
        if joint.node == LEAF:
            leaves.setdefault((joint.number, joint.name), []).append(joint)
    for passes in leaves.values():
        if len({joint.backward for joint in passes}) == len(passes) and passes[0].name:
            passes = _since_taken_back(passes, sums, tape)
        found += passes
    order = {id(joint): i for i, joint in enumerate(tape.joints)}
    return sorted(found, key=lambda joint: order[id(joint)])


def _since_taken_back(passes: Sequence[Joint], sums: Sequence[Entry], tape: Tape) -> list[Joint]:
    """Those of one leaf from the last on whose gradient is added to nothing, or to zeros."""
    kept, sums = list[Joint](), [*sums]
    gradients = {joint.gradient.digest for joint in passes}
    totals: set[str] = set()  # what its gradient may be so far
    for joint in passes:
        its = joint.gradient.digest
        with_it = [entry for entry in sums if its in {number.digest for number in numbers_in(entry)}]
        to_total = [entry for entry in with_it if _other(entry, its) in totals]
        to_else = [x for x in with_it if _other(x, its) not in gradients and not_zero(tape, _other(x, its))]
        added = to_total or to_else  # to what is no sum of gradients where it is clipped between, say
        kept = [*kept, joint] if added or UNREADABLE in {its, *totals} else [joint]
        totals = {entry.outputs[0].digest for entry in added or with_it} | (set() if to_total else {its})
        if added:  # each is one pass's, of equal ones, too
            sums.remove(added[0])
    return kept


def _other(entry: Entry, its: str) -> str:
    """What else is added, by its digest."""
    digests = [number.digest for number in numbers_in(entry)]
    digests.remove(its)
    return digests[0] if digests else its


def not_zero(tape: Tape, digest: str) -> bool:
    """Whether there is a number but zero in it, or its value is not kept."""
    value = tape.values.get(digest)
    return value is None or bool(value.count_nonzero())


def numbers_in(entry: Entry) -> list[Number]:
    return [value for value in entry.inputs if isinstance(value, Number)]


def behind(entries: Sequence[Entry]) -> Sequence[Entry]:
    """What is computed after the last backward pass."""
    last = max((i for i, entry in enumerate(entries) if entry.node), default=-1)
    return entries[last + 1 :]


def stepping(tape: Tape) -> set[int]:
    """The entries, by identity, that an optimiser's own step makes."""
    found: set[int] = set()
    within: list[bool] = []  # a mark lies within another, as that of zero_grad() in a closure
    for entry in tape.entries:
        if entry.op.startswith(MARK_ENDS):
            within = within[:-1]
        elif entry.op.startswith(MARK_BEGINS):
            within.append(OPTIMIZER_STEP in str(entry.inputs))
        elif any(within):
            found.add(id(entry))
    return found


def paired(ours: Sequence[Joint], theirs: Sequence[Joint]) -> list[tuple[Joint, Joint]]:
    """The joints of tensors that both graphs have, in the order of the first: by value, the n-th with the n-th.

    Of equal values, as where a weight is 1, those first that one line of the author made.
    """
    partner: dict[int, Joint] = {}
    for by_line in (True, False):
        waiting: dict[tuple[object, ...], list[Joint]] = {}
        for joint in theirs:
            if not any(joint is taken for taken in partner.values()):
                waiting.setdefault(_place(joint, by_line), []).append(joint)
        for i, joint in enumerate(ours):
            if i not in partner and joint.number and waiting.get(_place(joint, by_line)):
                partner[i] = waiting[_place(joint, by_line)].pop(0)
    return [(joint, partner[i]) for i, joint in enumerate(ours) if i in partner]


def _place(joint: Joint, by_line: bool) -> tuple[object, ...]:
    place = (joint.number, joint.gradient.shape)
    return (*place, joint.node, written(joint.where)) if by_line else place


def ulps(a: Tensor, b: Tensor) -> Tensor:
    """``rlloss.verify.ulp_distance`` of tensors of one dtype, bfloat16 included, which NumPy does not know."""
    signed = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]

    def ordered(x: Tensor) -> Tensor:
        bits = x.contiguous().view(signed).to(torch.int64)
        return torch.where(bits < 0, torch.iinfo(signed).min - bits, bits)

    return (ordered(a) - ordered(b)).abs()
