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

FORMAT = 2


class NoSoundCheckpoint(Exception):
    """There are checkpoints, and none of them can be used; the message names each and its fault."""


class DamagedFile(Exception):
    """A file is not what was written; the message names it and its fault."""


@dataclass(frozen=True)
class SavedFile:
    name: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name:
            raise ValueError(f"{self.name} is not the name of a file")


@dataclass(frozen=True)
class Piece:
    kind: str  # ``steps``, their ``latents`` or both (``whole``)
    first: int  # position in the replay
    end: int
    file: SavedFile


@dataclass(frozen=True)
class Manifest:
    step: int
    versions: dict[str, str]  # of the libraries that wrote it
    files: list[SavedFile]
    replay: list[Piece]  # which other checkpoints share

    def to_text(self) -> str:
        body = {"format": FORMAT, **asdict(self)}
        return json.dumps(body | {"sha256": _digest(body)}, indent=1) + "\n"

    @classmethod
    def from_text(cls, text: str | bytes) -> Manifest:
        try:
            body = json.loads(text)
            if body.pop("sha256") != _digest(body):
                raise DamagedFile("manifest.json has another checksum than when it was written")
            if body["format"] != FORMAT:
                writer = body["versions"].get("dreamer_torchrl", "another version")
                raise NoSoundCheckpoint(  # not damaged, so nothing is passed over or put aside
                    f"The checkpoint has format {body['format']}, this dreamer_torchrl reads format {FORMAT}: use "
                    f"dreamer_torchrl {writer}, which wrote it, or give another run_dir."
                )
            files = [SavedFile(**entry) for entry in body["files"]]
            pieces = [Piece(**(entry | {"file": SavedFile(**entry["file"])})) for entry in body["replay"]]
            return cls(int(body["step"]), body["versions"], files, pieces)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DamagedFile(f"manifest.json is not a manifest ({type(error).__name__})") from error


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint; raises `DamagedFile` if it is not as it was written."""
    try:
        return Manifest.from_text((path / "manifest.json").read_bytes())
    except OSError as error:
        raise DamagedFile(f"manifest.json cannot be read: {error.strerror}") from error


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("dreamer_torchrl", "torch", "torchrl", "tensordict"):
        with contextlib.suppress(PackageNotFoundError):  # run from the sources
            found[name] = version(name)
    return found
