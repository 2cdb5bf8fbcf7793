"""Why two tapes part, in words, as far as their numbers decide it."""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor

from rlloss.bisect.align import (
    DRAWS,
    ITEM,
    LEAF,
    Split,
    aligned,
    computing,
    live,
    numbers_in,
    other_option,
    split,
    stepping,
    ulps,
    used,
)
from rlloss.bisect.exact import same_exactly
from rlloss.bisect.found import Cause
from rlloss.bisect.incoming import (
    another_input,
    another_option,
    another_result,
    beyond_defaults,
    came_in,
    moved,
    samples,
)
from rlloss.bisect.leaving import FOLLOWS, beside, by_way_of_python, may_follow
from rlloss.bisect.masks import masked
from rlloss.bisect.multiples import scaled, scaled_once, undone
from rlloss.bisect.passes import FAR, NEAR_ULPS, changed_between, far_apart, unlike_passes, without_gradient
from rlloss.bisect.places import in_one_place, written_otherwise
from rlloss.bisect.saying import (
    computed,
    difference,
    expression,
    gap,
    gap_of,
    maker,
    name_of,
    place_of,
    plain,
    shortened,
    subject,
)
from rlloss.watch.tape import NOTHING, Entry, Joint, Number, Tape, written

ROUNDED = 1e-4  # below which another writing only rounds
MOST_TERMS = 8  # of a gradient, of which every sum is tried
KEPT = " in the optimiser"  # how the names of what an optimiser keeps end
BEGINS = ("lift_fresh", "zeros_like", "zeros", "empty_like", "clone", "detach")  # with which optimisers make a state


def explain(found: Split, a: Tape, b: Tape, names: Collection[str] = ()) -> Cause:
    """Of two tapes, a and b, that part there. ``names``: of the parameters that differ after the step, if known.

    What nothing reads that was heard, as what is logged, is no cause for sure: then the next difference is told.
    """
    reach = [live(tape, parts=True) for tape in (a, b)]
    parting = [entry for entry in (found.ours, found.theirs) if entry is not None]
    read = {*reach[0], *reach[1], *stepping(a), *stepping(b)}
    unread = [entry for entry in parting if id(entry) not in read]
    counterparts = found.kind in ("operation", "option", "input")  # of which one may be read alone
    if not unread or found.kind == "gradient" or (counterparts and len(unread) < len(parting)):
        why = _explain(found, a, b, names)
        before = by_way_of_python(found, a, b) if why.decided and may_follow(why.words) else ""
        if before and before != why.words:
            return Cause(f"{before}; {why.words}{FOLLOWS}", why.evidence, decided=False)
        return why
    lists = ([e for e in computing(tape.entries) if id(e) in read] for tape, read in zip((a, b), reach, strict=True))
    following = aligned(a, b, *lists)
    why = _explain(following, a, b, names) if following.kind != "none" else Cause("nothing else differs")
    also = f"; {unread[0].op} at {place_of(unread[0])} differs before it, which nothing reads that was heard"
    return Cause(why.words + also, why.evidence, decided=False)


def _explain(found: Split, a: Tape, b: Tape, names: Collection[str]) -> Cause:
    if broken := not_finite(a, b):
        return _before_it_broke(found, a, b) or broken
    for known in (unlike_passes(a, b), without_gradient(a, b, names)):
        if known:
            return known
    match found.kind:
        case "operation":
            return another_result(found, a, b)
        case "option":
            return another_option(found)
        case "program":
            return _program(found, a, b)
        case "input":
            known = another_input(found, a, b)
            return (None if known.decided else changed_between(a, b)) or known
        case "gradient":
            return _gradient(found, a, b)
        case "none":
            return Cause("nothing that was computed in this step differs", decided=False)


