"""Are two runs one? Pairs twin runs and compares their trajectories, digest by digest, from the run folders alone."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlloss.cause import cause, other_machine
from rlloss.errors import ConfigError
from rlloss.lazy import callable_as
from rlloss.power import asked, put_to_the_test
from rlloss.runs.agreement import (
    check_config,
    differing_ratios,
    differing_tables,
    disagreement,
    other_start,
    passing_difference,
)
from rlloss.runs.provenance import digest, is_the_users, loss_source
from rlloss.runs.reader import LOSS, Damaged, RunFolder, common_snapshots, find_runs, natural
from rlloss.runs.watched import FirstTensors, Record, first_tensors, is_watched, other_options, swallowed
from rlloss.verdicts import Verdict

REFERENCE = "ppo_clip"
# they change no bit of what is computed
RECORD_KEYS = ("snapshot_every", "logger.name", "env.check", "on_nonfinite", "update", "compiler_heuristics")


@dataclass(frozen=True)
class Drift:
    """How far apart two parameter vectors are after an optimiser step."""

    step: int
    max_abs: float  # largest difference of one parameter
    median_ulp: float  # over the parameters that differ, representable numbers from one to the other; nan: two dtypes
    parameters: int  # how many parameters differ
    relative: float  # |a - b| / |a - a_0| (L2): the difference over the distance that training has covered


@dataclass(frozen=True)
class RunComparison:
    """What comparing two runs found.

    - IDENTICAL: both finished, and every digest of all parameters is equal. ``tested`` says whether they could have
      differed: runs whose ratios never left the clip's interval are identical under almost any loss.
    - ROUNDING: some digest differs, but at every snapshot the difference, relative to the distance that training has
      covered, is below the square root of the dtype's epsilon: at least half of the digits agree. This is a size and
      not a cause: Adam makes a loss that is scaled by 1.001 look as close.
    - DIVERGED: some digest differs, and the difference is or has become larger than that.
    - INCOMPARABLE: the configs differ in more than the loss.
    - INCOMPLETE: a run is unfinished, its files disagree with each other, or its parameters are not finite numbers.
    """

    verdict: Verdict
    run_a: str
    run_b: str
    loss_a: str
    loss_b: str
    common_config: dict[str, Any]
    steps: int  # optimiser steps compared
    first_difference: int | None = None  # first optimiser step (from 1) after which parameters differ
    first_tensors: FirstTensors | None = None  # of runs recorded by ``rlloss.watch``: which tensors then, and when
    first_other_actions: int | None = None  # first iteration (from 1) whose actions differ
    onset: str | None = None  # "small" (as in ROUNDING) or "large": the difference when first seen at a snapshot
    drift: list[Drift] = field(default_factory=list)  # at the snapshots from the first difference on
    differing_keys: list[str] = field(default_factory=list)
    cause: str = ""  # the first decision of a condition that one run took and the other did not
    not_recorded: list[str] = field(default_factory=list)  # columns that a comparison reads and that one run lacks
    reason: str = ""
    put_to: dict[str, Any] = field(default_factory=dict)  # what the runs went through: ``what_was_reached``
    tested: bool | None = None  # whether the pair could have differed; None if that is not known
    untested: str = ""  # why the pair could not have differed, or why that is not known

    @property
    def holds(self) -> bool:
        """Whether the runs are one, though they went where their losses differ or, if these are one, where they cut."""
        return self.verdict == Verdict.IDENTICAL and self.tested is True

    def to_dict(self) -> dict[str, Any]:
        """For JSON, where the config that both runs share has been called ``condition`` from the first."""
        document = asdict(self)
        return {"condition": document.pop("common_config"), **document}


def ulp_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.uint64]:
    """Representable numbers from a to b, elementwise: 0 for equal numbers (and -0 and 0), 1 for neighbours.

    Raises: TypeError for unequal or non-floating dtypes.
    """
    if a.dtype != b.dtype or a.dtype.kind != "f":
        raise TypeError(f"need two arrays of one floating dtype, got {a.dtype} and {b.dtype}")
    signed = np.dtype(f"i{a.dtype.itemsize}")

    def ordered(x: NDArray[np.floating]) -> NDArray[np.int64]:
        # IEEE bit patterns grow with the magnitude: mirror the negative half, so that integers sort as the floats do.
        bits = np.ascontiguousarray(x).view(signed).astype(np.int64)
        return np.where(bits < 0, np.int64(np.iinfo(signed).min) - bits, bits)

    low, high = np.minimum(ordered(a), ordered(b)), np.maximum(ordered(a), ordered(b))
    return high.astype(np.uint64) - low.astype(np.uint64)


def first_difference(a: RunFolder, b: RunFolder) -> int | None:
    """The first optimiser step, counted from 1, whose digests differ within the steps that both runs have."""
    steps = min(len(a.digests), len(b.digests))
    differs = np.flatnonzero(a.digests[:steps] != b.digests[:steps])
    return int(differs[0]) + 1 if len(differs) else None


def first_other_actions(a: RunFolder, b: RunFolder) -> int | None:
    """The first iteration, counted from 1, in which the two runs acted differently. None also if not recorded."""
    iterations = min(len(a.metrics), len(b.metrics))
    if not iterations or not_recorded(a, b):
        return None
    columns = (run.metrics["actions_digest"].to_numpy()[:iterations] for run in (a, b))
    differs = np.flatnonzero(np.not_equal(*columns))
    return int(differs[0]) + 1 if len(differs) else None


def not_recorded(a: RunFolder, b: RunFolder) -> list[str]:
    """What a comparison would look at and one of the runs has no column for."""
    return [name for name in ("actions_digest",) if any(name not in run.metrics for run in (a, b))]


def drift(a: RunFolder, b: RunFolder, since: int = 0) -> list[Drift]:
    """The difference at every snapshot that both runs have, from optimiser step ``since`` on."""
    rows, start = [], None
    for step, x, y in common_snapshots(a, b):
        start = x if start is None else start
        if step < since:
            continue
        covered, apart = float(np.linalg.norm(x - start)), float(np.linalg.norm(x - y))
        relative = apart / covered if covered else (0.0 if apart == 0 else math.inf)
        rows.append(
            Drift(
                step,
                float(np.abs(x - y).max()),
                _typical_ulp(a.snapshot(step), b.snapshot(step)),
                int((x != y).sum()),
                relative,
            )
        )
    return rows


def _typical_ulp(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """The median distance of the numbers that differ; nan between runs of two precisions."""
    if x.dtype != y.dtype:
        return math.nan
    ulp = ulp_distance(x, y)
    return float(np.median(ulp[ulp > 0])) if ulp.any() else 0.0


def compare_runs(a: RunFolder, b: RunFolder) -> RunComparison:
    """The verdict on one pair of runs."""
    left, right = common_config(a), common_config(b)
    differing = [key for key in {**left, **right} if left.get(key) != right.get(key)]
    verdict = partial(
        RunComparison,
        run_a=str(a.path),
        run_b=str(b.path),
        loss_a=a.loss,
        loss_b=b.loss,
        common_config={key: value for key, value in left.items() if key not in differing},
    )
    if damage := a.damage or b.damage:
        return verdict(Verdict.INCOMPLETE, steps=0, reason=damage)
    if a.hash != b.hash:
        return verdict(Verdict.INCOMPARABLE, steps=0, reason=f"digests are made by {a.hash} | {b.hash}")
    steps = min(len(a.digests), len(b.digests))
    first, acted = first_difference(a, b), first_other_actions(a, b)
    verdict = partial(verdict, steps=steps, not_recorded=not_recorded(a, b), put_to=what_was_reached(a, b))
    if differing:
        if problem := _other_config(a) or _other_config(b):
            return verdict(Verdict.INCOMPLETE, reason=problem)
        reason = "differ in " + ", ".join(f"{key} ({a.config.get(key)} | {b.config.get(key)})" for key in differing)
        return verdict(
            Verdict.INCOMPARABLE,
            first_difference=first,
            first_other_actions=acted,
            drift=[] if _incomplete(a) or _incomplete(b) or _unlike_snapshots(a, b) else drift(a, b, since=first or 0),
            differing_keys=differing,
            reason=_listed(reason, other_machine(a, b)),
        )
    problem = _incomplete(a) or _incomplete(b)
    watched = not problem and first is not None and is_watched(a) and is_watched(b)
    named = first_tensors(Record(a), Record(b), first) if watched and first else None
    unlike = named is not None and Record(a).tensors(named.step) != Record(b).tensors(named.step)
    if problem := problem or ("" if unlike else _unlike(a, b, first)):
        return verdict(Verdict.INCOMPLETE, first_difference=first, first_other_actions=acted, reason=problem)
    verdict = partial(verdict, cause=cause(a, b, first), first_tensors=named)
    if first is None and acted is None:
        if problem := differing_ratios(a, b):
            return verdict(Verdict.INCOMPLETE, reason=problem)
        return _without_difference(a, b, verdict)
    drifts = [] if unlike else drift(a, b, since=first or 0)
    bound = float(np.sqrt(np.finfo(a.snapshot(a.snapshot_steps[0]).dtype).eps)) if drifts else 0.0
    small = [row.relative <= bound for row in drifts]
    return verdict(
        tested=True,
        verdict=Verdict.ROUNDING if small and all(small) else Verdict.DIVERGED,
        first_difference=first,
        first_other_actions=acted,
        onset=("small" if small[0] else "large") if small else None,
        drift=drifts,
        reason=_listed(_edited(a, b), other_options(a, b), other_machine(a, b)) or _not_deterministic(a, b, first),
    )


def _not_deterministic(a: RunFolder, b: RunFolder, first: int | None) -> str:
    """What a pair of one loss that differs says, where nothing else does; empty for another pair."""
    if not _is_of_one_loss(a, b) or cause(a, b, first):
        return ""
    return (
        f"{a.label} twice: training is not deterministic, as where a loss or an environment draws numbers beside its "
        "seed"
    )


def _is_of_one_loss(a: RunFolder, b: RunFolder) -> bool:
    return not is_watched(a) and a.loss != "unknown" and a.label == b.label and not _edited(a, b)


def _edited(a: RunFolder, b: RunFolder) -> str:
    """What a pair of one name says whose sources are not one; empty for another pair."""
    made = [run.info.get("versions", {}).get(LOSS) for run in (a, b)]
    if a.label != b.label or made[0] == made[1] or not all(made):
        return ""
    return f"the source of {a.label} has changed between the two: {made[0]} | {made[1]}"


def _other_config(run: RunFolder) -> str:
    """Why a config is not the one that a run was made with; empty if it is."""
    try:
        check_config(run)
    except Damaged as error:
        return str(error)
    return ""


def _without_difference(a: RunFolder, b: RunFolder, verdict: Callable[..., RunComparison]) -> RunComparison:
    """The verdict on two runs that are equal as far as both go."""
    if len(a.digests) != len(b.digests):
        lengths = len(a.digests), len(b.digests)
        reason = f"identical for {min(lengths)} optimiser steps, then one stopped: {lengths[0]} and {lengths[1]} steps"
        return verdict(Verdict.DIVERGED, reason=reason, tested=True)
    if a.info.get("changed_after") != b.info.get("changed_after"):
        reason = "identical at every optimiser step; after the last one something else changed the parameters"
        return verdict(Verdict.DIVERGED, reason=reason, tested=True)
    tested, untested = power(a, b)
    lost = swallowed(Record(a), Record(b)) if is_watched(a) and is_watched(b) else None
    taken_back = f"{lost}, which that step took back" if lost else ""
    reason = _listed(taken_back, repetition(a, b), _edited(a, b), other_machine(a, b))
    return verdict(Verdict.IDENTICAL, reason=reason, tested=tested, untested=untested)


def _unlike(a: RunFolder, b: RunFolder, first: int | None) -> str:
    """What the files of two runs, beside each other, cannot both say; empty if nothing."""
    found = _unlike_snapshots(a, b) or differing_tables(a, b)
    return found or other_start(a, b, first) or passing_difference(a, b)


def _listed(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


def repetition(a: RunFolder, b: RunFolder) -> str:
    """What a pair of one loss says, which is nothing about two losses; empty for a pair of two."""
    if not _is_of_one_loss(a, b) or a.info == b.info:
        return ""
    return f"{a.label} twice: tests whether training is deterministic, and no two losses"


def what_was_reached(a: RunFolder, b: RunFolder) -> dict[str, Any]:
    """What two runs were put to, as they recorded it; empty if one of them did not.

    ``clip_active_frac`` of the samples, ``clip_active_steps`` of the ``optimizer_steps`` and ``clip_active_epochs`` of
    the ``epochs`` had a sample whose gradient the clip cuts: the greater of both runs' numbers. ``positive_ratio`` and
    ``negative_ratio``: the least and the greatest ratio of a sample with A > 0, and with A < 0.
    """
    columns = ["clip_active_frac", "clip_active_steps", "clip_active_epochs"]
    ratios = {sign: [f"{sign}_ratio_min", f"{sign}_ratio_max"] for sign in ("positive", "negative")}
    runs = [run.metrics for run in (a, b)]
    if not all(len(rows) and {*columns, *ratios["positive"], *ratios["negative"]} <= set(rows) for rows in runs):
        return {}
    steps, minibatches = max(len(run.digests) for run in (a, b)), a.config.get("num_minibatches")
    if type(minibatches) is not int or not 0 < minibatches <= steps:  # of a trainer that counts otherwise
        return {}
    return {
        "clip_active_frac": max(float(rows["clip_active_frac"].mean()) for rows in runs),
        "clip_active_steps": max(int(rows["clip_active_steps"].sum()) for rows in runs),
        "optimizer_steps": steps,
        "clip_active_epochs": max(int(rows["clip_active_epochs"].sum()) for rows in runs),
        "epochs": steps // minibatches,
        **{
            f"{sign}_ratio": (
                min(float(rows[low].min()) for rows in runs),
                max(float(rows[high].max()) for rows in runs),
            )
            for sign, (low, high) in ratios.items()
        },
    }


def power(a: RunFolder, b: RunFolder) -> tuple[bool | None, str]:
    """Whether two runs could have differed, and why not: by what ``rlloss check`` knows of their losses.

    A run and its repetition could: they test whether training is deterministic. A run and its copy could not, nor could
    two of which no step changed a parameter.
    """
    reached, clip_coef = what_was_reached(a, b), a.config.get("clip_coef")
    if _is_of_one_loss(a, b) and a.info == b.info:  # to the speed
        return False, "one run and its copy, which tests neither losses nor whether training is deterministic"
    if _never_moved(a):
        return False, "no optimiser step changed a parameter"
    if _edited(a, b):
        return None, f"not known: the source of {a.label} has changed between the two"
    if a.loss == b.loss:
        return True, ""
    if not reached or not isinstance(clip_coef, float):
        return None, "not known: the ratios were not recorded"
    if not may_load(a, b):
        return None, f"not known: {a.loss} or {b.loss}, below the runs or not below this folder, is not loaded"
    if changed := [run.loss for run in (a, b) if _has_changed(run)]:
        return None, f"not known: the source of {' and '.join(changed)} has changed since"
    return put_to_the_test(a.loss, b.loss, clip_coef, {s: reached[f"{s}_ratio"] for s in ("positive", "negative")})


def _never_moved(run: RunFolder) -> bool:
    if len(run.digests) == 0 or len(np.unique(run.digests, axis=0)) > 1 or run.snapshot_steps[:1] != [0]:
        return False
    return bool(np.array_equal(run.snapshot(0), run.snapshot(run.snapshot_steps[-1])))


def _has_changed(run: RunFolder) -> bool:
    """Whether the source of a run's loss is not that which it was trained with."""
    made = run.info.get("versions", {}).get(LOSS)
    return made is not None and made != digest(loss_source(run.loss).encode())


