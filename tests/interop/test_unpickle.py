"""The reader of official pickles: it reads theirs, runs nothing that a file holds, and names what is damaged."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy._core.multiarray import _reconstruct, scalar
from numpy._core.numeric import _frombuffer

from dreamer_torchrl.interop.unpickle import UnsafePickleError, find_checkpoint, load_arrays

GOLDEN = Path(__file__).parents[1] / "golden"
SAMPLE = GOLDEN / "official_checkpoint_sample"
F4 = np.dtype("f4")
EMPTY = (_reconstruct, (np.ndarray, (0,), b"b"))
every_protocol = pytest.mark.parametrize("protocol", (3, 4, 5))


class Call:
    """Pickles as a call of any function, followed by any state: what an attacker writes."""

    def __init__(self, function: Any, arguments: tuple, *state: Any) -> None:
        self.reduced = (function, arguments, *state)

    def __reduce__(self) -> tuple:
        return self.reduced


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """The file that every attack tries to make; it must not be there when the test is over."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test writes the pickle that it wants read."""
    return tmp_path / "agent.pkl"


def load(path: Path, content: bytes) -> Any:
    path.write_bytes(content)
    return load_arrays(path)


def refused(path: Path, content: bytes, match: str | None = None) -> None:
    with pytest.raises(UnsafePickleError, match=match) as caught:
        load(path, content)
    assert str(path) in str(caught.value) and "save its arrays" in str(caught.value)


def damaged(path: Path, content: bytes, match: str = "damaged") -> None:
    with pytest.raises(pickle.UnpicklingError, match=match) as caught:
        load(path, content)
    assert str(path) in str(caught.value) and not isinstance(caught.value, UnsafePickleError)


def same(left: Any, right: Any) -> None:
    if isinstance(left, np.ndarray):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        np.testing.assert_array_equal(left, right)
        return
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        left, right = list(left.values()), list(right.values())
    if isinstance(left, list | tuple):
        for one, other in zip(left, right, strict=True):
            same(one, other)
    else:
        assert left == right


# What it reads


def test_reads_the_official_sample() -> None:
    content = load_arrays(find_checkpoint(SAMPLE))
    assert set(content) == {"params", "counters"}
    assert content["counters"] == {"updates": 3, "batches": 0, "actions": 0}
    params, shapes = content["params"], json.loads((GOLDEN / "proprio_cont_config.json").read_text())["param_shapes"]
    others = {name for name in params if not name.startswith("opt/")}
    assert {name: list(params[name].shape) for name in others} == shapes
    with find_checkpoint(SAMPLE).open("rb") as file:
        same(content, pickle.load(file))


@every_protocol
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 40), (1,) * 32])
def test_values_and_arrays_come_back(path: Path, protocol: int, shape: tuple[int, ...]) -> None:
    values: list[Any] = [0, -1, 70000, 2**70, -(2**3000), 0.5, True, None, "", "é" * 300, b"\0" * 300, ({}, [], (1, 2))]
    for dtype in "? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split():
        array = (np.arange(np.prod(shape, dtype=int)) % 5).reshape(shape).astype(dtype)
        value = {"c": array, "f": np.asfortranarray(array), "part": array[..., ::2] if shape else array}
        values.append(value | {"again": [array], "scalar": np.ones((), dtype)[()]})
    same(load(path, pickle.dumps(values, protocol)), values)


def test_names_of_numpy_1_and_read_only_arrays(path: Path) -> None:
    value = {"array": np.arange(300.0), "scalar": np.float32(2)}
    content = pickle.dumps(value, 3)
    assert b"numpy._core" in content
    same(load(path, content.replace(b"numpy._core", b"numpy.core")), value)
    value["array"].flags.writeable = False
    same(load(path, pickle.dumps(value["array"], 5)), np.arange(300.0))


# What it refuses


@pytest.mark.parametrize("protocol", range(6))
def test_calls_are_not_made(path: Path, canary: Path, protocol: int) -> None:
    for function, argument in ((os.system, f"touch {canary}"), (Path.touch, canary), (np.ndarray.tofile, str(canary))):
        for attack in (Call(function, (argument,)), {"params": {"a": np.zeros(3), "b": [Call(function, (argument,))]}}):
            refused(path, pickle.dumps(attack, protocol))


@pytest.mark.parametrize("name", ["os system", "numpy load", "numpy ndarray.tofile", "numpy dtype.__class__"])
def test_other_names_are_refused_however_they_are_written(path: Path, name: str) -> None:
    module, attribute = name.split(" ")
    texts = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)]
    refused(path, b"\x80\x04" + b"".join(texts) + b"\x93.", "asks for")
    for form in ("c{}\n{}\n.", "(i{}\n{}\n.", "(c{}\n{}\no.", "c{}\n{}\n)\x81."):
        refused(path, form.format(module, attribute).encode("latin1"), "asks for")
    escape = b"\x80\x04\x8c\x01a\x8c\xff" + b"\x1b" * 127 + b"\x7f" * 128 + b"\x93."
    refused(path, escape, r"a\.\\x1b")  # no escape codes


