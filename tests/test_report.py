"""The page about a run: what it tells is what was measured, it is always whole, and it never costs a run much."""

from __future__ import annotations

import base64
import json
import shutil
import statistics
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.record.video import write_video
from dreamer_torchrl.report import main
from dreamer_torchrl.views import report_page, reports
from dreamer_torchrl.views.page_frame import MOST_BYTES
from dreamer_torchrl.views.report_page import write_report
from tests.training.training_examples import lines, trained

WITHOUT_END = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A document: what is written in it, its elements, and whether each that opens closes in its turn."""

    def __init__(self, path: Path):
        super().__init__()
        self.text, self.elements, self.open = "", [], []
        self.feed(path.read_text())
        self.close()
        assert self.open == [], f"{self.open} are never closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in WITHOUT_END and self.get_starttag_text()[-2:] != "/>":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "circle") or self.open[-1] == tag:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluations, and some lines of everything."""
    run = tmp_path_factory.mktemp("runs") / "run"
    return trained(run, "total_steps=60", "train_ratio=2", "eval.every=30", "log.every=0.1")


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy, which a test may change; without its checkpoints."""
    return Path(shutil.copytree(trained_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "*.html")))


def film(path: Path, shade: int = 90) -> bytes:
    """Write a short one; what is in the file."""
    return write_video(path, [np.full((32, 32, 3), shade, np.uint8)] * 3, fps=5).read_bytes()


def content(source: str) -> bytes:
    """What a data URI holds."""
    return base64.b64decode(source.partition("base64,")[2])


def test_it_tells_what_was_measured(run: Path) -> None:
    page = Page(write_report(run))
    evaluations = [line for line in lines(run) if "eval/return" in line]
    last = next(line for line in reversed(lines(run)) if "count/updates" in line)
    assert f"{evaluations[-1]['eval/return']:g}" in page.text
    assert f"2 episodes, at step {evaluations[-1]['step']}" in page.text
    assert (
        "CartPole-v1" in page.text and "Finished: 60 steps" in page.text and f"{last['count/updates']:,}" in page.text
    )
    for heading in ("World model losses", "Critic losses", "Actor loss", "Speed", "Share of the time"):
        assert heading in page.text
    assert yaml.safe_load(page.text.partition("All settings")[2].partition("Go on")[0]) == report_page.read_saved(run)
    assert f"python -m dreamer_torchrl.train run_dir={run} total_steps=120" in page.text
    for command in ("evaluate", "export", "dream", "plot", "report"):
        assert f"python -m dreamer_torchrl.{command} {run}" in page.text
    assert "10.1038/s41586-025-08744-2" in page.text and "@software{dreamer_torchrl" in page.text


def test_each_evaluation_is_a_dot_that_tells_its_numbers(run: Path) -> None:
    text = write_report(run).read_text()
    for line in lines(run):
        if "eval/return" in line:
            assert f"at {line['step']}: {line['eval/return']:g}" in text


def test_the_official_curve_lies_behind_the_runs_own(run: Path) -> None:
    """As far as the run goes, in its steps: 50,000 frames of an action repeat of 2 are 25,000 steps."""
    assert "official code" not in Page(write_report(run)).text
    values = report_page.read_saved(run)
    values["env"] |= {"family": "dmc", "task": "cartpole_swingup", "image": False, "proprio": True, "action_repeat": 2}
    (run / "config.yaml").write_text(yaml.safe_dump(values | {"total_steps": 50_000}, explicit_end=True))
    assert "official code" not in Page(write_report(run)).text  # it begins at 10,000 frames
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 25000, "episode/return": 300.0}\n')
    page = Page(write_report(run))
    assert "official code (action repeat 2)" in page.text
    assert "279.148 at last" in page.text and len([path for path in page.all("path") if "band" in path["class"]]) >= 3


def test_an_unfinished_run_says_how_far_it_is(run: Path) -> None:
    values = report_page.read_saved(run)
    (run / "config.yaml").write_text(yaml.safe_dump(values | {"total_steps": 80}, explicit_end=True))
    page = Page(write_report(run))
    assert "75% of 80 steps" in page.text and page.all("progress")[0]["value"] == "0.7500"
    assert "total_steps=160" not in page.text
    (run / "config.yaml").write_text(
        yaml.safe_dump(values | {"total_steps": 80, "eval": values["eval"] | {"stop_at": -1.0}}, explicit_end=True)
    )
    assert "Goal reached at step 60" in Page(write_report(run)).text


def test_the_newest_film_and_dream_lie_inside(run: Path) -> None:
    """By name, which begins with the step; a film before its still; what is unfinished or empty does not count."""
    film(run / "videos" / "000000000030.mp4")
    newest, dream = film(run / "videos" / "000000000060.mp4", 120), film(run / "dreams" / "000000000060.mp4", 200)
    for name in ("dreams/000000000060.png", "dreams/000000000030.gif"):
        (run / name).write_bytes(b"picture")
    (run / "videos" / "000000000090.mp4").touch()
    (run / "videos" / ".000000000099.mp4").write_bytes(b"unfinished")
    page = Page(write_report(run))
    assert [content(video["src"]) for video in page.all("video")] == [newest, dream]
    assert [content(image["src"]) for image in page.all("img")] == [b"picture"]
    assert "Step 60" in page.text and "There is none yet" not in page.text


def test_what_was_imagined_freely_does_not_hide_the_dream(run: Path) -> None:
    """It sorts behind the dream of the same step, which has the truth beside it; it has a place of its own."""
    dream = film(run / "dreams" / "000000000060.mp4", 200)
    page = Page(write_report(run))
    assert "Imagined freely" not in page.text
    free = film(run / "dreams" / "000000000060-imagined.mp4", 120)
    page = Page(write_report(run))
    assert [content(video["src"]) for video in page.all("video")] == [dream, free]
    assert "Imagined freely" in page.text


def test_a_large_film_lies_beside(run: Path) -> None:
    path = run / "videos" / "000000000060 a&b.mp4"
    path.parent.mkdir()
    path.write_bytes(bytes(MOST_BYTES + 1))
    page = Page(write_report(run))
    assert page.all("video") == [] and [link["href"] for link in page.all("a")] == ["videos/000000000060%20a%26b.mp4"]
    assert "too large" in page.text and (run / "report.html").stat().st_size < 200_000


def test_nothing_in_a_run_can_become_part_of_the_page(run: Path, tmp_path: Path) -> None:
    """Names and settings are text."""
    evil = "<script>alert(1)</script>"
    values = report_page.read_saved(run)
    values["env"]["id"] = values["wandb"]["name"] = f"{evil}\"'&"
    (run / "config.yaml").write_text(yaml.safe_dump(values, explicit_end=True))
    film(run / "videos" / '0<img src="x">.mp4')
    place = Path(run.rename(tmp_path / '<i>"&'))
    page = Page(write_report(place))
    assert page.all("script") == [] and page.all("i") == [] and page.all("img") == []
    assert page.text.count(evil) >= 3


def test_the_one_before_stays_until_the_next_is_whole(run: Path) -> None:
    page = write_report(run)
    before = page.read_bytes()
    (run / "config.yaml").write_text("env: [")
    with pytest.raises(ConfigError, match="damaged"):
        write_report(run)
    assert page.read_bytes() == before and not list(run.glob(".report*"))


def test_it_needs_no_file_but_the_settings(run: Path) -> None:
    """Nor does half a line of numbers hurt."""
    (run / "metrics.jsonl").unlink()
    assert "0% of 60 steps" in Page(write_report(run)).text
    (run / "metrics.jsonl").write_text('{"step": 5, "episode/return": 3.0}\n{"step": 6, "epis')
    assert "8% of 60 steps" in Page(write_report(run)).text


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path)])
    assert ended.value.code == 2 and "Give the folder that training printed" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.html").mkdir()
    assert main([str(run)]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_torch_is_not_loaded(run: Path) -> None:
    """It would take seconds."""
    program = (
        "import sys; from dreamer_torchrl.report import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(run)], check=True, capture_output=True)


def test_training_writes_it_at_each_evaluation_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []

    def spy(run_dir: Path) -> Path:
        path = write_report(run_dir)
        written.append(len([line for line in lines(run_dir) if "eval/return" in line]))
        return path

    monkeypatch.setattr(reports, "write_report", spy)
    run = trained(tmp_path / "run", "total_steps=40", "train_ratio=1", "eval.every=20")
    assert written == [1, 2, 2]
    assert f"Report: {run / 'report.html'}" in capsys.readouterr().out


def test_training_survives_a_page_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (run / "report.html").mkdir(parents=True)
    trained(run, "total_steps=40", "train_ratio=1", "eval.every=20")
    out = capsys.readouterr().out
    assert out.count("report.html was not written (IsADirectoryError") == 1 and "Finished and saved at step 40" in out


def test_a_slow_page_is_written_less_often(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But always at the end."""
    notes: list[str] = []
    kept = reports.Reports(run, notes.append)
    kept.refresh()
    page = run / "report.html"
    monkeypatch.setattr(reports, "QUICK", 0.0)
    page.unlink()
    kept.refresh()
    assert not page.exists()
    monkeypatch.setattr(reports, "MOST_TIME", 1e9)
    kept.refresh()
    assert page.exists()
    monkeypatch.setattr(reports, "MOST_TIME", 1e-9)
    page.unlink()
    kept.refresh(at_end=True)
    assert page.exists() and notes == [f"Report: {page}"]


def test_it_is_fast(run: Path) -> None:
    """Of a run of a thousand lines, and much longer ones make no larger page."""
    measured, short = [line for line in lines(run) if "train/loss_actor" in line], (run / "metrics.jsonl").read_text()
    episode = {"episode/return": 5.0, "count/frames": 1}
    with (run / "metrics.jsonl").open("a") as file:
        for number in range(1000):
            values = measured[number % len(measured)] if number % 4 == 0 else episode
            file.write(json.dumps(values | {"step": 100 + number}) + "\n")
    seconds = []
    for _ in range(3):
        start = time.process_time()
        page = write_report(run)
        seconds.append(time.process_time() - start)
    assert statistics.median(seconds) < 0.3
    size = page.stat().st_size
    with (run / "metrics.jsonl").open("w") as file:
        file.write(short)
        for number in range(20_000):
            file.write(
                json.dumps({"step": 100 + number, "episode/return": number % 7, "rate/steps_per_second": 3}) + "\n"
            )
    assert write_report(run).stat().st_size < 2 * size
