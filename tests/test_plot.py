"""The plot command: what its picture shows of real runs, where its files go, and what it says to mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dreamer_torchrl.config.compose import Configuration, load
from dreamer_torchrl.plot import main, read_runs
from dreamer_torchrl.views.curves import Axis, Run, read_run
from dreamer_torchrl.views.figures import REFERENCE
from dreamer_torchrl.views.plots import draw
from tests.training.training_examples import TINY, lines, trained


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run, resumed once; from its numbers a second seed that is not as far, and a run in another environment."""
    folder = tmp_path_factory.mktemp("runs")
    first = trained(folder / "first", "log.every=0", "eval.every=20", "total_steps=40")
    trained(first, "log.every=0", "eval.every=20", "total_steps=60")
    for name, *words in (("second", "seed=1"), ("swing", "env=pendulum")):
        load([*TINY, "log.every=0", *words, f"run_dir={folder / name}"]).save(folder / name)
        records = [line for line in lines(first) if line["step"] <= 50]
        records = [line | {"eval/return": -400.0} if "eval/return" in line else line for line in records]
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    return folder


def panel(figure: Figure, title: str) -> Axes:
    """The diagram with this title."""
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == title]
    return axes


def legend(figure: Figure) -> list[str]:
    """What the figure explains."""
    return [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]


def test_the_picture_of_a_run_shows_what_it_measured(runs: Path) -> None:
    (run,) = read_runs([runs / "first"])
    figure = draw([run])
    evaluations = next(line for line in panel(figure, "Learning curve").lines if line.get_marker() == "o")
    assert (
        evaluations.get_xydata().tolist()
        == np.stack([run.curve("eval/return").x, run.curve("eval/return").y], axis=1).tolist()
    )
    assert evaluations.get_xdata().tolist() == [20, 40, 60]
    episodes = panel(figure, "Learning curve").lines[0]
    assert episodes.get_xdata().tolist() == run.curve("episode/return").x.tolist() != []
    assert episodes.get_color() != evaluations.get_color()
    assert legend(figure) == ["training episodes", "evaluations", "single values"]  # of the throughput
    assert panel(figure, "Loss: reconstruction").lines and panel(figure, "Throughput: updates").lines
    assert panel(figure, "Learning curve").get_xlabel() == "environment steps (decisions of the agent)"
    assert figure.get_suptitle() == "CartPole-v1, 1 seed"


def test_seeds_are_a_median_in_a_band_and_pale_where_one_is_missing(runs: Path) -> None:
    figure = draw(read_runs([runs / "first", runs / "second"]), metrics=["eval/return"])
    axes = panel(figure, "Return in evaluations")
    pale, line = (line for line in axes.lines if line.get_color() != REFERENCE)
    first = read_run(runs / "first", {}).curve("eval/return").y
    medians = (first[:2] - 400) / 2
    assert line.get_ydata()[:2] == pytest.approx(medians) and np.isnan(line.get_ydata()[2])
    assert pale.get_ydata() == pytest.approx([*medians, first[2]]) and pale.get_alpha() < 1
    band = axes.collections[0].get_paths()[0].vertices  # half as wide as the two are apart
    assert band[:, 1].min() == pytest.approx(min(medians - (first[:2] + 400) / 4))
    assert legend(figure) == ["middle half of the runs", "not all runs have come here"]


def test_each_environment_has_its_own_learning_curve(runs: Path) -> None:
    figure = draw(read_runs(runs.iterdir()), title="All of them")
    cart, swing = panel(figure, "CartPole-v1"), panel(figure, "Pendulum-v1")
    assert {"CartPole-v1, 2 seeds", "Pendulum-v1, 1 seed"} <= set(legend(figure))
    assert min(line.get_ydata().min() for line in swing.lines if line.get_marker() == "o") == -400
    assert len([line for line in cart.lines if line.get_marker() == "o"]) == 1
    assert figure.get_suptitle() == "All of them"
    losses = panel(figure, "Loss: actor").lines
    assert len({line.get_color() for line in losses}) == 2