def may_load(a: RunFolder, b: RunFolder) -> bool:
    """Whether the losses that two runs name may be loaded, to learn where they differ."""
    return all(is_the_users(run.loss, (a.path, b.path)) for run in (a, b))


def common_config(run: RunFolder) -> dict[str, Any]:
    """Everything in which twins must be equal."""
    kept = {key: value for key, value in run.config.items() if not key.startswith("loss.") and key not in RECORD_KEYS}
    if run.config.get("update") == "compiled":  # the one way to step that has bits of its own
        kept |= {"update": "compiled"}
        kept |= {"compiler_heuristics": True} if run.config.get("compiler_heuristics") else {}
    return kept


def _incomplete(run: RunFolder) -> str:
    """Why a run cannot be judged as a whole; empty if it can."""
    if run.status != "finished":
        return f"{run.path.name} is {run.standing}"
    if why := disagreement(run):
        return why
    if run.info.get("changed_after"):
        return ""  # as where a trainer ends by loading its best weights: there is nothing to keep of the last step
    if not run.snapshot_steps or run.snapshot_steps[-1] != len(run.digests):
        return f"{run.path.name}: snapshots/ has none of the last of the steps in digests.bin"
    if not np.isfinite(run.snapshot(run.snapshot_steps[-1])).all():
        return f"{run.path.name} ended with parameters that are not finite numbers"
    return ""


