"""Operators that train images on a CPU: a few images at a time, so that what is large never leaves the cache.

They keep little for the way back: of a stage that halves, a byte for each number that was compared.
``torch.compile`` calls them as they are. `images.py` says what each computes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from dreamer_torchrl.modules.layers import EPS, convolve, full_precision, rms_norm

CHUNK_BYTES = 8 * 2**20  # of the largest tensor computed at a time: small enough for caches, large enough for threads


def halved(x: Tensor) -> Tensor:
    """`max_pool` without a gradient, far faster where nothing fuses."""
    rows = torch.maximum(x[:, 0::2], x[:, 1::2])
    return torch.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


def widened(x: Tensor) -> Tensor:
    """Repeat each pixel of ``[N, height, width, channels]`` twice along the width."""
    return F.interpolate(x.permute(0, 3, 1, 2), scale_factor=(1, 2), mode="nearest").permute(0, 2, 3, 1)


def by_parity(x: Tensor) -> Tensor:
    """See an image ``[N, 2 h, 2 w, C]`` as pixels of four parities ``[N, h, w, 2, 2, C]``: the same memory."""
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)


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
    """`pooled_stage`; beside what comes out, the maxima and at which pixels ``[N, h, w, C]`` they are."""
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
def doubled(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """`doubled_stage`, given the four kernels; beside what comes out, what they give, ``[N, h, w, 4 C]``."""
    out, parities = _doubled_empty(x, weight, bias, scale)
    for part in chunks(x, len(weight)):
        parities[part] = convolve(x[part], weight, bias)
        by_parity(out[part]).copy_(F.silu(rms_norm(parities[part].unflatten(-1, (2, 2, -1)), scale)))
    return out, parities


@doubled.register_fake
def _doubled_empty(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    n, height, width, _ = x.shape
    out = x.new_empty(n, 2 * height, 2 * width, len(weight) // 4)
    return out, x.new_empty(n, height, width, len(weight))


@torch.library.custom_op("dreamer_torchrl::doubled_stage_backward", mutates_args=())
def _doubled_backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, parities: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_x, *parameters = _doubled_backward_empty(grad, x, weight, scale, parities)
    sums = Sums(*parameters)
    for part in chunks(x, len(weight)):
        d_y, d_scale = norm_silu_backward(
            by_parity(grad[part]).contiguous(), parities[part].unflatten(-1, (2, 2, -1)), scale
        )
        d_x[part], d_weight, d_bias = convolve_backward(d_y.flatten(3), x[part], weight, True)
        sums.add(d_weight, d_bias, d_scale)
    return d_x, *sums.totals


@_doubled_backward.register_fake
def _doubled_backward_empty(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, parities: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(len(weight)), torch.empty_like(scale)


def _keep_doubled(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, scale = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, scale, output[1])


def _doubled_gradients(ctx: FunctionCtx, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 4
    return _doubled_backward(grad, *ctx.saved_tensors)


doubled.register_autograd(_doubled_gradients, setup_context=_keep_doubled)


@torch.library.custom_op("dreamer_torchrl::doubled_pixels", mutates_args=())
def pixels(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`doubled_pixels`, given the four kernels."""
    out = _pixels_empty(x, weight, bias)
    for part in chunks(x, len(weight)):
        by_parity(out[part]).copy_(convolve(x[part], weight, bias).sigmoid_().unflatten(-1, (2, 2, -1)))
    return out


@pixels.register_fake
def _pixels_empty(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    n, height, width, _ = x.shape
    return x.new_empty(n, 2 * height, 2 * width, len(weight) // 4)


@torch.library.custom_op("dreamer_torchrl::doubled_pixels_backward", mutates_args=())
def _pixels_backward(grad: Tensor, x: Tensor, weight: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d_x, *parameters = _pixels_backward_empty(grad, x, weight, out)
    sums = Sums(*parameters)
    for part in chunks(x, len(weight)):
        d_y = by_parity(torch.ops.aten.sigmoid_backward(grad[part], out[part])).flatten(3)
        d_x[part], d_weight, d_bias = convolve_backward(d_y, x[part], weight, True)
        sums.add(d_weight, d_bias)
    return d_x, *sums.totals


@_pixels_backward.register_fake
def _pixels_backward_empty(grad: Tensor, x: Tensor, weight: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(len(weight))


def _keep_pixels(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output)


def _pixels_gradients(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:
    return _pixels_backward(grad, *ctx.saved_tensors)


pixels.register_autograd(_pixels_gradients, setup_context=_keep_pixels)


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
