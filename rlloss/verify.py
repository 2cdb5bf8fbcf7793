"""Are two runs one? Pairs twin runs and compares their trajectories, digest by digest, from the run folders alone."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlloss.runs import Decision, RunFolder

REFERENCE = "ppo_clip"
WITHIN = ("guard", "grad_scaler")  # conditions that decide within an iteration; all others do after it
RECORD_KEYS = ("snapshot_every", "logger.name")  # how a run is recorded does not change what it computes


@dataclass(frozen=True)
class Drift:
    """How far apart two parameter vectors are after an optimiser step."""

    step: int
    max_abs: float  # largest difference of one parameter
    median_ulp: float  # over the parameters that differ, representable numbers from one to the other
    parameters: int  # how many parameters differ
    relative: float  # |a - b| / |a - a_0| (L2): the difference over the distance that training has covered


@dataclass(frozen=True)
class Verdict:
    """What comparing two runs came to.

    - IDENTICAL: both finished, and every digest of all parameters is equal.
    - ROUNDING: some digest differs, but at every snapshot the difference, relative to the distance that training has
      covered, is below the square root of the dtype's epsilon: at least half of the digits agree. This is a size and
      not a cause: Adam makes a loss that is scaled by 1.001 look as close.
    - DIVERGED: some digest differs, and the difference is or has become larger than that.
    - INCOMPARABLE: the configs differ in more than the loss.
    - INCOMPLETE: a run is unfinished, its files disagree with each other, or its parameters are not finite numbers.
    """

    verdict: str
    run_a: str
    run_b: str
    loss_a: str
    loss_b: str
    condition: dict[str, Any]
    steps: int  # optimiser steps compared
    first_difference: int | None = None  # first optimiser step (from 1) after which parameters differ
    first_other_actions: int | None = None  # first iteration (from 1) whose actions differ
    onset: str | None = None  # "small" (as in ROUNDING) or "large": the difference when first seen at a snapshot
    drift: list[Drift] = field(default_factory=list)  # at the snapshots from the first difference on
    differing_keys: list[str] = field(default_factory=list)
    cause: str = ""  # the first decision of a condition that one run took and the other did not
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
    """The first iteration, counted from 1, in which the two runs acted differently."""
    iterations = min(len(a.metrics), len(b.metrics))
    if not iterations:
        return None
    columns = (run.metrics["actions_digest"].to_numpy()[:iterations] for run in (a, b))
    differs = np.flatnonzero(np.not_equal(*columns))
    return int(differs[0]) + 1 if len(differs) else None


def drift(a: RunFolder, b: RunFolder, since: int = 0) -> list[Drift]:
    """The difference at every snapshot that both runs have, from optimiser step ``since`` on."""
    common = sorted(set(a.snapshot_steps) & set(b.snapshot_steps))
    if not common:
        return []
    start = a.snapshot(common[0])
    rows = []
    for step in common:
        if step < since:
            continue
        x, y = a.snapshot(step), b.snapshot(step)
        difference = x.astype(np.float64) - y.astype(np.float64)
        covered = float(np.linalg.norm(x.astype(np.float64) - start.astype(np.float64)))
        apart = float(np.linalg.norm(difference))
        relative = apart / covered if covered else (0.0 if apart == 0 else math.inf)
        ulp = ulp_distance(x, y)
        typical = float(np.median(ulp[ulp > 0])) if ulp.any() else 0.0
        rows.append(Drift(step, float(np.abs(difference).max()), typical, int((x != y).sum()), relative))
    return rows


def compare(a: RunFolder, b: RunFolder) -> Verdict:
    """The verdict on one pair of runs."""
    left, right = _condition(a), _condition(b)
    differing = [key for key in {**left, **right} if left.get(key) != right.get(key)]
    common = {key: value for key, value in left.items() if key not in differing}
    steps = min(len(a.digests), len(b.digests))
    about = (str(a.path), str(b.path), a.loss, b.loss, common, steps)
    for run, condition in ((a, left), (b, right)):
        if not condition:
            return Verdict("INCOMPLETE", *about, reason=f"{run.path.name}/config.yaml is not readable")
    if differing:
        return Verdict("INCOMPARABLE", *about, differing_keys=differing, reason="differ in " + ", ".join(differing))
    first = first_difference(a, b)
    acted = first_other_actions(a, b)
    problem = _incomplete(a) or _incomplete(b)
    if problem:
        return Verdict("INCOMPLETE", *about, first_difference=first, first_other_actions=acted, reason=problem)
    parted = cause(a, b, first)
    if first is None and acted is None:
        if len(a.digests) == len(b.digests):
            return Verdict("IDENTICAL", *about, cause=parted, reason=_other_machine(a, b))
        lengths = (
            f"identical for {steps} optimiser steps, then one stopped: {len(a.digests)} and {len(b.digests)} steps"
        )
        return Verdict("DIVERGED", *about, cause=parted, reason=lengths)
    drifts = drift(a, b, since=first or 0)
    bound = float(np.sqrt(np.finfo(a.snapshot(a.snapshot_steps[0]).dtype).eps)) if drifts else 0.0
    small = [row.relative <= bound for row in drifts]
    return Verdict(
        "ROUNDING" if small and all(small) else "DIVERGED",
        *about,
        first_difference=first,
        first_other_actions=acted,
        onset=("small" if small[0] else "large") if small else None,
        drift=drifts,
        cause=parted,
        reason=_other_machine(a, b),
    )


def cause(a: RunFolder, b: RunFolder, first_difference: int | None) -> str:
    """Why two runs parted, as far as their conditions tell: the first decision that one took and the other did not.

    A decision of a condition with the metric that it read and both of its values, or an optimiser that evaluated the
    loss more often in one run. Empty if there is none, or if the parameters differed before it: then it is a
    consequence and not the cause. Keeping a checkpoint changes no parameter: where the runs themselves differ, in
    their parameters or their lengths, it is not the cause.
    """
    differed = math.inf  # the iteration, from 1, in which parameters first differ
    if first_difference is not None:
        differed = int((a.metrics["optimizer_steps"] < first_difference).sum()) + 1
    within = first_difference is not None and stood_still(a, first_difference) != stood_still(b, first_difference)
    parted = first_difference is not None or len(a.digests) != len(b.digests)
    theirs = {run.path: {(d.iteration, d.condition, d.decision) for d in run.decisions} for run in (a, b)}
    alone = [d for d in a.decisions if (d.iteration, d.condition, d.decision) not in theirs[b.path]]
    alone += [d for d in b.decisions if (d.iteration, d.condition, d.decision) not in theirs[a.path]]
    # A step that guard or GradScaler forbids leaves the parameters as they were: only if the first step that differs
    # is one of these, they are the cause.
    early = [
        d
        for d in alone
        if (d.iteration < differed or (within and d.iteration == differed and d.condition in WITHIN))
        and not (parted and d.condition == "best")
    ]
    if early:
        decision = min(early, key=lambda d: d.iteration)
        values = " and ".join(_value(run, decision) for run in (a, b))
        return (
            f"{decision.decision}, iteration {decision.iteration}: {decision.condition} on {decision.monitor}, "
            f"which was {values}"
        )
    return _evaluations(a, b, differed)


def stood_still(run: RunFolder, step: int) -> bool:
    """Whether optimiser step ``step``, from 1, left all parameters as they were."""
    after = run.digests[step - 1].tobytes()
    if step > 1:
        return bool(run.digests[step - 2].tobytes() == after)
    if 0 not in run.snapshot_steps:
        return False
    start = run.snapshot(0)
    bytes_before = [start.tobytes()]
    if start.dtype == np.float32:  # in which bfloat16 parameters are kept, too: it is their upper half
        bytes_before.append((start.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return after in [hashlib.sha256(data).digest() for data in bytes_before]


def _value(run: RunFolder, decision: Decision) -> str:
    there = run.metrics.loc[run.metrics["iteration"] == decision.iteration, decision.monitor]
    return f"{there.iloc[0]:.6g} for {run.label}" if len(there) else f"not there for {run.label}, which had stopped"


def _evaluations(a: RunFolder, b: RunFolder, differed: float) -> str:
    """An optimiser that reads the loss's value, as L-BFGS does, shows it by how often it evaluates the loss."""
    iterations = min(len(a.metrics), len(b.metrics))
    if not iterations or "evaluations" not in a.metrics or "evaluations" not in b.metrics:
        return ""
    counts = [run.metrics["evaluations"].to_numpy()[:iterations] for run in (a, b)]
    unequal = np.flatnonzero(counts[0] != counts[1])
    if not len(unequal) or unequal[0] + 1 > differed:
        return ""
    i = int(unequal[0])
    return (
        f"{counts[0][i]} evaluations of {a.label} and {counts[1][i]} of {b.label} in iteration {i + 1}: the optimiser"
    )