def _unlike_snapshots(a: RunFolder, b: RunFolder) -> str:
    """Snapshots that cannot be subtracted, though the configs are equal; empty if they can."""
    for step in sorted(set(a.snapshot_steps) & set(b.snapshot_steps)):
        x, y = a.snapshot_kind(step), b.snapshot_kind(step)
        if a.config.get("precision.name") != b.config.get("precision.name"):  # then dtypes may differ
            x, y = x.split()[0], y.split()[0]
        if x != y:
            return f"snapshots of {x} and {y} parameters at step {step}"
    return ""


def pair(runs: Sequence[RunFolder]) -> tuple[list[tuple[RunFolder, RunFolder]], list[RunFolder]]:
    """Twins: runs equal in everything but the loss. In each group every run is paired with that of ``REFERENCE``.

    Returns: the pairs, and the runs without a twin. Two runs and no twins are a pair all the same, so that naming two
    folders always compares them.
    """
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        groups.setdefault(repr(sorted(common_config(run).items())), []).append(run)
    pairs, alone = [], []
    for members in groups.values():
        members.sort(key=lambda run: (run.loss != REFERENCE, run.loss, natural(run.path)))
        pairs += [(members[0], other) for other in members[1:]]
        alone += members if len(members) == 1 else []
    if len(runs) == 2 and not pairs:
        return [(runs[0], runs[1])], []
    return pairs, alone


