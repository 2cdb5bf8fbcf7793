"""What comes into a step: data, random numbers, and tensors that were others before it."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from rlloss.bisect.align import (
    DRAWS,
    LEAF,
    Split,
    behind,
    computing,
    counting,
    kind_of,
    live,
    not_zero,
    numbers_in,
    other_option,
)
from rlloss.bisect.found import Cause
from rlloss.bisect.saying import difference, maker, name_of, place_of
from rlloss.watch.tape import FETCHED, NOTHING, OLD_GRADIENT, Entry, Number, Tape, old_gradient, written

TAKES = ("index", "slice", "select", "gather", "take")  # a part of what there is
LOADS = (*TAKES, "lift_fresh", "_to_copy")  # that hand samples over, and compute nothing
REDUCED_AT = {  # which of an operation's inputs says so, from the last
    "nll_loss_forward": -2,
    "mse_loss": -1,
    "binary_cross_entropy": -1,
    "smooth_l1_loss": -2,
    "huber_loss": -2,
}
REDUCTIONS = ("none", "mean", "sum")  # as PyTorch's losses are given them, by number
Rows = list[tuple[float, ...]]


def another_result(found: Split, a: Tape, b: Tape) -> Cause:
    assert found.ours is not None
    evidence = difference(a.values.get(found.a), b.values.get(found.b))
    if found.ours.op.startswith(DRAWS):
        drawn = f"{found.ours.op} at {place_of(found.ours)}"
        sizes = [str(list(x.outputs[0].shape)) for x in (found.ours, found.theirs) if x is not None and x.outputs]
        if len(set(sizes)) > 1:
            return Cause(f"another size: {drawn} draws {' | '.join(sizes)} numbers")
        return Cause(f"another draw: {drawn} gave other random numbers{_drawn_before(found, a, b)}", evidence)
    if found.ours.op.startswith(FETCHED):
        return Cause(f"other data, which another process made, first seen at {place_of(found.ours)}", evidence)
    what = f"{found.ours.op} at {place_of(found.ours)} made other numbers of equal ones"
    why = "another thread count, build, processor, kernel or memory layout; or it draws random numbers"
    return Cause(f"{what}: {why}", evidence)


def _drawn_before(found: Split, a: Tape, b: Tape) -> str:
    """What one run alone draws before, of the generator that all share."""
    made: list[list[Entry]] = []
    for tape, entry in ((a, found.ours), (b, found.theirs)):
        until = next((i for i, each in enumerate(tape.entries) if each is entry), 0)
        made.append([x for x in tape.entries[:until] if x.op.startswith(DRAWS) and "Generator" not in x.inputs])
    counts = [Counter(map(kind_of, draws)) for draws in made]
    for which, more, less, draws in zip("ab", counts, counts[::-1], made, strict=True):
        alone = more - less
        if alone and not less - more:
            last = next(x for x in reversed(draws) if kind_of(x) in alone)
            others = f" and {alone.total() - 1} more" if alone.total() > 1 else ""
            return f"; {which} alone draws {last.op} at {place_of(last)}{others} before it"
    return ""


def another_option(found: Split) -> Cause:
    assert found.ours is not None
    assert found.theirs is not None
    if len(found.ours.inputs) != len(found.theirs.inputs):
        if named := beyond_defaults(found.ours, found.theirs):
            return Cause(f"another option: {found.ours.op} at {place_of(found.ours)} is given {named}")
        shared = min(len(found.ours.inputs), len(found.theirs.inputs))
        if found.ours.inputs[:shared] == found.theirs.inputs[:shared]:
            which, more = ("a", found.ours) if len(found.ours.inputs) > shared else ("b", found.theirs)
            texts = ", ".join(str(x) for x in more.inputs[shared:] if not isinstance(x, Number))
            if texts:
                return Cause(
                    f"another option: {which} alone gives {texts} to {found.ours.op} at {place_of(found.ours)}"
                )
        return Cause(f"{found.ours.op} at {place_of(found.ours)} is given {len(found.ours.inputs)} | "
                     f"{len(found.theirs.inputs)} tensors and numbers")  # fmt: skip
    one, other = found.ours.inputs[found.place], found.theirs.inputs[found.place]
    if REDUCED_AT.get(found.ours.op) == found.place - len(found.ours.inputs):
        one, other = (REDUCTIONS[int(str(x))] for x in (one, other))
        return Cause(f"another reduction: {found.ours.op} at {place_of(found.ours)} is given {one} | {other}")
    one, other = (f"a tensor of {list(x.shape)}" if isinstance(x, Number) else x for x in (one, other))
    return Cause(f"another number: {found.ours.op} at {place_of(found.ours)} is given {one} | {other}")


def beyond_defaults(ours: Entry, theirs: Entry) -> str:
    """What one run alone gives an operation, where the other leaves the defaults, by the arguments' names; or ""."""
    arguments = _arguments(ours.op)
    longest = max(len(ours.inputs), len(theirs.inputs))
    if ours.op != theirs.op or len(arguments) < longest:
        return ""
    said = []
    for i, (name, default) in enumerate(arguments[:longest]):
        one, other = (str(entry.inputs[i]) if i < len(entry.inputs) else default for entry in (ours, theirs))
        if name == "reduction":
            one, other = (REDUCTIONS[int(x)] for x in (one, other))
        if i >= min(len(ours.inputs), len(theirs.inputs)) and one != other:
            said.append(f"{name} {one} | {other}")
    return ", ".join(said)


