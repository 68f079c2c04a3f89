"""The report of a real run in a real browser: nothing is missing or cut off, no error, no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamer_torchrl.views.report_page import write_report
from tests.training.training_examples import trained
from tests.views.browser import HOW_TO_INSTALL, Browser, Visit, installed

pytestmark = pytest.mark.skipif(installed() is None, reason=HOW_TO_INSTALL)

PHONE, TABLET, DESKTOP = (390, 844), (768, 1024), (1280, 900)

QUESTION = """(async () => {
  const pictures = [...document.querySelectorAll("img")], films = [...document.querySelectorAll("video")];
  const loaded = film => film.readyState >= 2 || film.error ? null
    : new Promise(done => ["loadeddata", "error"].forEach(name => film.addEventListener(name, done)));
  await Promise.all([...pictures.map(picture => picture.decode()), ...films.map(loaded)]);
  const box = element => element.getBoundingClientRect();
  const seen = [...document.querySelectorAll("body *")].filter(element => box(element).width > 0);
  const charts = [...document.querySelectorAll("svg.chart")].filter(chart => box(chart).width > 0);
  const words = chart => [...chart.querySelectorAll("text")].filter(text => text.textContent);
  const before = (a, b) => a.right <= b.left + 1 || a.bottom <= b.top + 3;
  const apart = (a, b) => before(a, b) || before(b, a);
  const scrolls = element => element.closest("pre") !== null;
  return {
    sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    outside: seen.filter(e => !scrolls(e) && box(e).right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80)),
    pictures: pictures.map(picture => picture.naturalWidth),
    films: films.map(film => ({error: film.error && film.error.message, state: film.readyState,
                               seconds: film.duration, width: film.videoWidth})),
    background: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.querySelector("svg.chart text")).fill,
    charts: charts.length,
    smallest: Math.min(...charts.map(chart => 9 * box(chart).width / chart.viewBox.baseVal.width)),
    cut: charts.flatMap(chart => words(chart).filter(text =>
      box(text).left < box(chart).left || box(text).right > box(chart).right).map(text => text.textContent)),
    overlapping: charts.flatMap(chart => words(chart).flatMap((one, number, all) => all.slice(number + 1)
      .filter(other => !apart(box(one), box(other))).map(other => one.textContent + " | " + other.textContent))),
  };
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for all visits."""
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a training with two filmed evaluations and a dream, as training leaves it."""
    run = tmp_path_factory.mktemp("runs") / 'run <b>"of" & for</b> all'
    trained(
        run, "total_steps=120", "train_ratio=2", "eval.every=60", "eval.video=true", "eval.dream=60", "log.every=0.2"
    )
    return run / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [PHONE, TABLET, DESKTOP], ids=["phone", "tablet", "desktop"])
def test_the_report_looks_right(screen: tuple[int, int], scheme: str, report: Path, browser: Browser) -> None:
    visit = browser.visit(report, *screen, scheme, QUESTION)
    assert visit.errors == [] and visit.asked == []
    found = visit.found
    assert found["sideways"] == 0 and found["outside"] == []
    assert found["pictures"] and min(found["pictures"]) > 0
    assert len(found["films"]) == 2
    for film in found["films"]:
        assert film["error"] is None and film["state"] >= 2 and film["seconds"] > 0 and film["width"] > 0
    assert found["charts"] == 13 and found["cut"] == [] and found["overlapping"] == []
    assert found["smallest"] > 9, "numbers of charts are too small to read"
    brightness = {name: sum(map(int, found[name][4:-1].split(","))) for name in ("background", "ink")}
    assert (brightness["background"] > brightness["ink"]) == (scheme == "light")


def test_a_fault_would_be_noticed(browser: Browser, tmp_path: Path) -> None:
    """A picture that cannot be read, a film that is none, an address, an error, and a line that is too wide."""
    page = tmp_path / "page.html"
    page.write_text(
        '<img src="data:image/png;base64,AAAA"><div style="width:3000px">wide</div><script>throw Error("oh")</script>'
        '<img src="missing.png">'
    )
    visit = browser.visit(page, *PHONE, "light", "document.documentElement.scrollWidth - innerWidth")
    assert isinstance(visit, Visit) and visit.found != 0
    assert any("oh" in error for error in visit.errors)
    assert visit.asked == [(tmp_path / "missing.png").as_uri()]


def test_no_page_can_ask_a_network(report: Path, browser: Browser, tmp_path: Path) -> None:
    """Even if something foreign came into it, the page itself forbids that."""
    page = tmp_path / "report.html"
    page.write_text(report.read_text().replace("<main>", '<main><img src="https://example.com/picture.png">'))
    visit = browser.visit(page, *PHONE, "light", "1")
    (error,) = visit.errors
    assert "Content Security Policy" in error and "blocked" in error and "https://example.com/picture.png" in error


def test_an_empty_run_has_a_report(browser: Browser, report: Path, tmp_path: Path) -> None:
    """Before its first measurement."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text((report.parent / "config.yaml").read_text())
    visit = browser.visit(write_report(run), *PHONE, "dark", QUESTION)
    assert visit.errors == [] and visit.asked == []
    assert visit.found["sideways"] == 0 and visit.found["outside"] == [] and visit.found["films"] == []
