"""Reading what ``rlloss.watch`` recorded: which tensor changed, at which step, and whether in it or before it."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from rlloss.errors import ConfigError
from rlloss.runs.reader import Damaged, RunFolder, flatten
from rlloss.runs.writer import Written

WATCHED = "watch"  # the group of a record's config that says how the training was watched
HASH_BYTES = 16
STEP_BYTES = 8

RATES = ("lr", "initial_lr")  # of an optimiser's options, those that schedules change
COLUMNS = ("optimizer", "learning_rates", "options_digest", "skipped_steps", "random_digests")
Hashes = NDArray[np.void]
NARROWED: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "float64": lambda x: x.astype(np.float64),
    "float32": lambda x: x.astype(np.float32),
    "float16": lambda x: x.astype(np.float16),
    "bfloat16": lambda x: (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
}
"""A tensor of this dtype from a snapshot, which holds all in the widest; its bytes are what counts."""


def signature(description: list[list[Any]]) -> bytes:
    """What goes into every digest before the hashes: of which tensors they are."""
    return hashlib.sha256(json.dumps(description).encode()).digest()


def is_watched(run: RunFolder) -> bool:
    return "hash" in run.info


def refuse_record(run: RunFolder, lacks: str) -> None:
    """Raises: ConfigError for a record of another trainer's training: what it lacks, and what it is for."""
    if is_watched(run):
        raise ConfigError(
            f"RUN={run.path}: is a record of rlloss.watch, of another trainer's training: {lacks}; `rlloss verify` and "
            "`rlloss bisect` hold it against another record; name a run of `rlloss train` here"
        )


