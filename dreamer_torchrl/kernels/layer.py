"""Linear layers by the kernels: bias in the same pass, norm and silu while the numbers are still in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamer_torchrl.kernels.calls import call
from dreamer_torchrl.kernels.rowwise import norm_silu_backward
from dreamer_torchrl.kernels.structures import Layer, LayerArguments, PerceptronArguments, Source, fill


class Linear(torch.autograd.Function):
    """``x W' + b`` of ``[..., in]``, ``[out, in]`` and ``[out]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], len(weight))
        _call(x, Layer(Source.of(weight.t()), bias.data_ptr()), {"before": y})
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        return _linear_backward(ctx, d_y, *ctx.saved_tensors)


class HiddenLayer(torch.autograd.Function):
    """``silu(norm(x W' + b) * scale)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        x = x.contiguous()
        before = x.new_empty(*x.shape[:-1], len(weight))
        after = torch.empty_like(before)
        layer = Layer(Source.of(weight.t()), bias.data_ptr(), scale.data_ptr())
        _call(x, layer, {"before": before, "after": after})
        ctx.save_for_backward(x, weight, before, scale)
        return after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_after: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        x, weight, before, scale = ctx.saved_tensors
        d_before, d_scale = norm_silu_backward(d_after, before, scale)
        return *_linear_backward(ctx, d_before, x, weight), d_scale


class HiddenLayers:
    """`HiddenLayer` after `HiddenLayer` in one call, without gradients.

    The addresses of the weights are collected once, and again where weights were replaced by others.
    """

    def __init__(self) -> None:
        self._collected: tuple[list[int], PerceptronArguments] = [], PerceptronArguments()

    def __call__(self, x: Tensor, weights: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """``[..., in]`` and of each layer weight, bias and scale, to ``[..., out]``."""
        x = x.contiguous()
        addresses = [tensor.data_ptr() for layer in weights for tensor in layer]
        known, collected = self._collected
        if addresses != known:
            collected = PerceptronArguments(layers=len(weights))
            for index, (weight, bias, scale) in enumerate(weights):
                collected.layer[index] = Layer(Source.of(weight.t()), bias.data_ptr(), scale.data_ptr())
            self._collected = addresses, collected
        arguments = PerceptronArguments.from_buffer_copy(collected)  # another thread may be in a call of its own
        y = x.new_empty(*x.shape[:-1], len(weights[-1][1]))
        arguments.rows, arguments.threads = x.numel() // x.shape[-1], torch.get_num_threads()
        arguments.x, arguments.y = x.data_ptr(), y.data_ptr()
        call("perceptron_rows", x.dtype, arguments)
        return y

    def __reduce__(self) -> tuple[type[HiddenLayers], tuple[()]]:
        """A copy collects addresses of its own."""
        return HiddenLayers, ()


def _call(x: Tensor, layer: Layer, outputs: dict[str, Tensor]) -> None:
    rows = x.numel() // x.shape[-1]
    arguments = LayerArguments(rows=rows, threads=torch.get_num_threads(), layer=layer)
    fill(arguments, {"x": x, **outputs})
    call("layer_rows", x.dtype, arguments)


def _linear_backward(ctx: Any, d_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    flat, d_flat = x.reshape(-1, x.shape[-1]), d_y.reshape(-1, d_y.shape[-1])
    d_x = (d_flat @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
    return d_x, d_flat.t() @ flat, d_flat.sum(0)
