"""By what a run was made: the versions of packages, and a digest of our own source, which changes between releases."""

import ast
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlloss.lazy import beside_the_user
from rlloss.runs.reader import LOSS, RunFolder
from rlloss.version import PACKAGE, __version__

LOSSES = PACKAGE / "losses" / "samples.py"


def versions(loss: str, env_id: str = "", wrappers: Sequence[Any] = ()) -> dict[str, str]:
    """Of this package, Python and what trains. It imports none of them: torch alone takes seconds.

    ``env_id`` and ``wrappers``, as the config has them, add the source of the modules of a user that they name.
    """
    source = {"source": trainer_source(), LOSS: digest(loss_source(loss).encode())}
    return {"rlloss": __version__, **source, **_packages(), **environment_source(env_id, wrappers)}


def environment_source(env_id: str, wrappers: Sequence[Any] = ()) -> dict[str, str]:
    """A digest of the files of the modules that an id and wrappers name as ``module:…``, and their versions."""
    names = [env_id, *(entry.get("wrapper", "") if isinstance(entry, Mapping) else entry for entry in wrappers)]
    modules = dict.fromkeys(name.rpartition(":")[0] for name in names if ":" in str(name))
    files = [path for module in modules for path in module_files(module)]
    found = {"environment": digest(b"".join(path.read_bytes() for path in files))} if files else {}
    for package in {module.partition(".")[0] for module in modules}:
        for distribution in importlib.metadata.packages_distributions().get(package, []):
            found[distribution] = importlib.metadata.version(distribution)
    return found


def module_files(name: str) -> list[Path]:
    """The Python files of a module or, if it is one, of all of its package; none for what cannot be found.

    Nothing is imported: of a package within a package, importlib would execute the outer one to find it.
    """
    beside_the_user()
    first, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return []
    for part in inner:
        homes = [] if spec is None else list(spec.submodule_search_locations or ())
        spec = importlib.machinery.PathFinder.find_spec(part, homes) if homes else None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return []
    origin = Path(spec.origin)
    return sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]


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
    """The source of a loss: of our table, or of ``file.py:function`` or ``module:function``."""
    where, _, function = name.rpartition(":")
    if not where:
        return _ours(name)
    files = [Path(where)] if where.endswith(".py") else module_files(where)
    return "\n".join(definitions(path, function) for path in files if path.is_file())


@functools.cache
def _ours(name: str) -> str:
    return definitions(LOSSES, name)


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


def definitions(module: Path, name: str) -> str:
    """The source of a top-level ``name`` of a module, and of all that it refers to there; empty if there is none."""
    text = module.read_text()
    return _source(text, _defined(text), name)


def _defined(text: str) -> dict[str, ast.stmt]:
    """The top-level definitions of a module, by name."""
    defined: dict[str, ast.stmt] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return defined


def _source(text: str, defined: Mapping[str, ast.stmt], name: str) -> str:
    wanted, todo = set[str](), [name]
    while todo:
        current = todo.pop()
        if current in defined and current not in wanted:
            wanted.add(current)
            todo += [part.id for part in ast.walk(defined[current]) if isinstance(part, ast.Name)]
    return "\n".join(ast.get_source_segment(text, defined[name]) or "" for name in sorted(wanted))


@functools.cache
def named_by_source() -> dict[str, str]:
    """The name of each function beside our losses, by the digest of its source."""
    text = LOSSES.read_text()
    defined = _defined(text)
    names = [name for name, node in defined.items() if isinstance(node, ast.FunctionDef)]
    return {digest(_source(text, defined, name).encode()): name for name in names}


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
