"""Numbers that go to Python in both runs, and are others there: what is given to an operation may follow from them."""

from collections.abc import Sequence

from rlloss.bisect.align import DRAWS, ITEM, Split, computing, numbers_in, other_option, stepping
from rlloss.bisect.incoming import another_option, another_result
from rlloss.bisect.saying import computed
from rlloss.watch.tape import Entry, Tape, written

MAY_FOLLOW = (" is given ", "another coefficient", "does not compute", "the forward passes part")
FOLLOWS = ", which may follow from it by way of Python"


def may_follow(cause: str) -> bool:
    """Whether such a cause, in words, can follow from a number in Python: a lost detach() cannot, nor can rounding."""
    return any(words in cause for words in MAY_FOLLOW)


def by_way_of_python(found: Split | None, a: Tape, b: Tape) -> str:
    """In words: with what begins the first number that goes to Python and is another there; "" if there is none.

    Not where the tapes part before that, as ``found`` says. What one run alone logs leads to nothing in the other; what
    is differentiated itself, as a loss that is logged, follows from the cause.
    """
    ours, theirs = (found.ours, found.theirs) if found else (None, None)
    for x, y in zip(_read(a), _read(b), strict=False):
        if written(x.where) != written(y.where):
            break
        if x.inputs != y.inputs:
            one, other = _leading_to(x, a, b), _leading_to(y, b, a)
            follows = _is_after(one, ours, a) and _is_after(other, theirs, b)
            if follows or _is_differentiated(one, a) or _is_differentiated(other, b):
                continue
            return _begins(one, other, a, b)
    return ""


def _read(tape: Tape) -> list[Entry]:
    """What goes to Python, but in an optimiser's own step."""
    inside = stepping(tape)
    return [entry for entry in tape.entries if entry.op == ITEM and id(entry) not in inside]


def _is_after(entry: Entry | None, other: Entry | None, tape: Tape) -> bool:
    places = {id(each): i for i, each in enumerate(tape.entries)}
    return entry is not None and other is not None and places[id(entry)] > places[id(other)]


def _is_differentiated(entry: Entry | None, tape: Tape) -> bool:
    ran = {each.sequence for each in tape.entries if each.node}
    return entry is not None and not entry.node and entry.sequence in ran


def _leading_to(item: Entry, tape: Tape, other: Tape) -> Entry | None:
    """The first operation, of those that a number is made by, that makes one which the other run has not."""
    there = {number.digest for entry in other.entries for number in (*entry.outputs, *numbers_in(entry))}
    needed, first = {number.digest for number in numbers_in(item)}, None
    until = next(i for i, entry in enumerate(tape.entries) if entry is item)
    for entry in reversed(computing(tape.entries[:until])):
        if any(number.digest in needed for number in entry.outputs):
            needed |= {number.digest for number in numbers_in(entry)}
            first = entry if any(number.digest not in there for number in entry.outputs) else first
    return first


def _begins(x: Entry | None, y: Entry | None, a: Tape, b: Tape) -> str:
    if x is not None and y is not None and (x.op, written(x.where)) == (y.op, written(y.where)):
        if option := other_option(x, y):
            return another_option(option).words
        if x.op.startswith(DRAWS):
            return another_result(Split("operation", x, y, a=x.outputs[0].digest, b=y.outputs[0].digest), a, b).words
    return computed(x, y)


def beside(found: Split, a: Tape, b: Tape) -> str:
    """In words: what else one run computes in its forward pass, or with another number, on other lines; or ""."""
    lines = {written(entry.where) for entry in (found.ours, found.theirs) if entry is not None}
    ours, theirs = (
        [e for e in computing(tape.entries) if not e.node and e.sequence >= 0 and written(e.where) not in lines]
        for tape in (a, b)
    )
    for x, y in zip(ours, theirs, strict=False):
        if (x.op, written(x.where)) != (y.op, written(y.where)):
            break
        if option := other_option(x, y, alike=False):
            return another_option(option).words
    alone = _of_no_line_of(ours, theirs)
    return computed(None, alone) if alone else computed(_of_no_line_of(theirs, ours), None)


def _of_no_line_of(other: Sequence[Entry], mine: Sequence[Entry]) -> Entry | None:
    """The first of these operations whose like no line of the other run has."""
    there = {(entry.op, written(entry.where)) for entry in other}
    return next((entry for entry in mine if (entry.op, written(entry.where)) not in there), None)
