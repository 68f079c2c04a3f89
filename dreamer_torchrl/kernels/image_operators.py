"""Operators that train images on a CPU: a few images at a time, so that what is large never leaves the cache.

They keep little for the way back: of a stage that halves, a byte for each number that was compared.
`modules/images.py` says what each computes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dreamer_torchrl.modules.images import (
    ImageStage,
    PixelError,
    PixelStage,
    UpsampleStage,
    by_parity,
    halved,
    parity_convolution,
)
from dreamer_torchrl.modules.layers import EPS, convolve, full_precision, rms_norm

CHUNK_BYTES = 8 * 2**20  # of the largest tensor computed at a time: small enough for caches, large enough for threads


class FastImageStage(ImageStage):
    def forward(self, x: Tensor) -> Tensor:
        if not trains_here(x):
            return super().forward(x)
        weight, bias = self.conv.weight.to(x.dtype), self.conv.bias.to(x.dtype)
        return HalvingFunction.apply(x, weight, bias, self.norm.norm.weight)


class FastUpsampleStage(UpsampleStage):
    def forward(self, x: Tensor) -> Tensor:
        if not trains_here(x):
            return super().forward(x)
        return DoublingFunction.apply(x, *parity_convolution(self.conv, x.dtype), self.norm.norm.weight)


class FastPixelStage(PixelStage):
    def forward(self, x: Tensor) -> Tensor:
        if not trains_here(x):
            return super().forward(x)
        return DoublingFunction.apply(x, *parity_convolution(self, x.dtype), None)


class FastPixelError(PixelError):
    def forward(self, prediction: Tensor, observation: Tensor) -> Tensor:
        if not trains_here(prediction):
            return super().forward(prediction, observation)
        pairs = (image.reshape(-1, *image.shape[-3:]) for image in (prediction, observation))  # [N, a, b, c] each
        return PixelErrorFunction.apply(*pairs).reshape(prediction.shape[:-3])


def trains_here(x: Tensor) -> bool:
    """Whether to call the operators, which are for training on a CPU; a file of a policy must not need them."""
    if not x.is_cpu or not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return False
    return not torch.is_autocast_enabled("cpu") and not torch._C._are_functorch_transforms_active()


def widened(x: Tensor) -> Tensor:
    """Repeat each pixel of ``[N, height, width, channels]`` twice along the width."""
    return F.interpolate(x.permute(0, 3, 1, 2), scale_factor=(1, 2), mode="nearest").permute(0, 2, 3, 1)


def chunks(x: Tensor, channels: int) -> Iterator[slice]:
    """Slices of the first axis of ``[N, h, w, c]`` at which ``[n, h, w, channels]`` is no larger than a chunk."""
    step = max(1, CHUNK_BYTES // (x.shape[1] * x.shape[2] * channels * x.element_size()))
    for start in range(0, x.shape[0], step):
        yield slice(start, start + step)


def norm_silu_backward(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``silu(rms_norm(x, scale))`` with respect to both."""
    y = full_precision(x)
    inverse = torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS)
    unit = y * inverse
    d_scaled = torch.ops.aten.silu_backward(full_precision(grad), unit * scale)
    d_scale = (d_scaled * unit).flatten(0, -2).sum(0)
    d_unit = d_scaled.mul_(scale)
    along = (d_unit * unit).mean(-1, keepdim=True)
    return d_unit.addcmul_(unit, along, value=-1).mul_(inverse).to(x.dtype), d_scale