def _runs_of(folder: str | Path) -> list[RunFolder]:
    """Raises: ConfigError for a folder without one, of which no verdict would be one of a pair that holds."""
    found = find_runs(folder)
    if not found:
        raise ConfigError(f"{folder}: no run in it or below it; name two runs or more, or a folder with runs below it")
    return found


def verify(runs: str | Path | Iterable[RunFolder | str | Path]) -> tuple[list[RunComparison], list[RunFolder]]:
    """A verdict per pair of twins, and the runs that have no twin.

    Of runs, and of all that are in or below the folders that are named. Raises: ConfigError where no run is.
    """
    several = [runs] if isinstance(runs, str | Path) else list(runs)
    found = [run for one in several for run in ([one] if isinstance(one, RunFolder) else _runs_of(one))]
    found = list({run.path.resolve(): run for run in found}.values())  # none is compared with itself
    if not found:
        raise ConfigError("runs=[]: nothing to verify; name two runs or more, or a folder with runs below it")
    pairs, alone = pair(found)
    unlike = [(a.loss, b.loss, a.config.get("clip_coef")) for a, b in pairs if a.loss != b.loss and may_load(a, b)]
    with asked((one, other, clip) for one, other, clip in unlike if isinstance(clip, float)):
        return [compare_runs(a, b) for a, b in pairs], alone


callable_as(__name__, "verify")
