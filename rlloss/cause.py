"""Why two runs parted, as far as their files tell: the environment, a condition's decision, the optimiser."""

import hashlib
import math

import numpy as np

from rlloss.runs.reader import LOSS, RunFolder
from rlloss.runs.rows import Decision

WITHIN = ("guard", "grad_scaler")  # conditions that decide within an iteration; all others do after it
RETURNED = {"observations_digest": "observations", "rewards_digest": "rewards", "ends_digest": "ends of episodes"}


def cause(a: RunFolder, b: RunFolder, first_difference: int | None) -> str:
    """Why two runs parted, as far as their files tell: the environment, or else a decision that one alone took.

    A decision of a condition with the metric that it read and both of its values, or an optimiser that evaluated the
    loss more often in one run. Empty if there is none, or if the parameters differed before it: then it is a
    consequence and not the cause. A checkpoint that is kept changes no parameter, so it never causes a difference in
    parameters or in length.
    """
    if theirs := environment(a, b, first_difference):
        return theirs
    differed = math.inf  # the iteration, from 1, in which parameters first differ
    if first_difference is not None:
        if "optimizer_steps" not in a.metrics:
            return ""
        differed = int((a.metrics["optimizer_steps"] < first_difference).sum()) + 1
    within = first_difference is not None and stood_still(a, first_difference) != stood_still(b, first_difference)
    parted = first_difference is not None or len(a.digests) != len(b.digests)
    taken = {run.path: {(d.iteration, d.condition, d.decision) for d in run.decisions} for run in (a, b)}
    alone = [d for d in a.decisions if (d.iteration, d.condition, d.decision) not in taken[b.path]]
    alone += [d for d in b.decisions if (d.iteration, d.condition, d.decision) not in taken[a.path]]
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
    if not {"iteration", decision.monitor} <= set(run.metrics):
        return f"not recorded for {run.label}"
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


def environment(a: RunFolder, b: RunFolder, first_difference: int | None) -> str:
    """Whether the environment parted two runs, in words: it answered the same policy and the same noise otherwise.

    Until the first iteration whose observations, rewards or ends differ, the runs had the same parameters; then nothing
    that they did can be the reason. Empty if the environment is not the cause, or if machine or versions differ, which
    can part two policies, too.
    """
    names = [name for name in RETURNED if name in a.metrics and name in b.metrics]
    iterations = min(len(a.metrics), len(b.metrics))
    if not iterations or not names or "optimizer_steps" not in a.metrics or other_machine(a, b):
        return ""
    other = np.array(
        [a.metrics[name].to_numpy()[:iterations] != b.metrics[name].to_numpy()[:iterations] for name in names]
    )
    if not other.any():
        return ""
    i = int(other.any(0).argmax())
    before = int(a.metrics["optimizer_steps"].iloc[i - 1]) if i else 0
    if first_difference is not None and first_difference <= before:
        return ""
    what = " and ".join(RETURNED[name] for name, differs in zip(names, other[:, i], strict=True) if differs)
    wrappers = a.config.get("env.wrappers")
    named = [str(entry) for entry in wrappers if ":" in str(entry)] if isinstance(wrappers, list) else []
    within = f", in {' and '.join(named)}," if named else ""  # a user's own may be at fault as well
    return (
        f"the environment {a.config.get('env.id')}{within} returned other {what} in iteration {i + 1}, for the same "
        "policy and noise; something in it follows what its seed does not set, as a global or an unseeded generator, "
        "the clock, the process, or a stream that copies share"
    )


def other_machine(a: RunFolder, b: RunFolder) -> str:
    """Versions and hardware that differ: they alone can part two equal runs. Empty if none does.

    Of two machines that compute every kind of operation alike, the hardware is not named: it parts nothing.
    """
    ours, theirs = (run.info.get("operations", {}) for run in (a, b))
    differing = []
    for part in ("versions",) if ours and ours == theirs else ("versions", "machine"):
        left, right = a.info.get(part, {}), b.info.get(part, {})
        keys = [key for key in {**left, **right} if key != LOSS]  # another loss is no other machine
        differing += [f"{key} {left.get(key)} | {right.get(key)}" for key in keys if left.get(key) != right.get(key)]
    others = [name for name in ours if ours[name] != theirs.get(name)] if theirs else []
    if others and not differing:  # as of another number of threads
        return f"not the same bits of operations: {', '.join(others)}"
    differing += [f"other bits in {', '.join(others)}"] if others else []
    return "not the same machine or versions: " + ", ".join(differing) if differing else ""
