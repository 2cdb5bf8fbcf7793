"""Where two programs are written otherwise: in one place alone, if all else that they compute has its counterpart."""

from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

from torch import Tensor

from rlloss.bisect.align import Split, behind, computing, live, numbers_in, stepping
from rlloss.bisect.found import Cause
from rlloss.bisect.incoming import outside
from rlloss.bisect.leaving import by_way_of_python
from rlloss.bisect.multiples import factor_of
from rlloss.bisect.saying import computed, gap, operation_of, parts, subject
from rlloss.watch.tape import Entry, Joint, Tape

MOST = 20_000  # operations, beyond which their comparison takes long
CASTS = "_to_copy"
MOVES = (
    "lift_fresh", "_to_copy", "detach", "alias", "t", "view", "_unsafe_view", "reshape", "expand", "transpose",
    "permute", "unsqueeze", "squeeze", "slice", "select", "clone", "ones", "zeros", "full", "arange", "scalar_tensor",
)  # fmt: skip


def only_place(a: Tape, b: Tape) -> tuple[Entry | None, Entry | None] | None:
    """What each computes in the one place in which two forward passes are written otherwise; None of several or none.

    A place is a run of operations, or those of one line, however often it runs. All others are the same in both, with
    the same numbers that are none, and take each other's counterparts.
    """
    ours, theirs = _forward(a), _forward(b)
    if len(ours) + len(theirs) > MOST:
        return None
    blocks = SequenceMatcher(None, list(map(_kind, ours)), list(map(_kind, theirs)), autojunk=False).get_opcodes()
    parts = [block for block in blocks if block[0] != "equal"]
    mine = [entry for _, i, j, _, _ in parts for entry in ours[i:j]]
    its = [entry for _, _, _, i, j in parts for entry in theirs[i:j]]
    if not parts or (len(parts) > 1 and not (_on_one_line(mine, b) and _on_one_line(its, a))):
        return None
    known: set[tuple[str, str]] = set()
    alone, there = (_leaving(part, tape) for part, tape in ((mine, a), (its, b)))
    for tag, i, j, k, _ in blocks:
        for x, y in zip(ours[i:j], theirs[k:], strict=False) if tag == "equal" else ():
            pairs = list(zip(numbers_in(x), numbers_in(y), strict=False))
            unlike = [(p.digest, q.digest) for p, q in pairs if (p.digest, p.shape) != (q.digest, q.shape)]
            if any(pair not in known and not alone(pair[0]) and not there(pair[1]) for pair in unlike):
                return None  # another number is given to what is written alike
            made = [(p.digest, q.digest) for p, q in zip(x.outputs, y.outputs, strict=False)]
            if not unlike and any(p != q for p, q in made):
                return None  # another draw, say
            known.update(made)
    telling = _telling(mine, b), _telling(its, a)
    return telling if any(telling) else (_first(mine), _first(its))


def _leaving(place: Sequence[Entry], tape: Tape) -> Callable[[str], bool]:
    """Whether a number may leave a place: it is made there, or a gradient, or left by a write into a part."""
    gradients = _made([e for e in tape.entries if e.node]) | {joint.gradient.digest for joint in tape.joints}
    makes = _made(place) | gradients
    into_parts = any(entry.op.partition(".")[0].endswith("_") for entry in place)
    heard = _made(tape.entries) | set(tape.given) if into_parts else set()
    return lambda digest: digest in makes or (into_parts and digest not in heard)


def _forward(tape: Tape) -> list[Entry]:
    """What is computed for a loss: up to the last backward pass."""
    entries, reach = computing(tape.entries), live(tape, parts=True)
    after = {id(entry) for entry in behind(entries)} | stepping(tape)
    return [entry for entry in entries if not entry.node and id(entry) in reach and id(entry) not in after]


def _made(entries: Sequence[Entry]) -> set[str]:
    return {number.digest for entry in entries for number in entry.outputs}


