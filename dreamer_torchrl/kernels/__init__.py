"""Optional kernels in C for the CPU."""

import dreamer_torchrl.modules  # noqa: F401, the modules load the kernels that they call
from dreamer_torchrl.kernels.calls import status

__all__ = ["status"]
