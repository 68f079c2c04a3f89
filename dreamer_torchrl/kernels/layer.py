"""Linear layers by the kernels: bias in the same pass, norm and silu while the numbers are still in the cache."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamer_torchrl.kernels.calls import Collected, call, fits
from dreamer_torchrl.kernels.rowwise import norm_silu_backward
from dreamer_torchrl.kernels.structures import LIMITS, made
from dreamer_torchrl.kernels.weights import network_of
from dreamer_torchrl.modules.layers import MLP, HiddenLayer, Linear


class NativeLinear(Linear):
    def forward(self, x: Tensor) -> Tensor:
        weights = self.weight, self.bias
        return LayerFunction.apply(x, *weights) if fits(x, *weights, width=self.in_features) else super().forward(x)


class NativeHiddenLayer(HiddenLayer):
    def forward(self, x: Tensor) -> Tensor:
        weights, width = weights_of(self), self.linear.in_features
        return LayerFunction.apply(x, *weights) if fits(x, *weights, width=width) else super().forward(x)


class NativeMLP(MLP):
    """`MLP`, which a kernel runs in one call where there are no gradients."""

    def forward(self, x: Tensor) -> Tensor:
        known = all(isinstance(layer, HiddenLayer) for layer in self)
        if known and not torch.is_grad_enabled() and 0 < len(self) <= LIMITS["MOST_LAYERS"]:
            weights = [weights_of(layer) for layer in self]
            if fits(x, *(tensor for layer in weights for tensor in layer), width=self[0].linear.in_features):
                return vars(self).setdefault("_at_once", HiddenLayers())(x, weights)
        return super().forward(x)


def weights_of(layer: HiddenLayer) -> tuple[Tensor, Tensor, Tensor]:
    return layer.linear.weight, layer.linear.bias, layer.after.norm.weight


class LayerFunction(torch.autograd.Function):
    """``silu(norm(x W' + b) * scale)`` of ``[..., in]``, ``[out, in]`` and ``[out]``; ``x W' + b`` without scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None = None) -> Tensor:
        x = x.contiguous()
        before = x.new_empty(*x.shape[:-1], len(weight))
        y = before if scale is None else torch.empty_like(before)
        _call(x, before=before, y=y, network=network_of((weight, bias, scale)))
        ctx.save_for_backward(x, weight, *(() if scale is None else (before, scale)))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *norm = ctx.saved_tensors
        d_y, *d_scale = norm_silu_backward(d_y, *norm) if norm else (d_y,)
        flat, d_flat = x.reshape(-1, x.shape[-1]), d_y.reshape(-1, d_y.shape[-1])
        d_x = (d_flat @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        return d_x, d_flat.t() @ flat, d_flat.sum(0), *d_scale


class HiddenLayers(Collected):
    """`HiddenLayer` after `HiddenLayer` in one call, without gradients."""

    def __call__(self, x: Tensor, weights: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], len(weights[-1][1]))
        addresses = [tensor.data_ptr() for layer in weights for tensor in layer]
        known, collected = self._known
        if addresses != known:
            collected = made("LayersArguments", x.dtype, network=network_of(*weights))
            self._known = addresses, collected
        _call(x, collected, y=y)
        return y


def _call(x: Tensor, *collected: Any, **values: Any) -> None:
    call("layers_rows", x.dtype, *collected, rows=x.numel() // x.shape[-1], x=x, **values)
