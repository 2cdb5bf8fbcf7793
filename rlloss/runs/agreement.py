"""Do the files of a finished run agree with each other? What one of them says twice, or of another one, is compared.

A file that was changed after the run is mostly a file that can be read. It is found by what the others say: run.json
holds the digest of the config and of the initial parameters, digests.bin that of every snapshot and checkpoint, and a
checkpoint that of its own content.
"""

import hashlib
import json
import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlloss.config.metrics import DIGESTS
from rlloss.errors import ConfigError
from rlloss.runs.place import config_digest
from rlloss.runs.provenance import digest, loss_source, named_by_source
from rlloss.runs.reader import BEST, CHECKPOINT, CHECKPOINTS, LOSS, Damaged, RunFolder
from rlloss.runs.watched import Record, is_watched

RATIOS = [f"{sign}_ratio_{end}" for sign in ("positive", "negative") for end in ("min", "max")]
ROUNDED_RATIO = 1e-4  # relative, which two ways to step may round it by
HEXADECIMAL = 64  # digits of a digest; more follow where a run went on elsewhere


def disagreement(run: RunFolder) -> str:
    """Which file of a finished run is not what another one says, and how; empty if all agree. Found out once a run."""
    if "disagreement" not in run.__dict__:  # as cached_property does, of what is above the reader
        run.__dict__["disagreement"] = _found(run)
    return str(run.__dict__["disagreement"])


def _found(run: RunFolder) -> str:
    try:
        check_config(run)
        check_tables(run)
        if why := contradiction(run):
            return why
        check_snapshots(run)
        check_checkpoints(run)
    except ConfigError as error:
        return str(error)
    return ""


def contradiction(run: RunFolder) -> str:
    """Where a finished run's digests are not those that ``run.json`` counts; empty if they are."""
    for key in ("optimizer_steps", "final_digest"):
        if key not in run.info:
            return f"{run.path.name}/run.json has no {key}"
    if len(run.digests) != run.info["optimizer_steps"]:
        steps = run.info["optimizer_steps"]
        return f"{run.path.name}: digests.bin has {len(run.digests)} digests, run.json says {steps} optimiser steps"
    if not len(run.digests) or run.digests[-1].tobytes().hex() != run.info["final_digest"]:
        return f"{run.path.name}: the last digest of digests.bin is not the final_digest of run.json"
    return ""


def check_config(run: RunFolder) -> None:
    """Raises: Damaged for a config that is not the one that run.json was written with.

    A run that was made before run.json had the config's digest tells by its loss alone: by the digest of its source,
    if that is now the source of another loss of ours. A source that is neither is one of another version.
    """
    kept = run.info.get("config_digest")
    if kept is not None:
        if kept != config_digest(run.config):
            raise Damaged(run.path, "config.yaml", "is not the config that run.json has the digest of")
        return
    made = run.info.get("versions", {}).get(LOSS)
    if ":" in run.loss or is_watched(run) or made == digest(loss_source(run.loss).encode()):
        return
    trained = named_by_source().get(str(made))
    if trained is not None:
        raise Damaged(run.path, "config.yaml", f"names the loss {run.loss}, run.json has the source of {trained}")


def check_tables(run: RunFolder) -> None:
    """Raises: Damaged for rows that are not one after the other, or that count other steps than the rest of the run."""
    rows, name = run.metrics, "metrics.csv"
    if "iteration" in rows and not np.array_equal(rows["iteration"], np.arange(1, len(rows) + 1)):
        raise Damaged(run.path, name, "has an iteration column that is not 1, 2, 3 …")
    for key in ("optimizer_steps", "env_steps"):
        if key in rows and key in run.info and not is_watched(run):
            last = int(rows[key].iloc[-1]) if len(rows) else 0
            if last != run.info[key]:
                raise Damaged(run.path, name, f"ends at {key} {last:,}, run.json says {run.info[key]:,}")
    if "source" in run.info.get("versions", {}):  # of this trainer, whose config says how much an iteration is
        _check_increments(run)
    if "episodes" in rows and (counted := int(rows["episodes"].sum())) != len(run.episodes):
        raise Damaged(run.path, "episodes.csv", f"has {len(run.episodes):,} rows, metrics.csv counts {counted:,}")
    if (np.diff(run.episodes["env_steps"]) < 0).any():
        raise Damaged(run.path, "episodes.csv", "has rows that are not in the order of env_steps")
    if (np.diff([decision.iteration for decision in run.decisions]) < 0).any():
        raise Damaged(run.path, "decisions.csv", "has rows that are not in the order of iterations")


