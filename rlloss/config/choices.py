"""What stands in configs/: the groups, and the choices of each. Needs no Hydra."""

import functools
from pathlib import Path

from rlloss.version import PACKAGE


def data_dir(name: str) -> Path:
    """The folder ``configs`` or ``experiments``: inside the installed package, or at the top of the checkout."""
    return PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE.parent / name


@functools.cache
def choices(group: str, more: tuple[Path, ...] = ()) -> list[str]:
    """What a config group offers, by the names of its yaml files. ``more``: a user's folders of configs."""
    return sorted({path.stem for folder in (data_dir("configs"), *more) for path in (folder / group).glob("*.yaml")})


@functools.cache
def groups(more: tuple[Path, ...] = ()) -> list[str]:
    folders = {path.name for folder in (data_dir("configs"), *more) for path in folder.iterdir() if path.is_dir()}
    return sorted(name for name in folders if choices(name, more))
