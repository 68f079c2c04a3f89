"""The parts of one's own on docs/parts.md, in the commands that stand there."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from dreamer_torchrl import evaluate, train
from dreamer_torchrl.training.build import make_learner
from dreamer_torchrl.training.loading import load
from tests.training.training_examples import TINY

PARTS = (Path(__file__).parents[2] / "docs/parts.md").read_text()
PAGE, TERM = (
    PARTS.partition(f"## {title}")[2].partition("\n## ")[0]
    for title in ("Parts of your own in `train`", "A representation loss of your own")
)


def commands(text: str, module: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of each command of a section, with its module in the present folder."""
    code, lines = (re.search(rf"^```{name}\n(.*?)^```$", text, re.M | re.S)[1] for name in ("python", "text"))
    (folder / f"{module}.py").write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, module, raising=False)
    return [shlex.split(line)[3:] for line in lines.splitlines()]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of all commands, in a folder with the module."""
    return [word for words in commands(PAGE, "my_parts", tmp_path, monkeypatch) for word in words]


def test_own_parts_train_resume_evaluate_and_load(page: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """All of the page at once."""
    short = ["env=cartpole", "prefill=0", "total_steps=40", "eval.every=0", "log.every=0", "run_dir=run"]
    assert train.main([*TINY, *page, *short]) == 0
    assert train.main(["run_dir=run", "total_steps=48"]) == 0
    assert "Resumed at step 40" in capsys.readouterr().out
    assert evaluate.main(["run", "--episodes", "1"]) == 0
    metrics = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = [one["train/loss_belief"] for one in metrics if "train/loss_belief" in one]
    assert losses and all(0 < loss < 0.01 for loss in losses)
    run = load("run")
    learner = make_learner(run.settings, run.agent)
    assert (type(run.agent.encoder).__name__, len(run.agent.encoder.mlp)) == ("MyEncoder", 1)
    assert (type(learner).__name__, type(learner.optimizer).__name__) == ("MyLearner", "Adam")
    learner.load_state_dict(run.saved.parts["learner"])


def test_arguments_that_a_part_does_not_take_are_told(page: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """When the part is made; nothing is trained."""
    small = [*TINY, "env=cartpole", "agent.encoder._target_=my_parts.MyEncoder", "agent.encoder.layer=1", "run_dir=run"]
    assert train.main(small) == 2
    told = capsys.readouterr().out
    assert "my_parts.MyEncoder cannot be made: " in told and "unexpected keyword argument 'layer'" in told


def test_an_own_representation_loss_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the decoder and without, in at most 30 lines and one word of configuration."""
    alone, beside = commands(TERM, "my_term", tmp_path, monkeypatch)
    assert len((tmp_path / "my_term.py").read_text().splitlines()) <= 30
    for name, words in (("alone", alone), ("beside", beside)):
        short = ["env=cartpole", "prefill=0", "total_steps=24", "eval.every=0", "log.every=0", f"run_dir={name}"]
        assert train.main([*TINY, *words, *short]) == 0
        found = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
        losses = [one for one in found if "train/loss_next_reward" in one]
        assert losses and all(("train/loss_reconstruction" in one) == (name == "beside") for one in losses)
