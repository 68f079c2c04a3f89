"""Runs without a decoder: the loss of the term falls, and everything that a run has works."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreamer_torchrl import dream
from dreamer_torchrl.training.build import make_learner
from dreamer_torchrl.training.loading import load
from dreamer_torchrl.views.report_page import newest_files
from tests.training.training_examples import lines, trained


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "loss"), [("r2", "barlow"), ("infonce", "infonce"), ("prototypes", "temporal")])
def test_the_loss_falls_on_images(choice: str, loss: str, tmp_path: Path) -> None:
    short = ["total_steps=300", "train_ratio=16", "learner.warmup=0", "log.every=0.1", "eval.every=0"]
    run = trained(tmp_path / "run", "env=grid_reach", f"representation={choice}", *short)
    losses = [line[f"train/loss_{loss}"] for line in lines(run) if f"train/loss_{loss}" in line]
    assert len(losses) > 20 and sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_all_that_a_run_has_works_without_a_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["env=cartpole", "representation=r2", "log.every=0", "log.report=true", "eval.dream=1", "eval.episodes=1"]
    run = trained(tmp_path / "run", *own)
    trained(run, *own, "total_steps=64")
    assert any("train/loss_barlow" in line for line in lines(run))
    assert not any("reconstruction" in key for line in lines(run) for key in line)
    assert newest_files(run / "dreams") and "Loss: barlow" in (run / "report.html").read_text()
    assert dream.main([str(run), "--imagine", "5"]) == 0
    assert "reward" in capsys.readouterr().out
    loaded = load(run)
    assert not list(loaded.agent.decoder.parameters())
    learner = make_learner(loaded.settings, loaded.agent)
    learner.load_state_dict(loaded.saved.parts["learner"])
    saved = loaded.saved.parts["learner"]["extra_losses"]["0.projector.weight"]
    assert torch.equal(learner.loss.extra[0].projector.weight, saved)


def test_a_term_beside_a_decoder(tmp_path: Path) -> None:
    beside = ["representation=infonce", "representation.decoder=true", "log.every=0"]
    run = trained(tmp_path / "run", "env=cartpole", *beside)
    assert any({"train/loss_infonce", "train/loss_reconstruction"} <= set(line) for line in lines(run))
