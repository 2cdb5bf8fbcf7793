"""A user's own yaml files, below ``--config-dir``: which of them has the mistake that Hydra met, and what to write.

Asked only once a config could not be composed. Hydra's messages name neither file nor remedy.
"""

import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlloss.config.choices import choices, groups
from rlloss.config.mistakes import ELSEWHERE, closest, other_choice, unknown_key, wrong_value
from rlloss.config.schema import BASES, GROUPS, VARIANTS, Config

WHOLE_RUN = "# @package _global_"
NEEDED = {"env": ("id", "CartPole-v1"), "loss": ("name", "mine.py:my_loss")}  # keys without a default, as an example
Chosen = Sequence[tuple[str, str]]
"""Groups and their choices, as the command line names them."""


def not_yaml(error: yaml.YAMLError) -> str:
    """Which file is no YAML, where, and why; empty where the parser does not say."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return ""
    return f"{shown(Path(mark.name))}, line {mark.line + 1}: is no YAML: {getattr(error, 'problem', None) or error}"


def mistake(chosen: Chosen, folders: Sequence[Path], known: Sequence[str]) -> str:
    """The first mistake in a file of the user's that is part of the config: file, key, value and remedy; or nothing."""
    for group, path in _files(chosen, folders):
        if found := _in_file(group, path, folders, known):
            return f"{shown(path)}: {found}"
    for group, path in _files(chosen, folders):
        for key, value in _keys(group, path):  # right with another choice than the one that was made
            if _is_of_whole_run(path) and (why := other_choice(key)) and key not in Config().flat():
                return f"{shown(path)}: {key}: {value}: {why}"
    return ""


def setting(key: str, chosen: Chosen, folders: Sequence[Path]) -> str:
    """The user's file that sets a key; empty if none does."""
    for group, path in _files(chosen, folders):
        if key in dict(_keys(group, path)):
            return shown(path)
    return ""


def shown(path: Path) -> str:
    """As a user would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _files(chosen: Chosen, folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """The user's files that are chosen, and those that their lists of defaults name."""
    todo, seen = list(chosen), set()
    while todo:
        group, choice = todo.pop(0)
        path = next((p for folder in folders if (p := folder / group / f"{choice}.yaml").is_file()), None)
        if path is not None and path not in seen:
            seen.add(path)
            yield group, path
            todo += _defaults(group, _tree(path))


def _tree(path: Path) -> Any:
    """The content of a file, empty for one that is no YAML, which has been said before."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}


def _defaults(group: str, tree: Any) -> list[tuple[str, str]]:
    """The entries of a file's list of defaults, as group and choice."""
    entries = tree.get("defaults", []) if isinstance(tree, Mapping) else []
    found = []
    for entry in entries if isinstance(entries, list) else []:
        for key, value in entry.items() if isinstance(entry, Mapping) else [(group, entry)]:
            found.append((str(key).removeprefix("override ").lstrip("/").partition("@")[0], str(value)))
    return found


def _is_of_whole_run(path: Path) -> bool:
    return WHOLE_RUN in path.read_text(encoding="utf-8", errors="replace")


def _keys(group: str, path: Path) -> Iterator[tuple[str, Any]]:
    """What a file sets, by the whole key: ``env.timeout``."""
    tree = _tree(path)
    tree = {key: value for key, value in tree.items() if key != "defaults"} if isinstance(tree, Mapping) else {}
    if not _is_of_whole_run(path):
        yield from ((f"{group}.{key}", value) for key, value in tree.items())
        return
    for key, value in tree.items():
        if key in GROUPS and isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", each) for inner, each in value.items())
        else:
            yield str(key), value


def _in_file(group: str, path: Path, folders: Sequence[Path], known: Sequence[str]) -> str:
    tree = _tree(path)
    if not isinstance(tree, Mapping):
        return f"holds {'a list' if isinstance(tree, list) else 'one value'}; a config reads KEY: VALUE, a line each"
    listed = _defaults(group, tree)
    for other, choice in listed:
        if other in groups(tuple(folders)) and not choice.endswith("_schema") and choice != "_self_":
            offered = choices(other, tuple(folders))
            if choice not in offered:
                return f"defaults: {other}: {choice}: no such {other}; {closest(choice, offered)}"
    if group not in GROUPS and not _is_of_whole_run(path):
        return f"{group} is no group of a run's keys; begin the file with {WHOLE_RUN} to set any of them"
    for key, value in _keys(group, path):
        if found := _wrong(key, value, listed, known, whole=_is_of_whole_run(path)):
            return found
    needed, example = NEEDED.get(group, ("", ""))
    inherits = any(other == group for other, _ in listed)
    if needed and not inherits and needed not in tree and not _is_of_whole_run(path):
        return f"has no {needed}; write {needed}: ..., as {needed}: {example}"
    return ""


def _wrong(key: str, value: Any, listed: Sequence[tuple[str, str]], known: Sequence[str], *, whole: bool) -> str:
    group, _, name = key.rpartition(".")
    text = f"{key if whole else name}: {value}"
    if key in GROUPS:
        return f"{text}: a choice stands in the list of defaults; write 'defaults: [override /{key}: {value}]'"
    if key not in known:
        keys = ", ".join(typing.get_type_hints(_kind(group, listed))) if group in GROUPS else ""
        bare = name in ELSEWHERE or group not in GROUPS
        return f"{text}: unknown key; {unknown_key(name, known) if bare else f'{group} has {keys}'}"
    kind: type[Any] = _kind(group, listed) if group and not whole else Config if not group else BASES[group]
    if group in VARIANTS and not whole and name not in typing.get_type_hints(kind):
        having = [each().name for each in VARIANTS[group] if name in typing.get_type_hints(each)]
        return f"{text}: a key of {' and '.join(having)} alone; begin the file with 'defaults: [{having[0]}_schema]'"
    if name in typing.get_type_hints(kind):
        try:
            OmegaConf.merge(OmegaConf.structured(kind), {name: value})
        except OmegaConfBaseException:
            return wrong_value(key, value, text).replace(f"write {key}=", f"write {name}: ")
    return ""


def _kind(group: str, listed: Sequence[tuple[str, str]]) -> type[Any]:
    """The dataclass of a file's group: of the schema, or of the choice of ours, that its defaults begin with."""
    named = [choice.removesuffix("_schema") for other, choice in listed if other == group]
    return next((kind for kind in VARIANTS.get(group, ()) if kind().name in named), BASES[group])