def _check_increments(run: RunFolder) -> None:
    """An iteration is ``num_envs * num_steps`` environment steps, and ``update_epochs`` passes or, past ``target_kl``,
    fewer of ``num_minibatches`` optimiser steps."""
    keys = ("num_envs", "num_steps", "update_epochs", "num_minibatches")
    sizes = [run.config.get(key) for key in keys]
    if not {"env_steps", "optimizer_steps"} <= set(run.metrics) or not all(type(size) is int for size in sizes):
        return
    envs, steps, epochs, minibatches = (int(size) for size in sizes if size is not None)
    taken = {key: np.diff(run.metrics[key], prepend=0) for key in ("env_steps", "optimizer_steps")}
    whole = taken["optimizer_steps"] == epochs * minibatches
    if run.config.get("target_kl") is not None:
        done = taken["optimizer_steps"]
        whole = (done > 0) & (done <= epochs * minibatches) & (done % minibatches == 0)
    for key, right in {"env_steps": taken["env_steps"] == envs * steps, "optimizer_steps": whole}.items():
        if not right.all():
            at = int(np.argmin(right))
            raise Damaged(
                run.path, "metrics.csv", f"counts {int(taken[key][at]):,} {key} in iteration {at + 1}, not what the "
                "config says"
            )  # fmt: skip


def check_snapshots(run: RunFolder) -> None:
    """Raises: ConfigError for a snapshot that is missing, or that is not what its digest is of."""
    name = "snapshots/"
    if is_watched(run):
        record = Record(run)
        if other := record.other_digest() or record.other_snapshot(run.snapshot_steps):
            raise ConfigError(f"{run.path.name}: {other}")
        return
    every, steps = run.config.get("snapshot_every"), len(run.digests)
    if "source" in run.info.get("versions", {}) and type(every) is int:
        due = {0, *(range(every, steps + 1, every) if every > 0 else ()), steps}
        if missing := sorted(due.difference(run.snapshot_steps)):
            raise Damaged(run.path, name, f"has no parameters after step {missing[0]:,}")
    half = run.config.get("precision.name") == "bf16"  # kept as float32, digested as bfloat16
    initial = str(run.info.get("initial_digest", ""))[:HEXADECIMAL]
    for step, array in run.snapshots():
        data = (array.view(np.uint32) >> 16).astype(np.uint16) if half else array
        found, digest = hashlib.sha256(np.ascontiguousarray(data).data), run.digests[step - 1].tobytes()
        if step == 0 and initial and found.hexdigest() != initial:
            raise Damaged(run.path, name, "has other parameters before step 1 than the initial_digest of run.json says")
        if step > 0 and found.digest() != digest:
            raise Damaged(run.path, name, f"has other parameters after step {step:,} than digests.bin says")
        if step == 0 and not np.isfinite(array).all():
            raise Damaged(run.path, name, "has parameters before step 1 that are not finite numbers")


def check_checkpoints(run: RunFolder) -> None:
    """Raises: Damaged for a checkpoint that is not what was written, or not of the parameters of its step."""
    if is_watched(run):
        return  # which has none
    last = {CHECKPOINT: len(run.digests)} if (run.path / CHECKPOINT).exists() else {}
    kept = {name: step for step, name in kept_checkpoints(run).items()}
    for name, step in {**last, **kept}.items():
        if not 0 < step <= len(run.digests):
            raise Damaged(run.path, name, f"is of an optimiser step {step:,}, which there is not")
        if packed_digest(run, name) != run.digests[step - 1].tobytes():
            raise Damaged(run.path, name, f"has other parameters than the digest after step {step:,} says")
    if (run.path / BEST).exists() and packed_digest(run, BEST) not in {digest.tobytes() for digest in run.digests}:
        raise Damaged(run.path, BEST, "has parameters of which digests.bin has no digest")


def kept_checkpoints(run: RunFolder) -> dict[int, str]:
    """The name of each, by its optimiser step."""
    paths = (run.path / CHECKPOINTS).glob("*.safetensors")
    return {int(path.stem): f"{CHECKPOINTS}/{path.name}" for path in paths if path.stem.isdecimal()}


def packed_digest(run: RunFolder, name: str) -> bytes:
    """The digest of the parameters in a state that the trainer packed, of any dtype. torch is not needed.

    Raises: Damaged for a file that is no such state, or whose content is not what it has the sum of.
    """
    try:
        path = run.place(name)
        if not path.is_file():
            raise ValueError("no file")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            document = json.loads(header.pop("__metadata__")["state"])
            tree = document["tree"] if "sha256" in document else document  # of a version before 0.2.0
            with memoryview(data)[8 + length :] as tensors:
                where = {key: slice(*entry["data_offsets"]) for key, entry in header.items()}
                if "sha256" in document and document["sha256"] != _sum_of_state(tree, where, tensors):
                    raise ValueError("its content is not what was written")
                return hashlib.sha256(tensors[where[dict(tree["items"])["parameters"]["tensor"]]]).digest()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(run.path, name, f"is no checkpoint that can be read ({error})") from error


