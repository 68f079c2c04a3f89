"""W&B for real: trainings as a user types them, read back with the wandb library's own reader."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dreamer_torchrl.config.compose import load, settings_from
from dreamer_torchrl.config.labels import seeds_group, wandb_place
from dreamer_torchrl.training.build import evaluation_streams, make_agent, make_streams, run_evaluation
from tests.record.wandb_examples import environment, offline_folders, records, rows
from tests.training.training_examples import TINY, lines

COMMAND = (sys.executable, "-m", "dreamer_torchrl.train")
TYPED = (
    *(word for word in TINY if not word.startswith(("experiment=", "total_steps=", "log.every="))),
    *("wandb.mode=offline", "eval.video=true"),
)


def train(home: Path, *words: str) -> str:
    """Type a training in a folder, wait for its end, and give what it printed."""
    outcome = subprocess.run(
        [*COMMAND, *TYPED, *words], cwd=home, env=environment(home), capture_output=True, text=True, timeout=300
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an evaluation now and then, and agents sent."""
    home = tmp_path_factory.mktemp("cartpole")
    words = ("env=cartpole", "env.num_envs=2", "seed=3", "total_steps=120", "eval.every=20", "log.every=0.1")
    printed = train(home, *words, "learner.learning_rate=0.02", "wandb.artifact=true", "run_dir=run")
    (folder,) = offline_folders(home / "run")
    assert f"W&B: to upload this run, use: wandb sync {folder.relative_to(home)}\n" in printed
    return home / "run"


@pytest.fixture(scope="module")
def folder(cartpole: Path) -> Path:
    """What W&B wrote of it."""
    return offline_folders(cartpole)[0]


def numbers(folder: Path) -> list[dict[str, Any]]:
    """Rows but for those of videos."""
    return [row for row in rows(folder) if not any(key.endswith("._type") for key in row)]


