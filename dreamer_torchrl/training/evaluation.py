"""Whole episodes of a policy, the same ones each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean, pstdev

import numpy as np
import torch
from tensordict import TensorDictBase

from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.collectors.collect import Collector
from dreamer_torchrl.collectors.stream_envs import Streams
from dreamer_torchrl.envs import frame

LONGEST = 50_000
"""Steps after which an episode is cut off: some environments never end one."""

FILMED = 2_000
"""Steps that a film shows at most: all its pictures are in memory at once, 1.4 GB of them at 400 x 600."""


class GivenUp(Exception):
    """An evaluation was to end before its last episode did."""


def never() -> bool:
    """Whether to give up: no."""
    return False


@dataclass
class Evaluation:
    """Returns and lengths of the episodes, in their order; of the first one pictures and steps if asked for.

    The ``steps`` ``[T]`` are those of a replay (see `StreamEnv`): what was seen on arrival, and what was done then.
    """

    returns: list[float]
    lengths: list[int]
    frames: list[np.ndarray] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    steps: TensorDictBase | None = None

    @property
    def mean(self) -> float:
        """Mean return."""
        return fmean(self.returns)

    @property
    def deviation(self) -> float:
        """Standard deviation of the returns."""
        return pstdev(self.returns)

    def values(self) -> dict[str, float]:
        """What is logged."""
        return {
            "eval/return": self.mean,
            "eval/return_std": self.deviation,
            "eval/length": fmean(self.lengths),
            "eval/episodes": float(len(self.returns)),
        }


def evaluate(
    policy: Policy,
    streams: Streams,
    episodes: int,
    deterministic: bool = False,
    film: bool = False,
    give_up: Callable[[], bool] = never,
    record: int = 0,
    longest: int = LONGEST,
) -> Evaluation:
    """Play ``episodes`` from the start of the streams on, dealt out evenly, so that short ones are not preferred.

    The outcome depends on the policy's weights, its generator and the seeds of the streams. An episode in which its
    environment fails does not count, the next one of its stream does. Films need streams in this process and show the
    first 2,000 steps of the first episode. At most ``record`` of its steps are kept. An episode that does not end
    counts with its ``longest`` first steps. Once ``give_up`` is true there is no outcome: `GivenUp`.
    """
    collector = Collector(streams, policy, deterministic)
    collector.start()
    count = len(streams)
    wanted = [len(range(index, episodes, count)) for index in range(count)]
    played: list[list[tuple[float, int]]] = [[] for _ in range(count)]
    frames: list[np.ndarray] = []
    recorded: list[TensorDictBase] = []
    while any(len(done) < want for done, want in zip(played, wanted, strict=True)):
        if give_up():
            raise GivenUp
        if film and not played[0] and len(frames) < FILMED:
            try:
                frames += _pictures(streams, collector, policy)
            except Exception as error:  # a renderer is somebody else's code, and no film is worth a run
                film = False
                streams.notes.append(
                    f"The video has {len(frames)} pictures: drawing failed with {type(error).__name__}: {error}."
                )
        collector.send()
        steps = collector.receive()
        if record and not played[0]:
            _remember(recorded, steps[0], record)
        for index, total_reward, length in collector.finished:
            if len(played[index]) < wanted[index]:
                played[index].append((total_reward, length))
        endless = (collector.length == longest - 1) & ~collector.now["is_init"].squeeze(1)  # [N]
        collector.end_episodes(endless.nonzero().flatten().tolist())
    ordered = [played[number % count][number // count] for number in range(episodes)]
    notes, streams.notes = streams.notes, []
    if film and not frames:
        notes.append("There is no video: the environment has no renderer and shows no images.")
    kept = torch.stack(recorded) if recorded else None  # [T]
    return Evaluation([r for r, _ in ordered], [n for _, n in ordered], frames, notes, kept)


def _remember(recorded: list[TensorDictBase], step: TensorDictBase, most: int) -> None:
    """Add a step; one that starts an episode takes the place of an episode which failed."""
    if step["is_init"].item():
        recorded.clear()
    if len(recorded) < most:
        recorded.append(step.clone())


def _pictures(streams: Streams, collector: Collector, policy: Policy) -> list[np.ndarray]:
    """The first environment as it is now: drawn by its renderer, else the first image that the agent sees, if any."""
    drawn = frame(streams.hosts[0].env.env)
    if drawn is not None:
        return [drawn]
    pictures = []
    for key in policy.encoder.image_keys[:1]:
        seen = collector.now[key][0]
        picture = seen.permute(1, 2, 0) if policy.encoder.spaces[key].channels_first else seen  # [H, W, C]
        colours = 3 if picture.shape[2] % 3 == 0 else 1
        pictures.append(picture[..., -colours:].numpy())  # of stacked frames the newest
    return pictures
