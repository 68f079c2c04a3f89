"""Reads the pickles of the official JAX agent, and cannot be made to run anything.

Python's unpickler calls whatever a file names. This one follows only the opcodes that plain data and NumPy arrays of
numbers are written with (protocols 3 to 5; the official code writes 4), and a name in a file can select one of five
cases below: nothing is imported, looked up or called on a file's behalf.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from copy import copy
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np


class UnsafePickleError(pickle.UnpicklingError):
    """The file asks for more than plain containers, text, numbers and NumPy arrays of numbers."""


_Global = Enum("_Global", "ARRAY DTYPE RECONSTRUCT SCALAR FROMBUFFER")
_GLOBALS = {"numpy ndarray": _Global.ARRAY, "numpy dtype": _Global.DTYPE}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _GLOBALS[f"{_core}.multiarray _reconstruct"] = _Global.RECONSTRUCT
    _GLOBALS[f"{_core}.multiarray scalar"] = _Global.SCALAR
    _GLOBALS[f"{_core}.numeric _frombuffer"] = _Global.FROMBUFFER
_DTYPES = {code: np.dtype("<" + code) for code in "b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split()}

_PUSH = set("BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8".split())
_PUSH |= {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}  # opcodes that push their argument
_NEW = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}
_TAKE = {"APPEND": 1, "SETITEM": 2, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "STACK_GLOBAL": 2, "REDUCE": 2, "BUILD": 2}
_TAKE |= dict.fromkeys(("APPENDS", "SETITEMS", "TUPLE"))  # None: all since the last MARK


class _Reader:
    """The pickle machine: `UnsafePickleError` for what it will not do, a built-in error for what makes no sense."""

    def __init__(self, content: bytes, path: str | Path) -> None:
        self.file, self.size = io.BytesIO(content), len(content)
        self.path, self.position = path, 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stack below each open MARK
        self.memo: dict[int, Any] = {}
        self.budget = self.size  # all arrays together are no larger than the file, even if they share bytes in it

    def read(self) -> Any:
        for opcode, argument, position in pickletools.genops(self.file):
            self.position = position
            if opcode.name not in ("PROTO", "FRAME", "STOP"):
                self.step(opcode.name, argument)
        if self.outer or len(self.stack) != 1 or self.file.read(1):
            raise ValueError("the end is not where the value is complete")
        self.check_result(self.stack[0])
        return self.stack[0]

    def step(self, opcode: str, argument: Any) -> None:
        taken = self.take(_TAKE[opcode]) if opcode in _TAKE else []
        match opcode:
            case "MARK":
                self.outer.append(self.stack)
                self.stack = []
            case "MEMOIZE" | "BINPUT" | "LONG_BINPUT":
                self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "APPEND" | "APPENDS":
                list.extend(self.stack[-1], taken)
            case "SETITEM" | "SETITEMS":
                if not all(isinstance(key, str) for key in taken[::2]):  # hashing a deep tuple may crash or never end
                    raise self.refusal("has a dictionary key that is not text")
                dict.update(self.stack[-1], zip(taken[::2], taken[1::2], strict=True))
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(taken))
            case "GLOBAL" | "STACK_GLOBAL":
                name = argument if opcode == "GLOBAL" else " ".join(taken)
                if name not in _GLOBALS:
                    raise self.refusal(f"asks for {name[:80].replace(' ', '.')!r}")
                self.stack.append(_GLOBALS[name])
            case "REDUCE" | "BUILD":
                self.stack.append(self.apply(*taken))
            case _ if opcode in _PUSH:
                self.stack.append(argument)
            case _ if opcode in _NEW:
                self.stack.append(copy(_NEW[opcode]))
            case _:
                raise self.refusal(f"uses the pickle opcode {opcode}")

    def take(self, count: int | None) -> list[Any]:
        if count is not None:
            return [self.stack.pop() for _ in range(count)][::-1]
        marked, self.stack = self.stack, self.outer.pop()
        return marked

    def apply(self, target: Any, arguments: Any) -> Any:
        match target, arguments:
            case np.ndarray(), (1, shape, np.dtype() as dtype, bool() as fortran, bytes() as data):
                return self.fill(target, shape, dtype, fortran, data)
            case np.dtype(), (3, "<" | "|", None, None, None, -1, -1, 0):
                return target  # ours are so already
            case np.ndarray() | np.dtype(), _:
                raise self.refusal("sets a state that does not belong to a little-endian array of numbers")
            case _Global.DTYPE, (str() as code, *_) if code in _DTYPES:
                return _DTYPES[code]
            case _Global.DTYPE, (str() as code, *_):
                raise self.refusal(f"has values of type {code[:80]!r}, not plain numbers")
            case _Global.RECONSTRUCT, (_Global.ARRAY, (0,), b"b"):
                return np.empty(0)
            case _Global.SCALAR, (np.dtype() as dtype, bytes() as data):
                return self.fill(np.empty(0), (), dtype, False, data)[()]
            case _Global.FROMBUFFER, (bytes() | bytearray() as data, np.dtype() as dtype, shape, "C" | "F" as order):
                return self.fill(np.empty(0), shape, dtype, order == "F", bytes(data))
        raise self.refusal("makes a call that does not belong to an array of numbers")

    def fill(self, array: np.ndarray, shape: Any, dtype: np.dtype, fortran: bool, data: bytes) -> np.ndarray:
        if len(shape) > 32 or not all(type(side) is int and 0 <= side <= self.size for side in shape):
            raise ValueError("an array has an impossible shape")
        self.budget -= len(data)
        if math.prod(shape) * dtype.itemsize != len(data) or self.budget < 0:
            raise ValueError("an array does not fit its bytes")
        array.__setstate__((1, tuple(shape), dtype, fortran, data))
        return array

    def check_result(self, result: Any) -> None:
        todo, seen = [result], set()
        while todo:
            value = todo.pop()
            if isinstance(value, _Global):
                raise self.refusal("holds a function or class as a value")
            if isinstance(value, dict | list | tuple) and id(value) not in seen:
                seen.add(id(value))
                todo.extend(value.values() if isinstance(value, dict) else value)

    def refusal(self, what: str) -> UnsafePickleError:
        return UnsafePickleError(
            f"{self.path} {what} (byte {self.position}). Only containers, text, numbers and NumPy arrays of numbers are"
            " read: the rest can run code. If you trust the file, save its arrays with numpy.savez where it came from."
        )


def load_arrays(path: str | Path) -> Any:
    """The contents of a pickle of containers, text, numbers and NumPy arrays; a file that asks for more is refused.

    Raises `UnsafePickleError` for a refused file and `pickle.UnpicklingError` for a damaged one; both name the file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "agent.pkl")
    ...     _ = path.write_bytes(pickle.dumps({"bias": np.zeros(3, "float32")}))
    ...     load_arrays(path)
    {'bias': array([0., 0., 0.], dtype=float32)}
    """
    try:
        return _Reader(Path(path).read_bytes(), path).read()
    except (ValueError, TypeError, LookupError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise pickle.UnpicklingError(f"{path} is damaged or not a pickle ({reason}). Use an intact copy.") from error


def find_checkpoint(path: str | Path) -> Path:
    """The `agent.pkl` of an official run: `path` is it, its folder, the `ckpt` above it or the log directory."""
    folder = Path(path)
    if folder.is_file():
        return folder
    folder = folder / "ckpt" if (folder / "ckpt").is_dir() else folder
    if (folder / "latest").is_file():
        folder /= (folder / "latest").read_text(errors="replace").strip()
    missing = [name for name in ("agent.pkl", "done") if not (folder / name).is_file()]
    if missing:
        fault = f"has no {' and no '.join(missing)}" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{folder} {fault}. Name a finished checkpoint (a folder with agent.pkl and done), the ckpt folder above it"
            " (with the file latest), the log directory above that, or agent.pkl itself."
        )
    return folder / "agent.pkl"
