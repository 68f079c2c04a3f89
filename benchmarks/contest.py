"""Time learners in alternation, so that load on the machine affects all alike."""

import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch


class Contestant(Protocol):
    """A learner that makes one update per call.

    It keeps its own clock and its own account of memory, so it may as well live in another process.
    """

    name: str
    parameters: int
    notes: Sequence[str]

    def update(self) -> float:
        """Makes one whole update and returns the seconds it took."""

    def peak_memory(self) -> int:
        """Returns the most bytes held during any update so far."""


@dataclass
class LocalContestant:
    """A contestant in this process: `step` is one update, which may still be under way on `device` when it returns.

    Memory is the resident set of the process on a CPU, and what the allocator gave out on a GPU. Both include
    what other contestants in this process keep between their updates.
    """

    name: str
    parameters: int
    step: Callable[[], object]
    device: torch.device
    notes: Sequence[str] = ()
    _peak: int = field(default=0, init=False)

    def update(self) -> float:
        synchronize(self.device)
        reset_peak_memory(self.device)
        start = time.perf_counter()
        self.step()
        synchronize(self.device)
        seconds = time.perf_counter() - start
        self._peak = max(self._peak, peak_memory(self.device))
        return seconds

    def peak_memory(self) -> int:
        return self._peak


@dataclass
class Result:
    """All measurements of one contestant."""

    contestant: str
    parameters: int
    median: float
    min: float
    lower_quartile: float
    upper_quartile: float
    max: float
    peak_memory: int
    seconds: list[float]
    warmup_seconds: list[float]
    notes: list[str]

    @classmethod
    def of(cls, contestant: Contestant, warmup_seconds: list[float], seconds: list[float]) -> "Result":
        # `statistics.quantiles` needs two values; the quartiles of a single one are that value.
        lower, median, upper = statistics.quantiles(seconds * 2 if len(seconds) == 1 else seconds, method="inclusive")
        return cls(
            contestant=contestant.name,
            parameters=contestant.parameters,
            median=median,
            min=min(seconds),
            lower_quartile=lower,
            upper_quartile=upper,
            max=max(seconds),
            peak_memory=contestant.peak_memory(),
            seconds=seconds,
            warmup_seconds=warmup_seconds,
            notes=list(contestant.notes),
        )


def take_turns(
    contestants: Sequence[Contestant], warmup: int, updates: int, before_timing: Callable[[], None] | None = None
) -> list[Result]:
    """Alternate single updates of all contestants. The first `warmup` rounds are not timed.

    `before_timing` is called after those.
    """
    rounds = [[contestant.update() for contestant in contestants] for _ in range(warmup)]
    if before_timing:
        before_timing()
    rounds += [[contestant.update() for contestant in contestants] for _ in range(updates)]
    return [
        Result.of(contestant, list(times[:warmup]), list(times[warmup:]))
        for contestant, times in zip(contestants, zip(*rounds, strict=True), strict=True)
    ]


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # not on Linux, or not allowed: then the peak is that of the whole process so far
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident set, and nothing else


def peak_memory(device: torch.device) -> int:
    """Peak bytes since `reset_peak_memory`: of the process on a CPU, of torch's allocator on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024
