"""From specs and a size to world model, actor, critic and policy."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from tensordict import NestedKey
from torch import nn
from torchrl.data import Composite, TensorSpec, Unbounded
from torchrl.envs.transforms import TensorDictPrimer

from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.keys import LATENTS, MASK, NOT_OBSERVED, WRITTEN
from dreamer_torchrl.modules.actor import ActionSpace, Actor
from dreamer_torchrl.modules.decoder import Decoder
from dreamer_torchrl.modules.encoder import Encoder
from dreamer_torchrl.modules.heads import ContinueHead, MaskHead, TwoHotHead
from dreamer_torchrl.modules.latents import CategoricalLatent, Latent
from dreamer_torchrl.modules.layers import Layers
from dreamer_torchrl.modules.rssm import RSSM, MakeCore
from dreamer_torchrl.modules.spaces import Image, Space, key_name, spaces_from_spec

MakeEncoder = Callable[[Mapping[NestedKey, Space]], nn.Module]  # has ``in_keys`` and ``out_features``, as `Encoder`
MakeDecoder = Callable[[Mapping[NestedKey, Space], int, int], nn.Module]  # of spaces, sizes of belief and state
MakeLatent = Callable[[int, int], Latent]  # of numbers of variables and classes
MakeHead = Callable[[int, int], nn.Module]  # of features and units; has ``out_keys``, and `Head`'s ``cost``
MakeActor = Callable[[int, ActionSpace, int], Actor]  # of features, action space and units


class Agent(nn.Module):
    """World model, actor and critic, sized to the specs of one environment; `build_agent` is another name.

    Set the ``generator`` of its ``policy`` to make the draws repeat. What only training needs belongs to the `Learner`.
    Its parts are those of DreamerV3; others are given as what makes them, such as a class or `functools.partial`.

    Args:
        observation_spec: what the environment shows, without batch dimensions or with those of the spec itself;
            ``action_mask`` is no observation: it says which classes an action may have.
        action_spec: one leaf or a `Composite` of leaves.
        size: a name from ``configs/size`` or a `Size`.
        dtype: precision computed in; parameters, statistics and losses are float32 all the same.
        unimix, actor_unimix: shares of the uniform distribution in the state and in discrete actions (paper: 0.01).
        layers: what the networks without a part of their own are made of.
        encoder, decoder, core, latent, reward, continuation, value, actor: parts (see ``Make...`` in this file).
        prior_layers: hidden layers of the prior.

    Example:
        >>> from torchrl.data import Bounded, Composite, Unbounded
        >>> agent = Agent(Composite(observation=Unbounded((24,))), Bounded(-1, 1, (6,)), "size1m")
        >>> sum(parameter.numel() for parameter in agent.parameters())
        640867
    """

    policy: Policy

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        size: str | Size = "size1m",
        dtype: torch.dtype = torch.float32,
        unimix: float = 0.01,
        actor_unimix: float = 0.0,
        encoder: MakeEncoder | None = None,
        *,
        layers: Layers = Layers(),  # noqa: B008
        core: MakeCore | None = None,
        latent: MakeLatent | None = None,
        prior_layers: int = 2,
        decoder: MakeDecoder | None = None,
        reward: MakeHead | None = None,
        continuation: MakeHead | None = None,
        value: MakeHead | None = None,
        actor: MakeActor | None = None,
    ):
        super().__init__()
        if not isinstance(observation_spec, Composite):
            remedy = "give the whole Composite, such as env.observation_spec_unbatched."
            raise TypeError(f"observation_spec is a {type(observation_spec).__name__}: {remedy}")
        there = set(observation_spec.keys())
        primed = there.issuperset(LATENTS)  # all three: the agent's own primer put them there
        taken = sorted(there.intersection(WRITTEN if primed else (*WRITTEN, *LATENTS)))
        if taken:
            remedy = f"append RenameTransform([{taken[0]!r}], ['observed_{taken[0]}']) to the environment."
            found = f"an observation {taken[0]!r}, a name that the agent needs for itself"
            raise ValueError(f"The environment has {found}: {remedy}")
        self.spaces = spaces_from_spec(observation_spec, "observation", exclude=NOT_OBSERVED)
        mask = self.spaces.pop(MASK, None)
        # As the spec lists them, which is how the official decoder lays out its channels
        self.image_order = [key for key in observation_spec.keys(True, True) if isinstance(self.spaces.get(key), Image)]
        self.action_space = ActionSpace(action_spec, tuple(observation_spec.shape), mask)
        self.size = size = Size.named(size) if isinstance(size, str) else size
        if encoder is None:
            self.encoder = Encoder(self.spaces, size.units, size.depth, dtype=dtype, patch=size.patch, kind=layers)
        else:
            self.encoder = _fitted(encoder(self.spaces), self.spaces)
        latent = partial(CategoricalLatent, unimix=unimix) if latent is None else latent
        self.rssm = RSSM(
            *(self.action_space.size, self.encoder.out_features),
            *(size.belief, size.hidden, size.stochastic, size.classes, size.blocks, unimix),
            core=core,
            latent=latent(size.stochastic, size.classes),
            layers=layers,
            prior_layers=prior_layers,
        )
        features, state = self.rssm.feature_size, self.rssm.state_size
        decoder = decoder or partial(Decoder, units=size.units, depth=size.depth, patch=size.patch, kind=layers)
        self.decoder = decoder(self.spaces, size.belief, state)
        self.reward = (reward or partial(TwoHotHead, layers=1, kind=layers))(features, size.units)
        self.continuation = (continuation or partial(ContinueHead, kind=layers))(features, size.units)
        actor = actor or partial(Actor, unimix=actor_unimix, kind=layers)
        self.actor = actor(features, self.action_space, size.units)
        self.value = (value or partial(TwoHotHead, layers=3, kind=layers))(features, size.units)
        self.mask: MaskHead | None = None
        if mask:
            self.mask = MaskHead(features, size.units, self.action_space.class_groups, kind=layers)
        # No submodule: the networks would be registered twice.
        object.__setattr__(self, "policy", Policy(self.encoder, self.rssm, self.actor))

    @property
    def latent_spec(self) -> Composite:
        """What the policy carries from step to step, without batch dimensions."""
        belief, action = Unbounded((self.rssm.belief_size,)), Unbounded((self.action_space.size,))
        return Composite(belief=belief, state=self.rssm.latent.spec, previous_action=action)

    def primer(self) -> TensorDictPrimer:
        """A transform that puts the latents into the environment's own specs and zeroes them at each reset."""
        return TensorDictPrimer(self.latent_spec.clone(), default_value=0.0, reset_key="_reset", expand_specs=True)


build_agent = Agent


def _fitted(encoder: nn.Module, spaces: Mapping[NestedKey, Space]) -> nn.Module:
    """The encoder, after a check of what the rest of the agent asks it; it is told what its keys hold."""
    for name in ("in_keys", "out_features"):
        if not hasattr(encoder, name):
            remedy = "give it in_keys (keys in the order in which forward takes them) and out_features (its width)."
            raise TypeError(f"The encoder {type(encoder).__name__} has no {name}: {remedy}")
    for key in encoder.in_keys:
        if key not in spaces:
            there = ", ".join(map(key_name, spaces))
            raise ValueError(f"The encoder reads {key_name(key)!r}, which is no observation: there are {there}.")
    encoder.spaces = {key: spaces[key] for key in encoder.in_keys}
    return encoder
