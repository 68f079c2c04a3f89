"""Any error ends a training with closed loggers, and with a checkpoint where nothing was half done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dreamer_torchrl import train
from dreamer_torchrl.checkpoint.checkpoints import Checkpoints
from dreamer_torchrl.learners.learner import Learner
from dreamer_torchrl.training import build, loop
from dreamer_torchrl.training.evaluation import Evaluator
from tests.training.training_examples import trained, words

OPTIONS = ("total_steps=60", "checkpoint.every=0", "log.tensorboard=true", "logger=csv", "eval.every=40")


def fail(*arguments: object, **options: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def test_an_error_in_an_update_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of an update may have been done. W&B is told that the run failed, and the run can go on."""
    closed: list[tuple[str, bool]] = []

    class Told(loop.Metrics):
        def close(self, failed: bool = False) -> None:
            closed.append((type(self).__name__, failed))
            super().close(failed)

    monkeypatch.setattr(build, "Metrics", Told)
    with monkeypatch.context() as broken, pytest.raises(torch.OutOfMemoryError):
        update, count = Learner.update, iter(range(5))

        def sometimes(learner: Learner, batch: object) -> object:
            return update(learner, batch) if next(count, None) is not None else fail()

        broken.setattr(Learner, "update", sometimes)
        train.main(words(tmp_path / "run", *OPTIONS))
    printed = capsys.readouterr().out
    names = Checkpoints(tmp_path / "run/checkpoints").names()
    assert "Stopped: OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.\n" in printed
    assert f"The last checkpoint is {names[-1]}. Continue with: python -m dreamer_torchrl.train" in printed
    assert closed == [("Told", True)]
    assert all(json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    trained(tmp_path / "run", *OPTIONS)
    assert f"Resumed at step {int(names[-1].partition('-')[0])}" in capsys.readouterr().out


def test_an_error_between_steps_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an evaluation, for example: all steps up to there are kept, and the run goes on with the evaluation."""
    options = [*OPTIONS, "checkpoint.every=1000"]
    with monkeypatch.context() as broken, pytest.raises(torch.OutOfMemoryError):
        broken.setattr(Evaluator, "run", fail)
        train.main(words(tmp_path / "run", *options))
    assert "The last checkpoint is 000000000040." in capsys.readouterr().out
    assert Checkpoints(tmp_path / "run/checkpoints").load().step == 40
    run = trained(tmp_path / "run", *options)
    evaluated = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open() if "eval/return" in line]
    assert evaluated == [40, 60]