def _before_it_broke(found: Split, a: Tape, b: Tape) -> Cause | None:
    """What was another before numbers that are not finite were made of it, if that is heard: data, or a number."""
    came = came_in(a, b)
    if came is None and found.kind == "option":
        came = another_option(found)
    came = came or (_another_number(found) if found.kind == "gradient" else None)
    broken = not_finite(a, b)
    if came is None or not came.decided or broken is None:
        return None
    return Cause(f"{came.words}; {broken.words}", came.evidence)


def changed_outside(a: Tape, b: Tape, names: Collection[str]) -> tuple[str, Entry | None]:
    """What else than an optimiser writes to tensors that differ, of these ``names``, by a line that one run alone has,
    or with another number; "": nothing that is heard.

    Where both write all the same, it follows from something else, which the tapes may tell.
    """
    if alone := written_alone(a, b, names):
        which, entry = alone
        return f": {which} alone writes to {entry.to} by {entry.op} at {place_of(entry)}", entry
    for x, y in zip(_writes(a, names), _writes(b, names), strict=False):
        if (x.op, written(x.where)) == (y.op, written(y.where)) and (option := other_option(x, y, alike=False)):
            return f"; {another_option(option).words}", x
    found = split(a, b)
    why = explain(found, a, b, names)
    if why.decided and found.kind in ("option", "operation", "gradient"):
        return f"; {why.words}", found.ours
    came = came_in(a, b)
    return (f"; {came.words}", None) if came and came.decided else ("", None)


def written_alone(a: Tape, b: Tape, names: Collection[str]) -> tuple[str, Entry] | None:
    """Which run alone writes to one of these tensors by an operation of a line, and that."""
    for which, mine, other in (("b", b, a), ("a", a, b)):
        there = {(entry.op, written(entry.where), entry.to) for entry in other.entries}
        for entry in _writes(mine, names):
            if (entry.op, written(entry.where), entry.to) not in there:
                return which, entry
    return None


def _writes(tape: Tape, names: Collection[str]) -> list[Entry]:
    """What is written to these tensors in place, but by an optimiser's step."""
    inside = stepping(tape)
    return [
        entry
        for entry in tape.entries
        if entry.to in names and id(entry) not in inside and entry.outputs[:1] != numbers_in(entry)[:1]
    ]  # but for what is there already, as of clamp_() within its bounds


def not_finite(a: Tape, b: Tape) -> Cause | None:
    """In one run alone a gradient is not finite: the first operation that makes such numbers of finite ones."""
    broken = [any(not _finite(tape, joint.gradient) for joint in tape.joints) for tape in (a, b)]
    if broken[0] == broken[1]:
        return None
    which, tape = ("a", a) if broken[0] else ("b", b)
    if (entry := _first_not_finite(tape, b if which == "a" else a)) is None:
        return None
    return Cause(f"{which} has numbers that are not finite: {entry.op} made the first, of finite ones, at "
                 f"{place_of(entry)}")  # fmt: skip


def _finite(tape: Tape, number: Number) -> bool:
    value = tape.values.get(number.digest)
    return value is None or not value.is_floating_point() or bool(torch.isfinite(value).all())


def _first_not_finite(tape: Tape, other: Tape) -> Entry | None:
    there = {number.digest for entry in other.entries for number in entry.outputs}
    reach = live(tape)
    for entry in computing(tape.entries):
        if id(entry) not in reach or any(number.digest in there for number in entry.outputs):
            continue  # harmless, or the other run had them, too
        if any(number.digest in tape.given and not _finite(tape, number) for number in numbers_in(entry)):
            return None  # they came in
        fills = any(isinstance(value, str) and value in ("inf", "-inf", "nan") for value in entry.inputs)
        made = all(_finite(tape, number) for number in entry.outputs)
        if not made and all(_finite(tape, number) for number in numbers_in(entry)) and not fills:
            return entry
    return None


