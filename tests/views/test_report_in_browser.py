"""The report of a real run in a real browser: nothing is missing, cut off or overlapping, in light and dark."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dreamer_torchrl.views.report_page import write_report
from tests.training.training_examples import trained

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no browser is here: apt-get install chromium, or give the path of one in CHROMIUM"
)

PHONE, DESKTOP = (390, 844), (1280, 900)

POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')

LOOK = """<script>addEventListener("load", async () => {
  const all = selector => [...document.querySelectorAll(selector)], box = element => element.getBoundingClientRect();
  const loaded = film => film.readyState >= 1 || film.error ? null
    : new Promise(done => ["loadedmetadata", "error"].forEach(name => film.addEventListener(name, done)));
  await Promise.all(all("video").map(loaded));
  const charts = all("svg.chart").filter(chart => box(chart).width > 0);
  const texts = chart => [...chart.querySelectorAll("text")].filter(text => text.textContent);
  const before = (a, b) => a.right <= b.left + 1 || a.bottom <= b.top + 3;
  const apart = (a, b) => before(a, b) || before(b, a);
  const found = {
    sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    films: all("video").map(film => film.videoWidth),
    pictures: all("img").map(picture => picture.naturalWidth),
    background: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.querySelector("svg.chart text")).fill,
    charts: charts.length,
    smallest: Math.min(...charts.map(chart => 9 * box(chart).width / chart.viewBox.baseVal.width)),
    cut: charts.flatMap(chart => texts(chart).filter(text =>
      box(text).left < box(chart).left || box(text).right > box(chart).right).map(text => text.textContent)),
    overlapping: charts.flatMap(chart => texts(chart).flatMap((one, number, all) => all.slice(number + 1)
      .filter(other => !apart(box(one), box(other))).map(other => one.textContent + " | " + other.textContent))),
  };
  document.body.innerHTML = "<pre id=found></pre>";
  document.querySelector("#found").textContent = JSON.stringify(found);
})</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / 'run <b>"of" & for</b> all'
    options = ("total_steps=80", "train_ratio=2", "eval.every=40", "eval.video=true", "eval.dream=60", "log.every=0.2")
    return trained(run, *options, "log.report=true") / "report.html"


def visit(page: Path, screen: tuple[int, int], scheme: str, folder: Path) -> dict[str, Any]:
    """What a script finds in a copy of the page, whose policy forbids scripts."""
    copy = folder / "page.html"
    copy.write_text(POLICY.sub(LOOK, page.read_text()))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--virtual-time-budget=9000", f"--window-size={screen[0]},{screen[1]}"]
    command += [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]
    command += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", copy.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', shown)[1]))


@pytest.mark.parametrize(("screen", "scheme"), [(PHONE, "light"), (DESKTOP, "dark")])
def test_the_report_looks_right(screen: tuple[int, int], scheme: str, report: Path, tmp_path: Path) -> None:
    found = visit(report, screen, scheme, tmp_path)
    assert found["sideways"] == 0
    assert len(found["films"]) == 2 and all(found["films"]) and found["pictures"] and all(found["pictures"])
    assert found["charts"] == 12 and found["cut"] == [] and found["overlapping"] == []
    assert found["smallest"] > 9, "text of charts is too small to read"
    brightness = {name: sum(map(int, found[name][4:-1].split(","))) for name in ("background", "ink")}
    assert (brightness["background"] > brightness["ink"]) == (scheme == "light")


def test_no_page_can_ask_a_network(report: Path) -> None:
    """Its policy forbids everything that is not inside, and nothing in it asks for more."""
    text = report.read_text()
    assert "default-src 'none'" in POLICY.search(text)[0]
    assert not [link for link in re.findall(r'(?:src|href)="([^"]*)', text) if not link.startswith(("data:", "#"))]


def test_an_empty_run_has_a_report(report: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text((report.parent / "config.yaml").read_text())
    found = visit(write_report(run), PHONE, "dark", tmp_path)
    assert (found["sideways"], found["charts"], found["films"]) == (0, 1, [])
