"""The command that shows a dream, and the dreams that training draws."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image as Picture

from dreamer_torchrl.dream import main, table
from dreamer_torchrl.views.imagination import PredictionError
from dreamer_torchrl.views.report_page import newest_files
from tests.training.training_examples import assert_same_run, episodes, lines, trained
from tests.training.training_toys import Faulty


class Rising(Faulty):
    """Gives more in each episode than in the one before, whoever plays it."""

    episodes = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        Rising.episodes += 1
        return super().reset(seed=seed, options=options)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        seen, _, terminated, truncated, info = super().step(action)
        return seen, Rising.episodes / 10, terminated, truncated, info


def length_of(video: Path) -> int:
    """Frames of a video."""
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluated at steps 20, 40 and 50, without dreams."""
    return trained(tmp_path_factory.mktemp("cartpole") / "run", "total_steps=50", "eval.every=20")


@pytest.fixture(scope="module")
def dreaming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a dream at each evaluation."""
    options = ("total_steps=50", "eval.every=20", "eval.dream=1e-9")
    return trained(tmp_path_factory.mktemp("dreaming") / "run", *options)


# In training


def test_dreams_change_nothing(cartpole: Path, dreaming: Path) -> None:
    """The same run to the last bit, and the same returns."""
    assert_same_run(cartpole, dreaming)
    assert episodes(cartpole) == episodes(dreaming) != []
    assert not (cartpole / "dreams").exists()


def test_a_dream_at_each_evaluation_if_time_has_passed(dreaming: Path) -> None:
    names = {f"{step:012d}.{ending}" for step in (20, 40, 50) for ending in ("mp4", "png")}
    assert {path.name for path in (dreaming / "dreams").iterdir()} == names


def test_the_first_and_the_last_evaluation_always_dream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Between them not more often than was said; every sink hears of it."""
    run = trained(tmp_path / "run", "total_steps=50", "eval.every=20", "eval.dream=1000", "train_ratio=0")
    assert {path.stem for path in (run / "dreams").iterdir()} == {f"{step:012d}" for step in (20, 50)}
    assert f"dream/video in {run / 'dreams' / '000000000050.mp4'}" in capsys.readouterr().out


def test_the_evaluation_that_solves_the_task_is_the_last(tmp_path: Path) -> None:
    custom = ("env=custom", "env.factory=tests.test_dream:Rising", "eval.every=20", "train_ratio=0")
    run = trained(tmp_path / "run", *custom, "eval.stop_at=18", "eval.dream=1000", "total_steps=999")
    evaluated = [line["step"] for line in lines(run) if "eval/return" in line]
    assert len(evaluated) > 2
    assert sorted(path.stem for path in (run / "dreams").glob("*.mp4")) == [f"{evaluated[i]:012d}" for i in (0, -1)]


def test_a_dream_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (run / "dreams").mkdir(parents=True)
    (run / "dreams" / "000000000020.mp4").mkdir()  # in the way
    trained(run, "total_steps=20", "eval.dream=60", "train_ratio=0")
    output = capsys.readouterr().out
    assert "The video 000000000020.mp4 was not written: " in output and "Finished and saved at step 20" in output


def test_several_actions_and_observations_at_once(tmp_path: Path) -> None:
    """A dict of spaces each way; the same pictures come from the command."""
    custom = ("env=custom", "env.factory=tests.training.training_toys:Drive", "eval.episodes=1", "eval.num_envs=1")
    run = trained(tmp_path / "run", *custom, "total_steps=14", "eval.dream=60")
    picture = run / "dreams" / "000000000014.png"
    drawn = np.asarray(Picture.open(picture))
    assert length_of(picture.with_suffix(".mp4")) == 13
    assert main([str(run), "--output", str(tmp_path / "again.mp4")]) == 0
    assert np.array_equal(np.asarray(Picture.open(tmp_path / "again.png")), drawn)


# The command


def test_what_it_writes_and_says(cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(cartpole, tmp_path / "run")
    assert main([str(run), "--steps", "9", "--context", "3", "--imagine", "4"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("Step 50: an episode of ")
    assert printed[1] == "Sees 3 steps from step 0 on, then dreams 6."
    assert printed[3].split("ahead")[:2] == [" " * 11 + "        1 step ", "       5 steps "]
    assert [line.split()[0] for line in printed[4:6]] == ["reward", "observation"]
    stem = run / "dreams" / "000000000050"
    files = [stem.with_name(stem.name + ending) for ending in (".mp4", ".png", "-imagined.mp4", "-imagined.png")]
    assert printed[6:] == [f"Written to {file}." for file in files]
    assert sorted((run / "dreams").iterdir()) == sorted(files)
    assert [length_of(file) for file in files[::2]] == [9, 7]
    assert newest_files(run / "dreams") == files[:2]  # the report shows the one with the truth beside it


def test_images_in_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From another step on, of another seed, into another place."""
    run = trained(tmp_path / "run", "env=grid_reach", "total_steps=30", "env.num_envs=2", "eval.every=0")
    words = [str(run), "--steps", "12", "--start", "4", "--seed", "3", "--output", str(tmp_path / "grid.mp4")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "pixels" in printed and "from step 4 on" in printed
    assert length_of(tmp_path / "grid.mp4") <= 12 and not (run / "dreams").exists()
    assert (tmp_path / "grid.png").exists()


def test_the_table() -> None:
    error = PredictionError(
        (1, 15), {"reward": [0.5, 0.25], "x/y": [1.0, 2.0]}, {"reward": [2.0, 3.0], "x/y": [0, 4.0]}
    )
    assert table(error).splitlines()[1:] == [
        "              1 step ahead      15 steps ahead",
        "reward     0.5000 (2.0000)     0.2500 (3.0000)",
        "x/y        1.0000 (0.0000)     2.0000 (4.0000)",
    ]
    assert table(PredictionError((), {}, {})) == "The episode is too short to measure how well it is foreseen."


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--steps", "1"], "--steps 1 is impossible: give at least 2"),
        (["--context", "0"], "--context 0 is impossible: give at least 1"),
        (["--start", "-1"], "--start -1 is impossible: give at least 0"),
        (["--imagine", "0"], "--imagine 0 is impossible: give at least 1"),
        (["--context", "64"], "--context 64 leaves nothing to dream of 64 steps"),
        (["--output", "dream.gif"], "end its name with .mp4"),
        (["--checkpoint", "7"], "has no checkpoint '7'; it has "),
        (["--start", "5000"], "after --start 5000 and a context of 1 nothing is left to dream"),
    ],
)
def test_wrong_words(words: list[str], complaint: str, cartpole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(cartpole), *words])
    assert end.value.code == 2 and complaint in capsys.readouterr().err


def test_a_place_where_nothing_can_be_written(
    cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main([str(cartpole), "--output", str(tmp_path / "file" / "dream.mp4")]) == 1
    assert "Give another --output." in capsys.readouterr().err
