"""By what a run was made: the versions of packages, and a digest of our own source, which changes between releases."""

import ast
import functools
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlloss.runs.reader import LOSS, RunFolder
from rlloss.runs.sources import defined, definitions, module_files, of_users, users_imports
from rlloss.version import PACKAGE, __version__

LOSSES = PACKAGE / "losses" / "samples.py"


def versions(loss: str, env_id: str = "", wrappers: Sequence[Any] = ()) -> dict[str, str]:
    """Of this package, Python and what trains. It imports none of them: torch alone takes seconds.

    ``env_id`` and ``wrappers``, as the config has them, add the source of the modules of a user that they name.
    """
    source = {"source": trainer_source(), LOSS: digest(loss_source(loss).encode())}
    return {"rlloss": __version__, **source, **_packages(), **environment_source(env_id, wrappers)}


def environment_source(env_id: str, wrappers: Sequence[Any] = ()) -> dict[str, str]:
    """A digest of the files of the modules that an id and wrappers name as ``module:…``, with what these import of a
    user's own; and the versions of those that are installed."""
    names = [env_id, *(entry.get("wrapper", "") if isinstance(entry, Mapping) else entry for entry in wrappers)]
    modules = dict.fromkeys(name.rpartition(":")[0] for name in names if ":" in str(name))
    files = [path for module in modules for path in module_files(module)]
    files += users_imports(files)
    found = {"environment": digest(b"".join(path.read_bytes() for path in files))} if files else {}
    for package in {module.partition(".")[0] for module in modules}:
        for distribution in importlib.metadata.packages_distributions().get(package, []):
            found[distribution] = importlib.metadata.version(distribution)
    return found


def is_the_users(loss: str, runs: Sequence[Path]) -> bool:
    """Whether a loss that runs name may be loaded, which executes its file: a run from elsewhere may name anything.

    Ours may, and those of installed packages. So may a file or module below the current folder, but not in a folder of
    that one in which the runs lie, too, and so may have come together with them.
    """
    where, here = loss.rpartition(":")[0], Path.cwd().resolve()
    module = (here / Path(*where.split("."))).with_suffix(".py")
    if not where or (not where.endswith(".py") and not module.is_file()):
        return not where or where.partition(".")[0] in importlib.metadata.packages_distributions()
    path = Path(where).resolve() if where.endswith(".py") else module.resolve()
    if not path.is_relative_to(here):
        return False
    parts = path.relative_to(here).parts
    homes = [run.resolve().relative_to(here).parts[:1] for run in runs if run.resolve().is_relative_to(here)]
    return len(parts) == 1 or parts[:1] not in homes


def loss_source(name: str) -> str:
    """The source of a loss: of our table, or of ``file.py:function`` or ``module:function``, as ``of_users`` has it."""
    where, _, function = name.rpartition(":")
    if not where:
        return _ours(name)
    files = [Path(where)] if where.endswith(".py") else module_files(where)
    return of_users([path for path in files if path.is_file()], function)


@functools.cache
def _ours(name: str) -> str:
    return definitions(LOSSES.read_text(), name)


@functools.cache
def _packages() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "gymnasium")}
    return {"python": platform.python_version(), **packages}


@functools.cache
def trainer_source() -> str:
    """A digest of the trainer and of the schema of its config."""
    schema = (PACKAGE / "config" / f"{name}.py" for name in ("group", "optimizers", "schema"))
    files = [*sorted((PACKAGE / "train").glob("*.py")), *schema]
    return digest(b"".join(path.read_bytes() for path in files))


def digest(text: bytes) -> str:
    """The first 12 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(text).hexdigest()[:12]


@functools.cache
def named_by_source() -> dict[str, str]:
    """The name of each function beside our losses, by the digest of its source."""
    text = LOSSES.read_text()
    names = [name for name, node in defined(ast.parse(text)).items() if isinstance(node, ast.FunctionDef)]
    return {digest(definitions(text, name).encode()): name for name in names}


def made_otherwise(run: RunFolder) -> list[str]:
    """In which versions a run differs from what would be made now: "torch 2.12.0, now 2.13.0". Empty if in none."""
    theirs = {name: str(version) for name, version in run.info.get("versions", {}).items()}
    wrappers = run.config.get("env.wrappers") or []
    now = versions(run.loss, str(run.config.get("env.id", "")), wrappers)
    return [f"{name} {theirs.get(name, 'unknown')}, now {now[name]}" for name in differing_versions(theirs, now)]


def differing_versions(theirs: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of what is now another release. A run records torch's build, too; the package's metadata need not."""

    def release(version: object) -> str:
        return str(version).partition("+")[0]

    return [name for name, version in now.items() if release(theirs.get(name, "unknown")) != release(version)]
