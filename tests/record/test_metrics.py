"""One record, several loggers: real files, a disk that is really full, a process that is really killed."""

from __future__ import annotations

import json
import mmap
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.record.loggers import CSVLogger, Logger

from dreamer_torchrl.config.checks import ConfigError, make_logger
from dreamer_torchrl.record.loggers import MAX_KEPT_LINES, JsonLinesLogger, ResumedTensorboardLogger
from dreamer_torchrl.record.metrics import Metrics, RunLogger, memory_bytes, resident_bytes
from tests.training.training_examples import lines as lines_of
from tests.training.training_examples import trained

ROOT = Path(__file__).parents[2]


def update(**values: float) -> TensorDict:
    return TensorDict({key: torch.tensor(value) for key, value in values.items()})


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_means_are_those_of_the_updates_since_the_last_call() -> None:
    """Summed in single precision, in memory of their own: a captured update writes into the same tensors each time."""
    metrics, reused = Metrics([]), update(loss_actor=1.0, entropy=0.5)
    assert metrics.means() == {}
    metrics.add(reused)
    reused["loss_actor"].fill_(5.0)
    metrics.add(reused)
    assert reused["loss_actor"] == 5.0
    with pytest.raises(ValueError, match=r"\['entropy'\] came or went since the last means"):
        metrics.add(update(loss_actor=1.0))
    assert metrics.means() == {"loss_actor": 3.0, "entropy": 0.5}
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


def test_the_lines_are_a_logger_of_torchrl(tmp_path: Path) -> None:
    """Strict JSON: whole numbers stay whole, what is not finite is null. Videos and histograms as well."""
    logger = JsonLinesLogger(tmp_path / "metrics.jsonl")
    assert isinstance(logger, Logger)
    logger.log_metrics({"length": 200, "a": float("nan"), "b": float("-inf"), "c": np.float32(0.5)}, step=7)
    logger.log_metrics(TensorDict({"train": {"loss": torch.tensor(1.5)}, "list": torch.arange(2)}), step=8)
    logger.log_scalar("x", 2, step=9)
    logger.log_histogram("weights", [0.0, 1.0, 1.0], step=10, bins=2)
    assert records(logger.path) == [
        {"step": 7, "length": 200, "a": None, "b": None, "c": 0.5},
        {"step": 8, "train/loss": 1.5, "list": [0, 1]},
        {"step": 9, "x": 2},
        {"step": 10, "weights/counts": [1, 2], "weights/edges": [0.0, 0.5, 1.0]},
    ]
    logger.log_video("eval/video", torch.zeros(1, 3, 3, 16, 16, dtype=torch.uint8), step=11)
    assert (tmp_path / "videos/eval-video-11.mp4").stat().st_size > 100
    logger.log_hparams({"seed": 1})
    assert json.loads((tmp_path / "metrics.hparams.json").read_text()) == {"seed": 1}
    assert logger.state_dict()["exp_name"] == "metrics"
    logger.close()
    logger.close()


def test_a_resumed_run_cuts_off_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    """And goes on with the sums of that moment, so that its lines are those of a run that was never stopped."""
    path = tmp_path / "metrics.jsonl"

    def train(metrics: Metrics, steps: range) -> None:
        for step in steps:
            metrics.add(update(loss=float(step)))
            if step % 4 == 3:
                metrics.write(step, metrics.means())

    straight = Metrics([JsonLinesLogger(tmp_path / "straight.jsonl")])
    train(straight, range(12))
    first = Metrics([JsonLinesLogger(path)])
    train(first, range(6))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    train(first, range(6, 9))
    assert len(records(path)) == 2
    with path.open("ab") as file:
        file.write(b'{"step": 8, "lo')

    second = Metrics([JsonLinesLogger(path)])
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert len(records(path)) == 1
    train(second, range(6, 12))
    assert path.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


def test_a_position_beyond_the_file_or_inside_a_line(tmp_path: Path) -> None:
    """A file that somebody shortened stays as it is; half a line never stays."""
    logger = JsonLinesLogger(tmp_path / "metrics.jsonl")
    logger.log_metrics({}, 1)
    first = logger.position
    logger.log_metrics({}, 2)
    logger.cut(10_000)
    assert len(records(logger.path)) == 2
    logger.cut(first + 3)
    assert (logger.position, records(logger.path)) == (first, [{"step": 1}])
    logger.cut(0)
    assert logger.path.read_bytes() == b""


