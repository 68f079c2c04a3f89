"""The stages that halve and double images, and what wrong pixels cost.

Each is made of plain operations for GPUs, for acting and for exported policies. A CPU that trains calls the
operators of `image_operators.py` instead, which compute the same numbers and gradients in its cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamer_torchrl.kernels import image_operators as operators
from dreamer_torchrl.modules.layers import convolve, rms_norm


def pooled_stage(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """Convolution, maximum over 2 x 2 pixels, norm, silu: ``[N, h, w, c]`` to ``[N, h / 2, w / 2, C]``.

    The gradient of a maximum is shared among equal pixels, as in JAX; ``F.max_pool2d`` would give all of it to one.

    Example:
        >>> pooled_stage(torch.ones(2, 6, 4, 3), torch.ones(8, 3, 5, 5), torch.zeros(8), torch.ones(8)).shape
        torch.Size([2, 3, 2, 8])
    """
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if by_operators(x):
        return operators.pooled(x, weight, bias, scale)[0]
    y = convolve(x, weight, bias)
    return F.silu(rms_norm(max_pool(y) if torch.is_grad_enabled() else operators.halved(y), scale))


def doubled_stage(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """Each pixel repeated 2 x 2 times, convolution, norm, silu: ``[N, h, w, c]`` to ``[N, 2 h, 2 w, C]``.

    Example:
        >>> doubled_stage(torch.ones(2, 3, 4, 8), torch.ones(6, 8, 5, 5), torch.zeros(6), torch.ones(6)).shape
        torch.Size([2, 6, 8, 6])
    """
    weight, bias = parity_kernels(weight).to(x.dtype), bias.to(x.dtype).repeat(4)
    if by_operators(x):
        return operators.doubled(x, weight, bias, scale)[0]
    return interleaved(F.silu(rms_norm(convolve(x, weight, bias).unflatten(-1, (2, 2, -1)), scale)))


def doubled_pixels(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each pixel repeated 2 x 2 times, convolution, sigmoid: the last stage, ``[N, h, w, c]`` to ``[N, 2 h, 2 w, C]``.

    Example:
        >>> doubled_pixels(torch.ones(2, 3, 4, 8), torch.ones(3, 8, 5, 5), torch.zeros(3)).shape
        torch.Size([2, 6, 8, 3])
    """
    weight, bias = parity_kernels(weight).to(x.dtype), bias.to(x.dtype).repeat(4)
    if by_operators(x):
        return operators.pixels(x, weight, bias)
    return interleaved(torch.sigmoid(convolve(x, weight, bias).unflatten(-1, (2, 2, -1))))


def pixel_error(prediction: Tensor, observation: Tensor) -> Tensor:
    """Squared errors of pixels in [0, 1] against bytes, both ``[..., a, b, c]``, summed over the image: ``[...]``.

    Example:
        >>> pixel_error(torch.ones(2, 6, 4, 3), torch.zeros(2, 6, 4, 3, dtype=torch.uint8))
        tensor([72., 72.])
    """
    if by_operators(prediction):
        pairs = (image.reshape(-1, *image.shape[-3:]) for image in (prediction, observation))  # [N, a, b, c] each
        return operators.error(*pairs).reshape(prediction.shape[:-3])
    return (prediction - observation / 255).square().sum((-1, -2, -3))


def by_operators(x: Tensor) -> bool:
    """Whether to call the operators, which exist for training on the CPU; a file of a policy must not need them."""
    return x.is_cpu and torch.is_grad_enabled() and not torch.compiler.is_exporting()


def max_pool(x: Tensor) -> Tensor:
    """Halve the sides of ``[N, height, width, channels]`` by maxima; equal pixels share the gradient."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).amax((2, 4))


def parity_kernels(weight: Tensor) -> Tensor:
    """Kernels ``[4 C, c, 3, 3]`` which do on the small image what ``[C, c, 5, 5]`` does where each pixel is repeated.

    Some of the five taps fall on the same small pixel and are summed. Which ones depends on whether the row (and the
    column) that comes out is even or odd, hence four kernels: even rows first, in each the even columns first.
    """
    for axis in (-2, -1):
        a, b, c, d, e = weight.unbind(axis)
        weight = torch.stack([torch.stack([a + b, c + d, e], axis), torch.stack([a, b + c, d + e], axis)])
    columns_first = weight.transpose(0, 1)  # of [column, row, C, c, 3, 3], as the last axis was handled last
    return columns_first.flatten(0, 2)


def interleaved(x: Tensor) -> Tensor:
    """Undo `operators.by_parity`, into new memory."""
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
