"""The kernels' arguments: csrc/structures.h describes them, in C and, read by this module, in Python."""

import ctypes
import re
from importlib import resources
from typing import Any

import torch
from torch import Tensor

POINTER = ctypes.c_void_p
HEADER = (resources.files(__package__) / "csrc" / "structures.h").read_text()
LIMITS = {name: int(value) for name, value in re.findall(r"#define (\w+) (\d+)", HEADER)}


def _read_structures() -> dict[str, Any]:
    kinds: dict[str, Any] = {"long": ctypes.c_long, "double": ctypes.c_double}
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", HEADER, re.DOTALL):
        fields = []
        for kind, names in re.findall(r"(\w+) (.*?);", body):
            for star, field, count in re.findall(r"(\*?)(\w+)(?:\[(\w+)\])?", names):
                one = POINTER if star else kinds[kind]
                fields.append((field, one * LIMITS[count] if count else one))
        kinds[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return kinds


STRUCTURES = _read_structures()
FIELDS = {kind: dict(kind._fields_) for kind in STRUCTURES.values() if issubclass(kind, ctypes.Structure)}
KERNELS = {name: STRUCTURES[kind] for name, kind in re.findall(r"int (\w+)\(const (\w+) \*a\);", HEADER)}


def checked_header() -> str:
    """The header, and a check for the compiler that structures are as large in C as in Python."""
    said = "is not as large in C as in Python"
    sizes = ((kind.__name__, ctypes.sizeof(kind)) for kind in FIELDS)
    return HEADER + "".join(f'_Static_assert(sizeof({name}) == {size}, "{name} {said}");\n' for name, size in sizes)


def made(name: str, dtype: torch.dtype, **values: Any) -> ctypes.Structure:
    """A structure, which keeps the tensors and structures alive that it is made of; see `fill`."""
    structure = STRUCTURES[name]()
    fill(structure, dtype, values)
    structure.kept_alive = values
    return structure


def fill(structure: ctypes.Structure, dtype: torch.dtype, values: dict[str, Any]) -> None:
    """Set fields: to addresses of tensors, to lists where they are arrays, to numbers and structures."""
    kinds = FIELDS[type(structure)]
    for name, value in values.items():
        if isinstance(value, Tensor):
            value = address(name, value, dtype) if kinds[name] is POINTER else source(value, dtype)
        elif isinstance(value, list):
            value = kinds[name](*value)
        setattr(structure, name, value)


def source(matrix: Tensor, dtype: torch.dtype, shared: bool = False) -> ctypes.Structure:
    """Describe a view ``[in, out]`` or ``[blocks, in, out]``, however it lies in memory."""
    at, one = address("matrix", matrix, dtype, contiguous=False), (1,) * (3 - matrix.ndim)
    return STRUCTURES["Source"](at, *one, *matrix.shape, *one, *matrix.stride(), shared)


def address(name: str, tensor: Tensor, dtype: torch.dtype, contiguous: bool = True) -> int:
    """Where a tensor is, if a kernel that computes in ``dtype`` can read it there."""
    if tensor.dtype != dtype or not tensor.is_cpu or (contiguous and not tensor.is_contiguous()):
        found = f"{name!r} of {list(tensor.shape)} is {tensor.dtype} on {tensor.device}, strides {tensor.stride()}"
        raise ValueError(f"A kernel would read other numbers: {found}. Give it a contiguous one of {dtype} on the CPU.")
    return tensor.data_ptr()
