"""``bisect(a, b)``: the first optimiser step after which two runs differ, the operation in it, and the cause."""

from collections.abc import Callable
from pathlib import Path

from rlloss.bisect.align import Split, split
from rlloss.bisect.found import Finding
from rlloss.bisect.records import bisect_records
from rlloss.bisect.replay import Other, listen
from rlloss.bisect.saying import located
from rlloss.bisect.words import explain
from rlloss.cause import other_machine
from rlloss.errors import ConfigError
from rlloss.runs.agreement import disagreement
from rlloss.runs.reader import RunFolder
from rlloss.runs.watched import is_watched
from rlloss.verify import compare_runs, first_difference

Progress = Callable[[RunFolder, int, int], None]


def bisect(
    a: RunFolder | str | Path, b: RunFolder | str | Path, progress: Progress = lambda run, step, steps: None
) -> Finding:
    """Where two runs part, and why. Runs of ours are executed again up to that step, where reading does not tell.

    ``progress`` gets the run, the optimiser steps done and those to do.
    Raises: ConfigError for a run that cannot be read, or be executed here; Damaged.
    """
    a, b = (run if isinstance(run, RunFolder) else RunFolder(Path(run)) for run in (a, b))
    for run in (a, b):
        if damage := run.damage or (disagreement(run) if run.status == "finished" else ""):
            raise ConfigError(damage)
    if is_watched(a) != is_watched(b):
        raise ConfigError(f"{a.path} and {b.path}: one is a run of rlloss, the other a record of rlloss.watch")
    if is_watched(a):
        if (one := a.config.get("watch.buffers")) != (other := b.config.get("watch.buffers")):
            raise ConfigError(f"{a.path} and {b.path}: watch.buffers is {one} and {other}; watch both alike")
        return bisect_records(a, b)
    steps, step = min(len(a.digests), len(b.digests)), first_difference(a, b)

    def finding(cause: str, **more: object) -> Finding:
        return Finding(str(a.path), str(b.path), steps, step, cause, **more)  # type: ignore[arg-type]

    if read := by_reading(a, b):
        return finding(read)
    if step is None:
        return finding("")
    try:
        tapes = [listen(run, step, lambda done, run=run: progress(run, done, step)) for run in (a, b)]  # type: ignore[misc]
    except Other as error:
        return finding(str(error), decided=False, remedy=error.remedy)
    found = split(*tapes)
    why = explain(found, tapes[0], tapes[1])
    remedy = "" if why.decided else "rlloss graph draws both losses; rlloss check says where they differ"
    return finding(why.words, decided=why.decided, tensor=_tensor(found), when="in", evidence=why.evidence,
                   remedy=remedy, **located(found))  # fmt: skip


def by_reading(a: RunFolder, b: RunFolder) -> str:
    """What the files of two runs say of why they part; empty if they do not, or do not part."""
    verdict, lengths = compare_runs(a, b), (len(a.digests), len(b.digests))
    differ = verdict.first_difference is not None or lengths[0] != lengths[1]
    ended = f"equal for {min(lengths):,} optimiser steps, then one ended: {lengths[0]:,} and {lengths[1]:,} steps"
    if verdict.differing_keys:
        keys = [f"{key} ({a.config.get(key)} | {b.config.get(key)})" for key in verdict.differing_keys]
        more = f"; {ended}" if verdict.first_difference is None else ""
        return f"another config: {', '.join(keys)}{more}" if differ else ""
    if verdict.cause and differ:
        return verdict.cause
    if differ and verdict.first_difference is None:
        return ended
    return other_machine(a, b) if verdict.first_difference and a.loss == b.loss else ""


def _tensor(found: Split) -> str:
    return found.joint.name if found.joint else ""
