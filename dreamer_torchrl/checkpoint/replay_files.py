"""A replay as files that never change: steps are written once, latents again where they changed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

from dreamer_torchrl.checkpoint.tree_files import DamagedFile, SavedFile, check_file, read_tree, sync_folder, write_tree
from dreamer_torchrl.data.replay import Replay

STEPS, LATENTS = "steps", "latents"
_PIECE_NAME = re.compile(r"(steps|latents)-\d{12}-\d{12}-[0-9a-f]{16}\.pt|\.partial-.*")


@dataclass(frozen=True)
class Piece:
    """A file of the steps, or of the latents, at the positions ``first`` to ``end``."""

    kind: str
    first: int
    end: int
    file: SavedFile


@dataclass(frozen=True)
class Unsaved:
    """What will become a `Piece`."""

    kind: str
    first: int
    end: int
    data: TensorDictBase


@dataclass
class Snapshot:
    """A replay at one instant: what is on the disk already, and copies of what is not."""

    history: object
    revision: int
    saved: list[Piece]
    unsaved: list[Unsaved]

    @property
    def bytes(self) -> int:
        """What is to be written."""
        return sum(piece.data.bytes() for piece in self.unsaved)


class ReplayFiles:
    """Turns a replay into files and back; remembers which of its steps and latents the last checkpoint holds.

    Args:
        folder: where the files are. All checkpoints of a run share them.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> steps = TensorDict({"belief": torch.rand(9, 1, 2), "state": torch.zeros(9, 1, 2).byte()}, [9, 1])
        >>> replay, again = (Replay(capacity=20, streams=1, batch=1, length=4) for _ in range(2))
        >>> replay.extend(steps)
        >>> with TemporaryDirectory() as folder:
        ...     files = ReplayFiles(Path(folder))
        ...     snapshot = files.snapshot(replay)
        ...     pieces = files.write(snapshot)
        ...     files.note_saved(snapshot, pieces)
        ...     files.restore(again, replay.state_dict(), pieces)
        >>> [(piece.kind, piece.first, piece.end) for piece in pieces], len(files.snapshot(again).unsaved)
        ([('steps', 0, 9), ('latents', 0, 9)], 0)
        >>> torch.equal(again.copy_latents(0, 9)["belief"], steps["belief"])
        True
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._history: object = None  # of the replay that the last checkpoint holds
        self._revision = 0
        self._pieces: list[Piece] = []

    def snapshot(self, replay: Replay) -> Snapshot:
        """What a checkpoint of this instant consists of; copies what is not on the disk."""
        oldest, written, block = replay.sampler.oldest, replay.sampler.written, replay.block
        known = replay.history is self._history
        changed = set(replay.changed_since(self._revision if known else -1))
        saved = [
            piece
            for piece in self._pieces
            if known and piece.end > oldest and (piece.kind == STEPS or piece.first // block not in changed)
        ]
        first_new = max([oldest, *(piece.end for piece in saved if piece.kind == STEPS)])
        unsaved = [
            Unsaved(STEPS, first, end, replay.copy_steps(first, end))
            for first, end in _spans(first_new, written, block)
        ]
        unsaved += [
            Unsaved(LATENTS, first, end, replay.copy_latents(first, end))
            for first, end in _spans(oldest, written, block)
            if first // block in changed
        ]
        return Snapshot(replay.history, replay.revision, saved, unsaved)

    def write(self, snapshot: Snapshot) -> list[Piece]:
        """Write what is not on the disk yet, and let go of the copies; all pieces of the replay, in order."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pieces = list(snapshot.saved)
        while snapshot.unsaved:
            new = snapshot.unsaved.pop()
            partial = self.folder / f".partial-{new.kind}"
            file = write_tree(partial, new.data.to_dict())
            name = f"{new.kind}-{new.first:012d}-{new.end:012d}-{file.sha256[:16]}.pt"
            partial.replace(self.folder / name)
            pieces.append(Piece(new.kind, new.first, new.end, SavedFile(name, file.bytes, file.sha256)))
        sync_folder(self.folder)
        return sorted(pieces, key=lambda piece: (piece.kind != STEPS, piece.first))

    def note_saved(self, snapshot: Snapshot, pieces: list[Piece]) -> None:
        """Take note that a checkpoint of these pieces is complete: the next one builds on it."""
        self._history, self._revision, self._pieces = snapshot.history, snapshot.revision, pieces

    def check(self, state: Mapping[str, Any], pieces: list[Piece]) -> None:
        """Read every file; raise `DamagedFile` unless all are as they were written and leave no gap."""
        for kind in (STEPS, LATENTS):
            for _ in self._sound(kind, _oldest(state), state, pieces):
                pass

    def restore(self, replay: Replay, state: Mapping[str, Any], pieces: list[Piece]) -> None:
        """Put the steps and latents of these pieces into a replay, and the `Replay.state_dict` that goes with them."""
        replay.load_state_dict(state, self._joined(state, pieces))
        self._history, self._revision, self._pieces = replay.history, replay.revision, pieces

    def last_steps(self, count: int, state: Mapping[str, Any], pieces: list[Piece]) -> TensorDictBase:
        """The last ``count`` steps of each stream, or all that are there, without latents, ``[T, N]``.

        Only the files that hold them are read; raises `DamagedFile` where one of these is not as it was written.
        """
        written = state["sampler"]["written"]
        if not written:
            raise ValueError("The replay holds no step yet: let the run train for a while.")
        first = max(_oldest(state), written - count)
        sound = self._sound(STEPS, first, state, pieces)
        return torch.cat([steps[max(0, first - piece.first) :] for piece, steps in sound])

    def remove_unused(self, used: Collection[str]) -> None:
        """Remove the files of the replay that no checkpoint uses: outdated ones, and what a killed save left."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name not in used and _PIECE_NAME.fullmatch(path.name):
                    path.unlink()

    def _sound(
        self, kind: str, first: int, state: Mapping[str, Any], pieces: list[Piece]
    ) -> Iterator[tuple[Piece, TensorDictBase]]:
        """The files of a kind that reach beyond the position ``first``, each read and found as it was written."""
        end = first
        for piece in pieces:
            if piece.kind == kind and piece.end > first:
                check_file(self.folder, piece.file)
                yield piece, self._read(piece, state)
                if piece.first <= end:
                    end = piece.end
        if end < state["sampler"]["written"]:
            raise DamagedFile(f"The manifest names no file of the {kind} from position {end} on")

    def _joined(self, state: Mapping[str, Any], pieces: list[Piece]) -> Iterator[TensorDictBase]:
        oldest, block = _oldest(state), state["sizes"]["block"]
        latents = {piece.first // block: piece for piece in pieces if piece.kind == LATENTS}
        for piece in pieces:
            if piece.kind == STEPS:
                first = max(piece.first, oldest)
                beside = latents[first // block]
                fresh = self._read(beside, state)[first - beside.first : piece.end - beside.first]
                yield self._read(piece, state)[first - piece.first :].update(fresh)

    def _read(self, piece: Piece, state: Mapping[str, Any]) -> TensorDictBase:
        tree = read_tree(self.folder, piece.file, mapped=True)
        try:
            return TensorDict(tree, batch_size=[piece.end - piece.first, state["sizes"]["streams"]])
        except (RuntimeError, TypeError, ValueError) as error:
            raise DamagedFile(f"{piece.file.name} does not hold the {piece.kind} of its positions: {error}") from error


def _oldest(state: Mapping[str, Any]) -> int:
    """Position of the oldest step of a saved replay."""
    return max(0, state["sampler"]["written"] - state["sizes"]["capacity"] // state["sizes"]["streams"])


def _spans(first: int, end: int, block: int) -> Iterator[tuple[int, int]]:
    """Cut the positions ``first`` to ``end`` at the multiples of ``block``."""
    while first < end:
        stop = min(end, (first // block + 1) * block)
        yield first, stop
        first = stop
