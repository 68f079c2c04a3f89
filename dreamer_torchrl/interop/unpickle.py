"""Read the pickles of the official JAX agent: plain containers and NumPy arrays of numbers, and nothing that runs.

`pickle.Unpickler` calls what a file names. Here the five names that arrays of numbers need stand for inert records,
and any other name is refused (`find_class`). What the records hold is checked before NumPy sees it. A hostile file can
still end the process, by tuples nested deeper than the stack.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

_DTYPES = {code: np.dtype("<" + code) for code in "b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split()}

_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, EOFError, RecursionError, MemoryError, OverflowError)
"""What the unpickler raises of files that make no sense, beside its own error."""


class UnsafePickleError(pickle.UnpicklingError):
    """The file asks for more than plain containers, text, numbers and NumPy arrays of numbers."""


class _Record:
    """A call that a file asks for, not made: its arguments, and the state to be set afterwards."""

    state: Any = None

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


_Array, _DType, _Reconstruct, _Scalar, _FromBuffer = (type(name, (_Record,), {}) for name in "ADRSF")
_CALLS = {"multiarray._reconstruct": _Reconstruct, "multiarray.scalar": _Scalar, "numeric._frombuffer": _FromBuffer}
_NAMES = {f"{core}.{name}": call for name, call in _CALLS.items() for core in ("numpy.core", "numpy._core")}
_NAMES |= {"numpy.ndarray": _Array, "numpy.dtype": _DType}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Record]:
        """Instead of an import."""
        if f"{module}.{name}" not in _NAMES:
            raise UnsafePickleError(f"asks for {f'{module}.{name}'[:80]!r}")
        return _NAMES[f"{module}.{name}"]


class _Builder:
    """Turns records into arrays, which together are no larger than the file."""

    def __init__(self, size: int):
        self.size = self.budget = size
        self.built: dict[int, Any] = {}  # what is in a file once is there once

    def __call__(self, value: Any) -> Any:
        if value is None or isinstance(value, str | bytes | bytearray | int | float):
            return value
        if id(value) not in self.built:
            self.built[id(value)] = self.build(value)
        return self.built[id(value)]

    def build(self, value: Any) -> Any:
        match value:
            case dict():
                if not all(isinstance(key, str) for key in value):
                    raise UnsafePickleError("has a dictionary key that is not text")
                return {key: self(inner) for key, inner in value.items()}
            case list() | tuple():
                return type(value)(map(self, value))
            case _Reconstruct(
                arguments=(kind, (0,), b"b"), state=(1, shape, dtype, bool() as fortran, bytes() as data)
            ):
                if kind is _Array:
                    return self.array(shape, dtype, "F" if fortran else "C", data)
            case _FromBuffer(arguments=(bytes() | bytearray() as data, dtype, shape, "C" | "F" as order), state=None):
                return self.array(shape, dtype, order, data)
            case _Scalar(arguments=(dtype, bytes() as data), state=None):
                return self.array((), dtype, "C", data)[()]
        raise UnsafePickleError("makes a call that does not belong to an array of numbers")

    def array(self, shape: Any, dtype: Any, order: str, data: bytes | bytearray) -> np.ndarray:
        match dtype:
            case _DType(arguments=(str() as code, *_)) if code not in _DTYPES:
                raise UnsafePickleError(f"has values of type {code[:80]!r}, not plain numbers")
            case _DType(arguments=(str() as code, *_), state=None | (3, "<" | "|", None, None, None, -1, -1, 0)):
                number = _DTYPES[code]
            case _:
                raise UnsafePickleError("has an array of something other than little-endian numbers")
        if len(shape) > 32 or not all(type(side) is int and 0 <= side <= self.size for side in shape):
            raise ValueError("an array has an impossible shape")
        self.budget -= len(data)
        if math.prod(shape) * number.itemsize != len(data) or self.budget < 0:
            raise ValueError("an array does not fit its bytes")
        return np.frombuffer(data, number).reshape(shape, order=order).copy(order)


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
    content = Path(path).read_bytes()
    try:
        _check_sizes(content)
        return _Builder(len(content))(_Unpickler(io.BytesIO(content)).load())
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{path} {error}. Only containers, text, numbers and NumPy arrays of numbers are read: the rest can run "
            "code. If you trust the file, save its arrays with numpy.savez where it came from."
        ) from None
    except (pickle.UnpicklingError, *_DAMAGE) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise pickle.UnpicklingError(f"{path} is damaged or not a pickle ({reason}). Use an intact copy.") from error


def _check_sizes(content: bytes) -> None:
    """Raise `ValueError` where following the file would take memory that its size does not explain."""
    file = io.BytesIO(content)
    for opcode, argument, _ in pickletools.genops(file):  # raises for lengths beyond the end
        if opcode.name == "LONG_BINPUT" and argument > len(content):
            raise ValueError("the number of an entry is beyond the file's size")
    if file.read(1):
        raise ValueError("the end is not where the value is complete")


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
