"""The plot command: what its figure shows of real runs and of CSV files, where files go, what it says to mistakes."""

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

from dreamer_torchrl.config.compose import load
from dreamer_torchrl.plot import main, read_runs
from dreamer_torchrl.views.curves import read_baselines, read_csv, read_run
from dreamer_torchrl.views.plots import draw, fit_y_axis, new_figure
from tests.training.training_examples import TINY, lines, trained

OFFICIAL = Path(__file__).parents[1] / "benchmarks/references/dmc_proprio/walker_walk.csv"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run; from its numbers a second seed that is not as far, and a run in another environment."""
    folder = tmp_path_factory.mktemp("runs")
    first = trained(folder / "first", "log.every=0", "eval.every=20", "total_steps=60")
    shutil.rmtree(first / "checkpoints")
    with (first / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "train/loss_barlow": 2.0}\n')
    for name, *overrides in (("second", "seed=1"), ("swing", "env=pendulum")):
        load([*TINY, "log.every=0", *overrides, f"run_dir={folder / name}"]).save(folder / name)
        records = [line for line in lines(first) if line["step"] <= 50]
        records = [line | {"eval/return": -400.0} if "eval/return" in line else line for line in records]
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    return folder


def panel(figure: Figure, title: str) -> Axes:
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == title]
    return axes


def legend(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_run_shows_all_that_it_measured(runs: Path) -> None:
    """Panels follow from the metrics: a loss that an extension logs has one without being known by name."""
    (run,) = read_runs([runs / "first"])
    figure = draw([run])
    evaluations = next(line for line in panel(figure, "Return").lines if line.get_marker() == "o")
    assert evaluations.get_xdata().tolist() == [20, 40, 60]
    assert evaluations.get_ydata().tolist() == run.curve("eval/return").y.tolist()
    episodes = panel(figure, "Return").lines[0]
    assert episodes.get_xdata().tolist() == run.curve("episode/return").x.tolist() != []
    assert episodes.get_color() != evaluations.get_color()
    assert legend(panel(figure, "Return")) == ["training episodes", "evaluations"]
    losses = [name for name in run.metrics if name.startswith("train/loss_")]
    assert len(losses) == 9 and len([axes for axes in figure.axes if axes.get_title(loc="left")[:5] == "Loss:"]) == 9
    assert panel(figure, "Loss: barlow").lines and panel(figure, "Updates per second").lines
    assert panel(figure, "Entropy").lines and figure.get_suptitle() == "CartPole-v1"


def test_seeds_are_a_median_in_a_band_and_pale_where_one_is_missing(runs: Path) -> None:
    figure = draw(read_runs([runs / "first", runs / "second"]), metrics=["eval/return"])
    axes = panel(figure, "Return in evaluations")
    pale, line = axes.lines
    first = read_run(runs / "first", {}).curve("eval/return").y
    medians = (first[:2] - 400) / 2
    assert line.get_ydata()[:2] == pytest.approx(medians) and np.isnan(line.get_ydata()[2])
    assert pale.get_ydata() == pytest.approx([*medians, first[2]]) and pale.get_alpha() < 1
    band = axes.collections[0].get_paths()[0].vertices  # half as wide as the two are apart
    assert band[:, 1].min() == pytest.approx(min(medians - (first[:2] + 400) / 4))


def test_each_environment_has_its_own_learning_curve(runs: Path) -> None:
    figure = draw(read_runs(runs.iterdir()), title="All of them")
    cart, swing = panel(figure, "CartPole-v1"), panel(figure, "Pendulum-v1")
    assert (legend(cart), legend(swing)) == (["CartPole-v1, 2 seeds"], ["Pendulum-v1, 1 seed"])
    assert min(line.get_ydata().min() for line in swing.lines if line.get_marker() == "o") == -400
    assert figure.get_suptitle() == "All of them"
    assert len({line.get_color() for line in panel(figure, "Loss: actor").lines}) == 2


def test_smoothing(runs: Path, tmp_path: Path) -> None:
    load([*TINY, f"run_dir={tmp_path}"]).save(tmp_path)
    records = [{"step": step, "episode/return": float(step % 3)} for step in range(30)]
    records += [{"step": step, "eval/return": float(step % 2)} for step in (30, 31, 32)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    dots, smoothed, evaluations = panel(draw(read_runs([tmp_path]), smoothing=3), "Return").lines
    assert dots.get_marker() == "." and dots.get_ydata()[:3].tolist() == [0, 1, 2]
    assert smoothed.get_ydata()[1:-1] == pytest.approx(1) and evaluations.get_ydata().tolist() == [0, 1, 0]


def csv_file(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_csv_file_is_another_system_beside_the_returns(runs: Path, tmp_path: Path) -> None:
    """Its seeds are a median, as far as the run goes."""
    table = csv_file(tmp_path / "b.csv", "step,return,seed", "10,1,7", "10,3,8", "90,9,7", "90,11,8")
    own = read_runs([runs / "first"])
    figure = draw(own, baselines=read_baselines([table], ["PPO"], own))
    axes = panel(figure, "Return")
    (line,) = [line for line in axes.lines if line.get_label() == "PPO, 2 seeds"]
    assert line.get_xdata().tolist() == [10, 60] and line.get_ydata() == pytest.approx([2, 7])
    assert legend(axes) == ["CartPole-v1, 1 seed", "PPO, 2 seeds"]
    assert len(panel(figure, "Loss: actor").lines) == 1
    (one,) = read_baselines([table, table], ["PPO"], own)
    assert one.count == "4 seeds"
    several = read_baselines([table, OFFICIAL], [], [walker(2)])
    assert [each.difference for each in several] == ["b", "walker_walk"]


def walker(repeat: int) -> object:
    """A run of 30,000 steps that repeats its actions."""
    run = read_run(Path(), {"env": {"task": "walker_walk", "action_repeat": repeat}})
    run.records.append({"step": 30_000, "episode/return": 5.0, "time/elapsed": 7200.0})
    return run


def test_published_curves_count_frames_and_bring_their_band() -> None:
    (official,) = read_baselines([OFFICIAL], ["official"], [walker(2)])
    band = official.band("episode/return")
    assert band.x[:2].tolist() == [5_000, 10_000] and band.median[0] == 40.151
    assert (band.low[0], band.high[0]) == (37.143, 51.806)
    assert official.band("episode/return", "frames").x[0] == 10_000


@pytest.mark.parametrize(
    ("rows", "points"),
    [
        (["global_step,episodic_return", "5,1", "9,2"], [(5, 1), (9, 2)]),  # CleanRL
        (['#{"env_id": "CartPole-v1"}', "r,l,t", "1.5,10,0.1", "2.5,20,0.2"], [(10, 1.5), (30, 2.5)]),  # SB3 Monitor
        (["time/total_timesteps,rollout/ep_rew_mean,eval/mean_reward", "8,,3", "9,4,"], [(9, 4)]),  # SB3 progress
        (["Wall time,Step,Value", "0.5,3,7"], [(3, 7)]),  # TensorBoard
    ],
)
def test_columns_of_other_libraries_are_known(rows: list[str], points: list[tuple], tmp_path: Path) -> None:
    (run,) = read_csv(csv_file(tmp_path / "a.csv", *rows))
    curve = run.curve("episode/return")
    assert list(zip(curve.x.tolist(), curve.y.tolist(), strict=True)) == points


@pytest.mark.parametrize(
    ("overrides", "files"),
    [
        ("--metric eval/return", ["RUN/plot.png", "RUN/plot.svg"]),
        ("--output new/v1.2 --x hours --metric train/entropy", ["new/v1.2.png", "new/v1.2.svg"]),
    ],
)
def test_where_the_files_go(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: str, files: list[str]
) -> None:
    run = shutil.copytree(runs / "first", tmp_path / "RUN")
    before = set(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert main([str(run.name), *overrides.split()]) == 0
    written = {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert written == set(files)
    assert Image.open(tmp_path / files[0]).size[0] > 1000
    assert ElementTree.parse(tmp_path / files[1]).getroot().tag.endswith("svg")


def test_a_sweep_is_all_of_its_runs_that_have_begun(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is named as well is drawn once; several folders are drawn into the current one."""
    sweep = shutil.copytree(runs, tmp_path / "sweep")
    shutil.copytree(runs / "first", sweep / "third", ignore=shutil.ignore_patterns("metrics.jsonl"))
    (sweep / "notes").mkdir()
    assert [run.path.name for run in read_runs([sweep, sweep / "second"])] == ["first", "second", "swing"]
    monkeypatch.chdir(tmp_path)
    assert main([str(sweep), str(sweep / "first"), "--metric", "eval/return"]) == 0
    assert capsys.readouterr().out == "Drawn: plot.png, plot.svg.\n" and (tmp_path / "plot.svg").is_file()


