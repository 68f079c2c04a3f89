"""Which tensors the kernels take, how they are called, and whether they run."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from dreamer_torchrl.kernels import compiling

DTYPES = {torch.float32: "float", torch.float64: "double"}
"""What the kernels compute in, and how their functions end."""
PLAIN = (Tensor, nn.Parameter)


def decide(native: bool | None, device: torch.device) -> bool:
    """Whether kernels are used on a device: as asked for, or where they can be if that is left open (None)."""
    if native and (reason := compiling.why_not()):
        raise ValueError(f"native=true, but: {reason}")
    return device.type == "cpu" and compiling.available() if native is None else native


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
    reason = compiling.why_not()
    return f"Kernels in C do not run, updates are slower: {reason}" if reason else "Kernels in C run."


def fits(x: Tensor, *weights: Tensor, width: int | None = None) -> bool:
    """Whether kernels can compute where and in what this tensor and the weights are, here and now.

    They see addresses: not what fake and traced tensors stand for, nor what `torch.func` derives and maps, nor which
    precision autocast asks for. Where the last axis has not the ``width`` of the weights, they would read other memory;
    torch, to which that is left, says what does not fit.
    """
    if torch.compiler.is_compiling() or not x.is_cpu or x.dtype not in DTYPES or type(x) not in PLAIN:
        return False
    if torch.jit.is_tracing() or torch._C._are_functorch_transforms_active() or torch.is_autocast_enabled("cpu"):
        return False
    if width is not None and x.shape[-1:] != (width,):
        return False
    return all(weight.dtype == x.dtype and weight.is_cpu for weight in weights) and compiling.available()


def call(name: str, dtype: torch.dtype, arguments: ctypes.Structure) -> None:
    """Run a kernel."""
    if getattr(compiling.library(), f"{name}_{DTYPES[dtype]}")(ctypes.byref(arguments)):
        raise MemoryError(f"There was no memory for the kernel {name!r}: choose a smaller batch or model.")
