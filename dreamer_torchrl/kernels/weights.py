"""Weights of modules as the kernels take them."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamer_torchrl.kernels import structures as c
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.rssm import RSSM
from dreamer_torchrl.modules.split import CastLayer, StepWeights


def sizes_of(rssm: RSSM) -> c.Sizes:
    """The numbers that a loop needs."""
    return c.Sizes(rssm.belief_size, rssm.core.hidden, rssm.stochastic, rssm.classes, rssm.core.blocks)


def layer_of(layer: CastLayer) -> c.LayerWeights:
    """A hidden layer; the tensors must outlive what is made of it."""
    return c.LayerWeights.of(*layer, layer.weight.dtype)


def core_of(w: StepWeights, shared: bool = False) -> c.CoreWeights:
    """The recurrence; with ``shared``, ``mix_recurrent`` is one matrix per block, all of which multiply the same."""
    dtype = w.gates.dtype
    core = c.CoreWeights(
        *(c.Source.of(matrix, dtype) for matrix in (w.belief_in.t(), w.state_in.t(), w.mix_own)),
        c.Source.of(w.mix_recurrent, dtype, shared),
        c.Source.of(w.gates, dtype),
    )
    names = ("belief_bias", "belief_scale", "state_bias", "state_scale", "mix_scale", "gates_bias")
    c.fill(core, dtype, {name: getattr(w, name) for name in names})
    return core


def actor_fits(actor: Actor) -> bool:
    """Whether the kernels support so many layers and parts of an action."""
    room = len(actor.mlp) <= c.MOST_LAYERS and 2 * max(len(actor.heads), len(actor.space.parts)) <= c.MOST_HEADS
    return type(actor) is Actor and room


def actor_weights(actor: Actor, dtype: torch.dtype) -> tuple[c.ActorWeights, list[Tensor]]:
    """The actor and what it draws, and the tensors that must outlive that."""
    layers = [cast_scale(CastLayer.of(layer, dtype)) for layer in actor.mlp]
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
        weights.head[index] = c.Source.of(weight.t(), dtype)
        weights.head_bias[index] = c.address("head bias", bias, dtype)
    for index, (count, classes) in enumerate(parts):
        weights.part_count[index], weights.part_classes[index] = count, classes
    return weights, [tensor for group in (*layers, *heads) for tensor in group]


def cast_scale(layer: CastLayer) -> CastLayer:
    """The layer with its scale in the precision of its weights, too."""
    return layer._replace(scale=layer.scale.to(layer.weight.dtype))
