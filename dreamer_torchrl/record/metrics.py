"""One record of metrics, several sinks: means of what the learner measures, JSON lines, TensorBoard.

The terminal is in `console.py`, Weights & Biases in `wandb_run.py`.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # commands check their words before torch is imported, which takes seconds
    import torch
    from tensordict import TensorDictBase
    from torch import nn

MAX_KEPT_LINES = 10_000


class Sink(Protocol):
    """Where metrics go. An ``OSError`` is told once; training goes on, and the next record is tried again."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step."""

    def video(self, step: int, name: str, path: Path) -> None:
        """Take a video file."""

    def close(self) -> None:
        """Bring everything to its place."""


@runtime_checkable
class AgentSink(Protocol):
    """A sink that takes agents, too."""

    def best(self, step: int, value: float, agent: nn.Module) -> None:
        """Take the weights as they are now; ``value`` is the return that they reached."""


class Metrics:
    """Gather the metrics of updates where they are, and hand each record to every sink.

    Args:
        sinks: where the records go.
        warn: prints a line, once for each kind of failure of a sink.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> metrics = Metrics([])
        >>> for loss in (1.0, 3.0):
        ...     metrics.add(TensorDict({"loss_actor": torch.tensor(loss)}))
        >>> metrics.means()
        {'loss_actor': 2.0}
    """

    def __init__(self, sinks: Sequence[Sink], warn: Callable[[str], None] = print):
        self.sinks, self.warn = tuple(sinks), warn
        self._lines = [sink for sink in self.sinks if isinstance(sink, JsonLines)]
        self._warned: set[tuple[str, type, int | None]] = set()
        self._start_anew()

    def _start_anew(self) -> None:
        self._keys: tuple[str, ...] = ()
        self._sums: torch.Tensor | None = None
        self._count = 0

    def add(self, metrics: TensorDictBase) -> None:
        """Add one update's metrics, 0-dim tensors, to the sums. They stay on their device; nothing waits for it."""
        import torch

        if self._sums is None:
            self._keys = tuple(metrics.keys())
        changed = set(metrics.keys()) ^ set(self._keys)
        if changed:
            raise ValueError(f"metrics {sorted(changed)} came or went since the last means: call means() before that")
        values = torch.stack([metrics[key].detach().float() for key in self._keys])  # [metrics]
        self._sums = values if self._sums is None else values.add_(self._sums.to(values.device))
        self._count += 1

    def means(self) -> dict[str, float]:
        """Means of all that was added since the last call, read from the device in one go; then start anew."""
        means = {} if self._sums is None else dict(zip(self._keys, (self._sums / self._count).tolist(), strict=True))
        self._start_anew()
        return means

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the values of a step to every sink."""
        for sink in self.sinks:
            with self._survived(sink):
                sink.write(step, values)

    def video(self, step: int, name: str, path: Path) -> None:
        """Hand a video file to every sink."""
        for sink in self.sinks:
            with self._survived(sink):
                sink.video(step, name, path)

    def best(self, step: int, value: float, agent: nn.Module) -> None:
        """Hand the agent whose evaluation was the best so far to the sinks that take one."""
        for sink in self.sinks:
            if isinstance(sink, AgentSink):
                with self._survived(sink):
                    sink.best(step, value, agent)

    def close(self) -> None:
        """Close every sink."""
        for sink in self.sinks:
            with self._survived(sink):
                sink.close()

    @contextmanager
    def _survived(self, sink: Sink) -> Iterator[None]:
        """No metric is worth a run: a sink that fails is named once, and tried again with the next record."""
        try:
            yield
        except OSError as error:
            kind = (type(sink).__name__, type(error), error.errno)
            if kind not in self._warned:
                self._warned.add(kind)
                self.warn(f"warning: {kind[0]} failed ({error}); training goes on")

    def state_dict(self) -> dict[str, Any]:
        """Where the JSON lines end, and the sums so far: a resumed run writes the lines that this one would have."""
        for lines in self._lines:
            with self._survived(lines):
                lines.sync()
        position = self._lines[0].position if self._lines else 0
        return {"position": position, "keys": list(self._keys), "sums": self._sums, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: lines written later are cut off."""
        for lines in self._lines:
            lines.cut(state["position"])
        sums = state["sums"]
        self._keys, self._count = tuple(state["keys"]), state["count"]
        self._sums = None if sums is None else sums.clone()


