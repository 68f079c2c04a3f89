"""Latents back to observations, and what a wrong reconstruction costs."""

import math
from collections.abc import Callable
from itertools import pairwise
from math import prod

import torch
from tensordict import NestedKey, unravel_key
from torch import Tensor, nn

from dreamer_torchrl.modules.distributions import OneHotDist, symexp, symlog
from dreamer_torchrl.modules.encoder import split_keys, stacked_sides, stage_channels
from dreamer_torchrl.modules.images import PatchPixels, PixelError, PixelStage, UpsampleStage
from dreamer_torchrl.modules.layers import MLP, BlockLinear, HiddenLayer, Layers, Linear, NormSilu, full_precision
from dreamer_torchrl.modules.spaces import Continuous, Image, Space, Spaces
from dreamer_torchrl.modules.tensordict_module import AsTensorDictModule

BLOCKS = 8


class Decoder(nn.Module, AsTensorDictModule):
    """Predict all observation keys from ``features``: symlog of floats, logits of classes, pixels in [0, 1].

    Args:
        units, depth, layers, patch, kind: as in the `Encoder`.
        symlog: whether vectors of floats are predicted squashed; ``normal``: whether their cost and that of pixels is
            the negative log-likelihood of a normal of deviation 1 (DreamerV1 and V2) rather than the squared error.
        image: makes the network of images from the sizes of belief and state, and (height, width, channels).

    Example:
        >>> decoder = Decoder({"observation": Continuous((3,))}, belief_size=16, state_size=4, units=8)
        >>> decoder(torch.zeros(5, 20)).shape, decoder.out_keys
        (torch.Size([5, 3]), [('reconstruction', 'observation')])
    """

    in_keys = ("features",)

    def __init__(
        self,
        spaces: Spaces,
        belief_size: int,
        state_size: int,
        units: int = 64,
        depth: int = 4,
        layers: int = 3,
        patch: int = 1,
        *,
        symlog: bool = True,
        normal: bool = False,
        kind: Layers = Layers(),  # noqa: B008
        image: Callable[[int, int, tuple[int, int, int]], nn.Module] | None = None,
    ):
        super().__init__()
        self.spaces, self.symlog = dict(spaces), symlog
        self.out_keys = [reconstruction_key(key) for key in spaces]
        self.vector_keys, self.image_keys = split_keys(spaces)
        if self.vector_keys:
            self.vector = MLP(belief_size + state_size, units, layers, kind.hidden)
        # A list: a ModuleDict refuses keys like "items" or "joint.angle".
        self.vector_heads = nn.ModuleList(kind.linear(units, spaces[key].size, 1.0) for key in self.vector_keys)
        if self.image_keys:
            sides = belief_size, state_size, stacked_sides(spaces, self.image_keys)
            self.image = ImageDecoder(*sides, units, depth, patch) if image is None else image(*sides)
        self.cost = ReconstructionCost(symlog, normal)

    def forward(self, features: Tensor) -> Tensor | tuple[Tensor, ...]:
        predictions = {}
        hidden = self.vector(features) if self.vector_keys else None
        for key, head in zip(self.vector_keys, self.vector_heads, strict=True):
            predictions[key] = full_precision(head(hidden))
        if self.image_keys:
            pixels = self.image(features.reshape(-1, features.shape[-1]))  # [N, h, w, c]
            pixels = full_precision(pixels.reshape(*features.shape[:-1], *pixels.shape[1:]))
            channels = [self.spaces[key].channels for key in self.image_keys]
            images = pixels.split(channels, -1) if len(channels) > 1 else [pixels]  # of one, a split would only copy
            for key, image in zip(self.image_keys, images, strict=True):
                predictions[key] = self.spaces[key].from_channels_last(image)
        ordered = tuple(predictions[key] for key in self.spaces)
        return ordered[0] if len(ordered) == 1 else ordered


