"""Certificates of runs: a small file that says which run gave which parameters, step by step, and signs its content.

It holds the config, versions, machine and the digests of its operations, the final digest, and a chain over the
digests of all optimiser steps: ``h_0`` is the SHA-256 of the config, ``h_i = SHA-256(h_{i-1} || digest_i)``. Some of
the h_i are kept, the links, so that a part of the run can be held against them. What a certificate proves, and what
not: rlloss/train/README.md.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rlloss.errors import ConfigError
from rlloss.runs.agreement import disagreement, kept_checkpoints
from rlloss.runs.reader import WHERE_KEYS, Damaged, RunFolder, flatten, to_json
from rlloss.runs.watched import refuse_record

FORMAT = "rlloss certificate 1"
LINKS = 64  # at most: of a longer run, not every step has one
LARGEST = 1 << 24  # bytes
SUM, STEP = re.compile("[0-9a-f]{64}"), re.compile("[1-9][0-9]{0,14}")
SPEED = "steps_per_second"  # the one column of a run's tables that is not the same when it is run again
TABLES = ("metrics.csv", "episodes.csv", "decisions.csv")
KINDS: dict[str, type] = {
    "config": dict, "versions": dict, "machine": dict, "operations": dict, "optimizer_steps": int, "env_steps": int,
    "final_digest": str, "links": dict, "tables": dict, "checkpoints": dict,
}  # fmt: skip


class Chain:
    """h_i, one digest after the other."""

    def __init__(self, start: bytes, step: int = 0) -> None:
        self.value, self.step = start, step

    @classmethod
    def begin(cls, config: Mapping[str, Any]) -> Self:
        return cls(hashlib.sha256(canonical(config)).digest())

    def add(self, digest: bytes) -> str:
        """Returns: the new h_i, in hexadecimal."""
        self.value, self.step = hashlib.sha256(self.value + digest).digest(), self.step + 1
        return self.value.hex()


@dataclass(frozen=True)
class Certificate:
    """As it was read. ``intact``: whether its content is what was signed."""

    path: Path
    document: Mapping[str, Any]
    intact: bool

    @property
    def config(self) -> dict[str, Any]:
        """Nested, without the keys that say where a run is recorded."""
        return dict(self.document["config"])

    @property
    def steps(self) -> int:
        return int(self.document["optimizer_steps"])

    @property
    def links(self) -> dict[int, str]:
        """h_i by i."""
        return {int(step): str(value) for step, value in self.document["links"].items()}

    @property
    def checkpoints(self) -> dict[int, Mapping[str, str]]:
        """By the step after which one was kept: its ``sha256``, and h of that step, ``chain``."""
        return {int(step): entry for step, entry in self.document["checkpoints"].items()}


def canonical(document: Any) -> bytes:
    """One text for one content."""
    return json.dumps(json.loads(to_json(document)), sort_keys=True, separators=(",", ":")).encode()


def signature(document: Mapping[str, Any]) -> str:
    """The SHA-256 of all of a certificate but the signature itself."""
    return hashlib.sha256(canonical({key: value for key, value in document.items() if key != "sha256"})).hexdigest()


def certify(run: RunFolder) -> dict[str, Any]:
    """A finished run's certificate. Raises: ConfigError for one that is not finished, or damaged."""
    refuse_record(run, "rlloss cannot play it again, and a certificate says what playing it again gives")
    if run.status != "finished":
        raise ConfigError(f"RUN={run.path}: {run.standing}; only a finished run has a certificate; train it to its end")
    if why := run.damage or disagreement(run):
        raise ConfigError(f"RUN={run.path}: {why}; train it again")
    if not len(run.digests):
        raise ConfigError(f"RUN={run.path}: has taken no optimiser step; there is nothing to certify")
    every, steps = -(-len(run.digests) // LINKS), len(run.digests)
    kept = kept_checkpoints(run)
    links, checkpoints = {}, {}
    for step, value in hashes(run):
        if step % every == 0 or step == steps:
            links[str(step)] = value
        if step in kept:
            checkpoints[str(step)] = {"chain": value, "sha256": _sum(run.content(kept[step]))}
    info = run.info
    document = {
        "format": FORMAT,
        "config": certified_config(run),
        **{key: info.get(key, {}) for key in ("versions", "machine", "operations")},
        **{key: info.get(key) for key in ("optimizer_steps", "env_steps", "final_digest")},
        "links": links,
        "tables": tables(run),
        "checkpoints": checkpoints,
    }
    try:
        document["sha256"] = signature(document)
        check(document)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"RUN={run.path}: run.json or config.yaml says what no run has ({error})") from error
    return document


def certified_config(run: RunFolder) -> dict[str, Any]:
    """The config of a run, nested, without what says where it is recorded. Raises: Damaged."""
    tree = run.config_tree()
    for key in WHERE_KEYS:
        group, _, name = key.rpartition(".")
        home = tree.get(group) if group else tree
        if isinstance(home, dict):
            home.pop(name, None)
    plain: dict[str, Any] = json.loads(json.dumps(_sayable(tree), default=str))
    return plain


