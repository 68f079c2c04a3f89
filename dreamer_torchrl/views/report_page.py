"""One page about a run, ``report.html`` in its folder: charts and videos lie inside, so that it can be sent to anyone.

Only what lies in the folder is read, torch is not needed, and the page loads nothing from a network.
"""

from __future__ import annotations

import base64
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from dreamer_torchrl.config.compose import read_saved
from dreamer_torchrl.record.console import duration
from dreamer_torchrl.record.console import size as byte_size
from dreamer_torchrl.views.curves import EVALUATION, Run, group, read_run, size_name
from dreamer_torchrl.views.plots import Panel, detail_panels, panel_svg, return_panels

NAME = "report.html"
MOST_BYTES = 8_000_000
"""A larger video is linked: the page must open on a phone."""

MOST_TIME = 0.02
"""Share of the time of training that writing pages may take."""

MEDIA = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}
"""What the page can show, the best first."""

IMAGINED = "-imagined"
"""How the name of an imagination video ends in which the policy acted without an environment."""

CONTENTS = {
    "config.yaml": "the resolved settings",
    "overrides.json": "the overrides that were given",
    "metrics.jsonl": "all metrics, one JSON object per line",
    "evaluation.json": "the last evaluation by command",
    "checkpoints": "complete states of the run, and its replay",
    "videos": "episodes of evaluations",
    "dreams": "open-loop predictions of the world model",
    "plot.png": "learning curves as a picture",
    "tensorboard": "metrics for TensorBoard",
    "wandb": "metrics for Weights & Biases",
    "faults": "batches with an update that was not finite",
}


class Reports:
    """Keep the page of a run fresh while it trains; an error never stops training.

    Args:
        run_dir: folder of the run.
        note: takes a line that says where the page is at the end, or what went wrong, once.
    """

    def __init__(self, run_dir: Path, note: Callable[[str], None]):
        self.run_dir, self.note = run_dir, note
        self._failed = False
        self._earliest = 0.0

    def refresh(self, at_end: bool = False) -> None:
        """Write the page, unless that would take more than a small share of the time since the last one."""
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
        now = time.monotonic()
        self._earliest = now + (now - started) / MOST_TIME


