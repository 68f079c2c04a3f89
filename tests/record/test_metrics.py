"""One record, several sinks: real files, a disk that is really full, a process that is really killed."""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from dreamer_torchrl.record.metrics import (
    MAX_KEPT_LINES,
    JsonLines,
    Metrics,
    TensorBoard,
    end_of_last_line,
    memory_bytes,
    resident_bytes,
)

ROOT = Path(__file__).parents[2]


def update(**values: float) -> TensorDict:
    """What the learner returns."""
    return TensorDict({key: torch.tensor(value) for key, value in values.items()})


def no_constants(name: str) -> None:
    """Strict JSON knows no NaN."""
    pytest.fail(f"{name} is not JSON")


def records(path: Path) -> list[dict[str, Any]]:
    """All lines of a file, read strictly."""
    return [json.loads(line, parse_constant=no_constants) for line in path.read_text().splitlines()]


def test_means_are_those_of_the_updates_since_the_last_call() -> None:
    """And there are none where there was no update."""
    metrics = Metrics([])
    assert metrics.means() == {}
    metrics.add(update(loss_actor=1.0, entropy=0.5))
    metrics.add(update(entropy=1.5, loss_actor=5.0))
    assert metrics.means() == {"loss_actor": 3.0, "entropy": 1.0}
    metrics.add(update(loss_value=2.0))
    assert metrics.means() == {"loss_value": 2.0}
    assert metrics.means() == {}


def test_sums_do_not_share_memory_with_the_learner() -> None:
    """A captured update writes its metrics into the same tensors each time."""
    metrics, reused = Metrics([]), update(loss_actor=1.0)
    metrics.add(reused)
    reused["loss_actor"].fill_(7.0)
    metrics.add(reused)
    assert reused["loss_actor"] == 7.0
    assert metrics.means() == {"loss_actor": 4.0}


def test_half_precision_is_summed_in_single() -> None:
    """A thousand small numbers in half precision would stick at 256."""
    metrics = Metrics([])
    for _ in range(1000):
        metrics.add(TensorDict({"loss": torch.tensor(1.0, dtype=torch.bfloat16)}))
    assert metrics.means() == {"loss": 1.0}


def test_adding_reads_nothing_from_the_device() -> None:
    """Tensors without data cannot be read: `add` goes through, `means` does not."""
    metrics = Metrics([])
    for _ in range(2):
        metrics.add(TensorDict({"loss": torch.zeros((), device="meta", requires_grad=True)}))
    with pytest.raises((NotImplementedError, RuntimeError)):
        metrics.means()


def test_metrics_that_come_and_go_are_named() -> None:
    """Their mean would be of an unknown number of updates."""
    metrics = Metrics([])
    metrics.add(update(loss_actor=1.0))
    with pytest.raises(ValueError, match=r"\['loss_value'\] came or went since the last means"):
        metrics.add(update(loss_actor=1.0, loss_value=1.0))


def test_lines_are_strict_json(tmp_path: Path) -> None:
    """Whole numbers stay whole; what is not finite is null; numpy's numbers are numbers."""
    lines = JsonLines(tmp_path / "metrics.jsonl")
    values = {"length": 200, "a": float("nan"), "b": float("-inf"), "c": np.float32(0.5), "d": np.int64(3)}
    lines.write(7, values)
    lines.write(8, {})
    assert records(lines.path) == [{"step": 7, "length": 200, "a": None, "b": None, "c": 0.5, "d": 3}, {"step": 8}]
    lines.close()


def test_a_resumed_run_cuts_off_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    """And goes on with the sums of that moment, so that its lines are those of a run that was never stopped."""
    path = tmp_path / "metrics.jsonl"

    def train(metrics: Metrics, steps: range) -> None:
        for step in steps:
            metrics.add(update(loss=float(step)))
            if step % 4 == 3:
                metrics.write(step, metrics.means())

    straight = Metrics([JsonLines(tmp_path / "straight.jsonl")])
    train(straight, range(12))
    first = Metrics([JsonLines(path)])
    train(first, range(6))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    train(first, range(6, 9))
    assert len(records(path)) == 2
    with path.open("ab") as file:
        file.write(b'{"step": 8, "lo')

    second = Metrics([JsonLines(path)])
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert len(records(path)) == 1
    train(second, range(6, 12))
    assert path.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


