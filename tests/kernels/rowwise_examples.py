"""How the tests of kernels that work row by row compare numbers and gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.testing import assert_close


def close(here: Tensor, exact: Tensor, least: float = 0.0) -> None:
    """To rounding: of the largest number where many were summed up, or of `least` where those cancel."""
    assert here.shape == exact.shape
    exact = exact.to(here.dtype)
    tolerance = 2e-6 if here.dtype is torch.float32 else 1e-13
    assert_close(here, exact, rtol=tolerance, atol=tolerance * max([least, *exact.abs().flatten().tolist()]))


def gradients(function: Callable[..., Tensor], *inputs: Tensor, seed: int = 1) -> tuple[Tensor, ...]:
    """What comes out, and the gradients of a random sum of it."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    outputs = function(*inputs)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return outputs.detach(), *torch.autograd.grad((outputs * weights.to(outputs)).sum(), inputs)


def layouts(x: Tensor) -> list[Tensor]:
    """The same numbers, otherwise in memory."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    return [x, x.transpose(0, 1).contiguous().transpose(0, 1), wide[..., ::2]]
