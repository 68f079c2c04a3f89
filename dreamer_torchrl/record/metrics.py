"""Means of what the learner measures, taken on its device, and one record of metrics for several loggers."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # commands check their arguments before torch is imported, which takes seconds
    import torch
    from tensordict import TensorDictBase
    from torch import nn
    from torchrl.record.loggers import Logger


class RunLogger:
    """Base class of our loggers: more callbacks than TorchRL's, which do nothing unless overridden."""

    position: int | None = None  # how far a file goes that `cut` can shorten
    failed = False  # whether the run ends with an error, known before `close`

    def log_video_file(self, name: str, path: Path, step: int) -> None:
        """Take a video, which is encoded already."""

    def log_best(self, agent: nn.Module, value: float, step: int) -> None:
        """Take the weights as they are now; ``value`` is the mean return that they reached."""

    def sync(self) -> None:
        """Wait until everything is on the disk."""

    def cut(self, position: int) -> None:
        """Drop what was written after ``position``."""


class Metrics:
    """Average the metrics of updates on their device, and hand each record to every logger; a context closes them."""

    def __init__(self, loggers: Sequence[Logger | RunLogger], warn: Callable[[str], None] = print):
        self.loggers, self.warn = tuple(loggers), warn
        self._own = [logger for logger in self.loggers if isinstance(logger, RunLogger)]
        self._warned: set[tuple[str, type, int | None]] = set()
        self._keys: tuple[str, ...] = ()
        self._sums: torch.Tensor | None = None
        self._count = 0

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def add(self, metrics: TensorDictBase) -> None:
        """Add one update's metrics, 0-dim tensors, to the sums on their device, without waiting for it."""
        import torch

        if self._sums is None:
            self._keys = tuple(metrics.keys())
        if changed := set(metrics.keys()) ^ set(self._keys):
            raise ValueError(f"metrics {sorted(changed)} came or went since the last means: call means() before that")
        values = torch.stack([metrics[key].detach().float() for key in self._keys])  # [metrics]
        self._sums = values if self._sums is None else values.add_(self._sums.to(values.device))
        self._count += 1

    def means(self) -> dict[str, float]:
        """Means of all that was added since the last call, read from the device in one go; then start anew."""
        means = {} if self._sums is None else dict(zip(self._keys, (self._sums / self._count).tolist(), strict=True))
        self._keys, self._sums, self._count = (), None, 0
        return means

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._each(self.loggers, lambda logger: logger.log_metrics(dict(values), step=step))

    def video(self, step: int, name: str, path: Path) -> None:
        """Hand a video file to our own loggers; TorchRL's take pictures, and need moviepy or much space for them."""
        self._each(self._own, lambda logger: logger.log_video_file(name, path, step))

    def best(self, step: int, value: float, agent: nn.Module) -> None:
        self._each(self._own, lambda logger: logger.log_best(agent, value, step))

    def close(self, failed: bool = False) -> None:
        loggers, self.loggers = self.loggers, ()
        for logger in self._own:
            logger.failed = failed
        self._each(loggers, lambda logger: logger.close())

    def _each(self, loggers: Iterable[Any], call: Callable[[Any], Any]) -> None:
        """Call with each logger; errors, of ours only those of the system, are named once and stop no training."""
        for logger in loggers:
            try:
                call(logger)
            except Exception as error:
                if logger in self._own and not isinstance(error, OSError):
                    raise
                kind = (type(logger).__name__, type(error), getattr(error, "errno", None))
                if kind not in self._warned:
                    self._warned.add(kind)
                    self.warn(f"warning: {kind[0]} failed ({type(error).__name__}: {error}); training goes on")

    def state_dict(self) -> dict[str, Any]:
        """Where the lines end, and the sums so far: a resumed run writes the lines that this one would have."""
        self._each(self._own, lambda logger: logger.sync())
        position = next((logger.position for logger in self._own if logger.position is not None), 0)
        return {"position": position, "keys": list(self._keys), "sums": self._sums, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for logger in self._own:
            logger.cut(state["position"])
        self._keys, self._count = tuple(state["keys"]), state["count"]
        self._sums = None if state["sums"] is None else state["sums"].clone()


def memory_bytes() -> dict[str, float]:
    memory = {"memory/process_bytes": float(resident_bytes())}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        memory["memory/gpu_bytes"] = float(torch.cuda.memory_reserved())
    return memory


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Memory that this process holds now; its peak on systems without /proc, such as macOS."""
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