def test_a_position_beyond_the_file_or_inside_a_line(tmp_path: Path) -> None:
    """A file that somebody shortened stays as it is; half a line never stays."""
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.write(1, {})
    first = lines.position
    lines.write(2, {})
    lines.cut(10_000)
    assert len(records(lines.path)) == 2
    lines.cut(first + 3)
    assert (lines.position, records(lines.path)) == (first, [{"step": 1}])
    lines.cut(0)
    assert lines.path.read_bytes() == b""


@pytest.mark.parametrize("content", [b"", b"half", b"a\n", b"a\nhalf", b"a\n" + b"x" * 200_000, b"x" * 70_000 + b"\ny"])
def test_half_a_line_at_the_end_is_found(tmp_path: Path, content: bytes) -> None:
    """However long it is."""
    path = tmp_path / "lines"
    path.write_bytes(content)
    assert end_of_last_line(path) == content.rfind(b"\n") + 1
    JsonLines(path).close()
    assert path.read_bytes() == content[: content.rfind(b"\n") + 1]


def test_every_line_is_there_after_a_kill(tmp_path: Path) -> None:
    """Whatever was written before the process died can be read."""
    program = """
import itertools, sys
from pathlib import Path
from dreamer_torchrl.record.metrics import JsonLines
lines = JsonLines(Path("metrics.jsonl"))
for step in itertools.count():
    lines.write(step, {f"train/{number}": step / 7 for number in range(20)})
    print(step, flush=True)
"""
    command, variables = [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    JsonLines(tmp_path / "metrics.jsonl").close()
    steps = [record["step"] for record in records(tmp_path / "metrics.jsonl")]
    assert steps == list(range(len(steps)))
    assert len(steps) >= len(seen)


@contextmanager
def limited_file_size(folder: Path) -> Iterator[Callable[[], None]]:
    """No file of this process may grow over 2,000 bytes until the limit is lifted."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def full_disk(folder: Path) -> Iterator[Callable[[], None]]:
    """The folder is a disk of its own, full but for half a page, until the other file on it goes."""
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only the administrator of a Linux machine may mount a small disk")
    try:
        other = folder / "other"
        other.write_bytes(b"x" * 12_000)
        yield other.unlink
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("trouble", [limited_file_size, full_disk])
def test_a_full_disk_delays_lines_and_loses_none(tmp_path: Path, trouble: Callable[..., Any]) -> None:
    """One warning; only whole lines on the disk; all of them, in order, once there is room."""
    folder, warnings = tmp_path / "disk", []
    folder.mkdir()
    with trouble(folder) as make_room:
        lines = JsonLines(folder / "metrics.jsonl")
        metrics = Metrics([lines], warnings.append)
        for step in range(100):
            metrics.write(step, {"episode/return": step / 7, "episode/length": 100 + step})
        on_disk = records(lines.path)
        assert 1 < len(on_disk) < 100
        assert lines.position > lines.path.stat().st_size
        position = metrics.state_dict()["position"]
        make_room()
        metrics.write(100, {})
        assert [record["step"] for record in records(lines.path)] == list(range(101))
        assert lines.path.stat().st_size == lines.position
        lines.cut(position)
        assert [record["step"] for record in records(lines.path)] == list(range(100))
        metrics.close()
    (warning,) = warnings
    assert warning.startswith("warning: JsonLines failed (") and "training goes on" in warning


def test_lines_that_wait_are_bounded(tmp_path: Path) -> None:
    """A disk that stays full must not fill the memory; the oldest lines go."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    lines = JsonLines(tmp_path / "metrics.jsonl")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        for step in range(MAX_KEPT_LINES + 5):
            with pytest.raises(OSError):
                lines.write(step, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines.close()
    assert [record["step"] for record in records(lines.path)] == list(range(5, MAX_KEPT_LINES + 5))


class Failing:
    """A sink that fails in the ways it is told, one after the other."""

    def __init__(self, errors: list[Exception | None]):
        self.errors, self.steps = errors, []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        error = self.errors.pop(0)
        if error:
            raise error
        self.steps.append(step)

    def video(self, step: int, name: str, path: Path) -> None:
        raise PermissionError(13, "no films", str(path))

    def close(self) -> None:
        raise TimeoutError("never ends")


def test_a_failing_sink_is_named_once_per_kind_and_tried_again(tmp_path: Path) -> None:
    """The others get everything."""
    warnings: list[str] = []
    errors = [OSError(5, "broken"), OSError(5, "broken"), None, OSError(28, "full"), OSError(5, "broken")]
    failing, lines = Failing(errors), JsonLines(tmp_path / "metrics.jsonl")
    metrics = Metrics([failing, lines], warnings.append)
    for step in range(5):
        metrics.write(step, {})
    metrics.video(5, "eval/video", tmp_path / "eval.mp4")
    metrics.close()
    assert failing.steps == [2]
    assert [record["step"] for record in records(lines.path)] == list(range(5))
    assert [warning.split("(")[1].split(")")[0] for warning in warnings] == [
        "[Errno 5] broken",
        "[Errno 28] full",
        f"[Errno 13] no films: '{tmp_path / 'eval.mp4'}'",
        "never ends",
    ]


def test_a_mistake_of_ours_is_not_swallowed() -> None:
    """Only failures of the system are survived."""
    with pytest.raises(ZeroDivisionError):
        Metrics([Failing([ZeroDivisionError()])]).write(0, {})


def test_tensorboard_shows_what_was_written(tmp_path: Path) -> None:
    """A resumed run hides the points after its checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoard(tmp_path)
    for step in range(5):
        first.write(step, {"episode/return": 10.0 + step})
    first.close()
    time.sleep(1.1)  # the names of event files tell seconds apart
    second = TensorBoard(tmp_path, resumed_at=2)
    second.write(3, {"episode/return": -3.0})
    second.video(3, "eval/video", tmp_path / "eval.mp4")
    second.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    points = [(point.step, point.value) for point in events.Scalars("episode/return")]
    assert points == [(0, 10.0), (1, 11.0), (2, 12.0), (3, -3.0)]


def test_missing_tensorboard_is_told_without_torch() -> None:
    """Python without any installed package: the file can be imported, and says what to install."""
    program = f"import sys; sys.path.append({str(ROOT)!r}); from dreamer_torchrl.record import metrics"
    program += "; print(metrics.missing_tensorboard())"
    outcome = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    expected = "TensorBoard is not installed; install it with: pip install 'dreamer_torchrl[tensorboard]'\n"
    assert (outcome.stdout, outcome.stderr) == (expected, "")
    installed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert installed.stdout == "None\n"


def test_memory_is_what_the_process_holds_now(tmp_path: Path) -> None:
    """It rises with new pages and falls when they go; without /proc it is the peak.

    Pages of the system, not an array: malloc may serve that from memory that earlier tests freed and it kept.
    """
    before = memory_bytes()["memory/process_bytes"]
    pages = mmap.mmap(-1, 200_000_000)
    for _ in range(200):
        pages.write(bytes(1_000_000))
    during = memory_bytes()["memory/process_bytes"]
    peak = resident_bytes(tmp_path / "missing")
    pages.close()
    after = memory_bytes()["memory/process_bytes"]
    assert 180e6 < during - before < 300e6
    assert during - after > 180e6
    assert 0.9 * during < peak


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_the_gpu_and_no_waiting_for_it() -> None:
    """A GPU counts once it is used; adding metrics never waits for it."""
    metrics, values = Metrics([]), TensorDict({"loss": torch.ones((), device="cuda")})
    assert memory_bytes()["memory/gpu_bytes"] > 0
    torch.cuda.set_sync_debug_mode("error")
    try:
        metrics.add(values)
        metrics.add(values)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metrics.means() == {"loss": 1.0}
