"""One page about a run, ``report.html`` in its folder: pictures and films are inside, so that it can be sent to anyone.

Only what lies in the folder is read, torch is not needed, and a browser is told to ask no network for anything.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

import yaml

from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.config.checks import leaves
from dreamer_torchrl.config.compose import choices, read_saved
from dreamer_torchrl.config.schema import EnvironmentSettings
from dreamer_torchrl.record.console import duration
from dreamer_torchrl.record.console import size as bytes_in_words
from dreamer_torchrl.views.curves import EVALUATION, LOSSES, RETURN, Curve, Run, read_run, smooth, thin
from dreamer_torchrl.views.figures import REFERENCE
from dreamer_torchrl.views.page_frame import document, film
from dreamer_torchrl.views.references import known_results, official_curve
from dreamer_torchrl.views.svg_chart import COLOURS, Line, line_chart, number, share_chart

NAME = "report.html"

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"

LOG = "log scale"

OFFICIAL = COLOURS.index(REFERENCE)

PANELS = (
    ("World model losses", LOG, {name: f"train/loss_{name}" for name in LOSSES[:5]}),
    ("Critic losses", LOG, {"value": "train/loss_value", "replay value": "train/loss_replay_value"}),
    ("Actor loss", "", {"actor": "train/loss_actor"}),
    ("Entropy of the policy", "nats", {"entropy": "train/entropy"}),
    ("Speed", "per second", {"steps": "rate/steps_per_second", "updates": "rate/updates_per_second"}),
)
"""Title, unit and lines of the small charts."""

PARTS = ("learner", "environment", "acting", "replay", "other")
"""Of the time."""

FOLDER = {
    "config.yaml": "the resolved settings",
    "overrides.json": "the words that were given",
    "metrics.jsonl": "all numbers, one JSON object per line",
    "evaluation.json": "the last evaluation by command",
    "checkpoints": "complete states of the run, and its replay",
    "videos": "films of evaluations",
    "dreams": "what the world model believes",
    "plot.png": "learning curves as a picture",
    "tensorboard": "the numbers for TensorBoard",
    "wandb": "the numbers for Weights & Biases",
    "faults": "batches that could not be learned from",
}
"""What may lie in a run's folder."""


@dataclass(frozen=True)
class Story:
    """All that the page tells of: the folder, the settings, and what was measured.

    The settings are plain values: whether they are possible on this machine does not matter here.
    """

    folder: Path
    values: Mapping[str, Any]
    run: Run

    @property
    def steps(self) -> int:
        """How far the run is."""
        return int(self.run.end())

    @property
    def total(self) -> int:
        """How far it shall come."""
        return self.values["total_steps"]

    @property
    def updates_per_step(self) -> str:
        """In words."""
        replay = self.values["replay"]
        return f"{self.values['train_ratio'] / (replay['batch'] * replay['length']):.3g} a step"

    @property
    def goal_reached(self) -> bool:
        """Whether the last evaluation has the return that was asked for."""
        wanted, reached = self.values["eval"]["stop_at"], self.run.last(EVALUATION)
        return wanted is not None and reached is not None and reached >= wanted

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.goal_reached or self.steps >= self.total


