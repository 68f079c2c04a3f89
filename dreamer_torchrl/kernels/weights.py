"""Weights of modules as the kernels take them."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamer_torchrl.kernels import structures as c
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.rssm import RSSM
from dreamer_torchrl.modules.split import CastLayer


def sizes_of(rssm: RSSM) -> c.Sizes:
    """The numbers that a loop needs."""
    return c.Sizes(rssm.belief_size, rssm.core.hidden, rssm.stochastic, rssm.classes, rssm.core.blocks)


def with_cast_scale(layer: CastLayer) -> CastLayer:
    """The layer with its scale in the precision of its weights, too."""
    return layer._replace(scale=layer.scale.to(layer.weight.dtype))


def layer_of(layer: CastLayer) -> c.Layer:
    """A hidden layer; the tensors must outlive what is made of it."""
    structure = c.Layer(c.Source.of(layer.weight.t()))
    c.fill(structure, {"bias": layer.bias, "scale": layer.scale})
    return structure


def actor_fits(actor: Actor) -> bool:
    """Whether the kernels have room for so many layers, and for so many parts of an action."""
    return len(actor.mlp) <= c.MOST_LAYERS and 2 * max(len(actor.heads), len(actor.space.parts)) <= c.MOST_HEADS


def actor_weights(actor: Actor, dtype: torch.dtype) -> tuple[c.ActorWeights, list[Tensor]]:
    """The actor and what it draws, and the tensors that must outlive that."""
    layers = [with_cast_scale(CastLayer.of(layer, dtype)) for layer in actor.mlp]
    heads = [(head.weight.to(dtype), head.bias.to(dtype)) for part in actor.heads for head in part.values()]
    parts, options = actor.space.parts, actor.distribution_options
    weights = c.ActorWeights(
        layers=len(layers),
        heads=len(heads),
        parts=len(parts),
        action=actor.space.size,
        noise=actor.space.noise_size,
        unimix=options["unimix"],
        smallest_deviation=options["min_std"],
        largest_deviation=options["max_std"],
    )
    for index, layer in enumerate(layers):
        weights.layer[index] = layer_of(layer)
    for index, (weight, bias) in enumerate(heads):
        weights.head[index], weights.head_bias[index] = c.Source.of(weight.t()), bias.data_ptr()
    for index, (count, classes) in enumerate(parts):
        weights.part_count[index], weights.part_classes[index] = count, classes
    return weights, [tensor for group in (*layers, *heads) for tensor in group]
