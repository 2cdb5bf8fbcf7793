"""By what a run was made: the versions of packages, and a digest of our own source, which changes between releases."""

import functools
import hashlib
import importlib.metadata
import platform
from pathlib import Path

from rlloss import __version__
from rlloss.runs import RunFolder

# What decides a run's bits; how it is recorded and analysed does not.
TRAINING = (
    "conditions", "config", "envs", "losses", "policy", "precision", "rollout", "schema", "streams", "torsos", "train",
    "update",
)  # fmt: skip


@functools.cache
def versions() -> dict[str, str]:
    """Of this package, Python and what trains. It imports none of them: torch alone takes seconds."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "gymnasium")}
    return {"rlloss": __version__, "source": source(), "python": platform.python_version(), **packages}


def source() -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the modules that train."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / f"{name}.py").read_bytes() for name in TRAINING)).hexdigest()[:12]


def made_otherwise(run: RunFolder) -> list[str]:
    """In which versions a run differs from what would be made now: "torch 2.12.0, now 2.13.0". Empty if in none."""
    theirs = {name: str(version) for name, version in run.info.get("versions", {}).items()}

    def release(version: str) -> str:
        return version.partition("+")[0]  # a run also records torch's build; the package's metadata need not say it

    return [
        f"{name} {theirs.get(name, 'unknown')}, now {now}"
        for name, now in versions().items()
        if release(theirs.get(name, "unknown")) != release(now)
    ]
