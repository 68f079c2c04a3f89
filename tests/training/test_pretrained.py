"""Agents that come with the package, and how any run becomes one: weights, a card, and nothing of the run."""

from __future__ import annotations

import json
import re
import shutil
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamer_torchrl import dream, evaluate, export, load
from dreamer_torchrl.agents.player import as_indices
from dreamer_torchrl.checkpoint.manifest import DamagedFile
from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.config.compose import environment_name
from dreamer_torchrl.modules.spaces import Image
from dreamer_torchrl.training.hub import packed
from dreamer_torchrl.training.pretrained import CARD, PRETRAINED, WEIGHTS, pretrained_names, read_card
from tests.checkpoint.checkpoint_examples import flip_a_bit
from tests.training.training_examples import trained

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", pretrained_names())
def test_a_pretrained_agent_is_whole(name: str) -> None:
    """Loading compares the checksum and takes no environment; the file is small, the card complete."""
    run = load(f"pretrained:{name}")
    card, setup = run.card, ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert run.path == PRETRAINED / name and run.saved is None and run.step == card.steps
    assert card.parameters == sum(parameter.numel() for parameter in run.agent.parameters())
    assert card.parameters * 4 < (PRETRAINED / name / WEIGHTS).stat().st_size < 3_000_000
    assert card.licence == setup["metadata"]["license"] and card.command.startswith("python -m dreamer_torchrl.train ")
    assert card.score["episodes"] >= 10 and card.minutes > 0 and re.fullmatch(r"[0-9a-f]{7}(-dirty)?", card.commit)
    spaces = {key: as_indices(space) for key, space in run.agent.spaces.items()}
    kinds = {key: torch.uint8 if isinstance(space, Image) else space.dtype for key, space in spaces.items()}
    observation = {key: torch.zeros(space.shape, dtype=kinds[key]).numpy() for key, space in spaces.items()}
    assert run.act(observation)[1].belief.shape == (1, run.settings.size.belief)


def test_all_agents_together_are_small() -> None:
    assert "cartpole" in pretrained_names()
    assert sum(file.stat().st_size for file in PRETRAINED.rglob("*") if file.is_file()) < 30_000_000


def test_pages_name_only_agents_that_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "benchmarks" / "leaderboard.md", *(ROOT / "docs").glob("*.md")]
    named = {name for page in pages for name in re.findall(r"\bpretrained[:/](\w+)", page.read_text())}
    assert "cartpole" in named and named - {"NAME"} <= set(pretrained_names())


def test_cartpole_balances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder without a run, where nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(["pretrained:cartpole", "--episodes", "3"]) == 0
    printed = capsys.readouterr().out
    assert float(re.search(r"mean return ([\d.]+)", printed)[1]) >= 475 and "Written" not in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("main", [dream.main, evaluate.main, export.main], ids=["dream", "evaluate", "export"])
def test_a_name_that_is_not_there(main: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["pretrained:cartpol"])
    *_, told = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert told.endswith(f"There is no pretrained agent 'cartpol'; there are: {', '.join(pretrained_names())}.")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(PRETRAINED / "cartpole", tmp_path / "copy")


def test_a_damaged_agent_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights by their checksum, a card where it is no card any more; it is said what helps."""
    assert load(copy).card == load("pretrained:cartpole").card
    flip_a_bit(copy / WEIGHTS)
    with pytest.raises(SystemExit) as end:
        evaluate.main([str(copy)])
    assert end.value.code == 3
    assert f"{copy / WEIGHTS} has another checksum than its card says: install" in capsys.readouterr().err
    (copy / WEIGHTS).unlink()
    with pytest.raises(DamagedFile, match="cannot be read"):
        load(copy)
    (copy / CARD).write_text((copy / CARD).read_text()[:500])
    with pytest.raises(DamagedFile, match=r"card.json is not the card of a pretrained agent .*: install"):
        load(copy)


def test_what_only_a_run_has(copy: Path) -> None:
    """Checkpoints, a replay, and code of its own: a card from a stranger cannot make `load` call anything."""
    with pytest.raises(ConfigError, match="weights only: it has no checkpoint '000000000040'"):
        load(copy, "000000000040")
    with pytest.raises(ValueError, match="has no replay"):
        load(copy).recorded(3)
    card, mkdir = read_card(copy), {"_target_": "os.mkdir", "path": str(copy / "made")}
    inner = {"_target_": "dreamer_torchrl.modules.heads.NormalHead", "kind": mkdir}
    for name, part in (("encoder", mkdir), ("layers", mkdir), ("reward", inner)):
        own = {"agent": {name: part}}
        (copy / CARD).write_text(replace(card, configuration=card.configuration | own).text())
        with pytest.raises(ConfigError, match=rf"no code for its agent\.{name}"):
            load(copy)
    assert not (copy / "made").exists()


@pytest.mark.parametrize("environment", ["env=pendulum", "env=grid_reach", "env=pendulum algorithm=dreamer_v1"])
def test_a_run_becomes_a_pretrained_agent(environment: str, tmp_path: Path) -> None:
    """The same weights, specs and bounds, so the same actions; also with images."""
    run = load(trained(tmp_path / "run", *environment.split(), "total_steps=24", "train_ratio=1", "eval.every=0"))
    card, weights = packed(run)
    assert card.score is None and card.task == environment_name(run.settings) and card.size == "own"
    assert environment.split()[0] in card.command and "run_dir" not in card.command
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / WEIGHTS).write_bytes(weights)
    (tmp_path / "agent" / CARD).write_text(card.text(), encoding="utf-8")
    again = load(tmp_path / "agent")
    assert read_card(tmp_path / "agent") == card and packed(again) == (card, weights)
    ours, theirs = again.agent.state_dict(), run.agent.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], value) for key, value in theirs.items())
    assert replace(again.settings, run_dir="") == replace(run.settings, run_dir="")
    key, step = run.agent.encoder.in_keys[0], run.recorded(1)[0, 0]
    (one, _), (other, _) = (loaded.act({key: step[key].numpy()}) for loaded in (run, again))
    assert np.array_equal(one, other)
    assert len((tmp_path / "agent" / CARD).read_text()) < 8_000


def test_the_score_is_that_of_the_newest_checkpoint(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "env=cartpole", "total_steps=24", "train_ratio=0", "eval.every=0")
    assert evaluate.main([str(run), "--episodes", "2", "--seed", "5"]) == 0
    result = json.loads((run / "evaluation.json").read_text())
    score = packed(load(run))[0].score
    assert score == {name: result[name] for name in ("mean", "deviation", "seed", "deterministic")} | {"episodes": 2}
    trained(run, "env=cartpole", "train_ratio=0", "eval.every=0", "total_steps=32")
    assert packed(load(run))[0].score is None
