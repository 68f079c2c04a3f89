"""Attacks on the reader of official pickles, and what it must say of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy._core.multiarray import _reconstruct

from dreamer_torchrl.interop.unpickle import UnsafePickleError, load_arrays

GOLDEN = Path(__file__).parents[1] / "golden"
SAMPLE = GOLDEN / "official_checkpoint_sample"
PROTOCOLS = (3, 4, 5)
F4 = np.dtype("f4")
EMPTY = (_reconstruct, (np.ndarray, (0,), b"b"))


class Call:
    """Pickles as a call of any function, followed by any state: what an attacker writes."""

    def __init__(self, function: Any, arguments: tuple, *state: Any) -> None:
        self.reduced = (function, arguments, *state)

    def __reduce__(self) -> tuple:
        return self.reduced


def load(path: Path, content: bytes) -> Any:
    path.write_bytes(content)
    return load_arrays(path)


def refused(path: Path, content: bytes, match: str | None = None) -> None:
    with pytest.raises(UnsafePickleError, match=match) as caught:
        load(path, content)
    assert str(path) in str(caught.value)
    assert "save its arrays" in str(caught.value)


def damaged(path: Path, content: bytes, match: str = "damaged") -> None:
    with pytest.raises(pickle.UnpicklingError, match=match) as caught:
        load(path, content)
    assert str(path) in str(caught.value)
    assert not isinstance(caught.value, UnsafePickleError)
