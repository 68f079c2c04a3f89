"""Read the pickles of the official JAX agent: plain containers and NumPy arrays of numbers, and nothing that runs.

`pickle.Unpickler` calls what a file names. Here the five names that arrays of numbers need stand for the classes below,
and any other name is refused. NumPy's own would trust the file: a dtype takes any state, even one that makes addresses
of numbers.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = "b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split()
LITTLE_ENDIAN = [(3, order, None, None, None, -1, -1, 0) for order in "<|"]


class UnsafePickleError(pickle.UnpicklingError):
    """The file asks for more than plain containers, text, numbers and NumPy arrays of numbers."""


class _DType:
    def __init__(self, code: str, *flags: Any):
        if code not in NUMBERS:
            raise UnsafePickleError(f"has values of type {str(code)[:80]!r}, not plain numbers")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        if state not in LITTLE_ENDIAN:
            raise UnsafePickleError("has an array of something other than little-endian numbers")


class _Array(np.ndarray):
    def __new__(cls, *arguments: Any) -> _Array:
        return np.empty(0, "i1").view(_Array)  # whatever the file asks for: the state decides

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        super().__setstate__((1, shape, _checked(dtype, shape, data), fortran, data))


class _FromBuffer(_Array):
    def __new__(cls, data: bytes | bytearray, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
        return np.frombuffer(data, _checked(dtype, shape, data)).reshape(shape, order=order).view(_Array)


class _Scalar(_Array):
    def __new__(cls, dtype: _DType, data: bytes) -> np.generic:
        return np.frombuffer(data, _checked(dtype, (), data))[0]


def _checked(dtype: _DType, shape: tuple[int, ...], data: bytes | bytearray) -> np.dtype:
    """The dtype of numbers that have this shape and these bytes."""
    if not isinstance(dtype, _DType) or not isinstance(data, bytes | bytearray):
        raise UnsafePickleError("makes a call that does not belong to an array of numbers")
    number = np.dtype("<" + dtype.code)
    fits = type(shape) is tuple and all(type(side) is int and 0 <= side < 2**40 for side in shape)
    if not fits or math.prod(shape) * number.itemsize != len(data):
        raise ValueError("an array does not fit its bytes")
    return number


NAMES = {"numpy.dtype": _DType, "numpy.ndarray": _Array}
for core in ("numpy.core", "numpy._core"):
    NAMES |= {f"{core}.multiarray._reconstruct": _Array, f"{core}.multiarray.scalar": _Scalar}
    NAMES[f"{core}.numeric._frombuffer"] = _FromBuffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if f"{module}.{name}" not in NAMES:
            raise UnsafePickleError(f"asks for {f'{module}.{name}'[:80]!r}")
        return NAMES[f"{module}.{name}"]


def load_arrays(path: str | Path) -> Any:
    """The contents of a pickle of containers, text, numbers and NumPy arrays; a file that asks for more is refused.

    Raises `UnsafePickleError` for a refused file and `pickle.UnpicklingError` for a damaged one; both name the file.
    """
    content = Path(path).read_bytes()
    try:
        return _Unpickler(io.BytesIO(content)).load()
    except UnsafePickleError as error:
        read = "Only containers, text, numbers and NumPy arrays of numbers are read: the rest can run code."
        remedy = "If you trust the file, save its arrays with numpy.savez where it came from."
        raise UnsafePickleError(f"{path} {error}. {read} {remedy}") from None
    except Exception as error:  # whatever a file that makes no sense leads to
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
        finished = "a finished checkpoint (a folder with agent.pkl and done)"
        above = "the ckpt folder above it (with the file latest), the log directory above that, or agent.pkl itself"
        raise FileNotFoundError(f"{folder} {fault}. Name {finished}, {above}.")
    return folder / "agent.pkl"
