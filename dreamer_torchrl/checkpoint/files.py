"""Trees of tensors and a replay as files: surely on the disk once written, checked as they are read."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dreamer_torchrl.checkpoint.manifest import DamagedFile, Piece, SavedFile
from dreamer_torchrl.data.replay import LATENTS as LATENT_KEYS
from dreamer_torchrl.data.replay import Replay

WHOLE, STEPS, LATENTS = "whole", "steps", "latents"
_PIECE_NAME = re.compile(r"(whole|steps|latents)-\d{12}-\d{12}-[0-9a-f]{16}\.pt|\.partial-.*")


def copy_tree(tree: Any, where: str) -> Any:
    """A copy in plain dicts, lists and tuples, with its tensors in the machine's memory."""
    if isinstance(tree, Tensor):
        copied = tree.detach().to("cpu", copy=True)
        if type(copied) is Tensor:
            return copied
    elif isinstance(tree, dict) and all(type(key) in (str, int) for key in tree):
        return {key: copy_tree(value, f"{where}.{key}") for key, value in tree.items()}
    elif type(tree) in (list, tuple):
        return type(tree)(copy_tree(value, f"{where}[{index}]") for index, value in enumerate(tree))
    elif tree is None or type(tree) in (bool, int, float, str):
        return tree
    told = f"{where} is a {type(tree).__name__}, which a checkpoint cannot hold: make it of dicts (with names or"
    raise TypeError(f"{told} integers as keys), lists, tuples, tensors, numbers, strings, bools and None.")


def tree_bytes(tree: Any) -> int:
    if isinstance(tree, Tensor):
        return tree.nbytes
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return sum(map(tree_bytes, inner))


