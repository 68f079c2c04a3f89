"""The list of all that a checkpoint consists of, with which it is checked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dreamer_torchrl.checkpoint.replay_files import Piece
from dreamer_torchrl.checkpoint.tree_files import DamagedFile, SavedFile

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of.

    Args:
        step: when it was taken.
        versions: of the libraries that wrote it.
        files: its own.
        replay: the files of the replay, which it shares with other checkpoints.
    """

    step: int
    versions: dict[str, str]
    files: list[SavedFile]
    replay: list[Piece]

    def to_text(self) -> str:
        """As JSON, with a checksum of its own."""
        body = {"format": FORMAT, **asdict(self)}
        return json.dumps(body | {"sha256": _digest(body)}, indent=1) + "\n"

    @classmethod
    def from_text(cls, text: str | bytes) -> Manifest:
        """Read what `to_text` wrote; raise `DamagedFile` if this is something else."""
        try:
            body = json.loads(text)
            if body["format"] != FORMAT:
                raise DamagedFile(f"manifest.json has format {body['format']}, this version reads {FORMAT}")
            if body.pop("sha256") != _digest(body):
                raise DamagedFile("manifest.json has another checksum than when it was written")
            files = [_saved_file(entry) for entry in body["files"]]
            pieces = [Piece(**(entry | {"file": _saved_file(entry["file"])})) for entry in body["replay"]]
            return cls(int(body["step"]), body["versions"], files, pieces)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DamagedFile(f"manifest.json is not a manifest ({type(error).__name__})") from error


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint; raises `DamagedFile` if it is not as it was written."""
    try:
        return Manifest.from_text((path / "manifest.json").read_bytes())
    except OSError as error:
        raise DamagedFile(f"manifest.json cannot be read: {error.strerror}") from error


def _saved_file(entry: dict[str, Any]) -> SavedFile:
    file = SavedFile(**entry)
    if Path(file.name).name != file.name:
        raise ValueError(f"{file.name} is not the name of a file")
    return file


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Of all that has a say in what is in a checkpoint."""
    found = {"python": platform.python_version()}
    for name in ("dreamer_torchrl", "torch", "torchrl", "tensordict"):
        with contextlib.suppress(PackageNotFoundError):  # run from the sources
            found[name] = version(name)
    return found