def test_what_others_have_reached_is_gray(runs: Path, tmp_path: Path) -> None:
    axes = panel(draw(read_runs([runs / "first"])), "Learning curve")
    assert [line.get_ydata()[0] for line in axes.lines if line.get_color() == REFERENCE] == [455]
    assert "TrustworthyDreamer: 455 ± 51 (2.5 h)" in [text.get_text() for text in axes.texts]
    assert not panel(axes.figure, "Loss: actor").texts


def walker(folder: Path, repeat: int) -> Path:
    """A run in an environment with an official curve; dm_control need not be there."""
    base = load([])
    env = {"family": "dmc", "task": "walker_walk", "image": False, "proprio": True, "action_repeat": repeat}
    Configuration(base.settings, base.values | {"env": env}, []).save(folder)
    records = [{"step": step // repeat, "episode/return": step / 100} for step in range(1000, 35_000, 1000)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_the_official_curve_counts_frames(tmp_path: Path) -> None:
    """Over steps it is squeezed by the action repeat, and left out where runs differ in it; hours it has none."""
    two, one = read_runs([walker(tmp_path / "two", 2)]), read_runs([walker(tmp_path / "one", 1)])

    def official(runs: list[Run], axis: Axis = "steps") -> list[float]:
        figure = draw(runs, axis, ["episode/return"])
        gray = [line for line in panel(figure, "Return of training episodes").lines if line.get_color() == REFERENCE]
        curves = [line for line in gray if len(line.get_xdata()) > 2]
        assert len(curves) == ("official code (action repeat 2)" in legend(figure))
        return curves[0].get_xdata().tolist() if curves else []

    assert official(two) == [5_000, 10_000, 15_000, 17_000]
    assert official(two, "frames") == official(one) == [10_000, 20_000, 30_000, 34_000]
    assert official([*one, *two]) == [] and official(one, "hours") == []
    assert official([*one, *two], "frames") == [10_000, 20_000, 30_000, 34_000]


def test_smoothing_leaves_evaluations_and_shows_single_values(tmp_path: Path) -> None:
    folder = walker(tmp_path / "run", 1)
    with (folder / "metrics.jsonl").open("a") as file:
        for step in (35_000, 36_000, 37_000):
            file.write(json.dumps({"step": step, "eval/return": step % 2_000, "episode/return": 0}) + "\n")
    figure = draw(read_runs([folder]), smoothing=3)
    own = [line for line in panel(figure, "Learning curve").lines if line.get_color() != REFERENCE]
    dots, smoothed, evaluations = own
    assert dots.get_marker() == "." and dots.get_ydata()[-4:].tolist() == [340, 0, 0, 0]
    assert smoothed.get_ydata()[-4:] == pytest.approx([670 / 3, 340 / 3, 0, 0])
    assert evaluations.get_ydata().tolist() == [1000, 0, 1000]
    assert legend(figure)[-1] == "lines: means of 3 neighbours"


def test_a_long_run_is_drawn_with_few_points(tmp_path: Path) -> None:
    folder = walker(tmp_path / "run", 1)
    records = ({"step": step, "episode/return": step % 7, "train/loss_actor": 1.0} for step in range(50_000))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    figure = draw(read_runs([folder]))
    assert max(len(line.get_xdata()) for axes in figure.axes for line in axes.lines) <= 400


@pytest.mark.parametrize(
    ("words", "files"),
    [
        ([], ["RUN/plot.png", "RUN/plot.svg"]),
        (["--output", "here.svg", "--metric", "eval/return"], ["here.svg"]),
        (["--output", "new/v1.2", "--x", "hours", "--metric", "train/entropy"], ["new/v1.2.png", "new/v1.2.svg"]),
        (
            ["--output", ".", "--smooth", "5", "--metric", "eval/return", "--metric", "train/objective"],
            ["plot.png", "plot.svg"],
        ),
    ],
)
def test_where_the_files_go(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    files: list[str],
) -> None:
    """Each is a picture of its kind, and named."""
    run = shutil.copytree(runs / "first", tmp_path / "RUN", ignore=shutil.ignore_patterns("checkpoints"))
    before = set(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert main([str(run.name), *words]) == 0
    written = {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert written == set(files)
    said = capsys.readouterr().out
    for file in files:
        assert file.removeprefix("./") in said
        if file.endswith("png"):
            assert Image.open(tmp_path / file).size[0] > 1000
        else:
            assert ElementTree.parse(tmp_path / file).getroot().tag.endswith("svg")


def test_two_runs_are_drawn_where_the_command_is(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(runs / "first"), str(runs / "second"), str(runs / "first"), "--metric", "eval/return"]) == 0
    assert capsys.readouterr().out == "Drawn: plot.png, plot.svg.\n"
    assert (tmp_path / "plot.svg").is_file() and not (runs / "first" / "plot.svg").exists()


def test_a_sweep_is_all_of_its_runs_that_have_begun(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a run that is named as well, which is drawn once."""
    sweep, left_out = tmp_path / "sweep", shutil.ignore_patterns("checkpoints")
    shutil.copytree(runs, sweep, ignore=left_out)
    shutil.copytree(runs / "first", sweep / "third", ignore=shutil.ignore_patterns("checkpoints", "metrics.jsonl"))
    (sweep / "notes").mkdir()
    found = read_runs([sweep, sweep / "second"])
    assert [run.folder.name for run in found] == ["first", "second", "swing"]
    assert main([str(sweep), "--metric", "eval/return"]) == 0
    assert capsys.readouterr().out == f"Drawn: {sweep / 'plot.png'}, {sweep / 'plot.svg'}.\n"


def refused(capsys: pytest.CaptureFixture[str], words: Iterable[object]) -> str:
    """What the command says when it stops with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_mistakes_are_named_with_their_mend(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = runs / "first"
    assert "is no run: there is no config.yaml" in refused(capsys, [first, tmp_path])
    assert "Did you mean 'eval/return'?" in refused(capsys, [first, "--metric", "eval/retrn"])
    assert "Did you mean 'train/loss_actor'?" in refused(capsys, [first, "--metric", "loss_actor"])
    assert "There are: count/environment_failures, count/episodes," in refused(capsys, [first, "--metric", "xyz"])
    assert "give at least 1" in refused(capsys, [first, "--smooth", "0"])
    assert "invalid choice: 'days'" in refused(capsys, [first, "--x", "days"])
    (tmp_path / "sweep").mkdir()
    assert "is no run: there is no config.yaml" in refused(capsys, [tmp_path / "sweep"])
    empty = shutil.copytree(first, tmp_path / "empty", ignore=shutil.ignore_patterns("checkpoints", "metrics.jsonl"))
    assert "has no metrics yet: let it train for a while" in refused(capsys, [empty])


def test_a_metric_that_some_run_lacks(runs: Path, tmp_path: Path) -> None:
    """One that has it is enough; a panel without any says so."""
    other = walker(tmp_path / "run", 1)
    figure = draw(read_runs([runs / "first", other]), metrics=["train/objective"])
    assert len(panel(figure, "train/objective").lines) == 1
    assert panel(draw(read_runs([other])), "Loss: actor").texts[0].get_text() == "not measured yet"


def test_no_place_to_write(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main([str(runs / "first"), "--output", str(tmp_path / "file" / "plot.png"), "--metric", "eval/return"]) == 1
    assert "Give another --output" in capsys.readouterr().err


def test_damage_is_told_and_the_rest_is_drawn(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(runs / "first", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text('{"step": 1, \n' + text + '{"step": 99999, "ha')
    assert main([str(run), "--metric", "eval/return"]) == 0
    assert "1 damaged lines of metrics.jsonl are left out" in capsys.readouterr().err


def test_the_command_needs_no_torch(runs: Path, tmp_path: Path) -> None:
    """From a shell, as a user types it."""
    program = "import sys; from dreamer_torchrl.plot import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    words = [str(runs / "swing"), "--output", str(tmp_path / "swing.png"), "--metric", "train/objective"]
    ran = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "False" and ran.stderr == ""