def write_report(run_dir: Path) -> Path:
    """Build ``report.html`` from what lies in the folder of a run; its path.

    Raises:
        ConfigError: if there is no run.
        OSError: if it cannot be written; the one before it stays.
    """
    values = read_saved(run_dir)
    story = Story(run_dir, values, read_run(run_dir, values))
    path, partial = run_dir / NAME, run_dir / f".{NAME}.partial"
    try:
        partial.write_text(page(story), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def page(story: Story) -> str:
    """The whole document."""
    title = f"{story.run.environment}, seed {story.run.seed}"
    parts = (films, learning, inside, what_it_is, commands)
    return document(title, header(story), [line for part in parts for line in part(story)])


# What there is to see ---------------------------------------------------------------------------------------------


def header(story: Story) -> Iterator[str]:
    """Name, how far it is, and the numbers that matter most."""
    run, done = story.run, min(1.0, story.steps / story.total)
    state = f"{done:.0%} of {story.total:,} steps"
    if story.finished:
        state = f"Goal reached at step {story.steps:,}" if story.goal_reached else f"Finished: {story.steps:,} steps"
    size = next((name for name in choices("size") if vars(Size.named(name)) == story.values["size"]), "own")
    yield '<p class="eyebrow">DreamerV3 run</p>'
    yield f"<h1>{escape(run.environment)}</h1>"
    yield f'<p class="quiet">size {size}, seed {run.seed}, folder '
    yield f"<code>{escape(story.folder.resolve().name)}</code></p>"
    yield f'<progress max="1" value="{1 if story.finished else done:.4f}" aria-label="Progress"></progress>'
    yield f'<p class="quiet">{state}</p>\n<dl class="tiles">'
    for name, value, note in tiles(story):
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
    yield "</dl>"


def tiles(story: Story) -> Iterator[tuple[str, str, str]]:
    """Name, value and note of each number that matters."""
    run = story.run
    evaluations = run.curve(EVALUATION)
    if len(evaluations):
        deviation, episodes = run.last("eval/return_std"), run.last("eval/episodes") or 0
        spread = "" if deviation is None else f"{PLUS_MINUS} {short(deviation)}, "
        note = f"{spread}{episodes:.0f} episodes, at step {evaluations.x[-1]:,.0f}"
        yield "Last evaluation", short(evaluations.y[-1]), note
        best = evaluations.y.argmax()
        yield "Best evaluation", short(evaluations.y[best]), f"at step {evaluations.x[best]:,.0f}"
    if (best_training := run.last("best/return")) is not None:
        yield "Best in training", short(best_training), "mean of 10 episodes"
    frames = f"{story.steps * run.frames_per_step:,} frames, " if run.frames_per_step > 1 else ""
    yield "Steps", f"{story.steps:,}", f"{frames}{run.last('count/episodes') or 0:,.0f} episodes"
    skipped = run.last("count/updates_skipped") or 0
    note = story.updates_per_step + (f", {skipped:,.0f} skipped" if skipped else "")
    yield "Updates", f"{run.last('count/updates') or 0:,.0f}", note
    if (elapsed := run.last("time/elapsed")) is not None:
        left = run.last("time/left")
        note = "of training" if story.finished or left is None else f"about {duration(left)} left"
        yield "Time", duration(elapsed), note


def films(story: Story) -> Iterator[str]:
    """The newest evaluation and the newest dream, or how to get them."""
    name = shlex.quote(str(story.folder))
    yield '<h2>Watch</h2>\n<div class="watch">'
    yield from film(story.folder, "videos", "Evaluation", f"python -m dreamer_torchrl.evaluate {name} --video")
    yield from film(story.folder, "dreams", "Dream", f"python -m dreamer_torchrl.dream {name}")
    yield from film(story.folder, "dreams", "Imagined freely", imagined=True)
    yield "</div>"


# Curves -----------------------------------------------------------------------------------------------------------


def learning(story: Story) -> Iterator[str]:
    """Returns: of the episodes of training, and of the evaluations."""
    run = story.run
    episodes, evaluations = run.curve(RETURN), run.curve(EVALUATION)
    window = max(10, len(episodes) // 50)
    smoothed, spread = thin(smooth(episodes, window)), thin(run.curve("eval/return_std"))
    episodes, evaluations = thin(episodes), thin(evaluations)
    lines = [
        Line("training episodes", episodes.x, episodes.y, faint=True),
        Line(f"mean over {window}", smoothed.x, smoothed.y),
        Line(
            f"evaluations {PLUS_MINUS} deviation",
            *(evaluations.x, evaluations.y, 1),
            spread=spread.y if len(spread) == len(evaluations) else None,
            marked=True,
        ),
    ]
    official = official_curve(run.environment)
    official = official and official.until(run.end(), run.frames_per_step)
    if official is not None:  # behind the run's own
        spread = (official.median - official.low, official.high - official.median)
        lines.insert(0, Line(official.label, official.x, official.median, OFFICIAL, spread=spread))
    yield '<h2>Learning</h2>\n<div class="card chart-card">'
    for look, width, height in (("wide", 1000, 360), ("middle", 620, 320), ("narrow", 360, 260)):
        chart = line_chart("Return", lines, "steps", "per episode", width, height, x_range=(0, max(story.steps, 1)))
        yield f'<div class="{look}">{chart}</div>'
    yield "</div>"
    if known := known_results(run.environment):
        told = "; ".join(result.label for result in known)
        yield f'<p class="quiet">Others report, not always under the same conditions: {escape(told)}.</p>'


def inside(story: Story) -> Iterator[str]:
    """Losses, entropy, where the time goes, and how fast it is."""
    run = story.run
    yield '<h2>Inside</h2>\n<div class="grid">'
    for title, unit, metrics in PANELS:
        curves = [(name, seen(run.curve(metric))) for name, metric in metrics.items()]
        lines = [Line(name, curve.x, curve.y, colour) for colour, (name, curve) in enumerate(curves)]
        chart = line_chart(title, lines, "steps", unit, log=unit == LOG, x_range=(0, max(story.steps, 1)))
        yield f'<div class="card chart-card">{chart}</div>'
    shares = [(part, seen(run.curve(f"share/{part}"))) for part in PARTS]
    lines = [Line(part, curve.x, curve.y, colour) for colour, (part, curve) in enumerate(shares) if len(curve)]
    chart = share_chart("Share of the time", lines, "steps", "other: evaluations, saving")
    yield f'<div class="card chart-card">{chart}</div></div>'


def seen(curve: Curve) -> Curve:
    """What a small chart shows of a curve."""
    return thin(smooth(curve, len(curve) // 60), most=200)


# What there is to read --------------------------------------------------------------------------------------------


def what_it_is(story: Story) -> Iterator[str]:
    """Environment, agent, folder, and all settings."""
    values, run = story.values, story.run
    env, replay, learner, evaluation = (values[name] for name in ("env", "replay", "learner", "eval"))
    common = {field.name for field in fields(EnvironmentSettings)}
    own = {key: value for key, value in leaves(env).items() if key not in common}
    environment = {
        "Name": run.environment,
        "Family": env["family"],
        **{key: str(value) for key, value in own.items() if value not in (None, {}, "", run.environment)},
        "Environments": f"{env['num_envs']} at a time, workers: {env['workers']}",
        "Action repeat": f"{env['action_repeat']}; frames a step: {run.frames_per_step}",
    }
    agent = {
        "Size": ", ".join(f"{key} {value}" for key, value in values["size"].items()),
        "Replay": f"{replay['capacity']:,} steps in {replay['storage']}",
        "Batches": f"{replay['batch']} x {replay['length']} steps",
        "Train ratio": f"{values['train_ratio']:g}; updates: {story.updates_per_step}",
        "Learning rate": f"{learner['learning_rate']:g}, {values['dtype']}",
        "Horizon": f"{learner['horizon']:g} steps, imagined {learner['imagination_length']}",
        "Evaluation": f"{evaluation['episodes']} episodes every {evaluation['every']:,} steps",
    }
    yield '<h2>Run</h2>\n<div class="pair">'
    for title, entries in (("Environment", environment), ("Agent and training", agent)):
        rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in entries.items())
        yield f'<div class="card"><h3>{title}</h3><table>{rows}</table></div>'
    yield '</div>\n<details open><summary>Folder</summary><table class="folder">'
    for name, meaning in FOLDER.items():
        if (story.folder / name).exists():
            size = size_of(story.folder / name)
            yield f"<tr><td><code>{name}</code></td><td>{size}</td><td>{escape(meaning)}</td></tr>"
    yield "</table></details>"
    text = yaml.safe_dump(dict(story.values), sort_keys=False, allow_unicode=True)
    yield f"<details><summary>All settings</summary><pre>{escape(text)}</pre></details>"


def size_of(path: Path) -> str:
    """Of a file or of all files in a folder, in words; those that go away meanwhile count nothing."""
    total = 0
    for folder, _, names in os.walk(path) if path.is_dir() else [(path.parent, [], [path.name])]:
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return bytes_in_words(total) if total >= 1e6 else f"{-(-total // 1000)} kB"


def commands(story: Story) -> Iterator[str]:
    """What to type to go on from here."""
    name = str(story.folder)
    train = ["python", "-m", "dreamer_torchrl.train", f"run_dir={name}"]
    more = [f"total_steps={2 * story.total}", "eval.stop_at=null"] if story.finished else []
    entries = [
        ("Train on" if more else "Resume", [*train, *more]),
        *(
            (title, ["python", "-m", f"dreamer_torchrl.{command}", name, *options])
            for title, command, options in (
                ("Evaluate, and film an episode", "evaluate", ["--episodes", "20", "--video"]),
                ("See what the world model believes", "dream", []),
                ("Let the policy act in a dream, without the environment", "dream", ["--imagine", "50"]),
                ("Draw the curves", "plot", []),
                ("Export to one file that torch alone can load", "export", []),
                ("Write this page anew", "report", []),
            )
        ),
    ]
    yield '<h2>Go on</h2>\n<div class="card">'
    for title, words in entries:
        yield f'<h3>{escape(title)}</h3><pre class="command">{escape(shlex.join(words))}</pre>'
    yield "</div>"


def short(value: float) -> str:
    """A return in a few digits.

    Example:
        >>> short(123.456), short(0.512345), short(-1500.2)
        ('123.5', '0.512', '\N{MINUS SIGN}1,500')
    """
    decimals = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 3
    return number(round(float(value), decimals))
