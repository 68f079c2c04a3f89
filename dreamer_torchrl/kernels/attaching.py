"""Which parts of a network have a faster implementation, and how they get it."""

from __future__ import annotations

from torch import nn

from dreamer_torchrl.kernels.acting import NativeRSSM
from dreamer_torchrl.kernels.image_operators import FastImageStage, FastPixelError, FastPixelStage, FastUpsampleStage
from dreamer_torchrl.kernels.layer import NativeHiddenLayer, NativeLinear, NativeMLP
from dreamer_torchrl.kernels.rowwise import NativeNormSilu, NativeTwoHotCrossEntropy, NativeTwoHotHead
from dreamer_torchrl.kernels.sequence import NativeImagineRollout, NativeObserveSequence

OPERATORS = {each.__base__: each for each in (FastImageStage, FastPixelError, FastPixelStage, FastUpsampleStage)}
"""Of torch's own operations: they need no compiler."""

IN_C = {
    each.__base__: each
    for each in (
        *(NativeLinear, NativeHiddenLayer, NativeMLP, NativeNormSilu, NativeTwoHotHead, NativeTwoHotCrossEntropy),
        *(NativeObserveSequence, NativeImagineRollout, NativeRSSM),
    )
}


def attach(root: nn.Module, native: bool = True) -> None:
    """Let all parts of a network that have a faster implementation use it; without ``native`` only those not in C.

    A part of a user's own class, even one that inherits from ours, is left as it is.
    """
    detach(root)
    table = OPERATORS | IN_C if native else OPERATORS
    for module in root.modules():
        module.__class__ = table.get(type(module), type(module))


def detach(root: nn.Module) -> None:
    """Undo `attach`: all parts compute by plain operations."""
    plain = {fast: base for base, fast in (OPERATORS | IN_C).items()}
    for module in root.modules():
        module.__class__ = plain.get(type(module), type(module))