def _arguments(op: str) -> list[tuple[str, str]]:
    """Name and default of each that is given by place, as PyTorch declares them; none if one of them is a list."""
    name, _, overload = op.partition(".")
    declared = getattr(getattr(torch.ops.aten, name, None), overload or "default", None)
    if declared is None:
        return []
    arguments = [argument for argument in declared._schema.arguments if not argument.kwarg_only]
    if any("List" in str(argument.type) for argument in arguments):
        return []
    return [(argument.name, repr(argument.default_value)) for argument in arguments]


def another_input(found: Split, a: Tape, b: Tape) -> Cause:
    """Something came in from outside, or was left from a step before."""
    assert found.ours is not None
    evidence = difference(a.values.get(found.a), b.values.get(found.b))
    one, other = a.given.get(found.a, ""), b.given.get(found.b, "")
    if one and one == other:
        if not one.startswith(OLD_GRADIENT):
            return Cause(f"{one} was another before the step began", evidence)
        return Cause(f"{one} was another before the step began: its backward pass was made before the step before "
                     "ended, and is heard by a trace of that step", evidence, decided=False)  # fmt: skip
    if stale := stale_gradients(a, b):
        return stale
    single = all(math.prod(number.shape) == 1 for number in numbers_in(found.ours) if number.digest == found.a)
    if single and (one or other):  # a number by itself may be made by anything, so that only its name tells
        return Cause(f"{one or other} was another before the step began", evidence)
    named = _called(found.a, a) != _called(found.b, b)
    if not single and named and ((one and other) or (_is_known(found.a, b) and _is_known(found.b, a))):
        return Cause(f"{found.ours.op} at {place_of(found.ours)} is given another tensor: {_called(found.a, a)} | "
                     f"{_called(found.b, b)}", evidence)  # fmt: skip
    if found.a in a.given and found.b in b.given and not found.ours.node:
        return _other_data(found, a, b)
    return Cause(f"{found.ours.op} at {place_of(found.ours)} is given another number", evidence, decided=False)


def _is_known(digest: str, tape: Tape) -> bool:
    """Whether a run has a number, from somewhere."""
    return digest in tape.given or maker(tape, digest) is not None


