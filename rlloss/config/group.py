"""What every config group is: a dataclass that checks its own keys."""

from collections.abc import Collection
from typing import Any

from rlloss.errors import ConfigError

MISSING: Any = "???"  # as OmegaConf spells a value that has to be given


def one_of(key: str, value: object, choices: Collection[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{key}={value}: unknown; use one of {', '.join(choices)}")


class Group:
    """A config group. ``validate`` raises ConfigError for a value of this group that no run can have."""

    def validate(self) -> None:
        """Nothing to check, unless a group says otherwise."""
