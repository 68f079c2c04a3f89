"""Gymnasium spaces as TorchRL specs, and their values as tensors and back."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, MultiOneHot, OneHot, Unbounded

from dreamer_torchrl.keys import LATENTS, NOT_OBSERVED, WRITTEN
from dreamer_torchrl.modules.spaces import MOST_CLASSES

TAKEN = {*NOT_OBSERVED, *LATENTS, *WRITTEN, "next"}  # such an observation is renamed to ``observed_<name>``


class Array:
    """Numbers of any shape: floats as float32, images as uint8 with a channel axis, bits and few classes as they are.

    Tensors share no memory with the values of the space, since many environments reuse one array.
    """

    def __init__(self, space: spaces.Box | spaces.MultiBinary):
        shape = space.shape or (1,)
        if space.dtype == np.uint8 and len(shape) == 2:  # a gray image
            shape = (*shape, 1)
        self.shape, self.own_shape, self.own_dtype = shape, space.shape, space.dtype
        if isinstance(space, spaces.MultiBinary) or space.dtype == bool:
            self.shape, self.dtype = space.shape, np.dtype(np.int8)
            self.spec = Binary(shape=self.shape, dtype=torch.int8)
            return
        low, high = space.low.reshape(shape), space.high.reshape(shape)
        self.dtype = np.dtype(np.float32)
        if np.issubdtype(space.dtype, np.integer):
            span = int(high.max()) - int(low.min())
            alike = np.unique(low).size == np.unique(high).size == 1
            if space.dtype == np.uint8 and len(shape) == 3:
                self.dtype = np.dtype(np.uint8)
            elif alike and span < MOST_CLASSES:
                self.dtype = np.dtype(np.int64)
        dtype = torch.from_numpy(np.empty(0, self.dtype)).dtype
        low, high = (torch.from_numpy(bound.astype(self.dtype)) for bound in (low, high))
        unbounded = bool(dtype.is_floating_point and low.isinf().all() and high.isinf().all())
        self.spec = Unbounded(shape, dtype=dtype) if unbounded else Bounded(low, high, shape, dtype=dtype)

    def to_tensor(self, value: Any) -> Tensor:
        return torch.from_numpy(np.array(value, dtype=self.dtype).reshape(self.shape))

    def to_value(self, tensor: Tensor) -> np.ndarray:
        value = tensor.detach().cpu().numpy()
        if value.dtype.kind == "f" and self.own_dtype.kind != "f":
            value = value.round()
        return value.astype(self.own_dtype).reshape(self.own_shape)


class Classes:
    """One class or several, as one-hot vectors: concatenated if their numbers of values differ, else stacked."""

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete):
        self.single = isinstance(space, spaces.Discrete)
        self.own_shape, self.own_dtype = space.shape, space.dtype
        self.sizes = [int(n) for n in np.reshape(space.n if self.single else space.nvec, -1)]
        self.values = np.concatenate([np.arange(n) for n in self.sizes])
        self.start = np.reshape(space.start, -1)
        self.alike = len(set(self.sizes)) == 1
        if self.alike:
            shape = (self.sizes[0],) if self.single else (len(self.sizes), self.sizes[0])
            self.spec = OneHot(self.sizes[0], shape=shape, dtype=torch.bool)
        else:
            self.spec = MultiOneHot(self.sizes, dtype=torch.bool)
        self.shape = tuple(self.spec.shape)

    def to_tensor(self, value: Any) -> Tensor:
        classes = np.reshape(value, -1) - self.start
        return torch.from_numpy((self.values == np.repeat(classes, self.sizes)).reshape(self.shape))

    def to_value(self, tensor: Tensor) -> Any:
        flat = tensor.detach().cpu().numpy()
        parts = [flat] if self.single else list(flat) if self.alike else np.split(flat, np.cumsum(self.sizes)[:-1])
        classes = np.array([part.argmax() for part in parts]) + self.start
        return int(classes[0]) if self.single else classes.reshape(self.own_shape).astype(self.own_dtype)


class Fields:
    """Several spaces by name, or by 0, 1 and so on, without empty ones; reserved names are changed at the ``top``."""

    def __init__(self, space: spaces.Dict | spaces.Tuple, name: str, top: bool = False):
        self.is_tuple, self.name = isinstance(space, spaces.Tuple), name
        inner = enumerate(space.spaces) if self.is_tuple else space.spaces.items()
        inner = {key: leaf for key, leaf in inner if leaf.shape is None or prod(leaf.shape)}
        self.fields = {key: codec_of(leaf, f"{name}/{key}") for key, leaf in inner.items()}
        renamed = {taken: f"observed_{taken}" for taken in TAKEN} if top else {}
        if top and "observation" not in inner:
            renamed["state"] = "observation"
        self.names = {key: renamed.get(str(key), str(key)) for key in inner}
        self.spec = Composite({self.names[key]: field.spec for key, field in self.fields.items()})

    def read(self, value: Any) -> dict[str, Tensor | TensorDictBase]:
        read = {}
        for key, field in self.fields.items():
            try:
                read[self.names[key]] = field.to_tensor(value[key])
            except (ValueError, TypeError, KeyError) as error:
                if isinstance(field, Fields) and key in value:  # the message names the part
                    raise
                there = f"{np.asarray(value[key]).dtype} {list(np.shape(value[key]))}" if key in value else "missing"
                place = f"{self.name}/{key}".removeprefix("observation/")
                told = f"Observation {place!r} is {there}, its space says {list(field.spec.shape)} ({error}): let the"
                raise ValueError(f"{told} environment give what its space says.") from error
        return read

    def to_tensor(self, value: Any) -> TensorDictBase:
        return TensorDict(self.read(value))

    def to_value(self, tensor: Mapping[str, Any]) -> dict[str, Any] | tuple[Any, ...]:
        values = {key: field.to_value(tensor[self.names[key]]) for key, field in self.fields.items()}
        return tuple(values.values()) if self.is_tuple else values


def observation_codec(space: gymnasium.Space) -> tuple[Fields, str | None]:
    """For observations as a dictionary; where they are one array, also the key under which it stands there."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return Fields(space, "observation", top=True), None
    image = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)
    single = "pixels" if image else "observation"
    return Fields(spaces.Dict({single: space}), "observation", top=True), single


def codec_of(space: gymnasium.Space, name: str) -> Array | Classes | Fields:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return Fields(space, name)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return Classes(space)
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return Array(space)
    told = f"{name!r} is a {type(space).__name__} space, which an agent cannot read: wrap the environment so that it"
    raise TypeError(f"{told} gives arrays of a fixed shape (gymnasium.ObservationWrapper or ActionWrapper).")
