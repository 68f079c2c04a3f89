"""Parameters, gradients and ways of computing for the tests of the optimizer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreamer_torchrl.learners.laprop import LaProp

MODES = {
    "foreach": {},
    "capturable": {"capturable": True},
    "native": {"native": True},  # plain where no kernels can be built
}
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())


def parameter(*values: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def random_parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    shapes = [(5, 3), (3,), (2, 3, 4), (1,), (), (0,), (4, 4)]
    return [nn.Parameter(torch.randn(shape, dtype=dtype) * scale) for scale, shape in enumerate(shapes)]


def random_gradients(seed: int, like: list[nn.Parameter]) -> list[Tensor | None]:
    """Large, small, zero and missing ones."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([0.0, 1e-12, 1e-3, 1.0, 1e6, math.nan])
    chosen = scales[torch.randint(len(scales), (len(like),), generator=generator)].tolist()
    return [
        None if math.isnan(s) else s * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for s, p in zip(chosen, like, strict=True)
    ]


def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": params[:3], "lr": 1e-2, "warmup": 5},
        {"params": params[3:], "lr": 3e-3, "warmup": 0, "betas": (0.0, 0.99), "clip": 0.1},
    ]


def train(optimizer: LaProp, seeds: range) -> None:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for seed in seeds:
        for param, grad in zip(params, random_gradients(seed, params), strict=True):
            param.grad = grad
        optimizer.step()
