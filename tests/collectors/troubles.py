"""A small environment with nested observations and composite actions, which can be told to break once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete
from tensordict import TensorDict, TensorDictBase

from dreamer_torchrl.collectors.stream_env import StreamEnv
from dreamer_torchrl.collectors.stream_envs import StreamEnvs
from dreamer_torchrl.envs.gym import Gymnasium

ENTROPY = 7


class Walk(gymnasium.Env):
    """Wanders as its seed and the actions say, for 3 to 9 steps. What it shows depends on all that was done before.

    Args:
        trouble: how it breaks: the name of a method.
        at: how often it acts well before it does.
        mark: a file that is there once it has broken; after that it does not break again. Always, if left out.
        private: whether it draws from a source of its own, so that a seed does not bring an episode back.
        children: whether it starts a process, which does not end by itself.
    """

    def __init__(
        self,
        trouble: str | None = None,
        at: int = 12,
        mark: Path | None = None,
        private: bool = False,
        children: bool = False,
    ):
        inside = Dict(kind=Discrete(3), level=Box(-np.inf, np.inf, (1,)))
        self.observation_space = Dict(place=Box(-np.inf, np.inf, (2,)), inside=inside)
        self.action_space = Dict(move=Box(np.float32([-2, 0]), np.float32([3, 10])), gear=Discrete(3))
        self.trouble, self.at, self.mark, self.private = trouble, at, mark, private
        self.acted = 0
        if children and multiprocessing.parent_process():
            multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()
        if self._due("constructor"):
            raise RuntimeError("no such thing")
        if self._due("hung_constructor"):
            time.sleep(1000)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self.acted >= self.at and self._due("reset"):
            raise RuntimeError("no way back")
        self.limit, self.steps = int(self.np_random.integers(3, 10)), 0
        self.place = self._draw()
        return self._shown(), {}

    def step(self, action: dict[str, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.acted += 1
        self.steps += 1
        self.place = 0.5 * self.place + action["move"] + action["gear"] + self._draw()
        reward = float(self.place.sum())
        if self.acted > self.at:
            if self._due("step"):
                raise RuntimeError("out of order")
            if self._due("python_exit"):
                sys.exit("enough")
            if self._due("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if self._due("hang"):
                time.sleep(1000)
            if self._due("reward"):
                reward = float("nan")
        over = self.steps == self.limit
        return self._shown(), reward, over and self.limit % 2 == 0, over and self.limit % 2 == 1, {}

    def _draw(self) -> np.ndarray:
        generator = np.random.default_rng() if self.private else self.np_random
        return generator.normal(size=2)

    def _shown(self) -> dict[str, Any]:
        kind = int(abs(self.place[1]) * 10) % 3
        return {"place": self.place.copy(), "inside": {"kind": kind, "level": self.place[:1] * 2}}

    def _due(self, trouble: str) -> bool:
        due = self.trouble == trouble and not (self.mark and self.mark.exists())
        if due and self.mark:
            self.mark.touch()
        return due


def walk(place: int, options: dict[str, Any]) -> StreamEnv:
    """Stream number ``place`` of `Walk`."""
    return StreamEnv(Gymnasium(Walk(**options)), entropy=(ENTROPY, place), stream=place)


def walks(*each: dict[str, Any], **options: Any) -> StreamEnvs:
    """Streams of `Walk`, one for each dict of its arguments."""
    return StreamEnvs([partial(walk, place, arguments) for place, arguments in enumerate(each)], **options)


def some_actions(count: int, n: int) -> list[TensorDictBase]:
    """The same random actions each time, ``[N]`` each."""
    generator = torch.Generator().manual_seed(0)
    moves = 2 * torch.rand(count, n, 2, generator=generator) - 1
    gears = torch.nn.functional.one_hot(torch.randint(3, (count, n), generator=generator), 3).bool()
    return [TensorDict({"action": {"move": m, "gear": g}}, [n]) for m, g in zip(moves, gears, strict=True)]


def play(
    envs: StreamEnvs, step: TensorDictBase, actions: list[TensorDictBase]
) -> tuple[TensorDictBase, TensorDictBase]:
    """Act from a step on: what a collector would yield ``[N, T]``, and the step that follows."""
    batch = []
    for action in actions:
        taken, step = envs.step_and_maybe_reset(step.update(action))
        batch.append(taken)
    return torch.stack(batch, 1), step
