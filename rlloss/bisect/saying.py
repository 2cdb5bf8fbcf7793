"""How numbers, operations and tensors of a tape are said."""

import re

from torch import Tensor

from rlloss.bisect.align import Split, computing, numbers_in, ulps
from rlloss.watch.tape import Entry, Joint, Tape, written

MOST_DEEP = 2  # operations of an expression
LONGEST = 100  # characters of a line that are said
ASSIGNED = re.compile(  # the name to which a line assigns, behind what may stand before a statement
    r"(?:(?:else|try|finally|(?:el)?if\b[^:]*|for\b[^:]*|while\b[^:]*|with\b[^:]*):\s*)?"
    r"(?!(?:else|try|finally)\b)(\w+)\s*(?::[^=]+)?=[^=]"
)
PASS_ON = ("view", "reshape", "_unsafe_view", "expand", "squeeze", "unsqueeze", "t", "transpose", "permute", "clone",
           "_to_copy", "slice", "select", "as_strided", "copy_")  # fmt: skip


def maker(tape: Tape, digest: str) -> Entry | None:
    """The operation that made a number first."""
    return next((e for e in computing(tape.entries) if any(n.digest == digest for n in e.outputs)), None)


def expression(tape: Tape, digest: str, other: Tape, depth: int = 0) -> str:
    """How a number was made, down to numbers that the other run has, too."""
    entry = maker(tape, digest)
    common = depth > 0 and (maker(other, digest) is not None or digest in other.given)
    if entry is None:
        return tape.given.get(digest) or "given"
    if common or depth == MOST_DEEP:
        return name_of(entry, tape) if not entry.node else f"g[{plain(entry.node)}]"
    op = entry.op.partition(".")[0].rstrip("_")
    numbers = [expression(tape, number.digest, other, depth + 1) for number in numbers_in(entry)]
    if op in PASS_ON:
        return numbers[0] if numbers else op
    return f"{op}({', '.join(numbers)})"


def name_of(entry: Entry, tape: Tape) -> str:
    """What the author calls a number: by the line that assigns or returns it, or else the operation."""
    name = assigned(entry.where) or returned(entry.where).strip("_")
    line = (other for other in computing(tape.entries) if other.where == entry.where and not other.node)
    mine = {number.digest for number in entry.outputs}
    goes_on = any(number.digest in mine for other in line if other is not entry for number in numbers_in(other))
    return name if name and not goes_on else entry.op.partition(".")[0]


def assigned(where: str) -> str:
    """The name to which a line assigns, or nothing; of several statements in one line it is not known which."""
    line = written(where)
    found = ASSIGNED.match(line) if ";" not in line else None
    return found[1] if found else ""


def returned(where: str) -> str:
    """The function whose result a line is, or nothing."""
    return where.partition(": ")[0].partition(" in ")[2]


def line_of(where: str) -> str:
    """file:line."""
    return where.partition(": ")[0].partition(" in ")[0]


def located(found: Split) -> dict[str, object]:
    """The fields of a ``Finding`` that say what computes otherwise."""
    ours, theirs = parts(found)
    return {"operation": operation(found), "parts_a": ours, "parts_b": theirs}


def operation(found: Split) -> str:
    """Of which a split is, with its line."""
    if found.kind == "gradient" and found.joint is not None:
        return f"{found.joint.node}, {found.joint.where or found.joint.name}"
    return operation_of(found.ours)


def operation_of(entry: Entry | None) -> str:
    return f"{entry.op}, {place_of(entry)}" if entry else ""


def parts(found: Split) -> tuple[list[str], list[str]]:
    """What a and b compute where they part: what uses the tensor whose gradient differs, or the operation itself."""

    def of_joint(joint: Joint | None) -> list[str]:
        uses = [] if joint is None else [(node, where) for node, _, where in joint.consumers]
        return [f"{plain(node)}, {line_of(where)}" for node, where in uses if where]

    def of_entry(entry: Entry | None) -> list[str]:
        made = entry is not None and entry.where
        return [f"{entry.op.partition('.')[0].rstrip('_')}, {line_of(entry.where)}"] if entry and made else []

    if found.kind == "gradient":
        return of_joint(found.joint), of_joint(found.other_joint)
    return of_entry(found.ours), of_entry(found.theirs)


def computed(x: Entry | None, y: Entry | None) -> str:
    """What a and b compute otherwise, or one of them alone; "" for neither."""
    if x is not None and y is not None:
        return f"a computes {x.op} at {place_of(x)}, b computes {y.op} at {place_of(y)}"
    which, alone = ("a", x) if y is None else ("b", y)
    return f"{which} alone computes {alone.op} at {place_of(alone)}" if alone else ""


def place_of(entry: Entry) -> str:
    return f"{shortened(entry.where) or 'no line of anybody'}{', backward' if entry.node else ''}"


def shortened(where: str) -> str:
    """A line with its place, the beginning of a long one."""
    place, colon, line = where.partition(": ")
    return f"{place}{colon}{line if len(line) <= LONGEST else line[: LONGEST - 1] + '…'}"


def subject(joint: Joint) -> str:
    """The tensor of a joint, in words: as its author calls it."""
    if joint.name:
        return joint.name
    by = f"({plain(joint.node)}, {line_of(joint.where)})"
    if name := assigned(joint.where):
        return f"{name} {by}"
    function = returned(joint.where)
    return f"what {function} returns {by}" if function else f"{plain(joint.node)} at {shortened(joint.where)}"


def plain(node: str) -> str:
    """What autograd's node is the backward of: ``mul`` of MulBackward0."""
    return re.sub(r"Backward\d*$", "", node).lower()


def difference(one: Tensor | None, two: Tensor | None) -> list[str]:
    """The first element that differs: index, both values in decimal and hex, ulps apart; and how many do."""
    if one is None or two is None or one.shape != two.shape or one.dtype != two.dtype:
        return []
    places = (one != two).nonzero()
    if not len(places):
        return []
    index = tuple(places[0].tolist())
    x, y = one[index].item(), two[index].item()
    said = f"{list(index)}: {x!r} | {y!r}"
    if one.is_floating_point():
        apart = ulps(one, two)
        said += f" ({float(x).hex()} | {float(y).hex()}), {int(apart[index]):,} ulp apart"
        return [said, f"{len(places)} of {one.numel()} numbers differ, the most by {int(apart.max()):,} ulp"]
    return [said, f"{len(places)} of {one.numel()} numbers differ"]


def gap(one: Tensor, two: Tensor) -> str:
    return f"by up to {gap_of(one, two):.2g} of its largest number"


def gap_of(one: Tensor, two: Tensor) -> float:
    """The largest difference, by the largest number."""
    scale = float(one.double().abs().max()) or 1.0
    return float((one.double() - two.double()).abs().max()) / scale
