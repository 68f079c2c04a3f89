"""A process that hangs is given up in time, wherever it hangs; a training that goes on never waits for it for ever."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch

from dreamer_torchrl.collectors import workers as hosts
from dreamer_torchrl.collectors.stream_envs import StreamState
from tests.collectors.troubles import assert_equal, some_actions, walk, walks


def test_an_environment_that_hangs_while_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done in a long episode is more than a connection holds: it would wait for a reader for ever."""
    with closing(walks({}, processes=True)) as sound:
        sound.start()  # the first process of all takes its time
    monkeypatch.setattr(hosts, "STARTING", 4.0)
    mark = tmp_path / "mark"
    mark.touch()  # the one that tells the specs is made here
    with closing(walks({"trouble": "hung_constructor", "mark": mark}, processes=True, timeout=1.0)) as streams:
        mark.unlink()
        done = streams.action_spec.rand((1,)).expand(30_000, 1)[:, 0]
        assert sum(value.nbytes for value in done.values(True, True)) > 300_000
        arrived = []
        starting = threading.Thread(target=lambda: arrived.append(streams.start([StreamState(5, done)])), daemon=True)
        starting.start()
        starting.join(60)
        assert arrived, "it does not come back"
        assert_equal(arrived[0][0], walk(0, {}).resume(6, []))
        assert streams.failures == 1
        assert "did not answer for 5 s" in streams.notes[0]


def test_an_environment_that_hangs_on_the_way_back(tmp_path: Path) -> None:
    """It is given up after the time of one step, not after that of the whole way."""
    trouble = {"trouble": "hang", "at": 3, "mark": tmp_path / "mark"}
    with closing(walks(trouble, processes=True, timeout=2.0)) as streams:
        done = torch.stack(some_actions(streams, 8))[:, 0]
        assert_equal(streams.start([StreamState(0, done)])[0], walk(0, {}).resume(1, []))
        assert streams.failures == 1
        assert "did not answer for 2 s" in streams.notes[0]
