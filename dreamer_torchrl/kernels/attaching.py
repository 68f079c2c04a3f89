"""Which parts of a network have a faster implementation, and how they get it."""

from torch import nn

from dreamer_torchrl.kernels.acting import NativeRSSM
from dreamer_torchrl.kernels.image_operators import FastImageStage, FastPixelError, FastPixelStage, FastUpsampleStage
from dreamer_torchrl.kernels.layer import NativeHiddenLayer, NativeLinear, NativeMLP
from dreamer_torchrl.kernels.rowwise import NativeNormSilu, NativeTwoHotCrossEntropy, NativeTwoHotHead
from dreamer_torchrl.kernels.sequence import NativeImagineRollout, NativeObserveSequence

OPERATORS = (FastImageStage, FastPixelError, FastPixelStage, FastUpsampleStage)  # they need no compiler
IN_C = (NativeLinear, NativeHiddenLayer, NativeMLP, NativeNormSilu, NativeTwoHotHead, NativeTwoHotCrossEntropy)
IN_C += (NativeObserveSequence, NativeImagineRollout, NativeRSSM)


def attach(root: nn.Module, native: bool = True) -> None:
    """Let all parts of a network that have a faster implementation use it; without ``native`` only those not in C.

    A part of a user's own class, even one that inherits from ours, is left as it is.
    """
    detach(root)
    faster = {each.__base__: each for each in (OPERATORS + IN_C if native else OPERATORS)}
    for module in root.modules():
        module.__class__ = faster.get(type(module), type(module))


def detach(root: nn.Module) -> None:
    """Undo `attach`: all parts compute by plain operations."""
    for module in root.modules():
        if type(module) in OPERATORS + IN_C:
            module.__class__ = type(module).__base__
