"""Norm and silu, and two-hot predictions, by the kernels: one pass where plain operations take ten."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamer_torchrl.kernels.calls import call, fits
from dreamer_torchrl.modules.heads import TwoHotCrossEntropy, TwoHotHead
from dreamer_torchrl.modules.layers import NormSilu, full_precision

TILE = 256  # rows whose gradient of the scale is summed up in one place


class NativeNormSilu(NormSilu):
    def forward(self, x: Tensor) -> Tensor:
        scale = self.norm.weight
        return NormSiluFunction.apply(x, scale) if fits(x, scale, width=self.size) else super().forward(x)


class NativeTwoHotHead(TwoHotHead):
    def mean(self, logits: Tensor) -> Tensor:
        return TwoHotMean.apply(logits, self.bins) if fits(logits) else super().mean(logits)


class NativeTwoHotCrossEntropy(TwoHotCrossEntropy):
    def forward(self, logits: Tensor, bins: Tensor, targets: Tensor, weights: tuple[float, ...] = (1.0,)) -> Tensor:
        logits, batch = full_precision(logits), logits.shape[:-1]
        if not fits(logits) or not batch or targets.shape[:-1] != batch:
            return super().forward(logits, bins, targets, weights)
        flat = logits.flatten(0, -2), bins, targets.detach().flatten(0, -2)
        return TwoHotLoss.apply(*flat, weights).unflatten(0, batch)


class NormSiluFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        x, scale = x.contiguous(), scale.contiguous()
        y = torch.empty_like(x)
        _call_norm("norm_silu_rows", x, scale, y=y)
        ctx.save_for_backward(x, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor]:
        return norm_silu_backward(d_y, *ctx.saved_tensors)


def norm_silu_backward(d_y: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    d_x, rows = torch.empty_like(x), x.numel() // x.shape[-1]
    d_scales = x.new_zeros(-(-rows // TILE), x.shape[-1])
    _call_norm("norm_silu_backward_rows", x, scale, d_y=d_y.contiguous(), d_x=d_x, d_scales=d_scales)
    return d_x, d_scales.sum(0)


class TwoHotLoss(torch.autograd.Function):
    """`two_hot_cross_entropy` of logits ``[N, bins]``, bins ``[bins]``, targets ``[N, M]`` and M weights: ``[N]``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, bins: Tensor, targets: Tensor, weights: tuple[float, ...]) -> Tensor:
        if targets.shape != (len(logits), len(weights)):
            found = f"{list(targets.shape)} for {len(logits)} rows of logits and {len(weights)} weights"
            raise ValueError(f"Targets have shape {found}: give each row as many targets as there are weights.")
        logits, loss = logits.contiguous(), logits.new_empty(len(logits))
        bins, targets = (x.to(logits.dtype).contiguous() for x in (bins, targets))
        _call_two_hot("two_hot_loss", logits, bins, target=targets, weights=weights, loss=loss)
        ctx.save_for_backward(logits, bins, targets)
        ctx.weights = weights
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, None, None, None]:
        logits, bins, targets = ctx.saved_tensors
        d_logits, d_loss = torch.empty_like(logits), d_loss.contiguous()
        given = {"target": targets, "weights": ctx.weights, "d_loss": d_loss, "d_logits": d_logits}
        _call_two_hot("two_hot_backward", logits, bins, **given)
        return d_logits, None, None, None


class TwoHotMean(torch.autograd.Function):
    """Mean of a two-hot distribution: logits ``[..., bins]`` and bins ``[bins]`` to ``[..., 1]``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, bins: Tensor) -> Tensor:
        logits, bins = logits.contiguous(), bins.to(logits.dtype).contiguous()
        mean = logits.new_empty(*logits.shape[:-1], 1)
        _call_two_hot("two_hot_mean", logits, bins, mean=mean)
        ctx.save_for_backward(logits, bins, mean)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mean: Tensor) -> tuple[Tensor, None]:
        logits, bins, mean = ctx.saved_tensors
        return d_mean * logits.softmax(-1) * (bins - mean), None  # no loss of ours asks for it


def _call_norm(name: str, x: Tensor, scale: Tensor, **tensors: Tensor) -> None:
    width = x.shape[-1]
    call(name, x.dtype, rows=x.numel() // width, width=width, tile=TILE, x=x, scale=scale, **tensors)


def _call_two_hot(name: str, logits: Tensor, bins: Tensor, weights: tuple[float, ...] = (), **tensors: Tensor) -> None:
    count = logits.shape[-1]
    if bins.shape != (count,):
        raise ValueError(f"Logits of {count} bins got bins of shape {list(bins.shape)}: they must fit.")
    array = (ctypes.c_double * len(weights))(*weights)
    sizes = {"rows": logits.numel() // count, "count": count, "targets": len(weights)}
    call(name, logits.dtype, **sizes, weights=ctypes.addressof(array), logits=logits, bins=bins, **tensors)
