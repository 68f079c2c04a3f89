"""Returns and their scale."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def lambda_return(reward: Tensor, value: Tensor, discount: Tensor, lambda_: Tensor | float) -> Tensor:
    """The lambda-return ``[..., T]`` of the states before each action, backwards from the last value.

    Rewards, values and discounts (gamma times the probability of going on), ``[..., T]`` each, belong to the step
    *after* each action; ``lambda_`` may be ``[..., T]`` with 0 where the sequence breaks, to bootstrap there.
    """
    immediate = (reward + discount * (1 - lambda_) * value).unbind(-1)
    onward = (discount * lambda_).unbind(-1)
    returns = [value[..., -1]]
    for now, factor in zip(immediate[::-1], onward[::-1], strict=True):
        returns.append(torch.addcmul(now, factor, returns[-1]))
    return torch.stack(returns[:0:-1], -1)


def percentiles(values: Tensor, percents: Iterable[float]) -> list[Tensor]:
    """Percentiles over all values with linear interpolation, by sorting, which a GPU can capture."""
    ordered = values.flatten().sort().values
    positions = [percent / 100 * (ordered.numel() - 1) for percent in percents]
    return [torch.lerp(ordered[math.floor(p)], ordered[math.ceil(p)], p - math.floor(p)) for p in positions]


Gather = Callable[[Tensor], Tensor]
"""From this process's part of a batch to the whole of it, without gradient, where several processes have parts."""


def whole(values: Tensor) -> Tensor:
    """The `Gather` of a process that has the whole batch."""
    return values


class ReturnNormalizer(nn.Module):
    """Running percentiles of the returns; advantages are divided by their distance, but not by less than ``limit``."""

    gather: Gather = staticmethod(whole)

    def __init__(self, percentiles: tuple[float, float] = (5.0, 95.0), rate: float = 0.01, limit: float = 1.0):
        super().__init__()
        self.percentiles, self.rate, self.limit = percentiles, rate, limit
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        low, high = percentiles(self.gather(returns), self.percentiles)
        self.low.lerp_(low.to(self.low.dtype), self.rate)
        self.high.lerp_(high.to(self.high.dtype), self.rate)

    @property
    def scale(self) -> Tensor:
        return (self.high - self.low).clamp_min(self.limit)


class RewardNormalizer(nn.Module):
    """Divide imagined rewards by a running mean of their magnitude (V2, plan2explore), which each call updates first.

    A ``momentum`` of 1, the official default, leaves the magnitude at 1.
    """

    gather: Gather = staticmethod(whole)

    def __init__(self, momentum: float = 1.0, scale: float = 1.0, eps: float = 1e-8):
        super().__init__()
        self.momentum, self.scale, self.eps = momentum, scale, eps
        self.register_buffer("magnitude", torch.ones((), dtype=torch.float64))

    def forward(self, reward: Tensor) -> Tensor:
        now = self.gather(reward.detach().abs().mean(dtype=self.magnitude.dtype)[None]).mean()
        self.magnitude.lerp_(now, 1 - self.momentum)
        return reward / (self.magnitude.to(reward.dtype) + self.eps) * self.scale