def _condition(run: RunFolder) -> dict[str, Any]:
    """Everything in which twins must be equal."""
    return {key: value for key, value in run.config.items() if not key.startswith("loss.") and key not in RECORD_KEYS}


def _incomplete(run: RunFolder) -> str:
    """Why a run cannot be judged as a whole; empty if it can."""
    if run.status != "finished":
        return f"{run.path.name} is {run.status}" + (f" ({run.info['error']})" if "error" in run.info else "")
    if len(run.digests) != run.info.get("optimizer_steps"):
        return f"{run.path.name} has {len(run.digests)} digests for {run.info.get('optimizer_steps')} steps"
    if not len(run.digests) or run.digests[-1].tobytes().hex() != run.info.get("final_digest"):
        return f"{run.path.name}: the last digest is not the final digest"
    if not run.snapshot_steps or run.snapshot_steps[-1] != len(run.digests):
        return f"{run.path.name} has no snapshot of its last step"
    if not np.isfinite(run.snapshot(run.snapshot_steps[-1])).all():
        return f"{run.path.name} ended with parameters that are not finite numbers"
    return ""


def _other_machine(a: RunFolder, b: RunFolder) -> str:
    """Versions and hardware that differ: they alone can part two equal runs. Empty if none does."""
    differing = []
    for part in ("versions", "machine"):
        left, right = a.info.get(part, {}), b.info.get(part, {})
        differing += [f"{key} {left.get(key)} | {right.get(key)}" for key in left if left.get(key) != right.get(key)]
    return "not the same machine or versions: " + ", ".join(differing) if differing else ""


def pair(runs: Sequence[RunFolder]) -> tuple[list[tuple[RunFolder, RunFolder]], list[RunFolder]]:
    """Twins: runs equal in everything but the loss. In each group every run is paired with that of ``REFERENCE``.

    Returns: the pairs, and the runs without a twin. Two runs and no twins are a pair all the same, so that naming two
    folders always compares them.
    """
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        groups.setdefault(repr(sorted(_condition(run).items())), []).append(run)
    pairs, alone = [], []
    for members in groups.values():
        members.sort(key=lambda run: (run.loss != REFERENCE, run.loss, run.path))
        pairs += [(members[0], other) for other in members[1:]]
        alone += members if len(members) == 1 else []
    if len(runs) == 2 and not pairs:
        return [(runs[0], runs[1])], []
    return pairs, alone


def verify(runs: Iterable[RunFolder]) -> tuple[list[Verdict], list[RunFolder]]:
    """A verdict per pair of twins, and the runs that have no twin."""
    pairs, alone = pair(list(runs))
    return [compare(a, b) for a, b in pairs], alone
