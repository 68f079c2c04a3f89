"""An evaluation while a run trains: played, recorded, filmed."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torchrl import timeit

from dreamer_torchrl.collectors.stream_envs import TooManyFailures
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.learners.learner import Learner
from dreamer_torchrl.record.console import Console
from dreamer_torchrl.record.metrics import Metrics
from dreamer_torchrl.training.evaluation import Evaluator
from dreamer_torchrl.training.progress import Progress
from dreamer_torchrl.training.ranks import AgreedStop
from dreamer_torchrl.training.signals import StopSignals
from dreamer_torchrl.views.report_page import Reports


class Evaluated(Protocol):
    """What an evaluation needs of a `Training`."""

    settings: Settings
    run_dir: Path
    console: Console
    evaluator: Evaluator
    learner: Learner
    progress: Progress
    metrics: Metrics
    reports: Reports

    def record(self, values: dict[str, float]) -> None: ...


def play_evaluation(training: Evaluated, stop: StopSignals | AgreedStop) -> None:
    """Play an evaluation; where environments fail all the time it is left out, and the last due again."""
    progress, say = training.progress, training.console.note
    try:
        with timeit("evaluation"), stop.interruptible():
            evaluation = training.evaluator.run()
    except TooManyFailures as failures:
        say(f"This evaluation is left out, and training goes on: {failures}")
        if not progress.finished(training.settings):
            progress.evaluated = progress.position
        return
    if stop.requested:  # there is no time for videos, and it comes again
        return
    for note in evaluation.notes:
        say(f"In the evaluation: {note}")
    progress.evaluated, progress.evaluation = progress.position, evaluation.mean
    training.record(evaluation.values())
    if progress.best_evaluation is None or evaluation.mean > progress.best_evaluation:
        progress.best_evaluation = evaluation.mean
        training.metrics.best(progress.position, evaluation.mean, training.learner.agent)
    finished = progress.finished(training.settings)
    for name, video in training.evaluator.videos(evaluation, training.run_dir, progress.position, finished, say):
        training.metrics.video(progress.position, name, video)
    if training.settings.log.report and not finished:  # else it is written after the last save
        training.reports.refresh()