def _kind(entry: Entry) -> tuple[object, ...]:
    """An operation with what it is given beside numbers: how many of those, and its options."""
    return entry.op, *(x if isinstance(x, str) else "" for x in entry.inputs)


def _on_one_line(entries: Sequence[Entry], other: Tape) -> bool:
    return len({entry.where.partition(": ")[0] for entry in _new(entries, other)}) < 2


def _new(entries: Sequence[Entry], other: Tape) -> list[Entry]:
    """Those that make numbers which the other run has not, by more than moving some."""
    there = _made(other.entries)
    more = (entry for entry in entries if entry.op.partition(".")[0] not in MOVES)
    return [entry for entry in more if any(number.digest not in there for number in entry.outputs)]


def _telling(entries: Sequence[Entry], other: Tape) -> Entry | None:
    """The first that is new; or else that moves others' numbers, or casts them."""
    there = _made(other.entries)
    moved = [entry for entry in entries if any(number.digest not in there for number in entry.outputs)]
    return next(iter([*_new(entries, other), *moved]), None)


def _first(entries: Sequence[Entry]) -> Entry | None:
    more = [entry for entry in entries if entry.op.partition(".")[0] not in MOVES]
    return next(iter([*more, *entries]), None)


def only_of(joint: Joint, tape: Tape, other: Tape) -> bool:
    """Whether all that is new in a forward pass is computed of this tensor."""
    reached, entries = {joint.number}, _forward(tape)
    new = {id(entry) for entry in _new(entries, other)}
    for entry in entries:
        if any(number.digest in reached for number in numbers_in(entry)):
            reached |= _made([entry])
        elif id(entry) in new:
            return False
    return bool(joint.number)


def written_otherwise(found: Split, one: Tensor, two: Tensor, a: Tape, b: Tape, path: str) -> Cause:
    """Of a gradient that differs by no rounding: the one place in which the programs differ, or what each computes.

    ``path``: through what one run alone has a gradient, in words, of which it is not sure whether that is the cause.
    """
    joint, other = found.joint, found.other_joint
    assert joint is not None
    assert other is not None
    alike = outside(a) == outside(b)
    words = f"{subject(joint)} has another gradient: {gap(one, two)}"
    if alike and not by_way_of_python(found, a, b) and (place := in_one_place(a, b)):
        return Cause(f"the programs differ in one place alone: {place}; {words}")
    if path:
        return Cause(path, decided=False)
    mine, its = ({node for node, _, _ in j.consumers} for j in (joint, other))
    if not mine & its and alike:
        ours, theirs = (" and ".join(dict.fromkeys(uses)) or "nothing" for uses in parts(found))
        what = f"of {subject(joint)} they compute something else: a by {ours}; b by {theirs}; its gradient"
        factor = factor_of(one.double(), two.double())
        same = factor is None or f"{factor:.6g}" == "1"
        how = f"differs {gap(one, two)}" if same else f"is that of a times {factor:.6g} in b"
        return Cause(f"{what} {how}", decided=only_of(joint, a, b) and only_of(other, b, a))
    first = [entry for entry in (found.ours, found.theirs) if entry is not None]
    if len(first) == 2 and first[0].where and first[1].where:
        begins = " in a with {}, in b with {}".format(*map(operation_of, first))
        words += f"; what one alone computes begins{begins}"
    return Cause(words, decided=False)


def in_one_place(a: Tape, b: Tape) -> str:
    """What a and b compute in the only place, in words, with their options where it is one operation; or ""."""
    x, y = only_place(a, b) or (None, None)
    said = computed(x, y)
    for entry in (x, y):
        if entry is not None and entry.op.startswith(CASTS) and entry.outputs:
            said = said.replace(f"computes {entry.op}", f"casts to {entry.outputs[0].dtype}", 1)
    if x is None or y is None or x.op != y.op:
        return said
    options = [", ".join(o for o in entry.inputs if isinstance(o, str)) or "nothing" for entry in (x, y)]
    return said if options[0] == options[1] else f"{said}; given {' | '.join(options)}"