@dataclass(frozen=True)
class Record:
    """The hashes of a watched run. Raises: Damaged for files that do not hold what they should."""

    run: RunFolder

    @cached_property
    def segments(self) -> list[dict[str, Any]]:
        """Since which step the tensors are which: [name, dtype, shape, is_buffer] of each."""
        try:
            segments: list[dict[str, Any]] = json.loads(self.run.content("tensors.json"))
            for part in segments:
                for name, dtype, shape, is_buffer in part["tensors"]:
                    assert (type(name), type(dtype), type(shape), type(is_buffer)) == (str, str, list, bool)
            starts = [part["step"] for part in segments]
            assert starts == sorted(set(starts))
            assert starts[0] == 0
        except (ValueError, TypeError, KeyError, AssertionError, IndexError, RecursionError) as error:
            raise Damaged(self.run.path, "tensors.json", "is no list of tensors") from error
        return segments

    @property
    def steps(self) -> int:
        return len(self.run.digests)

    def tensors(self, step: int) -> list[list[Any]]:
        """Those that were there at an optimiser step."""
        return self._segment(step)["tensors"]  # type: ignore[no-any-return]

    def names(self, step: int) -> list[str]:
        return [entry[0] for entry in self.tensors(step)]

    def _segment(self, step: int) -> dict[str, Any]:
        return next(part for part in reversed(self.segments) if part["step"] <= step)

    def after(self, step: int) -> Hashes:
        """[tensors] the hashes after a step; of step 0 at the start."""
        offset, tensors = self._place("tensors.bin", step), len(self.tensors(step))
        return self._read("tensors.bin", offset, tensors)

    def before(self, step: int) -> Hashes:
        """[tensors] the hashes just before it."""
        if step in self._before:
            return self._read("before.bin", self._before[step], len(self.tensors(step)))
        return self.after(step - 1)

    def gradients(self, step: int) -> dict[str, bytes]:
        """The hash of each gradient with which a step was made, by name; empty if they were not recorded."""
        if not self.run.config.get(f"{WATCHED}.gradients"):
            return {}
        names = [entry[0] for entry in self.tensors(step) if not entry[3]]
        found = self._read("gradients.bin", self._place("gradients.bin", step), len(names))
        return dict(zip(names, (entry.tobytes() for entry in found), strict=True))

    def check(self) -> None:
        """Raises: Damaged for a record that does not hold what it should."""
        if missing := [name for name in COLUMNS if name not in self.run.metrics]:
            raise Damaged(self.run.path, "metrics.csv", f"has no column {missing[0]}")
        _ = self.outside
        if other := self.other_digest():
            raise Damaged(self.run.path, "tensors.bin", other.partition(" ")[2])

    def other_digest(self) -> str:
        """After which step the hashes are not those that were digested; empty if all are."""
        hashes, digests = self._content("tensors.bin"), self.run.digests
        for i, part in enumerate(self.segments):
            last = self.segments[i + 1]["step"] - 1 if i + 1 < len(self.segments) else self.steps
            begin, width, signed = (
                self._place("tensors.bin", part["step"]),
                len(part["tensors"]),
                signature(part["tensors"]),
            )
            for step in range(max(1, part["step"]), last + 1):
                at = begin + (step - part["step"]) * width * HASH_BYTES
                made = hashlib.sha256(signed + hashes[at : at + width * HASH_BYTES]).digest()
                if made != digests[step - 1].tobytes():
                    return f"tensors.bin has other hashes after step {step:,} than digests.bin says"
        return ""

    def other_snapshot(self, steps: Iterable[int]) -> str:
        """Which of ``steps`` has a snapshot that is not what its hashes are of; empty if none has."""
        asked = set(steps)
        for step, whole in self.run.snapshots():
            if step not in asked:
                continue
            layout = self.run.snapshot_layout(step)
            for (name, dtype, *_), kept in zip(self.tensors(step), self.after(step), strict=True):
                if name in layout and dtype in NARROWED:
                    offset, shape = layout[name]
                    array = NARROWED[dtype](whole[offset : offset + math.prod(shape)])
                    if xxhash.xxh3_128_digest(array.data) != kept.tobytes():
                        return f"snapshots/ has another {name} after step {step:,} than tensors.bin says"
        return ""

    @property
    def outside(self) -> set[int]:
        """The steps before which something had changed since the step before."""
        return set(self._before)

    @cached_property
    def _before(self) -> dict[int, int]:
        """Where in before.bin the hashes of a step begin."""
        data, where, at = self._content("before.bin"), {}, 0
        while at < len(data):
            step = int.from_bytes(data[at : at + STEP_BYTES], "little")
            if not 0 < step <= self.steps + 1:
                raise Damaged(self.run.path, "before.bin", f"is of an optimiser step {step:,}, which there is not")
            where[step] = at + STEP_BYTES
            at += STEP_BYTES + HASH_BYTES * len(self.tensors(step))
        return where

    def _place(self, name: str, step: int) -> int:
        """Where what a stream has of a step begins; of the step after the last one, where it ends."""
        of_gradients = name == "gradients.bin"
        place, first = 0, int(of_gradients)
        for i, part in enumerate(self.segments):
            begin = max(part["step"], first)
            end = self.segments[i + 1]["step"] if i + 1 < len(self.segments) else step
            width = sum(not (of_gradients and entry[3]) for entry in part["tensors"])
            place += HASH_BYTES * width * max(0, min(end, step) - begin)
        return place

    def _content(self, name: str) -> bytes:
        return self.run.content(name) if (self.run.path / name).exists() else b""

    def _read(self, name: str, offset: int, count: int) -> Hashes:
        with (self.run.path / name).open("rb") as file:
            file.seek(offset)
            data = file.read(count * HASH_BYTES)
        if len(data) < count * HASH_BYTES:
            raise Damaged(self.run.path, name, f"has fewer hashes than {self.steps:,} optimiser steps make")
        return np.frombuffer(data, f"V{HASH_BYTES}")

    def options(self, step: int, optimizer: int | None = None) -> str:
        """The options, as JSON, with which the last step of an optimiser up to this one was made; "" if not recorded.

        None: of the optimiser that makes this step.
        """
        rows = self.run.metrics.iloc[:step]
        if "options" not in rows or not len(rows):
            return ""
        which = rows["optimizer"].iloc[-1] if optimizer is None else optimizer
        written = rows.loc[rows["optimizer"] == which, "options"].dropna()
        return str(written.iloc[-1]) if len(written) else ""

    def groups(self, optimizer: str) -> list[list[str]]:
        """The names of the tensors in each group of an optimiser, by its place; none if that is not recorded."""
        found = (self.run.info.get("groups") or {}).get(optimizer)
        lists = found if isinstance(found, list) else []
        return [list(map(str, names)) if isinstance(names, list) else [] for names in lists]

    def counts(self, step: int) -> list[int]:
        """The steps that each optimiser had made."""
        rows = self.run.metrics.iloc[:step]
        return [int((rows["optimizer"] == i).sum()) for i in range(int(rows["optimizer"].max()) + 1)]

    def written(self, step: int) -> Written:
        """How much of the files is of the first ``step`` optimiser steps."""
        begun = [begin - STEP_BYTES for at, begin in self._before.items() if at > step]
        lengths = {"tensors.bin": self._place("tensors.bin", step + 1)}
        if (self.run.path / "before.bin").exists():
            lengths["before.bin"] = min(begun, default=len(self._content("before.bin")))
        if self.run.config.get(f"{WATCHED}.gradients"):
            lengths["gradients.bin"] = self._place("gradients.bin", step + 1)
        rows = {"metrics.csv": step, "episodes.csv": 0}
        if (self.run.path / "scalars.csv").exists():
            rows["scalars.csv"] = int((self.run.scalars["step"] <= step).sum())
        return Written(step, sum(kept <= step for kept in self.run.snapshot_steps), rows, lengths)