def refused(capsys: pytest.CaptureFixture[str], arguments: Iterable[object]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_mistakes_are_named_with_their_remedy(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = runs / "first"
    assert "is no run: there is no config.yaml" in refused(capsys, [first, tmp_path])
    assert "Did you mean 'eval/return'?" in refused(capsys, [first, "--metric", "eval/retrn"])
    assert "Did you mean 'train/loss_actor'?" in refused(capsys, [first, "--metric", "loss_actor"])
    assert "There are: count/environment_failures, count/episodes," in refused(capsys, [first, "--metric", "xyz"])
    assert "give at least 1" in refused(capsys, [first, "--smooth", "0"])
    empty = shutil.copytree(first, tmp_path / "empty", ignore=shutil.ignore_patterns("metrics.jsonl"))
    assert "has no metrics yet: let it train for a while" in refused(capsys, [empty])
    (tmp_path / "file").touch()
    assert main([str(first), "--output", str(tmp_path / "file" / "plot.png"), "--metric", "eval/return"]) == 1
    assert "Give another --output" in capsys.readouterr().err


def test_csv_files_that_cannot_be_drawn(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, good = runs / "first", csv_file(tmp_path / "good.csv", "step,return", "5,1")
    nameless = csv_file(tmp_path / "nameless.csv", "step,gain", "5,1")
    told = refused(capsys, [first, nameless])
    assert "no column of returns; its columns are: step, gain. Rename one to return" in told
    broken = csv_file(tmp_path / "broken.csv", "step,return", "5,1", "6,high")
    assert "row 2 below the header is not made of numbers" in refused(capsys, [first, broken])
    assert "alone cannot be drawn" in refused(capsys, [good])
    assert "cannot be read as CSV" in refused(capsys, [first, tmp_path / "none.csv"])
    assert "no column of seconds" in refused(capsys, [first, good, "--x", "hours"])
    assert "2 labels for 1 CSV files" in refused(capsys, [first, good, "--label", "a", "--label", "b"])
    late = csv_file(tmp_path / "late.csv", "step,return", "500,1")
    assert "begins at step 500, the runs end at 60" in refused(capsys, [first, late])


def test_damage_is_reported_and_torch_is_not_loaded(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "swing", tmp_path / "run")
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text('{"step": 1, \n' + text + '{"step": 99999, "ha')
    program = "import sys; from dreamer_torchrl.plot import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", program, str(run), "--metric", "eval/return"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.splitlines()[-1] == "False"
    assert ran.stderr == f"{run}: 1 damaged lines of metrics.jsonl are left out.\n"


@pytest.mark.parametrize("scale", [1e-8, 7.5e-5, 1e-3, 1.0, 333.0, 1e6, 3e9])
def test_labels_of_any_scale_are_short(scale: float) -> None:
    """The report has room for some seven characters beside a panel."""
    figure = new_figure(4, 3)
    axes = figure.add_subplot()
    axes.plot([0, 1], [-1.05 * scale, -0.95 * scale])
    fit_y_axis(axes)
    figure.canvas.draw()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels and max(map(len, labels)) <= 7, labels
