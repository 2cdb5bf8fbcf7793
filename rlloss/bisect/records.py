"""Why two runs that ``rlloss.watch`` recorded part, as far as their records tell."""

import json
from typing import NamedTuple

import numpy as np

from rlloss.bisect.align import split, stepping
from rlloss.bisect.found import Finding
from rlloss.bisect.leaving import FOLLOWS, by_way_of_python
from rlloss.bisect.saying import located, operation_of, place_of
from rlloss.bisect.words import changed_outside, explain, written_alone
from rlloss.cause import other_machine
from rlloss.runs.reader import RunFolder, flatten
from rlloss.runs.watched import FirstTensors, Record, first_tensors, other_options
from rlloss.verify import first_difference
from rlloss.watch.tape import TRACE, Tape, read_tape

GENERATORS = ("PyTorch", "NumPy", "Python")
REMEDY = "watch both with trace={step}, which records each operation of that step"
BETWEEN = (
    "look at what else either training does before step {step}: nothing that was computed in it reads what differs"
)


def bisect_records(a: RunFolder, b: RunFolder) -> Finding:
    """Raises: Damaged for a record that cannot be read."""
    ours, theirs = Record(a), Record(b)
    for record in (ours, theirs):
        record.check()
    steps = min(ours.steps, theirs.steps)

    def finding(step: int | None, cause: str, **more: object) -> Finding:
        return Finding(str(a.path), str(b.path), steps, step, cause, **more)  # type: ignore[arg-type]

    if ours.tensors(0) != theirs.tensors(0):
        first = first_tensors(ours, theirs, 0) if steps else None
        return finding(0, "another model: other tensors, or of another shape or dtype", tensor=_said(first))
    if other := np.flatnonzero(ours.after(0) != theirs.after(0)).tolist():
        names = ours.names(0)
        named = f"{names[other[0]]} ({len(other)} of {len(names)})"
        return finding(0, "another initialisation", tensor=named, when="before")
    step = first_difference(a, b)
    if step is None:
        if ours.steps == theirs.steps:
            return finding(None, _after(a, b))
        what = f"{who} trains the model" if (who := _unwatched(a, b).rstrip(",")) else "one ended"
        return finding(steps + 1, f"equal for {steps:,} optimiser steps, then {what}: {ours.steps:,} and "
                       f"{theirs.steps:,} steps")  # fmt: skip
    first = first_tensors(ours, theirs, step)
    said: dict[str, object] = {"tensor": _said(first), "when": first.when}
    cause, decided = _told(ours, theirs, step, first)
    outside = _outside(ours, theirs, step, first) if decided else ""
    heard = _heard(a, b, step)
    if outside and heard:
        words, entry = changed_outside(*heard, first.names)
        return finding(step, f"{outside}{words}", operation=operation_of(entry), **said)
    told = _by_traces(ours, theirs, step, first, (cause, decided), heard) if heard else None
    if told is not None:
        words, more = told
        return finding(step, words, **{**said, **more})
    remedy = "" if decided else REMEDY.format(step=step)
    return finding(step, cause, decided=decided, remedy=remedy, **said)


def _by_traces(
    a: Record, b: Record, step: int, first: FirstTensors, told: tuple[str, bool], heard: tuple[Tape, Tape]
) -> tuple[str, dict[str, object]] | None:
    """The cause, and the other fields of a ``Finding``, by the traces of a step; None: as the records tell it."""
    cause, decided = told
    if decided and (a.tensors(step) != b.tensors(step) or _since(a, b, "optimizer", step)):
        return None  # the tapes are of other steps
    found, rows = split(*heard), _rows(a, b, step, first)
    why = explain(found, *heard, first.names)
    known: dict[str, object] = {"evidence": why.evidence, **located(found)}
    if decided:
        before = found.kind == "gradient" or (found.ours is not None and id(found.ours) not in stepping(heard[0]))
        if why.decided and before and found.kind not in ("none", "program"):  # what a rate follows, say
            return f"{why.words}; {cause}", known
        follows = rows and rows.words == cause and by_way_of_python(None, *heard)
        return (f"{follows}; {cause}{FOLLOWS}", {"decided": False}) if follows else None
    if found.kind == "none":
        if alone := written_alone(*heard, first.names):
            which, entry = alone
            words = f"{which} alone writes to {entry.to} by {entry.op} at {place_of(entry)}"
            return words, {"operation": operation_of(entry)}
        return f"{cause}; {why.words}", {"decided": False, "remedy": BETWEEN.format(step=step)}
    words = why.words + (_recorded(a.run, b.run) if found.kind != "gradient" and not rows else "")
    if why.decided and found.kind == "program" and _classes(a.run) != _classes(b.run):
        words = f"with equal gradients, another optimiser{_recorded(a.run, b.run)}"
    return words + (f"; {rows.words}" if rows else ""), {"decided": why.decided, **known}