@contextmanager
def limited_file_size(most: int) -> Iterator[Callable[[], None]]:
    """No file of this process may grow over so many bytes until the limit is lifted."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_delays_lines_and_loses_none(tmp_path: Path) -> None:
    """One warning; only whole lines on the disk; all of them, in order, once there is room."""
    warnings: list[str] = []
    with limited_file_size(2_000) as make_room:
        logger = JsonLinesLogger(tmp_path / "metrics.jsonl")
        metrics = Metrics([logger], warnings.append)
        for step in range(100):
            metrics.write(step, {"episode/return": step / 7, "episode/length": 100 + step})
        on_disk = records(logger.path)
        assert 1 < len(on_disk) < 100
        assert logger.position > logger.path.stat().st_size
        position = metrics.state_dict()["position"]
        make_room()
        metrics.write(100, {})
        assert [record["step"] for record in records(logger.path)] == list(range(101))
        assert logger.path.stat().st_size == logger.position
        logger.cut(position)
        assert [record["step"] for record in records(logger.path)] == list(range(100))
        metrics.close()
    (warning,) = warnings
    assert warning.startswith("warning: JsonLinesLogger failed (OSError") and "training goes on" in warning


def test_lines_that_wait_are_bounded(tmp_path: Path) -> None:
    """A disk that stays full must not fill the memory; the oldest lines go."""
    logger = JsonLinesLogger(tmp_path / "metrics.jsonl")
    with limited_file_size(0):
        for step in range(MAX_KEPT_LINES + 5):
            with pytest.raises(OSError):
                logger.log_metrics({}, step)
    logger.close()
    assert [record["step"] for record in records(logger.path)] == list(range(5, MAX_KEPT_LINES + 5))


class Service(Exception):
    """Of somebody's tracking service."""


class Failing:
    def __init__(self, errors: list[Exception | None]):
        self.errors, self.steps = errors, []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        error = self.errors.pop(0)
        if error:
            raise error
        self.steps.append(step)

    def close(self) -> None:
        raise TimeoutError("never ends")


class OwnFailing(RunLogger, Failing):
    """One of ours."""


def test_a_failing_logger_is_named_once_per_kind_and_tried_again(tmp_path: Path) -> None:
    """The others get everything, and all are closed. Of our own loggers only errors of the system are survived."""
    warnings: list[str] = []
    errors = [OSError(5, "broken"), OSError(5, "broken"), None, OSError(28, "full"), Service("down")]
    failing, lines = Failing(errors), JsonLinesLogger(tmp_path / "metrics.jsonl")
    with pytest.raises(MemoryError), Metrics([failing, lines], warnings.append) as metrics:
        for step in range(5):
            metrics.write(step, {})
        raise MemoryError
    assert failing.steps == [2] and lines.experiment.closed
    assert [record["step"] for record in records(lines.path)] == list(range(5))
    assert [warning.split("(")[1].split(")")[0] for warning in warnings] == [
        "OSError: [Errno 5] broken",
        "OSError: [Errno 28] full",
        "Service: down",
        "TimeoutError: never ends",
    ]
    with pytest.raises(ZeroDivisionError):
        Metrics([OwnFailing([ZeroDivisionError()])]).write(0, {})


def test_tensorboard_shows_what_was_written(tmp_path: Path) -> None:
    """A resumed run hides the points after its checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Metrics([ResumedTensorboardLogger("board", str(tmp_path))]) as first:
        for step in range(5):
            first.write(step, {"episode/return": 10.0 + step})
    time.sleep(1.1)  # the names of event files tell seconds apart
    with Metrics([ResumedTensorboardLogger("board", str(tmp_path), resumed_at=2)]) as second:
        second.write(3, {"episode/return": -3.0})
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    points = [(point.step, point.value) for point in events.Scalars("episode/return")]
    assert points == [(0, 10.0), (1, 11.0), (2, 12.0), (3, -3.0)]


def test_any_logger_of_torchrl_can_be_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By ``logger=csv``, or any other by its name; from Python by passing the object. All get the same numbers."""
    run = trained(tmp_path / "run", "logger=csv", "+log.loggers.mine._target_=torchrl.record.loggers.CSVLogger")
    expected = [(line["step"], line["episode/return"]) for line in lines_of(run) if "episode/return" in line]
    assert expected
    for name in ("csv", "mine"):
        rows = (run / name / "scalars/episode/return.csv").read_text().splitlines()
        assert [tuple(map(float, row.split(","))) for row in rows] == expected
    with Metrics([CSVLogger("python", str(tmp_path))]) as metrics:
        metrics.write(3, {"x": 0.5})
    assert (tmp_path / "python/scalars/x.csv").read_text() == "3,0.5\n"
    with pytest.raises(ConfigError, match="CSVLogger cannot be made"):
        make_logger("own", {"_target_": "torchrl.record.loggers.CSVLogger", "nothing": 1}, tmp_path)


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
def test_memory_of_the_gpu_counts_once_it_is_used() -> None:
    torch.ones((), device="cuda")
    assert memory_bytes()["memory/gpu_bytes"] > 0