def _program(found: Split, a: Tape, b: Tape) -> Cause:
    """With equal gradients, one run computes something else between its backward pass and the end of its step."""
    alike = found.ours is not None and found.theirs is not None and found.ours.op == found.theirs.op
    if alike and found.ours and found.theirs and len(found.ours.inputs) != len(found.theirs.inputs):
        return another_option(found)
    if anew := _state_anew(found, a, b):
        return anew

    def said(entry: Entry | None) -> str:
        if entry is None:
            return "nothing more"
        of = f" of {list(entry.outputs[0].shape)}" if alike else ""
        return f"{entry.op}{of} at {place_of(entry)}"

    one, other = said(found.ours), said(found.theirs)
    return Cause(f"with equal gradients, after the backward pass, a computes {one}, and b {other}")


def _state_anew(found: Split, a: Tape, b: Tape) -> Cause | None:
    """Whether one run alone makes what an optimiser keeps, which the other has from steps before."""
    for which, other, entry, read, mine in (
        ("b", "a", found.theirs, found.ours, b),
        ("a", "b", found.ours, found.theirs, a),
    ):
        if entry is None or read is None or entry.op.partition(".")[0] not in BEGINS or id(entry) not in stepping(mine):
            continue
        its, inside = (a if other == "a" else b), stepping(mine)
        used_there = [number for each in mine.entries if id(each) in inside for number in numbers_in(each)]
        has_none = not any(KEPT in mine.given.get(number.digest, "") for number in used_there)
        if has_none and any(_is_kept(number, its) for number in numbers_in(read)):
            return Cause(f"with equal gradients, {which} makes its optimiser's state anew, by {entry.op} at "
                         f"{place_of(entry)}, where {other} has one: it was cleared, or not loaded")  # fmt: skip
    return None


def _is_kept(number: Number, tape: Tape) -> bool:
    """Whether an optimiser has a number from steps before, or from what it has loaded."""
    made = maker(tape, number.digest)
    loaded = made is not None and not made.node and id(made) not in stepping(tape)
    return loaded or KEPT in tape.given.get(number.digest, "")


def _gradient(found: Split, a: Tape, b: Tape) -> Cause:
    joint, other = found.joint, found.other_joint
    assert joint is not None
    assert other is not None
    one, two = a.values.get(found.a), b.values.get(found.b)
    if one is None or two is None or one.numel() != two.numel():
        return Cause(f"{subject(joint)} has another gradient", decided=False)
    one, two = one.reshape(joint.gradient.shape), two.reshape(joint.gradient.shape)  # kept in the shape of the first
    evidence = [f"the gradient of {subject(joint)}", *difference(one, two)]
    evidence += [f"a: {expression(a, found.a, b)}", f"b: {expression(b, found.b, a)}"]
    if found.last is not None:
        evidence.append(f"forward, the last number before they part: {name_of(found.last, a)}, {place_of(found.last)}")
    if order := _order_of_gradients(joint, a, b):
        return Cause(order, evidence)
    came, here = came_in(a, b), _number_at(joint, other, a, b)
    if came and here and came.words != here.words:
        return Cause(f"{here.words}, where the first gradient that differs begins; and {came.words}",
                     evidence, decided=not _goes_to_python(a, b))  # fmt: skip
    if came:
        return came
    if number := _another_number(found):
        return number
    if joint.node == LEAF and used(joint) == used(other) and found.ours is not None and found.theirs is not None:
        known = _forward(found, a, b)
        if not known.decided or not _only_rounds(joint, other, one, two, a, b):
            return known
        differs = f"the gradient of {subject(joint)} differs {gap(one, two)}, for another reason"
        why = f", as {also}" if (also := beside(found, a, b)) else ""
        return Cause(f"{known.words}, which only rounds; {differs}{why}", evidence, decided=False)
    path = _another_path(joint, other, a, b)
    if times := scaled(a, b):
        back = undone(a, b)
        began = "" if back or (path and None in (found.ours, found.theirs)) else _began(found, a, b)
        said = f"{began}; {times.partition(':')[0]}" if began and times.startswith("b has") else times
        return Cause(f"{said}{back or (f'; {path[0]}' if path else '')}", evidence, decided=not back)
    if times := scaled_once(joint, other, one, two, a, b):
        return Cause(times, evidence)
    rounded = _rounding(joint, other, one, two, a, b, found)
    if rounded and (rounded[1] or not far_apart(a, b)):
        return Cause(rounded[0], evidence, decided=rounded[1])
    if cut := masked(joint, a, b):
        return Cause(cut, evidence)
    if path and path[1]:
        return Cause(path[0], evidence)
    return replace(written_otherwise(found, one, two, a, b, path[0] if path else ""), evidence=evidence)


