"""Which tensors the kernels take, how they are called, and whether they run."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from dreamer_torchrl.kernels import compiling
from dreamer_torchrl.kernels.structures import KERNELS, fill

PLAIN = (Tensor, nn.Parameter)


def decide(native: bool | None, device: torch.device) -> bool:
    """Whether kernels are used on a device: as asked for, or where they can be if that is left open (None)."""
    if native and (reason := compiling.why_not(torch.float32)):
        raise ValueError(f"native=true, but: {reason}")
    return device.type == "cpu" and compiling.available(torch.float32) if native is None else native


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
    reason = compiling.why_not(torch.float32)
    return f"Kernels in C do not run, updates are slower: {reason}" if reason else "Kernels in C run."


def fits(x: Tensor, *weights: Tensor, width: int | None = None) -> bool:
    """Whether kernels can compute where and in what this tensor and the weights are, here and now.

    They see addresses: not what fake and traced tensors stand for, nor what `torch.func` derives and maps, nor which
    precision autocast asks for. Where the last axis has not the ``width`` of the weights, they would read other memory;
    torch, to which that is left, says what does not fit.
    """
    if torch.compiler.is_compiling() or not x.is_cpu or x.dtype not in compiling.FLAGS or type(x) not in PLAIN:
        return False
    if torch.jit.is_tracing() or torch._C._are_functorch_transforms_active() or torch.is_autocast_enabled("cpu"):
        return False
    if width is not None and x.shape[-1:] != (width,):
        return False
    return all(weight.dtype == x.dtype and weight.is_cpu for weight in weights) and compiling.available(x.dtype)


def call(name: str, dtype: torch.dtype, collected: ctypes.Structure | None = None, **values: Any) -> None:
    """Run a kernel on its arguments, see `fill`; some may have been collected before."""
    # Of those it takes a copy: another thread may be in a call of its own.
    arguments = KERNELS[name]() if collected is None else type(collected).from_buffer_copy(collected)
    arguments.threads = torch.get_num_threads()
    fill(arguments, dtype, values)
    if getattr(compiling.library(dtype), name)(ctypes.byref(arguments)):
        raise MemoryError(f"There was no memory for the kernel {name!r}: choose a smaller batch or model.")


class Collected:
    """Arguments of a kernel that are addresses of weights: collected once, and again where weights were replaced.

    New values in the same tensors, as an optimizer writes them, need nothing.
    """

    def __init__(self) -> None:
        self._known: tuple[list[int], ctypes.Structure | None] = [], None

    def __reduce__(self) -> tuple[type[Collected], tuple[()]]:
        return type(self), ()  # a copy collects addresses of its own
