"""What a run's W&B files hold already, so that a resumed run sends each record once."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Kind = tuple[tuple[str, ...], float | None]

BLOCK, FILE_HEADER, CHUNK_HEADER = 32_768, 7, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
TAIL = 64 * BLOCK
"""Bytes at the end of a file in which the newest record is looked for first."""


@dataclass
class Sent:
    """How far W&B has a run: the newest step, and the kinds of the records of that step.

    Example:
        >>> sent = Sent(90, {kind_of({"episode/return": 1.0, "episode/environment": 0})})
        >>> [sent.has(step, {"episode/return": 2.0, "episode/environment": 1}) for step in (89, 90, 91)]
        [True, False, False]
    """

    step: int = -1
    kinds: set[Kind] = field(default_factory=set)

    def has(self, step: int, values: Mapping[str, Any]) -> bool:
        """Whether a record has been sent: a run tells its records in the order of their steps."""
        return step < self.step or (step == self.step and kind_of(values) in self.kinds)


def kind_of(values: Mapping[str, Any]) -> Kind:
    """What a record tells of: at one step there is at most one of a kind."""
    families = {key.partition("/")[0] for key in values if "/" in key} - {"time"}
    return tuple(sorted(families)), values.get("episode/environment")


def sent_before(folder: Path, pattern: str = "*run-*") -> Sent | None:
    """How far the files of earlier processes in ``RUN/wandb`` go; none if this version of wandb writes them otherwise.

    A killed process may have written records that W&B's own process had not yet written to the disk: these are not
    there, whatever was sent.
    """
    sent = Sent()
    for path in sorted(folder.glob(f"{pattern}/*.wandb")):
        try:
            rows = list(_last_rows(path))
        except (ValueError, OSError):
            return None
        step = max((int(row["step"]) for row in rows), default=-1)
        if step >= sent.step:
            earlier = sent.kinds if step == sent.step else set()
            sent = Sent(step, earlier | {kind_of(row) for row in rows if row["step"] == step})
    return sent


def lost_lines(path: Path, size: int, sent: Sent) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and values of the first ``size`` bytes of a ``metrics.jsonl`` that were not sent."""
    if not path.is_file():
        return
    elapsed = 0.0
    with path.open("rb") as file:
        while file.tell() < size and (line := file.readline()):
            values = {key: float("nan") if value is None else value for key, value in json.loads(line).items()}
            step, elapsed = int(values.pop("step")), values.get("time/elapsed", elapsed)
            if not sent.has(step, values):
                yield step, values | {"time/hours": elapsed / 3600}


def _last_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The newest rows of a file; ``ValueError`` if this is not a file as it is known here."""
    size = path.stat().st_size
    starts = sorted({max(0, size - TAIL) // BLOCK * BLOCK, 0}, reverse=True)
    for start in starts:
        with path.open("rb") as file:
            if size and file.read(4) != b":W&B":
                raise ValueError(f"{path} is no log of W&B")
            file.seek(start)
            rows = list(_rows(file.read(), start))
        if rows:
            return iter(rows)
    return iter(())


def _rows(data: bytes, start: int) -> Iterator[dict[str, Any]]:
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    for chunk in _chunks(data, start):
        record = Record()
        try:
            record.ParseFromString(chunk)
        except DecodeError as error:
            raise ValueError("a record of another kind") from error
        if record.HasField("history"):
            items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            if "step" in items:
                yield {key: json.loads(value) for key, value in items.items()}


def _chunks(data: bytes, start: int) -> Iterator[bytes]:
    """The whole records in a part of a file that begins at a block; a last one that is not complete is left out."""
    position, parts = (FILE_HEADER if start == 0 else 0), None
    while position + CHUNK_HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < CHUNK_HEADER:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        if not WHOLE <= kind <= LAST or length > left - CHUNK_HEADER:
            raise ValueError("a chunk of another kind")
        body = data[position + CHUNK_HEADER : position + CHUNK_HEADER + length]
        position += CHUNK_HEADER + length
        if len(body) < length:
            return
        if kind in (WHOLE, FIRST):
            parts = []
        if parts is not None:
            parts.append(body)
            if kind in (WHOLE, LAST):
                yield b"".join(parts)
                parts = None
