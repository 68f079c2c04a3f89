"""A small replay whose whole life is known, for the tests of checkpoints and their child processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from dreamer_torchrl.data.replay import Replay

STREAMS = 2


def small_replay(directory: str | None = None) -> Replay:
    """20 time steps of 2 streams, in blocks of 4 of them."""
    return Replay(capacity=40, streams=STREAMS, batch=2, length=4, directory=directory, seed=3, block=8)


def steps(first: int, count: int) -> TensorDict:
    """Steps ``[streams, count]`` that know their own position and stream; one of the entries is nested."""
    time = torch.arange(first, first + count).view(1, -1, 1).expand(STREAMS, -1, 1)
    stream = torch.arange(STREAMS).view(-1, 1, 1).expand(-1, count, 1)
    return TensorDict(
        {
            "time": time.clone(),
            "pixels": ((time + stream) % 256).to(torch.uint8).expand(-1, -1, 5).clone(),
            "stream": stream.clone(),
            "action": {"stream": stream.clone()},
            "belief": time + stream / 10,
            "state": (time % 7).to(torch.uint8).clone(),
        },
        [STREAMS, count],
    )


def parts(step: int) -> dict[str, Any]:
    """What is saved beside the replay."""
    return {"learner": {"weight": torch.full((1000,), float(step))}, "loop": {"step": step}}


def grow(replay: Replay, count: int) -> None:
    """Write ``count`` more time steps; then draw, and send latents back that depend on what was drawn."""
    replay.extend(steps(replay.written // STREAMS, count))
    if replay.ready:
        refresh(replay)


def refresh(replay: Replay) -> None:
    """Draw, and send latents back."""
    batch, where = replay.sample()
    trained = batch[:, 1:]
    replay.refresh(where, TensorDict({"belief": trained["belief"] * 0.9 - 1, "state": trained["state"] + 1}, [2, 4]))


def content(replay: Replay) -> TensorDict:
    """All steps that are there with their latents, the oldest first."""
    return replay.copy(replay.oldest, replay.written)


def assert_same(one: Replay, other: Replay) -> None:
    """The same steps and latents at the same positions, and the same next draws."""
    assert (one.written, len(one)) == (other.written, len(other))
    if one.written:
        assert_equal(content(one), content(other))
    assert list(one.sampler.fresh) == list(other.sampler.fresh)
    assert torch.equal(one.sampler.state_dict()["first"], other.sampler.state_dict()["first"])
    assert torch.equal(one.generator.get_state(), other.generator.get_state())


def assert_equal(one: TensorDict, other: TensorDict) -> None:
    """The same keys, types and bits."""
    assert set(one.keys(True, True)) == set(other.keys(True, True))
    for key, value in one.items(True, True):
        assert value.dtype == other[key].dtype
        assert torch.equal(value, other[key]), key


@contextmanager
def mounted(folder: Path, *words: str) -> Iterator[None]:
    """Run `mount` on a folder, and undo it; skip the test where that is not permitted."""
    mount = subprocess.run(["mount", *words, folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"mount {' '.join(words)}: {mount.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing in this folder can be written."""
    if os.geteuid():
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)
    else:  # modes mean nothing to root
        with mounted(folder, "--bind", str(folder)):
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
            yield


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