def _called(digest: str, tape: Tape) -> str:
    made = maker(tape, digest)
    return tape.given.get(digest) or (f"{name_of(made, tape)} of {place_of(made)}" if made else "data")


def stale_gradients(a: Tape, b: Tape) -> Cause | None:
    """Whether one run alone adds its gradient to one that was there before its step.

    zero_grad() is missing for sure where the other had one there, too, and took it back.
    """
    ours, theirs = _added_to_old(a), _added_to_old(b)
    for which, mine, other, tape in (("b", theirs, ours, a), ("a", ours, theirs, b)):
        alone = [name for name in mine if name not in other]
        if alone and not set(other) - set(mine):
            entry = mine[alone[0]]
            evidence = [f"{entry.op} in {entry.node} of {entry.outputs[0].shape}"]
            words = f"{which} adds its gradient to one that was there before the step"
            if tape.left is None or alone[0] in tape.left:
                return Cause(f"{words}: zero_grad() is missing", evidence)
            why = "zero_grad() is missing before that, or a backward pass of something else reached it"
            return Cause(f"{words}, where the other had none: {why}; a trace of the step before hears it", evidence,
                         decided=False)  # fmt: skip
    return None


def _added_to_old(tape: Tape) -> dict[str, Entry]:
    """Where a gradient is added to one that was there, by what that is called; if the optimiser is given that sum."""
    found: dict[str, Entry] = {}
    counted = {id(joint) for joint in counting(tape)}
    first = {joint.name: joint for joint in reversed(tape.joints) if joint.node == LEAF}
    taken_back = [name for name, joint in first.items() if id(joint) not in counted]
    for entry in tape.entries:
        if entry.node == LEAF and entry.op.startswith("add"):
            for number in numbers_in(entry):
                name = tape.given.get(number.digest)
                if name is not None and not_zero(tape, number.digest) and name not in map(old_gradient, taken_back):
                    found.setdefault(name, entry)
    return found


def came_in(a: Tape, b: Tape) -> Cause | None:
    """Whether other data came in from outside, or other random numbers were drawn of the same."""
    if readers := _data_differ(a, b):
        cause = _other_data(Split("input", *readers), a, b)
        if before := _unlike_before(readers, a, b):
            return Cause(f"{before} before other data come in, which may follow from it: {cause.words}",
                         cause.evidence, decided=False)  # fmt: skip
        return cause
    drawn = _drawn_otherwise(a, b)
    for x, y in zip(_taken_alone(a, b), _taken_alone(b, a), strict=False):
        if kind_of(x) != kind_of(y) or (option := other_option(x, y)) is None:
            break
        taken = another_option(option)
        if written(x.where) != written(y.where):
            taken = Cause(f"{taken.words}, by b at {place_of(y)}", taken.evidence)
        if drawn and drawn[0].where == x.where:  # which rows are taken is drawn there, as by a data loader
            return drawn[1]
        if drawn:
            return Cause(f"{drawn[1].words}; {taken.words}", drawn[1].evidence, decided=False)
        return taken
    return drawn[1] if drawn else None


def _drawn_otherwise(a: Tape, b: Tape) -> tuple[Entry, Cause] | None:
    """The first draw that comes to other numbers in the two runs, or is given another number, and that in words."""
    for x, y in zip(_draws_alone(a, b), _draws_alone(b, a), strict=False):
        if x.op != y.op or numbers_in(x) != numbers_in(y) or len(x.inputs) != len(y.inputs):
            return None
        if option := other_option(x, y):
            return x, another_option(option)
        return x, another_result(Split("operation", x, y, a=x.outputs[0].digest, b=y.outputs[0].digest), a, b)
    return None


def _draws(tape: Tape) -> list[Entry]:
    """The random numbers that are drawn before a backward pass, and reach a parameter."""
    reach = live(tape)
    return [e for e in computing(tape.entries) if not e.node and e.op.startswith(DRAWS) and id(e) in reach]


