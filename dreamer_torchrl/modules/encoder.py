"""Observations of any keys to one vector: vectors through an MLP, images through convolutions."""

from collections.abc import Callable
from itertools import pairwise

import torch
from tensordict import NestedKey
from torch import Tensor, nn

from dreamer_torchrl.modules.distributions import symlog
from dreamer_torchrl.modules.images import ImageStage, PatchStage
from dreamer_torchrl.modules.layers import MLP, Layers
from dreamer_torchrl.modules.spaces import Continuous, Image, Spaces, key_name
from dreamer_torchrl.modules.tensordict_module import AsTensorDictModule

STAGES = (2, 3, 4, 4)  # channels of each image stage, in multiples of `depth`; each stage halves the sides


class Encoder(nn.Module, AsTensorDictModule):
    """Encode all observation keys into ``encoded_latents``.

    Args:
        units, layers: of the vector MLP.
        depth: channels of the convolutions are multiples of it.
        patch: side of the patches of pixels that one linear layer encodes in place of the first convolutions; 1: none.
        dtype: precision in which everything from here on computes (the weights' own, if left out).
        symlog: squash vectors of floats (not so in DreamerV1 and V2).
        kind: layers of the vector MLP.
        image: makes the network of images from (height, width, channels); it has ``out_features``.

    Example:
        >>> encoder = Encoder({"observation": Continuous((3,)), "pixels": Image(64, 64, 3)}, units=8, depth=2)
        >>> image = torch.zeros(5, 64, 64, 3, dtype=torch.uint8)
        >>> encoder(torch.ones(5, 3), image).shape, encoder.out_features
        (torch.Size([5, 136]), 136)
    """

    out_keys = ("encoded_latents",)

    def __init__(
        self,
        spaces: Spaces,
        units: int = 64,
        depth: int = 4,
        layers: int = 3,
        dtype: torch.dtype | None = None,
        patch: int = 1,
        *,
        symlog: bool = True,
        kind: Layers = Layers(),  # noqa: B008
        image: Callable[[tuple[int, int, int]], nn.Module] | None = None,
    ):
        super().__init__()
        if not spaces:
            raise ValueError("The encoder got no observation key: give it at least one vector or image.")
        self.spaces, self.in_keys, self.dtype, self.symlog = dict(spaces), list(spaces), dtype, symlog
        self.vector_keys, self.image_keys = split_keys(spaces)
        self.out_features = 0
        if self.vector_keys:
            self.vector = MLP(sum(spaces[key].size for key in self.vector_keys), units, layers, kind.hidden)
            self.out_features += units
        if self.image_keys:
            sides = stacked_sides(spaces, self.image_keys)
            self.image = ImageEncoder(sides, depth, patch) if image is None else image(sides)
            self.out_features += self.image.out_features

    def forward(self, *observations: Tensor) -> Tensor:
        """Observations in the order of ``in_keys``, each ``[..., *shape]``, to ``[..., E]``."""
        values = dict(zip(self.in_keys, observations, strict=True))
        dtype = self.dtype or next(self.parameters()).dtype
        parts = []
        if self.vector_keys:
            flat = {key: self.spaces[key].flatten(values[key]) for key in self.vector_keys}
            for key in flat if self.symlog else ():
                flat[key] = symlog(flat[key]) if isinstance(self.spaces[key], Continuous) else flat[key]
            parts.append(self.vector(torch.cat(list(flat.values()), -1).to(dtype)))
        if self.image_keys:
            images = [self.spaces[key].to_channels_last(values[key]) for key in self.image_keys]
            stacked = images[0] if len(images) == 1 else torch.cat(images, -1)  # [..., h, w, c], still bytes
            pixels = stacked.reshape(-1, *stacked.shape[-3:]).to(dtype)  # [N, h, w, c]
            parts.append(self.image(pixels.div(255).sub_(0.5)).reshape(*stacked.shape[:-3], -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class ImageEncoder(nn.Sequential):
    """Pixels less 0.5, ``[N, height, width, channels]``, to ``[N, height / 16, width / 16, C]``."""

    def __init__(self, sides: tuple[int, int, int], depth: int, patch: int = 1):
        height, width, channels = sides
        sizes = stage_channels(depth, patch)
        first = ImageStage(channels, sizes[0]) if patch == 1 else PatchStage(channels, sizes[0], patch)
        super().__init__(first, *[ImageStage(a, b) for a, b in pairwise(sizes)])
        self.out_features = (height // 16) * (width // 16) * sizes[-1]


def stage_channels(depth: int, patch: int = 1) -> list[int]:
    """Channels of the image stages, of which the first one makes patches."""
    if patch not in (1, 2, 4, 8):
        raise ValueError(f"patch={patch} is impossible: give 1, 2, 4 or 8.")
    return [depth * stage for stage in STAGES[max(0, patch.bit_length() - 2) :]]


def split_keys(spaces: Spaces) -> tuple[list[NestedKey], list[NestedKey]]:
    images = [key for key, space in spaces.items() if isinstance(space, Image)]
    return [key for key in spaces if key not in images], images


def stacked_sides(spaces: Spaces, keys: list[NestedKey]) -> tuple[int, int, int]:
    """Height, width and total channels of all image keys, after checking that they can be stacked and halved."""
    for key in keys:
        for side, size in (("height", spaces[key].height), ("width", spaces[key].width)):
            if size % 16 or not 3 <= size // 16 <= 16:
                remedy = "four halvings must end between 3 and 16, so resize it to a multiple of 16 between 48 and 256."
                raise ValueError(f"Image {key_name(key)!r} has {side} {size}: {remedy}")
    sides = {(spaces[key].height, spaces[key].width) for key in keys}
    if len(sides) > 1:
        listed = ", ".join(f"{key_name(key)!r} {spaces[key].height} x {spaces[key].width}" for key in keys)
        raise ValueError(f"Images of different sides cannot be stacked ({listed}): resize them to one size.")
    return *sides.pop(), sum(spaces[key].channels for key in keys)
