"""Streams: the same steps here and in processes; what breaks is replaced, and nobody else notices."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from dreamer_torchrl.collectors.stream_env import StreamEnv, episode_seed
from dreamer_torchrl.collectors.stream_envs import Actions, Streams, TooManyFailures
from tests.collectors.troubles import ENTROPY, assert_equal, play, some_actions, walk, walks

STEPS = 40


@pytest.fixture
def opened() -> Iterator[Callable[..., Streams]]:
    """Make streams of `Walk` that are closed at the end."""
    made = []

    def make(*each: dict[str, Any], **options: Any) -> Streams:
        made.append(walks(*each, **options))
        return made[-1]

    yield make
    for streams in made:
        streams.close()


def test_processes_give_the_steps_that_this_one_gives(opened: Callable[..., Streams]) -> None:
    here, elsewhere = opened({}, {}), opened({}, {}, processes=True)
    first = here.start()
    assert_equal(first, elsewhere.start())
    assert first["is_init"].all()
    assert not torch.equal(first["place"][0], first["place"][1])
    expected, failed = play(here, some_actions(here, STEPS))
    got, _ = play(elsewhere, some_actions(elsewhere, STEPS))
    assert_equal(got, expected)
    assert not failed.any()
    assert (expected["is_init"].sum(0) > 3).all()
    assert torch.equal(expected["is_init"][1:], expected["done"][:-1])
    assert len({host.process.pid for host in elsewhere.hosts} | {os.getpid()}) == 3


EVERYWHERE = {
    "step": "RuntimeError: out of order",
    "reset": "RuntimeError: no way back",
    "reward": "NotFinite: The environment gave reward = [nan]",
    "observation": "NotFinite: The environment gave place = [inf",
    "python_exit": "SystemExit: enough",
}
IN_PROCESSES = {"exit": "exit code 5", "kill": "exit code -9", "hang": "did not answer for 2 s"}


@pytest.mark.parametrize(
    ("trouble", "processes"), [*[(t, False) for t in EVERYWHERE], *[(t, True) for t in EVERYWHERE | IN_PROCESSES]]
)
def test_what_breaks_is_replaced(trouble: str, processes: bool, opened: Callable[..., Streams], tmp_path: Path) -> None:
    """The broken stream goes on with its next episode, the other one is the same to the last bit."""
    sound = opened({}, {})
    sound.start()
    expected, _ = play(sound, some_actions(sound, STEPS))
    patience = 2.0 if trouble == "hang" else 60.0
    broken = opened({}, {"trouble": trouble, "mark": tmp_path / "mark"}, processes=processes, timeout=patience)
    broken.start()
    steps, failed = play(broken, some_actions(broken, STEPS))

    assert failed.sum() == 1
    when, which = failed.nonzero()[0].tolist()
    assert which == 1
    assert_equal(steps[:, 0], expected[:, 0])
    assert_equal(steps[:when, 1], expected[:when, 1])
    episode = int(expected["is_init"][: when + 1, 1].sum())  # which one broke, or could not begin
    fresh = walk(1, {})
    assert_equal(steps[when, 1], fresh.resume(episode if trouble == "reset" else episode + 1, []))
    assert steps["is_init"][when + 1 :, 1].any()
    assert broken.failures == len(broken.notes) == 1
    assert broken.notes[0].startswith("Environment 1 failed")
    assert (EVERYWHERE | IN_PROCESSES)[trouble] in broken.notes[0]


@pytest.mark.parametrize("processes", [False, True])
def test_an_environment_that_cannot_be_built_is_tried_again(
    processes: bool, opened: Callable[..., Streams], tmp_path: Path
) -> None:
    """Each attempt goes on to the next episode, since the same one might fail again."""
    mark = tmp_path / "mark"
    mark.touch()
    streams = opened({"trouble": "constructor", "mark": mark}, processes=processes)
    mark.unlink()
    assert_equal(streams.start()[0], walk(0, {}).resume(1, []))
    assert streams.failures == 1
    assert "RuntimeError: no such thing" in streams.notes[0]


def test_making_an_environment_may_take_longer_than_a_step(opened: Callable[..., Streams]) -> None:
    streams = opened({"trouble": "slow_constructor"}, processes=True, timeout=1.0)
    streams.start()
    assert streams.failures == 0


def test_too_many_failures_end_it(opened: Callable[..., Streams]) -> None:
    """Here one environment breaks at each step; the third within the window is one too many."""
    streams = opened({"trouble": "step", "at": 0}, {}, most_failures=2)
    streams.start()
    actions = some_actions(streams, 3)
    play(streams, actions[:2])
    with pytest.raises(TooManyFailures, match=r"(?s)failed 3 times within 1000 steps.*out of order"):
        play(streams, actions[2:])
    assert streams.failures == 3


@pytest.mark.parametrize("last", range(6, 13))
def test_after_too_many_failures_the_last_actions_can_be_taken_back(
    last: int, opened: Callable[..., Streams], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then other streams come to where these stood; some of them had begun an episode when another one failed."""
    monkeypatch.setattr(Actions, "block", 4)
    broken = opened({}, {}, {"trouble": "step", "at": last}, most_failures=0)
    steps, actions = broken.start(), some_actions(broken, 30)
    with pytest.raises(TooManyFailures):
        for action in actions:
            states, stood = broken.states, steps
            steps = play(broken, [action])[0][0]
    broken.take_back()
    assert [state.episode for state in broken.states] == [state.episode for state in states]
    for now, then in zip(broken.states, states, strict=True):
        assert_equal(now.actions, then.actions)
    assert_equal(opened({}, {}, {}).start(broken.states), stood)


