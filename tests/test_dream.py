"""The command that predicts an episode, and the predictions that training writes at evaluations."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image as Picture

from dreamer_torchrl.dream import main, table
from dreamer_torchrl.views.imagination import PredictionError
from dreamer_torchrl.views.report_page import newest_files
from tests.training.training_examples import assert_same_run, episodes, trained


def length_of(video: Path) -> int:
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("cartpole") / "run", "total_steps=40", "eval.every=20")


def test_predictions_at_evaluations_change_nothing(cartpole: Path, tmp_path: Path) -> None:
    """The same run to the last bit, and the same returns; a video at each evaluation if time has passed."""
    other = trained(tmp_path / "run", "total_steps=40", "eval.every=20", "eval.dream=1e-9")
    assert_same_run(cartpole, other)
    assert episodes(cartpole) == episodes(other) != []
    assert not (cartpole / "dreams").exists()
    names = {f"{step:012d}.{ending}" for step in (20, 40) for ending in ("mp4", "png")}
    assert {path.name for path in (other / "dreams").iterdir()} == names


def test_the_first_and_the_last_evaluation_always_have_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Between them not more often than was said; the loggers hear of it. One that cannot be written stops nothing."""
    run = tmp_path / "run"
    (run / "dreams" / "000000000020.mp4").mkdir(parents=True)  # in the way
    trained(run, "total_steps=50", "eval.every=20", "eval.dream=1000", "train_ratio=0")
    output = capsys.readouterr().out
    assert "The video 000000000020.mp4 was not written: " in output and "Finished and saved at step 50" in output
    assert {path.stem for path in (run / "dreams").iterdir()} == {f"{step:012d}" for step in (20, 50)}
    assert f"dream/video in {run / 'dreams' / '000000000050.mp4'}" in output


def test_several_actions_and_observations_at_once(tmp_path: Path) -> None:
    """A dict of spaces each way; the same pictures come from the command."""
    custom = ("env=custom", "env.factory=tests.training.training_toys:Drive", "eval.episodes=1", "eval.num_envs=1")
    run = trained(tmp_path / "run", *custom, "total_steps=14", "eval.dream=60")
    picture = run / "dreams" / "000000000014.png"
    drawn = np.asarray(Picture.open(picture))
    assert length_of(picture.with_suffix(".mp4")) == 13
    assert main([str(run), "--output", str(tmp_path / "again.mp4")]) == 0
    assert np.array_equal(np.asarray(Picture.open(tmp_path / "again.png")), drawn)


def test_what_it_writes_and_says(cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(cartpole, tmp_path / "run")
    assert main([str(run), "--steps", "9", "--context", "3", "--imagine", "4"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("Step 40: an episode of ")
    assert printed[1] == "Sees 3 steps from step 0 on, then predicts 6."
    assert printed[3].split("ahead")[:2] == [" " * 11 + "        1 step ", "       5 steps "]
    assert [line.split()[0] for line in printed[4:6]] == ["reward", "observation"]
    stem = run / "dreams" / "000000000040"
    files = [stem.with_name(stem.name + ending) for ending in (".mp4", ".png", "-imagined.mp4", "-imagined.png")]
    assert printed[6:] == [f"Written to {file}." for file in files]
    assert sorted((run / "dreams").iterdir()) == sorted(files)
    assert [length_of(file) for file in files[::2]] == [9, 7]
    assert newest_files(run / "dreams") == files[:2]  # the report shows the one with the truth beside it


def test_the_table() -> None:
    model, unchanged = {"reward": [0.5, 0.25], "x/y": [1.0, 2.0]}, {"reward": [2.0, 3.0], "x/y": [0, 4.0]}
    error = PredictionError((1, 15), model, unchanged)
    assert table(error).splitlines()[1:] == [
        "              1 step ahead      15 steps ahead",
        "reward     0.5000 (2.0000)     0.2500 (3.0000)",
        "x/y        1.0000 (0.0000)     2.0000 (4.0000)",
    ]
    assert table(PredictionError((), {}, {})) == "The episode is too short to measure the prediction error."


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--steps", "1"], "--steps: 1 is impossible: give at least 2"),
        (["--start", "-1"], "--start: -1 is impossible: give at least 0"),
        (["--context", "64"], "--context 64 leaves nothing to predict of --steps 64: give more."),
        (["--output", "dream.gif"], "end its name with .mp4"),
        (["--start", "5000"], "after --start 5000 and a context of 1 nothing is left to predict"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], complaint: str, cartpole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(cartpole), *arguments])
    assert end.value.code == 2 and complaint in capsys.readouterr().err


def test_a_place_where_nothing_can_be_written(
    cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main([str(cartpole), "--output", str(tmp_path / "file" / "dream.mp4")]) == 1
    assert "Give another --output." in capsys.readouterr().err
