"""Operators that train images on a CPU: a few images at a time, so that what is large never leaves the cache.

They keep little for the way back: of a stage that halves, a byte for each number that was compared.
``torch.compile`` calls them as they are. `modules/images.py` says what each computes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
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
    """An `ImageStage` by an operator."""

    def forward(self, x: Tensor) -> Tensor:
        if not trains_here(x):
            return super().forward(x)
        return pooled(x, self.conv.weight.to(x.dtype), self.conv.bias.to(x.dtype), self.norm.norm.weight)[0]


class FastUpsampleStage(UpsampleStage):
    """An `UpsampleStage` by an operator."""

    def forward(self, x: Tensor) -> Tensor:
        if not trains_here(x):
            return super().forward(x)
        return doubled(x, *parity_convolution(self.conv, x.dtype), self.norm.norm.weight)[0]


class FastPixelStage(PixelStage):
    """A `PixelStage` by an operator."""

    def forward(self, x: Tensor) -> Tensor:
        if not trains_here(x):
            return super().forward(x)
        return doubled(x, *parity_convolution(self, x.dtype), None)[0]


class FastPixelError(PixelError):
    """`PixelError` by an operator."""

    def forward(self, prediction: Tensor, observation: Tensor) -> Tensor:
        if not trains_here(prediction):
            return super().forward(prediction, observation)
        pairs = (image.reshape(-1, *image.shape[-3:]) for image in (prediction, observation))  # [N, a, b, c] each
        return error(*pairs).reshape(prediction.shape[:-3])


def trains_here(x: Tensor) -> bool:
    """Whether to call the operators, which are for training on a CPU; a file of a policy must not need them."""
    if not x.is_cpu or not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return False
    return not torch.is_autocast_enabled("cpu")


def widened(x: Tensor) -> Tensor:
    """Repeat each pixel of ``[N, height, width, channels]`` twice along the width."""
    return F.interpolate(x.permute(0, 3, 1, 2), scale_factor=(1, 2), mode="nearest").permute(0, 2, 3, 1)


def chunks(x: Tensor, channels: int) -> Iterator[slice]:
    """Slices of the first axis of ``[N, h, w, c]`` at which ``[n, h, w, channels]`` is no larger than a chunk."""
    per_image = x.shape[1] * x.shape[2] * channels * x.element_size()
    step = max(1, CHUNK_BYTES // per_image)
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


def convolve_backward(grad: Tensor, x: Tensor, weight: Tensor, input_too: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of `convolve` with respect to its input, if asked for, its kernel and its bias."""
    padding = [size // 2 for size in weight.shape[2:]]
    asked = [input_too, True, True]
    first, second = grad.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
    d_x, d_weight, d_bias = torch.ops.aten.convolution_backward(
        first, second, weight, [len(weight)], [1, 1], padding, [1, 1], False, [0, 0], 1, asked
    )
    return d_x.permute(0, 2, 3, 1) if input_too else None, d_weight, d_bias


class Sums:
    """Gradients of the parameters, added up over the chunks."""

    def __init__(self, *like: Tensor):
        self.totals = [torch.zeros_like(tensor) for tensor in like]

    def add(self, *parts: Tensor) -> None:
        for total, part in zip(self.totals, parts, strict=True):
            total.add_(part)


@torch.library.custom_op("dreamer_torchrl::pooled_stage", mutates_args=())
def pooled(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`ImageStage`; beside what comes out, the maxima and at which pixels ``[N, h, w, C]`` they are."""
    out, maxima, largest = _pooled_empty(x, weight, bias, scale)
    for part in chunks(x, len(weight)):
        y = convolve(x[part], weight, bias)  # [n, h, w, C]
        maxima[part] = halved(y)
        rows = widened(maxima[part]).unsqueeze(2)  # [n, h / 2, 1, w, C]
        torch.eq(y.unflatten(1, (-1, 2)), rows, out=largest[part].unflatten(1, (-1, 2)))
        out[part] = F.silu(rms_norm(maxima[part], scale))
    return out, maxima, largest


@pooled.register_fake
def _pooled_empty(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, height, width, _ = x.shape
    out = x.new_empty(n, height // 2, width // 2, len(weight))
    return out, torch.empty_like(out), x.new_empty(n, height, width, len(weight), dtype=torch.bool)


@torch.library.custom_op("dreamer_torchrl::pooled_stage_backward", mutates_args=())
def _pooled_backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, maxima: Tensor, largest: Tensor, input_too: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_x, *parameters = _pooled_backward_empty(grad, x, weight, scale, maxima, largest, input_too)
    sums = Sums(*parameters)
    for part in chunks(x, len(weight)):
        d_maxima, d_scale = norm_silu_backward(grad[part], maxima[part], scale)
        bits = largest[part].view(torch.uint8)
        rows = bits[:, 0::2] + bits[:, 1::2]
        shared = d_maxima.div_(rows[:, :, 0::2] + rows[:, :, 1::2])
        d_y = (widened(shared).unsqueeze(2) * largest[part].unflatten(1, (-1, 2))).flatten(1, 2)  # [n, h, w, C]
        d_input, d_weight, d_bias = convolve_backward(d_y, x[part], weight, input_too)
        if input_too:
            d_x[part] = d_input
        sums.add(d_weight, d_bias, d_scale)
    return d_x, *sums.totals


@_pooled_backward.register_fake
def _pooled_backward_empty(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, maxima: Tensor, largest: Tensor, input_too: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_x = torch.empty_like(x) if input_too else x.new_empty(0)
    return d_x, torch.empty_like(weight), weight.new_empty(len(weight)), torch.empty_like(scale)


def _keep_pooled(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, scale = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, scale, *output[1:])


def _pooled_gradients(ctx: FunctionCtx, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 4
    input_too = ctx.needs_input_grad[0]
    d_x, *parameters = _pooled_backward(grad, *ctx.saved_tensors, input_too)
    return d_x if input_too else None, *parameters


pooled.register_autograd(_pooled_gradients, setup_context=_keep_pooled)


@torch.library.custom_op("dreamer_torchrl::doubled_stage", mutates_args=())
def doubled(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """`UpsampleStage`, or without a scale `PixelStage`, given the four kernels.

    Beside what comes out, what the backward pass needs: of a norm what went in, ``[N, h, w, 4 C]``.
    """
    out, parities = _doubled_empty(x, weight, bias, scale)
    for part in chunks(x, len(weight)):
        y = convolve(x[part], weight, bias)
        if scale is not None:
            parities[part] = y
        y = y.unflatten(-1, (2, 2, -1))
        by_parity(out[part]).copy_(y.sigmoid_() if scale is None else F.silu(rms_norm(y, scale)))
    return out, parities


@doubled.register_fake
def _doubled_empty(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    n, height, width, _ = x.shape
    out = x.new_empty(n, 2 * height, 2 * width, len(weight) // 4)
    return out, x.new_empty(0) if scale is None else x.new_empty(n, height, width, len(weight))


@torch.library.custom_op("dreamer_torchrl::doubled_stage_backward", mutates_args=())
def _doubled_backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor | None, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_x, *parameters = _doubled_backward_empty(grad, x, weight, scale, kept)
    sums = Sums(*parameters)
    for part in chunks(x, len(weight)):
        if scale is None:
            d_y, d_scale = by_parity(torch.ops.aten.sigmoid_backward(grad[part], kept[part])), parameters[-1]
        else:
            d_out = by_parity(grad[part]).contiguous()
            d_y, d_scale = norm_silu_backward(d_out, kept[part].unflatten(-1, (2, 2, -1)), scale)
        d_x[part], d_weight, d_bias = convolve_backward(d_y.flatten(3), x[part], weight, True)
        sums.add(d_weight, d_bias, d_scale)
    return d_x, *sums.totals


@_doubled_backward.register_fake
def _doubled_backward_empty(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor | None, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_scale = weight.new_zeros(0) if scale is None else torch.empty_like(scale)
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(len(weight)), d_scale


def _keep_doubled(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, scale = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, scale, output[scale is not None])


def _doubled_gradients(ctx: FunctionCtx, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 4
    *gradients, d_scale = _doubled_backward(grad, *ctx.saved_tensors)
    return *gradients, d_scale if ctx.needs_input_grad[3] else None


doubled.register_autograd(_doubled_gradients, setup_context=_keep_doubled)


@torch.library.custom_op("dreamer_torchrl::pixel_error", mutates_args=())
def error(prediction: Tensor, observation: Tensor) -> Tensor:
    """`pixel_error` of ``[N, a, b, c]``."""
    out = _error_empty(prediction, observation)
    for part in chunks(prediction, prediction.shape[-1]):
        out[part] = (prediction[part] - observation[part] / 255).square_().sum((-1, -2, -3))
    return out


@error.register_fake
def _error_empty(prediction: Tensor, observation: Tensor) -> Tensor:
    return prediction.new_empty(prediction.shape[0])


@torch.library.custom_op("dreamer_torchrl::pixel_error_backward", mutates_args=())
def _error_backward(grad: Tensor, prediction: Tensor, observation: Tensor) -> Tensor:
    d_prediction = torch.empty_like(prediction)
    for part in chunks(prediction, prediction.shape[-1]):
        torch.sub(prediction[part], observation[part] / 255, out=d_prediction[part])
        d_prediction[part] *= 2 * grad[part, None, None, None]
    return d_prediction


@_error_backward.register_fake
def _error_backward_empty(grad: Tensor, prediction: Tensor, observation: Tensor) -> Tensor:
    return torch.empty_like(prediction)


def _keep_error(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _error_gradients(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
    return _error_backward(grad, *ctx.saved_tensors), None


error.register_autograd(_error_gradients, setup_context=_keep_error)