def plain(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what only W&B is told, and with numbers that are not finite as in ``metrics.jsonl``."""
    return [
        {key: None if value == "NaN" else value for key, value in row.items() if key != "time/hours"} for row in items
    ]


def test_a_run_says_what_it_is(cartpole: Path, folder: Path) -> None:
    """Group, name with the seed, tags, kind of job, and the whole configuration."""
    (told,) = records(folder, "run")
    assert told["run_group"].startswith("cartpole env.num_envs=2 learner.imagination_length=3")
    assert (told["display_name"], told["job_type"]) == ("run seed 3", "train")
    assert told["tags"] == ["cartpole", "cartpole-v1", "own"]
    config = told["config"]["update"]
    saved = yaml.safe_load((cartpole / "config.yaml").read_text())
    assert {key: config[key] for key in saved} == saved
    assert (config["experiment"], config["environment"]) == ("cartpole", "cartpole-v1")
    assert config["versions"]["torch"] == torch.__version__


def test_curves_are_drawn_over_steps_frames_or_hours(folder: Path) -> None:
    """Steps unless somebody chooses otherwise; each row of numbers has all three."""
    assert {"glob_name": "*", "options": {"defined": True, "step_sync": True}, "step_metric": "step"} in records(
        folder, "metric"
    )
    logged = numbers(folder)
    assert len(logged) > 10
    for row in logged:
        assert {"step", "count/frames", "time/hours"} <= row.keys()
    hours = [row["time/hours"] for row in logged]
    assert hours == sorted(hours) and 0 < hours[-1] < 0.05


def test_every_line_of_the_metrics_is_there_once(cartpole: Path, folder: Path) -> None:
    """In the same order, with the same numbers."""
    logged = numbers(folder)
    assert plain(logged) == lines(cartpole)


def test_evaluation_videos_are_there(cartpole: Path, folder: Path) -> None:
    """One for each evaluation, the file itself."""
    films = {row["step"]: row for row in rows(folder) if "eval/video.path" in row}
    assert list(films) == [20, 40, 60, 80, 100, 120]
    for step, film in films.items():
        bytes_ = (cartpole / "videos" / f"{step:012d}.mp4").read_bytes()
        assert (folder / "files" / film["eval/video.path"]).read_bytes() == bytes_
        assert film["eval/video.sha256"] == hashlib.sha256(bytes_).hexdigest()


def test_the_best_agents_are_there_and_play_as_they_did(cartpole: Path, folder: Path) -> None:
    """One for each evaluation that was better than all before; its files alone give the same return again."""
    best, expected = -np.inf, []
    for line in lines(cartpole):
        if line.get("eval/return", -np.inf) > best:
            best = line["eval/return"]
            expected.append({"step": line["step"], "return": best})
    artifacts = records(folder, "artifact")
    assert [json.loads(artifact["metadata"]) for artifact in artifacts] == expected
    assert all(artifact["type"] == "model" and "best" in artifact["aliases"] for artifact in artifacts)
    assert len({artifact["name"] for artifact in artifacts}) == 1
    files = {entry["path"]: Path(entry["local_path"]) for entry in artifacts[-1]["manifest"]["contents"]}
    assert set(files) == {"weights.npz", "config.yaml"}
    settings = settings_from(yaml.safe_load(files["config.yaml"].read_text()))
    agent = make_agent(settings, make_streams(settings, "specs", 1))
    weights = np.load(files["weights.npz"], allow_pickle=False)
    agent.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    assert run_evaluation(settings, agent, evaluation_streams(settings)).mean == best


def test_an_image_task(tmp_path: Path) -> None:
    """Its videos arrive, of an evaluation and of a dream; group, tags and name are the user's; no agents unasked."""
    train(
        tmp_path,
        *("env=grid_reach", "total_steps=40", "eval.episodes=1", "eval.num_envs=1", "eval.dream=1", "run_dir=run"),
        *("wandb.group=mine", "wandb.tags=[first, second one]", "wandb.name=it"),
    )
    (folder,) = offline_folders(tmp_path / "run")
    (told,) = records(folder, "run")
    assert (told["run_group"], told["tags"], told["display_name"]) == ("mine", ["first", "second one"], "it")
    for name in ("eval/video.path", "dream/video.path"):
        (film,) = [row for row in rows(folder) if name in row]
        assert (folder / "files" / film[name]).stat().st_size > 500
    assert records(folder, "artifact") == []
    assert not (tmp_path / "run/wandb/best").exists()


def test_the_runs_of_a_sweep(tmp_path: Path) -> None:
    """Each is a run of its own; they are one group, whose members say their seeds."""
    words = ("--multirun", "seed=0,1", "env=cartpole", "total_steps=20", "eval.every=0", "run_dir=sweep")
    printed = train(tmp_path, *words)
    told = []
    for seed in (0, 1):
        run_dir = tmp_path / f"sweep/seed={seed}"
        (folder,) = offline_folders(run_dir)
        assert f"wandb sync {folder.relative_to(tmp_path)}\n" in printed
        told += records(folder, "run")
        assert told[-1]["run_id"] == (run_dir / "wandb/run_id").read_text().strip()
    assert len(told) == 2
    assert [one["config"]["update"]["seed"] for one in told] == [0, 1]
    assert len({one["run_id"] for one in told}) == 2
    assert len({one["run_group"] for one in told}) == 1 and told[0]["run_group"].startswith("cartpole ")


def kind(row: dict[str, Any]) -> tuple[int, Any, bool, bool]:
    """What can be there once only."""
    return row["step"], row.get("episode/environment"), "eval/return" in row, "rate/steps_per_second" in row


def test_a_killed_run_goes_on_without_a_gap_or_a_second_time(tmp_path: Path) -> None:
    """Killed with all its processes while it trains, and continued: each episode and evaluation once, in order."""
    words = ("env=cartpole", "env.num_envs=2", "eval.every=40", "eval.video=false", "run_dir=run")
    words += ("log.every=0.01", "checkpoint.every=0.2")
    run_dir = tmp_path / "run"
    with (tmp_path / "printed").open("w") as printed:
        process = subprocess.Popen(
            [*COMMAND, *TYPED, *words, "total_steps=1e6"],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=printed,
            start_new_session=True,
        )
        try:
            while not (list((run_dir / "checkpoints").glob("0*")) and lines_so_far(run_dir) > 40):
                assert process.poll() is None
                time.sleep(0.02)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    end = lines(run_dir)[-1]["step"] + 20
    train(tmp_path, *words, f"total_steps={end}")
    first, second = offline_folders(run_dir)
    ids = {records(folder, "run")[0]["run_id"] for folder in (first, second)}
    before, after = rows(first), rows(second)
    logged = [*before, *after]
    assert ids == {(run_dir / "wandb/run_id").read_text().strip()}
    assert [row["step"] for row in logged] == sorted(row["step"] for row in logged)
    assert {kind(row) for row in before}.isdisjoint(kind(row) for row in after)
    steps = [row["step"] for row in logged if "rate/steps_per_second" in row]
    assert max(later - earlier for earlier, later in pairwise(steps)) <= 20 and steps[-1] == end
    told = [line for line in lines(run_dir) if "rate/steps_per_second" not in line]
    assert plain([row for row in logged if "rate/steps_per_second" not in row]) == told


def lines_so_far(run_dir: Path) -> int:
    """Lines of a run that is going on."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


GROUPS = [
    ("env=cartpole seed=1", "cartpole"),
    ("env=cartpole seed=2 device=cpu eval.every=100 threads=1 wandb.mode=offline logger=wandb", "cartpole"),
    ("env=cartpole seed=2 learner.horizon=50", "cartpole learner.horizon=50"),
    (
        "learner.horizon=50 size=size1m env=cartpole train_ratio=2",
        "cartpole learner.horizon=50 size=size1m train_ratio=2",
    ),
    ("learner.horizon=50 learner.horizon=60", "cartpole learner.horizon=60"),
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
    assert wandb_place(load(["seed=3"]), Path(folder)).name == name


def test_labels_are_no_longer_than_wandb_takes() -> None:
    """Long ones still differ."""
    long = ["env=grid_reach", *(f"learner.{key}=0.5" for key in ("actor_scale", "value_scale", "reward_scale"))]
    long += ["learner.continue_scale=0.5", "learner.dynamics_scale=0.5"]
    places = [wandb_place(load([*long, f"unimix=0.{number}"]), Path("x" * 200)) for number in (1, 2)]
    assert len({place.group for place in places}) == 2
    assert all(len(place.group) == len(place.name) == 128 for place in places)


WRONG = [
    ("wandb.tags=one", "wandb.tags=one should be a list, such as [first, second]."),
    ("wandb.tags=['']", "a tag has 1 to 64 characters"),
    (f"wandb.group={'x' * 129}", "give 1 to 128 characters"),
    ("wandb.mode=ofline", "Did you mean 'offline'?"),
    ("wandb.artifact=best", "should be true or false"),
]


@pytest.mark.parametrize(("word", "told"), WRONG, ids=[word[:30] for word, _ in WRONG])
def test_what_wandb_would_refuse_is_refused_before(word: str, told: str) -> None:
    """W&B itself says so when the training has begun."""
    with pytest.raises(ValueError) as caught:
        load([word])
    assert told in str(caught.value)