def _began(found: Split, a: Tape, b: Tape) -> str:
    """With which other numbers, computed of the same, two forward passes part, by more than rounding; or ""."""
    x, y = _of_known(found.ours, a, b), _of_known(found.theirs, b, a)
    if x is None or y is None:
        return computed(x, y)
    one, two = a.values.get(x.outputs[0].digest), b.values.get(y.outputs[0].digest)
    if one is not None and two is not None and one.shape == two.shape and gap_of(one, two) < ROUNDED:
        return ""
    return f"the forward passes part: {computed(x, y)}"


def _of_known(entry: Entry | None, tape: Tape, other: Tape) -> Entry | None:
    """An operation, if both runs have all that it is computed of."""
    known = entry is not None and all(tape.given.get(n.digest) or _has(other, n) for n in numbers_in(entry))
    return entry if known else None


def _number_at(joint: Joint, other: Joint, a: Tape, b: Tape) -> Cause | None:
    """Another number that is given to what reads a tensor, where all that comes from above is equal."""
    for x, y in zip(_readers(joint, a), _readers(other, b), strict=False):
        if (x.op, written(x.where)) != (y.op, written(y.where)):
            return None
        if option := other_option(x, y):
            return another_option(option)
    return None


def _readers(joint: Joint, tape: Tape) -> list[Entry]:
    """The operations of the forward pass that pass a gradient to a tensor."""
    forward = {entry.sequence: entry for entry in tape.entries if not entry.node and entry.sequence >= 0}
    return [forward[sequence] for _, sequence, _ in joint.consumers if sequence in forward]


def _goes_to_python(a: Tape, b: Tape) -> bool:
    """Whether a number that differs goes to Python, by way of which another may follow from it."""
    there = [{n.digest for entry in tape.entries if entry.op == ITEM for n in numbers_in(entry)} for tape in (a, b)]
    return there[0] != there[1]


def _another_number(found: Split) -> Cause | None:
    """Whether what each run alone computes begins with one operation of one line and of the same tensors."""
    if found.ours is None or found.theirs is None or found.ours.op != found.theirs.op:
        return None
    if written(found.ours.where) != written(found.theirs.where) or numbers_in(found.ours) != numbers_in(found.theirs):
        return None
    if beyond_defaults(found.ours, found.theirs):
        return another_option(found)
    option = other_option(found.ours, found.theirs)
    return another_option(option) if option else None


def _forward(found: Split, a: Tape, b: Tape) -> Cause:
    """Other numbers go into the first operation on a parameter, though what came in from outside is the same."""
    assert found.ours is not None
    assert found.theirs is not None
    if found.ours.op.startswith(DRAWS) and found.theirs.op == found.ours.op:
        if found.ours.inputs == found.theirs.inputs:
            return another_result(found, a, b)
        if option := other_option(found.ours, found.theirs):
            return another_option(option)
    if other_order := moved(samples(a, found.ours), samples(b, found.ours), a, found.ours, b):
        return other_order
    if (found.ours.op, found.ours.where) == (found.theirs.op, found.theirs.where):
        if found.ours.inputs == found.theirs.inputs:
            return another_result(found, a, b)
        if option := other_option(found.ours, found.theirs):
            return another_option(option)
        where = f"{found.ours.op} at {place_of(found.ours)}"
        return Cause(f"the forward passes part: {where} is the first to make other numbers", decided=False)
    known = all(_of_known(entry, *tapes) for entry, tapes in ((found.ours, (a, b)), (found.theirs, (b, a))))
    what = (in_one_place(a, b) if known else "") or computed(found.ours, found.theirs)
    return Cause(f"the forward passes part: {what}", decided=known)


