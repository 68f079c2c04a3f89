"""What a person sees of a run: one line that is redrawn in a terminal, a line now and then in a pipe."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

REDRAW_SECONDS = 0.2
RECENT_EPISODES = 10
MAIN_LOSSES = ("reconstruction", "dynamics", "reward", "continue", "actor", "value")
PARTS = ("learner", "environment", "acting", "replay")  # of the time


class Console:
    """Show where a run is. All that the training program prints goes through here.

    Args:
        total_steps: the whole run.
        stream: where to print; the standard output if left out.
        seconds: from one line to the next in a pipe; a terminal is redrawn up to five times a second.

    Example:
        >>> console = Console(total_steps=10_000)
        >>> console.write(500, {"episode/return": 21.0, "best/return": 30.0})
           500/10,000 5%  return 21.0  best 30.0
        >>> console.note("saved")
        saved
        >>> console.write(2_000, {"eval/return": 475.0, "eval/return_std": 2.5, "eval/episodes": 20})
        step 2,000: evaluation return 475.0 +- 2.5 in 20 episodes
    """

    def __init__(self, total_steps: int, stream: TextIO | None = None, seconds: float = 10.0):
        self.total_steps = total_steps
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._seconds = REDRAW_SECONDS if self._terminal else seconds
        self._step = 0
        self._values: dict[str, float] = {}
        self._returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._drawn_at = -float("inf")
        self._drawn = 0  # characters of the line that the cursor stands in
        self._news = False  # whether there is something that was not shown
        self._waiting: deque[str] = deque()  # to be printed
        self._printing = False

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step; show them if it is time, an evaluation at once and on a line of its own."""
        self._step = step
        self._values.update(values)
        self._news = True
        if "episode/return" in values:
            self._returns.append(values["episode/return"])
        if "eval/return" in values:
            self.note(f"step {step:,}: evaluation {evaluation(values)}")
        elif time.monotonic() - self._drawn_at >= self._seconds:
            self._draw()

    def video(self, step: int, name: str, path: Path) -> None:
        """Say where a video lies."""
        self.note(f"step {step:,}: {name} in {path}")

    def note(self, text: str) -> None:
        """Print a line of its own; the progress line goes on below it."""
        interrupted, self._drawn = self._drawn, 0
        self._print(("\r" if interrupted else "") + text.ljust(interrupted) + "\n")
        if interrupted:
            self._draw()

    def close(self) -> None:
        """Show how it ended."""
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
        line = fitting(self._parts(), terminal_width(self._stream))
        self._print("\r" + line.ljust(self._drawn))
        self._drawn = len(line)

    def _parts(self) -> Iterator[str]:
        """What there is to show, the most important first."""
        values, total = self._values, f"{self.total_steps:,}"
        yield f"{self._step:>{len(total)},}/{total} {self._step / max(1, self.total_steps):.0%}"
        if self._returns:
            yield f"return {sum(self._returns) / len(self._returns):,.1f}"
        for key, label in (("best/return", "best"), ("eval/return", "eval")):
            if key in values:
                yield f"{label} {values[key]:,.1f}"
        if "time/left" in values:
            yield f"{duration(values['time/left'])} left"
        if "rate/steps_per_second" in values:
            yield f"{values['rate/steps_per_second']:,.3g} steps/s"
        if "rate/updates_per_second" in values:
            yield f"{values['rate/updates_per_second']:,.3g} updates/s"
        shares = {part: values[key] for part in PARTS if (key := f"share/{part}") in values}
        if shares:
            yield "time: " + ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
        if "count/updates" in values:
            yield f"{values['count/updates']:,.0f} updates"
        if "memory/process_bytes" in values:
            yield f"memory {size(values['memory/process_bytes'])}"
        if "memory/gpu_bytes" in values:
            yield f"GPU {size(values['memory/gpu_bytes'])}"
        if values.get("count/frames", self._step) != self._step:
            yield f"{values['count/frames']:,.0f} frames"
        losses = {name: values[key] for name in MAIN_LOSSES if (key := f"train/loss_{name}") in values}
        if losses:
            yield "losses: " + ", ".join(f"{name} {value:.3g}" for name, value in losses.items())

    def _print(self, text: str) -> None:
        """Print in one go. In a signal's handler the print that it interrupted does so: streams refuse a second one."""
        self._waiting.append(text)
        if self._printing:
            return
        self._printing = True
        try:
            while self._waiting:
                self._print_now(self._waiting.popleft())
        finally:
            self._printing = False

    def _print_now(self, text: str) -> None:
        """A reader that went away (``| head``, a closed window) must not stop the training."""
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except OSError:
            # What is left in the stream's buffer would fail again when Python exits.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._terminal, self._drawn = False, 0


def evaluation(values: Mapping[str, float]) -> str:
    """An evaluation in words.

    >>> evaluation({"eval/return": 475.0})
    'return 475.0'
    """
    text = f"return {values['eval/return']:,.1f}"
    if "eval/return_std" in values:
        text += f" +- {values['eval/return_std']:,.1f}"
    if "eval/episodes" in values:
        text += f" in {values['eval/episodes']:,.0f} episodes"
    return text


def fitting(parts: Iterator[str], width: int) -> str:
    """As many parts, from the first, as have room in a line. The last column stays free: some terminals wrap there.

    >>> fitting(iter(["5/10", "return 21.0", "best 30.0"]), 20)
    '5/10  return 21.0'
    """
    line = next(parts)
    for part in parts:
        if len(line) + 2 + len(part) >= width:
            break
        line = f"{line}  {part}"
    return line[: width - 1]


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal at the other end, as it is now."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def duration(seconds: float) -> str:
    """A time in its two largest units.

    >>> duration(7), duration(250), duration(5_000), duration(200_000), duration(float("inf"))
    ('7 s', '4 min 10 s', '1 h 23 min', '2 d 7 h', '?')
    """
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(count: float) -> str:
    """Bytes in the unit that fits.

    >>> size(40e3), size(812e6), size(1.25e9), size(3.1e12)
    ('40 kB', '812 MB', '1.2 GB', '3.1 TB')
    """
    if count < 1e9:
        return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
    return f"{count / 1e9:.1f} GB" if count < 1e12 else f"{count / 1e12:.1f} TB"
