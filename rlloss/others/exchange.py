"""Exchanging one line of somebody's method, in a subclass: all else stays theirs."""

import importlib
import inspect
import linecache
import textwrap
from typing import Any

from rlloss.errors import ConfigError


def exchanged(cls: type, method: str, old: str, new: str, **names: Any) -> type:
    """A subclass of ``cls`` whose ``method`` has the lines ``new`` in the place of the line ``old``.

    ``names`` are what ``new`` uses besides. Raises: ConfigError unless the method has that line, once: then it is a
    release that this was not written for.
    """
    function = getattr(cls, method)
    source = textwrap.dedent(inspect.getsource(function))
    lines = [line for line in source.splitlines() if line.strip() == old]
    if len(lines) != 1:
        raise ConfigError(
            f"{cls.__name__}.{method} has the line {old!r} {len(lines)} times; install the release in the extra"
        )
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    source = source.replace(lines[0], textwrap.indent(textwrap.dedent(new).strip(), indent))
    namespace = {**vars(importlib.import_module(function.__module__)), **names}
    file = f"<{cls.__name__}.{method}, exchanged>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for tracebacks and traces
    exec(compile(source, file, "exec"), namespace)
    return type(cls.__name__, (cls,), {method: namespace[method]})
