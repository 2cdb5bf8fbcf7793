"""Loading code late, since torch, pandas and Hydra take a second each; and loading a file that is in no package."""

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

_LOADED: list[ModuleType] = []  # by load_file
_NUMBERS = itertools.count()


def lazily(package: str, offers: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` (PEP 562). ``offers``: by module of the package, the names that it defines."""
    homes = {name: f"{package}.{module}" for module, names in offers.items() for name in names.split()}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return load


def callable_as(module: str, function: str) -> None:
    """Let a call of the module be one of its function: ``rlloss.train(config)`` is ``rlloss.train.train(config)``.

    Package and function share the name that users look for; this way neither hides the other.
    """

    class CallableModule(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(self, function)(*args, **kwargs)

    sys.modules[module].__class__ = CallableModule


def beside_the_user() -> None:
    """Let modules in the current folder be imported, as a script in it could; the ``rlloss`` command alone does not."""
    if not {"", str(Path.cwd())}.intersection(sys.path):
        sys.path.insert(0, str(Path.cwd()))


def load_file(path: Path, prefix: str) -> ModuleType:
    """The module in a Python file, known as ``prefix``, the file's name and a number while it loads.

    Afterwards nobody can import it by that name: so its functions go to other processes as they are, not by reference.
    """
    spec = importlib.util.spec_from_file_location(f"{prefix}_{path.stem}_{next(_NUMBERS)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    _LOADED.append(module)
    return module


@contextmanager
def importable() -> Iterator[None]:
    """Within: what ``load_file`` has loaded can be imported, as torch's compiler does with all that it traces."""
    loaded = {module.__name__: module for module in _LOADED}
    sys.modules.update(loaded)
    try:
        yield
    finally:
        for name in loaded:
            sys.modules.pop(name, None)
