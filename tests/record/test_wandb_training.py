"""W&B for real: trainings as a user types them, read back with the wandb library's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dreamer_torchrl.config.compose import load, seeds_group, settings_from, wandb_place
from dreamer_torchrl.training.build import make_agent, make_envs
from dreamer_torchrl.training.evaluation import Evaluator
from tests.record.wandb_examples import environment, offline_folders, records, rows
from tests.training.training_examples import lines, words


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("cartpole")
    (home / "run").mkdir()
    own = ("env=cartpole", "env.num_envs=2", "seed=3", "total_steps=120", "eval.every=40", "log.every=0.1")
    own += ("learner.learning_rate=0.02", "wandb.mode=offline", "wandb.artifact=true", "eval.video=true")
    without = [word for word in words(Path("run"), *own) if not word.startswith("experiment=")]
    command = [sys.executable, "-m", "dreamer_torchrl.train", *without]
    outcome = subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    (folder,) = offline_folders(home / "run")
    assert f"W&B: to upload this run, use: wandb sync {folder.relative_to(home)}\n" in outcome.stdout
    return home / "run"


@pytest.mark.slow
def test_a_run_says_what_it_is(cartpole: Path) -> None:
    """Group, name with the seed, tags, kind of job, and the whole configuration."""
    (told,) = records(offline_folders(cartpole)[0], "run")
    assert told["run_group"].startswith("cartpole-v1 env.num_envs=2 learner.imagination_length=3")
    assert (told["display_name"], told["job_type"]) == ("run seed 3", "train")
    assert told["tags"] == ["cartpole-v1", "own"]
    config = told["config"]["update"]
    saved = yaml.safe_load((cartpole / "config.yaml").read_text())
    assert {key: config[key] for key in saved} == saved
    assert (config["experiment"], config["environment"]) == ("laptop", "cartpole-v1")
    assert config["versions"]["torch"] == torch.__version__


@pytest.mark.slow
def test_the_metrics_are_there_by_step(cartpole: Path) -> None:
    """All that `metrics.jsonl` says of a step is in one row, with frames and hours to draw it over; and the videos."""
    logged = {row["_step"]: row for row in rows(offline_folders(cartpole)[0])}
    told: dict[int, dict[str, list[float]]] = {}
    for line in lines(cartpole):
        for key, value in line.items():
            told.setdefault(line["step"], {}).setdefault(key, []).append(value)
    assert list(logged) == list(told)
    for step, values in told.items():
        assert {"count/frames", "time/hours"} <= logged[step].keys()
        for key in values.keys() - {"step"}:
            expected = "NaN" if None in values[key] else pytest.approx(sum(values[key]) / len(values[key]))
            assert logged[step][key] == expected, (step, key)
    for step in (40, 80, 120):
        film = (cartpole / "videos" / f"{step:012d}.mp4").read_bytes()
        assert (offline_folders(cartpole)[0] / "files" / logged[step]["eval/video.path"]).read_bytes() == film


@pytest.mark.slow
def test_the_best_agent_is_there_and_plays_as_it_did(cartpole: Path) -> None:
    """Of the first evaluation that no other surpassed; its files alone give the same return again."""
    evaluations = [(line["eval/return"], -line["step"]) for line in lines(cartpole) if "eval/return" in line]
    best, step = max(evaluations)
    (artifact,) = records(offline_folders(cartpole)[0], "artifact")
    assert json.loads(artifact["metadata"]) == {"step": -step, "return": best} and artifact["type"] == "model"
    files = {entry["path"]: Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]}
    settings = settings_from(yaml.safe_load(files["config.yaml"].read_text()))
    agent = make_agent(settings, make_envs(settings, "specs", 1))
    weights = np.load(files["weights.npz"], allow_pickle=False)
    agent.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    assert Evaluator(settings, agent).run().mean == best


GROUPS = [
    ("env=cartpole seed=1", "cartpole-v1"),
    ("env=cartpole seed=2 device=cpu eval.every=100 threads=1 wandb.mode=offline logger=wandb", "cartpole-v1"),
    ("env=cartpole seed=2 learner.horizon=50", "cartpole-v1 learner.horizon=50"),
    (
        "learner.horizon=50 size=size1m env=cartpole train_ratio=2",
        "cartpole-v1 learner.horizon=50 size=size1m train_ratio=2",
    ),
    ("learner.horizon=50 learner.horizon=60", "cartpole-v1 learner.horizon=60"),
    ("experiment=null", "cartpole-v1"),
    ("env=lunarlander", "lunarlander-v3"),
    ("env=pong experiment=atari100k", "atari100k-pong"),
    ("env=pendulum experiment=official", "official-pendulum-v1"),
]


@pytest.mark.parametrize(("words", "group"), GROUPS, ids=[words for words, _ in GROUPS])
def test_seeds_of_one_experiment_are_one_group(words: str, group: str) -> None:
    """And nothing else is, so that a mean over a group is one over seeds."""
    assert seeds_group(load(words.split())) == group


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/first", "first seed 3"),
        ("a sweep/seed=3", "a sweep seed=3"),
        ("a sweep/env=pong,seed=3", "a sweep env=pong,seed=3"),
        ("a sweep/size=nano", "a sweep size=nano seed 3"),
        ("a sweep/seed=30", "a sweep seed=30 seed 3"),
    ],
)
def test_a_run_is_called_by_its_folder_and_seed(folder: str, name: str) -> None:
    assert wandb_place(load(["seed=3"]), Path(folder))["name"] == name


def test_labels_are_no_longer_than_wandb_takes() -> None:
    long = ["env=grid_reach", *(f"learner.{key}=0.5" for key in ("actor_scale", "value_scale", "reward_scale"))]
    long += ["learner.continue_scale=0.5", "learner.dynamics_scale=0.5"]
    places = [wandb_place(load([*long, f"unimix=0.{number}"]), Path("x" * 200)) for number in (1, 2)]
    assert len({place["group"] for place in places}) == 2
    assert all(len(place["group"]) == len(place["name"]) == 128 for place in places)
