"""What can be wrong with what a user hands in. Imports nothing, so that every other module may import it."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """Bad input: one line that names the key, the value and the remedy. The command line exits with 2."""


class NotInstalled(ConfigError):
    """A choice whose packages are missing here. The message names the extra that brings them."""


class LossError(ConfigError):
    """A loss that cannot be compared: not found, not callable as the contract says, or without a usable result."""


class GraphError(ConfigError):
    """An expression that cannot become a graph: an unknown operation, or a trace that does not tell the whole story."""


class RunFailed(Exception):
    """A run that cannot go on, and not for a fault of this program: one line that says what, where and when.

    Its folder says ``failed`` with that line. The command line exits with 1.
    """


class EnvironmentFailed(RunFailed):
    """An environment that raised, or that did not return in time: which, at which step, and where in its source."""


class Interrupted(Exception):
    """A run that was asked to stop and has: its checkpoint is written, and the same command goes on from there.

    The command line exits with 128 + ``signum``.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class Unportable(BaseException):
    """An operation of torch that is not known to be the same on every machine: its name. No Exception, which a loss may
    catch.
    """


PASSED_ON = (KeyboardInterrupt, Interrupted, Unportable)
"""What somebody's code lets through, and is no fault of that code."""


class NonFinite(RunFailed):
    """The first number of a run that is not finite: which, of what, and when."""


def lookup(table: Mapping[str, T], key: str, name: str) -> T:
    """``table[name]``. Raises: ConfigError naming the choices."""
    if name not in table:
        raise ConfigError(f"{key}={name}: unknown; use one of {', '.join(table)}")
    return table[name]
