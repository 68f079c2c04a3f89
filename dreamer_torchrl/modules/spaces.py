"""What one key of an observation or action holds: floats, classes or an image, read off its TorchRL spec."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from tensordict import NestedKey, unravel_key
from torch import Tensor
from torch.nn import functional as F
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, TensorSpec

MOST_CLASSES = 1024  # whole numbers with a wider range are counts, not classes


@dataclass(frozen=True)
class Continuous:
    """Floats of any shape; ``bounds`` are the different pairs (low, high) among them."""

    shape: tuple[int, ...]
    bounds: tuple[tuple[float, float], ...] = ()
    dtype: torch.dtype = torch.float32

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        return ((self.size, 0),)

    def flatten(self, value: Tensor) -> Tensor:
        """Values ``[..., *shape]`` as floats ``[..., size]``; `restore` is the reverse."""
        flat = _merge(value, self.shape)
        return flat if flat.is_floating_point() else flat.float()

    def restore(self, flat: Tensor) -> Tensor:
        return flat.reshape(flat.shape[:-1] + self.shape).to(self.dtype)

    def random(self, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return 2 * torch.rand(*batch, *self.shape, generator=generator, dtype=self.dtype) - 1


@dataclass(frozen=True)
class Discrete:
    """Variables of ``classes[i]`` values each, as class indices or one-hot vectors; the flat form is always one-hot."""

    classes: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.int64
    one_hot: bool = False
    low: int = 0

    @property
    def size(self) -> int:
        return sum(self.classes)

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """Pairs (variables, classes) of those that share one distribution: all if alike, else each (0: no classes)."""
        if len(set(self.classes)) == 1:
            return ((len(self.classes), self.classes[0]),)
        return tuple((1, classes) for classes in self.classes)

    def flatten(self, value: Tensor) -> Tensor:
        """Values ``[..., *shape]`` as one-hot floats ``[..., size]``; `restore` is the reverse."""
        flat = _merge(value, self.shape)
        if self.one_hot:
            return flat if flat.is_floating_point() else flat.float()
        return self._one_hot(flat.long() - self.low)

    def restore(self, flat: Tensor) -> Tensor:
        if not self.one_hot:
            flat = torch.stack([part.argmax(-1) for part in flat.split(list(self.classes), -1)], -1) + self.low
        return flat.reshape(flat.shape[:-1] + self.shape).to(self.dtype)

    def random(self, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
        draws = torch.stack([torch.randint(n, batch, generator=generator) for n in self.classes], -1)
        return self.restore(self._one_hot(draws))

    def _one_hot(self, indices: Tensor) -> Tensor:
        if len(self.groups) == 1:
            return F.one_hot(indices, self.classes[0]).flatten(-2).float()
        parts = [F.one_hot(index, n) for index, n in zip(indices.unbind(-1), self.classes, strict=True)]
        return torch.cat(parts, -1).float()


@dataclass(frozen=True)
class Image:
    """A ``uint8`` picture; the smaller of its first and last side is the channel axis."""

    height: int
    width: int
    channels: int
    channels_first: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        sides = (self.height, self.width)
        return (self.channels, *sides) if self.channels_first else (*sides, self.channels)

    def to_channels_last(self, value: Tensor) -> Tensor:
        return value.movedim(-3, -1) if self.channels_first else value

    def from_channels_last(self, value: Tensor) -> Tensor:
        return value.movedim(-1, -3) if self.channels_first else value

    def random(self, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randint(256, (*batch, *self.shape), generator=generator, dtype=torch.uint8)


Space = Continuous | Discrete | Image
Spaces = Mapping[NestedKey, Space]


def space_from_spec(spec: TensorSpec, name: NestedKey = "value", batch_dims: int = 0) -> Space:
    spec = spec[(0,) * batch_dims] if batch_dims else spec  # not the shape alone: a MultiCategorical's nvec too
    shape, dtype = tuple(spec.shape), spec.dtype
    if isinstance(spec, MultiOneHot):  # before OneHot and Categorical, of which the Multi specs are subclasses
        return Discrete(tuple(int(item.n) for item in spec.space) * prod(shape[:-1]), shape, dtype, one_hot=True)
    if isinstance(spec, OneHot):
        return Discrete((shape[-1],) * prod(shape[:-1]), shape, dtype, one_hot=True)
    if isinstance(spec, MultiCategorical):
        return Discrete(tuple(int(n) for n in spec.nvec.reshape(-1)), shape, dtype)
    if isinstance(spec, Categorical):
        return Discrete((int(spec.space.n),) * prod(shape), shape, dtype)
    if isinstance(spec, Binary) or dtype is torch.bool:
        return Discrete((2,) * prod(shape), shape, dtype)
    ends = torch.stack([spec.space.low, spec.space.high], -1).view(-1, 2).tolist() if isinstance(spec, Bounded) else []
    bounds = tuple(sorted({(low, high) for low, high in ends}))
    if dtype.is_floating_point:
        return Continuous(shape, bounds, dtype)
    if dtype is torch.uint8 and len(shape) == 3:
        first = shape[0] < shape[-1]
        return Image(*(shape[1:] + shape[:1] if first else shape), channels_first=first)
    if dtype is torch.uint8 and len(shape) == 2:
        remedy = "an image needs a channel axis ([height, width, 1]), anything else should be cast to float32."
        raise ValueError(f"{name!r} is a uint8 array of shape {list(shape)}: {remedy}")
    if len(bounds) != 1 or bounds[0][1] - bounds[0][0] >= MOST_CLASSES:
        found = f"{type(spec).__name__} of dtype {dtype} and no common bounds that hold at most {MOST_CLASSES} classes"
        remedy = "give it a Categorical or OneHot spec if it is a class, or cast it to float32 if it is a number."
        raise ValueError(f"{name!r} has unsupported spec {found}: {remedy}")
    low, high = map(int, bounds[0])
    return Discrete((high - low + 1,) * prod(shape), shape, dtype, low=low)


def spaces_from_spec(
    spec: TensorSpec, name: NestedKey, exclude: tuple[NestedKey, ...] = (), batch: tuple[int, ...] = ()
) -> dict[NestedKey, Space]:
    """Read off each leaf of a spec, by sorted key; one leaf, with ``batch`` in front or not, gets the key ``name``."""
    if not isinstance(spec, Composite):
        # Floats of just the batch's shape are taken for one environment's own: an action [3] beside 3 environments.
        own = spec.ndim > len(batch) or isinstance(spec, Categorical)
        batched = bool(batch) and tuple(spec.shape[: len(batch)]) == batch and own
        return {name: space_from_spec(spec, name, len(batch) if batched else 0)}
    leaves = {unravel_key(key): leaf for key, leaf in spec.items(True, True) if unravel_key(key) not in exclude}
    return {key: space_from_spec(leaves[key], key, len(spec.shape)) for key in sorted(leaves, key=key_name)}


def key_name(key: NestedKey) -> str:
    """Write a nested key as one string, which is how parameters, metrics and official checkpoints name it."""
    return key if isinstance(key, str) else "/".join(key)


def by_variable(flat: Tensor, groups: Iterable[tuple[int, int]]) -> list[Tensor]:
    """Split ``[..., sum of classes]`` into ``[..., variables, classes]`` of each group."""
    groups = list(groups)
    chunks = flat.split([variables * classes for variables, classes in groups], -1)
    return [chunk.unflatten(-1, group) for chunk, group in zip(chunks, groups, strict=True)]


def scale_action(action: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clip to -1 and 1, then stretch to exactly ``low`` and ``high``."""
    return torch.lerp(low, high, (action.clamp(-1, 1) + 1) / 2)


def _merge(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    batch = value.shape[: value.ndim - len(shape)]
    if tuple(value.shape[len(batch) :]) != shape:
        raise ValueError(f"A value of shape {list(value.shape)} does not end in {list(shape)}, as its spec says.")
    return value.reshape(*batch, prod(shape))
