"""The evaluations of a run in training: episodes in environments of their own, films and dreams of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tensordict import TensorDictBase

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.collectors.stream_envs import TooManyFailures
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.record.video import keep_newest, write_video
from dreamer_torchrl.training.build import dream_title, evaluation_streams, run_evaluation, seed_for
from dreamer_torchrl.training.evaluation import Evaluation
from dreamer_torchrl.views.imagination import STEPS, context_for, dream
from dreamer_torchrl.views.imagination_pictures import write_dream


class Evaluations:
    """Evaluate an agent now and then.

    Args:
        settings: of the run.
        run_dir: its folder, where films and dreams go.
        agent: whose weights are those of each moment.
        say: tells what went wrong.
    """

    def __init__(self, settings: Settings, run_dir: Path, agent: Agent, say: Callable[[str], None]):
        self.settings, self.run_dir, self.agent, self.say = settings, run_dir, agent, say
        # Made at once, so that what cannot be made is told before anything is learned.
        self.streams = evaluation_streams(settings, settings.eval.video)
        self.dreamt_at = -float("inf")

    def play(self, give_up: Callable[[], bool]) -> Evaluation | None:
        """Play the episodes with the present weights; None if environments fail all the time.

        Once ``give_up`` is true there is no outcome: `GivenUp`.
        """
        film, record = self.settings.eval.video, STEPS if self.settings.eval.dream else 0
        try:
            evaluation = run_evaluation(self.settings, self.agent, self.streams, film, give_up, record)
        except TooManyFailures as failures:
            self.streams.close()  # the next evaluation makes new ones: some of these still owe an answer
            self.streams.notes.clear()
            self.say(f"This evaluation is left out, and training goes on: {failures}")
            return None
        for note in evaluation.notes:
            self.say(f"In the evaluation: {note}")
        return evaluation

    def videos(self, evaluation: Evaluation, step: int, last: bool) -> Iterator[tuple[str, Path]]:
        """Name and file of the film, and of the dream if it is time or the run's ``last``."""
        if evaluation.frames:
            yield from self._video(
                "eval/video", "videos", step, lambda path: write_video(path, evaluation.frames, fps=30)
            )
        if evaluation.steps is not None and (last or time.monotonic() - self.dreamt_at >= self.settings.eval.dream):
            self.dreamt_at = time.monotonic()
            yield from self._video("dream/video", "dreams", step, lambda path: self._draw(path, evaluation.steps, step))

    def close(self) -> None:
        """Let the environments go."""
        self.streams.close()

    def _video(self, name: str, folder: str, step: int, write: Callable[[Path], Path]) -> Iterator[tuple[str, Path]]:
        path = self.run_dir / folder / f"{step:012d}.mp4"
        try:
            video = write(path)
            keep_newest(path.parent, self.settings.eval.keep_videos)
        except Exception as error:  # no video is worth a run
            self.say(f"The video {path.name} was not written: {type(error).__name__}: {error}.")
        else:
            yield name, video

    def _draw(self, path: Path, steps: TensorDictBase, step: int) -> Path:
        """What the model believes of these steps, by random numbers of its own."""
        believed = dream(self.agent, steps, context_for(len(steps)), seed=seed_for(self.settings.seed, "dream"))
        return write_dream(believed, path, dream_title(self.settings, step))[0]
