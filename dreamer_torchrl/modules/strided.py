"""Images of 64 x 64 by strided convolutions without padding, as in DreamerV1 and V2."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = (1, 2, 4, 8)  # of the convolutions, in multiples of `depth`
KERNELS = (5, 5, 6, 6)  # of the transposed convolutions
SIDE = 64


class StridedEncoder(nn.Module):
    """Pixels less 0.5, ``[N, 64, 64, channels]``, through four convolutions to ``[N, 32 * depth]``.

    Example:
        >>> import torch
        >>> StridedEncoder((64, 64, 3), depth=4)(torch.zeros(5, 64, 64, 3)).shape
        torch.Size([5, 128])
    """

    def __init__(self, sides: tuple[int, int, int], depth: int = 32, activation: str = "relu"):
        super().__init__()
        check_sides(sides)
        self.activation, self.out_features = getattr(F, activation), 32 * depth
        sizes = [sides[-1], *(depth * factor for factor in CHANNELS)]
        self.convolutions = nn.ModuleList(started(nn.Conv2d(a, b, 4, stride=2)) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        for convolution in self.convolutions:
            x = self.activation(convolution(x))
        return x.permute(0, 2, 3, 1).flatten(1)  # as the official codes lay it out


class TransposedDecoder(nn.Module):
    """Features ``[N, F]`` through a linear layer and four transposed convolutions to pixels ``[N, 64, 64, channels]``.

    Example:
        >>> import torch
        >>> TransposedDecoder(16, 4, (64, 64, 3), depth=4)(torch.zeros(5, 20)).shape
        torch.Size([5, 64, 64, 3])
    """

    def __init__(
        self, belief_size: int, state_size: int, sides: tuple[int, int, int], depth: int = 32, activation: str = "relu"
    ):
        super().__init__()
        check_sides(sides)
        self.activation = getattr(F, activation)
        self.linear = started(nn.Linear(belief_size + state_size, 32 * depth))
        sizes = [32 * depth, *(depth * factor for factor in CHANNELS[-2::-1]), sides[-1]]
        layers = zip(pairwise(sizes), KERNELS, strict=True)
        self.convolutions = nn.ModuleList(
            started(nn.ConvTranspose2d(a, b, kernel, stride=2)) for (a, b), kernel in layers
        )

    def forward(self, features: Tensor) -> Tensor:
        x = self.linear(features)[..., None, None]  # [N, 32 depth, 1, 1]
        for convolution in self.convolutions[:-1]:
            x = self.activation(convolution(x))
        return self.convolutions[-1](x).permute(0, 2, 3, 1) + 0.5  # predictions of pixels less 0.5


def started(layer: nn.Module) -> nn.Module:
    """The layer with the Glorot start of the official codes."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def check_sides(sides: tuple[int, int, int]) -> None:
    if sides[:2] != (SIDE, SIDE):
        found = f"images of 64 x 64 pixels, these have {sides[0]} x {sides[1]}"
        raise ValueError(f"Strided convolutions take {found}: resize them (env.size=64).")
