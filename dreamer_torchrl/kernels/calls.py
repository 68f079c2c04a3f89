"""Which tensors the kernels take, how they are called, and which modules call them."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from dreamer_torchrl.kernels import compiling as build

DTYPES = {torch.float32: "float", torch.float64: "double"}
"""What the kernels compute in, and how their functions end."""
PLAIN = (Tensor, nn.Parameter)


def use_native(root: nn.Module, native: bool) -> None:
    """Let all modules in ``root`` that have an attribute ``native`` call the kernels where they can, or not."""
    for module in root.modules():
        if hasattr(module, "native"):
            module.native = native


def decide(native: bool | None, device: torch.device) -> bool:
    """Whether kernels are used on a device: as asked for, or where they can be if that is left open (None)."""
    if native and (reason := build.why_not()):
        raise ValueError(f"native=true, but: {reason}")
    return device.type == "cpu" and build.available() if native is None else native


def status(native: bool | None = None, device: torch.device | str = "cpu") -> str:
    """Say in one sentence whether kernels run under a setting ``native`` and on a device, and why not.

    Example:
        >>> status(native=False)
        'Kernels in C do not run: native=false.'
    """
    if native is False:
        return "Kernels in C do not run: native=false."
    if torch.device(device).type != "cpu":
        return f"Kernels in C do not run: they are for a CPU, and this is {device}."
    reason = build.why_not()
    return f"Kernels in C do not run, updates are slower: {reason}" if reason else "Kernels in C run."


def fits(like: Tensor, width: int | None = None) -> bool:
    """Whether kernels can compute where and in what this tensor is, here and now, and it is as wide as it should be.

    They see addresses: not what fake and traced tensors stand for, nor what `torch.func` derives and maps. Of another
    width they would read other memory; torch, to which that is left, says what does not fit.
    """
    if torch.compiler.is_compiling() or not like.is_cpu or like.dtype not in DTYPES or type(like) not in PLAIN:
        return False
    if torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    return (width is None or like.shape[-1:] == (width,)) and build.available()


def call(name: str, dtype: torch.dtype, arguments: ctypes.Structure) -> None:
    """Run a kernel."""
    getattr(build.library(), f"{name}_{DTYPES[dtype]}")(ctypes.byref(arguments))
