"""The stages that halve and double images, and what wrong pixels cost, of plain operations."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_torchrl.modules.layers import Conv, HiddenLayer, Linear, NormSilu, convolve, rms_norm

KERNEL = 5


class ImageStage(nn.Module):
    """Convolution, maximum over 2 x 2 pixels, norm, silu: ``[N, h, w, c]`` to ``[N, h / 2, w / 2, C]``.

    The gradient of a maximum is shared among equal pixels, as in JAX; ``F.max_pool2d`` would give all of it to one.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv(in_channels, out_channels, KERNEL)
        self.norm = NormSilu(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = max_pool(y) if torch.is_grad_enabled() else halved(y)
        return F.silu(rms_norm(y, self.norm.norm.weight))


class UpsampleStage(nn.Module):
    """Each pixel repeated 2 x 2 times, convolution, norm, silu: ``[N, h, w, c]`` to ``[N, 2 h, 2 w, C]``."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv(in_channels, out_channels, KERNEL)
        self.norm = NormSilu(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(x, *parity_convolution(self.conv, x.dtype)).unflatten(-1, (2, 2, -1))
        return interleaved(F.silu(rms_norm(y, self.norm.norm.weight)))


class PixelStage(Conv):
    """The last stage: each pixel repeated 2 x 2 times, convolution, sigmoid."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, KERNEL)

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(x, *parity_convolution(self, x.dtype)).unflatten(-1, (2, 2, -1))
        return interleaved(torch.sigmoid(y))


def pixel_error(prediction: Tensor, observation: Tensor) -> Tensor:
    """Squared errors of pixels in [0, 1] against bytes, both ``[..., a, b, c]``, summed over the image: ``[...]``."""
    return (prediction - observation / 255).square().sum((-1, -2, -3))


class PatchStage(HiddenLayer):
    """A hidden layer on each patch of ``patch x patch`` pixels: ``[N, h, w, c]`` to ``[N, h / patch, w / patch, C]``.

    In place of the first stages, whose convolutions at full resolution are most of a small network's time.
    """

    def __init__(self, in_channels: int, out_channels: int, patch: int):
        super().__init__(in_channels * patch**2, out_channels)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unflatten(2, (-1, self.patch)).unflatten(1, (-1, self.patch)).transpose(2, 3)
        return super().forward(patches.flatten(3))


class PatchPixels(Linear):
    """The reverse of `PatchStage`: linear, sigmoid, ``[N, h, w, c]`` to ``[N, patch h, patch w, C]``."""

    def __init__(self, in_channels: int, out_channels: int, patch: int):
        super().__init__(in_channels, out_channels * patch**2)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        return interleaved(torch.sigmoid(super().forward(x)).unflatten(-1, (self.patch, self.patch, -1)))


class PixelError(nn.Module):
    forward = staticmethod(pixel_error)  # as a module, so that a backend can replace it


def max_pool(x: Tensor) -> Tensor:
    """Halve the sides of ``[N, height, width, channels]`` by maxima; equal pixels share the gradient."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).amax((2, 4))


def halved(x: Tensor) -> Tensor:
    """`max_pool` without a gradient, far faster where nothing fuses."""
    rows = torch.maximum(x[:, 0::2], x[:, 1::2])
    return torch.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


def parity_convolution(conv: Conv, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return parity_kernels(conv.weight).to(dtype), conv.bias.to(dtype).repeat(4)


def parity_kernels(weight: Tensor) -> Tensor:
    """Kernels ``[4 C, c, 3, 3]`` which do on the small image what ``[C, c, 5, 5]`` does where each pixel is repeated.

    Some of the five taps fall on the same small pixel and are summed. Which ones depends on whether the row (and the
    column) that comes out is even or odd, hence four kernels: even rows first, in each the even columns first.
    """
    for axis in (-2, -1):
        a, b, c, d, e = weight.unbind(axis)
        weight = torch.stack([torch.stack([a + b, c + d, e], axis), torch.stack([a, b + c, d + e], axis)])
    return weight.transpose(0, 1).flatten(0, 2)  # of [column, row, C, c, 3, 3], as the last axis was handled last


def by_parity(x: Tensor) -> Tensor:
    """See an image ``[N, 2 h, 2 w, C]`` as pixels of four parities ``[N, h, w, 2, 2, C]``: the same memory."""
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)


def interleaved(x: Tensor) -> Tensor:
    """Undo `by_parity`, into new memory."""
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
