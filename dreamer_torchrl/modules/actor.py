"""The actor: features to a distribution over actions of any spec.

Inside the agent an action is one flat float vector: floats as they are, classes one-hot, keys in sorted order.
"""

from collections.abc import Callable, Mapping

import torch
from tensordict import NestedKey
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential
from torch import Tensor, nn
from torchrl.data import TensorSpec

from dreamer_torchrl.keys import MASK
from dreamer_torchrl.modules.distributions import BoundedNormal, Draw, OneHotDist, sample_one_hot
from dreamer_torchrl.modules.heads import joined_features
from dreamer_torchrl.modules.layers import MLP, Layers, full_precision
from dreamer_torchrl.modules.spaces import (
    Continuous,
    Discrete,
    Image,
    Space,
    by_variable,
    key_name,
    spaces_from_spec,
)
from dreamer_torchrl.modules.tensordict_module import AsTensorDictModule

MakeContinuous = Callable[[Tensor, Tensor], Draw]  # from raw means and raw deviations, ``[..., A]`` each


class ActionSpace:
    """All keys of an action, read off its spec: how they lie in the flat action, its noise and its parameters.

    The spec is one leaf or a `Composite`; ``batch`` is the environment's, which a leaf cannot tell from its own. With
    ``mask``, what the environment shows as ``action_mask``, there is a flag for each class, in the flat action's order.

    Example:
        >>> from torchrl.data import Bounded, Categorical, Composite
        >>> space = ActionSpace(Composite(steer=Bounded(-1, 1, (2,)), gear=Categorical(3)))
        >>> space.flatten({"gear": torch.tensor(2), "steer": torch.tensor([0.5, -1.0])})
        tensor([ 0.0000,  0.0000,  1.0000,  0.5000, -1.0000])
    """

    def __init__(self, spec: TensorSpec, batch: tuple[int, ...] = (), mask: Space | None = None):
        self.spaces: dict[NestedKey, Continuous | Discrete] = spaces_from_spec(spec, "action", batch=batch)
        for key, space in self.spaces.items():
            _check_action(key, space)
        self.keys = list(self.spaces)
        self.parts = [group for space in self.spaces.values() for group in space.groups]
        """Pairs (noise numbers, classes) of each distribution; 0 classes for floats."""
        self.size = sum(space.size for space in self.spaces.values())
        self.noise_size = sum(count for count, _ in self.parts)
        self.parameter_sizes = [count * (classes or 2) for count, classes in self.parts]
        self.parameter_size = sum(self.parameter_sizes)
        self.class_groups = [pair for pair in self.parts if pair[1]]
        self.masks: dict[NestedKey, Space] = {} if mask is None else {MASK: self._checked_mask(mask)}
        """The space of the mask by its key; empty without one."""

    def flatten(self, values: Mapping[NestedKey, Tensor]) -> Tensor:
        """The environment's action keys as the flat action ``[..., A]``."""
        return _joined([space.flatten(values[key]) for key, space in self.spaces.items()])

    def restore(self, flat: Tensor) -> dict[NestedKey, Tensor]:
        parts = flat.split([space.size for space in self.spaces.values()], -1)
        return {key: space.restore(part) for (key, space), part in zip(self.spaces.items(), parts, strict=True)}

    def split_mask(self, mask: Tensor | None) -> list[Tensor | None]:
        """The flags ``[..., variables, classes]`` of each part of the action; None for floats and without a mask."""
        flags = iter([] if mask is None else by_variable(mask.bool(), self.class_groups))
        return [next(flags, None) if classes else None for _, classes in self.parts]

    def explored(self, flat: Tensor, amount: float, noise: Tensor, mask: Tensor | None = None) -> Tensor:
        """The flat action with as much exploration noise added, from what `noise` gives (V1 and V2).

        Floats get ``amount`` times a normal and stay in -1 to 1; a class is drawn anew with the probability ``amount``.
        """
        parts, masks = [], self.split_mask(mask)
        chunks = flat.split([count * (classes or 1) for count, classes in self.parts], -1)
        draws = noise.split([count for count, _ in self.parts], -1)
        for (count, classes), part, drawn, allowed in zip(self.parts, chunks, draws, masks, strict=True):
            if classes:
                chosen = part.unflatten(-1, (count, classes))
                if allowed is None:
                    probs = amount / classes + (1 - amount) * chosen
                else:
                    probs = amount * OneHotDist(torch.zeros_like(chosen), 0.0, allowed).probs + (1 - amount) * chosen
                parts.append(sample_one_hot(probs, drawn, None if allowed is None else probs > 0).flatten(-2))
            else:
                parts.append((part + amount * drawn).clamp(-1, 1))
        return _joined(parts)

    def _checked_mask(self, mask: Space) -> Space:
        count = sum(variables * classes for variables, classes in self.class_groups)
        if isinstance(mask, Discrete) and mask.shape == (count,) and mask.classes == (2,) * count and count:
            return mask
        found = f"has shape {list(mask.shape)} and is {type(mask).__name__.lower()}, but the action has {count} classes"
        remedy = f"give booleans of shape [{count}], variables one after the other, by sorted key"
        rename = f"or append RenameTransform([{MASK!r}], ['observed_{MASK}']) to the environment if it is no mask."
        raise ValueError(f"The observation {MASK!r} {found}: {remedy if count else 'leave it out'}, {rename}")

    def noise(
        self, *batch: int, generator: torch.Generator | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Noise for one action each, ``[*batch, noise_size]``: uniforms for classes, normals for floats."""
        how = {"generator": generator, "device": device}
        parts = self.parts
        return _joined([(torch.rand if classes else torch.randn)(*batch, count, **how) for count, classes in parts])


class ActionDistribution(Draw):
    """Distribution over flat actions: one `OneHotDist` or ``continuous`` per part, independent of each other.

    Parameters are ``[..., parameter_size]``, as the `Actor` gives them; the event is ``[A]``. Classes whose flag in the
    ``mask`` ``[..., sum of classes]`` is False are never chosen.
    """

    def __init__(
        self,
        parameters: Tensor,
        space: ActionSpace,
        unimix: float = 0.0,
        continuous: MakeContinuous = BoundedNormal,
        mask: Tensor | None = None,
    ):
        self.parameters, self.space = full_precision(parameters), space
        chunks = self.parameters.split(space.parameter_sizes, -1)
        self.parts: list[Draw] = [
            OneHotDist(part.unflatten(-1, pair), unimix, allowed) if pair[1] else continuous(*part.chunk(2, -1))
            for pair, part, allowed in zip(space.parts, chunks, space.split_mask(mask), strict=True)
        ]
        super().__init__(parameters.shape[:-1], torch.Size((space.size,)), validate_args=False)

    @property
    def mode(self) -> Tensor:
        return self._join([part.mode for part in self.parts])

    @property
    def mean(self) -> Tensor:
        return self._join([part.mean for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        pairs = zip(self.parts, value.split([part.event_shape.numel() for part in self.parts], -1), strict=True)
        return sum(part.log_prob(chunk.unflatten(-1, part.event_shape)) for part, chunk in pairs)

    def entropy(self) -> Tensor:
        return sum(part.entropy() for part in self.parts)

    @property
    def entropy_range(self) -> tuple[float, float] | None:
        """The least and the largest entropy that parameters can give; None where a part does not know its own."""
        low = high = 0.0
        for (count, _), part in zip(self.space.parts, self.parts, strict=True):
            if part.entropy_limits is None:
                return None
            least, most = part.entropy_limits
            low, high = low + count * least, high + count * most
        return low, high

    def _draw(self, noise: Tensor) -> Tensor:
        chunks = noise.split([count for count, _ in self.space.parts], -1)
        return self._join([part.rsample(chunk) for part, chunk in zip(self.parts, chunks, strict=True)])

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        return self.space.noise(*shape, *self.parameters.shape[:-1], device=self.parameters.device)

    def _join(self, values: list[Tensor]) -> Tensor:
        return _joined([x.flatten(-len(part.event_shape)) for part, x in zip(self.parts, values, strict=True)])


class Actor(nn.Module, AsTensorDictModule):
    """Map features to the parameters of an `ActionDistribution`; logits and means start close to 0.

    ``continuous`` makes the distribution of floats, such as ``partial(BoundedNormal, max_std=0.5)``, or one of
    `squashed`.

    Example:
        >>> from torchrl.data import OneHot as OneHotSpec
        >>> actor = Actor(6, ActionSpace(OneHotSpec(4)), units=8)
        >>> actor.distribution(actor(torch.ones(5, 6))).sample().shape
        torch.Size([5, 4])
    """

    in_keys = ("features",)
    out_keys = ("action_parameters",)

    def __init__(
        self,
        in_features: int,
        space: ActionSpace,
        units: int,
        layers: int = 3,
        unimix: float = 0.0,
        continuous: MakeContinuous = BoundedNormal,
        kind: Layers = Layers(),  # noqa: B008
    ):
        super().__init__()
        self.space = space
        self.distribution_options = {"space": space, "unimix": unimix, "continuous": continuous}
        self.mlp = MLP(in_features, units, layers, kind.hidden)
        self.heads = nn.ModuleList()  # a ModuleDict would refuse keys like "items"
        for part in space.spaces.values():
            names = ("logits",) if isinstance(part, Discrete) else ("mean", "stddev")
            self.heads.append(nn.ModuleDict({name: kind.linear(units, part.size, 0.01) for name in names}))

    def forward(self, *features: Tensor) -> Tensor:
        """Features in one or more parts ``[..., F_i]`` to ``[..., parameter_size]``."""
        hidden = self.mlp(joined_features(features))
        return _joined([head(hidden) for heads in self.heads for head in heads.values()])

    def distribution(self, parameters: Tensor, mask: Tensor | None = None) -> ActionDistribution:
        return ActionDistribution(parameters, **self.distribution_options, mask=mask)

    def act(self, features: Tensor, noise: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.distribution(self(features), mask).sample(noise)

    def probabilistic_module(
        self, in_keys: tuple[NestedKey, ...] = ("features",), action_key: NestedKey = "action"
    ) -> ProbabilisticTensorDictSequential:
        """The actor as TorchRL has it, which samples by the exploration type; the action is flat."""
        masks = {"mask": MASK} if self.space.masks else {}
        return ProbabilisticTensorDictSequential(
            self.tensordict_module(in_keys),
            ProbabilisticTensorDictModule(
                in_keys={"parameters": "action_parameters", **masks},
                out_keys=[action_key],
                distribution_class=ActionDistribution,
                distribution_kwargs=self.distribution_options,
            ),
        )


def _check_action(key: NestedKey, space: Continuous | Discrete | Image) -> None:
    if isinstance(space, Image):
        raise ValueError(f"Action {key_name(key)!r} has an image spec: give it a Bounded, OneHot or Categorical one.")
    if isinstance(space, Continuous) and space.bounds not in ((), ((-1.0, 1.0),)):
        listed = ", ".join(f"{low} to {high}" for low, high in space.bounds)
        remedy = "append torchrl.envs.ActionScaling() to the environment."
        raise ValueError(f"Action {key_name(key)!r} has bounds {listed}, but the actor acts in -1 to 1: {remedy}")


def _joined(parts: list[Tensor]) -> Tensor:
    """Along the last axis; of one part, `torch.cat` would copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
