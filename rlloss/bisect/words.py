"""Why two tapes part, in words, as far as their numbers decide it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlloss.bisect.align import LEAF, Split, behind, computing, kind_of, numbers_in, paired, ulps, used
from rlloss.bisect.exact import same_exactly
from rlloss.bisect.masks import masked
from rlloss.bisect.saying import difference, expression, gap, maker, name_of, place_of, plain, subject
from rlloss.watch.tape import Entry, Joint, Number, Tape, written

NEAR_ULPS = 64  # to which it may be rounding, or a term that small
TAKES = ("index", "slice", "select", "gather", "take")  # a part of what there is
LOADS = (*TAKES, "lift_fresh", "_to_copy")  # that hand samples over, and compute nothing
DRAWS = (
    "rand", "normal", "uniform", "bernoulli", "multinomial", "native_dropout", "exponential", "random", "poisson",
    "binomial", "geometric", "cauchy", "log_normal", "_standard_gamma", "_sample_dirichlet",
)  # fmt: skip


Rows = list[tuple[float, ...]]


@dataclass
class Cause:
    """In words; ``decided`` if the numbers leave no other. ``evidence``: the numbers themselves, a line each."""

    words: str
    evidence: list[str] = field(default_factory=list)
    decided: bool = True


def explain(found: Split, a: Tape, b: Tape) -> Cause:
    """Of two tapes, a and b, that part there."""
    for known in (not_finite(a, b), _unlike_passes(a, b), _without_gradient(a, b)):
        if known:
            return known
    match found.kind:
        case "operation":
            return _operation(found, a, b)
        case "option":
            return _option(found)
        case "program":
            return _program(found)
        case "input":
            return _input(found, a, b)
        case "gradient":
            return _gradient(found, a, b)
        case "none":
            return Cause("nothing that was computed in this step differs", decided=False)


def not_finite(a: Tape, b: Tape) -> Cause | None:
    """In one run alone a gradient is not finite: the first operation that makes such numbers of finite ones."""
    broken = [any(not _finite(tape, joint.gradient) for joint in tape.joints) for tape in (a, b)]
    if broken[0] == broken[1]:
        return None
    which, tape = ("a", a) if broken[0] else ("b", b)
    if (entry := _first_not_finite(tape)) is None:
        return None
    return Cause(f"{which} has numbers that are not finite: {entry.op} made the first, of finite ones, at "
                 f"{place_of(entry)}")  # fmt: skip


def _finite(tape: Tape, number: Number) -> bool:
    value = tape.values.get(number.digest)
    return value is None or not value.is_floating_point() or bool(torch.isfinite(value).all())


def _first_not_finite(tape: Tape) -> Entry | None:
    for entry in computing(tape.entries):
        fills = any(isinstance(value, str) and value in ("inf", "-inf", "nan") for value in entry.inputs)
        made = all(_finite(tape, number) for number in entry.outputs)
        if not made and all(_finite(tape, number) for number in numbers_in(entry)) and not fills:
            return entry
    return None


def _unlike_passes(a: Tape, b: Tape) -> Cause | None:
    """The runs make another number of backward passes in the step: do the gradients add up to the same?"""
    ours, theirs = (_gradients(tape) for tape in (a, b))
    passes = [len({joint.backward for joint in tape.joints if joint.node == LEAF}) for tape in (a, b)]
    if passes[0] == passes[1] or not all(passes) or set(ours) != set(theirs):
        return None
    said = f"another accumulation: {passes[0]} | {passes[1]} backward passes in the step"
    for which, tape, gradients in (("a", a, ours), ("b", b, theirs)):
        if lost := _not_handed_on(tape, gradients):
            return Cause(f"{said}, and what the optimiser of {which} is given for {lost} is not their sum: something "
                         "changes a gradient between the passes, as zero_grad() or clipping")  # fmt: skip
    for name, (one, dtype) in ours.items():
        off = float((one - theirs[name][0]).abs().max())
        if off > NEAR_ULPS * torch.finfo(dtype).eps * float(one.abs().max()):
            return Cause(f"{said}, and those of {name} do not add up to the same, by {off:.2g}", decided=False)
    return Cause(f"{said}, whose gradients add up to the same but for rounding, or a term that small")


def _not_handed_on(tape: Tape, gradients: Mapping[str, tuple[Tensor, torch.dtype]]) -> str:
    """A parameter of which no operation after the last backward pass reads the sum of the gradients; empty if none."""
    read = [number for entry in behind(computing(tape.entries)) for number in numbers_in(entry)]
    if any(number.digest not in tape.values for number in read):
        return ""
    for name, (total, _) in gradients.items():
        most = 1e-3 * float(total.abs().max())
        flat = total.flatten()  # a value is kept once, in whichever shape it came first
        values = (tape.values[number.digest] for number in read)
        alike = (x.double().flatten() for x in values if x.numel() == total.numel())
        if not any(float((x - flat).abs().max()) <= most for x in alike):
            return name
    return ""


def _gradients(tape: Tape) -> dict[str, tuple[Tensor, torch.dtype]]:
    """Of each parameter, over all backward passes, with the dtype in which they were made."""
    found: dict[str, tuple[Tensor, torch.dtype]] = {}
    for joint in tape.joints:
        value = tape.values.get(joint.gradient.digest)
        if joint.node == LEAF and joint.name and value is not None:
            before, _ = found.get(joint.name, (torch.zeros(()), value.dtype))
            found[joint.name] = before + value.double(), value.dtype
    return found


def _without_gradient(a: Tape, b: Tape) -> Cause | None:
    """A parameter gets a gradient in one run alone: by what comes in, or by what is computed of the same."""
    ours, theirs = ({j.name for j in tape.joints if j.node == LEAF and j.name} for tape in (a, b))
    for which, other, tape, missing in (("b", "a", b, ours - theirs), ("a", "b", a, theirs - ours)):
        if not missing or not ours & theirs:
            continue
        if came := _came_in(a, b):
            return came
        unread = missing - set(tape.read)
        name, more = min(unread or missing), f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        if unread:
            return Cause(f"the forward pass of {which} does not use {name}{more}, with which {other} computes its loss")
        return Cause(f"{which} has no gradient for {name}{more}, for which {other} has one: a frozen parameter, "
                     "torch.no_grad(), detach(), or a loss that does not hang on it")  # fmt: skip
    return None


def _came_in(a: Tape, b: Tape) -> Cause | None:
    """Whether other data came in from outside, or other random numbers were drawn of the same."""
    if readers := _data_differ(a, b):
        return _other_data(Split("input", *readers), a, b)
    for x, y in zip(_taken(a), _taken(b), strict=False):
        if kind_of(x) != kind_of(y) or numbers_in(x) != numbers_in(y):
            break
        if x.inputs != y.inputs:
            place = next(i for i, (one, other) in enumerate(zip(x.inputs, y.inputs, strict=False)) if one != other)
            return _option(Split("option", x, y, place))
    ours, theirs = (
        [entry for entry in computing(tape.entries) if not entry.node and entry.op.startswith(DRAWS)] for tape in (a, b)
    )
    for x, y in zip(ours, theirs, strict=False):
        if kind_of(x) != kind_of(y) or x.inputs != y.inputs:
            return None
        if x.outputs != y.outputs:
            return _operation(Split("operation", x, y, a=x.outputs[0].digest, b=y.outputs[0].digest), a, b)
    return None


def _taken(tape: Tape) -> list[Entry]:
    """The operations that take a part of what came in from outside."""
    return [
        entry
        for entry in tape.entries
        if not entry.node
        and entry.op.startswith(LOADS)
        and numbers_in(entry)
        and all(tape.given.get(number.digest) == "" for number in numbers_in(entry))
    ]


def _operation(found: Split, a: Tape, b: Tape) -> Cause:
    assert found.ours is not None
    evidence = difference(a.values.get(found.a), b.values.get(found.b))
    if found.ours.op.startswith(DRAWS):
        return Cause(f"another draw: {found.ours.op} at {place_of(found.ours)} gave other random numbers", evidence)
    what = f"{found.ours.op} at {place_of(found.ours)} made other numbers of equal ones"
    why = "another thread count, build, processor or kernel; or it draws random numbers"
    return Cause(f"{what}: {why}", evidence)


def _option(found: Split) -> Cause:
    assert found.ours is not None
    assert found.theirs is not None
    if len(found.ours.inputs) != len(found.theirs.inputs):
        return Cause(f"{found.ours.op} at {place_of(found.ours)} is given {len(found.ours.inputs)} | "
                     f"{len(found.theirs.inputs)} tensors and numbers")  # fmt: skip
    one, other = found.ours.inputs[found.place], found.theirs.inputs[found.place]
    return Cause(f"another number: {found.ours.op} at {place_of(found.ours)} is given {one} | {other}")


def _program(found: Split) -> Cause:
    """With equal gradients, one run computes something else between its backward pass and the end of its step."""
    alike = found.ours is not None and found.theirs is not None and found.ours.op == found.theirs.op

    def said(entry: Entry | None) -> str:
        if entry is None:
            return "nothing more"
        of = f" of {list(entry.outputs[0].shape)}" if alike else ""
        return f"{entry.op}{of} at {place_of(entry)}"

    one, other = said(found.ours), said(found.theirs)
    return Cause(f"with equal gradients, after the backward pass, a computes {one}, and b {other}")


def _input(found: Split, a: Tape, b: Tape) -> Cause:
    """Something came in from outside, or was left from a step before."""
    assert found.ours is not None
    evidence = difference(a.values.get(found.a), b.values.get(found.b))
    one, other = a.given.get(found.a, ""), b.given.get(found.b, "")
    if one and one == other:
        return Cause(f"{one} was another before the step began", evidence)
    if stale := _stale_gradients(a, b):
        return stale
    if (one and other) or (_is_known(found.a, b) and _is_known(found.b, a)):
        return Cause(f"{found.ours.op} at {place_of(found.ours)} is given another tensor: {_called(found.a, a)} | "
                     f"{_called(found.b, b)}", evidence)  # fmt: skip
    if found.a in a.given and found.b in b.given:
        return _other_data(found, a, b)
    return Cause(f"{found.ours.op} at {place_of(found.ours)} is given another number", evidence, decided=False)


def _is_known(digest: str, tape: Tape) -> bool:
    """Whether a run has a number, from somewhere."""
    return digest in tape.given or maker(tape, digest) is not None


def _called(digest: str, tape: Tape) -> str:
    made = maker(tape, digest)
    return tape.given.get(digest) or (f"{name_of(made, tape)} of {place_of(made)}" if made else "data")


def _stale_gradients(a: Tape, b: Tape) -> Cause | None:
    """Whether one run alone adds its gradient to one that was there before its step."""
    old = [_adds_to_old(tape) for tape in (a, b)]
    if bool(old[0]) == bool(old[1]):
        return None
    which = "b" if old[1] else "a"
    entry = old[0] or old[1]
    assert entry is not None
    return Cause(f"{which} adds its gradient to one that was there before the step: zero_grad() is missing",
                 [f"{entry.op} in {entry.node} of {entry.outputs[0].shape}"])  # fmt: skip


def _adds_to_old(tape: Tape) -> Entry | None:
    for entry in tape.entries:
        if entry.node == LEAF and entry.op.startswith("add"):
            read = numbers_in(entry)
            if any(number.digest in tape.given and _norm(tape, number) for number in read):
                return entry
    return None


def _norm(tape: Tape, number: Number) -> bool:
    value = tape.values.get(number.digest)
    return value is None or bool(value.count_nonzero())


def _other_data(found: Split, a: Tape, b: Tape) -> Cause:
    """The first numbers of the forward pass that differ come from outside: are they the same samples?"""
    one, two = found.ours, found.theirs
    assert one is not None
    read = f"{name_of(one, a)} at {place_of(one)}"
    if not one.op.startswith(TAKES) and (told := _handed_in(a, b)):
        return Cause(f"{told[0]}, first seen in {read}", told[1])
    rows = [_samples(tape, one) for tape in (a, b)]
    if moved := _moved(rows[0], rows[1], a, one):
        return moved
    shared = Counter(rows[0]) & Counter(rows[1])
    what = f"another minibatch, with {shared.total()} of {len(rows[0])} samples in common" if shared else "other data"
    made = [_made_by(tape, one) for tape in (a, b)]
    same = sum(x == y for x, y in zip(*made, strict=False))
    if same and len(made[0]) == len(made[1]):
        what = f"other data: {len(made[0]) - same} of the {len(made[0])} tensors that one line makes"
    numbers = [tape.values.get(e.outputs[0].digest) if e and e.outputs else None for tape, e in ((a, one), (b, two))]
    return Cause(f"{what}, first seen in {read}", difference(*numbers))


def _handed_in(a: Tape, b: Tape) -> tuple[str, list[str]] | None:
    """In which way the tensors that came in from outside differ, row by row, with the first number that does."""
    pairs = list(zip(_from_outside(a), _from_outside(b), strict=False))
    pairs = [(x, y) for x, y in pairs if x.shape[1:] == y.shape[1:] and x.dtype == y.dtype]
    differing = [(x, y) for x, y in pairs if not torch.equal(x, y)]
    if not differing:
        return None
    one, other = differing[0]
    if len(one) != len(other):
        return f"another minibatch: {len(one)} | {len(other)} samples", []
    beside = [pair for pair in pairs if len(pair[0]) == len(pair[1]) == len(one)]
    ours, theirs = (_rows([pair[i] for pair in beside]) for i in (0, 1))
    alone = len(beside) == 1 and any(torch.equal(x, y) for x, y in pairs)
    if alone:
        off = len(one) - (Counter(ours) & Counter(theirs)).total()
        what = f"{off} of {len(one)} rows of one tensor" if off else "the rows of one tensor in another order"
        return f"other data: {what}, beside equal ones", difference(one, other)
    if Counter(ours) == Counter(theirs):
        return "the same samples in another order", difference(one, other)
    if all(Counter(_rows([x])) == Counter(_rows([y])) for x, y in beside):
        return "the same rows, put together otherwise: samples with other labels or weights", difference(one, other)
    if any(torch.equal(x, y) for x, y in beside):
        off = len(one) - (Counter(_rows([one])) & Counter(_rows([other]))).total()
        return f"other data: {off} of {len(one)} rows of one tensor, beside equal ones", difference(one, other)
    shared = (Counter(ours) & Counter(theirs)).total()
    what = f"another minibatch, with {shared} of {len(one)} samples in common" if shared else "other data"
    return what, difference(one, other)


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


def _rows(tensors: Sequence[Tensor]) -> Rows:
    """One for each sample: all numbers of it in all tensors."""
    flat = [value.reshape(len(value), -1).double() for value in tensors]
    return [tuple(row) for row in torch.cat(flat, 1).tolist()]


def _moved(ours: Rows, theirs: Rows, tape: Tape, line: Entry) -> Cause | None:
    """Whether the samples that a line makes come in another order. Sure where it makes all there is of each."""
    if not ours or ours == theirs or Counter(ours) != Counter(theirs):
        return None
    read = f"{name_of(line, tape)} at {place_of(line)}"
    first = next(entry for entry in tape.entries if entry.op == line.op and entry.where == line.where and entry.outputs)
    if line.op.startswith(LOADS) and len(ours[0]) > math.prod(first.outputs[0].shape[1:]):
        return Cause(f"the same samples in another order, first seen in {read}")
    what = f"the same rows in another order, first seen in {read}"
    return Cause(f"{what}; whether their labels moved with them is not seen there", decided=False)


def _made_by(tape: Tape, like: Entry) -> list[str]:
    """All that one line made by one operation, in order."""
    entries = (e for e in tape.entries if not e.node and e.op == like.op and written(e.where) == written(like.where))
    return [entry.outputs[0].digest for entry in entries if entry.outputs]


def _samples(tape: Tape, like: Entry) -> Rows:
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


def _data_differ(a: Tape, b: Tape) -> tuple[Entry, Entry] | None:
    """The first operations that read a number of some shape which nothing on the tape made, and only one run has."""
    there = [{*tape.given, *(n.digest for e in tape.entries for n in e.outputs)} for tape in (a, b)]
    alone = [_first_reader(tape, other) for tape, other in ((a, there[1]), (b, there[0]))]
    (one, x), (two, y) = alone
    if x is None or y is None:
        return None
    return (x, y) if one == two or (x.op, written(x.where)) == (y.op, written(y.where)) else None


def _first_reader(tape: Tape, known: set[str]) -> tuple[object, Entry | None]:
    for entry in computing(tape.entries):
        if entry.node:
            return None, None  # the backward pass has begun
        for number in numbers_in(entry):
            if number.digest in tape.given and not tape.given[number.digest] and number.digest not in known:
                return (number.shape, number.dtype), entry
    return None, None


def _gradient(found: Split, a: Tape, b: Tape) -> Cause:
    joint, other = found.joint, found.other_joint
    assert joint is not None
    assert other is not None
    one, two = a.values.get(found.a), b.values.get(found.b)
    if one is None or two is None or one.shape != two.shape:
        return Cause(f"{subject(joint)} has another gradient", decided=False)
    evidence = [f"the gradient of {subject(joint)}", *difference(one, two)]
    evidence += [f"a: {expression(a, found.a, b)}", f"b: {expression(b, found.b, a)}"]
    if found.last is not None:
        evidence.append(f"forward, the last number before they part: {name_of(found.last, a)}, {place_of(found.last)}")
    if order := _order_of_gradients(joint, a, b):
        return Cause(order, evidence)
    if came := _came_in(a, b):
        return came
    if joint.node == LEAF and used(joint) == used(other) and found.ours is not None and found.theirs is not None:
        return _forward(found, a, b)
    alike = len(joint.consumers) == len(other.consumers)
    if alike and (scaled := _scaled(found, a, b)):
        return Cause(scaled, evidence)
    if rounded := _rounding(joint, other, one, two, a, b, found):
        return Cause(*rounded[:1], evidence, decided=rounded[1])
    if cut := masked(joint, a, b):
        return Cause(cut, evidence)
    if path := _another_path(joint, other, a, b):
        return Cause(path, evidence)
    return Cause(f"{subject(joint)} has another gradient: {gap(one, two)}", evidence, decided=False)


def _forward(found: Split, a: Tape, b: Tape) -> Cause:
    """Other numbers go into the first operation on a parameter, though what came in from outside is the same."""
    assert found.ours is not None
    assert found.theirs is not None
    if found.ours.op.startswith(DRAWS) and found.theirs.op == found.ours.op:
        return _operation(found, a, b)
    if moved := _moved(_samples(a, found.ours), _samples(b, found.ours), a, found.ours):
        return moved
    if (found.ours.op, found.ours.where) == (found.theirs.op, found.theirs.where):
        if found.ours.inputs == found.theirs.inputs:
            return _operation(found, a, b)
        where = f"{found.ours.op} at {place_of(found.ours)}"
        return Cause(f"the forward passes part: {where} is the first to make other numbers", decided=False)
    return Cause(f"the forward passes part: a computes {found.ours.op} at {place_of(found.ours)}, b computes "
                 f"{found.theirs.op} at {place_of(found.theirs)}")  # fmt: skip


def _order_of_gradients(joint: Joint, a: Tape, b: Tape) -> str:
    """Whether one leaf gets the same gradients, backward pass by backward pass, in another order."""
    ours, theirs = ([j.gradient.digest for j in tape.joints if j.number == joint.number] for tape in (a, b))
    if len(ours) > 1 and Counter(ours) == Counter(theirs):
        order = [theirs.index(digest) + 1 for digest in ours]
        return f"another order of accumulation: the backward passes of a are those of b in the order {order}"
    passes = [Counter(j.gradient.digest for j in tape.joints if j.node == LEAF) for tape in (a, b)]
    if a.joints and a.joints[-1].backward and passes[0] == passes[1]:
        return "another order of accumulation: the backward passes come in another order"
    return ""


def _scaled(found: Split, a: Tape, b: Tape) -> str:
    """Whether the first gradients that differ are one another's multiples, in each backward pass by one number."""
    factors: dict[int, float] = {}
    for joint, other in paired(a.joints, b.joints):
        if joint.backward in factors or joint.gradient.digest == other.gradient.digest:
            continue
        one, two = a.values.get(joint.gradient.digest), b.values.get(other.gradient.digest)
        if one is None or two is None or one.shape != two.shape:
            return ""
        factor = _factor(one.double(), two.double())
        if factor is None or abs(factor - 1) < 1e-5:
            return ""
        factors[joint.backward] = factor
    if not factors or not all(_explained(factors, *pair, a, b) for pair in paired(a.joints, b.joints)):
        return ""
    said = ", ".join(f"{factor:.6g}" for factor in factors.values())
    if len(factors) > 1 and max(factors.values()) - min(factors.values()) > 1e-5:
        return (f"another normaliser in each of {len(factors)} backward passes: b has the gradients of a times {said}; "
                "a mean of means weighs every micro-batch alike, however many samples it has")  # fmt: skip
    return f"b has the gradient of a times {next(iter(factors.values())):.6g}: another coefficient, or another mean"


