"""The exit codes of every command."""

from enum import IntEnum


class Exit(IntEnum):
    HOLDS = 0  # or finished
    FAILS = 1  # does not hold, or a run failed
    BAD_INPUT = 2  # wrong usage or bad input, said in one line
    CRASHED = 3  # a fault of this program, with its traceback
    INTERRUPTED = 130  # by Ctrl-C
