"""Weights of modules as the kernels' structures."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dreamer_torchrl.kernels.structures import LIMITS, STRUCTURES, address, made, source
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.distributions import BoundedNormal
from dreamer_torchrl.modules.layers import HiddenLayer
from dreamer_torchrl.modules.rssm import RSSM
from dreamer_torchrl.modules.split import CastLayer


def sizes_of(rssm: RSSM) -> ctypes.Structure:
    return STRUCTURES["Sizes"](rssm.belief_size, rssm.core.hidden, rssm.stochastic, rssm.classes, rssm.core.blocks)


def layer_of(weight: Tensor, bias: Tensor, scale: Tensor | None = None, shared: bool = False) -> ctypes.Structure:
    """`LayerWeights` of ``[out, in]``, ``[out]`` and ``[out]``, in the weight's precision."""
    dtype = weight.dtype
    scale = scale if scale is None else scale.to(dtype)
    at = None if scale is None else address("scale", scale, dtype)
    layer = STRUCTURES["LayerWeights"](source(weight.mT, dtype, shared), address("bias", bias, dtype), at)
    layer.kept_alive = weight, bias, scale
    return layer


def network_of(*layers: Sequence[Tensor]) -> ctypes.Structure:
    """`NetworkWeights` of weight, bias and scale of each layer."""
    each = tuple(layer_of(*layer) for layer in layers)
    network = STRUCTURES["NetworkWeights"](len(layers), each)
    network.kept_alive = each
    return network


def core_of(belief_in: Sequence[Tensor], state_in: Sequence[Tensor], *others: Any) -> ctypes.Structure:
    """`CoreWeights`; the weights come in the order of `StepWeights`."""
    names = ("mix_own", "mix_recurrent", "mix_scale", "gates", "gates_bias")
    layers = {"belief_in": layer_of(*belief_in), "state_in": layer_of(*state_in)}
    return made("CoreWeights", belief_in[0].dtype, **layers, **dict(zip(names, others, strict=True)))


def actor_fits(actor: Actor) -> bool:
    """Whether the kernels support so many layers and parts of an action, and its distribution."""
    heads = 2 * max(len(actor.heads), len(actor.space.parts))
    known = type(actor) is Actor and all(isinstance(layer, HiddenLayer) for layer in actor.mlp)
    fitting = known and len(actor.mlp) <= LIMITS["MOST_LAYERS"] and heads <= LIMITS["MOST_HEADS"]
    return fitting and _deviations(actor) is not None


def _deviations(actor: Actor) -> tuple[float, float] | None:
    """The least and the largest deviation of floats; None of a distribution that the kernels do not know."""
    if all(classes for _, classes in actor.space.parts):
        return 0.0, 0.0  # there are no floats
    draw = actor.distribution_options["continuous"](*torch.zeros(2, 1))
    return draw.limits if type(draw) is BoundedNormal else None


def actor_of(actor: Actor, dtype: torch.dtype) -> ctypes.Structure:
    heads = [layer_of(head.weight.to(dtype), head.bias.to(dtype)) for part in actor.heads for head in part.values()]
    parts, (least, largest) = actor.space.parts, _deviations(actor)
    return made(
        "ActorWeights",
        dtype,
        heads=len(heads),
        parts=len(parts),
        action=actor.space.size,
        noise=actor.space.noise_size,
        unimix=actor.distribution_options["unimix"],
        smallest_deviation=least,
        largest_deviation=largest,
        network=network_of(*(CastLayer.of(layer, dtype) for layer in actor.mlp)),
        head=heads,
        part_count=[count for count, _ in parts],
        part_classes=[classes for _, classes in parts],
    )