def _explained(factors: dict[int, float], joint: Joint, other: Joint, a: Tape, b: Tape) -> bool:
    """Whether a parameter's gradient differs by the factor of its backward pass, and by nothing else."""
    one, two = a.values.get(joint.gradient.digest), b.values.get(other.gradient.digest)
    if joint.node != LEAF or one is None or two is None or not one.count_nonzero():
        return True
    expected = factors.get(joint.backward, 1.0) * one.double()
    return bool((two.double() - expected).abs().max() <= 1e-3 * expected.abs().max())


def _factor(one: Tensor, two: Tensor) -> float | None:
    """The number by which the first is multiplied to get the second; None if there is none."""
    if not one.count_nonzero() or bool(((one == 0) != (two == 0)).any()):
        return None
    ratios = two[one != 0] / one[one != 0]
    middle = float(ratios.median())
    spread = (ratios - middle).abs().max()
    return middle if bool(spread <= 1e-5 * abs(middle)) and math.isfinite(middle) else None


def _rounding(
    joint: Joint, other: Joint, one: Tensor, two: Tensor, a: Tape, b: Tape, found: Split
) -> tuple[str, bool] | None:
    """Whether a gradient differs by rounding alone, in words, and whether that is sure; None if it differs by more."""
    if one.dtype != two.dtype:
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


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _terms(tape: Tape, digest: str) -> list[str]:
    """The numbers that a sum is made of, by additions alone."""
    entry = maker(tape, digest)
    if entry is None or not entry.op.startswith("add") or len(numbers_in(entry)) < 2:
        return [digest]
    return [term for number in numbers_in(entry)[:2] for term in _terms(tape, number.digest)]


def _another_path(joint: Joint, other: Joint, a: Tape, b: Tape) -> str:
    """Whether a gradient comes by a path that the other run computes, too, but has cut off."""
    for which, more, less, tape in (("b", other, joint, a), ("a", joint, other, b)):
        taken = {written(where) for _, _, where in less.consumers}
        paths = [(node, where) for node, _, where in more.consumers if written(where) not in taken]
        if len(more.consumers) <= len(less.consumers) or not paths:
            continue
        computed = {written(entry.where) for entry in tape.entries}
        for node, where in paths:
            if written(where) in computed:
                return (f"{which} has a gradient more, through {plain(node)} at {where}, which the other run computes "
                        "without one: a detach() is missing, or one too many")  # fmt: skip
        node, where = paths[0]
        return f"{which} has a gradient more, through {plain(node)} at {where}, which the other run does not compute"
    return ""
