"""What bisecting two runs found."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Cause:
    """In words; ``decided`` if the numbers leave no other. ``evidence``: the numbers themselves, a line each."""

    words: str
    evidence: list[str] = field(default_factory=list)
    decided: bool = True


@dataclass(frozen=True)
class Finding:
    """Where two runs part, and why.

    ``step``: the first optimiser step, from 1, after which they differ; None if they do not within the steps that both
    have. ``decided``: nothing else explains what is recorded; else ``remedy`` says what would decide.
    """

    run_a: str
    run_b: str
    steps: int  # optimiser steps compared
    step: int | None
    cause: str  # in words; empty if nothing differs
    decided: bool = True
    tensor: str = ""  # the first that differs, and how many do
    when: str = ""  # "before" the step, or "in" it
    operation: str = ""  # the one that parts them, with the author's line
    parts_a: list[str] = field(default_factory=list)  # what a computes there, each "operation, file:line"
    parts_b: list[str] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    remedy: str = ""

    @property
    def differs(self) -> bool:
        return bool(self.cause)

    def rows(self) -> dict[str, str]:
        """What is known, for people, by what it is."""
        rows = {
            "runs": f"a = {self.run_a}, b = {self.run_b}",
            "first difference": f"optimiser step {self.step:,} of {self.steps:,}" if self.step else "",
            "tensor": self.tensor,
            "operation": self.operation,
            "cause" if self.decided else "cause, undecided": self.cause,
            "what would decide": self.remedy,
        }
        return {name: value for name, value in rows.items() if value}

    def to_dict(self) -> dict[str, Any]:
        return {"differs": self.differs, **asdict(self)}