def _draws_alone(tape: Tape, other: Tape) -> list[Entry]:
    """Those whose numbers the other run does not draw, in whichever order."""
    there = {number.digest for entry in _draws(other) for number in entry.outputs}
    return [entry for entry in _draws(tape) if any(number.digest not in there for number in entry.outputs)]


def _taken(tape: Tape) -> list[Entry]:
    """The operations that take a part of what came in from outside, and reach a parameter."""
    reach = live(tape)
    return [
        entry
        for entry in tape.entries
        if not entry.node
        and id(entry) in reach
        and entry.op.startswith(LOADS)
        and numbers_in(entry)
        and all(tape.given.get(number.digest) == "" for number in numbers_in(entry))
    ]


def _taken_alone(tape: Tape, other: Tape) -> list[Entry]:
    """Those that the other run does not have, in whichever order."""
    there = Counter((entry.op, *entry.inputs) for entry in _taken(other))
    found = []
    for entry in _taken(tape):
        there[entry.op, *entry.inputs] -= 1
        if there[entry.op, *entry.inputs] < 0:
            found.append(entry)
    return found


def _data_differ(a: Tape, b: Tape) -> tuple[Entry, Entry] | None:
    """The first operations that read a number of some shape which nothing on the tape made, and only one run has."""
    entries = [computing(tape.entries) for tape in (a, b)]
    there = [{n.digest for entry in each for n in (*numbers_in(entry), *entry.outputs)} for each in entries]
    alone = [_first_reader(tape, other) for tape, other in ((a, there[1]), (b, there[0]))]
    (one, x), (two, y) = alone
    if x is None or y is None:
        return None
    return (x, y) if one == two or (x.op, written(x.where)) == (y.op, written(y.where)) else None


def _unlike_before(readers: tuple[Entry, Entry], a: Tape, b: Tape) -> str:
    """What one run alone computes of numbers that both have, before it reads other data; "" if nothing is.

    Through NumPy, or an environment, data may follow from what nothing is heard to read.
    """
    theirs, ours = _first_unlike(b, a, readers[1]), _first_unlike(a, b, readers[0])
    said = [f"{which} alone computes {entry.op} at {place_of(entry)}"
            for which, entry, _ in sorted((("b", *theirs), ("a", *ours)), key=lambda found: not found[2])
            if entry is not None]  # fmt: skip
    return said[0] if said else ""


def _first_unlike(tape: Tape, other: Tape, reader: Entry) -> tuple[Entry | None, bool]:
    """The first that makes another number of numbers that the other run has; and whether that has no such line."""
    there = {NOTHING.digest, *other.given, *(number.digest for entry in other.entries for number in entry.outputs)}
    lines = {(entry.op, written(entry.where)) for entry in other.entries}
    for entry in computing(tape.entries):
        if entry is reader or entry.node:
            break
        line = entry.op, written(entry.where)
        if entry.op.startswith(DRAWS) and line in lines:  # by which samples are shuffled, say
            continue
        makes = any(number.digest not in there for number in entry.outputs)
        known = there if line in lines else {*there, *tape.given}  # what the other may read by tolist(), say
        if makes and all(number.digest in known for number in numbers_in(entry)):
            return entry, line not in lines
    return None, False


def _first_reader(tape: Tape, known: set[str]) -> tuple[object, Entry | None]:
    reach = live(tape)
    for entry in computing(tape.entries):
        if id(entry) not in reach:
            continue
        if entry.node:
            return None, None  # the backward pass has begun
        for number in numbers_in(entry):
            if number.digest in tape.given and not tape.given[number.digest] and number.digest not in known:
                return (number.shape, number.dtype), entry
    return None, None