class JsonLines:
    """Append one JSON object per line to a file; each stands there whole, or not at all.

    A line that finds no room is kept in memory and written, in order, as soon as there is room again.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> lines = JsonLines(path)
        >>> lines.write(200, {"episode/return": 21.0, "episode/length": 200})
        >>> print(path.read_text(), end="")
        {"step": 200, "episode/return": 21.0, "episode/length": 200}
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._kept: list[bytes] = []
        self._size = end_of_last_line(path)
        self._cut_file(self._size)  # a kill may have left half a line

    @property
    def position(self) -> int:
        """Bytes of all lines so far, those that wait for room included."""
        return self._size + sum(map(len, self._kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line. ``OSError`` if it cannot be written now; it is kept then."""
        record = {"step": step} | {key: strict(value) for key, value in values.items()}
        self._kept.append(json.dumps(record, allow_nan=False).encode() + b"\n")
        del self._kept[:-MAX_KEPT_LINES]
        self._write_kept()

    def video(self, step: int, name: str, path: Path) -> None:
        """Videos lie in their own folder."""

    def sync(self) -> None:
        """Wait until all lines are on the disk itself."""
        self._write_kept()
        os.fsync(self._file.fileno())

    def cut(self, position: int) -> None:
        """Drop what was written after `position`. A file that is shorter stays as it is."""
        self._kept.clear()
        if position < self._size:
            self._cut_file(position)
            self._cut_file(end_of_last_line(self.path))

    def close(self) -> None:
        """Write what waits, and close the file."""
        try:
            self._write_kept()
        finally:
            self._file.close()

    def _write_kept(self) -> None:
        while self._kept:
            rest = self._kept[0]
            try:
                while rest:  # a disk takes half a line before it says that it is full
                    rest = rest[self._file.write(rest) :]
            except OSError:
                self._cut_file(self._size)
                raise
            self._size += len(self._kept.pop(0))

    def _cut_file(self, size: int) -> None:
        self._file.truncate(size)
        self._size = size


def end_of_last_line(path: Path, block: int = 65_536) -> int:
    """Bytes up to and including the last line break of a file: 0 if there is none."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - block)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def strict(value: float) -> float | None:
    """A number as strict JSON has it: none for those that are not finite.

    >>> strict(3), strict(0.5), strict(float("nan"))
    (3, 0.5, None)
    """
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


class TensorBoard:
    """Write scalars for TensorBoard.

    Args:
        folder: where its event files go.
        resumed_at: step of the checkpoint that a resumed run starts from; later points of earlier files are hidden.
    """

    def __init__(self, folder: Path, resumed_at: int | None = None):
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge, flush_secs=10)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point for each value."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def video(self, step: int, name: str, path: Path) -> None:
        """TensorBoard gets no videos: they lie in the run's own folder."""

    def close(self) -> None:
        """Write what waits."""
        self._writer.close()


def missing_tensorboard() -> str | None:
    """What to tell a user who wants TensorBoard and has not got it; none if it is installed."""
    if find_spec("tensorboard"):
        return None
    return "TensorBoard is not installed; install it with: pip install 'dreamer_torchrl[tensorboard]'"


def memory_bytes() -> dict[str, float]:
    """Memory that this process holds now: its own, and, once it uses a GPU, what it has reserved there."""
    memory = {"memory/process_bytes": float(resident_bytes())}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        memory["memory/gpu_bytes"] = float(torch.cuda.memory_reserved())
    return memory


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Memory that this process holds now; its peak on systems without /proc, such as macOS."""
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
