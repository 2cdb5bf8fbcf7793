"""The words for what a comparison came to, of two losses and of two runs. Imports nothing of ours."""

from enum import StrEnum


class Verdict(StrEnum):
    """Of losses: IDENTICAL, EQUAL, DIFFERENT (rlloss.check). Of runs: all but EQUAL and DIFFERENT (rlloss.verify)."""

    IDENTICAL = "IDENTICAL"
    EQUAL = "EQUAL"
    DIFFERENT = "DIFFERENT"
    ROUNDING = "ROUNDING"
    DIVERGED = "DIVERGED"
    INCOMPARABLE = "INCOMPARABLE"
    INCOMPLETE = "INCOMPLETE"


JUDGED = (Verdict.IDENTICAL, Verdict.ROUNDING, Verdict.DIVERGED)
"""What can be said of two whole runs."""
