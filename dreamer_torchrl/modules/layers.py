"""Layers as the official code defines them. Each casts its weights, which stay float32, to its input's precision."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-4  # what norms add to the mean square
KERAS_EPS = 1e-3  # what the layer norms of DreamerV2 add to the variance


def init_truncated_normal_(weight: Tensor, fan_in: int, scale: float = 1.0) -> Tensor:
    """Fill with a normal that is cut at two sigma and has deviation ``scale / sqrt(fan_in)`` after the cut."""
    if scale == 0:
        return nn.init.zeros_(weight)
    sigma = 1.1368 * scale / sqrt(fan_in)
    return nn.init.trunc_normal_(weight, std=sigma, a=-2 * sigma, b=2 * sigma)


def full_precision(x: Tensor) -> Tensor:
    """Cast to float32 unless it has that precision or more: statistics and losses are computed in this."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Linear(nn.Linear):
    """Linear layer with the official start; ``scale`` 0 for the heads of reward and value, 0.01 for the actor's.

    Example:
        >>> Linear(3, 5)(torch.ones(2, 3, dtype=torch.bfloat16)).dtype
        torch.bfloat16
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 1.0):
        self.scale = scale
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        init_truncated_normal_(self.weight, self.in_features, self.scale)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class BlockLinear(nn.Module):
    """Linear layer whose matrix is block diagonal: chunk k of the input feeds chunk k of the output alone.

    Example:
        >>> BlockLinear(8, 12, blocks=4)(torch.ones(2, 8)).shape
        torch.Size([2, 12])
    """

    def __init__(self, in_features: int, out_features: int, blocks: int):
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size % blocks:
                raise ValueError(f"{name}={size} does not split into {blocks} blocks: choose a multiple of {blocks}.")
        self.in_features, self.out_features, self.blocks = in_features, out_features, blocks
        self.weight = nn.Parameter(torch.empty(blocks, in_features // blocks, out_features // blocks))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_truncated_normal_(self.weight, self.in_features)  # the official fan counts the whole input
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.reshape(-1, self.blocks, self.in_features // self.blocks).transpose(0, 1)  # [g, N, in/g]
        out = torch.bmm(blocks, self.weight.to(x.dtype)).transpose(0, 1)  # [N, g, out/g]
        return out.reshape(*x.shape[:-1], self.out_features) + self.bias.to(x.dtype)


class RMSNorm(nn.Module):
    """Divide by the root mean square of the last axis, computed in float32, and scale.

    Example:
        >>> RMSNorm(4)(torch.full((1, 4), 3.0)).round(decimals=3)
        tensor([[1., 1., 1., 1.]], grad_fn=...)
    """

    def __init__(self, size: int, eps: float = EPS):
        super().__init__()
        self.size, self.eps = size, eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float = EPS) -> Tensor:
    y = full_precision(x)
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


class NormSilu(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.size, self.norm = size, RMSNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(x))


class HiddenLayer(nn.Module):
    def __init__(self, in_features: int, units: int):
        super().__init__()
        self.linear = Linear(in_features, units)
        self.after = NormSilu(units)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.linear(x))


class DenseLinear(nn.Linear):
    """Linear layer with the Glorot start of DreamerV1 and V2; ``scale`` is that of other kinds and has no effect."""

    def __init__(self, in_features: int, out_features: int, scale: float = 1.0):
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


class DenseLayer(nn.Module):
    """Linear, layer norm if asked for, activation: the hidden layer of DreamerV1 and V2.

    Example:
        >>> DenseLayer(3, 16, norm=True)(torch.ones(5, 3)).shape
        torch.Size([5, 16])
    """

    def __init__(self, in_features: int, units: int, norm: bool = False, activation: str = "elu"):
        super().__init__()
        self.linear = DenseLinear(in_features, units)
        self.norm = nn.LayerNorm(units, eps=KERAS_EPS) if norm else nn.Identity()
        self.activation = getattr(F, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.linear(x)))


class Layers(NamedTuple):
    """What networks are made of: hidden layers of (inputs, units), and last ones of (inputs, outputs, scale)."""

    hidden: Callable[[int, int], nn.Module] = HiddenLayer
    linear: Callable[[int, int, float], nn.Linear] = Linear


def dense_layers(norm: bool = False, activation: str = "elu") -> Layers:
    """The layers of DreamerV1 and V2, of which ``activation`` is a function in `torch.nn.functional`."""
    return Layers(partial(DenseLayer, norm=norm, activation=activation), DenseLinear)


class MLP(nn.Sequential):
    """Hidden layers, one after the other.

    Example:
        >>> MLP(3, 16, layers=2)(torch.ones(5, 3)).shape
        torch.Size([5, 16])
    """

    def __init__(
        self, in_features: int, units: int, layers: int, hidden: Callable[[int, int], nn.Module] = HiddenLayer
    ):
        super().__init__(*[hidden(a, b) for a, b in pairwise([in_features] + [units] * layers)])


class Conv(nn.Conv2d):
    """Convolution of ``[N, height, width, channels]`` with zero padding that keeps the sides.

    Example:
        >>> Conv(3, 8, 5)(torch.ones(2, 6, 4, 3)).shape
        torch.Size([2, 6, 4, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)

    def reset_parameters(self) -> None:
        init_truncated_normal_(self.weight, self.weight[0].numel())
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution of ``[N, height, width, c]`` with a kernel ``[C, c, k, k]``, padded with zeros to keep the sides."""
    padding = [size // 2 for size in weight.shape[2:]]  # channels-last memory is what the fast convolutions want
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=padding).permute(0, 2, 3, 1)
