"""A replay as files: what comes back is identical, and nothing is written that was written before."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from dreamer_torchrl.checkpoint.files import LATENTS, STEPS, WHOLE, ReplayFiles, copy_tree
from dreamer_torchrl.checkpoint.manifest import DamagedFile, Piece
from dreamer_torchrl.data.replay import Replay, Where
from tests.checkpoint.checkpoint_examples import (
    assert_equal,
    assert_same,
    content,
    flip_a_bit,
    grow,
    mounted,
    refresh,
    small_replay,
    steps,
)

ACTIONS = st.one_of(st.tuples(st.just("grow"), st.integers(1, 20)), st.sampled_from(["refresh", "save", "restart"]))


class Kept:
    """A replay and its files, as a run keeps them."""

    def __init__(self, folder: Path, on_disk: bool = False, exact: bool = True):
        self.folder, self.on_disk, self.built, self.exact = folder, on_disk, 0, exact
        self.files, self.replay = ReplayFiles(folder / "replay", exact), self.new_replay()
        self.state, self.pieces, self.twin = self.replay.state_dict(), [], small_replay()

    def new_replay(self) -> Replay:
        self.built += 1
        return small_replay(str(self.folder / f"steps-{self.built}") if self.on_disk else None)

    def save(self) -> list[tuple[str, int, int]]:
        """Save, and tell what was written for that."""
        snapshot = self.files.snapshot(self.replay)
        written = [(kind, first, end) for kind, first, end, _ in snapshot.unsaved]
        self.files.write(snapshot)
        self.state, self.pieces = copy_tree(self.replay.state_dict(), "replay"), snapshot.saved
        self.files.last = snapshot
        self.files.remove_unused({piece.file.name for piece in self.pieces})
        return written

    def restart(self) -> None:
        """Another process goes on with what was saved."""
        self.files, self.replay = ReplayFiles(self.folder / "replay", self.exact), self.new_replay()
        self.files.restore(self.replay, self.state, self.pieces)


def of(kind: str, pieces: list[Piece]) -> list[tuple[int, int]]:
    return [(piece.first, piece.end) for piece in pieces if piece.kind == kind]


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
@settings(max_examples=15)
@given(actions=st.lists(ACTIONS, max_size=15))
def test_what_comes_back_is_identical(on_disk: bool, actions: list[str | tuple[str, int]]) -> None:
    """A run that is saved and restarted anywhere, beside one that never is."""
    with TemporaryDirectory() as folder:
        kept = Kept(Path(folder), on_disk)
        for action in actions:
            if action == "restart":
                kept.save()
                kept.restart()
                assert_same(kept.replay, kept.twin)
                assert kept.save() == []
            elif action == "save":
                kept.save()
                assert kept.save() == []
            for replay in (kept.replay, kept.twin):
                if isinstance(action, tuple):
                    grow(replay, action[1])
                elif action == "refresh" and replay.ready:
                    refresh(replay)
        kept.save()
        kept.restart()
        assert_same(kept.replay, kept.twin)
        if kept.twin.ready:
            assert_equal(kept.replay.sample()[0], kept.twin.sample()[0])


def test_only_what_is_new_or_changed_is_written(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.replay.extend(steps(0, 10))
    kept.save()
    assert of(STEPS, kept.pieces) == of(LATENTS, kept.pieces) == [(0, 8), (8, 16), (16, 20)]
    assert kept.save() == []
    kept.replay.extend(steps(10, 1))
    assert kept.save() == [(STEPS, 20, 22), (LATENTS, 16, 22)]
    where = Where(torch.tensor([[11, 13]]), torch.zeros(1, 2, dtype=torch.long))
    kept.replay.refresh(where, TensorDict({"belief": torch.ones(1, 2, 1), "state": torch.ones(1, 2, 1).byte()}, [1, 2]))
    assert kept.save() == [(LATENTS, 8, 16)]


def test_stale_latents_are_written_once_with_their_steps(tmp_path: Path) -> None:
    """What is refreshed after that is lost; a process with the other setting writes all of it its own way."""
    kept = Kept(tmp_path, exact=False)
    kept.replay.extend(steps(0, 10))
    assert kept.save() == [(WHOLE, 0, 8), (WHOLE, 8, 16), (WHOLE, 16, 20)]
    then = content(kept.replay)
    refresh(kept.replay)
    assert kept.save() == []
    kept.restart()
    assert_equal(content(kept.replay), then)
    for exact, kinds in ((True, {STEPS, LATENTS}), (False, {WHOLE})):
        kept.exact = exact
        kept.restart()
        assert {kind for kind, _, _ in kept.save()} == {piece.kind for piece in kept.pieces} == kinds
        kept.restart()
        assert_equal(content(kept.replay), then)


def test_files_of_others_stay(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    grow(kept.replay, 6)
    kept.save()
    (tmp_path / "replay" / "notes.txt").write_text("mine")
    (tmp_path / "replay" / ".partial-steps").write_text("what a killed process left")
    kept.save()
    assert (tmp_path / "replay" / "notes.txt").exists()
    assert not (tmp_path / "replay" / ".partial-steps").exists()


def test_a_replay_can_go_back(tmp_path: Path) -> None:
    """The same process returns to what was saved, and another history follows."""
    kept = Kept(tmp_path)
    for replay in (kept.replay, kept.twin):
        grow(replay, 13)
    kept.save()
    grow(kept.replay, 12)
    kept.files.restore(kept.replay, kept.state, kept.pieces)
    assert_same(kept.replay, kept.twin)
    for replay in (kept.replay, kept.twin):
        grow(replay, 2)
        grow(replay, 11)
    kept.save()
    kept.restart()
    assert_same(kept.replay, kept.twin)


def test_a_snapshot_stays_as_it_was(tmp_path: Path) -> None:
    """The run goes on while the snapshot is being written."""
    kept = Kept(tmp_path)
    for replay in (kept.replay, kept.twin):
        grow(replay, 15)
    state, snapshot = copy_tree(kept.replay.state_dict(), "replay"), kept.files.snapshot(kept.replay)
    for _ in range(20):
        grow(kept.replay, 4)
    kept.files.write(snapshot)
    again = small_replay()
    ReplayFiles(tmp_path / "replay").restore(again, state, snapshot.saved)
    assert_same(again, kept.twin)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"capacity": 44}, "capacity 40, this one 44: build it with the saved capacity"),
        ({"length": 5}, "slice length 5, this one 6"),
        ({"block": 4}, "block 8, this one 4"),
    ],
    ids=["capacity", "length", "block"],
)
def test_a_replay_of_another_size_is_named(tmp_path: Path, sizes: dict[str, int], words: str) -> None:
    kept = Kept(tmp_path)
    grow(kept.replay, 9)
    kept.save()
    other = Replay(**({"capacity": 40, "streams": 2, "batch": 2, "length": 4, "block": 8} | sizes))
    with pytest.raises(ValueError, match=words):
        kept.files.restore(other, kept.state, kept.pieces)


@pytest.mark.parametrize("missing", [0, 1, -1], ids=["first_steps", "middle_steps", "last_latents"])
def test_a_gap_is_damage(tmp_path: Path, missing: int) -> None:
    kept = Kept(tmp_path)
    grow(kept.replay, 11)
    kept.save()
    del kept.pieces[missing]
    with pytest.raises(DamagedFile, match=f"no file of the {LATENTS if missing == -1 else STEPS} from position"):
        kept.files.restore(kept.replay, kept.state, kept.pieces)


@pytest.mark.parametrize("written", [2, 11, 26, 43])
def test_the_last_steps_are_those_of_the_whole_replay(tmp_path: Path, written: int) -> None:
    """One, those of several files and blocks, all that 20 slots hold, and more than there are."""
    kept = Kept(tmp_path)
    with pytest.raises(ValueError, match="no step yet"):
        kept.files.last_steps(5, kept.state, kept.pieces)
    for first in range(0, written, 3):
        grow(kept.replay, min(3, written - first))
        kept.save()
    kept.restart()
    for count in (1, 3, 6, 14, 20, 99):
        found = kept.files.last_steps(count, kept.state, kept.pieces)
        assert found.shape == (min(count, written, 20), 2)
        first = max(kept.replay.oldest, 2 * (written - count))
        assert_equal(found, kept.replay.copy(first, 2 * written, latents=False).reshape(-1, 2))


def test_the_last_steps_of_streams_that_advance_at_different_rates(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    stream = torch.tensor([0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0])
    kept.replay.extend(TensorDict({"stream": stream, "n": torch.arange(13), "belief": torch.zeros(13, 1)}, [13]))
    kept.replay.extend(kept.replay.copy(0, 2))
    kept.files.exact = False
    kept.save()
    assert kept.files.last_steps(2, kept.state, kept.pieces)["n"].tolist() == [[0, 7], [1, 8]]
    assert kept.files.last_steps(9, kept.state, kept.pieces)["n"].tolist() == [[11, 2], [12, 5], [0, 7], [1, 8]]


def test_of_the_last_steps_only_their_own_files_are_read(tmp_path: Path) -> None:
    """A damaged one of these is named, others do not matter."""
    kept = Kept(tmp_path)
    grow(kept.replay, 11)
    kept.save()
    last = kept.replay.copy(12, 22, latents=False).reshape(-1, 2)
    for piece in kept.pieces:
        file = tmp_path / "replay" / piece.file.name
        flip_a_bit(file)
        if piece.kind == STEPS and piece.end > 12:
            with pytest.raises(DamagedFile, match=f"{file.name} has another checksum"):
                kept.files.last_steps(5, kept.state, kept.pieces)
        else:
            assert_equal(kept.files.last_steps(5, kept.state, kept.pieces), last)
        flip_a_bit(file)
    assert of(STEPS, kept.pieces) == [(0, 8), (8, 16), (16, 22)]
    del kept.pieces[1]
    with pytest.raises(DamagedFile, match="no file of the steps from position 8 on"):
        kept.files.last_steps(5, kept.state, kept.pieces)


def test_what_a_killed_process_left_on_disk_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    left = small_replay(str(tmp_path))
    grow(left, 9)
    replay = small_replay(str(tmp_path))
    assert replay.written == 0
    grow(replay, 7)
    other = small_replay()
    grow(other, 7)
    assert_same(replay, other)
    assert (tmp_path / "thesis.tex").exists()


def test_a_replay_that_finds_no_room_on_disk_says_so(tmp_path: Path) -> None:
    """Before anything is lost: a file with holes would end the process when the disk is full."""
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        replay = Replay(capacity=200_000, streams=2, directory=tmp_path)
        with pytest.raises(OSError, match=r"needs [\d,]+ bytes for .*, [\d,]+ are free.*smaller capacity"):
            replay.extend(steps(0, 10))
        del replay
        shutil.rmtree(tmp_path / "replay-scratch")