@every_protocol
def test_arrays_of_anything_but_numbers_are_refused(path: Path, canary: Path, protocol: int) -> None:
    bomb = Call(os.system, (f"touch {canary}",))
    for objects in (np.array([bomb], object), np.array([None], object), np.zeros(2, [("a", "f4"), ("b", "O")])):
        refused(path, pickle.dumps(objects, protocol))
    for dtype in ("S4", "U4", "M8[s]", "V4"):
        refused(path, pickle.dumps(np.zeros(2, dtype), protocol), "not plain numbers")
    refused(path, pickle.dumps(np.zeros(2, ">f4"), protocol), "little-endian")
    refused(path, pickle.dumps(np.ma.zeros(2), protocol), "numpy")


@pytest.mark.parametrize(
    "attack",
    [
        [Call(*EMPTY, (1, (1,), Call(np.dtype, ("f4", False, True), state), False, b"1234"))]
        for state in (
            (3, "<", None, None, None, -1, -1, 63),  # flags: elements are objects
            (3, "|", None, ("a",), {"a": (F4, 0)}, 4, 4, 0),
            (4, "<", None, None, None, -1, -1, 0, {"metadata": 1}),
        )
    ]
    + [
        Call(np.dtype, ({"names": ["a"], "formats": ["O"]},)),
        Call(np.dtype, (np.ndarray,)),
        Call(*EMPTY, (1, (1,), F4, False, [1.0])),
        Call(*EMPTY, (1, (1,), "O", False, [None])),
        Call(_frombuffer, (b"12345678", "O", (1,), "C")),
        Call(_frombuffer, (np.zeros(3), F4, (3,), "C")),
        Call(scalar, (F4, "1234")),
    ],
)
def test_numpy_is_not_used_in_other_ways(path: Path, attack: Any) -> None:
    refused(path, pickle.dumps(attack, 4))


# What is damaged


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\x80", b"PK\x03\x04 a zip file", b"<html></html>", bytes(range(255, 127, -1)), b"N", b"."),
        *(b"t.", b"N\x87.", b"h\x05.", b"NNa.", b"]\x8c\x01aNs.", b"NN\x93.", b"\x80\x04\x8c\x01\xff."),
        *(b"Psomething\n.", b"NQ.", b"(No.", b"N)\x81."),
    ],
)
def test_garbage_is_named(path: Path, content: bytes) -> None:
    damaged(path, content)


@pytest.mark.parametrize("shape", [(2**62, 4), (2**32, 2**32), (-1, -1), (2,), (True,), (1.0,), (0, 2**62), "1", 1])
def test_shapes_must_fit_the_bytes(path: Path, shape: Any) -> None:
    damaged(path, pickle.dumps(Call(*EMPTY, (1, shape, F4, False, b"1234"))))
    damaged(path, pickle.dumps(Call(_frombuffer, (b"1234", F4, shape, "C"))))


def test_what_names_stand_for_cannot_be_changed(path: Path) -> None:
    for name in ("ndarray", "dtype"):
        damaged(path, f"cnumpy\n{name}\n(N}}U\x07__doc__U\x04mineutb.".encode())


def test_truncated_and_flipped_files_load_or_fail_clearly(path: Path, canary: Path) -> None:
    """Every end and every bit of a good file and of an attack, and many bits at once."""
    value = {"params": {"a/kernel": np.ones((2, 3), "f4"), "b": np.arange(3)}, "n": [1, 2.5, None, (True, "é", b"x")]}
    small = pickle.dumps({**value, "scalar": np.float32(1), "again": value}, 4)
    for end in range(len(small)):
        damaged(path, small[:end])
    attack = pickle.dumps({"a": np.ones(3, "f4"), "b": Call(os.system, (f"touch {canary}",))}, 4)
    random = np.random.default_rng(0)
    for content in (small, attack):
        path.write_bytes(content)
        flips = [[bit] for bit in range(8 * len(content))]
        flips += [random.integers(0, 8 * len(content), random.integers(2, 20)) for _ in range(500)]
        for bits in flips:
            broken = bytearray(content)
            for bit in bits:
                broken[bit // 8] ^= 1 << bit % 8
            with path.open("r+b") as file:  # in place, which is far quicker than a new file
                file.write(broken)
            try:
                load_arrays(path)
            except pickle.UnpicklingError as error:
                assert str(path) in str(error)


# Where it finds them


def test_finds_the_checkpoint_from_every_level() -> None:
    (file,) = SAMPLE.rglob("agent.pkl")
    for place in (SAMPLE, SAMPLE / "ckpt", file.parent, file, str(SAMPLE)):
        assert find_checkpoint(place) == file


def test_says_what_it_looked_for(tmp_path: Path) -> None:
    def fails(match: str) -> None:
        with pytest.raises(FileNotFoundError, match=match):
            find_checkpoint(tmp_path)

    fails(r"has no agent.pkl and no done\. Name a finished checkpoint .* the log directory")
    (tmp_path / "ckpt").mkdir()
    fails(r"ckpt has no agent.pkl")
    (tmp_path / "ckpt" / "latest").write_text("20260101T000000F000000\n")
    fails(r"ckpt/20260101T000000F000000 does not exist")
    stamp = tmp_path / "ckpt" / "20260101T000000F000000"
    stamp.mkdir()
    (stamp / "agent.pkl").write_bytes(b"N.")
    fails(r"F000000 has no done\.")
    (stamp / "done").touch()
    assert load_arrays(find_checkpoint(tmp_path)) is None
