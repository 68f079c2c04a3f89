"""The optimizer's update by a kernel, in one pass over each parameter."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dreamer_torchrl.kernels.calls import call, fits
from dreamer_torchrl.kernels.structures import STRUCTURES, address


def laprop_fits(params: Sequence[Tensor]) -> bool:
    """Whether the kernel can update these parameters, all of one precision, from their gradients."""
    return all(fits(p, p.grad) and p.is_contiguous() and p.grad.is_contiguous() for p in params)


def laprop(
    params: Sequence[Tensor], states: Sequence[dict[str, Tensor]], group: dict[str, Any], where: Tensor | None
) -> None:
    """One step of `LaProp`; on a CPU, reading ``where`` waits for nothing."""
    if where is not None and not where:
        return
    dtype, kind = params[0].dtype, STRUCTURES["LapropTensor"]
    tensors = (
        kind(
            *(address(name, x, dtype) for name, x in (("param", p), ("mu", state["mu"]), ("nu", state["nu"]))),
            address("step", state["step"], torch.float32),
            address("grad", p.grad, dtype),
            p.numel(),
        )
        for p, state in zip(params, states, strict=True)
    )
    array = (kind * len(params))(*tensors)
    beta1, beta2 = group["betas"]
    options = {name: group[name] for name in ("eps", "clip", "clip_floor", "warmup")}
    at = ctypes.addressof(array)
    call("laprop", dtype, tensors=len(params), all=at, lr=float(group["lr"]), beta1=beta1, beta2=beta2, **options)