def _sayable(node: Any) -> Any:
    """With words for the numbers that JSON cannot say, as of max_grad_norm=inf."""
    if isinstance(node, dict):
        return {str(key): _sayable(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_sayable(value) for value in node]
    return str(node) if isinstance(node, float) and not math.isfinite(node) else node


def hashes(run: RunFolder) -> Iterator[tuple[int, str]]:
    """(i, h_i) of all steps of a run."""
    chain = Chain.begin(certified_config(run))
    for digest in run.digests:
        value = chain.add(digest.tobytes())
        yield chain.step, value


def tables(run: RunFolder) -> dict[str, str]:
    """The sum of each table that a run has, without its speeds."""
    found = {}
    for name in TABLES:
        path = run.path / name
        if path.is_file():
            found[name] = _sum(_without_speed(run.content(name)))
    return found


def _without_speed(table: bytes) -> bytes:
    rows = [line.split(b",") for line in table.splitlines()]
    if not rows or SPEED.encode() not in rows[0]:
        return table
    skip = rows[0].index(SPEED.encode())
    return b"\n".join(b",".join(row[:skip] + row[skip + 1 :]) for row in rows)


def read(path: Path) -> Certificate:
    """Raises: ConfigError for a file that is no certificate; one whose content was changed is not ``intact``."""
    try:
        if not path.is_file():
            raise ValueError("no file of that name")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        document = json.loads(data, object_pairs_hook=_each_once)
        check(document)
        return Certificate(path, document, document.get("sha256") == signature(document))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else f"is no certificate ({printable(error)})"
        raise ConfigError(f"--certificate={path}: {why}; `rlloss certify RUN` makes one") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises: ValueError for a key that stands twice: a reader would see both, and a program one of them."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)} twice")
    return found


def check(document: Any) -> None:
    """Raises: ValueError for what is not shaped as a certificate."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    for key, kind in KINDS.items():
        if type(document.get(key)) is not kind:
            raise ValueError(f"it has {key}: {str(document.get(key))[:40]}")
    for key in ("versions", "machine", "operations", "tables"):
        if not all(isinstance(value, str | int | float | None) for value in document[key].values()):
            raise ValueError(f"its {key} are not names and values")
    sums = [document["final_digest"], *document["links"].values()]
    for entry in document["checkpoints"].values():
        sums += [entry.get("chain"), entry.get("sha256")] if isinstance(entry, dict) else [None]
    if not all(isinstance(value, str) and SUM.fullmatch(value) for value in sums):
        raise ValueError("not all of its sums are 64 hexadecimal digits")
    steps = [*document["links"], *document["checkpoints"]]
    if not all(STEP.fullmatch(step) for step in steps):
        raise ValueError("not all of its links and checkpoints are of optimiser steps")
    if str(document["optimizer_steps"]) not in document["links"]:
        raise ValueError("it has no link for the last step")


def printable(text: object) -> str:
    """Of a file from elsewhere: without what would steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def mismatch(certificate: Certificate, run: RunFolder) -> str:
    """In what a run is not the one that a certificate describes; empty if it is that run."""
    if run.status != "finished" or run.damage:
        return run.damage or run.standing
    theirs, ours = flatten(certificate.config), flatten(certified_config(run))
    for key in {**theirs, **ours}:
        if theirs.get(key) != ours.get(key):
            return f"another config: {key}={ours.get(key)}, certified {theirs.get(key)}"
    for key in ("final_digest", "optimizer_steps", "env_steps"):
        if run.info.get(key) != certificate.document[key]:
            return f"run.json has {key} {run.info.get(key)}, certified {certificate.document[key]}"
    links, before = certificate.links, 0
    if len(run.digests) != certificate.steps:
        return f"{len(run.digests):,} optimiser steps, certified {certificate.steps:,}"
    for step, value in hashes(run):
        if step in links:
            if links[step] != value:
                return f"other parameters, first within optimiser steps {before + 1:,} to {step:,}"
            before = step
    ours_tables = tables(run)
    for name in {**certificate.document["tables"], **ours_tables}:
        if certificate.document["tables"].get(name) != ours_tables.get(name):
            return f"another {name}"
    for step, name in kept_checkpoints(run).items():
        if step in certificate.checkpoints and _sum(run.content(name)) != certificate.checkpoints[step]["sha256"]:
            return f"another {name}"
    return disagreement(run)


def checkpoint_before(certificate: Certificate, run: RunFolder, step: int) -> tuple[int, Path] | None:
    """The last certified checkpoint that a run keeps before a step. Raises: ConfigError for one that was changed."""
    kept = kept_checkpoints(run)
    for at in sorted((at for at in certificate.checkpoints if at < step and at in kept), reverse=True):
        if _sum(run.content(kept[at])) != certificate.checkpoints[at]["sha256"]:
            raise Damaged(run.path, kept[at], "is not the one that was certified; remove it")
        return at, run.path / kept[at]
    return None


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