class NoDecoder(nn.Module, AsTensorDictModule):
    """Predict no observation: the latents are learned by another loss, such as `BarlowTerm`.

    Example:
        >>> decoder = NoDecoder({"observation": Continuous((3,))}, belief_size=16, state_size=4)
        >>> decoder(torch.zeros(5, 20)), decoder.out_keys
        ((), ())
    """

    in_keys, out_keys = ("features",), ()
    symlog, cost = False, None

    def __init__(self, spaces: Spaces, belief_size: int, state_size: int):
        super().__init__()

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return ()


class ImageDecoder(nn.Module):
    """Features to pixels: two maps to the smallest picture, added, then four times upsample and convolve."""

    def __init__(
        self, belief_size: int, state_size: int, sides: tuple[int, int, int], units: int, depth: int, patch: int = 1
    ):
        super().__init__()
        height, width, channels = sides
        sizes = stage_channels(depth, patch)  # of the encoder's stages, walked backwards here
        if sizes[-1] % BLOCKS:
            found = f"{sizes[-1]} channels, no multiple of {BLOCKS}"
            raise ValueError(f"depth={depth} gives {found}: choose an even depth.")
        self.belief_size = belief_size
        self.smallest = (height // 16, width // 16, sizes[-1])
        self.from_belief = BlockLinear(belief_size, prod(self.smallest), BLOCKS)
        self.from_state = nn.Sequential(HiddenLayer(state_size, 2 * units), Linear(2 * units, prod(self.smallest)))
        self.norm = NormSilu(sizes[-1])
        self.stages = nn.Sequential(*[UpsampleStage(a, b) for a, b in pairwise(reversed(sizes))])
        self.out = PixelStage(sizes[0], channels) if patch == 1 else PatchPixels(sizes[0], channels, patch)

    def forward(self, features: Tensor) -> Tensor:
        belief, state = features[:, : self.belief_size], features[:, self.belief_size :]
        height, width, channels = self.smallest
        blocks = self.from_belief(belief).reshape(-1, BLOCKS, height, width, channels // BLOCKS)
        x = blocks.permute(0, 2, 3, 1, 4).reshape(-1, *self.smallest)  # each block fills its own channels
        x = self.norm(x + self.from_state(state).reshape(-1, *self.smallest))
        return self.out(self.stages(x))


def reconstruction_key(key: NestedKey) -> NestedKey:
    return unravel_key(("reconstruction", key))


class ReconstructionCost(nn.Module):
    """Squared error of pixels or floats, or cross entropy of classes, summed over the key's own axes.

    With ``normal`` errors are negative log-likelihoods of a normal of deviation 1; with ``symlog`` floats are squashed.
    """

    def __init__(self, symlog: bool = True, normal: bool = False):
        super().__init__()
        self.symlog, self.normal, self.pixel_error = symlog, normal, PixelError()

    def forward(self, space: Space, prediction: Tensor, observation: Tensor) -> Tensor:
        if isinstance(space, Image):
            return self._cost(self.pixel_error(prediction, observation), prod(space.shape))
        flat = space.flatten(observation)
        if isinstance(space, Continuous):
            target = symlog(flat) if self.symlog else flat
            return self._cost((prediction - target.to(prediction.dtype)).square().sum(-1), space.size)
        pairs = zip(*(x.split(list(space.classes), -1) for x in (prediction, flat)), strict=True)
        return -sum((logits.log_softmax(-1) * one_hot).sum(-1) for logits, one_hot in pairs)

    def _cost(self, error: Tensor, size: int) -> Tensor:
        return 0.5 * (error + size * math.log(2 * math.pi)) if self.normal else error


def observation_from(space: Space, prediction: Tensor, squashed: bool = True) -> Tensor:
    """Turn a prediction into the observation that it stands for: pixels in [0, 1], floats, most likely classes."""
    if isinstance(space, Image):
        return prediction.clamp(0, 1)
    if isinstance(space, Continuous):
        return space.restore(symexp(prediction) if squashed else prediction)
    modes = [OneHotDist(part.unsqueeze(-2)).mode.squeeze(-2) for part in prediction.split(list(space.classes), -1)]
    return space.restore(torch.cat(modes, -1))
