"""A training of a second, what it leaves, and whether two of them are the same to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamer_torchrl import train
from dreamer_torchrl.checkpoint.checkpoints import Checkpoints
from dreamer_torchrl.config.compose import saved_settings
from dreamer_torchrl.training.build import make_replay
from tests.checkpoint.checkpoint_examples import assert_same

TINY = (
    *("experiment=laptop", "prefill=0", "env.num_envs=1"),
    *("threads=1", "device=cpu", "size=nano", "size.belief=32", "size.hidden=16", "size.units=16"),
    *("size.stochastic=4", "size.depth=4", "replay.batch=2", "replay.length=8", "learner.imagination_length=3"),
    *("total_steps=60", "train_ratio=4", "eval.episodes=2", "eval.num_envs=2", "eval.dream=0"),
    *("log.every=1000", "log.report=false"),
)


def words(run_dir: Path, *more: str) -> list[str]:
    """What to ask `train` for; the last word on a setting counts."""
    chosen = {word.partition("=")[0]: word for word in (*TINY, f"run_dir={run_dir}", *more)}
    return list(chosen.values())


def trained(run_dir: Path, *more: str) -> Path:
    """Train to the end, or go on."""
    assert train.main(words(run_dir, *more)) == 0
    return run_dir


def trained_twice(run_dir: Path, first: int, second: int, *more: str) -> Path:
    """Train to one step and go on to another: a run with a checkpoint at each."""
    trained(run_dir, *more, "checkpoint.keep=9", f"total_steps={first}")
    return trained(run_dir, *more, "checkpoint.keep=9", f"total_steps={second}")


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """All that the run measured."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def episodes(run_dir: Path) -> list[dict[str, Any]]:
    """What it says of episodes and evaluations, which does not depend on the time that things took."""
    return [line for line in lines(run_dir) if "episode/return" in line or "eval/return" in line]


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, optimizer, normalizers, latents, random states, counts and replay, in all bits."""
    replays = []
    states = []
    for run in (one, other):
        saved = Checkpoints(run / "checkpoints").load()
        assert saved.damaged == []
        saved.parts["progress"].pop("seconds")
        saved.parts.pop("metrics")  # lines of intervals hold times, so their number and length differ
        states.append(saved.parts)
        replays.append(make_replay(saved_settings(run)))
        saved.restore_replay(replays[-1])
    assert differences(*states) == []
    assert_same(*replays)


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Names of the leaves of two trees that are not the same in all bits."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [name for key in one for name in differences(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [
            name for i, pair in enumerate(zip(one, other, strict=True)) for name in differences(*pair, f"{path}[{i}]")
        ]
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    return [] if one == other else [path]
