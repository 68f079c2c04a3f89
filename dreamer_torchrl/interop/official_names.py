"""Which official array is which parameter of ours, and how one is laid out as the other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tensordict import NestedKey
from torch import Tensor, nn

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.keys import NOT_OBSERVED, WRITTEN
from dreamer_torchrl.modules.layers import HiddenLayer, NormSilu
from dreamer_torchrl.modules.spaces import Continuous, key_name

# Order of the axes of our weight, linear, block-linear or convolution, in the official kernel.
_TO_OFFICIAL = {2: (1, 0), 3: (0, 1, 2), 4: (2, 3, 1, 0)}


@dataclass(frozen=True)
class Link:
    """One parameter and the official name and layout of it; optimizer moments have the same layout.

    ``order`` says where the official array has which entry of ours along an axis: its decoder reads (state, belief),
    ours (belief, state), and it writes images in the order of the environment, ours in that of the alphabet.
    """

    name: str
    parameter: nn.Parameter
    axes: tuple[int, ...]
    order: tuple[int, ...] = ()
    along: int = 0

    def to_official(self, value: Tensor) -> np.ndarray:
        array = value.detach().permute(self.axes).float().cpu().contiguous().numpy().copy()
        return np.take(array, self.order, self.along) if self.order else array

    def from_official(self, array: np.ndarray) -> Tensor:
        expected = tuple(self.parameter.shape[axis] for axis in self.axes)
        if tuple(array.shape) != expected:
            fault = f"{self.name!r} has shape {list(array.shape)}, but this agent needs {list(expected)}"
            raise ValueError(f"{fault}: build the agent from the specs and size that the checkpoint was trained with.")
        array = np.take(array, np.argsort(self.order), self.along) if self.order else array
        inverse = tuple(int(axis) for axis in np.argsort(self.axes))
        return torch.from_numpy(np.array(array, dtype=np.float32)).permute(inverse).contiguous()


def links(agent: Agent) -> list[Link]:
    """All trained parameters of an agent in official order of modules."""
    belief, features = agent.rssm.belief_size, agent.rssm.feature_size
    rows = {"dec/mlp/linear0": (*range(belief, features), *range(belief))}
    channels = {"dec/imgout": _channels(agent)}
    found = []
    for name, layer in _layers(agent):
        if isinstance(layer, NormSilu):
            found.append(Link(f"{name}/scale", layer.norm.weight, (0,)))
            continue
        order, along = rows.get(name, channels.get(name, ())), 0 if name in rows else -1
        found.append(Link(f"{name}/kernel", layer.weight, _TO_OFFICIAL[layer.weight.ndim], order, along))
        found.append(Link(f"{name}/bias", layer.bias, (0,), channels.get(name, ())))
    return found


def _channels(agent: Agent) -> tuple[int, ...]:
    """Of all images in the order of the environment, where ours have them."""
    places, start = {}, 0
    for key in agent.decoder.image_keys:
        places[key] = range(start, start := start + agent.spaces[key].channels)
    return tuple(channel for key in agent.image_order for channel in places[key])


def keys_of(names: Iterable[str]) -> dict[str, NestedKey]:
    """Where we keep observations with these official names.

    Where one would collide with our own, such as ``state``, all stand under ``observation``, which keeps their order.
    """
    names = list(names)
    nested = any(name in (*NOT_OBSERVED, *WRITTEN) for name in names)
    return {name: ("observation", name) if nested else name for name in names}


def official_name(key: NestedKey) -> str:
    return key_name(key).removeprefix("observation/")


def _layers(agent: Agent) -> Iterator[tuple[str, nn.Module]]:
    encoder, rssm, core, decoder = agent.encoder, agent.rssm, agent.rssm.core, agent.decoder
    if encoder.vector_keys:
        yield from _hidden("enc/", encoder.vector, "mlp", "mlp{}norm")
    for i, stage in enumerate(encoder.image if encoder.image_keys else ()):
        yield f"enc/cnn{i}", stage.conv
        yield f"enc/cnn{i}norm", stage.norm
    yield from _hidden("dyn/", (core.belief_in, core.state_in, core.action_in), "dynin", "dynin{}norm")
    yield "dyn/dynhid0", core.mix
    yield "dyn/dynhid0norm", core.mix_norm
    yield "dyn/dyngru", core.gates
    yield from _hidden("dyn/", (rssm.posterior,), "obs", "obs{}norm")
    yield "dyn/obslogit", rssm.posterior_logits
    yield from _hidden("dyn/", rssm.prior, "prior", "prior{}norm")
    yield "dyn/priorlogit", rssm.prior_logits
    if decoder.vector_keys:
        yield from _hidden("dec/mlp/", decoder.vector)
        for key, head in zip(decoder.vector_keys, decoder.vector_heads, strict=True):
            kind = "pred" if isinstance(decoder.spaces[key], Continuous) else "logits"
            yield f"dec/vec/{official_name(key)}/{kind}", head
    if decoder.image_keys:
        image = decoder.image
        yield "dec/sp0", image.from_belief
        yield "dec/sp1", image.from_state[0].linear
        yield "dec/sp1norm", image.from_state[0].after
        yield "dec/sp2", image.from_state[1]
        yield "dec/spnorm", image.norm
        for i, stage in zip((2, 1, 0), image.stages, strict=True):
            yield f"dec/conv{i}", stage.conv
            yield f"dec/conv{i}norm", stage.norm
        yield "dec/imgout", image.out
    yield from _hidden("rew/mlp/", agent.reward.mlp)
    yield "rew/head/logits", agent.reward.logits
    yield from _hidden("con/mlp/", agent.continuation.mlp)
    yield "con/head/logit", agent.continuation.logits
    yield from _hidden("pol/mlp/", agent.actor.mlp)
    for key, heads in zip(agent.action_space.keys, agent.actor.heads, strict=True):
        yield from ((f"pol/head/{key_name(key)}/{kind}", head) for kind, head in heads.items())
    yield from _hidden("val/mlp/", agent.value.mlp)
    yield "val/head/logits", agent.value.logits


def _hidden(
    prefix: str, layers: Iterable[HiddenLayer], linear: str = "linear", norm: str = "norm{}"
) -> Iterator[tuple[str, nn.Module]]:
    for i, layer in enumerate(layers):
        yield f"{prefix}{linear}{i}", layer.linear
        yield prefix + norm.format(i), layer.after