def _after(a: RunFolder, b: RunFolder) -> str:
    """What changed parameters after the last step that was recorded, and otherwise in one run than in the other."""
    changed = [bool(run.info.get("changed_after")) for run in (a, b)]
    if a.info.get("changed_after") == b.info.get("changed_after"):
        return ""
    of = "both runs, otherwise in each," if all(changed) else "one run"
    return (
        f"{_unwatched(a, b) or 'something else than an optimiser'} changed the parameters of {of} after its last step"
    )


def _unwatched(a: RunFolder, b: RunFolder) -> str:
    """The optimisers, by their classes, that trained the model and were not watched."""
    names = dict.fromkeys(str(name) for run in (a, b) for name in run.info.get("unwatched") or ())
    return f"an optimiser that is not watched, {' or '.join(names)}," if names else ""


def _recorded(a: RunFolder, b: RunFolder) -> str:
    """What may part two runs and is another in their records: options, versions, machine, threads; or nothing."""
    known = "; ".join(filter(None, (other_options(a, b, rates=False), other_machine(a, b))))
    return f"; recorded: {known}" if known else ""


def _classes(run: RunFolder) -> list[str]:
    """Of the optimisers, as their options were recorded."""
    return [value for key, value in flatten(run.info.get("optimizers")).items() if key.endswith(".class")]


def _heard(a: RunFolder, b: RunFolder, step: int) -> tuple[Tape, Tape] | None:
    """The tapes of both, if both are of this step."""
    if not all((run.path / TRACE).exists() for run in (a, b)):
        return None
    (one, ours), (other, theirs) = (read_tape(run.path) for run in (a, b))
    return (ours, theirs) if one == other == step else None


def _said(first: FirstTensors | None) -> str:
    return f"{first.names[0]} ({len(first.names)} of {first.tensors})" if first and first.names else ""


def _told(a: Record, b: Record, step: int, first: FirstTensors) -> tuple[str, bool]:
    """The cause of a difference that a step shows first, and whether the records decide it."""
    if a.tensors(step) != b.tensors(step):
        return f"other tensors from step {step:,} on: {first.names[0]} is in one run alone", True
    if since := _since(a, b, "optimizer", step):
        return f"another optimiser makes step {since:,}", True
    if outside := _outside(a, b, step, first):
        return outside, True
    gradient = _gradient(a, b, step)
    if not gradient.differs and (left_out := _left_out(a, b, step, first)):
        return left_out, True
    if skipped := _since(a, b, "skipped_steps", step):
        which = "a" if a.run.metrics["skipped_steps"].iloc[skipped - 1] else "b"
        return f"{which} skips step {skipped:,}: GradScaler found a gradient that is not finite", True
    if rows := _rows(a, b, step, first):
        if gradient.differs or first.when == "before":  # or a buffer, which the forward pass changes
            seen = gradient.words if gradient.differs else f"{first.names[0]} is another before it"
            return f"{rows.words}; but {seen}: undecided whether it follows from that{_draws(a, b, step)}", False
        return rows.words, rows.decided
    also = _draws(a, b, step) + _groups(a, b, step) + _recorded(a.run, b.run)
    if gradient.differs:
        what = f"{gradient.words}, for equal parameters"
        return f"{what}: undecided between data, loss and what backward() left of a step before{also}", False
    if first.when == "before":
        return f"a buffer differs, which the forward pass changes: undecided between data and model{also}", False
    if not gradient.words:
        return f"equal parameters before the step: undecided between data, loss, gradient and optimiser{also}", False
    what = "the optimiser's state is another" if gradient.all else "another state of the optimiser, or other gradients"
    return f"equal parameters and {gradient.words}, and another result: {what}{also}", False


def _left_out(a: Record, b: Record, step: int, first: FirstTensors) -> str:
    """Whether all that differs after a step is what the optimiser that makes it trains in one run alone."""
    ours, theirs = _trained(a, step), _trained(b, step)
    more = f" and {len(first.names) - 1} more" if len(first.names) > 1 else ""
    for which, left in (("b", ours - theirs), ("a", theirs - ours)):
        if ours and theirs and first.when != "before" and set(first.names) <= left:
            return f"{first.names[0]}{more}: in no group of the optimiser of {which}, which the other run trains"
    return ""


def _trained(record: Record, step: int) -> set[str]:
    """The tensors of the optimiser that makes a step."""
    return {name for group in record.groups(_row(record, "optimizer", step)) for name in group}


class _Gradient(NamedTuple):
    """With which gradients a step was made: ``words`` are empty if that is not recorded; ``all``: of all tensors."""

    differs: bool
    words: str
    all: bool = False


def _gradient(a: Record, b: Record, step: int) -> _Gradient:
    one, other = a.gradients(step), b.gradients(step)
    if one and other:
        names = [name for name in one if one[name] != other.get(name)]
        more = f"another gradient of {names[0]} ({len(names)} of {len(one)})" if names else "gradients"
        return _Gradient(bool(names), more, all=True)
    digests = [_row(record, "gradient_digest", step) for record in (a, b)]
    others = _groups(a, b, step) or _trained(a, step) != _trained(b, step)  # then other tensors may be the smallest
    if others or not all(digests):
        return _Gradient(False, "")
    differs = digests[0] != digests[1]
    return _Gradient(differs, f"{'other' if differs else 'equal'} gradients of the smallest tensors")


