"""The reader of official pickles: it reads theirs, and nothing that a file holds is ever run."""

from __future__ import annotations

import copyreg
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy._core.multiarray import _reconstruct, scalar
from numpy._core.numeric import _frombuffer

from dreamer_torchrl.interop.unpickle import find_checkpoint, load_arrays
from tests.interop.pickle_examples import EMPTY, F4, GOLDEN, PROTOCOLS, SAMPLE, Call, load, refused


def same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        left, right = list(left.values()), list(right.values())
    if isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            same(one, other)
    elif isinstance(left, np.ndarray):
        assert (left.dtype, left.shape, left.flags.writeable) == (right.dtype, right.shape, True)
        np.testing.assert_array_equal(left, right)
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
    trained = {name for name in others if not name.startswith(("slowval", "retnorm"))}
    moments = {f"opt/state/{index}/1/{name}" for index in (1, 2) for name in trained}
    counters = {"opt/state/1/0", "opt/state/2/0", "opt/state/3/count", "opt/step/value"}
    assert set(params) - others == moments | counters
    for name, array in params.items():
        assert array.dtype == (np.int32 if name in counters | {"slowval_count/value"} else np.float32), name
        assert np.isfinite(array).all(), name
    with find_checkpoint(SAMPLE).open("rb") as file:
        same(content, pickle.load(file))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", "? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split())
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (7,), (2, 3, 40), (1,) * 32])
def test_arrays_come_back(path: Path, protocol: int, dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.arange(np.prod(shape, dtype=int)) % 5).reshape(shape).astype(dtype)
    value = {"c": array, "f": np.asfortranarray(array), "part": array[..., ::2] if shape else array, "again": [array]}
    value["scalar"] = np.ones((), dtype)[()]
    same(load(path, pickle.dumps(value, protocol)), value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_back(path: Path, protocol: int) -> None:
    numbers = [0, -1, 255, 256, 70000, -(2**31), 2**31, 2**70, -(2**3000), 0.5, float("inf"), True, False, None]
    text = ["", "é", "x" * 300, b"", b"\0" * 300, "twice", "twice"]
    value = {"numbers": numbers, "text": tuple(text), "nested": ({}, [], (), (1,), (1, 2), [[{"a": (3, 4, 5, 6)}]])}
    same(load(path, pickle.dumps(value, protocol)), value)


def test_names_of_numpy_1(path: Path) -> None:
    value = {"array": np.arange(300.0), "scalar": np.float32(2)}
    content = pickle.dumps(value, 3)
    assert b"numpy._core" in content
    same(load(path, content.replace(b"numpy._core", b"numpy.core")), value)


def test_read_only_arrays_become_writable(path: Path) -> None:
    array = np.arange(300.0)
    array.flags.writeable = False
    same(load(path, pickle.dumps(array, 5)), np.arange(300.0))


# What it refuses


@pytest.mark.parametrize("protocol", range(6))
def test_calls_are_not_made(path: Path, canary: Path, protocol: int) -> None:
    for function, argument in (
        (os.system, f"touch {canary}"),
        (eval, f"open({str(canary)!r}, 'w')"),
        (exec, f"open({str(canary)!r}, 'w')"),
        (Path.touch, canary),
        (np.ndarray.tofile, str(canary)),
    ):
        for attack in (Call(function, (argument,)), {"params": {"a": np.zeros(3), "b": [Call(function, (argument,))]}}):
            refused(path, pickle.dumps(attack, protocol))


@pytest.mark.parametrize(
    "name",
    [
        "os system",
        "posix system",
        "builtins getattr",
        "numpy load",
        "numpy ndarray.tofile",
        "numpy dtype.__class__",
        "numpy.core.multiarray fromfile",
        "numpy._core.multiarray _reconstruct.__globals__",
        "numpy._core.numeric _frombuffer.__class__",
        "numpy.ma.core _mareconstruct",
        "copyreg _reconstructor",
        "copyreg add_extension",
        "collections OrderedDict",
        "functools partial",
        "pickle loads",
        "_codecs encode",
        "torch._utils _rebuild_tensor_v2",
        "torch.storage _load_from_bytes",
        "jax._src.array _reconstruct_array",
        "ml_dtypes bfloat16",
        " numpy ndarray",
        "numpy ndarray ",
        "Numpy ndarray",
    ],
)
def test_other_names_are_refused_however_they_are_written(path: Path, name: str) -> None:
    module, attribute = name.rsplit(" ", 1) if not name.endswith(" ") else ("numpy", "ndarray ")
    texts = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)]
    refused(path, b"\x80\x04" + b"".join(texts) + b"\x93.", "asks for")
    if name == name.strip():  # a line holds no spaces at its ends
        refused(path, f"c{module}\n{attribute}\n.".encode(), module)
        refused(path, f"(i{module}\n{attribute}\n.".encode(), "INST")