def test_an_environment_that_never_starts_ends_it(opened: Callable[..., Streams]) -> None:
    streams = opened({"trouble": "reset", "at": 0}, most_failures=4)
    with pytest.raises(TooManyFailures, match="failed 5 times"):
        streams.start()


def test_rare_failures_are_not_too_many(opened: Callable[..., Streams]) -> None:
    """Two streams make a window of 20 steps one of 10 calls; the environment breaks at its every 12th action."""
    streams = opened({"trouble": "step", "at": 11}, {}, most_failures=1, window=20)
    streams.start()
    play(streams, some_actions(streams, 60))
    assert streams.failures == 4
    often = opened({"trouble": "step", "at": 11}, {}, most_failures=1, window=40)
    often.start()
    with pytest.raises(TooManyFailures):
        play(often, some_actions(often, 60))


@pytest.mark.parametrize("processes", [False, True])
def test_streams_come_back_to_where_they_were(processes: bool, opened: Callable[..., Streams]) -> None:
    """Again and again, in the middle of episodes, by other streams than those that recorded."""
    streams = opened({}, {})
    first = streams.start()
    actions = some_actions(streams, STEPS)
    expected, _ = play(streams, actions)
    seen = torch.cat([first.unsqueeze(0), expected])  # [STEPS + 1, N]
    other = opened({}, {}, processes=processes)
    other.start()
    lengths = set()
    for when in range(STEPS):
        states = other.states
        lengths |= {len(state.actions) for state in states}
        if not processes or when in (3, 4, 20):
            play(other, actions[when:])  # somewhere else
            assert_equal(other.start(states), seen[when])
        play(other, actions[when : when + 1])
        assert_equal(other.start(other.states), seen[when + 1])
    assert {0, 1, 2, 3} <= lengths


def test_a_stream_that_cannot_come_back_goes_on(opened: Callable[..., Streams], tmp_path: Path) -> None:
    streams = opened({}, {})
    streams.start()
    steps, _ = play(streams, some_actions(streams, 14))
    assert not steps["done"][-1].any()
    states = streams.states
    broken = opened({"trouble": "step", "at": 0, "mark": tmp_path / "mark"}, {})
    arrived = broken.start(states)
    assert_equal(arrived[1], steps[-1, 1])
    assert_equal(arrived[0], walk(0, {}).resume(states[0].episode + 1, []))
    assert [state.episode for state in broken.states] == [states[0].episode + 1, states[1].episode]
    assert broken.failures == 1


def test_an_episode_can_be_given_up(opened: Callable[..., Streams]) -> None:
    for processes in (False, True):
        streams = opened({}, {}, processes=processes)
        streams.start()
        actions = some_actions(streams, 3)
        before, _ = play(streams, actions[:1])
        assert not before["done"].any()
        streams.end_episodes([1])
        after, failed = play(streams, actions[1:2])
        assert after["is_init"].flatten().tolist() == [False, True]
        assert not failed.any()
        assert_equal(after[0, 1], walk(1, {}).resume(1, []))