def write_tree(path: Path, tree: Any) -> SavedFile:
    """Write a tree of tensors and plain values; when this returns, it is on the disk."""
    with path.open("w+b") as file:
        try:
            torch.save(tree, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch tells of a full disk as of a bad position in the file
                raise error.__context__ from error
            raise
        file.flush()
        os.fsync(file.fileno())
        digest = hashlib.sha256()
        file.seek(0)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return SavedFile(path.name, file.tell(), digest.hexdigest())


def read_tree(folder: Path, file: SavedFile) -> Any:
    """What `write_tree` wrote, read once; raises `DamagedFile` if it is something else. Runs no code from it."""
    path = folder / file.name
    try:
        if path.stat().st_size != file.bytes:
            raise DamagedFile(f"{file.name} has {path.stat().st_size:,} bytes instead of {file.bytes:,}")
        content = path.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{file.name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise DamagedFile(f"{file.name} has another checksum than when it was written")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # somebody made the checksum fit
        raise DamagedFile(f"{file.name} is not a file of tensors and plain values ({type(error).__name__})") from error


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass
class Snapshot:
    history: object
    revision: int
    saved: list[Piece]  # on the disk already
    unsaved: list[tuple[str, int, int, TensorDictBase]]  # kind, positions and copies of what is not


class ReplayFiles:
    """Turns a replay into files, which all checkpoints of a run share, and back.

    With ``exact`` changed latents are written again, so that a run goes on to the last bit; else each step once.
    """

    def __init__(self, folder: Path, exact: bool = True):
        self.folder, self.exact = folder, exact
        self.last = Snapshot(None, 0, [], [])  # of the last complete checkpoint: the next one builds on it

    def snapshot(self, replay: Replay) -> Snapshot:
        """What a checkpoint of this instant consists of; copies what is not on the disk."""
        oldest, written, block = replay.oldest, replay.written, replay.block
        known = [piece for piece in self.last.saved if replay.history is self.last.history and piece.end > oldest]
        kind = STEPS if self.exact else WHOLE
        saved = [piece for piece in known if piece.kind == kind]
        new = max([oldest, *(piece.end for piece in saved)])
        unsaved = [
            (kind, first, end, replay.copy(first, end, latents=not self.exact))
            for first, end in _spans(new, written, block)
        ]
        if self.exact:
            changed = set(replay.changed_since(self.last.revision))
            latents = {p.first // block: p for p in known if p.kind == LATENTS and p.first // block not in changed}
            saved += latents.values()
            unsaved += [
                (LATENTS, first, end, replay.copy(first, end, steps=False))
                for first, end in _spans(oldest, written, block)
                if first // block not in latents
            ]
        return Snapshot(replay.history, replay.revision, saved, unsaved)

    def write(self, snapshot: Snapshot) -> None:
        """Write what is not on the disk yet, and let go of the copies; all pieces are then ``saved``, in order."""
        self.folder.mkdir(parents=True, exist_ok=True)
        while snapshot.unsaved:
            kind, first, end, data = snapshot.unsaved.pop()
            partial = self.folder / f".partial-{kind}"
            file = write_tree(partial, data.to_dict())
            name = f"{kind}-{first:012d}-{end:012d}-{file.sha256[:16]}.pt"
            partial.replace(self.folder / name)
            snapshot.saved.append(Piece(kind, first, end, SavedFile(name, file.bytes, file.sha256)))
        sync(self.folder)
        snapshot.saved.sort(key=lambda piece: (piece.kind == LATENTS, piece.first))

    def restore(self, replay: Replay, state: Mapping[str, Any], pieces: list[Piece]) -> None:
        """Put the steps and latents of these pieces and a `Replay.state_dict` into a replay, or raise `DamagedFile`."""
        replay.load_state_dict(state, self._steps_with_latents(state, pieces))
        self.last = Snapshot(replay.history, replay.revision, pieces, [])

    def last_steps(self, count: int, state: Mapping[str, Any], pieces: list[Piece]) -> TensorDictBase:
        """The last ``count`` steps of each stream, or all that each has, without latents, ``[T, N]``."""
        first = end = state["written"]
        if not end:
            raise ValueError("The replay holds no step yet: let the run train for a while.")
        streams, parts = state["sizes"]["streams"], []
        lengths = torch.zeros(streams, dtype=torch.long)
        for piece in reversed([piece for piece in pieces if piece.kind != LATENTS]):
            if lengths.min() >= count:
                break
            if piece.end != first:
                raise _gap(piece.kind, piece.end)
            part = self._read(piece)
            first = max(piece.first, end - state["stored"])
            parts.insert(0, part.exclude(*LATENT_KEYS)[first - piece.first :])
            lengths += parts[0]["stream"].long().flatten().bincount(minlength=streams)
        steps = torch.cat(parts)
        stream = steps["stream"].flatten()
        length = min(count, int(lengths.min()))
        return torch.stack([steps[(stream == number).nonzero().flatten()[-length:]] for number in range(streams)], 1)

    def all_steps(self, state: Mapping[str, Any], pieces: list[Piece]) -> TensorDictBase:
        """All steps that the replay held, without latents, in order of arrival, ``[stored]``."""
        parts = [part.exclude(*LATENT_KEYS) for part in self._steps_with_latents(state, pieces)]
        if not parts:
            raise ValueError("The replay holds no step yet: let the run train for a while.")
        return torch.cat(parts)

    def remove_unused(self, used: Collection[str]) -> None:
        """Remove the files of the replay that no checkpoint uses: outdated ones, and what a killed save left."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name not in used and _PIECE_NAME.fullmatch(path.name):
                path.unlink()

    def _steps_with_latents(self, state: Mapping[str, Any], pieces: list[Piece]) -> Iterator[TensorDictBase]:
        position, block = state["written"] - state["stored"], state["sizes"]["block"]
        latents = {piece.first // block: piece for piece in pieces if piece.kind == LATENTS}
        opened, fresh = None, None  # the file of latents that was read last, and what it holds
        for piece in (piece for piece in pieces if piece.kind != LATENTS and piece.end > position):
            if piece.first > position:
                raise _gap(piece.kind, position)
            steps = self._read(piece)[position - piece.first :]
            if piece.kind == STEPS:
                beside = latents.get(position // block)
                if beside is None or not beside.first <= position < piece.end <= beside.end:
                    raise _gap(LATENTS, position)
                if beside is not opened:
                    opened, fresh = beside, self._read(beside)
                steps.update(fresh[position - beside.first : piece.end - beside.first])
            yield steps
            position = piece.end
        if position < state["written"]:
            raise _gap(STEPS, position)

    def _read(self, piece: Piece) -> TensorDictBase:
        return TensorDict(read_tree(self.folder, piece.file), batch_size=[piece.end - piece.first])


def _gap(kind: str, position: int) -> DamagedFile:
    return DamagedFile(f"The manifest names no file of the {kind} from position {position} on")


def _spans(first: int, end: int, block: int) -> list[tuple[int, int]]:
    """The positions ``first`` to ``end``, cut at the multiples of ``block``."""
    return list(pairwise([first, *range((first // block + 1) * block, end, block), end])) if first < end else []