def _sum_of_state(tree: Any, where: Mapping[str, slice], tensors: memoryview) -> str:
    """As ``rlloss.train.checkpoint`` takes it: over the tree, and all tensors in the order of their names."""
    found = hashlib.sha256(json.dumps(tree).encode())
    for name in sorted(where):
        found.update(tensors[where[name]])
    return found.hexdigest()


def differing_tables(a: RunFolder, b: RunFolder) -> str:
    """What two runs, said to be one by their digests, cannot have done otherwise; empty if nothing.

    Other actions, rewards or observations change the update of their iteration or, those after its last step, of the
    next one. If the digests are equal after both, though that iteration moved the parameters, one file was changed.
    """
    rows = min(len(a.metrics), len(b.metrics))
    names = [name for name in DIGESTS if name in a.metrics and name in b.metrics]
    if not rows or "optimizer_steps" not in a.metrics or "optimizer_steps" not in b.metrics:
        return ""
    ends = np.concatenate([[0], a.metrics["optimizer_steps"].to_numpy()[:rows]])
    for name in names:
        other = np.flatnonzero(a.metrics[name].to_numpy()[:rows] != b.metrics[name].to_numpy()[:rows])
        if not len(other):
            continue
        first = int(other[0])
        if first + 1 == rows and name == "observations_digest":
            continue  # the very last may be of an episode that nobody goes on with
        begin, end, until = (int(ends[min(i, rows)]) for i in (first, first + 1, first + 2))
        moved = len(np.unique(a.digests[max(0, begin - 1) : end])) > 1
        if moved and np.array_equal(a.digests[begin:until], b.digests[begin:until]):
            return (
                f"metrics.csv of {a.path.name} and of {b.path.name} have another {name} in iteration {first + 1}, "
                f"digests.bin has equal parameters after its optimiser steps {begin + 1:,} to {until:,}"
            )
    return ""


def differing_ratios(a: RunFolder, b: RunFolder) -> str:
    """Ratios that two runs cannot both have met, which had the same parameters, actions and samples; empty if none."""
    rows = min(len(a.metrics), len(b.metrics))
    for name in RATIOS:
        if name in a.metrics and name in b.metrics:
            x, y = (run.metrics[name].to_numpy(float)[:rows] for run in (a, b))
            if len(other := np.flatnonzero(~np.isclose(x, y, rtol=ROUNDED_RATIO, atol=0, equal_nan=True))):
                whose = f"{a.path.name} and of {b.path.name} have another {name} in iteration {other[0] + 1}"
                return f"metrics.csv of {whose}, digests.bin has equal parameters throughout"
    return ""


def other_start(a: RunFolder, b: RunFolder, first_difference: int | None) -> str:
    """Whether two runs have other parameters before a first step after which they have the same; empty if not."""
    if first_difference == 1 or is_watched(a) or not {0} <= {*a.snapshot_steps} & {*b.snapshot_steps}:
        return ""
    if a.snapshot(0).tobytes() == b.snapshot(0).tobytes():
        return ""
    return (
        f"snapshots/ of {a.path.name} and of {b.path.name} have other parameters before step 1, digests.bin the same "
        "after it"
    )


def passing_difference(a: RunFolder, b: RunFolder) -> str:
    """Digests that differ and then are equal again, though no snapshot shows that the parameters did; empty if none.

    Parameters that differ go on to differ, but for the rare rounding that makes them one again. Digests of watched
    trainings are left out: they are held against their hashes, and such a training may load one state in both.
    """
    if is_watched(a):
        return ""
    steps = min(len(a.digests), len(b.digests))
    differs = a.digests[:steps] != b.digests[:steps]
    edges = np.flatnonzero(np.diff(differs, prepend=False))  # 0-based: a difference begins, ends, begins ...
    both = sorted({*a.snapshot_steps} & {*b.snapshot_steps})
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=False):
        shown = [step for step in both if begin < step <= end]
        if not any(not np.array_equal(a.snapshot(step), b.snapshot(step)) for step in shown):
            return (
                f"digests.bin of {a.path.name} and of {b.path.name} differ after step {begin + 1:,} and are equal "
                f"after step {end + 1:,}, and no snapshot shows that the parameters did: one of the files was changed"
            )
    return ""
