"""Certificates of runs: a small file that says which run gave which parameters, step by step, and signs its content.

It holds the config, versions, machine and the digests of its operations, the final digest, and a chain over the
digests of all optimiser steps: ``h_0`` is the SHA-256 of the config, ``h_i = SHA-256(h_{i-1} || digest_i)``. Some of
the h_i are kept, the links, so that a part of the run can be held against them. What a certificate proves, and what
not: rlloss/train/README.md.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from rlloss.errors import ConfigError
from rlloss.runs.reader import CHECKPOINTS, LOADER, WHERE_KEYS, Damaged, RunFolder, check_yaml, flatten, to_json

FORMAT = "rlloss certificate 1"
LINKS = 64  # at most: of a longer run, not every step has one
LARGEST = 1 << 24  # bytes
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
    if run.status != "finished":
        raise ConfigError(f"RUN={run.path}: {run.standing}; only a finished run has a certificate; train it to its end")
    if run.damage:
        raise ConfigError(f"RUN={run.path}: {run.damage}; train it again")
    config = certified_config(run)
    every, steps = max(1, -(-len(run.digests) // LINKS)), len(run.digests)
    kept = {int(path.stem): path for path in sorted((run.path / CHECKPOINTS).glob("*.safetensors"))}
    links, checkpoints = {}, {}
    for step, value in hashes(run):
        if step % every == 0 or step == steps:
            links[str(step)] = value
        if step in kept:
            checkpoints[str(step)] = {"chain": value, "sha256": _sum(kept[step].read_bytes())}
    info = run.info
    document = {
        "format": FORMAT,
        "config": config,
        **{key: info.get(key, {}) for key in ("versions", "machine", "operations")},
        **{key: info[key] for key in ("optimizer_steps", "env_steps", "final_digest")},
        "links": links,
        "tables": tables(run),
        "checkpoints": checkpoints,
    }
    return document | {"sha256": signature(document)}


def certified_config(run: RunFolder) -> dict[str, Any]:
    """The config of a run, nested, without what says where it is recorded. Raises: ConfigError."""
    try:
        text = (run.path / "config.yaml").read_text()
        check_yaml(text)
        tree: dict[str, Any] = yaml.load(text, LOADER)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"RUN={run.path}: config.yaml cannot be read; train it again") from error
    for key in WHERE_KEYS:
        group, _, name = key.rpartition(".")
        (tree.get(group, {}) if group else tree).pop(name, None)
    return tree


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
            found[name] = _sum(_without_speed(path.read_bytes()))
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
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        document = json.loads(path.read_text())
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        for key, kind in KINDS.items():
            if not isinstance(document.get(key), kind):
                raise ValueError(f"it has {key}: {str(document.get(key))[:40]}")
        certificate = Certificate(path, document, document.get("sha256") == signature(document))
        if not all(step > 0 and len(entry["sha256"]) == 64 for step, entry in certificate.checkpoints.items()):
            raise ValueError("it names checkpoints that no run has")
        if certificate.steps not in certificate.links:
            raise ValueError("it has no link for the last step")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else f"is no certificate ({error})"
        raise ConfigError(f"--certificate={path}: {why}; `rlloss certify RUN` makes one") from error
    return certificate


def mismatch(certificate: Certificate, run: RunFolder) -> str:
    """In what a run is not the one that a certificate describes; empty if it is that run."""
    theirs, ours = flatten(certificate.config), flatten(certified_config(run))
    for key in {**theirs, **ours}:
        if theirs.get(key) != ours.get(key):
            return f"another config: {key}={ours.get(key)}, certified {theirs.get(key)}"
    if run.status != "finished" or run.damage:
        return run.damage or run.standing
    if len(run.digests) != certificate.steps:
        return f"{len(run.digests):,} optimiser steps, certified {certificate.steps:,}"
    links, before = certificate.links, 0
    for step, value in hashes(run):
        if step in links:
            if links[step] != value:
                return f"other parameters, first within optimiser steps {before + 1:,} to {step:,}"
            before = step
    if run.info.get("final_digest") != certificate.document["final_digest"]:
        return "another final digest in run.json"
    ours_tables = tables(run)
    for name in {**certificate.document["tables"], **ours_tables}:
        if certificate.document["tables"].get(name) != ours_tables.get(name):
            return f"another {name}"
    return ""


def checkpoint_before(certificate: Certificate, run: RunFolder, step: int) -> tuple[int, Path] | None:
    """The last certified checkpoint that a run keeps before a step. Raises: ConfigError for one that was changed."""
    for at in sorted((at for at in certificate.checkpoints if at < step), reverse=True):
        path = run.path / CHECKPOINTS / f"{at:09d}.safetensors"
        if path.is_file():
            if _sum(path.read_bytes()) != certificate.checkpoints[at]["sha256"]:
                raise Damaged(run.path, f"{CHECKPOINTS}/{path.name}", "is not the one that was certified; remove it")
            return at, path
    return None


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