def _outside(a: Record, b: Record, step: int, first: FirstTensors) -> str:
    """Whether something else than an optimiser changed parameters before a step."""
    if first.when != "before" or a.tensors(step) != b.tensors(step) or _since(a, b, "optimizer", step):
        return ""
    buffers = {entry[0] for entry in (*a.tensors(step), *b.tensors(step)) if entry[3]}
    names = [name for name in first.names if name not in buffers]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    who = _unwatched(a.run, b.run) or "something else than the optimiser"
    return f"{who} changed {names[0]}{more}, before step {step:,}" if names else ""


class _Told(NamedTuple):
    words: str
    decided: bool


def _rows(a: Record, b: Record, step: int, first: FirstTensors) -> _Told | None:
    """What the rows of metrics say, up to a step: a learning rate, or an option, of a group with a tensor that differs.
    Undecided, if both are others.
    """
    rates = [_rates(record, step) for record in (a, b)]
    alike = len(rates[0]) == len(rates[1])  # or else other groups of parameters, which need not make another step
    said: list[str] = []
    idle = _without_gradient(a, step) & _without_gradient(b, step) if alike else set()
    idle |= _elsewhere(a, step, first) & _elsewhere(b, step, first) if alike else set()
    moved = [[rate for j, rate in enumerate(each) if j not in idle] for each in rates]
    since = _since(a, b, "learning_rates", step)
    if since == step and moved[0] != moved[1] and (alike or set(rates[0]) != set(rates[1])):
        what = "another learning rate" if alike else "other groups of parameters, with other learning rates,"
        said.append(f"{what} from step {since:,} on: {' | '.join(map(' '.join, rates))}")
    permuted = bool(said) and sorted(moved[0]) == sorted(moved[1])  # groups in another order, it may be
    alone = step > 1 or said or _classes(a.run) == _classes(b.run)  # or else the classes are told
    if alike and alone and _since(a, b, "options_digest", step) == step:
        told = _options(a, b, step)
        here = [words for i, words in told if i not in idle]
        if here or not told:
            said.append(f"other options of an optimiser from step {step:,} on{': ' if here else ''}{', '.join(here)}")
    return _Told("; and ".join(said), len(said) == 1 and not permuted) if said else None


def _without_gradient(record: Record, step: int) -> set[int]:
    """The groups of parameters that a step did not move, whatever their rates: none of them had a gradient."""
    return {-int(group) for group in _row(record, "gradient_digest", step).split()[1:]}


def _elsewhere(record: Record, step: int, first: FirstTensors) -> set[int]:
    """The groups of parameters, of the optimiser that makes a step, of which no tensor differs after it."""
    groups = record.groups(_row(record, "optimizer", step))
    return {i for i, names in enumerate(groups) if names and not set(names) & set(first.names)}


def _options(a: Record, b: Record, step: int) -> list[tuple[int, str]]:
    """Which options of the optimiser that makes a step are others, by group, and what they are; none if that is not
    recorded.
    """
    ours, theirs = (json.loads(record.options(step) or "[]") for record in (a, b))
    if len(ours) != len(theirs):
        return []
    return [
        (i, f"{key} {x.get(key)} | {y.get(key)}" + (f" in group {i}" if i else ""))
        for i, (x, y) in enumerate(zip(ours, theirs, strict=True))
        for key in {**x, **y}
        if x.get(key) != y.get(key)
    ]


def _rates(record: Record, step: int) -> list[str]:
    """The learning rates of a step, one for each group of parameters."""
    return _row(record, "learning_rates", step).split()


def _row(record: Record, column: str, step: int) -> str:
    """What a step's row says; empty if it does not."""
    value = record.run.metrics[column].iloc[step - 1] if column in record.run.metrics else ""
    return "" if value != value else str(value)


def _groups(a: Record, b: Record, step: int) -> str:
    one, other = (len(_rates(record, step)) for record in (a, b))
    return f"; other groups of parameters in the optimiser: {one} | {other}" if one != other else ""


def _draws(a: Record, b: Record, until: int) -> str:
    """Which of the generators that a process shares parted, and when; empty if none did that was drawn from."""
    parted = []
    digests = [record.run.metrics["random_digests"].iloc[:until].str.split(expand=True) for record in (a, b)]
    for place, name in enumerate(GENERATORS):
        one, other = (table[place].to_numpy() for table in digests)
        differs = np.flatnonzero(one != other)
        if len(differs) and (differs[0] or len(set(one)) > 1):  # or else it was never seeded, and never used
            parted.append(f"{name}'s generator before step {int(differs[0]) + 1:,}")
    return f"; other random numbers: {' and '.join(parted)}" if parted else ""


def _since(a: Record, b: Record, column: str, until: int) -> int:
    """The first step, up to one, in whose row a column differs; 0 if there is none."""
    rows = [record.run.metrics[column].astype(str).to_numpy()[:until] for record in (a, b)]
    differs = np.flatnonzero(rows[0] != rows[1])
    return int(differs[0]) + 1 if len(differs) else 0