@dataclass(frozen=True)
class FirstTensors:
    """Where two records part: at which step, whether ``before`` it or ``in`` it, and which tensors, in their order."""

    step: int
    when: str
    names: Sequence[str]
    tensors: int  # of how many

    def __str__(self) -> str:
        if not self.names:
            return "no tensor differs alone"
        where = f"in step {self.step:,}" if self.when == "in" else f"before step {self.step:,}, outside its optimiser"
        return f"{self.names[0]} first ({len(self.names)} of {self.tensors} tensors), {where}"


def other_options(a: RunFolder, b: RunFolder, *, rates: bool = True) -> str:
    """In which options the optimisers of two watched runs differ; empty if in none.

    Without ``rates``: but for learning rates, which are recorded of every step.
    """
    left, right = (flatten(run.info.get("optimizers")) for run in (a, b))
    alone = [*_groups_alone(left, right), *_groups_alone(right, left)]
    keys = [
        key
        for key in {**left, **right}
        if left.get(key) != right.get(key)
        and not key.startswith(tuple(f"{group}." for group in alone))
        and (rates or key.rpartition(".")[2] not in RATES)
    ]
    said = [f"another {_option(key)}: {left.get(key)} | {right.get(key)}" for key in keys]
    return ", ".join([*said, *(_group(group, left | right) for group in alone)])


def _groups_alone(own: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Each "optimiser.group" that one run alone has."""
    groups, theirs = (dict.fromkeys(k.rpartition(".")[0] for k in flat if k.count(".") == 2) for flat in (own, other))
    return [group for group in groups if group not in theirs]


def _group(group: str, options: dict[str, Any]) -> str:
    """A group in words, by the options that are not those of its optimiser's first one."""
    optimizer, _, number = group.partition(".")
    mine = {key.rpartition(".")[2]: value for key, value in options.items() if key.startswith(f"{group}.")}
    own = [f"{name} {value}" for name, value in mine.items() if value != options.get(f"{optimizer}.0.{name}")]
    return f"group {number} of optimiser {optimizer} in one run alone" + (f", with {' and '.join(own)}" if own else "")


def _option(key: str) -> str:
    optimizer, *group, name = key.split(".")
    return f"{name} of optimiser {optimizer}" + (f", group {group[0]}" if group and group[0] != "0" else "")


def swallowed(a: Record, b: Record) -> FirstTensors | None:
    """Of two records that are equal after every step: a difference before one, which that step took back."""
    for step in sorted(a.outside | b.outside):
        if step <= min(a.steps, b.steps) and (a.before(step) != b.before(step)).any():
            return first_tensors(a, b, step)
    return None


def first_tensors(a: Record, b: Record, step: int) -> FirstTensors:
    """At the first optimiser step after which two records differ, or before which they differ already."""
    if a.tensors(step) != b.tensors(step):
        ours, theirs = ({repr(entry): entry[0] for entry in record.tensors(step)} for record in (a, b))
        alone = [name for key, name in {**ours, **theirs}.items() if (key in ours) != (key in theirs)]
        return FirstTensors(step, "before", alone or a.names(step), len(a.tensors(step)))
    for when, one, other in (("before", a.before(step), b.before(step)), ("in", a.after(step), b.after(step))):
        if differs := np.flatnonzero(one != other).tolist():
            return FirstTensors(step, when, [a.names(step)[i] for i in differs], len(one))
    return FirstTensors(step, "in", [], len(a.tensors(step)))
