"""Environments that break while a run trains or evaluates, and those that cannot be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase

from dreamer_torchrl import train
from dreamer_torchrl.checkpoint.checkpoints import Checkpoints
from dreamer_torchrl.config.compose import saved_settings
from dreamer_torchrl.training.build import make_replay
from dreamer_torchrl.training.evaluation import Evaluation, Evaluator
from dreamer_torchrl.training.loop import Training
from dreamer_torchrl.training.ranks import Agreed
from dreamer_torchrl.training.signals import StopSignals
from tests.training.training_examples import differences, lines, trained, words

FAULTY = ("env=custom", "env.factory=tests.training.training_toys:Faulty", "eval.every=0", "train_ratio=1")


def test_a_fault_now_and_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its episode is closed, and the failure counted; no return is told of half an episode, and no update suffers."""
    run = trained(tmp_path / "run", *FAULTY, "+env.arguments.fault=nan_observation", "total_steps=100")
    measured = lines(run)
    failures = measured[-1]["count/environment_failures"]
    assert 1 <= failures <= 10
    lengths = [line["episode/length"] for line in measured if "episode/length" in line]
    assert lengths and set(lengths) == {12}
    replay = make_replay(saved_settings(run))
    Checkpoints(run / "checkpoints").load(replay)
    steps = replay.copy(0, 100)
    assert steps["done"].sum() == len(lengths) + failures and not steps["terminated"].any()
    assert capsys.readouterr().out.count("Environment 0 failed and is replaced") == failures
    assert measured[-1]["count/updates_skipped"] == 0


def test_a_worker_that_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("+env.arguments.fault=hang", f"+env.arguments.only_once={tmp_path / 'lost'}")
    arguments += ("+env.arguments.share=0.3",)
    workers = ("env.num_envs=2", "env.workers=processes", "env.step_timeout=2")
    run = trained(tmp_path / "run", *FAULTY, *arguments, *workers)
    assert "did not answer for 2 s" in capsys.readouterr().out
    assert lines(run)[-1]["count/environment_failures"] == 1


def test_an_environment_that_never_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run stops and says why; the first steps of ten episodes are all that there was."""
    run = tmp_path / "run"
    assert train.main(words(run, *FAULTY, "+env.arguments.fault=nan_reward", "+env.arguments.share=1")) == 1
    printed = capsys.readouterr().out
    assert "Stopped: Environments failed 11 times within 1000 steps" in printed
    assert "reward = [nan]" in printed
    assert "The last checkpoint is 000000000010. Continue with: " in printed


def test_environments_that_break_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends with all that it has learned, and goes on from there, amid an episode, once they are mended."""
    run, broken = tmp_path / "run", tmp_path / "broken"
    options = (*FAULTY, "+env.arguments.fault=raise", "+env.arguments.share=0.3", f"+env.arguments.only_while={broken}")
    options += ("env.num_envs=2", "env.workers=processes")
    store, carried = Training.store, []

    def break_at_30(self: Training, steps: TensorDictBase, stop: StopSignals) -> Agreed:
        agreed = store(self, steps, stop)
        carried.append(steps[:, -1].select("belief", "state"))
        if self.progress.steps == 30:
            broken.touch()
        return agreed

    monkeypatch.setattr(Training, "store", break_at_30)
    assert train.main(words(run, *options, "total_steps=90")) == 1
    saved = Checkpoints(run / "checkpoints").load()
    step, updates = saved.step, saved.parts["progress"]["updates"]
    assert f"The last checkpoint is {step:012d}. Continue with: " in capsys.readouterr().out
    assert 30 < step < 90 and 0 < updates == lines(run)[-1]["count/updates"]
    for stream, latents in zip(saved.parts["episodes"]["streams"], carried[-1].unbind(0), strict=True):
        assert len(stream["actions"]["action"])
        assert differences({key: stream["step"][key] for key in ("belief", "state")}, latents.to_dict()) == []

    broken.unlink()
    trained(run, *options, "total_steps=90")
    printed = capsys.readouterr().out
    assert f"Resumed at step {step}" in printed and "did not come back" not in printed
    measured = lines(run)
    assert measured[-1]["count/environment_failures"] == 11
    assert {line["episode/length"] for line in measured if "episode/return" in line} == {12}
    replay = make_replay(saved_settings(run))
    Checkpoints(run / "checkpoints").load(replay)
    steps = replay.copy(0, 90).reshape(45, 2)  # [T, N]
    assert torch.equal(steps["is_init"][1:], steps["done"][:-1])
    assert not steps["terminated"].any()


def broken(**arguments: float) -> None:
    raise KeyError("the garage is empty")


def test_an_environment_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That of evaluations is told at once, not when the first one is due."""
    factory = "env.factory=tests.training.test_environment_faults:broken"
    assert train.main(words(tmp_path / "run", "env=custom", factory)) == 2
    assert "The environment cannot be made: KeyError: 'the garage is empty'" in capsys.readouterr().out
    assert train.main(words(tmp_path / "run", *FAULTY, "+eval.arguments.speed=3", "eval.every=40")) == 2
    assert "unexpected keyword argument 'speed'" in capsys.readouterr().out


NEVER = ("+env.arguments.share=0", "+eval.arguments.fault=raise", "+eval.arguments.share=1", "eval.every=20")
LEFT_OUT = "This evaluation is left out, and training goes on: Environments failed 11 times within 1000 steps."


def test_evaluations_that_never_work_stop_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is left out with one line, and nothing is said to be solved. The last is due again when the run goes on."""
    run, broken = tmp_path / "run", tmp_path / "broken"
    broken.touch()
    options = (*FAULTY, *NEVER, f"+eval.arguments.only_while={broken}", "eval.stop_at=-1000")
    trained(run, *options)
    printed = capsys.readouterr().out
    assert printed.count(LEFT_OUT) == 3
    assert "is replaced" not in printed and "Finished and saved at step 60." in printed
    measured = lines(run)
    assert not any("eval/return" in line for line in measured)
    assert measured[-1]["count/updates"] > 0 and measured[-1]["count/environment_failures"] == 0
    files = sorted(path.name for path in (run / "checkpoints").iterdir())
    trained(run, *options)
    assert capsys.readouterr().out.count(LEFT_OUT) == 1
    assert (lines(run), sorted(path.name for path in (run / "checkpoints").iterdir())) == (measured, files)
    broken.unlink()
    for _ in range(2):  # the second time it is finished
        trained(run, *options)
        evaluations = [line for line in lines(run) if "eval/return" in line]
        assert [(line["step"], line["eval/length"]) for line in evaluations] == [(60, 12)]


def test_an_evaluation_after_one_that_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has new processes, since some of the old ones are dead and others still owe an answer."""
    run, broken = tmp_path / "run", tmp_path / "broken"
    options = (*FAULTY, *NEVER, f"+eval.arguments.only_while={broken}", "env.workers=processes", "eval.num_envs=2")
    broken.touch()
    run_it = Evaluator.run

    def and_repair(self: Evaluator, **options: Any) -> Evaluation:
        try:
            return run_it(self, **options)
        finally:
            broken.unlink(missing_ok=True)

    monkeypatch.setattr(Evaluator, "run", and_repair)
    trained(run, *options, "total_steps=40")
    printed = capsys.readouterr().out
    assert printed.count(LEFT_OUT) == 1 and "is replaced" not in printed
    (evaluation,) = (line for line in lines(run) if "eval/return" in line)
    assert (evaluation["step"], evaluation["eval/length"], evaluation["eval/episodes"]) == (40, 12, 2)