def test_actions_of_episodes_that_ended_are_forgotten(
    opened: Callable[..., Streams], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing older than a block before the oldest episode is kept, and what was done in each is complete."""
    monkeypatch.setattr(Actions, "block", 4)
    streams = opened({}, {}, {})
    streams.start()
    actions = some_actions(streams, 60)
    began, most = [0, 0, 0], 0
    for when, action in enumerate(actions, 1):
        steps, _ = play(streams, [action])
        for index in steps["is_init"][0].flatten().nonzero().flatten().tolist():
            began[index] = when
        most = max(most, len(streams._acted))
        for index, state in enumerate(streams.states):
            done = actions[began[index] : when]
            assert len(state.actions) == len(done)
            if done:
                assert_equal(state.actions, torch.stack(done)[:, index])
    assert most <= 9 + 1 + 4  # the longest episode, its end, and a block


def test_blocks_of_actions_are_dropped_and_joined() -> None:
    spec = TensorDict({"action": torch.zeros(0, 2)}, [0, 2])
    actions = Actions(spec)
    assert actions.joined().shape == (0, 2)
    for number in range(1000):
        actions.append(TensorDict({"action": torch.full((2,), float(number))}, [2]))
    actions.forget(511)
    assert (actions.first, len(actions)) == (256, 744)
    actions.forget(512)
    assert (actions.first, len(actions)) == (512, 488)
    assert actions.joined()["action"][:, 0].tolist() == list(range(512, 1000))
    for _ in range(300):  # over the edge of a block
        actions.take_back()
    assert actions.joined()["action"][:, 0].tolist() == list(range(512, 700))


def test_a_maker_that_fails_at_once_tells_why() -> None:
    """The first environment tells the specs: there is nothing to go on with."""

    def maker() -> StreamEnv:
        return walk(0, {"trouble": "constructor"})

    with pytest.raises(RuntimeError, match="no such thing"):
        Streams([maker])


def test_seeds_of_episodes_are_those_of_the_stream() -> None:
    assert walk(3, {}).entropy == (ENTROPY, 3)
    seeds = {episode_seed((ENTROPY, place), episode) for place in range(4) for episode in range(4)}
    assert len(seeds) == 16


PARENT = """
import signal, sys
from tests.collectors.troubles import play, some_actions, walks

if __name__ == "__main__":
    streams = walks({}, {"trouble": "hang", "at": 12}, processes=True)
    streams.start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    print(*[host.process.pid for host in streams.hosts], flush=True)
    actions = some_actions(streams, 20)
    for line in sys.stdin:
        begin, end = map(int, line.split())
        play(streams, actions[begin:end])
        print(streams.failures, flush=True)
"""


def test_processes_outlive_signals_to_all_and_end_with_their_parent(tmp_path: Path) -> None:
    """Ctrl-C reaches every process of a terminal; kill -9 none but the parent, even while an environment hangs."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root},
    )
    workers = []
    try:
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2
        for number in (signal.SIGINT, signal.SIGTERM):
            os.killpg(parent.pid, number)
        _tell(parent, "0 8")
        assert parent.stdout.readline() == "0\n"
        _tell(parent, "8 20")
        assert not select.select([parent.stdout], [], [], 1.0)[0], "the environment should hang"
        assert all(_lives(worker) for worker in workers)
        parent.kill()
        parent.wait()
        end = time.monotonic() + 20
        while any(_lives(worker) for worker in workers) and time.monotonic() < end:
            time.sleep(0.1)
        assert not [worker for worker in workers if _lives(worker)]
    finally:
        parent.kill()
        for worker in filter(_lives, workers):
            os.kill(worker, signal.SIGKILL)
        parent.communicate()


FORGETFUL = """
from tests.collectors.troubles import walks

if __name__ == "__main__":
    streams = walks({}, processes=True)
    streams.start()
    print("started")
"""


def test_a_process_that_was_not_closed_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """Even though it does not listen to SIGTERM, by which Python ends what is left over."""
    script = tmp_path / "forgetful.py"
    script.write_text(FORGETFUL)
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout == "started\n"


def _tell(process: subprocess.Popen, line: str) -> None:
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
