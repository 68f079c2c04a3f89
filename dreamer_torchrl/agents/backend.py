"""The optional kernels for the CPU: the only file outside `kernels` that imports them."""

from dreamer_torchrl.kernels import attach, decide, detach, laprop, laprop_fits, status

__all__ = ["attach", "decide", "detach", "laprop", "laprop_fits", "status"]
