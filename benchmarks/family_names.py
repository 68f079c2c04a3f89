"""Which array of the official Dreamer V1 and V2 codes is which parameter of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.interop.official_names import Link
from dreamer_torchrl.learners.plan2explore import Plan2Explore
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.cores import PlainGRU
from dreamer_torchrl.modules.layers import DenseLayer
from dreamer_torchrl.modules.spaces import Discrete, Spaces

AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}  # of our vectors, matrices and (transposed) convolutions, there
Orders = Mapping[int, Sequence[int]]  # of an array's axis: where the official array has which entry of ours


def split_arrays(arrays: Mapping[str, np.ndarray], discrete: bool) -> dict[str, np.ndarray]:
    """Arrays that are two parameters of ours, as two: V1's biases of the GRU, and means and deviations of its actor."""
    split = dict(arrays)
    if "rssm/gru/recurrent_kernel" in arrays:
        split["rssm/gru/bias0"], split["rssm/gru/bias1"] = split.pop("rssm/gru/bias")
    for leaf in ("kernel", "bias"):
        if not discrete and (whole := split.get(f"actor/hout/{leaf}")) is not None:
            split[f"actor/hout/mean/{leaf}"], split[f"actor/hout/std/{leaf}"] = np.split(whole, 2, -1)
    return split


