"""The code behind a name: what a function refers to in its file, what loading that executes, and whose it imports.

Nothing is imported or executed: a run from elsewhere may name anything.
"""

import ast
import importlib.machinery
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rlloss.lazy import beside_the_user
from rlloss.version import PACKAGE

BLOCKS = ast.If | ast.Try | ast.TryStar | ast.With | ast.For | ast.While | ast.Match
ACTS = ast.Call | ast.AugAssign | ast.Delete | ast.Raise | ast.Assert
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def module_files(name: str) -> list[Path]:
    """The Python files of a module or, if it is one, of all of its package; none for what cannot be found."""
    origin = _origin(name)
    if origin is None:
        return []
    return sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]


def _origin(name: str) -> Path | None:
    """A module's own file. Of a package within a package, importlib would execute the outer one to find it."""
    beside_the_user()
    first, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    for part in inner:
        homes = [] if spec is None else list(spec.submodule_search_locations or ())
        spec = importlib.machinery.PathFinder.find_spec(part, homes) if homes else None
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


def of_users(files: Sequence[Path], name: str) -> str:
    """The source of a function in the files of a user's module: the definitions that it needs, whatever else loading
    the files executes, and all of the files of the user's own that these import. Of installed ones the first alone,
    since they have a version.
    """
    texts = {path: path.read_text(errors="replace") for path in files}
    own = [path for path in files if not is_installed(path)]
    return "\n".join([
        *(definitions(text, name) for text in texts.values()),
        *(text for path in own for text in executed(texts[path])),
        *(path.read_text(errors="replace") for path in users_imports(own)),
    ])  # fmt: skip


def definitions(text: str, name: str) -> str:
    """The source of a top-level ``name`` of a module, and of all that it refers to there; empty if there is none."""
    try:
        known = defined(ast.parse(text))
    except (SyntaxError, ValueError):
        return text
    wanted, todo = set[str](), [name]
    while todo:
        current = todo.pop()
        if current in known and current not in wanted:
            wanted.add(current)
            todo += [part.id for part in ast.walk(known[current]) if isinstance(part, ast.Name)]
    nodes = dict.fromkeys(known[name] for name in sorted(wanted))
    return "\n".join(ast.get_source_segment(text, node) or "" for node in nodes)


def defined(module: ast.Module) -> dict[str, ast.stmt]:
    """The top-level definitions of a module, by name."""
    found: dict[str, ast.stmt] = {}
    for node in module.body:
        if isinstance(node, FUNCTIONS | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))
            found |= dict.fromkeys(names, node)
    return found


def executed(text: str) -> Iterator[str]:
    """What loading a module does beside defining, assigning and importing: calls, blocks, decorators."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return
    for node in _executed(body):
        yield ast.get_source_segment(text, node) or ""


def _executed(body: Iterable[ast.stmt]) -> Iterator[ast.AST]:
    for node in body:
        if isinstance(node, FUNCTIONS):
            yield from node.decorator_list
            yield from filter(_acts, [*node.args.defaults, *filter(None, node.args.kw_defaults)])
        elif isinstance(node, ast.ClassDef):
            yield from node.decorator_list
            yield from _executed(node.body)
        elif (isinstance(node, BLOCKS) and not _is_of_a_script(node)) or _acts(node):
            yield node


def _acts(node: ast.AST) -> bool:
    """Whether it calls or changes something that is there already."""
    if isinstance(node, BLOCKS):
        return False
    parts = list(ast.walk(node))
    stored = (part for part in parts if isinstance(part, ast.Attribute | ast.Subscript))
    return any(isinstance(part, ACTS) for part in parts) or any(isinstance(part.ctx, ast.Store) for part in stored)


def _is_of_a_script(node: ast.AST) -> bool:
    """Whether it is ``if __name__ == "__main__"``."""
    return isinstance(node, ast.If) and any(isinstance(x, ast.Name) and x.id == "__name__" for x in ast.walk(node.test))


def users_imports(files: Iterable[Path]) -> list[Path]:
    """The files of a user's own that these import, and those in turn, but for themselves."""
    given = [path.resolve() for path in files if not is_installed(path)]
    homes = [path.parent for path in given]
    known, todo = set(given), list(given)
    while todo:
        found = {path.resolve() for path in _imports(todo.pop(), homes)}
        new = {path for path in found - known if not is_installed(path)}
        known |= new
        todo += new
    return sorted(known.difference(given))


def _imports(path: Path, homes: Sequence[Path]) -> Iterator[Path]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(alias.name, [path.parent, *homes])
        elif isinstance(node, ast.ImportFrom):
            for name in dict.fromkeys([node.module or "", *(f"{node.module or ''}.{a.name}" for a in node.names)]):
                if node.level:
                    yield from _beside(name.strip("."), path.parents[node.level - 1])
                else:
                    yield from _files(name, [path.parent, *homes])


def _files(name: str, homes: Sequence[Path]) -> Iterator[Path]:
    """The file of a module and those of the packages around it, beside a file or where Python finds modules."""
    if beside := next(filter(None, (list(_beside(name, home)) for home in homes)), []):
        yield from beside
    elif (parts := name.split("."))[0] not in sys.stdlib_module_names:
        for n in range(1, len(parts) + 1):
            origin = _origin(".".join(parts[:n]))
            if origin is not None and is_installed(origin):
                return
            if origin is not None:
                yield origin


def _beside(name: str, home: Path) -> Iterator[Path]:
    parts = name.split(".") if name else []
    for folder in (home.joinpath(*parts[:n]) for n in range(bool(parts), len(parts) + 1)):
        tried = [folder / "__init__.py", *([folder.with_suffix(".py")] if parts else [])]
        yield from (path for path in tried if path.is_file())


def is_installed(path: Path) -> bool:
    """Whether a file belongs to Python, to an installed package or to this one, which have versions of their own."""
    homes = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    path = path.resolve()
    return "dist-packages" in path.parts or any(path.is_relative_to(home) for home in (*homes, PACKAGE.resolve()))
