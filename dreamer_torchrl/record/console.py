"""What a person sees of a run: one line that is redrawn in a terminal, a line now and then in a pipe."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import Any, TextIO

from pydantic import ByteSize

from dreamer_torchrl.record.metrics import RunLogger

REDRAW_SECONDS = 0.2
RECENT_EPISODES = 10


class Console(RunLogger):
    """Show where a run is, and all else that training prints, from any thread; in a pipe every ``seconds``."""

    def __init__(self, total_steps: int, stream: TextIO | None = None, seconds: float = 10.0):
        self.total_steps, self._stream = total_steps, stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._seconds = REDRAW_SECONDS if self._terminal else seconds
        self._lock, self._step = Lock(), 0
        self._values: dict[str, float] = {}
        self._returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._drawn_at = -math.inf
        self._drawn = 0  # characters of the line that the cursor stands in
        self._news = False  # whether there is something that was not shown

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        with self._lock:
            self._step, self._news = step, True
            self._values.update(metrics)
            if "episode/return" in metrics:
                self._returns.append(metrics["episode/return"])
            if "eval/return" not in metrics and time.monotonic() - self._drawn_at >= self._seconds:
                self._draw()
        if "eval/return" in metrics:
            spread = f" +- {metrics['eval/return_std']:,.1f}" if "eval/return_std" in metrics else ""
            count = f" in {metrics['eval/episodes']:,.0f} episodes" if "eval/episodes" in metrics else ""
            self.note(f"step {step:,}: evaluation return {metrics['eval/return']:,.1f}{spread}{count}")

    def log_video_file(self, name: str, path: Path, step: int) -> None:
        self.note(f"step {step:,}: {name} in {path}")

    def note(self, text: str) -> None:
        """Print a line of its own; the progress line goes on below it."""
        with self._lock:
            interrupted, self._drawn = self._drawn, 0
            self._print(("\r" if interrupted else "") + text.ljust(interrupted) + "\n")
            if interrupted:
                self._draw()

    def close(self) -> None:
        with self._lock:
            if self._news:
                self._draw()
            if self._drawn:
                self._print("\n")
                self._drawn = 0

    def _draw(self) -> None:
        self._drawn_at, self._news = time.monotonic(), False
        if not self._terminal:
            self._print("  ".join(self._parts()) + "\n")
            return
        try:
            width = os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            width = 80
        line, *parts = self._parts()
        for part in parts:
            if len(line) + 2 + len(part) >= width:  # the last column stays free: some terminals wrap there
                break
            line += f"  {part}"
        line = line[: width - 1]
        self._print("\r" + line.ljust(self._drawn))
        self._drawn = len(line)

    def _parts(self) -> Iterator[str]:
        values, total = self._values, f"{self.total_steps:,}"
        yield f"{self._step:>{len(total)},}/{total} {self._step / max(1, self.total_steps):.0%}"
        if self._returns:
            yield f"return {sum(self._returns) / len(self._returns):,.1f}"
        if values.get("count/updates") == 0:
            yield "NO UPDATE YET"
        for key, form in (("best/return", "best {:,.1f}"), ("eval/return", "eval {:,.1f}")):
            if key in values:
                yield form.format(values[key])
        if "time/left" in values:
            yield f"{duration(values['time/left'])} left"
        for unit in ("steps", "updates"):
            if (key := f"rate/{unit}_per_second") in values:
                yield f"{values[key]:,.3g} {unit}/s"
        if shares := self._listed("share/", ".0%"):
            yield f"time: {shares}"
        if values.get("count/updates"):
            yield f"{values['count/updates']:,.0f} updates"
        for key, label in (("memory/process_bytes", "memory"), ("memory/gpu_bytes", "GPU")):
            if key in values:
                yield f"{label} {size(values[key])}"
        if values.get("count/frames", self._step) != self._step:
            yield f"{values['count/frames']:,.0f} frames"
        if losses := self._listed("train/loss_", ".3g"):
            yield f"losses: {losses}"

    def _listed(self, prefix: str, form: str) -> str:
        found = {key.removeprefix(prefix): value for key, value in self._values.items() if key.startswith(prefix)}
        return ", ".join(f"{name} {value:{form}}" for name, value in found.items())

    def _print(self, text: str) -> None:
        """Print in one go. A reader that went away (``| head``, a closed window) must not stop the training."""
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is in its buffer would fail again when Python exits
            os.close(nowhere)
            self._terminal, self._drawn = False, 0


def duration(seconds: float) -> str:
    """A time such as ``1:23:45``."""
    return str(timedelta(seconds=round(seconds))) if math.isfinite(seconds) else "?"


def size(count: float) -> str:
    """Bytes in the unit that fits, such as ``1.2 GB``."""
    return ByteSize(count).human_readable(decimal=True, separator=" ")
