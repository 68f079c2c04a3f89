"""Damaged pickles are named, cost no more memory than their size explains, and crash nothing."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy._core.numeric import _frombuffer

from dreamer_torchrl.interop.unpickle import find_checkpoint, load_arrays
from tests.interop.pickle_examples import EMPTY, F4, PROTOCOLS, SAMPLE, Call, damaged, load, refused


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"PK\x03\x04 a zip file",
        b"<html></html>",
        bytes(range(255, 127, -1)),
        b"N",
        b".",
        b"NN.",
        b"(N.",
        b"N.N.",
        b"t.",
        b"N\x87.",
        b"h\x05.",
        b"NNa.",
        b"]\x8c\x01aNs.",
        b"}(\x8c\x01au.",
        b"NN\x93.",
        b"\x80\x04\x8c\x01\xff.",
    ],
)
def test_garbage_is_named(path: Path, content: bytes) -> None:
    damaged(path, content)


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((2**40,), b"1234"),
        ((2**62, 4), b""),
        ((2**32, 2**32), b""),
        ((0, 2**70), b""),
        ((-1,), b"1234"),
        ((-1, -1), b"1234"),
        ((2,), b"1234"),
        ((1,), b"12345"),
        ((True,), b"1234"),
        ((1.0,), b"1234"),
        ((1,) * 65, b"1234"),
        ("1", b"1234"),
        (1, b"1234"),
    ],
)
def test_shapes_must_fit_the_bytes(path: Path, shape: Any, data: bytes) -> None:
    damaged(path, pickle.dumps(Call(*EMPTY, (1, shape, F4, False, data))), "an array|len")
    damaged(path, pickle.dumps(Call(_frombuffer, (data, F4, shape, "C"))), "an array|len")


def test_little_files_stay_little(path: Path) -> None:
    """Neither huge lengths nor many arrays over the same bytes take more memory than the file's size explains."""
    data = bytearray(100_000)
    many = [Call(_frombuffer, (data, F4, (25_000,), "C")) for _ in range(1000)]
    tracemalloc.start()
    damaged(path, pickle.dumps(many, 5), "does not fit")
    damaged(path, b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"abc.")  # bytes of that length
    damaged(path, b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"abc.")
    damaged(path, b"\x80\x04\x8b" + (2**31 - 1).to_bytes(4, "little") + b"abc.")  # an integer of that length
    damaged(path, b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"N")
    assert load(path, b"\x80\x04Nr\xff\xff\xff\xff.") is None  # a memo entry with that number
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_deep_nesting_does_not_crash(path: Path) -> None:
    depth = 200_000
    refused(path, b"\x80\x04})" + b"\x85" * depth + b"Ns.", "key")
    assert len(load(path, b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b".")) == 1
    twice = b")" + b"\x94h\x00\x86" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(1, 200))
    assert len(load(path, b"\x80\x04" + twice + b".")) == 2  # 2 ** 200 leaves, were they counted one by one


@pytest.fixture
def small() -> bytes:
    """A pickle with a bit of everything, made small so that it can be broken in many ways."""
    value = {"params": {"a/kernel": np.ones((2, 3), "f4"), "b": np.arange(3)}, "n": [1, 2.5, None, (True, "é", b"x")]}
    return pickle.dumps({**value, "scalar": np.float32(1), "again": value}, 4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_truncated_files(path: Path, small: bytes, protocol: int) -> None:
    content = pickle.dumps(pickle.loads(small), protocol)
    for end in range(len(content)):
        damaged(path, content[:end])


def test_truncated_sample(path: Path) -> None:
    content = find_checkpoint(SAMPLE).read_bytes()
    for end in np.random.default_rng(0).integers(0, len(content), 40):
        damaged(path, content[:end])


def test_flipped_bits_load_or_fail_clearly(path: Path, canary: Path, small: bytes) -> None:
    """Every bit of a good file and of an attack, and many bits at once."""
    attack = pickle.dumps({"a": np.ones(3, "f4"), "b": Call(os.system, (f"touch {canary}",))}, 4)
    random = np.random.default_rng(0)
    for content in (small, attack):
        path.write_bytes(content)
        flips = [[bit] for bit in range(8 * len(content))]
        flips += [random.integers(0, 8 * len(content), random.integers(2, 20)) for _ in range(2000)]
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
