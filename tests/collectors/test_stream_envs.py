"""StreamEnvs: one batched environment for TorchRL; what breaks is replaced, and nobody else notices."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from dreamer_torchrl.collectors import workers
from dreamer_torchrl.collectors.episodes import Episodes
from dreamer_torchrl.collectors.stream_envs import StreamEnvs, StreamState, TooManyFailures
from tests.checkpoint.checkpoint_examples import assert_equal
from tests.collectors.troubles import play, some_actions, walk, walks

STEPS = 40
STEP = ("place", ("inside", "kind"), ("inside", "level"), "reward", "is_init", "terminated", "done")


@pytest.fixture
def opened() -> Iterator[Callable[..., StreamEnvs]]:
    """Make streams of `Walk` that are closed at the end."""
    made = []

    def make(*each: dict[str, Any], **options: Any) -> StreamEnvs:
        made.append(walks(*each, **options))
        return made[-1]

    yield make
    for envs in made:
        envs.close()


def test_torchrl_takes_it_for_an_environment(opened: Callable[..., StreamEnvs]) -> None:
    check_env_specs(walk(0, {}))
    envs = opened({}, {})
    check_env_specs(envs)
    rolled = envs.rollout(60)
    assert rolled.shape == (2, 60)
    assert torch.equal(rolled["is_init"][:, 1:], rolled["done"][:, :-1])
    assert (rolled["is_init"].sum(1) > 3).all()
    assert rolled["stream"].squeeze(-1).tolist() == [[0] * 60, [1] * 60]
    assert torch.equal(rolled["endless", "episode"][:, 0], rolled["endless", "episode"][:1, 0].expand(2, 1))
    assert torch.equal(rolled["endless", "episode"][:, 1:].diff(dim=1) == 1, rolled["is_init"][:, 2:])


def test_processes_give_the_steps_that_this_one_gives(opened: Callable[..., StreamEnvs]) -> None:
    serial, processes = opened({}, {}), opened({}, {}, workers="processes")
    expected, last = play(serial, serial.reset(), some_actions(STEPS, 2))
    got, other = play(processes, processes.reset(), some_actions(STEPS, 2))
    assert_equal(got, expected)
    assert_equal(other, last)
    assert not torch.equal(expected["place"][0, 0], expected["place"][1, 0])
    assert len({worker.process.pid for worker in processes.workers} | {os.getpid()}) == 3


EVERYWHERE = {
    "step": "RuntimeError: out of order",
    "reset": "RuntimeError: no way back",
    "reward": "The environment gave reward = [nan]",
    "python_exit": "SystemExit: enough",
}
IN_PROCESSES = {"step": "RuntimeError: out of order", "kill": "exit code -9", "hang": "did not answer for 2 s"}


@pytest.mark.parametrize(
    ("trouble", "kind"), [*[(t, "serial") for t in EVERYWHERE], *[(t, "processes") for t in IN_PROCESSES]]
)
def test_what_breaks_is_replaced(trouble: str, kind: str, opened: Callable[..., StreamEnvs], tmp_path: Path) -> None:
    """The broken stream goes on with its next episode, the other one is the same to the last bit."""
    sound = opened({}, {})
    expected, _ = play(sound, sound.reset(), some_actions(STEPS, 2))
    patience = 2.0 if trouble == "hang" else 60.0
    broken = opened({}, {"trouble": trouble, "mark": tmp_path / "mark"}, workers=kind, timeout=patience)
    batch, _ = play(broken, broken.reset(), some_actions(STEPS, 2))
    (note,) = broken.notes
    assert_equal(batch[0], expected[0])
    if trouble == "reset":  # the new environment starts the episode that the old one could not start
        assert_equal(batch[1], expected[1])
    else:
        (when,) = (batch["next", "is_init"] & ~batch["done"])[1].flatten().nonzero().flatten().tolist()
        assert_equal(batch[1, : when + 1].select(*STEP), expected[1, : when + 1].select(*STEP))
        number = int(expected["is_init"][1, : when + 1].sum())
        assert_equal(batch["next"][1, when].select(*STEP), walk(1, {}).resume(number, []).select(*STEP))
        assert batch["is_init"][1, when + 2 :].any()
    assert note.startswith("Environment 1 failed") and (EVERYWHERE | IN_PROCESSES)[trouble] in note
    assert ("Traceback" in note) == (trouble in ("step", "reset", "python_exit"))


def test_an_environment_that_cannot_be_built_is_tried_again(opened: Callable[..., StreamEnvs], tmp_path: Path) -> None:
    """Each attempt goes on to the next episode, since the same one might fail again."""
    mark = tmp_path / "mark"
    mark.touch()
    envs = opened({"trouble": "constructor", "mark": mark})
    mark.unlink()
    assert_equal(envs.reset()[0].select(*STEP), walk(0, {}).resume(1, []).select(*STEP))
    assert "RuntimeError: no such thing" in envs.notes[0]


def test_a_maker_that_fails_at_once_tells_why() -> None:
    """The first environment tells the specs: there is nothing to go on with."""
    with pytest.raises(RuntimeError, match="no such thing"):
        walks({"trouble": "constructor"})


def test_too_many_failures_are_an_error(opened: Callable[..., StreamEnvs]) -> None:
    """Few of them are none, however long the run is."""
    envs = opened({"trouble": "step", "at": 9}, {}, window=20, most_failures=1)  # at most one in 10 steps
    play(envs, envs.reset(), some_actions(STEPS, 2))
    assert len(envs.notes) == 3
    envs = opened({"trouble": "step", "at": 0}, {}, window=100, most_failures=3)
    with pytest.raises(TooManyFailures, match=r"failed 4 times within 100 steps\. The last time: RuntimeError: out of"):
        play(envs, envs.reset(), some_actions(STEPS, 2))


def states(envs: StreamEnvs, batch: Any) -> list[StreamState]:
    episodes = Episodes(len(envs.makers), envs.full_action_spec_unbatched)
    episodes(batch)
    episodes.commit()
    return episodes.states


@pytest.mark.parametrize("kind", ["serial", "processes"])
def test_a_restored_environment_goes_on_to_the_last_bit(kind: str, opened: Callable[..., StreamEnvs]) -> None:
    """From any moment, and again from there."""
    envs, actions = opened({}, {}), some_actions(24, 2)
    expected, last = play(envs, envs.reset(), actions)
    other, lengths = opened({}, {}, workers=kind), set()
    for when in range(1, 24) if kind == "serial" else (3, 4, 20):
        known = states(envs, expected[:, :when])
        lengths |= {len(state.actions) for state in known}
        other.restore(known)
        batch, final = play(other, other.reset(), actions[when:])
        assert_equal(batch, expected[:, when:])
        assert_equal(final, last)
    assert {0, 1, 2, 3} <= lengths or kind == "processes"
    assert other.notes == []


@pytest.mark.parametrize("reason", ["elsewhere", "broken", "too long"])
def test_an_episode_that_cannot_be_repeated_ends_with_the_recorded_step(
    reason: str, opened: Callable[..., StreamEnvs], tmp_path: Path
) -> None:
    """It is ``done`` without `terminated`, the next episode follows, and a note says why. The other stream goes on."""
    options = {"elsewhere": {"private": True}, "broken": {}, "too long": {}}[reason]
    envs, actions = opened(options, {}), some_actions(30, 2)
    expected, last = play(envs, envs.reset(), actions[:10])
    while (last["done"] | last["is_init"]).any():  # until both are in the middle of an episode
        more, last = play(envs, last, actions[expected.shape[1] :][:1])
        expected = torch.cat([expected, more], 1)
    known = states(envs, expected)
    if reason == "broken":
        options = {"trouble": "step", "at": 0, "mark": tmp_path / "mark"}
    if reason == "too long":
        known[0] = known[0]._replace(actions=None)
    other = opened(options, {})
    other.restore(known)
    step = other.reset()
    assert_equal(step[1].select(*STEP), last[1].select(*STEP))
    same = ("place", "reward", "is_init", "terminated")
    assert_equal(step[0].select(*same), last[0].select(*same))
    assert step["done"].flatten().tolist() == [True, False]
    told = {"elsewhere": "did not come back", "broken": "failed and is replaced", "too long": "too long for its"}
    assert told[reason] in other.notes[0]
    batch, _ = play(other, step, actions[-3:])
    assert batch["is_init"][0, 1] and not batch["is_init"][1, 1]


def test_a_reset_of_some_starts_their_next_episode(opened: Callable[..., StreamEnvs]) -> None:
    """So does `end_episodes`, one action later."""
    envs = opened({}, {})
    _, step = play(envs, envs.reset(), some_actions(1, 2))
    before = step.clone()
    step["endless", "_reset"] = torch.tensor([[False], [True]])
    after = envs.reset(step)
    assert_equal(after[0].select(*STEP), before[0].select(*STEP))
    assert_equal(after[1].select(*STEP), walk(1, {}).resume(1, []).select(*STEP))
    envs.end_episodes([0])
    _, step = play(envs, after, some_actions(2, 2)[1:])
    assert step["is_init"].flatten().tolist() == [True, False]


def test_same_seed_gives_the_same_streams(opened: Callable[..., StreamEnvs]) -> None:
    """Also those of environments that are made later."""
    rolled = []
    for seed in (3, 3, 4):
        envs = opened({}, {})
        envs.set_seed(seed)
        rolled.append(play(envs, envs.reset(), some_actions(20, 2))[0])
    assert_equal(rolled[0], rolled[1])
    assert not torch.equal(rolled[0]["place"], rolled[2]["place"])


def test_an_environment_that_hangs_while_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done in a long episode is more than a connection holds: it would wait for a reader for ever."""
    with closing(walks({}, workers="processes")) as sound:
        sound.reset()  # the first process of all takes its time
    monkeypatch.setattr(workers, "STARTING", 3.0)
    mark = tmp_path / "mark"
    mark.touch()  # the one that tells the specs is made here
    with closing(walks({"trouble": "hung_constructor", "mark": mark}, workers="processes", timeout=1.0)) as envs:
        mark.unlink()
        done = envs.full_action_spec_unbatched.rand().expand(30_000)
        assert sum(value.numel() * value.element_size() for value in done.values(True, True)) > 300_000
        envs.restore([StreamState(5, done, walk(0, {}).resume(5, []))])
        starting = threading.Thread(target=envs.reset, daemon=True)
        starting.start()
        starting.join(60)
        assert not starting.is_alive(), "it does not come back"
        assert "did not answer for 4 s" in envs.notes[0]