def write_report(run_dir: Path) -> Path:
    """Build ``report.html`` from what lies in the folder of a run; its path.

    Raises:
        ConfigError: if there is no run.
        OSError: if it cannot be written; the page before it stays.
    """
    from jinja2 import Environment

    source = resources.files(__package__).joinpath(f"{NAME}.jinja").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    path, partial = run_dir / NAME, run_dir / f".{NAME}.partial"
    values = read_saved(run_dir)
    try:
        partial.write_text(template.render(context(read_run(run_dir, values), values)), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def context(run: Run, values: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template shows. The settings need not be possible on this machine."""
    steps, total = int(run.end()), values["total_steps"]
    wanted, reached = values["eval"]["stop_at"], run.last(EVALUATION)
    solved = wanted is not None and reached is not None and reached >= wanted
    finished = solved or steps >= total
    state = f"{steps / total:.0%} of {total:,} steps"
    if finished:
        state = f"Goal reached at step {steps:,}" if solved else f"Finished: {steps:,} steps"
    experiments = group([run])
    (returns,) = return_panels(experiments)
    shares = tuple(name for name in run.metrics if name.startswith("share/"))
    panels = detail_panels(experiments)
    if len(shares) > 2:
        panels.append(Panel("Share of the time", "", shares, tuple(experiments)))
    size = size_name(values["size"])
    return {
        "environment": run.environment,
        "seed": run.seed,
        "size": size if isinstance(size, str) else "custom",
        "folder": run.path.resolve().name,
        "done": 1.0 if finished else steps / total,
        "state": state,
        "tiles": list(tiles(run, values, finished)),
        "returns": {
            "wide": panel_svg(returns, experiments, 640, 240),
            "narrow": panel_svg(returns, experiments, 300, 230),
        },
        "details": [panel_svg(panel, experiments) for panel in panels],
        "films": list(films(run.path)),
        "tables": tables(run, values),
        "contents": [
            (name, disk_size(run.path / name), meaning)
            for name, meaning in CONTENTS.items()
            if (run.path / name).exists()
        ],
        "settings": yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True),
        "commands": list(commands(run.path, total if finished else None)),
        "versions": {name: version(name) for name in ("dreamer_torchrl", "torch", "torchrl")},
        "now": time.strftime("%Y-%m-%d %H:%M %Z"),
    }


def tiles(run: Run, values: Mapping[str, Any], finished: bool) -> Iterator[tuple[str, str, str]]:
    """Name, value and note of the numbers that matter most."""
    evaluations = run.curve(EVALUATION)
    if len(evaluations):
        deviation, episodes = run.last("eval/return_std"), run.last("eval/episodes") or 0
        spread = "" if deviation is None else f"± {short(deviation)}, "
        note = f"{spread}{episodes:.0f} episodes, at step {evaluations.x[-1]:,.0f}"
        yield "Last evaluation", short(evaluations.y[-1]), note
        best = evaluations.y.argmax()
        yield "Best evaluation", short(evaluations.y[best]), f"at step {evaluations.x[best]:,.0f}"
    if (best_training := run.last("best/return")) is not None:
        yield "Best in training", short(best_training), "mean of 10 episodes"
    frames = f"{run.end('frames'):,.0f} frames, " if run.frames_per_step > 1 else ""
    yield "Steps", f"{run.end():,.0f}", f"{frames}{run.last('count/episodes') or 0:,.0f} episodes"
    skipped = run.last("count/updates_skipped") or 0
    note = updates_per_step(values) + (f", {skipped:,.0f} skipped" if skipped else "")
    yield "Updates", f"{run.last('count/updates') or 0:,.0f}", note
    if (elapsed := run.last("time/elapsed")) is not None:
        left = run.last("time/left")
        yield "Time", duration(elapsed), "of training" if finished or left is None else f"about {duration(left)} left"


def updates_per_step(values: Mapping[str, Any]) -> str:
    """As it follows from the train ratio."""
    replay = values["replay"]
    return f"{values['train_ratio'] / (replay['batch'] * replay['length']):.3g} per step"


def short(value: float) -> str:
    """A return in a few digits.

    Example:
        >>> short(123.456), short(0.512345), short(-1500.2), short(475.0)
        ('123.5', '0.512', '-1,500', '475')
    """
    text = f"{value:,.{0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 3}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def films(folder: Path) -> Iterator[dict[str, Any]]:
    """The newest video of each kind with its still, or the command that makes one."""
    name = shlex.quote(str(folder))
    for title, kind, ending, command in (
        ("Evaluation", "videos", "", f"python -m dreamer_torchrl.evaluate {name} --video"),
        ("Open-loop prediction", "dreams", "", f"python -m dreamer_torchrl.dream {name}"),
        ("Imagination with the policy", "dreams", IMAGINED, ""),
    ):
        files = newest_files(folder / kind, ending)
        if files or command:
            step = files[0].stem.partition("-")[0] if files else ""
            shown = [
                {
                    "name": file.name,
                    "size": byte_size(file.stat().st_size),
                    "data": data_of(file),
                    "still": bool(number),
                }
                for number, file in enumerate(files)
            ]
            step = f"{int(step):,}" if step.isdecimal() else step
            yield {"title": title, "kind": kind, "files": shown, "command": command, "step": step}


def newest_files(folder: Path, ending: str = "") -> list[Path]:
    """The newest picture, by its name which begins with the step, and its still; those with this ending of the name."""
    found = [path for path in folder.glob("[!.]*") if path.suffix in MEDIA and path.stat().st_size]
    found = [path for path in found if path.stem.endswith(IMAGINED) == bool(ending)]
    newest = max((path.stem for path in found), default=None)
    files = sorted((path for path in found if path.stem == newest), key=lambda path: list(MEDIA).index(path.suffix))
    return files[:1] + [path for path in files[1:] if path.suffix == ".png"]


def data_of(path: Path) -> str:
    """A file as a data URI; empty if it is too large."""
    if path.stat().st_size > MOST_BYTES:
        return ""
    return f"data:{MEDIA[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def tables(run: Run, values: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Environment and training, in a few lines each."""
    env, replay, learner, evaluation = (values[name] for name in ("env", "replay", "learner", "eval"))
    options = {key: value for key, value in env.items() if value not in (None, {}, "")}
    return {
        "Environment": {key: str(value) for key, value in options.items()}
        | {"steps to frames": f"{run.frames_per_step}"},
        "Agent and training": {
            "Size": ", ".join(f"{key} {value}" for key, value in values["size"].items()),
            "Replay": f"{replay['capacity']:,} steps in {replay['storage']}",
            "Batch": f"{replay['batch']} x {replay['length']} steps",
            "Train ratio": f"{values['train_ratio']:g}, {updates_per_step(values)}",
            "Learner": ", ".join(
                f"{key} {value:g}" for key, value in learner.items() if isinstance(value, int | float)
            ),
            "Evaluation": f"{evaluation['episodes']} episodes every {evaluation['every']:,} steps",
        },
    }


def disk_size(path: Path) -> str:
    """Of a file or of all files in a folder; those that go away meanwhile count nothing."""
    total = 0
    for folder, _, names in os.walk(path) if path.is_dir() else [(path.parent, [], [path.name])]:
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return byte_size(total) if total >= 1e6 else f"{-(-total // 1000)} kB"


def commands(folder: Path, finished_at: int | None) -> Iterator[tuple[str, str]]:
    """What can be done with the run next."""
    more = [] if finished_at is None else [f"total_steps={2 * finished_at}", "eval.stop_at=null"]
    for title, command, words in (
        ("Train on" if more else "Resume", "train", [f"run_dir={folder}", *more]),
        ("Evaluate, with a video", "evaluate", [str(folder), "--episodes", "20", "--video"]),
        ("Open-loop prediction of an episode", "dream", [str(folder)]),
        ("Imagination: the policy acts in the world model", "dream", [str(folder), "--imagine", "50"]),
        ("Draw the curves", "plot", [str(folder)]),
        ("Export to one file that torch alone can load", "export", [str(folder)]),
        ("Write this page again", "report", [str(folder)]),
    ):
        yield title, shlex.join(["python", "-m", f"dreamer_torchrl.{command}", *words])
