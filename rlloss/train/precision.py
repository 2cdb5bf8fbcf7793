"""Precisions: the dtype of the parameters, what autocast computes in, and whether gradients are scaled.

The mechanisms are PyTorch's: tensors of a dtype, torch.autocast and torch.amp.GradScaler.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from rlloss.errors import lookup


@dataclass(frozen=True)
class Precision:
    """``dtype`` of parameters and batches; ``autocast`` dtype of the forward pass, if any; ``scaled``: GradScaler."""

    dtype: torch.dtype
    autocast: torch.dtype | None = None
    scaled: bool = False

    @contextmanager
    def context(self, device: str) -> Iterator[None]:
        """The context of every forward pass of the update, and of the log-probabilities that it is compared with."""
        kind = device.partition(":")[0]
        with torch.autocast(kind, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            yield

    def scaler(self, device: str) -> torch.amp.GradScaler:
        """torch's GradScaler; where gradients are not scaled, one that hands everything through."""
        return torch.amp.GradScaler(device.partition(":")[0], enabled=self.scaled)


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(torch.float32),
    "fp64": Precision(torch.float64),
    "bf16_autocast": Precision(torch.float32, torch.bfloat16),
    "fp16_autocast": Precision(torch.float32, torch.float16),
    "fp16_scaled": Precision(torch.float32, torch.float16, scaled=True),
    "bf16": Precision(torch.bfloat16),
    "fp16": Precision(torch.float16),
}


def make_precision(name: str) -> Precision:
    """Raises: ConfigError for an unknown name."""
    found: Precision = lookup(PRECISIONS, "precision", name)
    return found


def at_least_float32(x: Tensor) -> Tensor:
    """NumPy knows no bfloat16, and means of halves lose digits: 16-bit tensors become float32, others stay."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
