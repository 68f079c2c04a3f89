"""Linear layers by the kernels: bias in the same pass, norm and silu while the numbers are still in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamer_torchrl.kernels.calls import call, fits
from dreamer_torchrl.kernels.rowwise import norm_silu_backward
from dreamer_torchrl.kernels.structures import MOST_LAYERS, LayerArguments, LayerWeights, PerceptronArguments, fill
from dreamer_torchrl.modules.layers import MLP, HiddenLayer, Linear


class NativeLinear(Linear):
    """`Linear` by a kernel."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weight, self.bias
        return LinearFunction.apply(x, *weights) if fits(x, *weights, width=self.in_features) else super().forward(x)


class NativeHiddenLayer(HiddenLayer):
    """`HiddenLayer` by a kernel."""

    def forward(self, x: Tensor) -> Tensor:
        weights = weights_of(self)
        if fits(x, *weights, width=self.linear.in_features):
            return HiddenLayerFunction.apply(x, *weights)
        return super().forward(x)


class NativeMLP(MLP):
    """`MLP`, which a kernel runs in one call where there are no gradients."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and 0 < len(self) <= MOST_LAYERS:
            weights = [weights_of(layer) for layer in self]
            if fits(x, *(tensor for layer in weights for tensor in layer), width=self[0].linear.in_features):
                return vars(self).setdefault("_at_once", HiddenLayers())(x, weights)
        return super().forward(x)


def weights_of(layer: HiddenLayer) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and scale."""
    return layer.linear.weight, layer.linear.bias, layer.after.norm.weight


class LinearFunction(torch.autograd.Function):
    """``x W' + b`` of ``[..., in]``, ``[out, in]`` and ``[out]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], len(weight))
        _call(x, LayerWeights.of(weight, bias, None, x.dtype), {"before": y})
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        return _linear_backward(ctx, d_y, *ctx.saved_tensors)


class HiddenLayerFunction(torch.autograd.Function):
    """``silu(norm(x W' + b) * scale)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        x = x.contiguous()
        before = x.new_empty(*x.shape[:-1], len(weight))
        after = torch.empty_like(before)
        _call(x, LayerWeights.of(weight, bias, scale, x.dtype), {"before": before, "after": after})
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
            for index, layer in enumerate(weights):
                collected.layer[index] = LayerWeights.of(*layer, x.dtype)
            self._collected = addresses, collected
        arguments = PerceptronArguments.from_buffer_copy(collected)  # another thread may be in a call of its own
        y = x.new_empty(*x.shape[:-1], len(weights[-1][1]))
        arguments.rows, arguments.threads = x.numel() // x.shape[-1], torch.get_num_threads()
        fill(arguments, x.dtype, {"x": x, "y": y})
        call("perceptron_rows", x.dtype, arguments)
        return y

    def __reduce__(self) -> tuple[type[HiddenLayers], tuple[()]]:
        """A copy collects addresses of its own."""
        return HiddenLayers, ()


def _call(x: Tensor, layer: LayerWeights, outputs: dict[str, Tensor]) -> None:
    rows = x.numel() // x.shape[-1]
    arguments = LayerArguments(rows=rows, threads=torch.get_num_threads(), layer=layer)
    fill(arguments, x.dtype, {"x": x, **outputs})
    call("layer_rows", x.dtype, arguments)


def _linear_backward(ctx: Any, d_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    flat, d_flat = x.reshape(-1, x.shape[-1]), d_y.reshape(-1, d_y.shape[-1])
    d_x = (d_flat @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
    return d_x, d_flat.t() @ flat, d_flat.sum(0)
