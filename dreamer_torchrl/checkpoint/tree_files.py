"""Trees of tensors and plain values as files: surely on the disk once written, checked before they are used."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor


class DamagedFile(Exception):
    """A file is not what was written; the message names it and its fault."""


@dataclass(frozen=True)
class SavedFile:
    """How a file is known again."""

    name: str
    bytes: int
    sha256: str


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
    raise TypeError(
        f"{where} is a {type(tree).__name__}, which a checkpoint cannot hold: make it of dicts (with names or integers "
        "as keys), lists, tuples, tensors, numbers, strings, bools and None."
    )


def tree_bytes(tree: Any) -> int:
    """What its tensors take."""
    if isinstance(tree, Tensor):
        return tree.nbytes
    if isinstance(tree, dict):
        return sum(tree_bytes(value) for value in tree.values())
    return sum(tree_bytes(value) for value in tree) if isinstance(tree, (list, tuple)) else 0


class _HashedFile:
    """Write and take the checksum in one go."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def write_tree(path: Path, tree: Any) -> SavedFile:
    """Write a tree of tensors and plain values; when this returns, it is on the disk."""
    with path.open("wb") as file:
        hashed = _HashedFile(file)
        try:
            torch.save(tree, hashed)
        except RuntimeError as error:
            if hashed.error is None:
                raise
            raise hashed.error from error  # torch itself tells of a full disk as of a bad position in the file
        file.flush()
        os.fsync(file.fileno())
    return SavedFile(path.name, hashed.bytes, hashed.digest.hexdigest())


def check_file(folder: Path, file: SavedFile) -> None:
    """Raise `DamagedFile` unless the file has the size and the checksum that it was written with."""
    path = folder / file.name
    try:
        size = path.stat().st_size
        if size != file.bytes:
            raise DamagedFile(f"{file.name} has {size:,} bytes instead of {file.bytes:,}")
        with path.open("rb") as opened:
            digest = hashlib.sha256()
            while chunk := opened.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DamagedFile(f"{file.name} cannot be read: {error.strerror}") from error
    if digest.hexdigest() != file.sha256:
        raise DamagedFile(f"{file.name} has another checksum than when it was written")


def read_tree(folder: Path, file: SavedFile, mapped: bool = False) -> Any:
    """What `write_tree` wrote; ``mapped`` leaves the tensors on the disk until they are used. Runs no code from it."""
    try:
        return torch.load(folder / file.name, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # whatever a forged file makes the reader raise
        raise DamagedFile(f"{file.name} is not a file of tensors and plain values ({type(error).__name__})") from error


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, as `os.fsync` does for what is in a file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