def _only_rounds(joint: Joint, other: Joint, one: Tensor, two: Tensor, a: Tape, b: Tape) -> bool:
    """Whether what goes into the operations on a parameter is the same but for rounding, and its gradient is not."""
    numbers = [[n for entry in _readers(j, tape) for n in numbers_in(entry)] for j, tape in ((joint, a), (other, b))]
    values = [(a.values.get(x.digest), b.values.get(y.digest)) for x, y in zip(*numbers, strict=False) if x != y]
    gaps = [gap_of(x, y) for x, y in values if x is not None and y is not None and x.shape == y.shape]
    return len(gaps) == len(values) > 0 and max(gaps) < ROUNDED and gap_of(one, two) > FAR


def _has(tape: Tape, number: Number) -> bool:
    """Whether a run has a number, too."""
    return number.digest in tape.given or maker(tape, number.digest) is not None or number == NOTHING


def _order_of_gradients(joint: Joint, a: Tape, b: Tape) -> str:
    """Whether one leaf gets the same gradients, backward pass by backward pass, in another order."""
    mine = [[j for j in tape.joints if (j.number, j.name) == (joint.number, joint.name)] for tape in (a, b)]
    ours, theirs = ([j.gradient.digest for j in each] for each in mine)
    passes = min(len({j.backward for j in each}) for each in mine)  # equal numbers by chance are no passes
    if len(ours) == passes > 1 and Counter(ours) == Counter(theirs):
        order = [theirs.index(digest) + 1 for digest in ours]
        return f"another order of accumulation: the backward passes of a are those of b in the order {order}"
    leaves = [Counter(j.gradient.digest for j in tape.joints if j.node == LEAF) for tape in (a, b)]
    if a.joints and a.joints[-1].backward and leaves[0] == leaves[1]:
        return "another order of accumulation: the backward passes come in another order"
    return ""


def _rounding(
    joint: Joint, other: Joint, one: Tensor, two: Tensor, a: Tape, b: Tape, found: Split
) -> tuple[str, bool] | None:
    """Whether a gradient differs by rounding alone, in words, and whether that is sure; None if it differs by more."""
    if one.dtype != two.dtype or _formats(joint, a) != _formats(other, b):
        return None
    counts = len(joint.consumers), len(other.consumers)
    ours, theirs = (_terms(tape, digest) for tape, digest in ((a, found.a), (b, found.b)))
    if len(ours) > 1 and Counter(ours) == Counter(theirs):
        return (f"rounding: {subject(joint)} gets {len(ours)} gradients, which autograd adds in another order: the "
                "reverse of that in which they were used"), True  # fmt: skip
    most = int(ulps(one, two).max())
    tiny = (one - two).abs().max() <= NEAR_ULPS * torch.finfo(one.dtype).eps * one.abs().max()
    if most > NEAR_ULPS and not bool(tiny):
        return None
    same, subnormal = same_exactly(a, b, joint.gradient, other.gradient)
    if same:
        small = f"; some are below the smallest normal {_short(one.dtype)}, and have fewer digits" if subnormal else ""
        if counts == (1, 1):
            return (f"rounding: the gradient of {subject(joint)} is the same product, multiplied in another order"
                    f"{small}"), True  # fmt: skip
        return f"rounding: the gradient of {subject(joint)} is the same sum, made in another order{small}", True
    by = f"of {subject(joint)} is off by at most {most:,} ulp, with {counts[0]} uses of it in a and {counts[1]} in b"
    if same is False:
        return f"a term or factor that small, and not rounding alone: the gradient {by}", False
    return f"rounding, or a term that small: the gradient {by}", False


