"""What a comparison with a recording consists of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One compared quantity: its largest errors and whether they are small enough."""

    quantity: str
    absolute: float
    relative: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.relative <= self.tolerance  # not so if it is NaN

    def __str__(self) -> str:
        numbers = f"{self.absolute:10.2e} {self.relative:10.2e} {self.tolerance:10.0e}"
        return f"{self.quantity:44} {numbers}  {'ok' if self.ok else 'WRONG'}"


def compare(quantity: str, ours: Tensor, recorded: np.ndarray | Tensor, tolerance: float, least: float = 0.0) -> Row:
    """Compare two arrays; the relative error is the largest difference over the largest recorded number or `least`."""
    ours = ours.detach().double()
    recorded = torch.as_tensor(np.asarray(recorded)).double()
    if ours.numel() != recorded.numel():
        raise ValueError(f"{quantity}: {list(ours.shape)} against recorded {list(recorded.shape)}.")
    absolute = (ours.reshape(recorded.shape) - recorded).abs().max().item()
    scale = max(recorded.abs().max().item(), least)
    return Row(quantity, absolute, absolute / scale if scale else absolute, tolerance)