PARENT = """
import signal, sys
from tests.collectors.troubles import play, some_actions, walks

if __name__ == "__main__":
    envs = walks({}, {"trouble": "hang", "at": 12}, workers="processes")
    step = envs.reset()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    print(*[worker.process.pid for worker in envs.workers], flush=True)
    actions = some_actions(20, 2)
    for line in sys.stdin:
        begin, end = map(int, line.split())
        _, step = play(envs, step, actions[begin:end])
        print(len(envs.notes), flush=True)
"""


@pytest.mark.slow
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
    processes = []
    try:
        processes = [int(word) for word in parent.stdout.readline().split()]
        assert len(processes) == 2
        for number in (signal.SIGINT, signal.SIGTERM):
            os.killpg(parent.pid, number)
        print("0 8", file=parent.stdin, flush=True)
        assert parent.stdout.readline() == "0\n"
        print("8 20", file=parent.stdin, flush=True)
        assert not select.select([parent.stdout], [], [], 1.0)[0], "the environment should hang"
        assert all(map(_lives, processes))
        parent.kill()
        parent.wait()
        end = time.monotonic() + 20
        while any(map(_lives, processes)) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(map(_lives, processes))
    finally:
        parent.kill()
        for process in filter(_lives, processes):
            os.kill(process, signal.SIGKILL)
        parent.communicate()


FORGETFUL = """
from tests.collectors.troubles import walks

if __name__ == "__main__":
    envs = walks({"children": True}, workers="processes")
    envs.reset()
    print("started")
"""


@pytest.mark.slow
def test_a_process_that_was_not_closed_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """Not even one whose environment has started a process itself, which daemons may not."""
    script = tmp_path / "forgetful.py"
    script.write_text(FORGETFUL)
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    output = tmp_path / "output.txt"  # a pipe would stay open as long as the environment's process has it
    with output.open("w") as file:
        subprocess.run([sys.executable, str(script)], env=environment, stdout=file, timeout=120, check=True)
    assert output.read_text() == "started\n"


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