def _formats(joint: Joint, tape: Tape) -> set[str]:
    """Of what is computed of a tensor."""
    return {number.dtype for entry in _readers(joint, tape) for number in entry.outputs}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _terms(tape: Tape, digest: str) -> list[str]:
    """The numbers that a sum is made of, by additions alone."""
    entry = maker(tape, digest)
    if entry is None or not entry.op.startswith("add") or len(numbers_in(entry)) < 2:
        return [digest]
    return [term for number in numbers_in(entry)[:2] for term in _terms(tape, number.digest)]


def _another_path(joint: Joint, other: Joint, a: Tape, b: Tape) -> tuple[str, bool] | None:
    """Whether a gradient comes by a path that the other run computes of the same tensor as often, but has cut off.

    Or that it does not compute: that is the cause for sure, where the gradient is the other one but for that.
    """
    for which, more, less, tape in (("b", other, joint, a), ("a", joint, other, b)):
        if len(more.consumers) <= len(less.consumers):
            continue
        mine = b if which == "b" else a
        uses, theirs = _used_for(mine, more), _used_for(tape, less)
        own = [use for use in uses if use not in theirs]
        elsewhere = Counter(use[::2] for use in theirs if use not in uses)  # the same, written on another line
        unlike = Counter(use[::2] for use in own) - elsewhere
        extra = [use for use in own if use[::2] in unlike]
        computed = {use[::2] for entry in tape.entries if not entry.node for use in _uses(entry, less.number)}
        said = [f"{which} has a gradient more, through {plain(node)} at {shortened(where)}, which the other run"
                for node, where in map(uses.__getitem__, extra)]  # fmt: skip
        for use, words in zip(extra, said, strict=True):
            if use[::2] in computed:  # by a line that need not be the same: detach() may stand in it
                return f"{words} computes without one: a detach() is missing, or one too many", True
        if said:
            return f"{said[0]} does not compute", _is_but_for_terms(more, less, mine, tape)
    return None


def _is_but_for_terms(more: Joint, less: Joint, mine: Tape, other: Tape) -> bool:
    """Whether a gradient is the other run's, but for rounding, without some of the terms that it is made of."""
    terms = [mine.values.get(digest) for digest in _terms(mine, more.gradient.digest)]
    one = other.values.get(less.gradient.digest)
    known = [term.double().flatten() for term in terms if term is not None]
    if one is None or len(known) < len(terms) or len(terms) > MOST_TERMS:
        return False
    flat = one.double().flatten()
    off = NEAR_ULPS * torch.finfo(one.dtype).eps * max(float(term.abs().max()) for term in known)
    kept = (sum(some[1:], some[0]) for n in range(1, len(known)) for some in combinations(known, n))
    return any(x.shape == flat.shape and float((x - flat).abs().max()) <= off for x in kept)


def _used_for(tape: Tape, joint: Joint) -> dict[tuple[str, str, str], tuple[str, str]]:
    """What is computed of a tensor by operations that pass a gradient to it: with which number they make, where."""
    forward = {entry.sequence: entry for entry in tape.entries if not entry.node and entry.sequence >= 0}
    found = {}
    for node, sequence, where in joint.consumers:
        entry = forward.get(sequence)
        if entry is not None and entry.outputs:
            found[plain(node).replace("_", ""), written(where), entry.outputs[0].digest] = node, where
    return found


def _uses(entry: Entry, digest: str) -> list[tuple[str, str, str]]:
    """The same of an operation that reads a number."""
    if not entry.outputs or all(number.digest != digest for number in numbers_in(entry)):
        return []
    return [(entry.op.partition(".")[0].replace("_", ""), written(entry.where), entry.outputs[0].digest)]
