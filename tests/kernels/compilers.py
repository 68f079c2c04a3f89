"""Which tests need a compiler: where there is one, kernels that it cannot build are a fault and no reason to skip."""

from __future__ import annotations

import shutil

import pytest
import torch

from dreamer_torchrl.kernels.compiling import NotBuilt, find_compiler


def a_compiler() -> str | None:
    """The one that kernels are built with."""
    try:
        return shutil.which(find_compiler())
    except NotBuilt:
        return None


every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
needs_compiler = pytest.mark.skipif(a_compiler() is None, reason="needs a C compiler")
