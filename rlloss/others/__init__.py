"""Other people's trainers, in which the line that computes the policy loss is exchanged, and their runs watched."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NEEDS = {"sb3": ("stable_baselines3",), "trl": ("trl", "transformers", "datasets")}
"""By module of this package: what it needs, all of which is in the extra ``trainers``."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Within: torch computes on one, as the bits of a sum hang on their number. Imports torch."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Training:
    """One training by somebody else's trainer. ``module`` of this package; its ``train``'s ``loss`` and settings."""

    name: str  # of its folder
    module: str
    loss: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def folder(self, run_root: Path) -> Path:
        return run_root / "others" / self.name
