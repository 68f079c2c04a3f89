"""Evaluation: whole episodes of a policy, the same ones each time, and videos of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.collectors.episodes import LONGEST, Episodes
from dreamer_torchrl.collectors.stream_envs import StreamEnvs
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.envs import frame
from dreamer_torchrl.record.video import keep_newest, write_video
from dreamer_torchrl.training.build import dream_title, make_envs, make_policy, seed_for
from dreamer_torchrl.views.imagination import context_for, open_loop
from dreamer_torchrl.views.imagination_video import write_open_loop

FILMED = 2_000  # steps of a video at most: all its frames are in memory at once, 1.4 GB of them at 400 x 600


@dataclass
class Evaluation:
    returns: list[float]
    lengths: list[int]
    frames: list[np.ndarray] = field(default_factory=list)  # of the first episode, as the steps
    notes: list[str] = field(default_factory=list)
    steps: TensorDictBase | None = None  # [T], as in a replay: see `StreamEnv`

    @property
    def mean(self) -> float:
        return fmean(self.returns)

    @property
    def deviation(self) -> float:
        return pstdev(self.returns)

    def values(self) -> dict[str, float]:
        values = {"eval/return": self.mean, "eval/return_std": self.deviation}
        return values | {"eval/length": fmean(self.lengths), "eval/episodes": float(len(self.returns))}


def evaluate(
    policy: Policy,
    envs: StreamEnvs,
    episodes: int,
    deterministic: bool = False,
    film: bool = False,
    record: int = 0,
    longest: int = LONGEST,
) -> Evaluation:
    """Play the first ``episodes`` of the streams, dealt out evenly, so that short ones are not preferred.

    An episode in which its environment fails does not count, the next one of its stream does.

    Args:
        envs: all their streams are restarted. Frames need them in this process.
        deterministic: most likely latents and actions instead of samples.
        film: whether to keep frames of the first 2,000 steps of the first episode.
        record, longest: steps of the first episode to keep; those after which an episode is cut off.
    """
    count = len(envs.makers)
    wanted = [len(range(index, episodes, count)) for index in range(count)]
    played: list[list[tuple[float, int]]] = [[] for _ in range(count)]
    frames, recorded = [], []
    followed = Episodes(count, envs.full_action_spec_unbatched, longest=0)
    envs.restore()
    step = envs.reset()
    exploration = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    while any(len(done) < want for done, want in zip(played, wanted, strict=True)):
        if film and not played[0] and len(frames) < FILMED:
            try:
                frames += _frames(envs, step, policy)
            except Exception as error:  # a renderer is foreign code, and its errors must not end a run
                film, reason = False, f"drawing failed with {type(error).__name__}: {error}"
                envs.notes.append(f"The video has {len(frames)} pictures: {reason}.")
        with torch.no_grad(), set_exploration_type(exploration):
            acted = policy(step)
        batch, step = envs.step_and_maybe_reset(acted)
        steps = followed(batch)  # [N]
        if record and not played[0]:
            if steps["is_init"][0]:  # what was recorded before is of an episode that failed
                recorded.clear()
            if len(recorded) < record:
                recorded.append(steps[0].clone())
        for index, total_reward, length in followed.commit():
            if len(played[index]) < wanted[index]:
                played[index].append((total_reward, length))
        for index, length in enumerate(followed.length):
            if length == longest - 1 and not step["is_init"][index]:
                step["done"][index] = True
                envs.end_episodes([index])
    ordered = [played[number % count][number // count] for number in range(episodes)]
    notes, envs.notes[:] = [*envs.notes], []
    if film and not frames:
        notes.append("There is no video: the environment has no renderer and shows no images.")
    kept = torch.stack(recorded) if recorded else None  # [T]
    return Evaluation([r for r, _ in ordered], [n for _, n in ordered], frames, notes, kept)


def _frames(envs: StreamEnvs, step: TensorDictBase, policy: Policy) -> list[np.ndarray]:
    """The first environment as it is now: drawn by its renderer, else the first image that the agent sees, if any."""
    drawn = frame(envs.workers[0].env.env)
    if drawn is not None:
        return [drawn]
    pictures = [policy.encoder.spaces[key].to_channels_last(step[key][0]) for key in policy.encoder.image_keys[:1]]
    return [picture[..., -3 if picture.shape[2] % 3 == 0 else -1 :].numpy() for picture in pictures]  # the newest


class Evaluator:
    """Evaluate as the settings say, always the same episodes; environments are made at once: errors come early."""

    def __init__(self, settings: Settings, agent: Agent, film: bool = False, record: int = 0):
        self.settings, self.agent, self.film, self.record = settings, agent, film, record
        env, arguments = settings.env, settings.eval.arguments
        if arguments:
            options = {**env.options, "arguments": {**env.options["arguments"], **arguments}}
            settings = replace(settings, env=replace(env, options=options))
        self.envs = make_envs(settings, "evaluation", min(settings.eval.num_envs, settings.eval.episodes), film)
        self.imagined_at = -float("inf")

    def run(self) -> Evaluation:
        """Play the episodes with the present weights; see `evaluate`. After a fault the next has new environments."""
        chosen, seed = self.settings.eval, seed_for(self.settings.seed, "evaluation policy")
        policy = make_policy(self.agent, seed, capture=self.settings.cuda_graph is not False)
        try:
            return evaluate(policy, self.envs, chosen.episodes, chosen.deterministic, self.film, self.record)
        except BaseException:
            self.close()  # some of the environments may still owe an answer
            self.envs.notes.clear()
            raise

    def videos(
        self, evaluation: Evaluation, run_dir: Path, step: int, last: bool, say: Callable[[str], None]
    ) -> Iterator[tuple[str, Path]]:
        """Name and file of the video, and of the agent's imagination if it is time or the run's ``last``."""
        kinds: dict[str, tuple[str, Callable[[Path], Path]]] = {}
        if evaluation.frames:
            kinds["eval/video"] = "videos", lambda path: write_video(path, evaluation.frames, fps=30)
        if evaluation.steps is not None and (last or time.monotonic() - self.imagined_at >= self.settings.eval.dream):
            self.imagined_at = time.monotonic()
            kinds["dream/video"] = "dreams", lambda path: self._imagined(path, evaluation.steps, step)
        for name, (folder, write) in kinds.items():
            path = run_dir / folder / f"{step:012d}.mp4"
            try:
                video = write(path)
                keep_newest(path.parent, self.settings.eval.keep_videos)
            except Exception as error:  # foreign encoders; a missing video must not end a run
                say(f"The video {path.name} was not written: {type(error).__name__}: {error}.")
            else:
                yield name, video

    def close(self) -> None:
        self.envs.close()

    def _imagined(self, path: Path, steps: TensorDictBase, step: int) -> Path:
        prediction = open_loop(self.agent, steps, context_for(len(steps)), seed=seed_for(self.settings.seed, "dream"))
        return write_open_loop(prediction, path, dream_title(self.settings, step))[0]
