"""Named ranges for `torch.profiler`: what of an update or of a step of acting a kernel belongs to."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.profiler import record_function

NOTHING = nullcontext()


def part(name: str) -> AbstractContextManager[object]:
    """A range ``dreamer/NAME`` while a profiler runs; `record_function` alone would always take 9 microseconds."""
    return record_function(f"dreamer/{name}") if torch.autograd._profiler_enabled() else NOTHING