class Names:
    """Pairs of official arrays and parameters of an agent, and of its exploring behaviour if there is one.

    Args:
        keys: official names of observations in the order of the environment, which is that of the official layers.
        first: whether the names are those of V1.
    """

    def __init__(self, agent: Agent, keys: Sequence[str], first: bool, explorer: Plan2Explore | None = None):
        self.agent, self.keys, self.first, self.explorer = agent, keys, first, explorer
        belief, features = agent.rssm.belief_size, agent.rssm.feature_size
        self.features = (*range(belief, features), *range(belief))  # the official ones start with the state

    def links(self) -> list[Link]:
        agent, explorer = self.agent, self.explorer
        found = [*self._encoder(), *self._rssm(), *self._decoder()]
        found += self._head("reward", agent.reward)
        found += self._head("pcont" if self.first else "discount", agent.continuation)
        found += self._behaviour("", agent.actor, agent.value)
        if explorer is not None:
            for i, head in enumerate(explorer.ensemble):
                found += self._head(f"expl/disag{i}", head)
            found += self._behaviour("expl/", explorer.explorer, explorer.critic)
        return found

    def _encoder(self) -> Iterator[Link]:
        encoder = self.agent.encoder
        if encoder.image_keys:
            order = self._order(encoder.image_keys, lambda space: space.channels)
            for i, layer in enumerate(encoder.image.convolutions):
                name = f"enc/h{i + 1}" if self.first else f"enc/conv{i}"
                yield from _layer(name, layer, {2: order} if i == 0 else {})
        if encoder.vector_keys:
            order = self._order(encoder.vector_keys, lambda space: space.size)
            yield from _hidden("enc/", encoder.vector, "dense{}", "densenorm{}", order)

    def _rssm(self) -> Iterator[Link]:
        rssm, core = self.agent.rssm, self.agent.rssm.core
        names = ("img1", "img2", "img3", "obs1", "obs2")
        if not self.first:
            names = ("img_in", "img_out_0", "img_dist_0", "obs_out", "obs_dist")
        inputs, prior, prior_out, posterior, posterior_out = (f"rssm/{name}" for name in names)
        yield from _hidden("", (core.inputs,), inputs, f"{inputs}_norm")
        if isinstance(core, PlainGRU):
            size = core.belief_size
            order = (*range(size, 2 * size), *range(size), *range(2 * size, 3 * size))  # official: update, reset
            yield Link("rssm/gru/kernel", core.gru.weight_ih, (1, 0), order, 1)
            yield Link("rssm/gru/recurrent_kernel", core.gru.weight_hh, (1, 0), order, 1)
            yield Link("rssm/gru/bias0", core.gru.bias_ih, (0,), order)
            yield Link("rssm/gru/bias1", core.gru.bias_hh, (0,), order)
        else:
            yield from _layer("rssm/gru", core.gates)
            yield from _norm("rssm/gru/norm", core.norm)
        yield from _hidden("", rssm.prior, prior, prior.replace("_0", "_norm_0"))
        yield from _layer(prior_out, rssm.prior_logits)
        encoder, belief = self.agent.encoder, rssm.belief_size
        units = encoder.image.out_features if encoder.image_keys else 0  # official embeddings start with the image
        vector = encoder.out_features - units
        order = (*range(belief + vector), *range(belief + vector, belief + encoder.out_features))
        if units and vector:
            order = (*range(belief), *order[belief + vector :], *order[belief : belief + vector])
        yield from _hidden("", (rssm.posterior,), posterior, f"{posterior}_norm", order)
        yield from _layer(posterior_out, rssm.posterior_logits)

    def _decoder(self) -> Iterator[Link]:
        decoder = self.agent.decoder
        if decoder.image_keys:
            yield from _layer("dec/h1" if self.first else "dec/convin", decoder.image.linear, {0: self.features})
            order = self._order(decoder.image_keys, lambda space: space.channels)
            for i, layer in enumerate(decoder.image.convolutions):
                last = layer is decoder.image.convolutions[-1]
                name = f"dec/h{i + 2}" if self.first else f"dec/conv{i}"
                yield from _layer(name, layer, {2: order} if last else {}, order if last else ())
        if decoder.vector_keys:
            yield from _hidden("dec/", decoder.vector, "dense{}", "densenorm{}", self.features)
            for key, head in zip(decoder.vector_keys, decoder.vector_heads, strict=True):
                yield from _layer(f"dec/dense_{key}/out", head)

    def _behaviour(self, prefix: str, actor: Actor, critic: nn.Module) -> Iterator[Link]:
        yield from self._mlp(f"{prefix}actor", actor.mlp)
        (space,), (heads,) = actor.space.spaces.values(), actor.heads
        places = {"logits": "out/out", "mean": "out/out", "stddev": "out/std"}
        if self.first:
            places = {"logits": "hout", "mean": "hout/mean", "stddev": "hout/std"}
        assert isinstance(space, Discrete) == ("logits" in heads)
        for kind, head in heads.items():
            yield from _layer(f"{prefix}actor/{places[kind]}", head)
        yield from self._head(f"{prefix}value" if self.first else f"{prefix}critic", critic)

    def _head(self, name: str, head: nn.Module) -> Iterator[Link]:
        if not list(head.parameters()):  # nothing ends an episode
            return
        yield from self._mlp(name, head.mlp)
        yield from _layer(f"{name}/hout" if self.first else f"{name}/out/out", head.logits)

    def _mlp(self, name: str, layers: Iterable[DenseLayer]) -> Iterator[Link]:
        rows = next(iter(layers)).linear.in_features
        order = (*self.features, *range(len(self.features), rows))  # an ensemble reads an action, too
        yield from _hidden(f"{name}/", layers, "h{}" if self.first else "dense{}", "norm{}", order)

    def _order(self, keys: Sequence[str], size: Any) -> tuple[int, ...]:
        """Of all keys' entries, in the environment's order."""
        spaces: Spaces = self.agent.spaces
        places, start = {}, 0
        for key in keys:
            places[key] = range(start, start := start + size(spaces[key]))
        return tuple(place for key in self.keys if key in places for place in places[key])


def _hidden(
    prefix: str, layers: Iterable[DenseLayer], linear: str, norm: str, order: Sequence[int] = ()
) -> Iterator[Link]:
    for i, layer in enumerate(layers):
        yield from _layer(prefix + linear.format(i), layer.linear, {0: order} if i == 0 else {})
        if not isinstance(layer.norm, nn.Identity):
            yield from _norm(prefix + norm.format(i), layer.norm)


def _layer(name: str, layer: nn.Module, orders: Orders = {}, bias: Sequence[int] = ()) -> Iterator[Link]:  # noqa: B006
    ((along, order),) = orders.items() if orders else ((0, ()),)
    yield Link(f"{name}/kernel", layer.weight, AXES[layer.weight.ndim], tuple(order), along)
    yield Link(f"{name}/bias", layer.bias, (0,), tuple(bias))


def _norm(name: str, norm: nn.LayerNorm) -> Iterator[Link]:
    yield Link(f"{name}/gamma", norm.weight, (0,))
    yield Link(f"{name}/beta", norm.bias, (0,))