def test_a_refusal_says_what_was_asked(path: Path) -> None:
    refused(path, pickle.dumps(torch.zeros(2)), "'torch._utils._rebuild_tensor_v2'")
    refused(path, pickle.dumps({"a": OrderedDict()}), "'collections.OrderedDict'")
    refused(
        path, b"\x80\x04\x8c\x01a\x8c\xff" + b"\x1b" * 127 + b"\x7f" * 128 + b"\x93.", r"a\.\\x1b"
    )  # no escape codes


def test_extension_codes_are_refused(path: Path, canary: Path) -> None:
    copyreg.add_extension(os.system.__module__, "system", 7)
    try:
        content = pickle.dumps(Call(os.system, (f"touch {canary}",)), 4)
        assert b"\x82\x07" in content
        refused(path, content, "EXT1")
    finally:
        copyreg.remove_extension(os.system.__module__, "system", 7)
    refused(path, b"\x83\x07\x00.", "EXT2")
    refused(path, b"\x84\x07\x00\x00\x00.", "EXT4")


@pytest.mark.parametrize(
    ("content", "opcode"),
    [
        (b"Psomething\n.", "PERSID"),
        (b"NQ.", "BINPERSID"),
        (b"(cos\nsystem\no.", "'os.system'"),
        (b"(No.", "OBJ"),
        (b"N)\x81.", "NEWOBJ"),
        (b"N)}\x92.", "NEWOBJ_EX"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"N\x98.", "READONLY_BUFFER"),
        (b"N0.", "POP"),
        (b"N2.", "DUP"),
        (b"\x8f.", "EMPTY_SET"),
        (b"I1\n.", "INT"),
        (b"S'old text'\n.", "STRING"),
    ],
)
def test_other_opcodes_are_refused(path: Path, content: bytes, opcode: str) -> None:
    refused(path, content, opcode)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_anything_but_numbers_are_refused(path: Path, canary: Path, protocol: int) -> None:
    bomb = Call(os.system, (f"touch {canary}",))
    refused(path, pickle.dumps(np.array([bomb], object), protocol), "'O8', not plain numbers")
    refused(path, pickle.dumps(np.array([None], object), protocol), "'O8', not plain numbers")
    refused(path, pickle.dumps(np.zeros(2, [("a", "f4"), ("b", "O")]), protocol), "'V12', not plain numbers")
    for dtype in ("S4", "U4", "M8[s]", "V4"):
        refused(path, pickle.dumps(np.zeros(2, dtype), protocol), "not plain numbers")
    refused(path, pickle.dumps(np.zeros(2, ">f4"), protocol), "little-endian")
    refused(path, pickle.dumps(np.ma.zeros(2), protocol), "numpy")


@pytest.mark.parametrize(
    "attack",
    [
        Call(np.dtype, ("f4", False, True), (3, "<", None, None, None, -1, -1, 63)),  # flags: elements are objects
        Call(np.dtype, ("f4", False, True), (3, "|", None, ("a",), {"a": (F4, 0)}, 4, 4, 0)),
        Call(np.dtype, ("f4", False, True), (4, "<", None, None, None, -1, -1, 0, {"metadata": 1})),
        Call(np.dtype, ({"names": ["a"], "formats": ["O"]},)),
        Call(np.dtype, (np.ndarray,)),
        Call(_reconstruct, (np.dtype, (0,), b"b")),
        Call(_reconstruct, (np.ndarray, (2**40,), b"b")),
        Call(_reconstruct, (np.ndarray, (0,), b"O")),
        Call(*EMPTY, (1, (1,), F4, False, [1.0])),
        Call(*EMPTY, (1, (1,), "O", False, [None])),
        Call(*EMPTY, {"shape": (3,)}),
        Call(*EMPTY, (None, {"data": b"1234"})),
        Call(_frombuffer, (b"12345678", "O", (1,), "C")),
        Call(_frombuffer, (np.zeros(3), F4, (3,), "C")),
        Call(scalar, (F4, "1234")),
        Call(np.ndarray, ((3,), F4, b"\0" * 12)),
        np.ndarray,
        [np.dtype],
        {"a": (1, [(_reconstruct,)])},
        {1: 2},
        {("a",): 1},
    ],
)
def test_numpy_is_not_used_in_other_ways(path: Path, attack: Any) -> None:
    refused(path, pickle.dumps(attack, 4))


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
    (tmp_path / "ckpt" / "latest").write_bytes(b"\xff\0/..")
    fails("does not exist")
    with pytest.raises(FileNotFoundError, match="no-such-run does not exist"):
        find_checkpoint(tmp_path / "no-such-run")