def _other_data(found: Split, a: Tape, b: Tape) -> Cause:
    """The first numbers of the forward pass that differ come from outside: are they the same samples?"""
    one, two = found.ours, found.theirs
    assert one is not None
    read = f"{name_of(one, a)} at {place_of(one)}"
    if not one.op.startswith(TAKES) and (told := _handed_in(a, b)):
        return Cause(f"{told[0]}, first seen in {read}", told[1])
    rows = [samples(tape, one) for tape in (a, b)]
    if other_order := moved(rows[0], rows[1], a, one, b):
        return other_order
    shared = Counter(rows[0]) & Counter(rows[1])
    single = bool(rows[0]) and len(rows[0][0]) == 1
    some = f"another minibatch, with {shared.total()} of {len(rows[0])} samples in common"
    what = some if shared and not single else "other data"
    made = [_made_by(tape, one) for tape in (a, b)]
    same = sum(x == y for x, y in zip(*made, strict=False))
    if same and len(made[0]) == len(made[1]):
        what = f"other data: {len(made[0]) - same} of the {len(made[0])} tensors that one line makes"
    numbers = [tape.values.get(e.outputs[0].digest) if e and e.outputs else None for tape, e in ((a, one), (b, two))]
    if one.op.startswith(LOADS) and all(x is not None and x.numel() == 1 for x in numbers) and what == "other data":
        x, y = (float(x.double()) for x in numbers if x is not None)
        return Cause(f"another number comes in, {x:.7g} | {y:.7g}, first seen in {read}")
    return Cause(f"{what}, first seen in {read}", difference(*numbers))


def _handed_in(a: Tape, b: Tape) -> tuple[str, list[str]] | None:
    """In which way the tensors that came in from outside differ, row by row, with the first number that does."""
    pairs = list(zip(_from_outside(a), _from_outside(b), strict=False))
    pairs = [(x, y) for x, y in pairs if x.shape[1:] == y.shape[1:] and x.dtype == y.dtype]
    first = next(((x, y) for x, y in pairs if not torch.equal(x, y)), None)
    return (_how_rows_differ(*first, pairs), difference(*first)) if first else None


