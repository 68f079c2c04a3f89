"""What a run saves and how it comes back: whole checkpoints, checked before they are used.

Other than with `torchrl.checkpoint`, a saved one survives a power cut, a damaged one is passed over for the one before,
training goes on while files are written, and a step of the replay is written once.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase

from dreamer_torchrl.checkpoint.files import ReplayFiles, Snapshot, copy_tree, read_tree, sync, tree_bytes, write_tree
from dreamer_torchrl.checkpoint.manifest import (
    DamagedFile,
    Manifest,
    NoSoundCheckpoint,
    Piece,
    library_versions,
    read_manifest,
)
from dreamer_torchrl.data.replay import Replay

REPLAY = "replay"
_NAME = re.compile(r"\d{12}(-\d+)?")


class SaveFailed(OSError):
    """A checkpoint could not be written; the message says why, and what space it needs and finds."""

    def __init__(self, step: int, error: OSError, needed: int, folder: Path):
        there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        self.needed, self.free = needed, shutil.disk_usage(there).free
        super().__init__(
            f"The checkpoint of step {step} was not written: {error.strerror or error}. It needs {needed:,} bytes, "
            f"{self.free:,} are free in {folder}. The ones before it are untouched, and the next save tries again."
        )
        self.errno = error.errno


@dataclass
class Saved:
    step: int
    parts: dict[str, Any]
    path: Path
    damaged: list[str]  # what is wrong with later ones
    replay_state: dict[str, Any]
    pieces: list[Piece]
    replay_files: ReplayFiles

    def restore_replay(self, replay: Replay) -> None:
        self.replay_files.restore(replay, self.replay_state, self.pieces)

    def all_steps(self) -> TensorDictBase:
        return self.replay_files.all_steps(self.replay_state, self.pieces)

    def last_steps(self, count: int) -> TensorDictBase:
        return self.replay_files.last_steps(count, self.replay_state, self.pieces)


class Checkpoints:
    """The checkpoints of a run, of the last ``keep`` steps; for ``exact`` see `ReplayFiles`.

    `save` copies on the calling thread and writes in the background, into a folder that gets its name when everything
    is on the disk. Only the process that holds the `run_lock` may save; any may load.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> replay = Replay(capacity=20, streams=1, batch=1, length=4)
        >>> with TemporaryDirectory() as run_dir:
        ...     checkpoints = Checkpoints(run_dir)
        ...     checkpoints.save(7, {"learner": {"weight": [1.0, 1.0]}}, replay)
        ...     checkpoints.wait()
        ...     saved = checkpoints.load(replay)
        True
        >>> saved.step, saved.parts
        (7, {'learner': {'weight': [1.0, 1.0]}})
    """

    def __init__(self, folder: str | Path, keep: int = 2, exact: bool = True):
        self.folder, self.keep = Path(folder), keep
        self._replay_files = ReplayFiles(self.folder / REPLAY, exact)
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[Snapshot, Future[None]] | None = None
        self._failure: SaveFailed | None = None
        self._loaded = False
        self._damaged: list[str] = []  # later than the one that was loaded

    def load(self, replay: Replay | None = None) -> Saved | None:
        """The newest sound checkpoint or None, its replay in ``replay``; `NoSoundCheckpoint` if all are damaged."""
        self.wait()
        damaged, names = {}, self.names()
        while names:
            name = names.pop()
            try:
                saved = self.read(name, replay)
            except DamagedFile as fault:
                damaged[name] = f"{self.folder / name} is damaged: {fault}."
                if not (self.folder / name).exists():  # the process that trains has just removed it for a newer one
                    damaged, names = {}, self.names()
            else:
                saved.damaged.extend(damaged.values())
                self._loaded, self._damaged = True, list(damaged)
                return saved
        if damaged:
            raise NoSoundCheckpoint("\n".join(["No checkpoint can be used, none was changed.", *damaged.values()]))
        self._loaded = True
        return None

    def continue_from(self, name: str | None) -> None:
        """Save from here on after a checkpoint that was read, or from the start; later ones are put aside."""
        self._loaded = True
        self._damaged = [other for other in self.names() if name is None or _age(other) > _age(name)]

    def read(self, name: str, replay: Replay | None = None) -> Saved:
        """One checkpoint, as `load` does; raises `DamagedFile` if it is not as it was written."""
        path = self.folder / name
        manifest = read_manifest(path)
        trees = {Path(file.name).stem: read_tree(path, file) for file in manifest.files}
        replay_state = trees.pop(REPLAY, None)
        if not isinstance(replay_state, dict):
            raise DamagedFile("manifest.json names no replay")
        saved = Saved(manifest.step, trees, path, [], replay_state, manifest.replay, self._replay_files)
        if replay is not None:
            saved.restore_replay(replay)
        return saved

    def names(self) -> list[str]:
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((path.name for path in paths if _NAME.fullmatch(path.name)), key=_age)

    def save(self, step: int, parts: Mapping[str, Any], replay: Replay, wait: bool = False) -> bool:
        """Start to save this instant; whether it was started: while another save is written, only with ``wait``.

        ``parts``, by names other than ``replay``, are trees of dicts, lists and tuples with tensors, numbers, strings,
        bools and None.
        """
        if self.busy and not wait:
            return False
        self.wait()
        names = [name for name in self.names() if name not in self._damaged]
        if names and not self._loaded:
            raise RuntimeError(f"{self.folder} holds checkpoints: load() them before the first save.")
        if names and step < _age(names[-1])[0]:
            raise ValueError(f"Step {step} is before the checkpoint {names[-1]}: load() it, and go on from there.")
        trees = {name: copy_tree(tree, name) for name, tree in parts.items()}
        snapshot = self._replay_files.snapshot(replay)
        trees[REPLAY] = replay.state_dict()
        self._writing = snapshot, self._writer.submit(self._write, step, trees, snapshot)
        self._loaded = True
        return True

    def wait(self) -> None:
        if self._writing:
            (snapshot, future), self._writing = self._writing, None
            self._failure = None
            try:
                future.result()
                self._replay_files.last = snapshot
            except SaveFailed as failure:
                self._failure = failure

    @property
    def busy(self) -> bool:
        """Whether a save is being written."""
        return self._writing is not None and not self._writing[1].done()

    @property
    def failure(self) -> SaveFailed | None:
        if self._writing and self._writing[1].done():
            self.wait()
        return self._failure

    def _write(self, step: int, trees: dict[str, Any], replay: Snapshot) -> None:
        needed = sum(copied.bytes() for *_, copied in replay.unsaved) + tree_bytes(trees)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sync(self.folder.parent)
            self._clean()
            self._replay_files.write(replay)
            self._commit(step, trees, replay.saved)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._clean()
            raise SaveFailed(step, error, needed, self.folder) from error
        with contextlib.suppress(OSError):  # the next save tries again, and tells if it cannot
            self._clean()

    def _commit(self, step: int, trees: dict[str, Any], pieces: list[Piece]) -> None:
        """Write a folder, and give it its name when all of it is on the disk."""
        partial = self.folder / f".partial-{step:012d}"
        partial.mkdir()
        files = [write_tree(partial / f"{name}.pt", tree) for name, tree in trees.items()]
        (partial / "manifest.json").write_text(Manifest(step, library_versions(), files, pieces).to_text())
        sync(partial / "manifest.json")
        sync(partial)
        same_step = [number for other, number in map(_age, self.names()) if other == step]
        partial.rename(self.folder / (f"{step:012d}-{same_step[-1] + 1}" if same_step else f"{step:012d}"))
        sync(self.folder)

    def _clean(self) -> None:
        """Put damaged checkpoints aside; remove what there is too many of, and what a killed process left."""
        while self._damaged:
            name = self._damaged[-1]
            names = (f"damaged-{name}-{number}" if number else f"damaged-{name}" for number in count())
            free = next(path for path in map(self.folder.joinpath, names) if not path.exists())
            with contextlib.suppress(FileNotFoundError):  # somebody was faster
                (self.folder / name).rename(free)
            self._damaged.pop()  # its name may now be given anew
        last_of_step = {_age(name)[0]: name for name in self.names()}
        for name in set(self.names()) - set([*last_of_step.values()][-self.keep :]):
            # What is half removed must not look like a checkpoint.
            (self.folder / name).rename(self.folder / f".partial-old-{name}")
        for path in self.folder.glob(".partial-*"):
            shutil.rmtree(path)
        used = set()
        for name in self.names():
            with contextlib.suppress(DamagedFile):
                used |= {piece.file.name for piece in read_manifest(self.folder / name).replay}
        self._replay_files.remove_unused(used)


def _age(name: str) -> tuple[int, int]:
    """Of a checkpoint's name: its step, and which of the same step it is."""
    step, _, number = name.partition("-")
    return int(step), int(number or 0)
