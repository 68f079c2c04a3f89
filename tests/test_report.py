"""The page about a run: it shows what was measured, it is always whole, and it never stops a run."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.record.video import write_video
from dreamer_torchrl.report import main
from dreamer_torchrl.views import report_page
from dreamer_torchrl.views.report_page import MOST_BYTES, Reports, write_report
from tests.training.training_examples import lines, trained

WITHOUT_END = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A document: its text, its elements, and whether each that opens closes in its turn."""

    def __init__(self, path: Path):
        super().__init__()
        self.text, self.elements, self.open = "", [], []
        self.feed(path.read_text())
        self.close()
        assert self.open == [], f"{self.open} are never closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in WITHOUT_END:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    return trained(run, "total_steps=40", "train_ratio=2", "eval.every=20", "log.every=0.1", "log.report=true")


@pytest.fixture
def whole(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "*.html")))


@pytest.fixture
def run(whole: Path) -> Path:
    """With the evaluations alone, since each chart takes its time."""
    text = (whole / "metrics.jsonl").read_text()
    (whole / "metrics.jsonl").write_text("".join(line for line in text.splitlines(True) if "eval/return" in line))
    return whole


def film(path: Path, shade: int = 90) -> bytes:
    return write_video(path, [np.full((32, 32, 3), shade, np.uint8)] * 3, fps=5).read_bytes()


def content(source: str) -> bytes:
    return base64.b64decode(source.partition("base64,")[2])


def test_it_shows_what_was_measured(whole: Path) -> None:
    """Each chart once for screen readers with its last values, the returns in two widths."""
    run = whole
    page = Page(write_report(run))
    evaluations = [line for line in lines(run) if "eval/return" in line]
    last = next(line for line in reversed(lines(run)) if "count/updates" in line)
    assert f"{evaluations[-1]['eval/return']:g}" in page.text
    assert f"2 episodes, at step {evaluations[-1]['step']}" in page.text
    for text in ("CartPole-v1", "Finished: 40 steps", f"{last['count/updates']:,}", "10.1038/s41586-025-08744-2"):
        assert text in page.text
    charts = [svg["aria-label"] for svg in page.all("svg")]
    assert len(charts) == 2 + 8 + 1 + 2 and charts[0] == charts[1]  # returns, losses, entropy, rates
    assert "time: learner" in page.text
    assert f"eval/return {evaluations[-1]['eval/return']:g}" in charts[0]
    assert any(chart.startswith("Loss: reconstruction: train/loss_reconstruction ") for chart in charts)
    settings = page.text.partition("All settings")[2].partition("Commands")[0]
    assert yaml.safe_load(settings) == report_page.read_saved(run)
    assert f"python -m dreamer_torchrl.train run_dir={run} total_steps=80" in page.text
    for command in ("evaluate", "export", "dream", "plot", "report"):
        assert f"python -m dreamer_torchrl.{command} {run}" in page.text


def test_an_unfinished_run_says_how_far_it_is(run: Path) -> None:
    """It needs no file but the settings, and half a line of metrics does not hurt."""
    values = report_page.read_saved(run) | {"total_steps": 80}
    (run / "config.yaml").write_text(yaml.safe_dump(values, explicit_end=True))
    page = Page(write_report(run))
    assert "50% of 80 steps" in page.text and "total_steps=160" not in page.text
    solved = values | {"eval": values["eval"] | {"stop_at": -1.0}}
    (run / "config.yaml").write_text(yaml.safe_dump(solved, explicit_end=True))
    assert "Goal reached at step 40" in Page(write_report(run)).text
    (run / "metrics.jsonl").write_text('{"step": 4, "episode/return": 3.0}\n{"step": 6, "epis')
    assert "5% of 80 steps" in Page(write_report(run)).text
    (run / "metrics.jsonl").unlink()
    assert "0% of 80 steps" in Page(write_report(run)).text


def test_the_newest_videos_lie_inside(run: Path) -> None:
    """A video before its still; unfinished or empty files do not count; a free imagination has its own place."""
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
    free = film(run / "dreams" / "000000000060-imagined.mp4", 120)
    page = Page(write_report(run))
    assert [content(video["src"]) for video in page.all("video")] == [newest, dream, free]
    assert "Imagination with the policy" in page.text


def test_nothing_in_a_run_can_become_part_of_the_page(run: Path, tmp_path: Path) -> None:
    """Names and settings are text; a large video is a link."""
    evil = "<script>alert(1)</script>"
    values = report_page.read_saved(run)
    values["wandb"]["name"] = f"{evil}\"'&"
    (run / "config.yaml").write_text(yaml.safe_dump(values, explicit_end=True))
    film(run / "videos" / '0<img src="x">.mp4')
    place = Path(run.rename(tmp_path / '<i>"&'))
    page = Page(write_report(place))
    assert page.all("script") == [] and page.all("i") == [] and page.all("img") == []
    assert evil in page.text and page.text.count('<i>"&') > 3
    (place / "videos" / "1 a&b.mp4").write_bytes(bytes(MOST_BYTES + 1))
    page = Page(write_report(place))
    assert page.all("video") == [] and [link["href"] for link in page.all("a")] == ["videos/1%20a%26b.mp4"]
    assert "too large" in page.text and (place / "report.html").stat().st_size < 600_000


def test_the_page_before_stays_until_the_next_is_whole(run: Path) -> None:
    page = write_report(run)
    before = page.read_bytes()
    (run / "config.yaml").write_text("env: [")
    with pytest.raises(ConfigError, match="damaged"):
        write_report(run)
    assert page.read_bytes() == before and not list(run.glob(".report*"))


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Torch, which takes seconds, is not loaded."""
    program = (
        "import sys; from dreamer_torchrl.report import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    written = subprocess.run([sys.executable, "-c", program, str(run)], check=True, capture_output=True, text=True)
    assert written.stdout.strip() == str(run / "report.html")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path)])
    assert ended.value.code == 2 and "Give the folder that training printed" in capsys.readouterr().err
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    assert main([str(run)]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_while_training_it_takes_a_small_share_of_the_time(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluation and the end always write it; an evaluation soon after does not."""
    said = []
    reports = Reports(run, said.append)
    reports.refresh()
    (run / "report.html").unlink()
    reports.refresh()
    assert not (run / "report.html").exists() and said == []
    reports.refresh(at_end=True)
    assert said == [f"Report: {run / 'report.html'}"] and (run / "report.html").exists()
    monkeypatch.setattr(report_page.time, "monotonic", lambda: 1e9)
    (run / "report.html").unlink()
    reports.refresh()
    assert (run / "report.html").exists()


def test_a_page_that_cannot_be_written_is_told_once(run: Path) -> None:
    said = []
    (run / "report.html").mkdir()
    reports = Reports(run, said.append)
    reports.refresh()
    reports.refresh(at_end=True)
    assert len(said) == 1 and said[0].startswith("report.html was not written (IsADirectoryError")
