"""The optional kernels for the CPU: the only file outside `kernels` that imports them."""

from dreamer_torchrl.kernels import status

__all__ = ["status"]
