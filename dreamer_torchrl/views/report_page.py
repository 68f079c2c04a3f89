"""One page about a run, ``report.html`` in its folder: all lies inside, nothing is loaded; torch is not needed."""

from __future__ import annotations

import base64
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from dreamer_torchrl.config.compose import read_saved, settings_from, size_name
from dreamer_torchrl.record.console import duration
from dreamer_torchrl.record.console import size as byte_size
from dreamer_torchrl.record.monitor import findings
from dreamer_torchrl.record.video import whole
from dreamer_torchrl.views.curves import EVALUATION, Run, group, read_run
from dreamer_torchrl.views.plots import detail_panels, panel_svg, return_panels

NAME = "report.html"
MOST_BYTES = 8_000_000  # a larger video is linked: the page must open on a phone
MOST_TIME = 0.02  # share of the time of training that writing pages may take
MEDIA = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}  # what the page can show, the best first
IMAGINED = "-imagined"  # how the name of a video ends in which the policy acts without an environment
RETURNS = {"wide": (640, 240), "narrow": (300, 230)}  # pixels of the learning curves, for desktop and phone


class Reports:
    """Update the page of a run while it trains; an error never stops training, and is told once to ``note``."""

    def __init__(self, run_dir: Path, note: Callable[[str], None]):
        self.run_dir, self.note = run_dir, note
        self._failed, self._earliest = False, 0.0

    def refresh(self, at_end: bool = False) -> None:
        """Write the page, unless that would take more than a small share of the time; at the end say where it is."""
        started = time.monotonic()
        if started < self._earliest and not at_end:
            return
        try:
            path = write_report(self.run_dir)
            if at_end:
                self.note(f"Report: {path}")
        except Exception as error:  # a page is not worth the run
            if not self._failed:
                self.note(f"{NAME} was not written ({type(error).__name__}: {error}); training goes on.")
            self._failed = True
        self._earliest = time.monotonic() + (time.monotonic() - started) / MOST_TIME


def write_report(run_dir: Path) -> Path:
    """Build ``report.html`` from the folder of a run; its path. After an ``OSError`` the page before it stays."""
    from jinja2 import Environment

    source = resources.files(__package__).joinpath(f"{NAME}.jinja").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    values = read_saved(run_dir)
    with whole(run_dir / NAME) as unfinished:
        unfinished.write_text(template.render(context(read_run(run_dir, values), values)), encoding="utf-8")
    return run_dir / NAME


def context(run: Run, values: Mapping[str, Any]) -> dict[str, Any]:
    steps, total, replay = int(run.end()), settings_from(values).end, values["replay"]
    wanted, reached = values["eval"]["stop_at"], run.last(EVALUATION)
    solved = wanted is not None and reached is not None and reached >= wanted
    experiments = group([run])
    (returns,) = return_panels(experiments)
    return {
        "run": run,
        "values": values,
        "size": size_name(values["size"]) or "custom",
        "steps": steps,
        "total": total,
        "solved": solved,
        "finished": solved or steps >= total,
        "updates_per_step": f"{values['train_ratio'] / (replay['batch'] * replay['length']):.3g} per step",
        "evaluations": run.curve(EVALUATION),
        "findings": findings(values, run.records),
        "returns": {name: panel_svg(returns, experiments, *shape) for name, shape in RETURNS.items()},
        "details": [panel_svg(panel, experiments) for panel in detail_panels(experiments)],
        "name": shlex.quote(str(run.path)),
        "videos": {
            "Evaluation": newest_files(run.path / "videos"),
            "Open-loop prediction": newest_files(run.path / "dreams"),
            "Imagination with the policy": newest_files(run.path / "dreams", IMAGINED),
        },
        "settings": yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True),
        "versions": {name: version(name) for name in ("dreamer_torchrl", "torch", "torchrl")},
        "now": time.strftime("%Y-%m-%d %H:%M %Z"),
        **{function.__name__: function for function in (short, duration, disk_size, data_of)},
    }


def short(value: float) -> str:
    """A return in a few digits, such as 123.5, 0.512, -1,500 and 475."""
    text = f"{value:,.{0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 3}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def newest_files(folder: Path, ending: str = "") -> list[Path]:
    """The newest picture, by its name which begins with the step, and its still; those with this ending of the name."""
    found = [path for path in folder.glob("[!.]*") if path.suffix in MEDIA and path.stat().st_size]
    newest = max((path.stem for path in found if path.stem.endswith(IMAGINED) == bool(ending)), default=None)
    files = sorted((path for path in found if path.stem == newest), key=lambda path: list(MEDIA).index(path.suffix))
    return files[:1] + [path for path in files[1:] if path.suffix == ".png"]


def data_of(path: Path) -> str:
    """A file as a data URI; empty if it is too large."""
    if path.stat().st_size > MOST_BYTES:
        return ""
    return f"data:{MEDIA[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def disk_size(path: Path) -> str:
    """Of a file or of all files in a folder; empty if it is not there."""
    if not path.exists():
        return ""
    total = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with suppress(FileNotFoundError):  # removed meanwhile
            total += file.lstat().st_size if file.is_file() else 0
    return byte_size(total)