def _how_rows_differ(one: Tensor, other: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> str:
    """In words, of two tensors that came in; ``pairs`` are all that did."""
    if len(one) != len(other):
        return f"another minibatch: {len(one)} | {len(other)} samples"
    beside = [(x, y) for x, y in pairs if len(x) == len(y) == len(one)]  # with a row for each sample, these included
    ours, theirs = (Counter(_rows([pair[i] for pair in beside])) for i in (0, 1))
    coupled = len(beside) > 1
    unchanged = any(torch.equal(x, y) for x, y in (beside if coupled else pairs))
    if ours == theirs and (coupled or (not unchanged and one.dim() > 1)):  # a row of numbers may be a sequence
        return "the same samples in another order"
    if coupled and all(Counter(_rows([x])) == Counter(_rows([y])) for x, y in beside):
        return "the same rows, put together otherwise: samples with other labels or weights"
    if unchanged:
        off = len(one) - (Counter(_rows([one])) & Counter(_rows([other]))).total()
        what = f"{off} of {len(one)} rows of one tensor" if off else "the rows of one tensor in another order"
        return f"other data: {what}, beside equal ones"
    shared = (ours & theirs).total()
    if shared == len(one):
        return "the same numbers in another order"
    if not shared or all(x[:1].numel() == 1 and x.is_floating_point() for x, _ in (*beside, (one, other))):
        return "other data"  # a few numbers are no sample
    return f"another minibatch, with {shared} of {len(one)} samples in common"


def _from_outside(tape: Tape) -> list[Tensor]:
    """What came in and is no tensor of the model, in the order in which it is read."""
    found: dict[str, Tensor] = {}
    entries = computing(tape.entries)
    for entry in entries[: len(entries) - len(behind(entries))]:
        for number in numbers_in(entry) if not entry.node else ():
            value = tape.values.get(number.digest)
            if value is not None and number.shape and tape.given.get(number.digest) == "":
                found.setdefault(number.digest, value.reshape(number.shape))
    return list(found.values())


def outside(tape: Tape) -> set[str]:
    """Digests of all arrays that came in from outside, read by whatever."""
    read = {n.digest: n.shape for entry in tape.entries for n in numbers_in(entry)}
    return {digest for digest, name in tape.given.items() if not name and math.prod(read.get(digest, (0,))) > 1}


def _rows(tensors: Sequence[Tensor]) -> Rows:
    """One for each sample: all numbers of it in all tensors."""
    flat = [value.reshape(len(value), -1).double() for value in tensors]
    return [tuple(row) for row in torch.cat(flat, 1).tolist()]


def moved(ours: Rows, theirs: Rows, tape: Tape, line: Entry, other: Tape) -> Cause | None:
    """Whether the samples that a line makes come in another order. Sure where it makes all there is of each."""
    if not ours or ours == theirs or Counter(ours) != Counter(theirs):
        return None
    read = f"{name_of(line, tape)} at {place_of(line)}"
    first = next(entry for entry in tape.entries if entry.op == line.op and entry.where == line.where and entry.outputs)
    what = f"the same rows in another order, first seen in {read}"
    if left := _left_behind(line, first.outputs[0].shape[0], tape, other):
        stays = f"{name_of(left, tape)} at {place_of(left)}"
        return Cause(f"{what}; those of {stays} did not move with them", decided=False)
    if line.op.startswith(LOADS) and len(ours[0]) > math.prod(first.outputs[0].shape[1:]):
        return Cause(f"the same samples in another order, first seen in {read}")
    return Cause(f"{what}; whether their labels moved with them is not seen there", decided=False)


def _left_behind(line: Entry, rows: int, tape: Tape, other: Tape) -> Entry | None:
    """What else is loaded of as many samples, and is the same in both runs."""
    reach = live(tape)
    there = {number.digest for entry in other.entries if entry.op.startswith(LOADS) for number in entry.outputs}
    used = {n.digest for entry in computing(tape.entries) if not entry.op.startswith(LOADS) for n in numbers_in(entry)}
    for entry in tape.entries:
        loads = id(entry) in reach and not entry.node and entry.op.startswith(LOADS) and entry.outputs
        if not loads or (entry.op, entry.where) == (line.op, line.where):
            continue
        made, value = entry.outputs[0], tape.values.get(entry.outputs[0].digest)
        if (
            made.shape[:1] != (rows,)
            or made.digest not in there & used
            or value is None
            or not value.is_floating_point()
        ):
            continue
        if len(torch.unique(value.reshape(made.shape), dim=0)) > 1:
            return entry
    return None


def _made_by(tape: Tape, like: Entry) -> list[str]:
    """All that one line made by one operation, in order."""
    entries = (e for e in tape.entries if not e.node and e.op == like.op and written(e.where) == written(like.where))
    return [entry.outputs[0].digest for entry in entries if entry.outputs]


def samples(tape: Tape, like: Entry) -> Rows:
    """The samples that one line made, over the whole step: all that it made of each, labels and weights included."""
    found: Rows = []
    group: list[Tensor] = []
    kinds: list[object] = []

    def close() -> None:
        if group:
            found.extend(map(tuple, torch.cat([value.reshape(len(value), -1).double() for value in group], 1).tolist()))
        group.clear()
        kinds.clear()

    for entry in tape.entries:
        value = tape.values.get(entry.outputs[0].digest) if entry.outputs else None
        if entry.node or entry.op != like.op or written(entry.where) != written(like.where) or value is None:
            continue
        shape = entry.outputs[0].shape
        if not shape or not shape[0]:
            continue
        place = (shape[1:], entry.outputs[0].dtype)
        if group and (len(group[0]) != shape[0] or (place == kinds[0] and len(kinds) > kinds.count(place))):
            close()
        group.append(value.reshape(shape))
        kinds.append(place)
    close()
    return found