def convolve_backward(grad: Tensor, x: Tensor, weight: Tensor, d_x: Tensor | None, totals: tuple[Tensor, ...]) -> None:
    """Write the gradient of `convolve` with respect to its input, if that has a place; add those of kernel and bias."""
    padding = [size // 2 for size in weight.shape[2:]]
    first, second = grad.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
    d_input, *parameters = torch.ops.aten.convolution_backward(
        first, second, weight, [len(weight)], [1, 1], padding, [1, 1], False, [0, 0], 1, [d_x is not None, True, True]
    )
    if d_x is not None:
        d_x.copy_(d_input.permute(0, 2, 3, 1))
    for total, part in zip(totals, parameters, strict=False):
        total.add_(part)


class HalvingFunction(torch.autograd.Function):
    """`ImageStage`; for the way back it keeps the maxima and at which pixels ``[N, h, w, C]`` they are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        n, height, width, _ = x.shape
        out = x.new_empty(n, height // 2, width // 2, len(weight))
        maxima, largest = torch.empty_like(out), x.new_empty(n, height, width, len(weight), dtype=torch.bool)
        for part in chunks(x, len(weight)):
            y = convolve(x[part], weight, bias)  # [n, h, w, C]
            maxima[part] = halved(y)
            rows = widened(maxima[part]).unsqueeze(2)  # [n, h / 2, 1, w, C]
            torch.eq(y.unflatten(1, (-1, 2)), rows, out=largest[part].unflatten(1, (-1, 2)))
            out[part] = F.silu(rms_norm(maxima[part], scale))
        ctx.save_for_backward(x, weight, scale, maxima, largest)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, maxima, largest = ctx.saved_tensors
        d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        totals = torch.zeros_like(weight), weight.new_zeros(len(weight)), torch.zeros_like(scale)
        for part in chunks(x, len(weight)):
            d_maxima, d_scale = norm_silu_backward(grad[part], maxima[part], scale)
            bits = largest[part].view(torch.uint8)
            rows = bits[:, 0::2] + bits[:, 1::2]
            shared = d_maxima.div_(rows[:, :, 0::2] + rows[:, :, 1::2])
            d_y = (widened(shared).unsqueeze(2) * largest[part].unflatten(1, (-1, 2))).flatten(1, 2)  # [n, h, w, C]
            convolve_backward(d_y, x[part], weight, None if d_x is None else d_x[part], totals)
            totals[2].add_(d_scale)
        return d_x, *totals


class DoublingFunction(torch.autograd.Function):
    """`UpsampleStage`, or without a scale `PixelStage`, given the four kernels.

    For the way back it keeps what went into a norm, ``[N, h, w, 4 C]``, or what came out of the sigmoid.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None) -> Tensor:
        n, height, width, _ = x.shape
        out = x.new_empty(n, 2 * height, 2 * width, len(weight) // 4)
        kept = out if scale is None else x.new_empty(n, height, width, len(weight))
        for part in chunks(x, len(weight)):
            y = convolve(x[part], weight, bias)
            if scale is not None:
                kept[part] = y
            y = y.unflatten(-1, (2, 2, -1))
            by_parity(out[part]).copy_(y.sigmoid_() if scale is None else F.silu(rms_norm(y, scale)))
        ctx.save_for_backward(x, weight, scale, kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, kept = ctx.saved_tensors
        d_x = torch.empty_like(x)
        totals = torch.zeros_like(weight), weight.new_zeros(len(weight))
        total_scale = None if scale is None else torch.zeros_like(scale)
        for part in chunks(x, len(weight)):
            if scale is None:
                d_y = by_parity(torch.ops.aten.sigmoid_backward(grad[part], kept[part]))
            else:
                d_out = by_parity(grad[part]).contiguous()
                d_y, d_scale = norm_silu_backward(d_out, kept[part].unflatten(-1, (2, 2, -1)), scale)
                total_scale.add_(d_scale)
            convolve_backward(d_y.flatten(3), x[part], weight, d_x[part], totals)
        return d_x, *totals, total_scale


class PixelErrorFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prediction: Tensor, observation: Tensor) -> Tensor:
        ctx.save_for_backward(prediction, observation)
        out = prediction.new_empty(len(prediction))
        for part in chunks(prediction, prediction.shape[-1]):
            out[part] = (prediction[part] - observation[part] / 255).square_().sum((-1, -2, -3))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        prediction, observation = ctx.saved_tensors
        d_prediction = torch.empty_like(prediction)
        for part in chunks(prediction, prediction.shape[-1]):
            torch.sub(prediction[part], observation[part] / 255, out=d_prediction[part])
            d_prediction[part] *= 2 * grad[part, None, None, None]
        return d_prediction, None
